-- Orders as HTTP sees them.
local json = require("core.json")
local audit = require("kasma.audit")
local errors = require("kasma.errors")
local idempotency = require("kasma.idempotency")
local route = require("kasma.route")
local schema = require("kasma.schema")
local wire = require("kasma.wire")
local cart = require("modules.cart.service")
local checkout = require("modules.orders.checkout")
local orders = require("modules.orders.service")
local payments = require("modules.payments.service")
local pricing = require("modules.pricing.service")
local shape = require("modules.orders.wire")

local declare = errors.declare
local out_of_stock = declare{ code = "out_of_stock", status = 409, message = "Not enough stock",
    cause = "a line asks for more than is free", cure = "lower the quantity of the lines in details" }
local cart_changed = declare{ code = "cart_changed", status = 409, message = "The cart was changed by another request" }
local price_changed = declare{ code = "price_changed", status = 409, message = "The price has changed",
    cause = "expectedTotal is not the total of now", cure = "show the shopper the new quote in details" }
local insufficient = declare{ code = "insufficient_funds", status = 409, message = "The wallet does not hold the amount due" }

local Order = schema.object({ id = schema.uuid(), orderNumber = schema.string(), status = schema.string(), paymentStatus = schema.string(),
    items = schema.array(schema.any()) }, { name = "Order", open = true })
local Checkout = schema.object({ success = schema.boolean(), orders = schema.array(Order), checkoutId = schema.uuid() },
    { name = "Checkout", open = true })

local Address = schema.object({
    country = schema.string{ pattern = "^[A-Za-z][A-Za-z]$" }:optional(), region = schema.string{ max = 120 }:optional(),
    city = schema.string{ max = 120 }:optional(), street = schema.string{ max = 500 }:optional(),
    zipCode = schema.string{ max = 40 }:optional(),
    phone = schema.string{ max = 40 }:optional(), receiverName = schema.string{ max = 255 }:optional(),
}, { open = true })
local function address() return schema.one_of(schema.string{ not_empty = true, max = 1000 }, Address) end

local function checkout_body(placed)
    local body = { success = true, checkoutId = placed.id, orders = json.array({}), paymentSession = json.null,
        adjustments = pricing.summary(placed.quote).adjustments }
    for i, record in ipairs(placed.orders) do body.orders[i] = shape.order(record, "echo", false) end
    if placed.payment and not placed.payment_error then body.paymentSession = payments.session_body(placed.payment) end
    if placed.payment_error then body.paymentError = placed.payment_error end
    wire.amount(body, "amountDue", placed.quote.due, placed.quote.currency)
    return body
end

route.post("/sales/orders/checkout", {
    summary = "Place an order from the caller's cart",
    access = "public",
    strict = true,
    module = "sales",
    idempotent = "transaction",
    body = schema.object{
        shippingAddress = address(),
        billingAddress = address():optional(),
        paymentMethod = schema.string{ not_empty = true, max = 50 }:example("STRIPE"),
        items = schema.array(schema.object{
            productId = schema.uuid{ on_bad = 404, what = "Product" },
            variantId = schema.uuid{ on_bad = 404, what = "Variant" }:optional(),
            quantity = schema.integer{ min = 1, max = 9999 },
        }, { max = 200 }):optional(),
        notes = schema.string{ max = 2000 }:optional(),
        shippingMethodId = schema.uuid{ on_bad = 404, what = "Shipping method" }:optional(),
        expectedTotal = schema.money():optional(),
        returnUrl = schema.url{ max = 2048 }:optional(),
        guestEmail = schema.email{ max = 255 }:optional(),
        parentOrderId = schema.any():optional(),
    },
    returns = { [201] = Checkout, [409] = { out_of_stock, cart_changed, price_changed, insufficient,
        pricing.method_unavailable, checkout.draft_session }, [422] = { checkout.rejected, checkout.rule_failed } },
    handler = function(ctx)
        local owner = cart.owner(ctx.user and ctx.user.kind == "user" and ctx.user.id or nil, ctx.cart_token())
        if not owner then errors.not_found{ message = "The cart is empty", code = "cart_empty" } end
        local body
        checkout.place(ctx.scope, owner, ctx.body, function(placed)
            body = checkout_body(placed)
            return idempotency.complete(ctx, 201, body)
        end)
        return body
    end,
})

