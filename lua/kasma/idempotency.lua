-- The same key, the same answer (Idempotency-Key).
--
-- Ordinary routes: an entry in Redis, claimed before the handler and completed after it. With Redis away they go on without.
-- Routes that move money or stock (`idempotent = "transaction"`): a row of idempotency_records, claimed in a commit of its
-- own and completed in the SAME transaction as the effect, so that a crash before the commit is done again after the lease
-- and one after it is replayed. The handler of such a route puts the statement into its transaction:
--
--     tx:at_commit({ idempotency.complete(ctx, 201, body) })      -- or one more entry of db.pipeline's list
--     return body, 201
--
-- complete() raises by itself (SQLSTATE KS409) when the claim was taken over meanwhile. A refused order (4xx) whose business
-- transaction was rolled back is completed in a small commit by the pipeline; any 5xx frees the key.
local config = require("core.config")
local crypto = require("core.crypto")
local json = require("core.json")
local pg = require("core.pg")
local redis = require("core.redis")
local sched = require("core.sched")
local time = require("core.time")
local uuid = require("core.uuid")
local db = require("kasma.db")
local errors = require("kasma.errors")
local log = require("kasma.log")
local null = require("kasma.null")

local M = {}

-- The lease is real time, so that a test of a dead worker would take a minute: tests may shorten it, production may not.
local LEASE_MS = config.env() == "production" and 60000 or config.get("IDEMPOTENCY_LEASE_MS")
local KEEP_MS, EXTEND_MS = 86400000, math.floor(LEASE_MS / 3)
local EXTEND_MAX = 60 -- a request that is still not over by then has lost its claim: nothing holds a key for ever
local WAIT_MS, POLL_MS = 1000, 50
local BODY_MAX = 1048576

M.reused = errors.declare{ code = "idempotency_reuse", status = 409,
    message = "Idempotency key reused with different payload. Please use a new key for different requests.",
    cause = "The key was used for another request", cure = "Use a new key" }
M.in_progress = errors.declare{ code = "in_progress", status = 409, message = "Request is being processed. Please retry.",
    cause = "The first request with this key has not ended", cure = "Retry after a second with the same key and body" }
M.not_kept = errors.declare{ code = "idempotency_answer", status = 409,
    message = "The request with this key was processed; its answer was too large to be kept. Please read the result.",
    cause = "The answer of the first request was over 1 MiB",
    cure = "Read what it made or changed by GET; sent with a new key it would be done again" }

local DONE = [[
local now = redis.call('GET', KEYS[1])
if not now then return 0 end
local entry = cjson.decode(now)
if entry.t ~= ARGV[1] then return 0 end
if ARGV[2] == '' then redis.call('DEL', KEYS[1]) else redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
return 1]]
-- An entry that is over, as long as it is the one that was read: in its place may stand the claim of somebody who saw it too.
local DROP = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"
local EXTEND = [[
local now = redis.call('GET', KEYS[1])
if now and cjson.decode(now).t == ARGV[1] then redis.call('PEXPIRE', KEYS[1], ARGV[2]) return 1 end
return 0]]

--- The key that the client sent, or nil. 400 when it is malformed or required and missing.
---@param ctx table
---@param required boolean
---@return string|nil
function M.key_of(ctx, required)
    local key, other = ctx.req:header("x-idempotency-key"), ctx.req:header("idempotency-key")
    if key and other and key ~= other then
        errors.bad_request{ message = "X-Idempotency-Key and Idempotency-Key differ", code = "idempotency_key" }
    end
    key = key or other
    if not key then
        if required then errors.bad_request{ message = "X-Idempotency-Key header is required for write operations",
            code = "idempotency_key" } end
        return nil
    end
    if key == "" or #key > 255 or key:find("[^\33-\126]") then
        errors.bad_request{ message = "X-Idempotency-Key must be 1 to 255 visible ASCII characters", code = "idempotency_key" }
    end
    return key
end

