-- SQL of tenants and their apps, and of what a new tenant starts with.
local json = require("core.json")
local pg = require("core.pg")
local db = require("kasma.db")
local null = require("kasma.null")

local M = {}

local TENANT = [[id, tenant_key, name, is_active, status, country, default_currency, default_locale, timezone, settings, settings_epoch,
  plan,
  is_test, created_at, updated_at]]
local APP = "id, app_key, tenant_key, name, is_active, kind, allowed_origins, hostnames, created_at, updated_at"

---@param key string
---@return table|nil
function M.tenant(key) return db.one(nil, "select " .. TENANT .. " from tenants where tenant_key = $1", key) end

---@param q string|nil text that name or key holds
---@param limit integer
---@param offset integer
---@return table[] rows, integer total
function M.list(q, limit, offset)
    local rows = db.read(nil, "select " .. TENANT .. [[, count(*) over ()::int as total from tenants
      where ($1::text is null or name ilike '%' || $1 || '%' or tenant_key ilike '%' || $1 || '%')
      order by created_at desc, id desc limit $2 offset $3]], q and db.like(q) or null, limit, offset)
    if #rows == 0 and offset > 0 then return rows, select(2, M.list(q, 1, 0)) end
    local total = rows[1] and rows[1].total or 0
    for _, row in ipairs(rows) do row.total = nil end
    return rows, total
end

---@param t table
---@return table statement
function M.insert(t)
    return { "insert into tenants (id, tenant_key, name, country, default_currency, default_locale, timezone, "
        .. "settings, is_test, created_at, "
        .. "updated_at) values ($1, $2, $3, $4, $5, $6, $7, $8::jsonb, $9, $10::timestamptz, $10::timestamptz) returning " .. TENANT,
        t.id, t.tenant_key, t.name, t.country, t.default_currency, t.default_locale, t.timezone, pg.json(t.settings), t.is_test, t.now }
end

---@param key string
---@param c table changed columns; set: settings to merge in, unset: names of settings that go back to their defaults
---@param now string
---@return table statement
function M.update(key, c, now)
    return { "update tenants set name = coalesce($2, name), is_active = coalesce($3, is_active), country = coalesce($4, country), "
        .. "default_locale = coalesce($5, default_locale), timezone = coalesce($6, timezone), status = coalesce($7, status), "
        .. "settings = (settings || coalesce($8::jsonb, '{}')) - $10::text[], "
        .. "settings_epoch = settings_epoch + case when $8::jsonb is null then 0 else 1 end, "
        .. "updated_at = $9::timestamptz where tenant_key = $1 returning " .. TENANT,
        key, c.name or null, c.is_active == nil and null or c.is_active, c.country or null, c.default_locale or null, c.timezone or null,
        c.status or null, c.set and pg.json(c.set) or null, now, pg.array(c.unset or {}) }
end

---@param a table
---@return table statement
function M.insert_app(a)
    return { "insert into apps (id, app_key, tenant_key, name, kind, allowed_origins, hostnames, created_at, updated_at) "
        .. "values ($1, $2, $3, $4, $5, $6::text[], $7::text[], $8::timestamptz, $8::timestamptz) returning " .. APP,
        a.id, a.app_key, a.tenant_key, a.name, a.kind, pg.array(a.allowed_origins), pg.array(a.hostnames), a.now }
end

---@param tenant string
---@param key string
---@param c table changed columns
---@param now string
---@return table statement
function M.update_app(tenant, key, c, now)
    return { "update apps set name = coalesce($3, name), kind = coalesce($4, kind), is_active = coalesce($5, is_active), "
        .. "allowed_origins = coalesce($6::text[], allowed_origins), hostnames = coalesce($7::text[], hostnames), "
        .. "updated_at = $8::timestamptz "
        .. "where tenant_key = $1 and app_key = $2 returning " .. APP,
        tenant, key, c.name or null, c.kind or null, c.is_active == nil and null or c.is_active,
        c.allowed_origins and pg.array(c.allowed_origins) or null, c.hostnames and pg.array(c.hostnames) or null, now }
