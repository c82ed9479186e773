-- SQL of the audit lists; bodies lie in MongoDB (kasma.audit).
local db = require("kasma.db")
local null = require("kasma.null")

local M = {}

---@param tenant string
---@param user_id string|nil
---@param action string|nil
---@param limit integer
---@param offset integer
---@return table[] rows, integer total
function M.sign_ins(tenant, user_id, action, limit, offset)
    local rows = db.read(tenant, [[select id, user_id, action, target, metadata, created_at, count(*) over ()::int as total from
      audit_auth_log
      where tenant_key = $1 and ($2::uuid is null or user_id = $2::uuid) and ($3::text is null or action = $3)
      order by created_at desc, id desc limit $4 offset $5]], tenant, user_id or null, action or null, limit, offset)
    return rows, rows[1] and rows[1].total or 0
end

local EVENT = "id, created_at, actor_id, action, entity_type, entity_id, outcome"

---@param tenant string
---@param f table actor_id, action, entity_type, entity_id, from, to
---@param place {at: string, id: string}|nil after this one
---@param limit integer
---@return table[]
function M.events(tenant, f, place, limit)
    return db.read(tenant, "select " .. EVENT .. [[ from audit_index where tenant_key = $1
      and ($2::uuid is null or actor_id = $2::uuid) and ($3::text is null or action = $3) and ($4::text is null or entity_type = $4)
      and ($5::text is null or entity_id = $5) and ($6::timestamptz is null or created_at >= $6::timestamptz)
      and ($7::timestamptz is null or created_at < $7::timestamptz)
      and ($8::timestamptz is null or (created_at, id) < ($8::timestamptz, $9::uuid))
      order by created_at desc, id desc limit $10]], tenant, f.actor_id or null, f.action or null, f.entity_type or null, f.entity_id
          or null,
        f.from or null, f.to or null, place and place.at or null, place and place.id or null, limit)
end

---@param tenant string
---@param id string
---@return table|nil
function M.event(tenant, id) return db.one(tenant, "select " .. EVENT .. " from audit_index where tenant_key = $1 and id = $2", tenant,
    id) end

return M
