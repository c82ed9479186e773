-- One row of worker_heartbeats a worker process, written at start, every two seconds and at once when the clock's version or a
-- rule epoch changes. Deleted at its end; of a process that died, by the one that takes its place. Live = seen within six seconds of
-- real time. Who is live decides how limits are shared, whether a shift of
-- the clock has arrived, and what `kasma doctor` shows.
local config = require("core.config")
local pg = require("core.pg")
local sched = require("core.sched")
local time = require("core.time")
local uuid = require("core.uuid")
local db = require("kasma.db")
local log = require("kasma.log")
local ratelimit = require("kasma.ratelimit")

local M = {}

local EVERY_MS, LIVE_MS, GONE_MS = 2000, 6000, 3600000

local UPSERT = [[insert into worker_heartbeats (worker_id, host, pid, role, "binary", started_at, seen_at, state, queues, clock_version,
  epochs)
  values ($1, $2, $3, $4, $5, $6::timestamptz, $7::timestamptz, $8, $9::text[], $10, $11::jsonb)
  on conflict (worker_id) do update set seen_at = excluded.seen_at, state = excluded.state, queues = excluded.queues,
    clock_version = excluded.clock_version, epochs = excluded.epochs]]
local LIVE = [[select count(*)::int as n, count(*) filter (where role in ('serve', 'all'))::int as serving from worker_heartbeats
  where seen_at > $1::timestamptz and state <> 'draining']]
local BEHIND = [[select count(*)::int as n from worker_heartbeats where seen_at > $1::timestamptz and clock_version < $2]]
local BURY = "delete from worker_heartbeats where host = $1 and pid = $2 and worker_id <> $3 and started_at < $4::timestamptz"
local SWEEP = "delete from worker_heartbeats where seen_at < $1::timestamptz"

local me = { clock_version = 0, epochs = {}, state = "starting", queues = {} }
local live, serving = 1, 1

local function hostname()
    local file = io.open("/proc/sys/kernel/hostname", "r")
    if not file then return "localhost" end
    local name = file:read("*l")
    file:close()
    return name or "localhost"
end

local function process_id()
    local file = io.open("/proc/self/stat", "r")
    if not file then return 0 end
    local pid = tonumber(file:read("*a"):match("^(%d+)"))
    file:close()
    return pid or 0
end

-- A worker that was killed has left its row, which would count as live for six seconds: the one that takes its place deletes it.
local function bury()
    local pid = sched.predecessor()
    if not pid then return true end
    return (pcall(db.query, nil, BURY, me.host, pid, me.id, me.started))
end

local function beat()
    if not me.id then return end
    if not me.buried then me.buried = bury() end
    local now = time.real()
    local ok, results = pcall(db.pipeline, nil, {
        { UPSERT, me.id, me.host, me.pid, me.role, me.binary, me.started, time.iso(now), me.state, pg.array(me.queues), me.clock_version,
            pg.json(me.epochs) },
        { LIVE, time.iso(now - LIVE_MS) },
    })
    if not ok then
        log.debug("heartbeat was not written", { error = tostring(results) })
        return
    end
    live = math.max(1, results[2][1].n)
    serving = math.max(1, results[2][1].serving)
    ratelimit.set_workers(serving)
end

--- Starts to beat.
---@param role "serve"|"work"|"all"
---@param queues string[]|nil
function M.start(role, queues)
    me.id, me.host, me.pid, me.role = uuid.v4(), hostname(), process_id(), role
    me.queues = queues or {}
    me.binary = tostring(config.version)
    me.started = time.iso(time.real())
    me.state = "ready"
    beat()
    sched.every(EVERY_MS, beat)
    sched.on_stop(function()
        me.state = "draining"
        beat()
        local id = me.id
        me.id = nil
        pcall(db.query, nil, "delete from worker_heartbeats where worker_id = $1", id)
    end)
    if role ~= "serve" then
        sched.every(600000, function() pcall(db.query, nil, SWEEP, time.iso(time.real() - GONE_MS)) end)
    end
end

--- Live worker processes, as of the last beat.
---@return integer
function M.live() return live end

--- Live processes that answer requests, as of the last beat.
---@return integer
function M.serving() return serving end

--- What this process is called among the workers; nil where it is none (a command), or ends.
---@return string|nil
function M.id() return me.id end

---@param version integer version of the clock's row that this process runs on
function M.set_clock(version)
    me.clock_version = version
    beat()
end

--- The rule epoch of a tenant that this process holds.
---@param tenant string
---@param epoch integer
function M.set_epoch(tenant, epoch)
    if me.epochs[tenant] == epoch then return end
    me.epochs[tenant] = epoch
    beat()
end

--- How many live processes run on an older version of the clock.
---@param version integer
---@return integer
function M.behind_clock(version)
    return db.one(nil, BEHIND, time.iso(time.real() - LIVE_MS), version).n
end

return M
