-- kasma outbox: what waits for its delivery and what nobody could deliver.
local json = require("core.json")
local args_of = require("kasma.cli.args")
local given = require("kasma.cli.given")
local outbox = require("kasma.outbox")

local M = {}

M.usage = [[
kasma outbox [status] [--json]
kasma outbox list [--parked] [--tenant KEY] [--topic TOPIC] [--limit N] [--json]
kasma outbox show ID [--json]
kasma outbox retry ID | --all [--tenant KEY] [--topic TOPIC]
kasma outbox park ID
kasma outbox drop ID

status counts what waits, per topic, and what is parked. A row that could not be delivered is tried twelve times over some six
minutes, then parked (at once when it is wrong in itself): the rows behind it go on, it waits for retry or drop. park takes a row
out of the relay's way by hand.

  kasma outbox list --parked
  kasma outbox retry --all --topic job
]]

local commands = {}

function commands.status(args)
    local waiting, parked = outbox.waiting(), outbox.parked()
    if args.json then
        io.stdout:write(json.encode({ waiting = waiting.n, oldest = waiting.oldest, parked = parked }), "\n")
        return
    end
    io.stdout:write(("%d rows wait%s, %d are parked\n"):format(waiting.n,
        waiting.oldest and (", the oldest since " .. waiting.oldest) or "", parked))
end

function commands.list(args)
    local rows = outbox.list{ tenant = args.tenant, topic = args.topic, parked = args.parked,
        limit = given.number(args.limit, "limit", 50, 1, 1000) }
    if args.json then return given.print_rows(rows) end
    for _, row in ipairs(rows) do
        io.stdout:write(("%s  %-16s %-24s %s  x%d%s%s\n"):format(row.id, row.tenant_key, row.topic, row.created_at:sub(1, 19), row.attempts,
            row.parked_at and "  parked" or "", row.error and ("  " .. row.error:gsub("\n.*", "")) or ""))
    end
end

local function id_of(args)
    if not args[1] then error({ usage = "an ID is missing; kasma outbox list shows them" }, 0) end
    if not require("kasma.schema").is_uuid(args[1]) then
        error({ usage = args[1] .. " is no ID of a row; kasma outbox list shows them" }, 0)
    end
    return args[1]
end

function commands.show(args)
    local row = outbox.show(id_of(args))
    if not row then error("there is no such row", 0) end
    if args.json then return io.stdout:write(json.encode(row), "\n") end
    for _, name in ipairs{ "id", "seq", "tenant_key", "topic", "key", "created_at", "sent_at", "attempts", "parked_at", "error" } do
        io.stdout:write(("%-12s %s\n"):format(name, tostring(row[name] or "-")))
    end
    io.stdout:write("payload      ", json.encode(row.payload), "\n")
end

function commands.retry(args)
    local n = outbox.retry{ id = not args.all and id_of(args) or nil, tenant = args.tenant, topic = args.topic }
    io.stdout:write(n, n == 1 and " row goes" or " rows go", " out again\n")
    if n == 0 and not args.all then error("this row is not parked", 0) end
end

function commands.park(args)
    if not outbox.park(id_of(args)) then error("this row does not wait", 0) end
    io.stdout:write("parked\n")
end

function commands.drop(args)
    if not outbox.drop(id_of(args)) then error("this row is not parked", 0) end
    io.stdout:write("dropped\n")
end

---@param words string[] what follows `kasma outbox`
---@return integer exit 0 done, 1 failed, 2 wrong use
function M.run(words)
    local command, first = words[1] or "status", 2
    if command == "--help" then
        io.stdout:write(M.usage)
        return 0
    end
    if command:sub(1, 2) == "--" then command, first = "status", 1 end
    local args, bad = args_of({ unpack(words, first) }, { tenant = true, topic = true, limit = true, parked = false, all = false,
        json = false })
    if not commands[command] then bad = command .. " is not known here" end
    if bad or not args or #args > 1 then
        io.stderr:write(bad and ("kasma outbox: " .. bad .. "\n\n") or "", M.usage)
        return 2
    end
    local ok, why = pcall(commands[command], args)
    if ok then return 0 end
    if type(why) == "table" and why.usage then
        io.stderr:write("kasma outbox: ", why.usage, "\n")
        return 2
    end
    return require("kasma.cli.failure")("outbox", why)
end

return M
