-- Who is calling. The credential that stands first wins: secret key, bearer (opaque handle or JWT), cookie, gateway header.
-- An opaque handle costs one Redis GET, whose value is the whole identity; a JWT costs one look at its session's revocation; a session that
-- PostgreSQL says has ended opens nothing, whatever Redis holds (ended.lua);
-- a secret key is a PostgreSQL row cached for a second, so that it works without Redis.
-- A bad credential is 401, never "somebody else": nothing falls through to the next kind.
local config = require("core.config")
local crypto = require("core.crypto")
local json = require("core.json")
local redis = require("core.redis")
local sched = require("core.sched")
local time = require("core.time")
local cache = require("kasma.cache")
local db = require("kasma.db")
local ended = require("kasma.ended")
local errors = require("kasma.errors")
local invalidate = require("kasma.invalidate")
local log = require("kasma.log")
local seldom = require("kasma.seldom")
local settings = require("kasma.settings")
local tokens = require("kasma.tokens")
local web = require("kasma.web")

local M = {}

---@class kasma.Identity
---@field id string user or key id
---@field sub string the same
---@field kind "user"|"key"
---@field email string|nil
---@field user_type string|nil
---@field tenant_key string tenant signed in on, or the key's
---@field app_key string
---@field session_id string|nil
---@field via "bearer"|"cookie"|"key"|"gateway"
---@field restricted boolean|nil may only set a new password
---@field family_id string|nil of the session: what a sign-out ends as a whole
---@field scopes table<string, boolean>|nil of a key
---@field expires_at integer|nil epoch ms at which the token ends

local SEEN_EVERY_MS = 900000
M.ISSUER = "kasma"

local function bad() errors.unauthorized("Invalid or expired access token") end

-- Secret and publishable keys ----------------------------------------------------------------------------------------------

local DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

--- Base62 of a number below 2^53, padded to `width`.
---@param number integer
---@param width integer
---@return string
function M.base62(number, width)
    local out = {}
    for i = width, 1, -1 do
        local digit = number % 62
        out[i] = DIGITS:sub(digit + 1, digit + 1)
        number = (number - digit) / 62
    end
    return table.concat(out)
end

--- Random base62 text without bias.
---@param width integer
---@return string
function M.random62(width)
    local out = {}
    while #out < width do
        local raw = crypto.random(width)
        for i = 1, #raw do
            local b = raw:byte(i)
            if b < 248 and #out < width then out[#out + 1] = DIGITS:sub(b % 62 + 1, b % 62 + 1) end
        end
    end
    return table.concat(out)
end

--- The six characters that end a secret key: CRC-32 of all before them.
---@param text string
---@return string
function M.key_checksum(text) return M.base62(crypto.crc32(text), 6) end

local KEY = [[select id, owned_key, tenant_key, app_key, key_type, secret_hash, scopes, allowed_ips::text[] as allowed_ips, expires_at,
  is_active and revoked_at is null as is_active, created_by from access_keys where owned_key = $1]]
local keys = cache.new{ ttl_ms = 1000, max = 5000, load = function(owned_key) return db.one(nil, KEY, owned_key) end }
invalidate.on("key", function(owned_key) keys:drop(owned_key) end)

-- What a key did is noted beside the request: its last use at most every 15 minutes, a refused use at most once a minute and cause.
local used, denied = seldom.new(SEEN_EVERY_MS, 20000), seldom.new(60000, 20000)

local USED = [[update access_keys set last_used_at = $2::timestamptz where id = $1 and (last_used_at is null or last_used_at <
  $3::timestamptz)]]

local function note_used(key)
    local now = time.now()
    if not used:due(key.id, now) then return end
    sched.spawn(function() pcall(db.query, nil, USED, key.id, time.iso(now), time.iso(now - SEEN_EVERY_MS)) end)
end

local denied_sink

--- Tells who records that a known key was refused.
---@param fn fun(key: table, reason: string, address: string|nil)
function M.on_key_denied(fn) denied_sink = fn end

local function deny(key, reason, address)
    if denied_sink and denied:due(key.id .. reason, time.now()) then
        sched.spawn(function()
            local ok, why = pcall(denied_sink, key, reason, address)
            if not ok then log.warn("a refused key was not recorded", { key = key.owned_key, error = tostring(why) }) end
        end)
    end
    bad()
end

