-- Our side of the queue tests: handlers for `kasma work --handlers`, by the job's name. `call` lets Node use this side's own functions:
-- it runs one of kasma.jobs* and answers what that answers.
local config = require("core.config")
local redis = require("core.redis")
local sched = require("core.sched")
local jobs = require("kasma.jobs")

local M = {}

-- {module, fn, args} -> {result} or {error = {...}}
function M.call(job)
    local module = require("kasma." .. job.data.module)
    local ok, result = pcall(module[job.data.fn], unpack(job.data.args, 1, job.data.n))
    if ok then return { result = result } end
    return { error = type(result) == "table" and { message = result.message, code = result.code } or { message = tostring(result) } }
end

-- Who ran what how often lies in a hash beside the queue.
local function note(job)
    redis.call("HINCRBY", (config.get("QUEUE_PREFIX") or "bull") .. ":ran:" .. job.queue, job.id .. ":kasma", 1)
end

function M.echo(job) return job.data end

function M.fail(job) error("no " .. job.attempts_made + 1, 0) end

function M.flaky(job)
    if job.attempts_made < job.data.fails then error("not yet", 0) end
    return job.attempts_made
end

function M.hopeless() jobs.give_up("never") end

function M.order(job)
    redis.call("RPUSH", (config.get("QUEUE_PREFIX") or "bull") .. ":order:" .. job.queue, job.data.n)
    return job.data.n
end

function M.slow(job)
    note(job)
    sched.sleep(job.data.ms)
    return job.data.ms
end

function M.steps(job)
    job:update_progress(30)
    job:update_progress({ step = "two" })
    job:log("first row")
    job:log("second row")
    return "done"
end

function M.children(job)
    local values = job:children_values()
    local sum = 0
    for _, value in pairs(values) do sum = sum + (tonumber(value) or 0) end
    return sum
end

-- Runs on while a child of its own fails and is removed.
function M.doomed(job)
    jobs.add(job.queue, "fail", {}, { jobId = "C", parent = job:as_parent(), failParentOnFailure = true, removeOnFail = true })
    local child = jobs.base(job.queue) .. "C"
    for _ = 1, 3000 do
        if redis.call("EXISTS", child) == 0 then return 1 end
        sched.sleep(20)
    end
    error("the child is still there", 0)
end

function M.stop(job) jobs.rate_limit(job, job.data.ms) end

-- Adds n jobs that leave nothing behind.
function M.fill(job)
    local list = {}
    for i = 1, 1000 do
        list[i] = { name = i % 10 == 0 and "flaky" or "echo", data = { fails = 1, text = ("x"):rep(i % 200) },
            opts = { attempts = 2, removeOnComplete = i % 2 == 0 or { count = 100 }, removeOnFail = true } }
    end
    for _ = 1, job.data.n / 1000 do jobs.add_bulk(job.data.queue, list) end
    return job.data.n
end

M["*"] = function(job) return "any " .. job.name end

return M
