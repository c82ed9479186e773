-- What a rule of the shop says of an order: notes for staff, and the state that its workflow gives it. Each stands in the order's history,
-- under an id that comes out of the caller's key: who says it again changes nothing.
local json = require("core.json")
local time = require("core.time")
local db = require("kasma.db")
local orders = require("modules.orders.service")
local store = require("modules.orders.store")

local M = {}

local NOTES_MAX = 65536 -- bytes of all notes of an order

-- Writes an event of the order and what belongs to it, once. Nil and why when there is no such order.
local function once(scope, order_id, id, event, change)
    return db.transaction(scope.tenant, function(tx)
        local order = store.lock_notes(tx, scope.tenant, order_id)
        if not order then return { why = "not_found" } end
        local now = time.iso(time.now())
        local why, statement, data = change(order, now)
        if why then return { why = why } end
        if not tx:pipeline{ store.insert_event_once{ tenant_key = scope.tenant, app_key = order.app_key, id = id, order_id = order_id,
            type = event.type, from_status = order.status, to_status = order.status, actor_kind = "script", reason = event.reason,
            data = data, now = now } }[1][1] then return { done = true } end
        tx:at_commit{ statement }
        return { done = true }
    end)
end

---@param scope Scope
---@param order_id string
---@param id string of the event in the order's history: the same note twice has the same id
---@param text string at most 2,000 bytes
---@param rule string key of the rule that says it
---@return boolean|nil, string|nil why
function M.add(scope, order_id, id, text, rule)
    local got = once(scope, order_id, id, { type = "note", reason = text }, function(order, now)
        if (tonumber(order.notes_bytes) or 0) + #text > NOTES_MAX then return "too_many_notes" end
        return nil, store.add_note(scope.tenant, order_id, text, now), { rule = rule }
    end)
    return got.done, got.why
end

---@param scope Scope
---@param order_id string
---@param id string of the event in the order's history
---@param state string at most 64 bytes
---@param rule string
---@return boolean|nil, string|nil why
function M.set_workflow_state(scope, order_id, id, state, rule)
    local got = once(scope, order_id, id, { type = "workflow_state", reason = state }, function(order, now)
        return nil, store.set_workflow_state(scope.tenant, order_id, state, now), { rule = rule,
            from = order.workflow_state ~= json.null and order.workflow_state or nil, to = state }
    end)
    return got.done, got.why
end

local function given(value) return value ~= json.null and value or nil end

--- An order as rules see it: no name, mail, phone or street.
---@param tenant string
---@param id string
---@return table|nil
function M.view(tenant, id)
    local order = orders.for_job(tenant, id)
    if not order then return nil end
    local items = {}
    for i, item in ipairs(order.items) do
        items[i] = { id = item.id, product_id = item.product_id, variant_id = given(item.variant_id), sku = given(item.sku_snapshot),
            name = given(item.name_snapshot), qty = item.quantity, unit = item.unit_price_minor, net = item.net_total_minor,
            tax = item.tax_total_minor, total = item.line_total_minor, is_gift = item.is_gift, shipped = item.shipped_qty,
            refunded = item.refunded_qty }
    end
    local address = type(order.shipping_address) == "table" and order.shipping_address or {}
    return { id = order.id, number = order.order_number, checkout_id = given(order.checkout_id), status = order.status,
        payment_status = order.payment_status, payment_method = given(order.payment_method), currency = order.currency,
        subtotal = order.subtotal_minor, discount = order.discount_total_minor, shipping = order.shipping_total_minor,
        tax = order.tax_total_minor, total = order.total_amount_minor, due = order.amount_due_minor, paid = order.paid_total_minor,
        refunded = order.refunded_total_minor, user_id = given(order.user_id), guest = given(order.user_id) == nil,
        country = given(address.country), coupon_codes = order.coupon_codes, workflow_state = given(order.workflow_state),
        placed_at = order.placed_at, paid_at = given(order.paid_at), cancelled_at = given(order.cancelled_at), items = items }
end

return M
