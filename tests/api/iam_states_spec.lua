-- Accounts that are inactive: who made themselves so comes back with their password and a code; whom staff made so does not. And what
-- staff does to an account in the moment of a sign-in.
local crypto = require("core.crypto")
local json = require("core.json")
local redis = require("core.redis")
local time = require("core.time")
local db = require("kasma.db")
local secrets = require("kasma.secrets")
local settings = require("kasma.settings")
local failures = require("modules.iam.failures")
local iam = require("modules.iam.service")
local passwords = require("modules.iam.passwords")
local sessions = require("modules.iam.sessions")
local totp = require("modules.iam.totp")
local shop_of = require("api.shop")
local support = require("api.support")

local must = shop_of.must
local function told(answer) return { answer.status, answer.json and answer.json.message } end
local DENIED = { 401, "Account is locked or suspended" }

local function login(tenant, who, password)
    local client = support.client(tenant.headers)
    return client:post("/auth/login", { identifier = who.user.email, password = password or who.user.password }), client
end

local function verify(client, who, code, type)
    return client:post("/auth/verify-otp", { identifier = who.user.email, code = code, type = type or "LOGIN" })
end

local function state(who)
    return db.one(nil, "select status, is_locked, deactivated_by from users where id = $1", who.user.id)
end

local function live_sessions(who)
    return db.one(nil, [[select count(*)::int as n from auth_sessions where user_id = $1 and revoked_at is null
      and rotated_at is null]], who.user.id).n
end

local function deactivated(tenant)
    local shopper = support.shopper(tenant)
    must(shopper:post("/users/me/deactivate"), 200)
    return shopper
end

-- The password step of who comes back, and the code that was mailed for it.
local function asked(tenant, who)
    local answer, client = login(tenant, who)
    assert.same({ 401, true, "LOGIN" }, { answer.status, answer.json.requiresOtp, answer.json.type })
    return support.code_for(who.user.email), client
end

local function staff(tenant, who, act, body) return must(tenant.owner:post("/users/" .. who.user.id .. "/" .. act, body), 200) end

local function audited(tenant, who, action)
    return db.one(tenant.key, [[select count(*)::int as n from audit_index where tenant_key = $1 and action = $2 and entity_id = $3
      and actor_id::text = $3]], tenant.key, action, who.user.id).n
end

local function changes(tenant, who)
    local list = {}
    for i, row in ipairs(db.query(tenant.key, [[select payload->'data'->>'from' as f, payload->'data'->>'to' as t,
        payload->'data'->>'reason' as why from outbox where tenant_key = $1 and key = $2 and payload->>'name' = 'user.status_changed'
        order by seq]], tenant.key, who.user.id)) do list[i] = row.f .. " " .. row.t .. " " .. row.why end
    return list
end

