-- Deduplication, flows, and what a dashboard does: what lies in Redis before and after. Facts as BullMQ 5.81.5 leaves them.
local json = require("core.json")
local redis = require("core.redis")
local time = require("core.time")
local jobs = require("kasma.jobs")
local queues = require("kasma.jobs_queue")
local support = require("spec.jobs_support")

local fresh, hash, eventually, events = support.fresh, support.hash, support.eventually, support.events
local take, complete, fail = support.take, support.complete, support.fail

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

describe("deduplication", function()
    it("keeps the first while it lives, and forgets it with the job", function()
        local q = fresh()
        local de = { deduplication = { id = "d" } }
        assert.equal("1", jobs.add(q, "a", { x = 1 }, de))
        assert.equal("1", jobs.add(q, "a", { x = 2 }, de))
        assert.equal("d", hash(q, "1").deid)
        assert.same({ id = "d" }, json.decode(hash(q, "1").opts).de)
        assert.same({ "added", "waiting", "debounced", "deduplicated" }, events(q))
        take(q, "w")
        complete(q, "1", "w:0")
        assert.equal("3", jobs.add(q, "a", { x = 3 }, de))
        assert.equal(0, queues.remove(q, "3"))
        assert.equal(0, redis.call("EXISTS", jobs.base(q) .. "de:d"))
    end)

    it("takes over an id without time whose job is gone", function()
        local q = fresh()
        jobs.add(q, "a", {}, { deduplication = { id = "d" } })
        redis.call("DEL", jobs.base(q) .. "1")
        assert.equal("2", jobs.add(q, "a", {}, { deduplication = { id = "d" } }))
    end)

    it("throttles for a time, which `extend` begins anew", function()
        local q = fresh()
        jobs.add(q, "a", {}, { deduplication = { id = "d", ttl = 50000 } })
        take(q, "w")
        complete(q, "1", "w:0")
        assert.equal("1", jobs.add(q, "a", {}, { deduplication = { id = "d", ttl = 90000, extend = true } }))
        assert.is_true(redis.call("PTTL", jobs.base(q) .. "de:d") > 60000)
    end)

    it("throttles for its time also when the job is let go as it ends", function()
        local q = fresh()
        local de = { deduplication = { id = "d", ttl = 50000 } }
        jobs.add(q, "a", {}, de)
        take(q, "w")
        assert.equal(0, support.cycle(q, "w", "0", nil, "completed", "w:0", "0", "", "", "1", "1", "null", "")[1][1])
        assert.equal(0, redis.call("EXISTS", jobs.base(q) .. "1"))
        assert.equal("1", jobs.add(q, "a", {}, de))
    end)

    it("replaces a delayed job with the newest", function()
        local q = fresh()
        local opts = { delay = 60000, deduplication = { id = "d", ttl = 60000, extend = true, replace = true } }
        jobs.add(q, "a", { x = 1 }, opts)
        assert.equal("2", jobs.add(q, "a", { x = 2 }, opts))
        assert.same({ "2" }, ids(q, "delayed"))
        assert.same({}, hash(q, "1"))
        assert.same({ "added", "delayed", "removed", "debounced", "deduplicated", "added", "delayed" }, events(q))
    end)

    it("holds the newest duplicate while the owner runs, and adds it when that ends, in success and in failure", function()
        for _, finish in ipairs{ complete, fail } do
            local q = fresh()
            local de = { id = "d", keepLastIfActive = true }
            jobs.add(q, "a", { x = 1 }, { deduplication = de })
            take(q, "w")
            jobs.add(q, "a", { x = 2 }, { deduplication = de, priority = 2 })
            jobs.add(q, "b", { x = 3 }, { deduplication = de, attempts = 2 })
            assert.equal("3", support.hash(q, "dn:d").jid)
            assert.equal(0, finish(q, "1", "w:0", "x"))
            assert.same({ "3" }, ids(q, "waiting"))
            assert.same({ "b", '{"x":3}', "d" }, { hash(q, "3").name, hash(q, "3").data, hash(q, "3").deid })
            assert.equal("3", redis.call("GET", jobs.base(q) .. "de:d"))
            assert.equal(0, redis.call("EXISTS", jobs.base(q) .. "dn:d"))
        end
    end)
end)

