-- Who may do what: keys, roles, the guard against escalation, the registry, what services may ask of tokens.
local json = require("core.json")
local time = require("core.time")
local db = require("kasma.db")
local shop_of = require("api.shop")
local support = require("api.support")

local must = shop_of.must
local function told(answer) return { answer.status, answer.json and answer.json.message } end

local function key_of(tenant, fields, by)
    local body = { name = "key", key_type = "secret", scopes = { "users.read" } }
    for name, value in pairs(fields or {}) do body[name] = value end
    return must((by or tenant.owner):post("/tenants/" .. tenant.key .. "/keys/create", body)).key
end

local function bearer(secret, headers)
    local sent = { Authorization = "Bearer " .. secret }
    for name, value in pairs(headers or {}) do sent[name] = value end
    return support.client(sent)
end

describe("an access key", function()
    local tenant = support.tenant()

    it("acts with its scopes, on its own tenant", function()
        local client = bearer(key_of(tenant).secret)
        assert.equal(200, client:get("/users").status)
        assert.same({ 403, "Forbidden resource" }, told(client:get("/roles")))
        assert.same({ 403, "You do not belong to this tenant" }, told(client:get("/users", support.tenant().headers)))
        assert.equal(200, support.client({ ["X-Kasma-Key"] = client.headers.Authorization:sub(8) }):get("/users").status)
    end)

    it("is refused when one character differs, without a look into the database", function()
        local secret = key_of(tenant).secret
        local last = secret:sub(-1) == "A" and "B" or "A"
        for _, bad in ipairs{ secret:sub(1, -2) .. last, secret .. "A", secret:sub(1, -2), "ksk_live_", secret:sub(1, 40) } do
            assert.same({ 401, "Invalid or expired access token" }, told(bearer(bad):get("/users")))
        end
    end)

    it("is not made with rights that its maker lacks, nor with unknown ones, nor for the past", function()
        local admin = support.user(tenant, "tenant_admin")
        local path = "/tenants/" .. tenant.key .. "/keys/create"
        local function make(fields)
            local body = { name = "x", key_type = "secret" }
            for name, value in pairs(fields) do body[name] = value end
            return admin:post(path, body).status
        end
        assert.equal(403, make{ scopes = { "*" } })
        assert.equal(403, make{ scopes = { "wallets.write" } })
        assert.equal(201, make{ scopes = { "users.read", "orders.read" } })
        assert.equal(400, tenant.owner:post(path, { name = "x", key_type = "secret", scopes = { "no.such" } }).status)
        assert.equal(400, make{ expires_at = "2020-01-01T00:00:00Z" })
        assert.equal(403, support.shopper(tenant):post(path, { name = "x", key_type = "secret" }).status)
    end)

    it("is rotated with a grace in which both work", function()
        local platform = support.platform()
        local old = key_of(tenant)
        local new = must(tenant.owner:post("/tenants/" .. tenant.key .. "/keys/" .. old.id .. "/rotate", { grace_seconds = 60 })).key
        assert.equal(200, bearer(old.secret):get("/users").status)
        assert.equal(200, bearer(new.secret):get("/users").status)
        support.advance(platform, 61)
        local statuses = { bearer(old.secret):get("/users").status, bearer(new.secret):get("/users").status }
        support.real_time(platform)
        assert.same({ 401, 200 }, statuses)
        local third = must(tenant.owner:post("/tenants/" .. tenant.key .. "/keys/" .. new.id .. "/rotate")).key
        support.eventually(function() return bearer(new.secret):get("/users").status == 401 end)
        assert.equal(200, bearer(third.secret):get("/users").status)
        assert.equal(404, tenant.owner:post("/tenants/" .. tenant.key .. "/keys/" .. new.id .. "/rotate").status)
    end)

    it("is rotated once by five who do it at once", function()
        local key = key_of(tenant)
        local calls = {}
        for i = 1, 5 do
            local owner = tenant.owner:copy()
            calls[i] = function()
                return owner:post("/tenants/" .. tenant.key .. "/keys/" .. key.id .. "/rotate", { grace_seconds = 0 })
            end
        end
        local count = shop_of.statuses(support.parallel(calls))
        assert.equal(1, count[201])
        assert.equal(4, (count[409] or 0) + (count[404] or 0))
    end)

    it("ends when it says, and a grace does not stretch it", function()
        local platform = support.platform()
        local key = key_of(tenant, { expires_at = time.iso(time.now() + 300000) })
        must(tenant.owner:post("/tenants/" .. tenant.key .. "/keys/" .. key.id .. "/rotate", { grace_seconds = 3600 }))
        assert.equal(200, bearer(key.secret):get("/users").status)
        support.advance(platform, 301)
        local status = bearer(key.secret):get("/users").status
        support.real_time(platform)
        assert.equal(401, status)
    end)

    it("is taken from its own networks only, and a refusal is on record", function()
        local key = key_of(tenant, { allowed_ips = { "198.51.100.0/24", "2001:db8::/32" } })
        local function from(address) return bearer(key.secret, { ["X-Forwarded-For"] = address }):get("/users").status end
        assert.same({ 200, 200, 401, 401 }, { from("198.51.100.7"), from("2001:db8::1"), from("198.51.101.7"), from("2001:db9::1") })
        local row = support.eventually(function()
            return db.one(tenant.key, [[select metadata from audit_auth_log where tenant_key = $1 and action = 'KEY_USED_DENIED'
              and target = $2 and host(ip) = '198.51.101.7']], tenant.key, "key:" .. key.owned_key)
        end)
        assert.equal("address", row.metadata.reason)
    end)

    it("shows when it was last used, and never its secret", function()
        local key = key_of(tenant, { name = "watched" })
        bearer(key.secret):get("/users")
        local shown = support.eventually(function()
            for _, row in ipairs(must(tenant.owner:get("/tenants/" .. tenant.key .. "/keys"), 200).data) do
                if row.id == key.id and type(row.last_used_at) == "string" then return row end
            end
        end)
        assert.is_nil(shown.secret)
        assert.equal(key.secret:sub(-4), shown.last4)
        local stored = db.one(nil, "select * from access_keys where id = $1", key.id)
        for _, value in pairs(stored) do assert.is_not.equal(key.secret, value) end
    end)

    it("that is publishable names tenant and app, and opens nothing", function()
        local key = key_of(tenant, { key_type = "publishable", app_key = tenant.app })
        assert.matches("^kpk_live_%w+$", key.owned_key)
        local client = support.client{ ["X-Kasma-Key"] = key.owned_key }
        assert.equal(tenant.key, must(client:get("/sales/cart/me"), 200).tenant_key)
        assert.equal(401, client:get("/users").status)
        assert.equal(401, bearer(key.owned_key):get("/users").status)
    end)
end)

