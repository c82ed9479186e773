-- The job queues as the platform's staff sees them. Queues serve all tenants at once and their jobs' data is that of all tenants, so
-- nothing here is for a tenant's own staff. What changes a queue is in the audit trail before it is done: a trace of what was only
-- tried is worth more than a change without a trace.
local json = require("core.json")
local time = require("core.time")
local audit = require("kasma.audit")
local errors = require("kasma.errors")
local jobs = require("kasma.jobs")
local queues = require("kasma.jobs_queue")
local schedule = require("kasma.jobs_schedule")
local shown = require("modules.queues.shown")

local M = {}

local SEARCH_MAX, BULK_MAX = 1000, 1000
local ROWS_MAX, CHILDREN_MAX = 200, 100 -- of one job's log, and of its children

M.unknown_queue = errors.declare{ code = "unknown_queue", status = 404, message = "Queue not found",
    cause = "nobody has opened, served or filled a queue of that name", cure = "GET /admin/queues lists them" }
M.unknown_job = errors.declare{ code = "unknown_job", status = 404, message = "Job not found", cause = "it was removed, or never was",
    cure = "list the queue's jobs" }
M.wrong_state = errors.declare{ code = "wrong_state", status = 409, message = "The job is in another state",
    cause = "retry is for completed and failed jobs, promote for delayed ones", cure = "read the job's state" }
M.job_locked = errors.declare{ code = "job_locked", status = 409, message = "A worker holds the job",
    cause = "the job, or a child of it, is running", cure = "wait until it has ended" }
M.scheduled_job = errors.declare{ code = "scheduled_job", status = 409, message = "The job is its scheduler's next run",
    cause = "removing it alone would end the schedule", cure = "remove the scheduler" }

local function known(queue)
    local ok, found = pcall(queues.exists, queue)
    if not ok then
        if errors.is_unavailable(found) then error(found, 0) end
        M.unknown_queue()
    end
    if found then return end
    for _, name in ipairs(jobs.queues()) do
        if name == queue then return end
    end
    M.unknown_queue()
end

local function record(scope, action, queue, after, id)
    audit.write(scope, { action = "queues." .. action, entity_type = id and "job" or "queue",
        entity_id = id and (queue .. "/" .. id):sub(1, 255) or queue, after = after })
end

local function summary(name)
    local one = { name = name, counts = queues.counts(name), paused = queues.is_paused(name) }
    local ok, waiting = pcall(queues.list, name, "waiting", 0, 1, 0)
    if not ok then
        -- What another program left under a key of the queue must not hide the other queues.
        if errors.is_unavailable(waiting) then error(waiting, 0) end
        one.broken = "its list of waiting jobs is none"
        return one
    end
    local oldest = waiting[1]
    one.oldestAge = oldest and oldest.timestamp and math.max(0, time.now() - oldest.timestamp) or nil
    return one
end

--- All queues with their counts.
---@return table[] {name, counts, paused, oldestAge ms, broken = why}
---@return boolean whole false: there are more than are looked through
function M.list()
    local names, whole = queues.names()
    local list = json.array({})
    for i, name in ipairs(names) do list[i] = summary(name) end
    return list, whole
end

--- One queue: counts, workers, schedulers, jobs ended a minute.
---@param queue string
---@return table
function M.show(queue)
    known(queue)
    local one = summary(queue)
    one.workers, one.schedulers = json.array(queues.workers(queue)), json.array(schedule.list(queue, 200))
    for _, scheduler in ipairs(one.schedulers) do shown.scheduler(scheduler) end
    one.completed, one.failed = queues.metrics(queue, "completed"), queues.metrics(queue, "failed")
    for _, part in ipairs{ one.completed, one.failed } do part.per_minute = json.array(part.per_minute) end
    return one
end

-- What is masked is not found either: a search must not tell letter by letter what is not shown.
local function matches(job, text)
    if job.id:lower():find(text, 1, true) or job.name:lower():find(text, 1, true) then return true end
    local ok, data = pcall(json.encode, job.data)
    return ok and data and data:lower():find(text, 1, true) ~= nil
end

local function jobs_of(queue, state, offset, limit, whole)
    if whole then return json.array(queues.list(queue, state, offset, limit)) end
    local list = json.array(queues.list(queue, state, offset, limit, shown.LIST_BYTES))
    for _, job in ipairs(list) do shown.job(job, shown.LIST_BYTES) end
    return list
