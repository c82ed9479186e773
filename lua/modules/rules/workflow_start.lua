-- What starts a workflow and what ends its waits: event rows of the outbox, as the relay hands them over (at least once, in order per
-- entity). One row starts a rule once: (rule, event id) is unique. An event that a run under way waits for later counts from the run's
-- start on: what came before the step began to wait is kept with the run.
local time = require("core.time")
local uuid = require("core.uuid")
local sched = require("core.sched")
local db = require("kasma.db")
local due = require("kasma.due")
local events = require("kasma.events")
local log = require("kasma.log")
local null = require("kasma.null")
local outbox = require("kasma.outbox")
local plans = require("modules.rules.workflow_plan")
local runner = require("modules.rules.workflow_run")
local store = require("modules.rules.workflow_store")

local M = {}

M.KIND, M.QUEUE, M.JOB = "rules.workflow_wake", "rules-queue", "workflow-step"
M.HOPS_MAX = 8
local CHUNK = 100 -- runs that begin in one transaction: a batch of the relay is more than one pipeline takes
M.WATCH_MS = 30000 -- after which a run that nobody works on is taken up again

--- Statements that put a run to work: a job, and the row that falls due when the job came to nothing.
---@param scope Scope
---@param run_id string
---@return table, table
function M.wake(scope, run_id)
    return due.put(scope, M.KIND, run_id, time.now() + M.WATCH_MS),
        outbox.job(scope, M.QUEUE, M.JOB, { tenant_key = scope.tenant, app_key = scope.app, run_id = run_id },
            { removeOnComplete = true })
end