describe("the platform's metrics", function()
    it("are shown outside the machine to a key of the platform that has the scope, and to no tenant's", function()
        local platform, tenant = support.platform(), support.tenant()
        local away = support.outside().headers
        local function status(secret)
            return bearer(secret, away):get("/metrics").status
        end
        assert.equal(401, support.client(away):get("/metrics").status)
        assert.equal(401, status(key_of(tenant, { scopes = { "*" } }).secret))
        assert.equal(401, tenant.owner:get("/metrics", away).status)
        local master = { key = "MASTER" }
        for scope, expected in pairs{ ["metrics.read"] = 200, ["users.read"] = 401 } do
            local key = key_of(master, { scopes = { scope } }, platform)
            assert.equal(expected, status(key.secret), scope)
            must(platform:post("/tenants/MASTER/keys/" .. key.id .. "/revoke"), 200)
        end
    end)
end)

describe("what an answer names", function()
    local tenant = support.tenant()

    it("can be asked for in the next request: no app in particular, one's own id in any case, an origin as browsers write it", function()
        local shopper = support.shopper(tenant)
        local plain = { ["X-App-Kasma-Id"] = "MASTER" }
        assert.same({ tenant.key, "MASTER" }, { must(shopper:get("/auth/me", plain), 200).user.tenant_key,
            shopper:get("/auth/me", plain).json.user.app_key })
        assert.equal(403, shopper:get("/auth/me", { ["X-App-Kasma-Id"] = support.tenant().app }).status)
        for _, path in ipairs{ "", "/roles" } do
            assert.equal(200, shopper:get("/users/" .. shopper.user.id:upper() .. path).status)
        end
        local app = must(tenant.owner:post("/apps/" .. tenant.app .. "/update",
            { allowed_origins = { "https://Shop.Example:8443" } }), 200).app
        assert.same({ "https://shop.example:8443" }, { unpack(app.allowed_origins) })
    end)

    it("is the host's app after a change of tenant that names none", function()
        local host = support.unique("ctx") .. ".test"
        local shop = support.tenant{ hostnames = { host } }
        local shopper = support.shopper(shop)
        shopper.headers = {}
        assert.equal("MASTER", must(shopper:post("/auth/context", { tenant_key = shop.key }), 200).app_key)
        assert.equal(shop.app, must(shopper:post("/auth/context", { tenant_key = shop.key }, { Host = host }), 200).app_key)
        assert.equal("MASTER", must(shopper:post("/auth/context", { tenant_key = shop.key, app_key = "MASTER" }, { Host = host }),
            200).app_key)
    end)

    it("of a module is its key and its name, each said once", function()
        local platform = support.platform()
        local key = support.unique("m")
        local function make(body) return platform:post("/registry/modules", body) end
        assert.same({ 400, { "property display_name should not exist" } },
            told(make{ key = key, name = "Name", display_name = "Other" }))
        assert.equal(400, make{ name = key }.status)
        local made = must(make{ name = key, display_name = "Name" }).module
        assert.same({ key, "Name" }, { made.key, made.name })
    end)

    it("is nothing of sessions where a key asks", function()
        assert.equal(404, bearer(key_of(tenant).secret):post("/auth/logout-all").status)
    end)
end)

