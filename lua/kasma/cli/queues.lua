-- kasma queues: looks at the job queues and moves jobs.
local args_of = require("kasma.cli.args")
local given = require("kasma.cli.given")

local M = {}

M.usage = [[
kasma queues COMMAND [QUEUE] [ID] [--json]

  list                                    queues with their counts
  jobs QUEUE [--state S] [--limit N] [--page N] [--search TEXT] [--whole]
  show QUEUE [ID] [--whole]               a queue, or a job with its log; --whole: as Redis holds it, also secrets and what is long
  add QUEUE                               reads JSON on standard input: {"name", "data", "opts"}, {"bulk": [...]},
                                          {"flow": {...}} or {"scheduler": {"id", "every" or "pattern", "tz", "template"}};
                                          prints the ids
  pause QUEUE, resume QUEUE
  retry QUEUE ID [--reset]                a completed or failed job waits again; --failed [--limit N] instead of ID: the failed ones
  promote QUEUE ID                        a delayed job runs now
  remove QUEUE ID                         with its children; with --scheduler, ID is a scheduler
  drain QUEUE [--delayed]                 removes what waits
  clean QUEUE --state S [--older-than S]  removes jobs of a state, older than so many seconds; --limit N at most (1000);
                                          not of active and waiting-children

States: active, completed, delayed, failed, paused, prioritized, waiting, waiting-children.
Ends with 0, 1 when it failed, 2 on wrong use, 4 when the job's state forbids it, 5 when a store cannot be reached.

  kasma queues list
  kasma queues jobs mail-queue --state failed
  echo '{"name":"send-mail","data":{"to":"a@example.test"},"opts":{"delay":60000}}' | kasma queues add mail-queue
  kasma queues retry mail-queue --failed --limit 500
]]

local SHOWN = { "waiting", "active", "delayed", "prioritized", "failed", "completed", "paused", "waiting-children" }
local INPUT_MAX = 16777216
local MEMBERS = { name = true, data = true, opts = true, bulk = true, flow = true, scheduler = true }

local scope = { tenant = "MASTER", app = "MASTER", actor_kind = "system" }

local function out(args, value, text)
    if args.json then io.stdout:write(require("core.json").encode(value), "\n") else io.stdout:write(text, "\n") end
    return 0
end

local function age(ms) return ms and ("%.0f s"):format(ms / 1000) or "-" end

local function number(text, default, most)
    if text == nil then return default end
    local n = tonumber(text)
    if not n or n ~= math.floor(n) or n < 0 or n > most then error({ usage = text .. " is not a number that fits here" }, 0) end
    return n
end

local function state_of(args, default)
    local state = args.state or default
    if not state then error({ usage = "--state is needed" }, 0) end
    for _, one in ipairs(SHOWN) do
        if one == state then return state end
    end
    error({ usage = "there is no state " .. tostring(state) }, 0)
end

local function job_lines(list)
    local lines = {}
    for i, job in ipairs(list) do
        lines[i] = ("%-40s %-28s attempts %d  %s"):format(job.id, job.name, job.attemptsMade, job.failedReason or "")
    end
    return lines
end

local commands = {}

