-- The cart as HTTP sees it. A guest's first write mints a token, given back as X-Cart-Token and as a cookie.
local json = require("core.json")
local errors = require("kasma.errors")
local route = require("kasma.route")
local schema = require("kasma.schema")
local wire = require("kasma.wire")
local cart = require("modules.cart.service")
local pricing = require("modules.pricing.service")

local shape = wire.entity{ hidden_id = "wire_id", columns = { "series", "expires_at", "items", "coupon_codes", "points_to_redeem",
    "affiliate_code", "currency", "shipping_method_id", "version", "metadata" } }

local declare = errors.declare
local product_inactive = declare{ code = "product_inactive", status = 409, message = "This product is not for sale" }
local cart_full = declare{ code = "cart_full", status = 409, message = "A cart holds 200 lines at most" }
local max_quantity = declare{ code = "max_quantity", status = 409, message = "At most 9999 of a product" }
local bundle_inactive = declare{ code = "bundle_inactive", status = 409, message = "This bundle is not for sale" }
local cart_changed = declare{ code = "cart_changed", status = 409, message = "The cart was changed by another request",
    cause = "two requests wrote the cart at once", cure = "read the cart and try again" }

local Cart = schema.object({ id = schema.any(), items = schema.array(schema.any()) }, { name = "ShoppingCart", open = true })
local Summary = schema.object({ itemsCount = schema.integer(), subtotal = schema.number(), tax = schema.number(), total = schema.number() },
    { name = "CartSummary", open = true })
local Refused = { [201] = Cart, [409] = { product_inactive, cart_full, max_quantity, cart_changed } }

local COOKIE_SECONDS = 2592000

local function body_of(row)
    local body = shape.read(row)
    body.user_id = row.user_id or json.null
    json.array(body.items)
    json.array(body.couponCodes)
    return body
end

local function owner_of(ctx) return cart.owner(ctx.user and ctx.user.kind == "user" and ctx.user.id or nil, ctx.cart_token()) end

--- The owner of a cart that is about to be written; a guest without a token gets one.
local function writer(ctx)
    local owner = owner_of(ctx)
    if owner then return owner end
    owner = cart.new_guest()
    ctx.set_header("X-Cart-Token", owner.token)
    ctx.set_cookie("cart_token", owner.token, COOKIE_SECONDS)
    return owner
end

local function empty(ctx)
    return { id = json.null, tenant_key = ctx.tenant, app_key = ctx.app, user_id = json.null, items = json.array({}),
        couponCodes = json.array({}) }
end

local ProductId = schema.uuid{ on_bad = 404, what = "Product" }
local VariantId = schema.uuid{ on_bad = 404, what = "Variant" }

route.get("/sales/cart/me", {
    summary = "The caller's cart",
    access = "public",
    strict = true,
    module = "sales",
    returns = Cart,
    handler = function(ctx)
        local owner = owner_of(ctx)
        if not owner then return empty(ctx) end
        local row = owner.user_id and cart.get(ctx.scope, owner) or cart.find(ctx.scope, owner)
        return row and body_of(row) or empty(ctx)
    end,
})

route.post("/sales/cart/add", {
    summary = "Add a product to the cart",
    access = "public",
    strict = true,
    module = "sales",
    body = schema.object{
        productId = ProductId:copy(),
        variantId = VariantId:copy():optional(),
        quantity = schema.integer{ min = 1, max = 9999 }:example(1),
        purchaseType = schema.enum{ "one_time", "subscription", "preorder" }:optional(),
        properties = schema.map(schema.string{ max = 500 }):optional(),
    },
    returns = Refused,
    handler = function(ctx) return body_of(cart.add(ctx.scope, writer(ctx), ctx.body)) end,
})

route.post("/sales/cart/update", {
    summary = "Change the quantity of a line",
    access = "public",
    strict = true,
    module = "sales",
    body = schema.object{
        productId = ProductId:copy():optional(),
        variantId = VariantId:copy():optional(),
        lineId = schema.string{ max = 64 }:optional(),
        quantity = schema.integer{ min = -9999, max = 9999 },
    },
    returns = Refused,
    handler = function(ctx)
        if not ctx.body.productId and not ctx.body.lineId then errors.bad_request{ message = { "productId should not be empty" } } end
        return body_of(cart.update(ctx.scope, writer(ctx), ctx.body))
    end,
})

