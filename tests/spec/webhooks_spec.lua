-- Webhooks before they go out: signatures, where they may go, which events an endpoint hears, each event once.
local config = require("core.config")
local crypto = require("core.crypto")
local json = require("core.json")
local pg = require("core.pg")
local sched = require("core.sched")
local time = require("core.time")
local uuid = require("core.uuid")
require("kasma.boot").load()
local capabilities = require("kasma.capabilities")
local db = require("kasma.db")
local events = require("kasma.events")
local outbox = require("kasma.outbox")
local schema = require("kasma.schema")
local users = require("modules.iam.users")
local tenants = require("modules.tenants.service")
local retry_after = require("modules.webhooks.retry_after")
local sign = require("modules.webhooks.sign")
local store = require("modules.webhooks.store")
local target = require("modules.webhooks.target")
local webhooks = require("modules.webhooks.service")

local function scope() return { tenant = "w" .. crypto.random_hex(6), app = "MASTER", actor_kind = "system" } end

local function endpoint(s, patterns)
    return (webhooks.create(s, { name = "e", url = "https://hooks.shop.example.org/x", events = patterns }))
end

local function row(s, name, key, data)
    return { id = uuid.v7(), tenant_key = s.tenant, app_key = s.app, key = key, topic = "event", created_at = time.iso(time.now()),
        payload = { name = name, data = data } }
end

describe("a signature", function()
    it("is that of the standard's example", function()
        assert.equal("v1,QGSAtHoYJQYX+ii7vOkrfFXk8/NX1YonpIOvsX76sj4=", sign.signature("whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
            "msg_01", 1795500000, '{"type":"order.placed","data":{"id":"o1"}}'))
    end)

    it("is made with both secrets while the old one holds", function()
        local s = scope()
        local e, first = webhooks.create(s, { name = "r", url = "https://hooks.shop.example.org/x", events = { "*" } })
        assert.same({ first }, webhooks.secrets_of(e, time.now()))
        local changed, second = webhooks.rotate(s, e.id)
        assert.same({ second, first }, webhooks.secrets_of(changed, time.now()))
        assert.same({ second }, webhooks.secrets_of(changed, time.now() + 86400001))
        assert.is_nil(changed.secret_enc:find(second, 1, true))
        assert.equal(2, select(2, sign.headers({ second, first }, "msg_1", 1, "{}")["webhook-signature"]:gsub("v1,", "")))
    end)
end)

describe("a Retry-After", function()
    -- Sun, 06 Nov 1994 08:49:37 GMT, less two minutes
    local now = 784111777000 - 120000

    it("is read as seconds or as a date of any of HTTP's forms", function()
        assert.equal(90000, retry_after.ms(" 90 ", now))
        assert.equal(0, retry_after.ms("0", now))
        for _, text in ipairs{ "Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994" } do
            assert.equal(120000, retry_after.ms(text, now), text)
        end
        assert.equal(0, retry_after.ms("Sun, 06 Nov 1994 08:40:00 GMT", now))
        -- A year of two digits is at most fifty ahead.
        assert.is_true(retry_after.ms("Sunday, 06-Nov-44 08:49:37 GMT", now) > 0)
        assert.equal(0, retry_after.ms("Sunday, 06-Nov-45 08:49:37 GMT", now))
        for _, text in ipairs{ "", "soon", "-5", "1.5", "9999999", "Mon, 31 Feb 1994 08:49:37 GMT", "Sun, 06 Abc 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 25:49:37 GMT", "Sun, 06 Nov 1994 08:49:37 +0100", "1994-11-06T08:49:37Z", ("9"):rep(500) } do
            assert.is_nil(retry_after.ms(text, now), text)
        end
        assert.is_nil(retry_after.ms(nil, now))
    end)
end)

