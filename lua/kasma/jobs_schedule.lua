-- Job schedulers: `every` so many ms or by a cron pattern in a time zone, one pending job at a time, in BullMQ's layout (`repeat`,
-- `repeat:<id>`, jobs `repeat:<id>:<ms>`). The worker that takes a run plans the next before it begins. Times are those of the
-- business clock.
--
-- Setting a scheduler that stands as it is changes no time: all processes may set the house's at start, and it runs once a cluster. But
-- a run that was planned by a clock which was ahead, and set right since, lies further off than two runs: it is planned anew.
local json = require("core.json")
local redis = require("core.redis")
local time = require("core.time")
local cron = require("kasma.cron")
local errors = require("kasma.errors")
local jobs = require("kasma.jobs")
local scripts = require("kasma.jobs_scripts")

local M = {}

local EVERY_MAX = 366 * 86400000
local NEVER = ""

-- p, sid, now. h: the scheduler's hash as a table.
local PLAN = [[
local p, sid, now = KEYS[1], ARGV[1], tonumber(ARGV[2])
local rk = p .. 'repeat:' .. sid
local function fmt(n) return string.format('%.0f', n) end
local function slot_id(ms) return 'repeat:' .. sid .. ':' .. fmt(ms) end
local function read()
  local h, flat = {}, call('HGETALL', rk)
  for i = 1, #flat, 2 do h[flat[i] ] = flat[i + 1] end
  return h
end
local function plan(h, ms, count)
  local id = slot_id(ms)
  local opts = decode(h.opts) or {}
  local delay = math.max(0, ms - now)
  opts.jobId, opts.repeatJobKey, opts.timestamp, opts.delay = id, sid, now, delay
  opts['repeat'] = { count = count, every = tonumber(h.every or ''), pattern = h.pattern, tz = h.tz, limit = tonumber(h.limit or ''),
    offset = h.startDate and tonumber(h.offset or '') or nil, startDate = tonumber(h.startDate or ''), endDate = tonumber(h.endDate or '') }
  if h.pattern then opts.prevMillis = ms end
  call('INCR', p .. 'id')
  call('ZADD', p .. 'repeat', ms, sid)
  call('HSET', rk, 'ic', count)
  insert(p, id, { name = h.name or '', data = h.data or '{}', opts = cjson.encode(opts), timestamp = now, delay = delay,
    priority = tonumber(opts.priority) or 0, lifo = opts.lifo, rjk = sid })
  return id
end
local function take_out(id)
  local key = p .. id
  if call('EXISTS', key) == 0 then return end
  if call('ZREM', p .. 'delayed', id) == 1 or call('ZREM', p .. 'prioritized', id) == 1 or call('LREM', p .. 'wait', 1, id) == 1
    or call('LREM', p .. 'paused', 1, id) == 1 then remove_job(p, id, now) end
end
]]

-- ARGV: id, now, first ms of a pattern or '', latest ms at which a pending run makes sense, then pairs of the hash. Answers the pending
-- job's id; -10: a job of that slot is there.
local UPSERT = scripts.common .. PLAN .. [[
local h = {}
for i = 5, #ARGV, 2 do h[ARGV[i] ] = ARGV[i + 1] end
local before = read()
local slot = call('ZSCORE', p .. 'repeat', sid)
if slot then
  local pending = slot_id(tonumber(slot))
  local same = before.pattern == h.pattern and before.every == h.every and before.tz == h.tz and before.limit == h.limit
    and before.startDate == h.startDate and before.endDate == h.endDate and (not h.offset or before.offset == h.offset)
  local key = p .. pending
  if same and tonumber(slot) <= tonumber(ARGV[4]) and call('EXISTS', key) == 1 and call('HEXISTS', key, 'finishedOn') == 0 then
    call('HSET', rk, 'name', h.name, 'data', h.data, 'opts', h.opts)
    if call('EXISTS', key .. ':lock') == 0 then call('HSET', key, 'name', h.name, 'data', h.data) end
    return pending
  end
  take_out(pending)
end
-- A run that still waits and that no scheduler knows of, as where the scheduler was lost, gives way; one that is taken or done does not.
local function taken(at)
  local id = slot_id(at)
  if call('HGET', p .. id, 'rjk') == sid and call('EXISTS', p .. id .. ':lock') == 0 then take_out(id) end
  return call('EXISTS', p .. id) == 1
end
local ms = tonumber(ARGV[3])
if h.every then
  local every = tonumber(h.every)
  local start = tonumber(h.startDate or '') or 0
  ms = math.max(now, start)
  if h.offset and start <= now then
    local a = math.floor(ms / every) * every + tonumber(h.offset)
    ms = a < ms and a + every or a
  end
  h.offset = h.offset or fmt(ms % every)
  if taken(ms) then ms = ms + every end
  if taken(ms) then return -11 end
else
  h.offset = h.offset or '0'
  if taken(ms) then return -10 end
end
call('DEL', rk)
for name, value in pairs(h) do call('HSET', rk, name, value) end
return plan(h, ms, 1)]]

