-- Queues in the data layout of BullMQ (majors 5 and 6), so that a Node producer, worker or dashboard can stand beside ours at any
-- moment. Every move is one Redis script (jobs_scripts.lua); a move in two calls would lose jobs. Jobs are at least once: a handler is
-- idempotent by the job's id or a business key. A job that follows a commit goes through the outbox (outbox.job).
--
--     jobs.handler("sales-queue", "order-confirmation", function(job) ... end)   -- job: id, name, data, opts, attempts_made, ...
--     jobs.add("sales-queue", "order-confirmation", { orderId = id }, { attempts = 3, delay = 60000 })
--
-- A handler that raises is tried again while attempts last, after its backoff; jobs.give_up(message) fails it for good.
-- A job name that nobody handles fails at once and visibly. What a worker does lies in jobs_worker.lua, what a dashboard does in
-- jobs_queue.lua, what runs by the clock in jobs_schedule.lua.
local config = require("core.config")
local crypto = require("core.crypto")
local json = require("core.json")
local redis = require("core.redis")
local sched = require("core.sched")
local time = require("core.time")
local uuid = require("core.uuid")
local errors = require("kasma.errors")
local outbox = require("kasma.outbox")
local scripts = require("kasma.jobs_scripts")

local M = {}

local PRIORITY_MAX, DELAY_MAX_MS = 2097151, 3155760000000 -- a hundred years
local JOB_ARGS = 7 -- of a job to scripts.add
local COUNT_MAX = 2147483647 -- of an option that counts
local BULK = 200 -- jobs of one script call: longer ones would hold up everybody else's commands
local FLOW_MAX = 1000
local DATA_MAX = 8000000 -- below what a worker takes in one call, with room for name and options
local CALL_BYTES = 4 * 1048576 -- of jobs in one script call, unless one alone is larger
M.LAYOUT = tonumber(config.get("BULLMQ_LAYOUT")) or 5
local VERSION = M.LAYOUT == 6 and "bullmq:6.7.0" or "bullmq:5.81.5"

-- What holds for the house's jobs unless a job says otherwise: attempts, keeping a day of completed and two weeks of failed jobs.
M.defaults = {
    attempts = 5, backoff = { type = "exponential", delay = 3000 },
    removeOnComplete = { age = 86400, count = 1000 }, removeOnFail = { age = 1209600, count = 10000 },
}

--- What all keys of a queue begin with.
---@param queue string
---@return string "bull:<queue>:"
function M.base(queue)
    if type(queue) ~= "string" or queue == "" or #queue > 200 or queue:find("[:%c]") then
        error("a queue's name is 1 to 200 characters without a colon", 2)
    end
    return (config.get("QUEUE_PREFIX") or "bull") .. ":" .. queue .. ":"
end
local base = M.base

local Unrecoverable, Back, Later, Children = {}, {}, {}, {}
M.signals = { unrecoverable = Unrecoverable, back = Back, later = Later, children = Children }

--- Fails the job at once, whatever attempts are left. Raises; in a handler only.
---@param message string
function M.give_up(message) error(setmetatable({ message = message }, Unrecoverable), 0) end

--- Stops the whole queue for a time and puts the job back; no attempt is counted. Raises; in a handler only.
---@param job table
---@param ms integer
function M.rate_limit(job, ms)
    errors.check(redis.call("SET", base(job.queue) .. "limiter", "9007199254740991", "PX", math.max(1, math.floor(ms))))
    error(setmetatable({ message = "rate limited" }, Back), 0)
end

--- Runs the job again after a time; no attempt is counted. Raises; in a handler only.
---@param ms integer
function M.postpone(ms) error(setmetatable({ message = "postponed", delay = math.max(0, math.floor(ms)) }, Later), 0) end

--- Puts the job aside until the children that it has added are done; the handler then runs anew. With none pending the job goes
--- back to wait at once. Raises; in a handler only.
function M.await_children() error(setmetatable({ message = "waits for children" }, Children), 0) end

-- Options ------------------------------------------------------------------------------------------------------------------

local SHORT = { deduplication = "de", keepLogs = "kl", failParentOnFailure = "fpof", continueParentOnFailure = "cpof",
    ignoreDependencyOnFailure = "idof", removeDependencyOnFailure = "rdof", telemetry = "tm" }

