-- The moves of a job between its lists, each one script. KEYS[1] is the queue's prefix ("bull:mail-queue:"): all keys of a queue
-- derive from it and, on a cluster, lie in one slot by the braces in QUEUE_PREFIX.
local M = {}

-- Shared: where ready jobs go, waking a worker, the score of a delayed job.
local COMMON = [[
local p = KEYS[1]
local function paused() return redis.call('HGET', p .. 'meta', 'paused') == '1' end
local function limited()
  local c = redis.call('HGET', p .. 'meta', 'concurrency')
  return c and redis.call('LLEN', p .. 'active') >= tonumber(c)
end
local function mark() if not paused() and not limited() then redis.call('ZADD', p .. 'marker', 0, '0') end end
local function wait_list()
  if redis.call('EXISTS', p .. 'paused') == 1 then return p .. 'paused' end
  return p .. 'wait'
end
local function events_max() return redis.call('HGET', p .. 'meta', 'opts.maxLenEvents') or 10000 end
local function event(...) redis.call('XADD', p .. 'events', 'MAXLEN', '~', events_max(), '*', 'event', ...) end
local function push_prioritized(id, priority)
  local counter = redis.call('INCR', p .. 'pc')
  redis.call('ZADD', p .. 'prioritized', priority * 4294967296 + counter % 4294967296, id)
  mark()
end
local function push(id, priority, lifo)
  if priority > 0 then return push_prioritized(id, priority) end
  redis.call(lifo and 'RPUSH' or 'LPUSH', wait_list(), id)
  mark()
end
local function next_due()
  local first = redis.call('ZRANGE', p .. 'delayed', 0, 0, 'WITHSCORES')
  if #first > 0 then return math.floor(tonumber(first[2]) / 4096) end
  return nil
end
local function mark_delayed()
  local due = next_due()
  if due then redis.call('ZADD', p .. 'marker', due, '1') end
end
local function delay_until(id, due)
  local low = due * 4096
  local last = redis.call('ZREVRANGEBYSCORE', p .. 'delayed', string.format('%.0f', low + 4095), string.format('%.0f', low), 'WITHSCORES',
    'LIMIT', 0, 1)
  local score = low
  if #last > 0 then score = math.min(tonumber(last[2]) + 1, low + 4095) end
  redis.call('ZADD', p .. 'delayed', string.format('%.0f', score), id)
  event('delayed', 'jobId', id, 'delay', string.format('%.0f', due))
  mark_delayed()
end
]]

-- ARGV: id or '', name, data, opts, timestamp, delay, priority, lifo, asker or ''. Answers the id.
M.add = COMMON .. [[
if ARGV[9] ~= '' then
  local before = redis.call('GET', p .. 'ob:' .. ARGV[9])
  if before then return before end
end
local counter = redis.call('INCR', p .. 'id')
local id = ARGV[1] ~= '' and ARGV[1] or tostring(counter)
local key = p .. id
if ARGV[9] ~= '' then redis.call('SET', p .. 'ob:' .. ARGV[9], id, 'PX', 86400000) end
if redis.call('EXISTS', key) == 1 then
  event('duplicated', 'jobId', id)
  return id
end
local delay, priority = tonumber(ARGV[6]), tonumber(ARGV[7])
redis.call('HSET', key, 'name', ARGV[2], 'data', ARGV[3], 'opts', ARGV[4], 'timestamp', ARGV[5], 'delay', ARGV[6], 'priority', ARGV[7])
event('added', 'jobId', id, 'name', ARGV[2])
if delay > 0 then
  delay_until(id, tonumber(ARGV[5]) + delay)
else
  push(id, priority, ARGV[8] == '1')
  event('waiting', 'jobId', id)
end
return id]]

