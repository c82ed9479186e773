-- The worker of one queue in one process. Its tasks: two pumps, which alone speak with the queue's lists, each one script call at a time
-- (`cycle`: end what ran, take as many as there is room for), and the waiter, which sleeps on the marker while nothing is there. What
-- ends while a call is under way rides the next one, so that a busy queue costs one round trip for many jobs. A pump begins the jobs it
-- took before anything else happens and sends its next call at once: Redis then works for one pump while we work for the other. Each
-- job is a task of its own: what it raises (an error, lack of memory, a passed time limit) fails that job alone.
--
-- Invariants: a job taken is in `running` until its end has been told to Redis; its lock is renewed for exactly as long. A call
-- that fails leaves what it should have told in `done`, to be told again: the scripts answer a negative code to what is no longer
-- ours. The calls of both pumps ride the process's one connection: their answers come in the order in which Redis worked, so that a job
-- which was told of and taken again is settled before it is counted anew. Every wait ends when the task is cancelled, and so does its loop.
local config = require("core.config")
local json = require("core.json")
local metrics = require("core.metrics")
local redis = require("core.redis")
local sched = require("core.sched")
local time = require("core.time")
local uuid = require("core.uuid")
local errors = require("kasma.errors")
local log = require("kasma.log")
local jobs = require("kasma.jobs")
local cycle = require("kasma.jobs_cycle")
local scripts = require("kasma.jobs_scripts")

local M = {}

local LOCK_MS, STALLED_MS = 30000, 30000
local IDLE_S, MAX_WAIT_S, LEAST_WAIT_S = 5, 10, 0.002
local METRIC_POINTS = "1440"
local DONE_MAX, DONE_BYTES = 500, 8 * 1048576 -- ends told in one call
local RESULT_MAX, MESSAGE_MAX, TRACE_MAX = 1048576, 8192, 32768 -- bytes of what a job leaves behind
local WHOLE_MAX = 2 ^ 43 -- of a rule of keeping: jobs or seconds
local CLOSE_US = 5000
local ALONE = 3 -- concurrency up to which one pump does
local LAST_MS = 2000 -- of the grace, kept for giving back what still runs

local done_total, waiting_gauge, age_gauge

local Worker = {}
Worker.__index = Worker

local Job = {}
Job.__index = Job

--- Says how far the job is.
---@param value any
function Job:update_progress(value) require("kasma.jobs_queue").update_progress(self.queue, self.id, value) end

--- Keeps a line with the job.
---@param text string
function Job:log(text) require("kasma.jobs_queue").add_log(self.queue, self.id, text, self.opts.kl) end

--- What the job's children answered, by their keys.
---@return table<string, any>
function Job:children_values() return require("kasma.jobs_queue").children_values(self.queue, self.id) end

--- The job as a parent of others: `parent` of jobs.add.
---@return {id: string, queue: string}
function Job:as_parent() return { id = self.id, queue = (jobs.base(self.queue):gsub(":$", "")) } end

local function describe(err)
    if type(err) == "table" then
        local message = err.message or err.kind or "failed"
        return type(message) == "table" and table.concat(message, "; ") or tostring(message)
    end
    return (tostring(err):match("^[^\n]*"))
end

local function is_cancelled(err) return type(err) == "table" and (err.kind == "cancelled" or err.kind == "deadline") end

local function backoff_ms(opts, made)
    local backoff = opts.backoff
    if type(backoff) == "number" then backoff = { type = "fixed", delay = backoff } end
    if type(backoff) ~= "table" then return 0 end
    local delay = tonumber(backoff.delay) or 0
    if backoff.type == "exponential" then delay = math.floor(2 ^ (made - 1) * delay + 0.5) end
    local jitter = tonumber(backoff.jitter) or 0
    if jitter > 0 then delay = math.floor(delay * (1 - jitter) + math.random() * delay * jitter) end
    return math.min(delay, 3155760000000)
end

local function text(n) return n and ("%.0f"):format(n) or "" end

-- A whole number that Redis takes as one; anything else is as if it were not there: whoever adds a job may write what he likes.
local function whole(value)
    local n = tonumber(value)
    return n and n >= 0 and n <= WHOLE_MAX and n == math.floor(n) and text(n) or ""
end

