-- Customers' rows.
local json = require("core.json")
local db = require("kasma.db")

local M = {}

---@param tenant string
---@param user_id string|nil
---@param guest_hash string|nil
---@return table|nil customer
function M.find(tenant, user_id, guest_hash)
    return db.read(tenant, [[select c.id, c.user_id, c.groups, c.tags, c.orders_count, c.first_order_at, c.lifetime_spent_minor
      from customers c where c.tenant_key = $1 and (c.user_id = $2::uuid or c.guest_hash = $3::text) limit 1]],
        tenant, user_id or json.null, guest_hash or json.null)[1]
end

return M
