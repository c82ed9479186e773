-- What the checker says of a workflow rule: its manifest's events and steps, and a run of each step without its past. A step may well fail
-- there (it has no state, and nobody answers its calls), so of those runs only what is wrong in any case is told.
local capabilities = require("kasma.capabilities")
local catalogue = require("kasma.hooks_catalogue")
local plans = require("modules.rules.workflow_plan")

local M = {}

-- Where in the source a word stands in quotes (or bare); the last place, for what is there twice.
local function place_of(lines, word, last)
    local place = {}
    if not word then return place end
    for i, text in ipairs(lines) do
        local quoted = text:find("\"" .. word .. "\"", 1, true) or text:find("'" .. word .. "'", 1, true)
        local bare = not quoted and not place.line and text:find("%f[%w_]" .. word:gsub("%p", "%%%0") .. "%f[^%w_]")
        if quoted or bare then place = { line = i, column = quoted and quoted + 1 or bare } end
        if quoted and not last then break end
    end
    return place
end

---@param manifest table
---@param out fun(code: string, message: string, place: table|nil, hint: string|nil)
---@param lines string[]
---@param nearest fun(name: string, names: table): string|nil
---@return WorkflowPlan|nil
function M.findings(manifest, out, lines, nearest)
    local plan, problems = plans.read(manifest, nearest)
    for _, problem in ipairs(problems) do
        out("manifest_field", problem.message, place_of(lines, problem.word, problem.last), problem.hint)
    end
    return plan
end

local ALWAYS = { unknown_field = true, readonly = true, limit_instructions = true, limit_heap = true, limit_pattern = true,
    limit_result = true }

--- Runs each step once, and its undo.
---@param set userdata
---@param rule table of set:list
---@param plan WorkflowPlan
---@param out fun(code: string, message: string, place: table|nil, hint: string|nil)
---@param check table modules.rules.check
---@return table[] results
function M.try(set, rule, plan, out, check)
    local results = {}
    local sample = catalogue.samples(catalogue.get("workflow"))[1].input
    for at, step in ipairs(plan.steps) do
        for _, kind in ipairs{ "run", "undo" } do
            if step[kind] then
                local subject = { event = { name = plan.on[1] or "job", id = "sample", data = {} }, state = {}, step = step.name,
                    attempt = 1, waited = step.wait and { timed_out = true } or nil }
                local _, run = capabilities.run(nil, set, rule, { step = at, kind = kind }, { hook = "workflow", now = sample.now,
                    tenant = sample.tenant, subject = subject }, { kind = "workflow", preview = true })
                local name = kind == "run" and step.name or "undo of " .. step.name
                local budget = check.budget_of(run, "workflow")
                local code, message, hint = "ok", nil, nil
                if run.outcome ~= "ok" then code, message, hint = check.told(run) end
                results[#results + 1] = { name = name, outcome = ALWAYS[code] and run.outcome or "ok", reason = run.reason, budget = budget,
                    log = run.log }
                if ALWAYS[code] then out(code, message, { line = run.line, budget = budget, sample = name }, hint) end
            end
        end
    end
    return results
end

return M
