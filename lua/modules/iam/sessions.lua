-- Sessions: an opaque handle outside, a signed JWT inside, one row per rotation. Redis answers who a handle is; PostgreSQL knows
-- the family, so that a refresh token that comes back after its rotation ends all of them.
local config = require("core.config")
local crypto = require("core.crypto")
local json = require("core.json")
local redis = require("core.redis")
local sched = require("core.sched")
local time = require("core.time")
local uuid = require("core.uuid")
local audit = require("kasma.audit")
local auth = require("kasma.auth")
local db = require("kasma.db")
local ended = require("kasma.ended")
local errors = require("kasma.errors")
local invalidate = require("kasma.invalidate")
local log = require("kasma.log")
local outbox = require("kasma.outbox")
local ratelimit = require("kasma.ratelimit")
local signer = require("kasma.tokens")
local web = require("kasma.web")
local store = require("modules.iam.store")

local M = {}

M.ACCESS_COOKIE_S = 1800
local EXCHANGED_PAGE = 500
local ACCESS_MS, REFRESH_MS, FAMILY_MS, OVERLAP_MS, RESTRICTED_MS = 1800000, 604800000, 2592000000, 10000, 600000

local function duration_ms(text, default)
    local amount, unit = tostring(text or ""):match("^(%d+)([smhd]?)$")
    if not amount then return default end
    return tonumber(amount) * ({ s = 1000, m = 60000, h = 3600000, d = 86400000, [""] = 1000 })[unit]
end

local function jwt_ms() return duration_ms(config.get("JWT_EXPIRES_IN"), 900000) end
local function refresh_ms() return duration_ms(config.get("REFRESH_EXPIRES_IN"), REFRESH_MS) end
-- How long a handle, or the word that its session has ended, is needed: until the token in it has run out.
local function handle_ms() return math.max(ACCESS_MS, jwt_ms()) end

--- How long a token can outlive its session, in ms.
---@return integer
function M.token_life_ms() return handle_ms() end

--- Life of the refresh cookie in seconds.
---@return integer
function M.refresh_cookie_s() return math.floor(refresh_ms() / 1000) end

---@class kasma.Tokens
---@field access_token string
---@field refresh_token string
---@field jwt string
---@field expires_in integer seconds
---@field session_id string

-- Makes tokens and the row of a session.
local function mint(user, place, opts)
    local now = time.now()
    local tokens = { access_token = crypto.random_hex(32), refresh_token = crypto.random_hex(32), session_id = uuid.v7() }
    local family_id = opts.family_id or uuid.v7()
    local life = opts.restricted and RESTRICTED_MS or jwt_ms()
    tokens.expires_in = math.floor(life / 1000)
    tokens.claims = { sub = user.id, email = user.email, user_type = user.user_type, iat = math.floor(now / 1000),
        exp = math.floor((now + life) / 1000), iss = auth.ISSUER, aud = "kasma", jti = uuid.v7(), sid = tokens.session_id,
        tenant_key = place.tenant, app_key = place.app, ver = user.token_version, restricted = opts.restricted or nil,
        auth_at = opts.auth_at or now, amr = json.array(opts.amr), fam = family_id }
    tokens.jwt = signer.sign(tokens.claims)
    tokens.entry = { sid = tokens.session_id, user_id = user.id, email = user.email, user_type = user.user_type, tenant_key = place.tenant,
        app_key = place.app, jwt = tokens.jwt, ver = user.token_version, exp = now + life, restricted = opts.restricted or nil,
        auth_at = opts.auth_at or now, amr = json.array(opts.amr), family_id = family_id }
    local expires = now + (opts.restricted and RESTRICTED_MS or refresh_ms())
    if opts.family_until and opts.family_until < expires then expires = opts.family_until end
    tokens.refresh_until = expires
    tokens.row = { id = tokens.session_id, user_id = user.id, access_token = crypto.sha256(tokens.access_token),
        refresh_token = crypto.sha256(tokens.refresh_token), ip = web.kept_address(opts.ip),
        family_id = family_id, parent_id = opts.parent_id, user_agent = opts.user_agent and opts.user_agent:sub(1, 512),
        tenant_key = place.tenant, app_key = place.app, amr = opts.amr, restricted = opts.restricted, now = time.iso(now),
        expires_at = time.iso(expires) }
    return tokens
end

