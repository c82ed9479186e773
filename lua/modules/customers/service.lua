-- Customers of a tenant: users who bought, and guests, who are known by a keyed hash of their e-mail and by nothing else.
local crypto = require("core.crypto")
local secrets = require("kasma.secrets")
local store = require("modules.customers.store")

local M = {}

--- HMAC-SHA256 of the lower-cased e-mail under a key of the tenant.
---@param tenant string
---@param email string
---@return string hex
---@return integer key_version of SERVER_KEY
function M.guest_hash(tenant, email)
    local key, version = secrets.tenant_key(tenant, "guest_email")
    return crypto.hmac_sha256(key, email:lower()), version
end

--- What prices may depend on: who buys, in which groups, for the first time or not.
---@param tenant string
---@param owner CartOwner|nil
---@param guest_hash string|nil of a guest who has told an e-mail
---@return table
function M.pricing_input(tenant, owner, guest_hash)
    local user_id = owner and owner.user_id
    local row = (user_id or guest_hash) and store.find(tenant, user_id, not user_id and guest_hash or nil)
    return { id = user_id, groups = row and row.groups or {}, first_order = not row or row.orders_count == 0,
        orders_count = row and row.orders_count or 0 }
end

M.consents = store.consents

return M
