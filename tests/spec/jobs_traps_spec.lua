-- What a queue must bear: bad words, keys that are not what they should be, calls at the wrong moment.
local json = require("core.json")
local redis = require("core.redis")
local time = require("core.time")
local jobs = require("kasma.jobs")
local queues = require("kasma.jobs_queue")
local support = require("spec.jobs_support")

local fresh, hash, eventually, take = support.fresh, support.hash, support.eventually, support.take

local function ids(queue, state)
    local list = {}
    for i, job in ipairs(queues.list(queue, state, 0, 100)) do list[i] = job.id end
    return list
end

local function error_of(fn, ...)
    local ok, err = pcall(fn, ...)
    assert(not ok, "an error was expected")
    return err
end

describe("a trap of queues:", function()
    it("a delayed job that nobody promotes runs when its time has come by the clock", function()
        local q = fresh()
        jobs.handler(q, "x", function() return 1 end)
        jobs.work(q)
        jobs.add(q, "x", {}, { delay = 3600000 })
        local before = time.shift()
        time.set_shift(before + 3600001)
        local ok, why = pcall(eventually, function() return hash(q, "1").finishedOn end)
        time.set_shift(before)
        assert.is_true(ok, why)
    end)

    it("a worker does not run hot while something is due later", function()
        local q = fresh()
        jobs.handler(q, "x", function() end)
        jobs.add(q, "x", {}, { delay = 3600000 })
        local worker = jobs.work(q)
        eventually(function() return worker.next_due > 0 and not worker.ready end)
        local calls = 0
        local cycle = worker.cycle
        worker.cycle = function(...)
            calls = calls + 1
            return cycle(...)
        end
        for _ = 1, 20 do require("core.sched").sleep(10) end
        assert.is_true(calls <= 1, calls .. " calls")
    end)

    it("a move is one script: a job is in one place at any moment", function()
        local q = fresh()
        for _ = 1, 20 do jobs.add(q, "x", {}, { attempts = 2 }) end
        jobs.handler(q, "x", function(job)
            if job.attempts_made == 0 then error("again") end
        end)
        jobs.work(q, { concurrency = 3 })
        local prefix = jobs.base(q)
        local whole = [[local p = KEYS[1]
            return redis.call('LLEN', p .. 'wait') + redis.call('LLEN', p .. 'active') + redis.call('ZCARD', p .. 'completed')
              + redis.call('ZCARD', p .. 'failed') + redis.call('ZCARD', p .. 'delayed')]]
        eventually(function()
            assert.equal(20, redis.eval(whole, { prefix }, {}))
            return queues.counts(q).completed == 20
        end)
    end)

    it("a pause in one form and a resume in the other lose nothing and keep the order", function()
        local q = fresh()
        local prefix = jobs.base(q)
        jobs.add(q, "a", {})
        queues.pause(q)
        assert.same({ "1" }, redis.call("LRANGE", prefix .. "paused", 0, -1))
        jobs.add(q, "b", {})
        assert.same({ "2", "1" }, redis.call("LRANGE", prefix .. "paused", 0, -1))
        assert.same({}, take(q, "w"))
        assert.equal(0, redis.call("EXISTS", prefix .. "marker"))
        -- The sixth major adds to wait while paused, and only takes the flag away.
        redis.call("HSET", prefix .. "3", "name", "c", "data", "{}", "opts", "{}", "timestamp", "1", "delay", "0", "priority", "0")
        redis.call("LPUSH", prefix .. "wait", "3")
        redis.call("HDEL", prefix .. "meta", "paused")
        assert.same({ "1", "2", "3" }, { take(q, "w")[1].id, take(q, "w")[1].id, take(q, "w")[1].id })
        assert.equal(0, redis.call("EXISTS", prefix .. "paused"))
        -- Paused by the sixth (flag alone), resumed by ours.
        local r = fresh()
        local rp = jobs.base(r)
        redis.call("HSET", rp .. "meta", "version", "bullmq:6.7.0", "paused", "1")
        jobs.add(r, "a", {})
        assert.same({ "1" }, redis.call("LRANGE", rp .. "wait", 0, -1))
        assert.is_true(queues.resume(r))
        assert.same({ "0", "0" }, redis.call("ZRANGE", rp .. "marker", 0, -1, "WITHSCORES"))
        assert.equal("1", take(r, "w")[1].id)
    end)

    it("a job whose hash is gone is passed over", function()
        local q = fresh()
        jobs.add(q, "x", {})
        jobs.add(q, "x", {})
        redis.call("DEL", jobs.base(q) .. "1")
        assert.equal("2", take(q, "w")[1].id)
        assert.same({ "2" }, redis.call("LRANGE", jobs.base(q) .. "active", 0, -1))
    end)

    it("ends are told whole while Redis has no memory to give", function()
        local q = fresh()
        jobs.add_bulk(q, { { name = "a" }, { name = "a" }, { name = "a" }, { name = "a" }, { name = "a" } })
        assert.equal(5, #take(q, "w", 5))
        redis.call("CONFIG", "SET", "maxmemory", "1")
        local ok, answer = pcall(support.cycle, q, "w", "0", nil, "retry", "w:0", "", "", "", "2", "1", "no", "0", "", "2", "no", "60000",
            "", "completed", "w:0", "0", "", "", "1", "3", "null", "", "failed", "w:0", "", "", "", "1", "4", "no", "1", "")
        redis.call("CONFIG", "SET", "maxmemory", "0")
        assert.is_true(ok, answer)
        assert.same({ 0, 0, 0, 0 }, answer[1])
        assert.same({ { "1" }, { "2" }, { "4" }, { "5" } }, { ids(q, "waiting"), ids(q, "delayed"), ids(q, "failed"), ids(q, "active") })
        assert.equal(0, redis.call("EXISTS", jobs.base(q) .. "3"))
    end)

    it("a broken key costs its own job the end, and no neighbour its place", function()
        for _, broken in ipairs{ "3", "completed", "delayed" } do
            local q = fresh()
            for _ = 1, 6 do jobs.add(q, "a") end
            assert.equal(5, #take(q, "w", 5))
            redis.call("DEL", jobs.base(q) .. broken)
            redis.call("SET", jobs.base(q) .. broken, "x")
            local answer = support.cycle(q, "w", "1", nil, "retry", "w:0", "", "", "", "4", "1", "no", "0", "", "2", "no", "0", "",
                "3", "no", "0", "", "4", "no", "0", "", "completed", "w:0", "1", "", "", "1", "5", "null", "")
            local code = table.remove(answer[1], 3)
            assert.same({ 0, 0, 0, 0 }, answer[1])
            if broken == "3" then
                assert.matches("WRONGTYPE", code)
                assert.equal("", answer[5])
                assert.same({ "6", "3" }, redis.call("LRANGE", jobs.base(q) .. "active", "0", "-1"))
                assert.equal("w:0", redis.call("GET", jobs.base(q) .. "3:lock"))
                assert.same({ "1", "2", "4" }, ids(q, "waiting"))
            else
                assert.equal(0, code)
                assert.matches("WRONGTYPE", answer[5])
                assert.same({ "1", "2", "3", "4" }, ids(q, "waiting"))
            end
        end
    end)

    it("a broken key leaves its job active where few ends are told, too", function()
        local q = fresh()
        for _ = 1, 6 do jobs.add(q, "a") end
        assert.equal(6, #take(q, "w", 6))
        local active = jobs.base(q) .. "active"
        redis.call("SET", jobs.base(q) .. "2", "x")
        local answer = support.cycle(q, "w", "0", nil, "retry", "w:0", "", "", "", "2", "2", "no", "0", "", "1", "no", "0", "")
        assert.matches("WRONGTYPE", answer[1][1])
        assert.equal(0, answer[1][2])
        assert.same({ "2", "6", "5", "4", "3" }, redis.call("LRANGE", active, "0", "-1"))
        redis.call("SET", jobs.base(q) .. "6", "x")
        answer = support.cycle(q, "w", "0", nil, "retry", "w:0", "", "", "", "4", "6", "no", "0", "", "5", "no", "0", "", "3", "no", "0",
            "", "4", "no", "0", "")
        assert.matches("WRONGTYPE", table.remove(answer[1], 1))
        assert.same({ 0, 0, 0 }, answer[1])
        assert.same({ "2", "6" }, redis.call("LRANGE", active, "0", "-1"))
        assert.same({ "1", "5", "3", "4" }, ids(q, "waiting"))
    end)

    it("jobs leave their places in whatever order their ends are told, and a second end finds none", function()
        local orders = { { 1, 2, 3, 4, 5, 6 }, { 6, 5, 4, 3, 2, 1 }, { 3, 1, 2, 6, 4, 5 }, { 2, 1, 4, 3, 7, 8 }, { 1, 2, 4, 5, 3, 8 } }
        for _, order in ipairs(orders) do
            local q = fresh()
            for _ = 1, 8 do jobs.add(q, "a") end
            assert.equal(8, #take(q, "w", 8))
            local ends, left = {}, {}
            for n = 1, 8 do left[tostring(n)] = true end
            for i, n in ipairs(order) do
                ends[3 * i - 2], ends[3 * i - 1], ends[3 * i] = tostring(n), "null", "1"
                left[tostring(n)] = nil
            end
            for i = 1, 3 do ends[18 + i] = ends[i] end
            local answer = support.cycle(q, "w", "0", nil, "completed", "w:0", "", "", "", "7", unpack(ends))
            assert.same({ 0, 0, 0, 0, 0, 0, -3 }, answer[1])
            local still = {}
            for _, id in ipairs(redis.call("LRANGE", jobs.base(q) .. "active", "0", "-1")) do still[id] = true end
            assert.same(left, still)
            assert.equal(2, redis.call("LLEN", jobs.base(q) .. "active"))
            assert.equal(6, redis.call("ZCARD", jobs.base(q) .. "completed"))
        end
    end)

    it("a rule of keeping that makes no sense costs no neighbour its place", function()
        local q, tries = fresh(), {}
        jobs.handler(q, "odd", function() return 1 end)
        jobs.handler(q, "flaky", function(job)
            tries[job.id] = (tries[job.id] or 0) + 1
            if tries[job.id] < 2 then error("again", 0) end
        end)
        for i, count in ipairs{ 1e20, -1, 0.5, "x" } do
            jobs.add(q, "odd", {}, { jobId = "odd" .. i })
            redis.call("HSET", jobs.base(q) .. "odd" .. i, "opts", json.encode{ removeOnComplete = { count = count, limit = count } })
            jobs.add(q, "flaky", {}, { jobId = "flaky" .. i, attempts = 3 })
        end
        jobs.work(q, { concurrency = 16 })
        eventually(function() return queues.counts(q).completed == 8 end)
    end)

    it("a worker takes no more than a reply holds, and leaves the rest in its order and marked", function()
        local q = fresh()
        local p = jobs.base(q)
        local large = { text = ("x"):rep(3 * 1048576) }
        for _ = 1, 3 do jobs.add(q, "x", large) end
        for _ = 1, 3 do jobs.add(q, "x", large, { priority = 1 }) end
        local function taken(list)
            local out = {}
            for i, job in ipairs(list) do out[i] = job.id end
            return out
        end
        assert.same({ "1", "2" }, taken(take(q, "w", 6)))
        assert.same({ "3" }, redis.call("LRANGE", p .. "wait", 0, -1))
        assert.same({ "4", "5", "6" }, redis.call("ZRANGE", p .. "prioritized", 0, -1))
        assert.equal("0", redis.call("ZSCORE", p .. "marker", "0"))
        assert.same({ "3", "4" }, taken(take(q, "w2", 6)))
        assert.same({ "5", "6" }, taken(take(q, "w3", 6)))
        assert.equal(6, redis.call("LLEN", p .. "active"))
        assert.equal("bad_job", error_of(jobs.add, q, "x", { text = ("x"):rep(8000000) }).code)
        -- Another producer's that no reply could hold is handed over without its data, to be failed.
        redis.call("HSET", p .. "huge", "name", "x", "data", ("x"):rep(9 * 1048576), "opts", "{}", "timestamp", "1")
        redis.call("LPUSH", p .. "wait", "huge")
        local job = take(q, "w4", 1)[1]
        assert.same({ "huge", "{}", "the job is larger than 8388608 bytes" }, { job.id, job.data, job.defa })
    end)

    it("bad options are refused before anything is written", function()
        local q = fresh()
        for _, opts in ipairs{ { priority = -1 }, { priority = 2097152 }, { priority = 1.5 }, { delay = -1 }, { delay = 1e300 },
            { jobId = "12" }, { jobId = "0:a" }, { jobId = "a:b" },
            { backoff = "x" }, { backoff = { type = "fixed", delay = -3 } }, { attempts = 0 / 0 },
            { deduplication = {} }, { parent = { id = 3 } }, { parent = { id = "a", queue = "auth:at" } },
            { parent = { id = "1:lock", queue = jobs.base(q):sub(1, -2) } }, { sizeLimit = "x" }, { keepLogs = -1 }, { lifo = "no" },
            { stackTraceLimit = {} }, { removeOnComplete = "x" }, { removeOnComplete = 1e20 }, { removeOnComplete = { count = 1e20 } },
            { removeOnFail = { age = -5 } }, { removeOnFail = { count = 5, limit = 1e20 } } } do
            assert.equal("bad_job", error_of(jobs.add, q, "x", {}, opts).code)
        end
        assert.equal(0, redis.call("EXISTS", jobs.base(q) .. "id"))
        assert.equal("a:b:c", jobs.add(q, "x", {}, { jobId = "a:b:c" }))
    end)

    it("an id that is the name of a queue's key is refused: it would end the queue", function()
        local q = fresh()
        for _, id in ipairs{ "id", "wait", "paused", "active", "prioritized", "pc", "delayed", "completed", "failed", "waiting-children",
            "marker", "stalled", "stalled-check", "events", "meta", "limiter", "repeat", "metrics:completed:data", "de:a:b", "dn:a:b" } do
            assert.equal("bad_job", error_of(jobs.add, q, "x", {}, { jobId = id }).code)
        end
        assert.equal("waiting", jobs.add(q, "x", {}, { jobId = "waiting" }))
        local child = jobs.add(q, "x", {}, { parent = { id = "waiting", queue = jobs.base(q):sub(1, -2) } })
        assert.equal(jobs.base(q) .. "waiting", hash(q, child).parentKey)
    end)
end)