describe("an account that its person made inactive", function()
    local tenant = support.tenant() -- where the password is enough otherwise

    it("has no session left and comes back by password and code", function()
        local shopper = support.shopper(tenant)
        local tab = shopper:copy()
        local answer = shopper:post("/users/me/deactivate")
        assert.same({ 200, "Account deactivated. Sign in to come back." }, told(answer))
        assert.is_nil(shopper.cookies.access_token)
        assert.equal(401, tab:get("/auth/me").status)
        assert.equal(401, tab:post("/auth/refresh").status)
        assert.same({ status = "inactive", is_locked = false, deactivated_by = "self" }, state(shopper))
        assert.equal("self", must(tenant.owner:get("/users/" .. shopper.user.id .. "/lockout"), 200).lockout.deactivated_by)
        local code, client = asked(tenant, shopper)
        assert.equal("inactive", state(shopper).status, "the password alone brings nothing back")
        assert.equal(200, verify(client, shopper, code).status)
        assert.equal(200, client:get("/auth/me").status)
        assert.same({ status = "active", is_locked = false }, state(shopper))
        assert.same({ 1, 1 }, { audited(tenant, shopper, "users.deactivate_self"), audited(tenant, shopper, "users.reactivate_self") })
        assert.same({ "active inactive self", "inactive active self" }, changes(tenant, shopper))
        assert.equal(200, (login(tenant, shopper)).status, "and is like any other then")
    end)

    it("is not told from one that there is not, without the password", function()
        local shopper = deactivated(tenant)
        local nobody = { user = { email = support.unique("n") .. "@example.test" } }
        local wrong, unknown = login(tenant, shopper, "wrong-one"), login(tenant, nobody, "wrong-one")
        assert.same({ 401, "Invalid credentials" }, told(unknown))
        assert.same(told(unknown), told(wrong))
        for _, type in ipairs{ "LOGIN", "TWO_FA", "REGISTER", "FORGOT_PASSWORD" } do
            local client = support.client(tenant.headers)
            assert.same(told(verify(client, nobody, "000000", type)), told(verify(client, shopper, "000000", type)), type)
            local function resend(who) return told(client:post("/auth/resend-otp", { identifier = who.user.email, type = type })) end
            assert.same(resend(nobody), resend(shopper), type)
        end
        assert.equal(0, db.one(nil, "select count(*)::int as n from otps where identifier = $1", shopper.user.email).n)
        assert.equal("inactive", state(shopper).status)
    end)

    it("asks for the second factor where there is one, and for no mailed code", function()
        local shopper = support.shopper(tenant)
        must(shopper:post("/auth/2fa/setup"), 200)
        local row = db.one(nil, "select secret_enc from user_credentials where user_id = $1 and provider = 'totp'", shopper.user.id)
        local secret = secrets.open("totp", row.secret_enc, shopper.user.id)
        local function code(offset) return totp.code(secret, math.floor(time.now() / 30000) + offset) end
        must(shopper:post("/auth/2fa/confirm", { code = code(0) }), 200)
        must(shopper:post("/users/me/deactivate"), 200)
        local answer, client = login(tenant, shopper)
        assert.same({ 401, "TWO_FA" }, { answer.status, answer.json.type })
        -- A step ahead: it holds as well when this step ends on the way.
        assert.equal(200, verify(client, shopper, code(1), "TWO_FA").status)
        assert.equal("active", state(shopper).status)
    end)

    it("comes back once by a code, also when twenty bring it at once", function()
        local shopper = deactivated(tenant)
        local code, client = asked(tenant, shopper)
        local calls = {}
        for i = 1, 20 do calls[i] = function() return verify(client:copy(), shopper, code) end end
        assert.same({ [200] = 1, [401] = 19 }, shop_of.statuses(support.parallel(calls)))
        assert.equal(1, live_sessions(shopper))
        local again = support.client(tenant.headers)
        must(login(tenant, shopper), 200)
        assert.equal(401, verify(again, shopper, code).status, "nor later")
        assert.equal(1, audited(tenant, shopper, "users.reactivate_self"))
    end)

    it("does not come back by a code of another purpose", function()
        local coded = support.tenant()
        local shopper = support.shopper(coded)
        must(coded.owner:post("/tenants/" .. coded.key .. "/update", { settings = { ["auth.login_otp"] = "always" } }), 200)
        -- The code of a sign-in, and its open step, from before.
        local before, early = asked(coded, shopper)
        must(early:post("/auth/forgot-password", { identifier = shopper.user.email }), 200)
        local recovery = support.code_for(shopper.user.email, before)
        must(shopper:post("/users/me/deactivate"), 200)
        assert.equal(401, verify(early, shopper, before).status)
        assert.equal(401, verify(early, shopper, recovery, "FORGOT_PASSWORD").status)
        local answer, client = login(coded, shopper)
        assert.equal("LOGIN", answer.json.type)
        assert.equal(401, verify(client, shopper, before).status)
        assert.equal(401, verify(client, shopper, recovery).status)
        assert.equal("inactive", state(shopper).status)
    end)

    it("does not come back by the step of a sign-in that was open before", function()
        local shopper = deactivated(tenant)
        local code, client = asked(tenant, shopper)
        -- The step as it would be, had it begun while the account was active.
        local key = "auth:challenge:" .. crypto.sha256(shopper.user.email)
        local open = json.decode(redis.call("GET", key))
        assert.is_number(open.back)
        open.back = nil
        redis.call("SET", key, json.encode(open), "PX", "600000")
        assert.same(DENIED, told(verify(client, shopper, code)))
        assert.equal("inactive", state(shopper).status)
    end)

    it("is made inactive only after a fresh sign-in", function()
        local platform, shopper = support.platform(), support.shopper(tenant)
        support.advance(platform, 660)
        local answer = shopper:post("/users/me/deactivate")
        support.real_time(platform)
        assert.same({ 401, "Please sign in again" }, told(answer))
        assert.equal("active", state(shopper).status)
    end)
end)

