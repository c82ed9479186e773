-- What must happen at a time is a row of `due_work` (tenant, kind, id, due_at), written, moved and deleted in the business
-- transaction. One sweeper in the cluster looks every second for rows that fell due by the business clock and runs their
-- kind's handler, one transaction each. A handler locks its subject, sees that it is due, acts, and deletes or moves the row
-- last; a row that comes twice finds nothing to do. One whose handler fails is moved on a minute and holds up no other, and a slow one
-- holds up only the end of its batch: one that has not ended after two minutes is cut off, and has failed.
--
--     due.handler("sales.order_expiry", function(tenant, id, due_at) orders.expire(tenant, id) end)
--     statements[#statements + 1] = due.put(scope, "sales.order_expiry", order.id, expires_ms)
--     statements[#statements + 1] = due.drop(scope.tenant, "sales.order_expiry", order.id)
local metrics = require("core.metrics")
local sched = require("core.sched")
local time = require("core.time")
local crash = require("kasma.crash")
local db = require("kasma.db")
local errors = require("kasma.errors")
local log = require("kasma.log")
local tenants = require("kasma.tenant")

local M = {}

local LOCK = 7205002
local BATCH, AT_ONCE, PERIOD_MS, RETRY_MS, LONGEST_MS = 200, 8, 1000, 60000, 120000
local CLOSED_MS = 600000 -- how often it is looked whether a tenant is back
local CLOSE_US = 5000 -- the deadline's clock and this one may differ by so much

local handlers = {}

---@param kind string `<area>.<what>`
---@param fn fun(tenant: string, id: string, due_at: string)
---@param longest_ms integer|nil after which it is cut off (two minutes)
---@param outward boolean|nil it tells others, in the tenant's name: while the tenant is switched off it waits
function M.handler(kind, fn, longest_ms, outward)
    handlers[kind] = { fn = fn, longest_ms = longest_ms or LONGEST_MS, outward = outward }
end

--- Inserts the row or moves it.
---@param scope Scope
---@param kind string
---@param id string uuid
---@param due_ms integer epoch ms
---@return table statement
function M.put(scope, kind, id, due_ms)
    return { [[insert into due_work (tenant_key, app_key, kind, id, due_at) values ($1, $2, $3, $4, $5::timestamptz)
      on conflict (tenant_key, kind, id) do update set due_at = excluded.due_at]], scope.tenant, scope.app, kind, id, time.iso(due_ms) }
end

--- Moves the row, if there is one.
---@param tenant string
---@param kind string
---@param id string
---@param due_at string ISO
---@return table statement
function M.move(tenant, kind, id, due_at)
    return { "update due_work set due_at = $4::timestamptz where tenant_key = $1 and kind = $2 and id = $3", tenant, kind, id, due_at }
end

--- Moves the row for whoever read it as it is: of several who did, one gets it. Answers the row's kind when it was got.
---@param tenant string
---@param kind string
---@param id string
---@param from string ISO, the time that was read
---@param to string ISO
---@return table statement
function M.claim(tenant, kind, id, from, to)
    return { [[update due_work set due_at = $5::timestamptz where tenant_key = $1 and kind = $2 and id = $3
      and due_at = $4::timestamptz returning kind]], tenant, kind, id, from, to }
end

---@param tenant string
---@param kind string
---@param id string
---@return table statement
function M.drop(tenant, kind, id)
    return { "delete from due_work where tenant_key = $1 and kind = $2 and id = $3", tenant, kind, id }
end

--- Deletes the row for whoever read it as it is: one that was put anew meanwhile stays.
---@param tenant string
---@param kind string
---@param id string
---@param due_at string ISO, the time that was read
---@return table statement
function M.drop_read(tenant, kind, id, due_at)
    return { "delete from due_work where tenant_key = $1 and kind = $2 and id = $3 and due_at = $4::timestamptz", tenant, kind, id, due_at }
end

local READ = "select tenant_key, app_key, kind, id, due_at from due_work where due_at <= $1::timestamptz order by due_at limit " .. BATCH
local LATER = [[update due_work set due_at = $5::timestamptz where tenant_key = $1 and kind = $2 and id = $3 and due_at = $4::timestamptz]]

local ran = metrics.counter("kasma_due_work_total", "Rows of due_work that fell due", { "outcome" })
local behind

local function move_on(row, ms)
    errors.check(db.pool("system"):query(nil, LATER, row.tenant_key, row.kind, row.id, row.due_at, time.iso(time.now() + ms)))
end

-- A tenant that is switched off is not served, and neither calls nor writes to anybody. What waits for it goes on when it is back.
local function must_wait(handler, tenant)
    local row = handler.outward and tenants.by_key(tenant)
    return row and not row.is_active
end

local function run(row)
    local handler = handlers[row.kind]
    local ok, why
    if handler and must_wait(handler, row.tenant_key) then
        ran:add(1, "waits")
        return move_on(row, CLOSED_MS)
    end
    if handler then
        -- The limit is a task's: one of its own, or the row could not be moved on after it.
        ok, why = pcall(sched.parallel, { function()
            local begun = time.mono()
            sched.deadline(handler.longest_ms)
            handler.fn(row.tenant_key, row.id, row.due_at)
            -- One that swallows the error of the wait that was cut has not done its work either.
            if time.mono() - begun >= handler.longest_ms * 1000 - CLOSE_US and not sched.sleep(1) then error("it took too long", 0) end
        end })
    else
        ok, why = false, "nobody handles this kind"
    end
    if ok then
        ran:add(1, "done")
        return crash.at("sweeper.handled")
    end
    ran:add(1, "failed")
    log.error("due work failed", { tenant = row.tenant_key, kind = row.kind, id = row.id,
        error = type(why) == "table" and tostring(why.message or why.kind) or tostring(why) })
    move_on(row, RETRY_MS)
end

--- Runs what is due, oldest first. Answers how many rows it looked at.
---@return integer
function M.sweep_once()
    local now = time.now()
    local rows = errors.check(db.pool("system"):read(nil, READ, time.iso(now)))
    if behind then behind:set(rows[1] and math.max(0, (now - time.parse(rows[1].due_at)) / 1000) or 0) end
    if #rows == 0 then return 0 end
    crash.at("sweeper.read")
    local slots, batch = sched.semaphore(AT_ONCE), {}
    for i, row in ipairs(rows) do
        batch[i] = function()
            slots:acquire()
            local ok, why = pcall(run, row)
            slots:release()
            if not ok then error(why, 0) end
        end
    end
    sched.parallel(batch)
    return #rows
end

local function hold_and_sweep()
    local session = errors.check(db.pool("system"):session())
    local ok, why = pcall(function()
        local held = false
        while not held and not sched.stopping() do
            held = errors.check(session:query("select pg_try_advisory_lock($1) as held", LOCK))[1].held
            if not held then sched.sleep(1000) end
        end
        behind = behind or metrics.gauge("kasma_due_work_behind_seconds", "How long the oldest row that is due has waited", {})
        while not sched.stopping() do
            errors.check(session:query("select 1"))
            if M.sweep_once() < BATCH then sched.sleep(PERIOD_MS) end
        end
    end)
    session:close()
    if not ok then error(why, 0) end
end

--- The sweeper's loop. Ends when the process stops.
function M.run_sweeper()
    while not sched.stopping() do
        local ok, why = pcall(hold_and_sweep)
        if not ok and not sched.stopping() then
            log.warn("sweeper begins anew", { error = type(why) == "table" and tostring(why.message or why.kind) or tostring(why) })
            if not sched.sleep(500) then return end
        end
    end
end

return M
