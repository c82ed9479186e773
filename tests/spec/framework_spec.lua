-- Outbox, due work, idempotency in the transaction, audit chain: on real stores, with tenants of their own. No `kasma work` may run
-- beside this: the spec is the relay.
local crypto = require("core.crypto")
local json = require("core.json")
local mongo = require("core.mongo")
local pg = require("core.pg")
local redis = require("core.redis")
local sched = require("core.sched")
local time = require("core.time")
local uuid = require("core.uuid")
local audit = require("kasma.audit")
local db = require("kasma.db")
local due = require("kasma.due")
local errors = require("kasma.errors")
local idempotency = require("kasma.idempotency")
local queues = require("kasma.jobs_queue")
local outbox = require("kasma.outbox")

local function scope() return { tenant = "s" .. crypto.random_hex(6), app = "MASTER", actor_id = uuid.v7(), actor_kind = "user" } end

local function raised(fn, ...)
    local ok, err = pcall(fn, ...)
    assert.is_false(ok)
    return err
end

-- What was sent in this very millisecond was not sent before it.
local function tick()
    local now = time.now()
    repeat sched.sleep(1) until time.now() > now
end

local function drain()
    for _ = 1, 50 do
        if outbox.relay_once() == 0 then return end
    end
end

describe("the outbox", function()
    it("delivers what was committed, in order per key, and nothing of what was rolled back", function()
        drain()
        local s, seen = scope(), {}
        outbox.consumer("spec.order", function(rows)
            for _, row in ipairs(rows) do seen[#seen + 1] = row.payload.n end
        end)
        for n = 1, 5 do db.pipeline(s.tenant, { outbox.row(s, "spec.order", "k", { n = n }) }) end
        pcall(db.pipeline, s.tenant, { outbox.row(s, "spec.order", "k", { n = 6 }), { "select 1 / 0" } })
        drain()
        assert.same({ 1, 2, 3, 4, 5 }, seen)
        assert.equal(0, outbox.waiting().n)
    end)

    it("parks a row whose consumer fails, with its key behind it, and lets others pass", function()
        local s, seen, broken = scope(), {}, true
        outbox.consumer("spec.park", function(rows)
            for _, row in ipairs(rows) do
                if row.payload.bad and broken then error("not now") end
                seen[#seen + 1] = row.key .. row.payload.n
            end
        end)
        db.pipeline(s.tenant, { outbox.row(s, "spec.park", "a", { n = 1, bad = true }), outbox.row(s, "spec.park", "a", { n = 2 }),
            outbox.row(s, "spec.park", "b", { n = 1 }) })
        outbox.relay_once()
        assert.same({ "b1" }, seen)
        broken = false
        for _ = 1, 1500 do
            if #seen == 3 then break end
            outbox.relay_once()
            sched.sleep(20)
        end
        assert.same({ "b1", "a1", "a2" }, seen)
    end)

    it("parks for good what failed twelve times, lets its key go on, and takes it up again when asked", function()
        local s, seen, broken = scope(), {}, true
        outbox.consumer("spec.poison", function(rows)
            for _, row in ipairs(rows) do
                if row.payload.bad and broken then error("poison") end
                seen[#seen + 1] = row.payload.n
            end
        end)
        db.pipeline(s.tenant, { outbox.row(s, "spec.poison", "k", { n = 1, bad = true }), outbox.row(s, "spec.poison", "k", { n = 2 }) })
        db.query(s.tenant, "update outbox set attempts = 11 where tenant_key = $1 and payload->>'n' = '1'", s.tenant)
        drain()
        assert.same({ 2 }, seen)
        local row = outbox.list{ tenant = s.tenant, parked = true }[1]
        assert.equal(12, row.attempts)
        assert.truthy(row.error:find("poison", 1, true))
        assert.equal(1, outbox.show(row.id).payload.n)
        assert.is_true(outbox.parked() >= 1)
        assert.equal(0, outbox.retry{ tenant = "nobody" })
        broken = false
        assert.equal(1, outbox.retry{ id = row.id })
        drain()
        assert.same({ 2, 1 }, seen)
        assert.equal(0, #outbox.list{ tenant = s.tenant })
    end)

    it("parks a job that no queue takes at once, and the jobs of its queue go on", function()
        drain()
        local s, queue = scope(), "spec-" .. uuid.v4()
        db.pipeline(s.tenant, { outbox.job(s, queue, "wrong", {}, { priority = -1 }), outbox.job(s, queue, "right", { n = 1 }) })
        drain()
        assert.equal(1, queues.counts(queue).waiting)
        local left = outbox.list{ tenant = s.tenant }
        assert.equal(1, #left)
        assert.is_truthy(left[1].parked_at)
        assert.is_truthy(left[1].error:find("priority", 1, true))
        assert.is_true(outbox.drop(left[1].id))
        queues.drain(queue)
    end)

    it("parks a row whatever bytes its failure is told in, and marks its neighbours", function()
        local s, seen = scope(), 0
        outbox.consumer("spec.words", function(rows)
            for _, row in ipairs(rows) do
                if row.payload.bad then error("no\0" .. ("\195\169"):rep(300) .. "\255", 0) end
                seen = seen + 1
            end
        end)
        db.pipeline(s.tenant, { outbox.row(s, "spec.words", "a", { bad = true }), outbox.row(s, "spec.words", "b", {}) })
        db.query(s.tenant, "update outbox set attempts = 11 where tenant_key = $1 and key = 'a'", s.tenant)
        drain()
        assert.equal(1, seen)
        local left = outbox.list{ tenant = s.tenant }
        assert.equal(1, #left)
        assert.is_truthy(left[1].parked_at)
        assert.is_truthy(left[1].error:find("^no\239\191\189\195\169"))
        assert.is_true(outbox.drop(left[1].id))
    end)

    it("sends again what was sent since a time, each once, and forgets what was sent before one", function()
        local s, other, seen = scope(), scope(), {}
        outbox.consumer("spec.again", function(rows)
            for _, row in ipairs(rows) do
                if row.tenant_key == s.tenant or row.tenant_key == other.tenant then seen[#seen + 1] = row.tenant_key .. row.payload.n end
            end
        end)
        outbox.consumer("spec.others", function() end)
        for n = 1, 3 do
            db.pipeline(s.tenant, { outbox.row(s, "spec.again", "k", { n = n }), outbox.row(s, "spec.others", "k", { n = n }) })
            db.pipeline(other.tenant, { outbox.row(other, "spec.again", "k", { n = n }) })
        end
        drain()
        db.query(s.tenant, "update outbox set sent_at = sent_at - interval '1h' where tenant_key = $1 and payload->>'n' = '1'", s.tenant)
        seen = {}
        tick()
        local since = time.now() - 1800000
        assert.equal(2, outbox.again("spec.again", since, s.tenant)[s.tenant])
        drain()
        assert.same({ s.tenant .. 2, s.tenant .. 3 }, seen)
        seen = {}
        tick()
        local found = outbox.again("spec.again", since)
        assert.same({ 2, 3 }, { found[s.tenant], found[other.tenant] })
        drain()
        assert.equal(5, #seen)
        assert.is_true(outbox.prune(time.now() - 1800000) >= 2) -- one of each topic
        local left = db.one(s.tenant, "select count(*)::int as n from outbox where tenant_key = $1", s.tenant)
        assert.equal(4, left.n)
    end)

    it("is parked and dropped by hand", function()
        local s, seen = scope(), 0
        outbox.consumer("spec.hand", function() seen = seen + 1 end)
        db.pipeline(s.tenant, { outbox.row(s, "spec.hand", "k", {}) })
        local id = outbox.list{ tenant = s.tenant }[1].id
        assert.is_false(outbox.drop(id))
        assert.is_true(outbox.park(id))
        assert.is_false(outbox.park(id))
        drain()
        assert.equal(0, seen)
        assert.is_true(outbox.drop(id))
        assert.is_nil(outbox.show(id))
    end)

    it("lets a topic wait as a whole while its store is away, and counts nothing as a failure", function()
        local s, tries, seen, gone = scope(), 0, {}, true
        outbox.consumer("spec.away", function(rows)
            tries = tries + 1
            if gone then errors.unavailable("store is away") end
            for _, row in ipairs(rows) do seen[#seen + 1] = row.payload.n end
        end)
        outbox.consumer("spec.here", function(rows) seen[#seen + 1] = rows[1].payload.n end)
        for n = 1, 3 do db.pipeline(s.tenant, { outbox.row(s, "spec.away", "k" .. n, { n = n }) }) end
        db.pipeline(s.tenant, { outbox.row(s, "spec.here", "k", { n = "here" }) })
        outbox.relay_once()
        assert.same({ "here" }, seen)
        assert.equal(1, tries)
        -- It waits for a quarter of a second at least before it is tried again.
        local began = time.mono()
        drain()
        assert.is_true(tries <= 2 + (time.mono() - began) / 250000)
        assert.equal(0, outbox.list{ tenant = s.tenant }[1].attempts)
        gone = false
        for _ = 1, 1500 do
            if #seen == 4 then break end
            outbox.relay_once()
            sched.sleep(20)
        end
        assert.same({ "here", 1, 2, 3 }, seen)
    end)

    it("hands a slow topic over in a lane of its own: a key in order, others past it, all waiting while it is away", function()
        local s, came, away = scope(), {}, true
        outbox.slow("spec.slow", function(row)
            came[#came + 1] = row.key .. row.payload.n
            if away then errors.unavailable("the service is away") end
            if row.payload.bad and row.attempts == 0 then error("refused") end
        end)
        for n = 1, 2 do db.pipeline(s.tenant, { outbox.row(s, "spec.slow", "a", { n = n, bad = n == 1 }) }) end
        db.pipeline(s.tenant, { outbox.row(s, "spec.slow", "b", { n = 1 }) })
        drain()
        assert.same({}, came)
        assert.equal(0, outbox.relay_once("spec.slow"))
        assert.is_true(#came <= 2)
        assert.equal(0, outbox.list{ tenant = s.tenant }[1].attempts)
        away, came = false, {}
        for _ = 1, 1500 do
            if #outbox.list{ tenant = s.tenant } == 0 then break end
            outbox.relay_once("spec.slow")
            sched.sleep(20)
        end
        assert.same({ "a1", "b1", "a1", "a2" }, came)
    end)

    it("mirrors the newest state and never an older one", function()
        local s, id = scope(), uuid.v7()
        local name = "spec_mirror"
        for version = 1, 3 do
            db.pipeline(s.tenant, { outbox.row(s, "mirror." .. name, id, { version = version, text = "v" .. version }) })
        end
        drain()
        local doc = mongo.find_one(name, { _id = s.tenant .. ":" .. id })
        assert.same({ "v3", s.tenant }, { doc.text, doc.tenant_key })
        db.pipeline(s.tenant, { outbox.row(s, "mirror." .. name, id, { version = 2, text = "old" }) })
        drain()
        assert.equal("v3", mongo.find_one(name, { _id = s.tenant .. ":" .. id }).text)
    end)
end)

describe("due work", function()
    it("runs when it falls due and not before, and moves on what fails", function()
        local s, id, bad, ran, failed = scope(), uuid.v7(), uuid.v7(), 0, 0
        due.handler("spec.good", function(tenant, what)
            ran = ran + 1
            assert.equal(id, what)
            db.pipeline(tenant, { due.drop(tenant, "spec.good", what) })
        end)
        due.handler("spec.bad", function()
            failed = failed + 1
            error("no")
        end)
        local now = time.now()
        db.pipeline(s.tenant, { due.put(s, "spec.good", id, now + 3600000), due.put(s, "spec.bad", bad, now - 1) })
        due.sweep_once()
        assert.same({ 0, 1 }, { ran, failed })
        due.sweep_once()
        assert.same({ 0, 1 }, { ran, failed })
        db.pipeline(s.tenant, { due.put(s, "spec.good", id, now - 1) })
        due.sweep_once()
        due.sweep_once()
        assert.equal(1, ran)
        db.pipeline(s.tenant, { due.drop(s.tenant, "spec.bad", bad) })
    end)

    it("that tells others waits while its tenant is switched off", function()
        local service = require("modules.tenants.service")
        local key, ran = "off" .. crypto.random_hex(4), {}
        local platform = { tenant = "MASTER", app = "MASTER", actor_kind = "system" }
        service.create(platform, { tenant_key = key, name = key })
        local s = { tenant = key, app = "MASTER", actor_kind = "system" }
        for kind, outward in pairs{ ["spec.outward"] = true, ["spec.inward"] = false } do
            due.handler(kind, function(tenant, what)
                if tenant == key then ran[#ran + 1] = kind end
                db.pipeline(tenant, { due.drop(tenant, kind, what) })
            end, nil, outward)
        end
        local told = uuid.v7()
        local function fall_due(kind, id) db.pipeline(key, { due.put(s, kind, id, time.now() - 1) }) end
        service.update(s, { is_active = false })
        fall_due("spec.outward", told)
        fall_due("spec.inward", uuid.v7())
        due.sweep_once()
        assert.same({ "spec.inward" }, ran)
        local row = db.one(key, "select due_at from due_work where tenant_key = $1 and id = $2", key, told)
        assert.is_true(time.parse(row.due_at) > time.now())
        service.update(s, { is_active = true })
        fall_due("spec.outward", told)
        due.sweep_once()
        assert.same({ "spec.inward", "spec.outward" }, ran)
        assert.is_nil(db.one(key, "select 1 as there from due_work where tenant_key = $1 and id = $2", key, told))
    end)

    it("that never ends is cut off and moved on, and holds up no other", function()
        local s, id = scope(), uuid.v7()
        local ran = {}
        due.handler("spec.endless", function()
            ran[#ran + 1] = "endless"
            if sched.sleep(86400000) then ran[#ran + 1] = "ended" end
        end, 50)
        due.handler("spec.next", function(tenant, what)
            ran[#ran + 1] = "next"
            db.pipeline(tenant, { due.drop(tenant, "spec.next", what) })
        end)
        local now = time.now()
        db.pipeline(s.tenant, { due.put(s, "spec.endless", id, now - 2), due.put(s, "spec.next", uuid.v7(), now - 1) })
        due.sweep_once()
        table.sort(ran)
        assert.same({ "endless", "next" }, ran)
        local row = db.one(s.tenant, "select due_at from due_work where tenant_key = $1 and id = $2", s.tenant, id)
        assert.is_true(time.parse(row.due_at) > now)
        db.pipeline(s.tenant, { due.drop(s.tenant, "spec.endless", id) })
    end)
end)

describe("idempotency in the transaction", function()
    local function request(s, key, body)
        local ctx = { tenant = s.tenant, app = s.app, method = "POST", id = "r", route = "/x", req = { path = "/x", query = "" } }
        ctx.idempotency = idempotency.start(ctx, key, "user:" .. s.actor_id, body)
        ctx.idempotency.transaction = true
        return ctx
    end
    local function close(ctx) if ctx.idempotency.timer then ctx.idempotency.timer:stop() end end

    it("replays what was completed with the effect, byte for byte", function()
        local s = scope()
        local first = request(s, "k", "body")
        assert.is_nil(idempotency.claim(first, first.idempotency))
        local body = { id = 1, name = "a" }
        db.pipeline(s.tenant, { outbox.row(s, "spec.none", "x", {}), idempotency.complete(first, 201, body) })
        idempotency.finish(first, first.idempotency, false, 201)
        local second = request(s, "k", "body")
        local answer = idempotency.claim(second, second.idempotency)
        assert.same({ 201, first.encoded.text }, { answer.status, answer.body })
        assert.equal("true", answer.headers["Idempotent-Replayed"])
        local other = request(s, "k", "another body")
        assert.equal("idempotency_reuse", raised(idempotency.claim, other, other.idempotency).code)
        db.query(s.tenant, "delete from outbox where tenant_key = $1", s.tenant)
    end)

    it("waits for the one that runs, then says that it is in progress", function()
        local s = scope()
        local first, second = request(s, "k", "b"), request(s, "k", "b")
        assert.is_nil(idempotency.claim(first, first.idempotency))
        local err = raised(idempotency.claim, second, second.idempotency)
        assert.same({ 409, "in_progress", "1" }, { err.status, err.code, err.headers["Retry-After"] })
        close(first)
    end)

    it("takes over a claim whose lease is over; who was taken over writes nothing", function()
        local s = scope()
        local first, second = request(s, "k", "b"), request(s, "k", "b")
        assert.is_nil(idempotency.claim(first, first.idempotency))
        db.query(s.tenant, "update idempotency_records set lease_until = $2::timestamptz where tenant_key = $1", s.tenant,
            time.iso(time.real() - 1000))
        assert.is_nil(idempotency.claim(second, second.idempotency))
        local err = raised(db.pipeline, s.tenant, { outbox.row(s, "spec.none", "x", {}), idempotency.complete(first, 201, {}) })
        assert.same({ 409, "in_progress" }, { err.status, err.code })
        assert.equal(0, db.one(s.tenant, "select count(*)::int as n from outbox where tenant_key = $1", s.tenant).n)
        db.pipeline(s.tenant, { idempotency.complete(second, 201, {}) })
        close(first)
        close(second)
    end)

    it("frees the key of an outcome that is not kept", function()
        local s = scope()
        local first, second = request(s, "k", "b"), request(s, "k", "b")
        assert.is_nil(idempotency.claim(first, first.idempotency))
        idempotency.finish(first, first.idempotency, true, nil)
        assert.is_nil(idempotency.claim(second, second.idempotency))
        idempotency.finish(second, second.idempotency, true, 409, "application/json", "{}")
        local third = request(s, "k", "b")
        assert.equal(409, idempotency.claim(third, third.idempotency).status)
    end)
end)

describe("idempotency in Redis", function()
    local function state_of(s, key)
        local ctx = { tenant = s.tenant, app = s.app, method = "POST", id = "r", route = "/x", req = { path = "/x", query = "" } }
        return idempotency.start(ctx, key, "user:" .. s.actor_id, "body")
    end

    it("keeps a key whose answer was too large to be kept: nothing is done twice", function()
        local s = scope()
        for _, size in ipairs{ 1048576, 1048577 } do
            local key = "k" .. size
            local first = state_of(s, key)
            assert.is_nil(idempotency.claim_redis(first))
            idempotency.finish_redis(first, 201, "application/json", ("x"):rep(size))
            if size <= 1048576 then
                assert.equal(size, #idempotency.claim_redis(state_of(s, key)).body)
            else
                local err = raised(idempotency.claim_redis, state_of(s, key))
                assert.same({ 409, "idempotency_answer" }, { err.status, err.code })
            end
            redis.call("DEL", "idem:" .. first.scope_hash)
        end
    end)

    it("that is over is taken once, also by two who saw it at the same time", function()
        local s = scope()
        local old, first, second = state_of(s, "k"), state_of(s, "k"), state_of(s, "k")
        local key = "idem:" .. old.scope_hash
        assert.is_nil(idempotency.claim_redis(old))
        idempotency.finish_redis(old, 201, "application/json", "{}")
        local entry = json.decode(redis.call("GET", key))
        entry.exp = time.now() - 1
        redis.call("SET", key, json.encode(entry))
        -- While the first looks at the old entry, the second takes its place.
        local call, went = redis.call, nil
        redis.call = function(command, ...)
            local answer, err = call(command, ...)
            if command == "GET" then
                redis.call = call
                went = { pcall(idempotency.claim_redis, second) }
            end
            return answer, err
        end
        local ok, why = pcall(idempotency.claim_redis, first)
        redis.call = call
        assert.same({ true, nil, true }, { went[1], went[2], second.held })
        assert.same({ false, "in_progress" }, { ok, type(why) == "table" and why.code })
        call("DEL", key)
    end)
end)

describe("the audit", function()
    it("chains bodies by hashes in the order of their commits and masks secrets", function()
        local s = scope()
        local ids = {}
        for n = 1, 3 do
            ids[n] = audit.write(s, { action = "spec.act", entity_type = "thing", entity_id = tostring(n),
                after = { n = n, password = "hidden", nested = { reset_token = "hidden", couponCode = "X" } } })
        end
        drain()
        local bodies = audit.bodies(s.tenant, ids)
        local before = ("0"):rep(64)
        for n = 1, 3 do
            local doc = bodies[ids[n]]
            assert.equal(n, doc.seq)
            assert.equal(before, doc.prev_hash)
            assert.equal(audit.chain_hash(doc), doc.hash)
            assert.same({ n = n, password = "***", nested = { reset_token = "***", couponCode = "X" } }, doc.after)
            assert.same(json.decode(doc.body).after, doc.after)
            before = doc.hash
        end
        local head = db.one(s.tenant, "select seq, hash from audit_heads where tenant_key = $1", s.tenant)
        assert.same({ 3, before }, { head.seq, head.hash })
    end)

    it("writes no body twice when the relay is run again", function()
        local s = scope()
        local id = audit.write(s, { action = "spec.again", entity_type = "thing", entity_id = "1" })
        drain()
        db.pool("system"):query(nil, "update outbox set sent_at = null where tenant_key = $1", s.tenant)
        drain()
        local docs = mongo.find("audit_log", { tenant_key = s.tenant }, { limit = 10 })
        assert.equal(1, #docs)
        assert.equal(id, docs[1]._id)
        assert.equal(1, db.one(s.tenant, "select seq from audit_heads where tenant_key = $1", s.tenant).seq)
    end)
end)

describe("the database helpers", function()
    it("run a transaction again after a deadlock, and give up on what is no clash", function()
        local s, tries = scope(), 0
        local result = db.transaction(s.tenant, function(tx)
            tries = tries + 1
            if tries < 3 then tx:query("select kasma_must(false, '40P01')") end
            return tx:one("select 7 as n").n
        end)
        assert.same({ 7, 3 }, { result, tries })
        tries = 0
        local err = raised(db.transaction, s.tenant, function(tx)
            tries = tries + 1
            tx:query("select kasma_must(false, 'KS001')")
        end)
        assert.same({ 1, "KS001" }, { tries, (errors.sqlstate(err)) })
    end)

    it("send what belongs to the commit with it, and nothing when the function raises", function()
        local s = scope()
        db.transaction(s.tenant, function(tx) tx:at_commit{ outbox.row(s, "spec.none", "x", {}) } end)
        assert.equal(1, db.one(s.tenant, "select count(*)::int as n from outbox where tenant_key = $1", s.tenant).n)
        raised(db.transaction, s.tenant, function(tx)
            tx:pipeline{ outbox.row(s, "spec.none", "x", {}) }
            errors.conflict("no")
        end)
        assert.equal(1, db.one(s.tenant, "select count(*)::int as n from outbox where tenant_key = $1", s.tenant).n)
        db.query(s.tenant, "delete from outbox where tenant_key = $1", s.tenant)
    end)

    it("show nothing of another tenant, whatever is asked", function()
        local a, b = scope(), scope()
        db.pipeline(a.tenant, { outbox.row(a, "spec.none", "x", {}) })
        assert.equal(0, #db.read(b.tenant, "select id from outbox where tenant_key = $1", a.tenant))
        assert.equal(0, #db.read(nil, "select id from outbox where tenant_key = any($1::text[])", pg.array{ a.tenant, b.tenant }))
        assert.equal(1, #db.read(a.tenant, "select id from outbox where tenant_key = $1", a.tenant))
        db.query(a.tenant, "delete from outbox where tenant_key = $1", a.tenant)
    end)
end)
