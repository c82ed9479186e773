-- SQL of notices. Tenant and app stand in every statement: both are the scope.
local pg = require("core.pg")
local db = require("kasma.db")
local null = require("kasma.null")

local M = {}

local NOTICE = [[n.id, n.tenant_key, n.app_key, n.recipient_id, n.actor_id, n.notice_type, n.title, n.body, n.reference_type,
  n.reference_id, n.is_read, n.read_at, n.metadata, n.group_key, n.actor_count, n.created_at, n.updated_at]]

---@param n table tenant_key, app_key, id, recipient_id, notice_type, title, body and the rest of the columns
---@return table statement
function M.insert(n)
    return { [[insert into social_notices (tenant_key, app_key, id, recipient_id, actor_id, notice_type, title, body, reference_type,
      reference_id, metadata, group_key, created_at, updated_at)
      values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11::jsonb, $12, $13::timestamptz, $13::timestamptz)]],
        n.tenant_key, n.app_key, n.id, n.recipient_id, n.actor_id or null, n.notice_type, n.title, n.body, n.reference_type or null,
        n.reference_id or null, n.metadata and pg.json(n.metadata) or null, n.group_key or null, n.created_at }
end

---@param tenant string
---@param id string
---@return boolean
function M.exists(tenant, id)
    return db.one(tenant, "select 1 as one from social_notices where tenant_key = $1 and id = $2", tenant, id) ~= nil
end

-- One text with and one without the condition, so that each has a plan of its own; a page from the start is one from the end of time.
local PAGE = "select " .. NOTICE .. [[ from social_notices n where n.tenant_key = $1 and n.app_key = $2 and n.recipient_id = $3
  and (n.created_at, n.id) < ($4::timestamptz, $5::uuid)]]
local ORDER = " order by n.created_at desc, n.id desc limit $6 offset $7"
local COUNT = "select count(*)::int as n from social_notices n where n.tenant_key = $1 and n.app_key = $2 and n.recipient_id = $3"
local UNREAD = " and not n.is_read"
local SQL = { [true] = { PAGE .. UNREAD .. ORDER, COUNT .. UNREAD }, [false] = { PAGE .. ORDER, COUNT } }
local LAST_AT, LAST_ID = "infinity", "ffffffff-ffff-ffff-ffff-ffffffffffff"

M.LIST = SQL -- for the test that reads the plans

--- Newest first, from a place on or from an offset.
---@param tenant string
---@param app string
---@param user string
---@param f {limit: integer, offset: integer, unread_only: boolean, after_at: string|nil, after_id: string|nil}
---@return table[] rows at most limit + 1, integer total
function M.list(tenant, app, user, f)
    local sql = SQL[f.unread_only]
    local results = db.pipeline(tenant, {
        { sql[1], tenant, app, user, f.after_at or LAST_AT, f.after_id or LAST_ID, f.limit + 1, f.offset },
        { sql[2], tenant, app, user },
    })
    return results[1], results[2][1].n
end

---@param tenant string
---@param app string
---@param user string
---@return integer
function M.unread_count(tenant, app, user)
    return db.one(tenant, [[select count(*)::int as n from social_notices where tenant_key = $1 and app_key = $2 and recipient_id = $3
      and not is_read]], tenant, app, user).n
end

---@param tenant string
---@param app string
---@param user string
---@param now string
function M.read_all(tenant, app, user, now)
    db.query(tenant, [[update social_notices set is_read = true, read_at = $4::timestamptz, updated_at = $4::timestamptz
      where tenant_key = $1 and app_key = $2 and recipient_id = $3 and not is_read]], tenant, app, user, now)
end

--- Marks one as read; a mark that is there stays as it is.
---@param tenant string
---@param app string
---@param user string
---@param id string
---@param now string
---@return table|nil notice
function M.read_one(tenant, app, user, id, now)
    return db.query(tenant, [[update social_notices n set is_read = true, read_at = coalesce(n.read_at, $5::timestamptz),
      updated_at = case when n.is_read then n.updated_at else $5::timestamptz end
      where n.tenant_key = $1 and n.app_key = $2 and n.recipient_id = $3 and n.id = $4 returning ]] .. NOTICE,
        tenant, app, user, id, now)[1]
end

---@param tenant string
---@param app string
---@param user string
---@return table[] rows notice_type, in_app, push, email
function M.preferences(tenant, app, user)
    return db.read(tenant, [[select notice_type, in_app, push, email from social_notice_preferences
      where tenant_key = $1 and app_key = $2 and user_id = $3 order by notice_type limit 100]], tenant, app, user)
end

---@param p table tenant_key, app_key, id, user_id, notice_type, in_app, push, email, now
---@return table statement
function M.put_preference(p)
    return { [[insert into social_notice_preferences as p (tenant_key, app_key, id, user_id, notice_type, in_app, push, email, created_at,
      updated_at) values ($1, $2, $3, $4, $5, $6, $7, $8, $9::timestamptz, $9::timestamptz)
      on conflict (tenant_key, app_key, user_id, notice_type) do update set in_app = excluded.in_app, push = excluded.push,
        email = excluded.email, updated_at = excluded.updated_at]],
        p.tenant_key, p.app_key, p.id, p.user_id, p.notice_type, p.in_app, p.push, p.email, p.now }
end

---@param d table tenant_key, app_key, id, user_id, platform, token, now
function M.put_device(d)
    db.query(d.tenant_key, [[insert into social_push_devices as d (tenant_key, app_key, id, user_id, platform, token, last_seen_at,
      created_at, updated_at) values ($1, $2, $3, $4, $5, $6, $7::timestamptz, $7::timestamptz, $7::timestamptz)
      on conflict (tenant_key, app_key, token) do update set user_id = excluded.user_id, platform = excluded.platform,
        last_seen_at = excluded.last_seen_at, updated_at = excluded.updated_at]],
        d.tenant_key, d.app_key, d.id, d.user_id, d.platform, d.token, d.now)
end

--- Removes old notices: read ones created before `read_before`, all created before `any_before`.
---@param tenant string
---@param read_before string
---@param any_before string
---@param limit integer
---@return integer removed
function M.prune(tenant, read_before, any_before, limit)
    return db.query(tenant, [[delete from social_notices where tenant_key = $1 and id in (select id from social_notices
      where tenant_key = $1 and created_at < $2::timestamptz and (is_read or created_at < $3::timestamptz)
      order by created_at limit $4)]], tenant, read_before, any_before, limit).affected
end

return M
