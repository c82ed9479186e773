-- kasma rules: checks, tests, previews and publishes rules.
local json = require("core.json")
local args_of = require("kasma.cli.args")

local M = {}

M.usage = [[
kasma rules COMMAND [...] [--tenant T] [--json] [--format text|json|junit|sarif]

Without a server, on files:
  new KEY --hook H [--template T] [--dir D]    writes D/KEY.lua and D/KEY_test.lua
  check [PATH..]                      syntax, names, manifest, config, runs on samples; findings with file, line, column and hint
  test [PATH..] [--only NAME]         runs PATH's tests (NAME_test.lua beside NAME.lua)
  watch [DIR]                         checks and tests whatever is saved, until interrupted
  stubs [--dir D]                     writes .kasma/kasma.d.lua and .luarc.json for editors
  hooks, templates                    what may be written, and what comes with the product

On the stores of this installation (DATABASE_URL and so on):
  list                                rules with their state
  show KEY                            a rule with its draft
  push FILE [--key K] [--config JSON] creates the rule, or saves its draft, from a file and the tests beside it
  preview KEY (--order N | --orders N) [--vs active|none|N] [--at TIME] [--fail-if-delta-below PERCENT]
  publish KEY -m NOTE [--at TIME] [--until TIME] [--accept CODE]...
  rollback KEY VERSION -m NOTE
  disable KEY -m NOTE, enable KEY -m NOTE, pause -m NOTE [--hook H], resume -m NOTE [--hook H]
  log KEY, diff KEY A B               versions; what differs (B may be draft)
  runs KEY [--failed], replay RUN [--version N]

Ends with 0, 1 when there are findings, 2 on wrong use, 3 when it is refused, 4 on a conflict, 5 when a store cannot be reached.

  kasma rules check rules/
  kasma rules publish b2g1_weekend -m "weekend tea" --tenant demo
]]

local KNOWN = { tenant = true, json = false, format = true, hook = true, template = true, dir = true, only = true, key = true,
    config = true,
    order = true, orders = true, vs = true, at = true, ["until"] = true, accept = "list", note = true, failed = false, version = true,
    ["fail-if-delta-below"] = true, once = false }

local function write(...) io.stdout:write(...) end

local function read(path)
    local file = io.open(path, "r")
    if not file then return nil end
    local text = file:read("*a")
    file:close()
    return text
end

local function save(path, text)
    local folder = path:match("^(.*)/[^/]+$")
    if folder then os.execute("mkdir -p '" .. folder:gsub("'", "'\\''") .. "'") end
    local file, why = io.open(path, "w")
    if not file then error({ usage = why }, 0) end
    file:write(text)
    file:close()
end

local function exists(path)
    local file = io.open(path, "r")
    if file then file:close() end
    return file ~= nil
end

local function usage(message) error({ usage = message }, 0) end

-- Files ----------------------------------------------------------------------------------------------------------------------------

