-- Workflow rules: durable steps with undo. A run is a row; whoever works on it claims the step that is next (an attempt's row and a lease,
-- committed before anything is run), runs it, and settles: the new state, the attempt's end and the place of the next step are one
-- transaction. A process that dies in between leaves an attempt that did not end; when its lease is over the step runs again, with the
-- same idempotency key, so what its capabilities have written is not written twice.
--
--   running  a step is being run, or is about to be (a retry: at wake_at)
--   waiting  for a time, or for an event with a time-out (wake_at; one row of due_work)
--   done | undone (failed, and what was done is undone) | cancelled | failed (nothing could be undone, or undoing failed)
--
-- A run always has a row of due_work until it ends: for the end of its wait, its next attempt, or as a watch over whoever works on it.
-- What runs steps is a queue job: the sweeper only says that there is something to do.
--
-- The lease is real time, for it is about processes; waits and retries are business time.
local metrics = require("core.metrics")
local sched = require("core.sched")
local time = require("core.time")
local uuid = require("core.uuid")
local audit = require("kasma.audit")
local crash = require("kasma.crash")
local db = require("kasma.db")
local due = require("kasma.due")
local errors = require("kasma.errors")
local log = require("kasma.log")
local null = require("kasma.null")
local outbox = require("kasma.outbox")
local tenants = require("kasma.tenant")
local text = require("kasma.text")
local runner = require("modules.rules.workflow_run")
local start = require("modules.rules.workflow_start")
local store = require("modules.rules.workflow_store")

local M = {}

local ended = metrics.counter("kasma_workflow_runs_total", "Runs of workflow rules that ended", { "state" })
local attempts = metrics.counter("kasma_workflow_steps_total", "Attempts of their steps", { "kind", "outcome" })

local LEASE_MS = 10000          -- a step may take two seconds
local RETRY_MS, RETRY_MAX_MS = 5000, 3600000
-- Until a step is tried again that was not run, by why: its rule's breaker is open, or as many of its shop's runs wait as may.
local HELD_MS = { breaker = 60000, budget = 1000 }
local INTERRUPTED_MAX = 10      -- attempts in a row whose process died: then it is the step's fault
local STEPS_AT_ONCE = 100       -- of one job; the next job goes on
local KEEP_MS, PRUNE_BATCH = 90 * 86400000, 1000

M.running = errors.declare{ code = "workflow_running", status = 409, message = "The workflow is under way",
    cause = "it has not failed", cure = "wait for its end, or cancel it" }
M.finished = errors.declare{ code = "workflow_finished", status = 409, message = "The workflow has ended",
    cause = "it is done, undone or cancelled", cure = "none is needed" }

local function given(value)
    if value == nil or value == null then return nil end
    return value
end

-- Who acts for a run, and what it was caused by.
local function scope_of(tenant, run)
    return { tenant = tenant, app = run.app_key, actor_kind = "system", hops = run.hops + 1, entity = { type = run.entity_type,
        id = run.entity_id, user_id = given(run.user_id) } }
end

-- Claiming ---------------------------------------------------------------------------------------------------------------------

