-- Queues in the data layout of BullMQ 5, so that a Node producer, worker or dashboard can stand beside ours. Every move is one
-- Redis script (jobs_scripts.lua); a move in two calls would lose jobs. Jobs are at least once: a handler is idempotent by the
-- job's id or a business key. A job that follows a commit goes through the outbox (outbox.job).
--
--     jobs.handler("sales-queue", "order-confirmation", function(job) ... end)   -- job: id, name, data, opts, attempts_made
--
-- A handler that raises is tried again while attempts last, after its backoff; jobs.give_up(message) fails it for good.
-- A job name that nobody handles fails at once and visibly.
local config = require("core.config")
local json = require("core.json")
local metrics = require("core.metrics")
local redis = require("core.redis")
local sched = require("core.sched")
local time = require("core.time")
local uuid = require("core.uuid")
local errors = require("kasma.errors")
local log = require("kasma.log")
local outbox = require("kasma.outbox")
local scripts = require("kasma.jobs_scripts")

local M = {}

local LOCK_MS, RENEW_MS, STALLED_MS = 30000, 15000, 30000
local IDLE_S, MAX_WAIT_S = 5, 10
local VERSION = "bullmq:5.81.5"

-- What holds unless a job says otherwise: attempts, keeping a day of completed and two weeks of failed jobs.
M.defaults = {
    attempts = 5, backoff = { type = "exponential", delay = 3000 },
    removeOnComplete = { age = 86400, count = 1000 }, removeOnFail = { age = 1209600, count = 10000 },
}

local function base(queue)
    assert(not queue:find(":", 1, true), "a queue's name holds no colon")
    return (config.get("QUEUE_PREFIX") or "bull") .. ":" .. queue .. ":"
end
M.base = base

local Unrecoverable = {}

--- Fails the job at once, whatever attempts are left. Raises.
---@param message string
function M.give_up(message) error(setmetatable({ message = message }, Unrecoverable), 0) end

-- Adding -------------------------------------------------------------------------------------------------------------------

local function check_id(id)
    if id == nil then return "" end
    id = tostring(id)
    if id == "" or id:find("^%-?%d+$") or id == "0" or id:sub(1, 2) == "0:" then error("job id must not be a number: " .. id, 3) end
    local _, colons = id:gsub(":", "")
    if colons > 0 and colons ~= 2 then error("job id must not hold a colon: " .. id, 3) end
    return id
end

local described = {}

--- Adds a job. opts as BullMQ's: attempts, backoff {type, delay}, delay (ms), priority, lifo, jobId, removeOnComplete, removeOnFail.
---@param queue string
---@param name string
---@param data any
---@param opts table|nil
---@param once string|nil what asks for the job: the same asker gets the same job for a day
---@return string job id
function M.add(queue, name, data, opts, once)
    opts = opts or {}
    local stored = {}
    for key, value in pairs(opts) do stored[key] = value end
    if type(stored.backoff) == "number" then stored.backoff = { type = "fixed", delay = stored.backoff } end
    stored.attempts = stored.attempts or 0
    local prefix = base(queue)
    if not described[prefix] then
        redis.call("HSETNX", prefix .. "meta", "opts.maxLenEvents", "10000")
        redis.call("HSETNX", prefix .. "meta", "version", VERSION)
        described[prefix] = true
    end
    local id = errors.check(redis.eval(scripts.add, { prefix }, {
        check_id(opts.jobId), name, json.encode(data), json.encode(stored), tostring(opts.timestamp or time.now()),
        tostring(opts.delay or 0), tostring(opts.priority or 0), opts.lifo and "1" or "0", once or "",
    }))
    return tostring(id)
end

-- An outbox row becomes a job once, however often the relay hands it over.
outbox.consumer("job", function(rows)
    for _, row in ipairs(rows) do
        local payload = row.payload
        local opts = {}
        for key, value in pairs(M.defaults) do opts[key] = value end
        for key, value in pairs(payload.opts or {}) do opts[key] = value end
        M.add(payload.queue, payload.name, payload.data, opts, row.id)
    end
end)

