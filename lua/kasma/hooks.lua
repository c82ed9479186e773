-- Hooks: the places where a rule of the tenant may decide. The catalogue (hooks_catalogue.lua) says what each is given and
-- what it may answer; this file runs the rules.
--
--     local answer, info = hooks.call(scope, "auth.login_policy", { user = ..., ip = ..., failures = 3 })
--
-- The rules of a hook run by priority; the first that answers decides. An answer out of form counts as none, and its rule as
-- failed. `info.failed` says that a rule failed and nothing answered: what holds then is the caller's, by the catalogue.
-- A request keeps the rules it began with: one scope never sees two epochs.
--
-- Which rules are live comes from modules.rules, which says so with set_source and hears of runs with set_sink.
local rules = require("core.rules")
local time = require("core.time")
local catalogue = require("kasma.hooks_catalogue")
local log = require("kasma.log")
local tenants = require("kasma.tenant")
local text = require("kasma.text")

local M = {}

local source, sink
local WORDS, WORDS_MAX = { "message", "reason", "stack", "log" }, 65536

---@param fn fun(scope: Scope): userdata|nil makes the tenant's published rules those of the present epoch; a set to use in
---their place (a draft session), or nil
function M.set_source(fn) source = fn end

---@class RuleRun
---@field id string the rule's key
---@field rule_id string|nil its row; nil for a file
---@field hook string
---@field number integer version
---@field outcome string
---@field line integer|nil
---@field message string|nil
---@field reason string|nil
---@field stack string|nil of an error: the rule's own frames, the innermost first, each "line:chunk:function\n"
---@field instructions integer
---@field micros integer
---@field heap integer bytes
---@field row_id string|nil under which it is kept
---@field result_bytes integer|nil of what it returned
---@field operations integer|nil
---@field tripped boolean this failure opened the breaker
---@field log string|nil
---@field heard table[]|nil what calls of capabilities were answered, see kasma.capabilities
---@field entry {step: integer, kind: string}|nil of a step of a workflow
---@field input table|nil
---@field output any

---@param fn fun(scope: Scope, run: RuleRun, asked: table|nil, quote: table|nil) never waits, never raises
function M.set_sink(fn) sink = fn end

local switches = {}

--- Says what must follow when other rules of a hook decide from now on; the statement stands in the transaction that makes it so.
---@param hook string
---@param fn fun(scope: Scope): table statement
function M.on_switch(hook, fn) switches[hook] = fn end

