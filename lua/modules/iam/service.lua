-- Accounts: sign-up by code, sign-in by password and code, recovery, sign-out. What may be told to whom is the point here:
-- an unknown address, a wrong password and a locked account look and cost the same until the password is right.
local crypto = require("core.crypto")
local json = require("core.json")
local redis = require("core.redis")
local sched = require("core.sched")
local time = require("core.time")
local uuid = require("core.uuid")
local access = require("kasma.access")
local audit = require("kasma.audit")
local auth = require("kasma.auth")
local db = require("kasma.db")
local errors = require("kasma.errors")
local secrets = require("kasma.secrets")
local log = require("kasma.log")
local mail = require("kasma.mail")
local outbox = require("kasma.outbox")
local ratelimit = require("kasma.ratelimit")
local settings = require("kasma.settings")
local tenants = require("kasma.tenant")
local web = require("kasma.web")
local failures = require("modules.iam.failures")
local otp = require("modules.iam.otp")
local passwords = require("modules.iam.passwords")
local policies = require("modules.iam.policies")
local sessions = require("modules.iam.sessions")
local store = require("modules.iam.store")
local profiles = require("modules.iam.store_profiles")
local role_store = require("modules.iam.store_roles")

local M = {}

local PENDING_MS, CHALLENGE_MS, RESET_MS, RECENT_MS = 600000, 600000, 600000, 600000

M.email_taken = errors.declare{ code = "email_taken", status = 409, message = "Email already registered" }

---@class kasma.Client where a request comes from
---@field ip string
---@field user_agent string|nil
---@field nonce string|nil cookie of the registration

--- Lower case, trimmed: the form in which an address is an identity.
---@param text string
---@return string
function M.identifier(text) return (text:lower():match("^%s*(.-)%s*$")) end

---@param user table
---@return table {id, email, display_name, user_type}
function M.brief(user)
    return { id = user.id, email = user.email, display_name = user.display_name or json.null, user_type = user.user_type }
end

--- The address that an identifier stands for: itself, or that of the account that signs in under this name. All that is counted, waited
--- for and mailed goes by the address, so that a second name gives no second try.
---@param text string
---@return string
function M.address_of(text)
    local identifier = M.identifier(text)
    if identifier:find("@", 1, true) then return identifier end
    return store.email_of_username(identifier) or identifier
end

--- The user, or nil when there is none or it is deleted.
---@param id string
---@return table|nil
function M.user(id)
    local user = store.user(id)
    if not user or user.deleted_at then return nil end
    return user
end

--- What users are called, by their ids; who has no name, or is deleted, is left out.
---@param ids string[] at most 1000
---@return table<string, string>
function M.names(ids)
    local names = {}
    if #ids == 0 then return names end
    for _, user in ipairs(store.user_names(ids)) do
        if user.display_name and user.display_name ~= json.null then names[user.id] = user.display_name end
    end
    return names
end

local function redis_get(key)
    local text, err = redis.call("GET", key)
    if err then error(errors.from_store(err), 0) end
    local value = type(text) == "string" and json.decode(text) or nil
    if value and value.exp and value.exp <= time.now() then return nil end
    return value
end

local function redis_put(key, value, ms)
    value.exp = time.now() + ms
    errors.check(redis.call("SET", key, json.encode(value), "PX", tostring(ms)))
end

-- Registration ---------------------------------------------------------------------------------------------------------------

local function pending_key(email) return "auth:reg:" .. crypto.sha256(email) end

