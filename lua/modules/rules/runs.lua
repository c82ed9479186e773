-- What became of runs: every failure and every run of a checkout is kept (an index row, and a body with input, output and log), of other
-- successes one in a hundred; counts by the hour of all. Nothing here waits: runs are noted in memory and written twice a second.
local crypto = require("core.crypto")
local json = require("core.json")
local metrics = require("core.metrics")
local rules = require("core.rules")
local sched = require("core.sched")
local time = require("core.time")
local uuid = require("core.uuid")
local db = require("kasma.db")
local errors = require("kasma.errors")
local hooks = require("kasma.hooks")
local log = require("kasma.log")
local outbox = require("kasma.outbox")
local text = require("kasma.text")
local breaker = require("modules.rules.breaker")
local store = require("modules.rules.store")
local stream = require("modules.rules.stream")

local M = {}

local EVERY_MS, HOURS_EVERY, WAITING_MAX, BATCH = 500, 20, 5000, 200
local HOUR_MS = 3600000

local waiting, lost = {}, 0
local hours, successes = {}, 0

-- Failures that callers of a route can cause as they like: so many of a rule are kept in a minute, of the others the count by the hour.
local CALLERS_KEPT, MINUTE_MS = 20, 60000
local minute, of_callers = 0, {}

--- Which failures are the same one.
---@param run RuleRun
---@return string
function M.fingerprint(run)
    return crypto.sha256(run.outcome .. "|" .. tostring(run.line) .. "|" .. tostring(run.message):gsub("%d+", "#")):sub(1, 16)
end

-- 16 buckets: the power of two (of four, for microseconds times four) that a value lies under.
local function bucket(value)
    local b = 1
    while b < 16 and value >= 4 ^ b do b = b + 1 end
    return b
end

-- The counts of a rule's hour, made when they are first needed.
local function hour_of(scope, run, now)
    local hour = now - now % HOUR_MS
    local key = table.concat({ scope.tenant, run.rule_id, run.number, hour, run.outcome }, "|")
    local h = hours[key]
    if not h then
        h = { tenant_key = scope.tenant, app_key = scope.app, rule_id = run.rule_id, version = run.number, hour = time.iso(hour),
            outcome = run.outcome, n = 0, discount_minor = 0, instructions = {}, micros = {} }
        for i = 1, 16 do h.instructions[i], h.micros[i] = 0, 0 end
        hours[key] = h
    end
    return h
end

local function count_hour(scope, run, now)
    local h = hour_of(scope, run, now)
    h.n = h.n + 1
    local i, m = bucket(run.instructions), bucket(run.micros)
    h.instructions[i], h.micros[m] = h.instructions[i] + 1, h.micros[m] + 1
end

local function row_of(scope, run, now)
    run.row_id = run.row_id or uuid.v7()
    return { tenant_key = scope.tenant, app_key = scope.app, id = run.row_id, at = time.iso(now), rule_id = run.rule_id,
        version = run.number, hook = run.hook, outcome = run.outcome,
        fingerprint = run.outcome ~= "ok" and run.outcome ~= "breaker" and M.fingerprint(run) or nil,
        line = run.line, message = text.plain(run.message or run.reason or "", 500), instructions = run.instructions, micros = run.micros,
        heap = run.heap }
end

local function body_of(row, run)
    return { id = row.id, rule_id = row.rule_id, rule = run.id, version = row.version, hook = row.hook, outcome = row.outcome,
        message = run.message, reason = run.reason, line = run.line, instructions = row.instructions, micros = row.micros,
        heapPeak = row.heap, opsIn = run.operations, input = text.plain_data(run.input),
        output = text.plain_data(run.output), log = run.log, stack = run.stack, heard = run.heard and json.array(run.heard),
        entry = run.entry, created_at = row.at }
end

-- The failure that opened the breaker is written with the opening, and counted with the others afterwards; one of a checkout, whose order
-- may never be, is counted there.
local function trip(scope, run)
    local failure = row_of(scope, run, time.now())
    failure.n = run.in_checkout and 1 or 0
    breaker.trip(scope, run, failure)
end

local function is_flood(scope, run)
    if not run.by_callers or run.outcome == "ok" then return false end
    local now = time.now()
    if math.abs(now - minute) >= MINUTE_MS then minute, of_callers = now, {} end
    local key = scope.tenant .. "|" .. run.rule_id
    of_callers[key] = (of_callers[key] or 0) + 1
    return of_callers[key] > CALLERS_KEPT
end