-- ARGV: token, now, lock ms, worker's name. Answers {hash, id, next due}.
M.fetch = COMMON .. [[
local now = tonumber(ARGV[2])
local due = redis.call('ZRANGEBYSCORE', p .. 'delayed', '-inf', '(' .. string.format('%.0f', (now + 1) * 4096), 'LIMIT', 0, 1000)
if #due > 0 then
  for _, id in ipairs(due) do
    redis.call('ZREM', p .. 'delayed', id)
    local priority = tonumber(redis.call('HGET', p .. id, 'priority') or '0') or 0
    push(id, priority, false)
    redis.call('HSET', p .. id, 'delay', 0)
    event('waiting', 'jobId', id, 'prev', 'delayed')
  end
end
mark_delayed()
local function nothing() return {{}, '', next_due() or 0} end
local max = redis.call('HGET', p .. 'meta', 'max')
if max and tonumber(redis.call('GET', p .. 'limiter') or '0') >= tonumber(max) then
  local ttl = redis.call('PTTL', p .. 'limiter')
  return {{}, '', ttl > 0 and now + ttl or 0}
end
if paused() or limited() then return nothing() end
while true do
  local id = redis.call('RPOPLPUSH', p .. 'wait', p .. 'active')
  if not id then
    local first = redis.call('ZPOPMIN', p .. 'prioritized')
    if #first > 0 then
      id = first[1]
      redis.call('LPUSH', p .. 'active', id)
      if redis.call('ZCARD', p .. 'prioritized') == 0 then redis.call('DEL', p .. 'pc') end
    end
  end
  if not id then return nothing() end
  local key = p .. id
  if redis.call('EXISTS', key) == 0 then
    redis.call('LREM', p .. 'active', 1, id)
  else
    if max then
      local used = redis.call('INCR', p .. 'limiter')
      if used == 1 then redis.call('PEXPIRE', p .. 'limiter', redis.call('HGET', p .. 'meta', 'duration') or 1000) end
    end
    redis.call('SET', key .. ':lock', ARGV[1], 'PX', ARGV[3])
    event('active', 'jobId', id, 'prev', 'waiting')
    redis.call('HSET', key, 'processedOn', ARGV[2])
    if ARGV[4] ~= '' then redis.call('HSET', key, 'pb', ARGV[4]) end
    redis.call('HINCRBY', key, 'ats', 1)
    redis.call('ZADD', p .. 'marker', 0, '0')
    return {redis.call('HGETALL', key), id, 0}
  end
end]]

-- Shared by what ends a job: 0 = it is ours; a negative code says why not.
local OWN = [[
local function own(id, token)
  local key = p .. id
  if redis.call('EXISTS', key) == 0 then return -1 end
  local lock = redis.call('GET', key .. ':lock')
  if lock ~= token then return lock and -6 or -2 end
  if redis.call('LREM', p .. 'active', 1, id) == 0 then return -3 end
  redis.call('DEL', key .. ':lock')
  redis.call('SREM', p .. 'stalled', id)
  return 0
end
local function keep_trace(key, trace)
  local limit = 10
  local opts = redis.call('HGET', key, 'opts')
  if opts then limit = tonumber(cjson.decode(opts).stackTraceLimit) or limit end
  local list = cjson.decode(redis.call('HGET', key, 'stacktrace') or '[]')
  for _, entry in ipairs(cjson.decode(trace)) do table.insert(list, entry) end
  while #list > limit do table.remove(list, 1) end
  if #list > 0 then redis.call('HSET', key, 'stacktrace', cjson.encode(list)) end
end
local function remove_job(id)
  local key = p .. id
  redis.call('DEL', key, key .. ':logs', key .. ':lock', key .. ':dependencies', key .. ':processed', key .. ':failed', key ..
    ':unsuccessful')
end
]]