describe("an account that staff made inactive", function()
    local tenant = support.tenant()

    it("does not come back alone, also when it was restored", function()
        local one, other = support.shopper(tenant), support.shopper(tenant)
        staff(tenant, one, "update", { status = "inactive" })
        staff(tenant, other, "delete")
        staff(tenant, other, "restore")
        for _, shopper in ipairs{ one, other } do
            assert.same({ status = "inactive", is_locked = false, deactivated_by = "staff" }, state(shopper))
            assert.same(DENIED, told((login(tenant, shopper))))
            assert.equal(0, support.mail_count(shopper.user.email))
            staff(tenant, shopper, "update", { status = "active" })
            assert.same({ status = "active", is_locked = false }, state(shopper))
            assert.equal(200, (login(tenant, shopper)).status)
        end
    end)

    it("is staff's, though its person had done it before, and the code on its way holds no more", function()
        local shopper = deactivated(tenant)
        local code, client = asked(tenant, shopper)
        staff(tenant, shopper, "update", { status = "inactive" })
        assert.equal("staff", state(shopper).deactivated_by)
        assert.same(DENIED, told(verify(client, shopper, code)))
        assert.same(DENIED, told((login(tenant, shopper))))
        assert.same({ "active inactive self" }, changes(tenant, shopper), "what it is has not changed")
    end)

    it("or locked, or deleted, while the code was on its way stays so", function()
        local locked, gone = deactivated(tenant), deactivated(tenant)
        local code, client = asked(tenant, locked)
        staff(tenant, locked, "update", { is_locked = true })
        assert.same({ status = "locked", is_locked = true }, state(locked))
        assert.same(DENIED, told(verify(client, locked, code)))
        assert.same(DENIED, told((login(tenant, locked))))
        assert.equal("active", staff(tenant, locked, "unlock").user.status)
        local other, theirs = asked(tenant, gone)
        staff(tenant, gone, "delete")
        assert.equal(401, verify(theirs, gone, other).status)
        staff(tenant, gone, "restore")
        assert.same(DENIED, told((login(tenant, gone))))
        assert.equal("staff", state(gone).deactivated_by)
    end)

    it("is let in neither way when both happen in one moment", function()
        for i = 1, 8 do
            local shopper = deactivated(tenant)
            local code, client = asked(tenant, shopper)
            local change = i % 2 == 0 and { is_locked = true } or { status = "inactive" }
            support.parallel{
                function() return verify(client, shopper, code) end,
                function() return tenant.owner:post("/users/" .. shopper.user.id .. "/update", change) end,
            }
            local now = state(shopper)
            assert.is_true(now.status == "locked" or (now.status == "inactive" and now.deactivated_by == "staff"), now.status)
            assert.equal(0, live_sessions(shopper))
            assert.equal(401, client:get("/auth/me").status)
        end
    end)
end)

