-- The acceptance walk of platform and IAM, and its edge cases, over HTTP.
local json = require("core.json")
local db = require("kasma.db")
local mongo = require("core.mongo")
local redis = require("core.redis")
local support = require("api.support")

local MASTER = { ["X-Tenant-Kasma-Id"] = "MASTER" }

describe("the walk of accounts", function()
    local platform = support.platform()
    local address = support.unique("a") .. "@Example.test"
    local email = address:lower()
    local ann = support.client()
    local user_id, acme, acme_headers

    it("answers health by text, by JSON and with the stores", function()
        local c = support.client()
        local health = c:get("/health")
        assert.same({ 200, "OK" }, { health.status, health.body })
        assert.equal(200, c:get("/HEALTH/").status)
        local healthz = c:get("/healthz")
        assert.equal("ok", healthz.json.status)
        assert.is_number(healthz.json.uptime)
        assert.is_number(healthz.json.workers)
        local ready = c:get("/health/ready")
        assert.equal(200, ready.status)
        for _, check in ipairs{ "postgres", "mongo", "redis", "migrations" } do assert.equal("ok", ready.json.checks[check]) end
    end)

    it("registers, with a code that is mailed and never kept", function()
        local answer = ann:post("/auth/register", { email = address, password = "secret-99", display_name = "Ann" }, MASTER)
        assert.equal(201, answer.status)
        assert.equal(email, answer.json.user.email)
        assert.equal("OTP sent. Verify to complete registration.", answer.json.message)
        local code = support.code_for(email)
        local otp = support.eventually(function()
            local row = db.one(nil, "select *, extract(epoch from expires_at - created_at)::int as life from otps where identifier = $1",
                email)
            return row.code_enc == nil and row
        end)
        assert.is_true(otp.is_active)
        assert.equal(300, otp.life)
        local ttl = redis.call("PTTL", "auth:reg:" .. require("core.crypto").sha256(email))
        assert.is_true(ttl > 0 and ttl <= 600000)
        ann.code = code
    end)

    it("refuses a second registration within the cooldown and changes nothing", function()
        local answer = support.client():post("/auth/register", { email = email, password = "other-99" }, MASTER)
        assert.equal(400, answer.status)
        assert.equal("Please wait 60 seconds before requesting a new code", answer.json.message)
        assert.is_true(tonumber(answer.headers["retry-after"]) <= 60)
        assert.equal(1, redis.call("LLEN", "auth:reg:" .. require("core.crypto").sha256(email)))
    end)

    it("counts a wrong code and takes the right one once", function()
        local wrong = ("%06d"):format((tonumber(ann.code) + 1) % 1000000)
        local answer = ann:post("/auth/verify-otp", { identifier = email, code = wrong, type = "REGISTER" }, MASTER)
        assert.same({ 401, "Invalid or expired OTP" }, { answer.status, answer.json.message })
        assert.equal(1, db.one(nil, "select attempts from otps where identifier = $1", email).attempts)
        answer = ann:post("/auth/verify-otp", { identifier = email, code = ann.code, type = "REGISTER" }, MASTER)
        assert.equal(200, answer.status)
        assert.same({ "GENERAL_0", "Ann" }, { answer.json.user.user_type, answer.json.user.display_name })
        user_id = answer.json.user.id
        assert.matches("^%x+; Max%-Age=1800; Path=/; HttpOnly; SameSite=Lax", ann.set_cookies.access_token)
        assert.matches("^%x+; Max%-Age=604800; Path=/; HttpOnly; SameSite=Lax", ann.set_cookies.refresh_token)
        assert.equal(64, #ann.cookies.access_token)
        assert.equal(64, #ann.cookies.refresh_token)
        local again = support.client():post("/auth/verify-otp", { identifier = email, code = ann.code, type = "REGISTER" }, MASTER)
        assert.equal(401, again.status)
    end)

    it("knows the caller by cookie and bearer, by nothing else", function()
        assert.equal(user_id, ann:get("/auth/me").json.user.id)
        local other = support.client()
        other.cookies.access_token = ann.cookies.refresh_token
        assert.equal(401, other:get("/auth/me").status)
        assert.equal(200, support.client():get("/auth/me", { Authorization = "Bearer " .. ann.cookies.access_token }).status)
        local header_only = support.client():get("/auth/me", { ["X-User-Id"] = user_id })
        assert.same({ 401, "Access token required" }, { header_only.status, header_only.json.message })
    end)

    it("keeps a profile, and subscription fields out of users' hands", function()
        local me = ann:get("/users/me").json.user
        assert.same({ "MASTER", "MASTER", "active" }, { me.tenant_key, me.app_key, me.status })
        assert.equal(json.null, me.profile.first_name)
        local answer = ann:post("/users/me/update", { first_name = "Ann", social_links = { "a" }, subscription_status = "PAID",
            bio = "hi" })
        assert.equal(200, answer.status)
        assert.equal("hi", answer.json.user.profile.bio)
        assert.equal(json.null, answer.json.user.profile.subscription_status)
        answer = ann:post("/users/me/update", { nickname = "x" })
        assert.equal(400, answer.status)
        assert.same({ "property nickname should not exist" }, { unpack(answer.json.message) })
    end)

    it("denies, and keeps a record of it whose body lies in MongoDB", function()
        local answer = ann:get("/users")
        assert.same({ 403, "Forbidden resource" }, { answer.status, answer.json.message })
        local row = db.one("MASTER", "select id from audit_index where tenant_key = 'MASTER' and actor_id = $1 and outcome = 'denied'",
            user_id)
        assert.is_table(row)
        local body = support.eventually(function()
            local doc = mongo.find_one("audit_log", { _id = row.id })
            return type(doc) == "table" and doc
        end)
        assert.equal(user_id, body.actor.id)
        assert.equal("denied", body.outcome)
    end)

    it("makes a tenant, an app, a member, a role", function()
        acme = support.unique("acme")
        acme_headers = { ["X-Tenant-Kasma-Id"] = acme }
        assert.equal(201, platform:post("/tenants", { tenant_key = acme, name = "Acme" }).status)
        assert.equal(409, platform:post("/tenants", { tenant_key = acme, name = "Acme" }).status)
        assert.equal(201, platform:post("/apps", { app_key = acme .. "-shop", name = "Shop", kind = "storefront" }, acme_headers).status)
        assert.equal(201, platform:post("/tenants/" .. acme .. "/members/add", { user_id = user_id }).status)
        local made = platform:post("/roles", { code = "MANAGER", role_key = "manager", display_name = "Manager",
            permission_keys = { "users.read" } }, acme_headers)
        assert.equal(201, made.status)
        local assign = function() return platform:post("/users/" .. user_id .. "/roles/assign", { role_id = made.json.role.id },
            acme_headers) end
        assert.equal(403, assign().status)
        assert.equal(200, platform:post("/users/" .. user_id .. "/update", { user_type = "TENANT_1" }, acme_headers).status)
        assert.equal(201, assign().status)
        assert.equal(409, assign().status)
        local held = 0
        for _, role in ipairs(platform:get("/users/" .. user_id .. "/roles", acme_headers).json.roles) do
            if role.role_key == "manager" then held = held + 1 end
        end
        assert.equal(1, held)
    end)

    it("lets a member act in the tenant and nowhere else", function()
        local list = ann:get("/users", acme_headers)
        assert.same({ 200, 1 }, { list.status, list.json.total })
        assert.equal(403, ann:get("/users").status)
        assert.equal(403, ann:get("/users", { ["X-Tenant-Kasma-Id"] = "zeta-not-there" }).status)
        local answer = ann:post("/roles", { code = "X", role_key = "x", display_name = "X", permission_keys = { "users.delete" } },
            acme_headers)
        assert.equal(403, answer.status)
    end)

    it("makes keys that act with their scopes until they are revoked", function()
        assert.equal(403, ann:post("/tenants/" .. acme .. "/keys/create", { name = "x", key_type = "secret" }).status)
        local made = platform:post("/tenants/" .. acme .. "/keys/create", { name = "ci", key_type = "secret", scopes = { "users.read" } })
        assert.equal(201, made.status)
        local secret = made.json.key.secret
        assert.matches("^ksk_live_%w%w%w%w%w%w%w%w_%w+$", secret)
        local client = support.client({ Authorization = "Bearer " .. secret })
        assert.equal(200, client:get("/users").status)
        assert.equal(403, client:get("/roles").status)
        assert.equal(403, client:get("/users", MASTER).status)
        assert.equal(401, support.client({ Authorization = "Bearer " .. secret:sub(1, -2) .. "_" }):get("/users").status)
        local listed = platform:get("/tenants/" .. acme .. "/keys").json.data[1]
        assert.same({ secret:sub(-4) }, { listed.last4 })
        assert.is_nil(listed.secret)
        assert.equal(200, platform:post("/tenants/" .. acme .. "/keys/" .. made.json.key.id .. "/revoke").status)
        support.eventually(function() return client:get("/users").status == 401 end)
        local public = platform:post("/tenants/" .. acme .. "/keys/create", { name = "web", key_type = "publishable", app_key = acme
            .. "-shop" })
        assert.equal(acme, support.client({ ["X-Kasma-Key"] = public.json.key.owned_key }):get("/sales/cart/me").json.tenant_key)
    end)

    it("installs modules after what they need", function()
        local core, sales = support.unique("core"):lower(), support.unique("sales"):lower()
        local made = platform:post("/registry/modules", { key = core, name = "Core" })
        assert.same({ 201, 0 }, { made.status, #made.json.module.dependencies })
        assert.equal(201, platform:post("/registry/modules", { key = sales, name = "Sales", dependencies = { core } }).status)
        assert.equal(409, platform:post("/registry/modules", { key = core, name = "Core" }).status)
        local function install(key)
            return platform:post("/registry", { app_family_key = acme .. "-shop", tenant_key = acme, module_key = key })
        end
        local refused = install(sales)
        assert.equal(400, refused.status)
        assert.matches(core, refused.json.message, 1, true)
        local first, second = install(core), install(sales)
        assert.same({ 201, 201, "1.0.0" }, { first.status, second.status, second.json.registry.version })
        assert.equal(409, install(sales).status)
        local function update(answer, active)
            return platform:post("/registry/" .. answer.json.registry.id .. "/update", { is_active = active }, acme_headers)
        end
        refused = update(first, false)
        assert.equal(400, refused.status)
        assert.matches(sales, refused.json.message, 1, true)
        assert.equal(201, update(second, false).status)
        assert.equal(201, update(first, false).status)
    end)

    it("gates modules where the tenant says so", function()
        assert.equal(400, platform:post("/tenants/" .. acme .. "/update", { settings = { ["registry.enforced"] = "on" } }).status)
        assert.equal(200, platform:post("/tenants/" .. acme .. "/update", { settings = { ["registry.enforce"] = "on" } }).status)
        local both = { ["X-Tenant-Kasma-Id"] = acme, ["X-App-Kasma-Id"] = acme .. "-shop" }
        local answer = ann:get("/sales/cart/me", both)
        assert.same({ 403, "App and Tenant do not have access to module: sales" }, { answer.status, answer.json.message })
        answer = ann:get("/sales/cart/me", acme_headers)
        assert.same({ 403, "Missing X-App-Kasma-Id or X-Tenant-Kasma-Id headers" }, { answer.status, answer.json.message })
        assert.equal(200, platform:post("/tenants/" .. acme .. "/update", { settings = { ["registry.enforce"] = json.null } }).status)
    end)

    it("answers the same key the same, once", function()
        local function make(key, role_key, who)
            local headers = { ["X-Tenant-Kasma-Id"] = acme, ["X-Idempotency-Key"] = key }
            return (who or platform):post("/roles", { code = "K", role_key = role_key, display_name = "K" }, headers)
        end
        local first, again = make("k1", "one"), make("k1", "one")
        assert.same({ 201, 201 }, { first.status, again.status })
        assert.equal(first.body, again.body)
        assert.equal("true", again.headers["idempotent-replayed"])
        assert.equal(409, make("k1", "two").status)
        local calls = {}
        for i = 1, 20 do
            local caller = platform:copy()
            calls[i] = function() return make("k2", "many", caller) end
        end
        local fresh = 0
        for _, answer in ipairs(support.parallel(calls)) do
            if answer.status == 201 and not answer.headers["idempotent-replayed"] then fresh = fresh + 1 end
            assert.is_true(answer.status == 201 or answer.status == 409)
        end
        assert.equal(1, fresh)
        assert.equal(1, db.one(acme, "select count(*)::int as n from roles where tenant_key = $1 and role_key = 'many'", acme).n)
        assert.equal(403, make("k1", "one", ann).status)
    end)

    it("rotates tokens, lets parallel tabs through, ends the family on reuse", function()
        local old = ann:copy()
        assert.equal(200, ann:post("/auth/refresh").status)
        assert.equal(401, old:copy():get("/auth/me").status)
        local tab = old:copy()
        assert.equal(200, tab:post("/auth/refresh").status)
        assert.equal(ann.cookies.refresh_token, tab.cookies.refresh_token)
        support.advance(platform, 11)
        assert.equal(401, old:copy():post("/auth/refresh").status)
        assert.equal(401, ann:post("/auth/refresh").status)
        assert.equal(1, db.one("MASTER", "select count(*)::int as n from audit_auth_log where tenant_key = 'MASTER' and user_id = $1 "
            .. "and action = 'TOKEN_REUSE'", user_id).n)
        support.real_time(platform)
    end)

    it("signs in by password and code; a password change ends the other sessions", function()
        local function sign_in()
            local c = support.client()
            local before = select(1, support.mail_to(email))
            local answer = c:post("/auth/login", { identifier = email, password = "secret-99" }, MASTER)
            assert.equal(401, answer.status)
            assert.same({ true, "LOGIN", email }, { answer.json.requiresOtp, answer.json.type, answer.json.identifier })
            assert.is_nil(answer.json.statusCode)
            local code = support.code_for(email, before and before:match("(%d%d%d%d%d%d)"))
            assert.equal(200, c:post("/auth/verify-otp", { identifier = email, code = code, type = "LOGIN" }, MASTER).status)
            return c
        end
        local b = sign_in()
        local c = sign_in()
        assert.equal(400, b:post("/users/me/change-password", { current_password = "nonsense", new_password = "secret-100" }).status)
        assert.equal(200, b:post("/users/me/change-password", { oldPassword = "secret-99", newPassword = "secret-100" }).status)
        assert.equal(200, b:get("/auth/me").status)
        assert.equal(401, c:get("/auth/me").status)
        assert.equal(200, b:post("/auth/logout").status)
        assert.equal(401, b:get("/auth/me").status)
    end)

    it("shows the sign-in log as the reference does", function()
        local answer = platform:get("/auth/logs/login?action=REGISTER_SUCCESS&limit=2&user_id=" .. user_id, MASTER)
        assert.equal(200, answer.status)
        assert.same({ 1, 1, 2, 1 }, { answer.json.total, answer.json.page, answer.json.limit, answer.json.totalPages })
    end)
end)

describe("edge cases", function()
    local tenant = support.tenant()
    local c = support.client(tenant.headers)

    it("takes sign-in bodies as the reference does", function()
        assert.is_string(c:request("POST", "/auth/login", "null", { ["Content-Type"] = "application/json" }).json.message)
        assert.equal(400, c:request("POST", "/auth/login", '"a"', { ["Content-Type"] = "application/json" }).status)
        assert.equal(5, #c:request("POST", "/auth/login").json.message)
        assert.equal(401, c:request("POST", "/auth/login", "identifier=a%40b.test&password=secret1",
            { ["Content-Type"] = "application/x-www-form-urlencoded" }).status)
        assert.equal(401, c:request("POST", "/auth/login", '{"identifier":"a@b.test","password":"secret1"}',
            { ["Content-Type"] = "text/plain" }).status)
        assert.equal(5, #c:request("POST", "/auth/login", "hello", { ["Content-Type"] = "text/plain" }).json.message)
        assert.equal(415, tenant.owner:request("POST", "/auth/login", '{"identifier":"a"}', { ["Content-Type"] = "text/plain" }).status)
    end)

    it("says Cannot for what is not there", function()
        local answer = c:request("DELETE", "/auth/login")
        assert.same({ 404, "Cannot DELETE /auth/login", "Not Found" }, { answer.status, answer.json.message, answer.json.error })
    end)

    it("checks ids and pages", function()
        assert.equal(400, tenant.owner:get("/users/not-a-uuid").status)
        assert.equal(400, tenant.owner:get("/users?page=0").status)
        assert.equal(400, tenant.owner:get("/users?page=abc").status)
        assert.equal(100, tenant.owner:get("/users?limit=1000").json.limit)
        assert.same({ "page must be an integer number" }, { unpack(tenant.owner:get("/auth/logs/login?page=1.5").json.message) })
    end)

    it("takes statuses in any case and lists them", function()
        local shopper = support.shopper(tenant)
        local path = "/users/" .. shopper.user.id .. "/update"
        assert.same({ "status must be one of the following values: active, inactive, pending, suspended, locked, deleted" },
            { unpack(tenant.owner:post(path, { status = "ACTIV" }).json.message) })
        assert.equal("active", tenant.owner:post(path, { status = "ACTIVE" }).json.user.status)
        assert.equal("locked", tenant.owner:post(path, { status = "LOCKED" }).json.user.status)
        assert.equal(401, shopper:get("/auth/me").status)
        assert.equal(409, tenant.owner:post(path, { status = "suspended" }).status)
    end)

    it("keeps the last owner", function()
        local admin = support.user(tenant, "tenant_admin")
        local answer = admin:post("/users/" .. tenant.owner.user.id .. "/delete")
        assert.equal(409, answer.status)
        assert.equal(200, tenant.owner:get("/auth/me").status)
    end)

    it("lets one of two parallel codes through", function()
        local email = support.unique("p") .. "@example.test"
        assert.equal(201, c:post("/auth/register", { email = email, password = "secret-99" }).status)
        local code = support.code_for(email)
        local calls = {}
        for i = 1, 2 do
            local client = c:copy()
            calls[i] = function() return client:post("/auth/verify-otp", { identifier = email, code = code, type = "REGISTER" }).status end
        end
        local statuses = support.parallel(calls)
        table.sort(statuses)
        assert.same({ 200, 401 }, statuses)
    end)

    it("serves a stranger as a guest on public routes only", function()
        local other = support.tenant()
        local answer = tenant.owner:get("/api/ecommerce/products/list", other.headers)
        assert.equal(200, answer.status)
        answer = tenant.owner:get("/sales/orders/me", other.headers)
        assert.same({ 403, "You do not belong to this tenant" }, { answer.status, answer.json.message })
    end)

    it("makes no member where sign-up is closed", function()
        local closed = support.tenant{ settings = { ["auth.open_signup"] = false } }
        local email = support.unique("q") .. "@example.test"
        local client = support.client(closed.headers)
        assert.equal(201, client:post("/auth/register", { email = email, password = "secret-99" }).status)
        assert.equal(200, client:post("/auth/verify-otp", { identifier = email, code = support.code_for(email), type = "REGISTER" }).status)
        assert.equal(200, client:get("/users/me").status)
        assert.equal(403, client:get("/sales/orders/me").status)
    end)

    it("refuses a cookie's write from a foreign page", function()
        local answer = tenant.owner:post("/users/me/update", { first_name = "x" }, { ["Sec-Fetch-Site"] = "cross-site" })
        assert.equal(403, answer.status)
    end)

    it("recovers an account by code, for setting a password only", function()
        local shopper = support.shopper(tenant)
        local client = support.client(tenant.headers)
        assert.equal(200, client:post("/auth/forgot-password", { identifier = shopper.user.email }).status)
        assert.equal(200, client:post("/auth/forgot-password", { identifier = "nobody@example.test" }).status)
        local code = support.code_for(shopper.user.email)
        local answer = client:post("/auth/verify-otp", { identifier = shopper.user.email, code = code, type = "FORGOT_PASSWORD" })
        assert.equal(200, answer.status)
        assert.is_string(answer.json.reset_token)
        local refused = client:get("/sales/orders/me")
        assert.same({ 403, "Password change required" }, { refused.status, refused.json.message })
        assert.equal(200, client:get("/users/me").status)
        assert.equal(200, client:post("/auth/reset-password", { reset_token = answer.json.reset_token,
            new_password = "brand-new-1" }).status)
        assert.equal(401, client:post("/auth/reset-password", { reset_token = answer.json.reset_token,
            new_password = "brand-new-2" }).status)
        assert.equal(200, client:post("/auth/login", { identifier = shopper.user.email, password = "brand-new-1" }).status)
        assert.equal(401, shopper:get("/auth/me").status)
    end)
end)
