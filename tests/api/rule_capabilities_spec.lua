-- What rules of routes may call, on real stores: what they remember, the shop, secrets, other servers.
local config = require("core.config")
local crypto = require("core.crypto")
local rules = require("core.rules")
local sched = require("core.sched")
local time = require("core.time")
local capabilities = require("kasma.capabilities")
local db = require("kasma.db")
local hooks = require("kasma.hooks")
require("kasma.boot").load()
local support = require("api.support")
local secrets = require("modules.rules.secrets")
local settings = require("kasma.settings")

local TENANT = "demo"
local scope = { tenant = TENANT, app = "MASTER", actor_kind = "system" }
local epoch = 1000000000

local function live(needs, body, id)
    epoch = epoch + 1
    local source = ("return { hook = 'route', name = 'r', path = 'r', needs = %s, run = function(input, config)\n%s\nend }"):format(
        needs, body)
    assert(rules.publish(TENANT, epoch, { { id = id or "kept", hook = "route", name = "r", number = 0, source = source } }))
    local set = assert(rules.pin(TENANT))
    for _, rule in ipairs(set:list("route")) do
        if rule.id == (id or "kept") then return set, rule end
    end
end

local function run(needs, body, id)
    local set, rule = live(needs, body, id)
    local answer, told = capabilities.run(scope, set, rule, nil, hooks.input(TENANT, "route", {}), { limits = { wall_us = 20000000 } })
    return answer and answer.body, told
end

local function get(needs, body, id)
    local answer, told = run(needs, "return { status = 200, body = (function() " .. body .. " end)() }", id)
    assert.is_nil(told.message)
    return answer
end

local function forget() db.query(TENANT, "delete from rule_kv where tenant_key = $1 and rule_key like 'kept%'", TENANT) end