local function put_handles(tokens)
    local access_ms = tostring(handle_ms())
    local commands = { { "SET", "auth:at:" .. tokens.row.access_token, json.encode(tokens.entry), "PX", access_ms },
        { "SET", "auth:rt:" .. tokens.row.refresh_token, json.encode{ sid = tokens.session_id, family_id = tokens.row.family_id,
            exp = tokens.refresh_until }, "PX", tostring(math.max(1, tokens.refresh_until - time.now())) } }
    if config.get("AUTH_REDIS_COMPAT") == true then
        commands[3] = { "SET", "auth:token:" .. tokens.access_token,
            json.encode{ value = tokens.jwt, expires = tokens.entry.exp }, "PX", access_ms }
        -- The former backend's key is the handle itself, which is nowhere else: what ends the session must find it.
        commands[4] = { "SET", "auth:compat:" .. tokens.row.access_token, tokens.access_token, "PX", access_ms }
    end
    for _, answer in ipairs(errors.check(redis.pipeline(commands))) do
        if type(answer) == "table" and answer.err then errors.unavailable{ message = "Service temporarily unavailable",
            code = "store_unavailable" } end
    end
end

-- The handles come first: nobody has seen the tokens yet, so that a row that then cannot be written leaves nothing usable behind, and
-- with Redis away nothing is rotated or written at all.
local function commit(tokens, tenant, statements)
    put_handles(tokens)
    local ok, result = pcall(db.pipeline, tenant, statements)
    if ok then return result end
    redis.call("DEL", "auth:at:" .. tokens.row.access_token, "auth:rt:" .. tokens.row.refresh_token,
        "auth:token:" .. tokens.access_token, "auth:compat:" .. tokens.row.access_token)
    error(result, 0)
end

M.overtaken = errors.declare{ code = "account_changed", status = 401, message = "Account is locked or suspended",
    cause = "the account was locked, deleted or signed out everywhere in the same moment", cure = "sign in again" }

--- Signs a user in. `also` are statements of the same transaction.
---@param scope Scope
---@param user table
---@param opts {amr: string[], ip: string|nil, user_agent: string|nil, restricted: boolean|nil}
---@param also table[]
---@return kasma.Tokens
function M.open(scope, user, opts, also)
    local tokens = mint(user, scope, opts)
    local now = time.now()
    local statements = { store.user_stands(user.id, user.token_version), store.insert_session(tokens.row),
        store.touch_login(user.id, time.iso(now), time.iso(now - 3600000)) }
    for _, statement in ipairs(also) do statements[#statements + 1] = statement end
    statements[#statements + 1] = audit.auth_row(scope, { action = "LOGIN_SUCCESS", user_id = user.id, target = "user:" .. user.id,
        metadata = { amr = json.array(opts.amr) }, session_id = tokens.session_id })
    errors.state({ KS409 = M.overtaken }, commit, tokens, scope.tenant, statements)
    return tokens
end

