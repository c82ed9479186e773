-- A merchant's walk: buy 2, third free in Tea on weekends, from the draft over previews on real orders to the roll back. The numbers are
-- those of the example: Oolong 120,000, Jasmine 90,000, Lotus 150,000, a mug outside of Tea, VND, VAT of 10 %.
local json = require("core.json")
local time = require("core.time")
local support = require("api.support")
local shop_of = require("api.shop")
local weekend = require("api.weekend")

local must = shop_of.must
local ZONE = "Asia/Ho_Chi_Minh"
local SOURCE, TESTS = weekend.SOURCE, weekend.TESTS

describe("buy 2, third free on weekends", function()
    local world = weekend.shop()
    local shop, category, orders = world.shop, world.category, world.orders
    local go_to, cart_of, quote_o2, O2 = world.go_to, world.cart_of, world.quote_o2, weekend.O2

    local function now_wday() return time.fields(time.now(), ZONE).wday end

    local function post(path, body) return shop.owner:post("/rules/" .. path, body) end

    setup(function() world.place_orders() end)
    teardown(function() world.leave() end)

    it("is drafted, and its mistakes are told", function()
        local hooks = must(shop.owner:get("/rules/hooks"), 200)
        local found
        for _, h in ipairs(hooks) do
            if h.hook == "promotion" then found = h end
        end
        assert.equal(200000, found.budget.instructions)
        local body = { key = "b2g1_weekend", hook = "promotion", name = "Weekend tea", source = SOURCE,
            settings = { config = { category = category } } }
        local made = must(post("create", body))
        if made.diagnostics[1] then error(json.encode(made.diagnostics)) end
        assert.same({ "draft", 1, 0 }, { made.state, made.draft.revision, #made.diagnostics })
        local again = post("create", body)
        assert.same({ 409, "key_taken" }, { again.status, again.json.code })
        local wrong = must(post("b2g1_weekend/draft", { revision = 1, source = (SOURCE:gsub("input.cart.lines", "input.cart.lnes")) }))
        assert.equal(2, wrong.draft.revision)
        local d = wrong.diagnostics[1]
        assert.same({ "unknown_field", 7, "lines" }, { d.code, d.line, d.hint })
        local refused = post("b2g1_weekend/publish", { revision = 2, note = "no" })
        assert.same({ 422, "rule_check_failed" }, { refused.status, refused.json.code })
        local right = must(post("b2g1_weekend/draft", { revision = 2, source = SOURCE, tests = TESTS }))
        assert.same({ 3, 0 }, { right.draft.revision, #right.diagnostics })
        local late = post("b2g1_weekend/draft", { revision = 2, source = SOURCE })
        assert.same({ 409, "draft_conflict", 3 }, { late.status, late.json.code, late.json.details.theirs })
        local report = must(post("b2g1_weekend/test", {}))
        assert.same({ 6, 0 }, { report.passed, report.failed })
    end)

    it("is previewed on one order and on six, and nothing is written", function()
        local one = must(post("b2g1_weekend/preview", { orderId = orders.O2.orderNumber }))
        assert.same({ 583000, 484000, -90000, -9000 }, { one.totals.before, one.totals.after, one.totals.merchandiseNet, one.totals.tax })
        assert.same({ 1, 90000 }, { #one.adjustments, one.adjustments[1].amount })
        local six = must(post("b2g1_weekend/preview", { orders = { last = 6 } }))
        assert.same({ 2948000, 2519000, -429000, -390000, -39000 }, { six.totals.before, six.totals.after, six.totals.delta,
            six.totals.merchandiseNet, six.totals.tax })
        assert.same({ 3, 3, 0, 6 }, { six.changed, six.same, six.failed, six.against.used })
        local by_number = {}
        for _, o in ipairs(six.orders) do by_number[o.orderNumber] = { o.before, o.after } end
        assert.same({ [orders.O1.orderNumber] = { 396000, 264000 }, [orders.O2.orderNumber] = { 583000, 484000 },
            [orders.O5.orderNumber] = { 759000, 561000 } }, by_number)
        assert.is_true(six.budget.instructions.max < 1000)
        assert.equal(583000, (quote_o2().total))
    end)

    it("goes live at once, for those who may publish", function()
        local writer = support.user(shop, "customer")
        assert.equal(403, writer:post("/rules/b2g1_weekend/publish", { revision = 3, note = "x" }).status)
        local done = must(post("b2g1_weekend/publish", { revision = 3, note = "weekend tea" }))
        assert.equal(1, done.version)
        assert.is_true(done.epoch >= 1)
        assert.equal(done.live.workers, done.live.loaded)
        go_to(7)
        assert.equal(7, now_wday())
        local buyer = cart_of(O2)
        local summary = must(buyer:get("/sales/cart/summary"), 200)
        local priced = must(buyer:post("/sales/cart/quote", { shippingAddress = { country = "VN" } }))
        assert.same({ 530000, 90000, 44000, 484000 }, { priced.subtotal, priced.discount, priced.tax, priced.total })
        assert.equal("Buy 2, third free", priced.adjustments[1].label)
        assert.equal(90000, summary.discount)
        local placed = must(shop_of.checkout(buyer, { paymentMethod = "COD" })).orders[1]
        assert.equal(484000, placed.totalAmountMinor)
        orders.sunday = placed
        local trace = must(shop.owner:post("/sales/orders/trace", { id = placed.id }))
        local a = trace.adjustments[1]
        assert.same({ "b2g1_weekend", 1, 90000 }, { a.rule, a.version, a.amount })
        local stage
        for _, s in ipairs(trace.stages) do
            if s.rule == "b2g1_weekend" then stage = s end
        end
        assert.same({ 3, 1 }, { stage.stage, stage.version })
        local run = support.eventually(function() return must(shop.owner:get("/rules/b2g1_weekend/runs"), 200)[1] end)
        assert.same({ "ok", 1, placed.checkoutId }, { run.outcome, run.version, run.checkoutId })
    end)

    it("does nothing on a Monday, and says why", function()
        go_to(1)
        local priced = quote_o2()
        assert.equal(583000, priced.total)
        local note
        for _, t in ipairs(priced.trace) do
            if t.rule == "b2g1_weekend" then note = t.note end
        end
        assert.equal("not today", note)
    end)

    it("is changed by mistake, seen in a preview, published anyway and rolled back", function()
        local config = { category = category, buy = 1 }
        local saved = must(post("b2g1_weekend/draft", { revision = 3, settings = { config = config } }))
        assert.equal(4, saved.draft.revision)
        local ids = {}
        for _, name in ipairs{ "O1", "O2", "O3", "O4", "O5", "O6" } do ids[#ids + 1] = orders[name].id end
        local seen = must(post("b2g1_weekend/preview", { orders = { ids = ids } }))
        assert.same({ 2519000, 2189000, -330000, -300000, -30000, 3 }, { seen.totals.before, seen.totals.after, seen.totals.delta,
            seen.totals.merchandiseNet, seen.totals.tax, seen.changed })
        local bare = must(post("b2g1_weekend/preview", { orders = { ids = ids }, compareTo = "none" }))
        assert.same({ -759000, 4 }, { bare.totals.delta, bare.changed })
        assert.equal(2, must(post("b2g1_weekend/publish", { revision = 4, note = "more", acceptWarnings = json.array{} })).version)
        go_to(7)
        local buyer = cart_of(O2)
        assert.equal(352000, must(buyer:post("/sales/cart/quote", { shippingAddress = { country = "VN" } })).total)
        local back = must(post("b2g1_weekend/rollback", { toVersion = 1, note = "wrong buy count" }))
        assert.same({ 3, 1 }, { back.version, back.sourceVersion })
        local late = shop_of.checkout(buyer, { paymentMethod = "COD", expectedTotal = 352000 })
        assert.same({ 409, "price_changed" }, { late.status, late.json.code })
        assert.equal(484000, quote_o2().total)
        local versions = must(shop.owner:get("/rules/b2g1_weekend/versions"), 200)
        assert.same({ 3, 2, 1 }, { versions[1].version, versions[2].version, versions[3].version })
        assert.equal(versions[3].sha256, versions[1].sha256)
        local changes = must(shop.owner:get("/rules/b2g1_weekend/versions/2/diff/3"), 200)
        assert.same({ 0, 1, "config.buy = 1" }, { #changes.source, #changes.settings, changes.settings[1].line })
    end)

    it("is disabled; orders keep their version and the audit tells who did what", function()
        assert.equal("disabled", must(post("b2g1_weekend/disable", { reason = "season over" })).state)
        assert.equal(583000, quote_o2().total)
        local a = must(shop.owner:post("/sales/orders/trace", { id = orders.sunday.id })).adjustments[1]
        assert.same({ "b2g1_weekend", 1 }, { a.rule, a.version })
        local actions = {}
        for _, e in ipairs(must(shop.owner:get("/rules/b2g1_weekend/audit"), 200)) do table.insert(actions, 1, e.action) end
        assert.same({ "rules.create", "rules.save", "rules.save", "rules.publish", "rules.save", "rules.publish", "rules.rollback",
            "rules.disable" }, actions)
    end)
end)