describe("what a rule remembers", function()
    before_each(forget)
    after_each(forget)

    it("is there again, with a version that goes up", function()
        assert.same({ false, "not_found" }, get("{'kv'}", "local v, why = kv.get('a') return { v ~= nil, why }"))
        assert.equal(1, get("{'kv'}", "local v = kv.set('a', { list = { 1, 2 }, deep = { x = 'y' } }) return v"))
        assert.same({ { list = { 1, 2 }, deep = { x = "y" } }, 1 }, get("{'kv'}", "local v, n = kv.get('a') return { v, n }"))
        assert.equal(2, get("{'kv'}", "local v = kv.set('a', false) return v"))
        assert.same({ false, 2 }, get("{'kv'}", "local v, n = kv.get('a') return { v, n }"))
        assert.same({ true, false }, get("{'kv'}", "return { kv.delete('a'), (kv.delete('a')) }"))
    end)

    it("is written only at the version that was read", function()
        assert.same({ 1, "version_conflict" }, get("{'kv'}", [[local a = kv.set('a', 1, { if_version = 0 })
            local b, why = kv.set('a', 2, { if_version = 0 }) return { a, why }]]))
        assert.same({ 2, "version_conflict", 1 }, get("{'kv'}", [[local a = kv.set('a', 1, { if_version = 1 })
            local b, why = kv.set('a', 2, { if_version = 1 }) return { a, why, (kv.get('a')) }]]))
        assert.same({ "version_conflict" }, get("{'kv'}", "local b, why = kv.set('b', 2, { if_version = 3 }) return { why }"))
    end)

    it("expires by the shop's clock", function()
        assert.same({ 1, 5 }, get("{'kv'}", "return { kv.set('a', 5, { ttl_s = 60 }), (kv.get('a')) }"))
        db.query(TENANT, "update rule_kv set expires_at = $2::timestamptz where tenant_key = $1 and rule_key = 'kept'", TENANT,
            time.iso(time.now() - 1000))
        assert.same({ "not_found", 0 }, get("{'kv'}", "local _, why = kv.get('a') return { why, #kv.list('a') }"))
        assert.equal(3, get("{'kv'}", "local v = kv.incr('a', 3) return v"))
        assert.same({ 3 }, get("{'kv'}", "return { (kv.get('a')) }"))
    end)

    it("is counted up without losing one", function()
        local set, rule = live("{'kv'}", "for i = 1, 5 do local v = kv.incr('n') end return { status = 200 }")
        local list = {}
        for i = 1, 10 do
            list[i] = function()
                local _, told = capabilities.run(scope, set, rule, nil, hooks.input(TENANT, "route", {}),
                    { limits = { wall_us = 20000000 } })
                assert(told.outcome == "ok", told.message)
            end
        end
        sched.parallel(list)
        assert.equal(50, get("{'kv'}", "local v = kv.get('n') return v"))
        assert.equal(45, get("{'kv'}", "local v = kv.incr('n', -5) return v"))
        assert.same({ "not_a_number" }, get("{'kv'}", "kv.set('t', 'x') local _, why = kv.incr('t') return { why }"))
    end)

    it("is listed by the beginning of its keys", function()
        assert.same({ { key = "a/1", value = 1, version = 1 }, { key = "a/2", value = 2, version = 1 } }, get("{'kv'}",
            "kv.set('a/2', 2) kv.set('a/1', 1) kv.set('b', 3) kv.set('A', 4) return kv.list('a/')"))
        assert.equal(2, get("{'kv'}", "return #kv.list('', 2)"))
        assert.equal(0, get("{'kv'}", "return #kv.list('%')"))
    end)

    it("is the rule's own", function()
        get("{'kv'}", "return { kv.set('a', 1) }", "kept_one")
        assert.same({ "not_found", 0 }, get("{'kv'}", "local _, why = kv.get('a') return { why, #kv.list() }", "kept_two"))
        assert.same({ 1 }, get("{'kv'}", "return { (kv.get('a')) }", "kept_one"))
    end)

    it("has bounds", function()
        local bad = { "kv.get('')", "kv.get(('x'):rep(201))", "kv.get(5)", "kv.get('a\\0b')", "kv.set('a')", "kv.set('a', 1, { ttl = 5 })",
            "kv.set('a', 1, { ttl_s = 0 })", "kv.set('a', 1, { ttl_s = 1.5 })", "kv.set('a', 1, { if_version = -1 })", "kv.incr('a', 0.5)",
            "kv.incr('a', 2^60)", "kv.list(5)", "kv.list('', 101)", "kv.set('a', 1, 2)" }
        for _, call in ipairs(bad) do
            local _, told = run("{'kv'}", "local v = " .. call .. " return { status = 200 }")
            assert.equal("error", told.outcome, call)
            assert.truthy(told.message:find("^kv%."), call)
        end
        assert.same({ "too_large" }, get("{'kv'}", "local s = ('x'):rep(65000) local _, why = kv.set('a', { s, s }) return { why }"))
    end)

    it("fills up, and then takes nothing more", function()
        local others = db.one(TENANT, "select count(*)::int as n from rule_kv where tenant_key = $1", TENANT).n
        db.query(TENANT, [[insert into rule_kv (tenant_key, app_key, rule_key, k, v, bytes, updated_at)
            select $1, 'MASTER', 'kept_much', 'k' || i, '1', 1, $2::timestamptz from generate_series(1, $3::int) i]], TENANT,
            time.iso(time.now()), 9999 - others)
        assert.same({ 1, "quota", 2, "quota" }, get("{'kv'}", [[local a = kv.set('last', 1) local _, b = kv.set('over', 1)
            local c = kv.set('last', 2) local _, d = kv.incr('over') return { a, b, c, d }]]))
        db.query(TENANT, "update rule_kv set bytes = 65536 where tenant_key = $1 and rule_key = 'kept_much' and k like 'k1__'", TENANT)
        db.query(TENANT, "delete from rule_kv where tenant_key = $1 and rule_key = 'kept_much' and bytes = 1", TENANT)
        db.query(TENANT, [[insert into rule_kv (tenant_key, app_key, rule_key, k, v, bytes, updated_at)
            select $1, 'MASTER', 'kept_much', 'm' || i, '1', 65536, $2::timestamptz from generate_series(1, 156) i]], TENANT,
            time.iso(time.now()))
        assert.same({ "quota" }, get("{'kv'}", "local _, why = kv.set('more', ('x'):rep(60000)) return { why }"))
    end)

    it("is not filled beyond its last place by writes of the same moment", function()
        local others = db.one(TENANT, "select count(*)::int as n from rule_kv where tenant_key = $1", TENANT).n
        db.query(TENANT, [[insert into rule_kv (tenant_key, app_key, rule_key, k, v, bytes, updated_at)
            select $1, 'MASTER', 'kept_much', 'k' || i, '1', 1, $2::timestamptz from generate_series(1, $3::int) i]], TENANT,
            time.iso(time.now()), 9997 - others)
        local list, set, rule = {}, live("{'kv'}", "local v = kv.set(input.subject.query.k, 1) return { status = v and 200 or 409 }")
        for i = 1, 12 do
            list[i] = function()
                local subject = { method = "GET", path = "r", query = { k = "new" .. i }, headers = {}, user = { guest = true } }
                return (capabilities.run(scope, set, rule, nil, hooks.input(TENANT, "route", subject), { limits = { wall_us = 20000000 } }))
            end
        end
        local put = 0
        for _, answer in ipairs(sched.parallel(list)) do put = put + (answer.status == 200 and 1 or 0) end
        assert.equal(3, put)
        assert.equal(10000, db.one(TENANT, "select count(*)::int as n from rule_kv where tenant_key = $1", TENANT).n)
    end)
end)

