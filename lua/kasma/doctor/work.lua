-- What goes on behind the requests: a worker for every queue, relay and sweeper, nothing that waits too long.
local config = require("core.config")
local pg = require("core.pg")
local redis = require("core.redis")
local time = require("core.time")
local report = require("kasma.doctor.report")

local M = {}

local LIVE_MS = 6000
local OUTBOX_S, DUE_S, WAIT_S = 30, 5, 300

local function read(pool, sql, ...)
    local rows, err = pg.pool(pool):read(nil, sql, ...)
    if not rows then error(err, 0) end
    return rows
end

local function workers(d)
    local served, working, serving = {}, 0, 0
    for _, row in ipairs(read("app", "select role, queues from worker_heartbeats where seen_at > $1::timestamptz",
        time.iso(time.real() - LIVE_MS))) do
        if row.role ~= "work" then serving = serving + 1 end
        if row.role ~= "serve" then working = working + 1 end
        for _, queue in ipairs(row.queues or {}) do served[queue] = true end
    end
    if working == 0 then
        d:fail("workers", "no process of kasma work is alive", { effect = "no mails, no jobs, nothing expires, the outbox grows",
            hint = "kasma work" })
        return
    end
    require("kasma.boot").load()
    local alone = {}
    for _, queue in ipairs(require("kasma.jobs").queues()) do
        if not served[queue] then alone[#alone + 1] = queue end
    end
    d:none("workers", alone, ("%d serving and %d working processes, a worker for every queue"):format(serving, working),
        "queues that nobody serves", { effect = "their jobs wait", hint = "KASMA_QUEUES of kasma work leaves them out" })
end

local function outbox(d)
    local row = read("system", [[select count(*)::int as n, min(created_at) as oldest from (select created_at from outbox
      where sent_at is null order by seq limit 10001) o]])[1]
    local age = row.oldest and math.max(0, (time.now() - time.parse(row.oldest)) / 1000) or 0
    local text = ("outbox %d rows waiting%s"):format(row.n, row.n > 0 and (", oldest %.0f s"):format(age) or "")
    if age > OUTBOX_S then
        d:warn("outbox", text .. (" (limit %d s); nothing is lost, they go out when what they wait for is back"):format(OUTBOX_S))
    else
        d:ok("outbox", text)
    end
    local due = read("system", "select min(due_at) as oldest, count(*)::int as n from due_work where due_at <= $1::timestamptz",
        time.iso(time.now()))[1]
    local behind = due.oldest and math.max(0, (time.now() - time.parse(due.oldest)) / 1000) or 0
    if behind > DUE_S then
        d:warn("due", ("%d rows of due_work are late, the oldest by %.0f s (limit %d s)"):format(due.n, behind, DUE_S),
            { effect = "holds, orders and publications expire late", hint = "kasma work; look for 'due work' in its log" })
    else
        d:ok("due", "due_work is on time")
    end
end

-- Who reads the outbox and due_work holds an advisory lock: one process each, in the whole cluster.
local function loops(d)
    local held = {}
    for _, row in ipairs(read("system", [[select objid::int as lock, count(*)::int as n from pg_locks
      where locktype = 'advisory' and granted and classid = 0 and objid in (7205001, 7205002)
        and database = (select oid from pg_database where datname = current_database())
      group by objid]])) do held[row.lock] = row.n end
    local missing = {}
    if not held[7205001] then missing[1] = "the relay of the outbox" end
    if not held[7205002] then missing[#missing + 1] = "the sweeper of due_work" end
    d:none("loops", missing, "relay and sweeper are active, once each", "nobody runs", { effect = "nothing that follows a commit happens",
        hint = "kasma work; after a crash another process takes over within seconds: look again" })
end

local LATE_S = 120

local function schedulers(d)
    local prefix = (config.get("QUEUE_PREFIX") or "bull") .. ":"
    local missing, late = {}, {}
    local list = require("kasma.schedules").list()
    for _, schedule in ipairs(list) do
        local next_ms, err = redis.call("ZSCORE", prefix .. schedule.queue .. ":repeat", schedule.name)
        if err then return d:warn("schedulers", "cannot be looked at: " .. report.why(err)) end
        local behind = tonumber(next_ms) and (time.now() - tonumber(next_ms)) / 1000
        if not behind then missing[#missing + 1] = schedule.name
        elseif behind > LATE_S then late[#late + 1] = ("%s (%.0f s)"):format(schedule.name, behind) end
    end
    if #missing > 0 then
        return d:none("schedulers", missing, "", "schedules that are not set", { effect = "what they do is not done",
            hint = "kasma work sets them when it starts and each minute" })
    end
    if #late > 0 then
        return d:warn("schedulers", "schedules that are late: " .. table.concat(late, ", "), { hint = "kasma work; look at its log" })
    end
    d:ok("schedulers", ("%d schedules are set and on time"):format(#list))
end

local function endpoints(d)
    local dead = {}
    require("kasma.tenant").each(function(tenant)
        local rows, err = pg.pool("app"):read(tenant, [[select name, disabled_reason from webhook_endpoints where tenant_key = $1
          and state = 'disabled' and disabled_reason <> 'by hand' order by id limit 20]], tenant)
        if not rows then error(err, 0) end
        for _, row in ipairs(rows) do dead[#dead + 1] = ("%s: %s"):format(tenant, row.name) end
        return #dead < 100
    end)
    if #dead == 0 then return d:ok("endpoints", "no webhook endpoint was given up") end
    d:warn("endpoints", ("webhook endpoints that were given up: %s%s"):format(table.concat(dead, ", ", 1, math.min(5, #dead)),
        #dead > 5 and (" and %d more"):format(#dead - 5) or ""), { effect = "they hear of nothing", hint = "tell their tenants" })
end

local function queues(d)
    local prefix = (config.get("QUEUE_PREFIX") or "bull") .. ":"
    local old, failed, waiting = {}, 0, 0
    for _, queue in ipairs(require("kasma.jobs").queues()) do
        local base = prefix .. queue .. ":"
        local n, err = redis.call("LLEN", base .. "wait")
        if type(n) ~= "number" then return d:warn("queues", "cannot be looked at: " .. report.why(err)) end
        waiting = waiting + n
        failed = failed + (tonumber(redis.call("ZCARD", base .. "failed")) or 0)
        local last = n > 0 and redis.call("LINDEX", base .. "wait", "-1")
        local added = type(last) == "string" and tonumber(redis.call("HGET", base .. last, "timestamp"))
        local age = added and (time.now() - added) / 1000 or 0
        if age > WAIT_S then old[#old + 1] = ("%s (%.0f s)"):format(queue, age) end
    end
    if #old > 0 then
        d:warn("queues", "jobs that wait too long: " .. table.concat(old, ", "),
            { hint = "more kasma work, or a larger WORKER_CONCURRENCY" })
    else
        d:ok("queues", ("%d jobs wait, %d failed ones are kept"):format(waiting, failed))
    end
end

---@param d doctor.Report
function M.run(d)
    for _, check in ipairs{ workers, loops, outbox, queues, schedulers, endpoints } do
        local ok, why = pcall(check, d)
        if not ok then d:warn("unknown", "could not be looked at: " .. report.why(why)) end
    end
end

return M
