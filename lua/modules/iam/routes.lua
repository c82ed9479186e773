-- Sign-up, sign-in and sessions as HTTP sees them.
local json = require("core.json")
local time = require("core.time")
local audit = require("kasma.audit")
local auth = require("kasma.auth")
local errors = require("kasma.errors")
local log = require("kasma.log")
local null = require("kasma.null")
local route = require("kasma.route")
local schema = require("kasma.schema")
local seldom = require("kasma.seldom")
local tenants = require("kasma.tenant")
local signer = require("kasma.tokens")
local web = require("kasma.web")
local access = require("kasma.access")
local cookies = require("modules.iam.cookies")
local iam = require("modules.iam.service")
local otp = require("modules.iam.otp")
local sessions = require("modules.iam.sessions")
local totp = require("modules.iam.totp")
local db = require("kasma.db")

local TYPES = { "REGISTER", "LOGIN", "FORGOT_PASSWORD", "TWO_FA" }

local User = schema.object({ id = schema.uuid(), email = schema.string(), display_name = schema.string():nullable(),
    user_type = schema.string() },
    { name = "AuthUser", open = true })
-- A key has neither address nor type.
local Caller = schema.object({ id = schema.uuid(), email = schema.string():nullable(), user_type = schema.string():nullable(),
    tenant_key = schema.string(), app_key = schema.string(), roles = schema.array(schema.string()),
    permissions = schema.array(schema.string()), session_id = schema.uuid():nullable() }, { name = "Caller", open = true })
local Signed = schema.object({ success = schema.boolean(), user = User }, { open = true })
-- The password was right, and a code is asked for.
local CodeNeeded = schema.object({ success = schema.boolean(), message = schema.string(), requiresOtp = schema.boolean(),
    identifier = schema.string(), type = schema.enum(TYPES) }, { name = "CodeNeeded", open = true })
local Said = schema.object({ success = schema.boolean(), message = schema.string():optional() }, { open = true })

local function identifier() return schema.string{ not_empty = true, max = 254, messages = { not_empty = "Identifier is required" } } end
local function type_member() return schema.enum(TYPES, { not_empty = true, messages = { not_empty = "Type is required" } }) end

local function client(ctx)
    return { ip = ctx.ip(), user_agent = ctx.user_agent(), nonce = ctx.req:cookie("reg_nonce") }
end

-- The tokens go into cookies; into the body only where the client asks for it.
local function signed_in(ctx, tokens, body)
    cookies.set(ctx, tokens)
    if tokens.reset_token then body.reset_token = tokens.reset_token end
    if ctx.req:header("x-token-response") == "body" then
        body.access_token, body.refresh_token = tokens.access_token, tokens.refresh_token
        body.token_type, body.expires_in = "Bearer", tokens.expires_in
    end
    return body
end

-- A page of another origin that signs its visitor in, on an account of its own choice, would read what they then do there. It can send
-- forms and text without asking first; JSON and headers of ours only if it is some tenant's page: then this tenant must let it in.
local function own_page(ctx)
    local req = ctx.req
    local kind = req:header("content-type") or ""
    if kind:lower():find("^%s*application/json") then
        local origin = req:header("origin")
        if not origin or not tenants.origin_known(origin) then return end
    end
    if web.is_cross_site(req) and web.is_cross_site(req, ctx.app) then
        errors.forbidden{ message = "Cross-site request refused", code = "cross_site" }
    end
end

-- What a cookie alone can do is for the pages of the session's own tenant.
local function own_session(ctx, session)
    if session and web.is_cross_site(ctx.req, web.app_of(ctx.req, session)) then
        errors.forbidden{ message = "Cross-site request refused", code = "cross_site" }
    end
end

route.post("/auth/register", {
    summary = "Begin a registration: a code is mailed",
    access = "public", tag = "auth", idempotent = false, no_store = true,
    body = schema.object{
        email = schema.email{ not_empty = true, max = 254, messages = { not_empty = "Email is required", email = "Invalid email format" } },
        password = schema.string{ not_empty = true, min = 6, max = 1024,
            messages = { not_empty = "Password is required", min = "Password must be at least 6 characters" } },
        display_name = schema.string{ max = 255 }:optional(),
        is_login_after_registration_success = schema.boolean():optional(),
    },
    returns = { [201] = Said, [409] = iam.email_taken },
    handler = function(ctx)
        local made = iam.register(ctx.scope, ctx.body, client(ctx))
        ctx.set_cookie("reg_nonce", made.nonce, 600)
        return json.object({ "success", "user", "message" }, { success = true, user = json.object({ "email", "display_name" },
            { email = made.user.email, display_name = made.user.display_name or null }),
                message = "OTP sent. Verify to complete registration." })
    end,
})