-- Drops the former backend's keys of these handles.
local function drop_compat(hashes)
    if config.get("AUTH_REDIS_COMPAT") ~= true then return end
    local asks = {}
    for i, hash in ipairs(hashes) do asks[i] = { "GET", "auth:compat:" .. hash } end
    local drops = {}
    for i, handle in ipairs(errors.check(redis.pipeline(asks))) do
        if type(handle) == "string" then drops[#drops + 1] = { "DEL", "auth:token:" .. handle, "auth:compat:" .. hashes[i] } end
    end
    if drops[1] then errors.check(redis.pipeline(drops)) end
end

-- The handles of ended sessions are dropped everywhere at once: they lie in Redis alone. Of one that was only exchanged for fresh ones
-- (`rotated`) they alone go.
local function drop_handles(rows)
    if #rows == 0 then return end
    local commands = {}
    for _, row in ipairs(rows) do
        commands[#commands + 1] = { "DEL", "auth:at:" .. row.access_token, "auth:rt:" .. row.refresh_token }
        if not row.rotated then
            ended.add(row.id, time.now())
            table.insert(commands[#commands], "auth:rtn:" .. row.refresh_token)
        end
        commands[#commands + 1] = { "SET", "sess:revoked:" .. row.id, tostring(time.now() + handle_ms()), "PX", tostring(handle_ms()) }
    end
    -- Connections that stay open were let in by one of the family, and outlive its rotation.
    local families = {}
    for _, row in ipairs(rows) do
        if not families[row.family_id] and not row.rotated then
            commands[#commands + 1] = { "SET", auth.ended_key(row.family_id), tostring(time.now() + handle_ms()), "PX",
                tostring(handle_ms()) }
        end
        if not row.rotated then families[row.family_id] = true end
    end
    errors.check(redis.pipeline(commands))
    for family_id in pairs(families) do invalidate.send("session", family_id) end
    local hashes = {}
    for i, row in ipairs(rows) do hashes[i] = row.access_token end
    drop_compat(hashes)
end

--- Ends sessions by id, family or user; `also` are statements of the same transaction (its rows come back).
---@param scope Scope
---@param by "id"|"family"|"user"
---@param value string
---@param reason string
---@param also table[]|nil
---@param except string|nil family to keep
---@return table[][] results of `also`
function M.revoke(scope, by, value, reason, also, except)
    local user = by == "user" and value or scope.actor_id
    local statements = { store.revoke_sessions(by, value, reason, time.iso(time.now()), except) }
    for _, statement in ipairs(also or {}) do statements[#statements + 1] = statement end
    if user then
        table.insert(statements, 1, store.hold_user(user))
        statements[#statements + 1] = outbox.row(scope, "sessions", user, { user_id = user })
    end
    local results = db.transaction(scope.tenant, function(tx)
        local rows, told = tx:pipeline(statements), {}
        if user then table.remove(rows, 1) end
        for _, row in ipairs(rows[1]) do
            if row.head then
                told[#told + 1] = outbox.event(scope, "session.revoked", row.id, { userId = row.user_id, reason = reason })
            end
        end
        if told[1] then tx:at_commit(told) end
        return rows
    end)
    local dropped, why = pcall(drop_handles, results[1])
    if not dropped then
        -- The act is done. While Redis is away its handles open nothing; the outbox drops them when it is back.
        -- Should Redis come back with what it held before: every process hears of it from PostgreSQL within a second (kasma/ended.lua).
        if not errors.is_unavailable(why) or not user then error(why, 0) end
        log.warn("ended sessions are dropped when Redis is back", { user = user, reason = reason })
    end
    table.remove(results, 1)
    return results
end

--- Drops the handles of what ended of a user's sessions lately, once more: what could not be dropped in the act itself goes now.
---@param user_id string
function M.drop_ended(user_id) drop_handles(store.sessions_ended(user_id, time.iso(time.now() - handle_ms()))) end

-- The least uuid v7 of a millisecond.
local function first_id(ms)
    local hex = ("%012x"):format(ms)
    return hex:sub(1, 8) .. "-" .. hex:sub(9) .. "-7000-8000-000000000000"
end

--- Drops the handles of sessions that were exchanged lately, where Redis has forgotten that it was told to: it was away, and may have come
--- back with what it held before. (Sessions that ended are known beside it: kasma/ended.lua.)
---@return integer dropped
function M.drop_exchanged()
    local dropped, after = 0, first_id(math.max(0, time.now() - handle_ms()))
    repeat
        local rows, lost = store.sessions_exchanged(after, EXCHANGED_PAGE), {}
        local asks = {}
        for i, row in ipairs(rows) do asks[i] = { "EXISTS", "sess:revoked:" .. row.id } end
        for i, there in ipairs(asks[1] and errors.check(redis.pipeline(asks)) or {}) do
            after = rows[i].fresh_id
            if there == 0 then
                rows[i].rotated = true
                lost[#lost + 1] = rows[i]
            end
        end
        drop_handles(lost)
        dropped = dropped + #lost
    until #rows < EXCHANGED_PAGE or sched.stopping()
    return dropped
end

M.reused = errors.declare{ code = "refresh_invalid", status = 401, message = "Invalid or expired refresh token",
    cause = "the refresh token is unknown, expired, revoked or was used before", cure = "sign in again" }

local function overlap_key(refresh_token) return crypto.hkdf(refresh_token, "kasma refresh overlap", 32) end

-- The answer of a rotation for whoever brings the same refresh token within ten seconds (parallel tabs). It is sealed under
-- the old token itself, so that only its holder can open it.
local function keep_overlap(old_token, old_hash, tokens)
    local plain = json.encode{ access_token = tokens.access_token, refresh_token = tokens.refresh_token, jwt = tokens.jwt,
        expires_in = tokens.expires_in, session_id = tokens.session_id, until_ms = time.now() + OVERLAP_MS }
    local sealed = crypto.base64(crypto.seal(overlap_key(old_token), plain, old_hash))
    local _, err = redis.call("SET", "auth:rtn:" .. old_hash, sealed, "PX", tostring(OVERLAP_MS))
    if err then log.warn("refresh overlap was not kept", { why = err.message }) end
end

local function find_overlap(old_token, old_hash)
    for _ = 1, 20 do
        local sealed, err = redis.call("GET", "auth:rtn:" .. old_hash)
        if err then error(errors.from_store(err), 0) end
        if type(sealed) == "string" then
            local plain = crypto.open(overlap_key(old_token), crypto.unbase64(sealed), old_hash)
            local tokens = plain and json.decode(plain)
            if tokens and tokens.until_ms > time.now() then return tokens end
            return nil
        end
        sched.sleep(25)
    end
    return nil
end

-- Rotates a session to new tokens, on `place`; what came too late raises KS409. The time of the sign-in stays that of the family, so that
-- refreshing makes no sign-in look recent.
local function rotate(own, user, session, opts)
    local now = time.now()
    local began = time.parse(store.family_start(session.family_id).created_at)
    if began + FAMILY_MS <= now then M.reused() end
    local tokens = mint(user, own, { amr = session.amr, ip = opts.ip, user_agent = opts.user_agent, family_id = session.family_id,
        parent_id = session.id, family_until = began + FAMILY_MS, auth_at = began })
    local statements = { store.user_stands(user.id, user.token_version), store.rotate_session(session.id, time.iso(now)),
        store.insert_session(tokens.row),
        audit.auth_row(own, { action = "TOKEN_REFRESH", user_id = user.id, target = "user:" .. user.id, session_id = tokens.session_id }) }
    for _, statement in ipairs(opts.also or {}) do statements[#statements + 1] = statement end
    commit(tokens, own.tenant, statements)
    -- The exchange is done, and its answer must reach the client: were it an error, the client would come again with a token that is used.
    local dropped, why = pcall(drop_handles, { { id = session.id, access_token = session.access_token, rotated = true,
        refresh_token = session.refresh_token, family_id = session.family_id } })
    if not dropped then
        log.warn("the handle before is dropped when Redis is back", { user = user.id, why = tostring(why) })
        local noted, cause = pcall(db.pipeline, own.tenant, { outbox.row(own, "sessions", user.id, { user_id = user.id }) })
        if not noted then log.error("a handle may live on until it expires", { user = user.id, error = tostring(cause) }) end
    end
    return tokens
end

--- Rotates both tokens. Raises 401; a token used again later than the overlap ends its whole family.
---@param scope Scope of the session (tenant and app it was opened on are kept)
---@param refresh_token string
---@param place {ip: string, user_agent: string|nil}
---@return kasma.Tokens
function M.refresh(scope, refresh_token, place)
    if #refresh_token ~= 64 or not refresh_token:find("^%x+$") then M.reused() end
    local hash = crypto.sha256(refresh_token)
    local session = store.session_by_refresh(hash)
    local now = time.now()
    -- A session that may only set a password ends with its access token.
    if not session or session.revoked_at or session.restricted or time.parse(session.expires_at) <= now then M.reused() end
    ratelimit.auth("refresh_session", session.family_id, place.ip)
    local own = { tenant = session.tenant_key, app = session.app_key, actor_id = session.user_id, actor_kind = "user",
        session_id = session.id, request = scope.request }
    local function overlap_or_end()
        local fresh = now - time.parse(session.rotated_at or time.iso(now)) <= OVERLAP_MS
        if fresh then
            -- Not found: Redis lost it. Whoever asks gets nothing, and nobody is signed out for it.
            return find_overlap(refresh_token, hash) or M.reused()
        end
        M.revoke(own, "family", session.family_id, "token_reuse", { audit.auth_row(own, { action = "TOKEN_REUSE", user_id = session.user_id,
            target = "user:" .. session.user_id, session_id = session.id }) })
        return M.reused()
    end
    if session.rotated_at then return overlap_or_end() end

    local function exchange()
        local user = store.user(session.user_id)
        if not user or user.status ~= "active" or user.is_locked or user.deleted_at then
            errors.unauthorized("User not found or inactive")
        end
        return rotate(own, user, session, place)
    end
    local ok, tokens = pcall(exchange)
    if not ok and errors.sqlstate(tokens) == "KS409" then
        session = store.session_by_refresh(hash)
        if session.revoked_at then M.reused() end
        if session.rotated_at then return overlap_or_end() end
        -- The account changed in between, and this session was left alone: a new password is such a change.
        ok, tokens = pcall(exchange)
    end
    if not ok then
        if errors.sqlstate(tokens) == "KS409" then M.reused() end
        error(tokens, 0)
    end
    keep_overlap(refresh_token, hash, tokens)
    return tokens
end

--- The session that a refresh token stands for, when it is alive.
---@param refresh_token string|nil
---@param any boolean|nil also one that has ended or was exchanged
---@return table|nil
function M.of_refresh(refresh_token, any)
    if not refresh_token or #refresh_token ~= 64 then return nil end
    local session = store.session_by_refresh(crypto.sha256(refresh_token))
    if any then return session end
    if not session or session.revoked_at or session.rotated_at or time.parse(session.expires_at) <= time.now() then return nil end
    return session
end

M.find = store.session
M.live_of = store.sessions_of

--- New tokens of the same session on another tenant; the old ones end.
---@param scope Scope tenant and app to bind to
---@param user table
---@param old table the session now
---@param place {ip: string, user_agent: string|nil}
---@param also table[] statements of the same transaction
---@return kasma.Tokens
function M.switch(scope, user, old, place, also)
    local own = { tenant = scope.tenant, app = scope.app, actor_id = user.id, actor_kind = "user", session_id = old.id,
        request = scope.request }
    local ok, tokens = pcall(rotate, own, user, old, { ip = place.ip, user_agent = place.user_agent, also = also })
    if ok then return tokens end
    if errors.sqlstate(tokens) == "KS409" then M.reused() end
    error(tokens, 0)
end

return M
