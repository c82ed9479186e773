-- SQL of roles and permissions: those of a tenant, and those of the platform.
local pg = require("core.pg")
local db = require("kasma.db")
local null = require("kasma.null")

local M = {}

local ROLE = [[r.id, r.tenant_key, r.app_key, r.code, r.role_key, r.display_name, r.is_system, r.created_at, r.updated_at,
  (select coalesce(array_agg(p.permission_key order by p.permission_key), '{}') from role_permissions p
    where p.tenant_key = r.tenant_key and p.role_id = r.id) as permission_keys]]

local PLATFORM_ROLE = [[r.id, r.code, r.role_key, r.display_name, r.is_system, r.created_at, r.updated_at,
  (select coalesce(array_agg(p.permission_key order by p.permission_key), '{}') from platform_role_permissions p where p.role_id = r.id)
  as permission_keys]]

---@param tenant string
---@return table[]
function M.roles(tenant)
    return db.read(tenant, "select " .. ROLE .. " from roles r where r.tenant_key = $1 order by r.is_system desc, r.role_key limit 500",
        tenant)
end

---@param tenant string
---@param id string
---@return table|nil
function M.role(tenant, id) return db.one(tenant, "select " .. ROLE .. " from roles r where r.tenant_key = $1 and r.id = $2", tenant,
    id) end

---@param tenant string
---@param key string
---@return table|nil
function M.role_by_key(tenant, key)
    return db.one(tenant, "select " .. ROLE .. " from roles r where r.tenant_key = $1 and r.role_key = $2", tenant, key)
end

---@param id string
---@return table|nil platform role with permission_keys
function M.platform_role(id)
    return db.one(nil, "select " .. PLATFORM_ROLE .. " from platform_roles r where r.id = $1", id)
end

---@param r table
---@return table statement
function M.insert_role(r)
    return { [[insert into roles (tenant_key, app_key, id, code, role_key, display_name, created_at, updated_at)
      values ($1, $2, $3, $4, $5, $6, $7::timestamptz, $7::timestamptz)]], r.tenant_key, r.app_key, r.id, r.code, r.role_key,
          r.display_name, r.now }
end

---@param tenant string
---@param id string
---@param c table display_name, code
---@param now string
---@return table statement
function M.update_role(tenant, id, c, now)
    return { [[update roles set display_name = coalesce($3, display_name), code = coalesce($4, code), updated_at = $5::timestamptz
      where tenant_key = $1 and id = $2]], tenant, id, c.display_name or null, c.code or null, now }
end

--- Deletes a role that nobody holds; raises KS409 when somebody does. Whoever gives it in the same moment waits for the first of these
--- statements, or this waits for them.
---@param tenant string
---@param id string
---@return table[] statements
function M.delete_role(tenant, id)
    return {
        { "select 1 from roles where tenant_key = $1 and id = $2 for update", tenant, id },
        { "select kasma_must(not exists (select from user_roles where tenant_key = $1 and role_id = $2), 'KS409')", tenant, id },
        { "delete from roles where tenant_key = $1 and id = $2 and not is_system", tenant, id },
    }
end

---@param g table tenant_key, app_key, id, role_id, permission_key, now
---@return table statement
function M.insert_grant(g)
    return { [[insert into role_permissions (tenant_key, app_key, id, role_id, permission_key, created_at, updated_at)
      values ($1, $2, $3, $4, $5, $6::timestamptz, $6::timestamptz)]], g.tenant_key, g.app_key, g.id, g.role_id, g.permission_key, g.now }
end

---@param tenant string
---@param role_id string
---@param permission string
---@return table statement
function M.delete_grant(tenant, role_id, permission)
    return { "delete from role_permissions where tenant_key = $1 and role_id = $2 and permission_key = $3 returning id", tenant, role_id,
        permission }
end

---@param tenant string
---@param user_id string
---@param now string
---@return table[]
function M.roles_of(tenant, user_id, now)
    return db.read(tenant, "select " .. ROLE .. [[, x.expires_at from user_roles x join roles r on r.tenant_key = x.tenant_key and r.id =
      x.role_id
      where x.tenant_key = $1 and x.user_id = $2 and (x.expires_at is null or x.expires_at > $3::timestamptz) order by r.role_key limit
        100]],
        tenant, user_id, now)
end

--- Raises KS409 when the user holds the role already; one that has ended is given anew.
---@param h table tenant_key, app_key, id, user_id, role_id, granted_by, expires_at, now
---@return table statement
function M.insert_holder(h)
    return { [[with done as (insert into user_roles as x (tenant_key, app_key, id, user_id, role_id, granted_by, expires_at, created_at,
        updated_at) values ($1, $2, $3, $4, $5, $6, $7::timestamptz, $8::timestamptz, $8::timestamptz)
        on conflict (tenant_key, user_id, role_id) do update set granted_by = excluded.granted_by, expires_at = excluded.expires_at,
          updated_at = excluded.updated_at where x.expires_at <= excluded.updated_at returning 1)
      select kasma_must((select count(*) from done) = 1, 'KS409')]], h.tenant_key, h.app_key, h.id, h.user_id,
          h.role_id,
        h.granted_by or null, h.expires_at or null, h.now }
