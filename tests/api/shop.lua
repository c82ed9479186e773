-- The shop of the tests: goods, stock, tax and shipping made over HTTP by a tenant's owner, and buyers with a cart.
local support = require("api.support")

local M = {}

local PRODUCTS = "/api/ecommerce/products"

--- The body of an answer that must have this status; anything else fails the test with what was answered.
---@param answer TestAnswer
---@param status integer|nil default 201
---@return any
function M.must(answer, status)
    status = status or 201
    if answer.status ~= status then
        error(("status %d instead of %d: %s"):format(answer.status, status, tostring(answer.body)), 2)
    end
    return answer.json
end
local must = M.must

---@param shop TestTenant
---@param fields table name, price and what else a product has
---@return string product_id
function M.product(shop, fields)
    fields.slug = fields.slug or support.unique("p")
    return must(shop.owner:post(PRODUCTS .. "/create", fields)).productId
end

--- Puts units of a product (or one of its variants) into the tenant's default warehouse.
---@param shop TestTenant
---@param product_id string
---@param quantity integer
---@param variant_id string|nil
---@return table stock row
function M.stock(shop, product_id, quantity, variant_id)
    return must(shop.owner:post("/api/logistics/inventory/adjust", { warehouseId = shop.warehouse_id, productId = product_id,
        variantId = variant_id, quantity = quantity, reason = "count" }))
end

---@param shop TestTenant
---@param product_id string
---@return table stock row as staff sees it now
function M.stock_of(shop, product_id)
    return must(shop.owner:post("/api/logistics/inventory/list", { productId = product_id }))[1]
end

--- A tenant that sells one product, tracked, without tax and shipping.
---@param units integer on hand
---@param fields table|nil of the product
---@return TestTenant shop, string product_id
function M.simple(units, fields)
    local shop = support.tenant{ currency = "VND", country = "VN" }
    fields = fields or {}
    fields.name, fields.price = fields.name or "Lamp", fields.price or 100000
    local product_id = M.product(shop, fields)
    if units > 0 then M.stock(shop, product_id, units) end
    return shop, product_id
end

--- A client (a fresh guest unless one is given) whose cart holds a product.
---@param shop TestTenant
---@param product_id string
---@param quantity integer|nil default 1
---@param client TestClient|nil
---@return TestClient
function M.buyer(shop, product_id, quantity, client)
    client = client or support.guest(shop)
    must(client:post("/sales/cart/add", { productId = product_id, quantity = quantity or 1 }))
    return client
end

--- Body of a checkout: to Hanoi, by card, for a guest of that address.
---@param more table|nil members that replace or add
---@return table
function M.order(more)
    local body = { shippingAddress = { country = "VN", city = "Hanoi", street = "1 Trang Tien" }, paymentMethod = "STRIPE",
        guestEmail = "guest@example.test" }
    for name, value in pairs(more or {}) do body[name] = value end
    return body
end

--- Publishes a rule of a hook whose function has this body.
---@param shop TestTenant
---@param hook string
---@param body string sees input and config
---@param settings table|nil
---@param manifest string|nil more of its manifest, as source
---@param key string|nil
---@return string key
function M.rule(shop, hook, body, settings, manifest, key)
    key = key or support.unique("r")
    local text = ("return { hook = %q, name = %q,%s run = function(input, config)\n%s\nend }"):format(hook, key, manifest or "", body)
    must(shop.owner:post("/rules/create", { key = key, hook = hook, name = key, source = text, settings = settings }))
    must(shop.owner:post("/rules/" .. key .. "/publish", { revision = 1, note = "go" }))
    return key
end

---@param client TestClient
---@param more table|nil
---@param headers table<string, string>|nil
---@return TestAnswer
function M.checkout(client, more, headers)
    return client:post("/sales/orders/checkout", M.order(more), headers)
end

---@param shop TestTenant
---@param order_id string
---@return table order as staff sees it now
function M.order_now(shop, order_id)
    return must(shop.owner:post("/sales/orders/details", { id = order_id }))
end

--- How often each status came.
---@param answers TestAnswer[]
---@return table<integer, integer>
function M.statuses(answers)
    local count = {}
    for _, answer in ipairs(answers) do count[answer.status] = (count[answer.status] or 0) + 1 end
    return count
end

return M
