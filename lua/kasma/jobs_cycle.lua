-- What a worker does between two jobs, as one script of the Redis server: end what ran, promote what fell due, take what comes next, for
-- as many jobs as ended and as many as there is room for.
--
-- Invariants: an end is written whole before its job gives up its place, and what has left a list gets to the next whatever fails beside
-- it: a key that is not what it should be costs its own part alone. What most calls never need is made when one does (`seldom`).
local scripts = require("kasma.jobs_scripts")

local M = {}

-- The most that a job's data, name and options may be together, and that one call hands over: a reply has a bound, and a job
-- that breaks it would come again for ever.
M.BYTES_MAX = 8 * 1048576

-- What ends a job. Of the i-th end: ids[i], keys[i] (of its hash), lock_keys[i], and locks[i], whose lock it is.
local FINISH = [[
-- Of what ended: its places are cleared together. Nothing reads them before that.
local freed, unstalled, finished = row(), {}, { completed = row(), failed = {} }
local ids, keys, lock_keys, locks = row(), row(), row(), {}
local families, all_there, rare = false, false, false
-- Those that were taken first lie last in `active`: where as many as end in this call lie. What ends of them leaves by one command.
-- Mostly they end in the order in which they were taken: each is at the tail then, else its place is looked up.
local oldest, tail, places, gone = {}, 0, nil, {}
local place -- of the job that left last; nil: it lay elsewhere
local function leave_active(id)
  place = tail
  if oldest[tail] == id and not gone[tail] then
    tail = tail - 1
    return true
  end
  if not places then
    places = {}
    for i = 1, #oldest do places[oldest[i] ] = i end
  end
  place = places[id]
  if not place then return call('LREM', p .. 'active', '-1', id) > 0 end
  if place > tail or gone[place] then return false end
  gone[place] = true
  return true
end
local function flush_active()
  while gone[tail] do
    gone[tail] = nil
    tail = tail - 1
  end
  if tail < #oldest then call('LTRIM', p .. 'active', '0', digits(tail - #oldest - 1)) end
  for at in pairs(gone) do call('LREM', p .. 'active', '-1', oldest[at]) end
end
local owned = 0 -- the end that has left `active` last
local function own(i, token)
  if locks[i] ~= token then
    if call('EXISTS', keys[i]) == 0 then return -1 end
    return locks[i] and -6 or -2
  end
  if not all_there and call('EXISTS', keys[i]) == 0 then
    leave_active(ids[i])
    call('DEL', lock_keys[i])
    return -1
  end
  if not leave_active(ids[i]) then return -3 end
  owned = i
  return 0
end
-- What most calls never need is made when one does: making it costs as much as a job.
local moves
local function seldom()
  if moves then return moves end
]] .. scripts.moves .. [[
local function keep_trace(key, trace, opts)
  if trace == '' then return end
  local list = decode(call('HGET', key, 'stacktrace')) or {}
  for _, entry in ipairs(decode(trace) or {}) do list[#list + 1] = entry end
  local limit = tonumber((decode(opts) or {}).stackTraceLimit) or 10
  while #list > limit do table.remove(list, 1) end
  if #list > 0 then call('HSET', key, 'stacktrace', cjson.encode(list)) end
end
local function tell_parent(key, parent_key, completed, value)
  local parent = decode(call('HGET', key, 'parent'))
  if not parent or not parent.queueKey or call('EXISTS', parent_key) == 0 then return end
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
  if priority > 0 then
    call('ZADD', p .. 'prioritized', priority * 4294967296, ids[i]) -- before all others of its priority
    mark(p)
  else
    push(p, ids[i], 0, true)
  end
  return 0
end
local function postpone(i, token, _, delay)
  local code = own(i, token)
  if code < 0 then return code end
  call('HSET', keys[i], 'delay', delay)
  delay_until(p, ids[i], now + tonumber(delay))
  return 0
end
-- 1: there is nothing to wait for, or what it waits for has failed it.
local function await_children(i, token)
  if call('SCARD', keys[i] .. ':dependencies') == 0 or call('ZCARD', keys[i] .. ':unsuccessful') > 0 then return 1 end
  local code = own(i, token)
  if code < 0 then return code end
  event(p, 'waiting-children', 'jobId', ids[i], 'prev', 'active')
  call('ZADD', p .. 'waiting-children', now, ids[i])
  return 0
end

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
-- What is not taken after all is served next, as before.
local function put_back(list, from, scores)
  for i = #list, from, -1 do
    redis.pcall('LREM', p .. 'active', 1, list[i])
    if scores[list[i] ] then
      call('ZADD', p .. 'prioritized', scores[list[i] ], list[i])
    else
      call('RPUSH', p .. 'wait', list[i])
    end
  end
end
-- The end that failed after its job had left `active`: back to where it was.
local function disown(id)
  if not place then
    call('LPUSH', p .. 'active', id)
  elseif place > tail then
    tail = place
  else
    gone[place] = nil
  end
end
moves = { retry = retry, back = give_back, later = postpone, children = await_children, promote = promote, next_due = next_due,
  put_back = put_back, disown = disown, merge_paused = merge_paused, leave_parent = leave_parent, end_deduplication = end_deduplication,
  tell_parent = tell_parent, keep_trace = keep_trace }
  return moves
end
-- Deletes ended jobs, which lie in no list any more and have no lock. One that completed has left its parent. The deduplication id of a
-- job that ended is free or, when it has a time of its own, stays taken for so long.
local function drop(target, list)
  local more, n = row(), 0
  for i, id in ipairs(list) do
    local key = p .. id
    if target == 'failed' then seldom().leave_parent(key, now) end
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
  if age then
    local list = call('ZRANGEBYSCORE', set, '-inf', now - age * 1000, 'LIMIT', 0, limit)
    in_parts('ZREM', set, list)
    drop(target, list)
  end
  if count and count > 0 then
    local list = call('ZREVRANGE', set, digits(count), digits(count + limit - 1))
    if #list < limit then
      if #list > 0 then call('ZREMRANGEBYRANK', set, '0', digits(-count - 1)) end
    else
      in_parts('ZREM', set, list)
    end
    drop(target, list)
  end
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
  if deid then seldom().end_deduplication(p, id, deid, now) end
  if parent_key then seldom().tell_parent(key, parent_key, completed, value) end
  if trace then seldom().keep_trace(key, trace, call('HGET', key, 'opts')) end
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

-- A list of counts by the minute. A worker to which the minute is not new has turned both pages in it before, but one that is begun.
local function count_metrics(target, most, new_minute)
  if most <= 0 then return end
  local key = p .. 'metrics:' .. target
  if ended[target] > 0 and call('HINCRBY', key, 'count', digits(ended[target])) == ended[target] then new_minute = true end
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
-- Answers {codes, {id, name, data, opts, id, ...}, next due or 0, limited until or 0, what failed beside the ends or '', {number of one of
-- the jobs, what few jobs have, number, ...}}, all as it was before this run; M.jobs_of reads it.
local SELDOM = { "ats", "atm", "parentKey", "defa", "deid", "rjk" }

--- The jobs that a call took, by the names of their fields in Redis.
---@param answer table
---@return table[] jobs {id, name, data, opts: texts; and of SELDOM what there is}
function M.jobs_of(answer)
    local taken, more, list = answer[2], answer[6], {}
    for i = 1, #taken, 4 do
        list[#list + 1] = { id = taken[i], name = taken[i + 1], data = taken[i + 2], opts = taken[i + 3] }
    end
    for i = 1, #more, 2 do
        for k, name in ipairs(SELDOM) do
            local value = more[i + 1][k]
            if type(value) == "string" then list[more[i]][name] = value end
        end
    end
    return list
end

M.script = "local BYTES_MAX = " .. M.BYTES_MAX .. "\nlocal p = KEYS[1]\nlocal now_text = ARGV[1]\nlocal now = tonumber(now_text)\n"
  .. scripts.base .. FINISH .. [[
local ARGV = ARGV
local function told(why) return type(why) == 'table' and why.err or tostring(why) end
local WITH_TRACES = { failed = true, retry = true }
-- Whose locks the jobs are under, whether any of them has children, and what else is mostly not there: asked for all at once.
do
  local unlikely, n, at = { p .. 'stalled', p .. 'delayed', p .. 'paused', p .. 'limiter' }, 0, 10
  while ARGV[at] do
    local step = WITH_TRACES[ARGV[at] ] and 4 or 3
    local last = at + 5 + ARGV[at + 5] * step
    for j = at + 6, last, step do
      n = n + 1
      local id = ARGV[j]
      local key = p .. id
      ids[n], keys[n], lock_keys[n] = id, key, key .. ':lock'
      unlikely[2 * n + 3], unlikely[2 * n + 4] = key .. ':dependencies', key .. ':unsuccessful'
    end
    at = last + 1
  end
  if n > 0 then
    -- A server short of memory refuses what a script would add, until the script has written something. An end must not stop half-way.
    call('DEL', p .. 'none')
    if n > 3 then oldest = call('LRANGE', p .. 'active', digits(-n), '-1') end
    tail = #oldest
    locks = call('MGET', unpack(lock_keys))
    all_there = call('EXISTS', unpack(keys)) == n
  end
  if call('EXISTS', unpack(unlikely)) > 0 then
    rare = call('EXISTS', unpack(unlikely, 1, 4)) > 0
    families = n > 0 and call('EXISTS', unpack(unlikely, 5)) > 0
  end
end
gathered = { lists = {}, marks = {} }
local codes = row()
do
  local i, j, at = 0, 0, 10
  -- One try for all: what cannot be ended leaves it, and those behind it have another.
  local function settle_until(last, settle, step, token, rule)
    while j <= last do
      i, j = i + 1, j + step
      codes[i] = settle(i, token, ARGV[j - step + 1], ARGV[j - step + 2], rule, step == 4 and ARGV[j - step + 3])
      if owned == i then
        freed[#freed + 1] = lock_keys[i]
        if rare then unstalled[#unstalled + 1] = ids[i] end
      end
    end
  end
  while ARGV[at] do
    local what, token, count, age = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
    local step = WITH_TRACES[what] and 4 or 3
    local last = at + 5 + ARGV[at + 5] * step
    local rule = { target = what, count = count, age = age, limit = ARGV[at + 4], sweeps = count ~= '' or age ~= '' }
    local settle = (what == 'completed' or what == 'failed') and finish or seldom()[what]
    j = at + 6
    while j <= last do
      local ok, why = pcall(settle_until, last, settle, step, token, rule)
      if not ok then
        -- A key of the job is not what it should be: it stays active, and stalls.
        if owned == i then seldom().disown(ids[i]) end
        codes[i] = told(why)
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
for target, list in pairs(finished) do
  if list[1] then attempt(in_parts, 'ZADD', p .. target, list) end
end
for _, rule in ipairs(rule_list) do attempt(sweep, unpack(rule)) end
in_parts('DEL', nil, freed)
for target, n in pairs(ended) do
  if n > 0 or ARGV[9] == '1' then attempt(count_metrics, target, tonumber(ARGV[8]), ARGV[9] == '1') end
end

local wanted = tonumber(ARGV[6])
local taken, count, more = row(), 0, {}
local m = meta(p)
local until_ms = 0
local bytes, full = 0, false
local function take(n)
  while n > 0 and not full do
    -- What is served next, put into active; and the scores of those that had one.
    local ids, scores = call('RPOP', p .. 'wait', digits(n)) or {}, {}
    while #ids < n do
      local first = redis.pcall('ZPOPMIN', p .. 'prioritized', n - #ids)
      if first.err then failure = first.err end
      if not first[1] then break end
      for i = 1, #first, 2 do
        ids[#ids + 1] = first[i]
        scores[first[i] ] = first[i + 1]
      end
      if call('EXISTS', p .. 'prioritized') == 0 then call('DEL', p .. 'pc') end
    end
    if #ids > 0 then
      local ok, why = pcall(in_parts, 'LPUSH', p .. 'active', ids)
      if not ok then
        seldom().put_back(ids, 1, scores)
        error(why, 0)
      end
    end
    for at, id in ipairs(ids) do
      local key = p .. id
      local fields = redis.pcall('HMGET', key, 'name', 'data', 'opts', 'ats', 'atm', 'parentKey', 'defa', 'deid')
      if fields.err or not fields[1] and call('EXISTS', key) == 0 then
        call('LREM', p .. 'active', 1, id)
      else
        -- Those of a scheduler alone have one.
        if string.sub(id, 1, 7) == 'repeat:' then fields[9] = call('HGET', key, 'rjk') end
        local size = #(fields[1] or '') + #(fields[2] or '') + #(fields[3] or '')
        if size > BYTES_MAX then
          fields[1], fields[2], fields[3] = string.sub(fields[1] or '', 1, 1000), '{}', '{}'
          fields[7] = fields[7] or 'the job is larger than ' .. BYTES_MAX .. ' bytes'
        else
          bytes = bytes + size
        end
        if bytes > BYTES_MAX then
          seldom().put_back(ids, at, scores)
          full = true
          break
        end
        local started = fields[4] and tostring(tonumber(fields[4]) + 1) or '1'
        call('PSETEX', key .. ':lock', ARGV[2], ARGV[7])
        event(p, 'active', 'jobId', id, 'prev', 'waiting')
        if ARGV[3] ~= '' then
          call('HSET', key, 'processedOn', now_text, 'ats', started, 'pb', ARGV[3])
        else
          call('HSET', key, 'processedOn', now_text, 'ats', started)
        end
        local at = 4 * count
        taken[at + 1], taken[at + 2], taken[at + 3], taken[at + 4] = id, fields[1] or '', fields[2] or '{}', fields[3] or '{}'
        count = count + 1
        if fields[4] or fields[5] or fields[6] or fields[7] or fields[8] or fields[9] then
          more[#more + 1] = count
          more[#more + 1] = { unpack(fields, 4, 9) }
        end
        n = n - 1
      end
    end
    if #ids == 0 then return end
  end
end
local due = 0
local function serve()
  if rare or delays then attempt(seldom().promote) end
  local max = tonumber(ARGV[4]) or m.max
  local duration = tonumber(ARGV[4]) and tonumber(ARGV[5]) or m.duration or 1000
  if not m.paused then
    if rare then seldom().merge_paused(p) end
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
    if max and count > 0 then
      if call('INCRBY', p .. 'limiter', count) == count then call('PEXPIRE', p .. 'limiter', duration) end
      if count == n and count < wanted and (tonumber(used or '') or 0) + count >= max then
        until_ms = math.max(1, call('PTTL', p .. 'limiter'))
      end
    end
  end
end
if wanted > 0 then attempt(serve) end
if rare or delays then attempt(function() due = seldom().next_due(p) or 0 end) end
flush_lists()
if ended.completed + ended.failed > 0 and count == 0 and wanted > 0
  and call('EXISTS', p .. 'wait', p .. 'active', p .. 'prioritized') == 0 then
  event(p, 'drained')
end
-- Another worker looks after what is left; and after what falls due, where this one is busy now.
local left = gathered.marks[p] or wanted == 0 or count == wanted or full
gathered.marks[p] = nil
flush()
if left and call('EXISTS', p .. 'wait', p .. 'prioritized') > 0 then mark(p) end
if due > 0 and not m.paused and (count == wanted or full) then call('ZADD', p .. 'marker', due, '1') end
return { codes, taken, string.format('%.0f', due), string.format('%.0f', until_ms), failure, more }]]

return M
