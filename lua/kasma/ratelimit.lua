-- Limits. The general ones (per address, user, secret key) are token buckets of this worker, each a share of the limit by
-- the number of live workers: no round trip. The sign-in rules ask Redis in line, by a sliding window in one script, and
-- fall back to buckets at half the limit when Redis is away (they fail closed).
-- Outside production peers on loopback are exempt unless RATE_LIMIT_LOOPBACK=1; RATE_LIMITS=off switches all off; a file
-- named there (JSON {rule: {limit, window_s}}) replaces figures of RULES.
local config = require("core.config")
local crypto = require("core.crypto")
local json = require("core.json")
local redis = require("core.redis")
local time = require("core.time")
local uuid = require("core.uuid")
local errors = require("kasma.errors")
local log = require("kasma.log")
local policy = require("kasma.policy")
local setting_file = require("kasma.setting_file")
local web = require("kasma.web")

local M = {}

local RULES = {
    ip = { limit = 600, window_s = 60 },
    user = { limit = 300, window_s = 60 },
    key = { limit = 1200, window_s = 60 },
    login_ip = { limit = 30, window_s = 900 },
    otp_identifier = { limit = 5, window_s = 3600 },
    otp_ip = { limit = 20, window_s = 3600 },
    verify_code = { limit = 5, window_s = 300 },
    verify_identifier = { limit = 20, window_s = 3600 },
    register_ip = { limit = 10, window_s = 3600 },
    refresh_session = { limit = 30, window_s = 60 },
}

-- KEYS[1] = window; ARGV = now ms, window ms, limit, member, count it (1) or only look (0).
-- Answers {used, ms until the oldest leaves}. The hits are a sorted set by the clock of business time.
local WINDOW = [[
local now, window, limit = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - window)
local used = redis.call('ZCARD', KEYS[1])
local wait = 0
if used >= limit then
  local first = redis.call('ZRANGE', KEYS[1], used - limit, used - limit, 'WITHSCORES')
  wait = tonumber(first[2]) + window - now
elseif ARGV[5] == '1' then
  redis.call('ZADD', KEYS[1], now, ARGV[4])
  redis.call('PEXPIRE', KEYS[1], window)
  used = used + 1
end
return {used, wait}]]

local function whole(value) return type(value) == "number" and value >= 1 and value <= 1e9 and value % 1 == 0 end

