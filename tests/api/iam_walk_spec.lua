-- The acceptance walk of platform and IAM over HTTP, with its figures. Clients come from outside addresses, so that limits hold for them.
-- The stores of a test run are shared: what the walk counts it counts for its own user, tenant and keys.
local crypto = require("core.crypto")
local json = require("core.json")
local mongo = require("core.mongo")
local redis = require("core.redis")
local time = require("core.time")
local db = require("kasma.db")
local support = require("api.support")

local MASTER = { ["X-Tenant-Kasma-Id"] = "MASTER" }

local function told(answer) return { answer.status, answer.json and answer.json.message } end

-- All that an answer says, header by header, but for what every answer has anew: ids, times, and how much of a wait is left.
local function without_numbers(answer)
    local headers = {}
    for name, value in pairs(answer.headers) do
        if name ~= "date" and name ~= "x-request-id" then headers[#headers + 1] = name .. ": " .. value:gsub("%d+", "N") end
    end
    table.sort(headers)
    return table.concat(headers, "\n") .. "\n" .. answer.body:gsub('("requestId":")[^"]*', "%1")
end

-- The job that carries a code, as BullMQ keeps it.
local function job_of(otp_id)
    local newest = tonumber(redis.call("GET", "bull:mail-queue:id"))
    for id = newest, math.max(1, newest - 200), -1 do
        local job = redis.call("HMGET", "bull:mail-queue:" .. id, "name", "data", "opts")
        if type(job[2]) == "string" and job[2]:find(otp_id, 1, true) then
            return { name = job[1], data = json.decode(job[2]), text = job[2], opts = json.decode(job[3]) }
        end
    end
    return nil
end

describe("the walk of accounts", function()
    local platform = support.platform()
    local address = support.unique("a") .. "@Example.test"
    local email = address:lower()
    local pending = "auth:reg:" .. crypto.sha256(email)
    local ann = support.outside()
    local user_id, acme, acme_headers, first_entry

    it("1: answers health by text, by JSON and with the stores", function()
        local c = support.client()
        local health = c:get("/health")
        assert.same({ 200, "OK" }, { health.status, health.body })
        local ready = c:get("/health/ready")
        assert.same({ 200, "ok" }, { ready.status, ready.json.status })
        for _, check in ipairs{ "postgres", "mongo", "redis", "migrations" } do assert.equal("ok", ready.json.checks[check]) end
        local healthz = c:get("/healthz")
        assert.same({ 200, "ok" }, { healthz.status, healthz.json.status })
        assert.is_number(healthz.json.uptime)
        assert.is_true(healthz.json.workers >= 1)
    end)

    it("2: registers, with a code that is mailed and never kept", function()
        local answer = ann:post("/auth/register", { email = address, password = "secret-99", display_name = "Ann" }, MASTER)
        assert.equal(201, answer.status)
        assert.equal(email, answer.json.user.email)
        assert.equal("OTP sent. Verify to complete registration.", answer.json.message)
        ann.code = support.code_for(email)
        local otp = support.eventually(function()
            local rows = db.read(nil, "select *, extract(epoch from expires_at - created_at)::int as life from otps where identifier = $1",
                email)
            return #rows == 1 and rows[1].code_enc == nil and rows[1]
        end)
        assert.same({ true, 300, "REGISTER" }, { otp.is_active, otp.life, otp.type })
        local job = support.eventually(function() return job_of(otp.id) end)
        assert.equal("send-otp", job.name)
        assert.same({ 3, "exponential", 3000 }, { job.opts.attempts, job.opts.backoff.type, job.opts.backoff.delay })
        assert.is_nil(job.text:find(ann.code, 1, true))
        local ttl = redis.call("PTTL", pending)
        assert.is_true(ttl > 0 and ttl <= 600000)
        first_entry = redis.call("LRANGE", pending, "0", "-1")
        assert.equal(1, #first_entry)
        assert.is_nil(first_entry[1]:find("secret-99", 1, true))
    end)

    it("3: refuses a second registration within the cooldown and changes nothing", function()
        local answer = support.outside():post("/auth/register", { email = email, password = "other-99" }, MASTER)
        assert.same({ 400, "Please wait 60 seconds before requesting a new code" }, told(answer))
        local wait = tonumber(answer.headers["retry-after"])
        assert.is_true(wait >= 1 and wait <= 60)
        assert.same(first_entry, redis.call("LRANGE", pending, "0", "-1"))
    end)

    it("4: counts a wrong code", function()
        local wrong = ("%06d"):format((tonumber(ann.code) + 1) % 1000000)
        local answer = ann:post("/auth/verify-otp", { identifier = email, code = wrong, type = "REGISTER" }, MASTER)
        assert.same({ 401, "Invalid or expired OTP" }, told(answer))
        assert.equal(1, db.one(nil, "select attempts from otps where identifier = $1", email).attempts)
    end)

    it("5: takes the right one, once", function()
        local answer = ann:post("/auth/verify-otp", { identifier = email, code = ann.code, type = "REGISTER" }, MASTER)
        assert.equal(200, answer.status)
        assert.same({ "GENERAL_0", "Ann" }, { answer.json.user.user_type, answer.json.user.display_name })
        user_id = answer.json.user.id
        assert.matches("^%x+; Max%-Age=1800; Path=/; HttpOnly; SameSite=Lax$", ann.set_cookies.access_token)
        assert.matches("^%x+; Max%-Age=604800; Path=/; HttpOnly; SameSite=Lax$", ann.set_cookies.refresh_token)
        assert.same({ 64, 64 }, { #ann.cookies.access_token, #ann.cookies.refresh_token })
        local again = support.outside():post("/auth/verify-otp", { identifier = email, code = ann.code, type = "REGISTER" }, MASTER)
        assert.same({ 401, "Invalid or expired OTP" }, told(again))
    end)

    it("6: knows the caller by cookie and bearer, by nothing else", function()
        local me = ann:get("/auth/me")
        assert.same({ 200, user_id }, { me.status, me.json.user.id })
        local other = support.client()
        other.cookies.access_token = ann.cookies.refresh_token
        assert.same({ 401, "Invalid or expired access token" }, told(other:get("/auth/me")))
        assert.equal(200, support.client():get("/auth/me", { Authorization = "Bearer " .. ann.cookies.access_token }).status)
        assert.same({ 401, "Access token required" }, told(support.client():get("/auth/me", { ["X-User-Id"] = user_id })))
    end)

    it("7: shows and changes the caller's profile", function()
        local me = ann:get("/users/me").json.user
        assert.same({ "MASTER", "MASTER", "active" }, { me.tenant_key, me.app_key, me.status })
        assert.equal(json.null, me.profile.first_name)
        local answer = ann:post("/users/me/update", { first_name = "Ann", social_links = { "a" }, subscription_status = "PAID",
            bio = "hi" })
        assert.equal(200, answer.status)
        local profile = answer.json.user.profile
        assert.same({ "hi", json.null, "Ann", "a" }, { profile.bio, profile.subscription_status, profile.first_name,
            table.concat(profile.social_links, ",") })
        answer = ann:post("/users/me/update", { nickname = "x" })
        assert.equal(400, answer.status)
        assert.same({ "property nickname should not exist" }, { unpack(answer.json.message) })
    end)

    it("8: denies, and keeps a record of it whose body lies in MongoDB", function()
        assert.same({ 403, "Forbidden resource" }, told(ann:get("/users")))
        local rows = db.read("MASTER", "select id from audit_index where tenant_key = 'MASTER' and actor_id = $1 and outcome = 'denied'",
            user_id)
        assert.equal(1, #rows)
        local body = support.eventually(function()
            local doc = mongo.find_one("audit_log", { _id = rows[1].id })
            return type(doc) == "table" and doc
        end)
        assert.same({ user_id, "denied" }, { body.actor.id, body.outcome })
    end)

    it("9: makes a tenant and an app", function()
        acme = support.unique("acme")
        acme_headers = { ["X-Tenant-Kasma-Id"] = acme }
        assert.equal(201, platform:post("/tenants", { tenant_key = acme, name = "Acme" }).status)
        assert.equal(409, platform:post("/tenants", { tenant_key = acme, name = "Acme" }).status)
        assert.equal(201, platform:post("/apps", { app_key = acme .. "-shop", name = "Shop", kind = "storefront" }, acme_headers).status)
    end)

    it("10: makes a member and gives a role, up to what the user's type may hold", function()
        assert.equal(201, platform:post("/tenants/" .. acme .. "/members/add", { user_id = user_id }).status)
        local made = platform:post("/roles", { code = "MANAGER", role_key = "manager", display_name = "Manager",
            permission_keys = { "users.read" } }, acme_headers)
        assert.equal(201, made.status)
        local function assign()
            return platform:post("/users/" .. user_id .. "/roles/assign", { role_id = made.json.role.id }, acme_headers)
        end
        assert.same({ 403, "The user's type cannot hold this role" }, told(assign()))
        assert.equal(200, platform:post("/users/" .. user_id .. "/update", { user_type = "TENANT_1" }, acme_headers).status)
        assert.same({ 201, "Role assigned successfully" }, told(assign()))
        assert.same({ 409, "Role already assigned" }, told(assign()))
        local roles = platform:get("/users/" .. user_id .. "/roles", acme_headers).json.roles
        assert.same({ 1, "manager", "tenant" }, { #roles, roles[1].role_key, roles[1].scope })
    end)

    it("11: lets a member act in the tenant and nowhere else", function()
        local list = ann:get("/users", acme_headers)
        assert.same({ 200, 1, user_id }, { list.status, list.json.total, list.json.data[1].id })
        assert.same({ 403, "Forbidden resource" }, told(ann:get("/users")))
        assert.same({ 403, "Tenant is not available" }, told(ann:get("/users", { ["X-Tenant-Kasma-Id"] = support.unique("zeta") })))
        local zeta = support.tenant()
        assert.same({ 403, "You do not belong to this tenant" }, told(ann:get("/users", zeta.headers)))
    end)

    it("12: makes keys that act with their scopes until they are revoked", function()
        assert.equal(403, ann:post("/roles", { code = "X", role_key = "x", display_name = "X", permission_keys = { "users.delete" } },
            acme_headers).status)
        local made = platform:post("/tenants/" .. acme .. "/keys/create", { name = "ci", key_type = "secret", scopes = { "users.read" } })
        assert.equal(201, made.status)
        local secret = made.json.key.secret
        assert.matches("^ksk_live_%w%w%w%w%w%w%w%w_%w+$", secret)
        assert.equal(40, #secret:match("_(%w+)$"))
        local client = support.client({ Authorization = "Bearer " .. secret })
        assert.equal(200, client:get("/users").status)
        local listed = platform:get("/tenants/" .. acme .. "/keys").json.data[1]
        assert.equal(secret:sub(-4), listed.last4)
        assert.is_nil(listed.secret)
        -- A second node has taken the key too, and hears of its end as the first does.
        local node = support.server{}
        local there = support.client(client.headers)
        there.url = node.url
        local ok, ms = pcall(function()
            assert.equal(200, there:get("/users").status)
            assert.equal(200, platform:post("/tenants/" .. acme .. "/keys/" .. made.json.key.id .. "/revoke").status)
            local function both() return { client:get("/users").status, there:get("/users").status } end
            local _, took = support.eventually(function()
                local now = both()
                return now[1] == 401 and now[2] == 401
            end)
            for _ = 1, 4 do assert.same({ 401, 401 }, both()) end
            return took
        end)
        node.stop()
        assert(ok, ms)
        print(("a revoked key was refused on two nodes after %d ms"):format(ms))
    end)

    it("13: installs modules after what they need, and takes them out before", function()
        local core, sales = support.unique("core"):lower(), support.unique("sales"):lower()
        local made = platform:post("/registry/modules", { key = core, name = "Core" })
        assert.same({ 201, 0 }, { made.status, #made.json.module.dependencies })
        assert.equal(201, platform:post("/registry/modules", { key = sales, name = "Sales", dependencies = { core } }).status)
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

    it("14: gates modules where the tenant says so", function()
        local function set(settings) return platform:post("/tenants/" .. acme .. "/update", { settings = settings }).status end
        assert.equal(200, set{ ["registry.enforce"] = "on" })
        assert.equal(400, set{ ["registry.enforced"] = "on" })
        local both = { ["X-Tenant-Kasma-Id"] = acme, ["X-App-Kasma-Id"] = acme .. "-shop" }
        assert.same({ 403, "App and Tenant do not have access to module: sales" }, told(ann:get("/sales/cart/me", both)))
        for _, key in ipairs{ "catalog", "sales" } do
            assert.equal(201, platform:post("/registry", { app_family_key = acme .. "-shop", tenant_key = acme,
                module_key = key }).status)
        end
        support.eventually(function() return ann:get("/sales/cart/me", both).status == 200 end)
        local access = ann:get("/registry/access?module_key=SALES", both)
        assert.same({ 200, true, "1.0.0" }, { access.status, access.json.allowed, access.json.version })
        assert.same({ 403, "Missing X-App-Kasma-Id or X-Tenant-Kasma-Id headers" }, told(ann:get("/sales/cart/me", acme_headers)))
        assert.equal(200, set{ ["registry.enforce"] = json.null })
    end)

    it("15: answers the same key the same, once", function()
        local function make(key, role_key, who)
            local headers = { ["X-Tenant-Kasma-Id"] = acme, ["X-Idempotency-Key"] = key }
            return (who or platform):post("/roles", { code = "K", role_key = role_key, display_name = "K" }, headers)
        end
        local first, again = make("k1", "one"), make("k1", "one")
        assert.same({ 201, 201 }, { first.status, again.status })
        assert.equal(first.json.role.id, again.json.role.id)
        assert.equal(first.body, again.body)
        assert.same({ nil, "true" }, { first.headers["idempotent-replayed"], again.headers["idempotent-replayed"] })
        assert.same({ 409, "Idempotency key reused with different payload. Please use a new key for different requests." },
            told(make("k1", "two")))
        local calls = {}
        for i = 1, 20 do
            local caller = platform:copy()
            calls[i] = function() return make("k2", "many", caller) end
        end
        local fresh, ids = 0, {}
        for _, answer in ipairs(support.parallel(calls)) do
            if answer.status == 201 then
                ids[answer.json.role.id] = true
                if not answer.headers["idempotent-replayed"] then fresh = fresh + 1 end
            else
                assert.same({ 409, "Request is being processed. Please retry.", "in_progress", "1" }, { answer.status, answer.json.message,
                    answer.json.code, answer.headers["retry-after"] })
            end
        end
        assert.equal(1, fresh)
        local id = next(ids)
        assert.is_nil((next(ids, id)))
        assert.equal(1, db.one(acme, "select count(*)::int as n from roles where tenant_key = $1 and role_key = 'many'", acme).n)
        local refused = make("k1", "one", ann)
        assert.same({ 403, "Forbidden resource" }, told(refused))
        assert.is_nil(refused.headers["idempotent-replayed"])
    end)

    it("16: rotates tokens, lets parallel tabs through, ends the family on reuse", function()
        local old = ann:copy()
        assert.equal(200, ann:post("/auth/refresh").status)
        assert.is_not.equal(old.cookies.access_token, ann.cookies.access_token)
        assert.equal(401, old:copy():get("/auth/me").status)
        local tab = old:copy()
        assert.equal(200, tab:post("/auth/refresh").status)
        assert.equal(ann.cookies.refresh_token, tab.cookies.refresh_token)
        support.advance(platform, 11)
        local late, newest = old:copy():post("/auth/refresh"), ann:copy():post("/auth/refresh")
        support.real_time(platform)
        assert.same({ 401, "Invalid or expired refresh token" }, told(late))
        assert.equal(401, newest.status)
        assert.equal(401, ann:get("/auth/me").status)
        assert.equal(1, db.one("MASTER", "select count(*)::int as n from audit_auth_log where tenant_key = 'MASTER' and user_id = $1 "
            .. "and action = 'TOKEN_REUSE'", user_id).n)
    end)

    it("17: signs in by password and code; a password change ends the other sessions", function()
        local function sign_in(c)
            local before, mails = support.mail_to(email), support.mail_count(email)
            for _ = 1, 2 do
                local answer = c:post("/auth/login", { identifier = email, password = "secret-99" }, MASTER)
                assert.equal(401, answer.status)
                assert.same({ false, true, "LOGIN", email, "Login requires OTP verification. OTP sent to email." }, { answer.json.success,
                    answer.json.requiresOtp, answer.json.type, answer.json.identifier, answer.json.message })
                assert.is_nil(answer.json.statusCode)
            end
            local code = support.code_for(email, before and before:match("%f[%d](%d%d%d%d%d%d)%f[%D]"))
            assert.equal(mails + 1, support.mail_count(email))
            assert.equal(200, c:post("/auth/verify-otp", { identifier = email, code = code, type = "LOGIN" }, MASTER).status)
            return c
        end
        local b, c = sign_in(support.outside()), sign_in(support.outside())
        assert.same({ 400, "Current password is incorrect" },
            told(b:post("/users/me/change-password", { current_password = "nonsense", new_password = "secret-100" })))
        assert.equal(200, c:get("/auth/me").status)
        assert.same({ 200, "Password changed successfully" },
            told(b:post("/users/me/change-password", { current_password = "secret-99", new_password = "secret-100" })))
        assert.equal(200, b:get("/auth/me").status)
        assert.equal(401, c:get("/auth/me").status)
        ann = b
    end)

    it("18: makes whoever guesses wait, and tells nothing by it", function()
        local function attempts(identifier)
            local c, answers, wait, began = support.outside(), {}, nil, time.mono()
            for i = 1, 6 do
                local answer = c:post("/auth/login", { identifier = identifier, password = "wrong-" .. i }, MASTER)
                answers[i] = { answer.status, answer.json.message, whole = without_numbers(answer) }
                if i == 6 then wait = tonumber(answer.headers["retry-after"]) end
            end
            return answers, wait, c, math.ceil((time.mono() - began) / 1e6)
        end
        local known, wait, c, took = attempts(email)
        local unknown = attempts(support.unique("nobody") .. "@example.test")
        for i = 1, 5 do assert.same({ 401, "Invalid credentials" }, { known[i][1], known[i][2] }) end
        assert.same({ 429, "Too many requests" }, { known[6][1], known[6][2] })
        assert.is_true(wait >= 60 - took and wait <= 60, wait)
        assert.same(known, unknown)
        local right = { identifier = email, password = "secret-100" }
        assert.equal(429, c:post("/auth/login", right, MASTER).status)
        support.advance(platform, 60)
        local answer = c:post("/auth/login", right, MASTER)
        support.real_time(platform)
        assert.same({ 401, true }, { answer.status, answer.json.requiresOtp })
    end)

    it("19: shows the sign-in log as the reference does", function()
        local answer = platform:get("/auth/logs/login?action=REGISTER_SUCCESS&limit=2&user_id=" .. user_id, MASTER)
        assert.equal(200, answer.status)
        assert.same({ 1, 1, 2, 1 }, { answer.json.total, answer.json.page, answer.json.limit, answer.json.totalPages })
        assert.equal("otp", json.decode(answer.json.data[1].metadata).method)
        local own = ann:get("/auth/logs/login?limit=100")
        assert.equal(200, own.status)
        assert.is_true(own.json.total >= 5)
        for _, row in ipairs(own.json.data) do assert.equal(user_id, row.user_id) end
    end)
end)
