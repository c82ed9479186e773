-- Who belongs to a tenant: invited, active, removed; and the owner that a tenant never loses.
--
-- An account is its person's. A tenant's staff adds by id only whom the tenant knows already (a former member, somebody who signed in on
-- it); everybody else is invited by e-mail and is a member when they sign in on the tenant or choose it. Platform staff adds at once.
local crypto = require("core.crypto")
local json = require("core.json")
local sched = require("core.sched")
local time = require("core.time")
local uuid = require("core.uuid")
local access = require("kasma.access")
local audit = require("kasma.audit")
local db = require("kasma.db")
local errors = require("kasma.errors")
local invalidate = require("kasma.invalidate")
local mail = require("kasma.mail")
local null = require("kasma.null")
local roles = require("kasma.roles")
local passwords = require("modules.iam.passwords")
local store = require("modules.iam.store")
local role_store = require("modules.iam.store_roles")

local M = {}

M.already = errors.declare{ code = "already_member", status = 409, message = "User is a member already" }
M.last_owner = errors.declare{ code = "last_owner", status = 409, message = "The last active owner of a tenant stays",
    cause = "nobody else holds a role with all permissions that has no end", cure = "make another user an owner first" }

M.outranked = errors.declare{ code = "outranked", status = 403, message = "The user may do more than you",
    cause = "a role of the user grants what the caller lacks", cure = "ask somebody who holds those permissions" }

--- Raises 403 when a role of the user grants what the caller lacks: an administrator does not take the place of an owner.
---@param tenant string
---@param grants table<string, boolean> of the caller
---@param user_id string
function M.check_reach(tenant, grants, user_id)
    for _, role in ipairs(role_store.roles_of(tenant, user_id, time.iso(time.now()))) do
        if roles.beyond(grants, role.permission_keys or {}) then M.outranked() end
    end
end

local function find_user(input)
    if input.user_id then return store.user(input.user_id) end
    if input.email then return store.user_by_email(input.email:lower()) end
    errors.bad_request{ message = { "user_id or email should not be empty" }, code = "validation" }
end

-- Raises 409 when the tenant would be left without an active owner, or with none but those whose role ends.
local function keep_an_owner(tenant, user_id)
    local going, others, lasting = nil, 0, false
    for _, owner in ipairs(role_store.owners(tenant, time.iso(time.now()))) do
        if owner.user_id == user_id then
            going = owner
        else
            others, lasting = others + 1, lasting or owner.lasting
        end
    end
    if going and (others == 0 or (going.lasting and not lasting)) then M.last_owner() end
end

-- One at a time in a process: each holds one connection and asks for another, and as many of them as the pool has would wait for ever.
local one_at_a_time

-- Runs fn while the rows of tenants are held, which all that may take an owner away goes through: of two who do so at once, the second
-- counts the owners when the first is done. `check` gets those rows first and raises what stands against it.
local function holding(lock, check, fn)
    local result
    one_at_a_time = one_at_a_time or sched.semaphore(1)
    one_at_a_time:acquire()
    local ok, why = pcall(db.transaction, nil, function(tx)
        check(tx:query(unpack(lock)))
        result = fn()
    end)
    one_at_a_time:release()
    if not ok then error(why, 0) end
    return result
end

--- Runs fn, which takes rights or the account from a user, unless a tenant would be left without an active owner (409): of two owners who
--- remove each other at once, one stays.
---@param user_id string who is about to go
---@param tenants string[]|nil these tenants; nil = all that the user belongs to
---@param fn fun(): any
---@return any what fn answers
function M.keeping_owners(user_id, tenants, fn)
    return holding(role_store.lock_tenants_of(user_id), function(held)
        for _, row in ipairs(held) do
            local concerned = tenants == nil
            for _, tenant in ipairs(tenants or {}) do concerned = concerned or tenant == row.tenant_key end
            if concerned then keep_an_owner(row.tenant_key, user_id) end
        end
    end, fn)
end

--- The same for what takes all permissions (`*`) from a role, and so its owners from the tenant.
---@param tenant string
---@param role_id string
---@param fn fun(): any
---@return any what fn answers
function M.keeping_owners_without(tenant, role_id, fn)
    return holding(role_store.lock_tenant(tenant), function()
        if not role_store.owner_beside(tenant, role_id, time.iso(time.now())) then M.last_owner() end
    end, fn)
end

local function invitation(statements, place, user_id, email)
    mail.append(statements, place, { to = email, template = "invitation", vars = { tenant = place.tenant }, user_id = user_id,
        key = ("invitation:%s:%s:%d"):format(place.tenant, user_id, math.floor(time.now() / 86400000)) })
end

-- Of several who add somebody at once one does, and an invitation takes nobody back who has just become a member.
local function join(scope, user)
    local statements = { store.enter_membership{ id = uuid.v7(), user_id = user.id, tenant_key = scope.tenant, status = "active",
        now = time.iso(time.now()) } }
    audit.append(statements, scope, { action = "members.add", entity_type = "user", entity_id = user.id })
    errors.state({ KS409 = M.already }, db.pipeline, scope.tenant, statements)
    access.changed_user(user.id)
    return { user_id = user.id, status = "active" }
end