local function bad(message) errors.bad_request{ message = message, code = "bad_job" } end

-- A job's hash lies beside the keys of its queue: under one of their names it would put an end to the queue.
local TAKEN = {}
for name in ("id wait paused active prioritized pc delayed completed failed waiting-children marker stalled stalled-check events meta "
    .. "limiter repeat de dn ob metrics"):gmatch("%S+") do TAKEN[name] = true end

local function has_own_key(id)
    local _, colons = id:gsub(":", "")
    if id == "" or #id > 500 or colons ~= 0 and colons ~= 2 then return false end
    return not TAKEN[id:match("^[^:]*")] or id:find("^repeat:[^:]+:%d+$") ~= nil -- a scheduler's run
end

local BESIDE = { lock = true, logs = true, dependencies = true, processed = true, failed = true, unsuccessful = true }

--- Whether a job may lie under this id, also one of another program's: not where the queue, a scheduler or another job keeps something
--- else.
---@param id string
---@return boolean
function M.may_be_job(id)
    local run = id:find("^repeat:.+:%d+$") ~= nil
    if TAKEN[id:match("^[^:]*")] and not run then return false end
    local _, colons = id:gsub(":", "")
    return not BESIDE[id:match(":([^:]*)$") or ""] or (colons == 2 and id:sub(1, 7) ~= "repeat:")
end

local function check_id(id)
    if id == nil then return nil end
    id = tostring(id)
    if id == "" or #id > 500 or id:find("^%-?%d+$") or id:sub(1, 2) == "0:" then
        bad("A job's id must not be a number: " .. id:sub(1, 80))
    end
    local _, colons = id:gsub(":", "")
    if colons > 0 and colons ~= 2 then bad("A job's id must not hold a colon: " .. id:sub(1, 80)) end
    if not has_own_key(id) then bad("A job's id must not be the name of a key of the queue: " .. id:sub(1, 80)) end
    return id
end

local function whole(value, name, most)
    if value == nil then return 0 end
    local n = tonumber(value)
    if type(value) ~= "number" or n ~= math.floor(n) or n < 0 or n > most then
        bad(("%s must be a whole number from 0 to %.0f"):format(name, most))
    end
    return n
end

local function check_backoff(backoff)
    if backoff == nil then return nil end
    if type(backoff) == "number" then backoff = { type = "fixed", delay = backoff } end
    if type(backoff) ~= "table" or type(backoff.type) ~= "string" then bad("backoff must be a number or {type, delay}") end
    whole(backoff.delay, "backoff.delay", DELAY_MAX_MS)
    if backoff.jitter ~= nil and (type(backoff.jitter) ~= "number" or backoff.jitter < 0 or backoff.jitter > 1) then
        bad("backoff.jitter must be from 0 to 1")
    end
    return backoff
end

-- True, false, how many are kept, or {age s, count, limit}; -1 keeps all.
local function check_keep(value, name)
    if type(value) == "boolean" then return end
    local rule = type(value) == "table" and value or { count = value }
    whole(rule.age, name .. ".age", COUNT_MAX)
    whole(rule.limit, name .. ".limit", COUNT_MAX)
    if rule.count ~= -1 then whole(rule.count, type(value) == "table" and name .. ".count" or name, COUNT_MAX) end
end

--- The options as they are stored. Raises 400 bad_job.
---@param opts table
---@return table
function M.stored(opts)
    local stored = {}
    for key, value in pairs(opts) do stored[SHORT[key] or key] = value end
    stored.backoff = check_backoff(stored.backoff)
    stored.attempts = whole(stored.attempts, "attempts", 1000000)
    check_keep(stored.removeOnComplete, "removeOnComplete")
    check_keep(stored.removeOnFail, "removeOnFail")
    whole(stored.kl, "keepLogs", COUNT_MAX)
    whole(stored.stackTraceLimit, "stackTraceLimit", COUNT_MAX)
    whole(stored.sizeLimit, "sizeLimit", COUNT_MAX)
    if stored.lifo ~= nil and type(stored.lifo) ~= "boolean" then bad("lifo must be true or false") end
    return stored
end

local function check_deduplication(de)
    if de == nil then return nil end
    if type(de) ~= "table" or type(de.id) ~= "string" or de.id == "" then bad("deduplication must be {id, ttl, extend, replace}") end
    whole(de.ttl, "deduplication.ttl", DELAY_MAX_MS)
    return de