route.post("/auth/login", {
    summary = "Sign in with a password; a code step follows unless the tenant does without",
    access = "public", tag = "auth", idempotent = false, no_store = true, status = 200,
    body = schema.object{
        identifier = schema.string{ not_empty = true, max = 254, messages = { not_empty = "Email or username is required" } },
        password = schema.string{ not_empty = true, min = 6, max = 1024,
            messages = { not_empty = "Password is required", min = "Password must be at least 6 characters" } },
    },
    returns = { [200] = Signed, [401] = CodeNeeded },
    handler = function(ctx)
        own_page(ctx)
        local tokens, user = iam.login(ctx.scope, ctx.body, client(ctx))
        return signed_in(ctx, tokens, { success = true, user = iam.brief(user) })
    end,
})

route.post("/auth/verify-otp", {
    summary = "Prove a code: ends registration, sign-in or recovery",
    access = "public", tag = "auth", idempotent = false, no_store = true, status = 200,
    body = schema.object{
        identifier = identifier(),
        code = schema.string{ not_empty = true, min = 6, max = 10,
            messages = { not_empty = "OTP code is required", min = "OTP must be 6 characters" } },
        type = type_member(),
    },
    returns = { [200] = Signed, [401] = otp.invalid },
    handler = function(ctx)
        own_page(ctx)
        local tokens, user = iam.verify_otp(ctx.scope, ctx.body, client(ctx))
        return signed_in(ctx, tokens, { success = true, user = iam.brief(user) })
    end,
})

route.post("/auth/resend-otp", {
    summary = "Mail a new code of the step that is open",
    access = "public", tag = "auth", idempotent = false, no_store = true, status = 200,
    body = schema.object{ identifier = identifier(), type = type_member() },
    returns = Said,
    handler = function(ctx)
        iam.resend_otp(ctx.scope, ctx.body, client(ctx))
        return { success = true, message = "OTP resent successfully" }
    end,
})

route.post("/auth/cancel-otp", {
    summary = "Take back a registration or sign-in that the same client began",
    access = "public", tag = "auth", idempotent = false, no_store = true, status = 200,
    body = schema.object{ identifier = identifier(), type = type_member() },
    returns = Said,
    handler = function(ctx)
        iam.cancel_otp(ctx.body, client(ctx))
        return { success = true, message = "OTP cancelled and associated process rolled back successfully" }
    end,
})

route.post("/auth/forgot-password", {
    summary = "Mail a recovery code, if there is such an account",
    access = "public", tag = "auth", idempotent = false, no_store = true, status = 200,
    body = schema.object{ identifier = identifier() },
    returns = Said,
    handler = function(ctx)
        iam.forgot_password(ctx.scope, ctx.body, client(ctx))
        return { success = true, message = "If the account exists, a code was sent." }
    end,
})

route.post("/auth/reset-password", {
    summary = "Set a new password with a reset token; ends all sessions",
    access = "public", tag = "auth", idempotent = false, no_store = true, status = 200,
    body = schema.object{
        reset_token = schema.string{ not_empty = true, max = 128 },
        new_password = schema.string{ not_empty = true, min = 6, max = 1024,
            messages = { min = "New password must be at least 6 characters" } },
    },
    returns = Said,
    handler = function(ctx)
        iam.reset_password(ctx.scope, ctx.body, client(ctx))
        return { success = true, message = "Password changed successfully" }
    end,
})

route.post("/auth/refresh", {
    summary = "New tokens for a refresh token, which dies with it",
    access = "public", tag = "auth", idempotent = false, no_store = true, status = 200,
    body = schema.object{ refresh_token = schema.string{ max = 128 }:optional() },
    returns = { [200] = Said, [401] = sessions.reused },
    handler = function(ctx)
        local cookie = ctx.req:cookie("refresh_token")
        if cookie then own_session(ctx, sessions.of_refresh(cookie, true)) end
        local token = cookie or ctx.body.refresh_token
        if not token or token == "" then return { success = false, message = "No refresh token provided" } end
        local tokens = sessions.refresh(ctx.scope, token, client(ctx))
        return signed_in(ctx, tokens, { success = true })
    end,
})

