-- What the specs of queues share: queues of their own, looks into Redis, and a worker played by hand.
local crypto = require("core.crypto")
local redis = require("core.redis")
local time = require("core.time")
local jobs = require("kasma.jobs")
local between = require("kasma.jobs_cycle")
local scripts = require("kasma.jobs_scripts")

local M = { eventually = require("spec.waiting") }

function M.fresh() return "spec-" .. crypto.random_hex(6) end

function M.hash(queue, id)
    local flat = redis.call("HGETALL", jobs.base(queue) .. id)
    local fields = {}
    for i = 1, #flat, 2 do fields[flat[i]] = flat[i + 1] end
    return fields
end

-- Names of the events, in order; with a job's id only its own.
function M.events(queue, id)
    local names = {}
    for _, entry in ipairs(redis.call("XRANGE", jobs.base(queue) .. "events", "-", "+")) do
        local one = {}
        for i = 1, #entry[2], 2 do one[entry[2][i]] = entry[2][i + 1] end
        if not id or one.jobId == id then names[#names + 1] = one.event end
    end
    return names
end

-- One call of the script, with groups of ends as it takes them.
local function cycle(queue, worker, take, now, ...)
    local answer = redis.eval(between.script, { jobs.base(queue) }, { ("%.0f"):format(now or time.now()), "30000", "", "", "", take,
        worker .. ":0", "0", "0", ... })
    if type(answer) ~= "table" or answer.err then error("cycle: " .. tostring(answer and answer.err)) end
    return answer
end
M.cycle = cycle

-- Takes up to n jobs; their token is "<worker>:0".
function M.take(queue, worker, n, now)
    return between.jobs_of(cycle(queue, worker, n or 1, now))
end

function M.complete(queue, id, token, value)
    return cycle(queue, "w", 0, nil, "completed", token, "", "", "", "1", id, value or "null", "")[1][1]
end

--- keep: how many failed ones stay, "0": not even this one.
function M.fail(queue, id, token, reason, keep)
    return cycle(queue, "w", 0, nil, "failed", token, keep or "", "", "", "1", id, reason, "1", "")[1][1]
end

function M.check_stalled(queue)
    redis.call("DEL", jobs.base(queue) .. "stalled-check")
    return redis.eval(scripts.stalled, { jobs.base(queue) }, { "30000", ("%.0f"):format(time.now()) })
end

return M
