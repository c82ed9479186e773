-- Users as staff and as themselves see them: list, change, delete, profile; and the roles they hold.
local crypto = require("core.crypto")
local json = require("core.json")
local time = require("core.time")
local uuid = require("core.uuid")
local access = require("kasma.access")
local audit = require("kasma.audit")
local db = require("kasma.db")
local errors = require("kasma.errors")
local invalidate = require("kasma.invalidate")
local log = require("kasma.log")
local mail = require("kasma.mail")
local null = require("kasma.null")
local outbox = require("kasma.outbox")
local policy = require("kasma.policy")
local roles = require("kasma.roles")
local failures = require("modules.iam.failures")
local members = require("modules.iam.members")
local passwords = require("modules.iam.passwords")
local policies = require("modules.iam.policies")
local sessions = require("modules.iam.sessions")
local store = require("modules.iam.store")
local profiles = require("modules.iam.store_profiles")
local role_store = require("modules.iam.store_roles")

local M = {}

M.transition = errors.declare{ code = "status_transition", status = 409, message = "Invalid status transition" }
M.role_held = errors.declare{ code = "role_held", status = 409, message = "Role already assigned" }
M.ceiling = errors.declare{ code = "user_type_ceiling", status = 403, message = "The user's type cannot hold this role" }
M.escalation = errors.declare{ code = "escalation", status = 403, message = "You cannot grant what you do not hold" }
M.outranked = members.outranked
M.foreign = errors.declare{ code = "account_shared", status = 403, message = "The account is not this tenant's alone",
    cause = "it belongs to other tenants, or to the platform's staff", cure = "end the membership instead" }
M.unproven = errors.declare{ code = "account_unproven", status = 409, message = "Nobody has proven the address of this account yet",
    cause = "the account was made by staff and its person never signed in", cure = "delete the account, or end the membership" }
M.username_taken = errors.declare{ code = "username_taken", status = 409, message = "Username already taken" }
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

M.tenants_of, M.tenants_ever = store.tenants_of, store.tenants_ever

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
        email = user.email, username = user.username or null,
        display_name = user.display_name or null, user_type = user.user_type, status = user.status,
        is_locked = user.is_locked, profile = profile_view(profile, user.id) }
end

-- The profile, or nil while MongoDB is away: a page about a user shows what PostgreSQL knows.
local function profile_of(user_id)
    local ok, doc = pcall(profiles.of, user_id)
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

-- Whom the tenant's staff may see: members, and those who were invited and have no account of their own yet. Whoever has one and did not
-- accept is as good as none.
local function visible(user, tenant)
    local membership = store.membership(user.id, tenant)
    if not membership then return false end
    return membership.status == "active" or (membership.status == "invited" and user.status == "pending")
end

--- A member of the tenant, for staff.
---@param scope Scope
---@param id string
---@return table view
function M.get_member(scope, id)
    local user = existing(id)
    if not visible(user, scope.tenant) then errors.not_found("User not found") end
    return M.view(user, scope, profile_of(id))
end

---@param scope Scope
---@param q table page, limit, q, status, user_type, role_key
---@return table[] views, integer total
function M.list(scope, q)
    local rows, total = store.list_users(scope.tenant, { q = q.q, status = q.status, user_type = q.user_type, role_key = q.role_key,
        sort = q.sort, limit = q.limit, offset = (q.page - 1) * q.limit, now = time.iso(time.now()) })
    local ids = {}
    for i, row in ipairs(rows) do ids[i] = row.id end
    local ok, found = pcall(profiles.of_all, ids)
    if not ok then
        if not errors.is_unavailable(found) then error(found, 0) end
        found = {}
    end
    local views = json.array({})
    for i, row in ipairs(rows) do views[i] = M.view(row, scope, found[row.id]) end
    return views, total
end