describe("the module registry", function()
    it("keeps what a module needs, also when it is taken out in the moment in which the module is put in", function()
        local platform, tenant = support.platform(), support.tenant()
        local core, sales = support.unique("core"), support.unique("sales")
        must(platform:post("/registry/modules", { key = core, name = "Core" }))
        must(platform:post("/registry/modules", { key = sales, name = "Sales", dependencies = { core } }))
        local function put(family, module)
            return tenant.owner:post("/registry", { app_family_key = family, tenant_key = tenant.key, module_key = module })
        end
        for round = 1, 15 do
            local family = "family" .. round
            local row = must(put(family, core)).registry
            local answers = support.parallel{
                function() return tenant.owner:copy():post("/registry/" .. row.id .. "/update", { is_active = false }) end,
                function() return put(family, sales) end,
            }
            table.sort(answers, function(a, b) return a.status < b.status end)
            assert.same({ 201, 400 }, { answers[1].status, answers[2].status }, "round " .. round)
        end
    end)
end)

describe("a token shown to another service", function()
    local tenant, other = support.tenant(), support.tenant()
    local asking = bearer(key_of(tenant, { scopes = { "auth.introspect" } }).secret)
    local function ask(token, who) return must((who or asking):post("/auth/introspect", { token = token }), 200) end

    it("is explained while it holds", function()
        local staff = support.user(tenant, "catalog_manager")
        local answer = ask(staff.cookies.access_token)
        assert.same({ true, staff.user.id, tenant.key, tenant.app }, { answer.active, answer.sub, answer.tenant_key, answer.app_key })
        assert.is_true(answer.exp > time.now() / 1000 and answer.exp <= time.now() / 1000 + 900)
        local held = false
        for _, key in ipairs(answer.permissions) do held = held or key == "products.*" end
        assert.is_true(held)
        must(staff:post("/auth/logout"), 200)
        assert.same({ active = false }, ask(staff.cookies.access_token or ("0"):rep(64)))
    end)

    it("is nothing when it is unknown, or another tenant's", function()
        for _, token in ipairs{ ("0"):rep(64), "nonsense", "a.b.c", "ksk_live_x", other.owner.cookies.access_token } do
            assert.same({ active = false }, ask(token), token)
        end
        assert.is_true(ask(key_of(tenant).secret).active)
        assert.same({ active = false }, ask(key_of(other).secret))
    end)

    it("is explained to keys with the scope alone", function()
        local body = { token = tenant.owner.cookies.access_token }
        assert.equal(403, bearer(key_of(tenant).secret):post("/auth/introspect", body).status)
        assert.equal(403, tenant.owner:post("/auth/introspect", body).status)
        assert.equal(401, support.client():post("/auth/introspect", body).status)
    end)
end)

