-- Accounts: recovery, second factor, waits after failures, deletion and return, what an account may ask about itself.
local crypto = require("core.crypto")
local json = require("core.json")
local redis = require("core.redis")
local time = require("core.time")
local db = require("kasma.db")
local secrets = require("kasma.secrets")
local cleanup = require("modules.iam.cleanup")
local totp = require("modules.iam.totp")
local shop_of = require("api.shop")
local support = require("api.support")

local must = shop_of.must
local function told(answer) return { answer.status, answer.json and answer.json.message } end
local SIGN_IN = "/auth/login"

local function login(tenant, email, password, client)
    client = client or support.client(tenant.headers)
    return client:post(SIGN_IN, { identifier = email, password = password }), client
end

local function verify(client, email, code, type)
    return client:post("/auth/verify-otp", { identifier = email, code = code, type = type })
end

describe("recovery", function()
    local tenant = support.tenant()

    local function recovered()
        local shopper = support.shopper(tenant)
        local client = support.client(tenant.headers)
        assert.equal(200, client:post("/auth/forgot-password", { identifier = shopper.user.email }).status)
        local answer = verify(client, shopper.user.email, support.code_for(shopper.user.email), "FORGOT_PASSWORD")
        assert.equal(200, answer.status)
        return client, shopper, answer.json.reset_token
    end

    it("answers the same for an address that nobody has", function()
        local c = support.client(tenant.headers)
        local known = c:post("/auth/forgot-password", { identifier = support.shopper(tenant).user.email })
        local unknown = c:post("/auth/forgot-password", { identifier = support.unique("n") .. "@example.test" })
        assert.same({ 200, known.body }, { unknown.status, unknown.body })
    end)

    it("gives a session for nothing but a new password, which cannot be stretched", function()
        local client = recovered()
        local function refused(answer) assert.same({ 403, "Password change required" }, told(answer)) end
        assert.equal(200, client:get("/auth/me").status)
        assert.equal(200, client:get("/users/me").status)
        assert.is_true(must(client:get("/auth/sessions"), 200).data[1].current)
        refused(client:get("/sales/orders/me"))
        refused(client:post("/users/me/update", { first_name = "x" }))
        refused(client:get("/users/me/export"))
        refused(client:post("/users/me/delete"))
        refused(client:post("/auth/2fa/setup"))
        refused(client:post("/auth/context", { tenant_key = tenant.key }))
        local later = client:copy()
        assert.same({ 401, "Invalid or expired refresh token" }, told(later:post("/auth/refresh")))
        refused(client:get("/sales/orders/me"))
    end)

    it("sets the password by the token once, and ends every session", function()
        local client, shopper, token = recovered()
        assert.equal(400, client:post("/auth/reset-password", { reset_token = token, new_password = "short" }).status)
        assert.same({ 200, "Password changed successfully" },
            told(client:post("/auth/reset-password", { reset_token = token, new_password = "brand-new-1" })))
        assert.equal(401, client:post("/auth/reset-password", { reset_token = token, new_password = "brand-new-2" }).status)
        assert.equal(401, shopper:get("/auth/me").status)
        assert.equal(401, client:get("/auth/me").status)
        assert.equal(200, (login(tenant, shopper.user.email, "brand-new-1")).status)
    end)

    it("sets the password from the session without the old one", function()
        local client, shopper = recovered()
        assert.equal(200, client:post("/users/me/change-password", { new_password = "brand-new-3" }).status)
        assert.equal(200, (login(tenant, shopper.user.email, "brand-new-3")).status)
        assert.equal(401, (login(tenant, shopper.user.email, shopper.user.password)).status)
    end)

    it("does not take one of the last five passwords", function()
        local shopper = support.shopper(tenant)
        local now = shopper.user.password
        for i = 1, 4 do
            must(shopper:post("/users/me/change-password", { current_password = now, new_password = "another-" .. i }), 200)
            now = "another-" .. i
        end
        for _, used in ipairs{ shopper.user.password, "another-1", "another-4" } do
            assert.same({ 400, "Password was used before" },
                told(shopper:post("/users/me/change-password", { current_password = now, new_password = used })))
        end
    end)
end)

