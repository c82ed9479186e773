-- Hooks of selling, asked by the product: what a published rule answers is what the shopper pays, to the unit.
local support = require("api.support")
local shop_of = require("api.shop")

local must = shop_of.must

local function post(who, path, body) return who:post("/rules/" .. path, body or {}) end

--- Publishes a rule of a hook whose function has this body.
local function live(shop, hook, body, settings, config)
    local key = support.unique("r")
    local text = ("return { hook = %q, name = %q,%s run = function(input, config)\n%s\nend }"):format(hook, key, config or "", body)
    must(post(shop.owner, "create", { key = key, hook = hook, name = key, source = text, settings = settings }))
    must(post(shop.owner, key .. "/publish", { revision = 1, note = "go" }))
    return key
end

local function quote(buyer, more)
    local body = { shippingAddress = { country = "VN", city = "Hanoi" } }
    for name, value in pairs(more or {}) do body[name] = value end
    return must(buyer:post("/sales/cart/quote", body))
end

local function traced(answer, key)
    for _, t in ipairs(answer.trace) do
        if t.rule == key then return t end
    end
    return nil
end

local function taxed(shop, percent)
    must(shop.owner:post("/api/finance/tax/rules/create", { name = "VAT", country = "VN", rate = percent }))
end

describe("price.lines", function()
    local WHOLESALE = [[local units = {}
        for _, line in ipairs(input.subject.lines) do
            if line.qty >= 10 and line.qty ~= 77 and line.list > 20000 then units[line.id] = line.list - 20000 end
            if line.qty == 77 then units[line.id] = -1 end
        end
        return { units = units, label = "Wholesale" }]]

    it("sets what a unit costs, in the quote, in the trace and in the order", function()
        local shop, product = shop_of.simple(0, { trackInventory = false })
        taxed(shop, 10)
        local key = live(shop, "price.lines", WHOLESALE)
        local few = quote(shop_of.buyer(shop, product, 9))
        assert.same({ 900000, 90000, 990000 }, { few.subtotalMinor, few.taxMinor, few.totalMinor })
        local buyer = shop_of.buyer(shop, product, 10)
        local many = quote(buyer)
        assert.same({ 800000, 0, 80000, 880000 }, { many.subtotalMinor, many.discountMinor, many.taxMinor, many.totalMinor })
        assert.same({ 80000, "Wholesale" }, { many.lines[1].unitPriceMinor, many.lines[1].priceLabel })
        local t = traced(many, key)
        assert.same({ 1, 1, 1000000, 800000, "applied" }, { t.stage, t.version, t.before, t.after, t.note })
        assert.equal(880000, must(buyer:get("/sales/cart/summary?country=VN"), 200).totalMinor)
        local placed = must(shop_of.checkout(buyer, { paymentMethod = "COD", expectedTotal = 880000 }))
        assert.same({ 880000, 80000 }, { placed.orders[1].totalAmount, placed.orders[1].items[1].unitPrice })
        local order = must(shop.owner:post("/sales/orders/trace", { id = placed.orders[1].id }))
        local seen
        for _, rule in ipairs(order.rules) do seen = seen or rule.key == key and rule.version == 1 end
        assert.is_true(seen)
    end)

    it("leaves the prices alone when its answer is out of form, and blocks where it says so", function()
        local shop, product = shop_of.simple(0, { trackInventory = false })
        local key = live(shop, "price.lines", WHOLESALE)
        local skipped = quote(shop_of.buyer(shop, product, 77))
        assert.same({ 7700000, false, "invalid_result" }, { skipped.totalMinor, skipped.blocked, traced(skipped, key).note })
        must(post(shop.owner, key .. "/disable", { reason = "x" }))
        live(shop, "price.lines", WHOLESALE, { on_error = "block" })
        local buyer = shop_of.buyer(shop, product, 77)
        assert.is_true(quote(buyer).blocked)
        local refused = shop_of.checkout(buyer, { paymentMethod = "COD" })
        assert.same({ 422, "rule_failed" }, { refused.status, refused.json.code })
    end)

    it("comes before promotions, and the first of several rules that names a line decides it", function()
        local shop, product = shop_of.simple(0, { trackInventory = false })
        local second = shop_of.product(shop, { name = "Mug", price = 50000, trackInventory = false })
        live(shop, "price.lines", "return { units = { [input.subject.lines[1].id] = 60001 } }", { priority = 10 })
        live(shop, "price.lines", [[local units = {}
            for _, line in ipairs(input.subject.lines) do units[line.id] = 40000 end
            return { units = units }]])
        live(shop, "promotion", [[return { operations = { { op = "order_percent", bps = 5000 } } }]])
        local buyer = shop_of.buyer(shop, product, 1)
        shop_of.buyer(shop, second, 1, buyer)
        local answer = quote(buyer)
        assert.same({ 60001, 40000 }, { answer.lines[1].unitPriceMinor, answer.lines[2].unitPriceMinor })
        assert.same({ 100001, 50001, 50000 }, { answer.subtotalMinor, answer.discountMinor, answer.totalMinor })
        assert.equal(50001, answer.lines[1].discountTotalMinor + answer.lines[2].discountTotalMinor)
    end)

    it("is previewed against a cart before it is live", function()
        local shop, product = shop_of.simple(0, { trackInventory = false })
        must(post(shop.owner, "create", { key = "wholesale", hook = "price.lines", name = "ws",
            source = "return { hook = \"price.lines\", name = \"ws\", run = function(input) " .. WHOLESALE .. " end }" }))
        local seen = must(post(shop.owner, "wholesale/preview", { cart = { items = { { productId = product, quantity = 10 } } } }))
        assert.same({ 1000000, 800000, -200000 }, { seen.totals.before, seen.totals.after, seen.totals.delta })
        assert.equal(1000000, quote(shop_of.buyer(shop, product, 10)).totalMinor)
    end)
end)