end

--- Gives a role by its key; without effect when the user holds it.
---@param h table tenant_key, app_key, id, user_id, role_key, now
---@return table statement
function M.give_role(h)
    return { [[insert into user_roles (tenant_key, app_key, id, user_id, role_id, created_at, updated_at)
      select $1, $2, $3::uuid, $4::uuid, r.id, $6::timestamptz, $6::timestamptz from roles r where r.tenant_key = $1 and r.role_key = $5
      on conflict (tenant_key, user_id, role_id) do nothing]], h.tenant_key, h.app_key, h.id, h.user_id, h.role_key, h.now }
end

---@param tenant string
---@param user_id string
---@param role_id string
---@return table statement
function M.delete_holder(tenant, user_id, role_id)
    return { "delete from user_roles where tenant_key = $1 and user_id = $2 and role_id = $3 returning id", tenant, user_id, role_id }
end

---@param tenant string
---@param user_id string
---@return table statement
function M.delete_holdings(tenant, user_id)
    return { "delete from user_roles where tenant_key = $1 and user_id = $2", tenant, user_id }
end

--- Active owners of a tenant (holders of a role that grants everything).
---@param tenant string
---@param now string
---@return table[] {user_id, lasting} lasting: what makes them an owner has no end
function M.owners(tenant, now)
    return db.read(tenant, [[select x.user_id, bool_or(x.expires_at is null) as lasting from user_roles x
        join role_permissions p on p.tenant_key = x.tenant_key and p.role_id = x.role_id and p.permission_key = '*'
        join users u on u.id = x.user_id
        join user_tenants m on m.user_id = x.user_id and m.tenant_key = x.tenant_key and m.status = 'active'
      where x.tenant_key = $1 and (x.expires_at is null or x.expires_at > $2::timestamptz)
        and u.status = 'active' and not u.is_locked and u.deleted_at is null
      group by x.user_id order by lasting desc, x.user_id limit 100]], tenant, now)
end

--- Active members of a tenant whose roles there grant one of these.
---@param tenant string
---@param grants string[] a permission and what covers it
---@param now string
---@return table[] {user_id}
function M.holders_of(tenant, grants, now)
    return db.read(tenant, [[select distinct x.user_id from user_roles x
        join role_permissions p on p.tenant_key = x.tenant_key and p.role_id = x.role_id and p.permission_key = any($2::text[])
        join users u on u.id = x.user_id
        join user_tenants m on m.user_id = x.user_id and m.tenant_key = x.tenant_key and m.status = 'active'
      where x.tenant_key = $1 and (x.expires_at is null or x.expires_at > $3::timestamptz)
        and u.status = 'active' and not u.is_locked and u.deleted_at is null order by x.user_id limit 100]], tenant, pg.array(grants), now)
end

--- Whether an active owner is left when this role grants everything no more (one whose role has no end, where this role makes such), or
--- whether it makes no owner.
---@param tenant string
---@param role_id string
---@param now string
---@return boolean
function M.owner_beside(tenant, role_id, now)
    return db.one(tenant, [[with owner as (select x.role_id = $2 as by_this, x.expires_at is null as lasting from user_roles x
        join role_permissions p on p.tenant_key = x.tenant_key and p.role_id = x.role_id and p.permission_key = '*'
        join users u on u.id = x.user_id
        join user_tenants m on m.user_id = x.user_id and m.tenant_key = x.tenant_key and m.status = 'active'
      where x.tenant_key = $1 and (x.expires_at is null or x.expires_at > $3::timestamptz)
        and u.status = 'active' and not u.is_locked and u.deleted_at is null)
      select case when exists (select from owner where by_this and lasting) then exists (select from owner where not by_this and lasting)
        else exists (select from owner where not by_this) or not exists (select from owner where by_this) end as yes]],
        tenant, role_id, now).yes
end

--- Held until the transaction ends, so that two who take owners away do not pass each other.
---@param user_id string
---@return table statement
function M.lock_tenants_of(user_id)
    return { [[select t.tenant_key from tenants t where t.tenant_key in (select m.tenant_key from user_tenants m where m.user_id = $1
      and m.status = 'active') order by t.tenant_key for update]], user_id }
end

---@param tenant string
---@return table statement
function M.lock_tenant(tenant) return { "select tenant_key from tenants where tenant_key = $1 for update", tenant } end

--- Held by the process that makes the first owner.
---@return table statement
function M.lock_bootstrap() return { "select pg_advisory_xact_lock(7205011)" } end