describe("a registration", function()
    it("that somebody else began too leaves an account without a password", function()
        local tenant = support.tenant()
        local platform = support.platform()
        local email = support.unique("v") .. "@example.test"
        local attacker, victim = support.client(tenant.headers), support.client(tenant.headers)
        assert.equal(201, attacker:post("/auth/register", { email = email, password = "planted-1" }).status)
        local first = support.code_for(email)
        support.advance(platform, 61)
        local second = victim:post("/auth/register", { email = email, password = "victims-1" })
        support.real_time(platform)
        assert.equal(201, second.status)
        local code = support.code_for(email, first)
        local bare = support.client(tenant.headers)
        local answer = verify(bare, email, code, "REGISTER")
        assert.equal(200, answer.status)
        assert.same({ 403, "Password change required" }, told(bare:get("/sales/orders/me")))
        assert.equal(401, (login(tenant, email, "planted-1")).status)
        assert.equal(200, bare:post("/users/me/change-password", { new_password = "mine-now-1" }).status)
        assert.equal(200, (login(tenant, email, "mine-now-1")).status)
    end)

    it("is known by its nonce to the browser that began it", function()
        local tenant = support.tenant()
        local platform = support.platform()
        local email = support.unique("v") .. "@example.test"
        local attacker, victim = support.client(tenant.headers), support.client(tenant.headers)
        assert.equal(201, attacker:post("/auth/register", { email = email, password = "planted-1" }).status)
        local first = support.code_for(email)
        support.advance(platform, 61)
        local second = victim:post("/auth/register", { email = email, password = "victims-1" })
        support.real_time(platform)
        assert.equal(201, second.status)
        assert.equal(200, verify(victim, email, support.code_for(email, first), "REGISTER").status)
        assert.equal(200, victim:get("/sales/orders/me").status)
        assert.equal(200, (login(tenant, email, "victims-1")).status)
    end)

    it("of a known address is told by default, and where the tenant hides it, to the owner alone", function()
        local open = support.tenant()
        local shopper = support.shopper(open)
        local body = { email = shopper.user.email, password = "secret-99" }
        assert.same({ 409, "Email already registered" }, told(support.client(open.headers):post("/auth/register", body)))
        local hiding = support.tenant{ settings = { ["auth.hide_existence"] = true } }
        local function sign_up(email)
            return support.client(hiding.headers):post("/auth/register", { email = email, password = "secret-99" })
        end
        local known, fresh = sign_up(shopper.user.email), sign_up(support.unique("f") .. "@example.test")
        assert.same({ 201, 201 }, { known.status, fresh.status })
        assert.same(fresh.json.message, known.json.message)
        assert.matches("tài khoản", (support.eventually(function() return support.mail_to(shopper.user.email) end)))
        assert.same({ 400, "Please wait 60 seconds before requesting a new code" }, told(sign_up(shopper.user.email)))
    end)

    it("that is begun ten times at once mails one code", function()
        local tenant = support.tenant()
        local shopper = support.shopper(tenant)
        local email = support.unique("t") .. "@example.test"
        local registers, recoveries = {}, {}
        for i = 1, 10 do
            registers[i] = function()
                return support.client(tenant.headers):post("/auth/register", { email = email, password = "secret-" .. i })
            end
            recoveries[i] = function()
                return support.client(tenant.headers):post("/auth/forgot-password", { identifier = shopper.user.email })
            end
        end
        assert.same({ [201] = 1, [400] = 9 }, shop_of.statuses(support.parallel(registers)))
        assert.same({ [200] = 10 }, shop_of.statuses(support.parallel(recoveries)))
        support.code_for(email)
        support.code_for(shopper.user.email)
        for _, address in ipairs{ email, shopper.user.email } do
            assert.equal(1, db.one(nil, "select count(*)::int as n from otps where identifier = $1", address).n)
            assert.equal(1, support.mail_count(address))
        end
    end)

    it("is taken back by who began it, and the cooldown stays", function()
        local tenant = support.tenant()
        local email = support.unique("c") .. "@example.test"
        local mine, other = support.client(tenant.headers), support.client(tenant.headers)
        assert.equal(201, mine:post("/auth/register", { email = email, password = "secret-99" }).status)
        local code = support.code_for(email)
        assert.equal(200, other:post("/auth/cancel-otp", { identifier = email, type = "REGISTER" }).status)
        assert.is_true(db.one(nil, "select is_active from otps where identifier = $1", email).is_active)
        assert.equal(200, mine:post("/auth/cancel-otp", { identifier = email, type = "REGISTER" }).status)
        assert.equal(401, verify(mine, email, code, "REGISTER").status)
        assert.equal(400, mine:post("/auth/register", { email = email, password = "secret-99" }).status)
    end)

    it("meets the tenant's policy", function()
        local strict = support.tenant{ settings = { ["auth.password_min_length"] = 10, ["auth.password_classes"] = 3,
            ["auth.password_breached_check"] = true } }
        local function try(password)
            return support.client(strict.headers):post("/auth/register", { email = support.unique("p") .. "@example.test",
                password = password })
        end
        assert.same({ 400, "Password must be at least 10 characters" }, { try("Ab1defgh").status, try("Ab1defgh").json.message[1] })
        assert.equal(400, try("abcdefghijkl").status)
        assert.same({ 400, "Password is in the list of passwords that are known to attackers" },
            { try("Password123").status, try("Password123").json.message[1] })
        assert.equal(201, try("Ab1-unlikely-dg").status)
    end)
end)

