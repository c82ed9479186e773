-- Attacks on the borders between tenants, apps and callers: whose key, whose host, whose answer.
local crypto = require("core.crypto")
local json = require("core.json")
local redis = require("core.redis")
local db = require("kasma.db")
local shop_of = require("api.shop")
local sockets = require("api.sockets")
local support = require("api.support")

local must = shop_of.must
local function told(answer) return { answer.status, answer.json and answer.json.message } end

local function key_of(tenant, fields)
    local body = { name = "key", key_type = "secret", scopes = { "users.read" } }
    for name, value in pairs(fields or {}) do body[name] = value end
    return must(tenant.owner:post("/tenants/" .. tenant.key .. "/keys/create", body)).key
end

local function bearer(secret, headers)
    local sent = { Authorization = "Bearer " .. secret }
    for name, value in pairs(headers or {}) do sent[name] = value end
    return support.client(sent)
end

-- The answer to bytes that no proper client sends: status and body.
local function raw(lines, body)
    local socket = sockets.connect(support.url)
    socket:write(table.concat(lines, "\r\n") .. "\r\nConnection: close\r\n\r\n" .. (body or ""))
    support.eventually(function()
        socket:poll()
        return socket.eof
    end, 20)
    local text = socket.input
    socket:close()
    return tonumber(text:match("^HTTP/1%.1 (%d+)")), json.decode(text:match("\r\n\r\n(.*)$") or "")
end

describe("rights of one tenant", function()
    local mine, theirs = support.tenant(), support.tenant()
    local both -- an owner in mine, a customer in theirs

    setup(function()
        both = support.user(mine, "tenant_owner")
        must(theirs.owner:post("/tenants/" .. theirs.key .. "/members/add", { email = both.user.email }))
        must(both:post("/auth/context", { tenant_key = theirs.key }, {}), 200)
        both.headers = {}
    end)

    it("are not carried into another by a switch, a header, an app or a path", function()
        assert.same({ theirs.key, {} }, { both:get("/auth/me").json.user.tenant_key,
            { unpack(both:get("/auth/me").json.user.permissions) } })
        for _, headers in ipairs{ {}, theirs.headers, { ["X-Tenant-Kasma-Id"] = theirs.key } } do
            assert.same({ 403, "Forbidden resource" }, told(both:get("/users", headers)))
            assert.equal(403, both:post("/roles", { code = "X", role_key = "x", display_name = "x" }, headers).status)
            assert.equal(403, both:get("/tenants/" .. theirs.key .. "/keys", headers).status)
        end
        -- Another tenant's app beside a tenant's name is no such app.
        for _, pair in ipairs{ { mine.key, theirs.app }, { theirs.key, mine.app }, { theirs.key, "MASTER2" } } do
            assert.same({ 403, "Tenant is not available" }, told(both:get("/users", { ["X-Tenant-Kasma-Id"] = pair[1],
                ["X-App-Kasma-Id"] = pair[2] })))
        end
        assert.equal(403, both:post("/auth/context", { tenant_key = theirs.key, app_key = mine.app }).status)
        -- Where they are held they hold.
        assert.equal(200, both:get("/users", mine.headers).status)
        assert.equal(200, both:get("/tenants/" .. mine.key .. "/keys", theirs.headers).status)
        assert.equal(403, both:get("/tenants/" .. theirs.key .. "/keys", mine.headers).status)
    end)

    it("are not made of another's roles", function()
        local stranger = support.shopper(theirs)
        local role = theirs.role_ids and theirs.role_ids.tenant_owner or must(theirs.owner:get("/roles"), 200).roles[1].id
        local member = support.shopper(mine)
        assert.equal(404, mine.owner:post("/users/" .. member.user.id .. "/roles/assign", { role_id = role }).status)
        assert.equal(404, mine.owner:post("/users/" .. stranger.user.id .. "/roles/assign", { role_id = role }).status)
        local platform = db.one(nil, "select id from platform_roles limit 1")
        if platform then
            assert.equal(404, mine.owner:post("/users/" .. member.user.id .. "/roles/assign", { role_id = platform.id }).status)
        end
        assert.equal(403, mine.owner:post("/permissions", { permission_key = "users.everything" }).status)
    end)
end)

