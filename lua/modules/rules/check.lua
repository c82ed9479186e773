-- The checker: everything that can be said of a rule before it runs for a shopper. Syntax; names that do not exist, found by walking
-- the bytecode of the compiled functions; manifest; config; its own runs on the hook's samples. Needs no store, so the console, the
-- API, publishing and the command line say the same.
--
-- A finding: {severity, code, file, line, column, message, hint, budget}.
local json = require("core.json")
local pricing = require("core.pricing")
local rules = require("core.rules")
local capabilities = require("kasma.capabilities")
local hooks = require("kasma.hooks")
local catalogue = require("kasma.hooks_catalogue")
local check_input = require("modules.rules.check_input")
local mounted = require("modules.rules.mounted")
local samples = require("modules.rules.samples")
local templates = require("modules.rules.check_templates")
local workflow = require("modules.rules.check_workflow")
local window = require("modules.rules.window")

local M = {}

local SOURCE_MAX, FINDINGS_MAX = 65536, 100
M.DOCS = "docs/rules.md#findings"
local SCRATCH = "rules-check" -- a tenant of nobody's: what is tried runs in its state

-- Bytecode ---------------------------------------------------------------------------------------------------------------------

local util = require("jit.util")
local floor = math.floor

-- The numbers of the instructions differ from build to build: they are read off functions that hold just one of them.
local function opcode(text, pc) return util.funcbc(assert(loadstring(text)), pc) % 256 end
local GGET, GSET = opcode("return x", 1), opcode("x = 1", 2)
local TGETS = opcode("local t return t.x", 2)
local RET0 = opcode("local x", 2)

local HINTS = {
    os = "for the time use input.now", io = "rules read only their input", print = "use log()", require = "use lib()", next = "use pairs",
    coroutine = "rules run from end to end", xpcall = "use pcall", _G = "use local", math = "there is no chance in a rule",
}
local FORBIDDEN = { "os", "io", "print", "require", "load", "loadstring", "dofile", "coroutine", "next", "setmetatable", "getmetatable",
    "rawget", "rawset", "rawequal", "_G", "getfenv", "setfenv", "collectgarbage", "newproxy", "ffi", "jit", "debug", "package", "bit",
    "xpcall", "module", "gcinfo" }
local forbidden = {}
for _, name in ipairs(FORBIDDEN) do forbidden[name] = true end

local known