describe("what was found by queues in every mixture", function()
    local function parent_of(q, ...)
        return { name = "parent", queueName = q, opts = { jobId = "P" }, children = { ... } }
    end
    local function child(q, id, opts)
        opts = opts or {}
        opts.jobId = id
        return { name = "c", queueName = q, opts = opts }
    end

    it("a parent waits for its new children beside one that is done already", function()
        local q = fresh()
        jobs.add(q, "c", {}, { jobId = "done" })
        take(q, "w")
        complete(q, "done", "w:0")
        jobs.add_flow(parent_of(q, child(q, "done"), child(q, "new")))
        assert.same({ "P" }, ids(q, "waiting-children"))
        take(q, "w")
        complete(q, "new", "w:0")
        assert.same({ "P" }, ids(q, "waiting"))
    end)

    it("a parent does not wait for children that were duplicates, and waits for one that is held back", function()
        local q = fresh()
        jobs.add(q, "c", {}, { deduplication = { id = "d" } })
        jobs.add_flow(parent_of(q, child(q, "dup", { deduplication = { id = "d" } })))
        assert.same({ "1", "P" }, ids(q, "waiting"))
        local r = fresh()
        jobs.add(r, "c", {}, { deduplication = { id = "d" } })
        take(r, "w")
        jobs.add_flow(parent_of(r, child(r, "held", { deduplication = { id = "d", keepLastIfActive = true } })))
        assert.same({ "P" }, ids(r, "waiting-children"))
        complete(r, "1", "w:0")
        take(r, "w")
        assert.equal(0, complete(r, "held", "w:0"))
        assert.same({ "P" }, ids(r, "waiting"))
    end)

    it("a parent does not wait for a child held back by a job that is removed", function()
        local q = fresh()
        jobs.add(q, "c", {}, { deduplication = { id = "d" } })
        take(q, "w")
        jobs.add_flow(parent_of(q, child(q, "held", { deduplication = { id = "d", keepLastIfActive = true } })))
        support.cycle(q, "w", 0, nil, "later", "w:0", "", "", "", "1", "1", "", "60000")
        assert.equal(0, queues.remove(q, "1"))
        assert.same({ "P" }, ids(q, "waiting"))
    end)

    it("a parent does not wait for a child held back in whose place another of the same flow is", function()
        local q = fresh()
        local de = { id = "d", keepLastIfActive = true }
        jobs.add(q, "c", {}, { deduplication = { id = "d" } })
        take(q, "w")
        local middle = child(q, "M")
        middle.children = { child(q, "first", { deduplication = de }) }
        jobs.add_flow(parent_of(q, middle, child(q, "second", { deduplication = de })))
        assert.same({ "M" }, ids(q, "waiting"))
        assert.same({ "P" }, ids(q, "waiting-children"))
    end)

    it("the children of a duplicate have no parent", function()
        local q = fresh()
        jobs.add(q, "c", {}, { deduplication = { id = "d" } })
        local middle = child(q, "dup", { deduplication = { id = "d" } })
        middle.children = { child(q, "below") }
        jobs.add_flow(parent_of(q, middle))
        assert.is_nil(hash(q, "below").parentKey)
        assert.equal(0, redis.call("EXISTS", jobs.base(q) .. "dup:dependencies"))
        assert.same({ "1", "below", "P" }, ids(q, "waiting"))
    end)

    it("a duplicate that is held back outlives the time of its id", function()
        local q = fresh()
        local de = { deduplication = { id = "d", ttl = 60000, extend = true, keepLastIfActive = true } }
        jobs.add(q, "a", {}, de)
        take(q, "w")
        jobs.add(q, "a", {}, de)
        jobs.add(q, "a", {}, de)
        assert.equal(-1, redis.call("PTTL", jobs.base(q) .. "de:d"))
        complete(q, "1", "w:0")
        assert.same({ "3" }, ids(q, "waiting"))
    end)

    it("a job whose hash vanished does not come back as a nameless one", function()
        for _, end_ in ipairs{ { "retry", "again", "0", "" }, { "back", "", "" }, { "later", "", "1000" } } do
            local q = fresh()
            jobs.add(q, "a", {})
            take(q, "w")
            redis.call("DEL", jobs.base(q) .. "1")
            local what = table.remove(end_, 1)
            assert.equal(-1, support.cycle(q, "w", 0, nil, what, "w:0", "", "", "", "1", "1", unpack(end_))[1][1])
            assert.equal(0, redis.call("EXISTS", jobs.base(q) .. "1", jobs.base(q) .. "1:lock", jobs.base(q) .. "wait",
                jobs.base(q) .. "delayed", jobs.base(q) .. "active"))
        end
    end)

    it("a parent that failed by its child succeeds when the child did, tried again after it", function()
        local q = fresh()
        jobs.add_flow(parent_of(q, child(q, "C", { failParentOnFailure = true })))
        take(q, "w")
        fail(q, "C", "w:0", "bad")
        take(q, "w")
        fail(q, "P", "w:0", "its child failed")
        assert.equal(0, queues.retry(q, "C"))
        take(q, "w")
        assert.equal(0, complete(q, "C", "w:0"))
        assert.equal(0, queues.retry(q, "P"))
        take(q, "w")
        assert.equal(0, complete(q, "P", "w:0"))
    end)

    it("a parent whose child failed it does not wait for the others", function()
        local q = fresh()
        jobs.add_flow(parent_of(q, child(q, "C1", { continueParentOnFailure = true }), child(q, "C2", { failParentOnFailure = true }),
            child(q, "C3")))
        take(q, "w", 3)
        fail(q, "C1", "w:0", "bad")
        take(q, "w")
        fail(q, "C2", "w:0", "bad")
        assert.equal(1, support.cycle(q, "w", 0, nil, "children", "w:0", "", "", "", "1", "P", "", "")[1][1])
    end)

    it("a job given back is the first of its priority", function()
        local q = fresh()
        for _ = 1, 3 do jobs.add(q, "a", {}, { priority = 2 }) end
        take(q, "w")
        assert.equal(0, support.cycle(q, "w", 0, nil, "back", "w:0", "", "", "", "1", "1", "", "")[1][1])
        assert.equal("1", take(q, "w")[1].id)
    end)

    it("a list of priorities that is none costs no job that waits", function()
        local q = fresh()
        jobs.add(q, "a", {})
        redis.call("SET", jobs.base(q) .. "prioritized", "no set")
        local answer = support.cycle(q, "w", 5)
        assert.equal("1", answer[2][1])
        assert.truthy(answer[5]:find("WRONGTYPE", 1, true))
    end)

    it("jobs that cannot become active stay where they were", function()
        local q = fresh()
        jobs.add_bulk(q, { { name = "a" }, { name = "a" }, { name = "a", opts = { priority = 1 } } })
        redis.call("SET", jobs.base(q) .. "active", "no list")
        local answer = support.cycle(q, "w", 5)
        assert.same({}, answer[2])
        assert.truthy(answer[5]:find("WRONGTYPE", 1, true))
        assert.same({ "1", "2" }, ids(q, "waiting"))
        assert.same({ "3" }, ids(q, "prioritized"))
    end)

    it("a raised limit makes room, of which workers that sleep hear, in a queue that is not paused", function()
        local q = fresh()
        local function marked() return #redis.call("ZRANGE", jobs.base(q) .. "marker", 0, -1) > 0 end
        queues.set_limits(q, { concurrency = 1 })
        jobs.add(q, "a", {})
        jobs.add(q, "a", {})
        take(q, "w")
        redis.call("DEL", jobs.base(q) .. "marker")
        queues.set_limits(q, { concurrency = 1, max = 9, duration = 1000 })
        assert.is_false(marked())
        queues.set_limits(q, { concurrency = 2 })
        assert.is_true(marked())
        assert.same({ "2", json.null, json.null }, redis.call("HMGET", jobs.base(q) .. "meta", "concurrency", "max", "duration"))
        queues.pause(q)
        queues.set_limits(q, {})
        assert.is_false(marked())
        assert.equal(0, redis.call("HEXISTS", jobs.base(q) .. "meta", "concurrency"))
    end)

    it("a job removed from among the active makes room, of which others hear", function()
        local q = fresh()
        queues.set_limits(q, { concurrency = 1 })
        jobs.add(q, "a", {})
        jobs.add(q, "a", {})
        take(q, "w")
        redis.call("DEL", jobs.base(q) .. "1:lock", jobs.base(q) .. "marker")
        assert.equal(0, queues.remove(q, "1"))
        assert.same({ "0", "0" }, redis.call("ZRANGE", jobs.base(q) .. "marker", 0, -1, "WITHSCORES"))
    end)
end)