function commands.list(service, args)
    local list, whole = service.list()
    local lines = { ("%-28s %8s %8s %8s %8s %8s %9s  %s"):format("queue", "waiting", "active", "delayed", "priority", "failed", "completed",
        "oldest") }
    for _, q in ipairs(list) do
        local c = q.counts
        lines[#lines + 1] = ("%-28s %8d %8d %8d %8d %8d %9d  %s%s"):format(q.name, c.waiting + c.paused, c.active, c.delayed, c.prioritized,
            c.failed, c.completed, age(q.oldestAge), (q.paused and "  paused" or "") .. (q.broken and "  broken: " .. q.broken or ""))
    end
    if not whole then lines[#lines + 1] = "and more: not all of the server's keys were looked through" end
    return out(args, list, table.concat(lines, "\n"))
end

function commands.jobs(service, args)
    local q = { state = state_of(args, "waiting"), page = math.max(1, number(args.page, 1, 1e9)),
        limit = math.max(1, number(args.limit, 20, 1000)), q = args.search, whole = args.whole }
    local list, total, scanned = service.jobs(args[2], q)
    local lines = job_lines(list)
    lines[#lines + 1] = scanned and ("%d found among the first %d"):format(total, scanned) or ("%d of %d %s"):format(#list, total, q.state)
    return out(args, list, table.concat(lines, "\n"))
end

function commands.show(service, args)
    local json = require("core.json")
    if args[3] then
        local job = service.job(args[2], args[3], args.whole)
        local lines = {}
        local names = {}
        for name in pairs(job) do names[#names + 1] = name end
        table.sort(names)
        for _, name in ipairs(names) do
            local value = job[name]
            lines[#lines + 1] = ("%-18s %s"):format(name, type(value) == "table" and json.encode(value) or tostring(value))
        end
        return out(args, job, table.concat(lines, "\n"))
    end
    local q = service.show(args[2])
    local lines = { q.name .. (q.paused and ", paused" or "") }
    for _, state in ipairs(SHOWN) do lines[#lines + 1] = ("  %-18s %d"):format(state, q.counts[state]) end
    lines[#lines + 1] = ("  %-18s %s"):format("oldest", age(q.oldestAge))
    lines[#lines + 1] = ("  %-18s %d"):format("workers", #q.workers)
    for _, s in ipairs(q.schedulers) do
        lines[#lines + 1] = ("  scheduler %-20s %s, next %s"):format(s.id, s.pattern and (s.pattern .. " " .. (s.tz or "UTC"))
            or "every " .. tostring(s.every) .. " ms", require("core.time").iso(s.next))
    end
    return out(args, q, table.concat(lines, "\n"))
end

function commands.add(service, args)
    local json = require("core.json")
    local text = io.stdin:read(INPUT_MAX) or ""
    if #text == INPUT_MAX then error({ usage = "the input is larger than 16 MiB" }, 0) end
    local input, why = json.decode(text)
    if type(input) ~= "table" then
        error({ usage = "standard input is no JSON object: " .. tostring(type(why) == "table" and why.message or why) }, 0)
    end
    for name in pairs(input) do
        if not MEMBERS[name] then
            error({ usage = tostring(name) .. " is no member of a job: name, data and opts, or one of bulk, flow and scheduler" }, 0)
        end
    end
    local ids = service.add(scope, args[2], input, true)
    return out(args, { ids = json.array(ids) }, table.concat(ids, "\n"))
end

function commands.pause(service, args)
    local changed = service.pause(scope, args[2])
    return out(args, { changed = changed }, changed and "paused" or "it is paused already")
end

function commands.resume(service, args)
    local changed = service.resume(scope, args[2])
    return out(args, { changed = changed }, changed and "resumed" or "it is not paused")
end

function commands.retry(service, args)
    if args.failed then
        local n = service.retry_failed(scope, args[2], number(args.limit, 100, 1000))
        return out(args, { retried = n }, n .. " jobs wait again")
    end
    service.retry(scope, args[2], args[3], args.reset)
    return out(args, { id = args[3] }, "it waits again")
end

function commands.promote(service, args)
    service.promote(scope, args[2], args[3])
    return out(args, { id = args[3] }, "it runs now")
end

function commands.remove(service, args)
    if args.scheduler then service.remove_scheduler(scope, args[2], args[3]) else service.remove(scope, args[2], args[3]) end
    return out(args, { id = args[3] }, "removed")
end

function commands.drain(service, args)
    local n = service.drain(scope, args[2], args.delayed)
    return out(args, { removed = n }, n .. " jobs removed")
end

function commands.clean(service, args)
    local state = given.one_of(state_of(args), "state", { "completed", "failed", "waiting", "paused", "delayed", "prioritized" })
    local n = service.clean(scope, args[2], { state = state, grace = number(args["older-than"], 0, 1e9) * 1000,
        limit = number(args.limit, 1000, 1e9) })
    return out(args, { removed = n }, n .. " jobs removed")
end

-- How many words each takes at least.
local NEEDS = { list = 1, jobs = 2, show = 2, add = 2, pause = 2, resume = 2, retry = 3, promote = 3, remove = 3, drain = 2, clean = 2 }

---@param words string[] what follows `kasma queues`
---@return integer exit
function M.run(words)
    local args, bad = args_of(words, { json = false, help = false, state = true, limit = true, page = true, search = true, reset = false,
        failed = false, scheduler = false, delayed = false, whole = false, ["older-than"] = true })
    if args and args.help then
        io.stdout:write(M.usage)
        return 0
    end
    local needs = args and NEEDS[args[1]]
    if needs == 3 and args.failed then needs = 2 end
    if args and args[1] and not needs then bad = args[1] .. " is not known here" end
    if needs and #args < needs then bad = ("%s needs %s"):format(args[1], needs == 3 and "a queue and an ID" or "a queue") end
    if not needs or #args < needs or #args > (args[1] == "show" and 3 or needs) then
        io.stderr:write(bad and ("kasma queues: " .. bad .. "\n\n") or "", M.usage)
        return 2
    end
    require("kasma.boot").load()
    local ok, result = pcall(commands[args[1]], require("modules.queues.service"), args)
    if ok then return result end
    if type(result) == "table" and result.usage then
        io.stderr:write("kasma queues: ", result.usage, "\n")
        return 2
    end
    return require("kasma.cli.failure")("queues", result)
end

return M
