-- Housekeeping of the platform: what ran out is removed, partitions are made ahead. Timers of every `kasma work`, independent of Redis;
-- two that run at once find the same rows and do no harm.
local config = require("core.config")
local sched = require("core.sched")
local time = require("core.time")
local db = require("kasma.db")
local jobs = require("kasma.jobs")
local log = require("kasma.log")
local start = require("kasma.start")
local cart = require("modules.cart.service")
local accounts = require("modules.iam.cleanup")

local HOUR_MS, DAY_MS = 3600000, 86400000

local M = {}

local IDEMPOTENCY = [[delete from idempotency_records where tenant_key = $1 and scope_hash in (select scope_hash
  from idempotency_records where tenant_key = $1 and expires_at < $2::timestamptz limit $3)]]
local BATCH, TENANTS = 1000, 500

-- What belongs to tenants is removed tenant by tenant and in batches: no row security is passed by, and no lock is held long.
local function of_tenants(now)
    local last = ""
    repeat
        local rows = db.read(nil, "select tenant_key from tenants where tenant_key > $1 order by tenant_key limit " .. TENANTS, last)
        for _, row in ipairs(rows) do
            last = row.tenant_key
            repeat
                local gone = db.query(last, IDEMPOTENCY, last, now, BATCH).affected
            until gone < BATCH or sched.stopping()
            repeat
                local gone = cart.prune(last, now, BATCH)
            until gone < BATCH or sched.stopping()
        end
    until #rows < TENANTS or sched.stopping()
end

local function remove(tenant_wide, sql, ...)
    local pool = db.pool(tenant_wide and "system" or "app")
    local rows, err = pool:query(nil, sql, ...)
    if not rows then log.warn("housekeeping", { error = err.message }) end
end

--- Records of requests whose answer is no longer kept, and carts of guests who are gone.
function M.idempotency() of_tenants(time.iso(time.now())) end

--- Outbox rows that were sent a week ago.
function M.outbox()
    remove(true, "delete from outbox where sent_at < $1::timestamptz", time.iso(time.now() - 7 * DAY_MS))
end

jobs.handler("system-queue", "idempotency-cleanup", M.idempotency)
jobs.handler("system-queue", "outbox-cleanup", M.outbox)

function M.hourly()
    accounts.otp_cleanup()
    accounts.session_cleanup()
    M.outbox()
    M.idempotency()
end

function M.daily()
    M.partitions()
    accounts.user_purge()
    accounts.key_expiry_notice()
end

function M.partitions()
    local keep = tonumber(config.get("AUDIT_RETENTION_DAYS")) or 400
    db.read(nil, "select history_partitions($1::timestamptz, make_interval(days => $2::int)) as changed", time.iso(time.now()), keep)
end

start.add("housekeeping", function(role)
    if role == "serve" then return end
    M.partitions()
    sched.every(HOUR_MS, function() pcall(M.hourly) end)
    sched.every(DAY_MS, function() pcall(M.daily) end)
end)

return M
