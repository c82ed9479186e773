-- Who may do what: the union of the permissions of a user's unexpired roles in a tenant and of the platform roles held.
-- Resolved by one pipeline, kept in the worker for half a minute, dropped by notice at once. A grant is `*`, `<resource>.*`
-- or the exact key; user_type never grants, it only caps which roles may be given (roles.lua).
local time = require("core.time")
local cache = require("kasma.cache")
local db = require("kasma.db")
local invalidate = require("kasma.invalidate")

local M = {}

---@class kasma.Access
---@field member boolean active member of the tenant
---@field roles table[] {id, role_key, code, display_name, scope}
---@field permissions table<string, boolean> grants, tenant and platform
---@field platform table<string, boolean> grants of platform roles only
---@field until_ms integer|nil business time at which the first of the roles ends

local MEMBER = "select 1 from user_tenants where user_id = $1 and tenant_key = $2 and status = 'active'"
local ROLES = [[select r.id, r.role_key, r.code, r.display_name, p.permission_key, u.expires_at
  from user_roles u join roles r on r.tenant_key = u.tenant_key and r.id = u.role_id
  left join role_permissions p on p.tenant_key = u.tenant_key and p.role_id = u.role_id
  where u.tenant_key = $1 and u.user_id = $2 and (u.expires_at is null or u.expires_at > $3::timestamptz)]]
local PLATFORM = [[select r.id, r.role_key, r.code, r.display_name, p.permission_key, h.expires_at
  from platform_role_holders h join platform_roles r on r.id = h.role_id
  left join platform_role_permissions p on p.role_id = h.role_id
  where h.user_id = $1 and (h.expires_at is null or h.expires_at > $2::timestamptz)]]

local function gather(access, rows, scope, also)
    local seen = {}
    for _, row in ipairs(rows) do
        if not seen[row.id] then
            seen[row.id] = true
            table.insert(access.roles, { id = row.id, role_key = row.role_key, code = row.code, display_name = row.display_name,
                scope = scope })
            if row.expires_at then
                local ends = time.parse(row.expires_at)
                if not access.until_ms or ends < access.until_ms then access.until_ms = ends end
            end
        end
        if row.permission_key then
            access.permissions[row.permission_key] = true
            if also then also[row.permission_key] = true end
        end
    end
end

local function load(key)
    local tenant, user = key:match("^(.-)|(.+)$")
    local now = time.iso(time.now())
    local results = db.pipeline(tenant, { { MEMBER, user, tenant }, { ROLES, tenant, user, now }, { PLATFORM, user, now } })
    local access = { member = results[1][1] ~= nil, roles = {}, permissions = {}, platform = {} }
    -- Roles of who is invited, or is no member any more, grant nothing.
    if access.member then gather(access, results[2], "tenant") end
    gather(access, results[3], "platform", access.platform)
    return access
end

local sets = cache.new{ ttl_ms = 30000, max = 50000, load = load }

local function ends_with_user(user)
    local tail = "|" .. user
    return function(key) return key:sub(-#tail) == tail end
end
local function starts_with_tenant(tenant)
    local head = tenant .. "|"
    return function(key) return key:sub(1, #head) == head end
end
invalidate.on("access_user", function(user) sets:drop_where(ends_with_user(user)) end)
invalidate.on("access_tenant", function(tenant) sets:drop_where(starts_with_tenant(tenant)) end)

---@param tenant string
---@param user_id string
---@return kasma.Access
function M.of(tenant, user_id)
    local key = tenant .. "|" .. user_id
    local access = sets:get(key)
    if access.until_ms and time.now() >= access.until_ms then
        sets:drop(key)
        access = sets:get(key)
    end
    return access
end

--- What this user may has changed, in whichever tenant.
---@param user_id string
function M.changed_user(user_id) invalidate.send("access_user", user_id) end

--- A role of this tenant has changed.
---@param tenant string
function M.changed_tenant(tenant) invalidate.send("access_tenant", tenant) end

--- True when the grants cover the permission.
---@param grants table<string, boolean>
---@param permission string
---@return boolean
function M.allows(grants, permission)
    if grants["*"] or grants[permission] then return true end
    local at = permission:find(".", 1, true)
    while at do
        if grants[permission:sub(1, at) .. "*"] then return true end
        at = permission:find(".", at + 1, true)
    end
    return false
end

--- True when everything that `wanted` grants is granted by `grants` (nobody hands out what they lack).
---@param grants table<string, boolean>
---@param wanted string a key, `<resource>.*` or `*`
---@return boolean
function M.covers(grants, wanted)
    if grants["*"] then return true end
    if wanted == "*" then return false end
    return M.allows(grants, wanted)
end

---@param list string[]
---@return table<string, boolean>
function M.set(list)
    local grants = {}
    for _, key in ipairs(list) do grants[key] = true end
    return grants
end

return M