-- Attempts that wait for their code, oldest first. Each is its own entry: a later attempt never changes an earlier one. Those that are
-- `known` are pretended, and activate nothing.
local function pending_attempts(email)
    local list, err = redis.call("LRANGE", pending_key(email), "0", "-1")
    if err then error(errors.from_store(err), 0) end
    local alive = {}
    for _, text in ipairs(list) do
        local entry = json.decode(text)
        if entry and entry.exp > time.now() then alive[#alive + 1] = entry end
    end
    return alive
end

local function put_attempt(email, entry)
    local key = pending_key(email)
    errors.check(redis.pipeline{ { "RPUSH", key, json.encode(entry) }, { "PEXPIRE", key, tostring(PENDING_MS) } })
end

-- Whether all that waits for a code is a pretence: the address has an account, and the tenant hides that.
local function is_pretence(attempts)
    for _, entry in ipairs(attempts) do
        if not entry.known then return false end
    end
    return attempts[1] ~= nil
end

-- Somebody registers an address that has an account: 409, or where the tenant hides what exists, all that a new address meets (cooldown,
-- limits, the cost of a hash, an attempt that can be resent and taken back), and a mail to the account's owner in place of the code.
local function register_known(scope, existing, input, client)
    local email = existing.email
    db.pipeline(scope.tenant, { audit.auth_row(scope, { action = "REGISTER_FAILED", target = "email:" .. email,
        metadata = { reason = "email_exists" } }) })
    if not settings.get(scope.tenant, "auth.hide_existence") then M.email_taken() end
    otp.admit(email, "REGISTER", client.ip, otp.pretended("REGISTER", email))
    passwords.hash(input.password)
    otp.pretend("REGISTER", email)
    local nonce = crypto.random_hex(32)
    put_attempt(email, { nonce = crypto.sha256(nonce), known = true, exp = time.now() + PENDING_MS })
    mail.send(scope, { to = email, template = "account-exists", user_id = existing.id, key = "account-exists:" .. existing.id .. ":"
        .. math.floor(time.now() / 3600000) })
    return { user = { email = email, display_name = input.display_name or json.null }, nonce = nonce }
end

---@param scope Scope
---@param input {email: string, password: string, display_name: string|nil}
---@param client kasma.Client
---@return {user: table, nonce: string}
function M.register(scope, input, client)
    local email = M.identifier(input.email)
    ratelimit.auth("register_ip", web.limit_subject(client.ip), client.ip)
    local ruled = policies.register(scope, { email = email, display_name = input.display_name }, client)
    if ruled and not ruled.allow then
        errors.forbidden{ message = ruled.reason or "Registration is not allowed", code = "registration_denied" }
    end
    passwords.check_policy(scope.tenant, input.password, ruled and ruled.user_type or "GENERAL_0")
    local existing = store.user_by_email(email)
    if existing and existing.status ~= "pending" then return register_known(scope, existing, input, client) end
    otp.admit(email, "REGISTER", client.ip)
    local hash = passwords.hash(input.password)
    local nonce, id = crypto.random_hex(32), uuid.v7()
    local entry = { nonce = crypto.sha256(nonce), password = hash, display_name = input.display_name, otp_id = id,
        exp = time.now() + PENDING_MS, tenant = scope.tenant, user_type = ruled and ruled.user_type or nil,
        role_keys = ruled and ruled.role_keys or nil,
        -- Tells, without the password, whether all attempts of a window had the same.
        same = crypto.hmac_sha256(secrets.tenant_key("MASTER", "registration"), email .. "|" .. input.password) }
    otp.create(scope, { id = id, identifier = email, type = "REGISTER", user_id = existing and existing.id, ip = client.ip },
        { audit.auth_row(scope, { action = "REGISTER_INITIATED", target = "email:" .. email }) })
    put_attempt(email, entry)
    return { user = { email = email, display_name = input.display_name or json.null }, nonce = nonce }
end

-- The attempt that a code activates: the one whose nonce the client holds; without a nonce any, if all had one password.
local function chosen_attempt(attempts, nonce)
    if nonce then
        local hash = crypto.sha256(nonce)
        for _, entry in ipairs(attempts) do
            if crypto.equal(entry.nonce, hash) then return entry, true end
        end
    end
    for i = 2, #attempts do
        if attempts[i].same ~= attempts[1].same then return attempts[#attempts], false end
    end
    return attempts[#attempts], true
end

-- Membership of the tenant by a finished code step.
local function joining(scope, user_id, now)
    if not settings.get(scope.tenant, "auth.open_signup") then
        local known = store.membership(user_id, scope.tenant)
        if not known or known.status ~= "invited" then return {} end
    end
    return {
        store.put_membership{ id = uuid.v7(), user_id = user_id, tenant_key = scope.tenant, status = "active", now = now },
        role_store.give_role{ tenant_key = scope.tenant, app_key = scope.app, id = uuid.v7(), user_id = user_id, role_key = "customer",
            now = now },
    }
end

-- Roles that a rule gives at registration: those alone that anybody may hold.
local function append_ruled_roles(statements, scope, user_id, keys, now)
    for _, key in ipairs(keys or {}) do
        local role = role_store.role_by_key(scope.tenant, key)
        if role and #(role.permission_keys or {}) == 0 then
            statements[#statements + 1] = role_store.give_role{ tenant_key = scope.tenant, app_key = scope.app, id = uuid.v7(),
                user_id = user_id, role_key = key, now = now }
        end
    end
end

local function expired_registration()
    errors.unauthorized{ message = "Registration session expired. Please register again.", code = "registration_expired" }
end

-- Makes the account of a verified registration. Answers the user and whether its password is trusted.
local function make_account(scope, email, client)
    local attempts = {}
    for _, entry in ipairs(pending_attempts(email)) do
        if not entry.known then attempts[#attempts + 1] = entry end
    end
    if #attempts == 0 then expired_registration() end
    local entry, trusted = chosen_attempt(attempts, client.nonce)
    local existing = store.user_by_email(email)
    local now = time.iso(time.now())
    local id = existing and existing.id or uuid.v7()
    local statements = {
        existing and store.activate_user(id, entry.display_name, now)
            or store.insert_user{ id = id, email = email, display_name = entry.display_name,
                user_type = entry.user_type or "GENERAL_0", status = "active", verified = true, must_change = not trusted, now = now },
        store.put_credential{ id = uuid.v7(), user_id = id, password = trusted and entry.password or nil, now = now },
    }
    local joined = joining(scope, id, now)
    for _, statement in ipairs(joined) do statements[#statements + 1] = statement end
    if #joined > 0 and entry.tenant == scope.tenant then append_ruled_roles(statements, scope, id, entry.role_keys, now) end
    statements[#statements + 1] = audit.auth_row(scope, { action = "REGISTER_SUCCESS", user_id = id, target = "user:" .. id,
        metadata = { method = "otp" } })
    statements[#statements + 1] = outbox.event(scope, "user.created", id, { userType = entry.user_type or "GENERAL_0",
        status = "active" })
    statements[#statements + 1] = outbox.row(scope, "profile", id, { user_id = id })
    local ok, err = pcall(db.pipeline, scope.tenant, statements)
    if not ok then
        local _, constraint = errors.sqlstate(err)
        if constraint == "users_email" or errors.sqlstate(err) == "KS409" then M.email_taken() end
        error(err, 0)
    end
    redis.call("DEL", pending_key(email))
    local made, why = pcall(profiles.put, id, {}, now)
    if not made then log.warn("the profile follows by the outbox", { user = id, error = tostring(why) }) end
    return store.user(id), trusted
end

-- Sign-in --------------------------------------------------------------------------------------------------------------------

local function challenge_key(identifier) return "auth:challenge:" .. crypto.sha256(identifier) end

-- With `back`, the code makes the account active again: as long as it stands as it did when the password was proven (`back` is its
-- token_version then), which ends with whatever staff does to it.
local function open_challenge(user, type, scope, client, back)
    redis_put(challenge_key(user.email), { user_id = user.id, type = type, tenant_key = scope.tenant, ip = client.ip,
        back = back and user.token_version or nil }, CHALLENGE_MS)
end

local function status_event(scope, user, to, reason)
    return outbox.event(scope, "user.status_changed", user.id, { from = user.status, to = to, reason = reason })
end

-- Suspends an account for a day, with `record` in the same transaction. False: it is not active any more, and nothing was written.
local function suspend(scope, user, email, record)
    local now = time.now()
    local statements = { store.suspend_user(user.id, time.iso(now + 86400000), time.iso(now)), record,
        audit.auth_row(scope, { action = "ACCOUNT_SUSPENDED", user_id = user.id, target = "user:" .. user.id }),
        status_event(scope, user, "suspended", "failures") }
    mail.append(statements, scope, { to = email, template = "account-suspended", user_id = user.id,
        key = "suspended:" .. user.id .. ":" .. math.floor(now / 86400000) })
    local done, why = pcall(sessions.revoke, scope, "user", user.id, "suspended", statements)
    if not done and errors.sqlstate(why) ~= "KS409" then error(why, 0) end
    return done
end

-- A wrong password is counted and put on record, wherever it was asked for; the twentieth of a day suspends the account.
local function password_failed(scope, client, email, user, action, reason)
    failures.note(email, client.ip)
    local record = audit.auth_row(scope, { action = action, user_id = user and user.id,
        target = user and ("user:" .. user.id) or ("email:" .. email), metadata = { reason = reason } })
    if user and user.status == "active" and failures.must_suspend(email) and suspend(scope, user, email, record) then return end
    db.pipeline(scope.tenant, { record })
end

local function login_failed(scope, client, email, user, reason)
    password_failed(scope, client, email, user, "LOGIN_FAILED", reason)
    errors.unauthorized{ message = "Invalid credentials", code = "invalid_credentials" }
end

-- A suspension that is over ends by itself, unless somebody has changed the account since it was read: another sign-in, or staff.
local function usable(scope, user)
    if user.status == "suspended" and user.suspended_until and time.parse(user.suspended_until) <= time.now() then
        local now = time.iso(time.now())
        local ended, why = pcall(db.pipeline, scope.tenant, { store.end_suspension(user.id, now, now),
            status_event(scope, user, "active", "expired") })
        if ended then return true end
        if errors.sqlstate(why) ~= "KS409" then error(why, 0) end
        user = M.user(user.id) or {}
    end
    return user.status == "active" and not user.is_locked
end

-- Whoever made their own account inactive may come back. Staff's doing is for staff to undo, and so is a lock.
local function may_come_back(user)
    return user.status == "inactive" and user.deactivated_by == "self" and not user.is_locked
end

local STRICTNESS = { never = 1, new_device = 2, always = 3 }

-- The code step of a sign-in: what this tenant asks for, or what another that the user belongs to asks for when that is more. A session
-- opens all of them, so that none decides alone to do without: who knows a password would sign in where the least is asked.
local function strictest_step(scope, user, step)
    if step == "always" then return step end
    for _, theirs in ipairs(store.tenants_of(user.id)) do
        if theirs.status == "active" and theirs.tenant_key ~= scope.tenant then
            local asked = settings.get(theirs.tenant_key, "auth.login_otp")
            if STRICTNESS[asked] > STRICTNESS[step] then step = asked end
        end
    end
    return step
end

local function ask_for_code(scope, user, type, client, message, back)
    open_challenge(user, type, scope, client, back)
    if type == "TWO_FA" then otp.anew(user.email, type) end
    -- Within the cooldown the same challenge is announced again and no second mail goes out.
    if type ~= "TWO_FA" and otp.cooldown_left(user.email, type) == 0 then
        otp.admit(user.email, type, client.ip)
        local made, why = pcall(otp.create, scope, { identifier = user.email, type = type, user_id = user.id, ip = client.ip })
        if not made and not otp.is_cooldown(why) then error(why, 0) end
    end
    errors.object(401, json.object({ "success", "message", "requiresOtp", "identifier", "type" },
        { success = false, message = message, requiresOtp = true, identifier = user.email, type = type }))
end

-- The user of the address and whether the password is theirs. The try is counted before it is known to fail; one that does stays counted.
local function prove(input, email, client)
    failures.begin(email, client.ip)
    local subject, hit = web.limit_subject(client.ip), nil
    local ok, user, right = pcall(function()
        hit = ratelimit.reserve("login_ip", subject, client.ip)
        local found = store.login_user(email)
        return found, passwords.verify(input.password, found and found.password)
    end)
    if ok and not (user and right) then return user, false end
    failures.done(email, client.ip)
    ratelimit.release("login_ip", subject, hit)
    if not ok then error(user, 0) end
    return user, true
end

---@param scope Scope
---@param input {identifier: string, password: string}
---@param client kasma.Client
---@return kasma.Tokens tokens, table user; raises the 401 object when a code is needed
function M.login(scope, input, client)
    local email = M.address_of(input.identifier)
    local user, right = prove(input, email, client)
    if not user then return login_failed(scope, client, email, nil, "user_not_found") end
    if not right then return login_failed(scope, client, email, user, "invalid_password") end
    if user.status == "pending" and not user.is_locked then
        return ask_for_code(scope, user, "REGISTER", client, "Email not verified. OTP sent to email.")
    end
    local back = may_come_back(user)
    if not back and not usable(scope, user) then
        db.pipeline(scope.tenant, { audit.auth_row(scope, { action = "LOGIN_FAILED", user_id = user.id, target = "user:" .. user.id,
            metadata = { reason = "account_locked_or_suspended" } }) })
        errors.unauthorized{ message = "Account is locked or suspended", code = "account_locked" }
    end
    if passwords.needs_rehash(user.password) then
        store.rehash(user.credential_id, user.password, passwords.hash(input.password), time.iso(time.now()))
    end
    local function known_device()
        return store.device_known(user.id, web.kept_address(client.ip), client.user_agent, time.iso(time.now() - 2592000000))
    end
    local ruled = policies.login(scope, user, client, known_device)
    if ruled and ruled.deny then
        db.pipeline(scope.tenant, { audit.auth_row(scope, { action = "LOGIN_FAILED", user_id = user.id, target = "user:" .. user.id,
            metadata = { reason = "denied_by_rule" } }) })
        errors.forbidden{ message = ruled.reason or "Sign-in is not allowed", code = "login_denied" }
    end
    local step = settings.get(scope.tenant, "auth.login_otp")
    if ruled and ruled.otp then step = ruled.otp == "skip" and "never" or "always" end
    if user.totp then
        return ask_for_code(scope, user, "TWO_FA", client, "Login requires OTP verification. Enter the code of your authenticator.", back)
    end
    -- Whatever the tenant asks of a sign-in: this undoes what its person did, and the password alone is not enough.
    if back then return ask_for_code(scope, user, "LOGIN", client, "Account is deactivated. OTP sent to email to activate it.", true) end
    step = strictest_step(scope, user, step)
    if step == "always" or (step == "new_device" and not known_device()) then
        return ask_for_code(scope, user, "LOGIN", client, "Login requires OTP verification. OTP sent to email.")
    end
    failures.clear(email)
    local tokens = sessions.open(scope, user, { amr = { "pwd" }, ip = client.ip, user_agent = client.user_agent },
        { store.accept_invitation(user.id, scope.tenant, time.iso(time.now())) })
    access.changed_user(user.id)
    return tokens, user
end

-- Codes ----------------------------------------------------------------------------------------------------------------------

local function code_failed(scope, email, type)
    db.pipeline(scope.tenant, { audit.auth_row(scope, { action = "OTP_FAILED", target = "email:" .. email, metadata = { type = type } }) })
    otp.invalid()
end

-- A user who lost the password may sign in for ten minutes, for nothing but setting a new one.
local function recovery(scope, user, client, also)
    local token = crypto.random_hex(32)
    redis_put("auth:reset:" .. crypto.sha256(token), { user_id = user.id, ver = user.token_version }, RESET_MS)
    local tokens = sessions.open(scope, user, { amr = { "otp" }, ip = client.ip, user_agent = client.user_agent, restricted = true }, also)
    tokens.reset_token = token
    return tokens
end

-- The account is active again in the transaction that opens the session, or neither happens.
local function append_return(statements, scope, user, now)
    statements[#statements + 1] = store.reactivate_self(user.id, user.token_version, now)
    audit.append(statements, { tenant = scope.tenant, app = scope.app, actor_id = user.id, actor_kind = "user", actor_email = user.email,
        request = scope.request }, { action = "users.reactivate_self", entity_type = "user", entity_id = user.id })
    statements[#statements + 1] = status_event(scope, user, "active", "self")
end

---@param scope Scope
---@param input {identifier: string, code: string, type: string}
---@param client kasma.Client
---@return kasma.Tokens tokens, table user
function M.verify_otp(scope, input, client)
    local email, type = M.address_of(input.identifier), input.type
    if type == "REGISTER" then
        -- A user who is pending by an administrator has a password already and no attempt of its own.
        local open = redis_get(challenge_key(email))
        local used = otp.consume(email, type, input.code, client.ip)
        if not used then return code_failed(scope, email, type) end
        local user, trusted
        if open and open.type == "REGISTER" and #pending_attempts(email) == 0 then
            user, trusted = store.user(open.user_id), true
            local now = time.iso(time.now())
            local statements = { store.activate_user(user.id, nil, now) }
            for _, statement in ipairs(joining(scope, user.id, now)) do statements[#statements + 1] = statement end
            statements[#statements + 1] = audit.auth_row(scope, { action = "REGISTER_SUCCESS", user_id = user.id, target = "user:"
                .. user.id, metadata = { method = "otp" } })
            statements[#statements + 1] = outbox.event(scope, "user.status_changed", user.id, { from = "pending", to = "active",
                reason = "verified" })
            db.pipeline(scope.tenant, statements)
            user = store.user(user.id)
        else
            user, trusted = make_account(scope, email, client)
        end
        access.changed_user(user.id)
        failures.clear(email)
        return sessions.open(scope, user, { amr = { "otp" }, ip = client.ip, user_agent = client.user_agent, restricted = not trusted },
            {}), user
    end

    local challenge = redis_get(challenge_key(email))
    if type == "FORGOT_PASSWORD" then
        local used = otp.consume(email, type, input.code, client.ip)
        if not used then return code_failed(scope, email, type) end
        local user = store.user_by_email(email)
        if not user then errors.unauthorized("User not found") end
        if user.is_locked or (user.status ~= "active" and user.status ~= "suspended") then
            errors.unauthorized{ message = "Account is locked or suspended", code = "account_locked" }
        end
        failures.clear(email)
        return recovery(scope, user, client, {}), user
    end

    local open = challenge ~= nil and challenge.type == type
    local held
    if open and type == "LOGIN" then
        held = otp.consume(email, type, input.code, client.ip)
    else
        otp.begin(email, type, client.ip)
        held = open and require("modules.iam.totp").verify(challenge.user_id, input.code, client.ip)
        if not held then otp.failed(email, type, client.ip) end
    end
    if not held then return code_failed(scope, email, type) end
    redis.call("DEL", challenge_key(email))
    local user = store.user(challenge.user_id)
    if not user or user.deleted_at then errors.unauthorized("User not found") end
    local back = challenge.back ~= nil and challenge.back == user.token_version and may_come_back(user)
    if not back and not usable(scope, user) then
        errors.unauthorized{ message = "Account is locked or suspended", code = "account_locked" }
    end
    local now = time.iso(time.now())
    local also = joining(scope, user.id, now)
    if back then append_return(also, scope, user, now) end
    also[#also + 1] = audit.auth_row(scope, { action = "OTP_VERIFIED_LOGIN", user_id = user.id, target = "user:" .. user.id,
        metadata = { type = type } })
    failures.clear(email)
    local tokens = sessions.open(scope, user, { amr = { "pwd", type == "TWO_FA" and "totp" or "otp" }, ip = client.ip,
        user_agent = client.user_agent }, also)
    access.changed_user(user.id)
    return tokens, user
end

---@param scope Scope
---@param input {identifier: string, type: string}
---@param client kasma.Client
function M.resend_otp(scope, input, client)
    local email, type = M.address_of(input.identifier), input.type
    local user_id
    if type == "REGISTER" then
        local challenge = redis_get(challenge_key(email))
        local attempts = pending_attempts(email)
        if #attempts == 0 and not (challenge and challenge.type == "REGISTER") then expired_registration() end
        if is_pretence(attempts) then
            otp.admit(email, type, client.ip, otp.pretended(type, email))
            return otp.pretend(type, email)
        end
        user_id = challenge and challenge.user_id
    elseif type == "FORGOT_PASSWORD" then
        return M.forgot_password(scope, input, client)
    else
        local challenge = redis_get(challenge_key(email))
        if not challenge or challenge.type ~= type or type == "TWO_FA" then
            errors.unauthorized{ message = "Login session expired. Please sign in again.", code = "challenge_expired" }
        end
        user_id = challenge.user_id
    end
    otp.admit(email, type, client.ip)
    otp.create(scope, { identifier = email, type = type, user_id = user_id, ip = client.ip })
end

--- Takes back what the same client began; for anybody else it does nothing. The cooldown and the counters stay.
---@param input {identifier: string, type: string}
---@param client kasma.Client
function M.cancel_otp(input, client)
    local email, type = M.address_of(input.identifier), input.type
    if type == "REGISTER" then
        local attempts = pending_attempts(email)
        local hash = client.nonce and crypto.sha256(client.nonce)
        for _, entry in ipairs(attempts) do
            if hash and crypto.equal(entry.nonce, hash) then
                redis.call("DEL", pending_key(email))
                otp.cancel(email, type)
                return
            end
        end
        return
    end
    local challenge = redis_get(challenge_key(email))
    if challenge and challenge.type == type and challenge.ip == client.ip then
        redis.call("DEL", challenge_key(email))
        otp.cancel(email, type)
    end
end

--- Starts a recovery code; says nothing about whether the account exists.
---@param scope Scope
---@param input {identifier: string}
---@param client kasma.Client
function M.forgot_password(scope, input, client)
    local email = M.address_of(input.identifier)
    otp.check_mail()
    ratelimit.auth("otp_identifier", email, client.ip)
    ratelimit.auth("otp_ip", web.limit_subject(client.ip), client.ip)
    local user = store.user_by_email(email)
    if not user or user.is_locked or (user.status ~= "active" and user.status ~= "suspended") then
        otp.pretend("FORGOT_PASSWORD", email)
        return
    end
    -- Beside the answer, so that the time it takes says nothing either.
    sched.spawn(function()
        local ok, why = pcall(function()
            if otp.cooldown_left(email, "FORGOT_PASSWORD") > 0 then return end
            otp.create(scope, { identifier = email, type = "FORGOT_PASSWORD", user_id = user.id, ip = client.ip })
        end)
        if not ok and not otp.is_cooldown(why) then log.warn("a recovery code was not made", { user = user.id, error = tostring(why) }) end
    end)
end

-- Passwords ------------------------------------------------------------------------------------------------------------------

-- With `once`, only while nobody else has changed the account meanwhile (raises KS409): of two who bring one reset token, one sets it.
local function set_password(scope, user, password, action, except, once)
    passwords.check_policy(scope.tenant, password, user.user_type)
    local credential = store.credential(user.id)
    local now = time.iso(time.now())
    local statements = {}
    if credential and credential.password then
        local keep = passwords.check_history(password, credential)
        statements[1] = store.change_password{ user_id = user.id, password = passwords.hash(password), previous = keep, now = now }
    else
        statements[1] = store.put_credential{ id = uuid.v7(), user_id = user.id, password = passwords.hash(password), now = now }
    end
    statements[#statements + 1] = audit.auth_row(scope, { action = action, user_id = user.id, target = "user:" .. user.id })
    if user.status == "suspended" then
        statements[#statements + 1] = store.end_suspension(user.id, nil, now)
        statements[#statements + 1] = status_event(scope, user, "active", "password_reset")
    end
    statements[#statements + 1] = store.password_set(user.id, once and user.token_version or nil, now)
    audit.append(statements, { tenant = scope.tenant, app = scope.app, actor_id = user.id, actor_kind = "user", actor_email = user.email,
        request = scope.request }, { action = "users.password", entity_type = "user", entity_id = user.id })
    sessions.revoke(scope, "user", user.id, "password_changed", statements, except)
end

---@param scope Scope
---@param input {reset_token: string, new_password: string}
---@param client kasma.Client
function M.reset_password(scope, input, client)
    ratelimit.auth("verify_identifier", web.limit_subject(client.ip), client.ip)
    local key = "auth:reset:" .. crypto.sha256(input.reset_token)
    local found = redis_get(key)
    if not found then errors.unauthorized{ message = "Invalid or expired reset token", code = "reset_invalid" } end
    local user = M.user(found.user_id)
    -- Another password, or a sign-out everywhere, has ended the recovery meanwhile.
    if user and found.ver ~= user.token_version then
        errors.unauthorized{ message = "Invalid or expired reset token", code = "reset_invalid" }
    end
    if not user or user.is_locked then errors.unauthorized("User not found or inactive") end
    errors.state({ KS409 = { status = 401, message = "Invalid or expired reset token", code = "reset_invalid" } }, set_password, scope,
        user, input.new_password, "PASSWORD_RESET", nil, true)
    redis.call("DEL", key)
    failures.clear(user.email)
end

-- Raises 400 unless the password is the user's. Somebody who got hold of a session alone guesses here as well as at the sign-in, so that
-- both count as one: the same waits, and the same suspension, which ends that session too.
local function check_current(scope, user, password, hash, client)
    failures.begin(user.email, client.ip)
    local ok, right = pcall(passwords.verify, password, hash)
    if ok and not right then
        password_failed(scope, client, user.email, user, "PASSWORD_CHANGE_FAILED", "invalid_password")
        errors.bad_request{ message = "Current password is incorrect", code = "current_password" }
    end
    failures.done(user.email, client.ip)
    if not ok then error(right, 0) end
end

--- Changes the caller's password and ends all other sessions. Raises 429 after failures as a sign-in does.
---@param scope Scope
---@param identity kasma.Identity
---@param input {current_password: string|nil, new_password: string}
---@param client kasma.Client
function M.change_password(scope, identity, input, client)
    local user = M.user(identity.id)
    local credential = user and store.credential(user.id)
    if not credential then errors.not_found("Credential not found") end
    local recovered = identity.restricted
    if not recovered or input.current_password then
        check_current(scope, user, input.current_password or "", credential.password, client)
    end
    local session = identity.session_id and store.session(identity.session_id)
    set_password(scope, user, input.new_password, "PASSWORD_CHANGED", not recovered and session and session.family_id or nil)
    failures.clear(user.email)
end

-- Tokens ---------------------------------------------------------------------------------------------------------------------

M.not_recent = errors.declare{ code = "reauthentication", status = 401, message = "Please sign in again",
    cause = "this needs a sign-in of the last ten minutes", cure = "sign in anew and call again" }

--- Raises unless the caller signed in within the last ten minutes, with all that a sign-in asks of them.
---@param identity kasma.Identity
---@param now integer
function M.check_recent(identity, now)
    if identity.restricted then errors.forbidden{ message = "Password change required", code = "password_change_required" } end
    if not identity.auth_at or now - identity.auth_at > RECENT_MS then M.not_recent() end
end

---@param user_id string
---@param tenant string
---@return boolean
function M.is_invited(user_id, tenant)
    local membership = store.membership(user_id, tenant)
    return membership ~= nil and membership.status == "invited"
end

--- New tokens of the session, bound to another tenant; an invitation to it is accepted by that.
---@param place Scope tenant and app to bind to
---@param user_id string
---@param session table
---@param client kasma.Client
---@param stranger boolean the user is no member: staff of the platform, which is put on record, or invited
---@return kasma.Tokens
function M.switch(place, user_id, session, client, stranger)
    local now = time.iso(time.now())
    local also = { store.accept_invitation(user_id, place.tenant, now),
        store.put_context{ id = uuid.v7(), user_id = user_id, tenant_key = place.tenant, app_key = place.app, now = now } }
    if stranger and not M.is_invited(user_id, place.tenant) then
        also[3] = audit.auth_row(place, { action = "TENANT_SWITCH", user_id = user_id, target = "tenant:" .. place.tenant,
            session_id = session.id })
    end
    local tokens = sessions.switch(place, M.user(user_id), session, client, also)
    access.changed_user(user_id)
    return tokens
end

local INACTIVE = { active = false }

--- What a token stands for. A key asks about tokens of its own tenant; one of MASTER about any.
---@param scope Scope of the key
---@param token string
---@return table {active, sub, tenant_key, app_key, exp, permissions, ...}
function M.introspect(scope, token)
    local ok, identity = pcall(auth.of_token, token)
    if not ok then
        if errors.is(identity) and identity.status == 401 then return INACTIVE end
        error(identity, 0)
    end
    if not identity or (scope.tenant ~= "MASTER" and identity.tenant_key ~= scope.tenant) then return INACTIVE end
    local place = tenants.by_key(identity.tenant_key)
    if not place or not place.is_active then return INACTIVE end
    local permissions = json.array({})
    local grants = identity.kind == "key" and identity.scopes or access.of(identity.tenant_key, identity.id).permissions
    for key in pairs(identity.restricted and {} or grants) do permissions[#permissions + 1] = key end
    table.sort(permissions)
    return { active = true, sub = identity.id, kind = identity.kind, email = identity.email, user_type = identity.user_type,
        tenant_key = identity.tenant_key, app_key = identity.app_key, session_id = identity.session_id,
        exp = identity.expires_at and math.floor(identity.expires_at / 1000) or json.null, permissions = permissions }
end

-- Sign-out -------------------------------------------------------------------------------------------------------------------

---@param scope Scope
---@param session_id string
---@param user_id string
function M.logout(scope, session_id, user_id)
    local session = store.session(session_id)
    local by, value = "id", session_id
    if session then by, value = "family", session.family_id end
    -- A session that is ended by its refresh token alone has no caller: it is the user's own act all the same.
    if not scope.actor_id then
        scope = { tenant = scope.tenant, app = scope.app, actor_id = user_id, actor_kind = "user", request = scope.request }
    end
    sessions.revoke(scope, by, value, "logout", { audit.auth_row(scope, { action = "LOGOUT", user_id = user_id, target = "user:" .. user_id,
        session_id = session_id }) })
end

---@param scope Scope
---@param user_id string
function M.logout_all(scope, user_id)
    sessions.revoke(scope, "user", user_id, "logout_all", {
        store.update_user(user_id, { bump = true }, time.iso(time.now())),
        audit.auth_row(scope, { action = "LOGOUT_ALL", user_id = user_id, target = "user:" .. user_id }) })
end

return M