route.post("/auth/introspect", {
    summary = "What a token stands for, for services with a secret key",
    access = { permission = "auth.introspect" }, tag = "auth", idempotent = false, no_store = true, status = 200,
    body = schema.object{ token = schema.string{ not_empty = true, max = 4096 } },
    returns = schema.object({ active = schema.boolean() }, { open = true }),
    handler = function(ctx)
        if ctx.user.kind ~= "key" then errors.forbidden("Forbidden resource") end
        return iam.introspect(ctx.scope, ctx.body.token)
    end,
})

route.post("/auth/logout", {
    summary = "End the session",
    access = "public", ends_session = true, tag = "auth", idempotent = false, no_store = true, status = 200,
    returns = Said,
    handler = function(ctx)
        local who = ctx.user or ctx.stranger
        if who and who.session_id then
            if who.via == "cookie" then own_session(ctx, who) end
            iam.logout(ctx.scope, who.session_id, who.id)
        else
            -- A session whose access token has run out is ended by its refresh token.
            local session = sessions.of_refresh(ctx.req:cookie("refresh_token"))
            if not session then errors.unauthorized("Access token required") end
            own_session(ctx, session)
            iam.logout(ctx.scope, session.id, session.user_id)
        end
        cookies.clear(ctx)
        return { success = true, message = "Logged out successfully" }
    end,
})

route.post("/auth/logout-all", {
    summary = "End all sessions of the caller",
    access = "user", account = true, ends_session = true, tag = "auth", idempotent = false, no_store = true, status = 200,
    returns = Said,
    handler = function(ctx)
        -- A key has no sessions: an answer that all have ended would be untrue.
        if ctx.user.kind ~= "user" then errors.not_found("Session not found") end
        iam.logout_all(ctx.scope, ctx.user.id)
        cookies.clear(ctx)
        return { success = true, message = "Logged out from all sessions" }
    end,
})

