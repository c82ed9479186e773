-- Business time for all processes. Outside production POST /admin/clock shifts it: one row of clock_shifts, version + 1, then a
-- notice outside the transaction. Every process reads the row at start, at the notice and each second, sets the core's shift
-- and shows the version that it runs on in its heartbeat; the route answers when all that live do. In production the row is
-- not read.
local config = require("core.config")
local sched = require("core.sched")
local time = require("core.time")
local db = require("kasma.db")
local errors = require("kasma.errors")
local heartbeat = require("kasma.heartbeat")
local log = require("kasma.log")
local null = require("kasma.null")

local M = {}

local CHANNEL = "kasma_clock"
local WAIT_MS, POLL_MS = 2000, 20
local READ = "select version, shift_ms from clock_shifts where id = 1"
local SHIFT = [[update clock_shifts set version = version + 1, shift_ms = $1, set_by = $2, set_at = $3::timestamptz where id = 1
  returning version, shift_ms]]

local version = -1

local function apply()
    local row = db.one(nil, READ)
    if not row or row.version == version then return end
    version = row.version
    time.set_shift(row.shift_ms)
    heartbeat.set_clock(version)
end

local function try_apply()
    local ok, why = pcall(apply)
    if not ok then log.debug("the clock could not be read", { error = tostring(why) }) end
end

--- Reads the shift and follows it until the process ends.
function M.start()
    if config.env() == "production" then return end
    try_apply()
    db.pool("app"):listen(CHANNEL, function() sched.spawn(try_apply) end)
    sched.every(1000, try_apply)
end

--- Sets the shift and waits until every live process has it. 503 when not all have within two seconds (the shift stands).
---@param change {now_ms: integer|nil, advance_s: number|nil} neither = real time
---@param actor_id string|nil
---@return {now: string, shift_ms: integer}
function M.set(change, actor_id)
    local shift = 0
    if change.now_ms then
        shift = change.now_ms - time.real()
    elseif change.advance_s then
        local current = db.one(nil, READ)
        shift = current.shift_ms + math.floor(change.advance_s * 1000 + 0.5)
    end
    local row = db.query(nil, SHIFT, shift, actor_id or null, time.iso(time.real()))[1]
    db.pool("app"):notify(CHANNEL)
    apply()
    local waited = 0
    while true do
        local behind = heartbeat.behind_clock(row.version)
        if behind == 0 then break end
        if waited >= WAIT_MS then
            errors.unavailable({ message = ("%d processes have not taken the shift"):format(behind), code = "clock_pending" }, 1)
        end
        sched.sleep(POLL_MS)
        waited = waited + POLL_MS
    end
    return { now = time.iso(time.now()), shift_ms = row.shift_ms }
end

return M
