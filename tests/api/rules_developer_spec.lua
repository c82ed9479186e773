-- The developer's walk: a folder out of a shop, a rule that is live as it is saved, one that is broken, a draft session on a shared server.
local json = require("core.json")
local support = require("api.support")
local shop_of = require("api.shop")
local command = require("api.rules_command")
local weekend = require("api.weekend")

local must = shop_of.must
local URL = os.getenv("TEST_URL")

local PATH = "/rules/promotions/b2g1_weekend.lua"

describe("a developer", function()
    local world = weekend.shop()
    local shop = world.shop
    local key, dir, dev, watching

    local function rules(...) return command.run({ dir = dir, env = { KASMA_URL = URL, KASMA_KEY = key } }, { "rules", ... }) end

    -- `kasma rules watch` in the background; its output goes into a file.
    local function watch(url, ...)
        local out = dir .. "/watch.out"
        os.remove(out) -- or what an earlier one said would be taken for this one's
        local line = command.line({ dir = dir, env = { KASMA_URL = url, KASMA_KEY = key } }, { "rules", "watch", "rules", ... })
        local pipe = assert(io.popen(("( %s ) >%s 2>&1 & echo $!"):format(line:gsub("&& env", "&& exec env", 1), out)))
        local pid = pipe:read("*l")
        pipe:close()
        local me = {}
        function me.said() return command.read(out) or "" end
        function me.wait(pattern) return (support.eventually(function() return me.said():match(pattern) end, 30)) end
        function me.stop() os.execute("kill " .. pid .. " 2>/dev/null") end
        me.wait("watching %d+ files")
        watching = me
        return me
    end

    setup(function()
        key = command.key(shop)
        dir = command.folder()
        must(shop.owner:post("/rules/create", { key = "b2g1_weekend", hook = "promotion", name = "Weekend tea", source = weekend.SOURCE,
            tests = weekend.TESTS, settings = { config = { category = world.category, days = json.array{ 1, 2, 3, 4, 5, 6, 7 } } } }))
        must(shop.owner:post("/rules/b2g1_weekend/publish", { revision = 1, note = "go" }))
    end)
    teardown(function()
        if watching then watching.stop() end
        if dev then dev.stop() end
        os.execute("rm -rf " .. command.quoted(dir))
    end)

    it("pulls a shop's rules as files", function()
        local status, _, said = rules("pull")
        assert.equal(0, status, said)
        assert.equal(weekend.SOURCE, command.read(dir .. PATH))
        assert.equal(weekend.TESTS, command.read(dir .. "/rules/promotions/b2g1_weekend_test.lua"))
        local list = command.read(dir .. "/rules/active/" .. shop.key .. ".lua")
        assert.truthy(list:find("file = \"promotions/b2g1_weekend.lua\", priority = 100", 1, true), list)
        assert.truthy(list:find("category = \"" .. world.category .. "\"", 1, true), list)
        assert.truthy(command.read(dir .. "/.kasma/kasma.d.lua"):find("---@class kasma.promotion", 1, true))
        assert.truthy(command.read(dir .. "/.luarc.json"):find("LuaJIT", 1, true))
        -- From here on the files are what is live, on a server of the developer's own.
        assert.equal(0, (rules("disable", "b2g1_weekend", "-m", "the files go on")))
        dev = support.server{ KASMA_RULES_DIR = dir .. "/rules" }
    end)

    it("saves, and it is live: no process is started anew", function()
        support.eventually(function() return world.quote_o2(dev.url).adjustments[1] ~= nil end)
        assert.equal("Buy 2, third free", world.quote_o2(dev.url).adjustments[1].label)
        local w = watch(dev.url)
        command.save(dir .. PATH, (weekend.SOURCE:gsub("Buy 2, third free\"}", "Third tea on us\"}")))
        local line = w.wait("b2g1_weekend  checked  tests 6/6  live on %d+ of %d+ workers %(epoch %d+%)")
        assert.truthy(line, w.said())
        local priced = world.quote_o2(dev.url)
        assert.same({ "Third tea on us", 484000 }, { priced.adjustments[1].label, priced.total })
    end)

    it("saves something broken: told with file and line, and the shop goes on with what was live", function()
        local w = watching
        command.save(dir .. PATH, (weekend.SOURCE:gsub("Buy 2, third free\"}", "Broken\"}"):gsub("\n  end }\n$", "\n  }\n")))
        local line = w.wait("rules/promotions/b2g1_weekend%.lua:(%d+)[:%d]*: syntax: ")
        assert.equal("19", line, w.said())
        w.wait("b2g1_weekend  refused  tests none  what was live stays live")
        local priced = world.quote_o2(dev.url)
        assert.same({ "Third tea on us", 484000 }, { priced.adjustments[1].label, priced.total })
        command.save(dir .. PATH, (weekend.SOURCE:gsub("Buy 2, third free\"}", "Mended\"}")))
        support.eventually(function() return select(2, w.said():gsub("live on", "")) == 2 end, 20)
        assert.equal("Mended", world.quote_o2(dev.url).adjustments[1].label)
        w.stop()
    end)

    it("says so when no list makes a file live", function()
        local w = watch(dev.url)
        command.save(dir .. "/rules/promotions/nobody.lua", "return { hook = \"promotion\", name = \"Nobody\", run = function() end }\n")
        w.wait("nobody  checked  tests none  live for nobody: no list below active/ names it")
        w.stop()
    end)

    it("shows a draft to whoever sends its header, on a shared server, and to nobody else", function()
        local w = watch(URL, "--session")
        command.save(dir .. PATH, (weekend.SOURCE:gsub("Buy 2, third free\"}", "On trial\"}")))
        local token = w.wait("b2g1_weekend  checked  tests 6/6  draft r%d+\n  X%-Kasma%-Rules%-Draft: (%S+)")
        local header = { ["X-Kasma-Rules-Draft"] = token }
        local tried = world.quote_o2(nil, header)
        assert.same({ 484000, "On trial" }, { tried.total, tried.adjustments[1].label })
        assert.equal(583000, world.quote_o2().total)
        local refused = shop_of.checkout(world.cart_of(weekend.O2), { paymentMethod = "COD" }, header)
        assert.same({ 409, "draft_session" }, { refused.status, refused.json.code })
        w.stop()
    end)

    it("sees runs as they happen, with the budget that they used", function()
        local out = dir .. "/tail.out"
        local line = command.line({ dir = dir, env = { KASMA_URL = dev.url, KASMA_KEY = key } }, { "rules", "tail", "--count", "1" })
        os.execute(("( timeout 60 sh -c %s; echo $? >%s.rc ) >%s 2>&1 </dev/null &"):format(command.quoted(line), out, out))
        support.eventually(function()
            world.quote_o2(dev.url)
            return (command.read(out .. ".rc") or ""):find("\n", 1, true)
        end, 30)
        assert.equal("0\n", command.read(out .. ".rc"))
        assert.truthy(command.read(out):find("promotions/b2g1_weekend +file +ok +[%d,]+ of 200,000 instructions"), command.read(out))
    end)
end)