-- A user of the tenant with a second factor: client, a function that makes codes, recovery codes, the code that is used. It is used in the
-- step of now, and the next one is made a step ahead: either holds as well when that step ends on the way. One of the step before would
-- be two behind by then.
local function with_totp(tenant)
    local shopper = support.shopper(tenant)
    local setup = must(shopper:post("/auth/2fa/setup"), 200)
    assert.matches("^otpauth://totp/", setup.uri)
    local row = db.one(nil, "select secret_enc from user_credentials where user_id = $1 and provider = 'totp'", shopper.user.id)
    local secret = secrets.open("totp", row.secret_enc, shopper.user.id)
    assert.is_nil(row.secret_enc:find(secret, 1, true))
    local function code(offset) return totp.code(secret, math.floor(time.now() / 30000) + (offset or 0)) end
    local used = code()
    local confirmed = must(shopper:post("/auth/2fa/confirm", { code = used }), 200)
    assert.equal(10, #confirmed.recovery_codes)
    return shopper, code, confirmed.recovery_codes, used
end

describe("a second factor", function()
    local tenant = support.tenant()

    it("is asked for after the password, and a code holds once", function()
        local shopper, code, _, used = with_totp(tenant)
        local answer, client = login(tenant, shopper.user.email, shopper.user.password)
        assert.same({ 401, true, "TWO_FA" }, { answer.status, answer.json.requiresOtp, answer.json.type })
        assert.equal(401, verify(client, shopper.user.email, "000000", "TWO_FA").status)
        assert.equal(401, verify(client, shopper.user.email, used, "TWO_FA").status)
        local now = code(1)
        assert.equal(200, verify(client, shopper.user.email, now, "TWO_FA").status)
        assert.same({ "pwd", "totp" }, db.one(nil, [[select amr from auth_sessions where user_id = $1 order by created_at desc limit 1]],
            shopper.user.id).amr)
        answer, client = login(tenant, shopper.user.email, shopper.user.password)
        assert.equal(401, answer.status)
        assert.equal(401, verify(client, shopper.user.email, now, "TWO_FA").status)
    end)

    it("needs the password step first", function()
        local shopper, code = with_totp(tenant)
        assert.equal(401, verify(support.client(tenant.headers), shopper.user.email, code(1), "TWO_FA").status)
    end)

    it("is replaced by a recovery code, once", function()
        local shopper, _, codes = with_totp(tenant)
        local _, client = login(tenant, shopper.user.email, shopper.user.password)
        assert.equal(200, verify(client, shopper.user.email, codes[3], "TWO_FA").status)
        _, client = login(tenant, shopper.user.email, shopper.user.password)
        assert.equal(401, verify(client, shopper.user.email, codes[3], "TWO_FA").status)
        assert.equal(200, verify(client, shopper.user.email, codes[4], "TWO_FA").status)
    end)

    it("outlives a forgotten password", function()
        local shopper, code = with_totp(tenant)
        local client = support.client(tenant.headers)
        assert.equal(200, client:post("/auth/forgot-password", { identifier = shopper.user.email }).status)
        local answer = verify(client, shopper.user.email, support.code_for(shopper.user.email), "FORGOT_PASSWORD")
        must(client:post("/auth/reset-password", { reset_token = answer.json.reset_token, new_password = "brand-new-1" }), 200)
        local signed
        answer, signed = login(tenant, shopper.user.email, "brand-new-1")
        assert.same({ 401, "TWO_FA" }, { answer.status, answer.json.type })
        assert.equal(200, verify(signed, shopper.user.email, code(1), "TWO_FA").status)
    end)

    it("is switched off with a code, after a sign-in that is not old", function()
        local shopper, code = with_totp(tenant)
        local platform = support.platform()
        support.advance(platform, 601)
        local old = shopper:post("/auth/2fa/disable", { code = code() })
        shopper:post("/auth/refresh")
        local refreshed = shopper:post("/auth/2fa/disable", { code = code() })
        support.real_time(platform)
        assert.same({ { 401, "Please sign in again" }, { 401, "Please sign in again" } }, { told(old), told(refreshed) })
        local _, client = login(tenant, shopper.user.email, shopper.user.password)
        must(verify(client, shopper.user.email, code(1), "TWO_FA"), 200)
        assert.equal(401, client:post("/auth/2fa/disable", { code = "000000" }).status)
        support.advance(platform, 60) -- to a step whose code was not used yet
        local off = client:post("/auth/2fa/disable", { code = code(1) }).status
        support.real_time(platform)
        assert.equal(200, off)
        assert.equal(200, (login(tenant, shopper.user.email, shopper.user.password)).status)
    end)

    it("is kept out of the profile's own words until it is on", function()
        local shopper = support.shopper(tenant)
        local answer = must(shopper:post("/users/me/update", { security_settings = { "2fa", "login_alert" } }), 200)
        assert.same({ "login_alert" }, { unpack(answer.user.profile.security_settings) })
    end)
end)

describe("the code step", function()
    it("is skipped for a device that was seen, where the tenant says so", function()
        local tenant = support.tenant{ settings = { ["auth.login_otp"] = "never" } }
        local shopper = support.shopper(tenant)
        must(tenant.owner:post("/tenants/" .. tenant.key .. "/update", { settings = { ["auth.login_otp"] = "new_device" } }), 200)
        local known = support.outside{ ["X-Tenant-Kasma-Id"] = tenant.key, ["User-Agent"] = "phone/1" }
        local answer = login(tenant, shopper.user.email, shopper.user.password, known)
        assert.same({ 401, "LOGIN" }, { answer.status, answer.json.type })
        assert.equal(200, verify(known, shopper.user.email, support.code_for(shopper.user.email), "LOGIN").status)
        known.cookies = {}
        assert.equal(200, (login(tenant, shopper.user.email, shopper.user.password, known)).status)
        known.headers["User-Agent"] = "laptop/2"
        known.cookies = {}
        assert.equal(401, (login(tenant, shopper.user.email, shopper.user.password, known)).status)
    end)

    it("dies with its fifth wrong code, and then waits", function()
        local tenant = support.tenant()
        local email = support.unique("w") .. "@example.test"
        local client = support.outside(tenant.headers)
        assert.equal(201, client:post("/auth/register", { email = email, password = "secret-99" }).status)
        local code = support.code_for(email)
        local wrong = ("%06d"):format((tonumber(code) + 1) % 1000000)
        for _ = 1, 5 do assert.equal(401, verify(client, email, wrong, "REGISTER").status) end
        local answer = verify(client, email, code, "REGISTER")
        assert.same({ 429, "Too many requests" }, told(answer))
        assert.is_true(tonumber(answer.headers["retry-after"]) <= 300)
        local nobody = support.unique("w") .. "@example.test"
        for _ = 1, 5 do assert.equal(401, verify(client, nobody, wrong, "REGISTER").status) end
        assert.equal(429, verify(client, nobody, wrong, "REGISTER").status)
    end)
end)

describe("a limit of the sign-in", function()
    local tenant = support.tenant()
    local platform = support.platform()
    local function outside() return support.outside(tenant.headers) end
    local function address() return support.unique("l") .. "@example.test" end

    -- The statuses of `count` calls of fn, one after another.
    local function statuses(count, fn)
        local list = {}
        for i = 1, count do list[i] = fn(i).status end
        return list
    end
    local function times(count, status, last)
        local list = {}
        for i = 1, count do list[i] = status end
        list[count + 1] = last
        return list
    end

    it("doubles the wait with each further failure, up to an hour", function()
        local shopper = support.shopper(tenant)
        local function try(password) return (login(tenant, shopper.user.email, password, outside())) end
        assert.same(times(5, 401), statuses(5, function() return try("wrong-one") end))
        local before = 0
        for _, wait in ipairs{ 60, 120, 240, 480, 960, 1920, 3600 } do
            local answer = try(shopper.user.password) -- the right one waits too
            assert.equal(429, answer.status)
            local left = tonumber(answer.headers["retry-after"])
            assert.is_true(left <= wait and left > before, wait .. ": " .. left)
            support.advance(platform, wait + 1)
            assert.equal(401, try("wrong-one").status)
            before = wait
        end
        support.real_time(platform)
    end)

    it("lets ten registrations of an address through in an hour, of IPv6 by its network", function()
        local function register(headers)
            local client = support.client(tenant.headers)
            return client:post("/auth/register", { email = address(), password = "secret-99" }, headers)
        end
        local home = outside().headers
        assert.same(times(10, 201, 429), statuses(11, function() return register(home) end))
        local network = ("2001:db8:%s:%s"):format(crypto.random_hex(2), crypto.random_hex(2))
        assert.same(times(10, 201, 429), statuses(11, function(i)
            return register{ ["X-Forwarded-For"] = ("%s::%x"):format(network, i) }
        end))
        assert.equal(201, register(outside().headers).status)
    end)

    it("sends an address five codes an hour, and twenty to whomever one caller names", function()
        local function forgot(client, identifier) return client:post("/auth/forgot-password", { identifier = identifier }) end
        local shopper, nobody = support.shopper(tenant), address()
        for _, identifier in ipairs{ shopper.user.email, nobody } do
            assert.same(times(5, 200, 429), statuses(6, function() return forgot(outside(), identifier) end))
        end
        local caller = outside()
        assert.same(times(20, 200, 429), statuses(21, function() return forgot(caller, address()) end))
    end)

    it("counts wrong codes alike whether or not somebody is signing in", function()
        local coded = support.tenant()
        local shopper = support.shopper(coded)
        must(coded.owner:post("/tenants/" .. coded.key .. "/update", { settings = { ["auth.login_otp"] = json.null } }), 200)
        support.eventually(function()
            return login(coded, shopper.user.email, shopper.user.password, support.outside(coded.headers)).status == 401
        end)
        for _, type in ipairs{ "LOGIN", "TWO_FA" } do
            for what, identifier in pairs{ ["signing in"] = shopper.user.email, nobody = address() } do
                assert.same(times(5, 401, 429), statuses(6, function() return verify(outside(), identifier, "000000", type) end),
                    type .. " of " .. what)
            end
        end
        -- Twenty in an hour, of all kinds together.
        local all, kinds = address(), { "LOGIN", "REGISTER", "FORGOT_PASSWORD", "TWO_FA" }
        assert.same(times(20, 401, 429), statuses(21, function(i) return verify(outside(), all, "000000", kinds[i % 4 + 1]) end))
    end)
end)

describe("failed sign-ins", function()
    it("suspend an account for a day after twenty, and say so by mail", function()
        local tenant = support.tenant()
        local platform = support.platform()
        local shopper = support.shopper(tenant)
        local key = "rl:login:" .. crypto.sha256(shopper.user.email)
        for _ = 1, 20 do
            redis.call("HDEL", key, "last") -- the waits are another test's
            local answer = login(tenant, shopper.user.email, "wrong-one", support.outside(tenant.headers))
            assert.equal(401, answer.status)
        end
        assert.equal(401, shopper:get("/auth/me").status, "sessions of a suspended account have ended")
        assert.equal(401, shopper:post("/auth/refresh").status)
        assert.matches("24 giờ", (support.eventually(function() return support.mail_to(shopper.user.email) end)))
        redis.call("HDEL", key, "last")
        assert.same({ 401, "Account is locked or suspended" },
            told((login(tenant, shopper.user.email, shopper.user.password, support.outside(tenant.headers)))))
        local state = must(tenant.owner:get("/users/" .. shopper.user.id .. "/lockout"), 200).lockout
        assert.same({ "suspended", 20 }, { state.status, state.failures_today })
        redis.call("DEL", key)
        support.advance(platform, 86401)
        local after = login(tenant, shopper.user.email, shopper.user.password, support.outside(tenant.headers))
        support.real_time(platform)
        assert.equal(200, after.status)
    end)

    it("are forgotten when staff releases the user", function()
        local tenant = support.tenant()
        local shopper = support.shopper(tenant)
        for _ = 1, 5 do login(tenant, shopper.user.email, "wrong-one", support.outside(tenant.headers)) end
        assert.equal(429, (login(tenant, shopper.user.email, shopper.user.password, support.outside(tenant.headers))).status)
        local state = must(tenant.owner:get("/users/" .. shopper.user.id .. "/lockout"), 200).lockout
        assert.equal(5, state.failures)
        assert.is_string(state.waits_until)
        assert.equal(403, shopper:post("/users/" .. shopper.user.id .. "/unlock").status)
        assert.equal(200, tenant.owner:post("/users/" .. shopper.user.id .. "/unlock").status)
        assert.equal(200, (login(tenant, shopper.user.email, shopper.user.password, support.outside(tenant.headers))).status)
    end)

    it("from one address stop at thirty, whomever they name", function()
        local tenant = support.tenant()
        local client = support.outside(tenant.headers)
        for _ = 1, 30 do assert.equal(401, (login(tenant, support.unique("x") .. "@example.test", "wrong-one", client)).status) end
        assert.equal(429, (login(tenant, support.unique("x") .. "@example.test", "wrong-one", client)).status)
    end)

    it("are counted where a password is changed too, and end the session of who guesses", function()
        local tenant = support.tenant()
        local shopper = support.shopper(tenant)
        local key = "rl:login:" .. crypto.sha256(shopper.user.email)
        local thief = support.outside(tenant.headers)
        for name, value in pairs(shopper.cookies) do thief.cookies[name] = value end
        local function change(client, current)
            return told(client:post("/users/me/change-password", { current_password = current, new_password = "brand-new-9" }))
        end
        for _ = 1, 5 do assert.same({ 400, "Current password is incorrect" }, change(thief, "wrong-one")) end
        assert.equal(429, change(thief, "wrong-one")[1])
        assert.equal(429, change(thief, shopper.user.password)[1], "nor the right one during the wait")
        assert.equal(429, (login(tenant, shopper.user.email, shopper.user.password, support.outside(tenant.headers))).status)
        assert.equal(5, must(tenant.owner:get("/users/" .. shopper.user.id .. "/lockout"), 200).lockout.failures)
        assert.equal(200, thief:get("/auth/me").status)
        for _ = 6, 20 do
            redis.call("HDEL", key, "last") -- the wait is over
            assert.equal(400, change(thief, "wrong-one")[1])
        end
        assert.equal(401, thief:get("/auth/me").status)
        assert.equal("suspended", must(tenant.owner:get("/users/" .. shopper.user.id .. "/lockout"), 200).lockout.status)
        assert.equal(20, db.one(tenant.key, [[select count(*)::int as n from audit_auth_log where tenant_key = $1 and user_id = $2
          and action = 'PASSWORD_CHANGE_FAILED']], tenant.key, shopper.user.id).n)
    end)

    it("where a password is changed are no more than five however many come at once, and are forgotten with the right one", function()
        local tenant = support.tenant()
        local shopper = support.shopper(tenant)
        local client = support.outside(tenant.headers)
        for name, value in pairs(shopper.cookies) do client.cookies[name] = value end
        local body = { current_password = "wrong-one", new_password = "brand-new-9" }
        for _ = 1, 4 do assert.equal(400, client:post("/users/me/change-password", body).status) end
        must(client:post("/users/me/change-password", { current_password = shopper.user.password, new_password = "brand-new-8" }), 200)
        local calls = {}
        for i = 1, 20 do calls[i] = function() return client:copy():post("/users/me/change-password", body) end end
        local statuses = shop_of.statuses(support.parallel(calls))
        assert.same({ 5, 15 }, { statuses[400], statuses[429] })
    end)

    it("do not tell by the answer whether an account is locked", function()
        local tenant = support.tenant()
        local shopper = support.shopper(tenant)
        must(tenant.owner:post("/users/" .. shopper.user.id .. "/update", { is_locked = true }), 200)
        assert.same({ 401, "Invalid credentials" }, told((login(tenant, shopper.user.email, "wrong-one"))))
        assert.same({ 401, "Account is locked or suspended" }, told((login(tenant, shopper.user.email, shopper.user.password))))
        assert.equal("active", must(tenant.owner:post("/users/" .. shopper.user.id .. "/unlock"), 200).user.status)
        assert.equal(200, (login(tenant, shopper.user.email, shopper.user.password)).status)
    end)
end)

describe("sessions", function()
    local tenant = support.tenant()

    it("are listed with device and address, and ended one by one", function()
        local shopper = support.shopper(tenant)
        local phone = support.outside{ ["X-Tenant-Kasma-Id"] = tenant.key, ["User-Agent"] = "phone/1" }
        must((login(tenant, shopper.user.email, shopper.user.password, phone)), 200)
        local list = must(shopper:get("/auth/sessions"), 200).data
        assert.equal(2, #list)
        assert.same({ "phone/1", phone.headers["X-Forwarded-For"], false }, { list[1].user_agent, list[1].ip_address, list[1].current })
        assert.is_true(list[2].current)
        assert.equal(200, shopper:post("/auth/sessions/" .. list[1].id .. "/revoke").status)
        assert.equal(401, phone:get("/auth/me").status)
        assert.equal(401, phone:post("/auth/refresh").status)
        assert.equal(404, shopper:post("/auth/sessions/" .. list[1].id .. "/revoke").status)
    end)

    it("are all ended by staff", function()
        local shopper = support.shopper(tenant)
        assert.equal(200, tenant.owner:post("/users/" .. shopper.user.id .. "/sessions/revoke-all").status)
        assert.equal(401, shopper:get("/auth/me").status)
        assert.equal(401, shopper:post("/auth/refresh").status)
    end)

    it("end with a refresh cookie alone when the access token has run out", function()
        local shopper = support.shopper(tenant)
        local refresh = shopper:copy()
        refresh.cookies.access_token = nil
        assert.same({ 200, "Logged out successfully" }, told(refresh:post("/auth/logout")))
        assert.equal(401, shopper:get("/auth/me").status)
        assert.equal(401, support.client(tenant.headers):post("/auth/logout").status)
    end)

    it("tell that a token has expired", function()
        local platform = support.platform()
        local shopper = support.shopper(tenant)
        support.advance(platform, 901)
        local answer = shopper:get("/auth/me")
        support.real_time(platform)
        assert.same({ 401, "Token expired" }, told(answer))
    end)

    it("are refreshed thirty times a minute at most", function()
        local shopper = support.shopper(tenant)
        shopper.headers["X-Forwarded-For"] = support.outside().headers["X-Forwarded-For"]
        local statuses = {}
        for i = 1, 31 do statuses[i] = shopper:post("/auth/refresh").status end
        assert.same({ 200, 429 }, { statuses[30], statuses[31] })
    end)

    it("are rotated by twenty tabs at once into one", function()
        local shopper = support.shopper(tenant)
        local calls, tabs = {}, {}
        for i = 1, 20 do
            tabs[i] = shopper:copy()
            calls[i] = function() return tabs[i]:post("/auth/refresh").status end
        end
        for _, status in ipairs(support.parallel(calls)) do assert.equal(200, status) end
        for i = 2, 20 do assert.equal(tabs[1].cookies.refresh_token, tabs[i].cookies.refresh_token) end
        assert.equal(200, tabs[7]:get("/auth/me").status)
        assert.equal(1, #must(tabs[7]:get("/auth/sessions"), 200).data)
    end)

    it("move to another tenant as the same session", function()
        local other = support.tenant()
        local shopper = support.shopper(tenant)
        shopper.headers = {}
        assert.equal(403, shopper:post("/auth/context", { tenant_key = other.key }).status)
        must(other.owner:post("/tenants/" .. other.key .. "/members/add", { email = shopper.user.email }))
        local invited = must(shopper:get("/users/me/tenants"), 200).data
        assert.same({ other.key, "invited" }, { invited[2].tenant_key, invited[2].status })
        assert.equal(403, shopper:get("/sales/orders/me", other.headers).status)
        assert.equal(404, other.owner:get("/users/" .. shopper.user.id).status)
        local before = shopper:copy()
        assert.equal(200, shopper:post("/auth/context", { tenant_key = other.key }).status)
        assert.equal(other.key, shopper:get("/auth/me").json.user.tenant_key)
        assert.equal(200, shopper:get("/sales/orders/me").status)
        assert.equal(401, before:get("/auth/me").status)
        assert.equal(1, #must(shopper:get("/auth/sessions"), 200).data)
        assert.equal(200, other.owner:get("/users/" .. shopper.user.id).status)
        assert.equal(other.key, db.one(nil, "select tenant_key from user_contexts where user_id = $1", shopper.user.id).tenant_key)
    end)
end)

describe("a user name", function()
    local tenant = support.tenant()

    it("signs in as the address does, and gives no second try", function()
        local shopper, other = support.shopper(tenant), support.shopper(tenant)
        local name = support.unique("ann")
        assert.equal(name, must(shopper:post("/users/me/update", { username = " " .. name:upper() .. " " }), 200).user.username)
        assert.same({ 409, "Username already taken" }, told(other:post("/users/me/update", { username = name })))
        for _, bad in ipairs{ "ab", "-abc", "a b c", "a@b.c", "a\195\169bc", ("x"):rep(65), "" } do
            assert.equal(400, other:post("/users/me/update", { username = bad }).status, bad)
        end
        assert.equal(200, (login(tenant, name, shopper.user.password)).status)
        assert.equal(200, (login(tenant, name:upper() .. " ", shopper.user.password)).status)
        assert.same({ 401, "Invalid credentials" }, told((login(tenant, name .. "x", shopper.user.password))))
        local from = support.outside(tenant.headers)
        for i = 1, 5 do
            assert.equal(401, (login(tenant, i % 2 == 0 and name or shopper.user.email, "wrong-password", from)).status)
        end
        for _, identifier in ipairs{ name, shopper.user.email } do
            assert.equal(429, (login(tenant, identifier, shopper.user.password, from)).status)
        end
    end)

    it("is proven by the address's code, recovers it, and is free when the account is gone", function()
        local coded = support.tenant{ settings = { ["auth.login_otp"] = "never" } }
        local shopper = support.shopper(coded)
        local name = support.unique("bob")
        must(shopper:post("/users/me/update", { username = name }), 200)
        must(coded.owner:post("/tenants/" .. coded.key .. "/update", { settings = { ["auth.login_otp"] = "always" } }), 200)
        local client = support.client(coded.headers)
        local answer = login(coded, name, shopper.user.password, client)
        assert.same({ 401, "LOGIN", shopper.user.email }, { answer.status, answer.json.type, answer.json.identifier })
        local code = support.code_for(shopper.user.email)
        assert.equal(200, verify(client, name, code, "LOGIN").status)
        must(client:post("/auth/forgot-password", { identifier = name }), 200)
        assert.equal(200, verify(client, name, support.code_for(shopper.user.email, code), "FORGOT_PASSWORD").status)
        must(coded.owner:post("/users/" .. shopper.user.id .. "/delete"), 200)
        must(support.shopper(tenant):post("/users/me/update", { username = name }), 200)
        assert.same({ 409, "Username already taken" }, told(coded.owner:post("/users/" .. shopper.user.id .. "/restore")))
    end)
end)

describe("a deleted account", function()
    local function gone(tenant)
        local shopper = support.shopper(tenant)
        must(tenant.owner:post("/users/" .. shopper.user.id .. "/delete"), 200)
        return shopper
    end

    it("comes back within thirty days, inactive and with its password", function()
        local tenant = support.tenant()
        local shopper = gone(tenant)
        assert.equal(404, tenant.owner:get("/users/" .. shopper.user.id).status)
        assert.equal(404, support.tenant().owner:post("/users/" .. shopper.user.id .. "/restore").status)
        assert.equal("inactive", must(tenant.owner:post("/users/" .. shopper.user.id .. "/restore"), 200).user.status)
        assert.equal(404, tenant.owner:post("/users/" .. shopper.user.id .. "/restore").status)
        assert.equal(401, (login(tenant, shopper.user.email, shopper.user.password)).status)
        must(tenant.owner:post("/users/" .. shopper.user.id .. "/update", { status = "active" }), 200)
        assert.equal(200, (login(tenant, shopper.user.email, shopper.user.password)).status)
    end)

    it("does not come back to an address that somebody has meanwhile", function()
        local tenant = support.tenant()
        local shopper = gone(tenant)
        must(tenant.owner:post("/users", { email = shopper.user.email }))
        assert.equal(409, tenant.owner:post("/users/" .. shopper.user.id .. "/restore").status)
    end)

    it("is erased after thirty days; what its orders say stays", function()
        local shop, product = shop_of.simple(5)
        local platform = support.platform()
        local buyer = shop_of.buyer(shop, product, 1, support.shopper(shop))
        must(buyer:post("/users/me/update", { first_name = "Lan" }), 200)
        local address = { country = "VN", region = "Hanoi", zipCode = "100000", street = "1 Trang Tien", phone = "0912345678",
            receiverName = "Lan Nguyen" }
        local order = must(shop_of.checkout(buyer, { shippingAddress = address, billingAddress = address, notes = "ring twice" })).orders[1]
        must(buyer:post("/users/me/delete"), 200)
        assert.equal(401, buyer:get("/auth/me").status)
        assert.equal(401, (login(shop, buyer.user.email, buyer.user.password)).status)
        local function row() return db.one(nil, "select email, display_name, purged_at from users where id = $1", buyer.user.id) end
        cleanup.user_purge()
        assert.equal(buyer.user.email, row().email)
        support.advance(platform, 30 * 86400 + 60)
        -- An order that is still to be sent needs its address, and the account waits for it.
        db.query(shop.key, "update orders set status = 'processing' where tenant_key = $1 and id = $2", shop.key, order.id)
        cleanup.user_purge()
        local waiting = row()
        db.query(shop.key, "update orders set status = 'delivered' where tenant_key = $1 and id = $2", shop.key, order.id)
        -- A store that is busy lets the account wait for the next run.
        pcall(support.eventually, function()
            cleanup.user_purge()
            return type(row().purged_at) == "string"
        end)
        local state = row()
        support.sign_in(platform)
        local back = platform:post("/users/" .. buyer.user.id .. "/restore", {}, shop.headers)
        support.real_time(platform)
        assert.same({ "erased-" .. buyer.user.id .. "@erased.invalid", nil }, { state.email, state.display_name })
        assert.is_string(state.purged_at)
        assert.equal(404, back.status)
        for _, name in ipairs{ "user_credentials", "auth_sessions", "otps" } do
            assert.equal(0, db.one(nil, "select count(*)::int as n from " .. name .. " where user_id = $1", buyer.user.id).n)
        end
        assert.same({ buyer.user.email, nil }, { waiting.email, waiting.purged_at })
        assert.is_nil(require("modules.iam.store_profiles").of(buyer.user.id))
        local kept = db.one(shop.key, "select shipping_address, billing_address, notes from orders where tenant_key = $1 and id = $2",
            shop.key, order.id)
        local proof = { country = "VN", region = "Hanoi", zipCode = "100000" }
        assert.same({ proof, proof, nil }, { kept.shipping_address, kept.billing_address, kept.notes })
        assert.equal(buyer.user.id, shop_of.order_now(shop, order.id).userId)
    end)

    it("takes its keys with it", function()
        local tenant = support.tenant()
        local admin = support.user(tenant, "tenant_admin")
        local key = must(admin:post("/tenants/" .. tenant.key .. "/keys/create", { name = "ci", key_type = "secret",
            scopes = { "users.read" } })).key
        local client = support.client{ Authorization = "Bearer " .. key.secret }
        assert.equal(200, client:get("/users").status)
        must(tenant.owner:post("/users/" .. admin.user.id .. "/delete"), 200)
        support.eventually(function() return client:get("/users").status == 401 end)
    end)
end)

describe("an account about itself", function()
    it("gets all that is held about it, and nothing of others", function()
        local shop, product = shop_of.simple(5)
        local buyer = shop_of.buyer(shop, product, 1, support.shopper(shop))
        local other = support.shopper(shop)
        must(buyer:post("/users/me/update", { first_name = "Lan", bio = "likes tea" }), 200)
        local order = must(shop_of.checkout(buyer)).orders[1]
        local answer = buyer:get("/users/me/export")
        assert.equal(200, answer.status)
        assert.matches("application/x%-ndjson", answer.headers["content-type"])
        local kinds = {}
        for line in answer.body:gmatch("[^\n]+") do
            local thing = json.decode(line)
            assert.is_table(thing.data)
            kinds[thing.store .. " " .. thing.kind] = true
        end
        for _, kind in ipairs{ "postgresql user", "postgresql credential", "postgresql membership", "postgresql session",
            "mongodb user_profile", "postgresql role", "postgresql sign_in_event", "postgresql action", "postgresql order" } do
            assert.is_true(kinds[kind] or false, kind .. " is missing")
        end
        assert.matches("likes tea", answer.body, 1, true)
        assert.matches(order.id, answer.body, 1, true)
        assert.is_nil(answer.body:find(other.user.email, 1, true))
        assert.is_nil(answer.body:find("$argon2", 1, true))
    end)

    it("is asked to sign in again when that was long ago", function()
        local tenant = support.tenant()
        local platform = support.platform()
        local shopper = support.shopper(tenant)
        support.advance(platform, 601)
        local answers = { told(shopper:get("/users/me/export")), told(shopper:post("/users/me/delete")) }
        support.real_time(platform)
        assert.same({ { 401, "Please sign in again" }, { 401, "Please sign in again" } }, answers)
        assert.equal(200, shopper:get("/users/me/permissions").status)
    end)
end)

describe("what ran out", function()
    it("is removed by its job: codes after a day, sessions after a month", function()
        local tenant = support.tenant()
        local platform = support.platform()
        local shopper = support.shopper(tenant)
        must(support.client(tenant.headers):post("/auth/forgot-password", { identifier = shopper.user.email }), 200)
        support.code_for(shopper.user.email)
        local function left(name)
            return db.one(nil, "select count(*)::int as n from " .. name .. " where user_id = $1", shopper.user.id).n
        end
        cleanup.otp_cleanup()
        cleanup.session_cleanup()
        assert.same({ 1, 1 }, { left("otps"), left("auth_sessions") })
        support.advance(platform, 86400 + 400)
        cleanup.otp_cleanup()
        local codes = left("otps")
        support.advance(platform, 37 * 86400)
        cleanup.session_cleanup()
        local sessions = left("auth_sessions")
        support.real_time(platform)
        assert.same({ 0, 0 }, { codes, sessions })
    end)

    it("is announced a week before, once, for access keys", function()
        local tenant = support.tenant()
        local function make(days)
            return must(tenant.owner:post("/tenants/" .. tenant.key .. "/keys/create", { name = "key of " .. days, key_type = "secret",
                expires_at = time.iso(time.now() + days * 86400000) }))
        end
        local soon = make(3).key
        make(30)
        cleanup.key_expiry_notice()
        cleanup.key_expiry_notice()
        local told_of = db.read(tenant.key, [[select key, payload->'data' as data from outbox where tenant_key = $1 and topic = 'event'
          and payload->>'name' = 'key.expiring']], tenant.key)
        assert.equal(1, #told_of)
        assert.equal(soon.id, told_of[1].key)
        assert.same({ keyPrefix = soon.owned_key, expiresAt = soon.expires_at }, told_of[1].data)
        assert.is_nil(json.encode(told_of[1].data):find(soon.secret:sub(19, 40), 1, true))
        assert.matches("key of 3", support.eventually(function() return support.mail_to(tenant.owner.user.email) end), 1, true)
        assert.equal(1, support.mail_count(tenant.owner.user.email))
    end)
end)
