-- What orders tell the world. The catalogue of all areas is at GET /webhooks/events.
local schema = require("kasma.schema")
local events = require("kasma.events")

local uuid, text, minor = schema.uuid(), schema.string(), schema.integer()
local Items = schema.array(schema.object({ orderItemId = uuid, productId = uuid, variantId = uuid:nullable(), quantity = schema.integer(),
    netMinor = minor }))

events.declare("order.placed", { of = "order", when = "a checkout commits, once for each order", data = { orderNumber = text,
    checkoutId = uuid, parentOrderId = uuid:nullable(), userId = uuid:nullable(), status = text, paymentStatus = text,
    paymentMethod = text, currency = text, totalMinor = minor, amountDueMinor = minor, items = Items } })
events.declare("order.status_changed", { of = "order", when = "its status changes", data = { checkoutId = uuid:optional(), from = text,
    to = text, actorKind = text:optional(), actorId = uuid:nullable():optional(), reason = text:nullable():optional() } })
events.declare("order.transition_denied", { of = "order", when = "a rule of the shop refuses a change of its status", data = {
    checkoutId = uuid, from = text, to = text, rule = text:nullable(), reason = text:nullable(), workflowState = text:nullable() } })
events.declare("order.paid", { of = "order", when = "its payment status becomes paid", data = {
    checkoutId = uuid, userId = uuid:nullable():optional(), currency = text:optional(), paidMinor = minor:optional(),
    items = Items:optional() } })
events.declare("order.payment_failed", { of = "order", when = "its payment status becomes failed", data = { checkoutId = uuid,
    provider = text:nullable():optional(), transactionId = text:nullable():optional(), reason = text:nullable():optional(),
    currency = text:optional(), amountMinor = minor:optional() } })
events.declare("order.payment_review", { of = "order", when = "its payment needs a look", data = { checkoutId = uuid,
    provider = text:nullable():optional(), transactionId = text:nullable():optional(), reason = text:nullable():optional(),
    currency = text:optional(), amountMinor = minor:optional() } })
events.declare("order.cancelled", { of = "order", when = "it is cancelled by its owner, by staff or because its time was over",
    data = { checkoutId = uuid:optional(), userId = uuid:nullable():optional(),
        reason = text:nullable():optional(), items = Items:optional() } })