-- Working ------------------------------------------------------------------------------------------------------------------

local handlers = {}

---@param queue string
---@param name string job name, or "*" for any
---@param fn fun(job: table): any
function M.handler(queue, name, fn)
    handlers[queue] = handlers[queue] or {}
    handlers[queue][name] = fn
end

--- Queues that somebody handles, sorted.
---@return string[]
function M.queues()
    local names = {}
    for queue in pairs(handlers) do names[#names + 1] = queue end
    table.sort(names)
    return names
end

local function backoff_ms(opts, made)
    local backoff = opts.backoff
    if type(backoff) == "number" then backoff = { type = "fixed", delay = backoff } end
    if type(backoff) ~= "table" then return 0 end
    local delay = tonumber(backoff.delay) or 0
    if backoff.type == "exponential" then delay = math.floor(2 ^ (made - 1) * delay + 0.5) end
    local jitter = tonumber(backoff.jitter) or 0
    if jitter > 0 then delay = math.floor(delay * (1 - jitter) + math.random() * delay * jitter) end
    return delay
end

local function keep_rule(value)
    if value == true then return "0", "" end
    if value == nil or value == false then return "-1", "" end
    if type(value) == "number" then return tostring(value), "" end
    return tostring(value.count or -1), tostring(value.age or "")
end

local Worker = {}
Worker.__index = Worker

local function describe(err)
    if type(err) == "table" then
        local message = err.message or err.kind or "failed"
        return type(message) == "table" and table.concat(message, "; ") or tostring(message)
    end
    return (tostring(err):match("^[^\n]*"))
end

local done_total

-- Ends a job: completed, back to delayed or wait, or failed.
function Worker:finish(job, ok, result)
    local prefix, token = self.prefix, job.token
    local now = tostring(time.now())
    if ok then
        local count, age = keep_rule(job.opts.removeOnComplete)
        local value = result == nil and "null" or json.encode(result)
        local code = errors.check(redis.eval(scripts.finish, { prefix }, { job.id, token, now, "completed", value, count, age, "", "0" }))
        done_total:add(1, self.queue, job.name, "completed")
        return code
    end
    local message = describe(result)
    local trace = json.encode{ type(result) == "string" and result or message }
    local made = job.attempts_made + 1
    local final = getmetatable(result) == Unrecoverable
    if not final and made < (tonumber(job.opts.attempts) or 0) then
        done_total:add(1, self.queue, job.name, "retried")
        local delay = backoff_ms(job.opts, made)
        return errors.check(redis.eval(scripts.retry, { prefix }, { job.id, token, now, tostring(delay), message, trace }))
    end
    done_total:add(1, self.queue, job.name, "failed")
    log.warn("job failed", { queue = self.queue, job = job.name, id = job.id, attempts = made, error = message })
    local count, age = keep_rule(job.opts.removeOnFail)
    return errors.check(redis.eval(scripts.finish, { prefix }, { job.id, token, now, "failed", message, count, age, trace, final and "0"
        or "1" }))
end

function Worker:run(job)
    local fn = handlers[self.queue][job.name] or handlers[self.queue]["*"]
    local ok, result
    if job.defa then
        ok, result = false, setmetatable({ message = job.defa }, Unrecoverable)
    elseif fn then
        ok, result = xpcall(fn, function(err)
            if type(err) == "table" then return err end
            return debug.traceback(tostring(err), 2)
        end, job)
    else
        ok, result = false, setmetatable({ message = "No handler for job " .. tostring(job.name) }, Unrecoverable)
    end
    for try = 1, 5 do
        local finished, why = pcall(self.finish, self, job, ok, result)
        if finished then break end
        log.warn("job could not be ended", { queue = self.queue, id = job.id, error = describe(why) })
        if try < 5 then sched.sleep(200 * try) end
    end
    self.running[job.id] = nil
    self.slots:release()
end

-- Takes the next job, or answers nil and the milliseconds until one is due (0: none).
function Worker:fetch()
    self.counter = self.counter + 1
    local token = self.id .. ":" .. self.counter
    local answer = errors.check(redis.eval(scripts.fetch, { self.prefix }, { token, tostring(time.now()), tostring(LOCK_MS), self.name
        or "" }))
    if type(answer) ~= "table" or type(answer[1]) ~= "table" or #answer[1] == 0 then
        return nil, type(answer) == "table" and tonumber(answer[3]) or 0
    end
    local fields = {}
    local flat = answer[1]
    for i = 1, #flat, 2 do fields[flat[i]] = flat[i + 1] end
    return { id = answer[2], token = token, queue = self.queue, name = fields.name or "", data = json.decode(fields.data or "null"),
        opts = json.decode(fields.opts or "{}") or {}, attempts_made = tonumber(fields.atm) or 0, timestamp = tonumber(fields.timestamp),
        defa = fields.defa }
end

function Worker:loop()
    self.blocking = redis.dedicated(self.prefix:match("^[^:]+") .. ":" .. require("core.crypto").base64(self.queue))
    while not sched.stopping() do
        self.slots:acquire()
        local ok, job, next_due = pcall(self.fetch, self)
        if not ok then
            self.slots:release()
            log.warn("queue cannot be read", { queue = self.queue, error = describe(job) })
            sched.sleep(1000)
        elseif job then
            self.running[job.id] = job.token
            sched.spawn(self.run, self, job)
        else
            self.slots:release()
            local seconds = IDLE_S
            if next_due and next_due > 0 then
                seconds = math.max(0.002, math.min((next_due - time.now()) / 1000, MAX_WAIT_S))
            end
            local _, err = self.blocking:call("BZPOPMIN", self.prefix .. "marker", ("%.3f"):format(seconds))
            if err and not sched.stopping() then sched.sleep(500) end
        end
    end
    self.blocking:close()
end

function Worker:renew()
    for id, token in pairs(self.running) do
        redis.eval(scripts.extend, { self.prefix }, { id, token, tostring(LOCK_MS) })
    end
end

function Worker:check_stalled()
    local answer = redis.eval(scripts.stalled, { self.prefix }, { tostring(STALLED_MS), tostring(time.now()) })
    if type(answer) == "table" then
        for _, id in ipairs(answer) do log.warn("stalled job went back to wait", { queue = self.queue, id = id }) end
    end
end

--- Serves a queue until the process stops; what runs then has the grace of the core to end, the rest goes back to wait.
---@param queue string
---@param opts table|nil {concurrency = 8, name = string}
---@return table worker
function M.work(queue, opts)
    opts = opts or {}
    done_total = done_total or metrics.counter("kasma_jobs_total", "Jobs ended", { "queue", "name", "outcome" })
    local self = setmetatable({ queue = queue, prefix = base(queue), id = uuid.v4(), counter = 0, running = {}, name = opts.name,
        slots = sched.semaphore(opts.concurrency or tonumber(config.get("WORKER_CONCURRENCY")) or 8) }, Worker)
    sched.every(RENEW_MS, function() self:renew() end)
    sched.every(STALLED_MS, function() self:check_stalled() end)
    sched.on_stop(function()
        -- Nothing new is taken: whoever waits for work is woken by the end of its connection.
        if self.blocking then self.blocking:close() end
        local waited = 0
        while next(self.running) and waited < 20000 do
            sched.sleep(50)
            waited = waited + 50
        end
        for id, token in pairs(self.running) do redis.eval(scripts.release, { self.prefix }, { id, token, tostring(time.now()) }) end
    end)
    sched.spawn(self.loop, self)
    return self
end

return M