-- The figures of a file, and all that is wrong with them.
local function figures_of(path)
    local text, why = setting_file.read(path)
    if not text then return {}, { "RATE_LIMITS: " .. why } end
    local rules, err = json.decode(text)
    if type(rules) ~= "table" or json.is_array(rules) then
        return {}, { ("RATE_LIMITS: %s holds no JSON object of rules%s"):format(path, err and (" (%s)"):format(err.message) or "") }
    end
    local wrong = {}
    for name, rule in pairs(rules) do
        if not RULES[name] then
            wrong[#wrong + 1] = tostring(name) .. " is no rule"
        elseif type(rule) ~= "table" or not whole(rule.limit) or not whole(rule.window_s) then
            wrong[#wrong + 1] = name .. " needs limit and window_s, whole numbers from 1"
        end
    end
    table.sort(wrong)
    return rules, #wrong > 0 and { ("RATE_LIMITS: %s: %s"):format(path, table.concat(wrong, "; ")) } or {}
end

local mode, loopback_exempt

local function read_limits()
    local wanted = tostring(config.get("RATE_LIMITS") or "default")
    if wanted == "off" or wanted == "default" then return wanted, {}, {} end
    return wanted, figures_of(wanted)
end

--- What is wrong with the file that RATE_LIMITS names.
---@return string[] lines
function M.problems() return (select(3, read_limits())) end

--- Reads the limits. Called at start, so that a file that cannot be taken stops it: nobody is left with other limits than they wrote.
function M.load()
    local wanted, own, wrong = read_limits()
    if #wrong > 0 then error(wrong[1], 0) end
    for name, rule in pairs(own) do RULES[name] = { limit = rule.limit, window_s = rule.window_s } end
    loopback_exempt = config.env() ~= "production" and config.get("RATE_LIMIT_LOOPBACK") ~= true
    mode = wanted
end

---@param address string client's address
---@return boolean
function M.applies(address)
    if not mode then M.load() end
    if mode == "off" then return false end
    return not (loopback_exempt and web.is_loopback(address))
end

--- Whether a request is limited at all; asks for its address only where that matters.
---@param req table
---@return string|nil address when it is
function M.address_of(req)
    if not mode then M.load() end
    if mode == "off" then return nil end
    local address = web.client_ip(req)
    if loopback_exempt and web.is_loopback(address) then return nil end
    return address
end

-- Buckets: rule and subject -> {tokens, at}. All are forgotten when there are too many: a bound of memory, not of who asks.
local buckets, bucket_count = {}, 0
local BUCKETS_MAX = 50000
local workers = 1

--- How many workers share the limits; told by the heartbeat.
---@param count integer
function M.set_workers(count) workers = math.max(1, count) end

-- Takes a token of a bucket, or with `look` only says whether there is one.
local function take(name, subject, limit, window_s, look)
    local key = name .. "|" .. subject
    local now = time.mono() / 1e6
    local size = math.max(1, limit / workers)
    local rate = size / window_s
    local bucket = buckets[key]
    if not bucket then
        if bucket_count >= BUCKETS_MAX then buckets, bucket_count = {}, 0 end
        bucket = { tokens = size, at = now }
        buckets[key] = bucket
        bucket_count = bucket_count + 1
    end
    bucket.tokens = math.min(size, bucket.tokens + (now - bucket.at) * rate)
    bucket.at = now
    if bucket.tokens < 1 then return false, (1 - bucket.tokens) / rate, 0 end
    if not look then bucket.tokens = bucket.tokens - 1 end
    return true, 0, math.floor(bucket.tokens)
end

local function refuse(rule, wait_s, limit)
    local seconds = math.max(1, math.ceil(wait_s))
    errors.too_many(seconds, { message = "Too many requests", code = "rate_limited", headers = {
        ["X-RateLimit-Limit"] = tostring(limit), ["X-RateLimit-Remaining"] = "0", ["X-RateLimit-Reset"] = tostring(seconds),
        ["RateLimit-Policy"] = ('"%s";q=%d;w=%d'):format(rule, limit, RULES[rule] and RULES[rule].window_s or seconds) } })
end

--- A general rule: one token, or 429.
---@param rule "ip"|"user"|"key"
---@param subject string
---@param tenant string|nil whose rule may set another limit
function M.general(rule, subject, tenant)
    local r = RULES[rule]
    local own = policy.limit(tenant, rule, r)
    if own then
        r = own
        subject = tenant .. "|" .. subject
    end
    local ok, wait = take(rule, subject, r.limit, r.window_s)
    if not ok then refuse(rule, wait, r.limit) end
end

--- Gives back the token of the address: a request of a secret key counts by its key alone, or the limit of keys, which is above that of
--- addresses, could not be reached from the one address that a backend has.
---@param subject string
---@param tenant string|nil the same that was given to general
function M.by_key(subject, tenant)
    local own = policy.limit(tenant, "ip", RULES.ip)
    local bucket = buckets["ip|" .. (own and tenant .. "|" .. subject or subject)]
    if bucket then bucket.tokens = bucket.tokens + 1 end
end

local function window_key(rule, subject) return ("rl:%s:%s"):format(rule, crypto.sha256(subject)) end

local function ask(rule, subject, count, hit)
    local r = RULES[rule]
    local answer = redis.eval(WINDOW, { window_key(rule, subject) },
        { tostring(time.now()), tostring(r.window_s * 1000), tostring(r.limit), hit or uuid.v4(), count and "1" or "0" })
    if not answer then
        log.warn("rate limits without Redis", { rule = rule })
        local ok, wait = take(rule, subject, r.limit / 2, r.window_s, not count)
        return ok and 0 or r.limit, wait * 1000
    end
    return tonumber(answer[1]), tonumber(answer[2])
end

--- A rule of the sign-in: counts this try; 429 when the window is full.
---@param rule string
---@param subject string
---@param address string client's address, for the exemption of loopback
function M.auth(rule, subject, address)
    if not M.applies(address) then return end
    local _, wait = ask(rule, subject, true)
    if wait > 0 then refuse(rule, wait / 1000, RULES[rule].limit) end
end

--- The same without counting: is the window full?
---@param rule string
---@param subject string
---@param address string
function M.check(rule, subject, address)
    if not M.applies(address) then return end
    local _, wait = ask(rule, subject, false)
    if wait > 0 then refuse(rule, wait / 1000, RULES[rule].limit) end
end

--- The same as auth for what counts only when it fails, but takes time until that is known: it is counted now, so that tries sent side
--- by side do not all find the window open, and taken back by `release`.
---@param rule string
---@param subject string
---@param address string
---@return string|nil hit what release takes back; nil when nothing was counted
function M.reserve(rule, subject, address)
    if not M.applies(address) then return nil end
    local hit = uuid.v4()
    local _, wait = ask(rule, subject, true, hit)
    if wait > 0 then refuse(rule, wait / 1000, RULES[rule].limit) end
    return hit
end

--- Takes back what was counted.
---@param rule string
---@param subject string
---@param hit string|nil
function M.release(rule, subject, hit)
    if hit then redis.call("ZREM", window_key(rule, subject), hit) end
end

--- Counts only (failures that are known after the fact).
---@param rule string
---@param subject string
---@param address string
function M.note(rule, subject, address)
    if M.applies(address) then ask(rule, subject, true) end
end

--- Forgets what a subject has used of a rule.
---@param rule string
---@param subject string
function M.forget(rule, subject) redis.call("DEL", window_key(rule, subject)) end

--- Half of a limit kept by this process alone, for a rule whose store is away: whether another try is left, and the seconds to wait.
---@param rule string
---@param subject string
---@param limit integer
---@param window_s integer
---@param look boolean only look, take nothing
---@return boolean left, number wait_s
function M.fallback(rule, subject, limit, window_s, look)
    local ok, wait = take(rule, subject, limit / 2, window_s, look)
    return ok, wait
end

M.refuse = refuse
M.key = window_key

return M