--- Appends what follows when other rules of a hook decide.
---@param statements table[]
---@param scope Scope
---@param hook string "*": of all hooks
function M.append_switch(statements, scope, hook)
    for name, fn in pairs(switches) do
        if hook == name or hook == "*" then statements[#statements + 1] = fn(scope) end
    end
end

--- The tenant's rules as they are now, and for this request from now on.
---@param scope Scope
---@return userdata set see core.rules
function M.pin(scope)
    local set = scope.rule_set
    if set then return set end
    set = source and source(scope)
    if not set then
        local err
        set, err = rules.pin(scope.tenant)
        if not set then error(err, 0) end
    end
    -- Only what ends with its request holds on to a set; a scope of a long loop would never see a new one.
    if scope.request then scope.rule_set = set end
    return set
end

--- What a rule says in its own words comes as it likes; kept and shown it is text.
---@param runs RuleRun[]
function M.plain_words(runs)
    for _, run in ipairs(runs) do
        for _, name in ipairs(WORDS) do
            if run[name] then run[name] = text.plain(run[name], WORDS_MAX) end
        end
    end
end

--- Hands the runs of a quote to whoever keeps them.
---@param scope Scope
---@param runs RuleRun[]|nil
---@param in_checkout boolean|nil their keeping is the order's
---@param asked table|nil what the quote was asked for, and what it answered: what a run was given is kept out of them
---@param quote table|nil
function M.note_quote(scope, runs, in_checkout, asked, quote)
    if not sink or not runs then return end
    for i = 1, #runs do
        runs[i].in_checkout = in_checkout
        sink(scope, runs[i], asked, quote)
    end
end

-- The moment as rules see it, in the tenant's zone.
local function now_of(tenant, at_ms)
    local f = time.fields(at_ms, tenant.timezone)
    return { epoch = math.floor(at_ms / 1000), year = f.year, month = f.month, day = f.day, hour = f.hour, min = f.min, sec = f.sec,
        wday = f.wday, tz = tenant.timezone }
end

--- The input of a hook around its subject.
---@param tenant_key string
---@param hook string
---@param subject table
---@param at_ms integer|nil default now
---@return table
function M.input(tenant_key, hook, subject, at_ms)
    local tenant = tenants.by_key(tenant_key) or { tenant_key = tenant_key, timezone = "UTC" }
    return { hook = hook, now = now_of(tenant, at_ms or time.now()),
        tenant = { id = tenant.tenant_key, country = tenant.country, settings = {} }, subject = subject }
end

--- What became of a run, its answer judged by the hook's form unless `judge` is false.
---@param rule table of set:list
---@param answer any
---@param report table of the core
---@param judge boolean|nil
---@return any answer nil when it is none, RuleRun
function M.told(rule, answer, report, judge)
    local hook = catalogue.get(rule.hook)
    local run = { id = rule.id, rule_id = rule.rule_id, hook = rule.hook, number = rule.number, outcome = report.outcome,
        line = report.line, message = report.message, reason = report.reason, stack = report.stack, instructions = report.instructions,
        micros = report.micros, heap = report.heap, result_bytes = report.result_bytes,
        log = report.log ~= "" and report.log or nil, tripped = report.tripped == true }
    if report.outcome == "ok" and answer ~= nil and hook and judge ~= false then
        local ok, why = catalogue.check(hook.output, answer)
        if not ok then
            run.outcome, run.message, answer = "invalid_result", why, nil
        end
    end
    if report.outcome ~= "ok" then answer = nil end
    M.plain_words{ run }
    return answer, run
end

--- Runs one rule of a set, and judges its answer by the hook's form. A rule that may wait is run as in a preview: what it calls
--- answers nil, "preview" (kasma.capabilities runs it in earnest).
---@param set userdata
---@param rule table of set:list
---@param input table
---@param limits table|nil
---@return any answer, RuleRun
function M.run(set, rule, input, limits)
    local hook = catalogue.get(rule.hook)
    if hook and hook.kind == "route" then
        return require("kasma.capabilities").run(nil, set, rule, nil, input, { preview = true, limits = limits })
    end
    local answer, report = set:run(rule.index, input, hook and hook.form, limits)
    local run
    answer, run = M.told(rule, answer, report)
    if run.outcome ~= report.outcome then run.tripped = set:fault(rule.index, run.message) end -- out of form: it failed after all
    return answer, run
end

--- Hands a run to whoever keeps them; of one that failed the input too.
---@param scope Scope
---@param run RuleRun
---@param input table
---@param answer any
function M.record(scope, run, input, answer)
    if not sink then return end
    if run.outcome ~= "ok" then run.input = input end
    run.output = answer
    sink(scope, run)
end

--- Whether the tenant has a rule of the hook; for hosts whose subject costs something to make. Unsure counts as yes: the call tells.
---@param scope Scope
---@param hook string
---@return boolean
function M.any(scope, hook)
    local ok, set = pcall(M.pin, scope)
    return not ok or set:count(hook) > 0
end

---@param scope Scope
---@param hook string
---@param subject table as the catalogue names it; what it does not name is not handed out
---@param judge nil|fun(answer: any): boolean, string|nil whether an answer of the right form fits; false counts as failed
---@return any answer, table|nil info {failed: boolean, blocked: boolean, rule: string|nil}; nil info: no rule of this hook
function M.call(scope, hook, subject, judge)
    local ok, set = pcall(M.pin, scope)
    if not ok then
        log.warn("rules could not be asked", { tenant = scope.tenant, hook = hook,
            error = type(set) == "table" and tostring(set.message) or tostring(set) })
        return nil, { failed = true }
    end
    if set:count(hook) == 0 then return nil end
    local info = { failed = false, blocked = false }
    local input
    for _, rule in ipairs(set:list(hook)) do
        input = input or M.input(scope.tenant, hook, subject)
        local answer, run = M.run(set, rule, input)
        if answer ~= nil and judge then
            local fits, why = judge(answer)
            if not fits then
                run.outcome, run.message, answer = "invalid_result", why, nil
                M.plain_words{ run }
            end
        end
        M.record(scope, run, input, answer)
        if run.outcome ~= "ok" then
            info.failed = true
            if not info.blocked then info.rule = rule.id end
            if rule.on_error == "block" then info.blocked = true end
        elseif answer ~= nil then
            return answer, { failed = false, blocked = false, rule = rule.id }
        end
    end
    return nil, info
end

return M