describe("a tenant that is switched off", function()
    it("is closed to its owner by every way, and open to the platform that can switch it on", function()
        local platform, gone, home = support.platform(), support.tenant(), support.tenant()
        local owner = support.user(gone, "tenant_owner")
        must(home.owner:post("/tenants/" .. home.key .. "/members/add", { email = owner.user.email }))
        must(owner:post("/auth/context", { tenant_key = home.key }, {}), 200)
        owner.headers = {}
        local path = "/tenants/" .. gone.key
        must(owner:get(path), 200)
        must(platform:post(path .. "/update", { is_active = false }), 200)
        support.eventually(function() return owner:get(path).status == 403 end)
        local closed = { 403, "Tenant is not available" }
        for _, way in ipairs{ "", "/keys", "/members" } do assert.same(closed, told(owner:get(path .. way)), way) end
        assert.same(closed, told(owner:get("/registry?tenant_key=" .. gone.key)))
        assert.same(closed, told(owner:post(path .. "/update", { name = "Still mine" })))
        assert.same(closed, told(owner:post(path .. "/keys/create", { name = "k", key_type = "secret", scopes = { "users.read" } })))
        assert.same(closed, told(owner:post(path .. "/members/add", { email = support.unique("m") .. "@example.test" })))
        assert.equal("Test " .. gone.key, must(platform:get(path), 200).tenant.name)
        must(platform:post(path .. "/update", { is_active = true }), 200)
        support.eventually(function() return owner:get(path).status == 200 end)
    end)
end)

describe("a session on a tenant that is switched off", function()
    it("opens nothing and can be ended, with and without the tenant's headers", function()
        local platform, gone = support.platform(), support.tenant()
        local people = {}
        for i = 1, 5 do people[i] = support.shopper(gone) end
        must(platform:post("/tenants/" .. gone.key .. "/update", { is_active = false }), 200)
        support.eventually(function() return people[1]:get("/auth/me").status == 403 end)
        for i, person in ipairs(people) do
            local before = person:copy()
            if i % 2 == 0 then person.headers = {} end
            if i > 4 then person.cookies.access_token = nil end -- by the refresh token alone
            assert.equal(403, before:get("/users/me").status)
            assert.equal(200, person:post(i > 2 and i < 5 and "/auth/logout-all" or "/auth/logout").status, "person " .. i)
            assert.equal(0, db.one(nil, [[select count(*)::int as n from auth_sessions where user_id = $1 and revoked_at is null]],
                person.user.id).n)
            assert.equal(401, before:get("/auth/me").status)
        end
        assert.equal(401, support.guest(gone):post("/auth/logout").status)
    end)
end)

describe("a publishable key", function()
    local mine, theirs = support.tenant(), support.tenant()
    local function shop_at(key, headers)
        local sent = { ["X-Kasma-Key"] = key }
        for name, value in pairs(headers or {}) do sent[name] = value end
        return support.client(sent):get("/sales/cart/me")
    end

    it("speaks for its own tenant alone", function()
        local key = key_of(mine, { key_type = "publishable", app_key = mine.app }).owned_key
        assert.equal(mine.key, must(shop_at(key, { ["X-Tenant-Kasma-Id"] = mine.key }), 200).tenant_key)
        assert.same({ 403, "You do not belong to this tenant" }, told(shop_at(key, { ["X-Tenant-Kasma-Id"] = theirs.key })))
        assert.equal(403, shop_at(key, { ["X-App-Kasma-Id"] = theirs.app }).status)
        -- Whoever is signed in elsewhere is a guest there.
        assert.equal(mine.key, must(theirs.owner:get("/sales/cart/me", { ["X-Kasma-Key"] = key, ["X-Tenant-Kasma-Id"] = mine.key,
            ["X-App-Kasma-Id"] = mine.app }), 200).tenant_key)
        assert.equal(403, theirs.owner:get("/users", { ["X-Kasma-Key"] = key, ["X-Tenant-Kasma-Id"] = mine.key,
            ["X-App-Kasma-Id"] = mine.app }).status)
    end)

    it("that does not hold shows no other shop in its place", function()
        local refused = { 401, "Invalid or expired access token" }
        assert.same(refused, told(shop_at("kpk_live_" .. ("a"):rep(32))))
        local away = key_of(mine, { key_type = "publishable", app_key = mine.app, allowed_ips = { "10.0.0.0/8" } })
        assert.same(refused, told(shop_at(away.owned_key)))
        assert.equal(200, shop_at(away.owned_key, { ["X-Forwarded-For"] = "10.1.2.3" }).status)
        local ended = key_of(mine, { key_type = "publishable", app_key = mine.app })
        assert.equal(200, shop_at(ended.owned_key).status)
        must(mine.owner:post("/tenants/" .. mine.key .. "/keys/" .. ended.id .. "/revoke"), 200)
        support.eventually(function() return shop_at(ended.owned_key).status == 401 end)
    end)
end)

