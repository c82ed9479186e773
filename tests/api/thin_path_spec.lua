-- From an empty tenant to a paid order over HTTP, with exact amounts.
local config = require("core.config")
local json = require("core.json")
local shop_of = require("api.shop")
local support = require("api.support")

local must = shop_of.must
local P = "/api/ecommerce/products"

describe("the walk from an empty tenant to a paid order", function()
    local shop = support.tenant{ currency = "VND", country = "VN" }
    local staff = shop.owner
    local shopper, other = support.shopper(shop), support.shopper(shop)
    local category, bundle, method, order
    local goods = {}

    setup(function()
        must(staff:post("/api/finance/tax/rules/create", { name = "VAT", country = "VN", rate = 10 }))
        local zone = must(staff:post("/api/logistics/shipping/zone/create", { name = "Viet Nam", countries = { "VN" } }))
        method = must(staff:post("/api/logistics/shipping/method/add",
            { zoneId = zone.id, name = "Standard", baseCost = 35000, costPerKg = 5000 }))
    end)

    it("makes a category", function()
        category = must(staff:post(P .. "/categories/create", { name = "Phones", slug = "phones" }))
        assert.is_string(category.id)
    end)

    -- 200 g + 3 x 400 g + 300 g + 300 g = 2 kg in the cart below.
    it("makes four products, and a slug once", function()
        local function product(name, price, grams, category_id)
            local made = must(staff:post(P .. "/create", { name = name, slug = name:lower():gsub(" ", "-"), price = price,
                weightGrams = grams, categoryId = category_id }))
            assert.is_true(made.success)
            return made.productId
        end
        goods.phone = product("Smartphone Kasma Pro", 25000000, 200, category.id)
        goods.case = product("Case", 390000, 300)
        goods.charger = product("Charger", 590000, 300)
        goods.earbuds = product("Earbuds", 1290000, 400)
        local again = staff:post(P .. "/create", { name = "Another", slug = "case", price = 1 })
        assert.same({ 409, "slug_taken" }, { again.status, again.json.code })
        for name, units in pairs{ phone = 5, case = 20, charger = 20, earbuds = 10 } do
            assert.equal(units, shop_of.stock(shop, goods[name], units).availableQuantity)
        end
    end)

    it("finds products by text and price", function()
        local answer = shopper:get(P .. "/list?search=kasma&minPrice=1000000")
        local list = must(answer, 200)
        assert.same({ 1, "25000000.00", "1" }, { #list, list[1].price, answer.headers["x-total-count"] })
    end)

    it("makes a bundle", function()
        bundle = must(staff:post("/marketing/bundles/create", { name = "Gamer Pack", price = 850000,
            items = { { productId = goods.case, quantity = 1 }, { productId = goods.charger, quantity = 1 } } }))
        assert.same({ 2, 850000, 130000 }, { #bundle.items, bundle.price, bundle.saving })
        assert.equal("850000.00", must(shopper:get("/marketing/bundles/list"), 200)[1].price)
    end)

    it("makes promotions by the words of both client collections", function()
        local percent = must(staff:post("/marketing/promotions/create", { name = "10 off", type = "PERCENTAGE", value = 10,
            applicableTo = "CATEGORY", targetId = category.id, maxDiscount = 2000000 }))
        assert.same({ "discount", "percent" }, { percent.type, percent.valueType })
        must(staff:post("/marketing/promotions/create", { name = "One more", type = "b1g1", value = 100, applicableTo = "product",
            targetId = goods.earbuds }))
    end)

    it("fills a cart", function()
        shop_of.buyer(shop, goods.phone, 1, shopper)
        shop_of.buyer(shop, goods.earbuds, 1, shopper)
        shop_of.buyer(shop, goods.earbuds, 2, shopper)
        local cart = must(shopper:post("/sales/cart/bundle/add", { bundleId = bundle.id, quantity = 1 }))
        local quantity = {}
        for _, item in ipairs(cart.items) do quantity[item.productId] = item.quantity end
        assert.equal(4, #cart.items)
        assert.same({ [goods.phone] = 1, [goods.earbuds] = 3, [goods.case] = 1, [goods.charger] = 1 }, quantity)
    end)

    it("sums the cart up before an address is known", function()
        local sum = must(shopper:get("/sales/cart/summary"), 200)
        assert.same({ 4, 29850000, 3420000, 2643001, 29073001 }, { sum.itemsCount, sum.subtotal, sum.discount, sum.tax, sum.total })
        assert.equal(json.null, sum.shipping)
        assert.same({ 29850000, 29073001 }, { sum.subtotalMinor, sum.totalMinor })
    end)

    it("quotes shipping by weight", function()
        local quote = must(shopper:post("/sales/cart/quote", { shippingAddress = { country = "VN", city = "Hanoi" },
            shippingMethodId = method.id }))
        assert.same({ 3420000, 45000, 2647501, 29122501 }, { quote.discount, quote.shipping, quote.tax, quote.total })
        local tax = 0
        for _, line in ipairs(quote.lines) do tax = tax + line.taxTotalMinor end
        assert.equal(2643001, tax)
    end)

    it("places the order", function()
        local placed = must(shop_of.checkout(shopper, { shippingMethodId = method.id, items = json.array({}) }))
        assert.same({ true, 1, 29122501 }, { placed.success, #placed.orders, placed.amountDue })
        order = placed.orders[1]
        assert.same({ 29850000, 3420000, 45000, 2647501, 29122501, 29122501 }, { order.subtotal, order.discountTotal, order.shippingTotal,
            order.taxTotal, order.totalAmount, order.amountDue })
        assert.same({ "pending", "unpaid", "VND", 4 }, { order.status, order.paymentStatus, order.currency, #order.items })
        assert.same({ "STRIPE", 29122501 }, { placed.paymentSession.provider, placed.paymentSession.amountMinor })
    end)

    it("holds the stock and empties the cart", function()
        for name, left in pairs{ phone = 4, case = 19, charger = 19, earbuds = 7 } do
            assert.equal(left, shop_of.stock_of(shop, goods[name]).availableQuantity, name)
        end
        local cart = must(shopper:get("/sales/cart/me"), 200)
        assert.same({ 0, 1 }, { #cart.items, cart.series })
        local answer = shop_of.checkout(shopper)
        assert.same({ 404, "cart_empty" }, { answer.status, answer.json.code })
    end)

    it("takes the payment's report from who knows the secret only", function()
        local service = support.client()
        local report = { orderId = order.id, status = "SUCCESS", provider = "STRIPE", transactionId = "t1", amount = 29122501,
            currency = "VND" }
        assert.equal(401, service:post("/api/internal/orders/sync-payment", report).status)
        assert.equal(401, service:post("/api/internal/orders/sync-payment", report, { ["X-Internal-Secret"] = "guess" }).status)
        assert.equal(401, staff:post("/api/internal/orders/sync-payment", report).status)
        assert.equal("unpaid", shop_of.order_now(shop, order.id).paymentStatus)
        local secret = { ["X-Internal-Secret"] = config.get("INTERNAL_WEBHOOK_SECRET") }
        local taken = must(service:post("/api/internal/orders/sync-payment", report, secret))
        assert.same({ true, true }, { taken.success, taken.applied })
    end)

    it("shows the order to its owner and staff, to nobody else", function()
        for _, client in ipairs{ shopper, staff } do
            local seen = must(client:post("/sales/orders/details", { id = order.id }))
            assert.same({ "processing", "paid", 4, "29122501.00", 29122501 },
                { seen.status, seen.paymentStatus, #seen.items, seen.totalAmount, seen.paidTotalMinor })
            local off = 0
            for _, adjustment in ipairs(seen.adjustments) do off = off + adjustment.amountMinor end
            assert.equal(3420000, off)
        end
        assert.equal(404, other:post("/sales/orders/details", { id = order.id }).status)
        assert.equal(401, support.guest(shop):post("/sales/orders/details", { id = order.id }).status)
        assert.same({ 1, order.id }, { #must(shopper:get("/sales/orders/me"), 200), shopper:get("/sales/orders/me").json[1].id })
        assert.equal(0, #must(other:get("/sales/orders/me"), 200))
    end)

    it("keeps the stock of a paid order", function()
        assert.same({ 5, 4 }, { shop_of.stock_of(shop, goods.phone).quantity, shop_of.stock_of(shop, goods.phone).availableQuantity })
    end)

    it("confirms the order by mail", function()
        local text = support.eventually(function() return (support.mail_to(shopper.user.email)) end, 20)
        assert.is_truthy(text:find(order.orderNumber, 1, true))
        assert.is_truthy(text:find("29122501.00", 1, true))
    end)
end)
