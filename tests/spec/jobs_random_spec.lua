-- Two queues, three workers played by hand and some clients, who do what a number generator says, in every mixture. After each step it is
-- looked whether anything is lost, in two places, locked without a holder, or ready while everybody sleeps; at the end everything must be
-- led to an end, the figures must add up and no key may be left over. A seed fixes the whole run. QUEUE_SEED=n tries one of your own,
-- QUEUE_SEEDS=n so many from it on, QUEUE_STEPS_TOLD=n tells more of the steps before what went wrong. Times are those of a clock of the
-- test's own.
local json = require("core.json")
local redis = require("core.redis")
local jobs = require("kasma.jobs")
local between = require("kasma.jobs_cycle")
local queues = require("kasma.jobs_queue")
local scripts = require("kasma.jobs_scripts")
local support = require("spec.jobs_support")

local SEEDS, STEPS = { 1, 2, 3, 281, 617 }, 150
local START_MS = 2000000000000
local POINTS = "1440"
local LIVING = { "wait", "paused", "prioritized", "delayed", "active", "waiting-children" }

-- Where everything lies. ARGV: ids that were there before. Lists and sets as arrays of ids; of each id that is anywhere whether it has a
-- hash, its lock, how many children are pending, how many of those are there, and some of its fields.
local SNAPSHOT = [[
local p, out, jobs, known = KEYS[1], {}, {}, {}
local call = redis.call
for _, list in ipairs({ 'wait', 'paused', 'active' }) do out[list] = call('LRANGE', p .. list, 0, -1) end
for _, set in ipairs({ 'prioritized', 'delayed', 'waiting-children', 'completed', 'failed' }) do
  out[set] = call('ZRANGE', p .. set, 0, -1)
end
for _, place in pairs(out) do
  for _, id in ipairs(place) do known[id] = true end
end
for _, id in ipairs(ARGV) do known[id] = true end
for id in pairs(known) do
  local key, there = p .. id, 0
  local pending = call('SMEMBERS', key .. ':dependencies')
  for _, child in ipairs(pending) do there = there + call('EXISTS', child) end
  local v = call('HMGET', key, 'deid', 'priority', 'defa', 'name')
  jobs[#jobs + 1] = { id, call('EXISTS', key) == 1, call('GET', key .. ':lock') or '', #pending, there, v[1] or '', v[2] or '', v[3] or '',
    v[4] or '' }
end
out.jobs = jobs
out.due = call('ZRANGE', p .. 'delayed', 0, -1, 'WITHSCORES')
out.marker = call('ZRANGE', p .. 'marker', 0, -1, 'WITHSCORES')
out.is_paused = call('HEXISTS', p .. 'meta', 'paused') == 1
out.concurrency = tonumber(call('HGET', p .. 'meta', 'concurrency') or '') or 1000000
out.limited = call('EXISTS', p .. 'limiter') == 1
out.held_back = 0
for _, at in ipairs(KEYS) do out.held_back = out.held_back + call('EXISTS', at .. 'dn:d1', at .. 'dn:d2', at .. 'dn:d3') end
return cjson.encode(out)]]

local Run = {}
Run.__index = Run

local function new_run(seed)
    local run = setmetatable({ seed = seed, state = seed * 7919 + 12345, now = START_MS, step = 0, calls = 0, nodes = 0, log = {},
        queues = {} }, Run)
    for i = 1, 2 do
        run.queues[i] = { name = support.fresh(), known = {}, held = {}, zombies = {}, sleeper_due = math.huge, ended = { completed = 0,
            failed = 0 } }
        run.queues[i].p = jobs.base(run.queues[i].name)
    end
    run.queues[1].other, run.queues[2].other = run.queues[2].p, run.queues[1].p
    return run
end

-- A whole number from 1 to n.
function Run:any(n)
    self.state = (self.state * 1103515245 + 12345) % 2147483648
    return math.floor(self.state / 2147483648 * n) + 1
