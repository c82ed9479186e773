-- What rules give away: gifts are for sale in the shop, in stock, held like anything else, and cost nothing.
local config = require("core.config")
local db = require("kasma.db")
local support = require("api.support")
local shop_of = require("api.shop")

local must = shop_of.must

-- One of a product with everything from 200,000 on.
local function giving(shop, product, more)
    return shop_of.rule(shop, "promotion", ([[if input.cart.net < 200000 then return nil end
        return { operations = { { op = "gift_line", product_id = %q, qty = %d, label = "For you"%s } } }]]):format(product,
        more and more.qty or 1, more and more.variant and (', variant_id = %q'):format(more.variant) or ""))
end

-- A shop with lamps of 100,000 and so many candles of 7,000 to give away.
local function shop_with(candles, fields)
    local shop, lamp = shop_of.simple(50)
    fields = fields or {}
    fields.name, fields.price = "Candle", 7000
    local candle = shop_of.product(shop, fields)
    if candles > 0 then shop_of.stock(shop, candle, candles) end
    return shop, lamp, candle
end

local function quote(buyer) return must(buyer:post("/sales/cart/quote", { shippingAddress = { country = "VN", city = "Hanoi" } })) end

local function gift_of(lines)
    for _, line in ipairs(lines) do
        if line.isGift then return line end
    end
    return nil
end

local function note_of(answer, key)
    for _, t in ipairs(answer.trace) do
        if t.rule == key and t.note ~= "applied" then return t.note end
    end
    return nil
end

local function reserved(shop, product) return shop_of.stock_of(shop, product).reservedQuantity end