--- What a run begins with: its row, and what works on it. Nothing happens when the event has started the rule before.
---@param tx kasma.Tx
---@param starts {scope: Scope, row: table}[] rows of store.insert
---@return table[] those that were new
function M.insert(tx, starts)
    local statements, fresh, last = {}, {}, {}
    for i, start in ipairs(starts) do statements[i] = store.insert(start.row) end
    for i, rows in ipairs(tx:pipeline(statements)) do
        local start = starts[i]
        if rows[1] then
            fresh[#fresh + 1] = start
            local at = start.row.wake_at
            if at then
                last[#last + 1] = due.put(start.scope, M.KIND, start.row.id, time.parse(at))
            else
                last[#last + 1], last[#last + 2] = M.wake(start.scope, start.row.id)
            end
        end
    end
    if #last > 0 then tx:at_commit(last) end
    return fresh
end

--- Starts a live workflow rule without an event, for another rule: its run's event is `job`.
---@param scope Scope with what it was caused by: hops, entity {type, id, user_id}
---@param key string of the rule
---@param o {id: string, payload: table, delay_ms: integer|nil} the same id starts the rule once
---@return boolean|nil started false: it was started before, string|nil why
function M.enqueue(scope, key, o)
    local hops = scope.hops or 1
    if hops >= M.HOPS_MAX then return nil, "too_many_hops" end
    local rule = store.live_rule(scope.tenant, key, time.iso(time.now()))
    if not rule then return nil, "not_found" end
    local plan = runner.version(scope.tenant, rule.id, rule.version).plan
    local now_ms, entity = time.now(), scope.entity or { type = "job", id = o.id }
    local data = {}
    for name, value in pairs(o.payload) do data[name] = value end
    data.id = entity.id
    local fresh = db.transaction(scope.tenant, function(tx)
        return M.insert(tx, { { scope = { tenant = scope.tenant, app = scope.app, actor_kind = "system" }, row = {
            tenant_key = scope.tenant, app_key = scope.app, id = uuid.v7(), rule_id = rule.id, version = rule.version, event = "job",
            event_id = o.id, event_data = data, entity_type = entity.type, entity_id = entity.id, user_id = entity.user_id,
            awaits = plan.awaits, hops = hops,
            wake_at = (o.delay_ms or 0) > 0 and time.iso(now_ms + o.delay_ms) or nil, now = time.iso(now_ms) } } })
    end)
    return #fresh > 0
end

-- Of what an event is.
local function kind_of(row, name)
    local event = events.find(name) -- one of a rule says itself of what it is
    return event and event.of or type(row.payload.of) == "string" and row.payload.of or "custom"
end

local function is_about(row, name, data, run)
    if row.key == run.entity_id and (kind_of(row, name) == run.entity_type or events.is_custom(name)) then return true end
    local member = plans.id_member(run.entity_type)
    return member ~= nil and data[member] == run.entity_id
end

-- A run under way hears of an event that one of its steps waits for.
local function hear(tenant, run_id, row, name, data)
    db.transaction(tenant, function(tx)
        local run = store.lock(tx, tenant, run_id)
        if not run or (run.state ~= "running" and run.state ~= "waiting") then return end
        local before = run.heard[name]
        if before and before.id == row.id then return end
        local entry = { id = row.id, key = row.key, data = data, used = false }
        run.heard[name] = entry
        local scope = { tenant = tenant, app = run.app_key, actor_kind = "system" }
        local statements = {}
        if run.state == "waiting" and run.wait_event == name then
            entry.used = true
            run.waited = { event = { name = name, id = row.key, data = data } }
            run.state, run.wait_event, run.wake_at = "running", null, null
            statements[1], statements[2] = M.wake(scope, run_id)
        end
        table.insert(statements, 1, store.update(tenant, run, time.iso(time.now())))
        tx:at_commit(statements)
    end)
end

-- Whom an event is about.
local function user_of(row, name, data)
    local id = kind_of(row, name) == "user" and row.key or data.userId
    return type(id) == "string" and uuid.valid(id) and id or nil
end

local function plan_of(tenant, rule)
    local ok, version = pcall(runner.version, tenant, rule.id, rule.version)
    if ok then return version.plan end
    if type(version) == "table" then error(version, 0) end -- a store is away: the rows come again
    log.error("a workflow rule cannot be started", { tenant = tenant, rule = rule.key, version = rule.version, error = tostring(version) })
    return nil
end

local function entities_of(rows)
    local list, seen = {}, {}
    local function add(id)
        if type(id) == "string" and id ~= "" and not seen[id] then
            seen[id] = true
            list[#list + 1] = id
        end
    end
    for _, row in ipairs(rows) do
        add(row.key)
        for member, value in pairs(row.payload.data or {}) do
            if type(member) == "string" and member:find("Id$") then add(value) end
        end
    end
    return list
end

local function hear_tenant(tenant, rows)
    local paused, active, listens = store.look(tenant, time.iso(time.now()))
    if #active == 0 and not listens then return end
    local open = {}
    for i, run in ipairs(listens and store.listening(tenant, entities_of(rows)) or {}) do open[i] = run end
    local stopped = false
    for _, hook in ipairs(paused) do stopped = stopped or hook == "*" or hook == "workflow" end
    local starts, now = {}, time.iso(time.now())
    for _, rule in ipairs(stopped and {} or active) do
        local plan = plan_of(tenant, rule)
        local wanted = {}
        for _, name in ipairs(plan and plan.on or {}) do wanted[name] = true end
        for place, row in ipairs(rows) do
            local name, hops = row.payload.name, tonumber(row.payload.hops) or 0
            if wanted[name] and hops >= M.HOPS_MAX then
                log.warn("a chain of events ends", { tenant = tenant, rule = rule.key, event = name, id = row.id, hops = hops })
            elseif wanted[name] then
                starts[#starts + 1] = { place = place, scope = { tenant = tenant, app = row.app_key, actor_kind = "system" },
                    row = { tenant_key = tenant, app_key = row.app_key, id = uuid.v7(), rule_id = rule.id, version = rule.version,
                        event = name, event_id = row.id, event_data = events.data_of(row), entity_type = kind_of(row, name),
                        entity_id = row.key, user_id = user_of(row, name, events.data_of(row)), awaits = plan.awaits, hops = hops,
                        now = now } }
            end
        end
    end
    for from = 1, #starts, CHUNK do
        local fresh = db.transaction(tenant, function(tx)
            return M.insert(tx, { unpack(starts, from, math.min(from + CHUNK - 1, #starts)) })
        end)
        for _, start in ipairs(fresh) do
            if #start.row.awaits > 0 then
                open[#open + 1] = { id = start.row.id, event_id = start.row.event_id, entity_type = start.row.entity_type,
                    entity_id = start.row.entity_id, awaits = start.row.awaits, after = start.place }
            end
        end
    end
    for place, row in ipairs(rows) do
        local name, data = row.payload.name, events.data_of(row)
        for _, run in ipairs(open) do
            local awaited = false
            for _, event in ipairs(run.awaits) do awaited = awaited or event == name end
            if awaited and run.event_id ~= row.id and place > (run.after or 0) and is_about(row, name, data, run) then
                hear(tenant, run.id, row, name, data)
            end
        end
    end
end

--- Event rows of the outbox, in order. Idempotent by their ids.
---@param rows table[]
function M.hear(rows)
    local by_tenant, work = {}, {}
    for _, row in ipairs(rows) do
        if type(row.payload.name) == "string" then
            if not by_tenant[row.tenant_key] then
                by_tenant[row.tenant_key] = {}
                work[#work + 1] = function() hear_tenant(row.tenant_key, by_tenant[row.tenant_key]) end
            end
            table.insert(by_tenant[row.tenant_key], row)
        end
    end
    if #work == 1 then return work[1]() end
    sched.parallel(work)
end

return M
