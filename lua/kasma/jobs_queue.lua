-- What a dashboard does with a queue: look, and move jobs by hand. Node tools do the same on the same keys, so nothing is kept here:
-- every call reads Redis anew. Codes of the scripts: -1 no such job, -2 a worker holds it, -3 it is in another state, -8 it is its
-- scheduler's next run.
local config = require("core.config")
local json = require("core.json")
local redis = require("core.redis")
local time = require("core.time")
local errors = require("kasma.errors")
local jobs = require("kasma.jobs")
local scripts = require("kasma.jobs_scripts")

local M = {}

local LIST_MAX, BATCH, QUEUES_MAX, LOGS_MAX = 1000, 1000, 1000, 1000
local NOTE_MAX = 65536 -- bytes of a row of a job's log, or of its progress
local LOOK_AT_ONCE = 100 -- jobs that one script call reads

-- Where the jobs of a state lie.
local PLACES = {
    waiting = { "list", "wait" }, paused = { "list", "paused" }, active = { "list", "active" }, prioritized = { "zset", "prioritized" },
    delayed = { "zset", "delayed" }, completed = { "zset", "completed" }, failed = { "zset", "failed" },
    ["waiting-children"] = { "zset", "waiting-children" },
}
M.STATES = { "active", "completed", "delayed", "failed", "paused", "prioritized", "waiting", "waiting-children" }

local STATE = [[
local function state_of(p, id)
  for _, set in ipairs({ 'completed', 'failed', 'delayed', 'prioritized', 'waiting-children' }) do
    if call('ZSCORE', p .. set, id) then return set end
  end
  for _, list in ipairs({ 'active', 'wait', 'paused' }) do
    if call('LPOS', p .. list, id) then return list end
  end
  return 'unknown'
end
-- The next run of a scheduler.
local function is_pending_run(p, id, rjk)
  local slot = rjk and call('ZSCORE', p .. 'repeat', rjk)
  return slot and 'repeat:' .. rjk .. ':' .. string.format('%.0f', tonumber(slot)) == id
end
]]