describe("an access key", function()
    local tenant = support.tenant()

    it("is bound to networks in one form, however they are written, and not to what is none", function()
        local key = key_of(tenant, { allowed_ips = { "::ffff:198.51.100.7", "::FFFF:203.0.113.0/120", "2001:DB8:0::1/128", "192.0.2.1" } })
        assert.same({ "198.51.100.7/32", "203.0.113.0/24", "2001:db8::1/128", "192.0.2.1/32" }, { unpack(key.allowed_ips) })
        local function from(address) return bearer(key.secret, { ["X-Forwarded-For"] = address }):get("/users").status end
        assert.same({ 200, 200, 200, 200, 200, 401, 401 }, { from("198.51.100.7"), from("::ffff:198.51.100.7"), from("203.0.113.9"),
            from("2001:db8::1"), from("192.0.2.1"), from("198.51.100.8"), from("2001:db8::2") })
        local path = "/tenants/" .. tenant.key .. "/keys/create"
        local none = "each value in allowed_ips must be an IP address or a network: '%s' is none"
        local beyond = "each value in allowed_ips must be an IP address or a network: '%s' has bits set beyond its prefix"
        for entry, text in pairs{ ["10.0.0.300"] = none, ["10.0.0"] = none, ["10.0.0.0/33"] = none, ["10.0.0.0/"] = none,
            ["010.0.0.1"] = none, ["::/129"] = none, ["1:2:3"] = none, ["1:::2"] = none, ["1::2::3"] = none, ["1:2:3:4:5:6:7:8::"] = none,
            [":1::"] = none, ["fe80::1%eth0"] = none, ["shop.example.test"] = none, [""] = none, ["::ffff:1.2.3.4/129"] = none,
            ["1.2.3.4::"] = none, ["10.0.0.5/8"] = beyond, ["2001:db8::1/32"] = beyond, ["::ffff:10.0.0.5/104"] = beyond,
            ["::ffff:10.0.0.0/64"] = beyond } do
            local answer = tenant.owner:post(path, { name = "n", key_type = "secret", scopes = {}, allowed_ips = { "10.0.0.1", entry } })
            assert.same({ 400, { text:format(entry) } }, { answer.status, answer.json.message }, entry)
        end
        -- What was stored before as it was written.
        local old = key_of(tenant, {})
        db.query(nil, "update access_keys set allowed_ips = '{::ffff:198.51.100.7/128}' where tenant_key = $1 and id = $2", tenant.key,
            old.id)
        assert.same({ 200, 401 }, { bearer(old.secret, { ["X-Forwarded-For"] = "198.51.100.7" }):get("/users").status,
            bearer(old.secret, { ["X-Forwarded-For"] = "198.51.100.8" }):get("/users").status })
    end)
end)

describe("a bearer of two words", function()
    it("is refused, whatever cookie stands beside it; an empty one is none", function()
        local mine = support.tenant()
        for _, words in ipairs{ "Bearer a b", "bearer " .. mine.owner.cookies.access_token .. " x" } do
            assert.same({ 401, "Invalid or expired access token" }, told(mine.owner:get("/auth/me", { Authorization = words })), words)
        end
        assert.equal(200, mine.owner:get("/auth/me", { Authorization = "Bearer " }).status)
    end)
end)

describe("a tenant's name that is smuggled", function()
    local mine, theirs = support.tenant(), support.tenant()

    it("in a second header is refused, and in a look-alike of the header not read", function()
        local function ask(...)
            return raw{ "GET /users HTTP/1.1", "Host: 127.0.0.1", "Cookie: access_token=" .. mine.owner.cookies.access_token, ... }
        end
        assert.equal(200, (ask("X-Tenant-Kasma-Id: " .. mine.key)))
        for what, more in pairs{
            twice = { "X-Tenant-Kasma-Id: " .. mine.key, "X-Tenant-Kasma-Id: " .. theirs.key },
            ["twice the same"] = { "X-Tenant-Kasma-Id: " .. mine.key, "x-tenant-kasma-id: " .. mine.key },
            ["two apps"] = { "X-App-Kasma-Id: " .. mine.app, "X-App-Kasma-Id: " .. theirs.app },
            ["two credentials"] = { "Authorization: Bearer x", "Authorization: Bearer y" },
            ["a folded line"] = { "X-Tenant-Kasma-Id: " .. mine.key, " " .. theirs.key },
            ["a space before the colon"] = { "X-Tenant-Kasma-Id : " .. theirs.key },
        } do assert.equal(400, (ask(unpack(more))), what) end
        for what, value in pairs{ list = mine.key .. "," .. theirs.key, quoted = '"' .. theirs.key .. '"',
            ["another case"] = theirs.key:upper(), escaped = "%74", sql = "x' or '1'='1", path = "../" .. theirs.key,
            long = ("a"):rep(300) } do
            local status = ask("X-Tenant-Kasma-Id: " .. value)
            assert.equal(403, status, what)
        end
        -- Not our header: the session's own tenant answers.
        for _, name in ipairs{ "X_Tenant_Kasma_Id", "X-Tenant-Kasma-Id-", "Tenant-Kasma-Id", "X-Forwarded-Tenant" } do
            local status, body = raw{ "GET /auth/me HTTP/1.1", "Host: 127.0.0.1", "Cookie: access_token="
                .. mine.owner.cookies.access_token, name .. ": " .. theirs.key }
            assert.same({ 200, mine.key }, { status, body and body.user.tenant_key }, name)
        end
    end)

    it("in two bodies, a body of a GET or a path with dots leads nowhere else", function()
        assert.equal(404, (raw{ "GET /tenants/" .. mine.key .. "/../" .. theirs.key .. "/keys HTTP/1.1", "Host: 127.0.0.1",
            "Cookie: access_token=" .. mine.owner.cookies.access_token }))
        assert.equal(400, (raw({ "POST /users/me/update HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json",
            "Cookie: access_token=" .. mine.owner.cookies.access_token, "Content-Length: 2", "Transfer-Encoding: chunked" }, "{}")))
        assert.equal(403, mine.owner:get("/tenants/" .. theirs.key .. "/keys").status)
        assert.equal(403, mine.owner:get("/registry?tenant_key=" .. theirs.key).status)
    end)
end)

