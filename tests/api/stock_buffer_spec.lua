-- Units that a rule of stock.buffer holds back: they are for sale nowhere, and come back when the rule goes.
local db = require("kasma.db")
local support = require("api.support")
local shop_of = require("api.shop")

local must = shop_of.must

local function live(shop, body, settings) return shop_of.rule(shop, "stock.buffer", body, settings) end

local function available(shop, product, units)
    return support.eventually(function() return shop_of.stock_of(shop, product).availableQuantity == units end, 20)
end

local function refused(shop, product, units)
    local answer = shop_of.checkout(shop_of.buyer(shop, product, units), { paymentMethod = "COD" })
    return answer.status == 409 and answer.json.code == "out_of_stock"
end

describe("stock.buffer", function()
    it("holds units back from the shop window, the list of stock and the checkout", function()
        local shop = shop_of.simple(0)
        local made = must(shop.owner:post("/api/ecommerce/products/create", { name = "Shirt", price = 1000, slug = support.unique("p"),
            variants = { { sku = support.unique("S"), price = 1000, stock = 10, name = "M" } } }))
        local function shown() return must(shop.owner:get("/api/ecommerce/products/" .. made.productId), 200).variants[1].stock end
        local function buyer(units)
            local client = support.guest(shop)
            must(client:post("/sales/cart/add", { productId = made.productId, variantId = made.variantIds[1], quantity = units }))
            return client
        end
        local key = live(shop, [[local p = input.subject.product
            if p.name == "Shirt" and p.variant_id and input.subject.warehouse_id and input.subject.sales_30d == 0 then return 3 end]])
        support.eventually(function() return shown() == 7 end, 20)
        local row = shop_of.stock_of(shop, made.productId)
        assert.same({ 10, 3, 7 }, { row.quantity, row.bufferQuantity, row.availableQuantity })
        local short = shop_of.checkout(buyer(8), { paymentMethod = "COD" })
        assert.same({ 409, "out_of_stock" }, { short.status, short.json.code })
        must(shop.owner:post("/rules/" .. key .. "/disable", { reason = "x" }))
        support.eventually(function() return shown() == 10 end, 20)
        must(shop_of.checkout(buyer(8), { paymentMethod = "COD" }))
    end)

    it("is asked when staff changes the stock, before the answer", function()
        local shop, product = shop_of.simple(0)
        live(shop, "return math.floor(input.subject.quantity / 4)")
        local function moved(units)
            local row = shop_of.stock(shop, product, units)
            return { row.quantity, row.bufferQuantity, row.availableQuantity }
        end
        assert.same({ 20, 5, 15 }, moved(20))
        assert.same({ 8, 2, 6 }, moved(-12))
        assert.is_true(refused(shop, product, 7))
    end)

    it("knows what was sold, and takes nothing from who holds it", function()
        local shop, product = shop_of.simple(10)
        live(shop, "return input.subject.sales_30d * 2")
        must(shop_of.checkout(shop_of.buyer(shop, product, 4), { paymentMethod = "COD" }))
        -- Ten on hand, four promised, eight held back: nothing is left, and nothing is owed.
        available(shop, product, 0)
        local row = support.eventually(function()
            local now = shop_of.stock_of(shop, product)
            return now.bufferQuantity == 8 and now
        end, 20)
        assert.same({ 10, 4, 0 }, { row.quantity, row.reservedQuantity, row.availableQuantity })
        assert.is_true(refused(shop, product, 1))
    end)

    it("gives way to the stored buffer when it fails or has no answer, and to nothing when it says block", function()
        local shop, product = shop_of.simple(0)
        local other = shop_of.product(shop, { name = "Shade" })
        db.query(shop.key, [[insert into inventory_buffers (tenant_key, id, wire_id, product_id, buffer_percent, created_at, updated_at)
            values ($1, $2, '0123456789abcdef01234567', $2, 15, now(), now())]], shop.key, product)
        local key = live(shop, "if input.subject.quantity == 10 then error('no') end return 1")
        -- 15 per cent of ten, rounded up.
        assert.equal(8, shop_of.stock(shop, product, 10).availableQuantity)
        assert.equal(10, shop_of.stock(shop, other, 10).availableQuantity)
        assert.equal(10, shop_of.stock(shop, product, 1).availableQuantity)
        must(shop.owner:post("/rules/" .. key .. "/disable", { reason = "x" }))
        available(shop, product, 9) -- 11 less 2
        live(shop, "if input.subject.quantity == 12 then error('no') end return 5", { on_error = "block" })
        available(shop, product, 6)
        assert.equal(7, shop_of.stock(shop, product, 1).availableQuantity)
        assert.equal(8, shop_of.stock(shop, product, 1).availableQuantity)
    end)

    it("rests with all rules of its hook, and goes on with them", function()
        local shop, product = shop_of.simple(10)
        live(shop, "return 4")
        available(shop, product, 6)
        must(shop.owner:post("/rules/pause", { hook = "stock.buffer", reason = "x" }))
        available(shop, product, 10)
        must(shop.owner:post("/rules/resume", { hook = "stock.buffer", reason = "x" }))
        available(shop, product, 6)
    end)

    it("of one tenant holds back nothing of another's", function()
        local one, lamp = shop_of.simple(10)
        local two, chair = shop_of.simple(10)
        live(one, "return 4")
        available(one, lamp, 6)
        assert.equal(10, shop_of.stock_of(two, chair).availableQuantity)
        shop_of.stock(two, chair, 1)
        assert.equal(11, shop_of.stock_of(two, chair).availableQuantity)
    end)

    it("under many buyers at once keeps its units", function()
        local shop, product = shop_of.simple(20)
        live(shop, "return 5")
        available(shop, product, 15)
        local carts, calls = {}, {}
        for i = 1, 20 do carts[i] = function() return shop_of.buyer(shop, product, 1) end end
        for i, buyer in ipairs(support.parallel(carts)) do
            calls[i] = function()
                return shop_of.checkout(buyer, { paymentMethod = "COD", guestEmail = ("guest%d@example.test"):format(i) })
            end
        end
        assert.same({ [201] = 15, [409] = 5 }, shop_of.statuses(support.parallel(calls)))
        local row = shop_of.stock_of(shop, product)
        assert.same({ 20, 15, 5, 0 }, { row.quantity, row.reservedQuantity, row.bufferQuantity, row.availableQuantity })
    end)
end)