describe("nobody", function()
    local tenant = support.tenant()
    local function role(keys, by)
        local key = support.unique("r")
        return (by or tenant.owner):post("/roles", { code = "R", role_key = key, display_name = key, permission_keys = keys })
    end
    -- Somebody who may edit roles and users, and little else.
    local function editor()
        local made = must(role({ "roles.read", "roles.write", "users.read", "users.roles", "users.write", "products.read" })).role
        local client = support.user(tenant, "customer", { user_type = "TENANT_0" })
        must(tenant.owner:post("/users/" .. client.user.id .. "/roles/assign", { role_id = made.id }))
        return client, made
    end

    it("hands out what they lack", function()
        local client = editor()
        assert.equal(403, role({ "orders.refund" }, client).status)
        assert.equal(403, role({ "products.*" }, client).status)
        assert.equal(403, role({ "*" }, client).status)
        local mine = must(role({ "products.read" }, client)).role
        assert.equal(403, client:post("/roles/" .. mine.id .. "/permissions/assign", { permission_key = "orders.refund" }).status)
        assert.equal(409, client:post("/roles/" .. mine.id .. "/permissions/assign", { permission_key = "products.read" }).status)
        local big = must(role({ "orders.refund" })).role
        local target = support.user(tenant, "customer", { user_type = "TENANT_0" })
        assert.equal(403, client:post("/users/" .. target.user.id .. "/roles/assign", { role_id = big.id }).status)
        assert.equal(201, client:post("/users/" .. target.user.id .. "/roles/assign", { role_id = mine.id }).status)
        assert.equal(403, client:post("/users/" .. target.user.id .. "/update", { user_type = "KASMA_0" }).status)
    end)

    it("touches a role that can do more than they", function()
        local client = editor()
        local big = must(role({ "orders.refund" })).role
        assert.equal(403, client:post("/roles/" .. big.id .. "/update", { display_name = "mine" }).status)
        assert.equal(403, client:post("/roles/" .. big.id .. "/permissions/remove", { permission_key = "orders.refund" }).status)
        assert.equal(403, client:post("/roles/" .. big.id .. "/delete").status)
        local holder = support.user(tenant, "customer", { user_type = "TENANT_0" })
        must(tenant.owner:post("/users/" .. holder.user.id .. "/roles/assign", { role_id = big.id }))
        assert.equal(403, client:post("/users/" .. holder.user.id .. "/roles/remove", { role_id = big.id }).status)
    end)

    it("changes their own roles", function()
        local client, made = editor()
        local mine = must(role({ "products.read" }, client)).role
        local path = "/users/" .. client.user.id .. "/roles/"
        assert.equal(403, client:post(path .. "assign", { role_id = mine.id }).status)
        assert.equal(403, client:post(path .. "remove", { role_id = made.id }).status)
    end)

    it("gives roles to a new user without the right to give roles", function()
        local made = must(role({ "users.read", "users.write" })).role
        local client = support.user(tenant, "customer", { user_type = "TENANT_0" })
        must(tenant.owner:post("/users/" .. client.user.id .. "/roles/assign", { role_id = made.id }))
        local function create(body)
            body.email, body.user_type = support.unique("n") .. "@example.test", "TENANT_0"
            return client:post("/users", body).status
        end
        assert.equal(403, create{ role_ids = { made.id } })
        assert.equal(201, create{ role_ids = {} })
        assert.equal(201, create{})
    end)

    it("ends the membership of who may do more than they", function()
        local second = support.user(tenant, "tenant_owner")
        local admin = support.user(tenant, "tenant_admin")
        local path = "/tenants/" .. tenant.key .. "/members/remove"
        for _, body in ipairs{ { user_id = second.user.id }, { email = second.user.email } } do
            local answer = admin:post(path, body)
            assert.same({ 403, "outranked" }, { answer.status, answer.json.code })
        end
        assert.equal(200, second:get("/users").status)
        local shopper = support.shopper(tenant)
        assert.equal(200, admin:post(path, { user_id = shopper.user.id }).status)
        assert.equal(200, tenant.owner:post(path, { user_id = second.user.id }).status)
    end)

    it("lowers a user below what their roles need, in another tenant or over all", function()
        local platform, other = support.platform(), support.tenant()
        local person = support.user(tenant, "finance")
        local function lower(to, id) return platform:post("/users/" .. id .. "/update", { user_type = to }, other.headers) end
        must(platform:post("/tenants/" .. other.key .. "/members/add", { user_id = person.user.id }))
        assert.same({ 403, "user_type_ceiling" }, { lower("GENERAL_0", person.user.id).status,
            lower("GENERAL_0", person.user.id).json.code })
        assert.equal(200, lower("TENANT_3", person.user.id).status)
        local staff = support.platform()
        must(platform:post("/tenants/" .. other.key .. "/members/add", { user_id = staff.user.id }))
        assert.equal(403, lower("TENANT_0", staff.user.id).status)
        assert.equal(200, lower("KASMA_1", staff.user.id).status)
    end)

    it("learns from an invitation whether there is an account", function()
        local inviting = support.tenant()
        local known = support.user(tenant, "finance")
        local emails = { known.user.email, support.unique("n") .. "@example.test" }
        local seen = {}
        for i, email in ipairs(emails) do
            must(inviting.owner:post("/tenants/" .. inviting.key .. "/members/add", { email = email }))
            for _, row in ipairs(must(inviting.owner:get("/tenants/" .. inviting.key .. "/members"), 200).data) do
                if row.email == email then seen[i] = { row.membership, row.status, row.user_type, row.display_name == json.null } end
            end
        end
        assert.same({ "invited", "pending", "GENERAL_0", true }, seen[1])
        assert.same(seen[2], seen[1])
    end)

    it("switches the platform's own tenant off", function()
        local platform = support.platform()
        assert.equal(409, platform:post("/tenants/MASTER/update", { is_active = false }).status)
        assert.equal(409, platform:post("/tenants/MASTER/delete").status)
        assert.equal(200, platform:get("/auth/me").status)
    end)

    it("of the platform moves a session into a tenant unseen", function()
        local platform, other = support.platform(), support.tenant()
        must(platform:post("/auth/context", { tenant_key = other.key, app_key = other.app }), 200)
        local log = must(other.owner:get("/auth/logs/login?action=TENANT_SWITCH"), 200).data
        assert.same({ platform.user.id, "tenant:" .. other.key }, { log[1].user_id, log[1].target })
        local member = support.user(tenant, "finance")
        must(member:post("/auth/context", { tenant_key = tenant.key }), 200)
        assert.equal(0, must(tenant.owner:get("/auth/logs/login?action=TENANT_SWITCH&user_id=" .. member.user.id), 200).total)
    end)

    it("changes a system role, or deletes one that is held", function()
        local system = tenant.role_ids.marketer
        assert.equal(403, tenant.owner:post("/roles/" .. system .. "/update", { display_name = "x" }).status)
        assert.equal(403, tenant.owner:post("/roles/" .. system .. "/delete").status)
        local _, made = editor()
        assert.same({ 409, "The role is held by users" }, told(tenant.owner:post("/roles/" .. made.id .. "/delete")))
        local free = must(role({ "products.read" })).role
        assert.equal(200, tenant.owner:post("/roles/" .. free.id .. "/delete").status)
        assert.equal(404, tenant.owner:get("/roles/" .. free.id).status)
    end)

    it("ends or locks somebody who may do more than they", function()
        local admin = support.user(tenant, "tenant_admin")
        local second = support.user(tenant, "tenant_owner")
        for _, call in ipairs{ { "/update", { status = "locked" } }, { "/update", { user_type = "GENERAL_0" } }, { "/delete" },
            { "/unlock" }, { "/sessions/revoke-all" } } do
            assert.same({ 403, "The user may do more than you" }, told(admin:post("/users/" .. second.user.id .. call[1], call[2])),
                call[1])
        end
        assert.equal(200, second:get("/auth/me").status)
        local clerk = support.user(tenant, "support_agent")
        assert.equal(200, admin:post("/users/" .. clerk.user.id .. "/update", { status = "locked" }).status)
    end)

    it("is left with a type below the roles that they hold", function()
        local client = support.user(tenant, "marketer")
        assert.same({ 403, "The user's type cannot hold this role" },
            told(tenant.owner:post("/users/" .. client.user.id .. "/update", { user_type = "GENERAL_1" })))
        assert.equal(200, tenant.owner:post("/users/" .. client.user.id .. "/update", { user_type = "TENANT_2" }).status)
    end)

    it("touches an account that is more than the tenant's", function()
        local other = support.tenant()
        local shopper = support.shopper(tenant)
        must(other.owner:post("/tenants/" .. other.key .. "/members/add", { email = shopper.user.email }))
        must(shopper:post("/auth/context", { tenant_key = other.key }), 200)
        for _, call in ipairs{ { "/update", { status = "locked" } }, { "/delete" }, { "/unlock" }, { "/sessions/revoke-all" } } do
            assert.same({ 403, "The account is not this tenant's alone" },
                told(tenant.owner:post("/users/" .. shopper.user.id .. call[1], call[2])), call[1])
        end
    end)
end)

