-- Runs of workflows that this process works on, in lanes by shop. The queue of their jobs is one for all shops, and a step may wait two
-- seconds for somebody else's server: a shop with a thousand orders a minute would leave no place for the others. So a shop has a few
-- places here; what comes while they are taken waits in its lane, and its job is over.
--
-- What waits here is no promise: a run's row of due_work takes it up again when this process dies, or its lane is full.
local sched = require("core.sched")
local log = require("kasma.log")

local M = {}

local PLACES, WAITING = 6, 1000

local lanes, spawned = {}, 0

local function next_in(tenant, lane, work)
    while lane.running < PLACES and lane.first <= lane.last and not sched.stopping() do
        local id = lane[lane.first]
        lane[lane.first], lane.waits[id], lane.first = nil, nil, lane.first + 1
        lane.running, spawned = lane.running + 1, spawned + 1
        sched.spawn(function()
            local ok, why = pcall(work, tenant, id)
            lane.running, spawned = lane.running - 1, spawned - 1
            if not ok then
                log.error("a workflow could not be worked on", { tenant = tenant, run = id,
                    error = type(why) == "table" and tostring(why.message or why.kind) or tostring(why) })
            end
            next_in(tenant, lane, work)
        end)
    end
    if lane.running == 0 and lane.first > lane.last and lanes[tenant] == lane then lanes[tenant] = nil end
end

--- Works on a run now, or when the shop has a place for it; raises what `work` raises now.
---@param tenant string
---@param run_id string
---@param work fun(tenant: string, run_id: string)
function M.take(tenant, run_id, work)
    local lane = lanes[tenant]
    if not lane then
        lane = { running = 0, first = 1, last = 0, waits = {} }
        lanes[tenant] = lane
    end
    if lane.running >= PLACES then
        if lane.waits[run_id] or lane.last - lane.first + 1 >= WAITING then return end
        lane.last = lane.last + 1
        lane[lane.last], lane.waits[run_id] = run_id, true
        return
    end
    lane.running = lane.running + 1
    local ok, why = pcall(work, tenant, run_id)
    lane.running = lane.running - 1
    next_in(tenant, lane, work)
    if not ok then error(why, 0) end
end

--- How many runs are worked on beside a job.
---@return integer
function M.count() return spawned end

return M
