-- What rules leave behind is kept for a time: previews, runs (index rows and the documents they name) and failures for 30 days, counts by
-- the hour for 90. Partitions of runs and snapshots are dropped by the platform's own housekeeping; this runs before it, because the
-- documents of a dropped partition could not be found any more.
local sched = require("core.sched")
local time = require("core.time")
local tenants = require("kasma.tenant")
local store = require("modules.rules.store")

local M = {}

local DAY_MS, BATCH = 86400000, 500
local KEEP_DAYS, HOURS_DAYS = 30, 90

local function all_of(fn)
    local removed = 0
    repeat
        local gone = fn()
        removed = removed + gone
    until gone < BATCH or sched.stopping()
    return removed
end

--- Removes what is old enough of one tenant.
---@param tenant string
---@param now integer
---@return {previews: integer, runs: integer, failures: integer, hours: integer}
function M.of(tenant, now)
    local before, hours_before = time.iso(now - KEEP_DAYS * DAY_MS), time.iso(now - HOURS_DAYS * DAY_MS)
    return {
        previews = all_of(function() return store.prune_previews(tenant, before, BATCH) end),
        runs = all_of(function() return store.prune_runs(tenant, before, BATCH) end),
        failures = all_of(function() return store.prune_failures(tenant, before, BATCH) end),
        hours = all_of(function() return store.prune_hours(tenant, hours_before, BATCH) end),
    }
end

--- The same of all tenants.
---@return table sums
function M.run()
    local sums = { previews = 0, runs = 0, failures = 0, hours = 0 }
    tenants.sweep("rules-retention", function(tenant)
        for name, n in pairs(M.of(tenant, time.now())) do sums[name] = sums[name] + n end
    end)
    return sums
end

return M