describe("bundle.price", function()
    local function pack(units)
        local shop, product = shop_of.simple(0, { trackInventory = false })
        local second = shop_of.product(shop, { name = "Mug", price = 50000, trackInventory = false })
        local bundle = must(shop.owner:post("/marketing/bundles/create", { name = "Pair", price = 130000,
            items = { { productId = product, quantity = 1 }, { productId = second, quantity = 2 } } }))
        local buyer = support.guest(shop)
        must(buyer:post("/sales/cart/bundle/add", { bundleId = bundle.id, quantity = units }))
        return shop, buyer
    end

    it("says what one instance costs, and the parts share the saving", function()
        local shop, buyer = pack(3)
        assert.same({ 600000, 210000, 390000 }, { quote(buyer).subtotalMinor, quote(buyer).discountMinor, quote(buyer).totalMinor })
        local key = live(shop, "bundle.price", [[local s = input.subject
            if s.qty >= 3 then return { price = s.bundle.price - 10001 } end
            return nil, "too few"]])
        local answer = quote(buyer)
        assert.same({ 600000, 240003, 359997 }, { answer.subtotalMinor, answer.discountMinor, answer.totalMinor })
        assert.equal(240003, answer.lines[1].discountTotalMinor + answer.lines[2].discountTotalMinor)
        assert.same({ "bundle", 240003 }, { answer.adjustments[1].source, answer.adjustments[1].amountMinor })
        local t = traced(answer, key)
        assert.same({ 2, 600000, 359997, "applied" }, { t.stage, t.before, t.after, t.note })
        local placed = must(shop_of.checkout(buyer, { paymentMethod = "COD" }))
        assert.equal(359997, placed.orders[1].totalAmount)
    end)

    it("never makes a bundle dearer than its parts, and says why it was silent", function()
        local shop, buyer = pack(1)
        local key = live(shop, "bundle.price", [[if input.subject.qty > 1 then return nil, "several" end
            return { price = 900000000 }]])
        assert.same({ 200000, 0 }, { quote(buyer).totalMinor, quote(buyer).discountMinor })
        assert.equal("no_saving", traced(quote(buyer), key).note)
    end)
end)
