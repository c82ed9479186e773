-- What carts, prices, checkouts and stock refuse, and what stays as it was then.
local json = require("core.json")
local db = require("kasma.db")
local null = require("kasma.null")
local shop_of = require("api.shop")
local support = require("api.support")

local must = shop_of.must
local P = "/api/ecommerce/products"
local UNKNOWN = "01900000-0000-7000-8000-000000000000"

--- Status and code of an answer.
local function told(answer) return { answer.status, answer.json and answer.json.code } end

describe("a cart", function()
    local shop, product = shop_of.simple(50)
    local shirt = must(shop.owner:post(P .. "/create", { name = "Shirt", slug = "shirt", price = 200000,
        attributes = { { name = "Size", values = { "S", "M" } } },
        variants = { { sku = "SHIRT-S", price = 200000, stock = 5, attributes = { Size = "S" } },
            { sku = "SHIRT-M", price = "210000.00", stock = 5, attributes = { Size = "M" } } } }))

    it("takes whole quantities from 1 to 9999 only", function()
        local buyer = shop_of.buyer(shop, product, 2)
        for _, quantity in ipairs{ 0, -1, 1.5, "2x", 10000, json.null, true } do
            local answer = buyer:post("/sales/cart/add", { productId = product, quantity = quantity })
            assert.equal(400, answer.status, tostring(quantity) .. " " .. tostring(answer.body))
        end
        assert.equal(400, buyer:post("/sales/cart/add", { productId = product }).status)
        local items = must(buyer:get("/sales/cart/me"), 200).items
        assert.same({ 1, 2 }, { #items, items[1].quantity })
        assert.same({ 409, "max_quantity" }, told(buyer:post("/sales/cart/add", { productId = product, quantity = 9999 })))
        assert.equal(2, must(buyer:get("/sales/cart/me"), 200).items[1].quantity)
    end)

    it("takes a variant of the product only, and asks for one where there are some", function()
        local buyer = support.guest(shop)
        local small, medium = shirt.variantIds[1], shirt.variantIds[2]
        assert.same({ 400, "variant_mismatch" }, told(buyer:post("/sales/cart/add",
            { productId = product, variantId = small, quantity = 1 })))
        assert.same({ 400, "variant_required" }, told(buyer:post("/sales/cart/add", { productId = shirt.productId, quantity = 1 })))
        assert.equal(404, buyer:post("/sales/cart/add", { productId = shirt.productId, variantId = UNKNOWN, quantity = 1 }).status)
        assert.equal(404, buyer:post("/sales/cart/add", { productId = UNKNOWN, quantity = 1 }).status)
        assert.equal(404, buyer:post("/sales/cart/add", { productId = "nonsense", quantity = 1 }).status)
        must(buyer:post("/sales/cart/add", { productId = shirt.productId, variantId = small, quantity = 1 }))
        local cart = must(buyer:post("/sales/cart/add", { productId = shirt.productId, variantId = medium, quantity = 1 }))
        assert.equal(2, #cart.items)
        assert.equal(410000, must(buyer:get("/sales/cart/summary"), 200).subtotal)
    end)

    it("changes, drops and empties lines", function()
        local buyer = shop_of.buyer(shop, product, 2)
        assert.equal(7, must(buyer:post("/sales/cart/update", { productId = product, quantity = 7 })).items[1].quantity)
        assert.equal(404, buyer:post("/sales/cart/update", { productId = UNKNOWN, quantity = 1 }).status)
        assert.equal(400, buyer:post("/sales/cart/update", { quantity = 1 }).status)
        assert.equal(1, #must(buyer:post("/sales/cart/remove", { productId = UNKNOWN })).items)
        assert.equal(0, #must(buyer:post("/sales/cart/update", { productId = product, quantity = 0 })).items)
        shop_of.buyer(shop, product, 1, buyer)
        assert.equal(0, #must(buyer:post("/sales/cart/clear")).items)
    end)

    it("of a guest follows the token, as header or cookie", function()
        local guest = support.guest(shop)
        assert.same({ 0, json.null }, { #must(guest:get("/sales/cart/me"), 200).items, guest:get("/sales/cart/me").json.id })
        local added = guest:post("/sales/cart/add", { productId = product, quantity = 3 })
        local token = added.headers["x-cart-token"]
        assert.is_truthy(token:find("^%x+$"))
        assert.equal(token, guest.cookies.cart_token)
        assert.is_truthy(guest.set_cookies.cart_token:find("HttpOnly", 1, true))
        local id = added.json.id
        assert.equal(id, must(guest:get("/sales/cart/me"), 200).id)
        local by_header = support.guest(shop)
        assert.equal(id, must(by_header:get("/sales/cart/me", { ["X-Cart-Token"] = token }), 200).id)
        assert.same({}, by_header.cookies)
        for _, other in ipairs{ ("0"):rep(32), "x", "'; drop table carts; --" } do
            assert.equal(0, #must(support.guest(shop):get("/sales/cart/me", { ["X-Cart-Token"] = other }), 200).items)
        end
        local elsewhere = support.client(support.tenant().headers)
        assert.equal(0, #must(elsewhere:get("/sales/cart/me", { ["X-Cart-Token"] = token }), 200).items)
    end)

    it("takes twenty writes at once without losing one", function()
        local buyer = shop_of.buyer(shop, product)
        local calls = {}
        for i = 1, 20 do calls[i] = function() return buyer:copy():post("/sales/cart/add", { productId = product, quantity = 1 }) end end
        local count = shop_of.statuses(support.parallel(calls))
        assert.equal(20, (count[201] or 0) + (count[409] or 0))
        assert.equal(1 + count[201], must(buyer:get("/sales/cart/me"), 200).items[1].quantity)
    end)

    it("does not hold what is not for sale", function()
        local hidden = shop_of.product(shop, { name = "Hidden", price = 1000, isActive = false })
        assert.same({ 409, "product_inactive" }, told(support.guest(shop):post("/sales/cart/add", { productId = hidden, quantity = 1 })))
        assert.equal(404, support.guest(shop):get(P .. "/" .. hidden).status)
        assert.equal(200, shop.owner:get(P .. "/" .. hidden).status)
    end)
end)

describe("the catalogue", function()
    local shop = support.tenant{ currency = "VND" }

    it("takes amounts that the currency can carry", function()
        local function make(price)
            return shop.owner:post(P .. "/create", { name = "Case", slug = support.unique("case"), price = price })
        end
        assert.same({ 400, "money_precision" }, told(make(390000.5)))
        assert.same({ 400, "money_precision" }, told(make("390000.50")))
        for _, price in ipairs{ -1, "abc", 1e18, "9223372036854775808" } do assert.equal(400, make(price).status, tostring(price)) end
        local id = must(make("390000.00")).productId
        assert.same({ "390000.00", 390000 }, { must(shop.owner:get(P .. "/" .. id), 200).price,
            shop.owner:get(P .. "/" .. id).json.priceMinor })
        local cents = support.tenant{ currency = "USD", country = "US" }
        id = must(cents.owner:post(P .. "/create", { name = "Case", slug = "case", price = "19.99" })).productId
        assert.same({ "19.99", 1999 }, { cents.owner:get(P .. "/" .. id).json.price, cents.owner:get(P .. "/" .. id).json.priceMinor })
        assert.same({ 400, "money_precision" }, told(cents.owner:post(P .. "/create", { name = "Case", slug = "case-2", price = 19.999 })))
    end)

    it("says of a bundle what its parts cost together, as long as that is an amount", function()
        local most = "90071992547409"
        local small, large = shop_of.product(shop, { name = "Pin", price = 10 }), shop_of.product(shop, { name = "Ship", price = most })
        local function bundle(id) return shop.owner:post("/marketing/bundles/create", { name = "Pack", price = 5,
            items = { { productId = id, quantity = 9999 } } }) end
        assert.same({ 400, "money_range" }, told(bundle(large)))
        local made = must(bundle(small))
        assert.same({ 99990, 99985 }, { made.componentsTotal, made.saving })
        -- Dearer since.
        db.query(shop.key, [[update products p set price_minor = o.price_minor from products o where p.tenant_key = $1 and p.id = $2
          and o.tenant_key = $1 and o.id = $3]], shop.key, small, large)
        local listed = must(shop.owner:get("/marketing/bundles/list"), 200)
        assert.same({ 1, null, null, null }, { #listed, listed[1].componentsTotal, listed[1].saving, listed[1].savingMinor })
    end)

    it("gives a slug once in a tenant", function()
        must(shop.owner:post(P .. "/create", { name = "One", slug = "one", price = 1 }))
        assert.same({ 409, "slug_taken" }, told(shop.owner:post(P .. "/create", { name = "Two", slug = "one", price = 1 })))
        must(shop.owner:post(P .. "/categories/create", { name = "One", slug = "one" }))
        assert.same({ 409, "slug_taken" }, told(shop.owner:post(P .. "/categories/create", { name = "Two", slug = "one" })))
        must(shop.owner:post(P .. "/tags/create", { name = "One", slug = "one" }))
        assert.same({ 409, "slug_taken" }, told(shop.owner:post(P .. "/tags/create", { name = "Two", slug = "one" })))
        must(support.tenant().owner:post(P .. "/create", { name = "One", slug = "one", price = 1 }))
    end)

    it("lets one of ten parallel creations have the slug", function()
        local calls = {}
        for i = 1, 10 do calls[i] = function() return shop.owner:post(P .. "/create", { name = "Race", slug = "race", price = 1 }) end end
        assert.same({ [201] = 1, [409] = 9 }, shop_of.statuses(support.parallel(calls)))
    end)

    it("is listed in every order, with and without a search", function()
        local own = support.tenant()
        local lamp = shop_of.product(own, { name = "Lamp", price = 3 })
        local both = shop_of.product(own, { name = "Table", price = 1, description = "with a lamp" })
        for _, sort in ipairs{ "newest", "price_asc", "price_desc", "name", "relevance" } do
            assert.equal(2, #must(support.guest(own):get(P .. "/list?sort=" .. sort), 200), sort)
        end
        local found = must(support.guest(own):get(P .. "/list?search=lamp&sort=relevance"), 200)
        assert.same({ lamp, both }, { found[1].id, found[2].id })
        assert.equal(both, must(support.guest(own):get(P .. "/list?search=lamp&sort=price_asc"), 200)[1].id)
    end)

    it("is written by those who may", function()
        local body = { name = "Mine", slug = "mine", price = 1 }
        assert.equal(401, support.guest(shop):post(P .. "/create", body).status)
        assert.equal(403, support.shopper(shop):post(P .. "/create", body).status)
        assert.equal(400, shop.owner:post(P .. "/create", { slug = "mine", price = 1 }).status)
        assert.equal(400, shop.owner:post(P .. "/create", { name = "Mine", slug = "mine", price = 1, surprise = 1 }).status)
    end)

    it("forgets a deleted product", function()
        local id = shop_of.product(shop, { name = "Gone", price = 1 })
        must(shop.owner:post(P .. "/" .. id .. "/delete"))
        assert.equal(404, shop.owner:get(P .. "/" .. id).status)
        assert.equal(404, shop.owner:post(P .. "/" .. id .. "/delete").status)
        assert.equal(404, support.guest(shop):post("/sales/cart/add", { productId = id, quantity = 1 }).status)
    end)
end)

describe("promotions", function()
    local shop, product = shop_of.simple(5)

    it("need an id to be removed", function()
        assert.same({ 400, "id_required" }, told(shop.owner:post("/marketing/promotions/remove", {})))
        assert.equal(404, shop.owner:post("/marketing/promotions/remove", { id = UNKNOWN }).status)
    end)

    it("count until they are removed", function()
        local made = must(shop.owner:post("/marketing/promotions/create", { name = "Half", type = "PERCENTAGE", value = 50 }))
        local buyer = shop_of.buyer(shop, product)
        assert.equal(50000, must(buyer:get("/sales/cart/summary"), 200).discount)
        must(shop.owner:post("/marketing/promotions/remove", { id = made.id }))
        assert.equal(0, must(buyer:get("/sales/cart/summary"), 200).discount)
        assert.is_false(must(shop.owner:post("/marketing/promotions/details", { id = made.id })).isActive)
    end)

    it("that do not run yet, or no more, are nothing that a shopper sees", function()
        local shopper = support.shopper(shop)
        local function made(starts, ends)
            return must(shop.owner:post("/marketing/promotions/create", { name = "Flash", type = "FLASH_SALE", value = 10,
                startDate = starts, endDate = ends })).id
        end
        local function seen(who, id) return who:post("/marketing/promotions/details", { id = id }).status end
        local past, now = made("2020-01-01T00:00:00Z", "2020-02-01T00:00:00Z"), made("2020-01-01T00:00:00Z", "2090-01-01T00:00:00Z")
        local to_come = made("2090-01-01T00:00:00Z", "2090-02-01T00:00:00Z")
        assert.same({ 404, 404, 201 }, { seen(shopper, to_come), seen(shopper, past), seen(shopper, now) })
        assert.same({ 201, 201 }, { seen(shop.owner, to_come), seen(shop.owner, past) })
        must(shop.owner:post("/marketing/promotions/remove", { id = now }))
    end)

    it("keep to 0 to 100 percent and to a window that begins before it ends", function()
        assert.same({ 400, "percent_range" }, told(shop.owner:post("/marketing/promotions/create",
            { name = "x", type = "PERCENTAGE", value = 101 })))
        assert.same({ 400, "window" }, told(shop.owner:post("/marketing/promotions/create", { name = "x", type = "PERCENTAGE", value = 1,
            startDate = "2026-02-02T00:00:00Z", endDate = "2026-02-01T00:00:00Z" })))
    end)

    it("apply to what the tenant has", function()
        local answer = shop.owner:post("/marketing/promotions/create",
            { name = "x", type = "PERCENTAGE", value = 1, applicableTo = "PRODUCT",
            targetId = UNKNOWN })
        assert.same({ 400, "target_unknown" }, told(answer))
    end)
end)

describe("a checkout", function()
    it("at another total than the shopper saw is refused with the new quote", function()
        local shop, product = shop_of.simple(5)
        local buyer = shop_of.buyer(shop, product)
        local seen = must(buyer:post("/sales/cart/quote", { shippingAddress = { country = "VN" } })).total
        must(shop.owner:post("/api/finance/tax/rules/create", { name = "VAT", country = "VN", rate = 10 }))
        local refused = shop_of.checkout(buyer, { expectedTotal = seen })
        assert.same({ 409, "price_changed" }, told(refused))
        assert.equal(seen + seen / 10, refused.json.details.total)
        assert.same({ 5, 1 }, { shop_of.stock_of(shop, product).availableQuantity, #must(buyer:get("/sales/cart/me"), 200).items })
        assert.equal(seen + seen / 10, must(shop_of.checkout(buyer, { expectedTotal = refused.json.details.total })).amountDue)
        assert.equal(seen + seen / 10, must(shop_of.checkout(shop_of.buyer(shop, product))).amountDue)
    end)

    it("needs a cart, an address, a method and a guest's address", function()
        local shop, product = shop_of.simple(5)
        assert.same({ 404, "cart_empty" }, told(shop_of.checkout(support.guest(shop))))
        local buyer = shop_of.buyer(shop, product)
        assert.equal(400, buyer:post("/sales/orders/checkout", {}).status)
        assert.equal(400, buyer:post("/sales/orders/checkout",
            { shippingAddress = "1 Trang Tien, Hanoi", paymentMethod = "STRIPE" }).status)
        assert.equal(400, shop_of.checkout(buyer, { shippingAddress = "" }).status)
        assert.equal(400, shop_of.checkout(buyer, { paymentMethod = "" }).status)
        assert.equal(404, shop_of.checkout(buyer, { shippingMethodId = UNKNOWN }).status)
        assert.equal(5, shop_of.stock_of(shop, product).availableQuantity)
    end)

    it("is not carried for nothing by a method that does not go there", function()
        local shop = support.tenant{ country = "VN" }
        local product = shop_of.product(shop, { name = "Anvil", price = 100000, weightGrams = 50000 })
        shop_of.stock(shop, product, 5)
        local function method(country, fields)
            local zone = must(shop.owner:post("/api/logistics/shipping/zone/create", { name = country, countries = { country } }))
            fields.zoneId, fields.name, fields.baseCost = zone.id, "To " .. country, 35000
            return must(shop.owner:post("/api/logistics/shipping/method/add", fields)).id
        end
        local here, abroad, light = method("VN", {}), method("FR", {}), method("VN", { maxWeight = 1000 })
        local buyer = shop_of.buyer(shop, product)
        for _, id in ipairs{ abroad, light } do
            assert.same({ 409, "shipping_method_unavailable" }, told(shop_of.checkout(buyer, { shippingMethodId = id })))
            assert.equal(409, buyer:post("/sales/cart/quote", { shippingAddress = { country = "VN" }, shippingMethodId = id }).status)
        end
        assert.equal(5, shop_of.stock_of(shop, product).availableQuantity)
        assert.equal(35000, must(shop_of.checkout(buyer, { shippingMethodId = here })).orders[1].shippingTotal)
    end)

    it("takes an address as text and gives it back as it came", function()
        local shop, product = shop_of.simple(5)
        local placed = must(shop_of.checkout(shop_of.buyer(shop, product), { shippingAddress = "1 Trang Tien, Hanoi" }))
        assert.equal("1 Trang Tien, Hanoi", placed.orders[1].shippingAddress)
        assert.equal("1 Trang Tien, Hanoi", shop_of.order_now(shop, placed.orders[1].id).shippingAddress)
    end)

    it("is of the whole cart", function()
        local shop, product = shop_of.simple(5)
        local buyer = shop_of.buyer(shop, product, 2)
        assert.same({ 409, "cart_changed" }, told(shop_of.checkout(buyer, { items = { { productId = product, quantity = 1 } } })))
        assert.equal(201, shop_of.checkout(buyer, { items = { { productId = product, quantity = 2 } } }).status)
    end)

    it("names the lines that are short, and keeps the cart", function()
        local shop, product = shop_of.simple(1)
        local buyer = shop_of.buyer(shop, product, 2)
        local refused = shop_of.checkout(buyer)
        assert.same({ 409, "out_of_stock" }, told(refused))
        assert.same({ product, 2 }, { refused.json.details[1].productId, refused.json.details[1].quantity })
        assert.same({ 2, 1 }, { must(buyer:get("/sales/cart/me"), 200).items[1].quantity,
            shop_of.stock_of(shop, product).availableQuantity })
    end)

    it("of what is not tracked needs no stock", function()
        local shop = support.tenant()
        local product = shop_of.product(shop, { name = "E-book", price = 90000, trackInventory = false, requiresShipping = false })
        local order = must(shop_of.checkout(shop_of.buyer(shop, product, 3))).orders[1]
        assert.same({ 270000, "pending" }, { order.totalAmount, order.status })
        assert.is_nil(shop_of.stock_of(shop, product))
    end)

    it("by cash on delivery waits for staff and asks no provider", function()
        local shop, product = shop_of.simple(5)
        local placed = must(shop_of.checkout(shop_of.buyer(shop, product), { paymentMethod = "COD" }))
        assert.same({ json.null, "pending", "unpaid" }, { placed.paymentSession, placed.orders[1].status, placed.orders[1].paymentStatus })
        assert.equal(4, shop_of.stock_of(shop, product).availableQuantity)
    end)

    it("from a wallet that is empty is refused", function()
        local shop, product = shop_of.simple(5)
        local buyer = shop_of.buyer(shop, product, 1, support.shopper(shop))
        assert.same({ 409, "insufficient_funds" }, told(shop_of.checkout(buyer, { paymentMethod = "WALLET" })))
        assert.equal(5, shop_of.stock_of(shop, product).availableQuantity)
    end)

    it("of nothing to pay is paid", function()
        local shop, product = shop_of.simple(5)
        must(shop.owner:post("/marketing/promotions/create", { name = "Free", type = "PERCENTAGE", value = 100 }))
        local placed = must(shop_of.checkout(shop_of.buyer(shop, product)))
        assert.same({ 0, json.null, "processing", "paid" }, { placed.amountDue, placed.paymentSession, placed.orders[1].status,
            placed.orders[1].paymentStatus })
    end)

    it("over two warehouses makes two orders that sum to the quote", function()
        local shop, product = shop_of.simple(5)
        local far = must(shop.owner:post("/api/logistics/inventory/warehouse/create", { name = "Far" }))
        local other = shop_of.product(shop, { name = "Shade", price = 33333 })
        must(shop.owner:post("/api/logistics/inventory/adjust", { warehouseId = far.id, productId = other, quantity = 5 }))
        must(shop.owner:post("/api/finance/tax/rules/create", { name = "VAT", country = "VN", rate = 7 }))
        local buyer = shop_of.buyer(shop, other, 1, shop_of.buyer(shop, product, 1))
        local quote = must(buyer:post("/sales/cart/quote", { shippingAddress = { country = "VN" } }))
        local placed = must(shop_of.checkout(buyer))
        assert.equal(2, #placed.orders)
        assert.equal(placed.orders[1].id, placed.orders[2].parentOrderId)
        assert.equal(quote.totalMinor, placed.orders[1].totalAmountMinor + placed.orders[2].totalAmountMinor)
        assert.equal(quote.totalMinor, placed.amountDueMinor)
    end)
end)

describe("stock", function()
    it("does not go below what is promised", function()
        local shop, product = shop_of.simple(5)
        must(shop_of.checkout(shop_of.buyer(shop, product, 3)))
        local function take(n)
            return shop.owner:post("/api/logistics/inventory/adjust",
                { warehouseId = shop.warehouse_id, productId = product, quantity = n })
        end
        assert.same({ 409, "stock_below_reserved" }, told(take(-3)))
        assert.equal(400, take(0).status)
        assert.equal(400, take(1.5).status)
        local row = must(take(-2))
        assert.same({ 3, 3, 0 }, { row.quantity, row.reservedQuantity, row.availableQuantity })
    end)

    it("adds up what is adjusted at once", function()
        local shop, product = shop_of.simple(0)
        local calls = {}
        for i = 1, 20 do calls[i] = function() return shop_of.stock(shop, product, i) end end
        support.parallel(calls)
        assert.equal(210, shop_of.stock_of(shop, product).quantity)
    end)
end)