local function finish(run, state, statements, tenant, now)
    run.state, run.finished_at, run.wake_at, run.wait_event, run.claim, run.claimed_until = state, now, null, null, null, null
    statements[#statements + 1] = store.update(tenant, run, now)
    statements[#statements + 1] = due.drop(tenant, start.KIND, run.id)
    ended:add(1, state)
end

-- Moves a run to the step that has something to run: over waits that are over and undo that is not there. Answers the step, or nil and
-- the statements that leave the run where it is (ended, or waiting).
local function seek(tenant, run, plan, now_ms)
    local now, statements = time.iso(now_ms), {}
    while run.phase == "undo" do
        local step = plan.steps[run.step]
        if run.step < 1 then
            finish(run, run.ending, statements, tenant, now)
            return nil, statements
        end
        if step.undo then return step end
        run.step, run.attempts = run.step - 1, 0
    end
    while true do
        local step = plan.steps[run.step]
        if not step then
            finish(run, "done", statements, tenant, now)
            return nil, statements
        end
        local wait = step.wait
        if wait and not given(run.waited) then
            local heard = wait.event and run.heard[wait.event]
            if heard and not heard.used then
                heard.used = true
                run.waited = { event = { name = wait.event, id = heard.key, data = heard.data } }
            else
                local wake_ms = now_ms + (wait.ms or wait.timeout_ms)
                run.state, run.wait_event, run.wake_at = "waiting", wait.event or null, time.iso(wake_ms)
                run.claim, run.claimed_until = null, null
                statements[1] = store.update(tenant, run, now)
                statements[2] = due.put(scope_of(tenant, run), start.KIND, run.id, wake_ms)
                return nil, statements
            end
        end
        if step.run then return step end
        run.step, run.attempts, run.waited = run.step + 1, 0, null
    end
end

local function interrupted_often(tx, tenant, run, kind)
    local rows = store.attempts(tx, tenant, run.id, run.step, INTERRUPTED_MAX)
    local n = 0
    for _, row in ipairs(rows) do
        local lost = row.state == "running" or given(row.error) and row.error.code == "interrupted"
        if row.kind ~= kind or not lost then break end
        n = n + 1
    end
    return n >= INTERRUPTED_MAX, rows[1] and rows[1].attempt or 0
end

-- Takes the step that is next. Nil: there is nothing to do here and now.
local function claim(tenant, run_id, version)
    return (db.transaction(tenant, function(tx)
        local run = store.lock(tx, tenant, run_id)
        if not run or run.state ~= "running" then return nil end
        local now_ms = time.now()
        if given(run.claimed_until) and time.parse(run.claimed_until) > time.real() then return nil end
        if given(run.wake_at) and time.parse(run.wake_at) > now_ms then return nil end
        local plan = version.plan
        run.wake_at = null
        local step, statements = seek(tenant, run, plan, now_ms)
        if not step then
            tx:at_commit(statements)
            return nil
        end
        local now, kind = time.iso(now_ms), run.phase
        local often, attempt = interrupted_often(tx, tenant, run, kind)
        attempt = attempt + 1
        run.tries, run.claim, run.claimed_until = run.tries + 1, uuid.v4(), time.iso(time.real() + LEASE_MS)
        local key = ("%s:%d:%s"):format(run.id, run.step, kind)
        tx:at_commit{
            store.interrupt(tenant, run.id, now),
            store.insert_step{ tenant_key = tenant, app_key = run.app_key, run_id = run.id, position = run.step, attempt = attempt,
                n = run.tries, name = step.name, kind = kind, key = key, now = now },
            store.update(tenant, run, now),
            due.put(scope_of(tenant, run), start.KIND, run.id, now_ms + LEASE_MS + 1000),
        }
        return { run = run, rule_key = version.key, plan = plan, step = step, position = run.step, attempt = attempt, kind = kind,
            key = key, often = often }
    end))
end

-- Settling ---------------------------------------------------------------------------------------------------------------------

local function backoff(failures) return math.min(RETRY_MAX_MS, RETRY_MS * 2 ^ (failures - 1)) end

local function undoable(plan, position)
    for i = 1, position do
        if plan.steps[i].undo then return true end
    end
    return false
end

-- The run goes backwards from a step that is done.
local function turn_back(run, from, ending)
    run.phase, run.ending, run.step, run.attempts, run.waited, run.wait_event, run.wake_at = "undo", ending, from, 0, null, null, null
    run.state = "running"
end

local function fail(tenant, act, run, failure, statements, now_ms)
    local now = time.iso(now_ms)
    run.attempts = run.attempts + 1
    run.error = { step = act.step.name, kind = act.kind, line = failure.line, code = failure.code, message = failure.message }
    if act.kind == "run" and given(run.ending) then -- cancelled meanwhile
        turn_back(run, act.position - 1, run.ending)
        statements[#statements + 1] = store.update(tenant, run, now)
        return true
    end
    if run.attempts <= act.step.retries then
        local at_ms = now_ms + backoff(run.attempts)
        run.wake_at = time.iso(at_ms)
        statements[#statements + 1] = store.update(tenant, run, now)
        statements[#statements + 1] = due.put(scope_of(tenant, run), start.KIND, run.id, at_ms)
        return false
    end
    local goes_back = act.kind == "run" and undoable(act.plan, act.position - 1)
    if goes_back then
        turn_back(run, act.position - 1, "undone")
        statements[#statements + 1] = store.update(tenant, run, now)
    else
        finish(run, "failed", statements, tenant, now)
    end
    statements[#statements + 1] = outbox.event(scope_of(tenant, run), "workflow.failed", run.id, { rule = act.rule_key,
        version = run.version, step = act.step.name, entityId = run.entity_id, message = text.plain(failure.message, 500) })
    return goes_back
end

-- Writes down what became of an attempt. True: there is a next step to run at once.
local function settle(tenant, act, outcome)
    return (db.transaction(tenant, function(tx)
        local run = store.lock(tx, tenant, act.run.id)
        -- Somebody else took the step over when the lease was over; what they do counts.
        if not run or run.claim ~= act.run.claim then return false end
        local now_ms = time.now()
        local now, ran, statements, more = time.iso(now_ms), outcome.run, {}, true
        run.claim, run.claimed_until = null, null
        local held_ms = HELD_MS[ran.outcome]
        if held_ms then
            run.wake_at = time.iso(now_ms + held_ms)
            tx:at_commit{ store.drop_step(tenant, run.id, act.position, act.attempt), store.update(tenant, run, now),
                due.put(scope_of(tenant, run), start.KIND, run.id, now_ms + held_ms) }
            return false
        end
        local failure = not outcome.ok and { code = ran.outcome, line = ran.line, message = ran.message or ran.outcome } or nil
        statements[1] = store.end_step(tenant, run.id, act.position, act.attempt, { state = outcome.ok and "done" or "failed",
            instructions = ran.instructions, micros = ran.micros, log = ran.log, error = failure }, now)
        if failure then
            more = fail(tenant, act, run, failure, statements, now_ms)
        else
            if outcome.state then run.data = outcome.state end
            run.attempts, run.waited = 0, null
            if act.kind == "undo" then
                run.step = run.step - 1
            elseif given(run.ending) then
                turn_back(run, act.position, run.ending)
            else
                run.step, run.error = run.step + 1, null
            end
            statements[2] = store.update(tenant, run, now)
        end
        tx:at_commit(statements)
        return more
    end))
end

local function run_step(tenant, act)
    local run = act.run
    if act.often then
        return { ok = false, run = { outcome = "error", message = ("the process ended %d times while it ran this step"):format(
            INTERRUPTED_MAX), instructions = 0, micros = 0 } }
    end
    return runner.step(scope_of(tenant, run), { run_id = run.id, rule_id = run.rule_id, version = run.version, step = act.position,
        kind = act.kind, key = act.key, subject = { event = { name = run.event, id = run.entity_id, data = run.event_data },
            state = run.data, step = act.step.name, attempt = run.attempts + 1, waited = act.kind == "run" and given(run.waited) or nil } })
end

-- A run whose version is not understood (any more: it was published to an older program) would be taken up for ever.
local function give_up(tenant, run_id, why)
    log.error("a workflow cannot go on", { tenant = tenant, run = run_id, error = why })
    db.transaction(tenant, function(tx)
        local run = store.lock(tx, tenant, run_id)
        if not run or run.state ~= "running" or given(run.claim) and time.parse(run.claimed_until) > time.real() then return end
        run.error = { code = "version_unreadable", kind = run.phase, message = text.plain(why, 500) }
        local statements = {}
        finish(run, "failed", statements, tenant, time.iso(time.now()))
        tx:at_commit(statements)
    end)
end

--- Works on a run until it ends, waits, or somebody else has it.
---@param tenant string
---@param run_id string
function M.work(tenant, run_id)
    local found = store.find(tenant, run_id)
    if not found or found.state ~= "running" then return end
    -- Read before a connection is held by a transaction.
    local ok, version = pcall(runner.version, tenant, found.rule_id, found.version)
    if not ok then
        if type(version) == "table" then error(version, 0) end -- a store is away
        return give_up(tenant, run_id, version)
    end
    for _ = 1, STEPS_AT_ONCE do
        local act = claim(tenant, run_id, version)
        if not act then return end
        crash.at("workflow.claimed")
        local outcome = run_step(tenant, act)
        crash.at("workflow.ran")
        attempts:add(1, act.kind, outcome.run.outcome)
        if not settle(tenant, act, outcome) then return end
    end
end

--- The row of due_work of a run has fallen due: its wait is over, its next attempt's time has come, or nobody works on it.
---@param tenant string
---@param run_id string
function M.on_due(tenant, run_id)
    db.transaction(tenant, function(tx)
        local run = store.lock(tx, tenant, run_id)
        if not run or given(run.finished_at) then return tx:at_commit{ due.drop(tenant, start.KIND, run_id) } end
        local scope, now_ms = scope_of(tenant, run), time.now()
        local wake_ms = given(run.wake_at) and time.parse(run.wake_at)
        if wake_ms and wake_ms > now_ms then return tx:at_commit{ due.put(scope, start.KIND, run_id, wake_ms) } end
        local lease_ms = given(run.claimed_until) and time.parse(run.claimed_until) - time.real() or 0
        if lease_ms > 0 then return tx:at_commit{ due.put(scope, start.KIND, run_id, now_ms + lease_ms + 100) } end
        if run.state == "waiting" then
            run.waited = { timed_out = given(run.wait_event) ~= nil }
            run.state, run.wait_event = "running", null
        end
        run.wake_at = null
        tx:at_commit{ store.update(tenant, run, time.iso(now_ms)), start.wake(scope, run_id) }
    end)
end

--- Removes runs that ended so long ago that nobody asks for them, of all tenants.
---@return integer removed
function M.prune()
    local removed = 0
    tenants.sweep("workflow-cleanup", function(tenant)
        repeat
            local gone = store.prune(tenant, time.iso(time.now() - KEEP_MS), PRUNE_BATCH)
            removed = removed + gone
        until gone < PRUNE_BATCH or sched.stopping()
    end)
    return removed
end

-- People -----------------------------------------------------------------------------------------------------------------------

local function act_on(scope, run_id, action, reason, change)
    db.transaction(scope.tenant, function(tx)
        local run = store.lock(tx, scope.tenant, run_id)
        if not run then errors.not_found{ message = "Workflow not found" } end
        local before, now = run.state, time.iso(time.now())
        change(run)
        run.reason, run.finished_at = reason, null
        local statements = { store.update(scope.tenant, run, now), start.wake({ tenant = scope.tenant, app = run.app_key }, run_id) }
        audit.append(statements, scope, { action = action, entity_type = "rule", entity_id = run.rule_id,
            before = { workflow = run_id, state = before }, after = { workflow = run_id, state = run.state, reason = reason } })
        tx:at_commit(statements)
    end)
    return store.find(scope.tenant, run_id)
end

--- A run that failed goes on at the step that failed, with the state that it had and its retries anew.
---@param scope Scope
---@param run_id string
---@param reason string
---@return table run
function M.retry(scope, run_id, reason)
    return act_on(scope, run_id, "rules.workflow_retry", reason, function(run)
        if run.state == "running" or run.state == "waiting" then M.running() end
        if run.state ~= "failed" then M.finished() end
        run.state, run.attempts, run.error, run.wake_at = "running", 0, null, null
    end)
end

--- What a run has done is undone, backwards; a step under way is let to its end first.
---@param scope Scope
---@param run_id string
---@param reason string
---@return table run
function M.cancel(scope, run_id, reason)
    return act_on(scope, run_id, "rules.workflow_cancel", reason, function(run)
        if run.state == "done" or run.state == "undone" or run.state == "cancelled" then M.finished() end
        local under_way = given(run.claimed_until) and time.parse(run.claimed_until) > time.real()
        run.ending = "cancelled"
        if run.phase == "undo" then
            run.state, run.attempts = "running", run.state == "failed" and 0 or run.attempts
        elseif not under_way then
            turn_back(run, run.step - 1, "cancelled")
        end
    end)
end

--- The names of the steps at which runs stand; none for one that has ended.
---@param tenant string
---@param runs table[]
---@return table<string, string>
function M.step_names(tenant, runs)
    local names = {}
    for _, run in ipairs(runs) do
        local ok, version
        if run.state ~= "done" then ok, version = pcall(runner.version, tenant, run.rule_id, run.version) end
        if ok == false and type(version) == "table" then error(version, 0) end
        local step = ok and version.plan.steps[run.step]
        names[run.id] = step and step.name or nil
    end
    return names
end

M.list, M.steps = store.list, store.steps

return M