describe("a flow", function()
    local function flow(q, option)
        local opts = function(id) return { jobId = id, [option or "attempts"] = option and true or nil } end
        return jobs.add_flow{ name = "parent", queueName = q, data = { p = 1 }, opts = { jobId = "P" }, children = {
            { name = "c", queueName = q, data = { c = 1 }, opts = opts("C1") }, { name = "c", queueName = q, opts = opts("C2") } } }
    end

    it("lies as BullMQ writes it", function()
        local q = fresh()
        flow(q, "failParentOnFailure")
        local key = (jobs.base(q):gsub(":$", ""))
        assert.same({ "P" }, ids(q, "waiting-children"))
        assert.same({ "C1", "C2" }, ids(q, "waiting"))
        local child = hash(q, "C1")
        assert.equal(key .. ":P", child.parentKey)
        assert.same({ id = "P", queueKey = key, fpof = true }, json.decode(child.parent))
        assert.same({ jobId = "C1", fpof = true, attempts = 0, parent = { id = "P", queue = key } }, json.decode(child.opts))
        assert.same({ "added", "waiting-children", "added", "waiting", "added", "waiting" }, events(q))
        local deps = redis.call("SMEMBERS", key .. ":P:dependencies")
        table.sort(deps)
        assert.same({ key .. ":C1", key .. ":C2" }, deps)
    end)

    it("runs the parent after its children, with their values", function()
        local q, other = fresh(), fresh()
        local seen
        jobs.handler(q, "parent", function(job)
            seen = job:children_values()
            return "done"
        end)
        jobs.handler(other, "c", function(job) return job.data.n * 2 end)
        local made = jobs.add_flow{ name = "parent", queueName = q, children = { { name = "c", queueName = other, data = { n = 1 } },
            { name = "c", queueName = other, data = { n = 2 } } } }
        jobs.work(q)
        jobs.work(other)
        eventually(function() return hash(q, made.id).finishedOn end)
        local values = {}
        for _, value in pairs(seen) do values[#values + 1] = value end
        table.sort(values)
        assert.same({ 2, 4 }, values)
    end)

    it("fails the parent at once where the child says so", function()
        local q = fresh()
        flow(q, "failParentOnFailure")
        take(q, "w")
        fail(q, "C1", "w:0", "bad")
        assert.equal("child " .. jobs.base(q) .. "C1 failed", hash(q, "P").defa)
        assert.same({ jobs.base(q) .. "C1" }, redis.call("ZRANGE", jobs.base(q) .. "P:unsuccessful", 0, -1))
        assert.same({ "C2", "P" }, ids(q, "waiting"))
    end)

    it("fails a parent that runs in that moment, also where the child goes as it fails; tried again, it can succeed", function()
        local q = fresh()
        jobs.add(q, "parent", {}, { jobId = "P" })
        local child = { id = "P", queue = jobs.base(q):sub(1, -2) }
        assert.equal("P", take(q, "w")[1].id)
        jobs.add(q, "c", {}, { jobId = "C", parent = child, failParentOnFailure = true, removeOnFail = true })
        assert.equal("C", take(q, "v")[1].id)
        assert.equal(0, fail(q, "C", "v:0", "bad", "0"))
        assert.same({}, hash(q, "C"))
        assert.equal("child " .. jobs.base(q) .. "C failed", hash(q, "P").defa)
        assert.equal(-9, complete(q, "P", "w:0"))
        fail(q, "P", "w:0", "Cannot complete job P because it has at least one failed child")
        assert.same({ "P" }, ids(q, "failed"))
        assert.equal(0, queues.retry(q, "P"))
        assert.equal("P", take(q, "w")[1].id)
        assert.equal(0, complete(q, "P", "w:0"))
        assert.same({ "P" }, ids(q, "completed"))
    end)

    it("lets the parent go on at once, which cannot end while a child is pending", function()
        local q = fresh()
        flow(q, "continueParentOnFailure")
        take(q, "w")
        fail(q, "C1", "w:0", "bad")
        assert.same({ [jobs.base(q) .. "C1"] = "bad" }, support.hash(q, "P:failed"))
        assert.same({ "C2", "P" }, ids(q, "waiting"))
        assert.same({ "C2", "P" }, { take(q, "v")[1].id, take(q, "w")[1].id })
        assert.equal(-4, complete(q, "P", "w:0"))
        jobs.handler(q, "parent", function() return 1 end)
        redis.call("DEL", jobs.base(q) .. "P:lock")
        support.check_stalled(q)
        support.check_stalled(q)
        jobs.work(q)
        eventually(function() return hash(q, "P").finishedOn end)
        assert.equal("Job P has pending dependencies", hash(q, "P").failedReason)
    end)

    it("ignores a failure, or forgets the child", function()
        for option, left in pairs{ ignoreDependencyOnFailure = "bad", removeDependencyOnFailure = false } do
            local q = fresh()
            flow(q, option)
            take(q, "w", 2)
            fail(q, "C1", "w:0", "bad")
            assert.same({ "P" }, ids(q, "waiting-children"))
            complete(q, "C2", "w:0", "7")
            assert.same({ "P" }, ids(q, "waiting"))
            assert.equal(left or nil, support.hash(q, "P:failed")[jobs.base(q) .. "C1"])
            assert.same({ [jobs.base(q) .. "C2"] = "7" }, support.hash(q, "P:processed"))
        end
    end)

    it("waits for ever for a child whose failure says nothing", function()
        local q = fresh()
        flow(q)
        take(q, "w", 2)
        fail(q, "C1", "w:0", "bad")
        complete(q, "C2", "w:0")
        assert.same({ "P" }, ids(q, "waiting-children"))
        queues.retry(q, "C1")
        assert.equal("C1", take(q, "w")[1].id)
        complete(q, "C1", "w:0")
        assert.same({ "P" }, ids(q, "waiting"))
    end)

    it("adopts a job that is there, and refuses one of another living parent with nothing done", function()
        local q = fresh()
        local function parent(id)
            return { name = "p", queueName = q, opts = { jobId = id },
                children = { { name = "c", queueName = q, opts = { jobId = "C" } } } }
        end
        jobs.add(q, "c", {}, { jobId = "C" })
        jobs.add_flow(parent("P1"))
        assert.equal(jobs.base(q) .. "P1", hash(q, "C").parentKey)
        assert.equal("other_parent", error_of(jobs.add_flow, parent("P2")).code)
        assert.same({}, hash(q, "P2"))
        take(q, "w")
        complete(q, "C", "w:0", "7")
        assert.same({ "P1" }, ids(q, "waiting"))
        queues.remove(q, "P1")
        -- A finished job gives its value to a parent that comes late.
        jobs.add(q, "c", {}, { jobId = "C" })
        take(q, "w")
        complete(q, "C", "w:0", "8")
        jobs.add_flow(parent("P3"))
        assert.same({ "P3" }, ids(q, "waiting"))
        assert.same({ [jobs.base(q) .. "C"] = "8" }, support.hash(q, "P3:processed"))
        assert.equal("no_parent", error_of(jobs.add, q, "x", {}, { parent = { id = "none", queue = jobs.base(q):sub(1, -2) } }).code)
    end)

    it("in which a job would wait for itself, or two parents for one job, is refused with nothing done", function()
        local q = fresh()
        local key = jobs.base(q):sub(1, -2)
        local function node(id, ...) return { name = "n", queueName = q, opts = { jobId = id }, children = { ... } } end
        for _, circle in ipairs{ node("A", node("A")), node("A", node("B", node("A"))), node("R", node("A", node("B", node("A")))) } do
            assert.equal("bad_job", error_of(jobs.add_flow, circle).code)
        end
        assert.equal("other_parent", error_of(jobs.add_flow, node("R", node("A", node("C")), node("B", node("C")))).code)
        assert.equal(0, #redis.call("KEYS", jobs.base(q) .. "*"))
        for _, id in ipairs{ "P1", "P2" } do jobs.add(q, "p", {}, { jobId = id }) end
        local function child(id, parent) return { name = "c", opts = { jobId = id, parent = { id = parent, queue = key } } } end
        assert.equal("other_parent", error_of(jobs.add_bulk, q, { child("C", "P1"), child("C", "P2") }).code)
        assert.equal("bad_job", error_of(jobs.add, q, "p", {}, { jobId = "P1", parent = { id = "P1", queue = key } }).code)
        assert.same({ {}, {} }, { hash(q, "C"), redis.call("SMEMBERS", jobs.base(q) .. "P1:dependencies") })
        -- Nor by two calls.
        jobs.add_flow(node("Y", node("R")))
        for _, circle in ipairs{ node("R", node("Y")), node("R", node("M", node("Y"))) } do
            assert.equal("bad_job", error_of(jobs.add_flow, circle).code)
        end
        assert.same({ {}, {}, "Y" }, { redis.call("SMEMBERS", jobs.base(q) .. "R:dependencies"), hash(q, "M"),
            json.decode(hash(q, "R").parent).id })
        assert.equal(0, queues.remove(q, "Y"))
        -- The same child twice under one parent is one child.
        assert.same({ "C", "C" }, jobs.add_bulk(q, { child("C", "P1"), child("C", "P1") }))
        assert.same({ jobs.base(q) .. "C" }, redis.call("SMEMBERS", jobs.base(q) .. "P1:dependencies"))
    end)

    it("goes with its parent, all or none", function()
        local q = fresh()
        flow(q)
        take(q, "w")
        assert.equal(-2, queues.remove(q, "P"))
        assert.same({ "P" }, ids(q, "waiting-children"))
        complete(q, "C1", "w:0")
        assert.equal(0, queues.remove(q, "P"))
        assert.same({ {}, {}, {} }, { hash(q, "P"), hash(q, "C1"), hash(q, "C2") })
        assert.same({}, ids(q, "waiting"))
        local r = fresh()
        flow(r)
        queues.remove(r, "C1")
        queues.remove(r, "C2")
        assert.same({ "P" }, ids(r, "waiting"))
    end)

    it("refuses what is too large or not whole", function()
        local deep = { name = "n", queueName = "q" }
        for _ = 1, 25 do deep = { name = "n", queueName = "q", children = { deep } } end
        for _, wrong in ipairs{ deep, {}, { name = "x" }, { name = "x", queueName = "a:b" } } do
            assert.equal("bad_job", error_of(jobs.add_flow, wrong).code)
        end
    end)
end)

describe("a queue under a dashboard", function()
    it("counts and lists", function()
        local q = fresh()
        jobs.add_bulk(q, { { name = "a" }, { name = "b" }, { name = "p", opts = { priority = 5 } },
            { name = "d", opts = { delay = 9000 } } })
        jobs.add(q, "l", {}, { lifo = true })
        local counts = queues.counts(q)
        assert.same({ 3, 1, 1, 0 }, { counts.waiting, counts.prioritized, counts.delayed, counts.failed })
        assert.same({ "5", "1", "2" }, ids(q, "waiting"))
        assert.equal("2", queues.list(q, "waiting", 2, 1)[1].id)
        local found = false
        for _, name in ipairs(queues.names()) do found = found or name == q end
        assert.is_true(found)
        local job = queues.get(q, "4")
        assert.same({ "delayed", false, "d", 9000 }, { job.state, job.locked, job.name, job.delay })
        assert.is_nil(queues.get(q, "99"))
    end)

    it("retries ended jobs and only those", function()
        local q = fresh()
        jobs.add(q, "a", {}, { attempts = 1 })
        take(q, "w")
        assert.equal(-3, queues.retry(q, "1"))
        fail(q, "1", "w:0", "no")
        assert.equal(0, queues.retry(q, "1"))
        local h = hash(q, "1")
        assert.same({ "1", nil, nil, nil }, { h.atm, h.failedReason, h.finishedOn, h.processedOn })
        assert.equal(-1, queues.retry(q, "99"))
        take(q, "w")
        complete(q, "1", "w:0")
        assert.equal(0, queues.retry(q, "1", true))
        assert.is_nil(hash(q, "1").atm)
        assert.equal("waiting", events(q)[#events(q)])
    end)

    it("promotes, moves and reorders", function()
        local q = fresh()
        jobs.add(q, "a", {}, { delay = 60000 })
        jobs.add(q, "b", {}, { delay = 60000, priority = 4 })
        assert.equal(0, queues.promote(q, "1"))
        assert.equal(0, queues.promote(q, "2"))
        assert.same({ -3, -1 }, { queues.promote(q, "1"), queues.promote(q, "99") })
        assert.same({ { "1" }, { "2" } }, { ids(q, "waiting"), ids(q, "prioritized") })
        assert.equal("0", hash(q, "1").delay)
        assert.equal(0, queues.change_priority(q, "1", 3))
        assert.same({ "1", "2" }, ids(q, "prioritized"))
        assert.equal(-3, queues.change_delay(q, "1", 5))
    end)

    it("drains and cleans in bounds", function()
        local q = fresh()
        local list = {}
        for i = 1, 1500 do list[i] = { name = "n", opts = i % 3 == 0 and { priority = 1 } or i % 5 == 0 and { delay = 60000 } or nil } end
        assert.equal(1500, #jobs.add_bulk(q, list))
        local delayed = queues.counts(q).delayed
        assert.equal(1500 - delayed, queues.drain(q))
        assert.equal(delayed, queues.counts(q).delayed)
        assert.equal(delayed, queues.drain(q, true))
        assert.equal(0, #redis.call("KEYS", jobs.base(q) .. "[0-9]*"))
        jobs.add(q, "x", {})
        take(q, "w")
        complete(q, redis.call("LINDEX", jobs.base(q) .. "active", 0), "w:0")
        assert.equal(0, queues.clean(q, "completed", 60000))
        assert.equal(1, queues.clean(q, "completed", 0))
    end)

    it("cleans what is old also behind what is not, and no more than it is asked for", function()
        for _, state in ipairs{ "delayed", "waiting", "prioritized" } do
            local q, list = fresh(), {}
            local opts = { delayed = { delay = 1000 }, waiting = {}, prioritized = { priority = 1 } }
            local last = { delayed = { delay = 7200000 }, waiting = {}, prioritized = { priority = 9 } }
            for i = 1, 1100 do list[i] = { name = "young", opts = opts[state] } end
            for i = 1101, 1105 do
                list[i] = { name = "old", opts = { timestamp = time.now() - 3600000, delay = last[state].delay,
                    priority = last[state].priority } }
            end
            jobs.add_bulk(q, list)
            assert.equal(2, queues.clean(q, state, 60000, 2))
            assert.equal(3, queues.clean(q, state, 60000))
            assert.equal(1100, queues.counts(q)[state])
        end
    end)

    it("keeps finished jobs as their rule says", function()
        local q = fresh()
        jobs.handler(q, "*", function() return 1 end)
        jobs.work(q, { concurrency = 1 })
        jobs.add(q, "gone", {}, { removeOnComplete = true })
        for _ = 1, 5 do jobs.add(q, "n", {}, { removeOnComplete = { count = 2 } }) end
        eventually(function() return hash(q, "6").finishedOn end)
        assert.same({ "6", "5" }, ids(q, "completed"))
        assert.same({}, hash(q, "1"))
    end)

    it("keeps progress, rows, events and figures", function()
        local q = fresh()
        jobs.handler(q, "x", function(job)
            job:update_progress(50)
            job:update_progress({ step = 2 })
            for i = 1, 4 do job:log("row " .. i) end
        end)
        jobs.add(q, "x", {}, { keepLogs = 3 })
        jobs.work(q)
        eventually(function() return hash(q, "1").finishedOn end)
        assert.equal('{"step":2}', hash(q, "1").progress)
        assert.same({ "row 2", "row 3", "row 4" }, (queues.logs(q, "1")))
        local seen = queues.events(q)
        local names = {}
        for i, one in ipairs(seen) do names[i] = one.event end
        assert.same({ "added", "waiting", "active", "progress", "progress", "completed", "drained" }, names)
        assert.equal("50", seen[4].data)
        assert.equal(1, #queues.events(q, seen[6].id))
        local conn = redis.dedicated(jobs.connection_name(q) .. ":qe")
        assert.equal("drained", queues.await_events(conn, q, seen[6].id, 1000)[1].event)
        conn:close()
        assert.equal(1, queues.metrics(q, "completed").count)
    end)

    it("counts what ended by the minute, of a kind that a worker's first call of the minute had none of, too", function()
        local q = fresh()
        local base, now = jobs.base(q), 1795391820000
        for _ = 1, 6 do jobs.add(q, "a") end
        take(q, "w", 6)
        local function ended(what, ms, new, ...)
            local args = { ("%.0f"):format(ms), "30000", "", "", "", "0", "w:0", "10", new, what, "w:0", "", "", "", "1", ... }
            return redis.eval(require("kasma.jobs_cycle").script, { base }, args)
        end
        ended("completed", now, "1", "1", "null", "")
        ended("failed", now + 1, "0", "2", "no", "1", "")
        ended("completed", now + 60000, "1", "3", "null", "")
        ended("failed", now + 60001, "0", "4", "no", "1", "")
        ended("completed", now + 240000, "1", "5", "null", "")
        ended("completed", now + 240001, "0", "6", "null", "")
        assert.same({ 4, { "0", "0", "1", "1" } }, { tonumber(queues.metrics(q, "completed").count),
            redis.call("LRANGE", base .. "metrics:completed:data", "0", "-1") })
        assert.same({ 2, { "0", "0", "1", "1" } }, { tonumber(queues.metrics(q, "failed").count),
            redis.call("LRANGE", base .. "metrics:failed:data", "0", "-1") })
    end)
end)
