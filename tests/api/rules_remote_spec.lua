-- kasma rules on a developer's machine: a server's address and a key, and not one setting of its stores.
local json = require("core.json")
local support = require("api.support")
local shop_of = require("api.shop")
local command = require("api.rules_command")

local must = shop_of.must
local URL = os.getenv("TEST_URL")

local RULE = [[
return { hook = "promotion", name = "Half", run = function(input)
    return { operations = { { op = "line_percent", line_id = input.cart.lines[1].id, bps = 5000, label = "Half" } } }
end }
]]

describe("kasma rules on another machine", function()
    local shop, tea, key, dir

    local function rules(...) return command.run({ dir = dir, env = { KASMA_URL = URL, KASMA_KEY = key } }, { "rules", ... }) end

    setup(function()
        shop = support.tenant{ currency = "VND", country = "VN" }
        tea = shop_of.product(shop, { name = "Oolong", price = 120000, trackInventory = false })
        must(shop_of.checkout(shop_of.buyer(shop, tea, 3), { paymentMethod = "COD" }))
        key = command.key(shop)
        dir = command.folder()
        command.save(dir .. "/half.lua", RULE)
    end)
    teardown(function() os.execute("rm -rf " .. command.quoted(dir)) end)

    it("takes a rule from a file to a shop and back by its routes alone", function()
        local buyer = shop_of.buyer(shop, tea, 2)
        local function total() return must(buyer:post("/sales/cart/quote", { shippingAddress = { country = "VN" } })).total end
        local status, out = rules("push", "half.lua")
        assert.same({ 0, "half  draft r1  checked\n" }, { status, out })
        status, out = rules("preview", "half", "--orders", "5")
        assert.equal(0, status, out)
        assert.truthy(out:find("before 360,000  after 180,000  delta -180,000 VND", 1, true), out)
        assert.equal(1, (rules("preview", "half", "--orders", "5", "--fail-if-delta-below", "-2%")))
        command.save(dir .. "/cart.json", json.encode{ items = { { productId = tea, quantity = 1 } } })
        status, out = rules("preview", "half", "--cart", "cart.json", "--json")
        assert.same({ 0, 120000, 60000 }, { status, json.decode(out).totals.before, json.decode(out).totals.after })
        status, out = rules("publish", "half", "-m", "half price")
        assert.equal(0, status)
        assert.truthy(out:find("^half  version 1  epoch %d+  live on (%d+) of %1 workers\n$"), out)
        support.eventually(function() return total() == 120000 end)
        assert.equal("active", json.decode(select(2, rules("list", "--json")))[1].state)
        command.save(dir .. "/half.lua", (RULE:gsub("5000", "2500")))
        rules("push", "half.lua")
        assert.truthy(select(2, rules("diff", "half", "1", "draft")):find("bps = 2500", 1, true))
        assert.equal(0, (rules("publish", "half", "-m", "a quarter")))
        status, out = rules("rollback", "half", "1", "-m", "half after all")
        assert.equal(0, status)
        assert.truthy(out:find("half  version 3", 1, true), out)
        assert.truthy(select(2, rules("log", "half")):find("^%* v3 .-half after all %(as version 1%)"))
        assert.equal(0, (rules("disable", "half", "-m", "over")))
        support.eventually(function() return total() == 240000 end)
    end)

    it("ends as scripts need it: 1 findings, 2 usage, 3 refused, 4 conflict, 5 unreachable", function()
        command.save(dir .. "/wrong.lua", "return { hook = \"promotion\", name = \"Wrong\", run = function(i) return i.nothing end }\n")
        local status, out = rules("push", "wrong.lua", "--format", "junit")
        assert.equal(1, status)
        assert.truthy(out:find("<error>unknown_field: ", 1, true), out)
        status, out = rules("publish", "wrong", "-m", "x", "--format", "sarif")
        assert.equal(1, status)
        assert.equal("unknown_field", json.decode(out).runs[1].results[1].ruleId)
        assert.equal(1, (rules("show", "no-such-rule")))
        assert.equal(2, (rules("publish", "half")))
        assert.equal(2, (rules("list", "--format", "yaml")))
        assert.equal(4, (rules("disable", "half", "-m", "again")))
        local reader = { dir = dir, env = { KASMA_URL = URL, KASMA_KEY = command.key(shop, { "rules.read" }) } }
        assert.equal(0, (command.run(reader, { "rules", "list" })))
        assert.equal(3, (command.run(reader, { "rules", "enable", "half", "-m", "x" })))
        reader.env.KASMA_KEY = "ksk_test_00000000_" .. ("0"):rep(32)
        assert.equal(3, (command.run(reader, { "rules", "list" })))
        reader.env.KASMA_URL = "http://127.0.0.1:1"
        assert.equal(5, (command.run(reader, { "rules", "list" })))
    end)

    it("keeps to the tenant of its key", function()
        local other = support.tenant{}
        local status, _, said = command.run({ dir = dir, env = { KASMA_URL = URL, KASMA_KEY = key } }, { "rules", "list", "--tenant",
            other.key })
        assert.equal(3, status)
        assert.truthy(said:find("not_a_member", 1, true), said)
    end)

    it("never takes a key from its words, nor sends one in the clear or to where a folder's .env points", function()
        local status, _, said = command.run({ dir = dir, env = { KASMA_URL = URL } }, { "rules", "list", "--kasma-key", key })
        assert.equal(2, status)
        assert.truthy(said:find("on the command line", 1, true), said)
        assert.is_nil(said:find(key, 1, true))
        status, _, said = command.run({ dir = dir, env = { KASMA_URL = "http://shop.example.org", KASMA_KEY = key } }, { "rules", "list" })
        assert.equal(2, status)
        assert.truthy(said:find("not encrypted", 1, true), said)
        assert.is_nil(said:find(key, 1, true))
        command.save(dir .. "/.env", "KASMA_URL=http://127.0.0.1:1\n")
        status, _, said = command.run({ dir = dir, env = { KASMA_KEY = key } }, { "rules", "list" })
        os.remove(dir .. "/.env")
        assert.equal(2, status)
        assert.truthy(said:find("no server is named", 1, true), said)
    end)

    it("signs in with a profile that is its owner's alone", function()
        local o = { dir = dir, input = key .. "\n" }
        local status, out = command.run(o, { "login", URL, "--profile", "demo" })
        assert.equal(0, status, out)
        local path = dir .. "/.config/kasma/profiles.json"
        local pipe = assert(io.popen("stat -c %a " .. command.quoted(path)))
        assert.equal("600", pipe:read("*l"))
        pipe:close()
        o.input = nil
        local said
        assert.equal(0, (command.run(o, { "rules", "list" })))
        assert.equal(2, (command.run(o, { "rules", "list", "--profile", "nobody" })))
        status, out = command.run(o, { "login", "--list" })
        assert.equal(0, status)
        assert.truthy(out:find("* demo", 1, true), out)
        assert.is_nil(out:find(key, 1, true))
        os.execute("chmod 640 " .. command.quoted(path))
        status, out, said = command.run(o, { "rules", "list" })
        assert.same({ 2, "" }, { status, out })
        assert.truthy(said:find("can be read by others", 1, true), said)
        os.execute("chmod 600 " .. command.quoted(path))
        o.input = "ksk_test_00000000_" .. ("0"):rep(32)
        assert.equal(3, (command.run(o, { "login", URL, "--profile", "demo" })))
        assert.truthy(command.read(path):find(key, 1, true))
        o.input = nil
        assert.equal(0, (command.run(o, { "login", "--forget" })))
        assert.is_nil(command.read(path):find(key, 1, true))
        assert.equal(2, (command.run(o, { "rules", "list" })))
    end)

    it("checks and tests without any server", function()
        local o = { dir = dir }
        assert.equal(0, (command.run(o, { "rules", "new", "fresh", "--template", "promotions/percent_off" })))
        assert.equal(0, (command.run(o, { "rules", "check", "fresh.lua" })))
        assert.equal(0, (command.run(o, { "rules", "test", "fresh.lua", "--format", "sarif" })))
    end)

    it("shows nothing of an answer that would steer the terminal", function()
        command.save(dir .. "/esc.lua", (RULE:gsub("\"Half\", run", "\"Red \\27[31m\", run")))
        rules("push", "esc.lua")
        local _, out = rules("list")
        assert.is_nil(out:find("\27", 1, true))
    end)

end)
