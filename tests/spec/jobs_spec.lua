-- Queues: what lies in Redis for a job, and what becomes of it. On real Redis, with queues of their own.
local crypto = require("core.crypto")
local json = require("core.json")
local redis = require("core.redis")
local sched = require("core.sched")
local time = require("core.time")
local jobs = require("kasma.jobs")

local function fresh() return "spec-" .. crypto.random_hex(6) end

local function hash(queue, id)
    local flat = redis.call("HGETALL", jobs.base(queue) .. id)
    local fields = {}
    for i = 1, #flat, 2 do fields[flat[i]] = flat[i + 1] end
    return fields
end

local function eventually(fn)
    for _ = 1, 500 do
        local value = fn()
        if value then return value end
        sched.sleep(20)
    end
    error("the condition did not come true in time", 2)
end

local function events(queue)
    local names = {}
    for _, entry in ipairs(redis.call("XRANGE", jobs.base(queue) .. "events", "-", "+")) do names[#names + 1] = entry[2][2] end
    return names
end

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
        local scripts = require("kasma.jobs_scripts")
        local id = jobs.add(q, "x", {}, { attempts = 3 })
        local prefix = jobs.base(q)
        local function take() return redis.eval(scripts.fetch, { prefix }, { "dead:1", tostring(time.now()), "30000", "" }) end
        local function check()
            redis.call("DEL", prefix .. "stalled-check")
            return redis.eval(scripts.stalled, { prefix }, { "30000", tostring(time.now()) })
        end
        assert.equal(id, take()[2])
        assert.same({}, check())
        redis.call("DEL", prefix .. id .. ":lock")
        assert.same({ id }, check())
        assert.equal("1", hash(q, id).stc)
        assert.is_nil(hash(q, id).defa)
        assert.equal(id, take()[2])
        check()
        redis.call("DEL", prefix .. id .. ":lock")
        assert.same({ id }, check())
        assert.equal("job stalled more than allowable limit", hash(q, id).defa)
    end)

    it("refuses to end a job that another worker holds", function()
        local q = fresh()
        local scripts = require("kasma.jobs_scripts")
        local id = jobs.add(q, "x", {})
        redis.eval(scripts.fetch, { jobs.base(q) }, { "a:1", tostring(time.now()), "30000", "" })
        local function finish(token)
            return redis.eval(scripts.finish, { jobs.base(q) }, { id, token, tostring(time.now()), "completed", "null", "-1", "", "", "0" })
        end
        assert.equal(-6, finish("b:1"))
        assert.equal(0, finish("a:1"))
        assert.equal(-2, finish("a:1"))
    end)
end)
