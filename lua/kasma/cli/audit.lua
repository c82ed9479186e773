-- kasma audit: proves that the audit trail is whole.
local args_of = require("kasma.cli.args")

local M = {}

M.usage = [[
kasma audit verify [--tenant KEY] [--json]

Recomputes the hash chain of each tenant (or of one) from the documents in MongoDB and holds it against the last hash and the
index rows that PostgreSQL keeps. Names each event that is missing, altered, reordered or extra. It may run beside a live system.

Ends with 0 when every chain is whole, 1 when something was found, 2 on wrong use, 5 when a store cannot be reached.

  kasma audit verify
  kasma audit verify --tenant acme --json
]]

local KINDS = { "missing", "altered", "reordered", "extra" }

local SHOWN = 50

local function print_report(report)
    if report.ok then
        io.stdout:write(("OK    %-20s %d events%s\n"):format(report.tenant, report.events,
            report.trimmed > 0 and (", %d older ones removed by retention"):format(report.trimmed) or ""))
        return
    end
    local counts = {}
    for _, kind in ipairs(KINDS) do
        if report[kind] > 0 then counts[#counts + 1] = ("%d %s"):format(report[kind], kind) end
    end
    io.stdout:write(("FAIL  %-20s %d events: %s\n"):format(report.tenant, report.events, table.concat(counts, ", ")))
    local shown = math.min(#report.findings, SHOWN)
    for i = 1, shown do
        local finding = report.findings[i]
        io.stdout:write(("      %-10s %s%s  %s\n"):format(finding.kind, finding.seq and ("place " .. finding.seq .. "  ") or "",
            finding.id or "-", finding.what))
    end
    local all = report.missing + report.altered + report.reordered + report.extra
    if all > shown then io.stdout:write(("      and %d more (--json names the first thousand)\n"):format(all - shown)) end
end

local function verify(args)
    local config = require("core.config")
    local audit = require("modules.audit.service")
    local keep = tonumber(config.get("AUDIT_RETENTION_DAYS")) or 400
    local json = args.json and require("core.json")
    local bad, tenants, events = 0, 0, 0
    local function one(tenant)
        local report = audit.verify(tenant, keep)
        tenants, events = tenants + 1, events + report.events
        if not report.ok then bad = bad + 1 end
        if json then io.stdout:write(json.encode(report), "\n") else print_report(report) end
        io.stdout:flush()
    end
    if args.tenant then
        if not audit.is_tenant(args.tenant) then
            io.stderr:write("kasma audit: there is no tenant ", args.tenant, "\n")
            return 2
        end
        one(args.tenant)
    else
        audit.each_tenant(one)
        if not json then io.stdout:write(("%d tenants, %d events, %d chains broken\n"):format(tenants, events, bad)) end
    end
    return bad == 0 and 0 or 1
end

---@param words string[] what follows `kasma audit`
---@return integer exit
function M.run(words)
    local args, bad = args_of(words, { tenant = true, json = false, help = false })
    if args and args.help then
        io.stdout:write(M.usage)
        return 0
    end
    if not args or args[1] ~= "verify" or args[2] then
        io.stderr:write(bad and ("kasma audit: " .. bad .. "\n\n") or "", M.usage)
        return 2
    end
    local ok, result = pcall(verify, args)
    if ok then return result end
    return require("kasma.cli.failure")("audit", result)
end

return M
