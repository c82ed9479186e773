-- kasma rules watch: checks and tests whatever is saved below a folder.
local sched = require("core.sched")
local files = require("kasma.cli.rules.files")
local report = require("kasma.cli.rules.report")

local M = {}

local commands = {}
M.commands = commands

local LOOK_MS = 300

-- path -> when and how large; one look at a folder.
local function stamps(dir)
    local found, list = assert(io.popen("find " .. files.quoted(dir)
        .. " -name '*.lua' -type f -printf '%T@ %s %p\\n' 2>/dev/null")), {}
    for line in found:lines() do
        local stamp, file = line:match("^(%S+ %S+) (.*)$")
        if file then list[file] = stamp end
    end
    found:close()
    return list
end

-- The rules whose file, or whose tests, are not as they were.
local function changed_of(known, now)
    local changed, list = {}, {}
    for file, stamp in pairs(now) do
        local rule = file:gsub("_test%.lua$", ".lua")
        if known[file] ~= stamp and not rule:find("/active/", 1, true) and now[rule] and not changed[rule] then
            changed[rule] = true
            list[#list + 1] = rule
        end
    end
    table.sort(list)
    return list
end

-- One file as it was saved: its findings, then a line about it.
local function tell(file)
    local r = files.look(file)
    for _, d in ipairs(r.diagnostics) do report.finding(d, r.source) end
    local t = r.tests
    for _, c in ipairs(t and t.cases or {}) do
        if not c.ok then report.write(("%s: FAILED %s: %s\n"):format(file, c.name, table.concat(c.diff, "; "))) end
    end
    report.write(("%s  %s  tests %s\n"):format(file:match("([^/]+)%.lua$"), r.errors > 0 and "refused" or "checked", t and t.passed .. "/"
        .. t.passed + t.failed or "none"))
    io.stdout:flush()
    return r.errors == 0 and not (t and t.failed > 0)
end

function commands.watch(args)
    local dir = args[2] or "rules"
    local known, n = stamps(dir), 0
    for _ in pairs(known) do n = n + 1 end
    report.write(("watching %d files below %s; files that rules/active/<tenant>.lua lists are live as they are saved\n"):format(n, dir))
    io.stdout:flush()
    while not sched.stopping() do
        sched.sleep(LOOK_MS)
        local now = stamps(dir)
        local changed = changed_of(known, now)
        known = now
        for _, file in ipairs(changed) do
            local ok = tell(file)
            if args.once then return ok and 0 or 1 end
        end
    end
    return 0
end

return M