end

--- Jobs of a state. With a search text the first thousand of the state are looked through.
---@param queue string
---@param q {state: string, page: integer, limit: integer, q: string|nil, whole: boolean|nil} whole: as Redis holds them, secrets too
---@return table[] jobs
---@return integer total of the state, or of what was found
---@return integer|nil scanned how far a search has looked
function M.jobs(queue, q)
    known(queue)
    local offset = (q.page - 1) * q.limit
    if not q.q then return jobs_of(queue, q.state, offset, q.limit, q.whole), queues.counts(queue)[q.state], nil end
    local all = jobs_of(queue, q.state, 0, SEARCH_MAX, q.whole)
    local found, text = json.array({}), q.q:lower()
    local total = 0
    for _, job in ipairs(all) do
        if matches(job, text) then
            total = total + 1
            if total > offset and #found < q.limit then found[#found + 1] = job end
        end
    end
    return found, total, #all
end

--- One job with the last rows of its log and what its children answered.
---@param queue string
---@param id string
---@param whole boolean|nil as Redis holds it, secrets too
---@return table
function M.job(queue, id, whole)
    known(queue)
    if not jobs.may_be_job(id) then M.unknown_job() end
    local job = queues.get(queue, id, not whole and shown.JOB_BYTES or nil)
    if not job then M.unknown_job() end
    local rows, total = queues.logs(queue, id, whole and 1000 or ROWS_MAX, not whole and shown.ROW_BYTES or nil)
    local values, failed = queues.children_values(queue, id, not whole and CHILDREN_MAX or nil, not whole and shown.LIST_BYTES or nil)
    job.logsTotal = total
    if whole then
        job.logs, job.childrenValues, job.childrenFailed = json.array(rows), values, failed
        return job
    end
    shown.job(job, shown.JOB_BYTES)
    job.logs, job.childrenValues, job.childrenFailed = shown.rows(rows), shown.by_key(values), shown.by_key(failed)
    return job
end

-- Changing -----------------------------------------------------------------------------------------------------------------

---@param scope Scope
---@param queue string
---@return boolean changed
function M.pause(scope, queue)
    known(queue)
    record(scope, "pause", queue)
    return queues.pause(queue)
end

---@param scope Scope
---@param queue string
---@return boolean changed
function M.resume(scope, queue)
    known(queue)
    record(scope, "resume", queue)
    return queues.resume(queue)
end

local function done(code)
    if code == 0 then return end
    if code == -1 then M.unknown_job() end
    if code == -2 then M.job_locked() end
    if code == -8 then M.scheduled_job() end
    M.wrong_state()
end

local function act(scope, action, queue, id, fn, ...)
    known(queue)
    if not jobs.may_be_job(id) or not queues.has(queue, id) then M.unknown_job() end
    record(scope, action, queue, nil, id)
    done(fn(queue, id, ...))
end

--- A completed or failed job waits again.
---@param scope Scope
---@param queue string
---@param id string
---@param reset boolean|nil its attempts begin anew
function M.retry(scope, queue, id, reset) act(scope, "retry", queue, id, queues.retry, reset) end

--- A delayed job runs now.
---@param scope Scope
---@param queue string
---@param id string
function M.promote(scope, queue, id) act(scope, "promote", queue, id, queues.promote) end

--- Removes a job and its children.
---@param scope Scope
---@param queue string
---@param id string
function M.remove(scope, queue, id) act(scope, "remove", queue, id, queues.remove) end

--- Failed jobs wait again, the newest first.
---@param scope Scope
---@param queue string
---@param limit integer
---@return integer retried
function M.retry_failed(scope, queue, limit)
    known(queue)
    record(scope, "retry-failed", queue, { limit = limit })
    local n = 0
    for _, id in ipairs(queues.ids(queue, "failed", 0, limit)) do
        if queues.retry(queue, id) == 0 then n = n + 1 end
    end
    return n
end

---@param scope Scope
---@param queue string
---@param delayed boolean|nil delayed jobs too
---@return integer removed
function M.drain(scope, queue, delayed)
    known(queue)
    record(scope, "drain", queue, { delayed = delayed or false })
    return queues.drain(queue, delayed)
end

