-- The second factor: TOTP (RFC 6238, SHA-1, 30 s, six digits) with recovery codes. The secret lies sealed; a code holds once.
local bit = require("bit")
local crypto = require("core.crypto")
local json = require("core.json")
local pg = require("core.pg")
local redis = require("core.redis")
local time = require("core.time")
local uuid = require("core.uuid")
local audit = require("kasma.audit")
local db = require("kasma.db")
local errors = require("kasma.errors")
local secrets = require("kasma.secrets")
local ratelimit = require("kasma.ratelimit")

local M = {}

local STEP_MS, DRIFT, RECOVERY = 30000, 1, 10

local READ = [[select id, secret_enc, confirmed_at, recovery_hashes from user_credentials where user_id = $1 and provider = 'totp' and
  is_active]]

--- The code of a time step.
---@param secret string raw
---@param step integer
---@return string six digits
function M.code(secret, step)
    local counter = {}
    for i = 8, 1, -1 do
        counter[i] = string.char(step % 256)
        step = math.floor(step / 256)
    end
    local mac = crypto.hmac_sha1_raw(secret, table.concat(counter))
    local offset = bit.band(mac:byte(20), 15) + 1
    local a, b, c, d = mac:byte(offset, offset + 3)
    local number = bit.band(a, 127) * 16777216 + b * 65536 + c * 256 + d
    return ("%06d"):format(number % 1000000)
end

local function matches(secret, code, user_id)
    local now = math.floor(time.now() / STEP_MS)
    for step = now - DRIFT, now + DRIFT do
        if crypto.equal(M.code(secret, step), code) then
            -- A code that was seen does not hold again.
            local first, err = redis.call("SET", ("totp:%s:%d"):format(user_id, step), "1", "NX", "PX",
                tostring(STEP_MS * (2 * DRIFT + 2)))
            if err then error(errors.from_store(err), 0) end -- Redis is away: the code is not wrong
            return first == "OK"
        end
    end
    return false
end

--- Makes a secret that waits for its confirmation.
---@param user table
---@return {secret: string, uri: string}
function M.setup(user)
    local row = db.one(nil, READ, user.id)
    if row and row.confirmed_at then errors.bad_request{ message = "A second factor is set up already", code = "totp_exists" } end
    local secret = crypto.random(20)
    local id, now = row and row.id or uuid.v7(), time.iso(time.now())
    db.query(nil, [[insert into user_credentials (id, user_id, provider, secret_enc, created_at, updated_at)
      values ($1, $2, 'totp', $3, $4::timestamptz, $4::timestamptz)
      on conflict (user_id, provider) do update set secret_enc = excluded.secret_enc, updated_at = excluded.updated_at, is_active = true
        where user_credentials.confirmed_at is null]],
        id, user.id, pg.bytea(secrets.seal("totp", secret, user.id)), now)
    local text = crypto.base32(secret):gsub("=", "")
    return { secret = text, uri = ("otpauth://totp/Kasma:%s?secret=%s&issuer=Kasma&digits=6&period=30"):format(user.email, text) }
end

local function opened(user_id)
    local row = db.one(nil, READ, user_id)
    if not row or not row.secret_enc then return nil end
    return row, secrets.open("totp", row.secret_enc, user_id)
end

--- Confirms the secret by a code; answers the recovery codes, shown once.
---@param scope Scope
---@param user table
---@param code string
---@return string[]
function M.confirm(scope, user, code)
    local row, secret = opened(user.id)
    if not secret or row.confirmed_at then errors.bad_request{ message = "Nothing waits for confirmation", code = "totp_none" } end
    if not matches(secret, code, user.id) then errors.unauthorized{ message = "Invalid or expired OTP", code = "otp_invalid" } end
    local codes, hashes = {}, {}
    for i = 1, RECOVERY do
        codes[i] = crypto.random_hex(5)
        hashes[i] = crypto.sha256(user.id .. codes[i])
    end
    local now = time.iso(time.now())
    -- The secret that the code was of, and no other that was set up meanwhile.
    local statements = { { [[with done as (update user_credentials set confirmed_at = $2::timestamptz, recovery_hashes = $3::text[],
        updated_at = $2::timestamptz
        where user_id = $1 and provider = 'totp' and confirmed_at is null and secret_enc = $4 returning 1)
      select kasma_must((select count(*) from done) = 1, 'KS409')]], user.id, now, pg.array(hashes), pg.bytea(row.secret_enc) } }
    audit.append(statements, scope, { action = "users.totp_on", entity_type = "user", entity_id = user.id })
    errors.state({ KS409 = { status = 400, message = "Nothing waits for confirmation", code = "totp_none" } }, db.pipeline, scope.tenant,
        statements)
    return json.array(codes)
end

---@param scope Scope
---@param user table
---@param code string
---@param ip string
function M.disable(scope, user, code, ip)
    if not M.verify(user.id, code, ip) then errors.unauthorized{ message = "Invalid or expired OTP", code = "otp_invalid" } end
    local statements = { { "delete from user_credentials where user_id = $1 and provider = 'totp'", user.id } }
    audit.append(statements, scope, { action = "users.totp_off", entity_type = "user", entity_id = user.id })
    db.pipeline(scope.tenant, statements)
end

--- True for a code of the confirmed secret, or a recovery code, which is used up.
---@param user_id string
---@param code string
---@param ip string
---@return boolean
function M.verify(user_id, code, ip)
    ratelimit.auth("verify_identifier", "totp:" .. user_id, ip)
    local row, secret = opened(user_id)
    if not secret or not row.confirmed_at then return false end
    if #code == 6 then return matches(secret, code, user_id) end
    local used = db.query(nil, [[update user_credentials set recovery_hashes = array_remove(recovery_hashes, $2), updated_at =
      $3::timestamptz
      where user_id = $1 and provider = 'totp' and $2 = any(recovery_hashes) returning id]], user_id,
        crypto.sha256(user_id .. code:lower()), time.iso(time.now()))
    return used[1] ~= nil
end

local BATCH = 200
local FIRST_ID = "00000000-0000-0000-0000-000000000000"

-- Factors that another version than `newest` sealed, a batch at a time. What is set up anew meanwhile keeps its own.
local function rotate(newest)
    local done, lost, after = 0, 0, FIRST_ID
    repeat
        local rows = db.query(nil, [[select id, user_id, secret_enc from user_credentials where provider = 'totp'
          and secret_enc is not null and get_byte(secret_enc, 0) <> $1 and id > $2 order by id limit $3]], newest, after, BATCH)
        for _, row in ipairs(rows) do
            local sealed = secrets.reseal("totp", row.secret_enc, row.user_id)
            if sealed then
                done = done + db.query(nil, [[update user_credentials set secret_enc = $3, updated_at = $4::timestamptz
                  where id = $1 and secret_enc = $2]], row.id, pg.bytea(row.secret_enc), pg.bytea(sealed), time.iso(time.now())).affected
            else
                lost = lost + 1
            end
            after = row.id
        end
    until #rows < BATCH
    return done, lost
end

secrets.kept{ name = "second factors", rotate = rotate, lost = "their holders sign in by recovery code, or staff helps",
    count = function()
        local counts = {}
        for _, row in ipairs(db.query(nil, [[select get_byte(secret_enc, 0) as version, count(*)::int as n from user_credentials
          where provider = 'totp' and secret_enc is not null group by 1]])) do counts[row.version] = row.n end
        return counts
    end }

---@param user_id string
---@return boolean
function M.is_on(user_id)
    local row = db.one(nil, READ, user_id)
    return row ~= nil and row.confirmed_at ~= nil
end

return M
