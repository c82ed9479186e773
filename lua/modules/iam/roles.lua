-- Roles of a tenant: the seeded ones and its own. Nobody makes or edits a role that grants more than they hold.
local json = require("core.json")
local time = require("core.time")
local uuid = require("core.uuid")
local access = require("kasma.access")
local audit = require("kasma.audit")
local db = require("kasma.db")
local errors = require("kasma.errors")
local templates = require("kasma.roles")
local members = require("modules.iam.members")
local role_store = require("modules.iam.store_roles")
local users = require("modules.iam.users")

local M = {}

M.taken = errors.declare{ code = "role_exists", status = 409, message = "Role key already exists" }
M.in_use = errors.declare{ code = "role_in_use", status = 409, message = "The role is held by users" }
M.is_system = errors.declare{ code = "system_role", status = 403, message = "A system role cannot be changed" }
M.permission_taken = errors.declare{ code = "permission_exists", status = 409, message = "Permission already exists" }
M.granted = errors.declare{ code = "permission_granted", status = 409, message = "The role has this permission already" }

local function existing(scope, id)
    local role = role_store.role(scope.tenant, id)
    if not role then errors.not_found("Role not found") end
    return role
end

--- Raises 400 unless all are keys that may be granted: declared ones, the tenant's own, `<resource>.*` of either, `*`.
---@param scope Scope
---@param keys string[]
function M.check_known(scope, keys)
    local known = {}
    for _, row in ipairs(role_store.permissions(scope.tenant)) do
        known[row.permission_key] = true
        local prefix = row.permission_key
        while prefix do
            prefix = prefix:match("^(.+)%.[^.]+$")
            if prefix then known[prefix .. ".*"] = true end
        end
    end
    for _, key in ipairs(keys) do
        if key ~= "*" and not known[key] then
            errors.bad_request{ message = { "permission " .. key .. " does not exist" }, code = "permission_unknown" }
        end
    end
end

