-- The house's own schedules: what the product does each hour or night, once a cluster. A module declares one with its handler; every
-- `kasma work` sets them all as job schedulers when it starts and each minute again, which changes nothing where they stand (and
-- brings them back where Redis was emptied).
--
--     schedules.declare{ name = "otp-cleanup", every = 3600000, run = function(job) ... end }
--     schedules.declare{ name = "user-purge", pattern = "0 3 * * *", run = users.purge }
--
-- Outside production SCHEDULES gives other periods: `otp-cleanup=1000,user-purge=5000`, in milliseconds.
local config = require("core.config")
local sched = require("core.sched")
local errors = require("kasma.errors")
local jobs = require("kasma.jobs")
local log = require("kasma.log")
local schedule = require("kasma.jobs_schedule")

local M = {}

local QUEUE, AGAIN_MS = "system-queue", 60000
local list = {}

--- Declares a schedule and what it runs. Jobs carry the schedule's name, have no data and three attempts.
---@param spec table name, every (ms) or pattern and tz, run(job), queue (system-queue), timeout_ms
function M.declare(spec)
    spec.queue = spec.queue or QUEUE
    jobs.handler(spec.queue, spec.name, spec.run, { timeout_ms = spec.timeout_ms })
    list[#list + 1] = spec
end

-- Periods of SCHEDULES by name.
local function overrides()
    local found = {}
    if config.env() == "production" then return found end
    for name, ms in tostring(config.get("SCHEDULES") or ""):gmatch("([%w_-]+)=(%d+)") do found[name] = tonumber(ms) end
    return found
end

--- The schedules as they hold here.
---@return {name: string, queue: string, every: integer|nil, pattern: string|nil, tz: string|nil}[]
function M.list()
    local periods, result = overrides(), {}
    for i, spec in ipairs(list) do
        local own = periods[spec.name]
        result[i] = { name = spec.name, queue = spec.queue, every = own or spec.every, pattern = not own and spec.pattern or nil,
            tz = not own and spec.tz or nil }
    end
    return result
end

local function describe(why) return tostring(type(why) == "table" and (why.message or why.kind) or why) end

-- One that cannot be set holds up no other.
local function set_all()
    local all, first = true, nil
    for _, spec in ipairs(M.list()) do
        local ok, why = pcall(schedule.upsert, spec.queue, spec.name, { every = spec.every, pattern = spec.pattern, tz = spec.tz }, {
            name = spec.name, opts = { attempts = 3, backoff = jobs.defaults.backoff, removeOnComplete = { age = 86400, count = 100 },
                removeOnFail = jobs.defaults.removeOnFail } })
        if not ok then
            all, first = false, first or why
            if errors.is_unavailable(why) then break end
            log.warn("a schedule is not set", { name = spec.name, error = describe(why) })
        end
    end
    return all, first
end

--- Sets them, as soon as Redis is there, and keeps them set.
function M.start()
    sched.spawn(function()
        while not sched.stopping() do
            local ok, why = set_all()
            if ok or not errors.is_unavailable(why) then break end
            log.debug("schedules wait for Redis", { error = describe(why) })
            if not sched.sleep(1000) then return end
        end
        sched.every(AGAIN_MS, set_all)
    end)
end

return M
