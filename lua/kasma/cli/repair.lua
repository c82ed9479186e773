-- kasma repair: brings back what a lost store took with it.
local time = require("core.time")
local args_of = require("kasma.cli.args")

local M = {}

M.usage = [[
kasma repair queues --since TIME|Nh|Nm [--lost] [--tenant KEY]

Hands the jobs that were committed since then to the queues again, from the outbox, which keeps them for seven days: after Redis was lost
or went back to an older state. Jobs of the last day that Redis still knows are left alone; further back that cannot be told, and --lost
must say that Redis was lost. Handlers are idempotent, a mail that was sent is not sent again. Schedules come back by themselves.

  kasma repair queues --since 2h
  kasma repair queues --since 2026-11-29T03:00:00Z --lost
]]

local DAY_MS, KEPT_MS = 86400000, 7 * 86400000

local function since_of(text)
    local n, unit = tostring(text or ""):match("^(%d+)([hm])$")
    if n then return time.now() - tonumber(n) * (unit == "h" and 3600000 or 60000) end
    local ms = text and time.parse(text)
    if not ms or ms > time.now() then error({ usage = "--since needs a time that is over, or hours or minutes: 2h, 30m" }, 0) end
    return ms
end

local function queues(args)
    local since = since_of(args.since)
    local age = time.now() - since
    if age > KEPT_MS then error({ usage = "the outbox keeps what was sent for seven days" }, 0) end
    if age > DAY_MS and not args.lost then
        error({ usage = "of jobs older than a day it cannot be told whether Redis had them: --lost says that it was lost" }, 0)
    end
    require("kasma.boot").load()
    local tenants, total = require("kasma.outbox").again("job", since, args.tenant), 0
    for tenant, n in pairs(tenants) do
        total = total + n
        require("kasma.mail").release(tenant, since)
    end
    io.stdout:write(("%d job%s of the outbox go%s to the queues again; kasma outbox shows what waits\n"):format(total,
        total == 1 and "" or "s", total == 1 and "es" or ""))
end

---@param words string[] what follows `kasma repair`
---@return integer exit 0 done, 1 failed, 2 wrong use
function M.run(words)
    if words[1] == "--help" then
        io.stdout:write(M.usage)
        return 0
    end
    local args, bad = args_of({ unpack(words, 2) }, { since = true, lost = false, tenant = true })
    if words[1] ~= "queues" or not args or args[1] then
        io.stderr:write(bad and "kasma repair: " .. bad .. "\n\n" or "", M.usage)
        return 2
    end
    local ok, why = pcall(queues, args)
    if ok then return 0 end
    if type(why) == "table" and why.usage then
        io.stderr:write("kasma repair: ", why.usage, "\n")
        return 2
    end
    return require("kasma.cli.failure")("repair", why)
end

return M
