-- The rule commands on a server or on the stores of this installation: each is what the routes under /rules offer, as words.
local json = require("core.json")
local sched = require("core.sched")
local time = require("core.time")
local files = require("kasma.cli.rules.files")
local report = require("kasma.cli.rules.report")
local target = require("kasma.cli.rules.target")

local M = {}

local commands = {}
M.commands = commands

local escaped = target.escaped
local function usage(message) error({ usage = message }, 0) end
local function present(v) if v == json.null then return nil end return v end

---@param args table
---@param i integer
---@param what string
---@return string
function M.need(args, i, what)
    if not args[i] then usage(what .. " is needed") end
    return args[i]
end
local need = M.need

---@param args table
---@return string
function M.note(args)
    if not args.note then usage("a note is needed: -m NOTE") end
    return args.note
end

local function whole(text, what)
    local n = tonumber(text)
    if not n or n < 1 or n % 1 ~= 0 then usage(what .. " is a whole number, not " .. tostring(text)) end
    return n
end

local function path_of(key, rest) return "/rules/" .. escaped(key) .. (rest or "") end

function commands.list(args)
    local list, lines = target.of(args):get("/rules", { hook = args.hook, state = args.state }), {}
    for i, r in ipairs(list) do
        lines[i] = ("%-28s %-20s %-9s %-8s %s"):format(r.key, r.hook, r.state, present(r.activeVersion) and "v" .. r.activeVersion or "-",
            r.name)
    end
    return report.answer(args, list, #lines > 0 and table.concat(lines, "\n") or "no rules")
end

function commands.show(args)
    local rule = target.of(args):get(path_of(need(args, 2, "a key"), "/draft"))
    return report.answer(args, rule, ("%s  %s  %s  priority %d\ndraft r%d, settings %s\n\n%s"):format(rule.key, rule.hook, rule.state,
        rule.priority, rule.draft.revision, json.encode(rule.draft.settings), rule.draft.source), rule.diagnostics, rule.draft.source)
end

--- Makes the rule, or saves its draft, out of a file and the tests beside it.
---@param server kasma.RulesTarget
---@param o {file: string, key: string|nil, config: table|nil}
---@return table saved as the route answers it
---@return string source
function M.save_draft(server, o)
    local source = files.read(o.file) or usage(o.file .. " cannot be read")
    local tests = files.read(files.test_file(o.file)) or ""
    local key = o.key or o.file:match("([^/]+)%.lua$")
    local there, rule = pcall(server.get, server, path_of(key, "/draft"))
    if not there and not (type(rule) == "table" and rule.status == 404) then error(rule, 0) end
    if there then
        local settings = rule.draft.settings
        if o.config then settings.config = o.config end
        return server:post(path_of(key, "/draft"), { revision = rule.draft.revision, source = source, tests = tests,
            settings = settings }), source
    end
    return server:post("/rules/create", { key = key, hook = source:match("hook%s*=%s*[\"']([%w_.]+)[\"']") or "promotion",
        name = source:match("name%s*=%s*\"([^\"]+)\"") or key, source = source, tests = tests, settings = { config = o.config } }), source
end

local function push_file(args)
    local config = args.config and (json.decode(args.config) or usage("--config is no JSON"))
    local saved, source = M.save_draft(target.of(args), { file = need(args, 2, "a file"), key = args.key, config = config })
    local ok = true
    for _, d in ipairs(saved.diagnostics) do ok = ok and d.severity ~= "error" end
    report.answer(args, { key = saved.key, revision = saved.draft.revision, diagnostics = saved.diagnostics },
        ("%s  draft r%d  %s"):format(saved.key, saved.draft.revision, ok and "checked" or "does not pass its check"), saved.diagnostics,
        source)
    return ok and 0 or 1
end

function commands.push(args)
    if args.plan or args.apply then return require("kasma.cli.rules.sync").push(args) end
    return push_file(args)
end

local POLL_MS, PREVIEW_MS = 300, 900000

-- A preview over many orders goes on in the background of a server; on this machine it is done here.
local function await_preview(server, id)
    if not server.remote then require("modules.rules.preview").work(server.scope.tenant, server.scope.app, id) end
    local deadline = time.mono() + PREVIEW_MS * 1000
    while true do
        local row = server:get("/rules/previews/" .. escaped(id))
        if row.state == "done" then return row.result end
        if row.state == "failed" or row.state == "cancelled" then
            error({ status = 422, message = "the preview " .. row.state .. (present(row.result) and ": " .. tostring(row.result.message)
                or "") }, 0)
        end
        if time.mono() > deadline then error({ unreachable = true, message = "the preview takes too long" }, 0) end
        sched.sleep(POLL_MS)
    end
end

local function preview_lines(result)
    local t, commas = result.totals, report.commas
    local lines = { ("%s against %s, %d orders: %d changed, %d the same, %d failed"):format(result.compare.to, result.compare.from,
        result.against.used, result.changed, result.same, result.failed),
        ("  before %s  after %s  delta %s %s  (net %s, tax %s)"):format(commas(t.before), commas(t.after), commas(t.delta),
            present(t.currency) or "", commas(t.merchandiseNet), commas(t.tax)) }
    for i = 1, math.min(10, #result.orders) do
        local o = result.orders[i]
        lines[#lines + 1] = ("  %-20s %14s -> %14s  %14s"):format(tostring(present(o.orderNumber) or ""), commas(o.before),
            commas(o.after), commas(o.delta))
    end
    local skipped = result.against.skipped
    if skipped[1] then lines[#lines + 1] = ("  %d skipped: %s"):format(#skipped, tostring(skipped[1].reason)) end
    for _, i in ipairs(result.interactions) do lines[#lines + 1] = ("  stacks with %s: %d orders"):format(i.with, i.orders) end
    return table.concat(lines, "\n")
end

function commands.preview(args)
    local server, key = target.of(args), need(args, 2, "a key")
    local limit = args["fail-if-delta-below"] and (tonumber((args["fail-if-delta-below"]:gsub("%%$", "")))
        or usage("--fail-if-delta-below is a number of per cent, such as -2%"))
    local body = { orderId = args.order, at = args.at, compareTo = tonumber(args.vs) or args.vs,
        version = tonumber(args.version) or args.version }
    if args.cart then
        local text = files.read(args.cart) or usage(args.cart .. " cannot be read")
        body.cart = json.decode(text) or usage(args.cart .. " is no JSON")
    elseif not args.order then
        body.orders = { last = whole(args.orders or "50", "--orders") }
    end
    local result, status = server:post(path_of(key, "/preview"), body)
    if status == 202 then result = await_preview(server, result.previewId) end
    local t = result.totals
    local per_cent = t.before > 0 and t.delta * 100 / t.before or 0
    local findings = {}
    if result.failed > 0 then
        local f = present(result.firstFailure) or {}
        findings[1] = { severity = "error", code = present(f.outcome) or "failed", file = key .. ".lua", line = present(f.line),
            message = ("%d of %d failed%s"):format(result.failed, result.against.used, present(f.message) and ": " .. f.message or "") }
    end
    if limit and per_cent < limit then
        findings[#findings + 1] = { severity = "error", code = "delta_below", file = key .. ".lua",
            message = ("the totals change by %.2f %%, which is below %g %%"):format(per_cent, limit) }
    end
    report.answer(args, result, preview_lines(result), report.form(args) ~= "json" and findings or nil)
    return #findings > 0 and 1 or 0
end

local function told(done)
    return ("version %d  epoch %d  live on %d of %d workers"):format(done.version, done.epoch, done.live.loaded, done.live.workers)
end

function commands.publish(args)
    local server, key, note = target.of(args), need(args, 2, "a key"), M.note(args)
    local draft = server:get(path_of(key, "/draft")).draft
    local body, status = server:post(path_of(key, "/publish"), { revision = draft.revision, note = note, at = args.at,
        ["until"] = args["until"], acceptWarnings = json.array(args.accept) })
    return report.answer(args, body, status == 202 and ("%s  %s, request %s"):format(key, body.state, body.requestId)
        or key .. "  " .. told(body))
end

function commands.rollback(args)
    local version = whole(need(args, 3, "a version"), "the version")
    local done = target.of(args):post(path_of(need(args, 2, "a key"), "/rollback"), { toVersion = version, note = M.note(args) })
    return report.answer(args, done, args[2] .. "  " .. told(done))
end

for _, verb in ipairs{ "disable", "enable", "remove", "restore" } do
    commands[verb] = function(args)
        local rule = target.of(args):post(path_of(need(args, 2, "a key"), "/" .. verb), { reason = M.note(args) })
        return report.answer(args, { key = rule.key, state = rule.state }, rule.key .. "  " .. rule.state)
    end
end

for _, verb in ipairs{ "pause", "resume" } do
    commands[verb] = function(args)
        local done = target.of(args):post("/rules/" .. verb, { hook = args.hook, reason = M.note(args) })
        return report.answer(args, done, done.hooks[1] and ("paused: %s  %d live rule%s stand%s still"):format(
            table.concat(done.hooks, ", "), done.paused, done.paused == 1 and "" or "s", done.paused == 1 and "s" or "")
            or "nothing is paused")
    end
end

for _, verb in ipairs{ "approve", "reject", "cancel" } do
    commands[verb] = function(args)
        local done = target.of(args):post("/rules/requests/" .. escaped(need(args, 2, "a request")) .. "/" .. verb,
            { note = M.note(args) })
        return report.answer(args, done, done.version and told(done) or done.state)
    end
end

function commands.log(args)
    local list, lines = target.of(args):get(path_of(need(args, 2, "a key"), "/versions")), {}
    for i, v in ipairs(list) do
        lines[i] = ("%s v%-4d %s  %s%s"):format(v.active and "*" or " ", v.version, v.publishedAt, v.note, present(v.sourceVersion)
            and " (as version " .. v.sourceVersion .. ")" or "")
    end
    return report.answer(args, list, #lines > 0 and table.concat(lines, "\n") or "never published")
end

function commands.diff(args)
    local path = path_of(need(args, 2, "a key"), "/versions/" .. escaped(need(args, 3, "a version")) .. "/diff/"
        .. escaped(need(args, 4, "another version")))
    local server = target.of(args)
    if report.form(args) == "json" then return report.answer(args, server:get(path), "") end
    local text = server:get(path, { format = "unified" }).unified
    return report.answer(args, nil, text ~= "" and (text:gsub("\n$", "")) or "no difference")
end

function commands.runs(args)
    local list = target.of(args):get(path_of(need(args, 2, "a key"), "/runs"), { outcome = args.failed and "failed" or nil })
    local lines = {}
    for i, r in ipairs(list) do
        lines[i] = ("%s  %s  v%d  %-19s %s%8d instructions  %s"):format(r.id, r.at, r.version, r.outcome, present(r.line)
            and "line " .. r.line .. "  " or "", r.instructions, present(r.message) or "")
    end
    return report.answer(args, list, #lines > 0 and table.concat(lines, "\n") or "no runs are kept")
end

function commands.replay(args)
    local result = target.of(args):post("/rules/runs/" .. escaped(need(args, 2, "a run")) .. "/replay",
        { version = args.version == "draft" and "draft" or args.version and whole(args.version, "the version") or nil })
    local function text(o) return ("%s%s%s"):format(o.outcome, o.total and "  total " .. report.commas(o.total) or "", present(o.message)
        and "  " .. o.message or "") end
    report.answer(args, result, ("before  %s\nafter   %s\n%s"):format(text(result.before), text(result.after), result.same and "the same"
        or "different"))
    return result.same and 0 or 1
end

return M
