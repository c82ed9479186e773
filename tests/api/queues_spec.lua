-- Job queues over HTTP and on the command line: what platform staff sees and does, and nobody else.
local json = require("core.json")
local support = require("api.support")
local jobs = require("kasma.jobs")
local queues = require("kasma.jobs_queue")

local function status(want, answer)
    assert.equal(want, answer.status, answer.body)
    return answer.json
end

describe("the queues of the platform", function()
    local staff = support.platform()
    local q = support.unique("queue-")
    local base = "/admin/queues/" .. q
    jobs.introduce(jobs.base(q))

    it("are no tenant's business", function()
        local shop = support.tenant()
        jobs.add(q, "secret", { tenant_key = "another", to = "somebody@example.test" }, { jobId = "secret" })
        for _, path in ipairs{ "/admin/queues", base, base .. "/jobs", base .. "/jobs/secret" } do
            status(403, shop.owner:get(path))
            status(401, support.client():get(path))
        end
        for _, path in ipairs{ "/pause", "/resume", "/drain", "/jobs/secret/remove", "/jobs/secret/retry", "/jobs/add" } do
            status(403, shop.owner:post(base .. path, path == "/jobs/add" and { name = "x" } or {}))
        end
        assert.equal("waiting", queues.get(q, "secret").state)
    end)

    it("are listed with their counts, their jobs found by state and text", function()
        local all = status(200, staff:get("/admin/queues")).data
        local mine
        for _, one in ipairs(all) do if one.name == q then mine = one end end
        assert.equal(1, mine.counts.waiting)
        assert.is_number(mine.oldestAge)
        local page = status(200, staff:get(base .. "/jobs?state=waiting&limit=5"))
        assert.same({ "secret", 1 }, { page.data[1].id, page.total })
        assert.same({ tenant_key = "another", to = "somebody@example.test" }, page.data[1].data)
        assert.equal(1, status(200, staff:get(base .. "/jobs?q=SOMEBODY@")).total)
        assert.equal(0, status(200, staff:get(base .. "/jobs?q=nobody")).total)
        status(400, staff:get(base .. "/jobs?state=odd"))
        status(404, staff:get("/admin/queues/never-heard-of/jobs"))
        status(404, staff:get("/admin/queues/a%3Ab/jobs"))
        status(404, staff:get(base .. "/jobs/none"))
    end)

    it("take jobs, many, flows and schedulers from outside", function()
        assert.same({ "one" }, status(201, staff:post(base .. "/jobs/add", { name = "a", data = { n = 1 },
            opts = { jobId = "one", delay = 3600000, attempts = 3, backoff = { type = "exponential", delay = 3000 } } })).ids)
        local job = status(200, staff:get(base .. "/jobs/one")).job
        assert.same({ "delayed", 3600000, { n = 1 } }, { job.state, job.delay, job.data })
        assert.equal(3, #status(201, staff:post(base .. "/jobs/add", { bulk = { { name = "b" }, { name = "b", data = json.null },
            { name = "b", opts = { priority = 2 } } } })).ids)
        local ids = status(201, staff:post(base .. "/jobs/add", { flow = { name = "p", queueName = q, children = {
            { name = "c", queueName = q } } } })).ids
        assert.equal("waiting-children", status(200, staff:get(base .. "/jobs/" .. ids[1])).job.state)
        status(200, staff:post(base .. "/jobs/" .. ids[1] .. "/remove"))
        status(404, staff:get(base .. "/jobs/" .. ids[2]))
        local slot = status(201, staff:post(base .. "/jobs/add", { scheduler = { id = "nightly", pattern = "0 3 * * *",
            tz = "Asia/Ho_Chi_Minh", template = { name = "n", data = { v = 1 } } } })).ids[1]
        local shown = status(200, staff:get(base)).queue
        assert.same({ "nightly", "0 3 * * *" }, { shown.schedulers[1].id, shown.schedulers[1].pattern })
        assert.equal("scheduled_job", status(409, staff:post(base .. "/jobs/" .. slot .. "/remove")).code)
        status(200, staff:post(base .. "/schedulers/remove", { id = "nightly" }))
        status(404, staff:post(base .. "/schedulers/remove", { id = "nightly" }))
    end)

    it("refuse what makes no sense, with nothing added", function()
        local before = queues.counts(q)
        for _, body in ipairs{ {}, { name = "a", bulk = { { name = "b" } } }, { name = "a", opts = { priority = -1 } }, { bulk = { 1 } },
            { name = "a", opts = { jobId = "12" } }, { bulk = { { name = "b" }, { data = 1 } } }, { flow = "x" }, { flow = {} },
            { scheduler = {} }, { scheduler = { id = "s" } }, { scheduler = { id = "s", pattern = "what" } },
            { scheduler = { id = "s", every = "often" } }, { name = "a", opts = { backoff = "slow" } },
            { flow = { name = "p", queueName = q, children = "none" } } } do
            status(400, staff:post(base .. "/jobs/add", body))
        end
        status(404, staff:post("/admin/queues/never-heard-of/jobs/add", { name = "a" }))
        status(404, staff:post(base .. "/jobs/add", { flow = { name = "p", queueName = "never-heard-of" } }))
        assert.same(before, queues.counts(q))
    end)

    it("are paused and resumed, their jobs promoted, retried, removed, drained and cleaned", function()
        assert.is_true(status(200, staff:post(base .. "/pause")).changed)
        assert.is_false(status(200, staff:post(base .. "/pause")).changed)
        assert.is_true(status(200, staff:get(base)).queue.paused)
        assert.is_true(status(200, staff:post(base .. "/resume")).changed)
        status(200, staff:post(base .. "/jobs/one/promote"))
        assert.equal("wrong_state", status(409, staff:post(base .. "/jobs/one/promote")).code)
        assert.equal("wrong_state", status(409, staff:post(base .. "/jobs/one/retry")).code)
        status(200, staff:post(base .. "/jobs/one/remove"))
        status(404, staff:post(base .. "/jobs/one/remove"))
        status(200, staff:post(base .. "/drain", { delayed = true }))
        assert.equal(0, queues.counts(q).waiting)
        status(400, staff:post(base .. "/clean", { state = "active" }))
        assert.equal(0, status(200, staff:post(base .. "/clean", { state = "failed" })).removed)
        assert.equal(0, status(200, staff:post(base .. "/retry-failed", {})).retried)
    end)

    it("leave a trace of every change", function()
        local log = status(200, staff:get("/audit/logs?entity_type=queue&entity_id=" .. q .. "&limit=100")).data
        local seen = {}
        for _, event in ipairs(log) do seen[event.action] = (seen[event.action] or 0) + 1 end
        for _, action in ipairs{ "queues.pause", "queues.resume", "queues.add", "queues.drain", "queues.scheduler-set" } do
            assert.is_true((seen[action] or 0) > 0, action)
        end
        local removed = status(200, staff:get("/audit/logs?action=queues.remove&entity_id=" .. q .. "/one")).data
        assert.equal(1, #removed)
    end)
end)

describe("the house's schedules", function()
    it("stand once in the system queue", function()
        local staff = support.platform()
        local known = {}
        support.eventually(function()
            known = {}
            for _, s in ipairs(status(200, staff:get("/admin/queues/system-queue")).queue.schedulers) do known[s.id] = s end
            return known["audit-retention"]
        end)
        for _, name in ipairs{ "otp-cleanup", "session-cleanup", "idempotency-cleanup", "outbox-cleanup" } do
            assert.equal(3600000, known[name] and known[name].every, name)
        end
        assert.same({ "0 3 * * *", "30 2 * * *" }, { known["user-purge"].pattern, known["audit-verify-chain"].pattern })
    end)
end)
