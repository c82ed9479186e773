-- The moves of a job between its lists, each one script of the Redis server. A queue's keys all begin with its prefix
-- ("bull:mail-queue:"); on a cluster the braces in QUEUE_PREFIX put them, and those of every other queue, in one slot.
--
-- `common` is what every script begins with. In it and in the scripts: p is a prefix, id a job's id, now the business clock in ms. What
-- a worker does between two jobs is jobs_cycle. Arguments of redis.call are texts where they can be: printing a number costs more than
-- most commands.
local config = require("core.config")

local M = {}

local LAYOUT = tonumber(config.get("BULLMQ_LAYOUT")) or 5

-- What every script needs, and what moves jobs.
M.base = "local LAYOUT = " .. LAYOUT .. "\n" .. [[
local call = redis.call
-- A whole number as text, and a list with room for some: growing one by one costs more than what is put in.
local function digits(n) return string.format('%d', n) end
local function row() return { nil, nil, nil, nil, nil, nil, nil, nil } end
local metas = {}
local function meta(p)
  local m = metas[p]
  if m then return m end
  local v = call('HMGET', p .. 'meta', 'paused', 'concurrency', 'max', 'duration', 'opts.maxLenEvents', 'version')
  m = { paused = v[1] and true or false, concurrency = tonumber(v[2] or ''), max = tonumber(v[3] or ''), duration = tonumber(v[4] or ''),
    events = v[5] or '10000', five = LAYOUT == 5 and not (v[6] and string.find(v[6], '^bullmq:[6-9]')) }
  metas[p] = m
  return m
end
-- A script's first event on a stream cuts it, which is exact enough for all of them.
local streams = {}
local function event(p, ...)
  local stream = streams[p]
  if stream then return call('XADD', stream, '*', 'event', ...) end
  streams[p] = p .. 'events'
  call('XADD', streams[p], 'MAXLEN', '~', meta(p).events, '*', 'event', ...)
end
-- While a script that moves many jobs gathers, pushes and marks wait for its end: one command for all.
local gathered
local function mark(p)
  if gathered then
    gathered.marks[p] = true
    return
  end
  local m = meta(p)
  if m.paused or m.concurrency and call('LLEN', p .. 'active') >= m.concurrency then return end
  call('ZADD', p .. 'marker', '0', '0')
end
local function flush_lists()
  for list, ids in pairs(gathered.lists) do
    gathered.lists[list] = nil
    for i = 1, #ids, 1000 do call('LPUSH', list, unpack(ids, i, math.min(i + 999, #ids))) end
  end
end
local function flush()
  flush_lists()
  local marks = gathered.marks
  gathered = nil
  for p in pairs(marks) do mark(p) end
end
local function in_parts(command, key, list)
  for i = 1, #list, 1000 do
    local last = math.min(i + 999, #list)
    if key then call(command, key, unpack(list, i, last)) else call(command, unpack(list, i, last)) end
  end
end
local delays = false -- whether this script has put a job among the delayed
]]

M.moves = [[
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
  -- A parent that has still to end, fails by this child though it is gone by then.
  if call('HEXISTS', v[1], 'finishedOn') == 1 then call('ZREM', v[1] .. ':unsuccessful', key) end
end
-- Deletes a job that lies in no list any more: its keys, its place under a parent, its ownership of a deduplication id.
local function remove_job(p, id, now)
  local key = p .. id
  leave_parent(key, now)
  local deid = call('HGET', key, 'deid')
  if deid and call('GET', p .. 'de:' .. deid) == id then
    -- What it held back goes with it, and a parent does not wait for that.
    local v = call('HMGET', p .. 'dn:' .. deid, 'pk', 'pd')
    call('DEL', p .. 'de:' .. deid, p .. 'dn:' .. deid)
    local parent = v[1] and call('SCARD', v[1] .. ':dependencies') == 0 and decode(v[2])
    if parent then release_parent(parent, now) end
  end
  call('DEL', key, key .. ':lock', key .. ':logs', key .. ':dependencies', key .. ':processed', key .. ':failed', key .. ':unsuccessful')
end

-- Nil: the job is to be added. Else it is a duplicate of the id answered; true beside it: one that is held back. `lost(parent key, parent)`
-- hears of a parent whose child was held back and will not come any more.
local function deduplicate(p, d, id, job, now, lost)
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
    local v = call('HMGET', held, 'pk', 'pd')
    if v[1] then lost(v[1], decode(v[2])) end
    call('DEL', held)
    call('HSET', held, 'name', job.name, 'data', job.data, 'opts', job.opts, 'jid', id)
    if job.parent_key then
      call('HSET', held, 'pk', job.parent_key, 'pd', job.parent, 'pdk', job.parent_key .. ':dependencies')
    end
    if job.rjk then call('HSET', held, 'rjk', job.rjk) end
    -- Its owner ends later than any time of the id, or what is held would never be added.
    call('PERSIST', key)
    tell(owner, id)
    return owner, true
  end
  if d.extend and ttl > 0 and call('EXISTS', p .. 'dn:' .. d.id) == 0 then call('PEXPIRE', key, ttl) end
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
  if v[5] and call('EXISTS', v[5]) == 0 then v[5] = nil end -- its parent went meanwhile
  insert(p, next_id, { name = v[1], data = v[2] or '{}', opts = v[3] or '{}', timestamp = now, delay = tonumber(opts.delay) or 0,
    priority = tonumber(opts.priority) or 0, lifo = opts.lifo, parent_key = v[5], parent = v[6] or '', rjk = v[7], deid = deid })
end
]]

M.common = M.base .. M.moves

-- KEYS: prefixes. ARGV: groups of 7: name, data, opts, timestamp, delay, priority, and '' or what else there is, as JSON: {key: number of
-- the prefix if not the first, id, lifo, asker, parent_key, parent (text), dedup, waits: for children}. Answers the ids, or one negative
-- code and nothing done.
M.add = M.common .. [[
local jobs, prefixes, ids, numbers, keys = {}, {}, {}, {}, {}
local fresh = {}
for at = 1, #ARGV, 7 do
  local job = { name = ARGV[at], data = ARGV[at + 1], opts = ARGV[at + 2], timestamp = ARGV[at + 3], delay = ARGV[at + 4],
    priority = ARGV[at + 5] }
  if ARGV[at + 6] ~= '' then
    for name, value in pairs(cjson.decode(ARGV[at + 6])) do job[name] = value end
  end
  local p = KEYS[job.key or 1]
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
gathered = { lists = {}, marks = {} }
-- Parents that are to be looked at when all their children are there: some may wait for nobody. Held back: a child that comes later.
local parents, held_back, dropped = {}, {}, {}
local function ask_parent(key, parent) parents[key] = parent end
local function lose_child(key, parent)
  parents[key] = parent
  held_back[key] = math.max(0, (held_back[key] or 0) - 1)
end
-- A job that is there already: the parent that asks for it takes it over when it has none.
local function meet(p, id, key, job)
  if job.parent_key and call('HGET', key, 'parentKey') ~= job.parent_key then
    local parent = decode(job.parent)
    call('HSET', key, 'parentKey', job.parent_key, 'parent', job.parent)
    if call('ZSCORE', p .. 'completed', id) then
      call('HSET', job.parent_key .. ':processed', key, call('HGET', key, 'returnvalue') or 'null')
      ask_parent(job.parent_key, parent)
    else
      call('SADD', job.parent_key .. ':dependencies', key)
    end
  end
  event(p, 'duplicated', 'jobId', id)
end

for i, job in ipairs(jobs) do
  local p, id, key = prefixes[i], ids[i], keys[i]
  -- Of a duplicate with children only the children are added: they have nobody to tell.
  if dropped[job.parent_key or ''] then job.parent_key, job.parent = nil, nil end
  local before = job.asker and call('GET', p .. 'ob:' .. job.asker)
  if before then
    ids[i] = before
  else
    if (met > 0 or seen[key]) and call('EXISTS', key) == 1 then
      meet(p, id, key, job)
    else
      local owner
      if job.dedup and job.dedup.id then
        local held
        owner, held = deduplicate(p, job.dedup, id, job, tonumber(job.timestamp), lose_child)
        job.deid = job.dedup.id
        if held and job.parent_key then held_back[job.parent_key] = (held_back[job.parent_key] or 0) + 1 end
      end
      if owner then
        ids[i] = owner
        if job.waits then dropped[key] = true end
      else
        insert(p, id, job)
        if job.waits then ask_parent(key, { queueKey = string.sub(p, 1, -2), id = id }) end
      end
    end
    if job.asker then call('SET', p .. 'ob:' .. job.asker, ids[i], 'PX', 86400000) end
    if job.id then seen[key] = true end
  end
end
for key, parent in pairs(parents) do
  if (held_back[key] or 0) == 0 and call('SCARD', key .. ':dependencies') == 0 then release_parent(parent, tonumber(ARGV[4])) end
end
flush()
return ids]]

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
  local freed = call('EXISTS', key .. ':lock') == 0 and call('LREM', p .. 'active', 1, id) > 0
  if freed and call('EXISTS', key) == 0 then
    mark(p) -- there is room for another
  elseif freed then
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