describe("a role", function()
    local tenant = support.tenant()

    it("ends at its time", function()
        local platform = support.platform()
        local client = support.user(tenant, "customer", { user_type = "TENANT_0" })
        must(tenant.owner:post("/users/" .. client.user.id .. "/roles/assign", { role_id = tenant.role_ids.catalog_manager,
            expires_at = time.iso(time.now() + 60000) }))
        assert.equal(200, client:get("/api/ecommerce/products/list").status)
        local function may() return #must(client:get("/users/me/permissions"), 200).permissions > 0 end
        assert.is_true(may())
        support.advance(platform, 61)
        local later = may()
        local path = "/users/" .. client.user.id .. "/roles"
        local roles = #must(tenant.owner:get(path), 200).roles
        local again = tenant.owner:post(path .. "/assign", { role_id = tenant.role_ids.catalog_manager }).status
        support.real_time(platform)
        assert.same({ false, 1, 201 }, { later, roles, again })
        assert.equal(409, tenant.owner:post(path .. "/assign", { role_id = tenant.role_ids.catalog_manager }).status)
        assert.equal(400, tenant.owner:post(path .. "/assign", { role_id = tenant.role_ids.marketer, expires_at = "2001-01-01" }).status)
    end)

    it("acts at once when it is given and when it is taken", function()
        local client = support.user(tenant, "customer", { user_type = "TENANT_0" })
        local path = "/users/" .. client.user.id .. "/roles/"
        assert.equal(403, client:get("/users").status)
        must(tenant.owner:post(path .. "assign", { role_id = tenant.role_ids.support_agent }))
        support.eventually(function() return client:get("/users").status == 200 end)
        must(tenant.owner:post(path .. "remove", { role_id = tenant.role_ids.support_agent }), 200)
        support.eventually(function() return client:get("/users").status == 403 end)
        assert.same({ 404, "Role assignment not found" }, told(tenant.owner:post(path .. "remove",
            { role_id = tenant.role_ids.support_agent })))
    end)

    it("over all tenants is given by the platform, to its own kind of user, and seen by nobody else", function()
        local platform = support.platform()
        local shopper = support.user(tenant, "customer", { user_type = "TENANT_0" })
        local function find(list)
            for _, row in ipairs(list) do
                if row.scope == "platform" then return row end
            end
        end
        assert.is_nil(find(must(tenant.owner:get("/roles"), 200).roles))
        local role = find(must(platform:get("/roles", tenant.headers), 200).roles)
        assert.equal("platform_owner", role.role_key)
        local path = "/users/" .. shopper.user.id
        assert.equal(404, tenant.owner:post(path .. "/roles/assign", { role_id = role.id }).status)
        assert.equal(403, platform:post(path .. "/roles/assign", { role_id = role.id }, tenant.headers).status)
        must(platform:post(path .. "/update", { user_type = "KASMA_2" }, tenant.headers), 200)
        must(platform:post(path .. "/roles/assign", { role_id = role.id }, tenant.headers))
        assert.equal(409, platform:post(path .. "/roles/assign", { role_id = role.id }, tenant.headers).status)
        support.eventually(function() return shopper:get("/tenants").status == 200 end)
        assert.equal("platform", find(must(platform:get(path .. "/roles", tenant.headers), 200).roles).scope)
        assert.equal(404, tenant.owner:post(path .. "/roles/remove", { role_id = role.id }).status)
        must(platform:post(path .. "/roles/remove", { role_id = role.id }, tenant.headers), 200)
        support.eventually(function() return shopper:get("/tenants").status == 403 end)
        assert.equal(404, platform:post(path .. "/roles/remove", { role_id = role.id }, tenant.headers).status)
    end)

    it("may grant the tenant's own permissions", function()
        local body = { permission_key = "custom.tea.pour", description = "Pour tea" }
        must(tenant.owner:post("/permissions", body))
        assert.equal(409, tenant.owner:post("/permissions", body).status)
        for _, key in ipairs{ "Custom.x", "custom.tea2", "custom.tea.", "custom..tea", "custom", ".custom.x", "custom.x y", "custom.*" } do
            assert.equal(400, tenant.owner:post("/permissions", { permission_key = key }).status, key)
        end
        assert.equal(403, tenant.owner:post("/permissions", { permission_key = "tea.pour" }).status)
        local made = must(tenant.owner:post("/roles", { code = "T", role_key = "tea", display_name = "Tea",
            permission_keys = { "custom.tea.pour" } })).role
        assert.same({ "custom.tea.pour" }, { unpack(made.permission_keys) })
        local other = support.tenant()
        assert.equal(400, other.owner:post("/roles", { code = "T", role_key = "tea", display_name = "Tea",
            permission_keys = { "custom.tea.pour" } }).status)
        local mark = support.unique("x"):gsub("%d", function(digit) return string.char(103 + tonumber(digit)) end)
        assert.equal(201, support.platform():post("/permissions", { permission_key = mark .. ".pour" }, tenant.headers).status)
    end)
end)