---@param scope Scope
---@param queue string
---@param input {state: string, grace: integer, limit: integer}
---@return integer removed
function M.clean(scope, queue, input)
    known(queue)
    record(scope, "clean", queue, input)
    return queues.clean(queue, input.state, input.grace, input.limit)
end

---@param scope Scope
---@param queue string
---@param id string
function M.remove_scheduler(scope, queue, id)
    known(queue)
    record(scope, "scheduler-remove", queue, { id = id })
    if not schedule.remove(queue, id) then errors.not_found{ message = "Scheduler not found", code = "unknown_scheduler" } end
end

local function bad(message) errors.bad_request{ message = message, code = "bad_job" } end

local function flow_queues(node, check, depth)
    if type(node) ~= "table" or depth > 20 then return end
    if type(node.queueName) == "string" then check(node.queueName) end
    for _, child in ipairs(type(node.children) == "table" and node.children or {}) do flow_queues(child, check, depth + 1) end
end

-- JSON's null is absence here.
local function plain(value, depth)
    if value == json.null then return nil end
    if type(value) ~= "table" or depth == 0 then return value end
    local copy = json.is_array(value) and json.array({}) or {}
    for key, member in pairs(value) do copy[key] = plain(member, depth - 1) end
    return copy
end

local function members(value, name)
    if value == json.null then return {} end
    if value ~= nil and (type(value) ~= "table" or json.is_array(value)) then bad(name .. " must be an object") end
    return plain(value, 4) or {}
end

-- data is kept as it is; what is absent is the empty object of BullMQ.
local function given(value)
    if value == json.null then return nil end
    return value
end

--- Adds what the input asks for: {name, data, opts}, {bulk = [...]}, {flow = {...}} or {scheduler = {id, every | pattern, ...}}.
---@param scope Scope
---@param queue string
---@param input table
---@param make boolean|nil the queue may be a new one
---@return string[] ids of the jobs; of a scheduler its pending job's
function M.add(scope, queue, input, make)
    if not make then known(queue) end
    local kinds = 0
    for _, kind in ipairs{ "name", "bulk", "flow", "scheduler" } do
        if input[kind] ~= nil then kinds = kinds + 1 end
    end
    if kinds ~= 1 then bad("exactly one of name, bulk, flow and scheduler is needed") end
    if input.flow then
        if not make then flow_queues(input.flow, known, 1) end
        record(scope, "add", queue, { flow = type(input.flow) == "table" and input.flow.name or nil })
        local ids = {}
        local function collect(node)
            ids[#ids + 1] = node.id
            for _, child in ipairs(node.children or {}) do collect(child) end
        end
        local function clean(node)
            if type(node) ~= "table" then bad("Each job of a flow needs name and queueName") end
            local children = {}
            local below = given(node.children) or json.array({})
            if not json.is_array(below) then bad("children must be a list") end
            for i, child in ipairs(below) do children[i] = clean(child) end
            return { name = node.name, queueName = node.queueName or queue, data = given(node.data), opts = members(node.opts, "opts"),
                children = children }
        end
        collect(jobs.add_flow(clean(input.flow)))
        return ids
    end
    if input.scheduler then
        local s = members(input.scheduler, "scheduler")
        local template = members(s.template, "template")
        record(scope, "scheduler-set", queue, { id = s.id, every = s.every, pattern = s.pattern })
        return { schedule.upsert(queue, s.id, { every = s.every, pattern = s.pattern, tz = s.tz, offset = s.offset, limit = s.limit,
            startDate = s.startDate, endDate = s.endDate }, { name = template.name, data = template.data,
            opts = members(template.opts, "template.opts") }) }
    end
    local list = input.bulk or { { name = input.name, data = input.data, opts = input.opts } }
    if type(list) ~= "table" or #list == 0 or #list > BULK_MAX then bad("bulk must be a list of 1 to 1000 jobs") end
    local clean, names = {}, {}
    for i, one in ipairs(list) do
        if type(one) ~= "table" then bad("Each job of bulk must be an object") end
        clean[i] = { name = one.name, data = given(one.data), opts = members(one.opts, "opts") }
        if type(one.name) == "string" and #names < 20 then names[#names + 1] = one.name:sub(1, 100) end
    end
    record(scope, "add", queue, { names = json.array(names), count = #list })
    return jobs.add_bulk(queue, clean)
end

return M
