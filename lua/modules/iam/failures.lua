-- Failed sign-ins of an identifier: five within fifteen minutes begin waits of 60 s that double, up to an hour; twenty in a day
-- suspend the account for a day. Counted alike for addresses that exist and those that do not.
local crypto = require("core.crypto")
local redis = require("core.redis")
local time = require("core.time")
local log = require("kasma.log")
local ratelimit = require("kasma.ratelimit")

local M = {}

local FREE, WINDOW_MS, DAY_MS, SUSPEND_AT, WAIT_MAX_S = 5, 900000, 86400000, 20, 3600

-- KEYS[1] hash {f = consecutive failures, first, last, day = failures of the day, day_start}; ARGV now, window, day, free.
local NOTE = [[
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

--- Raises 429 while the identifier waits, also for the right password.
---@param email string
---@param ip string
function M.check(email, ip)
    if not ratelimit.applies(ip) then return end
    local state = redis.call("HMGET", key(email), "f", "last")
    if type(state) ~= "table" then
        log.warn("sign-in failures cannot be read")
        local left, wait = ratelimit.fallback("login", email, FREE, WINDOW_MS / 1000, true)
        if not left then ratelimit.refuse("login", wait, FREE) end
        return
    end
    local count, last = tonumber(state[1]), tonumber(state[2])
    if not count or not last then return end
    local left = last + wait_s(count) * 1000 - time.now()
    if left > 0 then ratelimit.refuse("login", math.min(left / 1000, wait_s(count)), FREE) end
end

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
