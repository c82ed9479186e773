-- Who belongs to a tenant: invited, active, removed; and the owner that a tenant never loses.
local time = require("core.time")
local uuid = require("core.uuid")
local access = require("kasma.access")
local audit = require("kasma.audit")
local db = require("kasma.db")
local errors = require("kasma.errors")
local mail = require("kasma.mail")
local store = require("modules.iam.store")

local M = {}

M.already = errors.declare{ code = "already_member", status = 409, message = "User is a member already" }
M.last_owner = errors.declare{ code = "last_owner", status = 409, message = "The last active owner of a tenant stays",
    cause = "nobody else holds a role with all permissions", cure = "make another user an owner first" }

local function find_user(input)
    if input.user_id then return store.user(input.user_id) end
    if input.email then return store.user_by_email(input.email:lower()) end
    errors.bad_request{ message = { "user_id or email should not be empty" }, code = "validation" }
end

--- Raises 409 when the tenant would be left without an active owner.
---@param tenant string
---@param user_id string who is about to go
function M.keep_an_owner(tenant, user_id)
    local owners = store.owners(tenant, time.iso(time.now()))
    if #owners == 1 and owners[1].user_id == user_id then M.last_owner() end
end

---@param scope Scope
---@param input {user_id: string|nil, email: string|nil}
function M.add(scope, input)
    local user = find_user(input)
    if not user or user.deleted_at then errors.not_found("User not found") end
    local known = store.membership(user.id, scope.tenant)
    if known and known.status == "active" then M.already() end
    local now = time.iso(time.now())
    local statements = {
        store.put_membership{ id = uuid.v7(), user_id = user.id, tenant_key = scope.tenant, status = "active", now = now },
        store.give_role{ tenant_key = scope.tenant, app_key = scope.app, id = uuid.v7(), user_id = user.id, role_key = "customer",
            now = now },
    }
    audit.append(statements, scope, { action = "members.add", entity_type = "user", entity_id = user.id })
    db.pipeline(scope.tenant, statements)
    access.changed_user(user.id)
end

---@param scope Scope
---@param input {user_id: string|nil, email: string|nil}
function M.remove(scope, input)
    local user = find_user(input)
    local known = user and store.membership(user.id, scope.tenant)
    if not known or known.status == "removed" then errors.not_found("User not found") end
    M.keep_an_owner(scope.tenant, user.id)
    local now = time.iso(time.now())
    local statements = {
        store.put_membership{ id = uuid.v7(), user_id = user.id, tenant_key = scope.tenant, status = "removed", now = now },
        store.delete_holdings(scope.tenant, user.id),
    }
    audit.append(statements, scope, { action = "members.remove", entity_type = "user", entity_id = user.id })
    db.pipeline(scope.tenant, statements)
    access.changed_user(user.id)
end

--- Invites the first owner of a new tenant: a pending user (made if unknown) with membership and role; a mail says so.
---@param scope Scope
---@param made {tenant: table, app: table}
---@param email string
function M.invite_owner(scope, made, email)
    local place = { tenant = made.tenant.tenant_key, app = made.app.app_key, actor_id = scope.actor_id, actor_kind = scope.actor_kind,
        request = scope.request }
    email = email:lower()
    local now = time.iso(time.now())
    local user = store.user_by_email(email)
    local id = user and user.id or uuid.v7()
    local statements = {}
    if not user then
        statements[1] = store.insert_user{ id = id, email = email, user_type = "TENANT_0", status = "pending", now = now }
    end
    statements[#statements + 1] = store.put_membership{ id = uuid.v7(), user_id = id, tenant_key = place.tenant,
        status = user and "active" or "invited", now = now }
    statements[#statements + 1] = store.give_role{ tenant_key = place.tenant, app_key = place.app, id = uuid.v7(), user_id = id,
        role_key = "tenant_owner", now = now }
    mail.append(statements, place, { to = email, template = "invitation", vars = { tenant = made.tenant.name }, user_id = id,
        key = "invitation:" .. place.tenant .. ":" .. id })
    audit.append(statements, place, { action = "members.invite", entity_type = "user", entity_id = id })
    db.pipeline(place.tenant, statements)
    access.changed_user(id)
end

return M
