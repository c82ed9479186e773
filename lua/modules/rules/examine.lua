-- Everything that is looked at before a rule goes live: the check (text, names, manifest, config, samples), the rows that its config
-- points at, its own tests, and the shop's own past: the last 200 inputs of its hook, each run as a checkout would run it today.
local crypto = require("core.crypto")
local json = require("core.json")
local sched = require("core.sched")
local hooks = require("kasma.hooks")
local catalogue = require("kasma.hooks_catalogue")
local errors = require("kasma.errors")
local check = require("modules.rules.check")
local kept = require("modules.rules.kept")
local pickers = require("modules.rules.pickers")
local preview = require("modules.rules.preview")
local store = require("modules.rules.store")
local tests = require("modules.rules.tests")

local M = {}

local STORED, LIBS_MAX, LIB_DEPTH = 200, 20, 3

M.check_failed = errors.declare{ code = "rule_check_failed", status = 422, message = "The rule does not pass its check",
    cause = "see details.diagnostics", cure = "mend what it names" }
M.tests_failed = errors.declare{ code = "rule_tests_failed", status = 422, message = "The rule does not pass its tests",
    cause = "see details.diagnostics", cure = "mend the rule or the test" }
M.warning_not_accepted = errors.declare{ code = "warning_not_accepted", status = 409, message = "The check warns",
    cause = "a warning's code is not in acceptWarnings", cure = "mend it, or accept the code" }