-- ARGV: id, now, next ms of a pattern or '', the job that runs, the pattern that next was computed for. Answers the next job's id or ''.
local FOLLOW = scripts.common .. PLAN .. [[
local slot = call('ZSCORE', p .. 'repeat', sid)
if not slot or slot_id(tonumber(slot)) ~= ARGV[4] then return '' end
local h = read()
if not h.name and not h.every and not h.pattern then return '' end
local ms
if h.every then
  local every = tonumber(h.every)
  ms = tonumber(slot) + every
  if ms <= now then
    local a = math.floor(now / every) * every + (tonumber(h.offset or '') or 0) % every
    ms = a > now and a or a + every
  end
else
  if h.pattern ~= ARGV[5] then return '' end
  ms = tonumber(ARGV[3])
end
local count = (tonumber(h.ic or '') or 1) + 1
if not ms or tonumber(h.limit or '') and count > tonumber(h.limit) or tonumber(h.endDate or '') and ms > tonumber(h.endDate) then
  return ''
end
if call('EXISTS', p .. slot_id(ms)) == 1 then return '' end
local id = plan(h, ms, count)
if LAYOUT == 5 then call('HSET', p .. ARGV[4], 'nrjid', id) end
return id]]

-- ARGV: id, now. 1: it was there. A job of it that waits already stays and runs.
local REMOVE = scripts.common .. PLAN .. [[
local slot = call('ZSCORE', p .. 'repeat', sid)
if not slot then return 0 end
local id = slot_id(tonumber(slot))
if call('ZREM', p .. 'delayed', id) == 1 then
  remove_job(p, id, now)
  event(p, 'removed', 'jobId', id, 'prev', 'delayed')
end
call('ZREM', p .. 'repeat', sid)
call('DEL', rk)
return 1]]

local function bad(message) errors.bad_request{ message = message, code = "bad_scheduler" } end

local function text(n) return ("%.0f"):format(n) end

local function check_time(value, name)
    if value == nil then return nil end
    local ms = type(value) == "string" and time.parse(value) or tonumber(value)
    if not ms or ms ~= ms or ms < 0 or ms > 2 ^ 43 then bad(name .. " must be a time") end
    return math.floor(ms)
end

-- The first time of the pattern after a time, within the scheduler's dates; nil: never.
local function pattern_next(spec, pattern, after)
    local parsed, why = cron.parse(pattern)
    if not parsed then bad(why) end
    if spec.tz and not time.zone_exists(spec.tz) then bad("There is no time zone " .. tostring(spec.tz):sub(1, 80)) end
    local from = math.max(after, (spec.startDate or 0) - 1)
    return cron.next(parsed, from, spec.tz)
end

