-- Hooks of selling, asked by the product: what a published rule answers is what the shopper pays, to the unit.
local time = require("core.time")
local db = require("kasma.db")
local support = require("api.support")
local shop_of = require("api.shop")

local must, live = shop_of.must, shop_of.rule

local function post(who, path, body) return who:post("/rules/" .. path, body or {}) end


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

--- Publishes a rule that comes with the product.
local function live_shipped(shop, path, config)
    local file = assert(io.open("rules/" .. path .. ".lua"))
    local text = file:read("*a")
    file:close()
    local key = path:match("[^/]+$")
    must(post(shop.owner, "create", { key = key, hook = text:match("hook = \"([%w._]+)\""), name = key, source = text,
        settings = { config = config } }))
    must(post(shop.owner, key .. "/publish", { revision = 1, note = "go" }))
    return key
end

--- A shop that ships one lamp of 1200 g to Viet Nam, by post (35000 + 5000 a kilo) or express (90000).
local function shipping_shop()
    local shop, product = shop_of.simple(0, { trackInventory = false, weightGrams = 1200 })
    local zone = must(shop.owner:post("/api/logistics/shipping/zone/create", { name = "Home", countries = { "VN" } }))
    local function method(name, base, per_kg)
        return must(shop.owner:post("/api/logistics/shipping/method/add", { zoneId = zone.id, name = name, basePrice = base,
            pricePerKg = per_kg })).id
    end
    return shop, product, method("Post", 35000, 5000), method("Express", 90000, 0)
end