describe("members", function()
    it("are added by id where the tenant knows them, else invited", function()
        local tenant = support.tenant()
        local path = "/tenants/" .. tenant.key .. "/members/"
        local stranger = support.shopper(support.tenant())
        assert.equal(404, tenant.owner:post(path .. "add", { user_id = stranger.user.id }).status)
        assert.equal(400, tenant.owner:post(path .. "add", {}).status)
        local former = support.shopper(tenant)
        assert.equal(409, tenant.owner:post(path .. "add", { user_id = former.user.id }).status)
        must(tenant.owner:post(path .. "remove", { user_id = former.user.id }), 200)
        assert.equal(403, former:get("/sales/orders/me").status)
        assert.equal(404, tenant.owner:post(path .. "remove", { user_id = former.user.id }).status)
        assert.equal("active", must(tenant.owner:post(path .. "add", { user_id = former.user.id })).member.status)
        support.eventually(function() return former:get("/sales/orders/me").status == 200 end)
        local known = must(tenant.owner:post(path .. "add", { email = stranger.user.email })).member
        local fresh = must(tenant.owner:post(path .. "add", { email = support.unique("n") .. "@example.test" })).member
        assert.same({ "invited", "invited" }, { known.status, fresh.status })
        assert.equal(4, must(tenant.owner:get("/tenants/" .. tenant.key .. "/members"), 200).total)
    end)

    it("who are removed keep no secret that works, unless the tenant says so", function()
        local tenant, other = support.tenant(), support.tenant()
        local path = "/tenants/" .. tenant.key .. "/members/remove"
        local function opens(secret) return bearer(secret):get("/users").status == 200 end
        local admin = support.user(tenant, "tenant_admin")
        local theirs = key_of(tenant, { name = "erp" }, admin)
        local public = key_of(tenant, { name = "shop", key_type = "publishable", scopes = {} }, admin)
        local taken_over = key_of(tenant, { name = "ci" }, admin)
        local renewed = must(tenant.owner:post("/tenants/" .. tenant.key .. "/keys/" .. taken_over.id .. "/rotate",
            { grace_seconds = 0 })).key
        local ours = key_of(tenant, { name = "own" })
        -- A member of another tenant too, with a key there.
        must(other.owner:post("/tenants/" .. other.key .. "/members/add", { email = admin.user.email }))
        must(admin:post("/auth/login", { identifier = admin.user.email, password = admin.user.password }, other.headers), 200)
        must(other.owner:post("/users/" .. admin.user.id .. "/roles/assign", { role_id = other.role_ids.tenant_admin }))
        local elsewhere = must((support.eventually(function()
            local answer = admin:post("/tenants/" .. other.key .. "/keys/create", { name = "there", key_type = "secret",
                scopes = { "users.read" } }, other.headers)
            return answer.status == 201 and answer
        end))).key
        for _, key in ipairs{ theirs, renewed, ours, elsewhere } do assert.is_true(opens(key.secret)) end
        local answer = must(tenant.owner:post(path, { user_id = admin.user.id }), 200)
        assert.same({ { id = theirs.id, owned_key = theirs.owned_key, name = "erp", last4 = theirs.last4, revoked = true } },
            { unpack(answer.keys) })
        support.eventually(function() return not opens(theirs.secret) end)
        for _, key in ipairs{ renewed, ours, elsewhere } do assert.is_true(opens(key.secret), key.name) end
        local active = {}
        for _, key in ipairs(must(tenant.owner:get("/tenants/" .. tenant.key .. "/keys"), 200).data) do active[key.id] = key.is_active end
        assert.same({ true, false }, { active[public.id], active[theirs.id] })
    end)

    it("who make a key in the moment of their removal have none that works", function()
        local tenant = support.tenant()
        local path = "/tenants/" .. tenant.key
        for i = 1, 8 do
            local admin = support.user(tenant, "tenant_admin")
            local key = key_of(tenant, { name = "old" }, admin)
            support.parallel{
                function()
                    if i % 2 == 0 then return admin:post(path .. "/keys/" .. key.id .. "/rotate", { grace_seconds = 60 }) end
                    return admin:post(path .. "/keys/create", { name = "new", key_type = "secret", scopes = { "users.read" } })
                end,
                function()
                    if i > 4 then return must(tenant.owner:post("/users/" .. admin.user.id .. "/delete"), 200) end
                    return must(tenant.owner:post(path .. "/members/remove", { user_id = admin.user.id }), 200)
                end,
            }
            assert.equal(0, db.one(nil, [[select count(*)::int as n from access_keys where tenant_key = $1 and created_by = $2
              and revoked_at is null]], tenant.key, admin.user.id).n)
        end
    end)

    it("whose keys the shop still needs leave them, by name", function()
        local tenant = support.tenant()
        local admin = support.user(tenant, "tenant_admin")
        local key = key_of(tenant, { name = "erp" }, admin)
        local answer = must(tenant.owner:post("/tenants/" .. tenant.key .. "/members/remove", { user_id = admin.user.id,
            revokeKeys = false }), 200)
        assert.same({ key.id, false }, { answer.keys[1].id, answer.keys[1].revoked })
        assert.equal(200, bearer(key.secret):get("/users").status)
        assert.equal(403, admin:get("/users").status)
    end)

    it("who are invited accept by signing in", function()
        local tenant = support.tenant()
        local stranger = support.shopper(support.tenant())
        must(tenant.owner:post("/tenants/" .. tenant.key .. "/members/add", { email = stranger.user.email }))
        local client = support.client(tenant.headers)
        must(client:post("/auth/login", { identifier = stranger.user.email, password = stranger.user.password }), 200)
        assert.equal(200, client:get("/sales/orders/me").status)
    end)

    it("made by staff sign up for the account that waits", function()
        local tenant = support.tenant()
        local email = support.unique("new") .. "@example.test"
        local made = must(tenant.owner:post("/users", { email = email, display_name = "New", user_type = "TENANT_0",
            role_ids = { tenant.role_ids.marketer }, send_invite = true })).user
        assert.equal("pending", made.status)
        assert.equal(409, tenant.owner:post("/users", { email = email }).status)
        assert.matches(tenant.key, support.eventually(function() return support.mail_to(email) end), 1, true)
        assert.equal(1, must(tenant.owner:get("/users?q=" .. email), 200).total)
        local client = support.client(tenant.headers)
        assert.equal(201, client:post("/auth/register", { email = email, password = "secret-99" }).status)
        local code
        support.eventually(function()
            code = (support.mail_to(email, "verification code") or ""):match("%f[%d](%d%d%d%d%d%d)%f[%D]")
            return code
        end)
        local answer = must(client:post("/auth/verify-otp", { identifier = email, code = code, type = "REGISTER" }), 200)
        assert.equal(made.id, answer.user.id)
        local me = must(client:get("/auth/me"), 200).user
        table.sort(me.roles)
        assert.same({ "customer", "marketer" }, { unpack(me.roles) })
    end)
end)

