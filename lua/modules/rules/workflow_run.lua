-- One function of one step of a workflow rule, run once. The rule is of the version that its run began with: the one that is live, where
-- it still is (its failures count for the breaker), else that version beside the live ones.
local json = require("core.json")
local rules = require("core.rules")
local capabilities = require("kasma.capabilities")
local hooks = require("kasma.hooks")
local text = require("kasma.text")
local check = require("modules.rules.check")
local live = require("modules.rules.live")
local calls = require("modules.rules.workflow_calls")
local plans = require("modules.rules.workflow_plan")
local store = require("modules.rules.workflow_store")

local M = {}

M.STATE_MAX = 65536
local PLAIN_MAX = 131072 -- of the same state as a step is handed it

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

local function weight(value)
    if type(value) == "string" then return #value end
    if type(value) ~= "table" then return 8 end
    local sum = 16
    for key, member in pairs(value) do sum = sum + weight(key) + weight(member) end
    return sum
end

--- Whether an answer is a state that the next step can be handed: what JSON can say of it, 64 KiB at most.
---@param answer any not nil
---@return boolean, string|nil why
function M.judge(answer)
    if type(answer) ~= "table" then return false, "a step returns its state, a table, or nothing" end
    local ok, encoded = pcall(json.encode, answer)
    if not ok then return false, "state: " .. tostring(encoded):gsub("^.-:%d+: ", "") end
    if #encoded > M.STATE_MAX then return false, ("state: %d bytes of JSON; 65536 at most"):format(#encoded) end
    if text.holds_nul(answer) then return false, "state: a text holds a NUL" end
    if weight(answer) > PLAIN_MAX then return false, "state: too many small tables; keep a text, or fewer members" end
    return true
end

---@class WorkflowAct
---@field run_id string
---@field rule_id string
---@field version integer
---@field step integer
---@field kind "run"|"undo"
---@field key string idempotency key of what it writes
---@field subject table

-- The live set where it still holds the version: then its breaker counts, and holds. Else that version beside the live ones.
local function rule_of(tenant, act)
    live.ensure(tenant)
    local set = assert(rules.pin(tenant))
    for _, rule in ipairs(set:list("workflow")) do
        if rule.rule_id == act.rule_id and rule.number == act.version then return set, rule end
    end
    local spec = M.version(tenant, act.rule_id, act.version).spec
    set = assert(set:with(spec))
    for _, rule in ipairs(set:list("workflow")) do
        if rule.id == spec.id then return set, rule end
    end
end

---@param scope Scope
---@param act WorkflowAct
---@return {ok: boolean, state: table|nil, run: RuleRun}
function M.step(scope, act)
    local set, rule = rule_of(scope.tenant, act)
    local answer, run = capabilities.run(scope, set, rule, { step = act.step, kind = act.kind },
        hooks.input(scope.tenant, "workflow", act.subject), { key = act.key, kind = "workflow", judge = M.judge,
            ledger = calls.of(scope, act) })
    return { ok = run.outcome == "ok", state = answer, run = run }
end

return M
