-- Orders as clients see them.
local json = require("core.json")
local wire = require("kasma.wire")

local M = {}

local order = wire.entity{
    columns = { "user_id", "order_number", "checkout_id", "split_index", "parent_order_id", "status", "payment_status", "payment_method",
        "currency", "tax_inclusive", "shipping_address", "billing_address", "tracking_number", "notes", "coupon_codes", "workflow_state",
        "placed_at", "paid_at", "cancelled_at", "expires_at", "cancel_reason", "version" },
    money = { "subtotal", "discount_total", "shipping_total", "tax_total", "total_amount", "cash_rounding", "gift_card_total",
        "wallet_total", "amount_due", "paid_total", "refunded_total" },
}
local item = wire.entity{
    columns = { "order_id", "product_id", "variant_id", "quantity", "tax_rate_ppm", "warehouse_id", "name_snapshot", "sku_snapshot",
        "attributes_snapshot", "bundle_id", "is_gift", "properties", "purchase_type", "shipped_qty", "refunded_qty" },
    money = { "unit_price", "sub_total", "discount_total", "net_total", "tax_total", "line_total" },
}
local adjustment = wire.entity{ columns = { "order_id", "order_item_id", "kind", "source_id", "code", "label", "level", "position",
    "rule_version" }, money = { "amount" } }
local event = wire.entity{ columns = { "order_id", "type", "from_status", "to_status", "actor_id", "actor_kind", "reason", "data" } }
local payment = wire.entity{ columns = { "checkout_id", "order_id", "kind", "ref_id", "currency", "state" },
    money = { "amount", "refunded" } }

local function items_of(record, form)
    local list = {}
    for i, row in ipairs(record.items) do
        row.currency = record.currency
        list[i] = item[form](row)
    end
    return list
end

-- A string that the client sent as its address is echoed as it was.
local function restore_address(body)
    for _, name in ipairs{ "shippingAddress", "billingAddress" } do
        local address = body[name]
        if type(address) == "table" and address.line1 and next(address, next(address)) == nil then body[name] = address.line1 end
    end
    return body
end

---@param record table order row with items
---@param form "read"|"echo" decimal text, or numbers as a create answers
---@param with_internal boolean staff sees internalNotes
---@return table
function M.order(record, form, with_internal)
    local body = restore_address(order[form](record))
    if with_internal then body.internalNotes = record.internal_notes end
    body.items = items_of(record, form)
    return body
end

---@param rows table[] order_adjustments
---@param currency string
---@return table[]
function M.adjustments(rows, currency)
    local list = {}
    for i, row in ipairs(rows) do
        row.currency = currency
        list[i] = adjustment.read(row)
    end
    return list
end

---@param rows table[] order_events
---@return table[]
function M.events(rows)
    local list = {}
    for i, row in ipairs(rows) do list[i] = event.read(row) end
    return list
end

---@param rows table[] of reservations.of_order
---@return table[]
function M.allocation(rows)
    local list = {}
    for i, row in ipairs(rows) do
        list[i] = { warehouseId = row.warehouse_id, warehouseName = row.warehouse_name, productId = row.product_id,
            variantId = row.variant_id or json.null, quantity = row.quantity, shipped = row.shipped, released = row.released,
            status = row.status, expiresAt = row.expires_at or json.null }
    end
    return list
end

---@param rows table[] order_payments
---@return table[]
function M.payments(rows)
    local list = {}
    for i, row in ipairs(rows) do list[i] = payment.read(row) end
    return list
end

return M