local function nearest(name, names)
    local best, most = nil, #name > 5 and 3 or 2
    for other in pairs(names) do
        local row = {}
        for j = 0, #other do row[j] = j end
        for i = 1, #name do
            local corner = row[0]
            row[0] = i
            for j = 1, #other do
                local cost = corner + (name:byte(i) == other:byte(j) and 0 or 1)
                corner = row[j]
                row[j] = math.min(cost, row[j] + 1, row[j - 1] + 1)
            end
        end
        if row[#other] <= most and row[#other] < #other and (row[#other] < most or not best or other < best) then
            best, most = other, row[#other]
        end
    end
    return best
end
M.nearest = nearest

local function walk(fn, found, seen)
    local info = util.funcinfo(fn)
    for pc = 1, info.bytecodes - 1 do
        local ins = util.funcbc(fn, pc)
        local op = ins % 256
        if op == GGET or op == GSET then
            local name = util.funck(fn, -floor(ins / 65536) - 1)
            local line = util.funcinfo(fn, pc).currentline
            local member
            local follows = op == GGET and pc + 1 < info.bytecodes and util.funcbc(fn, pc + 1)
            if follows and follows % 256 == TGETS and floor(follows / 16777216) == floor(ins / 256) % 256 then
                member = util.funck(fn, -(floor(follows / 65536) % 256) - 1)
            end
            found[#found + 1] = { name = name, member = member, line = line, write = op == GSET }
        end
    end
    if not info.children then return end
    for i = -1, -1000000000, -1 do
        local child = util.funck(fn, i)
        if child == nil then break end
        if type(child) == "proto" and not seen[child] then
            seen[child] = true
            walk(child, found, seen)
        end
    end
end

-- The lines of the functions of a chunk that hold code; the chunk itself runs at load. The return that ends a function without one says
-- nothing about whether it was reached.
local function code_lines(fn, lines, seen)
    local info = util.funcinfo(fn)
    if seen.depth > 0 then
        for pc = 1, info.bytecodes - 1 do
            local at = util.funcinfo(fn, pc).currentline
            if pc < info.bytecodes - 1 or util.funcbc(fn, pc) % 256 ~= RET0 then lines[at] = true end
        end
    end
    if not info.children then return end
    seen.depth = seen.depth + 1
    for i = -1, -1000000000, -1 do
        local child = util.funck(fn, i)
        if child == nil then break end
        if type(child) == "proto" and not seen[child] then
            seen[child] = true
            code_lines(child, lines, seen)
        end
    end
    seen.depth = seen.depth - 1
end

local function column_of(lines, line, name)
    local text = lines[line]
    local at = text and name and text:find(name, 1, true)
    return at
end

local function global_findings(fn, out, lines)
    known = known or assert(rules.globals())
    local found = {}
    walk(fn, found, {})
    table.sort(found, function(a, b)
        if a.line ~= b.line then return a.line < b.line end
        return a.name < b.name
    end)
    for i, g in ipairs(found) do
        if i > FINDINGS_MAX then break end
        local place = { line = g.line, column = column_of(lines, g.line, g.name) }
        if g.write then
            out("forbidden_global", ("'%s' would be a global; use local"):format(g.name), place)
        elseif forbidden[g.name] then
            out("forbidden_global", ("'%s' is not available in rules"):format(g.name), place, HINTS[g.name])
        elseif not known[g.name] then
            local near = nearest(g.name, known)
            out("undefined_global", ("'%s' is not defined"):format(g.name), place,
                g.name == "prnt" and "to print, use log()" or near and ("did you mean '%s'?"):format(near))
        elseif g.member and type(known[g.name]) == "table" and not known[g.name][g.member] then
            place.column = column_of(lines, g.line, g.member)
            local near = nearest(g.member, known[g.name])
            out("undefined_global", ("'%s.%s' is not available in rules"):format(g.name, g.member), place,
                g.name == "math" and g.member:find("random") and HINTS.math or near and ("did you mean '%s'?"):format(near))
        end
    end
    return found
end

-- Capabilities -----------------------------------------------------------------------------------------------------------------

local function list_of_texts(value)
    if type(value) ~= "table" then return false end
    for key, text in pairs(value) do
        if type(key) ~= "number" or type(text) ~= "string" then return false end
    end
    return true
end

local function needs_findings(manifest, out)
    local needs, words = manifest.needs, capabilities.needs()
    if needs == nil then return end
    if type(needs) ~= "table" then
        out("manifest_field", "needs is a list of capabilities: { \"kv\", http = { \"example.test\" } }")
        return
    end
    for key, value in pairs(needs) do
        local word = type(key) == "number" and value or key
        if type(word) ~= "string" or not words[word] then
            local near = type(word) == "string" and nearest(word, words)
            out("manifest_field", ("needs: there is no capability '%s'"):format(tostring(word)), {},
                near and ("did you mean '%s'?"):format(near))
        elseif (word == "http" or word == "secrets") and (type(key) == "number" or not list_of_texts(value)) then
            out("manifest_field", ("needs.%s lists names: %s = { %s }"):format(word, word,
                word == "http" and '"example.test"' or '"crm_token"'))
        elseif type(key) == "string" and word ~= "http" and word ~= "secrets" then
            out("manifest_field", ("needs.%s takes no names; write \"%s\""):format(word, word))
        end
    end
end

-- What the text calls and the manifest does not ask for.
local function capability_findings(found, manifest, hook, out, lines)
    local needs, groups = capabilities.needs_of(manifest), {}
    for _, name in ipairs(capabilities.names()) do groups[name:match("^[^.]+")] = true end
    for _, g in ipairs(found) do
        local name = g.member and g.name .. "." .. g.member or g.name
        local place = { line = g.line, column = column_of(lines, g.line, g.name) }
        local c = capabilities.get(name)
        if groups[g.name] and hook.kind ~= "route" and hook.kind ~= "workflow" then
            out("capability_denied", ("'%s' is only for route and workflow rules"):format(g.name), place)
        elseif c and not needs[c.needs] then
            out("capability_denied", ("%s: '%s' is not in needs"):format(name, c.needs), place,
                ("add \"%s\" to the manifest's needs"):format(c.needs))
        end
    end
end

-- Runs on samples --------------------------------------------------------------------------------------------------------------

local CODES = { capability_denied = true, capability_limit = true, calls_differ = true,
    unknown_field = true, manifest_field = true, config_invalid = true, readonly = true }

--- A failed run as a finding.
---@param run RuleRun
---@return string code, string message, string|nil hint
function M.told(run)
    local message = run.message or run.outcome
    local code, rest = message:match("^([%l_]+): (.*)$")
    if code and CODES[code] then
        return code, (rest:gsub("; did you mean '[^']*'%?$", "")), rest:match("did you mean '([^']*)'%?$")
    end
    if run.outcome == "error" then return "runtime_error", message end
    return run.outcome, message
end

--- The frames of the rule and its libraries in which a run failed, the innermost first.
---@param run RuleRun
---@return table[]|nil {line, chunk, name}: name nil where the function has none; nil: the run did not fail by an error
function M.frames(run)
    if not run.stack then return nil end
    local list = {}
    for line, chunk, name in run.stack:gmatch("(%d+):([^:\n]*):([^\n]*)\n") do
        list[#list + 1] = { line = tonumber(line), chunk = chunk, name = name ~= "" and name or nil }
    end
    return list
end

local function budget_of(run, hook)
    local limits = rules.limits(hook)
    return { instructions = { used = run.instructions, limit = limits.instructions }, heap = { used = run.heap, limit = limits.heap },
        wallMicros = { used = run.micros, limit = limits.wall_us }, result = { used = run.result_bytes or 0, limit = limits.result } }
end
M.budget_of = budget_of

local function try(set, id, hook, out, inputs)
    local results, first = {}, {}
    for _, sample in ipairs(inputs) do
        local run
        if hook.quote then
            local quote, err = pricing.quote(sample.input, set)
            for _, r in ipairs(quote and quote.rule_runs or {}) do
                -- One quote may ask it several times: the failure tells, else the last.
                if r.id == id and not (run and run.outcome ~= "ok") then run = r end
            end
            -- A rule that was not asked (nothing to tax) has nothing to answer for.
            run = run or { outcome = quote and "ok" or "error", message = err and err.message, instructions = 0, heap = 0, micros = 0 }
        else
            local _
            _, run = hooks.run(set, set:list(hook.name)[1], sample.input)
        end
        local budget = budget_of(run, hook.name)
        results[#results + 1] = { name = sample.name, outcome = run.outcome, reason = run.reason, budget = budget, log = run.log }
        if run.outcome ~= "ok" then
            local code, message, hint = M.told(run)
            local key = code .. tostring(run.line) .. message
            if not first[key] then
                first[key] = true
                out(code, message, { line = run.line, budget = budget, sample = sample.name, stack = M.frames(run) }, hint)
            end
        elseif run.instructions * 2 > budget.instructions.limit then
            out("slow_sample", ("'%s' used %d%% of the budget"):format(sample.name,
                math.floor(100 * run.instructions / budget.instructions.limit)), { severity = "warning", budget = budget })
        end
    end
    return results
end

--- Adds a finding of others to a report; an error makes it a failed one.
---@param report table
---@param d table severity, code, message and what else is known
function M.add(report, d)
    d.file, d.docsUrl = d.file or report.file, M.DOCS
    if d.severity == "error" then report.ok = false end
    report.diagnostics[#report.diagnostics + 1] = d
end

-- Coverage ----------------------------------------------------------------------------------------------------------------------

--- Runs what tries a rule, and notes in the report which of its lines were reached. It must not wait: lines are noted for one at a time.
---@param report table
---@param id string the rule's, as it is loaded
---@param fn fun()
function M.covering(report, id, fn)
    rules.cover(id)
    local ok, why = pcall(fn)
    rules.cover(nil)
    report.reached = report.reached or {}
    for line in pairs(report.code) do
        if rules.covered(line) then report.reached[line] = true end
    end
    if not ok then error(why, 0) end
end

--- Adds what no sample and no test has reached, lines that follow each other as one.
---@param report table of M.run, after its tests were run too
function M.not_covered(report)
    if not report.code or not report.reached then return end
    local code, i = {}, 1
    for line in pairs(report.code) do code[#code + 1] = line end
    table.sort(code)
    while code[i] do
        local first, last = code[i], nil
        while code[i] and not report.reached[code[i]] do last, i = code[i], i + 1 end
        if last then
            M.add(report, { severity = "info", code = "not_covered", line = first, lastLine = last, message = (first == last
                and "line %d is" or "lines %d-%d are"):format(first, last) .. " reached by no sample and no test" })
        else
            i = i + 1
        end
    end
end

-- The check --------------------------------------------------------------------------------------------------------------------

-- A part of a manifest as JSON has it: where Lua writes a list and names into one table (the choices of an enum, what a rule needs), the
-- list stands under `values`.
local function node_body(node)
    if type(node) ~= "table" then return node end
    local copy, list = {}, json.array{}
    for name, value in pairs(node) do
        if type(name) == "string" then copy[name] = node_body(value) end
    end
    for i, value in ipairs(node) do list[i] = node_body(value) end
    if next(copy) == nil then return #list > 0 and list or node end
    if #list > 0 then copy.values = list end
    return copy
end

--- A manifest as it is sent: what it holds may be written as JSON.
---@param manifest table|nil
---@return table|nil
function M.manifest_body(manifest) return manifest and node_body(manifest) end

--- The JSON text of a config for the core; an empty table is an object.
function M.config_text(config)
    if not config or next(config) == nil then return "{}" end
    return json.encode(config)
end

---@class RuleCheckInput
---@field source string
---@field hook string|nil what it must be for; nil: what the source says
---@field settings table|nil {config, priority, on_error, fallback, startsAt, endsAt}
---@field file string|nil what findings call it
---@field id string|nil key
---@field libs table[]|nil {key, source}

---@param o RuleCheckInput
---@return {ok: boolean, diagnostics: table[], manifest: table|nil, sampleRuns: table[], spec: table|nil}
function M.run(o)
    -- The command line checks without having loaded the modules.
    if #capabilities.names() == 0 then require("kasma.boot").load_for_rules() end
    local file, settings = o.file or (o.id or "rule") .. ".lua", o.settings or {}
    local report = { ok = true, diagnostics = {}, sampleRuns = {}, file = file }
    local lines = {}
    for text in (o.source .. "\n"):gmatch("(.-)\r?\n") do lines[#lines + 1] = text end
    local function out(code, message, place, hint)
        place = place or {}
        local severity = place.severity or "error"
        if severity == "error" then report.ok = false end
        local line = place.line and place.line > 0 and place.line or nil
        report.diagnostics[#report.diagnostics + 1] = { severity = severity, code = code, file = file, line = line,
            column = place.column or hint and column_of(lines, line, message:match("'([%w_]+)'")) or column_of(lines, line,
                message:match("'([%w_]+)'")), message = message, hint = hint, budget = place.budget, sample = place.sample,
            stack = place.stack, docsUrl = M.DOCS }
    end
    local function done()
        json.array(report.diagnostics)
        json.array(report.sampleRuns)
        return report
    end

    if #o.source > SOURCE_MAX then
        out("syntax", "the file is longer than 64 KiB")
        return done()
    end
    if o.source:byte(1) == 27 then
        out("syntax", "bytecode is not taken; a rule is text")
        return done()
    end
    local fair, unfair, at = rules.fair(o.source)
    if not fair then
        out("syntax", unfair, { line = at })
        return done()
    end
    local fn, why = loadstring(o.source, "=" .. file, "t")
    if not fn then
        local line, message = tostring(why):match(":(%d+): (.*)$")
        out("syntax", message or tostring(why), { line = tonumber(line) })
        return done()
    end
    local found = global_findings(fn, out, lines)
    report.code = {}
    code_lines(fn, report.code, { depth = 0 })

    local hook_name = o.hook or o.source:match("hook%s*=%s*[\"']([%w_.]+)[\"']") or "promotion"
    local hook = catalogue.get(hook_name)
    if not hook then
        local names = {}
        for _, name in ipairs(catalogue.names()) do names[name] = true end
        local near = nearest(hook_name, names)
        out("manifest_field", ("'%s' is no hook"):format(hook_name), {}, near and ("did you mean '%s'?"):format(near))
        return done()
    end
    local base = assert(rules.pin(SCRATCH))
    local id = o.id or "rule"
    local spec = { id = id, hook = hook_name, name = "rule", source = o.source, libs = o.libs, priority = settings.priority,
        number = 0 }
    local set = assert(base:with(spec))
    local index
    for _, rule in ipairs(set:list(hook_name)) do
        if rule.id == id then index = rule.index end
    end
    local manifest, failure = set:describe(index)
    if not manifest then
        local code, message, hint = M.told(failure)
        if code == "runtime_error" and message:find("is not available in rules", 1, true) then code = "forbidden_global" end
        -- What the walk has found already needs no second finding from the run that fell over it.
        local same = false
        for _, d in ipairs(report.diagnostics) do same = same or d.line == failure.line and message:find(d.message, 1, true) end
        if not same then out(code, message, { line = failure.line }, hint) end
        return done()
    end
    report.manifest = manifest
    if manifest.needs ~= nil and hook.kind ~= "route" and hook.kind ~= "workflow" then
        out("manifest_field", "'needs' is for route and workflow rules")
    end
    for _, field in ipairs{ "path", "method", "access", "query", "body", "headers", "returns" } do
        if manifest[field] ~= nil and hook.kind ~= "route" then out("manifest_field", ("'%s' is for route rules"):format(field)) end
    end
    for _, field in ipairs{ "on", "steps" } do
        if manifest[field] ~= nil and hook.kind ~= "workflow" then out("manifest_field", ("'%s' is for workflow rules"):format(field)) end
    end
    if hook.kind ~= "library" then capability_findings(found, manifest, hook, out, lines) end
    needs_findings(manifest, out)
    templates.findings(hook_name, lines, out, nearest)
    if hook.kind == "library" then return done() end
    if hook.kind == "route" then
        local _, problems = mounted.read(manifest)
        for _, problem in ipairs(problems) do
            local line
            for i, text in ipairs(lines) do
                line = line or text:find("%f[%w_]" .. (problem:match("^'?(%w+)") or "path") .. "%s*=") and i
            end
            out("manifest_field", problem, { line = line or nil })
        end
    end
    if hook.kind == "workflow" then report.plan = workflow.findings(manifest, out, lines, nearest) end
    if not report.ok then return done() end

    spec.name, spec.on_error = manifest.name, settings.on_error or manifest.on_error
    spec.priority = settings.priority or manifest.priority or 0
    local fallback = settings.fallback or manifest.fallback
    if fallback and type(fallback) == "table" and fallback[1] ~= nil then
        local ok, wrong = catalogue.check(catalogue.types.list(catalogue.operation), fallback)
        if not ok then out("invalid_result", "fallback: " .. wrong) end
        spec.fallback = json.encode(fallback)
    elseif spec.on_error == "fallback" and hook_name == "promotion" then
        out("manifest_field", "on_error is fallback, and there is no fallback")
    end
    local window_wrong = window.wrong(settings)
    if window_wrong then out("config_invalid", window_wrong) end
    spec.config = M.config_text(settings.config)
    report.spec = spec
    set = assert(base:with(spec))
    local ready
    ready, failure = set:describe(index) -- loads it with its config
    if not ready then
        local code, message, hint = M.told(failure)
        out(code, message, { line = failure.line }, hint)
        return done()
    end
    if hook.kind == "hook" then
        local inputs = hook.quote and samples.quotes(hook_name, settings.config) or catalogue.samples(hook)
        for i, o_ in ipairs(check_input.overwritten(o.source, hook.input)) do
            if i > FINDINGS_MAX then break end
            out("readonly", ("'%s' of the input is overwritten: nobody else sees that, an answer is what counts"):format(o_.field),
                { line = o_.line, column = o_.column, severity = "warning" })
        end
        M.covering(report, id, function() report.sampleRuns = try(set, id, hook, out, inputs) end)
    elseif hook.kind == "workflow" then
        for _, rule in ipairs(set:list(hook_name)) do
            if rule.id == id then report.sampleRuns = workflow.try(set, rule, report.plan, out, M) end
        end
    end
    return done()
end

return M
