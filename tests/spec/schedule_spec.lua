-- Cron patterns and job schedulers.
local json = require("core.json")
local redis = require("core.redis")
local sched = require("core.sched")
local time = require("core.time")
local cron = require("kasma.cron")
local jobs = require("kasma.jobs")
local queues = require("kasma.jobs_queue")
local schedule = require("kasma.jobs_schedule")
local support = require("spec.jobs_support")

local fresh, hash, eventually = support.fresh, support.hash, support.eventually

local function runs(pattern, from, zone, n)
    local spec = assert(cron.parse(pattern))
    local at, list = time.parse(from), {}
    for i = 1, n or 1 do
        at = cron.next(spec, at, zone)
        list[i] = at and time.iso(at):gsub("%.000Z$", "Z")
        if not at then break end
    end
    return list
end

describe("a cron pattern", function()
    it("finds its next times", function()
        assert.same({ "2026-01-01T00:05:00Z", "2026-01-01T00:10:00Z" }, runs("*/5 * * * *", "2026-01-01T00:00:00Z", nil, 2))
        assert.same({ "2026-01-01T00:00:01Z" }, runs("* * * * * *", "2026-01-01T00:00:00.500Z"))
        assert.same({ "2026-11-28T03:00:00Z", "2026-11-29T03:00:00Z" }, runs("0 3 * * *", "2026-11-27T03:00:00Z", nil, 2))
        assert.same({ "2028-02-29T12:00:00Z" }, runs("0 12 29 2 *", "2026-01-01T00:00:00Z"))
        assert.same({ "2026-11-30T09:00:00Z", "2026-12-01T09:00:00Z" }, runs("0 9 * * MON-FRI", "2026-11-28T00:00:00Z", nil, 2))
        assert.same({ "2026-11-30T00:00:00Z", "2026-12-31T00:00:00Z" }, runs("0 0 L * *", "2026-11-27T00:00:00Z", nil, 2))
        assert.same({ "2026-12-25T00:00:00Z" }, runs("0 0 * * 5L", "2026-11-28T00:00:00Z"))
        assert.same({ "2026-12-15T00:00:00Z" }, runs("0 0 * * 2#3", "2026-11-28T00:00:00Z"))
        assert.same({ "2026-11-27T10:30:15Z" }, runs("15 30 10 ? * ?", "2026-11-27T00:00:00Z"))
        assert.same({ "2027-01-01T00:00:00Z" }, runs("@yearly", "2026-11-27T00:00:00Z"))
        -- Day and weekday both given: either.
        assert.same({ "2026-12-04T00:00:00Z", "2026-12-11T00:00:00Z", "2026-12-13T00:00:00Z" },
            runs("0 0 13 * FRI", "2026-11-28T00:00:00Z", nil, 3))
        assert.same({ "2026-11-29T00:00:00Z" }, runs("0 0 * * 7", "2026-11-28T00:00:00Z"))
    end)

    it("goes by the zone's days, once over a change of its clocks", function()
        assert.same({ "2026-11-27T20:00:00Z" }, runs("0 3 * * *", "2026-11-27T00:00:00Z", "Asia/Ho_Chi_Minh"))
        -- 29 March 2026: 02:00 to 03:00 does not exist in Berlin; 25 October: it comes twice.
        assert.same({ "2026-03-28T01:30:00Z", "2026-03-29T01:30:00Z", "2026-03-30T00:30:00Z" },
            runs("30 2 * * *", "2026-03-27T12:00:00Z", "Europe/Berlin", 3))
        assert.same({ "2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z" }, runs("30 2 * * *", "2026-10-24T12:00:00Z", "Europe/Berlin", 2))
        assert.same({ "2026-10-25T00:00:00Z", "2026-10-25T00:30:00Z", "2026-10-25T01:00:00Z", "2026-10-25T01:30:00Z",
            "2026-10-25T02:00:00Z" },
            runs("*/30 * * * *", "2026-10-24T23:59:00Z", "Europe/Berlin", 5))
    end)

    it("that never comes has no time", function() assert.same({}, runs("0 0 31 2 *", "2026-01-01T00:00:00Z")) end)

    it("agrees with a look at every minute, for patterns at random", function()
        local seed = os.time()
        math.randomseed(seed)
        local function field(least, most)
            local a, b = math.random(least, most), math.random(least, most)
            local forms = { "*", tostring(a), ("%d-%d"):format(math.min(a, b), math.max(a, b)), ("%d,%d"):format(a, b),
                "*/" .. math.random(1, math.min(most, 60)) }
            return forms[math.random(#forms)]
        end
        local function allows(text, value, least, most)
            for item in (text .. ","):gmatch("([^,]*),") do
                local step = tonumber(item:match("/(%d+)$")) or 1
                local low, high = item:match("^(%d+)%-(%d+)")
                if item:sub(1, 1) == "*" then low, high = least, most end
                low = tonumber(low or item)
                high = tonumber(high or item)
                if value >= low and value <= high and (value - low) % step == 0 then return true end
            end
            return false
        end
        for _ = 1, 60 do
            sched.sleep(1) -- the loop's clock goes on
            local words = { field(0, 59), field(0, 23), field(1, 31), field(1, 12), field(0, 6) }
            local text = table.concat(words, " ")
            local from = math.random(0, 1000) * 86400000 + 1767225600000 + math.random(0, 86399) * 1000
            local found = cron.next(assert(cron.parse(text), text), from)
            -- Every minute of four days: the first that fits must be the one found.
            local expected
            for t = math.floor(from / 60000) * 60000 + 60000, from + 4 * 86400000, 60000 do
                local f = time.fields(t)
                local by_day, by_weekday = allows(words[3], f.day, 1, 31), allows(words[5], f.wday % 7, 0, 6)
                local day = by_day and by_weekday
                if words[3] ~= "*" and words[5] ~= "*" then day = by_day or by_weekday end
                if day and allows(words[4], f.month, 1, 12) and allows(words[2], f.hour, 0, 23) and allows(words[1], f.min, 0, 59) then
                    expected = t
                    break
                end
            end
            local what = ("%s after %s (seed %d)"):format(text, time.iso(from), seed)
            if expected then assert.equal(expected, found, what) else assert.is_true(not found or found > from + 4 * 86400000, what) end
        end
    end)

    it("made of anything is read or refused, and never hangs", function()
        local alphabet = "0123456789 *,-/?L#@MONJANxyz\t\0\255"
        for n = 1, 3000 do
            if n % 100 == 0 then sched.sleep(1) end
            local letters = {}
            for i = 1, math.random(0, 40) do
                local at = math.random(#alphabet)
                letters[i] = alphabet:sub(at, at)
            end
            local text = table.concat(letters)
            local spec, why = cron.parse(text)
            if spec then
                local at = cron.next(spec, 1767225600000, "Europe/Berlin")
                assert.is_true(at == nil or at > 1767225600000, text)
            else
                assert.is_string(why)
            end
        end
    end)

    it("that is none is refused with a reason", function()
        for _, text in ipairs{ "", "* * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * * 13 *", "* * * * 8", "*/0 * * * *",
            "1,,2 * * * *",
            "5-1 * * * *", "a * * * *", "* * * * MON#6", "-1 * * * *", "1e3 * * * *", ("* "):rep(200), "* * * * * * *", "*/61 * * * *",
            "0x10 * * * *" } do
            local spec, why = cron.parse(text)
            assert.is_nil(spec, text)
            assert.is_string(why)
        end
        assert.is_nil((cron.parse(nil)))
    end)
end)

describe("a job scheduler", function()
    it("lies as BullMQ writes it", function()
        local q = fresh()
        local id = schedule.upsert(q, "s", { pattern = "0 3 * * *", tz = "Asia/Ho_Chi_Minh" }, { name = "n", data = { a = 1 } })
        local ms = tonumber(id:match("^repeat:s:(%d+)$"))
        assert.equal(("%.0f"):format(ms), redis.call("ZSCORE", jobs.base(q) .. "repeat", "s"))
        assert.same({ name = "n", tz = "Asia/Ho_Chi_Minh", pattern = "0 3 * * *", offset = "0", data = '{"a":1}', ic = "1", opts = "{}" },
            hash(q, "repeat:s"))
        local job = hash(q, id)
        local opts = json.decode(job.opts)
        assert.same({ "n", '{"a":1}', "0", "s" }, { job.name, job.data, job.priority, job.rjk })
        assert.same({ tz = "Asia/Ho_Chi_Minh", count = 1, pattern = "0 3 * * *" }, opts["repeat"])
        assert.same({ ms, "s", id }, { opts.prevMillis, opts.repeatJobKey, opts.jobId })
        assert.is_nil(opts.attempts)
        assert.equal(id, queues.list(q, "delayed", 0, 10)[1].id)
    end)

    it("begins at once, and the run that is taken plans the next before it begins", function()
        local q = fresh()
        local pending = {}
        jobs.handler(q, "s", function(job)
            pending[#pending + 1] = redis.call("ZSCORE", jobs.base(q) .. "repeat", "s") .. " after " .. job.id
        end)
        schedule.upsert(q, "s", { every = 50, limit = 4 })
        jobs.work(q)
        eventually(function() return queues.counts(q).completed == 4 end)
        local last = tonumber(redis.call("ZSCORE", jobs.base(q) .. "repeat", "s"))
        local first = tonumber(pending[1]:match("^(%d+)"))
        assert.equal(0, (last - first) % 50)
        assert.are_not.equal(pending[1]:match("^(%d+)"), pending[1]:match("(%d+)$"))
        assert.equal("4", hash(q, "repeat:s").ic)
        assert.equal(0, queues.counts(q).delayed)
    end)

    it("that is set again as it is changes no time; another replaces the pending run", function()
        local q = fresh()
        local first = schedule.upsert(q, "s", { every = 60000, startDate = time.now() + 5000 }, { data = { v = 1 } })
        local spec = { every = 60000, startDate = tonumber(first:match("%d+$")) }
        assert.equal(first, schedule.upsert(q, "s", spec, { data = { v = 2 } }))
        assert.equal('{"v":2}', hash(q, first).data)
        local second = schedule.upsert(q, "s", { pattern = "0 0 1 1 *" })
        assert.are_not.equal(first, second)
        assert.same({}, hash(q, first))
        assert.equal(1, queues.counts(q).delayed)
    end)

    it("whose next run was planned by a clock that was ahead is planned anew when it is set again", function()
        local q = fresh()
        local specs = { e = { every = 60000 }, p = { pattern = "0 3 * * *" } }
        local before = time.shift()
        local ahead = {}
        time.set_shift(before + 30 * 86400000)
        local ok, why = pcall(function()
            for id, spec in pairs(specs) do ahead[id] = schedule.upsert(q, id, spec) end
        end)
        time.set_shift(before)
        assert.is_true(ok, why)
        for id, spec in pairs(specs) do
            local planned = schedule.upsert(q, id, spec)
            assert.is_true(tonumber(planned:match("%d+$")) <= time.now() + 86400000, planned)
            assert.same({}, hash(q, ahead[id]))
            -- The one after the next, which the run that is taken plans, stays.
            local follows = schedule.follow(q, { id = planned, scheduler = id })
            assert.equal(follows, schedule.upsert(q, id, spec))
        end
        assert.equal(2, redis.call("ZCARD", jobs.base(q) .. "repeat"))
    end)

    it("that was lost while its run waits is set again, with one run", function()
        local q = fresh()
        for id, spec in pairs{ e = { every = 3600000, startDate = time.now() + 60000 }, p = { pattern = "0 3 * * *" } } do
            local first = schedule.upsert(q, id, spec)
            for _ = 1, 3 do
                redis.call("ZREM", jobs.base(q) .. "repeat", id)
                assert.equal(first, schedule.upsert(q, id, spec))
            end
        end
        assert.equal(2, queues.counts(q).delayed)
    end)

    it("of which thousands fall due in the same moment each run once, and plan one run each", function()
        local q, count = fresh(), 1500 -- more than one call promotes
        local prefix = jobs.base(q)
        local start = time.now() + 1800000
        for n = 1, count do schedule.upsert(q, "s" .. n, { every = 3600000, startDate = start }, { name = "tick" }) end
        assert.equal(count, redis.call("ZCARD", prefix .. "delayed"))
        local ran, times = {}, 0
        jobs.handler(q, "tick", function(job)
            ran[job.scheduler], times = (ran[job.scheduler] or 0) + 1, times + 1
        end)
        local before = time.shift()
        time.set_shift(before + 1860000)
        local worker = jobs.work(q, { concurrency = 32 })
        local ok, why = pcall(eventually, function() return times == count and worker.count == 0 end)
        time.set_shift(before)
        worker:stop()
        assert.is_true(ok, why)
        for n = 1, count do assert.equal(1, ran["s" .. n]) end
        assert.equal(count, redis.call("ZCARD", prefix .. "delayed"))
        assert.equal(count, redis.call("ZCARD", prefix .. "repeat"))
        redis.call("EVAL", "for _, k in ipairs(redis.call('KEYS', ARGV[1])) do redis.call('UNLINK', k) end", "0", prefix .. "*")
    end)

    it("whose slot was missed goes on at the next aligned one", function()
        local q = fresh()
        local id = schedule.upsert(q, "s", { every = 60000 })
        local slot = tonumber(id:match("%d+$"))
        local before = time.shift()
        time.set_shift(before + 150000)
        local earliest = time.now()
        local ok, next_id = pcall(schedule.follow, q, { id = id, scheduler = "s" })
        local latest = time.now()
        time.set_shift(before)
        assert.is_true(ok, next_id)
        local planned = tonumber(next_id:match("%d+$"))
        assert.equal(0, (planned - slot) % 60000)
        assert.is_true(planned > earliest and planned <= latest + 60000)
        -- Only the run of the present slot plans on.
        assert.equal("", schedule.follow(q, { id = id, scheduler = "s" }))
    end)

    it("keeps its next run from being removed alone, cleaned or drained", function()
        local q = fresh()
        local id = schedule.upsert(q, "s", { every = 60000, startDate = time.now() + 60000 })
        assert.equal(-8, queues.remove(q, id))
        jobs.add(q, "other", {}, { delay = 60000 })
        assert.equal(1, queues.drain(q, true))
        assert.equal(0, queues.clean(q, "delayed", -3600000))
        assert.equal(id, queues.list(q, "delayed", 0, 10)[1].id)
        assert.is_true(schedule.remove(q, "s"))
        assert.is_false(schedule.remove(q, "s"))
        assert.same({}, hash(q, id))
        assert.same({}, schedule.list(q))
    end)

    it("ends with its end date, and lists what it is", function()
        local q = fresh()
        local finish = time.now() + 90000
        local id = schedule.upsert(q, "s", { every = 60000, endDate = finish }, { name = "n", opts = { attempts = 3 } })
        local one = schedule.list(q)[1]
        assert.same({ "s", "n", 60000, 1, finish }, { one.id, one.name, one.every, one.count, one.endDate })
        assert.equal(3, json.decode(hash(q, id).opts).attempts)
        local second = schedule.follow(q, { id = id, scheduler = "s" })
        assert.are_not.equal("", second)
        assert.equal("", schedule.follow(q, { id = second, scheduler = "s" }))
    end)

    it("that makes no sense is refused", function()
        local q = fresh()
        for _, spec in ipairs{ {}, { every = 5, pattern = "* * * * *" }, { every = 0 }, { every = 1.5 }, { every = "x" }, { pattern = "x" },
            { pattern = "0 0 31 2 *" }, { pattern = "* * * * *", tz = "Mars/Base" }, { every = 5, endDate = 5 },
            { every = 5, limit = 0 } } do
            local ok, err = pcall(schedule.upsert, q, "s", spec)
            assert.is_false(ok)
            assert.equal("bad_scheduler", err.code)
        end
        for _, id in ipairs{ "", "a:b", ("x"):rep(300) } do assert.is_false((pcall(schedule.upsert, q, id, { every = 5 }))) end
        assert.equal(0, redis.call("EXISTS", jobs.base(q) .. "repeat"))
    end)
end)
