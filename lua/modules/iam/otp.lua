-- One-time codes: six digits, five minutes, five tries, one active per (identifier, type). The database holds an HMAC of the
-- code and, until the mail is out, the code sealed; it never lies in Redis or in a log.
local config = require("core.config")
local crypto = require("core.crypto")
local redis = require("core.redis")
local time = require("core.time")
local uuid = require("core.uuid")
local errors = require("kasma.errors")
local secrets = require("kasma.secrets")
local mail = require("kasma.mail")
local outbox = require("kasma.outbox")
local ratelimit = require("kasma.ratelimit")
local web = require("kasma.web")
local db = require("kasma.db")
local store = require("modules.iam.store")

local M = {}

local LIFE_MS, COOLDOWN_MS = 300000, 60000
local type_of = type

local function six_digits()
    while true do
        local a, b, c = crypto.random(3):byte(1, 3)
        local number = a * 65536 + b * 256 + c
        -- 16 * 1000000 of 2^24 values: the rest would make some codes likelier.
        if number < 16000000 then return ("%06d"):format(number % 1000000) end
    end
end

local function hmac(id, code) return crypto.hmac_sha256(tostring(config.get("OTP_PEPPER")) .. id, code) end

local function cooldown(seconds)
    errors.bad_request{ message = "Please wait 60 seconds before requesting a new code", code = "otp_cooldown",
        headers = { ["Retry-After"] = tostring(math.max(1, math.ceil(seconds))) } }
end

--- Seconds of the cooldown that are left; 0 = a code may be sent. A used code ends it, a cancelled one does not.
---@param identifier string
---@param type string
---@return number
function M.cooldown_left(identifier, type)
    local newest = store.newest_otp(identifier, type)
    if not newest or newest.is_verified then return 0 end
    local left = time.parse(newest.created_at) + COOLDOWN_MS - time.now()
    return left > 0 and math.min(left, COOLDOWN_MS) / 1000 or 0
end

--- Raises 503 when no mail can go out.
function M.check_mail()
    if not mail.is_configured() then errors.unavailable({ message = "Mail is not configured", code = "mail_unconfigured" }, 60) end
end

local function pretence(type, identifier) return ("auth:pretend:%s:%s"):format(type, crypto.sha256(identifier)) end

--- An identifier that gets no code is treated as if it had got one now: its cooldown begins and its wrong tries are forgotten.
---@param type string
---@param identifier string
function M.pretend(type, identifier)
    if M.pretended(type, identifier) > 0 then return end
    redis.call("SET", pretence(type, identifier), tostring(time.now() + COOLDOWN_MS), "PX", tostring(COOLDOWN_MS))
    M.anew(identifier, type)
end

--- Seconds that are left of such a cooldown.
---@param type string
---@param identifier string
---@return number
function M.pretended(type, identifier)
    local ends = redis.call("GET", pretence(type, identifier))
    local left = type_of(ends) == "string" and (tonumber(ends) or 0) - time.now() or 0
    return left > 0 and math.min(left, COOLDOWN_MS) / 1000 or 0
end

--- Raises 400 while the cooldown lasts, 429 beyond the hour's codes, 503 when no mail can go out.
---@param identifier string
---@param type string
---@param ip string
---@param known_left number|nil seconds of the cooldown, where the caller knows them
function M.admit(identifier, type, ip, known_left)
    M.check_mail()
    local left = known_left or M.cooldown_left(identifier, type)
    if left > 0 then cooldown(left) end
    ratelimit.auth("otp_identifier", identifier, ip)
    ratelimit.auth("otp_ip", web.limit_subject(ip), ip)
end

local TITLES = { REGISTER = "Register", LOGIN = "Login", FORGOT_PASSWORD = "Forgot Password", TWO_FA = "Two Fa" }

--- Whether an error is the cooldown's.
---@param err any
---@return boolean
function M.is_cooldown(err) return errors.is(err) and err.code == "otp_cooldown" end

