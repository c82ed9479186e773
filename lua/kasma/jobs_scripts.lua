-- The moves of a job between its lists, each one script of the Redis server. A queue's keys all begin with its prefix
-- ("bull:mail-queue:"); on a cluster the braces in QUEUE_PREFIX put them, and those of every other queue, in one slot.
--
-- `common` is what every script begins with. In it and in the scripts: p is a prefix, id a job's id, now the business clock in ms.
-- What a worker does between two jobs (end what ran, promote what fell due, take what comes next) is one script, `cycle`, for as many
-- jobs as ended and as many as there is room for. Arguments of redis.call are texts where they can be: printing a number costs more than
-- most commands.
local config = require("core.config")

local M = {}

local LAYOUT = tonumber(config.get("BULLMQ_LAYOUT")) or 5

-- The most that a job's data, name and options may be together, and that one call of `cycle` hands over: a reply has a bound, and a job
-- that breaks it would come again for ever.
M.BYTES_MAX = 8 * 1048576

M.common = "local LAYOUT = " .. LAYOUT .. "\n" .. [[
local call = redis.call
local metas = {}
local function meta(p)
  local m = metas[p]
  if m then return m end
  local v = call('HMGET', p .. 'meta', 'paused', 'concurrency', 'max', 'duration', 'opts.maxLenEvents', 'version')
  m = { paused = v[1] and true or false, concurrency = tonumber(v[2] or ''), max = tonumber(v[3] or ''), duration = tonumber(v[4] or ''),
    events = v[5] or '10000', stream = p .. 'events', five = LAYOUT == 5 and not (v[6] and string.find(v[6], '^bullmq:[6-9]')) }
  metas[p] = m
  return m
end
-- A script's first event on a stream cuts it, which is exact enough for all of them.
local function event(p, ...)
  local m = metas[p] or meta(p)
  if m.cut then return call('XADD', m.stream, '*', 'event', ...) end
  m.cut = true
  call('XADD', m.stream, 'MAXLEN', '~', m.events, '*', 'event', ...)
end
-- While a script that moves many jobs gathers, pushes and marks wait for its end: one command for all.
local gathered
local function limited(p)
  local most = meta(p).concurrency
  return most and call('LLEN', p .. 'active') >= most
end
local function mark(p)
  if gathered then
    gathered.marks[p] = true
  elseif not meta(p).paused and not limited(p) then
    call('ZADD', p .. 'marker', '0', '0')
  end
end
local function gather() gathered = { lists = {}, marks = {} } end
local function flush_lists()
  for list, ids in pairs(gathered.lists) do
    for i = 1, #ids, 1000 do call('LPUSH', list, unpack(ids, i, math.min(i + 999, #ids))) end
  end
  gathered.lists = {}
end
local function flush()
  flush_lists()
  local marks = gathered.marks
  gathered = nil
  for p in pairs(marks) do mark(p) end
end

-- A `paused` list without the flag was left by a worker of another major: what it holds is older than what waits.
local function merge_paused(p)
  if call('EXISTS', p .. 'paused') == 0 then return end
  local list = call('LRANGE', p .. 'paused', 0, -1)
  for i = 1, #list, 1000 do call('RPUSH', p .. 'wait', unpack(list, i, math.min(i + 999, #list))) end
  call('DEL', p .. 'paused')
end
-- Where ready jobs go. The fifth major renames `wait` on a pause and renames back over it: what is added meanwhile must lie in `paused`.
local function wait_list(p)
  local m = meta(p)
  if m.list then return m.list end
  m.list = p .. 'wait'
  if m.paused then
    if m.five or call('EXISTS', p .. 'paused') == 1 then m.list = p .. 'paused' end
  else
    merge_paused(p)
  end
  return m.list
end
local function push(p, id, priority, lifo)
  if priority and priority > 0 then
    local counter = call('INCR', p .. 'pc')
    call('ZADD', p .. 'prioritized', priority * 4294967296 + counter % 4294967296, id)
  elseif lifo or not gathered then
    call(lifo and 'RPUSH' or 'LPUSH', wait_list(p), id)
  else
    local list = wait_list(p)
    local ids = gathered.lists[list] or {}
    gathered.lists[list] = ids
    ids[#ids + 1] = id
  end
  mark(p)
end
local function next_due(p)
  local first = call('ZRANGE', p .. 'delayed', 0, 0, 'WITHSCORES')
  return first[2] and math.floor(tonumber(first[2]) / 4096) or nil
end
local function mark_delayed(p)
  local due = next_due(p)
  if due and not meta(p).paused then call('ZADD', p .. 'marker', due, '1') end
end
local delays = false -- whether this script has put a job there
local function delay_until(p, id, due)
  delays = true
  local low = due * 4096
  local last = call('ZREVRANGEBYSCORE', p .. 'delayed', low + 4095, low, 'WITHSCORES', 'LIMIT', 0, 1)
  event(p, 'delayed', 'jobId', id, 'delay', string.format('%.0f', due))
  call('ZADD', p .. 'delayed', last[2] and math.min(tonumber(last[2]) + 1, low + 4095) or low, id)
  mark_delayed(p)
end

-- parent is {id, queueKey}. It leaves waiting-children; its own delay and priority hold then.
local function release_parent(parent, now, defa)
  local pp, id = parent.queueKey .. ':', parent.id
  local key = pp .. id
  local before
  if call('ZREM', pp .. 'waiting-children', id) == 1 then
    before = 'waiting-children'
  elseif defa and call('ZREM', pp .. 'delayed', id) == 1 then
    before = 'delayed'
  end
  if defa and call('EXISTS', key) == 1 and call('HEXISTS', key, 'finishedOn') == 0 then call('HSET', key, 'defa', defa) end
  if not before then return end
  local v = call('HMGET', key, 'delay', 'priority')
  local delay = tonumber(v[1] or '') or 0
  if delay > 0 and not defa then return delay_until(pp, id, now + delay) end
  push(pp, id, tonumber(v[2] or '') or 0)
  event(pp, 'waiting', 'jobId', id, 'prev', before)
end
local function child_gone(parent_key, parent, child_key, now)
  if call('SREM', parent_key .. ':dependencies', child_key) == 0 then return false end
  if call('SCARD', parent_key .. ':dependencies') == 0 then release_parent(parent, now) end
  return true
end
local function decode(text)
  if not text then return nil end
  local ok, value = pcall(cjson.decode, text)
  return ok and type(value) == 'table' and value or nil
end

local function leave_parent(key, now)
  local v = call('HMGET', key, 'parentKey', 'parent')
  local parent = v[1] and decode(v[2])
  if not parent or not parent.queueKey or call('EXISTS', v[1]) == 0 then return end
  child_gone(v[1], parent, key, now)
  call('ZREM', v[1] .. ':unsuccessful', key)
end
-- Deletes a job that lies in no list any more: its keys, its place under a parent, its ownership of a deduplication id.
local function remove_job(p, id, now)
  local key = p .. id
  leave_parent(key, now)
  local deid = call('HGET', key, 'deid')
  if deid and call('GET', p .. 'de:' .. deid) == id then call('DEL', p .. 'de:' .. deid, p .. 'dn:' .. deid) end
  call('DEL', key, key .. ':lock', key .. ':logs', key .. ':dependencies', key .. ':processed', key .. ':failed', key .. ':unsuccessful')
end

-- Nil: the job is to be added. Else it is a duplicate of the id answered.
local function deduplicate(p, d, id, job, now)
  local key = p .. 'de:' .. d.id
  local ttl = tonumber(d.ttl) or 0
  local function own()
    if ttl > 0 then call('SET', key, id, 'PX', ttl) else call('SET', key, id) end
  end
  local owner = call('GET', key)
  if not owner then return own() end
  if call('EXISTS', p .. owner) == 0 and call('PTTL', key) == -1 then return own() end
  local function tell(kept, dropped)
    if LAYOUT == 5 then event(p, 'debounced', 'jobId', kept, 'debounceId', d.id) end
    event(p, 'deduplicated', 'jobId', kept, 'deduplicationId', d.id, 'deduplicatedJobId', dropped)
  end
  if d.replace and call('ZREM', p .. 'delayed', owner) == 1 then
    local left = call('PTTL', key)
    remove_job(p, owner, now)
    event(p, 'removed', 'jobId', owner, 'prev', 'delayed')
    if ttl > 0 and left > 0 and not d.extend then call('SET', key, id, 'PX', left) else own() end
    tell(id, owner)
    return nil
  end
  if d.keepLastIfActive and call('EXISTS', p .. owner .. ':lock') == 1 then
    local held = p .. 'dn:' .. d.id
    call('DEL', held)
    call('HSET', held, 'name', job.name, 'data', job.data, 'opts', job.opts, 'jid', id)
    if job.parent_key then
      call('HSET', held, 'pk', job.parent_key, 'pd', job.parent, 'pdk', job.parent_key .. ':dependencies')
    end
    if job.rjk then call('HSET', held, 'rjk', job.rjk) end
  end
  if d.extend and ttl > 0 then call('PEXPIRE', key, ttl) end
  tell(owner, id)
  return owner
end

-- job: name, data, opts (texts), timestamp, delay, priority; where there is one, lifo, parent_key, parent (text), deid, rjk, waits.
local function insert(p, id, job)
  local key = p .. id
  call('HSET', key, 'name', job.name, 'data', job.data, 'opts', job.opts, 'timestamp', job.timestamp, 'delay', job.delay, 'priority',
    job.priority)
  if job.parent_key then call('HSET', key, 'parentKey', job.parent_key, 'parent', job.parent) end
  if job.deid then call('HSET', key, 'deid', job.deid) end
  if job.rjk then call('HSET', key, 'rjk', job.rjk) end
  event(p, 'added', 'jobId', id, 'name', job.name)
  local delay = tonumber(job.delay)
  if job.waits then
    call('ZADD', p .. 'waiting-children', job.timestamp, id)
    event(p, 'waiting-children', 'jobId', id)
  elseif delay > 0 then
    delay_until(p, id, tonumber(job.timestamp) + delay)
  else
    push(p, id, tonumber(job.priority), job.lifo)
    event(p, 'waiting', 'jobId', id)
  end
  if job.parent_key then call('SADD', job.parent_key .. ':dependencies', key) end
end

-- What dn: holds is added when its owner ends.
local function end_deduplication(p, id, deid, now)
  local key = p .. 'de:' .. deid
  if call('GET', key) ~= id then return end
  if call('PTTL', key) == -1 then call('DEL', key) end
  local held = p .. 'dn:' .. deid
  local v = call('HMGET', held, 'name', 'data', 'opts', 'jid', 'pk', 'pd', 'rjk')
  if not v[1] then return end
  call('DEL', held)
  local opts = decode(v[3]) or {}
  local next_id = v[4] or tostring(call('INCR', p .. 'id'))
  if call('EXISTS', p .. next_id) == 1 then return end
  call('SET', key, next_id)
  call('INCR', p .. 'id')
  insert(p, next_id, { name = v[1], data = v[2] or '{}', opts = v[3] or '{}', timestamp = now, delay = tonumber(opts.delay) or 0,
    priority = tonumber(opts.priority) or 0, lifo = opts.lifo, parent_key = v[5], parent = v[6] or '', rjk = v[7], deid = deid })
end

local function in_parts(command, key, list)
  for i = 1, #list, 1000 do
    local last = math.min(i + 999, #list)
    if key then call(command, key, unpack(list, i, last)) else call(command, unpack(list, i, last)) end
  end
end
]]

-- KEYS: prefixes. ARGV: groups of 7: name, data, opts, timestamp, delay, priority, and '' or what else there is, as JSON: {key: number of
-- the prefix if not the first, id, lifo, asker, parent_key, parent (text), dedup, waits: for children}. Answers the ids, or one negative
-- code and nothing done.
M.add = M.common .. [[
local jobs, prefixes, ids, numbers, keys = {}, {}, {}, {}, {}
local fresh = {}
for at = 1, #ARGV, 7 do
  local more = ARGV[at + 6]
  local job = more == '' and {} or cjson.decode(more)
  local p = KEYS[job.key or 1]
  job.name, job.data, job.opts, job.timestamp, job.delay, job.priority = unpack(ARGV, at, at + 5)
  if job.parent_key then
    if not fresh[job.parent_key] and call('EXISTS', job.parent_key) == 0 then return -5 end
    local other = job.id and call('HGET', p .. job.id, 'parentKey')
    if other and other ~= job.parent_key and call('EXISTS', other) == 1 then return -7 end
    -- One that is there may stand above its new parent: each would wait for the other.
    local above, steps = job.id and call('EXISTS', p .. job.id) == 1 and job.parent_key, 0
    while above and steps < 1000 do
      if above == p .. job.id then return -12 end
      above, steps = fresh[above] or call('HGET', above, 'parentKey'), steps + 1
    end
  end
  if job.id then fresh[p .. job.id] = job.parent_key or call('HGET', p .. job.id, 'parentKey') or '' end
  local n = #jobs + 1
  jobs[n], prefixes[n] = job, p
  numbers[p] = (numbers[p] or 0) + 1
end
-- A number for each job, whether it takes it as its id or not.
for p, n in pairs(numbers) do numbers[p] = call('INCRBY', p .. 'id', n) - n end
for i, job in ipairs(jobs) do
  local p = prefixes[i]
  numbers[p] = numbers[p] + 1
  ids[i] = job.id or string.format('%.0f', numbers[p])
  keys[i] = p .. ids[i]
end
local met = 0
for i = 1, #keys, 1000 do met = met + call('EXISTS', unpack(keys, i, math.min(i + 999, #keys))) end
local seen = {}
gather()
-- A job that is there already: the parent that asks for it takes it over when it has none.
local function meet(p, id, key, job)
  if job.parent_key and call('HGET', key, 'parentKey') ~= job.parent_key then
    local parent = decode(job.parent)
    call('HSET', key, 'parentKey', job.parent_key, 'parent', job.parent)
    if call('ZSCORE', p .. 'completed', id) then
      call('HSET', job.parent_key .. ':processed', key, call('HGET', key, 'returnvalue') or 'null')
      if call('SCARD', job.parent_key .. ':dependencies') == 0 then release_parent(parent, tonumber(job.timestamp)) end
    else
      call('SADD', job.parent_key .. ':dependencies', key)
    end
  end
  event(p, 'duplicated', 'jobId', id)
end

for i, job in ipairs(jobs) do
  local p, id, key = prefixes[i], ids[i], keys[i]
  local before = job.asker and call('GET', p .. 'ob:' .. job.asker)
  if before then
    ids[i] = before
  else
    if (met > 0 or seen[key]) and call('EXISTS', key) == 1 then
      meet(p, id, key, job)
    else
      local owner
      if job.dedup and job.dedup.id then
        owner = deduplicate(p, job.dedup, id, job, tonumber(job.timestamp))
        job.deid = job.dedup.id
      end
      if owner then ids[i] = owner else insert(p, id, job) end
    end
    if job.asker then call('SET', p .. 'ob:' .. job.asker, ids[i], 'PX', 86400000) end
    seen[key] = true
  end
end
flush()
return ids]]

-- What ends a job, for `cycle`. Of the i-th end: ids[i], keys[i] (of its hash), lock_keys[i], and locks[i], whose lock it is.
local FINISH = [[
-- Of what ended: its places are cleared together. Nothing reads them before that.
local freed, unstalled, finished = {}, {}, { completed = {}, failed = {} }
local ids, keys, lock_keys, locks = {}, {}, {}, {}
local families, all_there = false, false
-- Where the jobs lie in `active`, when most of it ends in this call; those that were oldest then leave by one command.
local active, places, gone = {}, nil, {}
local function look_at_active(ends)
  if ends < 4 then return end
  local list = call('LRANGE', p .. 'active', 0, 4 * ends)
  if #list > 4 * ends then return end
  active, places = list, {}
  for i, id in ipairs(active) do places[id] = i end
end
local function leave_active(id)
  if not places then return call('LREM', p .. 'active', -1, id) > 0 end
  local place = places[id]
  if not place then return false end
  places[id], gone[place] = nil, true
  return true
end
local function flush_active()
  local n = #active
  while gone[n] do
    gone[n] = nil
    n = n - 1
  end
  if n == 0 and #active > 0 then
    freed[#freed + 1] = p .. 'active'
  elseif n < #active then
    call('LTRIM', p .. 'active', 0, n - 1)
  end
  for place in pairs(gone) do call('LREM', p .. 'active', -1, active[place]) end
end
local owned = 0 -- the end that has left `active` last
local function own(i, token)
  if locks[i] ~= token then
    if call('EXISTS', keys[i]) == 0 then return -1 end
    return locks[i] and -6 or -2
  end
  if not leave_active(ids[i]) then return -3 end
  owned = i
  return 0
end
-- An end that cannot be told, because a key of its job is not what it should be: the job stays active, and stalls.
local function disown(i)
  if owned ~= i then return end
  if not places then return call('RPUSH', p .. 'active', ids[i]) end
  for place, id in ipairs(active) do
    if id == ids[i] then places[id], gone[place] = place, nil end
  end
end
local function free(i)
  if owned ~= i then return end
  freed[#freed + 1] = lock_keys[i]
  unstalled[#unstalled + 1] = ids[i]
end
local function keep_trace(key, trace, opts)
  if trace == '' then return end
  local list = decode(call('HGET', key, 'stacktrace')) or {}
  for _, entry in ipairs(decode(trace) or {}) do list[#list + 1] = entry end
  local limit = tonumber((decode(opts) or {}).stackTraceLimit) or 10
  while #list > limit do table.remove(list, 1) end
  if #list > 0 then call('HSET', key, 'stacktrace', cjson.encode(list)) end
end
local function tell_parent(key, parent_key, parent, completed, value)
  if completed then
    if call('SREM', parent_key .. ':dependencies', key) == 0 then return end
    call('HSET', parent_key .. ':processed', key, value)
    if call('SCARD', parent_key .. ':dependencies') == 0 then release_parent(parent, now) end
  elseif parent.fpof then
    if call('SREM', parent_key .. ':dependencies', key) == 0 then return end
    call('ZADD', parent_key .. ':unsuccessful', now, key)
    release_parent(parent, now, 'child ' .. key .. ' failed')
  elseif parent.cpof then
    if call('SREM', parent_key .. ':dependencies', key) == 0 then return end
    call('HSET', parent_key .. ':failed', key, value)
    release_parent(parent, now)
  elseif parent.idof or parent.rdof then
    if parent.idof and call('SISMEMBER', parent_key .. ':dependencies', key) == 1 then
      call('HSET', parent_key .. ':failed', key, value)
    end
    child_gone(parent_key, parent, key, now)
  end
end
-- Deletes ended jobs, which lie in no list any more and have no lock. One that completed has left its parent. The deduplication id of a
-- job that ended is free or, when it has a time of its own, stays taken for so long.
local function drop(target, list)
  local more, n = {}, 0
  for i, id in ipairs(list) do
    local key = p .. id
    if target == 'failed' then leave_parent(key, now) end
    freed[#freed + 1] = key
    more[n + 1], more[n + 2], more[n + 3] = key .. ':logs', key .. ':dependencies', key .. ':processed'
    more[n + 4], more[n + 5] = key .. ':failed', key .. ':unsuccessful'
    n = n + 5
  end
  -- What belongs to a job but its hash is seldom there.
  for i = 1, n, 1000 do
    local last = math.min(i + 999, n)
    if call('EXISTS', unpack(more, i, last)) > 0 then call('DEL', unpack(more, i, last)) end
  end
end
-- Up to the limit of jobs that the rule {count, age s, limit} lets go.
local function sweep(target, count, age, limit)
  local set = p .. target
  local function let_go(list)
    if #list == 0 then return end
    in_parts('ZREM', set, list)
    drop(target, list)
  end
  if age then let_go(call('ZRANGEBYSCORE', set, '-inf', now - age * 1000, 'LIMIT', 0, limit)) end
  if count and count > 0 then let_go(call('ZREVRANGE', set, count, count + limit - 1)) end
end
local ended = { completed = 0, failed = 0 }
local rules, rule_list = {}, {}

-- Of a plain job the worker has said in `extra` all that is wanted here.
local function finish(i, token, value, extra, rule, trace)
  local id, key, target, parent_key, deid = ids[i], keys[i], rule.target, nil, nil
  local completed = target == 'completed'
  if completed and families and locks[i] == token then
    if call('SCARD', key .. ':dependencies') > 0 then return -4 end
    if call('ZCARD', key .. ':unsuccessful') > 0 then return -9 end
  end
  local made = completed and all_there and extra or ''
  if made == '' then
    local v = call('HMGET', key, 'name', 'parentKey', 'deid', 'atm')
    if not v[1] and call('EXISTS', key) == 0 then
      leave_active(id)
      call('DEL', key .. ':lock')
      return -1
    end
    made = v[4] and tostring(tonumber(v[4]) + 1) or '1'
    parent_key, deid = v[2], v[3]
  end
  local code = own(i, token)
  if code < 0 then return code end
  if deid then end_deduplication(p, id, deid, now) end
  if parent_key then
    local parent = decode(call('HGET', key, 'parent'))
    if parent and parent.queueKey and call('EXISTS', parent_key) == 1 then tell_parent(key, parent_key, parent, completed, value) end
  end
  if trace then keep_trace(key, trace, call('HGET', key, 'opts')) end
  if rule.count ~= '0' then
    call('HSET', key, 'atm', made, completed and 'returnvalue' or 'failedReason', value, 'finishedOn', now_text)
  end
  if completed then
    event(p, 'completed', 'jobId', id, 'returnvalue', value, 'prev', 'active')
  else
    event(p, 'failed', 'jobId', id, 'failedReason', value, 'prev', 'active')
    if extra == '1' then event(p, 'retries-exhausted', 'jobId', id, 'attemptsMade', made) end
  end
  ended[target] = ended[target] + 1
  if rule.count == '0' then
    drop(target, { id })
    return 0
  end
  local set = finished[target]
  set[#set + 1] = now_text
  set[#set + 1] = id
  if rule.sweeps then
    local name = target .. rule.count .. '|' .. rule.age
    if not rules[name] then
      rules[name] = true
      rule_list[#rule_list + 1] = { target, tonumber(rule.count), tonumber(rule.age), tonumber(rule.limit) or 1000 }
    end
  end
  return 0
end

-- Another attempt: at once or after `delay`.
local function retry(i, token, reason, extra, _, trace)
  local id, key, delay = ids[i], keys[i], tonumber(extra)
  local code = own(i, token)
  if code < 0 then return code end
  local v = call('HMGET', key, 'priority', 'opts')
  call('HINCRBY', key, 'atm', 1)
  keep_trace(key, trace, v[2])
  call('HSET', key, 'failedReason', reason, 'delay', delay)
  if delay > 0 then
    delay_until(p, id, now + delay)
  else
    event(p, 'waiting', 'jobId', id, 'prev', 'active')
    push(p, id, tonumber(v[1] or '') or 0, (decode(v[2]) or {}).lifo)
  end
  return 0
end

-- Back where it came from, without counting an attempt: the worker stops, or the queue is limited.
local function give_back(i, token)
  local code = own(i, token)
  if code < 0 then return code end
  local priority = tonumber(call('HGET', keys[i], 'priority') or '') or 0
  event(p, 'waiting', 'jobId', ids[i], 'prev', 'active')
  push(p, ids[i], priority, true)
  return 0
end
local function postpone(i, token, _, delay)
  local code = own(i, token)
  if code < 0 then return code end
  call('HSET', keys[i], 'delay', delay)
  delay_until(p, ids[i], now + tonumber(delay))
  return 0
end
-- 1: there is nothing to wait for.
local function await_children(i, token)
  if call('SCARD', keys[i] .. ':dependencies') == 0 then return 1 end
  local code = own(i, token)
  if code < 0 then return code end
  event(p, 'waiting-children', 'jobId', ids[i], 'prev', 'active')
  call('ZADD', p .. 'waiting-children', now, ids[i])
  return 0
end

-- A list of counts by the minute. A worker to which the minute is not new has turned both pages in it before.
local function count_metrics(target, most, new_minute)
  if most <= 0 then return end
  local key = p .. 'metrics:' .. target
  if ended[target] > 0 then call('HINCRBY', key, 'count', ended[target]) end
  if not new_minute then return end
  local v = call('HMGET', key, 'prevTS', 'prevCount', 'count')
  local before = tonumber(v[3] or '0') - ended[target]
  if not v[1] then
    if v[3] then call('HSET', key, 'prevTS', now, 'prevCount', 0) end
    return
  end
  local minutes = math.min(math.floor(now / 60000) - math.floor(tonumber(v[1]) / 60000), most)
  if minutes < 1 then return end
  call('LPUSH', key .. ':data', before - tonumber(v[2] or '0'))
  for _ = 2, minutes do call('LPUSH', key .. ':data', 0) end
  call('LTRIM', key .. ':data', 0, most - 1)
  call('HSET', key, 'prevCount', before, 'prevTS', now)
end
]]

-- ARGV: now, lock ms, worker's name, limiter's max or '', its ms, how many to take, token of what is taken, points of metrics, 1 = the
-- minute is new to the worker; then groups of what ended alike: what (completed failed retry back later children), their token, keep
-- count or '', keep age s or '', sweep limit, how many, and of each: id, value or reason, extra (of completed, the attempts made when the
-- job is plain, else ''; of failed, 1 = attempts exhausted; else delay ms), and of failed and retry its traces. A plain job has neither
-- parent nor deduplication, and cannot get one: its id is a number of ours, which nobody may ask for.
-- Answers {codes, {id, values, id, values, ...}, next due or 0, limited until or 0, what failed beside the ends or ''}; values as in
-- M.FIELDS, before this run.
M.FIELDS = { "name", "data", "opts", "ats", "atm", "stc", "timestamp", "rjk", "parentKey", "defa", "deid" }
M.cycle = "local BYTES_MAX = " .. M.BYTES_MAX .. "\nlocal p = KEYS[1]\nlocal now_text = ARGV[1]\nlocal now = tonumber(now_text)\n"
  .. M.common .. FINISH .. [[
local function told(why) return type(why) == 'table' and why.err or tostring(why) end
local WITH_TRACES = { failed = true, retry = true }
-- Whose locks the jobs are under, whether any of them has children, and what else is mostly not there: asked for all at once.
local rare = false
do
  local seldom, n, at = { p .. 'stalled', p .. 'delayed', p .. 'paused', p .. 'limiter' }, 0, 10
  while ARGV[at] do
    local step = WITH_TRACES[ARGV[at] ] and 4 or 3
    local last = at + 5 + ARGV[at + 5] * step
    for j = at + 6, last, step do
      n = n + 1
      local id = ARGV[j]
      local key = p .. id
      ids[n], keys[n], lock_keys[n] = id, key, key .. ':lock'
      seldom[2 * n + 3], seldom[2 * n + 4] = key .. ':dependencies', key .. ':unsuccessful'
    end
    at = last + 1
  end
  if n > 0 then
    -- A server short of memory refuses what a script would add, until the script has written something. An end must not stop half-way.
    call('DEL', p .. 'none')
    look_at_active(n)
    locks = call('MGET', unpack(lock_keys))
    all_there = call('EXISTS', unpack(keys)) == n
  end
  if call('EXISTS', unpack(seldom)) > 0 then
    rare = call('EXISTS', unpack(seldom, 1, 4)) > 0
    families = n > 0 and call('EXISTS', unpack(seldom, 5)) > 0
  end
end
gather()
local codes = {}
do
  local i, at = 0, 10
  while ARGV[at] do
    local what, token, count, age = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
    local step = WITH_TRACES[what] and 4 or 3
    local last = at + 5 + ARGV[at + 5] * step
    local rule = { target = what, count = count, age = age, limit = ARGV[at + 4], sweeps = count ~= '' or age ~= '' }
    local settle = what == 'retry' and retry or what == 'back' and give_back or what == 'later' and postpone
      or what == 'children' and await_children or finish
    for j = at + 6, last, step do
      i = i + 1
      local ok, code = pcall(settle, i, token, ARGV[j + 1], ARGV[j + 2], rule, step == 4 and ARGV[j + 3])
      if ok then
        free(i)
        codes[i] = code
      else
        disown(i)
        codes[i] = told(code)
      end
    end
    at = last + 1
  end
end
-- From here on a key that is not what it should be costs its own part alone: what has left a list gets to the next in any case.
local failure = ''
local function attempt(part, ...)
  local ok, why = pcall(part, ...)
  if not ok then failure = told(why) end
end
attempt(flush_active)
if rare then attempt(in_parts, 'SREM', p .. 'stalled', unstalled) end
attempt(in_parts, 'ZADD', p .. 'completed', finished.completed)
attempt(in_parts, 'ZADD', p .. 'failed', finished.failed)
for _, rule in ipairs(rule_list) do attempt(sweep, unpack(rule)) end
in_parts('DEL', nil, freed)
attempt(count_metrics, 'completed', tonumber(ARGV[8]), ARGV[9] == '1')
attempt(count_metrics, 'failed', tonumber(ARGV[8]), ARGV[9] == '1')

local wanted = tonumber(ARGV[6])
local taken = {}
local m = meta(p)
local until_ms = 0
local function promote()
  local due = call('ZRANGEBYSCORE', p .. 'delayed', '-inf', '(' .. string.format('%.0f', (now + 1) * 4096), 'LIMIT', 0, 1000)
  for _, id in ipairs(due) do
    call('ZREM', p .. 'delayed', id)
    local priority = call('HGET', p .. id, 'priority')
    push(p, id, tonumber(priority or '') or 0)
    if priority then call('HSET', p .. id, 'delay', 0) end
    event(p, 'waiting', 'jobId', id, 'prev', 'delayed')
  end
end
-- Ids that are served next, up to n, put into active; and the scores of those that had one.
local function next_ids(n)
  local ids, scores = call('RPOP', p .. 'wait', n) or {}, {}
  while #ids < n do
    local first = call('ZPOPMIN', p .. 'prioritized', n - #ids)
    if not first[1] then break end
    for i = 1, #first, 2 do
      ids[#ids + 1] = first[i]
      scores[first[i] ] = first[i + 1]
    end
    if call('EXISTS', p .. 'prioritized') == 0 then call('DEL', p .. 'pc') end
  end
  if #ids > 0 then in_parts('LPUSH', p .. 'active', ids) end
  return ids, scores
end
-- What this call has no room for is served next, as before.
local function put_back(ids, from, scores)
  for i = #ids, from, -1 do
    call('LREM', p .. 'active', 1, ids[i])
    if scores[ids[i] ] then
      call('ZADD', p .. 'prioritized', scores[ids[i] ], ids[i])
    else
      call('RPUSH', p .. 'wait', ids[i])
    end
  end
end
local bytes, full = 0, false
local function take(n)
  while n > 0 and not full do
    local ids, scores = next_ids(n)
    for at, id in ipairs(ids) do
      local key = p .. id
      local fields = redis.pcall('HMGET', key, 'name', 'data', 'opts', 'ats', 'atm', 'stc', 'timestamp', 'rjk', 'parentKey', 'defa', 'deid')
      if fields.err or not fields[1] and call('EXISTS', key) == 0 then
        call('LREM', p .. 'active', 1, id)
      else
        local size = #(fields[1] or '') + #(fields[2] or '') + #(fields[3] or '')
        if size > BYTES_MAX then
          fields[1], fields[2], fields[3] = string.sub(fields[1] or '', 1, 1000), '{}', '{}'
          fields[10] = fields[10] or 'the job is larger than ' .. BYTES_MAX .. ' bytes'
        else
          bytes = bytes + size
        end
        if bytes > BYTES_MAX then
          put_back(ids, at, scores)
          full = true
          break
        end
        local started = fields[4] and tostring(tonumber(fields[4]) + 1) or '1'
        call('SET', key .. ':lock', ARGV[7], 'PX', ARGV[2])
        event(p, 'active', 'jobId', id, 'prev', 'waiting')
        if ARGV[3] ~= '' then
          call('HSET', key, 'processedOn', now_text, 'ats', started, 'pb', ARGV[3])
        else
          call('HSET', key, 'processedOn', now_text, 'ats', started)
        end
        taken[#taken + 1] = id
        taken[#taken + 1] = fields
        n = n - 1
      end
    end
    if #ids == 0 then return end
  end
end
local due = 0
local function serve()
  if rare or delays then attempt(promote) end
  local max = tonumber(ARGV[4]) or m.max
  local duration = tonumber(ARGV[4]) and tonumber(ARGV[5]) or m.duration or 1000
  if not m.paused then
    if rare then merge_paused(p) end
    flush_lists()
    local n = wanted
    if m.concurrency then n = math.min(n, m.concurrency - call('LLEN', p .. 'active')) end
    local used = rare and call('GET', p .. 'limiter')
    if used and tonumber(used) >= (max or 9007199254740991) then
      local left = call('PTTL', p .. 'limiter')
      if left > 0 then
        until_ms, n = left, 0
      else
        call('DEL', p .. 'limiter')
        used = nil
      end
    end
    if max and n > 0 then n = math.min(n, max - (tonumber(used or '') or 0)) end
    take(n)
    local count = #taken / 2
    if max and count > 0 then
      if call('INCRBY', p .. 'limiter', count) == count then call('PEXPIRE', p .. 'limiter', duration) end
      if count == n and count < wanted and (tonumber(used or '') or 0) + count >= max then
        until_ms = math.max(1, call('PTTL', p .. 'limiter'))
      end
    end
  end
end
if wanted > 0 then attempt(serve) end
if rare or delays then attempt(function() due = next_due(p) or 0 end) end
if ended.completed + ended.failed > 0 and #taken == 0 and wanted > 0
  and call('EXISTS', p .. 'wait', p .. 'active', p .. 'prioritized') == 0 then
  event(p, 'drained')
end
flush_lists()
-- Another worker looks after what is left; and after what falls due, where this one is busy now.
local left = gathered.marks[p] or wanted == 0 or #taken == wanted * 2 or full
gathered.marks[p] = nil
flush()
if left and call('EXISTS', p .. 'wait', p .. 'prioritized') > 0 then mark(p) end
if due > 0 and not m.paused and (#taken == wanted * 2 or full) then call('ZADD', p .. 'marker', due, '1') end
return { codes, taken, string.format('%.0f', due), string.format('%.0f', until_ms), failure }]]

-- ARGV: lock ms, then id and token of each job. Answers the ids whose lock is not ours any more.
M.extend = [[
local p = KEYS[1]
local lost = {}
for at = 2, #ARGV, 2 do
  local key = p .. ARGV[at] .. ':lock'
  if redis.call('GET', key) == ARGV[at + 1] then
    redis.call('SET', key, ARGV[at + 1], 'PX', ARGV[1])
    redis.call('SREM', p .. 'stalled', ARGV[at])
  else
    lost[#lost + 1] = ARGV[at]
  end
end
return lost]]

-- ARGV: interval ms, now. Answers the ids that went back to wait.
M.stalled = "local p = KEYS[1]\n" .. M.common .. [[
if not call('SET', p .. 'stalled-check', ARGV[2], 'NX', 'PX', ARGV[1]) then return {} end
local back = {}
for _, id in ipairs(call('SMEMBERS', p .. 'stalled')) do
  local key = p .. id
  if call('EXISTS', key .. ':lock') == 0 and call('LREM', p .. 'active', 1, id) > 0 and call('EXISTS', key) == 1 then
    local count = call('HINCRBY', key, 'stc', 1)
    if count > 1 and call('HEXISTS', key, 'rjk') == 0 then call('HSET', key, 'defa', 'job stalled more than allowable limit') end
    call('RPUSH', wait_list(p), id)
    mark(p)
    event(p, 'waiting', 'jobId', id, 'prev', 'active')
    event(p, 'stalled', 'jobId', id)
    back[#back + 1] = id
  end
end
call('DEL', p .. 'stalled')
local active = call('LRANGE', p .. 'active', 0, -1)
for i = 1, #active, 1000 do call('SADD', p .. 'stalled', unpack(active, i, math.min(i + 999, #active))) end
return back]]

return M
