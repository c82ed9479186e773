-- One function of one step of a workflow rule, run once. The rule is of the version that its run began with: the one that is live, where
-- it still is (its failures count for the breaker), else that version beside the live ones.
local json = require("core.json")
local rules = require("core.rules")
local hooks = require("kasma.hooks")
local catalogue = require("kasma.hooks_catalogue")
local check = require("modules.rules.check")
local live = require("modules.rules.live")
local plans = require("modules.rules.workflow_plan")
local store = require("modules.rules.workflow_store")

local M = {}

M.STATE_MAX = 65536

-- Plans of versions: these never change. Bounded by forgetting all of them.
local known, count = {}, 0
local KNOWN_MAX = 500

local function read(tenant, rule_id, version)
    local row = store.version(tenant, rule_id, version)
    if not row then error(("version %d of workflow rule %s is gone"):format(version, rule_id), 0) end
    local spec = live.spec(row)
    local set = assert(assert(rules.pin("rules-check")):with(spec))
    local manifest, failure
    for _, rule in ipairs(set:list("workflow")) do
        if rule.id == spec.id then manifest, failure = set:describe(rule.index) end
    end
    if not manifest then error(("workflow rule %s: %s"):format(row.key, failure and failure.message or "cannot be read"), 0) end
    local plan, problems = plans.read(manifest, check.nearest)
    if not plan then error(("workflow rule %s: %s"):format(row.key, problems[1].message), 0) end
    return { plan = plan, spec = spec, key = row.key }
end

---@param tenant string
---@param rule_id string
---@param version integer
---@return {plan: WorkflowPlan, spec: table, key: string} raises when the version cannot be read
function M.version(tenant, rule_id, version)
    local name = tenant .. "|" .. rule_id .. "|" .. version
    local found = known[name]
    if found then return found end
    found = read(tenant, rule_id, version)
    if count >= KNOWN_MAX then known, count = {}, 0 end
    known[name], count = found, count + 1
    return found
end

local WRAP = [[

end)()
return { hook = "route", name = "step", config = W.config, run = function(input, config)
  return W.steps[%d].%s(input, config)
end }]]

-- A state that the next step is to find: what JSON can say of it, 64 KiB at most.
local function state_of(answer)
    if type(answer) ~= "table" then return nil, "a step returns its state, a table, or nothing" end
    local ok, encoded = pcall(json.encode, answer)
    if not ok then return nil, "state: " .. tostring(encoded):gsub("^.-:%d+: ", "") end
    if #encoded > M.STATE_MAX then return nil, ("state: %d bytes of JSON; 65536 at most"):format(#encoded) end
    return answer
end
M.state_of = state_of

---@class WorkflowAct
---@field run_id string
---@field rule_id string
---@field version integer
---@field step integer
---@field kind "run"|"undo"
---@field key string idempotency key of what it writes
---@field subject table

---@param scope Scope
---@param act WorkflowAct
---@return {ok: boolean, state: table|nil, run: RuleRun}
function M.step(scope, act)
    local version = M.version(scope.tenant, act.rule_id, act.version)
    local spec = {}
    for name, value in pairs(version.spec) do spec[name] = value end
    spec.hook = "route"
    spec.source = "local W = (function() " .. spec.source .. WRAP:format(act.step, act.kind)
    live.ensure(scope.tenant)
    local set = assert(assert(rules.pin(scope.tenant)):with(spec))
    local index
    for _, rule in ipairs(set:list("route")) do
        if rule.id == spec.id then index = rule.index end
    end
    local input = hooks.input(scope.tenant, "workflow", act.subject)
    local answer, report = set:run(index, input, catalogue.get("workflow").form)
    local run = { id = spec.id, rule_id = act.rule_id, hook = "workflow", number = act.version, outcome = report.outcome,
        line = report.line, message = report.message, reason = report.reason, instructions = report.instructions,
        micros = report.micros, heap = report.heap, log = report.log ~= "" and report.log or nil, tripped = report.tripped == true }
    return M.judged(scope, run, answer, input)
end

--- What a run of a step amounts to; kept with the rule's runs.
---@param scope Scope
---@param run RuleRun
---@param answer any
---@param input table
---@return {ok: boolean, state: table|nil, run: RuleRun}
function M.judged(scope, run, answer, input)
    local state
    if run.outcome == "ok" and answer ~= nil then
        local why
        state, why = state_of(answer)
        if not state then run.outcome, run.message = "invalid_result", why end
    end
    if run.outcome ~= "ok" then run.input = input end
    run.output = state
    hooks.note_quote(scope, { run })
    return { ok = run.outcome == "ok", state = state, run = run }
end

return M