describe("the shop", function()
    local sku, product_id
    setup(function()
        local row = db.one(TENANT, [[select v.sku, v.product_id from product_variants v join products p on p.tenant_key = v.tenant_key
          and p.id = v.product_id where v.tenant_key = $1 and v.deleted_at is null and p.is_active and p.deleted_at is null
          order by v.id limit 1]], TENANT)
        sku, product_id = row.sku, row.product_id
    end)

    it("tells a product by id and by SKU, with prices in minor units", function()
        local by_sku = get("{'catalog'}", ("local p = catalog.get(%q) return p"):format(sku))
        local by_id = get("{'catalog'}", ("local p = catalog.get(%q) return p"):format(product_id))
        assert.same(by_sku, by_id)
        assert.equal(product_id, by_id.id)
        assert.equal(math.floor(by_id.price), by_id.price)
        local found
        for _, v in ipairs(by_id.variants) do found = found or v.sku == sku end
        assert.is_true(found)
        assert.same({ "not_found" }, get("{'catalog'}", "local _, why = catalog.get('no-such-sku') return { why }"))
    end)

    it("finds products", function()
        local list = get("{'catalog'}", ("return catalog.find{ ids = { %q } }"):format(product_id))
        assert.equal(1, #list)
        assert.equal(product_id, list[1].id)
        assert.equal(2, get("{'catalog'}", "return #catalog.find{ limit = 2 }"))
        for _, call in ipairs{ "catalog.find{ limit = 101 }", "catalog.find{ ids = { 'x' } }", "catalog.find{ categroy = 'x' }",
            "catalog.find('x')", "catalog.get()" } do
            local _, told = run("{'catalog'}", "local v = " .. call .. " return { status = 200 }")
            assert.equal("error", told.outcome, call)
        end
    end)

    it("tells the stock of a SKU", function()
        local level = get("{'stock'}", ("local s = stock.get(%q) return s"):format(sku))
        local truth = db.one(TENANT, [[select coalesce(sum(i.available_quantity), 0)::int as n from warehouse_inventory i
          join product_variants v on v.tenant_key = i.tenant_key and v.id = i.variant_id where i.tenant_key = $1 and v.sku = $2]],
            TENANT, sku)
        assert.equal(truth.n, level.available)
        assert.equal(1, get("{'stock'}", ("return #stock.find{ %q, 'no-such-sku', %q }"):format(sku, sku)))
        assert.same({ "not_found" }, get("{'stock'}", "local _, why = stock.get('no-such-sku') return { why }"))
    end)

    it("tells and tags a customer, and nobody else's", function()
        local id, other = "0190a000-0000-7000-8000-00000000ca91", "0190a000-0000-7000-8000-00000000ca92"
        local insert = [[insert into customers (tenant_key, app_key, id, guest_hash, guest_key_version, created_at, updated_at)
          values ($1, 'MASTER', $2, $3, 1, $4::timestamptz, $4::timestamptz) on conflict do nothing]]
        local now = time.iso(time.now())
        db.query(TENANT, insert, TENANT, id, ("a"):rep(64), now)
        db.query("MASTER", insert, "MASTER", other, ("b"):rep(64), now)
        local c = get("{'customers'}", ("local c = customers.get(%q) return c"):format(id))
        assert.same({ id = id, guest = true, groups = {}, tags = {}, orders_count = 0, lifetime_spent = 0 }, c)
        assert.same({ true, true }, get("{'customers'}",
            ("return { customers.tag(%q, 'vip'), (customers.tag(%q, 'vip')) }"):format(id, id)))
        assert.same({ "vip" }, get("{'customers'}", ("local c = customers.get(%q) return c.tags"):format(id)))
        assert.same({ "not_found", "not_found" }, get("{'customers'}", ("local _, a = customers.get(%q) "
            .. "local _, b = customers.tag(%q, 'x') "
            .. "return { a, b }"):format(other, other)))
        db.query(TENANT, "delete from customers where tenant_key = $1 and id = $2", TENANT, id)
        db.query("MASTER", "delete from customers where tenant_key = $1 and id = $2", "MASTER", other)
    end)
end)

describe("secrets and other servers", function()
    local echo, port_file, port, get_config, get_setting = nil, os.tmpname(), nil, config.get, settings.get

    -- The tenant's setting and the operator's list, for these tests alone. Not in the row that the process holds: that is read anew
    -- each second.
    local function allow(list)
        settings.get = function(tenant, key)
            if tenant == TENANT and key == "rules.http_hosts" then return list end
            return get_setting(tenant, key)
        end
    end

    setup(function()
        echo = assert(io.popen("exec python3 tests/spec/echo_server.py " .. port_file, "w"))
        port = support.eventually(function()
            local f = io.open(port_file)
            local number = f and f:read("*n")
            if f then f:close() end
            return number
        end)
        config.get = function(name) -- luacheck: ignore
            if name == "WEBHOOK_PRIVATE_HOSTS" then return "127.0.0.1:" .. port end
            return get_config(name)
        end
        secrets.set(scope, "probe_token", "s3cr3t-value")
    end)
    teardown(function()
        config.get = get_config -- luacheck: ignore
        echo:close()
        os.remove(port_file)
        settings.get = get_setting
        live("{}", "return { status = 200 }")
        secrets.remove(scope, "probe_token")
    end)
    before_each(function() allow{ "127.0.0.1", "example.org" } end)

    local NEEDS = "{ http = { '127.0.0.1' }, secrets = { 'probe_token' } }"
    local function fetch(fields, needs)
        return get(needs or NEEDS, ("local a, why = http.fetch{ url = 'http://127.0.0.1:%d/x', %s } return { a = a, why = why }"):format(
            port, fields or ""))
    end

    it("a rule sends a request and gets the answer", function()
        local got = fetch("method = 'POST', json = { a = { 1, 2 } }, headers = { ['X-Shop'] = 'demo' }")
        assert.is_nil(got.why)
        assert.equal(200, got.a.status)
        assert.equal("POST", got.a.json.method)
        assert.equal('{"a":[1,2]}', got.a.json.body)
        assert.equal("demo", got.a.json.headers["x-shop"])
        assert.equal("application/json", got.a.json.headers["content-type"])
        assert.is_nil(got.a.headers["set-cookie"])
    end)

    it("a secret goes out and is seen by nobody", function()
        local body, told = run(NEEDS, ([[local s = secret('probe_token') log(s, tostring(s))
            local a = http.fetch{ url = 'http://127.0.0.1:%d/x', headers = { Authorization = { 'Bearer ', s }, ['X-Key'] = s } }
            return { status = 200, body = a.json.headers }]]):format(port))
        assert.equal("Bearer s3cr3t-value", body.authorization)
        assert.equal("s3cr3t-value", body["x-key"])
        assert.equal("*** ***\n", told.log)
        assert.is_nil(told.log:find("s3cr3t", 1, true))
        for _, use in ipairs{ "return { status = 200, body = { s } }", "local v = kv.set('a', s) return { status = 200 }",
            "local x = 'Bearer ' .. s return { status = 200 }" } do
            local answer, failed = run("{ 'kv', secrets = { 'probe_token' } }", "local s = secret('probe_token') " .. use)
            assert.is_nil(answer)
            assert.is_nil(failed.message:find("s3cr3t", 1, true))
        end
        local _, denied = run("{ secrets = { 'other' } }", "local s = secret('probe_token') return { status = 200 }")
        assert.truthy(denied.message:find("capability_denied: secret: 'probe_token' is not in needs.secrets", 1, true))
        _, denied = run("{ http = { '127.0.0.1' }, secrets = {} }", ("local a = http.fetch{ url = 'http://127.0.0.1:%d/', "
            .. "headers = { A = { ['$secret'] = 'probe_token' } } } return { status = 200 }"):format(port))
        assert.truthy(denied.message:find("capability_denied", 1, true))
    end)

    it("a value lies sealed, beside its tenant and name", function()
        local row = db.one(TENANT, "select value_enc from tenant_secrets where tenant_key = $1 and name = 'probe_token'", TENANT)
        assert.is_nil(row.value_enc:find("s3cr3t", 1, true))
        local vault = require("kasma.secrets")
        assert.equal("s3cr3t-value", vault.open("tenant_secret", row.value_enc, "demo:probe_token"))
        assert.is_nil(vault.open("tenant_secret", row.value_enc, "MASTER:probe_token"))
        assert.is_nil(vault.open("tenant_secret", row.value_enc, "demo:other"))
        assert.equal(64, #crypto.sha256(row.value_enc))
    end)

    it("a secret that a live rule needs stays", function()
        live(NEEDS, "return { status = 200 }")
        local ok, err = pcall(secrets.remove, scope, "probe_token")
        assert.is_false(ok)
        assert.equal("secret_in_use", err.code)
        assert.same({ "kept" }, { unpack(err.details.usedBy) })
        assert.same({ "kept" }, { unpack(secrets.list(scope)[1].usedBy) })
    end)

    it("a host has to be named twice: by the rule, and by the shop", function()
        local function denied(needs)
            local _, told = run(needs, ("local a = http.fetch{ url = 'http://127.0.0.1:%d/' } return { status = 200 }"):format(port))
            return told.message
        end
        assert.equal("capability_denied: http.fetch: host '127.0.0.1' is not in needs.http", denied("{ http = { 'example.org' } }"))
        allow{ "example.org" }
        assert.equal("capability_denied: http.fetch: host '127.0.0.1' is not in the setting rules.http_hosts",
            denied("{ http = { '127.0.0.1' } }"))
    end)

    it("nothing is sent to an address that is not public, nor over plain http", function()
        local _, told = run("{ http = { 'example.org' } }", "local a = http.fetch{ url = 'http://example.org/' } return { status = 200 }")
        assert.equal("http.fetch: url must begin with https://", told.message)
        config.get = get_config -- luacheck: ignore
        allow{ "127.0.0.1", "10.1.2.3", "[::1]" }
        for _, host in ipairs{ "127.0.0.1", "10.1.2.3" } do
            local got = get(("{ http = { '%s' } }"):format(host),
                ("local a, why = http.fetch{ url = 'https://%s/' } return { why }"):format(host))
            assert.same({ "address_not_public" }, got, host)
        end
        config.get = function(name) -- luacheck: ignore
            if name == "WEBHOOK_PRIVATE_HOSTS" then return "127.0.0.1:" .. port end
            return get_config(name)
        end
    end)

    it("redirects are not followed, and what is too large or never there is told", function()
        local function why_of(path)
            return get(NEEDS, ("local a, why = http.fetch{ url = 'http://127.0.0.1:%d%s' } "
                .. "return { a and a.status, why, a and a.headers.location }"):format(port, path))
        end
        assert.same({ 302, nil, "http://elsewhere.invalid/" }, why_of("/redirect"))
        assert.same({ 404 }, why_of("/status/404"))
        assert.same({ nil, "answer_too_large" }, why_of("/bytes/1100000"))
        local big = get(NEEDS, ("local a = http.fetch{ url = 'http://127.0.0.1:%d/bytes/1000000' } return { #a.body }"):format(port))
        assert.same({ 1000000 }, big)
    end)

    it("a request that cannot be one is refused", function()
        for _, fields in ipairs{ "method = 'TRACE'", "headers = { Host = 'x' }", "headers = { ['A b'] = 'x' }",
            "headers = { A = 'x\\r\\ny' }", "timeout_ms = 1501", "timeout_ms = 'x'", "body = 'x'", "body = 5, method = 'POST'",
            "json = 1, body = 'x', method = 'POST'", "follow = true", "headers = 5" } do
            local _, told = run(NEEDS, ("local a = http.fetch{ url = 'http://127.0.0.1:%d/x', %s } return { status = 200 }")
                :format(port, fields))
            assert.equal("error", told.outcome, fields)
            assert.truthy(told.message:find("^http.fetch: "), told.message)
        end
    end)

    it("a host that fails five times is left alone for a while", function()
        local got = get(NEEDS, ("local out = {} for i = 1, 5 do local a, why = http.fetch{ url = 'http://127.0.0.1:%d/status/503' } "
            .. "out[i] = a and a.status or why end return out"):format(port))
        assert.same({ 503, 503, 503, 503, 503 }, got)
        assert.same({ why = "breaker_open" }, fetch())
    end)
end)