end

---@param tenant string
---@return table[]
function M.apps(tenant)
    local rows = db.read(nil, "select " .. APP .. " from apps where tenant_key = $1 order by created_at, id limit 500", tenant)
    rows.affected = nil
    return rows
end

---@param t table tenant_key, app_key
---@param role table template
---@param id string
---@param now string
---@return table statement
function M.insert_role(t, role, id, now)
    return { [[insert into roles (tenant_key, app_key, id, code, role_key, display_name, is_system, created_at, updated_at)
      values ($1, $2, $3, $4, $5, $6, true, $7::timestamptz, $7::timestamptz)]], t.tenant_key, t.app_key, id, role.code, role.role_key,
        role.display_name, now }
end

---@param t table tenant_key, app_key
---@param role_id string
---@param id string
---@param permission string
---@param now string
---@return table statement
function M.insert_grant(t, role_id, id, permission, now)
    return { [[insert into role_permissions (tenant_key, app_key, id, role_id, permission_key, created_at, updated_at)
      values ($1, $2, $3, $4, $5, $6::timestamptz, $6::timestamptz)]], t.tenant_key, t.app_key, id, role_id, permission, now }
end

---@param t table tenant_key, app_key, country
---@param id string
---@param now string
---@return table statement
function M.insert_warehouse(t, id, now)
    return { [[insert into warehouses (tenant_key, app_key, id, name, code, country, priority, created_at, updated_at)
      values ($1, $2, $3, 'Main warehouse', 'MAIN', $4, 1, $5::timestamptz, $5::timestamptz)]], t.tenant_key, t.app_key, id, t.country,
          now }
end

---@param t table tenant_key, app_key
---@param c {id: string, code: string, symbol: string, decimals: integer}
---@param now string
---@return table statement
function M.insert_base_currency(t, c, now)
    return { [[insert into currencies (tenant_key, app_key, id, code, symbol, decimal_places, exchange_rate_to_base, is_base, created_at,
      updated_at) values ($1, $2, $3, $4, $5, $6, 1, true, $7::timestamptz, $7::timestamptz)]], t.tenant_key, t.app_key, c.id, c.code,
        c.symbol, c.decimals, now }
end

-- The newest memberships, and their number from the index alone; public for the test that reads the plans.
-- Of who was invited and has an account of their own nothing is told but the address that the tenant knows: whether there is an account
-- is theirs to say.
M.MEMBERS = [[select u.id, u.email, case when s.stranger then null else u.display_name end as display_name,
    case when s.stranger then 'GENERAL_0' else u.user_type end as user_type,
    case when s.stranger then 'pending' else u.status end as status, m.status as membership, m.joined_at
  from user_tenants m join users u on u.id = m.user_id
    cross join lateral (select m.status = 'invited' and u.status <> 'pending' as stranger) s
  where m.tenant_key = $1 and m.status <> 'removed' and m.user_status <> 'deleted'
  order by m.created_at desc, m.user_id limit $2 offset $3]]
M.MEMBER_COUNT = [[select count(*)::int as total from user_tenants m
  where m.tenant_key = $1 and m.status <> 'removed' and m.user_status <> 'deleted']]

---@param tenant string
---@param limit integer
---@param offset integer
---@return table[] rows, integer total
function M.members(tenant, limit, offset)
    local results = db.pipeline(nil, { { M.MEMBERS, tenant, limit, offset }, { M.MEMBER_COUNT, tenant } })
    local rows = results[1]
    for _, row in ipairs(rows) do
        row.display_name = row.display_name or null
        row.joined_at = row.joined_at or null
    end
    rows.affected = nil -- the answer of a statement is a list and a count; JSON takes the list alone
    return json.array(rows), results[2][1].total
end

--- True while rows of business stand under the tenant.
---@param tenant string
---@return boolean
function M.has_business(tenant)
    return db.one(tenant, [[select exists (select from orders where tenant_key = $1) or exists (select from products where tenant_key = $1)
      as found]], tenant).found
end

return M
