-- The merchant's walk from the command line, with the numbers of the example: `kasma rules` on a server, by its routes and a key.
local json = require("core.json")
local shop_of = require("api.shop")
local command = require("api.rules_command")
local weekend = require("api.weekend")

local must = shop_of.must
local URL = os.getenv("TEST_URL")

describe("buy 2, third free on weekends, from the command line", function()
    local world = weekend.shop()
    local shop, orders = world.shop, world.orders
    local dir, key, writer

    local function run_as(who, ...) return command.run({ dir = dir, env = { KASMA_URL = URL, KASMA_KEY = who } }, { "rules", ... }) end
    local function rules(...) return run_as(key, ...) end
    local function answer(...)
        local words = { ... }
        words[#words + 1] = "--json"
        local status, out, said = rules(unpack(words))
        local value = json.decode(out)
        if value == nil then error(("%d: %s%s"):format(status, out, said), 2) end
        return value, status
    end
    local function save(text) command.save(dir .. "/b2g1_weekend.lua", text) end
    local function config(more) return json.encode{ category = world.category, buy = more } end

    setup(function()
        dir = command.folder()
        world.place_orders()
        key, writer = command.key(shop), command.key(shop, { "rules.read", "rules.write" })
    end)
    teardown(function()
        os.execute("rm -rf " .. command.quoted(dir))
        world.leave()
    end)

    it("is drafted, and its mistakes are told with their line", function()
        save(weekend.SOURCE)
        local status, out = rules("push", "b2g1_weekend.lua", "--config", config())
        assert.same({ 0, "b2g1_weekend  draft r1  checked\n" }, { status, out })
        save((weekend.SOURCE:gsub("input.cart.lines", "input.cart.lnes")))
        status, out = rules("push", "b2g1_weekend.lua")
        assert.equal(1, status)
        assert.truthy(out:find("b2g1_weekend.lua:7:%d+: unknown_field: input.cart has no field 'lnes'"), out)
        assert.truthy(out:find("hint: lines", 1, true), out)
        status, out = rules("publish", "b2g1_weekend", "-m", "too early")
        assert.equal(1, status)
        assert.truthy(out:find("b2g1_weekend.lua:7:%d+: unknown_field"), out)
        save(weekend.SOURCE)
        command.save(dir .. "/b2g1_weekend_test.lua", weekend.TESTS)
        assert.truthy(select(2, rules("test", "b2g1_weekend.lua")):find("ok 6  failed 0", 1, true))
        assert.equal("b2g1_weekend  draft r3  checked\n", select(2, rules("push", "b2g1_weekend.lua")))
    end)

    it("is previewed on one order and on six, with the difference in money", function()
        local one = answer("preview", "b2g1_weekend", "--order", orders.O2.orderNumber)
        assert.same({ 583000, 484000, -90000, -9000, 90000 }, { one.totals.before, one.totals.after, one.totals.merchandiseNet,
            one.totals.tax, one.adjustments[1].amount })
        local status, out = rules("preview", "b2g1_weekend", "--orders", "6")
        assert.equal(0, status)
        assert.truthy(out:find("draft r3 against none, 6 orders: 3 changed, 3 the same, 0 failed\n"
            .. "  before 2,948,000  after 2,519,000  delta -429,000 VND  (net -390,000, tax -39,000)", 1, true), out)
        for name, line in pairs{ O1 = "396,000 -> +264,000 +-132,000", O2 = "583,000 -> +484,000 +-99,000",
            O5 = "759,000 -> +561,000 +-198,000" } do
            local want = (orders[name].orderNumber .. " +" .. line):gsub("%-", "%%-")
            assert.truthy(out:find(want), out)
        end
        assert.equal(1, (rules("preview", "b2g1_weekend", "--orders", "6", "--fail-if-delta-below", "-10%")))
        assert.equal(0, (rules("preview", "b2g1_weekend", "--orders", "6", "--fail-if-delta-below", "-20%")))
    end)

    it("goes live for who may publish, and prices a Sunday", function()
        assert.equal(3, (run_as(writer, "publish", "b2g1_weekend", "-m", "no")))
        local done = answer("publish", "b2g1_weekend", "-m", "weekend tea")
        assert.same({ 1, done.live.workers }, { done.version, done.live.loaded })
        world.go_to(7)
        local priced = world.quote_o2()
        assert.same({ 530000, 90000, 44000, 484000, "Buy 2, third free" }, { priced.subtotal, priced.discount, priced.tax, priced.total,
            priced.adjustments[1].label })
        world.go_to(1)
        assert.equal(583000, world.quote_o2().total)
    end)

    it("is changed by mistake, seen in a preview, published anyway and rolled back", function()
        assert.equal(0, (rules("push", "b2g1_weekend.lua", "--config", config(1))))
        local seen = answer("preview", "b2g1_weekend", "--orders", "6")
        assert.same({ 2519000, 2189000, -330000, -300000, -30000, 3 }, { seen.totals.before, seen.totals.after, seen.totals.delta,
            seen.totals.merchandiseNet, seen.totals.tax, seen.changed })
        local bare = answer("preview", "b2g1_weekend", "--orders", "6", "--vs", "none")
        assert.same({ -759000, 4 }, { bare.totals.delta, bare.changed })
        assert.equal(2, answer("publish", "b2g1_weekend", "-m", "more").version)
        world.go_to(7)
        assert.equal(352000, world.quote_o2().total)
        local back = answer("rollback", "b2g1_weekend", "1", "-m", "wrong buy count")
        assert.same({ 3, 1 }, { back.version, back.sourceVersion })
        assert.equal(484000, world.quote_o2().total)
        local log = answer("log", "b2g1_weekend")
        assert.same({ 3, 2, 1 }, { log[1].version, log[2].version, log[3].version })
        assert.equal(log[3].sha256, log[1].sha256)
        local status, out = rules("diff", "b2g1_weekend", "2", "3")
        assert.equal(0, status)
        assert.truthy(out:find("-config.buy = 1", 1, true), out)
    end)

    it("is disabled, and everybody who did something is in the audit", function()
        local status, out = rules("disable", "b2g1_weekend", "-m", "season over")
        assert.same({ 0, "b2g1_weekend  disabled\n" }, { status, out })
        assert.equal(583000, world.quote_o2().total)
        local actions = {}
        for _, e in ipairs(must(shop.owner:get("/rules/b2g1_weekend/audit"), 200)) do table.insert(actions, 1, e.action) end
        assert.same({ "rules.create", "rules.save", "rules.save", "rules.publish", "rules.save", "rules.publish", "rules.rollback",
            "rules.disable" }, actions)
    end)
end)