---@param scope Scope
---@param platform table<string, boolean> grants of the caller over all tenants; who has all sees the roles over all tenants too
---@return table[]
function M.list(scope, platform)
    local list = json.array({})
    for i, row in ipairs(role_store.roles(scope.tenant)) do list[i] = users.role_view(row, "tenant") end
    if platform["*"] then
        for _, row in ipairs(role_store.platform_roles()) do list[#list + 1] = users.role_view(row, "platform") end
    end
    return list
end

---@param scope Scope
---@param id string
---@return table
function M.get(scope, id) return users.role_view(existing(scope, id), "tenant") end

---@param scope Scope
---@param held table<string, boolean>
---@param input {code: string, role_key: string, display_name: string, permission_keys: string[]|nil}
---@return table
function M.create(scope, held, input)
    local keys = input.permission_keys or {}
    if templates.beyond(held, keys) then users.escalation() end
    M.check_known(scope, keys)
    local id, now = uuid.v7(), time.iso(time.now())
    local statements = { role_store.insert_role{ tenant_key = scope.tenant, app_key = scope.app, id = id, code = input.code,
        role_key = input.role_key,
        display_name = input.display_name, now = now } }
    for _, key in ipairs(keys) do
        statements[#statements + 1] = role_store.insert_grant{ tenant_key = scope.tenant, app_key = scope.app, id = uuid.v7(), role_id = id,
            permission_key = key, now = now }
    end
    audit.append(statements, scope, { action = "roles.create", entity_type = "role", entity_id = id, after = input })
    errors.unique({ roles_role = { code = M.taken.code, message = M.taken.message } }, db.pipeline, scope.tenant, statements)
    return M.get(scope, id)
end

-- Who lacks a permission of a role does not touch the role.
local function within(held, role)
    if templates.beyond(held, role.permission_keys or {}) then users.escalation() end
end

---@param scope Scope
---@param held table<string, boolean>
---@param id string
---@param input {display_name: string|nil, code: string|nil}
---@return table
function M.update(scope, held, id, input)
    local role = existing(scope, id)
    if role.is_system then M.is_system() end
    within(held, role)
    local statements = { role_store.update_role(scope.tenant, id, input, time.iso(time.now())) }
    audit.append(statements, scope, { action = "roles.update", entity_type = "role", entity_id = id,
        before = { display_name = role.display_name, code = role.code }, after = input })
    db.pipeline(scope.tenant, statements)
    return M.get(scope, id)
end

---@param scope Scope
---@param held table<string, boolean>
---@param id string
function M.delete(scope, held, id)
    local role = existing(scope, id)
    if role.is_system then M.is_system() end
    within(held, role)
    local statements = role_store.delete_role(scope.tenant, id)
    audit.append(statements, scope, { action = "roles.delete", entity_type = "role", entity_id = id,
        before = { role_key = role.role_key } })
    errors.state({ KS409 = M.in_use }, db.pipeline, scope.tenant, statements)
end

-- Key of a permission, by its id too.
local function permission_key(scope, input)
    if input.permission_key then return input.permission_key end
    if not input.permission_id then errors.validation{ "permission_id or permission_key should not be empty" } end
    for _, row in ipairs(role_store.permissions(scope.tenant)) do
        if row.id == input.permission_id then return row.permission_key end
    end
    errors.not_found("Permission not found")
end

---@param scope Scope
---@param held table<string, boolean>
---@param id string
---@param input {permission_id: string|nil, permission_key: string|nil}
function M.grant(scope, held, id, input)
    local role = existing(scope, id)
    local key = permission_key(scope, input)
    if role.is_system then M.is_system() end
    if templates.beyond(held, { key }) then users.escalation() end
    M.check_known(scope, { key })
    local statements = { role_store.insert_grant{ tenant_key = scope.tenant, app_key = scope.app, id = uuid.v7(), role_id = id,
        permission_key = key,
        now = time.iso(time.now()) } }
    audit.append(statements, scope, { action = "roles.permissions.assign", entity_type = "role", entity_id = id,
        after = { permission = key } })
    errors.unique({ role_permissions_grant = { code = M.granted.code, message = M.granted.message } }, db.pipeline, scope.tenant,
        statements)
    access.changed_tenant(scope.tenant)
end

---@param scope Scope
---@param held table<string, boolean>
---@param id string
---@param input {permission_id: string|nil, permission_key: string|nil}
function M.revoke(scope, held, id, input)
    local role = existing(scope, id)
    local key = permission_key(scope, input)
    if role.is_system then M.is_system() end
    if templates.beyond(held, { key }) then users.escalation() end
    local found = false
    for _, had in ipairs(role.permission_keys or {}) do found = found or had == key end
    if not found then errors.not_found("Permission not found") end
    local statements = { role_store.delete_grant(scope.tenant, id, key) }
    audit.append(statements, scope, { action = "roles.permissions.remove", entity_type = "role", entity_id = id,
        before = { permission = key } })
    local function take_away() db.pipeline(scope.tenant, statements) end
    if key == "*" then members.keeping_owners_without(scope.tenant, id, take_away) else take_away() end
    access.changed_tenant(scope.tenant)
end

M.permissions = role_store.permissions

--- Makes the roles over all tenants, where they are missing.
function M.ensure_platform()
    local now = time.iso(time.now())
    local statements = {}
    for _, role in ipairs(templates.platform) do
        statements[#statements + 1] = role_store.insert_platform_role{ id = uuid.v7(), code = role.code, role_key = role.role_key,
            display_name = role.display_name, now = now }
        for _, grant in ipairs(role.grants) do
            statements[#statements + 1] = role_store.insert_platform_grant{ id = uuid.v7(), role_key = role.role_key,
                permission_key = grant, now = now }
        end
    end
    db.pipeline(nil, statements)
end

--- A tenant's own permission for its rules.
---@param scope Scope
---@param input {permission_key: string, description: string|nil}
---@return table
function M.create_custom(scope, input)
    local id = uuid.v7()
    local statements = { role_store.insert_custom_permission{ tenant_key = scope.tenant, app_key = scope.app, id = id,
        permission_key = input.permission_key, description = input.description or "", now = time.iso(time.now()) } }
    audit.append(statements, scope, { action = "permissions.create", entity_type = "permission", entity_id = id, after = input })
    errors.unique({ custom_permissions_permission = { code = M.permission_taken.code, message = M.permission_taken.message } }, db.pipeline,
        scope.tenant, statements)
    return { id = id, permission_key = input.permission_key, description = input.description or "" }
end

--- A permission of the catalogue that no route declares, for services beside this one.
---@param scope Scope
---@param input {permission_key: string, description: string|nil}
---@return table
function M.create_permission(scope, input)
    local id = uuid.v7()
    local statements = { role_store.insert_permission{ id = id, permission_key = input.permission_key,
        description = input.description or "",
        now = time.iso(time.now()) } }
    audit.append(statements, scope, { action = "permissions.create", entity_type = "permission", entity_id = id, after = input })
    errors.unique({ permissions_permission = { code = M.permission_taken.code, message = M.permission_taken.message } }, db.pipeline,
        scope.tenant, statements)
    return { id = id, permission_key = input.permission_key, description = input.description or "" }
end

--- The active members of a tenant whose roles grant a permission; at most 100.
---@param tenant string
---@param permission string
---@return string[] ids of users
function M.holders(tenant, permission)
    local grants, at = { "*", permission }, permission:find(".", 1, true)
    while at do
        grants[#grants + 1] = permission:sub(1, at) .. "*"
        at = permission:find(".", at + 1, true)
    end
    local ids = {}
    for i, row in ipairs(role_store.holders_of(tenant, grants, time.iso(time.now()))) do ids[i] = row.user_id end
    return ids
end

return M
