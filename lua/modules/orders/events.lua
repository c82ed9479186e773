-- What orders tell: rows of the outbox with the data that the catalogue promises (jobs_events.lua). Each stands in the transaction
-- behind the statement that it reports, one for each order.
local json = require("core.json")
local null = require("kasma.null")
local outbox = require("kasma.outbox")

local M = {}

local function items_of(record)
    local items = json.array({})
    for i, item in ipairs(record.items or {}) do
        items[i] = { orderItemId = item.id, productId = item.product_id, variantId = item.variant_id or null, quantity = item.quantity,
            netMinor = item.net_total_minor }
    end
    return items
end

--- A checkout made these orders.
---@param scope Scope
---@param records table[] order rows with items, the parent first
---@return table[] statements
function M.placed(scope, records)
    local list = {}
    for i, o in ipairs(records) do
        list[i] = outbox.event(scope, "order.placed", o.id, { orderNumber = o.order_number, checkoutId = o.checkout_id,
            parentOrderId = o.parent_order_id or null, userId = o.user_id or null, status = o.status, paymentStatus = o.payment_status,
            paymentMethod = o.payment_method, currency = o.currency, totalMinor = o.total_amount_minor,
            amountDueMinor = o.amount_due_minor, items = items_of(o) })
    end
    return list
end

--- Its status changes.
---@param scope Scope
---@param o table row as it was before
---@param to string
---@param reason string|nil
---@param actor { id: string|nil, kind: string }|nil nil: the system
---@return table statement
function M.moved(scope, o, to, reason, actor)
    return outbox.event(scope, "order.status_changed", o.id, { checkoutId = o.checkout_id, from = o.status, to = to,
        actorKind = actor and actor.kind or "system", actorId = actor and actor.id or null, reason = reason or null })
end
local moved = M.moved

--- These orders are paid and go on.
---@param tenant string
---@param orders table[] rows as they were before, with their items
---@param to fun(order: table): string the status each has now
---@return table[] statements
function M.paid(tenant, orders, to)
    local list = {}
    for _, o in ipairs(orders) do
        local scope = { tenant = tenant, app = o.app_key }
        list[#list + 1] = outbox.event(scope, "order.paid", o.id, { checkoutId = o.checkout_id, userId = o.user_id or null,
            currency = o.currency, paidMinor = o.amount_due_minor, items = items_of(o) })
        if to(o) ~= o.status then list[#list + 1] = moved(scope, o, to(o), "paid") end
    end
    return list
end

--- The payment of these orders has failed, or staff must look at it.
---@param tenant string
---@param orders table[]
---@param name "order.payment_failed"|"order.payment_review"
---@param payment table row
---@param input {transactionId: string|nil}
---@param reason string
---@return table[] statements
function M.payment(tenant, orders, name, payment, input, reason)
    local list = {}
    for i, o in ipairs(orders) do
        list[i] = outbox.event({ tenant = tenant, app = o.app_key }, name, o.id, { checkoutId = o.checkout_id, provider = payment.provider,
            transactionId = input.transactionId or null, reason = reason, currency = o.currency, amountMinor = o.amount_due_minor })
    end
    return list
end

--- These orders are cancelled.
---@param tenant string
---@param orders table[] rows as they were before, with their items
---@param reason string
---@return table[] statements
function M.cancelled(tenant, orders, reason)
    local list = {}
    for _, o in ipairs(orders) do
        local scope = { tenant = tenant, app = o.app_key }
        list[#list + 1] = outbox.event(scope, "order.cancelled", o.id, { checkoutId = o.checkout_id, userId = o.user_id or null,
            reason = reason, items = items_of(o) })
        list[#list + 1] = moved(scope, o, "cancelled", reason)
    end
    return list
end

return M
