-- Lines that a rule of stock.allocate sends from several warehouses: what the shopper pays, what each warehouse promises, and that each
-- gets back exactly its own.
local config = require("core.config")
local db = require("kasma.db")
local support = require("api.support")
local shop_of = require("api.shop")

local must = shop_of.must

-- Takes what it can from each warehouse in turn, the farthest first.
local GREEDY = [[local out, s = {}, input.subject
    for _, line in ipairs(s.lines) do
        local left = line.qty
        for i = #s.warehouses, 1, -1 do
            local w = s.warehouses[i]
            local take = math.min(left, w.available[line.id])
            if take > 0 then out[#out + 1], left = { line = line.id, warehouse = w.id, qty = take }, left - take end
        end
    end
    return out]]

local function live(shop, body, settings) return shop_of.rule(shop, "stock.allocate", body, settings) end

-- A shop whose lamp lies in several warehouses, the tenant's own first.
local function shop_with(units, fields)
    local shop, product = shop_of.simple(units[1], fields)
    local houses = { shop.warehouse_id }
    for i = 2, #units do
        houses[i] = must(shop.owner:post("/api/logistics/inventory/warehouse/create", { name = "House " .. i, country = "VN" })).id
        must(shop.owner:post("/api/logistics/inventory/adjust", { warehouseId = houses[i], productId = product, quantity = units[i],
            reason = "count" }))
    end
    return shop, product, houses
end

-- {reserved, available} of each warehouse.
local function stock(shop, product, houses)
    local by, list = {}, {}
    for _, row in ipairs(must(shop.owner:post("/api/logistics/inventory/list", { productId = product }))) do
        by[row.warehouseId] = { row.reservedQuantity, row.availableQuantity }
    end
    for i, id in ipairs(houses) do list[i] = by[id] end
    return list
end

-- On each stock row what is reserved is what its open reservations hold, and never more than is there.
local function assert_kept(tenant)
    local rows = db.read(tenant, [[select i.quantity, i.reserved_quantity as reserved, coalesce((select sum(r.quantity - r.consumed_qty
        - r.released_qty) from stock_reservations r where r.tenant_key = $1 and r.inventory_id = i.id), 0)::int as held
      from warehouse_inventory i where i.tenant_key = $1]], tenant)
    for _, row in ipairs(rows) do
        assert.equal(row.held, row.reserved)
        assert.is_true(row.reserved >= 0 and row.reserved <= row.quantity)
    end
end

local function pay(order, amount)
    return support.client():post("/api/internal/orders/sync-payment", { orderId = order.id, provider = "STRIPE", status = "SUCCESS",
        currency = "VND", transactionId = support.unique("tx"), amount = amount },
        { ["X-Internal-Secret"] = config.get("INTERNAL_WEBHOOK_SECRET") })
end

describe("a line over several warehouses", function()
    it("becomes an order for each, which sum to the quote in every figure", function()
        local shop, product, houses = shop_with({ 4, 3 }, { price = 33333 })
        must(shop.owner:post("/api/finance/tax/rules/create", { name = "VAT", country = "VN", rate = 7 }))
        must(shop.owner:post("/marketing/promotions/create", { name = "Tenth", type = "PERCENTAGE", value = 10 }))
        live(shop, GREEDY)
        local buyer = shop_of.buyer(shop, product, 5)
        local quote = must(buyer:post("/sales/cart/quote", { shippingAddress = { country = "VN", city = "Hanoi" } }))
        assert.same({ 1, 5 }, { #quote.lines, quote.lines[1].quantity })
        local placed = must(shop_of.checkout(buyer, { paymentMethod = "COD" }))
        assert.equal(2, #placed.orders)
        assert.equal(placed.orders[1].id, placed.orders[2].parentOrderId)
        local sums, seen = { total = 0, tax = 0, discount = 0, reduced = 0, units = 0 }, {}
        for _, order in ipairs(placed.orders) do
            local now = shop_of.order_now(shop, order.id)
            local item, held = now.items[1], now.allocation[1]
            assert.same({ 1, 1 }, { #now.items, #now.allocation })
            assert.same({ item.warehouseId, item.quantity, "CONFIRMED", product }, { held.warehouseId, held.quantity, held.status,
                held.productId })
            assert.equal(item.subTotalMinor - item.discountTotalMinor + item.taxTotalMinor, item.lineTotalMinor)
            sums.total, sums.tax = sums.total + now.totalAmountMinor, sums.tax + now.taxTotalMinor
            sums.discount, sums.units = sums.discount + now.discountTotalMinor, sums.units + item.quantity
            for _, adjustment in ipairs(now.adjustments) do sums.reduced = sums.reduced + adjustment.amountMinor end
            seen[item.warehouseId] = item.quantity
        end
        assert.same({ total = quote.totalMinor, tax = quote.taxMinor, discount = quote.discountMinor, reduced = quote.discountMinor,
            units = 5 }, sums)
        -- Whichever the rule took from first, both were needed and none gave more than it has.
        assert.equal(5, seen[houses[1]] + seen[houses[2]])
        assert.is_true(seen[houses[1]] <= 4 and seen[houses[2]] <= 3)
        assert.same({ { seen[houses[1]], 4 - seen[houses[1]] }, { seen[houses[2]], 3 - seen[houses[2]] } }, stock(shop, product, houses))
        assert_kept(shop.key)
    end)

    it("is what the house does, too, when no warehouse has enough alone", function()
        local shop, product, houses = shop_with{ 4, 3, 9 }
        local function placed(units, more)
            local list, orders = {}, must(shop_of.checkout(shop_of.buyer(shop, product, units, more), { paymentMethod = "COD" })).orders
            for _, order in ipairs(orders) do
                for _, item in ipairs(order.items) do
                    if item.productId == product then list[#list + 1] = { item.warehouseId, item.quantity } end
                end
            end
            table.sort(list, function(a, b) return a[2] > b[2] end)
            return list
        end
        -- As few parcels as can be: what holds most gives first; one that holds all is alone.
        assert.same({ { houses[3], 9 }, { houses[1], 3 } }, placed(12))
        assert.same({ { houses[2], 3 } }, placed(3))
        assert_kept(shop.key)
        local refused = shop_of.checkout(shop_of.buyer(shop, product, 2), { paymentMethod = "COD" })
        assert.same({ 409, "out_of_stock", 2 }, { refused.status, refused.json.code, refused.json.details[1].quantity })
        -- What sends a parcel anyway gives before what holds more.
        local near = shop_of.product(shop, { name = "Shade", price = 5000 })
        must(shop.owner:post("/api/logistics/inventory/adjust", { warehouseId = houses[2], productId = near, quantity = 5, reason = "x" }))
        for i, units in ipairs{ 5, 2, 6 } do
            must(shop.owner:post("/api/logistics/inventory/adjust", { warehouseId = houses[i], productId = product, quantity = units,
                reason = "x" }))
        end
        assert.same({ { houses[1], 6 }, { houses[2], 2 } }, placed(8, shop_of.buyer(shop, near, 1)))
    end)

    it("is one mail with all units and the whole total", function()
        local shop, product = shop_with({ 4, 3 }, { name = "Split Lamp", price = 1000 })
        live(shop, GREEDY)
        local address = support.unique("guest") .. "@example.test"
        must(shop_of.checkout(shop_of.buyer(shop, product, 7), { paymentMethod = "COD", guestEmail = address }))
        local text = support.eventually(function() return support.mail_to(address) end, 20)
        for _, part in ipairs{ "4 x Split Lamp", "3 x Split Lamp", "7000.00 VND" } do assert.is_truthy(text:find(part, 1, true), part) end
        assert.equal(1, support.mail_count(address))
    end)

    it("gives the shop window its units back when nobody pays", function()
        local platform = support.platform()
        local shop = shop_of.simple(0)
        local made = must(shop.owner:post("/api/ecommerce/products/create", { name = "Shirt", price = 1000, slug = support.unique("p"),
            variants = { { sku = support.unique("S"), price = 1000, stock = 5, name = "M" } } }))
        local function shown()
            return must(shop.owner:get("/api/ecommerce/products/" .. made.productId), 200).variants[1]
        end
        local buyer = support.guest(shop)
        must(buyer:post("/sales/cart/add", { productId = made.productId, variantId = made.variantIds[1], quantity = 2 }))
        must(shop_of.checkout(buyer))
        support.eventually(function() return shown().stock == 3 end, 20)
        support.advance(platform, 61 * 60)
        local ok, why = pcall(function()
            support.sign_in(shop.owner)
            support.eventually(function() return shown().stock == 5 end, 20)
        end)
        support.sign_in(platform)
        support.real_time(platform)
        if not ok then error(why, 0) end
    end)

    it("is charged the shipping of each parcel, as it was quoted", function()
        local shop, product = shop_with({ 4, 3 }, { weightGrams = 1000 })
        live(shop, GREEDY)
        local zone = must(shop.owner:post("/api/logistics/shipping/zone/create", { name = "Home", countries = { "VN" } }))
        must(shop.owner:post("/api/logistics/shipping/method/add", { zoneId = zone.id, name = "Post", basePrice = 1000 }))
        local buyer = shop_of.buyer(shop, product, 6)
        local quote = must(buyer:post("/sales/cart/quote", { shippingAddress = { country = "VN", city = "Hanoi" } }))
        assert.equal(2000, quote.shippingMinor)
        local placed = must(shop_of.checkout(buyer, { paymentMethod = "COD", expectedTotal = quote.total }))
        assert.same({ 1000, 1000 }, { placed.orders[1].shippingTotal, placed.orders[2].shippingTotal })
    end)

    it("leaves nothing held in any of them when the checkout fails", function()
        local shop, product, houses = shop_with{ 4, 3 }
        live(shop, GREEDY)
        local refused = shop_of.checkout(shop_of.buyer(shop, product, 6), { paymentMethod = "COD", expectedTotal = 1 })
        assert.same({ 409, "price_changed" }, { refused.status, refused.json.code })
        assert.same({ { 0, 4 }, { 0, 3 } }, stock(shop, product, houses))
        local short = shop_of.checkout(shop_of.buyer(shop, product, 8), { paymentMethod = "COD" })
        assert.same({ 409, "out_of_stock" }, { short.status, short.json.code })
        assert.same({ { 0, 4 }, { 0, 3 } }, stock(shop, product, houses))
    end)

    it("is not placed by a rule that leaves units out, or takes them from where they are not", function()
        local shop, product, houses = shop_with{ 20, 2 }
        local near = ("{ line = id, warehouse = %q, qty = "):format(houses[1])
        local far = ("{ line = id, warehouse = %q, qty = "):format(houses[2])
        local wrong = {
            ["2 of the 3 units"] = near .. "1 }, " .. far .. "1 }",
            ["4 of the 3 units"] = near .. "2 }, " .. far .. "2 }",
            ["does not hold as many"] = far .. "2 }, " .. far .. "1 }",
            ["is not offered"] = near .. "2 }, { line = id, warehouse = '01900000-0000-7000-8000-000000000000', qty = 1 }",
            ["is not among the lines"] = near .. "3 }, { line = 'x', warehouse = 'y', qty = 1 }",
        }
        for why, answer in pairs(wrong) do
            local key = live(shop, "local id = input.subject.lines[1].id return { " .. answer .. " }")
            local placed = must(shop_of.checkout(shop_of.buyer(shop, product, 3), { paymentMethod = "COD" }))
            assert.same({ 1, houses[1] }, { #placed.orders, placed.orders[1].items[1].warehouseId }, why)
            local run = support.eventually(function() return must(shop.owner:get("/rules/" .. key .. "/runs?outcome=failed"), 200)[1] end)
            assert.equal("invalid_result", run.outcome)
            assert.is_truthy(must(shop.owner:get("/rules/runs/" .. run.id), 200).message:find(why, 1, true), why)
            must(shop.owner:post("/rules/" .. key .. "/disable", { reason = "x" }))
        end
        -- What it names twice of one warehouse counts together.
        live(shop, "local id = input.subject.lines[1].id return { " .. far .. "1 }, " .. near .. "1 }, " .. far .. "1 } }")
        local placed = must(shop_of.checkout(shop_of.buyer(shop, product, 3), { paymentMethod = "COD" }))
        assert.equal(2, #placed.orders)
        assert.same({ 2, 0 }, stock(shop, product, houses)[2])
    end)

    it("that many buy at once is never sold twice in any warehouse", function()
        local units = { 11, 7, 5 }
        local shop, product, houses = shop_with(units)
        local other = shop_of.product(shop, { name = "Shade", price = 5000 })
        for i, house in ipairs(houses) do
            must(shop.owner:post("/api/logistics/inventory/adjust", { warehouseId = house, productId = other, quantity = 4 * i,
                reason = "count" }))
        end
        live(shop, GREEDY)
        local carts, calls = {}, {}
        for i = 1, 24 do
            carts[i] = function()
                local buyer = shop_of.buyer(shop, product, 1 + i % 4)
                return i % 2 == 0 and shop_of.buyer(shop, other, 1 + i % 3, buyer) or buyer
            end
        end
        for i, buyer in ipairs(support.parallel(carts)) do
            calls[i] = function()
                return shop_of.checkout(buyer, { paymentMethod = "COD", guestEmail = ("guest%d@example.test"):format(i) })
            end
        end
        local sold = {}
        for _, answer in ipairs(support.parallel(calls)) do
            assert.is_true(answer.status == 201 or (answer.status == 409 and answer.json.code == "out_of_stock"), answer.body)
            for _, order in ipairs(answer.status == 201 and answer.json.orders or {}) do
                for _, item in ipairs(order.items) do
                    local key = item.productId .. item.warehouseId
                    sold[key] = (sold[key] or 0) + item.quantity
                end
            end
        end
        for i, house in ipairs(houses) do
            local lamps, shades = sold[product .. house] or 0, sold[other .. house] or 0
            assert.is_true(lamps <= units[i] and shades <= 4 * i)
            assert.same({ lamps, units[i] - lamps }, stock(shop, product, houses)[i])
            assert.same({ shades, 4 * i - shades }, stock(shop, other, houses)[i])
        end
        assert_kept(shop.key)
        -- Nobody was refused while enough was left for the smallest of them.
        assert.is_true((sold[product .. houses[1]] or 0) > 0)
    end)
end)

describe("the hour of an unpaid order over several warehouses", function()
    local platform = support.platform()

    it("gives each its own back, and a late payment takes the same again", function()
        local shop, product, houses = shop_with{ 4, 3 }
        live(shop, GREEDY)
        local kept = must(shop_of.checkout(shop_of.buyer(shop, product, 1), { paymentMethod = "COD" })).orders[1]
        local before = stock(shop, product, houses)
        local placed = must(shop_of.checkout(shop_of.buyer(shop, product, 5)))
        local held = stock(shop, product, houses)
        assert.equal(2, #placed.orders)
        support.advance(platform, 61 * 60)
        local ok, why = pcall(function()
            support.sign_in(shop.owner)
            for _, order in ipairs(placed.orders) do
                support.eventually(function() return shop_of.order_now(shop, order.id).status == "cancelled" end, 20)
                assert.equal("RELEASED", shop_of.order_now(shop, order.id).allocation[1].status)
            end
            assert.same(before, stock(shop, product, houses))
            assert.is_true(must(pay(placed.orders[1], placed.amountDue)).applied)
            assert.same(held, stock(shop, product, houses))
            for _, order in ipairs(placed.orders) do
                local now = shop_of.order_now(shop, order.id)
                assert.same({ "processing", "paid" }, { now.status, now.paymentStatus })
                assert.same({ "RELEASED", "CONFIRMED" }, { now.allocation[1].status, now.allocation[2].status })
                assert.equal(now.items[1].quantity, now.allocation[2].quantity)
            end
            assert.equal("pending", shop_of.order_now(shop, kept.id).status)
            assert_kept(shop.key)
        end)
        support.sign_in(platform)
        support.real_time(platform)
        if not ok then error(why, 0) end
    end)
end)