-- count, age, limit of removeOnComplete or removeOnFail, as the script takes them.
local function keep_rule(value)
    if value == true then return "0", "", "" end
    if type(value) == "number" then return whole(value), "", "" end
    if type(value) ~= "table" then return "", "", "" end
    return whole(value.count), whole(value.age), whole(value.limit)
end

-- An end ready to be told: {job, id, token, what, value, count, age, limit, traces, extra}.
local function end_of(worker, job, ok, result)
    local entry = { job = job, id = job.id, token = job.token, extra = "", traces = "", count = "", age = "", limit = "" }
    if ok then
        entry.what = "completed"
        entry.count, entry.age, entry.limit = keep_rule(job.opts.removeOnComplete)
        local encoded, value = pcall(json.encode, result)
        if result == nil then encoded, value = true, "null" end
        if encoded and value and #value <= RESULT_MAX then
            entry.value, entry.outcome = value, "completed"
            if job.plain then entry.extra = text(job.attempts_made + 1) end
            return entry
        end
        result = encoded and value and "the handler's answer is larger than 1 MiB; keep what is larger elsewhere and name it"
            or "the handler's answer is no JSON: " .. describe(value)
    end
    local kind = getmetatable(result)
    if kind == jobs.signals.back then
        entry.what, entry.value, entry.outcome = "back", "", "limited"
        return entry
    elseif kind == jobs.signals.later then
        entry.what, entry.value, entry.extra, entry.outcome = "later", "", text(result.delay), "postponed"
        return entry
    elseif kind == jobs.signals.children then
        entry.what, entry.value, entry.outcome = "children", "", "waiting-children"
        return entry
    end
    local message = describe(result):sub(1, MESSAGE_MAX)
    local made = job.attempts_made + 1
    entry.value, entry.traces = message, json.encode(json.array{ type(result) == "string" and result:sub(1, TRACE_MAX) or message })
    local final = kind == jobs.signals.unrecoverable
    if not final and made < (tonumber(job.opts.attempts) or 0) then
        entry.what, entry.extra, entry.outcome = "retry", text(backoff_ms(job.opts, made)), "retried"
        return entry
    end
    entry.what, entry.outcome, entry.extra = "failed", "failed", final and "0" or "1"
    entry.count, entry.age, entry.limit = keep_rule(job.opts.removeOnFail)
    log.warn("job failed", { queue = worker.queue, job = job.name, id = job.id, attempts = made, error = message })
    return entry
end

-- Running ------------------------------------------------------------------------------------------------------------------

local function traced(err)
    if type(err) == "table" then return err end
    local ok, trace = pcall(debug.traceback, tostring(err), 2)
    return ok and trace or tostring(err)
end

local function call_handler(handler, job)
    if not handler.timeout_ms then return xpcall(handler.fn, traced, job) end
    -- The limit is a task's: one of its own, or the job's end could not be told after it.
    return pcall(function()
        return sched.parallel{ function()
            local begun = time.mono()
            sched.deadline(handler.timeout_ms)
            local result = handler.fn(job)
            -- A handler that swallows the error of the wait that was cut has not done its work either.
            if time.mono() - begun >= handler.timeout_ms * 1000 - CLOSE_US and not sched.sleep(1) then
                error("the job passed its deadline", 0)
            end
            return result
        end }[1]
    end)
end

-- Plans the scheduler's next run, before this one begins: a schedule must not end because a run did. False: Redis could not be asked,
-- and the job goes back.
function Worker:follow(job)
    for _ = 1, 5 do
        local ok, why = pcall(require("kasma.jobs_schedule").follow, self.queue, job)
        if ok then return true end
        log.warn("the next run was not planned", { queue = self.queue, id = job.id, error = describe(why) })
        if not errors.is_unavailable(why) then return true end
        if not sched.sleep(200) then return false end
    end
    return false
end