local function files_below(path)
    local found, list = assert(io.popen("find '" .. path:gsub("'", "'\\''") .. "' -name '*.lua' -type f 2>/dev/null | sort")), {}
    for file in found:lines() do
        if not file:find("_test%.lua$") and not file:find("/active/", 1, true) and not file:find("/.kasma/", 1, true) then
            list[#list + 1] = file
        end
    end
    found:close()
    return list
end

local function files_of(args)
    local paths, list = {}, {}
    for i = 2, #args do paths[#paths + 1] = args[i] end
    if #paths == 0 then paths = { exists("rules/active/demo.lua") and "rules" or "." } end
    for _, path in ipairs(paths) do
        local found = files_below(path)
        if #found == 0 then usage(path .. ": no rule there") end
        for _, file in ipairs(found) do list[#list + 1] = file end
    end
    return list
end

-- What a file's check and tests say. A config comes from the tests beside it.
local function look(file, only)
    local check, tests = require("modules.rules.check"), require("modules.rules.tests")
    local source = read(file)
    if not source then usage(file .. " cannot be read") end
    local key = file:match("([^/]+)%.lua$")
    local test_file = file:gsub("%.lua$", "_test.lua")
    local test_source = read(test_file)
    local out = { file = file, diagnostics = {}, source = source }
    local plan, finding
    if test_source then
        plan, finding = tests.read(test_source, test_file)
        if finding then out.diagnostics[1] = finding end
    end
    local libs = {}
    for name in source:gmatch("%f[%w_]lib%s*%(?%s*[\"']([%w_-]+)[\"']") do
        local text = read(file:gsub("[^/]+$", name .. ".lua"))
        if text then libs[#libs + 1] = { key = name, source = text } end
    end
    local report = check.run{ source = source, file = file, id = key, settings = { config = plan and plan.config }, libs = libs }
    for _, d in ipairs(report.diagnostics) do
        -- A merchant's choice that nobody has made yet is no fault of the rule.
        if d.code == "config_invalid" and not (plan and plan.config) and d.message:find("is required", 1, true) then
            d.severity = "info"
            d.hint = "a config in the tests beside the file lets it be tried"
        end
        out.diagnostics[#out.diagnostics + 1] = d
    end
    out.manifest, out.sampleRuns = report.manifest, report.sampleRuns
    if plan and report.spec and only ~= false then
        out.tests, finding = tests.run{ spec = report.spec, hook = report.spec.hook, tests = test_source, file = test_file, only = only }
        if finding then out.diagnostics[#out.diagnostics + 1] = finding end
    end
    out.errors = 0
    for _, d in ipairs(out.diagnostics) do
        if d.severity == "error" then out.errors = out.errors + 1 end
    end
    return out
end

local function line_of(source, n)
    local i = 0
    for text in (source .. "\n"):gmatch("(.-)\n") do
        i = i + 1
        if i == n then return text end
    end
end

local function with_commas(n)
    local s = ("%d"):format(n)
    local sign, digits = s:match("^(-?)(%d+)$")
    return sign .. digits:reverse():gsub("(%d%d%d)", "%1,"):reverse():gsub("^,", "")
end

local function show(d, source)
    write(("%s%s%s: %s: %s\n"):format(d.file or "", d.line and ":" .. d.line or "", d.column and ":" .. d.column or "", d.code, d.message))
    if d.line and source and d.file and not d.file:find("_test%.lua$") then
        for n = d.line - 1, d.line do
            local text = n > 0 and line_of(source, n)
            if text then write(("  %s%4d | %s\n"):format(n == d.line and ">" or " ", n, text)) end
        end
    end
    if d.hint then write("  hint: ", d.hint, "\n") end
    if d.budget and d.severity ~= "info" and d.budget.instructions.used > 0 then
        write(("  used %s of %s instructions, %.1f of %d MiB, %.1f of %d ms%s\n"):format(with_commas(d.budget.instructions.used),
            with_commas(d.budget.instructions.limit), d.budget.heap.used / 1048576, d.budget.heap.limit / 1048576,
            d.budget.wallMicros.used / 1000, d.budget.wallMicros.limit / 1000, d.sample and " on the sample '" .. d.sample .. "'" or ""))
    end
end

local function sarif(results)
    local list, rules, seen = json.array{}, json.array{}, {}
    for _, r in ipairs(results) do
        for _, d in ipairs(r.diagnostics) do
            if not seen[d.code] then
                seen[d.code] = true
                rules[#rules + 1] = { id = d.code }
            end
            list[#list + 1] = { ruleId = d.code, level = d.severity == "info" and "note" or d.severity,
                message = { text = d.message .. (d.hint and " (" .. d.hint .. ")" or "") },
                locations = json.array{ { physicalLocation = { artifactLocation = { uri = r.file },
                    region = { startLine = d.line or 1, startColumn = d.column or 1 } } } } }
        end
    end
    return json.encode{ version = "2.1.0", ["$schema"] = "https://json.schemastore.org/sarif-2.1.0.json", runs = json.array{ {
        tool = { driver = { name = "kasma rules check", rules = rules } }, results = list } } }
end

local function escape(text)
    return (tostring(text):gsub("[&<>\"]", { ["&"] = "&amp;", ["<"] = "&lt;", [">"] = "&gt;", ["\""] = "&quot;" }))
end

local function junit(results)
    local out = { "<?xml version=\"1.0\" encoding=\"UTF-8\"?>", "<testsuites>" }
    for _, r in ipairs(results) do
        local t = r.tests or { passed = 0, failed = 0, skipped = 0, cases = {} }
        out[#out + 1] = ("  <testsuite name=\"%s\" tests=\"%d\" failures=\"%d\" errors=\"%d\">"):format(escape(r.file), #t.cases, t.failed,
            r.errors)
        for _, c in ipairs(t.cases) do
            out[#out + 1] = ("    <testcase name=\"%s\">%s</testcase>"):format(escape(c.name), c.ok and "" or "<failure>"
                .. escape(table.concat(c.diff, "\n")) .. "</failure>")
        end
        for _, d in ipairs(r.diagnostics) do
            if d.severity == "error" then
                out[#out + 1] = ("    <testcase name=\"check\"><error>%s</error></testcase>"):format(escape(d.code .. ": " .. d.message))
            end
        end
        out[#out + 1] = "  </testsuite>"
    end
    out[#out + 1] = "</testsuites>"
    return table.concat(out, "\n")
end

local function form_of(args) return args.json and "json" or args.format or "text" end

local commands = {}

function commands.check(args)
    local results, errors_, warnings = {}, 0, 0
    for i, file in ipairs(files_of(args)) do
        results[i] = look(file, false)
        errors_ = errors_ + results[i].errors
        warnings = warnings + #results[i].diagnostics - results[i].errors
    end
    local form = form_of(args)
    if form == "sarif" then
        write(sarif(results), "\n")
    elseif form == "junit" then
        write(junit(results), "\n")
    elseif form == "json" then
        for _, r in ipairs(results) do
            r.source = nil
            json.array(r.diagnostics)
        end
        write(json.encode(json.array(results)), "\n")
    else
        for _, r in ipairs(results) do
            for _, d in ipairs(r.diagnostics) do show(d, r.source) end
            if #r.diagnostics == 0 then write(("%s: ok, %d sample runs\n"):format(r.file, #r.sampleRuns)) end
        end
        write(("%d checked, %d errors, %d other findings\n"):format(#results, errors_, warnings))
    end
    return errors_ > 0 and 1 or 0
end

function commands.test(args)
    local results, passed, failed, broken, skipped = {}, 0, 0, 0, 0
    for i, file in ipairs(files_of(args)) do
        local r = look(file, args.only)
        results[i] = r
        if r.tests then passed, failed, skipped = passed + r.tests.passed, failed + r.tests.failed, skipped + r.tests.skipped end
        broken = broken + r.errors
    end
    local form = form_of(args)
    if form == "junit" then
        write(junit(results), "\n")
    elseif form == "json" then
        for _, r in ipairs(results) do
            r.source = nil
            json.array(r.diagnostics)
        end
        write(json.encode(json.array(results)), "\n")
    else
        for _, r in ipairs(results) do
            for _, d in ipairs(r.diagnostics) do
                if d.severity == "error" then show(d, r.source) end
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

function commands.watch(args)
    local sched = require("core.sched")
    local dir = args[2] or "rules"
    local function stamps()
        local found, list = assert(io.popen("find '" .. dir:gsub("'",
            "'\\''") .. "' -name '*.lua' -type f -printf '%T@ %s %p\\n' 2>/dev/null")), {}
        for line in found:lines() do
            local stamp, file = line:match("^(%S+ %S+) (.*)$")
            if file then list[file] = stamp end
        end
        found:close()
        return list
    end
    local known = stamps()
    local n = 0
    for _ in pairs(known) do n = n + 1 end
    write(("watching %d files below %s; files that rules/active/<tenant>.lua lists are live as they are saved\n"):format(n, dir))
    io.stdout:flush()
    while not sched.stopping() do
        sched.sleep(300)
        local now, changed = stamps(), {}
        for file, stamp in pairs(now) do
            if known[file] ~= stamp then
                local rule = file:gsub("_test%.lua$", ".lua")
                if not rule:find("/active/", 1, true) and now[rule] then changed[rule] = true end
            end
        end
        known = now
        for file in pairs(changed) do
            local r = look(file)
            for _, d in ipairs(r.diagnostics) do show(d, r.source) end
            local t = r.tests
            for _, c in ipairs(t and t.cases or {}) do
                if not c.ok then write(("%s: FAILED %s: %s\n"):format(file, c.name, table.concat(c.diff, "; "))) end
            end
            write(("%s  %s  tests %s\n"):format(file:match("([^/]+)%.lua$"), r.errors > 0 and "refused" or "checked", t and t.passed .. "/"
                .. t.passed + t.failed or "none"))
            io.stdout:flush()
            if args.once then return (r.errors > 0 or t and t.failed > 0) and 1 or 0 end
        end
    end
    return 0
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

function commands.new(args)
    local key = args[2]
    if not key or not key:find("^[a-z0-9][a-z0-9_-]+$") then usage("a key of small letters, digits, _ and - is needed") end
    local hook = args.hook or "promotion"
    if not require("kasma.hooks_catalogue").get(hook) then usage(hook .. " is no hook; see kasma rules hooks") end
    local base = (args.dir or ".") .. "/" .. key
    if exists(base .. ".lua") then usage(base .. ".lua is there already") end
    local source, tests = EMPTY:format(hook, key), EMPTY_TEST
    if args.template then
        local t = require("modules.rules.shipped").find(args.template)
        if not t then usage("there is no template " .. args.template .. "; see kasma rules templates") end
        source, tests = t.source, t.tests
    end
    save(base .. ".lua", source)
    if tests ~= "" then save(base .. "_test.lua", tests) end
    write(("wrote %s.lua%s\n"):format(base, tests ~= "" and " and " .. base .. "_test.lua" or ""))
    return 0
end

function commands.stubs(args)
    for _, file in ipairs(require("modules.rules.stubs").files()) do
        save((args.dir or ".") .. "/" .. file.path, file.text)
        write("wrote ", args.dir or ".", "/", file.path, "\n")
    end
    return 0
end

function commands.hooks(args)
    local catalogue = require("kasma.hooks_catalogue")
    local list = json.array{}
    for i, name in ipairs(catalogue.names()) do
        local h = catalogue.get(name)
        list[i] = { hook = name, area = h.area, summary = h.summary, whenAbsent = h.absent, asked = h.host }
    end
    if form_of(args) == "json" then
        write(json.encode(list), "\n")
    else
        for _, h in ipairs(list) do write(("%-26s %-11s %s%s\n"):format(h.hook, h.area, h.summary, h.asked and ""
            or "  (asked by nobody yet)")) end
    end
    return 0
end

function commands.templates(args)
    local list = require("modules.rules.shipped").list()
    if form_of(args) == "json" then
        write(json.encode(list), "\n")
    else
        for _, t in ipairs(list) do write(("%-40s %-20s %s\n"):format(t.key, t.hook, t.title)) end
    end
    return 0
end

-- On the stores --------------------------------------------------------------------------------------------------------------------

local function scope_of(args)
    local tenant = args.tenant or os.getenv("KASMA_TENANT")
    if not tenant then usage("--tenant or KASMA_TENANT is needed") end
    local row = require("kasma.tenant").by_key(tenant)
    if not row then usage("there is no tenant " .. tenant) end
    require("kasma.boot").load() -- what modules declare, settings among it
    return { tenant = tenant, app = "MASTER", actor_kind = "system" }
end

local function answer(args, value, text)
    if form_of(args) == "json" then write(json.encode(value), "\n") else write(text, "\n") end
    return 0
end

local function need(args, i, what)
    if not args[i] then usage(what .. " is needed") end
    return args[i]
end

local function note_of(args)
    if not args.note then usage("a note is needed: -m NOTE") end
    return args.note
end

function commands.list(args)
    local scope = scope_of(args)
    local list, lines = json.array{}, {}
    for i, r in ipairs(require("modules.rules.service").store.list(scope.tenant, args.hook)) do
        list[i] = { key = r.key, hook = r.hook, name = r.name, state = r.state, activeVersion = r.active_version, priority = r.priority }
        lines[i] = ("%-28s %-20s %-9s %-8s %s"):format(r.key, r.hook, r.state, r.active_version and r.active_version ~= json.null and "v"
            .. r.active_version or "-", r.name)
    end
    return answer(args, list, #lines > 0 and table.concat(lines, "\n") or "no rules")
end

function commands.show(args)
    local scope, rules = scope_of(args), require("modules.rules.service")
    local rule = rules.find(scope.tenant, need(args, 2, "a key"))
    local draft = rules.store.draft(scope.tenant, rule.id)
    return answer(args, { rule = rule, draft = draft }, ("%s  %s  %s  priority %d\ndraft r%d, settings %s\n\n%s"):format(rule.key,
        rule.hook,
        rule.state, rule.priority, draft.revision, json.encode(draft.settings), draft.source))
end

function commands.push(args)
    local scope, rules = scope_of(args), require("modules.rules.service")
    local file = need(args, 2, "a file")
    local source = read(file) or usage(file .. " cannot be read")
    local tests = read((file:gsub("%.lua$", "_test.lua"))) or ""
    local key = args.key or file:match("([^/]+)%.lua$")
    local config = args.config and (json.decode(args.config) or usage("--config is no JSON"))
    local there = require("modules.rules.store").find(scope.tenant, key)
    local rule, draft, report
    if there then
        local old = rules.store.draft(scope.tenant, there.id)
        local settings = old.settings
        if config then settings.config = config end
        rule, draft, report = rules.save(scope, key, { revision = old.revision, source = source, tests = tests, settings = settings })
    else
        local hook = source:match("hook%s*=%s*[\"']([%w_.]+)[\"']") or "promotion"
        rule, draft, report = rules.create(scope, { key = key, hook = hook, name = source:match("name%s*=%s*\"([^\"]+)\"") or key,
            source = source, tests = tests, settings = { config = config } })
    end
    if form_of(args) ~= "json" then
        for _, d in ipairs(report.diagnostics) do show(d, source) end
    end
    answer(args, { key = rule.key, revision = draft.revision, diagnostics = report.diagnostics }, ("%s  draft r%d  %s"):format(rule.key,
        draft.revision, report.ok and "checked" or "does not pass its check"))
    return report.ok and 0 or 1
end

function commands.preview(args)
    local scope = scope_of(args)
    local key = need(args, 2, "a key")
    local preview = require("modules.rules.preview")
    local body = { orderId = args.order, at = args.at, compareTo = tonumber(args.vs) or args.vs, version = tonumber(args.version) }
    if not args.order then body.orders = { last = math.min(tonumber(args.orders) or 50, preview.MAX) } end
    local result = preview.now(scope, key, body)
    local t = result.totals
    local lines = { ("%s against %s, %d orders: %d changed, %d the same, %d failed"):format(result.compare.to, result.compare.from,
        result.against.used, result.changed, result.same, result.failed),
        ("  before %s  after %s  delta %s %s  (net %s, tax %s)"):format(with_commas(t.before), with_commas(t.after), with_commas(t.delta),
            t.currency == json.null and "" or t.currency, with_commas(t.merchandiseNet), with_commas(t.tax)) }
    for i = 1, math.min(10, #result.orders) do
        local o = result.orders[i]
        lines[#lines + 1] = ("  %-20s %14s -> %14s  %14s"):format(tostring(o.orderNumber), with_commas(o.before), with_commas(o.after),
            with_commas(o.delta))
    end
    local skipped = result.against.skipped
    if skipped[1] then lines[#lines + 1] = ("  %d skipped: %s"):format(#skipped, tostring(skipped[1].reason)) end
    for _, i in ipairs(result.interactions) do lines[#lines + 1] = ("  stacks with %s: %d orders"):format(i.with, i.orders) end
    answer(args, result, table.concat(lines, "\n"))
    local limit = args["fail-if-delta-below"] and tonumber((args["fail-if-delta-below"]:gsub("%%", "")))
    if result.failed > 0 then return 1 end
    return limit and t.before > 0 and t.delta * 100 / t.before < limit and 1 or 0
end

local function told(done)
    return ("version %d  epoch %d  live on %d of %d workers"):format(done.version, done.epoch, done.live.loaded, done.live.workers)
end

function commands.publish(args)
    local scope, rules = scope_of(args), require("modules.rules.service")
    local key = need(args, 2, "a key")
    local rule = rules.find(scope.tenant, key)
    local draft = rules.store.draft(scope.tenant, rule.id)
    local status, body = rules.publish(scope, key, { revision = draft.revision, note = note_of(args), at = args.at,
        ["until"] = args["until"],
        acceptWarnings = args.accept })
    return answer(args, body, status == 202 and ("%s, request %s"):format(body.state, body.requestId) or key .. "  " .. told(body))
end

function commands.rollback(args)
    local version = tonumber(need(args, 3, "a version"))
    if not version then usage("the version is a number") end
    local done = require("modules.rules.service").rollback(scope_of(args), need(args, 2, "a key"), { toVersion = version,
        note = note_of(args) })
    return answer(args, done, args[2] .. "  " .. told(done))
end

for _, verb in ipairs{ "disable", "enable", "remove", "restore" } do
    commands[verb] = function(args)
        local rule = require("modules.rules.service")[verb](scope_of(args), need(args, 2, "a key"), note_of(args))
        return answer(args, { key = rule.key, state = rule.state }, rule.key .. "  " .. rule.state)
    end
end

for verb, on in pairs{ pause = true, resume = false } do
    commands[verb] = function(args)
        local done = require("modules.rules.service").pause(scope_of(args), args.hook, note_of(args), on)
        return answer(args, done, #done.paused > 0 and "paused: " .. table.concat(done.paused, ", ") or "nothing is paused")
    end
end

function commands.log(args)
    local scope, rules = scope_of(args), require("modules.rules.service")
    local rule, list, lines = rules.find(scope.tenant, need(args, 2, "a key")), json.array{}, {}
    for i, v in ipairs(rules.store.versions(scope.tenant, rule.id)) do
        local active = rule.active_version == v.version and rule.state == "active"
        list[i] = { version = v.version, note = v.note, publishedAt = v.published_at, sourceVersion = v.source_version, active = active }
        lines[i] = ("%s v%-4d %s  %s%s"):format(active and "*" or " ", v.version, v.published_at, v.note, v.source_version
            and v.source_version ~= json.null and " (as version " .. v.source_version .. ")" or "")
    end
    return answer(args, list, #lines > 0 and table.concat(lines, "\n") or "never published")
end

function commands.diff(args)
    local scope, rules, diff = scope_of(args), require("modules.rules.service"), require("modules.rules.diff")
    local rule = rules.find(scope.tenant, need(args, 2, "a key"))
    local function version(which)
        local v = which == "draft" and rules.store.draft(scope.tenant, rule.id) or tonumber(which) and rules.store.version(scope.tenant,
            rule.id,
            tonumber(which))
        return v or usage("there is no version " .. which)
    end
    local a, b = version(need(args, 3, "a version")), version(need(args, 4, "another version"))
    local body = { source = diff.lines(a.source, b.source), settings = diff.lines(diff.settings(a.settings), diff.settings(b.settings)),
        tests = diff.lines(a.tests, b.tests) }
    local text = diff.unified(body.source, rule.key .. ".lua") .. diff.unified(body.settings, "settings") .. diff.unified(body.tests,
        "tests")
    return answer(args, body, text ~= "" and text:gsub("\n$", "") or "no difference")
end

function commands.runs(args)
    local scope, rules = scope_of(args), require("modules.rules.service")
    local rule = rules.find(scope.tenant, need(args, 2, "a key"))
    local list, lines = rules.store.runs(scope.tenant, rule.id, { outcome = args.failed and "failed" or nil }), {}
    for i, r in ipairs(list) do
        lines[i] = ("%s  %s  v%d  %-19s %s%8d instructions  %s"):format(r.id, r.at, r.version, r.outcome, r.line and r.line ~= json.null
            and "line " .. r.line .. "  " or "", r.instructions, r.message or "")
    end
    return answer(args, json.array(list), #lines > 0 and table.concat(lines, "\n") or "no runs are kept")
end

function commands.replay(args)
    local result = require("modules.rules.preview").replay(scope_of(args), need(args, 2, "a run"), tonumber(args.version))
    local function text(o) return ("%s%s%s"):format(o.outcome, o.total and "  total " .. with_commas(o.total) or "", o.message
        and o.message ~= json.null and "  " .. o.message or "") end
    answer(args, result, ("before  %s\nafter   %s\n%s"):format(text(result.before), text(result.after), result.same and "the same"
        or "different"))
    return result.same and 0 or 1
end

local CODES = { [401] = 3, [403] = 3, [409] = 4, [503] = 5 }

local function refused(why)
    local message = type(why.message) == "table" and table.concat(why.message, "; ") or tostring(why.message or why.kind)
    io.stderr:write("kasma rules: ", message, why.code and why.code ~= "" and " (" .. tostring(why.code) .. ")" or "", "\n")
    for _, d in ipairs(type(why.details) == "table" and why.details.diagnostics or {}) do show(d) end
    if require("kasma.errors").is_unavailable(why) then return 5 end
    return CODES[why.status] or 1
end

---@param words string[]
---@return integer exit status
function M.run(words)
    local cleaned = {}
    for i, word in ipairs(words) do cleaned[i] = word == "-m" and "--note" or word end
    local args, bad = args_of(cleaned, KNOWN)
    if words[1] == "--help" or words[1] == nil then
        write(M.usage)
        return words[1] and 0 or 2
    end
    local command = args and commands[args[1]]
    if not command then
        io.stderr:write("kasma rules: ", bad or tostring(words[1]) .. " is not known here", "\n\n", M.usage)
        return 2
    end
    local ok, result = pcall(command, args)
    if ok then return result end
    if type(result) == "table" and result.usage then
        io.stderr:write("kasma rules: ", tostring(result.usage), "\n")
        return 2
    end
    if type(result) == "table" then return refused(result) end
    io.stderr:write("kasma rules: ", tostring(result), "\n")
    return 1
end

return M