describe("a sign-in", function()
    local tenant = support.tenant()

    -- Signs in within this process, at the moment in which `of[name]` is about to be asked something else happens first.
    local function while_asked(of, name, meanwhile, who, password)
        local plain = of[name]
        of[name] = function(...)
            of[name] = plain
            meanwhile()
            return plain(...)
        end
        local ok, why = pcall(iam.login, { tenant = tenant.key, app = tenant.app, actor_kind = "guest" }, { identifier = who.user.email,
            password = password or who.user.password }, { ip = "127.0.0.1", user_agent = "agent" })
        of[name] = plain
        assert.is_false(ok)
        return why.message
    end

    it("ends a suspension whose time is over, and no lock that staff puts in its place at that moment", function()
        local who = support.shopper(tenant)
        local function suspended() db.query(nil, "update users set status = 'suspended', suspended_until = $2::timestamptz where id = $1",
            who.user.id, time.iso(time.now() - 1000)) end
        suspended()
        assert.equal(DENIED[2], while_asked(passwords, "verify", function()
            must(tenant.owner:post("/users/" .. who.user.id .. "/update", { is_locked = true }), 200)
        end, who))
        assert.same({ status = "locked", is_locked = true }, state(who))
        must(tenant.owner:post("/users/" .. who.user.id .. "/unlock"), 200)
        suspended()
        must((login(tenant, who)), 200)
        assert.equal("active", state(who).status)
        suspended()
        assert.same({ [200] = 3 }, shop_of.statuses(support.parallel{ function() return (login(tenant, who)) end,
            function() return (login(tenant, who)) end, function() return (login(tenant, who)) end }))
    end)

    it("that is the last straw suspends nobody whom staff has just made inactive", function()
        local who = support.shopper(tenant)
        local must_suspend = failures.must_suspend
        failures.must_suspend = function() return true end
        assert.equal("Invalid credentials", while_asked(passwords, "verify", function()
            must(tenant.owner:post("/users/" .. who.user.id .. "/update", { status = "inactive" }), 200)
        end, who, "wrong password"))
        failures.must_suspend = must_suspend
        assert.same({ status = "inactive", is_locked = false, deactivated_by = "staff" }, state(who))
        assert.equal(1, db.one(tenant.key, [[select count(*)::int as n from audit_auth_log where tenant_key = $1 and user_id = $2
          and action = 'LOGIN_FAILED']], tenant.key, who.user.id).n)
    end)

    it("over a Unix socket, which has no address, knows its device again", function()
        local other = support.tenant()
        local who = support.shopper(other)
        must(other.owner:post("/tenants/" .. other.key .. "/update", { settings = { ["auth.login_otp"] = "new_device" } }), 200)
        support.eventually(function() return settings.get(other.key, "auth.login_otp") == "new_device" end)
        local here = { ip = "unix", user_agent = "agent " .. other.key }
        local function try() return pcall(iam.login, { tenant = other.key, app = other.app, actor_kind = "guest" },
            { identifier = who.user.email, password = who.user.password }, here) end
        local ok, why = try()
        assert.same({ false, true }, { ok, why.object and why.object.requiresOtp })
        sessions.open({ tenant = other.key, app = other.app, actor_kind = "guest" }, iam.user(who.user.id), { amr = { "pwd" }, ip = here.ip,
            user_agent = here.user_agent }, {})
        assert.is_true((try()))
    end)
end)

describe("the owners of a tenant", function()
    it("who all make themselves inactive at once are one owner afterwards", function()
        local tenant = support.tenant()
        local owners = { tenant.owner }
        for i = 2, 5 do owners[i] = support.user(tenant, "tenant_owner") end
        local calls = {}
        for i, owner in ipairs(owners) do calls[i] = function() return owner:post("/users/me/deactivate") end end
        local answers = support.parallel(calls)
        assert.same({ [200] = 4, [409] = 1 }, shop_of.statuses(answers))
        for i, answer in ipairs(answers) do
            if answer.status == 409 then assert.equal("last_owner", answer.json.code) end
            assert.equal(answer.status == 409 and "active" or "inactive", state(owners[i]).status)
        end
    end)
end)