-- ARGV: id, token, now, completed|failed, value or reason, keep count (-1 all, 0 none), keep age s or '', stack traces, retries exhausted.
M.finish = COMMON .. OWN .. [[
local id, now, target = ARGV[1], tonumber(ARGV[3]), ARGV[4]
local key = p .. id
if redis.call('SCARD', key .. ':dependencies') > 0 then return -4 end
local code = own(id, ARGV[2])
if code < 0 then return code end
local made = redis.call('HINCRBY', key, 'atm', 1)
local count, age = tonumber(ARGV[6]), tonumber(ARGV[7])
if target == 'failed' and ARGV[8] ~= '' then keep_trace(key, ARGV[8]) end
if count == 0 then
  remove_job(id)
else
  redis.call('ZADD', p .. target, now, id)
  redis.call('HSET', key, target == 'completed' and 'returnvalue' or 'failedReason', ARGV[5], 'finishedOn', ARGV[3])
  if age then
    for _, old in ipairs(redis.call('ZRANGEBYSCORE', p .. target, '-inf', now - age * 1000, 'LIMIT', 0, 1000)) do
      remove_job(old)
      redis.call('ZREM', p .. target, old)
    end
  end
  if count > 0 then
    for _, old in ipairs(redis.call('ZREVRANGE', p .. target, count, count + 999)) do
      remove_job(old)
      redis.call('ZREM', p .. target, old)
    end
  end
end
if target == 'completed' then
  event('completed', 'jobId', id, 'returnvalue', ARGV[5], 'prev', 'active')
else
  event('failed', 'jobId', id, 'failedReason', ARGV[5], 'prev', 'active')
  if ARGV[9] == '1' then event('retries-exhausted', 'jobId', id, 'attemptsMade', made) end
end
if redis.call('LLEN', p .. 'wait') == 0 and redis.call('LLEN', p .. 'active') == 0 and redis.call('ZCARD', p .. 'prioritized') == 0 then
  event('drained')
else
  mark()
end
return 0]]

-- ARGV: id, token, now, delay ms, reason, stack traces.
M.retry = COMMON .. OWN .. [[
local id, delay = ARGV[1], tonumber(ARGV[4])
local key = p .. id
local code = own(id, ARGV[2])
if code < 0 then return code end
redis.call('HINCRBY', key, 'atm', 1)
keep_trace(key, ARGV[6])
redis.call('HSET', key, 'failedReason', ARGV[5], 'delay', ARGV[4])
if delay > 0 then
  delay_until(id, tonumber(ARGV[3]) + delay)
else
  push(id, tonumber(redis.call('HGET', key, 'priority') or '0') or 0, true)
  event('waiting', 'jobId', id, 'prev', 'active')
end
return 0]]

-- ARGV: id, token, lock ms.
M.extend = [[
local p = KEYS[1]
if redis.call('GET', p .. ARGV[1] .. ':lock') ~= ARGV[2] then return 0 end
redis.call('SET', p .. ARGV[1] .. ':lock', ARGV[2], 'PX', ARGV[3])
redis.call('SREM', p .. 'stalled', ARGV[1])
return 1]]

-- ARGV: id, token, now. A job whose worker stops goes back to the front of wait.
M.release = COMMON .. OWN .. [[
local code = own(ARGV[1], ARGV[2])
if code < 0 then return code end
redis.call('RPUSH', wait_list(), ARGV[1])
event('waiting', 'jobId', ARGV[1], 'prev', 'active')
mark()
return 0]]

-- ARGV: interval ms, now. Answers the ids that went back to wait.
M.stalled = COMMON .. [[
if not redis.call('SET', p .. 'stalled-check', ARGV[2], 'NX', 'PX', ARGV[1]) then return {} end
local back = {}
for _, id in ipairs(redis.call('SMEMBERS', p .. 'stalled')) do
  local key = p .. id
  if redis.call('EXISTS', key .. ':lock') == 0 and redis.call('LREM', p .. 'active', 1, id) > 0 and redis.call('EXISTS', key) == 1 then
    local count = redis.call('HINCRBY', key, 'stc', 1)
    if count > 1 and not redis.call('HGET', key, 'rjk') then
      redis.call('HSET', key, 'defa', 'job stalled more than allowable limit')
    end
    redis.call('RPUSH', wait_list(), id)
    mark()
    event('waiting', 'jobId', id, 'prev', 'active')
    event('stalled', 'jobId', id)
    table.insert(back, id)
  end
end
redis.call('DEL', p .. 'stalled')
for _, id in ipairs(redis.call('LRANGE', p .. 'active', 0, -1)) do redis.call('SADD', p .. 'stalled', id) end
return back]]

return M