-- Raises unless a key that is known holds now, from there; answers when it ends. `address` is the caller's; nil when only the key itself
-- is asked about.
local function check_holds(key, address)
    if not key.is_active then deny(key, "revoked", address) end
    local ends = key.expires_at and time.parse(key.expires_at)
    if ends and ends <= time.now() then deny(key, "expired", address) end
    if address and key.allowed_ips and #key.allowed_ips > 0 then
        local allowed = false
        for _, network in ipairs(key.allowed_ips) do allowed = allowed or web.in_network(address, network) end
        if not allowed then deny(key, "address", address) end
    end
    if address then note_used(key) end
    return ends
end

local function key_identity(text, address)
    local head = text:match("^(ksk_%a+_%w%w%w%w%w%w%w%w)_%w+$")
    if not head or #text ~= #head + 41 or M.key_checksum(text:sub(1, -7)) ~= text:sub(-6) then bad() end
    local key = keys:get(head)
    if not key or not crypto.equal(key.secret_hash, crypto.sha256(text)) then bad() end
    local ends = check_holds(key, address)
    local scopes = {}
    for _, scope in ipairs(key.scopes or {}) do scopes[scope] = true end
    return { id = key.id, sub = key.id, kind = "key", tenant_key = key.tenant_key, app_key = key.app_key, via = "key", scopes = scopes,
        key = head, expires_at = ends }
end

--- Tenant and app that a publishable key names. Raises 401 when it does not hold: who means to be in one shop is not shown another.
---@param text string
---@param address string the caller's
---@return {tenant_key: string, app_key: string}
function M.publishable(text, address)
    local key = #text <= 64 and text:find("^kpk_%a+_%w+$") and keys:get(text)
    if not key or key.key_type ~= "publishable" then bad() end
    check_holds(key, address)
    return key
end

-- Sessions -----------------------------------------------------------------------------------------------------------------

local seen = seldom.new(SEEN_EVERY_MS, 50000)

-- Last seen is written at most every 15 minutes a session.
local function note_seen(session_id, now)
    if not seen:due(session_id, now) then return end
    sched.spawn(function()
        pcall(db.query, nil, [[update auth_sessions set last_seen_at = $2::timestamptz, updated_at = $2::timestamptz
          where id = $1 and (last_seen_at is null or last_seen_at < $3::timestamptz)]], session_id, time.iso(now),
              time.iso(now - SEEN_EVERY_MS))
    end)
end

local function identity_of(entry, via)
    return { id = entry.user_id, sub = entry.user_id, kind = "user", email = entry.email, user_type = entry.user_type,
        tenant_key = entry.tenant_key, app_key = entry.app_key, session_id = entry.sid, via = via, restricted = entry.restricted,
        auth_at = entry.auth_at, amr = entry.amr, family_id = entry.family_id, expires_at = entry.exp }
end

local function opaque_identity(token, via, quiet)
    local text, err = redis.call("GET", "auth:at:" .. crypto.sha256(token))
    if err then error(errors.from_store(err), 0) end
    if type(text) ~= "string" then bad() end
    local entry = json.decode(text)
    if not entry or not entry.user_id or ended.has(entry.sid) then bad() end
    local now = time.now()
    if entry.exp <= now then errors.unauthorized("Token expired") end
    if not quiet then note_seen(entry.sid, now) end
    return identity_of(entry, via)
end

local function jwt_identity(token)
    local claims, err = tokens.verify(token)
    if not claims then
        if err and err.code == "expired" then errors.unauthorized("Token expired") end
        bad()
    end
    if claims.iss ~= M.ISSUER or claims.aud ~= M.ISSUER or type(claims.sid) ~= "string"
        or type(claims.sub) ~= "string" or type(claims.tenant_key) ~= "string" or type(claims.exp) ~= "number" then bad() end
    if ended.has(claims.sid) then bad() end
    local revoked, why = redis.call("GET", "sess:revoked:" .. claims.sid)
    if why then
        if settings.get(claims.tenant_key, "auth.jwt_stateless") ~= true then error(errors.from_store(why), 0) end
    elseif type(revoked) == "string" then
        bad()
    end
    return { id = claims.sub, sub = claims.sub, kind = "user", email = claims.email, user_type = claims.user_type,
        tenant_key = claims.tenant_key, app_key = claims.app_key, session_id = claims.sid, via = "bearer",
        restricted = claims.restricted, auth_at = claims.auth_at, amr = claims.amr, family_id = claims.fam,
        expires_at = claims.exp * 1000 }