---@return table statement finds a row when somebody owns the platform
function M.platform_owner()
    return { [[select h.user_id from platform_role_holders h join platform_roles r on r.id = h.role_id
      join users u on u.id = h.user_id where r.role_key = 'platform_owner' and u.deleted_at is null limit 1]] }
end

---@return table[] roles over all tenants
function M.platform_roles()
    return db.read(nil, "select " .. PLATFORM_ROLE .. " from platform_roles r order by r.role_key limit 100")
end

---@param user_id string
---@param now string
---@return table[] roles over all tenants that the user holds
function M.platform_roles_of(user_id, now)
    return db.read(nil, "select " .. PLATFORM_ROLE .. [[, h.expires_at
      from platform_role_holders h join platform_roles r on r.id = h.role_id
      where h.user_id = $1 and (h.expires_at is null or h.expires_at > $2::timestamptz) order by r.role_key limit 100]], user_id, now)
end

--- The same for a role over all tenants.
---@param h table id, user_id, role_id, granted_by, expires_at, now
---@return table statement
function M.hold_platform_role(h)
    return { [[with done as (insert into platform_role_holders as x (id, user_id, role_id, granted_by, expires_at, created_at, updated_at)
        values ($1, $2, $3, $4, $5::timestamptz, $6::timestamptz, $6::timestamptz)
        on conflict (user_id, role_id) do update set granted_by = excluded.granted_by, expires_at = excluded.expires_at,
          updated_at = excluded.updated_at where x.expires_at <= excluded.updated_at returning 1)
      select kasma_must((select count(*) from done) = 1, 'KS409')]], h.id, h.user_id, h.role_id, h.granted_by or null,
        h.expires_at or null, h.now }
end

---@param user_id string
---@param role_id string
---@return table statement
function M.drop_platform_role(user_id, role_id)
    return { "delete from platform_role_holders where user_id = $1 and role_id = $2 returning id", user_id, role_id }
end

---@param r table id, code, role_key, display_name, now
---@return table statement
function M.insert_platform_role(r)
    return { [[insert into platform_roles (id, code, role_key, display_name, is_system, created_at, updated_at)
      values ($1, $2, $3, $4, true, $5::timestamptz, $5::timestamptz) on conflict (role_key) do nothing]], r.id, r.code, r.role_key,
          r.display_name, r.now }
end

---@param g table id, role_key, permission_key, now
---@return table statement
function M.insert_platform_grant(g)
    return { [[insert into platform_role_permissions (id, role_id, permission_key, created_at, updated_at)
      select $1::uuid, r.id, $3, $4::timestamptz, $4::timestamptz from platform_roles r where r.role_key = $2
      on conflict (role_id, permission_key) do nothing]], g.id, g.role_key, g.permission_key, g.now }
end

---@param h table id, user_id, role_key, now
---@return table statement
function M.insert_platform_holder(h)
    return { [[insert into platform_role_holders (id, user_id, role_id, created_at, updated_at)
      select $1::uuid, $2::uuid, r.id, $4::timestamptz, $4::timestamptz from platform_roles r where r.role_key = $3
      on conflict (user_id, role_id) do nothing]], h.id, h.user_id, h.role_key, h.now }
end

--- Permission keys of the catalogue and the tenant's own.
---@param tenant string
---@return table[] {id, permission_key, description}
function M.permissions(tenant)
    local list = {}
    for _, row in ipairs(db.read(nil, "select id, permission_key, description from permissions order by permission_key limit 2000")) do
        list[#list + 1] = row
    end
    for _, row in ipairs(db.read(tenant, [[select id, permission_key, description from custom_permissions where tenant_key = $1
      order by permission_key limit 500]], tenant)) do list[#list + 1] = row end
    return list
end

---@param p table tenant_key, app_key, id, permission_key, description, now
---@return table statement
function M.insert_custom_permission(p)
    return { [[insert into custom_permissions (tenant_key, app_key, id, permission_key, description, created_at, updated_at)
      values ($1, $2, $3, $4, $5, $6::timestamptz, $6::timestamptz)]], p.tenant_key, p.app_key, p.id, p.permission_key, p.description,
        p.now }
end

---@param p table id, permission_key, description, now
---@return table statement
function M.insert_permission(p)
    return { [[insert into permissions (id, permission_key, description, created_at, updated_at)
      values ($1, $2, $3, $4::timestamptz, $4::timestamptz)]], p.id, p.permission_key, p.description, p.now }
end

---@param p table[] {id, permission_key, description}
---@param now string
function M.put_permissions(p, now)
    local statements = {}
    for _, row in ipairs(p) do
        statements[#statements + 1] = { [[insert into permissions (id, permission_key, description, created_at, updated_at)
          values ($1, $2, $3, $4::timestamptz, $4::timestamptz) on conflict (permission_key) do nothing]], row.id, row.permission_key,
            row.description, now }
    end
    if #statements > 0 then db.pipeline(nil, statements) end
end

return M