--- Makes or changes a scheduler. Raises 400 bad_scheduler and bad_job, 409 scheduler_busy.
---@param queue string
---@param id string
---@param spec table every (ms) or pattern, tz; offset (ms), startDate, endDate (epoch ms or ISO), limit (runs)
---@param template table|nil name, data, opts of its jobs
---@return string id of the pending job
function M.upsert(queue, id, spec, template)
    local prefix = jobs.base(queue)
    template = template or {}
    if type(id) ~= "string" or id == "" or #id > 200 or id:find("[:%c]") then bad("A scheduler's id is a text without a colon") end
    if (spec.every == nil) == (spec.pattern == nil) then bad("A scheduler has either every or pattern") end
    if template.name ~= nil and type(template.name) ~= "string" then bad("template.name must be a text") end
    local now = time.now()
    local start_ms, end_ms = check_time(spec.startDate, "startDate"), check_time(spec.endDate, "endDate")
    if end_ms and end_ms < now then bad("endDate is over") end
    local opts = jobs.stored(template.opts or {})
    if not (template.opts and template.opts.attempts) then opts.attempts = nil end
    if opts.jobId or opts.parent or opts.de then bad("A scheduler's jobs have no jobId, parent or deduplication") end
    opts.delay, opts.timestamp = nil, nil
    local fields = { "name", template.name or id, "data", template.data == nil and "{}" or json.encode(template.data), "opts",
        json.encode(opts) }
    local function add(name, value)
        if value == nil then return end
        fields[#fields + 1], fields[#fields + 2] = name, value
    end
    local first, latest = NEVER, text(math.max(now, start_ms or 0) + 2 * (tonumber(spec.every) or 0))
    if spec.every ~= nil then
        if type(spec.every) ~= "number" or spec.every < 1 or spec.every > EVERY_MAX or spec.every ~= math.floor(spec.every) then
            bad("every must be whole milliseconds, up to a year")
        end
        add("every", text(spec.every))
    else
        local next_ms = pattern_next({ tz = spec.tz, startDate = start_ms }, spec.pattern, now)
        if not next_ms or end_ms and next_ms > end_ms then bad("The pattern has no time to come") end
        first, latest = text(next_ms), text(pattern_next({ tz = spec.tz }, spec.pattern, next_ms) or next_ms)
        add("pattern", spec.pattern)
        add("tz", spec.tz)
    end
    if spec.offset ~= nil then
        if type(spec.offset) ~= "number" or spec.offset < 0 or spec.offset > EVERY_MAX then bad("offset must be milliseconds") end
        add("offset", text(spec.offset))
    end
    if spec.limit ~= nil then
        if type(spec.limit) ~= "number" or spec.limit < 1 or spec.limit ~= math.floor(spec.limit) then bad("limit must be positive") end
        add("limit", text(spec.limit))
    end
    add("startDate", start_ms and text(start_ms))
    add("endDate", end_ms and text(end_ms))
    jobs.introduce(prefix)
    local function run(ms)
        return errors.check(redis.eval(UPSERT, { prefix }, { id, text(now), ms, latest, unpack(fields) }))
    end
    local made = run(first)
    if made == -10 then
        -- The run of that very time is there and not ours to move: the one after it.
        local following = pattern_next({ tz = spec.tz }, spec.pattern, tonumber(first))
        if following then made = run(text(following)) end
    end
    if type(made) == "number" then
        errors.conflict{ message = "The scheduler's next times are taken by jobs that are there", code = "scheduler_busy" }
    end
    return made
end

--- Plans what follows a run that a worker has taken, unless somebody has.
---@param queue string
---@param job {id: string, scheduler: string}
---@return string id of the next job, "" when there is none to plan
function M.follow(queue, job)
    local prefix = jobs.base(queue)
    local now = time.now()
    local sid = job.scheduler
    local v = errors.check(redis.call("HMGET", prefix .. "repeat:" .. sid, "pattern", "tz", "every"))
    local following, pattern = NEVER, ""
    if type(v[1]) == "string" then
        pattern = v[1]
        local slot = tonumber(job.id:match(":(%d+)$")) or now
        local next_ms = pattern_next({ tz = type(v[2]) == "string" and v[2] or nil }, pattern, math.max(now, slot))
        following = next_ms and text(next_ms) or NEVER
    end
    return errors.check(redis.eval(FOLLOW, { prefix }, { sid, text(now), following, job.id, pattern }))
end

--- Ends a scheduler. A run of it that waits already is not taken back.
---@param queue string
---@param id string
---@return boolean it was there
function M.remove(queue, id)
    return errors.check(redis.eval(REMOVE, { jobs.base(queue) }, { id, text(time.now()) })) == 1
end

--- Schedulers of a queue, the next to run first.
---@param queue string
---@param limit integer|nil 100
---@return table[] {id, name, every, pattern, tz, offset, startDate, endDate, limit, count, next, data, opts}
function M.list(queue, limit)
    local prefix = jobs.base(queue)
    local flat = errors.check(redis.call("ZRANGE", prefix .. "repeat", 0, (limit or 100) - 1, "WITHSCORES"))
    local commands, list = {}, {}
    for i = 1, #flat, 2 do
        list[#list + 1] = { id = flat[i], next = tonumber(flat[i + 1]) }
        commands[#commands + 1] = { "HGETALL", prefix .. "repeat:" .. flat[i] }
    end
    if #commands == 0 then return list end
    for i, row in ipairs(errors.check(redis.pipeline(commands))) do
        local one, h = list[i], {}
        for k = 1, #row, 2 do h[row[k]] = row[k + 1] end
        one.name, one.pattern, one.tz, one.data, one.opts = h.name, h.pattern, h.tz, h.data, h.opts
        one.every, one.offset, one.limit, one.count = tonumber(h.every), tonumber(h.offset), tonumber(h.limit), tonumber(h.ic)
        one.startDate, one.endDate = tonumber(h.startDate), tonumber(h.endDate)
    end
    return list
end

return M