local function sorted_query(raw)
    if not raw or raw == "" then return "" end
    local parts = {}
    for part in raw:gmatch("[^&]+") do parts[#parts + 1] = part end
    table.sort(parts)
    return table.concat(parts, "&")
end

-- What the request is about, however its path is written: paths know no case, but what stands in their parameters does (`/apps/Shop`
-- and `/apps/shop` are two).
local function resource_of(ctx)
    local parts = { ctx.route:lower() }
    for name, value in pairs(ctx.req.params or {}) do parts[#parts + 1] = name .. "=" .. value end
    table.sort(parts)
    for i, part in ipairs(parts) do parts[i] = #part .. ":" .. part end
    return table.concat(parts)
end

---@param ctx table
---@param key string
---@param principal string kind:id
---@param raw_body string
---@return table state
function M.start(ctx, key, principal, raw_body)
    local path = resource_of(ctx)
    return {
        key = key,
        scope_hash = crypto.sha256(table.concat({ ctx.tenant, ctx.app, principal, ctx.method, path, key }, "|")),
        fingerprint = crypto.sha256(table.concat({ ctx.method, path, sorted_query(ctx.req.query), raw_body or "" }, "|")),
        token = uuid.v4(),
    }
end

local function extend(state, fn)
    local times = 0
    state.timer = sched.every(EXTEND_MS, function()
        times = times + 1
        if times > EXTEND_MAX then return state.timer:stop() end
        fn()
    end)
end

local function replay(status, content_type, body)
    return { replay = true, status = status, body = body,
        headers = { ["Content-Type"] = content_type, ["Idempotent-Replayed"] = "true" } }
end

-- Ordinary routes: Redis -------------------------------------------------------------------------------------------------

local function redis_key(state) return "idem:" .. state.scope_hash end

-- An answer may hold what is shown once (the secret of a new key). It lies sealed under the client's own key, of which only a hash is
-- kept, so that who reads Redis does not read it.
local function sealing(state) return crypto.hkdf(state.key, "kasma idempotent answer", 32) end

---@param state table
---@return table|nil answer to replay; nil = go on
function M.claim_redis(state)
    local key = redis_key(state)
    local waited = 0
    while true do
        local now = time.now()
        local claim = json.encode{ s = "p", f = state.fingerprint, t = state.token, exp = now + LEASE_MS }
        local set, err = redis.call("SET", key, claim, "NX", "PX", tostring(LEASE_MS))
        if err then
            log.warn("idempotency without Redis", { why = err.message })
            return nil
        end
        if set == "OK" then
            state.held = true
            return nil
        end
        local text = redis.call("GET", key)
        local entry = type(text) == "string" and json.decode(text) or nil
        if entry and entry.s == "d" and entry.exp <= now then
            redis.eval(DROP, { key }, { text })
        elseif entry then
            if entry.f ~= state.fingerprint then M.reused() end
            if entry.s == "d" then
                if entry.large then M.not_kept() end
                local body = crypto.unbase64(entry.body)
                if entry.sealed then body = crypto.open(sealing(state), body, state.scope_hash) end
                if body then return replay(entry.code, entry.ct, body) end
                M.in_progress{ headers = { ["Retry-After"] = "1" } } -- damaged: what was done is not done again
            end
            if waited >= WAIT_MS then M.in_progress{ headers = { ["Retry-After"] = "1" } } end
            sched.sleep(POLL_MS)
            waited = waited + POLL_MS
        end
    end
end

--- Keeps the claim alive while the handler runs; ends by itself with the request.
---@param state table
function M.keep_redis(state)
    extend(state, function() redis.eval(EXTEND, { redis_key(state) }, { state.token, tostring(LEASE_MS) }) end)
end

---@param state table
---@param status integer|nil nil = free the key
---@param content_type string|nil
---@param body string|nil
function M.finish_redis(state, status, content_type, body)
    if state.timer then state.timer:stop() end
    if not state.held then return end
    state.held = false
    local entry = ""
    if status then
        local done = { s = "d", f = state.fingerprint, t = state.token, code = status, exp = time.now() + KEEP_MS }
        if #(body or "") <= BODY_MAX then
            done.ct, done.sealed = content_type or "", true
            done.body = crypto.base64(crypto.seal(sealing(state), body or "", state.scope_hash))
        else
            done.large = true -- the key stays taken: what was done is not done again
        end
        entry = json.encode(done)
    end
    redis.eval(DONE, { redis_key(state) }, { state.token, entry, tostring(KEEP_MS) })
end

-- Money, stock, checkout: PostgreSQL --------------------------------------------------------------------------------------

local CLAIM = [[insert into idempotency_records (tenant_key, app_key, scope_hash, fingerprint, claim, lease_until, created_at, expires_at)
  values ($1, $2, $3, $4, $5::uuid, $6::timestamptz, $7::timestamptz, $8::timestamptz)
  on conflict (tenant_key, scope_hash) do update set claim = excluded.claim, fingerprint = excluded.fingerprint,
    lease_until = excluded.lease_until, status_code = null, headers = null, body = null, created_at = excluded.created_at,
    expires_at = excluded.expires_at
  where (idempotency_records.status_code is null and idempotency_records.lease_until < $9::timestamptz
      and idempotency_records.fingerprint = excluded.fingerprint)
    or (idempotency_records.status_code is not null and idempotency_records.expires_at <= $7::timestamptz)
  returning claim]]
local LOOK = [[select fingerprint, status_code, headers, body from idempotency_records where tenant_key = $1 and scope_hash = $2]]
local COMPLETE = [[with done as (update idempotency_records set status_code = $4, headers = $5::jsonb, body = $6::bytea
    where tenant_key = $1 and scope_hash = $2 and claim = $3::uuid and status_code is null returning 1)
  select kasma_must((select count(*) from done) = 1, 'KS409')]]
local KEEP = [[update idempotency_records set lease_until = $4::timestamptz
  where tenant_key = $1 and scope_hash = $2 and claim = $3::uuid and status_code is null]]
local FREE = [[delete from idempotency_records where tenant_key = $1 and scope_hash = $2 and claim = $3::uuid and status_code is null]]

---@param ctx table
---@param state table
---@return table|nil answer to replay; nil = go on
function M.claim(ctx, state)
    local waited = 0
    while true do
        local now, real = time.now(), time.real()
        -- Held until the answer says otherwise: when it is lost, a claim may stand that must be freed.
        state.held = true
        local rows = db.query(ctx.tenant, CLAIM, ctx.tenant, ctx.app, state.scope_hash, state.fingerprint, state.token,
            time.iso(real + LEASE_MS), time.iso(now), time.iso(now + KEEP_MS), time.iso(real))
        if rows[1] then
            extend(state, function()
                db.query(ctx.tenant, KEEP, ctx.tenant, state.scope_hash, state.token, time.iso(time.real() + LEASE_MS))
            end)
            return nil
        end
        state.held = false
        local row = db.query(ctx.tenant, LOOK, ctx.tenant, state.scope_hash)[1]
        if row then
            if row.fingerprint ~= state.fingerprint then M.reused() end
            if row.status_code then
                local headers = type(row.headers) == "table" and row.headers or {}
                return replay(row.status_code, headers.ct, row.body)
            end
            if waited >= WAIT_MS then M.in_progress{ headers = { ["Retry-After"] = "1" } } end
            sched.sleep(POLL_MS)
            waited = waited + POLL_MS
        end
    end
end

--- The statement that completes the caller's claim, for the business transaction. Without a key (none was sent) it is a
--- harmless SELECT, so that handlers need no case for it. The answer is stored byte for byte as it will be sent.
---@param ctx table
---@param status integer
---@param body any what the handler will return
---@return table statement
function M.complete(ctx, status, body)
    local state = ctx.idempotency
    if not state or not state.held or not state.transaction then return { "select 1" } end
    local text = body == nil and "" or json.encode(body)
    ctx.encoded = { body = body, text = text }
    state.completed = true
    return { COMPLETE, ctx.tenant, state.scope_hash, state.token, status, pg.json{ ct = body ~= nil and M.json_type or "" },
        pg.bytea(text) }
end
M.json_type = "application/json; charset=utf-8"

--- After the handler: completes (or frees) a claim that the business transaction did not.
---@param ctx table
---@param state table
---@param failed boolean the handler raised
---@param status integer|nil nil = free the key
---@param content_type string|nil
---@param body string|nil
function M.finish(ctx, state, failed, status, content_type, body)
    if state.timer then state.timer:stop() end
    if not state.held then return end
    if state.completed and not failed then
        state.held = false
        return
    end
    state.held = false
    local function settle()
        local ok, err
        if status then
            ok, err = pcall(db.query, ctx.tenant, COMPLETE, ctx.tenant, state.scope_hash, state.token, status,
                pg.json{ ct = content_type or "" }, body and pg.bytea(body) or null)
        else
            ok, err = pcall(db.query, ctx.tenant, FREE, ctx.tenant, state.scope_hash, state.token)
        end
        return ok or errors.sqlstate(err) == "KS409"
    end
    if settle() then return end
    -- The client has gone, so that this task waits for nothing any more, or the database was away: a task of its own goes on, else whoever
    -- comes back with the key would wait for the end of the lease.
    local over = time.real() + LEASE_MS
    sched.spawn(function()
        local pause = 100
        while not settle() do
            if time.real() > over or sched.stopping() then
                log.warn("idempotency record left to its lease", { tenant = ctx.tenant })
                return
            end
            sched.sleep(pause)
            pause = math.min(pause * 2, 2000)
        end
    end)
end

return M