describe("a host name", function()
    local host = support.unique("shop") .. ".test"
    local shop = support.tenant{ hostnames = { host } }

    local function tenant_at(text, headers)
        local lines = { "GET /api/ecommerce/products/list HTTP/1.1" }
        for _, line in ipairs(text and { "Host: " .. text } or {}) do lines[#lines + 1] = line end
        for _, line in ipairs(headers or {}) do lines[#lines + 1] = line end
        return raw(lines)
    end

    it("is one name in any case, with a port and with the root's dot", function()
        shop_of.product(shop, { name = "Lamp of the host", price = 1 })
        for _, text in ipairs{ host, host:upper(), host .. ":80", host .. ":65535", host .. ".", host:upper() .. ".:443" } do
            local status, body = tenant_at(text)
            assert.same({ 200, "Lamp of the host" }, { status, body and body[1] and body[1].name }, text)
        end
        for _, text in ipairs{ "x" .. host, host .. "x", host .. ".evil.example", "evil.example:" .. host, "[" .. host .. "]x",
            host .. "..", "%", host:gsub("%.", "%%2e") } do
            local status, body = tenant_at(text)
            assert.is_true(status == 400 or (status == 200 and not (body[1] and body[1].name == "Lamp of the host")), text)
        end
        assert.equal(400, (raw{ "GET /healthz HTTP/1.1" }))
        assert.equal(400, (raw{ "GET /healthz HTTP/1.1", "Host: a", "Host: b" }))
        -- A name that a proxy was told is nobody's word.
        local _, body = tenant_at("127.0.0.1", { "X-Forwarded-Host: " .. host })
        assert.is_false(body[1] ~= nil and body[1].name == "Lamp of the host")
    end)

    it("by which the server itself is called is not for a shop to take", function()
        local server = support.server{ PUBLIC_URL = "https://api.kasma-host.example/base" }
        local finally, mine = support.unique("mine") .. ".test", support.tenant()
        local owner, staff = mine.owner:copy(), support.platform()
        owner.url, staff.url = server.url, server.url
        local function set(who, names) return who:post("/apps/" .. mine.app .. "/update", { hostnames = names }, mine.headers) end
        local ok, why = pcall(function()
            for _, name in ipairs{ "api.kasma-host.example", "API.Kasma-Host.example.", "kasma", "localhost.", "10.1.2.3", "0" } do
                local set_there = set(owner, { name, finally })
                assert.same({ 403, "hostname_reserved" }, { set_there.status, set_there.json.code }, name)
                local made = owner:post("/apps", { app_key = support.unique("app"), name = "x", hostnames = { name } })
                assert.same({ 403, "hostname_reserved" }, { made.status, made.json.code }, name)
            end
            must(set(owner, { finally, "eu.api.kasma-host.example" }), 200)
            -- What the platform gave stays when its shop changes the others.
            must(set(staff, { "api.kasma-host.example" }), 200)
            must(set(owner, { "api.kasma-host.example", finally }), 200)
            must(set(owner, {}), 200)
            assert.equal(403, set(owner, { "api.kasma-host.example" }).status)
        end)
        server.stop()
        assert(ok, why)
    end)

    it("of an app that is switched off opens no shop, its own or another", function()
        local other = support.unique("off") .. ".test"
        local off = support.tenant{ hostnames = { other } }
        must(off.owner:post("/apps/" .. off.app .. "/update", { is_active = false }), 200)
        support.eventually(function() return (tenant_at(other)) == 403 end)
        assert.same({ 403, "Tenant is not available" }, told(off.owner:get("/users")))
    end)
end)

describe("of a tenant that is no more", function()
    it("no token, key or host opens anything", function()
        local host = support.unique("gone") .. ".test"
        local tenant, platform = support.tenant{ hostnames = { host } }, support.platform()
        local shopper = support.shopper(tenant)
        local key = key_of(tenant)
        local entry = json.decode(redis.call("GET", "auth:at:" .. crypto.sha256(shopper.cookies.access_token)))
        local watcher = must(platform:post("/tenants/MASTER/keys/create", { name = "watch", key_type = "secret",
            scopes = { "auth.introspect" } }, { ["X-Tenant-Kasma-Id"] = "MASTER" })).key
        local function introspected(token) return bearer(watcher.secret):post("/auth/introspect", { token = token }).json.active end
        for _, token in ipairs{ shopper.cookies.access_token, entry.jwt, key.secret } do assert.is_true(introspected(token)) end

        must(platform:post("/tenants/" .. tenant.key .. "/delete"), 200)
        support.eventually(function() return shopper:get("/auth/me").status == 403 end)
        local closed = { 403, "Tenant is not available" }
        for _, client in ipairs{ shopper, tenant.owner, bearer(shopper.cookies.access_token), bearer(entry.jwt),
            bearer(key.secret) } do
            for _, path in ipairs{ "/auth/me", "/users/me", "/users", "/sales/orders/me", "/api/ecommerce/products/list" } do
                local answer = client:get(path)
                assert.same(closed, told(answer), path)
            end
        end
        assert.same(closed, told(shopper:post("/auth/context", { tenant_key = tenant.key })))
        for _, token in ipairs{ shopper.cookies.access_token, entry.jwt, key.secret } do assert.is_false(introspected(token)) end
        assert.equal(403, (raw{ "GET /api/ecommerce/products/list HTTP/1.1", "Host: " .. host }))
        shopper:post("/auth/refresh")
        assert.same(closed, told(shopper:get("/auth/me")))
    end)
end)

describe("a key", function()
    it("whose scope names nothing any more opens nothing", function()
        local tenant = support.tenant()
        must(tenant.owner:post("/permissions", { permission_key = "custom.gone", description = "goes" }))
        local key = key_of(tenant, { scopes = { "custom.gone" } })
        db.query(nil, "update access_keys set scopes = $2::text[] where id = $1", key.id, "{gone.read,users,users.,*.read,.*}")
        support.eventually(function() return bearer(key.secret):get("/users").status == 403 end)
        for _, path in ipairs{ "/users", "/roles", "/tenants/" .. tenant.key .. "/keys", "/audit/logs" } do
            assert.same({ 403, "Forbidden resource" }, told(bearer(key.secret):get(path)), path)
        end
    end)
end)

describe("a member", function()
    it("whom six add at once is added once", function()
        local tenant, platform = support.tenant(), support.platform()
        local path = "/tenants/" .. tenant.key .. "/members/"
        local person = support.user(support.tenant(), "customer")
        local function add(client, body) return client:post(path .. "add", body) end
        local body = { user_id = person.user.id }
        for _, client in ipairs{ platform, tenant.owner } do
            local calls = {}
            for i = 1, 6 do calls[i] = function() return add(client, body) end end
            assert.same({ [201] = 1, [409] = 5 }, shop_of.statuses(support.parallel(calls)))
            assert.same({ 409, "User is a member already" }, told(add(client, body)))
            must(tenant.owner:post(path .. "remove", body), 200)
        end
        assert.equal(2, db.one(tenant.key, [[select count(*)::int as n from audit_index where tenant_key = $1 and action = 'members.add'
          and entity_id = $2]], tenant.key, person.user.id).n)
    end)
end)

describe("an idempotency key", function()
    local one, other = support.tenant(), support.tenant()
    local function make(client, name, headers)
        local sent = { ["X-Idempotency-Key"] = "the-same" }
        for header, value in pairs(headers or {}) do sent[header] = value end
        return client:post("/roles", { code = "C", role_key = name, display_name = name }, sent)
    end

    it("is its sender's alone: no other user, tenant, app, route or way in gets the answer", function()
        local first = must(make(one.owner, "first")).role
        local again = make(one.owner, "first")
        assert.same({ 201, first.id, "true" }, { again.status, again.json.role.id, again.headers["idempotent-replayed"] })
        local colleague = support.user(one, "tenant_owner")
        assert.equal(409, make(colleague, "first").status) -- the role is there: it was asked, not replayed
        local theirs = must(make(other.owner, "first"))
        assert.is_true(theirs.role.id ~= first.id)
        local key = key_of(one, { scopes = { "*" } })
        assert.equal(409, make(bearer(key.secret), "first").status)
        local app = support.unique("app")
        must(one.owner:post("/apps", { app_key = app, name = app, kind = "storefront" }))
        assert.equal(409, make(one.owner, "first", { ["X-App-Kasma-Id"] = app }).status)
        for _, answer in ipairs{ make(colleague, "first"), make(bearer(key.secret), "first") } do
            assert.same({ 409, "true" }, { answer.status, answer.headers["idempotent-replayed"] }) -- their own, this time
        end
        local elsewhere = one.owner:post("/permissions", { permission_key = "custom.idem" }, { ["X-Idempotency-Key"] = "the-same" })
        assert.same({ 201, nil }, { elsewhere.status, elsewhere.headers["idempotent-replayed"] })
    end)

    it("is of one thing: names that differ in their case alone are two", function()
        local shop = support.unique("Shop")
        for _, app in ipairs{ shop, shop:lower() } do must(one.owner:post("/apps", { app_key = app, name = "old" })) end
        local function rename(path) return one.owner:post(path, { name = "new" }, { ["X-Idempotency-Key"] = "rename" }) end
        local first = rename("/apps/" .. shop .. "/update")
        assert.same({ 200, shop }, { first.status, first.json.app.app_key })
        local second = rename("/apps/" .. shop:lower() .. "/update")
        assert.same({ 200, shop:lower(), "new", nil }, { second.status, second.json.app.app_key, second.json.app.name,
            second.headers["idempotent-replayed"] })
        -- However the path itself is written.
        for _, path in ipairs{ "/api/apps/%s/update", "/APPS/%s/Update/" } do
            local again = rename(path:format(shop))
            assert.same({ shop, "true" }, { again.json.app.app_key, again.headers["idempotent-replayed"] }, path)
        end
    end)

    it("is one, of 1 to 255 visible characters, or refused", function()
        local name = support.unique("r")
        for what, headers in pairs{ empty = { [""] = "" }, long = { [""] = ("k"):rep(256) }, ["with a space"] = { [""] = "a b" },
            accented = { [""] = "cl\195\169" }, ["two that differ"] = { [""] = "one", alias = "two" } } do
            local answer = make(one.owner, name, { ["X-Idempotency-Key"] = headers[""], ["Idempotency-Key"] = headers.alias })
            assert.same({ 400, "idempotency_key" }, { answer.status, answer.json.code }, what)
        end
        assert.equal(400, (raw({ "POST /roles HTTP/1.1", "Host: 127.0.0.1", "Cookie: access_token=" .. one.owner.cookies.access_token,
            "X-Idempotency-Key: one", "X-Idempotency-Key: two", "Content-Length: 2", "Content-Type: application/json" }, "{}")))
        assert.equal(201, make(one.owner, name, { ["X-Idempotency-Key"] = ("k"):rep(255), ["Idempotency-Key"] = ("k"):rep(255) }).status)
    end)

    it("is demanded where the tenant says so, and a route that takes none is no setting", function()
        local tenant = support.tenant()
        local path = "/tenants/" .. tenant.key .. "/update"
        local function demand(...) return tenant.owner:post(path, { settings = { ["idempotency.required"] = json.array{ ... } } }) end
        for _, entry in ipairs{ "POST /nope", "GET /roles", "POST /auth/login", "roles", "POST roles", "POST /x" } do
            assert.equal(400, demand(entry).status, entry)
        end
        must(demand("POST /roles", "post /api/Tenants/:tenant_key/Keys/create/", "POST /x/my/route"), 200)
        local missing = { 400, "X-Idempotency-Key header is required for write operations" }
        local function without(where, body) return tenant.owner:post(where, body) end
        local role = { code = "R", role_key = "r1", display_name = "R" }
        support.eventually(function() return without("/roles", {}).json.code == "idempotency_key" end)
        local key = { name = "k", key_type = "publishable" }
        for _, way in ipairs{ "/roles", "/api/ROLES/" } do assert.same(missing, told(without(way, role)), way) end
        assert.same(missing, told(without("/tenants/" .. tenant.key .. "/keys/create", key)))
        assert.equal(201, make(tenant.owner, "r1").status)
        assert.equal(201, without("/permissions", { permission_key = "custom.free" }).status)
        -- Who may not is told that, and nothing of keys.
        assert.equal(403, support.shopper(tenant):post("/roles", role).status)
    end)

    it("of a guest is bound to the cart, and of nobody to nothing", function()
        local shop, product = shop_of.simple(5)
        local function add(client) return client:post("/sales/cart/add", { productId = product, quantity = 1 },
            { ["X-Idempotency-Key"] = "guest-key" }) end
        local first, second = support.guest(shop), support.guest(shop)
        must(add(first))
        local answer = add(second)
        assert.same({ 201, nil }, { answer.status, answer.headers["idempotent-replayed"] })
        assert.is_true(first.cookies.cart_token ~= second.cookies.cart_token)
    end)

    it("is not given out to who may no more", function()
        local tenant = support.tenant()
        local staff = support.user(tenant, "tenant_admin")
        local body = { permission_key = "custom.first" }
        local headers = { ["X-Idempotency-Key"] = "k" }
        local made = staff:post("/permissions", body, headers)
        if made.status == 201 then
            must(tenant.owner:post("/tenants/" .. tenant.key .. "/members/remove", { user_id = staff.user.id }), 200)
            assert.equal(403, staff:post("/permissions", body, headers).status)
        end
        assert.equal(201, made.status)
    end)
end)

describe("a filter", function()
    local tenant, other = support.tenant(), support.tenant()

    it("is text and never SQL or a pattern", function()
        local shopper = support.shopper(tenant)
        db.query(nil, "update users set display_name = $2 where id = $1", shopper.user.id, "100%_sure\\")
        local total = tenant.owner:get("/users").json.total
        assert.equal(2, total)
        local function found(query) return must(tenant.owner:get("/users?" .. query), 200).total end
        for query, expected in pairs{ ["q=%25"] = 0, ["q=0%25_"] = 1, ["q=%5Fsure"] = 1, ["q=%5Fs_re"] = 0, ["q=re%5C"] = 1,
            ["q=100%25_sure"] = 1, ["q=1%25s"] = 0, ["q=10"] = 1, ["q=00"] = 0,
            ["q=%27%20or%201%3D1%20--"] = 0, ["role_key=customer%27%20or%20%271%27%3D%271"] = 0, ["role_key=%25"] = 0,
            ["role_key=customer"] = 1 } do
            assert.equal(expected, found(query), query)
        end
        for _, query in ipairs{ "sort=email%3Bdrop%20table%20users", "sort=password", "sort=created_at%20desc", "sort[]=email",
            "status=active%27--", "user_type=KASMA_9", "q=a&q=b", "q[x]=1", "limit=1%3Bselect", "page=1%2F**%2F" } do
            assert.equal(400, tenant.owner:get("/users?" .. query).status, query)
        end
        for _, query in ipairs{ "action=%27%20or%201%3D1--", "actor_id=x", "entity_type=%25", "from=now()", "limit=-1" } do
            local answer = tenant.owner:get("/audit/logs?" .. query)
            assert.is_true(answer.status == 400 or (answer.status == 200 and #answer.json.data == 0), query .. " " .. answer.body)
        end
        assert.equal(0, must(tenant.owner:get("/auth/logs/login?action=%25"), 200).total)
    end)

    it("of users follows what becomes of them, in every tenant that they belong to", function()
        local shopper = support.shopper(tenant)
        db.query(nil, "update users set display_name = $2 where id = $1", shopper.user.id, "Đặng Thị Huệ")
        local platform = support.platform()
        must(platform:post("/tenants/" .. other.key .. "/members/add", { user_id = shopper.user.id }))
        local function found(at, query)
            local answer = must(at.owner:get("/users?" .. query), 200)
            for _, user in ipairs(answer.data) do
                if user.id == shopper.user.id then return true, answer.total end
            end
            return false, answer.total
        end
        for _, at in ipairs{ tenant, other } do
            for _, query in ipairs{ "q=dang%20thi", "q=Hu%E1%BB%87", "q=hu", "q=" .. shopper.user.email:sub(1, 8), "status=active&q=hue",
                "role_key=customer", "user_type=GENERAL_0&sort=email", "limit=100&sort=-email" } do
                local expected = query ~= "role_key=customer" or at == tenant
                assert.equal(expected, (found(at, query)), at.key .. " " .. query)
            end
        end
        must(platform:post("/users/" .. shopper.user.id .. "/update", { status = "suspended", user_type = "TENANT_1" },
            tenant.headers), 200)
        for _, at in ipairs{ tenant, other } do
            assert.is_true(found(at, "status=SUSPENDED"))
            assert.is_true(found(at, "user_type=TENANT_1"))
            assert.is_false(found(at, "status=active"))
        end
        local role
        for _, row in ipairs(must(tenant.owner:get("/roles"), 200).roles) do
            if row.role_key == "customer" then role = row.id end
        end
        db.query(tenant.key, [[update user_roles set expires_at = $3::timestamptz where tenant_key = $1 and user_id = $2 and role_id = $4]],
            tenant.key, shopper.user.id, "2020-01-01T00:00:00Z", role)
        assert.is_false(found(tenant, "role_key=customer"), "the role has ended")
        local before = select(2, found(tenant, "limit=1"))
        must(platform:post("/users/" .. shopper.user.id .. "/delete", nil, tenant.headers), 200)
        for _, at in ipairs{ tenant, other } do assert.is_false(found(at, "limit=100")) end
        assert.equal(before - 1, select(2, found(tenant, "page=50")))
    end)

    it("by a cursor that is another tenant's, or made up, stays in its own tenant", function()
        local cursor
        support.eventually(function()
            local page = other.owner:get("/audit/logs?limit=1")
            cursor = page.json.next_cursor or page.headers["x-next-cursor"]
            if not cursor then other.owner:get("/users") end
            return cursor
        end)
        local answer = tenant.owner:get("/audit/logs?limit=100&cursor=" .. cursor:gsub("[^%w]", function(c)
            return ("%%%02X"):format(c:byte())
        end))
        assert.is_true(answer.status == 200 or answer.status == 400)
        for _, row in ipairs(answer.status == 200 and answer.json.data or {}) do
            assert.equal(1, db.one(tenant.key, "select count(*)::int as n from audit_index where tenant_key = $1 and id = $2", tenant.key,
                row.id).n)
        end
        for _, forged in ipairs{ "x", "%00", "eyJpZCI6MX0", ("A"):rep(5000), "..%2F", "-1", "%27", "null", crypto.base64url("[]"),
            crypto.base64url('{"t":"' .. other.key .. '"}') } do
            assert.equal(400, tenant.owner:get("/audit/logs?cursor=" .. forged).status, forged:sub(1, 40))
        end
    end)
end)

describe("an ETag", function()
    it("of another tenant's answer does not stand for one's own", function()
        local one, other = support.tenant(), support.tenant()
        shop_of.product(one, { name = "Mine", price = 1 })
        shop_of.product(other, { name = "Theirs", price = 1 })
        local list = "/api/ecommerce/products/list"
        local tag = support.guest(one):get(list).headers.etag
        assert.matches('^W/"', tag)
        -- Whichever worker is asked: each writes the same text.
        for _ = 1, 20 do
            assert.equal(304, support.guest(one):get(list, { ["If-None-Match"] = tag, Connection = "close" }).status)
        end
        local answer = support.guest(other):get(list, { ["If-None-Match"] = tag })
        assert.same({ 200, "Theirs" }, { answer.status, answer.json[1].name })
        local mine = support.shopper(one):get("/auth/me").headers.etag
        if mine then assert.equal(401, support.client():get("/auth/me", { ["If-None-Match"] = mine }).status) end
        assert.is_false(support.client():get("/auth/me", { ["If-None-Match"] = "*" }).status == 304)
    end)
end)

describe("a server with narrow limits", function()
    it("does not start on a file of limits that it cannot take, and says all that is wrong", function()
        local name = os.tmpname()
        local function started_on(text)
            local file = assert(io.open(name, "w"))
            file:write(text)
            file:close()
            local ok, answer = pcall(support.server, { RATE_LIMITS = name })
            if ok then answer.stop() end
            return not ok and answer or "it started"
        end
        local said = started_on(json.encode{ ip = { limit = 20 }, users = { limit = 1, window_s = 1 }, key = { limit = 0, window_s = 60 } })
        assert.matches("ip needs limit and window_s, whole numbers from 1; key needs limit and window_s, whole numbers from 1; "
            .. "users is no rule", said, 1, true)
        assert.matches("holds no JSON object of rules", started_on("ip = 20"), 1, true)
        os.remove(name)
        local ok, why = pcall(support.server, { RATE_LIMITS = name })
        assert.is_false(ok)
        assert.matches("RATE_LIMITS: " .. name, why, 1, true)
    end)

    it("counts a secret key by its key, and everybody else by address", function()
        local tenant = support.tenant()
        local key = key_of(tenant)
        local rules = os.tmpname()
        local file = assert(io.open(rules, "w"))
        -- A worker's share is a limit divided by the live workers, so that few are left of 20 and many of 100000.
        file:write(json.encode{ ip = { limit = 20, window_s = 3600 }, key = { limit = 100000, window_s = 3600 } })
        file:close()
        local server = support.server{ RATE_LIMITS = rules, RATE_LIMIT_LOOPBACK = "1" }
        local caller, guest = bearer(key.secret), support.guest(tenant)
        caller.url, guest.url = server.url, server.url
        local ok, why = pcall(function()
            for _ = 1, 60 do must(caller:get("/users"), 200) end
            local refused
            for _ = 1, 60 do
                local answer = guest:get("/sales/cart/me")
                if answer.status == 429 then refused = answer end
            end
            assert.equal("Too many requests", refused.json.message)
            for _, name in ipairs{ "retry-after", "x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset" } do
                assert.matches("^%d+$", refused.headers[name], name)
            end
        end)
        server.stop()
        os.remove(rules)
        if not ok then error(why, 0) end
    end)
end)
