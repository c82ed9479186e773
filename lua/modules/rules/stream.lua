-- What happens to a tenant's rules, told as it happens: an event stream for consoles and developers, over the realtime hub.
--
-- `saved`, `published`, `loaded` (by each worker that serves), `failed`, `breaker`, `off` go through the channel `rules:all`, which can
-- be resumed. `runs`, what rules have cost one by one, go through `rules_runs:all`, leave no trace, and are sent only while somebody
-- listens: twice a second each worker asks who does, of the tenants whose rules have run. Nothing here is waited for and nothing fails
-- because of it: with Redis away the stream is silent and the rules go on.
local config = require("core.config")
local rules = require("core.rules")
local sched = require("core.sched")
local time = require("core.time")
local access = require("kasma.access")
local heartbeat = require("kasma.heartbeat")
local hub = require("kasma.hub")
local log = require("kasma.log")
local text = require("kasma.text")

local M = {}

-- Rules belong to a tenant and not to one of its apps.
M.APP = "MASTER"
M.CHANNEL, M.RUNS, M.PREVIEW = "rules:all", "rules_runs:all", "rules_preview:"

local RUNS_MAX, RUNS_EVERY_MS, FILES_EVERY_MS = 100, 500, 100

local function holds(who, permission)
    if who.app ~= M.APP then return false end
    if who.identity.kind == "key" then return access.allows(who.identity.scopes, permission) end
    return access.allows(access.of(who.tenant, who.user_id).permissions, permission)
end

for _, kind in ipairs{ "rules", "rules_runs" } do
    hub.channel(kind, { authorize = function(who, id) return id == "all" and holds(who, "rules.read") end })
end
hub.channel("rules_preview", { authorize = function(who) return holds(who, "rules.write") end })

local function publish(tenant, channel, event, payload)
    sched.spawn(function()
        local ok, why = pcall(hub.publish, tenant, M.APP, channel, event, payload)
        if not ok then log.debug("an event of rules was not told", { tenant = tenant, event = event, error = tostring(why) }) end
    end)
end

--- Tells the tenant's listeners; never waits, never raises.
---@param tenant string
---@param event "saved"|"published"|"loaded"|"failed"|"breaker"|"off"
---@param payload table
function M.tell(tenant, event, payload) publish(tenant, M.CHANNEL, event, payload) end

--- Tells how far a preview is.
---@param tenant string
---@param id string
---@param payload {state: string, done: integer, total: integer}
function M.progress(tenant, id, payload) publish(tenant, M.PREVIEW .. id, "progress", payload) end

-- What is loaded ----------------------------------------------------------------------------------------------------------------------

local serves = false

--- This worker holds the tenant's rules of an epoch.
---@param tenant string
---@param epoch integer
---@param more table|nil
function M.loaded(tenant, epoch, more)
    local worker = serves and heartbeat.id()
    if not worker then return end
    local payload = more or {}
    payload.worker, payload.epoch, payload.workers = worker, epoch, heartbeat.serving()
    M.tell(tenant, "loaded", payload)
end

-- Files: which of a tenant's are live, by what version, and what is wrong with them, as it was last told.
local known, loads = {}, -1

local function differences(old, now)
    local files = {}
    for file, version in pairs(now) do
        if old[file] ~= version then files[#files + 1] = file end
    end
    for file in pairs(old) do
        if not now[file] then files[#files + 1] = file end
    end
    table.sort(files)
    return files
end

local function look_at_files()
    local n = rules.loads()
    if n == loads then return end
    loads = n
    for _, t in ipairs(rules.status()) do
        local live, wrong = {}, {}
        for _, rule in ipairs(t.rules) do
            if not rule.rule_id or rule.rule_id == "" then live[rule.id .. ".lua"] = rule.version end
        end
        for _, p in ipairs(t.problems) do wrong[p.file] = tostring(p.line) .. ":" .. p.message end
        local old = known[t.tenant] or { live = {}, wrong = {} }
        local changed = differences(old.live, live)
        known[t.tenant] = { live = live, wrong = wrong }
        local broken = differences(old.wrong, wrong)
        for _, p in ipairs(t.problems) do
            if old.wrong[p.file] ~= wrong[p.file] then
                M.tell(t.tenant, "failed", { worker = heartbeat.id(), file = p.file, line = p.line, message = p.message })
            end
        end
        if #changed > 0 or #broken > 0 then
            M.loaded(t.tenant, math.max(0, rules.epoch(t.tenant) or 0), { files = changed, problems = t.problems })
        end
    end
end

-- Every worker holds what files say from the start, so that each of them tells when one is saved.
local function load_listed()
    local found = assert(io.popen("ls -1 '" .. rules.folder():gsub("'", "'\\''") .. "/active' 2>/dev/null"))
    for name in found:lines() do
        local tenant = name:match("^([%w_-]+)%.lua$")
        if tenant then rules.pin(tenant) end
    end
    found:close()
end

-- Runs --------------------------------------------------------------------------------------------------------------------------------

local ran, listened, told_failed = {}, {}, {}

local function light(run)
    return { rule = run.id, version = run.number, hook = run.hook, outcome = run.outcome,
        reason = run.reason and text.plain(run.reason, 200), line = run.line, message = run.message and text.plain(run.message, 300),
        instructions = run.instructions, limit = rules.limits(run.hook).instructions, micros = run.micros, heap = run.heap,
        operations = run.operations, at = time.now() }
end

--- A run has ended. Costs a table access while nobody listens.
---@param scope Scope
---@param run RuleRun
function M.run(scope, run)
    local tenant = scope.tenant
    local mine = ran[tenant]
    if not mine then
        mine = { runs = {}, left = 0 }
        ran[tenant] = mine
    end
    if listened[tenant] then
        if #mine.runs < RUNS_MAX then mine.runs[#mine.runs + 1] = light(run) else mine.left = mine.left + 1 end
    end
    if run.outcome == "ok" then return end
    local key = tenant .. "|" .. run.id
    if told_failed[key] then return end -- once a rule, until runs are sent
    told_failed[key] = true
    M.tell(tenant, "failed", light(run))
end

local function send_runs()
    if next(ran) == nil then return end
    local mine, tenants = ran, {}
    ran, told_failed = {}, {}
    for tenant in pairs(mine) do tenants[#tenants + 1] = tenant end
    local counts = hub.audience(tenants, M.APP, M.RUNS)
    listened = {}
    for tenant, n in pairs(counts) do
        if n > 0 then listened[tenant] = true end
    end
    for tenant, batch in pairs(mine) do
        if #batch.runs > 0 and listened[tenant] then
            hub.whisper(tenant, M.APP, M.RUNS, "runs", { runs = batch.runs, left = batch.left })
        end
    end
end

--- Starts the timers of a process that serves.
---@param role string
function M.start(role)
    serves = role ~= "work"
    sched.every(RUNS_EVERY_MS, function() pcall(send_runs) end)
    if not serves or config.env() == "production" then return end
    load_listed()
    sched.every(FILES_EVERY_MS, look_at_files)
end

return M