end

-- The arguments of one job for scripts.add, appended to args. `more` is what few jobs have: key, asker, waits; what is found here goes in
-- as well. Answers how many bytes the job's data and options are.
local function describe(args, name, data, opts, more, parent)
    if type(name) ~= "string" or #name > 1000 then bad("A job's name must be a text of up to 1000 characters") end
    local stored = M.stored(opts)
    local text = data == nil and "{}" or json.encode(data)
    if stored.sizeLimit and #text > stored.sizeLimit then bad("The job's data is larger than its sizeLimit") end
    if #text > DATA_MAX then bad("A job's data must be at most 8 MB as JSON; keep what is larger elsewhere and name it") end
    parent = parent or stored.parent
    if parent then
        if type(parent) ~= "table" or type(parent.id) ~= "string" or type(parent.queue) ~= "string" then
            bad("parent must be {id, queue}, queue with its prefix")
        end
        local prefix = (config.get("QUEUE_PREFIX") or "bull") .. ":"
        local ours = parent.queue:sub(1, #prefix) == prefix and pcall(base, parent.queue:sub(#prefix + 1))
        if not ours or not has_own_key(parent.id) then bad("parent names no job: " .. (parent.queue .. ":" .. parent.id):sub(1, 80)) end
        stored.parent = { id = parent.id, queue = parent.queue }
        more.parent_key = parent.queue .. ":" .. parent.id
        local of_parent = { id = parent.id, queueKey = parent.queue }
        for _, flag in ipairs{ "fpof", "cpof", "idof", "rdof" } do
            if stored[flag] then of_parent[flag] = true end
        end
        more.parent = json.encode(of_parent)
    end
    more.id = check_id(stored.jobId) or more.id
    more.dedup = check_deduplication(stored.de)
    more.lifo = stored.lifo or nil
    local n = #args
    args[n + 1], args[n + 2], args[n + 3] = name, text, json.encode(stored)
    args[n + 4] = ("%.0f"):format(stored.timestamp and whole(stored.timestamp, "timestamp", 2 ^ 43) or time.now())
    args[n + 5] = ("%.0f"):format(whole(stored.delay, "delay", DELAY_MAX_MS))
    args[n + 6] = ("%.0f"):format(whole(stored.priority, "priority", PRIORITY_MAX))
    args[n + 7] = next(more) and json.encode(more) or ""
    return #text + #args[n + 3]
end

-- Adding -------------------------------------------------------------------------------------------------------------------

local REFUSED = { [-5] = "The parent job does not exist", [-7] = "The job belongs to another parent" }

local function refuse(code)
    if code == -12 then bad("A job cannot be above itself") end
    errors.conflict{ message = REFUSED[code] or "The job was refused", code = code == -5 and "no_parent" or "other_parent" }
end

-- The script knows the families that stand in Redis, not those that one call would make: a job that waits for itself, or for whom two
-- parents wait, of whom one would wait for ever. `asked`: the parents by the jobs of this call; `more` of the job.
local function check_parent(asked, prefix, more)
    local id, parent_key = more.id, more.parent_key
    if not id or not parent_key then return end
    local key, above = prefix .. id, parent_key
    while above do
        if above == key then bad("A job cannot be above itself: " .. id:sub(1, 80)) end
        above = asked[above]
    end
    if asked[key] and asked[key] ~= parent_key then refuse(-7) end
    asked[key] = parent_key
end
local described = {}

-- What a Node Queue writes when it is opened. Once a process and queue.
local function introduce(prefix)
    if described[prefix] then return end
    errors.check(redis.pipeline{ { "HSETNX", prefix .. "meta", "opts.maxLenEvents", "10000" },
        { "HSETNX", prefix .. "meta", "version", VERSION } })
    described[prefix] = true
end
M.introduce = introduce

local function run_add(keys, args)
    local ids = errors.check(redis.eval(scripts.add, keys, args, true))
    if type(ids) == "number" then refuse(ids) end
    return ids
end

-- Jobs that are added to a queue in the same turn of the loop ride one script call. A call leaves as soon as it holds a few, so that
-- Redis works while the rest of the turn goes on; with CALLS of them under way, what comes gathers until one of them is answered.
local FEW, CALLS = 8, 2
local gathering = {} -- by prefix: {batch = being gathered or nil, flying = calls under way}

local launch

local function land(prefix, g, batch, ok, result)
    batch.ok, batch.result = ok, result
    g.flying = g.flying - 1
    for _ = 1, batch.count do batch.done:release() end
    if g.batch then
        launch(prefix, g)
    elseif g.flying == 0 and gathering[prefix] == g then
        gathering[prefix] = nil
    end
end

local function fly(prefix, g, batch) land(prefix, g, batch, pcall(run_add, { prefix }, batch.args)) end

function launch(prefix, g)
    local batch = g.batch
    g.batch, g.flying = nil, g.flying + 1
    -- Without memory for a task those who wait hear it: nobody else would ever answer them.
    local begun, why = pcall(sched.start, fly, prefix, g, batch)
    if not begun then land(prefix, g, batch, false, why) end
end

local function end_turn(prefix, g)
    if g.batch and g.flying < CALLS then launch(prefix, g) end
end

local function add_together(prefix, args, bytes)
    local g = gathering[prefix]
    if not g then
        g = { flying = 0 }
        gathering[prefix] = g
    end
    local batch = g.batch
    if batch and (batch.count == BULK or batch.bytes + bytes > CALL_BYTES) then
        launch(prefix, g)
        batch = nil
    end
    if not batch then
        batch = { args = {}, count = 0, bytes = 0, done = sched.semaphore(1) }
        batch.done:acquire()
        if g.flying < CALLS then sched.spawn(end_turn, prefix, g) end
        g.batch = batch
    end
    local n = #batch.args
    for i = 1, #args do batch.args[n + i] = args[i] end
    batch.count, batch.bytes = batch.count + 1, batch.bytes + bytes
    local place = batch.count
    if place >= FEW and g.flying < CALLS then launch(prefix, g) end
    local woken, why = batch.done:acquire()
    if not woken then errors.check(nil, why) end
    if not batch.ok then error(batch.result, 0) end
    return tostring(batch.result[place])
end

--- Adds a job. opts as BullMQ's: jobId, attempts, backoff (ms or {type = "fixed"|"exponential", delay, jitter}), delay (ms), priority,
--- lifo, removeOnComplete and removeOnFail (true, count or {age s, count}), deduplication {id, ttl, extend, replace, keepLastIfActive},
--- parent {id, queue}, keepLogs, stackTraceLimit, timestamp. Raises 400 bad_job, 409 no_parent and other_parent.
---@param queue string
---@param name string
---@param data any
---@param opts table|nil
---@param once string|nil what asks for the job: the same asker gets the same job for a day
---@return string job id; of a duplicate that of the job that is there
function M.add(queue, name, data, opts, once)
    local prefix = base(queue)
    local args, more = {}, { asker = once }
    local bytes = describe(args, name, data, opts or {}, more)
    check_parent({}, prefix, more)
    introduce(prefix)
    -- A parent may refuse its child, which must not touch the neighbours.
    if more.parent_key then return tostring(run_add({ prefix }, args)[1]) end
    return add_together(prefix, args, bytes)
end

--- Adds many, in order; those of one script call (200, or 4 MiB) all or none.
---@param queue string
---@param list {name: string, data: any, opts: table|nil, once: string|nil}[]
---@return string[] ids
function M.add_bulk(queue, list)
    local prefix = base(queue)
    local calls, args, bytes, asked = {}, {}, 0, {}
    for i, job in ipairs(list) do
        local more = { asker = job.once }
        bytes = bytes + describe(args, job.name, job.data, job.opts or {}, more)
        check_parent(asked, prefix, more)
        if #args == BULK * JOB_ARGS or bytes >= CALL_BYTES or i == #list then
            calls[#calls + 1] = args
            args, bytes = {}, 0
        end
    end
    introduce(prefix)
    local ids = {}
    for _, one in ipairs(calls) do
        for _, id in ipairs(run_add({ prefix }, one)) do ids[#ids + 1] = id end
    end
    return ids
end

-- Appends the flow's nodes, parents first. Answers the tree of ids.
local function flow_node(work, node, parent, depth)
    if type(node) ~= "table" or type(node.name) ~= "string" or type(node.queueName) ~= "string" then
        bad("Each job of a flow needs name and queueName")
    end
    if depth > 20 then bad("A flow is at most 20 jobs deep") end
    work.count = work.count + 1
    if work.count > FLOW_MAX then bad("A flow holds at most 1000 jobs") end
    local ok, prefix = pcall(base, node.queueName)
    if not ok then bad("queueName must not hold a colon") end
    if not work.numbers[prefix] then
        work.keys[#work.keys + 1] = prefix
        work.numbers[prefix] = #work.keys
    end
    local opts = {}
    for key, value in pairs(node.opts or {}) do opts[key] = value end
    if parent then opts.parent = nil end
    local children = node.children or {}
    -- A generated id is no option of the job.
    local more = { key = work.numbers[prefix], id = not opts.jobId and uuid.v4() or nil, waits = #children > 0 or nil }
    describe(work.args, node.name, node.data, opts, more, parent)
    check_parent(work.asked, prefix, more)
    local made = { id = more.id, queue = node.queueName }
    for i, child in ipairs(children) do
        made.children = made.children or {}
        made.children[i] = flow_node(work, child, { id = more.id, queue = (prefix:gsub(":$", "")) }, depth + 1)
    end
    return made
end

--- Adds a parent with its children, and theirs, all or none: {name, queueName, data, opts, children = {...}}. A parent runs when its
--- children are done; a child's option says what its failure does to the parent: failParentOnFailure, continueParentOnFailure,
--- ignoreDependencyOnFailure, removeDependencyOnFailure. Raises as add.
---@param flow table
---@return {id: string, queue: string, children: table[]|nil}
function M.add_flow(flow)
    local work = { keys = {}, numbers = {}, args = {}, count = 0, asked = {} }
    local made = flow_node(work, flow, nil, 1)
    run_add(work.keys, work.args)
    return made
end

-- An outbox row becomes a job once, however often the relay hands it over.
outbox.consumer("job", function(rows)
    local by_queue, order = {}, {}
    for _, row in ipairs(rows) do
        local payload = row.payload
        local opts = {}
        for key, value in pairs(M.defaults) do opts[key] = value end
        for key, value in pairs(payload.opts or {}) do opts[key] = value end
        if not by_queue[payload.queue] then
            by_queue[payload.queue] = {}
            order[#order + 1] = payload.queue
        end
        table.insert(by_queue[payload.queue], { name = payload.name, data = payload.data, opts = opts, once = row.id })
    end
    for _, queue in ipairs(order) do M.add_bulk(queue, by_queue[queue]) end
end)

-- Handling -----------------------------------------------------------------------------------------------------------------

local handlers = {}

--- Says what a job of that name does.
---@param queue string
---@param name string job name, or "*" for any
---@param fn fun(job: table): any what it answers is the job's returnvalue
---@param opts {timeout_ms: integer|nil}|nil the attempt fails after that time
function M.handler(queue, name, fn, opts)
    base(queue)
    handlers[queue] = handlers[queue] or {}
    handlers[queue][name] = { fn = fn, timeout_ms = opts and opts.timeout_ms }
end

---@param queue string
---@param name string
---@return {fn: fun(job: table): any, timeout_ms: integer|nil}|nil
function M.handler_of(queue, name)
    local known = handlers[queue]
    return known and (known[name] or known["*"])
end

--- Forgets all handlers: a process that serves a developer's own has none of the house's.
function M.forget_handlers() handlers = {} end

--- Queues that somebody handles, sorted.
---@return string[]
function M.queues()
    local names = {}
    for queue in pairs(handlers) do names[#names + 1] = queue end
    table.sort(names)
    return names
end

--- The name by which the queue's blocking connections are found in CLIENT LIST.
---@param queue string
---@param worker string|nil
---@return string
function M.connection_name(queue, worker)
    local name = (config.get("QUEUE_PREFIX") or "bull") .. ":" .. crypto.base64(queue)
    return worker and name .. ":w:" .. worker or name
end

--- Serves a queue until the process stops; what runs then has the grace of the process to end, the rest goes back to wait.
---@param queue string
---@param opts table|nil {concurrency = 8, name = text, lock_ms = 30000, stalled_ms = 30000, limiter = {max, duration ms}}
---@return table worker
function M.work(queue, opts) return require("kasma.jobs_worker").start(queue, opts or {}) end

return M
