-- Tests of workflow rules. Nothing is asked and nothing is kept: what capabilities answer the test says, and their calls can be expected.
--
--     { name = "thanks", given = { step = "thank", event = { name = "order.placed", id = "o1", data = {} }, state = { n = 1 },
--         answers = { ["orders.get"] = { number = "N-1" }, ["mail.send"] = true } },
--       expect = { result = { n = 2 }, calls = { { "orders.get", "o1" }, { "mail.send", "thank-you", "u1" } } } }
--
-- given: now, event, state, answers (by name; what has none answers nil, "preview"), and for one step: step (its name), undo = true,
-- waited, attempt. Without `step` the whole workflow runs from its first step, waits being over (`waited = { [step] = ... }` says how): a
-- step that fails is not tried again, and what was done is undone. expect: result (the state at the end; of one step what it returns),
-- calls, log, reason, error (code), and of a whole run ends = "done", "undone" or "failed".
local capabilities = require("kasma.capabilities")
local check = require("modules.rules.check")
local plans = require("modules.rules.workflow_plan")
local runner = require("modules.rules.workflow_run")
local samples = require("modules.rules.samples")

local M = {}

local function fault(message) return { outcome = "error", message = message, instructions = 0, heap = 0, micros = 0 } end

local function find(plan, name)
    for i, step in ipairs(plan.steps) do
        if step.name == name then return i, step end
    end
    local names = {}
    for _, step in ipairs(plan.steps) do names[step.name] = true end
    local near = check.nearest(tostring(name), names)
    return nil, ("there is no step '%s'%s"):format(tostring(name), near and "; did you mean '" .. near .. "'?" or "")
end

-- Runs one function of one step.
local function step_of(set, rule, plan, given, at, more, calls)
    local step = plan.steps[at]
    local event = given.event or { name = plan.on[1] or "job", id = "sample", data = {} }
    local input = samples.around("workflow", { now = given.now, tenant = given.tenant, subject = { event = event, state = more.state,
        step = step.name, attempt = given.attempt or 1, waited = more.waited } })
    local answer, run = capabilities.run(nil, set, rule, { step = at, kind = more.kind }, input,
        { kind = "workflow", preview = { answers = given.answers, calls = calls }, judge = runner.judge })
    return answer, run
end

local function add_up(total, run)
    total.instructions = math.max(total.instructions, run.instructions)
    total.heap, total.micros = math.max(total.heap, run.heap), math.max(total.micros, run.micros)
    if run.log then total.log = (total.log or "") .. run.log end
end

local function whole(set, rule, plan, given, expect, calls)
    local total = { outcome = "ok", ends = "done", instructions = 0, heap = 0, micros = 0, calls = calls }
    local state, waits, failed = given.state or {}, given.waited or {}, nil
    for name in pairs(waits) do
        local at, why = find(plan, name)
        if not at then return nil, fault("waited: " .. why) end
    end
    for at, step in ipairs(plan.steps) do
        if step.run then
            local answer, run = step_of(set, rule, plan, given, at, { kind = "run", state = state,
                waited = step.wait and (waits[step.name] or { timed_out = false }) or nil }, calls)
            add_up(total, run)
            if run.outcome ~= "ok" then
                failed = { at = at, run = run }
                break
            end
            if answer ~= nil then state = answer end
        end
    end
    if failed then
        total.ends = "failed"
        for at = failed.at - 1, 1, -1 do
            if plan.steps[at].undo then
                local answer, run = step_of(set, rule, plan, given, at, { kind = "undo", state = state }, calls)
                add_up(total, run)
                total.ends = run.outcome == "ok" and "undone" or "failed"
                if run.outcome ~= "ok" then break end
                if answer ~= nil then state = answer end
            end
        end
        if expect.ends == nil then total.outcome, total.line, total.message = failed.run.outcome, failed.run.line, failed.run.message end
    end
    return state, total
end

---@param set userdata
---@param rule table of set:list
---@param given table
---@param expect table
---@return any answer, RuleRun run with `calls` and, of a whole run, `ends`
function M.run(set, rule, given, expect)
    local manifest, failure = set:describe(rule.index)
    if not manifest then return nil, fault(failure.message) end
    local plan, problems = plans.read(manifest, check.nearest)
    if not plan then return nil, fault(problems[1].message) end
    local calls = {}
    if given.step == nil then return whole(set, rule, plan, given, expect, calls) end
    local at, step = find(plan, given.step)
    if not at then return nil, fault(step) end
    local kind = given.undo and "undo" or "run"
    if not step[kind] then return nil, fault(("the step '%s' has no %s"):format(given.step, kind)) end
    local answer, run = step_of(set, rule, plan, given, at, { kind = kind, state = given.state or {}, waited = given.waited }, calls)
    run.calls = calls
    return answer, run
end

return M