-- The answer and the mail are the same for an address that has an account and one that has none.
local function invite(scope, email, user)
    local now, id = time.iso(time.now()), user and user.id or uuid.v7()
    local statements = {}
    if not user then
        statements[1] = store.insert_user{ id = id, email = email, user_type = "GENERAL_0", status = "pending", now = now }
    end
    statements[#statements + 1] = store.enter_membership{ id = uuid.v7(), user_id = id, tenant_key = scope.tenant, status = "invited",
        now = now }
    invitation(statements, scope, id, email)
    audit.append(statements, scope, { action = "members.invite", entity_type = "user", entity_id = id })
    errors.state({ KS409 = M.already }, db.pipeline, scope.tenant, statements)
    return { user_id = id, status = "invited" }
end

---@param scope Scope
---@param input {user_id: string|nil, email: string|nil}
---@param platform boolean the caller is staff of the platform
---@return {user_id: string, status: "active"|"invited"}
function M.add(scope, input, platform)
    local user = find_user(input)
    if user and user.deleted_at then user = nil end
    local known = user and store.membership(user.id, scope.tenant)
    if known and known.status == "active" then M.already() end
    if not input.user_id then
        if user and platform then return join(scope, user) end
        return invite(scope, input.email:lower(), user)
    end
    if not user or (not platform and not store.known_to(user.id, scope.tenant)) then errors.not_found("User not found") end
    -- An invitation is for its person to accept.
    if known and known.status == "invited" and not platform then M.already() end
    return join(scope, user)
end

--- Ends a membership. The secret keys that the member made end with it: whoever made a key has seen its secret. Publishable keys, which
--- hold none, and what others made or rotated since go on.
---@param scope Scope
---@param grants table<string, boolean> of the caller
---@param input {user_id: string|nil, email: string|nil, revoke_keys: boolean} false: the keys are named and go on
---@return table[] keys {id, owned_key, name, last4, revoked}
function M.remove(scope, grants, input)
    local user = find_user(input)
    local known = user and store.membership(user.id, scope.tenant)
    if not known or known.status == "removed" then errors.not_found("User not found") end
    M.check_reach(scope.tenant, grants, user.id)
    local keys, now = nil, time.iso(time.now())
    M.keeping_owners(user.id, { scope.tenant }, function()
        db.transaction(scope.tenant, function(tx)
            -- First what a key in the making waits for.
            tx:query(unpack(store.put_membership{ id = uuid.v7(), user_id = user.id, tenant_key = scope.tenant, status = "removed",
                now = now }))
            keys = json.array({})
            local names = json.array({})
            repeat
                local found = tx:query(unpack(store.secret_keys_by(scope.tenant, user.id, now, input.revoke_keys)))
                for _, key in ipairs(found) do
                    keys[#keys + 1] = { id = key.id, owned_key = key.owned_key, name = key.name, last4 = key.last4 or null,
                        revoked = input.revoke_keys }
                    names[#names + 1] = key.owned_key
                end
            until #found == 0 or not input.revoke_keys
            local statements = { role_store.delete_holdings(scope.tenant, user.id) }
            audit.append(statements, scope, { action = "members.remove", entity_type = "user", entity_id = user.id,
                after = { [input.revoke_keys and "keys_revoked" or "keys_kept"] = names } })
            tx:at_commit(statements)
        end)
    end)
    access.changed_user(user.id)
    for _, key in ipairs(keys) do
        if key.revoked then invalidate.send("key", key.owned_key) end
    end
    return keys
end

--- The statements that make somebody the first owner of a new tenant: a user (pending, if unknown), membership, role and a mail. An
--- existing account becomes a member at once: the platform made the tenant for it.
---@param statements table[]
---@param place Scope of the new tenant
---@param tenant {name: string, locale: string}
---@param email string
---@param vouched boolean|nil an operator says whose address it is: a new account is active, with a password that nobody knows
---@return string user_id, boolean fresh the account is new
function M.append_owner(statements, place, tenant, email, vouched)
    email = email:lower()
    local now = time.iso(time.now())
    local user = store.user_by_email(email)
    local id = user and user.id or uuid.v7()
    if not user then
        statements[#statements + 1] = store.insert_user{ id = id, email = email, user_type = "TENANT_0", now = now,
            status = vouched and "active" or "pending", verified = vouched }
        if vouched then
            statements[#statements + 1] = store.put_credential{ id = uuid.v7(), user_id = id, now = now,
                password = passwords.hash(crypto.random_hex(32)) }
        end
    elseif user.user_type:sub(1, 8) == "GENERAL_" then
        statements[#statements + 1] = store.update_user(id, { user_type = "TENANT_0" }, now)
    end
    statements[#statements + 1] = store.put_membership{ id = uuid.v7(), user_id = id, tenant_key = place.tenant,
        status = (user or vouched) and "active" or "invited", now = now }
    statements[#statements + 1] = role_store.give_role{ tenant_key = place.tenant, app_key = place.app, id = uuid.v7(), user_id = id,
        role_key = "tenant_owner", now = now }
    mail.append(statements, place, { to = email, template = "invitation", vars = { tenant = tenant.name }, user_id = id,
        locale = tenant.locale, key = "invitation:" .. place.tenant .. ":" .. id })
    audit.append(statements, place, { action = "members.invite", entity_type = "user", entity_id = id })
    return id, user == nil
end

return M
