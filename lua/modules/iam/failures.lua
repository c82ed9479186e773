-- Failed sign-ins of an identifier: five within fifteen minutes begin waits of 60 s that double, up to an hour; twenty in a day
-- suspend the account for a day. Counted alike for addresses that exist and those that do not.
--
-- A password takes time to verify, and guesses sent side by side would all be let in before the first is known to be wrong. So tries
-- that are under way are counted too: no more are let in than there are failures left before the wait (one, when there was a wait).
local crypto = require("core.crypto")
local redis = require("core.redis")
local time = require("core.time")
local log = require("kasma.log")
local ratelimit = require("kasma.ratelimit")

local M = {}

local FREE, WINDOW_MS, DAY_MS, SUSPEND_AT, WAIT_MAX_S = 5, 900000, 86400000, 20, 3600
local TRY_MS = 15000 -- a try that is under way for longer has been lost with its process

-- KEYS[1] hash {f = consecutive failures, first, last, day = failures of the day, day_start, busy = tries under way, busy_at = the
-- newest}; ARGV now, window, day, free, longest wait in ms, TRY_MS. Answers 0, or the ms to wait (-1: for the tries under way).
local BEGIN = [[
local now, window, free, try = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[4]), tonumber(ARGV[6])
local h = redis.call('HMGET', KEYS[1], 'f', 'first', 'last', 'busy', 'busy_at')
local f, busy, at = tonumber(h[1]) or 0, tonumber(h[4]) or 0, tonumber(h[5]) or 0
if f >= free then
  local wait = math.min(60000 * 2 ^ (f - free), tonumber(ARGV[5]))
  local left = tonumber(h[3]) + wait - now
  if left > 0 then return math.min(left, wait) end
elseif f > 0 and now - tonumber(h[2]) > window then
  f = 0
end
if math.abs(now - at) > try then busy = 0 end
if busy >= math.max(1, free - f) then return -1 end
redis.call('HSET', KEYS[1], 'busy', busy + 1, 'busy_at', now)
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 0]]

local DONE = [[
if redis.call('EXISTS', KEYS[1]) == 1 and redis.call('HINCRBY', KEYS[1], 'busy', -1) <= 0 then redis.call('HDEL', KEYS[1], 'busy') end
return 1]]

local NOTE = [[
if (tonumber(redis.call('HGET', KEYS[1], 'busy')) or 0) > 0 then redis.call('HINCRBY', KEYS[1], 'busy', -1) end
local now, window, day, free = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local h = redis.call('HMGET', KEYS[1], 'f', 'first', 'day', 'day_start')
local f, first, count, start = tonumber(h[1]) or 0, tonumber(h[2]) or now, tonumber(h[3]) or 0, tonumber(h[4]) or now
if f < free and now - first > window then f, first = 0, now end
if now - start > day then count, start = 0, now end
if f == 0 then first = now end
f, count = f + 1, count + 1
redis.call('HSET', KEYS[1], 'f', f, 'first', first, 'last', now, 'day', count, 'day_start', start)
redis.call('PEXPIRE', KEYS[1], day)
return {f, count}]]

local function key(email) return "rl:login:" .. crypto.sha256(email) end

local function wait_s(count)
    if count < FREE then return 0 end
    return math.min(60 * 2 ^ (count - FREE), WAIT_MAX_S)
end

--- Begins a try: raises 429 while the identifier waits, also for the right password. Every try ends with note, done or clear.
---@param email string
---@param ip string
function M.begin(email, ip)
    if not ratelimit.applies(ip) then return end
    local left = redis.eval(BEGIN, { key(email) }, { tostring(time.now()), tostring(WINDOW_MS), tostring(DAY_MS), tostring(FREE),
        tostring(WAIT_MAX_S * 1000), tostring(TRY_MS) })
    left = tonumber(left)
    if not left then
        log.warn("sign-in failures cannot be read")
        local free, wait = ratelimit.fallback("login", email, FREE, WINDOW_MS / 1000, true)
        if not free then ratelimit.refuse("login", wait, FREE) end
        return
    end
    if left ~= 0 then ratelimit.refuse("login", left < 0 and 1 or left / 1000, FREE) end
end

--- Ends a try that was no failure.
---@param email string
---@param ip string
function M.done(email, ip)
    if ratelimit.applies(ip) then redis.eval(DONE, { key(email) }, {}) end
end

--- Ends a try that failed.
---@param email string
---@param ip string
function M.note(email, ip)
    if not ratelimit.applies(ip) then return end
    local noted = redis.eval(NOTE, { key(email) }, { tostring(time.now()), tostring(WINDOW_MS), tostring(DAY_MS), tostring(FREE) })
    if not noted then ratelimit.fallback("login", email, FREE, WINDOW_MS / 1000, false) end
end

--- What is counted of an identifier, for staff.
---@param email string
---@return {failures: integer, failures_today: integer, waits_until: integer|nil} waits_until in epoch ms
function M.state(email)
    local state = redis.call("HMGET", key(email), "f", "last", "day", "day_start")
    if type(state) ~= "table" then return { failures = 0, failures_today = 0 } end
    local count, last = tonumber(state[1]) or 0, tonumber(state[2])
    local today = tonumber(state[4]) and time.now() - tonumber(state[4]) <= DAY_MS and tonumber(state[3]) or 0
    local ends = last and last + wait_s(count) * 1000
    return { failures = count, failures_today = today, waits_until = ends and ends > time.now() and ends or nil }
end

---@param email string
---@return boolean
function M.must_suspend(email)
    local count = redis.call("HGET", key(email), "day")
    return type(count) == "string" and tonumber(count) >= SUSPEND_AT
end

---@param email string
function M.clear(email) redis.call("DEL", key(email)) end

return M