describe("a webhook's URL", function()
    it("is a public https address", function()
        for _, url in ipairs{ "https://hooks.shop.example.org/a?b=c", "https://api.shop.com:8443/", "https://8.8.8.8/x",
            "https://shop.vn" } do
            assert.truthy(target.read(url), url)
        end
        for _, url in ipairs{ "http://shop.com/", "ftp://shop.com/", "https://", "https://user:pw@shop.com/", "https://shop.com/#x",
            "https://localhost/", "https://a.localhost/", "https://db/", "https://printer.local/", "https://metadata.google.internal/",
            "https://shop.com:22/", "https://shop.com:0/", "https://shop.com:99999/", "https://shop.com:/", "https://shop.com /",
            "https://shop.com/\r\nHost: x", "https://shop.com\\@evil.com/", "https://trà.vn/", "//shop.com", "",
            "https://" .. ("a"):rep(2048) .. ".com" } do
            assert.is_nil(target.read(url), url)
        end
    end)
end)

describe("the catalogue", function()
    it("matches names, families and everything", function()
        assert.is_true(events.matches("*", "order.paid"))
        assert.is_true(events.matches("order.*", "order.paid"))
        assert.is_true(events.matches("order.paid", "order.paid"))
        assert.is_false(events.matches("order.*", "orders.paid"))
        assert.is_false(events.matches("order.paid", "order.paid.twice"))
        for _, good in ipairs{ "*", "order.*", "order.placed", "custom.*" } do assert.is_true(events.is_pattern(good), good) end
        for _, bad in ipairs{ "", "order", "order.nothing", "nothing.*", "*.paid", "order.pl*", "**" } do
            assert.is_false(events.is_pattern(bad), bad)
        end
    end)

    it("has a schema for every name, and the rows that are written fit it", function()
        for _, name in ipairs(events.names()) do
            local found = schema.json_schema(events.find(name).schema, {})
            assert.truthy(found.properties.id)
        end
        local s = scope()
        assert.is_nil(events.problems(row(s, "order.paid", uuid.v7(), { checkoutId = uuid.v7() })))
        assert.truthy(events.problems(row(s, "order.paid", uuid.v7(), {})))
        assert.truthy(events.problems(row(s, "order.paid", uuid.v7(), { checkoutId = uuid.v7(), email = "a@b.test" })))
        assert.truthy(events.problems(row(s, "order.nothing", "k", {})))
        assert.is_nil(events.problems(row(s, "custom.anything", "k", { a = 1 })))
        assert.is_nil(events.problems(row(s, "custom.anything", "k", {})))
        for _, bad in ipairs{ row(s, "custom.", "k", {}), row(s, "custom.Big", "k", {}), row(s, "custom." .. ("x"):rep(100), "k", {}),
            row(s, "custom.x", "k", { 1, 2 }), row(s, "custom.x", "k", "text"), row(s, "custom.x", "k", json.null), row(s, "custom.x", "k"),
            row(s, "custom.x", "k", { a = ("x"):rep(65536) }), row(s, "custom.x", "", {}), row(s, "custom.x", ("k"):rep(201), {}) } do
            assert.truthy(events.problems(bad), json.encode({ bad.payload.name, #bad.key }))
        end
        -- What all tests of this database have written.
        local rows = assert(pg.pool("system"):read(nil, "select tenant_key, app_key, id, key, payload from outbox where topic = 'event' "
            .. "order by seq desc limit 5000"))
        for _, written in ipairs(rows) do
            local problems = events.problems(written)
            assert.is_nil(problems, tostring(written.payload.name) .. ": " .. json.encode(problems or {}))
        end
    end)
end)

describe("an event", function()
    it("becomes one delivery at each endpoint that asked for it, however often it comes", function()
        local s = scope()
        local all, paid, other = endpoint(s, { "*" }), endpoint(s, { "order.paid", "stock.*" }), endpoint(s, { "user.*" })
        local key = uuid.v7()
        local rows = { row(s, "order.placed", key, { checkoutId = uuid.v7() }), row(s, "order.paid", key, { checkoutId = uuid.v7() }) }
        webhooks.fan_out(rows)
        webhooks.fan_out(rows)
        webhooks.fan_out({ rows[2] })
        local function names(e)
            local list = {}
            for i, d in ipairs(store.deliveries(s.tenant, { endpoint_id = e.id }, nil, 10)) do list[i] = d.event .. " " .. d.sequence end
            table.sort(list)
            return list
        end
        assert.same({ "order.paid 2", "order.placed 1" }, names(all))
        assert.same({ "order.paid 1" }, names(paid))
        assert.same({}, names(other))
        local id = store.deliveries(s.tenant, { endpoint_id = paid.id }, nil, 1)[1].id
        local body = json.decode(webhooks.delivery(s.tenant, id).request.body)
        assert.same({ "order.paid", rows[2].id, s.tenant, key, 1 }, { body.type, body.id, body.tenant, body.data.id, body.sequence })
        assert.equal(3, db.one(s.tenant, "select count(*)::int as n from due_work where tenant_key = $1", s.tenant).n)
        db.query(s.tenant, "delete from due_work where tenant_key = $1", s.tenant)
    end)

    it("is tried at growing pauses, eight times in all, and ended once", function()
        local s = scope()
        local e = endpoint(s, { "*" })
        webhooks.fan_out({ row(s, "order.paid", uuid.v7(), { checkoutId = uuid.v7() }) })
        local wanted = { 5, 300, 1800, 7200, 18000, 36000, 36000 }
        for try = 1, 8 do
            local d = webhooks.delivery(s.tenant, store.deliveries(s.tenant, { state = "pending" }, nil, 1)[1].id)
            assert.equal(try, d.try)
            local began = time.now()
            local outcome = { status = 500, answer = "no\0 \195\169\195", micros = 1, request = {} }
            assert.equal(try < 8 and "failed" or "dead", webhooks.finish(d, store.endpoint(s.tenant, e.id), outcome))
            assert.is_nil(webhooks.finish(d, store.endpoint(s.tenant, e.id), outcome))
            assert.equal("no\239\191\189 \195\169\239\191\189", webhooks.delivery(s.tenant, d.id).answer)
            local following = store.deliveries(s.tenant, { state = "pending" }, nil, 2)
            if try < 8 then
                local pause = (time.parse(following[1].due_at) - began) / 1000
                assert.is_true(pause >= wanted[try] and pause <= wanted[try] * 1.1 + 5)
            else
                assert.equal(0, #following)
            end
        end
        assert.truthy(store.endpoint(s.tenant, e.id).failing_since)
        local queued, more = webhooks.redeliver_dead(s, { endpoint_id = e.id, limit = 10 })
        assert.same({ 1, false }, { queued, more })
        assert.same({ 0, false }, { webhooks.redeliver_dead(s, { endpoint_id = e.id, limit = 10 }) })
        local d = store.deliveries(s.tenant, { state = "pending" }, nil, 2)[1]
        assert.same({ 1, 1, 1 }, { d.round, d.try, d.sequence })
        assert.equal("sent", webhooks.finish(webhooks.delivery(s.tenant, d.id), store.endpoint(s.tenant, e.id), { status = 204, micros = 1,
            request = {} }))
        assert.is_nil(store.endpoint(s.tenant, e.id).failing_since)
        assert.equal(0, db.one(s.tenant, "select count(*)::int as n from due_work where tenant_key = $1", s.tenant).n)
    end)

    it("that fails does not switch off an endpoint that delivered another while it waited for its turn", function()
        local s = scope()
        local e = endpoint(s, { "*" })
        local long_ago = time.iso(time.now() - 6 * 86400000)
        local function failing() db.query(s.tenant, "update webhook_endpoints set failing_since = $2::timestamptz where tenant_key = $1",
            s.tenant, long_ago) end
        failing()
        for _ = 1, 2 do webhooks.fan_out({ row(s, "order.paid", uuid.v7(), { checkoutId = uuid.v7() }) }) end
        local waiting, as_read = store.deliveries(s.tenant, { state = "pending" }, nil, 2), store.endpoint(s.tenant, e.id)
        local first, second = webhooks.delivery(s.tenant, waiting[2].id), webhooks.delivery(s.tenant, waiting[1].id)
        assert.equal("sent", webhooks.finish(first, as_read, { status = 204, micros = 1, request = {} }))
        assert.equal("failed", webhooks.finish(second, as_read, { status = 500, micros = 1, request = {} }))
        local now = store.endpoint(s.tenant, e.id)
        assert.same({ "active", true }, { now.state, now.failing_since > long_ago })
        failing()
        local last = webhooks.delivery(s.tenant, store.deliveries(s.tenant, { state = "pending" }, nil, 1)[1].id)
        assert.equal("failed", webhooks.finish(last, store.endpoint(s.tenant, e.id), { status = 500, micros = 1, request = {} }))
        assert.equal("disabled", store.endpoint(s.tenant, e.id).state)
        db.query(s.tenant, "delete from due_work where tenant_key = $1", s.tenant)
        db.query(s.tenant, "update outbox set sent_at = now() where tenant_key = $1", s.tenant)
    end)

    it("switches off as many endpoints at once as a receiver gives up, though each tells its maker", function()
        local key, many = "w" .. crypto.random_hex(6), math.min(50, config.get("DATABASE_POOL") + 4) -- more than there are connections
        tenants.create({ tenant = "MASTER", app = "MASTER", actor_kind = "system" }, { tenant_key = key, name = key })
        local s = { tenant = key, app = "MASTER", actor_kind = "user" }
        s.actor_id = users.provision(s, { email = key .. "@example.test", user_type = "TENANT_0", role_keys = { "tenant_owner" } }).id
        local work, ended = {}, {}
        for i = 1, many do
            local e = endpoint(s, { "order.paid" })
            work[i] = function()
                local d = webhooks.delivery(key, store.deliveries(key, { endpoint_id = e.id }, nil, 1)[1].id)
                ended[i] = webhooks.finish(d, e, { status = 410, micros = 1, request = {} })
            end
        end
        webhooks.fan_out({ row(s, "order.paid", uuid.v7(), { checkoutId = uuid.v7() }) })
        sched.parallel(work)
        for i = 1, many do assert.equal("dead", ended[i]) end
        for _, e in ipairs(store.endpoints(key)) do assert.equal("disabled", e.state) end
        assert.equal(many, db.one(key, [[select count(*)::int as n from mail_messages where tenant_key = $1
          and template = 'webhook-disabled']], key).n)
        db.query(key, "update outbox set sent_at = now() where tenant_key = $1", key)
    end)

    it("is followed once it is written, also one with an id of its own, and a page goes on where the last ended", function()
        local s = scope()
        local function emit(n, id)
            local statement = outbox.event(s, "custom.followed", "e" .. n, { n = n })
            db.pipeline(s.tenant, { id and outbox.once(statement, id) or statement })
        end
        local function clean() db.query(s.tenant, "update outbox set sent_at = now() where tenant_key = $1", s.tenant) end
        emit(1, capabilities.once_id("old " .. s.tenant))
        db.query(s.tenant, "update outbox set created_at = created_at - interval '1 hour' where tenant_key = $1", s.tenant)
        local _, place = webhooks.follow(s.tenant)
        emit(2, capabilities.once_id("new " .. s.tenant))
        for first = 3, 1302, 260 do
            local statements = {}
            for n = first, first + 259 do statements[#statements + 1] = outbox.event(s, "custom.followed", "e" .. n, { n = n }) end
            db.pipeline(s.tenant, statements)
        end
        local seen, count = {}, 0
        for _ = 1, 3 do
            local rows
            rows, place = webhooks.follow(s.tenant, place)
            for _, r in ipairs(rows) do
                if not seen[r.key] then
                    seen[r.key] = true
                    count = count + 1
                end
            end
        end
        clean()
        assert.same({ 1301, nil, true }, { count, seen.e1, seen.e2 })
    end)

    it("is forgotten after thirty days", function()
        local s = scope()
        endpoint(s, { "*" })
        webhooks.fan_out({ row(s, "order.paid", uuid.v7(), { checkoutId = uuid.v7() }) })
        local id = store.deliveries(s.tenant, {}, nil, 1)[1].id
        webhooks.abandon(s.tenant, id, "test")
        assert.equal(0, webhooks.prune(s.tenant, time.now() + 29 * 86400000))
        assert.equal(1, webhooks.prune(s.tenant, time.now() + 31 * 86400000))
    end)
end)