route.post("/sales/cart/remove", {
    summary = "Take a line out of the cart",
    access = "public",
    strict = true,
    module = "sales",
    body = schema.object{
        productId = ProductId:copy():optional(),
        variantId = VariantId:copy():optional(),
        lineId = schema.string{ max = 64 }:optional(),
    },
    returns = Refused,
    handler = function(ctx)
        if not ctx.body.productId and not ctx.body.lineId then errors.bad_request{ message = { "productId should not be empty" } } end
        return body_of(cart.remove(ctx.scope, writer(ctx), ctx.body))
    end,
})

route.post("/sales/cart/clear", {
    summary = "Empty the cart",
    access = "public",
    strict = true,
    module = "sales",
    returns = Refused,
    handler = function(ctx) return body_of(cart.clear(ctx.scope, writer(ctx))) end,
})

route.post("/sales/cart/bundle/add", {
    summary = "Add a bundle to the cart",
    access = "public",
    strict = true,
    module = "sales",
    body = schema.object{
        bundleId = schema.uuid{ on_bad = 404, what = "Bundle" },
        quantity = schema.integer{ min = 1, max = 99 }:default(1),
    },
    returns = { [201] = Cart, [409] = { bundle_inactive, product_inactive, cart_full, cart_changed } },
    handler = function(ctx) return body_of(cart.add_bundle(ctx.scope, writer(ctx), ctx.body.bundleId, ctx.body.quantity)) end,
})

route.get("/sales/cart/summary", {
    summary = "What the cart costs",
    access = "public",
    strict = true,
    module = "sales",
    query = schema.object{
        country = schema.string{ pattern = "^[A-Za-z][A-Za-z]$" }:optional(),
        region = schema.string{ max = 120 }:optional(),
        zipCode = schema.string{ max = 40 }:optional(),
        shippingMethodId = schema.uuid{ on_bad = 404, what = "Shipping method" }:optional(),
    },
    returns = { [200] = Summary, [409] = pricing.method_unavailable },
    handler = function(ctx)
        local owner = owner_of(ctx)
        local row = owner and cart.find(ctx.scope, owner)
        local q = ctx.query
        local address = q.country and { country = q.country:upper(), region = q.region, zipCode = q.zipCode } or nil
        local lines = pricing.cart_lines(ctx.scope, row and row.items or {})
        local blocked_by = address and pricing.foresee(ctx.scope, lines, address)
        return pricing.summary(pricing.quote(ctx.scope, { lines = lines, owner = owner, blocked_by = blocked_by,
            address = address, shipping_method_id = q.shippingMethodId }))
    end,
})

local Address = schema.object({
    country = schema.string{ pattern = "^[A-Za-z][A-Za-z]$" }:optional(), region = schema.string{ max = 120 }:optional(),
    city = schema.string{ max = 120 }:optional(), street = schema.string{ max = 500 }:optional(),
    zipCode = schema.string{ max = 40 }:optional(),
    phone = schema.string{ max = 40 }:optional(), receiverName = schema.string{ max = 255 }:optional(),
}, { open = true })

route.post("/sales/cart/quote", {
    summary = "What the cart, or given items, would cost",
    access = "public",
    strict = true,
    module = "sales",
    idempotent = false,
    body = schema.object{
        shippingAddress = schema.one_of(schema.string{ max = 1000 }, Address):optional(),
        shippingMethodId = schema.uuid{ on_bad = 404, what = "Shipping method" }:optional(),
        items = schema.array(schema.object{
            productId = ProductId:copy(),
            variantId = VariantId:copy():optional(),
            quantity = schema.integer{ min = 1, max = 9999 },
        }, { max = 200 }):optional(),
    },
    returns = { [201] = Summary, [409] = pricing.method_unavailable },
    handler = function(ctx)
        local owner = owner_of(ctx)
        local items
        if ctx.body.items then
            items = cart.loose_items(ctx.scope, ctx.body.items)
        else
            local row = owner and cart.find(ctx.scope, owner)
            items = row and row.items or {}
        end
        local address = ctx.body.shippingAddress
        if type(address) == "string" then address = { line1 = address } end
        local lines = pricing.cart_lines(ctx.scope, items)
        local blocked_by = address and pricing.foresee(ctx.scope, lines, address)
        return pricing.summary(pricing.quote(ctx.scope, { lines = lines, owner = owner, address = address, blocked_by = blocked_by,
            shipping_method_id = ctx.body.shippingMethodId, list_methods = true }), true)
    end,
})