route.get("/sales/orders/me", {
    summary = "The caller's orders",
    access = "user",
    module = "sales",
    query = schema.object{
        status = schema.enum{ "pending", "processing", "shipped", "delivered", "cancelled", "refunded" }:optional(),
        limit = schema.integer{ min = 1, cap = 500 }:default(100),
        offset = schema.integer{ min = 0, max = 100000 }:default(0),
    },
    returns = schema.array(Order),
    handler = function(ctx)
        local list = json.array({})
        for i, record in ipairs(orders.of_user(ctx.scope, ctx.user.id, ctx.query)) do list[i] = shape.order(record, "read", false) end
        return list
    end,
})

route.post("/sales/orders/details", {
    summary = "An order",
    access = "user",
    module = "sales",
    idempotent = false,
    body = schema.object{ id = schema.uuid{ on_bad = 404, what = "Order" }:alias("orderId") },
    returns = { [201] = Order },
    handler = function(ctx)
        local staff = ctx.may("orders.read")
        local record = orders.details(ctx.scope, ctx.body.id, not staff and ctx.user.id or nil)
        if record.user_id ~= ctx.user.id then
            audit.write(ctx.scope, { action = "orders.read", entity_type = "order", entity_id = record.id })
        end
        local body = shape.order(record, "read", staff)
        body.adjustments = json.array(shape.adjustments(record.adjustments, record.currency))
        body.events = json.array(shape.events(record.events))
        body.payments = json.array(shape.payments(record.payments))
        body.allocation = json.array(shape.allocation(record.allocation))
        return body
    end,
})

route.post("/sales/orders/update-status", {
    summary = "Confirm an order by hand, or note something on it",
    access = { permission = "orders.write" },
    module = "sales",
    idempotent = false,
    body = schema.object{
        id = schema.uuid{ on_bad = 404, what = "Order" }:alias("orderId"),
        status = schema.enum{ "pending", "processing", "shipped", "delivered", "cancelled", "refunded" },
        trackingNumber = schema.string{ max = 120 }:optional(),
        internalNotes = schema.string{ max = 2000 }:optional(),
        workflowState = schema.string{ max = 64 }:optional(),
        reason = schema.string{ max = 500 }:optional(),
    },
    returns = { [201] = schema.object({ id = schema.uuid(), status = schema.string(), paymentStatus = schema.string() },
        { name = "OrderHead", open = true }), [409] = { orders.transition_not_allowed, orders.payment_required } },
    handler = function(ctx)
        local record = orders.update_status(ctx.scope, ctx.body)
        record.items = {}
        local body = shape.order(record, "read", true)
        body.items = nil
        return body
    end,
})

route.post("/api/internal/orders/sync-payment", {
    summary = "A payment service reports the result of a payment",
    access = { secret = "INTERNAL_WEBHOOK_SECRET", header = "x-internal-secret" },
    idempotent = false,
    body = schema.object{
        orderId = schema.uuid{ on_bad = 404, what = "Order" },
        status = schema.string{ not_empty = true, max = 50 },
        provider = schema.string{ not_empty = true, max = 50 },
        transactionId = schema.string{ max = 255 }:optional(),
        amount = schema.money():optional(),
        amountMinor = schema.integer{ min = 0 }:optional(),
        currency = schema.string{ max = 3 }:optional(),
        eventId = schema.string{ max = 255 }:optional(),
        occurredAt = schema.date():optional(),
    },
    returns = { [201] = schema.object({ success = schema.boolean(), applied = schema.boolean() }, { open = true }) },
    handler = function(ctx)
        local result = orders.sync_payment(ctx.body)
        return { success = true, applied = result.applied, reason = result.reason }
    end,
})
