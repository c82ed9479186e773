-- Housekeeping of the platform: what ran out is removed, by schedules that run once a cluster; partitions are made ahead, by a timer of
-- every `kasma work`, so that it happens with Redis away (two at once find the same and do no harm).
local config = require("core.config")
local sched = require("core.sched")
local time = require("core.time")
local db = require("kasma.db")
local outbox = require("kasma.outbox")
local schedules = require("kasma.schedules")
local start = require("kasma.start")
local tenants = require("kasma.tenant")
local cart = require("modules.cart.service")

local HOUR_MS, DAY_MS = 3600000, 86400000

local M = {}

local IDEMPOTENCY = [[delete from idempotency_records where tenant_key = $1 and scope_hash in (select scope_hash
  from idempotency_records where tenant_key = $1 and expires_at < $2::timestamptz limit $3)]]
local BATCH = 1000

-- What belongs to tenants is removed tenant by tenant and in batches: no row security is passed by, and no lock is held long. Each is
-- asked for what has run out by now: over many tenants this takes minutes, in which a shifted clock may go back.
local function of_tenants()
    tenants.sweep("idempotency-cleanup", function(tenant)
        repeat
            local gone = db.query(tenant, IDEMPOTENCY, tenant, time.iso(time.now()), BATCH).affected
        until gone < BATCH or sched.stopping()
        repeat
            local gone = cart.prune(tenant, time.iso(time.now()), BATCH)
        until gone < BATCH or sched.stopping()
    end)
end

schedules.declare{ name = "idempotency-cleanup", every = HOUR_MS, run = of_tenants }
schedules.declare{ name = "outbox-cleanup", every = HOUR_MS, run = function()
    return { removed = outbox.prune(time.now() - 7 * DAY_MS) }
end }

function M.partitions()
    local keep = tonumber(config.get("AUDIT_RETENTION_DAYS")) or 400
    db.read(nil, "select history_partitions($1::timestamptz, make_interval(days => $2::int)) as changed", time.iso(time.now()), keep)
end

start.add("partitions", function(role)
    if role == "serve" then return end
    M.partitions()
    sched.every(DAY_MS, function() pcall(M.partitions) end)
end)

return M
