-- SQL of what notices hold about a person, over all apps of the tenant.
local db = require("kasma.db")

local M = {}

M.kinds = { "notice", "notice_preference", "push_device" }

local ROWS = {
    notice = [[select id, app_key, notice_type, title, body, is_read, read_at, created_at from social_notices
      where tenant_key = $1 and recipient_id = $2 and id > $3 order by id limit $4]],
    notice_preference = [[select id, app_key, notice_type, in_app, push, email, updated_at from social_notice_preferences
      where tenant_key = $1 and user_id = $2 and id > $3 order by id limit $4]],
    -- Without the token: who reads it could push to the device.
    push_device = [[select id, app_key, platform, last_seen_at, created_at from social_push_devices
      where tenant_key = $1 and user_id = $2 and id > $3 order by id limit $4]],
}

---@param tenant string
---@param user_id string
---@param kind "notice"|"notice_preference"|"push_device"
---@param after string|nil id of the last row
---@param limit integer
---@return table[]
function M.rows(tenant, user_id, kind, after, limit)
    return db.read(tenant, ROWS[kind], tenant, user_id, after or "00000000-0000-0000-0000-000000000000", limit)
end

---@param tenant string
---@param user_id string
---@return table[] statements
function M.erase(tenant, user_id)
    return {
        { "delete from social_notices where tenant_key = $1 and recipient_id = $2", tenant, user_id },
        { "delete from social_notice_preferences where tenant_key = $1 and user_id = $2", tenant, user_id },
        { "delete from social_push_devices where tenant_key = $1 and user_id = $2", tenant, user_id },
    }
end

return M