route.get("/auth/me", {
    summary = "Who the caller is, for which tenant, and what they may",
    access = "user", account = true, restricted = true, tag = "auth", no_store = true,
    returns = schema.object({ success = schema.boolean(), user = Caller }, { open = true }),
    handler = function(ctx)
        local user = ctx.user
        local roles, permissions = json.array({}), json.array({})
        for i, role in ipairs(ctx.access and ctx.access.roles or {}) do roles[i] = role.role_key end
        for key in pairs(ctx.grants()) do permissions[#permissions + 1] = key end
        table.sort(permissions)
        return { success = true, user = { id = user.id, email = user.email or null, user_type = user.user_type or null,
            tenant_key = ctx.tenant,
            app_key = ctx.app, roles = roles, permissions = permissions, session_id = user.session_id or null } }
    end,
})

route.get("/auth/sessions", {
    summary = "Live sessions of the caller",
    access = "user", account = true, restricted = true, tag = "auth", no_store = true,
    returns = schema.object({ success = schema.boolean(), data = schema.array(schema.any()) }, { open = true }),
    handler = function(ctx)
        local data = json.array({})
        for i, s in ipairs(sessions.live_of(ctx.user.id, time.iso(ctx.now()))) do
            data[i] = { id = s.id, ip_address = s.ip_address or null, user_agent = s.user_agent or null, created_at = s.created_at,
                last_seen_at = s.last_seen_at or null, expires_at = s.expires_at, current = s.id == ctx.user.session_id }
        end
        return { success = true, data = data }
    end,
})

route.post("/auth/sessions/:id/revoke", {
    summary = "End one of the caller's sessions",
    access = "user", account = true, restricted = true, tag = "auth", no_store = true, status = 200,
    params = { id = schema.uuid() },
    returns = Said,
    handler = function(ctx)
        local session = sessions.find(ctx.params.id)
        if not session or session.user_id ~= ctx.user.id or session.revoked_at then errors.not_found("Session not found") end
        iam.logout(ctx.scope, session.id, ctx.user.id)
        return { success = true }
    end,
})

route.post("/auth/context", {
    summary = "New tokens of the session, bound to another tenant",
    access = "user", account = true, tag = "auth", no_store = true, status = 200, idempotent = false,
    body = schema.object{ tenant_key = schema.string{ not_empty = true, max = 63 }, app_key = schema.string{ max = 63 }:optional() },
    returns = Said,
    handler = function(ctx)
        local row = tenants.by_key(ctx.body.tenant_key)
        if ctx.user.restricted then errors.forbidden{ message = "Password change required", code = "password_change_required" } end
        local mine = row and access.of(row.tenant_key, ctx.user.id)
        if not row or not row.is_active then errors.forbidden{ message = "Tenant is not available", code = "tenant_unavailable" } end
        if not mine.member and not access.allows(mine.platform, "tenants.switch") and not iam.is_invited(ctx.user.id, row.tenant_key) then
            errors.forbidden{ message = "You do not belong to this tenant", code = "not_a_member" }
        end
        local app = ctx.body.app_key
        local host = not app and tenants.by_host(ctx.req:header("host"))
        if host and host.tenant_key == row.tenant_key then app = host.app_key end
        if app and app ~= tenants.DEFAULT then
            local found = tenants.app(app)
            if not found or not found.is_active or found.tenant_key ~= row.tenant_key then
                errors.forbidden{ message = "Tenant is not available", code = "tenant_unavailable" }
            end
        end
        local session = ctx.user.session_id and sessions.find(ctx.user.session_id)
        if not session then errors.unauthorized("Access token required") end
        local place = { tenant = row.tenant_key, app = app or tenants.DEFAULT, request = ctx.scope.request }
        local tokens = iam.switch(place, ctx.user.id, session, client(ctx), not mine.member)
        return signed_in(ctx, tokens, { success = true, tenant_key = place.tenant, app_key = place.app })
    end,
})

local Code = schema.object{ code = schema.string{ not_empty = true, min = 6, max = 10, messages = { not_empty = "OTP code is required",
    min = "OTP must be 6 characters" } } }

-- A change of the second factor needs a sign-in of the last ten minutes.
local function recent(ctx)
    iam.check_recent(ctx.user, ctx.now())
    return iam.user(ctx.user.id)
end

route.post("/auth/2fa/setup", {
    summary = "Begin the set-up of a second factor",
    access = "user", account = true, tag = "auth", no_store = true, status = 200, idempotent = false,
    returns = Said,
    handler = function(ctx)
        local made = totp.setup(recent(ctx))
        return { success = true, secret = made.secret, uri = made.uri }
    end,
})

route.post("/auth/2fa/confirm", {
    summary = "Confirm the second factor; answers recovery codes once",
    access = "user", account = true, tag = "auth", no_store = true, status = 200, idempotent = false,
    body = Code,
    returns = Said,
    handler = function(ctx) return { success = true, recovery_codes = totp.confirm(ctx.scope, recent(ctx), ctx.body.code) } end,
})

route.post("/auth/2fa/disable", {
    summary = "Switch the second factor off",
    access = "user", account = true, tag = "auth", no_store = true, status = 200, idempotent = false,
    body = Code:copy(),
    returns = Said,
    handler = function(ctx)
        totp.disable(ctx.scope, recent(ctx), ctx.body.code, ctx.ip())
        return { success = true }
    end,
})

route.get("/.well-known/jwks.json", {
    summary = "Public keys that verify access tokens (none while they are HS256)",
    access = "public", tag = "auth",
    returns = schema.object({ keys = schema.array(schema.any()) }),
    handler = function(ctx)
        ctx.set_header("Cache-Control", "public, max-age=300")
        return signer.jwks()
    end,
})

-- What the pipeline reports ------------------------------------------------------------------------------------------------------

route.on_denied(function(ctx, permission)
    audit.write(ctx.scope, { action = permission, entity_type = "route", entity_id = ctx.method .. " " .. ctx.route, outcome = "denied" })
end)

auth.on_key_denied(function(key, reason, address)
    local scope = { tenant = key.tenant_key, app = key.app_key, request = { ip = address } }
    db.pipeline(key.tenant_key, { audit.auth_row(scope, { action = "KEY_USED_DENIED", target = "key:" .. key.owned_key,
        metadata = { reason = reason } }) })
end)

local switched = seldom.new(600000, 20000)

route.on_switched(function(ctx)
    if not switched:due((ctx.user.session_id or ctx.user.id) .. "|" .. ctx.tenant, ctx.now()) then return end
    local ok, why = pcall(db.pipeline, ctx.tenant, { audit.auth_row({ tenant = ctx.tenant, app = ctx.app, actor_id = ctx.user.id,
        session_id = ctx.user.session_id, request = ctx.scope.request }, { action = "TENANT_SWITCH", user_id = ctx.user.id,
        target = "tenant:" .. ctx.tenant }) })
    if not ok then log.error("a switch of tenant could not be recorded", { error = tostring(why) }, ctx) end
end)
