-- kasma rules: what a developer does with files, and the merchant's walk from the command line.
local json = require("core.json")
local support = require("api.support")
local shop_of = require("api.shop")

local must = shop_of.must

-- The program under test is the one that runs these tests.
local function binary()
    local pipe = assert(io.popen("readlink /proc/$PPID/exe"))
    local path = pipe:read("*l")
    pipe:close()
    return path
end

local KASMA = binary()
local DIR

---@return string out, integer status
local function kasma(...)
    local words = {}
    for i, word in ipairs{ ... } do words[i] = "'" .. word:gsub("'", "'\\''") .. "'" end
    local pipe = assert(io.popen(("%s rules %s 2>/dev/null; echo \"status $?\""):format(KASMA, table.concat(words, " "))))
    local text = pipe:read("*a")
    pipe:close()
    local out, status = text:match("^(.-)status (%d+)%s*$")
    return out, tonumber(status)
end

local function save(name, text)
    local file = assert(io.open(DIR .. "/" .. name, "w"))
    file:write(text)
    file:close()
end

describe("kasma rules", function()
    setup(function() DIR = assert(io.popen("mktemp -d /tmp/kasma-rules-cli.XXXXXX")):read("*l") end)
    teardown(function() os.execute("rm -rf '" .. DIR .. "'") end)

    it("says where a rule is wrong, with a hint, and ends with 1", function()
        save("bad.lua",
            "return { hook = \"promotion\", name = \"Bad\", run = function(input)\n  return { operations = input.cart.lnes }\nend }\n")
        local out, status = kasma("check", DIR .. "/bad.lua")
        assert.equal(1, status)
        assert.is_truthy(out:find("bad.lua:2:36: unknown_field: input.cart has no field 'lnes'", 1, true), out)
        assert.is_truthy(out:find("> *   2 |   return"))
        assert.is_truthy(out:find("hint: lines", 1, true))
        local list = json.decode((kasma("check", DIR .. "/bad.lua", "--json")))
        assert.same({ "unknown_field", 2, 36 }, { list[1].diagnostics[1].code, list[1].diagnostics[1].line, list[1].diagnostics[1].column })
        local sarif = json.decode((kasma("check", DIR .. "/bad.lua", "--format", "sarif")))
        assert.equal("unknown_field", sarif.runs[1].results[1].ruleId)
    end)

    it("makes a rule from a template that passes its check and its tests", function()
        assert.equal(0, select(2, kasma("new", "weekend", "--template", "promotions/buy_x_get_y", "--dir", DIR)))
        assert.equal(2, select(2, kasma("new", "weekend", "--template", "promotions/buy_x_get_y", "--dir", DIR)))
        assert.equal(0, select(2, kasma("check", DIR .. "/weekend.lua")))
        local out, status = kasma("test", DIR .. "/weekend.lua")
        assert.equal(0, status)
        assert.is_truthy(out:find("ok 9  failed 0", 1, true), out)
        local one = kasma("test", DIR .. "/weekend.lua", "--only", "Monday")
        assert.is_truthy(one:find("ok 1  failed 0  skipped 8", 1, true), one)
        local text = assert(io.open(DIR .. "/weekend_test.lua")):read("*a")
        save("weekend_test.lua", (text:gsub("discount = 90000", "discount = 90001")))
        out, status = kasma("test", DIR .. "/weekend.lua")
        assert.equal(1, status)
        assert.is_truthy(out:find("discount: expected 90001, got 90000", 1, true), out)
        assert.is_truthy(kasma("test", DIR .. "/weekend.lua", "--format", "junit"):find("failures=\"1\"", 1, true))
        save("weekend_test.lua", text)
    end)

    it("makes a workflow that passes its check and its tests", function()
        assert.equal(0, select(2, kasma("new", "follow", "--hook", "workflow", "--dir", DIR)))
        assert.equal(0, select(2, kasma("check", DIR .. "/follow.lua")))
        local out, status = kasma("test", DIR .. "/follow.lua")
        assert.equal(0, status, out)
        assert.is_truthy(out:find("ok 1  failed 0", 1, true), out)
        local text = assert(io.open(DIR .. "/follow.lua")):read("*a")
        save("follow.lua", (text:gsub("order%.placed", "order.plaecd")))
        out, status = kasma("check", DIR .. "/follow.lua")
        assert.equal(1, status)
        assert.is_truthy(out:find("follow.lua:6:13: manifest_field: on[1]: 'order.plaecd' is no event", 1, true), out)
        assert.is_truthy(out:find("hint: did you mean 'order.placed'?", 1, true), out)
        save("follow.lua", text)
    end)

    it("says what a rule takes, also where it chooses among words", function()
        save("choose.lua", "return { hook = \"promotion\", name = \"Choose\", config = schema.object{ taste = schema.enum{ \"light\","
            .. " \"strong\", title = \"Taste\", default = \"light\" } }, run = function(input, config) return nil, config.taste end }\n")
        local list = json.decode((kasma("check", DIR .. "/choose.lua", "--json")))
        local taste = list[1].manifest.config.fields.taste
        assert.same({ "enum", "Taste", "light", { "light", "strong" } }, { taste.kind, taste.title, taste.default, taste.values })
        local shop = support.tenant{}
        local answer = must(shop.owner:post("/rules/check", { source = assert(io.open(DIR .. "/choose.lua")):read("*a") }))
        assert.same({ true, { "light", "strong" } }, { answer.ok, answer.manifest.config.fields.taste.values })
        answer = must(shop.owner:post("/rules/check", { hook = "route", source = "return { hook = \"route\", name = \"Asks\","
            .. " method = \"GET\", path = \"asks\","
            .. " needs = { \"catalog\", http = { \"a.example.org\" } }, run = function() return { status = 204 } end }" }))
        assert.same({ { "catalog" }, { "a.example.org" } }, { answer.manifest.needs.values, answer.manifest.needs.http })
        assert.equal(0, select(2, kasma("stubs", "--dir", DIR)))
        assert.is_truthy(assert(io.open(DIR .. "/.kasma/config.d.lua")):read("*a"):find(
            "---@field taste \"light\"|\"strong\" Taste", 1, true))
    end)

    it("writes stubs, lists hooks, and refuses what it does not know", function()
        assert.equal(0, select(2, kasma("stubs", "--dir", DIR)))
        local stubs = assert(io.open(DIR .. "/.kasma/kasma.d.lua")):read("*a")
        assert.is_truthy(stubs:find("---@field lines kasma.promotion.cart.lines[]|nil", 1, true))
        assert.is_truthy(stubs:find("---@class kasma.WorkflowStep", 1, true))
        assert.is_truthy(stubs:find("---@alias kasma.EventName .*\"order.placed\""))
        for _, call in ipairs{ "orders.note", "mail.send", "notify.user", "jobs.enqueue", "events.emit" } do
            assert.is_truthy(stubs:find(call .. " = nil", 1, true), call)
        end
        local configs = assert(io.open(DIR .. "/.kasma/config.d.lua")):read("*a")
        assert.is_truthy(configs:find("---@class kasma.config.weekend\n---@field buy integer Units to buy\n", 1, true), configs)
        assert.is_truthy(kasma("hooks"):find("tax.resolve", 1, true))
        assert.equal(2, select(2, kasma("frobnicate")))
        assert.equal(2, select(2, kasma("publish", "x", "-m", "y")))
        assert.equal(2, select(2, kasma("list", "--tenant", "no-such-tenant")))
    end)

    it("takes a rule to a shop, shows what it changes, publishes it and rolls it back", function()
        local shop = support.tenant{ currency = "VND", country = "VN" }
        local tea = shop_of.product(shop, { name = "Oolong", price = 120000, trackInventory = false })
        local buyer = shop_of.buyer(shop, tea, 3)
        must(shop_of.checkout(shop_of.buyer(shop, tea, 3), { paymentMethod = "COD" }))
        local function total() return must(buyer:post("/sales/cart/quote", { shippingAddress = { country = "VN" } })).total end
        kasma("new", "b2g1", "--template", "promotions/buy_x_get_y", "--dir", DIR)
        local out, status = kasma("push", DIR .. "/b2g1.lua", "--tenant", shop.key)
        assert.same({ 0, true }, { status, out:find("b2g1  draft r1  checked", 1, true) ~= nil })
        out, status = kasma("preview", "b2g1", "--orders", "10", "--tenant", shop.key)
        assert.equal(0, status)
        assert.is_truthy(out:find("before 360,000  after 240,000  delta -120,000 VND", 1, true), out)
        assert.equal(1, select(2, kasma("preview", "b2g1", "--orders", "10", "--tenant", shop.key, "--fail-if-delta-below", "-2%")))
        assert.equal(2, select(2, kasma("publish", "b2g1", "--tenant", shop.key)))
        assert.equal(360000, total())
        out, status = kasma("publish", "b2g1", "-m", "weekend tea", "--tenant", shop.key)
        assert.equal(0, status)
        assert.is_truthy(out:find("b2g1  version 1  epoch %d+  live on (%d+) of %1 workers"), out)
        support.eventually(function() return total() == 240000 end)
        kasma("push", DIR .. "/b2g1.lua", "--tenant", shop.key, "--config", "{\"buy\":1}")
        kasma("publish", "b2g1", "-m", "by mistake", "--tenant", shop.key)
        assert.is_truthy(kasma("diff", "b2g1", "1", "2", "--tenant", shop.key):find("+config.buy = 1", 1, true))
        out = kasma("rollback", "b2g1", "1", "-m", "wrong count", "--tenant", shop.key)
        assert.is_truthy(out:find("b2g1  version 3", 1, true), out)
        support.eventually(function() return total() == 240000 end)
        out = kasma("log", "b2g1", "--tenant", shop.key)
        assert.is_truthy(out:find("^%* v3 .-wrong count %(as version 1%)"), out)
        assert.equal(0, select(2, kasma("disable", "b2g1", "-m", "season over", "--tenant", shop.key)))
        support.eventually(function() return total() == 360000 end)
        assert.equal(1, select(2, kasma("disable", "nothing", "-m", "x", "--tenant", shop.key)))
        assert.equal(4, select(2, kasma("disable", "b2g1", "-m", "again", "--tenant", shop.key)))
    end)
end)