hooks.set_sink(function(scope, run, asked, quote)
    stream.run(scope, run)
    if not run.rule_id or run.number == 0 then return end -- a file, or a draft
    count_hour(scope, run, time.now())
    if run.tripped then trip(scope, run) end
    if run.in_checkout then return end -- the order's transaction writes it
    -- A run that the breaker held back is no failure of its own: it would bury the ones that opened it.
    if run.outcome == "ok" or run.outcome == "breaker" then
        successes = successes + 1
        if successes % 100 ~= 0 then return end
    end
    if is_flood(scope, run) then return end
    if #waiting >= WAITING_MAX then
        lost = lost + 1
        return
    end
    -- Failures are few, since the breaker rests who fails; a success of a quote is the order's snapshot when it becomes one.
    if asked and run.outcome ~= "ok" then
        run.input = { quote = require("modules.rules.preview").input_of(asked, quote), currency = quote.currency }
    end
    waiting[#waiting + 1] = { scope = { tenant = scope.tenant, app = scope.app, actor_kind = "system" }, run = run, now = time.now() }
end)

local function write(tenant, entries)
    local statements, bodies, failures = {}, {}, {}
    for _, e in ipairs(entries) do
        local row = row_of(e.scope, e.run, e.now)
        local body = body_of(row, e.run)
        body._id, body.tenant_key, row.document = row.id, tenant, row.id
        statements[#statements + 1] = store.insert_run(row)
        bodies[#bodies + 1] = body
        if row.fingerprint then
            local key = row.rule_id .. row.fingerprint
            local f = failures[key]
            if not f then
                f = {}
                for name, value in pairs(row) do f[name] = value end
                f.n = 0
                failures[key] = f
            end
            f.n, f.id, f.at = f.n + 1, row.id, row.at
        end
    end
    local keys = {}
    for key in pairs(failures) do keys[#keys + 1] = key end
    table.sort(keys) -- rows are locked in one order
    for _, key in ipairs(keys) do statements[#statements + 1] = store.count_failure(failures[key]) end
    statements[#statements + 1] = outbox.row(entries[1].scope, "rule_run_bodies", entries[1].run.rule_id, { docs = json.array(bodies) })
    db.pipeline(tenant, statements)
end

-- What a store that was away for a moment did not take is written the next time, under the same ids.
local function keep_for_later(entries)
    if #waiting + #entries > WAITING_MAX then return false end
    for _, e in ipairs(entries) do waiting[#waiting + 1] = e end
    return true
end

local function write_hours()
    local mine = hours
    hours = {}
    local by_tenant, keys = {}, {}
    for key in pairs(mine) do keys[#keys + 1] = key end
    table.sort(keys)
    for _, key in ipairs(keys) do
        local h = mine[key]
        by_tenant[h.tenant_key] = by_tenant[h.tenant_key] or {}
        table.insert(by_tenant[h.tenant_key], store.add_hour(h))
    end
    for tenant, statements in pairs(by_tenant) do
        local ok, why = pcall(db.pipeline, tenant, statements)
        if not ok then log.warn("counts of rule runs were lost", { tenant = tenant, error = tostring(why) }) end
    end
end

local turn = 0

--- Writes what waits. Called by a timer, and when the process stops.
---@param all boolean|nil the hours too
function M.flush(all)
    turn = turn + 1
    if #waiting > 0 then
        local mine = waiting
        waiting = {}
        if lost > 0 then log.warn("more runs of rules than could be kept", { lost = lost }) end
        lost = 0
        local by_tenant = {}
        for _, e in ipairs(mine) do
            local list = by_tenant[e.scope.tenant]
            if not list or #list[#list] >= BATCH then
                list = list or {}
                by_tenant[e.scope.tenant] = list
                list[#list + 1] = {}
            end
            table.insert(list[#list], e)
        end
        for tenant, lists in pairs(by_tenant) do
            for _, entries in ipairs(lists) do
                local ok, why = pcall(write, tenant, entries)
                if not ok and not (errors.is_unavailable(why) and keep_for_later(entries)) then
                    log.warn("runs of rules were not written", { tenant = tenant, error = type(why) == "table"
                        and tostring(why.message) or tostring(why) })
                end
            end
        end
    end
    if (all or turn % HOURS_EVERY == 0) and next(hours) then write_hours() end
end

--- Statements that keep the runs of a checkout, for its own transaction.
---@param scope Scope
---@param checkout_id string
---@param runs RuleRun[]|nil
---@return table[] statements
function M.of_checkout(scope, checkout_id, runs)
    local statements, bodies, now = {}, {}, time.now()
    for _, run in ipairs(runs or {}) do
        if run.rule_id and run.number > 0 then
            local row = row_of(scope, run, now)
            row.checkout_id, row.document = checkout_id, checkout_id
            statements[#statements + 1] = store.insert_run(row)
            bodies[#bodies + 1] = body_of(row, run)
        end
    end
    if #bodies > 0 then
        statements[#statements + 1] = outbox.row(scope, "rule_run_bodies", checkout_id, { docs = json.array{ { _id = checkout_id,
            tenant_key = scope.tenant, checkout_id = checkout_id, runs = json.array(bodies) } } })
    end
    return statements
end

--- Counts what rules gave in a checkout that stands.
---@param scope Scope
---@param quote table
function M.placed(scope, quote)
    local amounts, now = {}, time.now()
    for _, a in ipairs(quote.adjustments) do
        if a.kind == "script" and a.source_id then amounts[a.source_id] = (amounts[a.source_id] or 0) + a.amount end
    end
    for _, run in ipairs(quote.rule_runs or {}) do
        local amount = run.rule_id and amounts[run.rule_id]
        if amount and run.number > 0 then
            amounts[run.rule_id] = nil
            local h = hour_of(scope, run, now)
            h.discount_minor = h.discount_minor + amount
        end
    end
end

outbox.consumer("rule_run_bodies", function(rows)
    local docs = {}
    for _, row in ipairs(rows) do
        for _, doc in ipairs(row.payload.docs) do
            doc.tenant_key = row.tenant_key -- of the row, whatever the payload says
            docs[#docs + 1] = doc
        end
    end
    store.write_bodies(docs)
end)

--- Starts the timer.
function M.start()
    local waiting_runs = metrics.gauge("kasma_rule_runs_waiting", "Runs of route and workflow rules that are under way", {}, "sum")
    local idle_states = metrics.gauge("kasma_rule_states_idle", "Sandboxes kept for the next run of such a rule", {}, "sum")
    sched.every(EVERY_MS, function()
        local open, idle = rules.waits()
        waiting_runs:set(open)
        idle_states:set(idle)
        M.flush()
    end)
    sched.on_stop(function() M.flush(true) end)
end

return M
