-- What stock tells: rows of the outbox with the data that the catalogue promises (jobs_events.lua).
--
-- A change of a row that its transaction has locked is told in that transaction. The claim of an order is not such: it touches no stock row
-- (the hold before it did, and tells nothing). The order's transaction writes which orders claimed, in one row of a topic for the house
-- alone, and the relay's turn tells of each stock row once, as it then is, for all claims that it has before it. So the busiest
-- row of a sale is neither locked nor read for it by a checkout.
local capabilities = require("kasma.capabilities")
local null = require("kasma.null")
local outbox = require("kasma.outbox")

local M = {}

M.CLAIMED = "stock.claimed"

---@param scope Scope
---@param row table stock row as it is now
---@param delta integer units on hand that came (went: negative)
---@param kind string of the movement, CLAIM or RELEASE
---@return table statement
function M.changed(scope, row, delta, kind)
    return outbox.event(scope, "stock.changed", row.id, { productId = row.product_id, variantId = row.variant_id or null,
        warehouseId = row.warehouse_id, onHand = row.quantity, reserved = row.reserved_quantity, available = row.available_quantity,
        delta = delta, kind = kind })
end

--- Units are for sale where none were.
---@param list table[] statements; gets one more, or none
---@param scope Scope
---@param row table stock row as it is now
---@param before integer units that were available
function M.append_back(list, scope, row, before)
    if before > 0 or row.available_quantity <= 0 then return end
    list[#list + 1] = outbox.event(scope, "stock.back", row.id, { productId = row.product_id, variantId = row.variant_id or null,
        warehouseId = row.warehouse_id, available = row.available_quantity, lowStockAt = row.low_stock_at or null })
end

--- These orders have claimed stock.
---@param scope Scope
---@param checkout_id string
---@param order_ids string[]
---@return table statement
function M.claimed(scope, checkout_id, order_ids)
    return outbox.row(scope, M.CLAIMED, checkout_id, { orders = order_ids })
end

--- What orders had claimed is given back.
---@param scope Scope
---@param rows table[] stock rows as they were after each release, with n: units
---@return table[] statements
function M.released(scope, rows)
    local list, last, units, ids = {}, {}, {}, {}
    for _, row in ipairs(rows) do
        if not last[row.id] then ids[#ids + 1] = row.id end
        last[row.id], units[row.id] = row, (units[row.id] or 0) + row.n
    end
    for _, id in ipairs(ids) do
        list[#list + 1] = M.changed(scope, last[id], 0, "RELEASE")
        M.append_back(list, scope, last[id], last[id].available_quantity - units[id])
    end
    return list
end

--- Tells of what claims took, each stock row once.
---@param claims table[] rows of the outbox, of one tenant, in their order
---@param rows table[] stock rows as they are now, with order_id
---@return table[] statements
function M.told_claims(claims, rows)
    local claim_of, last, ids, list = {}, {}, {}, {}
    for i, claim in ipairs(claims) do
        claim.at = i
        for _, id in ipairs(claim.payload.orders) do claim_of[id] = claim end
    end
    for _, row in ipairs(rows) do
        local claim = claim_of[row.order_id]
        if not last[row.id] then ids[#ids + 1] = row.id end
        if not last[row.id] or last[row.id].claim.at < claim.at then last[row.id] = { row = row, claim = claim } end
    end
    for i, id in ipairs(ids) do
        local claim = last[id].claim
        list[i] = outbox.once(M.changed({ tenant = claim.tenant_key, app = claim.app_key }, last[id].row, 0, "CLAIM"),
            capabilities.once_id(("stock.claimed:%s:%s"):format(claim.id, id)))
    end
    return list
end

return M