end

local GATEWAY_USER = [[select id, email, user_type from users where id = $1 and status = 'active' and not is_locked and deleted_at is null]]
local gateway_users = cache.new{ ttl_ms = 1000, max = 5000, load = function(id) return db.one(nil, GATEWAY_USER, id) end }

local UUID = "^%x%x%x%x%x%x%x%x%-%x%x%x%x%-%x%x%x%x%-%x%x%x%x%-%x%x%x%x%x%x%x%x%x%x%x%x$"

local function gateway_identity(req)
    local secret = config.get("GATEWAY_SHARED_SECRET")
    if not secret or secret == "" then return nil end
    local id = req:header("x-user-id")
    if not id then return nil end
    local given = req:header("x-gateway-secret")
    if not given or not crypto.equal(crypto.sha256(given), crypto.sha256(secret)) then return nil end
    if not id:find(UUID) then bad() end
    local user = gateway_users:get(id:lower())
    if not user then bad() end
    return { id = user.id, sub = user.id, kind = "user", email = user.email, user_type = user.user_type, via = "gateway" }
end

--- The caller's identity, or nil when there is no credential. Raises 401 for a bad one, 503 when it cannot be told.
---@param req table
---@return kasma.Identity|nil
function M.identify(req)
    local header = req:header("authorization")
    if header then
        local token = header:sub(1, 7) == "Bearer " and #header == 71 and header:sub(8)
            or header:match("^[Bb][Ee][Aa][Rr][Ee][Rr]%s+(%S+)%s*$")
        if token then
            if token:sub(1, 4) == "ksk_" then return key_identity(token, web.client_ip(req)) end
            -- Whatever 64 bytes say: only their hash is looked up.
            if #token == 64 then return opaque_identity(token, "bearer") end
            if #token <= 4096 and token:find("^[%w_-]+%.[%w_-]+%.[%w_-]+$") then return jwt_identity(token) end
            bad()
        end
        -- Two words are no token, and nobody's cookie stands in for it. An empty one is what clients send that have none yet.
        if header:find("^[Bb][Ee][Aa][Rr][Ee][Rr]%s+%S") then bad() end
    end
    local key = req:header("x-kasma-key")
    if key and key:sub(1, 4) == "ksk_" then return key_identity(key, web.client_ip(req)) end
    local cookie = req:cookie("access_token")
    if cookie and cookie ~= "" then
        if #cookie ~= 64 then bad() end
        return opaque_identity(cookie, "cookie")
    end
    return gateway_identity(req)
end

--- The identity behind a token that somebody else was shown; nothing is noted as seen or used. Raises 401, or 503 when it cannot be told.
---@param token string opaque handle, JWT or secret key
---@return kasma.Identity
function M.of_token(token)
    if token:sub(1, 4) == "ksk_" then return key_identity(token) end
    if #token == 64 then return opaque_identity(token, "bearer", true) end
    if #token <= 4096 and token:find("^[%w_-]+%.[%w_-]+%.[%w_-]+$") then return jwt_identity(token) end
    return bad()
end

--- Redis key that says that a sign-in has ended, through all rotations of its tokens.
---@param family_id string
---@return string
function M.ended_key(family_id) return "sess:ended:" .. family_id end

--- Whether what an identity was made from holds at this moment: for what was let in and stays. A token that was exchanged for a fresh
--- one since has not ended. Raises when it cannot be told.
---@param identity kasma.Identity
---@return boolean
function M.still(identity)
    if identity.expires_at and identity.expires_at <= time.now() then return false end
    if identity.kind == "key" then
        local key = keys:get(identity.key)
        return key ~= nil and key.is_active == true
    end
    if not identity.family_id then return gateway_users:get(identity.id) ~= nil end
    if ended.has(identity.session_id) then return false end
    local over, err = redis.call("GET", M.ended_key(identity.family_id))
    if err then error(errors.from_store(err), 0) end
    return type(over) ~= "string"
end

--- True when a header carries a secret of our own (service to service), compared in constant time.
---@param req table
---@param header string
---@param setting string name of the configured secret
---@return boolean
function M.has_secret(req, header, setting)
    local wanted, given = config.get(setting), req:header(header)
    if not wanted or wanted == "" or not given then return false end
    return crypto.equal(crypto.sha256(given), crypto.sha256(wanted))
end

return M