-- The change as a rule of the tenant leaves it: members of a profile and nothing else, texts and lists of texts.
local function ruled_profile(scope, user, input)
    if not policy.has(scope.tenant, "user.profile_validate") then return input end
    local patch = {}
    for name, value in pairs(input) do
        if OWN[name] or name == "display_name" then patch[name] = value end
    end
    local before = {}
    for name, value in pairs(profile_of(user.id) or {}) do
        if OWN[name] then before[name] = value end
    end
    before.display_name = user.display_name
    local changed, messages = policies.profile(scope, before, patch)
    if messages then errors.validation(messages) end
    local clean = {}
    for name, value in pairs(changed) do
        local fits = LISTS[name] and type(value) == "table" or (not LISTS[name] and type(value) == "string" and #value <= 2000)
        if fits and (OWN[name] or name == "display_name") then clean[name] = LISTS[name] and json.array(value) or value end
    end
    clean.username = input.username -- the account's, and none of a profile's rule
    return clean
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
    input = ruled_profile(scope, user, input)
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
    if input.display_name ~= nil or input.username ~= nil then
        statements[1] = store.update_user(user_id, { display_name = input.display_name, username = input.username }, now)
    end
    audit.append(statements, scope, { action = "users.update_self", entity_type = "user", entity_id = user_id, after = input })
    -- The change goes with the act, and is written at once where MongoDB is there, so that the answer shows it.
    if any then statements[#statements + 1] = outbox.row(scope, "profile", user_id, { user_id = user_id, fields = fields, at = now }) end
    errors.unique({ users_username = { code = M.username_taken.code, message = M.username_taken.message } }, db.pipeline, scope.tenant,
        statements)
    local written, why = true, nil
    if any then written, why = pcall(profiles.put, user_id, fields, now) end
    if written then return M.view(store.user(user_id), scope, profile_of(user_id)), user end
    if not errors.is_unavailable(why) then error(why, 0) end
    log.warn("the profile follows by the outbox", { user = user_id })
    return M.view(store.user(user_id), scope, fields), user
end

local ALLOWED = {
    pending = { active = true, locked = true }, active = { inactive = true, suspended = true, locked = true },
    inactive = { active = true, locked = true }, suspended = { active = true, locked = true }, locked = { active = true },
}

local function check_other(scope, user)
    if not visible(user, scope.tenant) then errors.not_found("User not found") end
end

-- An account is one for the whole platform. Any tenant's staff may make anybody a member; were that enough to lock or delete the account,
-- it would be taken from its owner and from all other tenants.
local function check_own(scope, caller, user)
    check_other(scope, user)
    if caller.platform["*"] then return end
    if store.belongs_elsewhere(user.id, scope.tenant) then M.foreign() end
    members.check_reach(scope.tenant, caller.grants, user.id)
end

-- An address is its person's before they have come: were an account that any tenant's staff makes for it locked, or kept inactive, its
-- person could register with no tenant at all.
local function check_proven(caller, user)
    if caller.platform["*"] or user.email_verified_at or user.last_login_at then return end
    M.unproven()
end

-- A user_type of a higher kind than one's own is for the platform to give.
local function check_type(grants, platform, user_type)
    if user_type:sub(1, 6) == "KASMA_" and not platform["*"] then M.escalation() end
    return grants
end

-- A user_type below what the user's roles need, in whichever tenant and over all, would leave rights that it forbids.
local function check_ceiling(user, user_type)
    if not user_type or user_type == user.user_type then return end
    local now = time.iso(time.now())
    for _, role in ipairs(role_store.platform_roles_of(user.id, now)) do
        if not roles.within_ceiling(user_type, { scope = "platform", grants = role.permission_keys or {} }) then M.ceiling() end
    end
    for _, tenant in ipairs(store.tenants_ever(user.id)) do
        for _, role in ipairs(role_store.roles_of(tenant, user.id, now)) do
            if not roles.within_ceiling(user_type, { scope = "tenant", grants = role.permission_keys or {} }) then M.ceiling() end
        end
    end
end

-- What status and lock together ask for: is_locked goes with the status `locked`.
local function wanted_status(user, input)
    if input.is_locked == true then return "locked" end
    if input.is_locked == false and user.status == "locked" and input.status == nil then return "active" end
    return input.status
end

---@param scope Scope
---@param caller {grants: table, platform: table}
---@param id string
---@param input {status: string|nil, is_locked: boolean|nil, user_type: string|nil}
---@return table view
function M.update(scope, caller, id, input)
    local user = existing(id)
    check_own(scope, caller, user)
    local status = wanted_status(user, input)
    -- Whoever made their own account inactive may come back; once staff has said the same, no more.
    local overrules = status == "inactive" and user.deactivated_by == "self"
    if status == user.status and not overrules then status = nil end
    if status and not overrules and not (status ~= "deleted" and status ~= "pending" and (ALLOWED[user.status] or {})[status]) then
        M.transition()
    end
    if status and status ~= "active" then check_proven(caller, user) end
    if input.user_type then check_type(caller.grants, caller.platform, input.user_type) end
    check_ceiling(user, input.user_type)
    local changed = { status = status, user_type = input.user_type }
    if status then changed.is_locked = status == "locked" elseif input.is_locked == false then changed.is_locked = false end
    local ends = status and status ~= "active"
    changed.bump = ends
    local statements = { store.update_user(id, changed, time.iso(time.now())) }
    audit.append(statements, scope, { action = "users.update", entity_type = "user", entity_id = id,
        before = { status = user.status, is_locked = user.is_locked, user_type = user.user_type, deactivated_by = user.deactivated_by },
        after = input })
    if status and not overrules then
        statements[#statements + 1] = outbox.event(scope, "user.status_changed", id, { from = user.status, to = status, reason = "staff" })
    end
    if ends then
        members.keeping_owners(id, nil, function() sessions.revoke(scope, "user", id, status, statements) end)
    else
        db.pipeline(scope.tenant, statements)
    end
    access.changed_user(id)
    return M.view(store.user(id), scope, profile_of(id))
end

-- Ends an account: sessions, memberships, roles and the keys that it made, over all tenants. The address is free at once; the rest is
-- kept for thirty days, so that the account can be restored.
local function remove(scope, user, reason)
    local id, now = user.id, time.iso(time.now())
    local tenants, keys = store.tenants_ever(id), nil
    members.keeping_owners(id, nil, function()
        local statements = store.end_memberships(id, now)
        statements[#statements + 1] = store.revoke_keys_of(id, now)
        statements[#statements + 1] = store.revoke_keys_of(id, now)
        local at = #statements
        statements[#statements + 1] = store.delete_user(id, now)
        statements[#statements + 1] = store.set_credentials(id, false, now)
        statements[#statements + 1] = role_store.delete_holdings(scope.tenant, id)
        audit.append(statements, scope, { action = reason == "self" and "users.delete_self" or "users.delete", entity_type = "user",
            entity_id = id })
        statements[#statements + 1] = outbox.event(scope, "user.status_changed", id, { from = user.status, to = "deleted",
            reason = reason })
        local results = sessions.revoke(scope, "user", id, "deleted", statements)
        keys = { results[at - 1], results[at] }
    end)
    for _, ended in ipairs(keys) do
        for _, key in ipairs(ended) do invalidate.send("key", key.owned_key) end
    end
    -- Without the membership the roles of the other tenants grant nothing; they go in a transaction of each.
    for _, tenant in ipairs(tenants) do
        if tenant ~= scope.tenant then db.pipeline(tenant, { role_store.delete_holdings(tenant, id) }) end
    end
    access.changed_user(id)
end

---@param scope Scope
---@param caller {platform: table}
---@param id string
function M.delete(scope, caller, id)
    local user = existing(id)
    check_own(scope, caller, user)
    remove(scope, user, "staff")
end

--- The caller's own account.
---@param scope Scope
---@param user_id string
function M.delete_self(scope, user_id) remove(scope, existing(user_id), "self") end

--- Makes the caller's own account inactive: its sessions end, all else stays, and its person comes back by signing in
--- (service.lua, `login`).
---@param scope Scope
---@param user_id string
function M.deactivate_self(scope, user_id)
    local user, now = existing(user_id), time.iso(time.now())
    errors.state({ KS409 = M.transition }, members.keeping_owners, user_id, nil, function()
        -- Codes that are under way were asked for by a sign-in to the active account.
        local statements = { store.deactivate_self(user_id, now), store.retire_otps(user.email, "LOGIN", now),
            store.retire_otps(user.email, "FORGOT_PASSWORD", now) }
        audit.append(statements, scope, { action = "users.deactivate_self", entity_type = "user", entity_id = user_id })
        statements[#statements + 1] = outbox.event(scope, "user.status_changed", user_id, { from = "active", to = "inactive",
            reason = "self" })
        sessions.revoke(scope, "user", user_id, "inactive", statements)
    end)
    access.changed_user(user_id)
end

local RESTORE_MS = 30 * 86400000

--- Brings a deleted account back within thirty days, inactive and without roles. Staff of a tenant does so only for an account that never
--- was anybody else's.
---@param scope Scope
---@param caller {platform: table}
---@param id string
---@return table view
function M.restore(scope, caller, id)
    local user = store.user(id)
    local membership = user and store.membership(id, scope.tenant)
    if not user or not user.deleted_at or not membership then errors.not_found("User not found") end
    if not caller.platform["*"] and store.was_elsewhere(id, scope.tenant) then M.foreign() end
    check_proven(caller, user)
    local now = time.now()
    local statements = { store.restore_user(id, time.iso(now - RESTORE_MS), time.iso(now)), store.set_credentials(id, true, time.iso(now)),
        store.put_membership{ id = uuid.v7(), user_id = id, tenant_key = scope.tenant, status = "active", now = time.iso(now) } }
    audit.append(statements, scope, { action = "users.restore", entity_type = "user", entity_id = id })
    statements[#statements + 1] = outbox.event(scope, "user.status_changed", id, { from = "deleted", to = "inactive", reason = "staff" })
    local ok, err = pcall(db.pipeline, scope.tenant, statements)
    if not ok then
        local state, constraint = errors.sqlstate(err)
        if state == "KS409" then errors.not_found("User not found") end
        if constraint == "users_email" then M.user_exists() end
        if constraint == "users_username" then M.username_taken() end
        error(err, 0)
    end
    access.changed_user(id)
    return M.view(store.user(id), scope, profile_of(id))
end

--- Forgets failed sign-ins and ends a lock or a suspension.
---@param scope Scope
---@param caller {platform: table}
---@param id string
---@return table view
function M.unlock(scope, caller, id)
    local user = existing(id)
    check_own(scope, caller, user)
    local changes = user.is_locked or user.status == "locked" or user.status == "suspended"
    local status = (user.status == "locked" or user.status == "suspended") and "active" or nil
    local statements = {}
    if changes then statements[1] = store.update_user(id, { status = status, is_locked = false }, time.iso(time.now())) end
    audit.append(statements, scope, { action = "users.unlock", entity_type = "user", entity_id = id, before = { status = user.status,
        is_locked = user.is_locked } })
    if status then
        statements[#statements + 1] = outbox.event(scope, "user.status_changed", id, { from = user.status, to = status, reason = "staff" })
    end
    db.pipeline(scope.tenant, statements)
    failures.clear(user.email)
    return M.view(store.user(id), scope, profile_of(id))
end

--- How the sign-in of a user stands: failures, waits, suspension, and who made the account inactive.
---@param scope Scope
---@param id string
---@return table
function M.lockout(scope, id)
    local user = existing(id)
    check_other(scope, user)
    local state = failures.state(user.email)
    return { status = user.status, is_locked = user.is_locked, failures = state.failures, failures_today = state.failures_today,
        waits_until = state.waits_until and time.iso(state.waits_until) or null, suspended_until = user.suspended_until or null,
        deactivated_by = user.deactivated_by or null }
end

--- Ends all sessions of a user.
---@param scope Scope
---@param caller {platform: table}
---@param id string
function M.revoke_sessions(scope, caller, id)
    local user = existing(id)
    check_own(scope, caller, user)
    local statements = { store.update_user(id, { bump = true }, time.iso(time.now())) }
    audit.append(statements, scope, { action = "users.sessions.revoke_all", entity_type = "user", entity_id = id })
    sessions.revoke(scope, "user", id, "staff", statements)
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
    }
    for _, role_id in ipairs(input.role_ids or {}) do
        local role = role_store.role(scope.tenant, role_id)
        if not role then errors.not_found("Role not found") end
        M.check_grant(caller.grants, user_type, role)
        statements[#statements + 1] = role_store.insert_holder{ tenant_key = scope.tenant, app_key = scope.app, id = uuid.v7(),
            user_id = id,
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

--- An active user with a password, for the command line: no code step. An account that is there already may be somebody's on other
--- tenants: it becomes a member with these roles, and password, name, state and lock stay as they are. A platform's owner is set up anew:
--- so the machine's operator gets in again.
---@param scope Scope
---@param input table email, password (nil: none that anybody knows), display_name, user_type, role_keys, platform_role (role key or nil)
---@return table user row
---@return boolean fresh the account is new
function M.provision(scope, input)
    local email, now = input.email:lower(), time.iso(time.now())
    local known = store.user_by_email(email)
    local id = known and known.id or uuid.v7()
    local statements = {}
    if known and input.platform_role then
        statements[1] = store.update_user(id, { status = "active", is_locked = false, user_type = input.user_type,
            display_name = input.display_name }, now)
    elseif known then
        -- What may be held rises with the roles, and never falls.
        if known.user_type:sub(1, 8) == "GENERAL_" and input.user_type:sub(1, 8) ~= "GENERAL_" then
            statements[1] = store.update_user(id, { user_type = input.user_type }, now)
        end
    else
        statements[1] = store.insert_user{ id = id, email = email, display_name = input.display_name, user_type = input.user_type,
            status = "active", verified = true, now = now }
        statements[#statements + 1] = outbox.event(scope, "user.created", id, { userType = input.user_type, status = "active" })
    end
    -- Without a password a new user has one that nobody knows, and an existing one keeps theirs.
    if not known or (input.password and input.platform_role) then
        statements[#statements + 1] = store.put_credential{ id = uuid.v7(), user_id = id,
            password = passwords.hash(input.password or crypto.random_hex(32)), now = now }
    end
    statements[#statements + 1] = store.put_membership{ id = uuid.v7(), user_id = id, tenant_key = scope.tenant, status = "active",
        now = now }
    for _, role_key in ipairs(input.role_keys or {}) do
        statements[#statements + 1] = role_store.give_role{ tenant_key = scope.tenant, app_key = scope.app, id = uuid.v7(), user_id = id,
            role_key = role_key, now = now }
    end
    if input.platform_role then
        statements[#statements + 1] = role_store.insert_platform_holder{ id = uuid.v7(), user_id = id, role_key = input.platform_role,
            now = now }
    end
    statements[#statements + 1] = outbox.row(scope, "profile", id, { user_id = id })
    audit.append(statements, scope, { action = "users.provision", entity_type = "user", entity_id = id, after = { email = email,
        user_type = input.user_type, roles = json.array(input.role_keys or {}), platform_role = input.platform_role } })
    db.pipeline(scope.tenant, statements)
    access.changed_user(id)
    return store.user(id), not known
end

-- Roles of a user ------------------------------------------------------------------------------------------------------------

---@param row table
---@param scope_name string
---@return table as HTTP shows it
function M.role_view(row, scope_name)
    return { id = row.id, tenant_key = row.tenant_key or null, app_key = row.app_key or null, code = row.code, role_key = row.role_key,
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
    check_other(scope, existing(id))
    local list = json.array({})
    local now = time.iso(time.now())
    for i, row in ipairs(role_store.roles_of(scope.tenant, id, now)) do list[i] = M.role_view(row, "tenant") end
    for _, row in ipairs(role_store.platform_roles_of(id, now)) do list[#list + 1] = M.role_view(row, "platform") end
    return list
end

-- A role over all tenants is given by who holds all that it grants over all tenants; to others there is no such role.
local function assign_platform_role(scope, caller, user, input)
    local role = caller.platform["*"] and role_store.platform_role(input.role_id)
    if not role then errors.not_found("Role not found") end
    if not roles.within_ceiling(user.user_type, { scope = "platform", grants = role.permission_keys or {} }) then M.ceiling() end
    local statements = { role_store.hold_platform_role{ id = uuid.v7(), user_id = user.id, role_id = role.id, granted_by = scope.actor_id,
        expires_at = input.expires_at, now = time.iso(time.now()) } }
    audit.append(statements, scope, { action = "users.roles.assign", entity_type = "user", entity_id = user.id,
        after = { role = role.role_key, scope = "platform" } })
    errors.state({ KS409 = M.role_held }, db.pipeline, scope.tenant, statements)
    access.changed_user(user.id)
end

local function remove_platform_role(scope, caller, id, role_id)
    local role = caller.platform["*"] and role_store.platform_role(role_id)
    if not role then errors.not_found("Role assignment not found") end
    db.transaction(scope.tenant, function(tx)
        if #tx:query(unpack(role_store.drop_platform_role(id, role.id))) == 0 then errors.not_found("Role assignment not found") end
        local statements = {}
        audit.append(statements, scope, { action = "users.roles.remove", entity_type = "user", entity_id = id,
            before = { role = role.role_key, scope = "platform" } })
        tx:at_commit(statements)
    end)
    access.changed_user(id)
end

---@param scope Scope
---@param caller {grants: table, id: string}
---@param id string
---@param input {role_id: string, expires_at: string|nil}
function M.assign_role(scope, caller, id, input)
    local user = existing(id)
    check_other(scope, user)
    if caller.id == id then M.escalation("You cannot change your own roles") end
    if input.expires_at and time.parse(input.expires_at) <= time.now() then errors.validation{ "expires_at must lie in the future" } end
    local role = role_store.role(scope.tenant, input.role_id)
    if not role then return assign_platform_role(scope, caller, user, input) end
    M.check_grant(caller.grants, user.user_type, role)
    local statements = { role_store.insert_holder{ tenant_key = scope.tenant, app_key = scope.app, id = uuid.v7(), user_id = id,
        role_id = role.id,
        granted_by = scope.actor_id, expires_at = input.expires_at, now = time.iso(time.now()) } }
    audit.append(statements, scope, { action = "users.roles.assign", entity_type = "user", entity_id = id,
        after = { role = role.role_key } })
    errors.state({ KS409 = M.role_held }, db.pipeline, scope.tenant, statements)
    access.changed_user(id)
end

---@param scope Scope
---@param caller {grants: table, id: string}
---@param id string
---@param role_id string
function M.remove_role(scope, caller, id, role_id)
    existing(id)
    if caller.id == id then M.escalation("You cannot change your own roles") end
    local role = role_store.role(scope.tenant, role_id)
    if not role then return remove_platform_role(scope, caller, id, role_id) end
    if roles.beyond(caller.grants, role.permission_keys or {}) then M.escalation() end
    local function take_away()
        return db.transaction(scope.tenant, function(tx)
            local gone = tx:query(unpack(role_store.delete_holder(scope.tenant, id, role_id)))
            if #gone == 0 then errors.not_found("Role assignment not found") end
            local statements = {}
            audit.append(statements, scope, { action = "users.roles.remove", entity_type = "user", entity_id = id,
                before = { role = role.role_key } })
            tx:at_commit(statements)
        end)
    end
    local owns = false
    for _, key in ipairs(role.permission_keys or {}) do owns = owns or key == "*" end
    if owns then members.keeping_owners(id, { scope.tenant }, take_away) else take_away() end
    access.changed_user(id)
end

return M
