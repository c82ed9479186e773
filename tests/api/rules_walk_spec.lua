-- A merchant's walk: buy 2, third free in Tea on weekends, from the draft over previews on real orders to the roll back. The numbers are
-- those of the example: Oolong 120,000, Jasmine 90,000, Lotus 150,000, a mug outside of Tea, VND, VAT of 10 %.
local json = require("core.json")
local time = require("core.time")
local support = require("api.support")
local shop_of = require("api.shop")

local must = shop_of.must
local ZONE, DAY = "Asia/Ho_Chi_Minh", 86400

local SOURCE = [[
return { hook = "promotion", name = "Buy 2, third free on weekends", priority = 100, config = schema.object{ category = schema.category,
    buy = schema.integer{min=1,max=20,default=2}, free = schema.integer{min=1,max=20,default=1},
    days = schema.weekdays{default={6,7}}, label = schema.string{max=80, default="Buy 2, third free"} },
  run = function(input, config)
    if not set.has(config.days, input.now.wday) then return nil, "not today" end
    local units = {}
    for _, line in ipairs(input.cart.lines) do
      if set.has(line.category_ids, config.category) and not line.bundle_id then
        for _ = 1, line.qty do units[#units + 1] = { id = line.id, price = line.unit } end
      end
    end
    local free = math.floor(#units / (config.buy + config.free)) * config.free
    if free == 0 then return nil, "too few items" end
    table.sort(units, function(a, b) return a.price < b.price end)
    local count, ops = {}, {}
    for i = 1, free do count[units[i].id] = (count[units[i].id] or 0) + 1 end
    for id, n in pairs(count) do ops[#ops + 1] = { op = "line_percent", line_id = id, bps = 10000, units = n, label = config.label } end
    return { operations = ops }
  end }
]]

local TESTS = [[
return { config = { category = "tea" }, category = { tea = {"oolong","jasmine","lotus"} },
  prices = { oolong = 120000, jasmine = 90000, lotus = 150000, mug = 50000 }, tests = {
    { name = "four teas on a Sunday: the cheapest is free",
      given  = { now = "2026-11-29T10:00", cart = { oolong = 2, jasmine = 1, lotus = 1, mug = 1 } },
      expect = { discount = 90000, lines = { jasmine = 0 }, net = 440000, instructions_below = 5000 } },
    { name = "Monday: nothing", given = { now = "2026-11-30T10:00", cart = { oolong = 6 } }, expect = { none = true } },
    { name = "table", each = { {3,120000}, {5,120000}, {6,240000} },
      given = function(r) return { now = "2026-11-28T09:00", cart = { oolong = r[1] } } end,
      expect = function(r) return { discount = r[2] } end },
    { name = "never more than the cart", property = "random_carts", cases = 200, seed = 7 },
  } }
]]

describe("buy 2, third free on weekends", function()
    local platform = support.platform()
    local shop = support.tenant{ currency = "VND", country = "VN" }
    local P = "/api/ecommerce/products"
    local category = must(shop.owner:post(P .. "/categories/create", { name = "Tea", slug = "tea" })).id
    local teas = {}
    local orders = {}

    local function now_wday() return time.fields(time.now(), ZONE).wday end

    -- Goes to ten in the morning of the next such day, and makes everybody able to act there.
    local function go_to(wday)
        local f = time.fields(time.now(), ZONE)
        local days = (wday - f.wday) % 7
        local seconds = days * DAY + (10 - f.hour) * 3600 - f.min * 60
        if seconds <= 0 then seconds = seconds + 7 * DAY end
        support.advance(platform, seconds)
        support.sign_in(shop.owner)
    end

    local function cart_of(items)
        local buyer = support.guest(shop)
        for name, quantity in pairs(items) do must(buyer:post("/sales/cart/add", { productId = teas[name], quantity = quantity })) end
        return buyer
    end

    local O2 = { oolong = 2, jasmine = 1, lotus = 1, mug = 1 }

    local function order(items)
        return must(shop_of.checkout(cart_of(items), { paymentMethod = "COD" })).orders[1]
    end

    local function quote_o2() return must(cart_of(O2):post("/sales/cart/quote", { shippingAddress = { country = "VN" } })) end

    local function post(path, body) return shop.owner:post("/rules/" .. path, body) end

    setup(function()
        for name, price in pairs{ oolong = 120000, jasmine = 90000, lotus = 150000, mug = 50000 } do
            teas[name] = shop_of.product(shop, { name = name, price = price, categoryId = name ~= "mug" and category or nil,
                trackInventory = false })
        end
        must(shop.owner:post("/api/finance/tax/rules/create", { name = "VAT", country = "VN", rate = 10 }))
        go_to(6)
        orders.O1, orders.O3 = order{ oolong = 3 }, order{ jasmine = 2 }
        go_to(7)
        orders.O2, orders.O5 = order(O2), order{ lotus = 1, jasmine = 6 }
        go_to(1)
        orders.O4 = order{ oolong = 6 }
        go_to(3)
        orders.O6 = order{ mug = 4 }
    end)

    teardown(function()
        support.sign_in(platform)
        support.real_time(platform)
        support.sign_in(platform)
    end)

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
