-- Users as staff and as themselves see them: list, change, delete, profile; and the roles they hold.
local json = require("core.json")
local time = require("core.time")
local uuid = require("core.uuid")
local access = require("kasma.access")
local audit = require("kasma.audit")
local db = require("kasma.db")
local errors = require("kasma.errors")
local log = require("kasma.log")
local mail = require("kasma.mail")
local null = require("kasma.null")
local outbox = require("kasma.outbox")
local roles = require("kasma.roles")
local members = require("modules.iam.members")
local passwords = require("modules.iam.passwords")
local sessions = require("modules.iam.sessions")
local store = require("modules.iam.store")

local M = {}

M.transition = errors.declare{ code = "status_transition", status = 409, message = "Invalid status transition" }
M.role_held = errors.declare{ code = "role_held", status = 409, message = "Role already assigned" }
M.ceiling = errors.declare{ code = "user_type_ceiling", status = 403, message = "The user's type cannot hold this role" }
M.escalation = errors.declare{ code = "escalation", status = 403, message = "You cannot grant what you do not hold" }
M.foreign = errors.declare{ code = "account_shared", status = 403, message = "The account is not this tenant's alone",
    cause = "it belongs to other tenants, or to the platform's staff", cure = "end the membership instead" }
M.user_exists = errors.declare{ code = "user_exists", status = 409, message = "User already exists" }

-- Every member of a profile, in the order of the wire. Lists are null when absent, as all else.
local PROFILE = { "bio", "avatar_url", "background_url", "first_name", "last_name", "phone", "address", "city", "state", "zip", "country",
    "language", "timezone", "currency", "date_of_birth", "gender", "website", "social_links", "notification_preferences",
        "privacy_settings",
    "security_settings", "subscription_status", "subscription_plan", "subscription_start_date", "subscription_end_date",
    "subscription_trial_end_date", "subscription_cancel_at_period_end", "subscription_cancel_at", "subscription_canceled_at",
    "subscription_current_period_start", "subscription_current_period_end", "metadata", "created_at", "updated_at" }
local LISTS = { social_links = true, notification_preferences = true, privacy_settings = true, security_settings = true }
-- What users write about themselves; the subscription is the billing's.
local OWN = {}
for i = 1, 21 do OWN[PROFILE[i]] = true end
M.profile_members = PROFILE

local function profile_view(doc, user_id)
    if not doc then return null end
    local view = { id = doc._id or null, user_id = user_id }
    for _, name in ipairs(PROFILE) do
        local value = doc[name]
        if value == nil then value = null end
        if LISTS[name] and type(value) == "table" then json.array(value) end
        view[name] = value
    end
    return view
end

---@param user table
---@param place {tenant: string, app: string}
---@param profile table|nil document
---@return table as HTTP shows it
function M.view(user, place, profile)
    return { id = user.id, app_key = place.app, tenant_key = place.tenant, created_at = user.created_at, updated_at = user.updated_at,
        email = user.email, display_name = user.display_name or null, user_type = user.user_type, status = user.status,
        is_locked = user.is_locked, profile = profile_view(profile, user.id) }
end

-- The profile, or nil while MongoDB is away: a page about a user shows what PostgreSQL knows.
local function profile_of(user_id)
    local ok, doc = pcall(store.profile, user_id)
    if ok then return doc end
    if errors.is_unavailable(doc) then
        log.warn("profile left out", { user = user_id })
        return nil
    end
    error(doc, 0)
end

local function existing(id)
    local user = store.user(id)
    if not user or user.deleted_at then errors.not_found("User not found") end
    return user
end

---@param place {tenant: string, app: string}
---@param id string
---@return table view
function M.get(place, id)
    local user = existing(id)
    return M.view(user, place, profile_of(id))
end

--- A member of the tenant, for staff; a user of elsewhere is as good as none.
---@param scope Scope
---@param id string
---@return table view
function M.get_member(scope, id)
    local user = existing(id)
    local membership = store.membership(id, scope.tenant)
    if not membership or membership.status == "removed" then errors.not_found("User not found") end
    return M.view(user, scope, profile_of(id))
end