--- Makes a code and queues its mail, in one transaction with `also`. Call admit first; of several at once one makes a code, the others
--- meet the cooldown (400).
---@param scope Scope
---@param o {id: string|nil, identifier: string, type: string, user_id: string|nil, ip: string}
---@param also table[]|nil statements of the same transaction
---@return string otp_id
function M.create(scope, o, also)
    local id, now = o.id or uuid.v7(), time.now()
    local code = six_digits()
    local alone, free = store.admit_otp(o.identifier, o.type, time.iso(now - COOLDOWN_MS))
    local statements = {
        alone, free,
        store.retire_otps(o.identifier, o.type, time.iso(now)),
        store.insert_otp{ id = id, user_id = o.user_id, code_hmac = hmac(id, code), code_enc = secrets.seal("otp", code, id), type = o.type,
            identifier = o.identifier, expires_at = time.iso(now + LIFE_MS), now = time.iso(now) },
        outbox.job(scope, "mail-queue", "send-otp", { to = o.identifier, subject = "[Kasma] Your verification code for " .. TITLES[o.type],
            otp_id = id, type = o.type, tenant_key = scope.tenant }, { attempts = 3, backoff = { type = "exponential", delay = 3000 } }),
    }
    for _, statement in ipairs(also or {}) do statements[#statements + 1] = statement end
    local ok, err = pcall(db.pipeline, scope.tenant, statements)
    if not ok then
        -- Another request made a code for the same identifier in the same moment: to this one it is the cooldown.
        if errors.sqlstate(err) == "KS409" then cooldown(COOLDOWN_MS / 1000) end
        error(err, 0)
    end
    M.anew(o.identifier, o.type)
    return id
end

M.invalid = errors.declare{ code = "otp_invalid", status = 401, message = "Invalid or expired OTP",
    cause = "the code is wrong, used, cancelled or older than five minutes", cure = "ask for a new code" }

--- Begins a try: 429 beyond the tries of a code, or of the identifier's hour. Every try counts, also one for which there is no code, so
-- that nobody learns from a limit whether somebody is signing in just now.
---@param identifier string
---@param type string
---@param ip string
function M.begin(identifier, type, ip)
    ratelimit.check("verify_code", type .. "|" .. identifier, ip)
    -- Whatever stands there is anybody's choice: it is no address's and no second factor's count.
    ratelimit.auth("verify_identifier", "name:" .. identifier, ip)
end

--- Ends a try that failed.
---@param identifier string
---@param type string
---@param ip string
function M.failed(identifier, type, ip) ratelimit.note("verify_code", type .. "|" .. identifier, ip) end

--- A new step begins: the wrong tries of the one before are forgotten.
---@param identifier string
---@param type string
function M.anew(identifier, type) ratelimit.forget("verify_code", type .. "|" .. identifier) end

--- Uses up a code.
---@param identifier string
---@param type string
---@param code string
---@param ip string
---@return table|nil {otp_id, user_id}; nil: it does not hold
function M.consume(identifier, type, code, ip)
    M.begin(identifier, type, ip)
    local active = store.active_otp(identifier, type)
    local tried = active and store.try_otp(active.id, hmac(active.id, code), time.iso(time.now()))
    if not tried or not tried.is_verified then
        M.failed(identifier, type, ip)
        return nil
    end
    return { otp_id = active.id, user_id = tried.user_id }
end

---@param identifier string
---@param type string
function M.cancel(identifier, type)
    local now = time.iso(time.now())
    db.pipeline(nil, { store.retire_otps(identifier, type, now) })
end

--- The job `send-otp`: opens the code, sends it, forgets it. Also takes the form of older producers, which carries the code.
---@param job table
function M.send(job)
    local data = job.data
    local code, to, type, id = data.otp, data.to, data.type, data.otp_id
    if id then
        local row = store.otp_to_send(id)
        if not row or not row.is_active or not row.code_enc or time.parse(row.expires_at) <= time.now() then return { skipped = true } end
        code = secrets.open("otp", row.code_enc, id)
        if not code then require("kasma.jobs").give_up("the code cannot be opened") end
        to, type = row.identifier, row.type
    end
    -- The Message-ID is made from the code's id: a repeat after a crash shows as one.
    local answer = mail.transmit(data.tenant_key or "MASTER", { id = id or uuid.v7(), to = to, template = "otp", locale = "en",
        subject = not id and data.subject or nil, vars = { type = TITLES[type] or tostring(type), code = code } })
    if answer.suppressed then return answer end
    if id then store.otp_sent(id, time.iso(time.now())) end
    return { sent = true }
end

--- Makes a code that is handed over by another way than mail: an operator reads it from a terminal. It ends the one before.
---@param o {identifier: string, type: string, user_id: string}
---@return string code, integer seconds it lives
function M.hand_over(o)
    local id, now, code = uuid.v7(), time.now(), six_digits()
    db.pipeline(nil, { store.retire_otps(o.identifier, o.type, time.iso(now)),
        store.insert_otp{ id = id, user_id = o.user_id, code_hmac = hmac(id, code), type = o.type, identifier = o.identifier,
            expires_at = time.iso(now + LIFE_MS), now = time.iso(now) } })
    return code, LIFE_MS / 1000
end

return M