describe("a gift", function()
    it("is a line of the quote and of the order, costs nothing, and is held like the rest", function()
        local shop, lamp, candle = shop_with(5)
        giving(shop, candle, { qty = 2 })
        must(shop.owner:post("/api/finance/tax/rules/create", { name = "VAT", country = "VN", rate = 10 }))
        assert.is_nil(gift_of(quote(shop_of.buyer(shop, lamp, 1)).lines))
        local buyer = shop_of.buyer(shop, lamp, 2)
        local seen = quote(buyer)
        local gift = gift_of(seen.lines)
        assert.same({ candle, 2, 14000, 14000, 0, 0 }, { gift.productId, gift.quantity, gift.subTotalMinor, gift.discountTotalMinor,
            gift.netTotalMinor, gift.taxTotalMinor })
        assert.equal(220000, seen.totalMinor)
        local placed = must(shop_of.checkout(buyer, { paymentMethod = "COD", expectedTotal = 220000 }))
        assert.equal(1, #placed.orders)
        local order = shop_of.order_now(shop, placed.orders[1].id)
        local item = gift_of(order.items)
        assert.same({ 220000, candle, 2, "0.00", shop.warehouse_id }, { order.totalAmountMinor, item.productId, item.quantity,
            item.lineTotal, item.warehouseId })
        assert.equal(2, #order.allocation)
        assert.same({ 2, 2 }, { reserved(shop, lamp), reserved(shop, candle) })
    end)

    it("is not given when there are not as many, and the order is placed without it", function()
        local shop, lamp, candle = shop_with(1)
        local key = giving(shop, candle, { qty = 2 })
        local buyer = shop_of.buyer(shop, lamp, 2)
        local seen = quote(buyer)
        assert.same({ "gift_out_of_stock", 200000 }, { note_of(seen, key), seen.totalMinor })
        local placed = must(shop_of.checkout(buyer, { paymentMethod = "COD" }))
        assert.is_nil(gift_of(placed.orders[1].items))
        assert.equal(0, reserved(shop, candle))
    end)

    it("of what is bought counts with it", function()
        local shop, lamp = shop_of.simple(3)
        giving(shop, lamp)
        assert.is_nil(gift_of(quote(shop_of.buyer(shop, lamp, 3)).lines))
        local buyer = shop_of.buyer(shop, lamp, 2)
        assert.is_table(gift_of(quote(buyer).lines))
        local order = must(shop_of.checkout(buyer, { paymentMethod = "COD" })).orders[1]
        assert.same({ 1, 200000, 3 }, { gift_of(order.items).quantity, order.totalAmount, reserved(shop, lamp) })
    end)

    it("must be for sale in this shop", function()
        local shop, lamp, candle = shop_with(5)
        local _, foreign = shop_of.simple(5)
        for _, product in ipairs{ foreign, "01900000-0000-7000-8000-000000000000", "no id at all" } do
            local key = giving(shop, product)
            local seen = quote(shop_of.buyer(shop, lamp, 2))
            assert.same({ "gift_unknown", 200000 }, { note_of(seen, key), seen.totalMinor }, product)
            must(shop.owner:post("/rules/" .. key .. "/disable", { reason = "x" }))
        end
        giving(shop, candle, { variant = lamp })
        assert.is_nil(gift_of(quote(shop_of.buyer(shop, lamp, 2)).lines))
    end)

    it("needs no stock where none is counted, and may be a variant", function()
        local shop, lamp, candle = shop_with(0, { trackInventory = false })
        local key = giving(shop, candle)
        assert.is_table(gift_of(must(shop_of.checkout(shop_of.buyer(shop, lamp, 2), { paymentMethod = "COD" })).orders[1].items))
        must(shop.owner:post("/rules/" .. key .. "/disable", { reason = "x" }))
        local made = must(shop.owner:post("/api/ecommerce/products/create", { name = "Shirt", price = 1000, slug = support.unique("p"),
            variants = { { sku = support.unique("S"), price = 1000, stock = 4, name = "M" } } }))
        giving(shop, made.productId, { variant = made.variantIds[1] })
        local item = gift_of(must(shop_of.checkout(shop_of.buyer(shop, lamp, 2), { paymentMethod = "COD" })).orders[1].items)
        assert.same({ made.variantIds[1], 1 }, { item.variantId, reserved(shop, made.productId) })
    end)

    it("goes back when the checkout fails", function()
        local shop, lamp, candle = shop_with(5)
        giving(shop, candle)
        local refused = shop_of.checkout(shop_of.buyer(shop, lamp, 2), { paymentMethod = "COD", expectedTotal = 1 })
        assert.same({ 409, 0, 0 }, { refused.status, reserved(shop, lamp), reserved(shop, candle) })
    end)

    it("of which a few are left goes to as many buyers and no more", function()
        local shop, lamp, candle = shop_with(4)
        giving(shop, candle)
        local carts, calls = {}, {}
        for i = 1, 12 do carts[i] = function() return shop_of.buyer(shop, lamp, 2) end end
        for i, buyer in ipairs(support.parallel(carts)) do
            calls[i] = function()
                return shop_of.checkout(buyer, { paymentMethod = "COD", guestEmail = ("guest%d@example.test"):format(i) })
            end
        end
        local gifts = 0
        for _, answer in ipairs(support.parallel(calls)) do
            local order = must(answer).orders[1]
            gifts = gifts + (gift_of(order.items) and 1 or 0)
            assert.equal(200000, order.totalAmount)
        end
        assert.same({ 4, 4, 24 }, { gifts, reserved(shop, candle), reserved(shop, lamp) })
        local open = db.read(shop.key, [[select count(*)::int as n from stock_reservations where tenant_key = $1 and order_id is null
            and status = 'HELD']], shop.key)[1].n
        assert.equal(0, open)
    end)

    it("of an order that nobody pays goes back, and is taken again when the payment comes late", function()
        local platform = support.platform()
        local shop, lamp, candle = shop_with(5)
        giving(shop, candle)
        local order = must(shop_of.checkout(shop_of.buyer(shop, lamp, 2))).orders[1]
        assert.same({ 2, 1 }, { reserved(shop, lamp), reserved(shop, candle) })
        support.advance(platform, 61 * 60)
        local ok, why = pcall(function()
            support.sign_in(shop.owner)
            support.eventually(function() return shop_of.order_now(shop, order.id).status == "cancelled" end, 20)
            assert.same({ 0, 0 }, { reserved(shop, lamp), reserved(shop, candle) })
            assert.is_true(must(support.client():post("/api/internal/orders/sync-payment", { orderId = order.id, provider = "STRIPE",
                status = "SUCCESS", currency = "VND", transactionId = support.unique("tx"), amount = 200000 },
                { ["X-Internal-Secret"] = config.get("INTERNAL_WEBHOOK_SECRET") })).applied)
            assert.same({ 2, 1 }, { reserved(shop, lamp), reserved(shop, candle) })
        end)
        support.sign_in(platform)
        support.real_time(platform)
        if not ok then error(why, 0) end
    end)
end)