end
function Run:chance(percent) return self:any(100) <= percent end
function Run:one(list) return list[self:any(#list)] end

function Run:fail(message, ...)
    local from = math.max(1, #self.log - (tonumber(os.getenv("QUEUE_STEPS_TOLD") or "") or 12))
    error(("seed %d, step %d: %s\n%s"):format(self.seed, self.step, message:format(...), table.concat(self.log, "\n", from)), 0)
end
function Run:say(message, ...) self.log[#self.log + 1] = self.step .. " " .. message:format(...) end

local function text(n) return ("%.0f"):format(n) end
local function sorted(map)
    local keys = {}
    for key in pairs(map) do keys[#keys + 1] = key end
    table.sort(keys)
    return keys
end

-- What is there ----------------------------------------------------------------------------------------------------------------

local function look(q)
    local answer = redis.eval(SNAPSHOT, { q.p, q.other }, sorted(q.known))
    if type(answer) ~= "string" then error("snapshot: " .. tostring(answer and answer.err)) end
    local s = json.decode(answer)
    s.job = {}
    for _, v in ipairs(s.jobs) do
        s.job[v[1]] = { hash = v[2], lock = v[3], pending = v[4], pending_there = v[5], deid = v[6], priority = tonumber(v[7]) or 0,
            defa = v[8], name = v[9] }
    end
    return s
end

-- Whether nothing is amiss. `may_go(id, place before)`: whether the step may have taken the job away.
function Run:check(q, may_go)
    local s = look(q)
    local place = {}
    for _, name in ipairs{ "wait", "paused", "prioritized", "delayed", "active", "waiting-children", "completed", "failed" } do
        for _, id in ipairs(s[name]) do
            if place[id] then self:fail("job %s lies in %s and in %s", id, place[id], name) end
            place[id] = name
        end
    end
    for id, job in pairs(s.job) do
        if job.hash and not place[id] then self:fail("job %s lies nowhere", id) end
        if place[id] and not job.hash then self:fail("job %s in %s has no hash", id, place[id]) end
        if job.hash and job.name == "" then self:fail("job %s has no name", id) end
        if job.lock ~= "" and place[id] ~= "active" then self:fail("job %s in %s has a lock", id, place[id] or "no place") end
        if q.known[id] and not job.hash and not may_go(id, q.known[id]) then self:fail("job %s is gone, it was in %s", id, q.known[id]) end
        if place[id] == "waiting-children" and job.pending_there == 0 and s.held_back == 0 then
            self:fail("job %s waits for children of whom none is there", id)
        end
        local holder = q.held[id]
        if holder and (place[id] ~= "active" or job.lock ~= holder.token) then
            self:fail("job %s of %s lies in %s, locked by '%s'", id, holder.token, place[id] or "no place", job.lock)
        end
        if job.lock ~= "" and not holder then self:fail("job %s is locked by %s, who does not know of it", id, job.lock) end
    end
    local marks = {}
    for i = 1, #s.marker, 2 do marks[s.marker[i]] = tonumber(s.marker[i + 1]) end
    local ready = #s.wait + #s.prioritized
    if not s.is_paused and not s.limited then
        if ready > 0 and #s.active < s.concurrency and not marks["0"] then self:fail("%d jobs are ready and nobody is told", ready) end
        local due = s.due[2] and math.floor(tonumber(s.due[2]) / 4096)
        if due and not marks["0"] and (marks["1"] or math.huge) > due and q.sleeper_due > due then
            self:fail("a job is due at %s and nobody knows", text(due))
        end
    end
    if not s.is_paused and #s.paused > 0 and not marks["0"] and #s.active < s.concurrency then self:fail("jobs are left in `paused`") end
    q.known = place
    q.last = s
    return s
end

local function never() return false end

-- Clients ----------------------------------------------------------------------------------------------------------------------

local KEEPS = { true, false, 2, 0, { age = 1, count = 3 }, { age = 5 }, { count = 1, limit = 1 } }

function Run:options()
    local opts = { timestamp = self.now }
    if self:chance(20) then opts.jobId = "c" .. self:any(6) end
    if self:chance(20) then opts.delay = self:any(5) * 1000 end
    if self:chance(20) then opts.priority = self:any(3) end
    if self:chance(15) then opts.lifo = true end
    if self:chance(30) then opts.attempts, opts.backoff = self:any(3), self:chance(50) and 1000 or nil end
    if self:chance(40) then opts.removeOnComplete = self:one(KEEPS) end
    if self:chance(40) then opts.removeOnFail = self:one(KEEPS) end
    if self:chance(20) then
        opts.deduplication = { id = "d" .. self:any(3), ttl = self:chance(30) and 500000 or nil, extend = self:chance(30) or nil,
            replace = self:chance(30) or nil, keepLastIfActive = self:chance(40) or nil }
    end
    return opts
end

-- Only what is replaced may go as something is added.
local function replaced(q)
    return function(id, before) return before == "delayed" and q.last.job[id].deid ~= "" end
end

function Run:check_both(may_go)
    for _, q in ipairs(self.queues) do self:check(q, may_go and may_go(q) or never) end
end

function Run:add()
    local q = self:one(self.queues)
    local list = {}
    for i = 1, self:chance(60) and 1 or self:any(6) do list[i] = { name = "n", data = { i = i }, opts = self:options() } end
    local ids = jobs.add_bulk(q.name, list)
    for i, id in ipairs(ids) do
        self:say("add %s to %s: %s", json.encode(list[i].opts), q.p, id)
        q.known[id] = q.known[id] or "new"
    end
    local before = q.known
    self:check_both(function(which)
        local may = replaced(which)
        return function(id, place) return which == q and (place == "new" or before[id] == "new") or may(id, place) end
    end)
end

local TO_PARENT = { "failParentOnFailure", "continueParentOnFailure", "ignoreDependencyOnFailure", "removeDependencyOnFailure" }

function Run:flow()
    local q = self:one(self.queues)
    local function node(depth)
        local where = self:chance(60) and q or self:one(self.queues)
        local opts = self:options()
        self.nodes = self.nodes + 1
        opts.jobId = opts.jobId or "node" .. self.nodes -- a random one would make each run another
        if depth == 1 then opts.deduplication = nil end
        if depth > 1 and self:chance(70) then
            opts[self:one(TO_PARENT)] = true
        end
        local made = { name = "f" .. depth, queueName = where.name, opts = opts }
        if depth == 1 or depth == 2 and self:chance(20) then
            made.children = {}
            for i = 1, self:any(3) do made.children[i] = node(depth + 1) end
        end
        return made
    end
    local tree = node(1)
    local ok, made = pcall(jobs.add_flow, tree)
    self:say("flow %s: %s", json.encode(tree), ok and json.encode(made) or "refused")
    if not ok and not (type(made) == "table" and made.status) then error(made, 0) end
    self:check_both(replaced)
end

-- Workers ----------------------------------------------------------------------------------------------------------------------

function Run:rule(of)
    return self:one(of == "removed" and { { "0", "", "" } } or { { "", "", "" }, { "", "", "" }, { "", "", "" }, { "0", "", "" },
        { "2", "", "" }, { "1", "", "1" }, { "3", "1", "" }, { "", "5", "2" } })
end

-- The job's end as its worker might tell it.
function Run:end_of(q, id, token, defa)
    local what = (defa or self:chance(20)) and "failed" or self:one{ "completed", "completed", "completed", "retry", "retry", "back",
        "later", "children" }
    local e = { id = id, token = token, what = what, value = "null", extra = "", rule = { "", "", "" }, trace = "" }
    if what == "completed" then
        e.rule = self:rule()
        local job = q.last.job[id]
        if id:find("^%d+$") and job and job.name == "n" and job.deid == "" and self:chance(70) then e.extra = "1" end
    elseif what == "failed" then
        e.rule, e.extra, e.value, e.trace = self:rule(), self:one{ "0", "1" }, "bad", '["trace"]'
    elseif what == "retry" then
        e.extra, e.value, e.trace = self:one{ "0", "0", "2000" }, "again", '["trace"]'
    elseif what == "later" then
        e.extra = "3000"
    end
    return e
end

-- Tells ends and takes n jobs. Answers the codes.
function Run:cycle(q, worker, ends, n, limiter)
    self.calls = self.calls + 1
    local token = worker .. ":" .. self.calls
    local minute = math.floor(self.now / 60000)
    local args = { text(self.now), "30000", "", limiter and "3" or "", limiter and "500000" or "", text(n), token, POINTS,
        q[worker] == minute and "0" or "1" }
    local group, members
    for _, e in ipairs(ends) do
        local kind = table.concat({ e.what, e.token, unpack(e.rule) }, "|")
        if kind ~= group then
            group, members = kind, #args + 6
            for _, value in ipairs{ e.what, e.token, e.rule[1], e.rule[2], e.rule[3], 0 } do args[#args + 1] = value end
        end
        args[members] = args[members] + 1
        for _, value in ipairs{ e.id, e.value, e.extra } do args[#args + 1] = value end
        if e.what == "failed" or e.what == "retry" then args[#args + 1] = e.trace end
    end
    for i, value in ipairs(args) do args[i] = tostring(value) end
    local answer = redis.eval(between.script, { q.p }, args)
    if type(answer) ~= "table" or answer.err then self:fail("cycle: %s", tostring(answer and answer.err)) end
    if answer[5] ~= "" then self:fail("beside the ends: %s", answer[5]) end
    if #ends > 0 then q[worker] = minute end
    local told = {}
    for i, e in ipairs(ends) do told[i] = ("%s %s(%s%s)=%s"):format(e.what, e.id, e.extra, e.rule[1] ~= "" and " keep " .. e.rule[1] or "",
        tostring(answer[1][i])) end
    local taken, ids = between.jobs_of(answer), {}
    for i, job in ipairs(taken) do ids[i] = job.id end
    self:say("%s in %s ends [%s] takes %d: [%s]", token, q.p, table.concat(told, ", "), n, table.concat(ids, " "))
    self:settle(q, ends, answer[1])
    for i, id in ipairs(ids) do
        if q.held[id] then self:fail("job %s is given to two", id) end
        q.held[id] = { worker = worker, token = token, defa = taken[i].defa }
    end
    if n > 0 then q.sleeper_due = #ids < n and tonumber(answer[3]) > 0 and tonumber(answer[3]) or math.huge end
    return answer[1], ids
end

function Run:settle(q, ends, codes)
    local seen = {}
    for i, e in ipairs(ends) do
        local code, holder = codes[i], q.held[e.id]
        if type(code) ~= "number" then self:fail("the end of %s: %s", e.id, tostring(code)) end
        local mine = holder and holder.token == e.token and seen[e.id] ~= 0
        if not mine then
            if code == 0 then self:fail("%s was ended by one who does not hold it", e.id) end
        elseif e.what == "completed" then
            if code ~= 0 and code ~= -4 and code ~= -9 then self:fail("%s cannot be completed: %d", e.id, code) end
        elseif e.what == "children" then
            if code ~= 0 and code ~= 1 then self:fail("%s cannot wait for children: %d", e.id, code) end
        elseif code ~= 0 then
            self:fail("%s of %s cannot be told: %d", e.what, e.id, code)
        end
        if mine then seen[e.id] = code end
        if mine and code == 0 and q.ended[e.what] then q.ended[e.what] = q.ended[e.what] + 1 end
    end
    for id, code in pairs(seen) do
        if code == 0 then q.held[id] = nil end
    end
end

-- What is served next, if nothing ends: from where everything lay before.
local function served(s, now, n)
    local wait, prioritized = {}, {}
    for i = #s.wait, 1, -1 do wait[#wait + 1] = s.wait[i] end
    for _, id in ipairs(s.prioritized) do prioritized[#prioritized + 1] = { id, s.job[id].priority } end
    local promoted = {}
    for i = 1, #s.due, 2 do
        local id = s.due[i]
        if math.floor(tonumber(s.due[i + 1]) / 4096) <= now then
            if s.job[id].priority > 0 then
                prioritized[#prioritized + 1] = { id, s.job[id].priority }
            else
                promoted[#promoted + 1] = id
            end
        end
    end
    -- A `paused` list is older than what waits; what falls due is the newest.
    local first = {}
    for i = #s.paused, 1, -1 do first[#first + 1] = s.paused[i] end
    for _, id in ipairs(wait) do first[#first + 1] = id end
    for _, id in ipairs(promoted) do first[#first + 1] = id end
    for rank = 1, 4 do
        for _, one in ipairs(prioritized) do
            if one[2] == rank then first[#first + 1] = one[1] end
        end
    end
    for i = #first, math.max(0, math.min(n, s.concurrency - #s.active)) + 1, -1 do first[i] = nil end
    return first
end

function Run:work()
    local q, worker = self:one(self.queues), self:one{ "w1", "w2", "w3" }
    local ends = {}
    local mine = {}
    for _, id in ipairs(sorted(q.held)) do
        if q.held[id].worker == worker then mine[#mine + 1] = id end
    end
    if self:chance(75) then
        for _, id in ipairs(mine) do
            if self:chance(60) then
                local e = self:end_of(q, id, q.held[id].token, q.held[id].defa)
                if self:chance(5) then e.token = "stranger:1" end
                ends[#ends + 1] = e
                if self:chance(8) then ends[#ends + 1] = self:end_of(q, id, q.held[id].token) end
            end
        end
        for i = #q.zombies, 1, -1 do
            if self:chance(30) then
                local z = table.remove(q.zombies, i)
                ends[#ends + 1] = self:end_of(q, z.id, z.token)
            end
        end
        if self:chance(3) then ends[#ends + 1] = self:end_of(q, "nobody", "w1:1") end
    end
    local n = self:chance(15) and 0 or self:any(10)
    local popped = n > 0 and self:chance(70) and redis.call("ZPOPMIN", q.p .. "marker")
    if popped and popped[1] then self:say("marker %s of %s", popped[1], q.p) end
    local limiter = self:chance(5)
    local before = q.last
    local codes, ids = self:cycle(q, worker, ends, n, limiter)
    if #ends == 0 and not limiter and not before.limited and not before.is_paused then
        local expected = table.concat(served(before, self.now, n), " ")
        if table.concat(ids, " ") ~= expected then self:fail("served were [%s], not [%s]", table.concat(ids, " "), expected) end
    end
    -- What ended may be swept away by the rule of whatever ended with it.
    local sweeps, went = false, {}
    for i, e in ipairs(ends) do
        if codes[i] == 0 and (e.what == "completed" or e.what == "failed") then
            went[e.id] = true
            sweeps = sweeps or e.rule[1] ~= "" or e.rule[2] ~= ""
        end
    end
    self:check_both(function(which)
        return function(id, place) return which == q and sweeps and (went[id] or place == "completed" or place == "failed") end
    end)
end

-- A worker dies, or does not renew: it still believes that the job is its own.
function Run:expire()
    local q = self:one(self.queues)
    local ids = sorted(q.held)
    if #ids == 0 then return end
    local id = self:one(ids)
    self:say("lock of %s in %s is gone", id, q.p)
    redis.call("DEL", q.p .. id .. ":lock")
    q.zombies[#q.zombies + 1] = { id = id, token = q.held[id].token }
    q.held[id] = nil
    self:check_both()
end

function Run:renew()
    local q = self:one(self.queues)
    local args = { "30000" }
    for _, id in ipairs(sorted(q.held)) do
        args[#args + 1], args[#args + 2] = id, q.held[id].token
    end
    for _, z in ipairs(q.zombies) do
        args[#args + 1], args[#args + 2] = z.id, z.token
    end
    local lost = redis.eval(scripts.extend, { q.p }, args)
    if #lost ~= #q.zombies then self:fail("%d locks are lost, %d are told", #q.zombies, #lost) end
    self:check_both()
end

function Run:stalled()
    local q = self:one(self.queues)
    local before = q.last
    local back = support.check_stalled(q.name)
    self:say("stalled in %s: [%s]", q.p, table.concat(back, " "))
    for _, id in ipairs(back) do
        if before.job[id].lock ~= "" then self:fail("%s has a lock and is taken for stalled", id) end
    end
    self:check_both()
end

function Run:pause()
    local q = self:one(self.queues)
    local is_paused = q.last.is_paused
    self:say("%s %s", is_paused and "resume" or "pause", q.p)
    if is_paused then queues.resume(q.name) else queues.pause(q.name) end
    self:check_both()
end

function Run:limits()
    local q = self:one(self.queues)
    local most = self:chance(50) and self:any(4) or nil
    self:say("concurrency %s in %s", tostring(most), q.p)
    queues.set_limits(q.name, { concurrency = most })
    redis.call("DEL", q.p .. "limiter")
    self:check_both()
end

local function any_id(run, q, place)
    local list = q.last[place]
    return #list > 0 and run:one(list) or nil
end

function Run:dashboard()
    local q = self:one(self.queues)
    local what = self:one{ "promote", "retry", "retry", "delay", "priority", "remove", "drain", "clean" }
    local code, id
    local may_go = never
    if what == "promote" or what == "delay" then
        id = any_id(self, q, "delayed")
        if not id then return end
        code = what == "promote" and queues.promote(q.name, id) or queues.change_delay(q.name, id, 5000)
    elseif what == "retry" then
        id = any_id(self, q, self:one{ "completed", "failed", "failed" })
        if not id then return end
        code = queues.retry(q.name, id, self:chance(50))
    elseif what == "priority" then
        id = any_id(self, q, self:one{ "wait", "prioritized", "delayed", "paused" })
        if not id then return end
        code = queues.change_priority(q.name, id, self:any(4) - 1, self:chance(30))
    elseif what == "remove" then
        id = any_id(self, q, self:one{ "wait", "delayed", "active", "completed", "waiting-children", "prioritized" })
        if not id then return end
        local locked = q.last.job[id].lock ~= ""
        code = queues.remove(q.name, id)
        if locked and code ~= -2 then self:fail("%s was removed under its worker", id) end
        if not locked and code ~= 0 and code ~= -2 then self:fail("%s cannot be removed: %d", id, code) end
        may_go = function() return true end
        if code == 0 then code = nil end
    elseif what == "drain" and self:chance(20) then
        queues.drain(q.name, self:chance(50))
        may_go = function(_, place) return place ~= "active" and place ~= "completed" and place ~= "failed" end
    elseif what == "clean" and self:chance(40) then
        local state = self:one{ "completed", "failed", "delayed" }
        queues.clean(q.name, state, -1000000000000, self:any(5))
        may_go = function(_, place) return place == state end
    else
        return
    end
    self:say("%s %s in %s: %s", what, id or "", q.p, tostring(code))
    if code and code ~= 0 and what ~= "remove" then self:fail("%s of %s: %d", what, id, code) end
    for _, which in ipairs(self.queues) do self:check(which, (which == q or what == "remove") and may_go or never) end
end

function Run:clock()
    self.now = self.now + self:one{ 1, 500, 2000, 61000 }
    self:say("it is %s", text(self.now - START_MS))
end

-- The end ----------------------------------------------------------------------------------------------------------------------

function Run:finish_off(q)
    local ends = {}
    for _, id in ipairs(sorted(q.held)) do
        local h = q.held[id]
        ends[#ends + 1] = { id = id, token = h.token, what = h.defa and "failed" or "completed", value = "null", extra = "",
            rule = { "", "", "" }, trace = "" }
    end
    local codes = self:cycle(q, "w1", ends, 0)
    local again = {}
    for i, e in ipairs(ends) do
        if codes[i] ~= 0 then
            e.what, again[#again + 1] = "failed", e
        end
    end
    if #again > 0 then self:cycle(q, "w1", again, 0) end
end

function Run:lead_to_the_end()
    for _, q in ipairs(self.queues) do
        queues.resume(q.name)
        queues.set_limits(q.name, {})
        redis.call("ZADD", q.p .. "marker", "0", "0")
    end
    local left
    for round = 1, 60 do
        left = 0
        self.now = self.now + 1000000
        for _, q in ipairs(self.queues) do
            redis.call("DEL", q.p .. "limiter")
            self:finish_off(q)
            support.check_stalled(q.name)
            self:cycle(q, "w1", {}, 10)
            self:check_both()
            for _, name in ipairs(LIVING) do left = left + #q.last[name] end
        end
        if left == 0 then break end
        -- A parent waits for a child that failed until somebody looks after the child.
        if round % 10 == 0 then
            for _, q in ipairs(self.queues) do
                for _, id in ipairs(q.last.failed) do queues.retry(q.name, id) end
                self:check_both()
            end
        end
    end
    if left > 0 then
        for _, q in ipairs(self.queues) do
            for _, name in ipairs(LIVING) do self:say("%s in %s: %s", name, q.p, table.concat(q.last[name], " ")) end
        end
        self:fail("%d jobs cannot be led to an end", left)
    end
end

local PARTS = { dependencies = true, processed = true, failed = true, unsuccessful = true, logs = true, lock = true }

function Run:count_up(q)
    local counted = {}
    for _, name in ipairs(support.events(q.name)) do counted[name] = (counted[name] or 0) + 1 end
    for what, n in pairs(q.ended) do
        if (counted[what] or 0) ~= n then self:fail("%d %s, %d such events", n, what, counted[what] or 0) end
        local m = queues.metrics(q.name, what, 1440)
        if m.count ~= n then self:fail("%d %s, the figure says %d", n, what, m.count) end
        local sum = 0
        for _, one in ipairs(m.per_minute) do sum = sum + one end
        if sum > n then self:fail("%d %s, the minutes say %d", n, what, sum) end
    end
    local own = {}
    for name in ("id pc wait active completed failed marker stalled events meta stalled-check limiter metrics:completed metrics:failed "
        .. "metrics:completed:data metrics:failed:data"):gmatch("%S+") do own[name] = true end
    for _, key in ipairs(redis.call("KEYS", q.p .. "*")) do
        local name = key:sub(#q.p + 1)
        local id, part = name:match("^([^:]*):?(.*)$")
        local of_job = q.known[id] and (part == "" or PARTS[part] and part ~= "lock")
        if not own[name] and not of_job and not name:find("^de:") then self:fail("the key %s is left over", key) end
        if name:find("^de:") and redis.call("PTTL", key) == -1 then self:fail("%s is taken for ever", key) end
    end
end

local function forget(run)
    for _, q in ipairs(run.queues) do
        local keys = redis.call("KEYS", q.p .. "*")
        for i = 1, #keys, 500 do redis.call("DEL", unpack(keys, i, math.min(i + 499, #keys))) end
    end
end

local MIXTURE = { { 22, "add" }, { 6, "flow" }, { 40, "work" }, { 5, "expire" }, { 2, "renew" }, { 5, "stalled" }, { 4, "pause" },
    { 3, "limits" }, { 8, "dashboard" }, { 5, "clock" } }

local function play(seed)
    local run = new_run(seed)
    run:check_both()
    for step = 1, STEPS do
        run.step = step
        local dice = run:any(100)
        for _, one in ipairs(MIXTURE) do
            dice = dice - one[1]
            if dice <= 0 then
                run[one[2] ](run)
                break
            end
        end
    end
    run.step = STEPS + 1
    run:lead_to_the_end()
    for _, q in ipairs(run.queues) do run:count_up(q) end
    forget(run)
    return run.calls
end

describe("queues in every mixture", function()
    local own, many = tonumber(os.getenv("QUEUE_SEED") or ""), tonumber(os.getenv("QUEUE_SEEDS") or "") or 1
    local seeds = {}
    for i = 1, own and many or #SEEDS do seeds[i] = own and own + i - 1 or SEEDS[i] end
    for _, seed in ipairs(seeds) do
        it("lose nothing, and tell whoever sleeps, with seed " .. seed, function() assert.is_true(play(seed) > STEPS / 10) end)
    end
end)