describe("a tenant", function()
    it("is made with its owner, or not at all", function()
        local platform = support.platform()
        local key, email = support.unique("ten"), support.unique("boss") .. "@example.test"
        must(platform:post("/tenants", { tenant_key = key, name = "Ten", owner_email = email, default_locale = "en" }))
        assert.matches("invited to Ten", support.eventually(function() return support.mail_to(email) end), 1, true)
        assert.equal(400, platform:post("/tenants", { tenant_key = "no good", name = "x" }).status)
        assert.equal(409, platform:post("/tenants", { tenant_key = key, name = "x", owner_email = "other-" .. email }).status)
        assert.is_nil(db.one(nil, "select id from users where email = $1", "other-" .. email))
        local settings = must(platform:get("/settings", { ["X-Tenant-Kasma-Id"] = key }), 200).settings
        assert.equal(400, platform:post("/tenants", { tenant_key = support.unique("ten"), name = "x", default_currency = "XXX" }).status)
        assert.equal(400, platform:post("/tenants", { tenant_key = support.unique("ten"), name = "x", timezone = "No/Where" }).status)
        assert.same({ "always", true, 6 }, { settings["auth.login_otp"], settings["auth.open_signup"],
            settings["auth.password_min_length"] })
    end)

    it("keeps settings that are changed at once, each by another", function()
        local tenant = support.tenant()
        local path = "/tenants/" .. tenant.key .. "/update"
        local names = { "auth.open_signup", "auth.hide_existence", "auth.jwt_stateless", "auth.password_breached_check" }
        local calls = {}
        for i, name in ipairs(names) do
            calls[i] = function() return tenant.owner:post(path, { settings = { [name] = name ~= "auth.open_signup" } }).status end
        end
        assert.same({ 200, 200, 200, 200 }, support.parallel(calls))
        support.eventually(function()
            local now = must(tenant.owner:get("/settings"), 200).settings
            for _, name in ipairs(names) do
                if now[name] ~= (name ~= "auth.open_signup") then return false end
            end
            return true
        end)
        must(tenant.owner:post(path, { settings = { ["auth.hide_existence"] = json.null, ["idempotency.required"] = {} } }), 200)
        support.eventually(function() return must(tenant.owner:get("/settings"), 200).settings["auth.hide_existence"] == false end)
        assert.equal(400, tenant.owner:post(path, { settings = { ["auth.password_min_length"] = 5 } }).status)
    end)

    it("that is switched off is not available, and a closed one neither", function()
        local platform = support.platform()
        local tenant = support.tenant()
        assert.equal(403, tenant.owner:post("/tenants/" .. tenant.key .. "/update", { is_active = false }).status)
        must(platform:post("/tenants/" .. tenant.key .. "/update", { is_active = false }), 200)
        support.eventually(function() return support.guest(tenant):get("/sales/cart/me").status == 403 end)
        assert.same({ 403, "Tenant is not available" }, told(support.guest(tenant):get("/sales/cart/me")))
    end)
end)

