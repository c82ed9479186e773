-- Job queues over HTTP and on the command line: what platform staff sees and does, and nobody else.
local json = require("core.json")
local command = require("api.command")
local redis = require("core.redis")
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
        -- Another program's queue that is no queue any more stands among the others as what it is.
        local odd = support.unique("queue-odd-")
        jobs.introduce(jobs.base(odd))
        redis.call("HSET", jobs.base(odd) .. "wait", "a", "b")
        local listed = staff:get("/admin/queues")
        local one = staff:get("/admin/queues/" .. odd)
        redis.call("DEL", jobs.base(odd) .. "wait", jobs.base(odd) .. "meta")
        assert.is_true(#status(200, listed).data > #all)
        assert.is_string(status(200, one).queue.broken)
        status(400, staff:get(base .. "/jobs?state=odd"))
        status(404, staff:get("/admin/queues/never-heard-of/jobs"))
        status(404, staff:get("/admin/queues/a%3Ab/jobs"))
        status(404, staff:get(base .. "/jobs/none"))
    end)

    it("show no secret of a job, whoever looks for it, and keep the job as it is", function()
        local hidden = { "481516", "https://reset.example/abc", "Lan Nguyen", "hunter2222", "ksk_live_aaaabbbb_zzzzzz",
            "eyJhb.eyJz.c2ln" }
        local data = { to = "lan@example.test", otp = hidden[1], nested = { { newPassword = hidden[4] } },
            vars = { link = hidden[2], person = { name = hidden[3] }, gone = json.null },
            note = "sent with " .. hidden[5] .. " and " .. hidden[6], n = 7 }
        local id = jobs.add(q, "told", data, { jobId = "told" })
        queues.update_progress(q, id, { token = hidden[4], share = 0.5 })
        queues.add_log(q, id, "asked with Bearer " .. hidden[6])
        redis.call("HSET", jobs.base(q) .. id, "failedReason", "refused " .. hidden[5])
        local one = status(200, staff:get(base .. "/jobs/told")).job
        assert.same({ to = "lan@example.test", otp = "***", vars = { link = "***", person = { name = "***" }, gone = json.null },
            nested = { { newPassword = "***" } }, note = "sent with *** and ***", n = 7 }, one.data)
        assert.same({ token = "***", share = 0.5 }, one.progress)
        assert.same({ "asked with Bearer ***" }, one.logs)
        assert.equal("refused ***", one.failedReason)
        for _, path in ipairs{ base .. "/jobs", base .. "/jobs/told", base } do
            local body = staff:get(path).body
            for _, secret in ipairs(hidden) do assert.is_nil(body:find(secret, 1, true), path .. " shows " .. secret) end
        end
        for _, secret in ipairs(hidden) do
            local escaped = secret:gsub("[^%w_.]", function(c) return ("%%%02X"):format(c:byte()) end)
            assert.equal(0, status(200, staff:get(base .. "/jobs?q=" .. escaped)).total, secret)
        end
        assert.same(data, queues.get(q, "told").data)
        assert.equal(0, queues.remove(q, "told"))
    end)

    it("show no more of a job than a page can bear, and say what is left out", function()
        local long = ("é"):rep(400000)
        jobs.add(q, "long", { text = long }, { jobId = "long" })
        jobs.add(q, "middling", { text = ("x"):rep(20000) }, { jobId = "middling" })
        queues.add_log(q, "long", long)
        redis.call("HSET", jobs.base(q) .. "long", "failedReason", "x" .. long)
        local answer = staff:get(base .. "/jobs?limit=100")
        assert.is_true(#answer.body < 60000, #answer.body)
        local of = {}
        for _, job in ipairs(status(200, answer).data) do of[job.id] = job end
        assert.same({ data = 800011 }, of.long.omitted)
        assert.same({ data = 20011 }, of.middling.omitted)
        local one = status(200, staff:get(base .. "/jobs/long")).job
        assert.same({ nil, { data = 800011 } }, { one.data, one.omitted })
        assert.equal("x" .. ("é"):rep(131071), one.failedReason)
        assert.same({ ("é"):rep(1023) }, one.logs)
        local other = status(200, staff:get(base .. "/jobs/middling")).job
        assert.same({ 20000, nil }, { #other.data.text, other.omitted })
        for _, id in ipairs{ "long", "middling" } do assert.equal(0, queues.remove(q, id)) end
    end)

    it("show another program's job whatever it holds", function()
        local p = jobs.base(q)
        redis.call("HSET", p .. "odd", "name", "n\255", "data", '{"a":"\255"}', "opts", "{x", "failedReason", "\255x", "stacktrace",
            "[1,{}", "returnvalue", "\254", "progress", "x", "delay", "y", "priority", "z", "atm", "q", "parent", "[]", "parentKey", "x")
        redis.call("HSET", p .. "bare", "name", "y")
        redis.call("RPUSH", p .. "wait", "odd", "bare")
        redis.call("RPUSH", p .. "odd:logs", "\255\254")
        local page = status(200, staff:get(base .. "/jobs"))
        local one = status(200, staff:get(base .. "/jobs/odd")).job
        local bare = status(200, staff:get(base .. "/jobs/bare")).job
        for _, id in ipairs{ "odd", "bare" } do status(200, staff:post(base .. "/jobs/" .. id .. "/remove")) end
        assert.equal("bare", page.data[1].id)
        assert.same({ "n\239\191\189", "{x", "waiting" }, { one.name, one.opts, one.state })
        assert.same({ "y", "waiting" }, { bare.name, bare.state })
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
            { flow = { name = "p", queueName = q, children = "none" } }, { flow = { name = "p", queueName = q, children = { c = 1 } } },
            { name = "a", opts = { sizeLimit = "x" } }, { name = "a", opts = { jobId = "wait" } },
            { bulk = { { name = "b", opts = json.array({ 1 }) } } }, { bulk = { { name = "b", opts = { removeOnFail = 1e20 } } } } } do
            status(400, staff:post(base .. "/jobs/add", body))
        end
        status(404, staff:post("/admin/queues/never-heard-of/jobs/add", { name = "a" }))
        status(404, staff:post(base .. "/jobs/add", { flow = { name = "p", queueName = "never-heard-of" } }))
        assert.same(before, queues.counts(q))
    end)

    it("keep what is no job's, whoever names it as one", function()
        local name = support.unique("queue-keys-")
        local queue = "/admin/queues/" .. name
        jobs.introduce(jobs.base(name))
        jobs.add(name, "work", {}, { jobId = "one" })
        redis.call("HSET", "bull:" .. name .. ":meta", "concurrency", "7")
        redis.call("SET", "bull:" .. name .. ":one:lock", "token")
        redis.call("HSET", "bull:" .. name .. ":one:processed", "child", "1")
        redis.call("HSET", "bull:" .. name .. ":repeat:nightly", "ic", "1")
        for _, id in ipairs{ "meta", "id", "wait", "events", "marker", "repeat", "repeat:nightly", "one:lock", "one:processed" } do
            assert.equal("unknown_job", status(404, staff:get(queue .. "/jobs/" .. id)).code, id)
            for _, act in ipairs{ "remove", "retry", "promote" } do
                assert.equal("unknown_job", status(404, staff:post(queue .. "/jobs/" .. id .. "/" .. act)).code, id)
            end
        end
        for _, key in ipairs{ "meta", "id", "one:lock", "one:processed", "repeat:nightly" } do
            assert.equal(1, redis.call("EXISTS", "bull:" .. name .. ":" .. key), key)
        end
        for _, id in ipairs{ "7", "one", "a:b:c", "a:b:lock", "repeat:nightly:1795391809390", "repeat:a:b:1795391809390" } do
            assert.is_true(jobs.may_be_job(id), id)
        end
        redis.call("DEL", "bull:" .. name .. ":one:lock")
        status(200, staff:post(queue .. "/jobs/one/remove"))
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

    it("are not cleaned of jobs that run", function()
        local p = jobs.base(q)
        redis.call("HSET", p .. "runs", "name", "x", "timestamp", "1")
        redis.call("LPUSH", p .. "active", "runs")
        for _, state in ipairs{ "active", "waiting-children", "odd" } do
            status(400, staff:post(base .. "/clean", { state = state }))
            assert.equal(2, (command.run("queues clean " .. q .. " --state " .. state)))
        end
        assert.is_true(queues.has(q, "runs"))
        redis.call("DEL", p .. "runs", p .. "active")
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
        local known, names = {}, { "otp-cleanup", "session-cleanup", "idempotency-cleanup", "outbox-cleanup", "user-purge",
            "audit-verify-chain", "audit-retention" }
        support.eventually(function()
            known = {}
            for _, s in ipairs(status(200, staff:get("/admin/queues/system-queue")).queue.schedulers) do known[s.id] = s end
            for _, name in ipairs(names) do
                if not known[name] then return false end
            end
            return true
        end)
        for _, name in ipairs{ "otp-cleanup", "session-cleanup", "idempotency-cleanup", "outbox-cleanup" } do
            assert.equal(3600000, known[name] and known[name].every, name)
        end
        assert.same({ "0 3 * * *", "30 2 * * *" }, { known["user-purge"].pattern, known["audit-verify-chain"].pattern })
    end)
end)