function Worker:run(job)
    local handler = jobs.handler_of(self.queue, job.name)
    local ok, result
    if job.scheduler and not self:follow(job) then
        ok, result = false, setmetatable({ message = "Redis is away" }, jobs.signals.back)
    elseif job.broken then
        ok, result = false, setmetatable({ message = job.broken }, jobs.signals.unrecoverable)
    elseif handler then
        ok, result = call_handler(handler, job)
    else
        ok, result = false, setmetatable({ message = "No handler for job " .. tostring(job.name) }, jobs.signals.unrecoverable)
    end
    local good, entry = pcall(end_of, self, job, ok, result)
    if not good then
        entry = { job = job, id = job.id, token = job.token, what = "failed", value = "the job's end cannot be told: " .. describe(entry),
            count = "", age = "", limit = "", traces = "", extra = "0", outcome = "failed" }
    end
    self.done[#self.done + 1] = entry
    self:wake()
end

local function job_of(self, fields, token)
    local id = fields.id
    local job = setmetatable({ id = id, token = token, queue = self.queue, name = fields.name,
        attempts_made = tonumber(fields.atm) or 0, attempts_started = (tonumber(fields.ats) or 0) + 1,
        scheduler = fields.rjk, parent_key = fields.parentKey, broken = fields.defa,
        plain = not fields.parentKey and not fields.deid and id:find("^%d+$") ~= nil }, Job)
    local ok, data = pcall(json.decode, fields.data)
    local good, opts = pcall(json.decode, fields.opts)
    job.data, job.opts = data, good and type(opts) == "table" and opts or {}
    if not ok or data == nil then
        job.data = nil
        job.broken = job.broken or "the job's data is no JSON"
    end
    return job
end

-- The pump -----------------------------------------------------------------------------------------------------------------

function Worker:wake()
    if self.signal:waiting() > 0 then self.signal:release() end
end

-- What became of an end. Codes: 0 done; -1 no such job, -2 no lock, -3 not active, -6 another's lock: not ours any more. A text: what is
-- wrong with the job's keys; it stays active without us, and stalls.
function Worker:settle(entry, code)
    local job = entry.job
    if code == -4 or code == -9 then
        -- It is still ours and cannot be completed.
        local why = code == -4 and ("Job %s has pending dependencies"):format(job.id)
            or ("Cannot complete job %s because it has at least one failed child"):format(job.id)
        self.done[#self.done + 1] = end_of(self, job, false, setmetatable({ message = why }, jobs.signals.unrecoverable))
        return
    elseif entry.what == "children" and code == 1 then
        entry.what = "back"
        self.done[#self.done + 1] = entry
        return
    elseif type(code) == "string" then
        log.error("the end of a job cannot be told", { queue = self.queue, id = job.id, outcome = entry.outcome, error = code })
    elseif code ~= 0 then
        log.warn("job is not ours any more", { queue = self.queue, id = job.id, code = tostring(code), outcome = entry.outcome })
    end
    if code == 0 then done_total:add(1, self.queue, job.name, entry.outcome) end
    if self.running[job.id] == entry.token then
        self.running[job.id] = nil
        self.count = self.count - 1
    end
end

-- What the next call does: how many ends it tells, and how many jobs it takes. What is told makes room, as much as is not asked for by
-- another call that is under way; and a pump takes its share at most, so that the others have theirs.
---@return integer told, integer take
function Worker:plan()
    local entries, told, bytes = self.done, 0, 0
    while told < #entries and told < DONE_MAX and bytes < DONE_BYTES do
        told = told + 1
        bytes = bytes + #entries[told].value + #entries[told].traces
    end
    if self.stopping or not (self.ready or told > 0) then return told, 0 end
    local free = self.concurrency - (self.count - self.telling - told) - self.asked
    return told, math.max(0, math.min(free, self.share))
end

-- Adds the first ends to the script's arguments: what the neighbours among them have in common is said once.
local function add_ends(args, entries, told)
    local n, group, members = #args, nil, nil
    for i = 1, told do
        local e = entries[i]
        if not (group and group.what == e.what and group.token == e.token and group.count == e.count and group.age == e.age
            and group.limit == e.limit) then
            if group then args[members] = text(args[members]) end
            group, members = e, n + 6
            args[n + 1], args[n + 2], args[n + 3], args[n + 4], args[n + 5], args[n + 6] = e.what, e.token, e.count, e.age, e.limit, 0
            n = n + 6
        end
        args[members] = args[members] + 1
        args[n + 1], args[n + 2], args[n + 3] = e.id, e.value, e.extra
        n = n + 3
        if e.what == "failed" or e.what == "retry" then
            n = n + 1
            args[n] = e.traces
        end
    end
    if group then args[members] = text(args[members]) end
end

-- Tells the first ends and takes jobs, in one call; begins what it took.
---@param told integer
---@param take integer
---@return boolean ok, any why
function Worker:cycle(told, take)
    local entries = self.done
    if #entries > told then
        local later = {}
        for i = told + 1, #entries do later[#later + 1] = entries[i] end
        self.done = later
    else
        self.done = {}
    end
    self.calls = self.calls + 1
    local token = self.id .. ":" .. text(self.calls)
    self.asked, self.telling = self.asked + take, self.telling + told
    local limiter = self.limiter or {}
    local now = time.now()
    local minute = math.floor(now / 60000)
    local args = { text(now), text(self.lock_ms), self.name or "", text(limiter.max), text(limiter.duration), text(take), token,
        METRIC_POINTS, minute == self.minute and "0" or "1" }
    add_ends(args, entries, told)
    local answer, err = redis.eval(cycle.script, { self.prefix }, args, true)
    self.asked, self.telling = self.asked - take, self.telling - told
    if type(answer) ~= "table" or answer.err then
        -- What was to be told is told again; if it had been, the script answers that it is not ours.
        for i = 1, told do self.done[#self.done + 1] = entries[i] end
        return false, err or answer
    end
    if told > 0 then self.minute = minute end
    if answer[5] ~= "" then log.error("a key of the queue is not what it should be", { queue = self.queue, error = answer[5] }) end
    for i = 1, told do self:settle(entries[i], answer[1][i]) end
    local taken = cycle.jobs_of(answer)
    for _, fields in ipairs(taken) do
        local job = job_of(self, fields, token)
        self.running[job.id] = job.token
        self.count = self.count + 1
        sched.start(self.run, self, job)
    end
    if take > 0 then
        self.ready = #taken == take
        self.next_due, self.limited_ms = tonumber(answer[3]) or 0, tonumber(answer[4]) or 0
        if not self.ready and self.idle:waiting() > 0 then self.idle:release() end
    end
    return true
end

function Worker:pump()
    while true do
        local told, take = self:plan()
        if told == 0 and take == 0 then
            if self.stopping and self.count == 0 then break end
            if not self.signal:acquire() then break end
        else
            local ok, why = self:cycle(told, take)
            if not ok then
                if is_cancelled(why) then break end
                if not self.quiet then log.warn("queue cannot be reached", { queue = self.queue, error = describe(why) }) end
                self.quiet = true
                if not sched.sleep(500) or (self.stopping and self.given_back) then break end
            else
                self.quiet = false
            end
        end
    end
    self.pumps = self.pumps - 1
    self.ended = self.pumps == 0
    self:wake()
end

-- The waiter: sleeps on the marker while the pump says that nothing is there.
function Worker:wait()
    while not self.stopping do
        if self.ready then
            if not self.idle:acquire() then break end
        elseif self.limited_ms > 0 then
            if not sched.sleep(math.min(self.limited_ms, MAX_WAIT_S * 1000)) then break end
            self.limited_ms, self.ready = 0, true
            self:wake()
        else
            local seconds = IDLE_S
            if self.next_due > 0 then
                seconds = math.max(LEAST_WAIT_S, math.min((self.next_due - time.now()) / 1000, MAX_WAIT_S))
            end
            local popped, err = self.blocking:call("BZPOPMIN", self.prefix .. "marker", ("%.3f"):format(seconds))
            if self.stopping then break end
            if err then
                if is_cancelled(err) or not sched.sleep(500) then break end
            end
            local score = type(popped) == "table" and tonumber(popped[3]) or 0
            if score > time.now() then
                -- The mark of what falls due later: nothing to take yet.
                if self.next_due == 0 or score < self.next_due then self.next_due = score end
            else
                self.ready = true
                self:wake()
            end
        end
    end
    self.blocking:close()
end

-- Beside them --------------------------------------------------------------------------------------------------------------

function Worker:renew()
    local args = { text(self.lock_ms) }
    for id, token in pairs(self.running) do
        args[#args + 1], args[#args + 2] = id, token
    end
    if #args == 1 then return end
    local lost = redis.eval(scripts.extend, { self.prefix }, args)
    if type(lost) ~= "table" then return end
    for _, id in ipairs(lost) do
        if self.running[id] then log.warn("a running job lost its lock", { queue = self.queue, id = id }) end
    end
end

function Worker:check_stalled()
    local answer = redis.eval(scripts.stalled, { self.prefix }, { text(self.stalled_ms), text(time.now()) })
    if type(answer) ~= "table" then return end
    for _, id in ipairs(answer) do log.warn("stalled job went back to wait", { queue = self.queue, id = id }) end
end

-- Each second: a shifted clock makes jobs due that the waiter sleeps for.
function Worker:look_at_clock()
    local shift = time.shift()
    if shift == self.shift then return end
    self.shift = shift
    self.ready = true
    self:wake()
end

function Worker:measure()
    local answer = redis.pipeline{ { "LLEN", self.prefix .. "wait" }, { "ZCARD", self.prefix .. "prioritized" },
        { "LLEN", self.prefix .. "paused" }, { "LINDEX", self.prefix .. "wait", -1 } }
    if type(answer) ~= "table" then return end
    waiting_gauge:set((tonumber(answer[1]) or 0) + (tonumber(answer[2]) or 0) + (tonumber(answer[3]) or 0), self.queue)
    local age = 0
    if type(answer[4]) == "string" then
        local made = redis.call("HGET", self.prefix .. answer[4], "timestamp")
        age = type(made) == "string" and math.max(0, (time.now() - (tonumber(made) or time.now())) / 1000) or 0
    end
    age_gauge:set(age, self.queue)
end

function Worker:stop()
    self.stopping = true
    self:wake()
    if self.idle:waiting() > 0 then self.idle:release() end
    self.blocking:close()
    local limit = time.mono() + self.grace_ms * 1000
    local renewed = time.mono()
    while not self.ended and time.mono() < limit do
        if not sched.sleep(20) then return end
        if time.mono() - renewed > self.lock_ms * 500 then
            self:renew()
            renewed = time.mono()
        end
    end
    if self.ended then return end
    -- Whatever its handler still does: another worker may take it now.
    for id, token in pairs(self.running) do
        self.done[#self.done + 1] = { job = { id = id, name = "" }, id = id, token = token, what = "back", value = "", count = "", age = "",
            limit = "", traces = "", extra = "", outcome = "given back" }
    end
    self.given_back = true
    self:wake()
end

--- Starts a worker; jobs.work says more.
---@param queue string
---@param opts table
---@return table worker {count = jobs that run, ended = true once it has stopped, stop = function(self)}
function M.start(queue, opts)
    done_total = done_total or metrics.counter("kasma_jobs_total", "Jobs ended", { "queue", "name", "outcome" })
    waiting_gauge = waiting_gauge or metrics.gauge("kasma_jobs_waiting", "Jobs that wait", { "queue" })
    age_gauge = age_gauge or metrics.gauge("kasma_job_age_seconds", "Age of the job that has waited longest", { "queue" })
    local self = setmetatable({ queue = queue, prefix = jobs.base(queue), id = uuid.v4(), calls = 0, count = 0, running = {}, done = {},
        name = opts.name, limiter = opts.limiter, lock_ms = opts.lock_ms or LOCK_MS, stalled_ms = opts.stalled_ms or STALLED_MS,
        concurrency = opts.concurrency or tonumber(config.get("WORKER_CONCURRENCY")) or 8, ready = true, next_due = 0, limited_ms = 0,
        grace_ms = opts.grace_ms or math.max(0, (tonumber(config.get("SHUTDOWN_GRACE")) or 25) * 1000 - LAST_MS),
        shift = time.shift(), pumps = 1, asked = 0, telling = 0, signal = sched.semaphore(1), idle = sched.semaphore(1) }, Worker)
    if self.concurrency > ALONE then self.pumps = 2 end
    self.share = math.ceil(self.concurrency / self.pumps)
    self.signal:acquire()
    self.idle:acquire()
    self.blocking = errors.check(redis.dedicated(jobs.connection_name(queue, opts.name)))
    sched.every(math.max(1, self.lock_ms / 2), function() self:renew() end)
    sched.every(self.stalled_ms, function() self:check_stalled() end)
    sched.every(1000, function() self:look_at_clock() end)
    sched.every(15000, function() self:measure() end)
    sched.on_stop(function() self:stop() end)
    sched.spawn(function()
        -- A queue that is served is known, also before anybody adds to it.
        pcall(jobs.introduce, self.prefix)
        for _ = 1, self.pumps do sched.spawn(self.pump, self) end
    end)
    sched.spawn(self.wait, self)
    return self
end

return M