describe("shipping.rates", function()
    it("hides, renames, reprices and sorts what is offered, and the order is charged so", function()
        local shop, product, by_post, express = shipping_shop()
        taxed(shop, 10)
        local buyer = shop_of.buyer(shop, product)
        local before = quote(buyer)
        assert.same({ 41000, "Post", "Express" }, { before.shippingMinor, before.shippingMethods[1].name, before.shippingMethods[2].name })
        local key = live(shop, "shipping.rates", [[local list = {}
            for _, m in ipairs(input.subject.methods) do
                if m.name == "Express" then table.insert(list, 1, { id = m.id, name = "By air", price = m.price - 60001 })
                else list[#list + 1] = m end
            end
            return list]])
        local answer = quote(buyer)
        assert.same({ express, "By air", 29999, by_post, 41000 }, { answer.shippingMethods[1].methodId, answer.shippingMethods[1].name,
            answer.shippingMethods[1].priceMinor, answer.shippingMethods[2].methodId, answer.shippingMethods[2].priceMinor })
        assert.same({ 29999, 13000, 142999, express }, { answer.shippingMinor, answer.taxMinor, answer.totalMinor,
            answer.shippingMethodId })
        assert.same({ 6, 41000, 29999, "applied" }, { traced(answer, key).stage, traced(answer, key).before, traced(answer, key).after,
            traced(answer, key).note })
        assert.equal(41000, quote(buyer, { shippingMethodId = by_post }).shippingMinor)
        local placed = must(shop_of.checkout(buyer, { paymentMethod = "COD" }))
        assert.same({ 29999, 142999 }, { placed.orders[1].shippingTotal, placed.orders[1].totalAmount })
    end)

    it("leaves the stored methods when it fails, and blocks where it says so", function()
        local shop, product, by_post = shipping_shop()
        local body = [[if input.subject.subtotal == 10000000 then return { { id = input.subject.methods[1].id, price = -1 } } end]]
        local key = live(shop, "shipping.rates", body)
        local buyer = shop_of.buyer(shop, product, 100)
        local answer = quote(buyer)
        assert.same({ 90000, "invalid_result", false }, { answer.shippingMinor, traced(answer, key).note, answer.blocked })
        must(post(shop.owner, key .. "/disable", { reason = "x" }))
        live(shop, "shipping.rates", body, { on_error = "block" })
        assert.is_true(quote(buyer, { shippingMethodId = by_post }).blocked)
        assert.equal("rule_failed", shop_of.checkout(buyer, { paymentMethod = "COD" }).json.code)
        assert.equal(201, shop_of.checkout(shop_of.buyer(shop, product), { paymentMethod = "COD" }).status)
    end)

    it("sells nothing without shipping when it offers nothing, nor by a method that it hides", function()
        local shop, product, by_post = shipping_shop()
        live(shop, "shipping.rates", [[if input.subject.parcel.weight_g > 5000 then return {} end
            return { input.subject.methods[2] }]])
        local buyer = shop_of.buyer(shop, product, 5)
        local answer = quote(buyer)
        assert.same({ 0, 500000 }, { #answer.shippingMethods, answer.totalMinor })
        assert.equal(require("core.json").null, answer.shipping)
        local refused = shop_of.checkout(buyer, { paymentMethod = "COD" })
        assert.same({ 409, "shipping_method_unavailable" }, { refused.status, refused.json.code })
        local one = shop_of.buyer(shop, product)
        assert.equal(90000, quote(one).shippingMinor)
        assert.equal(409, one:post("/sales/cart/quote", { shippingAddress = { country = "VN" }, shippingMethodId = by_post }).status)
    end)

    it("asks for each parcel of an order that leaves two warehouses, and the parts sum to the whole", function()
        local shop, product = shipping_shop()
        local near, far = shop_of.product(shop, { name = "Near", price = 70000, weightGrams = 1000 }), shop_of.product(shop, { name = "Far",
            price = 30000, weightGrams = 3000 })
        shop_of.stock(shop, near, 5)
        local other = must(shop.owner:post("/api/logistics/inventory/warehouse/create", { name = "South", code = "SOUTH" })).id
        must(shop.owner:post("/api/logistics/inventory/adjust", { warehouseId = other, productId = far, quantity = 5, reason = "count" }))
        live(shop, "shipping.rates", [[local list = {}
            for i, m in ipairs(input.subject.methods) do list[i] = { id = m.id, price = input.subject.parcel.weight_g + 1 } end
            return list]])
        local buyer = shop_of.buyer(shop, near)
        shop_of.buyer(shop, far, 1, buyer)
        assert.is_string(product)
        assert.same({ 4002, 104002 }, { quote(buyer).shippingMinor, quote(buyer).totalMinor })
        local placed = must(shop_of.checkout(buyer, { paymentMethod = "COD" }))
        assert.equal(2, #placed.orders)
        assert.same({ 1001, 3001 }, { placed.orders[1].shippingTotal, placed.orders[2].shippingTotal })
    end)
end)

describe("the shipped rule for shipping by zone and weight", function()
    it("prices by kilos begun, and for nothing from a sum", function()
        local shop, product = shipping_shop()
        live_shipped(shop, "shipping/zone_weight", { max_weight_g = 30000, zones = { { name = "Home", countries = { "VN" }, base = 20000,
            per_kg = 5000, free_from = 1000000 } } })
        assert.same({ 30000, 130000 }, { quote(shop_of.buyer(shop, product)).shippingMinor,
            quote(shop_of.buyer(shop, product)).totalMinor })
        assert.equal(20000 + 5000 * 4, quote(shop_of.buyer(shop, product, 3)).shippingMinor)
        assert.equal(0, quote(shop_of.buyer(shop, product, 10)).shippingMinor)
        local heavy = quote(shop_of.buyer(shop, product, 26))
        assert.same({ 0, "nothing_offered" }, { #heavy.shippingMethods, traced(heavy, "zone_weight").note })
    end)
end)

describe("tax.class_for_item", function()
    it("puts an item under a class, and its rate is charged", function()
        local shop, product = shop_of.simple(0, { trackInventory = false })
        local second = shop_of.product(shop, { name = "Mug", price = 50000, trackInventory = false, taxClass = "standard" })
        taxed(shop, 10)
        must(shop.owner:post("/api/finance/tax/rules/create", { name = "Reduced", country = "VN", rate = 5, taxClass = "reduced" }))
        local buyer = shop_of.buyer(shop, product)
        shop_of.buyer(shop, second, 1, buyer)
        assert.equal(15000, quote(buyer).taxMinor)
        local key = live(shop, "tax.class_for_item", [[if input.subject.product.tax_class == "standard"
            and input.subject.address.country == "VN" then return "reduced" end]])
        local answer = quote(buyer)
        assert.same({ 10000, 2500, 12500, 162500 }, { answer.lines[1].taxTotalMinor, answer.lines[2].taxTotalMinor, answer.taxMinor,
            answer.totalMinor })
        assert.same({ 1, "applied" }, { traced(answer, key).stage, traced(answer, key).note })
        local placed = must(shop_of.checkout(buyer, { paymentMethod = "COD" }))
        assert.same({ 12500, 162500 }, { placed.orders[1].taxTotal, placed.orders[1].totalAmount })
    end)
end)

describe("stock.allocate", function()
    -- Two warehouses, each with units of one lamp.
    local function two_houses(near, far)
        local shop, product = shop_of.simple(near)
        local other = must(shop.owner:post("/api/logistics/inventory/warehouse/create", { name = "South", code = "SOUTH",
            country = "VN", region = "Hue" })).id
        if far > 0 then
            must(shop.owner:post("/api/logistics/inventory/adjust", { warehouseId = other, productId = product, quantity = far,
                reason = "count" }))
        end
        return shop, product, other
    end
    local function houses_of(shop, placed)
        local ids = {}
        for i, item in ipairs(shop_of.order_now(shop, placed.orders[1].id).items) do ids[i] = item.warehouseId end
        return ids
    end
    local FAR = [[local s, out = input.subject, {}
        for i, line in ipairs(s.lines) do
            for _, w in ipairs(s.warehouses) do
                if w.distance_class < 2 and w.available[line.id] >= line.qty then
                    out[i] = { line = line.id, warehouse = w.id, qty = line.qty }
                end
            end
        end
        return out]]

    it("chooses the warehouse of each line", function()
        local shop, product, other = two_houses(10, 10)
        assert.same({ shop.warehouse_id }, houses_of(shop, must(shop_of.checkout(shop_of.buyer(shop, product),
            { paymentMethod = "COD" }))))
        live(shop, "stock.allocate", FAR)
        assert.same({ other }, houses_of(shop, must(shop_of.checkout(shop_of.buyer(shop, product, 4), { paymentMethod = "COD",
            shippingAddress = { country = "VN", region = "Hue" } }))))
        local left = {}
        for _, row in ipairs(must(shop.owner:post("/api/logistics/inventory/list", { productId = product }))) do
            left[row.warehouseId] = row.availableQuantity
        end
        assert.same({ 9, 6 }, { left[shop.warehouse_id], left[other] })
    end)

    it("is the house's work again when the answer does not cover the lines from what is there", function()
        local shop, product, other = two_houses(20, 2)
        local wrong = { ("{ line = id, warehouse = %q, qty = 3 }"):format(other), "{ line = id, warehouse = 'nowhere', qty = 3 }",
            ("{ line = id, warehouse = %q, qty = 2 }"):format(other), "" }
        for i, answer in ipairs(wrong) do
            local key = live(shop, "stock.allocate", "local id = input.subject.lines[1].id return { " .. answer .. " }")
            assert.same({ shop.warehouse_id }, houses_of(shop, must(shop_of.checkout(shop_of.buyer(shop, product, 3),
                { paymentMethod = "COD" }))), i)
            local run = support.eventually(function() return must(shop.owner:get("/rules/" .. key .. "/runs?outcome=failed"), 200)[1] end)
            assert.equal("invalid_result", run.outcome)
            must(post(shop.owner, key .. "/disable", { reason = "x" }))
        end
        live(shop, "stock.allocate", "return { { line = input.subject.lines[1].id, warehouse = 'nowhere', qty = 3 } }",
            { on_error = "block" })
        local buyer = shop_of.buyer(shop, product, 3)
        local refused = shop_of.checkout(buyer, { paymentMethod = "COD" })
        assert.same({ 422, "rule_failed" }, { refused.status, refused.json.code })
        assert.is_true(quote(buyer).blocked)
    end)

    it("moves the shipping of a quote with the parcel", function()
        local shop, product, other = two_houses(10, 10)
        live(shop, "stock.allocate", FAR)
        live(shop, "shipping.rates", ([[return { { id = input.subject.methods[1].id,
            price = input.subject.parcel.warehouse_id == %q and 777 or 1 } }]]):format(other))
        local zone = must(shop.owner:post("/api/logistics/shipping/zone/create", { name = "Home", countries = { "VN" } }))
        must(shop.owner:post("/api/logistics/shipping/method/add", { zoneId = zone.id, name = "Post", basePrice = 5 }))
        local buyer = shop_of.buyer(shop, product)
        local to = { shippingAddress = { country = "VN", region = "Hue" }, paymentMethod = "COD" }
        assert.equal(777, quote(buyer, { shippingAddress = to.shippingAddress }).shippingMinor)
        assert.equal(777, must(shop_of.checkout(buyer, to)).orders[1].shippingTotal)
    end)
end)

describe("stock.reservation_ttl", function()
    it("says for how long an unpaid order holds its stock", function()
        local shop, product = shop_of.simple(10)
        local function waits(buyer)
            local order = must(shop_of.checkout(buyer)).orders[1]
            -- The stock is held a moment before the order is placed: to the minute.
            return math.floor((time.parse(order.expiresAt) - time.parse(order.placedAt)) / 60000 + 0.5) * 60
        end
        assert.equal(3600, waits(shop_of.buyer(shop, product)))
        live(shop, "stock.reservation_ttl", [[if input.subject.total >= 300000 then return 1 end
            if input.subject.payment_method == "STRIPE" and input.subject.customer.guest then return 420 end]])
        assert.equal(420, waits(shop_of.buyer(shop, product)))
        assert.equal(3600, waits(shop_of.buyer(shop, product, 1, support.shopper(shop))))
        assert.equal(3600, waits(shop_of.buyer(shop, product, 3))) -- one second is out of form: the setting holds
    end)
end)

describe("workflow.order", function()
    local config = require("core.config")
    local json = require("core.json")

    local function report(order, status, more)
        local body = { orderId = order.id, status = status or "SUCCESS", provider = "STRIPE" }
        for name, value in pairs(more or {}) do body[name] = value end
        return must(support.client():post("/api/internal/orders/sync-payment", body,
            { ["x-internal-secret"] = config.get("INTERNAL_WEBHOOK_SECRET") }))
    end
    local function denied(order)
        for _, e in ipairs(order.events) do
            if e.type == "transition_denied" then return e end
        end
        return nil
    end
    local function set(shop, order, body)
        body.id, body.status = order.id, body.status or "processing"
        return shop.owner:post("/sales/orders/update-status", body)
    end

    it("keeps a large order of the shipped rule waiting, its payment booked, until an approver moves it", function()
        local shop, product = shop_of.simple(10)
        local key = live_shipped(shop, "workflows/order_approval", { from = 300000, approvers = { shop.owner.user.id } })
        local small = must(shop_of.checkout(shop_of.buyer(shop, product, 2))).orders[1]
        assert.is_true(report(small).applied)
        assert.same({ "processing", "paid" }, { shop_of.order_now(shop, small.id).status, shop_of.order_now(shop, small.id).paymentStatus })
        local large = must(shop_of.checkout(shop_of.buyer(shop, product, 3))).orders[1]
        assert.is_true(report(large).applied)
        local now = shop_of.order_now(shop, large.id)
        assert.same({ "pending", "paid", "300000.00", "waiting for approval", json.null }, { now.status, now.paymentStatus, now.paidTotal,
            now.workflowState, now.expiresAt })
        assert.same({ "captured", 300000 }, { now.payments[1].state, now.payments[1].amountMinor })
        local e = denied(now)
        assert.same({ "pending", "processing", "a large order needs approval", key }, { e.fromStatus, e.toStatus, e.reason, e.data.rule })
        assert.equal(5, shop_of.stock_of(shop, product).availableQuantity)
        assert.same({ false, "already_paid" }, { report(large, "SUCCESS", { eventId = "again" }).applied,
            report(large, "SUCCESS", { eventId = "once more" }).reason })
        -- Somebody else may not; the approver may.
        local clerk = support.user(shop, "tenant_admin")
        local refused = clerk:post("/sales/orders/update-status", { id = large.id, status = "processing" })
        assert.same({ 409, "transition_not_allowed", "a large order needs approval" }, { refused.status, refused.json.code,
            refused.json.details and refused.json.details.reason })
        local moved = must(set(shop, large, { reason = "looked at" }))
        assert.same({ "processing", "paid", "approved" }, { moved.status, moved.paymentStatus, moved.workflowState })
        assert.equal(201, set(shop, large, { trackingNumber = "T-1" }).status)
        assert.equal("T-1", shop_of.order_now(shop, large.id).trackingNumber)
        assert.equal("transition_not_allowed", set(shop, large, { status = "pending" }).json.code)
    end)

    it("makes an order that would go on at once wait from the start", function()
        local shop, product = shop_of.simple(10)
        must(shop.owner:post("/tenants/" .. shop.key .. "/update", { settings = { codAutoConfirm = true } }), 200)
        live(shop, "workflow.order", [[local s = input.subject
            if s.order.total >= 300000 then return { allow = false, reason = "too large", workflow_state = "call first" } end
            return { allow = true, workflow_state = s.from .. ">" .. s.to }]])
        local small = must(shop_of.checkout(shop_of.buyer(shop, product), { paymentMethod = "COD" })).orders[1]
        assert.same({ "processing", "pending>processing" }, { small.status, small.workflowState })
        local large = must(shop_of.checkout(shop_of.buyer(shop, product, 3), { paymentMethod = "COD" })).orders[1]
        assert.same({ "pending", "call first" }, { large.status, large.workflowState })
        assert.is_string(large.expiresAt)
        local now = shop_of.order_now(shop, large.id)
        assert.same({ "pending", "call first", "too large" }, { now.status, now.workflowState, denied(now).reason })
        assert.equal(6, shop_of.stock_of(shop, product).availableQuantity)
    end)

    it("lets everything pass when it fails, unless it says block", function()
        local shop, product = shop_of.simple(10)
        local body = "if input.subject.order.total == 200000 then error('no') end return { allow = true }"
        local key = live(shop, "workflow.order", body)
        local order = must(shop_of.checkout(shop_of.buyer(shop, product, 2))).orders[1]
        report(order)
        assert.equal("processing", shop_of.order_now(shop, order.id).status)
        must(post(shop.owner, key .. "/disable", { reason = "x" }))
        -- Another sum: a publication tries the rule on what the failed run was given, too.
        live(shop, "workflow.order", (body:gsub("200000", "300000")), { on_error = "block" })
        local held = must(shop_of.checkout(shop_of.buyer(shop, product, 3))).orders[1]
        report(held)
        local now = shop_of.order_now(shop, held.id)
        assert.same({ "pending", "paid", "rule_failed" }, { now.status, now.paymentStatus, denied(now).reason })
    end)

    it("may keep an unpaid order from its end: it holds its stock, is asked again, and can still be paid", function()
        local shop, product = shop_of.simple(10)
        local platform = support.platform()
        local key = live(shop, "workflow.order", [[local ends = input.subject.to == "cancelled"
            return { allow = not ends, reason = "a regular", notify = ends and { template = "shop-message" } or nil }]])
        local order = must(shop_of.checkout(shop_of.buyer(shop, product, 4))).orders[1]
        local ok, why = pcall(function()
            support.advance(platform, 3700)
            support.sign_in(shop.owner)
            local now = support.eventually(function()
                local seen = shop_of.order_now(shop, order.id)
                -- The order is read before its events: both must be of after.
                return denied(seen) and seen.expiresAt > order.expiresAt and seen
            end)
            assert.same({ "pending", "unpaid", "a regular" }, { now.status, now.paymentStatus, denied(now).reason })
            assert.equal(6, shop_of.stock_of(shop, product).availableQuantity)
            -- Asked again it says the same, and the buyer is told once.
            support.advance(platform, 3700)
            support.sign_in(shop.owner)
            local told = support.eventually(function()
                local row = db.one(shop.key, [[select count(*)::int as n, count(distinct payload -> 'opts' ->> 'jobId')::int as jobs
                  from outbox where tenant_key = $1 and payload ->> 'name' = 'order-notice']], shop.key)
                return row.n > 1 and row
            end)
            assert.equal(1, told.jobs)
            assert.is_true(report(order).applied)
            assert.equal("processing", shop_of.order_now(shop, order.id).status)
            must(post(shop.owner, key .. "/disable", { reason = "x" }))
            local other = must(shop_of.checkout(shop_of.buyer(shop, product, 2))).orders[1]
            support.advance(platform, 3700)
            support.sign_in(shop.owner)
            support.eventually(function() return shop_of.order_now(shop, other.id).status == "cancelled" end)
            assert.equal(6, shop_of.stock_of(shop, product).availableQuantity)
        end)
        support.real_time(platform)
        assert(ok, why)
    end)

    it("leaves a late payment that may not revive its order booked, for staff to look at", function()
        local shop, product = shop_of.simple(10)
        local platform = support.platform()
        local order = must(shop_of.checkout(shop_of.buyer(shop, product, 4))).orders[1]
        local ok, why = pcall(function()
            support.advance(platform, 3700)
            support.sign_in(shop.owner)
            support.eventually(function() return shop_of.order_now(shop, order.id).status == "cancelled" end)
            live(shop, "workflow.order", [[return { allow = input.subject.from ~= "cancelled", reason = "too late" }]])
            report(order)
            local now = shop_of.order_now(shop, order.id)
            assert.same({ "cancelled", "review", "400000.00", "too late" }, { now.status, now.paymentStatus, now.paidTotal,
                denied(now).reason })
            assert.equal(10, shop_of.stock_of(shop, product).availableQuantity)
        end)
        support.real_time(platform)
        assert(ok, why)
    end)

    it("mails the buyer by a template for rules, and no other: that is found before it is published, and when it runs", function()
        local shop, product = shop_of.simple(10)
        local function source(name)
            return ("return { hook = \"workflow.order\", name = \"n\", run = function(input)\n"
                .. "  if input.subject.order.total == 300000 then\n    return { allow = true, notify = { template = %s } }\n  end\n"
                .. "  return { allow = true }\nend }"):format(name)
        end
        local function finding(name)
            local d = must(post(shop.owner, "check", { source = source(name) })).diagnostics[1]
            return d and { d.code, d.line, d.message, d.hint } or {}
        end
        assert.same({ "invalid_result", 3, "there is no mail template 'thank-yuo' for rules; there are shop-message, thank-you",
            "did you mean 'thank-you'?" }, finding("\"thank-yuo\""))
        assert.equal("invalid_result", finding("'password-reset'")[1]) -- a mail of the product, with a code in it
        assert.equal("not_covered", finding("\"thank-you\"")[1])
        assert.same({ "shop-message", "thank-you" },
            must(shop.owner:get("/rules/hooks/workflow.order"), 200).outputSchema.properties.notify.properties.template.enum)
        -- Put together, so that it is seen only when it is used; then the change goes on, and the failure says why.
        local key = live(shop, "workflow.order", [[local name = input.subject.order.total == 300000 and "no" .. "ne" or "shop-message"
            return { allow = true, notify = { template = name } }]])
        local order = must(shop_of.checkout(shop_of.buyer(shop, product, 3))).orders[1]
        report(order)
        assert.equal("processing", shop_of.order_now(shop, order.id).status)
        local failures = support.eventually(function()
            local list = must(shop.owner:get("/rules/" .. key .. "/failures"), 200)
            return list[1] and list
        end, 20)
        assert.equal("result.notify.template: there is no mail template 'none' for rules; there are shop-message, thank-you",
            failures[1].message)
        local buyer = support.shopper(shop)
        order = must(shop_of.checkout(shop_of.buyer(shop, product, 1, buyer))).orders[1]
        report(order)
        support.eventually(function() return support.mail_to(buyer.user.email, order.orderNumber) end, 20)
    end)

    it("needs the money of an online order, and the right", function()
        local shop, product = shop_of.simple(10)
        local buyer = support.shopper(shop)
        local order = must(shop_of.checkout(shop_of.buyer(shop, product, 1, buyer))).orders[1]
        assert.equal("payment_required", set(shop, order, {}).json.code)
        assert.equal(403, buyer:post("/sales/orders/update-status", { id = order.id, status = "processing" }).status)
        local other = support.tenant()
        assert.equal(404, other.owner:post("/sales/orders/update-status", { id = order.id, status = "processing" }).status)
        local cod = must(shop_of.checkout(shop_of.buyer(shop, product), { paymentMethod = "COD" })).orders[1]
        assert.same({ "processing", json.null }, { must(set(shop, cod, {})).status, shop_of.order_now(shop, cod.id).expiresAt })
    end)
end)

describe("currency.round", function()
    it("rounds the total, as an adjustment of its own, also over the orders of a split", function()
        local shop, product = shop_of.simple(0)
        taxed(shop, 8)
        local far = shop_of.product(shop, { name = "Far", price = 33333 })
        shop_of.stock(shop, product, 5)
        local other = must(shop.owner:post("/api/logistics/inventory/warehouse/create", { name = "South", code = "SOUTH" })).id
        must(shop.owner:post("/api/logistics/inventory/adjust", { warehouseId = other, productId = far, quantity = 5, reason = "count" }))
        local key = live(shop, "currency.round", [[local s = input.subject
            if s.purpose == "total" and s.amount < 500000 then return math.floor((s.amount + 999) / 1000) * 1000 - 1 end
            if s.amount == 1080000 then return 1 end]])
        local buyer = shop_of.buyer(shop, product)
        shop_of.buyer(shop, far, 1, buyer)
        local answer = quote(buyer) -- 133333 and 10667 of tax
        assert.same({ 10667, 1, 143999 }, { answer.taxMinor, answer.cashRoundingMinor, answer.totalMinor })
        assert.same({ 7, 144000, 143999, "applied" }, { traced(answer, key).stage, traced(answer, key).before, traced(answer, key).after,
            traced(answer, key).note })
        local placed = must(shop_of.checkout(buyer, { paymentMethod = "COD", expectedTotal = 143999 }))
        assert.equal(2, #placed.orders)
        assert.equal(143999, placed.orders[1].totalAmount + placed.orders[2].totalAmount)
        assert.equal(1, placed.orders[1].cashRounding + placed.orders[2].cashRounding)
        -- Of the third order, which costs nothing, nothing can be taken.
        local third = must(shop.owner:post("/api/logistics/inventory/warehouse/create", { name = "North", code = "NORTH" })).id
        local sample = shop_of.product(shop, { name = "Sample", price = 500 })
        must(shop.owner:post("/api/logistics/inventory/adjust", { warehouseId = third, productId = sample, quantity = 5,
            reason = "count" }))
        live(shop, "price.lines", ([[local units = {}
            for _, line in ipairs(input.cart.lines) do
                if line.product_id == %q then units[line.id] = 0 end
            end
            return { units = units }]]):format(sample))
        shop_of.buyer(shop, product, 1, buyer)
        shop_of.buyer(shop, far, 1, buyer)
        shop_of.buyer(shop, sample, 1, buyer)
        local split = must(shop_of.checkout(buyer, { paymentMethod = "COD", expectedTotal = 143999 })).orders
        assert.same({ 3, 143999, 0 }, { #split, split[1].totalAmount + split[2].totalAmount + split[3].totalAmount, split[3].totalAmount })
        local plain = quote(shop_of.buyer(shop, product, 10)) -- a total of 1: too far, so nothing is rounded
        assert.same({ 0, 1080000, "invalid_result" }, { plain.cashRoundingMinor, plain.totalMinor, traced(plain, key).note })
    end)
end)

describe("checkout.validate", function()
    it("knows the categories of the lines, with those above them", function()
        local shop, lamp = shop_of.simple(5)
        local top = must(shop.owner:post("/api/ecommerce/products/categories/create", { name = "Flammable",
            slug = support.unique("c") })).id
        local below = must(shop.owner:post("/api/ecommerce/products/categories/create", { name = "Gas", slug = support.unique("c"),
            parentId = top })).id
        local gas = shop_of.product(shop, { name = "Gas", price = 1000, categoryId = below, trackInventory = false })
        live(shop, "checkout.validate", ([[for _, line in ipairs(input.subject.quote.lines) do
            if set.has(line.category_ids, %q) then return { reject = { code = "no_gas", message = "Not by post" } } end
        end
        return {}]]):format(top))
        must(shop_of.checkout(shop_of.buyer(shop, lamp), { paymentMethod = "COD" }))
        local refused = shop_of.checkout(shop_of.buyer(shop, gas), { paymentMethod = "COD" })
        assert.same({ 422, "checkout_rejected", "no_gas" }, { refused.status, refused.json.code, refused.json.details.code })
    end)
end)

describe("GET /rules/hooks", function()
    it("says which hooks the product asks", function()
        local asked = {}
        for _, hook in ipairs(must(support.tenant().owner:get("/rules/hooks"), 200)) do asked[hook.hook] = hook.asked end
        for _, name in ipairs{ "price.lines", "bundle.price", "promotion", "shipping.rates", "tax.class_for_item", "tax.resolve",
            "currency.round", "stock.allocate", "stock.buffer", "stock.reservation_ttl", "checkout.validate", "workflow.order" } do
            assert.is_true(asked[name], name)
        end
        assert.is_false(asked["refund.policy"])
    end)
end)
