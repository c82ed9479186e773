-- Queues: what lies in Redis for a job, and what becomes of it. On real Redis, with queues of their own.
local json = require("core.json")
local redis = require("core.redis")
local sched = require("core.sched")
local jobs = require("kasma.jobs")
local support = require("spec.jobs_support")

local fresh, hash, eventually, events = support.fresh, support.hash, support.eventually, support.events

describe("a queue", function()
    it("holds a job as BullMQ does", function()
        local q = fresh()
        local id = jobs.add(q, "send-otp", { to = "a" }, { attempts = 3, backoff = { type = "exponential", delay = 3000 } })
        assert.equal("1", id)
        local fields = hash(q, "1")
        assert.equal("send-otp", fields.name)
        assert.same({ attempts = 3, backoff = { type = "exponential", delay = 3000 } }, json.decode(fields.opts))
        assert.same({ "0", "0" }, { fields.delay, fields.priority })
        assert.same({ "1" }, redis.call("LRANGE", jobs.base(q) .. "wait", "0", "-1"))
        assert.same({ "0", "0" }, redis.call("ZRANGE", jobs.base(q) .. "marker", "0", "-1", "WITHSCORES"))
        assert.same({ "added", "waiting" }, events(q))
    end)

    it("scores delays and priorities as BullMQ does", function()
        local q = fresh()
        jobs.add(q, "late", {}, { delay = 1000, timestamp = 1795391808390 })
        assert.equal("7353924851261440", redis.call("ZRANGE", jobs.base(q) .. "delayed", "0", "0", "WITHSCORES")[2])
        jobs.add(q, "later", {}, { delay = 1000, timestamp = 1795391808390 })
        assert.equal("7353924851261441", redis.call("ZRANGE", jobs.base(q) .. "delayed", "1", "1", "WITHSCORES")[2])
        jobs.add(q, "urgent", {}, { priority = 3 })
        assert.equal("12884901889", redis.call("ZRANGE", jobs.base(q) .. "prioritized", "0", "0", "WITHSCORES")[2])
    end)

    it("adds a custom id once, and once for one asker", function()
        local q = fresh()
        assert.equal("mine", jobs.add(q, "a", {}, { jobId = "mine" }))
        assert.equal("mine", jobs.add(q, "a", {}, { jobId = "mine" }))
        local first = jobs.add(q, "b", {}, {}, "row-1")
        assert.equal(first, jobs.add(q, "b", {}, {}, "row-1"))
        assert.equal(2, redis.call("LLEN", jobs.base(q) .. "wait"))
        for _, id in ipairs{ "12", "0", "0:a", "a:b" } do
            assert.has_error(function() jobs.add(q, "a", {}, { jobId = id }) end)
        end
    end)

    it("runs jobs, tries failed ones again after their backoff, gives up after the last", function()
        local q = fresh()
        local ran = {}
        jobs.handler(q, "good", function(job)
            ran[#ran + 1] = job.data.n
            return { n = job.data.n }
        end)
        local tries = 0
        jobs.handler(q, "bad", function()
            tries = tries + 1
            error("no " .. tries)
        end)
        jobs.handler(q, "hopeless", function() jobs.give_up("never") end)
        local good = jobs.add(q, "good", { n = 7 })
        local bad = jobs.add(q, "bad", {}, { attempts = 3, backoff = { type = "exponential", delay = 20 } })
        local hopeless = jobs.add(q, "hopeless", {}, { attempts = 3 })
        local unknown = jobs.add(q, "unheard-of", {}, { attempts = 3 })
        jobs.work(q, { concurrency = 2 })
        eventually(function() return redis.call("ZCARD", jobs.base(q) .. "failed") == 3 end)
        assert.same({ 7 }, ran)
        assert.same({ n = 7 }, json.decode(hash(q, good).returnvalue))
        local fields = hash(q, bad)
        assert.equal(3, tries)
        assert.same({ "3", "3", 3 }, { fields.atm, fields.ats, #json.decode(fields.stacktrace) })
        assert.matches("no 3", fields.failedReason)
        assert.same({ "never", "1" }, { hash(q, hopeless).failedReason, hash(q, hopeless).atm })
        assert.equal("1", hash(q, unknown).atm)
        assert.equal(0, redis.call("LLEN", jobs.base(q) .. "active"))
        local names = table.concat(events(q), " ")
        assert.matches("delayed", names)
        assert.matches("retries%-exhausted", names)
        assert.matches("drained$", names)
    end)

    it("gives a job back whose worker died, once, then fails it", function()
        local q = fresh()
        local prefix = jobs.base(q)
        local id = jobs.add(q, "x", {}, { attempts = 3 })
        assert.equal(id, support.take(q, "dead")[1].id)
        assert.same({}, support.check_stalled(q))
        redis.call("DEL", prefix .. id .. ":lock")
        assert.same({ id }, support.check_stalled(q))
        assert.equal("1", hash(q, id).stc)
        assert.is_nil(hash(q, id).defa)
        assert.equal(id, support.take(q, "dead")[1].id)
        support.check_stalled(q)
        redis.call("DEL", prefix .. id .. ":lock")
        assert.same({ id }, support.check_stalled(q))
        assert.equal("job stalled more than allowable limit", hash(q, id).defa)
        jobs.handler(q, "x", function() error("it must not run any more") end)
        jobs.work(q)
        eventually(function() return hash(q, id).finishedOn end)
        assert.equal("job stalled more than allowable limit", hash(q, id).failedReason)
    end)

    it("leaves a job to a worker that still holds its lock", function()
        local q = fresh()
        local id = jobs.add(q, "x", {})
        support.take(q, "alive")
        support.check_stalled(q)
        assert.same({}, support.check_stalled(q))
        assert.same({ id }, redis.call("LRANGE", jobs.base(q) .. "active", 0, -1))
    end)

    it("refuses to end a job that another worker holds", function()
        local q = fresh()
        local id = jobs.add(q, "x", {})
        support.take(q, "a")
        assert.equal(-6, support.complete(q, id, "b:0"))
        assert.equal(0, support.complete(q, id, "a:0"))
        assert.equal(-2, support.complete(q, id, "a:0"))
        redis.call("DEL", jobs.base(q) .. id)
        assert.equal(-1, support.complete(q, id, "a:0"))
    end)

    it("renews the locks of what runs, and of nothing else", function()
        local q = fresh()
        local id, gate = jobs.add(q, "long", {}), true
        jobs.handler(q, "long", function()
            while gate do sched.sleep(10) end
        end)
        jobs.work(q, { lock_ms = 4000, stalled_ms = 500 })
        local prefix = jobs.base(q)
        eventually(function() return #redis.call("LRANGE", prefix .. "active", 0, -1) == 1 end)
        -- Many checks pass in which the lock would have run out.
        local checks, last = 0, nil
        eventually(function()
            local now = redis.call("GET", prefix .. "stalled-check")
            if now ~= last then checks, last = checks + 1, now end
            return checks >= 16
        end)
        assert.is_nil(hash(q, id).stc)
        gate = false
        eventually(function() return hash(q, id).finishedOn end)
        assert.equal("1", hash(q, id).ats)
        assert.equal(0, redis.call("EXISTS", prefix .. id .. ":lock"))
    end)

    it("fails alone the job whose handler breaks, in whatever way", function()
        local q = fresh()
        jobs.handler(q, "table", function() error({ message = { "a", "b" } }) end)
        jobs.handler(q, "memory", function() return ("xx"):rep(2 ^ 31 - 5) end)
        jobs.handler(q, "depth", function()
            local function down() return 1 + down() end
            return down()
        end)
        jobs.handler(q, "answer", function() return function() end end)
        jobs.handler(q, "cycle", function()
            local answer = {}
            answer.again = answer
            return answer
        end)
        jobs.handler(q, "huge", function() return ("x"):rep(8e6) end)
        jobs.handler(q, "deep", function()
            local answer = {}
            for _ = 1, 100000 do answer = { answer } end
            return answer
        end)
        jobs.handler(q, "loud", function() error(("x"):rep(8e6), 0) end)
        jobs.handler(q, "time", function() sched.sleep(60000) end, { timeout_ms = 30 })
        jobs.handler(q, "fine", function() return "ok" end)
        local names = { "table", "memory", "depth", "answer", "cycle", "huge", "deep", "loud", "time", "fine" }
        local ids = {}
        for _, name in ipairs(names) do ids[name] = jobs.add(q, name, {}) end
        redis.call("HSET", jobs.base(q) .. jobs.add(q, "fine", {}, { jobId = "garbage" }), "data", "{not json")
        jobs.work(q, { concurrency = 3 })
        eventually(function() return hash(q, "garbage").finishedOn and hash(q, ids.fine).finishedOn and hash(q, ids.time).finishedOn end)
        eventually(function() return redis.call("LLEN", jobs.base(q) .. "active") == 0 end)
        assert.equal("a; b", hash(q, ids.table).failedReason)
        assert.matches("memory", hash(q, ids.memory).failedReason)
        -- Where the stack ends decides whether there is room left for the handler of errors.
        local deep = hash(q, ids.depth).failedReason
        assert.is_true(deep:find("overflow") ~= nil or deep == "error in error handling", deep)
        assert.matches("no JSON", hash(q, ids.answer).failedReason)
        for _, name in ipairs{ "cycle", "deep" } do assert.matches("no JSON", hash(q, ids[name]).failedReason) end
        assert.matches("larger than 1 MiB", hash(q, ids.huge).failedReason)
        local loud = hash(q, ids.loud)
        assert.same({ ("x"):rep(8192), true }, { loud.failedReason, #loud.stacktrace < 40000 })
        assert.matches("deadline", hash(q, ids.time).failedReason)
        assert.equal("the job's data is no JSON", hash(q, "garbage").failedReason)
        assert.equal('"ok"', hash(q, ids.fine).returnvalue)
    end)

    it("is refused to all who added it when there is no memory for the task that would", function()
        local q, begin = fresh(), sched.start
        jobs.add(q, "x")
        sched.start = function() error("not enough memory for a task", 0) end -- of this process's table alone
        local calls = {}
        for i = 1, 10 do
            calls[i] = function() return { pcall(jobs.add, q, "x") } end
        end
        local ok, answers = pcall(sched.parallel, calls)
        sched.start = begin
        assert.is_true(ok, answers)
        for _, answer in ipairs(answers) do assert.same({ false, "not enough memory for a task" }, answer) end
        assert.equal("string", type(jobs.add(q, "x")))
        assert.equal(2, redis.call("LLEN", jobs.base(q) .. "wait"))
    end)

    it("tells the ends of many jobs that answer much, some at a time", function()
        local q = fresh()
        local open, running = false, 0
        jobs.handler(q, "much", function()
            running = running + 1
            while not open do sched.sleep(10) end
            return ("x"):rep(1000000)
        end)
        for _ = 1, 80 do jobs.add(q, "much", {}, { removeOnComplete = true }) end
        jobs.add(q, "much", {}, { jobId = "last", priority = 1 })
        jobs.work(q, { concurrency = 100 })
        eventually(function() return running == 81 end)
        open = true
        eventually(function() return redis.call("LLEN", jobs.base(q) .. "active") == 0 end)
        assert.equal(1000002, #hash(q, "last").returnvalue)
    end)

    it("honours a limit of the rate, the queue's own and a handler's", function()
        local q = fresh()
        local ran = 0
        jobs.handler(q, "*", function() ran = ran + 1 end)
        require("kasma.jobs_queue").set_limits(q, { max = 2, duration = 600000 })
        for _ = 1, 5 do jobs.add(q, "x", {}) end
        assert.equal(2, #support.take(q, "w", 5))
        assert.equal(0, #support.take(q, "w", 5))
        require("kasma.jobs_queue").set_limits(q, { concurrency = 3 })
        redis.call("DEL", jobs.base(q) .. "limiter")
        assert.equal(1, #support.take(q, "w", 5))

        local r = fresh()
        local id = jobs.add(r, "once", {})
        local tries = 0
        jobs.handler(r, "once", function(job)
            tries = tries + 1
            if tries == 1 then jobs.rate_limit(job, 50) end
            return tries
        end)
        jobs.work(r)
        eventually(function() return hash(r, id).finishedOn end)
        assert.same({ "2", "1", "2" }, { hash(r, id).returnvalue, hash(r, id).atm, hash(r, id).ats })
    end)

    it("shows its worker by the name of its connection", function()
        local q = fresh()
        jobs.handler(q, "x", function() end)
        jobs.work(q, { name = "left" })
        local list = eventually(function()
            local found = require("kasma.jobs_queue").workers(q)
            return #found > 0 and found
        end)
        assert.equal("left", list[1].name)
    end)

    it("ends its worker's tasks: what runs ends, or goes back when the grace is over", function()
        local q = fresh()
        local release
        jobs.handler(q, "short", function() sched.sleep(50) end)
        jobs.handler(q, "stuck", function() while not release do sched.sleep(10) end end)
        local short, stuck = jobs.add(q, "short", {}), jobs.add(q, "stuck", {})
        local worker = jobs.work(q, { grace_ms = 2000 })
        eventually(function() return worker.count == 2 end)
        worker:stop()
        assert.truthy(hash(q, short).finishedOn)
        eventually(function() return worker.ended end)
        assert.same({ stuck }, redis.call("LRANGE", jobs.base(q) .. "wait", 0, -1))
        assert.equal(0, redis.call("EXISTS", jobs.base(q) .. stuck .. ":lock"))
        assert.is_nil(hash(q, stuck).atm)
        release = true
    end)
end)