---@param scope Scope
---@param q table page, limit, q, status, user_type, role_key
---@return table[] views, integer total
function M.list(scope, q)
    local rows, total = store.list_users(scope.tenant, { q = q.q, status = q.status, user_type = q.user_type, role_key = q.role_key,
        limit = q.limit, offset = (q.page - 1) * q.limit })
    local ids = {}
    for i, row in ipairs(rows) do ids[i] = row.id end
    local ok, profiles = pcall(store.profiles, ids)
    if not ok then
        if not errors.is_unavailable(profiles) then error(profiles, 0) end
        profiles = {}
    end
    local views = json.array({})
    for i, row in ipairs(rows) do views[i] = M.view(row, scope, profiles[row.id]) end
    return views, total
end

--- The caller's own profile and name.
---@param scope Scope
---@param user_id string
---@param input table
---@param totp_on boolean
---@return table view
function M.update_self(scope, user_id, input, totp_on)
    local user = existing(user_id)
    local now = time.iso(time.now())
    local fields, any = {}, false
    for name, value in pairs(input) do
        if OWN[name] then
            if name == "security_settings" and not totp_on then
                local kept = json.array({})
                for _, item in ipairs(value) do
                    if item ~= "2fa" then kept[#kept + 1] = item end
                end
                value = kept
            end
            fields[name], any = value, true
        end
    end
    local statements = {}
    if input.display_name ~= nil then statements[1] = store.update_user(user_id, { display_name = input.display_name }, now) end
    audit.append(statements, scope, { action = "users.update_self", entity_type = "user", entity_id = user_id, after = input })
    db.pipeline(scope.tenant, statements)
    if any then store.put_profile(user_id, fields, now) end
    return M.view(store.user(user_id), scope, profile_of(user_id)), user
end

local ALLOWED = {
    pending = { active = true, locked = true }, active = { inactive = true, suspended = true, locked = true },
    inactive = { active = true, locked = true }, suspended = { active = true, locked = true }, locked = { active = true },
}

local function check_other(scope, id)
    local membership = store.membership(id, scope.tenant)
    if not membership or membership.status == "removed" then errors.not_found("User not found") end
end

-- An account is one for the whole platform. Any tenant's staff may make anybody a member; were that enough to lock or delete the account,
-- it would be taken from its owner and from all other tenants.
local function check_own(scope, caller, id)
    check_other(scope, id)
    if not caller.platform["*"] and store.belongs_elsewhere(id, scope.tenant) then M.foreign() end
end

-- A user_type of a higher kind than one's own is for the platform to give.
local function check_type(grants, platform, user_type)
    if user_type:sub(1, 6) == "KASMA_" and not platform["*"] then M.escalation() end
    return grants
end

---@param scope Scope
---@param caller {grants: table, platform: table}
---@param id string
---@param input {status: string|nil, is_locked: boolean|nil, user_type: string|nil}
---@return table view
function M.update(scope, caller, id, input)
    local user = existing(id)
    check_own(scope, caller, id)
    local status = input.status
    if input.is_locked == true and status == nil then status = "locked" end
    if input.is_locked == false and user.status == "locked" and status == nil then status = "active" end
    if status and status ~= user.status then
        if status == "deleted" or status == "pending" or not (ALLOWED[user.status] or {})[status] then M.transition() end
    else
        status = nil
    end
    local changed = { status = status, user_type = input.user_type, is_locked = input.is_locked }
    if status then changed.is_locked = status == "locked" end
    if input.user_type then check_type(caller.grants, caller.platform, input.user_type) end
    local ends = status and status ~= "active"
    if ends then members.keep_an_owner(scope.tenant, id) end
    changed.bump = ends
    local now = time.iso(time.now())
    local statements = { store.update_user(id, changed, now) }
    audit.append(statements, scope, { action = "users.update", entity_type = "user", entity_id = id,
        before = { status = user.status, is_locked = user.is_locked, user_type = user.user_type }, after = input })
    if status then
        statements[#statements + 1] = outbox.event(scope, "user.status_changed", id, { from = user.status, to = status, reason = "staff" })
    end
    if ends then sessions.revoke(scope, "user", id, status, statements) else db.pipeline(scope.tenant, statements) end
    access.changed_user(id)
    return M.view(store.user(id), scope, profile_of(id))
end

---@param scope Scope
---@param caller {platform: table}
---@param id string
function M.delete(scope, caller, id)
    local user = existing(id)
    check_own(scope, caller, id)
    members.keep_an_owner(scope.tenant, id)
    local now = time.iso(time.now())
    local statements = { store.delete_user(id, now), store.delete_credentials(id), store.delete_holdings(scope.tenant, id),
        store.put_membership{ id = uuid.v7(), user_id = id, tenant_key = scope.tenant, status = "removed", now = now } }
    audit.append(statements, scope, { action = "users.delete", entity_type = "user", entity_id = id })
    statements[#statements + 1] = outbox.event(scope, "user.status_changed", id, { from = user.status, to = "deleted", reason = "staff" })
    sessions.revoke(scope, "user", id, "deleted", statements)
    access.changed_user(id)
end

--- A user made by staff, pending until the address is verified.
---@param scope Scope
---@param caller {grants: table, platform: table}
---@param input table email, display_name, user_type, role_ids, send_invite (body of the route)
---@return table view
function M.create(scope, caller, input)
    local email, now, id = input.email:lower(), time.iso(time.now()), uuid.v7()
    local user_type = input.user_type or "GENERAL_0"
    check_type(caller.grants, caller.platform, user_type)
    if store.user_by_email(email) then M.user_exists() end
    local statements = {
        store.insert_user{ id = id, email = email, display_name = input.display_name, user_type = user_type, status = "pending",
            now = now },
        store.put_membership{ id = uuid.v7(), user_id = id, tenant_key = scope.tenant, status = "invited", now = now },
        store.give_role{ tenant_key = scope.tenant, app_key = scope.app, id = uuid.v7(), user_id = id, role_key = "customer", now = now },
    }
    for _, role_id in ipairs(input.role_ids or {}) do
        local role = store.role(scope.tenant, role_id)
        if not role then errors.not_found("Role not found") end
        M.check_grant(caller.grants, user_type, role)
        statements[#statements + 1] = store.insert_holder{ tenant_key = scope.tenant, app_key = scope.app, id = uuid.v7(), user_id = id,
            role_id = role_id, granted_by = scope.actor_id, now = now }
    end
    if input.send_invite then
        mail.append(statements, scope, { to = email, template = "invitation", vars = { tenant = scope.tenant }, user_id = id,
            key = "invitation:" .. scope.tenant .. ":" .. id })
    end
    audit.append(statements, scope, { action = "users.create", entity_type = "user", entity_id = id, after = { email = email,
        user_type = user_type } })
    statements[#statements + 1] = outbox.event(scope, "user.created", id, { userType = user_type, status = "pending" })
    errors.unique({ users_email = { code = "user_exists", message = M.user_exists.message } }, db.pipeline, scope.tenant, statements)
    return M.view(store.user(id), scope, nil)
end

--- An active user with a password, for the command line and for seeds: no code step.
---@param scope Scope
---@param input table email, password, display_name, user_type, role_keys, platform_role (role key or nil)
---@return table user row
function M.provision(scope, input)
    local email, now = input.email:lower(), time.iso(time.now())
    local known = store.user_by_email(email)
    local id = known and known.id or uuid.v7()
    local statements = {}
    if known then
        statements[1] = store.update_user(id, { status = "active", is_locked = false, user_type = input.user_type,
            display_name = input.display_name }, now)
    else
        statements[1] = store.insert_user{ id = id, email = email, display_name = input.display_name, user_type = input.user_type,
            status = "active", verified = true, now = now }
        statements[#statements + 1] = outbox.event(scope, "user.created", id, { userType = input.user_type, status = "active" })
    end
    statements[#statements + 1] = store.put_credential{ id = uuid.v7(), user_id = id, password = passwords.hash(input.password), now = now }
    statements[#statements + 1] = store.put_membership{ id = uuid.v7(), user_id = id, tenant_key = scope.tenant, status = "active",
        now = now }
    for _, role_key in ipairs(input.role_keys or {}) do
        statements[#statements + 1] = store.give_role{ tenant_key = scope.tenant, app_key = scope.app, id = uuid.v7(), user_id = id,
            role_key = role_key, now = now }
    end
    if input.platform_role then
        statements[#statements + 1] = store.insert_platform_holder{ id = uuid.v7(), user_id = id, role_key = input.platform_role,
            now = now }
    end
    statements[#statements + 1] = outbox.row(scope, "profile", id, { user_id = id })
    audit.append(statements, scope, { action = "users.provision", entity_type = "user", entity_id = id, after = { email = email,
        user_type = input.user_type, roles = json.array(input.role_keys or {}), platform_role = input.platform_role } })
    db.pipeline(scope.tenant, statements)
    access.changed_user(id)
    return store.user(id)
end

-- Roles of a user ------------------------------------------------------------------------------------------------------------

---@param row table
---@param scope_name string
---@return table as HTTP shows it
function M.role_view(row, scope_name)
    return { id = row.id, tenant_key = row.tenant_key, app_key = row.app_key, code = row.code, role_key = row.role_key,
        display_name = row.display_name, is_system = row.is_system, scope = scope_name, permission_keys = json.array(row.permission_keys
            or {}),
        created_at = row.created_at, updated_at = row.updated_at, expires_at = row.expires_at }
end

--- Raises 403 when the giver lacks a permission of the role, or the receiver's type cannot hold it.
---@param held table<string, boolean>
---@param user_type string
---@param role table
function M.check_grant(held, user_type, role)
    if roles.beyond(held, role.permission_keys or {}) then M.escalation() end
    if not roles.within_ceiling(user_type, { scope = "tenant", grants = role.permission_keys or {} }) then M.ceiling() end
end

---@param scope Scope
---@param id string
---@return table[]
function M.roles_of(scope, id)
    existing(id)
    check_other(scope, id)
    local list = json.array({})
    for i, row in ipairs(store.roles_of(scope.tenant, id, time.iso(time.now()))) do list[i] = M.role_view(row, "tenant") end
    return list
end

---@param scope Scope
---@param caller {grants: table, id: string}
---@param id string
---@param input {role_id: string, expires_at: string|nil}
function M.assign_role(scope, caller, id, input)
    local user = existing(id)
    check_other(scope, id)
    if caller.id == id then M.escalation("You cannot change your own roles") end
    local role = store.role(scope.tenant, input.role_id)
    if not role then errors.not_found("Role not found") end
    M.check_grant(caller.grants, user.user_type, role)
    local statements = { store.insert_holder{ tenant_key = scope.tenant, app_key = scope.app, id = uuid.v7(), user_id = id,
        role_id = role.id,
        granted_by = scope.actor_id, expires_at = input.expires_at, now = time.iso(time.now()) } }
    audit.append(statements, scope, { action = "users.roles.assign", entity_type = "user", entity_id = id,
        after = { role = role.role_key } })
    errors.unique({ user_roles_holder = { code = M.role_held.code, message = M.role_held.message } }, db.pipeline, scope.tenant, statements)
    access.changed_user(id)
end

---@param scope Scope
---@param caller {grants: table, id: string}
---@param id string
---@param role_id string
function M.remove_role(scope, caller, id, role_id)
    existing(id)
    if caller.id == id then M.escalation("You cannot change your own roles") end
    local role = store.role(scope.tenant, role_id)
    if not role then errors.not_found("Role assignment not found") end
    if roles.beyond(caller.grants, role.permission_keys or {}) then M.escalation() end
    for _, key in ipairs(role.permission_keys or {}) do
        if key == "*" then members.keep_an_owner(scope.tenant, id) end
    end
    local statements = { store.delete_holder(scope.tenant, id, role_id) }
    audit.append(statements, scope, { action = "users.roles.remove", entity_type = "user", entity_id = id,
        before = { role = role.role_key } })
    local rows = db.transaction(scope.tenant, function(tx)
        local gone = tx:query(unpack(statements[1]))
        if #gone == 0 then errors.not_found("Role assignment not found") end
        tx:at_commit({ unpack(statements, 2) })
        return gone
    end)
    access.changed_user(id)
    return rows
end

return M