-- A job's hash may hold megabytes in what came from outside. Of those fields a text longer than `most` is cut, and JSON, of which a
-- part is none, is left out and told in `omitted` with its size.
local READ = [[
local SMALL = { 'name', 'timestamp', 'delay', 'priority', 'atm', 'ats', 'stc', 'processedOn', 'finishedOn', 'pb', 'rjk', 'deid',
  'parentKey', 'parent' }
local TEXTS, JSONS = { 'failedReason', 'defa' }, { 'data', 'opts', 'returnvalue', 'progress', 'stacktrace' }
local function read(key, most)
  local flat, omitted = {}, {}
  for i, value in ipairs(call('HMGET', key, unpack(SMALL))) do
    if value then flat[#flat + 1] = SMALL[i]; flat[#flat + 1] = value end
  end
  for _, name in ipairs(TEXTS) do
    local value = call('HGET', key, name)
    if value then flat[#flat + 1] = name; flat[#flat + 1] = #value > most and string.sub(value, 1, most) or value end
  end
  for _, name in ipairs(JSONS) do
    local size = call('HSTRLEN', key, name)
    if size > most then
      omitted[#omitted + 1] = name; omitted[#omitted + 1] = size
    elseif size > 0 then
      flat[#flat + 1] = name; flat[#flat + 1] = call('HGET', key, name)
    end
  end
  return flat, omitted
end
]]

-- ARGV: id, how long a field may be.
local LOOK = scripts.common .. STATE .. READ .. [[
local key = KEYS[1] .. ARGV[1]
if call('EXISTS', key) == 0 then return false end
local flat, omitted = read(key, tonumber(ARGV[2]))
return { flat, omitted, state_of(KEYS[1], ARGV[1]), call('EXISTS', key .. ':lock') }]]

-- ARGV: how long a field may be, ids.
local LOOK_MANY = scripts.common .. READ .. [[
local out = {}
for i = 2, #ARGV do
  local flat, omitted = read(KEYS[1] .. ARGV[i], tonumber(ARGV[1]))
  out[i - 1] = { flat, omitted }
end
return out]]

-- ARGV: id, how many rows, how long one may be.
local ROWS = scripts.common .. [[
local key, most = KEYS[1] .. ARGV[1] .. ':logs', tonumber(ARGV[3])
local rows = call('LRANGE', key, -tonumber(ARGV[2]), -1)
for i, row in ipairs(rows) do
  if #row > most then rows[i] = string.sub(row, 1, most) end
end
return { rows, call('LLEN', key) }]]

-- ARGV: id, how many children, how long an answer may be. A child whose answer is longer is there without one.
local ANSWERS = scripts.common .. [[
local out = {}
for n, kind in ipairs({ ':processed', ':failed' }) do
  local key, flat = KEYS[1] .. ARGV[1] .. kind, {}
  for _, child in ipairs(call('HKEYS', key)) do
    if #flat >= 2 * tonumber(ARGV[2]) then break end
    local value = call('HSTRLEN', key, child) <= tonumber(ARGV[3]) and call('HGET', key, child) or ''
    flat[#flat + 1] = child; flat[#flat + 1] = value
  end
  out[n] = flat
end
return out]]

-- ARGV: id, now, 1 = attempts begin anew. A failed or completed job waits again.
local RETRY = scripts.common .. STATE .. [[
local p, id, now = KEYS[1], ARGV[1], tonumber(ARGV[2])
local key = p .. id
if call('EXISTS', key) == 0 then return -1 end
local before = call('ZREM', p .. 'failed', id) == 1 and 'failed' or call('ZREM', p .. 'completed', id) == 1 and 'completed'
if not before then return -3 end
call('HDEL', key, 'finishedOn', 'processedOn', 'failedReason', 'returnvalue', 'defa')
if ARGV[3] == '1' then call('HDEL', key, 'atm', 'ats') end
local v = call('HMGET', key, 'priority', 'parentKey', 'opts')
-- What failed it and is gone cannot be tried again, and stands in its way no longer.
for _, child in ipairs(call('ZRANGE', key .. ':unsuccessful', 0, -1)) do
  if call('EXISTS', child) == 0 then call('ZREM', key .. ':unsuccessful', child) end
end
-- A parent that still waits, waits for this child again; and one that failed by it may do better when it is tried again itself.
if v[2] and call('EXISTS', v[2]) == 1 then
  local was = call('ZREM', v[2] .. ':unsuccessful', key)
  if call('HEXISTS', v[2], 'finishedOn') == 0 then was = was + call('HDEL', v[2] .. ':failed', key) end
  if was > 0 then call('SADD', v[2] .. ':dependencies', key) end
end
push(p, id, LAYOUT == 6 and tonumber(v[1] or '') or 0, (decode(v[3]) or {}).lifo)
event(p, 'waiting', 'jobId', id, 'prev', before)
return 0]]

-- ARGV: id. A delayed job runs now.
local PROMOTE = scripts.common .. [[
local p, id = KEYS[1], ARGV[1]
if call('ZREM', p .. 'delayed', id) == 0 then return call('EXISTS', p .. id) == 1 and -3 or -1 end
push(p, id, tonumber(call('HGET', p .. id, 'priority') or '') or 0)
call('HSET', p .. id, 'delay', 0)
event(p, 'waiting', 'jobId', id, 'prev', 'delayed')
return 0]]

-- ARGV: id, now. The job and the children under it, all or none.
local REMOVE = scripts.common .. STATE .. [[
local now = tonumber(ARGV[2])
local tree, seen = {}, {}
local function split(key)
  local p, id = string.match(key, '^(.-:.-:)(.+)$')
  return p, id
end
local function walk(p, id)
  local key = p .. id
  if seen[key] then return 0 end
  seen[key] = true
  if call('EXISTS', key) == 0 then return -1 end
  if call('EXISTS', key .. ':lock') == 1 then return -2 end
  if #tree >= 10000 then return -3 end
  local children = call('SMEMBERS', key .. ':dependencies')
  for _, name in ipairs({ ':processed', ':failed' }) do
    for _, child in ipairs(call('HKEYS', key .. name)) do children[#children + 1] = child end
  end
  for _, child in ipairs(call('ZRANGE', key .. ':unsuccessful', 0, -1)) do children[#children + 1] = child end
  for _, child in ipairs(children) do
    local cp, cid = split(child)
    if cp then
      local code = walk(cp, cid)
      if code < -1 then return code end
    end
  end
  tree[#tree + 1] = { p, id }
  return 0
end
local p, id = KEYS[1], ARGV[1]
if is_pending_run(p, id, call('HGET', p .. id, 'rjk')) then return -8 end
local code = walk(p, id)
if code < 0 then return code end
for _, one in ipairs(tree) do
  local jp, jid = one[1], one[2]
  local state = state_of(jp, jid)
  if state == 'wait' or state == 'paused' or state == 'active' then
    call('LREM', jp .. state, 1, jid)
    if state == 'active' then mark(jp) end -- there is room for another
  elseif state ~= 'unknown' then
    call('ZREM', jp .. state, jid)
  end
  remove_job(jp, jid, now)
  event(jp, 'removed', 'jobId', jid, 'prev', state)
end
return 0]]

-- ARGV: place, kind, now, how many. What waits in the place goes, but schedulers' next runs. Answers how many it looked at.
local DRAIN = scripts.common .. STATE .. [[
local p, now, most = KEYS[1], tonumber(ARGV[3]), tonumber(ARGV[4])
local place = p .. ARGV[1]
local looked, kept, gone = 0, {}, 0
while looked < most do
  local id, score
  if ARGV[2] == 'list' then
    id = call('RPOP', place)
  else
    local first = call('ZPOPMIN', place)
    id, score = first[1], first[2]
  end
  if not id then break end
  looked = looked + 1
  if is_pending_run(p, id, call('HGET', p .. id, 'rjk')) then
    kept[#kept + 1] = { id, score }
  else
    remove_job(p, id, now)
    gone = gone + 1
  end
end
for i = #kept, 1, -1 do
  if ARGV[2] == 'list' then call('RPUSH', place, kept[i][1]) else call('ZADD', place, kept[i][2], kept[i][1]) end
end
return { looked, gone }]]

-- ARGV: place, kind, now, older than (ms of the clock), how many to look at, how many are passed over. Answers how many it looked at and
-- how many went. What ended lies in the order of its age; other places do not.
local CLEAN = scripts.common .. STATE .. [[
local p, now, before, most, skip = KEYS[1], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local place = p .. ARGV[1]
local finished = ARGV[1] == 'completed' or ARGV[1] == 'failed'
local ids
if finished then
  ids = call('ZRANGEBYSCORE', place, '-inf', before, 'LIMIT', skip, most)
elseif ARGV[2] == 'zset' then
  ids = call('ZRANGE', place, skip, skip + most - 1)
else
  ids = call('LRANGE', place, -skip - most, -skip - 1)
end
local gone = 0
for _, id in ipairs(ids) do
  local v = call('HMGET', p .. id, 'timestamp', 'rjk')
  local old = finished or (tonumber(v[1] or '') or 0) <= before
  if old and call('EXISTS', p .. id .. ':lock') == 0 and not is_pending_run(p, id, v[2]) then
    if ARGV[2] == 'zset' then call('ZREM', place, id) else call('LREM', place, -1, id) end
    remove_job(p, id, now)
    gone = gone + 1
  end
end
if gone > 0 or skip == 0 then event(p, 'cleaned', 'count', gone) end
return { #ids, gone }]]

local PAUSE = scripts.common .. [[
local p = KEYS[1]
if call('HGET', p .. 'meta', 'paused') then return 0 end
call('HSET', p .. 'meta', 'paused', 1)
call('DEL', p .. 'marker')
if LAYOUT == 5 and call('EXISTS', p .. 'wait') == 1 then
  if call('EXISTS', p .. 'paused') == 1 then
    local list = call('LRANGE', p .. 'wait', 0, -1)
    for i = #list, 1, -1 do call('LPUSH', p .. 'paused', list[i]) end
    call('DEL', p .. 'wait')
  else
    call('RENAME', p .. 'wait', p .. 'paused')
  end
end
event(p, 'paused')
return 1]]

local RESUME = scripts.common .. [[
local p = KEYS[1]
local was = call('HDEL', p .. 'meta', 'paused')
merge_paused(p)
if call('EXISTS', p .. 'wait', p .. 'prioritized') > 0 then mark(p) end
mark_delayed(p)
if was == 1 then event(p, 'resumed') end
return was]]

-- ARGV: concurrency, max, duration; '' takes one away. There may be room now for what waits, and whoever could take it sleeps.
local LIMITS = scripts.common .. [[
local p = KEYS[1]
for i, name in ipairs({ 'concurrency', 'max', 'duration' }) do
  if ARGV[i] == '' then call('HDEL', p .. 'meta', name) else call('HSET', p .. 'meta', name, ARGV[i]) end
end
mark(p)
return 1]]

-- ARGV: id, JSON.
local PROGRESS = scripts.common .. [[
local p, id = KEYS[1], ARGV[1]
if call('EXISTS', p .. id) == 0 then return -1 end
call('HSET', p .. id, 'progress', ARGV[2])
event(p, 'progress', 'jobId', id, 'data', ARGV[2])
return 0]]

-- ARGV: id, text, how many are kept or ''.
local LOG = scripts.common .. [[
local key = KEYS[1] .. ARGV[1]
if call('EXISTS', key) == 0 then return -1 end
local n = call('RPUSH', key .. ':logs', ARGV[2])
local keep = tonumber(ARGV[3])
if keep then
  call('LTRIM', key .. ':logs', -keep, -1)
  n = math.min(n, keep)
end
return n]]

-- ARGV: id, delay ms, now: to another time; or id, '', now, priority, lifo.
local CHANGE = scripts.common .. [[
local p, id, now = KEYS[1], ARGV[1], tonumber(ARGV[3])
local key = p .. id
if call('EXISTS', key) == 0 then return -1 end
if ARGV[2] ~= '' then
  if call('ZREM', p .. 'delayed', id) == 0 then return -3 end
  call('HSET', key, 'delay', ARGV[2])
  delay_until(p, id, now + tonumber(ARGV[2]))
  return 0
end
local priority = tonumber(ARGV[4])
if call('ZREM', p .. 'prioritized', id) == 1 or call('LREM', p .. 'wait', -1, id) == 1 or call('LREM', p .. 'paused', -1, id) == 1 then
  push(p, id, priority, ARGV[5] == '1')
elseif not call('ZSCORE', p .. 'delayed', id) then
  return -3
end
call('HSET', key, 'priority', priority)
return 0]]

local WHOLE = 2 ^ 40

local function text(n) return ("%.0f"):format(n) end
local function now() return text(time.now()) end
local function run(script, queue, ...) return errors.check(redis.eval(script, { jobs.base(queue) }, { ... })) end

-- Looking ------------------------------------------------------------------------------------------------------------------

local function decoded(value)
    if value == nil then return nil end
    local ok, result = pcall(json.decode, value)
    if ok and result ~= nil then return result end
    return value
end

local function record(id, flat, left_out)
    local h, omitted = {}, nil
    for i = 1, #flat, 2 do h[flat[i]] = flat[i + 1] end
    if next(h) == nil and #left_out == 0 then return nil end
    for i = 1, #left_out, 2 do
        omitted = omitted or {}
        omitted[left_out[i]] = tonumber(left_out[i + 1])
    end
    return { id = id, omitted = omitted, name = h.name or "",
        data = decoded(h.data), opts = decoded(h.opts), timestamp = tonumber(h.timestamp),
        delay = tonumber(h.delay), priority = tonumber(h.priority), attemptsMade = tonumber(h.atm) or 0,
        attemptsStarted = tonumber(h.ats) or 0, stalledCounter = tonumber(h.stc) or 0, processedOn = tonumber(h.processedOn),
        finishedOn = tonumber(h.finishedOn), returnvalue = decoded(h.returnvalue), failedReason = h.failedReason,
        stacktrace = decoded(h.stacktrace), progress = decoded(h.progress), processedBy = h.pb, repeatJobKey = h.rjk,
        deduplicationId = h.deid, parentKey = h.parentKey, parent = decoded(h.parent), deferredFailure = h.defa }
end

--- A job as it is stored, or nil.
---@param queue string
---@param id string
---@param most integer|nil bytes: a longer text is cut, longer JSON is left out and told in `omitted` {field = bytes}; nil: all is read
---@return table|nil job with state (that of BullMQ: waiting, active, ...) and locked
function M.get(queue, id, most)
    local answer = run(LOOK, queue, id, text(most or WHOLE))
    if type(answer) ~= "table" then return nil end
    local job = record(id, answer[1], answer[2])
    if not job then return nil end
    job.state = answer[3] == "wait" and "waiting" or answer[3]
    job.locked = answer[4] == 1
    return job
end

---@param queue string
---@param id string
---@return boolean
function M.has(queue, id) return errors.check(redis.call("EXISTS", jobs.base(queue) .. id)) == 1 end

--- How many jobs are in each state.
---@param queue string
---@return table<string, integer>
function M.counts(queue)
    local prefix = jobs.base(queue)
    local commands = {}
    for i, state in ipairs(M.STATES) do
        local place = PLACES[state]
        commands[i] = { place[1] == "list" and "LLEN" or "ZCARD", prefix .. place[2] }
    end
    local counts = {}
    for i, n in ipairs(errors.check(redis.pipeline(commands))) do counts[M.STATES[i]] = tonumber(n) or 0 end
    return counts
end

---@param queue string
---@return boolean
function M.is_paused(queue) return errors.check(redis.call("HEXISTS", jobs.base(queue) .. "meta", "paused")) == 1 end

--- Whether the queue is known: somebody opened it, added to it, or handles it here.
---@param queue string
---@return boolean
function M.exists(queue)
    local prefix = jobs.base(queue)
    return errors.check(redis.call("EXISTS", prefix .. "meta", prefix .. "id")) > 0
end

--- Names of queues in Redis and of those handled here, sorted. Looks through the keys of the server in bounded steps.
---@return string[] names
---@return boolean whole false: more keys than it looks through
function M.names()
    local prefix = (config.get("QUEUE_PREFIX") or "bull") .. ":"
    local found, count = {}, 0
    for _, queue in ipairs(jobs.queues()) do found[queue] = true end
    local cursor, steps = "0", 0
    repeat
        local answer = errors.check(redis.call("SCAN", cursor, "MATCH", prefix:gsub("[%[%]*?\\]", "\\%0") .. "*:meta", "COUNT", 1000,
            "TYPE", "hash"))
        cursor = answer[1]
        for _, key in ipairs(answer[2]) do
            local queue = key:sub(#prefix + 1, -6)
            if queue ~= "" and not queue:find(":", 1, true) and not found[queue] then
                found[queue] = true
                count = count + 1
            end
        end
        steps = steps + 1
    until cursor == "0" or steps >= 2000 or count >= QUEUES_MAX
    local names = {}
    for queue in pairs(found) do names[#names + 1] = queue end
    table.sort(names)
    return names, cursor == "0"
end

--- Ids of the jobs of a state: waiting ones next first, delayed by their time, ended ones newest first.
---@param queue string
---@param state string of M.STATES
---@param offset integer
---@param limit integer at most 1000
---@return string[]
function M.ids(queue, state, offset, limit)
    local prefix = jobs.base(queue)
    local place = PLACES[state] or error("no such state: " .. tostring(state), 2)
    limit = math.min(limit, LIST_MAX)
    if limit < 1 then return {} end
    if place[1] ~= "list" then
        local newest = state == "completed" or state == "failed"
        return errors.check(redis.call(newest and "ZREVRANGE" or "ZRANGE", prefix .. place[2], offset, offset + limit - 1))
    end
    -- The right end is served next.
    local slice = errors.check(redis.call("LRANGE", prefix .. place[2], -(offset + limit), -(offset + 1)))
    local ids = {}
    for i = #slice, 1, -1 do ids[#ids + 1] = slice[i] end
    return ids
end

--- Jobs of a state in the order of their ids.
---@param queue string
---@param state string of M.STATES
---@param offset integer
---@param limit integer at most 1000
---@param most integer|nil bytes of a field, as in get
---@return table[] jobs
function M.list(queue, state, offset, limit, most)
    local ids, list = M.ids(queue, state, offset, limit), {}
    local function add(id, flat, omitted)
        local job = record(id, flat, omitted)
        if not job then return end
        job.state = state
        list[#list + 1] = job
    end
    if not most then
        -- A reply each: one for all might be larger than a reply may be.
        local commands = {}
        for i, id in ipairs(ids) do commands[i] = { "HGETALL", jobs.base(queue) .. id } end
        for i, flat in ipairs(commands[1] and errors.check(redis.pipeline(commands)) or {}) do
            if type(flat) == "table" and not flat.err then add(ids[i], flat, {}) end
        end
        return list
    end
    for from = 1, #ids, LOOK_AT_ONCE do
        local some = { unpack(ids, from, math.min(from + LOOK_AT_ONCE - 1, #ids)) }
        for i, answer in ipairs(run(LOOK_MANY, queue, text(most), unpack(some))) do add(some[i], answer[1], answer[2]) end
    end
    return list
end

--- Rows that a job's handler kept.
---@param queue string
---@param id string
---@param limit integer|nil the last so many, 1000 at most
---@param most integer|nil bytes at which a row is cut; nil: all is read
---@return string[] rows, integer total
function M.logs(queue, id, limit, most)
    local answer = run(ROWS, queue, id, text(math.min(limit or 100, LOGS_MAX)), text(most or WHOLE))
    return answer[1], answer[2]
end

--- What the children of a job answered, by their keys.
---@param queue string
---@param id string
---@param limit integer|nil of how many children at most; nil: all
---@param most integer|nil bytes: a longer answer is left out and shows as an empty text; nil: all is read
---@return table<string, any> values
---@return table<string, string> failed reasons of children whose failure is ignored
function M.children_values(queue, id, limit, most)
    local answer = run(ANSWERS, queue, id, text(limit or WHOLE), text(most or WHOLE))
    local values, failed = {}, {}
    for i = 1, #answer[1], 2 do values[answer[1][i]] = decoded(answer[1][i + 1]) end
    for i = 1, #answer[2], 2 do failed[answer[2][i]] = answer[2][i + 1] end
    return values, failed
end

--- Jobs ended a minute, the newest minute first.
---@param queue string
---@param what "completed"|"failed"
---@param limit integer|nil 60
---@return {count: integer, per_minute: integer[]}
function M.metrics(queue, what, limit)
    local key = jobs.base(queue) .. "metrics:" .. what
    local answer = errors.check(redis.pipeline{ { "HGET", key, "count" }, { "LRANGE", key .. ":data", 0, (limit or 60) - 1 } })
    local points = {}
    for i, n in ipairs(answer[2]) do points[i] = tonumber(n) end
    return { count = tonumber(answer[1]) or 0, per_minute = points }
end

--- Events after a place of the stream.
---@param queue string
---@param after string|nil id of the last one seen; nil: from the oldest
---@param limit integer|nil 100
---@return {id: string, event: string, [string]: string}[]
function M.events(queue, after, limit)
    local from = after and "(" .. after or "-"
    local list = {}
    for _, entry in ipairs(errors.check(redis.call("XRANGE", jobs.base(queue) .. "events", from, "+", "COUNT", limit or 100))) do
        local one = { id = entry[1] }
        for i = 1, #entry[2], 2 do one[entry[2][i]] = entry[2][i + 1] end
        list[#list + 1] = one
    end
    return list
end

--- Waits for events on a connection of the caller: local conn = redis.dedicated(jobs.connection_name(queue) .. ":qe").
---@param conn table
---@param queue string
---@param after string "$": what comes from now on
---@param ms integer how long, below the connection's limit
---@return table[] as M.events
function M.await_events(conn, queue, after, ms)
    local answer = errors.check(conn:call("XREAD", "BLOCK", math.max(1, ms), "COUNT", 100, "STREAMS", jobs.base(queue) .. "events", after))
    local list = {}
    if type(answer) ~= "table" or not answer[1] then return list end
    for _, entry in ipairs(answer[1][2]) do
        local one = { id = entry[1] }
        for i = 1, #entry[2], 2 do one[entry[2][i]] = entry[2][i + 1] end
        list[#list + 1] = one
    end
    return list
end

--- Live workers of a queue, ours and Node's, by the names of their connections.
---@param queue string
---@return {name: string, addr: string, age: integer}[]
function M.workers(queue)
    local wanted = jobs.connection_name(queue)
    local list = {}
    for line in errors.check(redis.call("CLIENT", "LIST")):gmatch("[^\n]+") do
        local name = line:match(" name=(%S*)")
        if name == wanted or name and name:sub(1, #wanted + 3) == wanted .. ":w:" then
            list[#list + 1] = { name = name:sub(#wanted + 4), addr = line:match(" addr=(%S+)"), age = tonumber(line:match(" age=(%d+)")) }
        end
    end
    return list
end

-- Moving -------------------------------------------------------------------------------------------------------------------

--- A failed or completed job waits again. Code 0, -1 or -3.
---@param queue string
---@param id string
---@param reset boolean|nil its attempts begin anew
---@return integer code
function M.retry(queue, id, reset) return run(RETRY, queue, id, now(), reset and "1" or "0") end

--- A delayed job runs now. Code 0, -1 or -3.
---@param queue string
---@param id string
---@return integer code
function M.promote(queue, id) return run(PROMOTE, queue, id) end

--- Removes a job and the children under it. Code 0, -1, -2 (a worker holds one of them) or -8.
---@param queue string
---@param id string
---@return integer code
function M.remove(queue, id) return run(REMOVE, queue, id, now()) end

--- Moves a delayed job's time. Code 0, -1 or -3.
---@param queue string
---@param id string
---@param delay_ms integer from now
---@return integer code
function M.change_delay(queue, id, delay_ms) return run(CHANGE, queue, id, text(delay_ms), now()) end

--- Changes a job's priority; 0 puts it into the plain line. Code 0, -1 or -3.
---@param queue string
---@param id string
---@param priority integer
---@param lifo boolean|nil
---@return integer code
function M.change_priority(queue, id, priority, lifo)
    return run(CHANGE, queue, id, "", now(), text(priority), lifo and "1" or "0")
end

--- Removes what waits, in batches; schedulers' next runs stay.
---@param queue string
---@param delayed boolean|nil delayed jobs too
---@return integer removed
function M.drain(queue, delayed)
    local gone = 0
    local places = { PLACES.waiting, PLACES.paused, PLACES.prioritized }
    if delayed then places[4] = PLACES.delayed end
    local counts = M.counts(queue)
    local limits = { counts.waiting, counts.paused, counts.prioritized, counts.delayed }
    for i, place in ipairs(places) do
        -- What is added meanwhile is not ours to remove.
        local left = limits[i]
        while left > 0 do
            local answer = run(DRAIN, queue, place[2], place[1], now(), text(math.min(left, BATCH)))
            gone = gone + answer[2]
            left = left - answer[1]
            if answer[1] == 0 or answer[2] == 0 then break end
        end
    end
    return gone
end

--- Removes jobs of a state that are older than a time.
---@param queue string
---@param state string completed, failed, waiting, paused, delayed or prioritized
---@param grace_ms integer age, by the end of ended jobs, else by their making
---@param limit integer|nil at most so many
---@return integer removed
function M.clean(queue, state, grace_ms, limit)
    local place = PLACES[state]
    local gone, kept, most = 0, 0, limit or math.huge
    local before = text(time.now() - grace_ms)
    while gone < most do
        local wanted = math.min(BATCH, most - gone)
        local answer = run(CLEAN, queue, place[2], place[1], now(), before, text(wanted), text(kept))
        gone, kept = gone + answer[2], kept + answer[1] - answer[2]
        if answer[1] < wanted then break end
    end
    return gone
end

--- Workers take nothing more until it is resumed. In the form of BULLMQ_LAYOUT.
---@param queue string
---@return boolean changed
function M.pause(queue)
    jobs.introduce(jobs.base(queue))
    return run(PAUSE, queue) == 1
end

--- Whoever paused it, in whatever form.
---@param queue string
---@return boolean changed
function M.resume(queue) return run(RESUME, queue) == 1 end

--- Limits all workers of a queue together, at once; nil takes a limit away.
---@param queue string
---@param limits {concurrency: integer|nil, max: integer|nil, duration: integer|nil}
function M.set_limits(queue, limits)
    local values = {}
    for i, name in ipairs{ "concurrency", "max", "duration" } do values[i] = limits[name] and text(limits[name]) or "" end
    run(LIMITS, queue, unpack(values))
end

---@param queue string
---@param id string
---@param value any of JSON, at most 64 KiB
---@return integer code 0 or -1
function M.update_progress(queue, id, value)
    local encoded = json.encode(value)
    if #encoded > NOTE_MAX then error("a job's progress is at most 64 KiB as JSON", 2) end
    return run(PROGRESS, queue, id, encoded)
end

---@param queue string
---@param id string
---@param line string cut at 64 KiB
---@param keep integer|nil how many are kept
---@return integer rows or -1
function M.add_log(queue, id, line, keep) return run(LOG, queue, id, tostring(line):sub(1, NOTE_MAX), keep and text(keep) or "") end

return M