describe("a page behind the last", function()
    it("still tells how many there are", function()
        local tenant = support.tenant()
        support.shopper(tenant)
        for _, path in ipairs{ "/users?page=9", "/tenants/" .. tenant.key .. "/members?page=9", "/auth/logs/login?page=9" } do
            local answer = must(tenant.owner:get(path), 200)
            assert.equal(0, #answer.data, path)
            assert.is_true(answer.total >= 2, path)
        end
    end)
end)

describe("the published collection", function()
    it("finds what it calls under its own names", function()
        local tenant = support.tenant()
        local platform = support.platform()
        local name = support.unique("mod"):lower()
        local made = must(platform:post("/api/registry/modules", { name = name, display_name = "A module" })).module
        assert.same({ name, "A module" }, { made.key, made.name })
        local row = must(platform:post("/registry", { app_family_key = tenant.app, tenant_key = tenant.key, module_key = name })).registry
        assert.equal("1.1.0", must(tenant.owner:post("/api/registry/" .. row.id .. "/update", { version = "1.1.0" })).registry.version)
        local shopper = support.shopper(tenant)
        must(shopper:post("/api/users/me/change-password", { oldPassword = shopper.user.password, newPassword = "brand-new-1" }), 200)
        must(tenant.owner:post("/api/users/" .. shopper.user.id .. "/update", { status = "ACTIVE", is_locked = false }), 200)
        assert.equal(400, shopper:post("/auth/cancel-otp").status)
        local none = support.client(tenant.headers):post("/auth/refresh")
        assert.same({ 200, false, "No refresh token provided" }, { none.status, none.json.success, none.json.message })
        for _, path in ipairs{ "/registry/modules", "/registry", "/auth/logs/login?page=1&limit=5", "/users", "/auth/me", "/users/me" } do
            assert.equal(200, tenant.owner:get(path).status, path)
        end
    end)
end)