--- The libraries that a source takes from, and those they take from. Raises nothing: what is missing the check tells.
---@param tenant string
---@param source string
---@param given table<string, string>|nil sources that go before those that are live: key -> source
---@return table[] {key, version, sha256, source}
function M.libraries(tenant, source, given)
    local list, seen = {}, {}
    local function take(text, depth)
        if depth > LIB_DEPTH or #list >= LIBS_MAX then return end
        for key in text:gmatch("%f[%w_]lib%s*%(?%s*[\"']([%w_-]+)[\"']") do
            if not seen[key] then
                seen[key] = true
                local text_given = given and given[key]
                local row = text_given and { version = 0, sha256 = crypto.sha256(text_given), source = text_given }
                    or store.library(tenant, key)
                if row then
                    list[#list + 1] = { key = key, version = row.version, sha256 = row.sha256, source = row.source }
                    take(row.source, depth + 1)
                end
            end
        end
    end
    take(source, 1)
    return list
end

-- The line of a source on which a member of its manifest stands.
local function line_of(source, name)
    local n = 0
    for text in (source .. "\n"):gmatch("(.-)\r?\n") do
        n = n + 1
        local at = text:find("%f[%w_]" .. name .. "%f[^%w_]%s*=")
        if at then return n, at end
    end
    return nil
end

--- Checks a draft as publishing does, without its tests and without the shop's past.
---@param tenant string
---@param o {source: string, hook: string|nil, settings: table|nil, key: string|nil, file: string|nil,
---given: table<string, string>|nil} file: what findings call it; given: see M.libraries
---@return table report see check.run; also libs, and picks: what its config points at
function M.check(tenant, o)
    local libs = M.libraries(tenant, o.source, o.given)
    local report = check.run{ source = o.source, hook = o.hook, settings = o.settings, id = o.key, libs = libs, file = o.file }
    report.libs = libs
    report.picks = pickers.of(report.manifest, o.settings and o.settings.config)
    if not report.ok then return report end
    for _, pick in ipairs(pickers.lost(tenant, report.picks)) do
        report.ok = false
        local line, column = line_of(o.source, pick.path:match("([%w_]+)[^%w_]*%d*%]?$") or "config")
        check.add(report, { severity = "error", code = "config_invalid", message = pickers.told(pick), field = pick.path, line = line,
            column = column })
    end
    return report
end

--- Runs tests against a source.
---@param tenant string
---@param o {source: string, hook: string, settings: table, key: string, tests: string, only: string|nil}
---@return table report
function M.test(tenant, o)
    local checked = M.check(tenant, o)
    if not checked.spec then M.check_failed{ details = { diagnostics = checked.diagnostics } } end
    local report, finding = tests.run{ spec = checked.spec, hook = o.hook, tests = o.tests, only = o.only,
        stored = kept.for_tests(tenant, o.key) }
    if not report then M.tests_failed{ details = { diagnostics = json.array{ finding } } } end
    return report
end

local function run_tests(tenant, report, rule, text)
    if text == "" or not report.spec then return end
    local file = report.file:gsub("%.lua$", "") .. "_test.lua"
    local result, finding
    check.covering(report, report.spec.id, function()
        result, finding = tests.run{ spec = report.spec, hook = rule.hook, tests = text, file = file,
            stored = rule.key and kept.for_tests(tenant, rule.key) or nil }
    end)
    if not result then M.tests_failed{ details = { diagnostics = json.array{ finding } } } end
    if result.failed > 0 then
        local failed = json.array{}
        for _, c in ipairs(result.cases) do
            if not c.ok then
                failed[#failed + 1] = { severity = "error", code = "test_failed", file = file,
                    message = c.name .. ": " .. table.concat(c.diff, "; "), budget = c.budget, docsUrl = check.DOCS }
            end
        end
        M.tests_failed{ details = { diagnostics = failed } }
    end
    report.tests = { passed = result.passed, failed = result.failed }
end

--- Codes of what a check warned of.
---@param report table
---@return string[]
function M.warnings(report)
    local codes, seen = json.array{}, {}
    for _, d in ipairs(report.diagnostics) do
        if d.severity == "warning" and not seen[d.code] then
            seen[d.code] = true
            codes[#codes + 1] = d.code
        end
    end
    return codes
end

-- The past --------------------------------------------------------------------------------------------------------------------------

-- Findings of runs, those alike once, with how many there were.
local function tally(report)
    local seen, slowest = {}, nil
    local t = { n = 0 }
    function t.add(run, hook, name)
        t.n = t.n + 1
        local budget = check.budget_of(run, hook)
        if run.outcome ~= "ok" then
            local code, message, hint = check.told(run)
            local key = code .. tostring(run.line) .. message:gsub("%d+", "#")
            if seen[key] then
                seen[key].n = seen[key].n + 1
            else
                seen[key] = { n = 1 }
                seen[#seen + 1] = { key = key, d = { severity = "error", code = code, line = run.line, message = message, hint = hint,
                    budget = budget, sample = name, stack = check.frames(run) } }
            end
        elseif run.instructions * 2 > budget.instructions.limit or run.heap * 2 > budget.heap.limit then
            if not slowest or run.instructions > slowest.run.instructions then
                slowest = { run = run, budget = budget, name = name }
            end
        end
    end
    function t.finish()
        for _, one in ipairs(seen) do
            if seen[one.key].n > 1 then
                one.d.message = ("%s (%d of the last %d)"):format(one.d.message, seen[one.key].n, t.n)
            end
            report.ok = false
            check.add(report, one.d)
        end
        if slowest then
            local i, h = slowest.budget.instructions, slowest.budget.heap
            check.add(report, { severity = "warning", code = "slow_sample", budget = slowest.budget, sample = slowest.name,
                message = ("'%s' used %d%% of the budget"):format(slowest.name, math.floor(100 * math.max(i.used / i.limit,
                    h.used / h.limit))) })
        end
    end
    return t
end

-- The last orders, priced today with the rule in its place; what else gave something away on them is told.
local function past_orders(place, rule, report)
    local spec = {}
    for name, value in pairs(report.spec) do spec[name] = value end
    spec.rule_id = rule.id
    local set = assert(hooks.pin(place):with(spec))
    local t, both, orders = tally(report), preview.companions(rule), 0
    for i, s in ipairs(store.snapshots(place.tenant, nil, nil, nil, STORED)) do
        if i % 10 == 0 then sched.sleep(0) end -- others go first
        local quote = preview.price(place, s.input, set)
        local run = preview.run_of(quote, rule.key)
        if run then t.add(run, rule.hook, s.order_number) end
        if quote then
            orders = orders + 1
            both.add(quote)
        end
    end
    t.finish()
    for _, warning in ipairs(both.warnings(orders)) do check.add(report, warning) end
    return orders
end

-- What rules of a hook outside of quotes were asked: inputs are kept with failures, and one in a hundred successes.
local function past_runs(place, rule, report)
    local set = assert(hooks.pin(place):with(report.spec))
    local index
    for _, one in ipairs(set:list(rule.hook)) do
        if one.id == report.spec.id then index = one end
    end
    local t = tally(report)
    for i, body in ipairs(store.inputs(place.tenant, rule.hook, STORED)) do
        if i % 20 == 0 then sched.sleep(0) end
        local _, run = hooks.run(set, index, body.input)
        t.add(run, rule.hook, body._id)
    end
    t.finish()
    return t.n
end

local function past(tenant, rule, report)
    local place = { tenant = tenant, app = rule.app_key or "MASTER" }
    local hook = catalogue.get(rule.hook)
    if not report.spec or not hook or hook.kind ~= "hook" then return 0 end
    if hook.quote then return past_orders(place, rule, report) end
    return past_runs(place, rule, report)
end

--- The check with the tests beside the rule: their failures are findings too, and lines that nothing reaches.
---@param tenant string
---@param o table see M.check; tests: string
---@return table report
function M.check_all(tenant, o)
    local report = M.check(tenant, o)
    if not report.ok or not report.spec then return report end
    local ok, why = pcall(run_tests, tenant, report, { hook = o.hook or report.spec.hook, key = o.key }, o.tests or "")
    if not ok then
        if not errors.is(why) or why.code ~= M.tests_failed.code then error(why, 0) end
        for _, d in ipairs(why.details.diagnostics) do check.add(report, d) end
    end
    check.not_covered(report)
    return report
end

--- All checks of publishing. Raises what fails, and what warns unless its code is accepted.
---@param tenant string
---@param rule table hook, key; id and app_key where there is a row
---@param draft {source: string, settings: table, tests: string}
---@param accepted string[]|nil codes of warnings that whoever publishes has seen
---@param more {file: string|nil, given: table<string, string>|nil, warnings: boolean|nil}|nil see M.check; warnings: all are accepted
---@return table report see check.run; also libs, picks, tests {passed, failed}, stored: how many inputs of the past it was tried with
function M.all(tenant, rule, draft, accepted, more)
    more = more or {}
    local report = M.check(tenant, { source = draft.source, hook = rule.hook, settings = draft.settings, key = rule.key, file = more.file,
        given = more.given })
    if not report.ok then M.check_failed{ details = { diagnostics = report.diagnostics } } end
    run_tests(tenant, report, rule, draft.tests)
    check.not_covered(report)
    report.stored = past(tenant, rule, report)
    if not report.ok then M.check_failed{ details = { diagnostics = report.diagnostics } } end
    if more.warnings then return report end
    local allowed = {}
    for _, code in ipairs(accepted or {}) do allowed[code] = true end
    for _, d in ipairs(report.diagnostics) do
        if d.severity == "warning" and not allowed[d.code] then
            M.warning_not_accepted{ details = { diagnostics = report.diagnostics } }
        end
    end
    return report
end

return M
