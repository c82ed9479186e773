-- The rule commands that need no server: on files, with the checker and the sandbox of the server itself.
local json = require("core.json")
local files = require("kasma.cli.rules.files")
local report = require("kasma.cli.rules.report")
local check = require("modules.rules.check")

local M = {}

local commands = {}
M.commands = commands

local write = report.write
local function usage(message) error({ usage = message }, 0) end

local function print_results(results)
    for _, r in ipairs(results) do
        r.source = nil
        r.manifest = check.manifest_body(r.manifest)
        json.array(r.diagnostics)
    end
    io.stdout:write(json.encode(json.array(results)), "\n")
end

function commands.check(args)
    local results, errors_, warnings = {}, 0, 0
    for i, file in ipairs(files.named(args)) do
        results[i] = files.look(file, false)
        errors_ = errors_ + results[i].errors
        warnings = warnings + #results[i].diagnostics - results[i].errors
    end
    local form = report.form(args)
    if form == "sarif" then
        io.stdout:write(report.sarif(results), "\n")
    elseif form == "junit" then
        io.stdout:write(report.junit(results), "\n")
    elseif form == "json" then
        print_results(results)
    else
        for _, r in ipairs(results) do
            for _, d in ipairs(r.diagnostics) do report.finding(d, r.source) end
            if #r.diagnostics == 0 then write(("%s: ok, %d sample runs\n"):format(r.file, #r.sampleRuns)) end
        end
        write(("%d checked, %d errors, %d other findings\n"):format(#results, errors_, warnings))
    end
    return errors_ > 0 and 1 or 0
end

-- A failed case as a finding, for SARIF.
local function with_failures(results)
    for _, r in ipairs(results) do
        for _, c in ipairs(r.tests and r.tests.cases or {}) do
            if not c.ok then
                r.diagnostics[#r.diagnostics + 1] = { severity = "error", code = "test_failed", file = files.test_file(r.file),
                    message = c.name .. ": " .. table.concat(c.diff, "; ") }
            end
        end
    end
    return results
end

function commands.test(args)
    if args.watch then return require("kasma.cli.rules.watch").here(args) end
    local results, passed, failed, broken, skipped = {}, 0, 0, 0, 0
    for i, file in ipairs(files.named(args)) do
        local r = files.look(file, args.only)
        results[i] = r
        if r.tests then passed, failed, skipped = passed + r.tests.passed, failed + r.tests.failed, skipped + r.tests.skipped end
        broken = broken + r.errors
    end
    local form = report.form(args)
    if form == "junit" then
        io.stdout:write(report.junit(results), "\n")
    elseif form == "sarif" then
        io.stdout:write(report.sarif(with_failures(results)), "\n")
    elseif form == "json" then
        print_results(results)
    else
        for _, r in ipairs(results) do
            for _, d in ipairs(r.diagnostics) do
                if d.severity == "error" then report.finding(d, r.source) end
            end
            for _, c in ipairs(r.tests and r.tests.cases or {}) do
                if not c.ok then
                    write(("%s: FAILED %s\n"):format(r.file, c.name))
                    for _, text in ipairs(c.diff) do write("    ", text, "\n") end
                    if c.log then write("    log: ", (c.log:gsub("\n$", ""):gsub("\n", "\n         ")), "\n") end
                end
            end
            if r.tests and r.tests.failed == 0 and r.errors == 0 then
                write(("%s: ok %d%s\n"):format(r.file, r.tests.passed, r.tests.skipped > 0 and ", skipped " .. r.tests.skipped or ""))
            elseif not r.tests and r.errors == 0 then
                write(("%s: no tests\n"):format(r.file))
            end
        end
        write(("ok %d  failed %d%s%s\n"):format(passed, failed, broken > 0 and "  errors " .. broken or "", skipped > 0 and "  skipped "
            .. skipped or ""))
    end
    return (failed > 0 or broken > 0) and 1 or 0
end

local EMPTY = [[
-- What it does, in a sentence.
return {
    hook = "%s",
    name = "%s",
    version = 1,
    config = schema.object{
    },
    run = function(input, config)
        return nil, "nothing to do"
    end,
}
]]
local EMPTY_TEST = [[
return {
    config = {},
    prices = { tea = 120000, mug = 50000 },
    tests = {
        { name = "does nothing yet", given = { now = "2026-11-29T10:00", cart = { tea = 2 } }, expect = { none = true } },
    },
}
]]

local FLOW = [[
-- What it does, in a sentence.
return {
    hook = "workflow",
    name = %q,
    version = 1,
    on = { "order.placed" },
    config = schema.object{
    },
    steps = {
        {
            name = "first", retries = 3,
            run = function(input, config)
                return nil, "nothing to do"
            end,
        },
    },
}
]]

local FLOW_TEST = [[
return {
    config = {},
    tests = {
        { name = "does nothing yet", given = { step = "first", event = { name = "order.placed", id = "o1", data = {} } },
            expect = { reason = "nothing to do", calls = {} } },
    },
}
]]

function commands.new(args)
    local key = args[2]
    if not key or not key:find("^[a-z0-9][a-z0-9_-]+$") then usage("a key of two or more small letters, digits, _ and - is needed") end
    local hook = args.hook or "promotion"
    if not require("kasma.hooks_catalogue").get(hook) then usage(hook .. " is no hook; see kasma rules hooks") end
    local base = (args.dir or ".") .. "/" .. key
    if files.exists(base .. ".lua") then usage(base .. ".lua is there already") end
    local source, tests = EMPTY:format(hook, key), EMPTY_TEST
    if hook == "workflow" then source, tests = FLOW:format(key), FLOW_TEST end
    if args.template then
        local t = require("modules.rules.shipped").find(args.template)
        if not t then usage("there is no template " .. args.template .. "; see kasma rules templates") end
        source, tests = t.source, t.tests
    end
    files.save(base .. ".lua", source)
    if tests ~= "" then files.save(base .. "_test.lua", tests) end
    local made = json.array{ base .. ".lua", tests ~= "" and base .. "_test.lua" or nil }
    local editor = (args.dir or ".") .. "/.kasma/kasma.d.lua"
    if not files.exists(".kasma/kasma.d.lua") and not files.exists(editor) then
        for _, file in ipairs(require("modules.rules.stubs").files()) do
            local path = (args.dir or ".") .. "/" .. file.path
            if not files.exists(path) then
                files.save(path, file.text)
                made[#made + 1] = path
            end
        end
    end
    return report.answer(args, { wrote = made }, "wrote " .. table.concat(made, ", "))
end

function commands.stubs(args)
    local lines, made = {}, json.array{}
    for i, file in ipairs(require("modules.rules.stubs").files()) do
        made[i] = (args.dir or ".") .. "/" .. file.path
        files.save(made[i], file.text)
        lines[i] = "wrote " .. made[i]
    end
    made[#made + 1] = files.save_configs(args.dir or ".")
    lines[#lines + 1] = "wrote " .. made[#made]
    return report.answer(args, { wrote = made }, table.concat(lines, "\n"))
end

function commands.hooks(args)
    local catalogue = require("kasma.hooks_catalogue")
    local list, lines = json.array{}, {}
    for i, name in ipairs(catalogue.names()) do
        local h = catalogue.get(name)
        list[i] = { hook = name, area = h.area, summary = h.summary, whenAbsent = h.absent, asked = h.host }
        lines[i] = ("%-26s %-11s %s%s"):format(name, h.area, h.summary, h.host and "" or "  (asked by nobody yet)")
    end
    return report.answer(args, list, table.concat(lines, "\n"))
end

function commands.templates(args)
    local list, lines = require("modules.rules.shipped").list(), {}
    for i, t in ipairs(list) do lines[i] = ("%-40s %-20s %s"):format(t.key, t.hook, t.title) end
    return report.answer(args, list, table.concat(lines, "\n"))
end

return M
