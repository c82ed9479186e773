-- The rule commands that listen: what runs cost as they happen, and what the workers of a server load.
local time = require("core.time")
local report = require("kasma.cli.rules.report")
local target = require("kasma.cli.rules.target")

local M = {}

local commands = {}
M.commands = commands

local function clock(ms)
    local iso = time.iso(tonumber(ms) or time.now())
    return iso:match("T(%d%d:%d%d:%d%d)") or iso
end

local function run_line(r)
    return ("%s  %-28s %-5s %-19s %9s of %s instructions  %6.2f ms  %5.2f MiB  %s"):format(clock(r.at), tostring(r.rule),
        r.version == 0 and "file" or "v" .. tostring(r.version), tostring(r.outcome), report.commas(tonumber(r.instructions) or 0),
        report.commas(tonumber(r.limit) or 0), (tonumber(r.micros) or 0) / 1000, (tonumber(r.heap) or 0) / 1048576,
        tostring(r.message or r.reason or ""))
end

--- kasma rules tail [KEY]: runs with the budget that they used, until interrupted (or --count of them).
function commands.tail(args)
    local key, left = args[2], tonumber(args.count) or math.huge
    target.of(args):events("/rules/stream", { runs = true }, function(event, payload)
        if event ~= "runs" or type(payload.runs) ~= "table" then return true end
        for _, r in ipairs(payload.runs) do
            if (not key or r.rule == key) and (not args.failed or r.outcome ~= "ok") and left > 0 then
                left = left - 1
                if args.json then report.answer(args, r, "") else report.write(run_line(r), "\n") end
            end
        end
        if (tonumber(payload.left) or 0) > 0 and not args.json then
            report.write(("          and %d more that are not shown\n"):format(payload.left))
        end
        io.stdout:flush()
        return left > 0
    end)
    return 0
end

return M
