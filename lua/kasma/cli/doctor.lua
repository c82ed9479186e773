-- kasma doctor: looks at settings and stores, and says what to type where something is wrong.
local args_of = require("kasma.cli.args")

local M = {}

M.usage = [[
kasma doctor [--group NAME]... [--full] [--tenant KEY] [--fix-hints] [--json]

Looks at the settings, at PostgreSQL, Redis and MongoDB, at the work behind the requests, at the shops' rules and books, and at the
machine. A line for each check: OK, WARN or FAIL, what was found, what comes of it, what to try. It changes nothing and may run
beside a live system.

  --group NAME   config, postgres, redis, mongo, work, rules, money or host; may be given several times
  --full         the books of every tenant, all rows, and no sample
  --tenant KEY   the books of this tenant alone
  --fix-hints    print nothing but what to try
  --json         one JSON object: checks, ok, warnings, failed

Ends with 0 when all is well, 1 with warnings, 2 when something failed.

  kasma doctor
  kasma doctor --group redis --group mongo
  kasma doctor --json | jq '.checks[] | select(.state != "ok")'
]]

local GROUPS = { { "config", "kasma.doctor.settings" }, { "postgres", "kasma.doctor.postgres" }, { "redis", "kasma.doctor.redis" },
    { "mongo", "kasma.doctor.mongo" }, { "work", "kasma.doctor.work" }, { "rules", "kasma.doctor.rules" },
    { "money", "kasma.doctor.money" }, { "host", "kasma.doctor.host" } }
local WORD = { ok = "OK", warn = "WARN", fail = "FAIL" }

local function look(wanted, opts)
    local report = require("kasma.doctor.report").new()
    for _, group in ipairs(GROUPS) do
        if not next(wanted) or wanted[group[1]] then
            report.group = group[1]
            local ok, why = pcall(require(group[2]).run, report, opts)
            if not ok then report:fail("unknown", "could not be looked at: " .. require("kasma.doctor.report").why(why)) end
        end
    end
    return report
end

-- Trouble first; what is well follows, a line each.
local function print_text(report)
    for _, state in ipairs{ "fail", "warn", "ok" } do
        for _, finding in ipairs(report.findings) do
            if finding.state == state then
                io.stdout:write(("%-5s %-9s %s\n"):format(WORD[state], finding.group, finding.text))
                if finding.effect then io.stdout:write(("%16seffect: %s\n"):format("", finding.effect)) end
                if finding.hint then io.stdout:write(("%16stry: %s\n"):format("", finding.hint)) end
            end
        end
    end
    local good, warnings, failed = report:counts()
    io.stdout:write(("%d failed, %d warning%s, %d ok\n"):format(failed, warnings, warnings == 1 and "" or "s", good))
end

---@param words string[] what follows `kasma doctor`
---@return integer exit 0 well, 1 warnings, 2 something failed or wrong use
function M.run(words)
    local args, bad = args_of(words, { group = "list", json = false, help = false, ["fix-hints"] = false, full = false, tenant = true })
    if args and args.help then
        io.stdout:write(M.usage)
        return 0
    end
    local wanted = {}
    for _, name in ipairs(args and args.group or {}) do
        local known = false
        for _, group in ipairs(GROUPS) do known = known or group[1] == name end
        if not known then bad = "there is no group " .. name end
        wanted[name] = true
    end
    if args and args.tenant and not require("kasma.tenant").is_key(args.tenant) then bad = args.tenant .. " is no tenant's key" end
    if args and args.tenant and not bad then
        local asked, row = pcall(require("kasma.tenant").by_key, args.tenant)
        if asked and not row then bad = "there is no tenant " .. args.tenant end
    end
    if not args or bad or args[1] then
        io.stderr:write("kasma doctor: ", bad or (args[1] .. " is not known here"), "\n\n", M.usage)
        return 2
    end
    local report = look(wanted, { full = args.full, tenant = args.tenant })
    local good, warnings, failed = report:counts()
    if args.json then
        io.stdout:write(require("core.json").encode({ checks = report.findings, ok = good, warnings = warnings, failed = failed }), "\n")
    elseif args["fix-hints"] then
        for _, finding in ipairs(report.findings) do
            if finding.hint and finding.state ~= "ok" then io.stdout:write(("%-20s %s\n"):format(finding.id, finding.hint)) end
        end
    else
        print_text(report)
    end
    return failed > 0 and 2 or warnings > 0 and 1 or 0
end

return M
