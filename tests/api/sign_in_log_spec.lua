-- The sign-in log: each step of an account leaves its row, with who, from where and why.
local crypto = require("core.crypto")
local redis = require("core.redis")
local db = require("kasma.db")
local support = require("api.support")

local AGENT = "phone/1.0 (walk)"

describe("the sign-in log", function()
    local tenant = support.tenant()
    assert(tenant.owner:post("/tenants/" .. tenant.key .. "/update", { settings = { ["auth.login_otp"] = "always" } }).status == 200)
    local headers = support.outside{ ["X-Tenant-Kasma-Id"] = tenant.key, ["User-Agent"] = AGENT }.headers
    local ADDRESS = headers["X-Forwarded-For"]
    local function client() return support.client(headers) end
    local email, password = support.unique("log") .. "@example.test", "secret-99"
    local c, user_id, code = client(), nil, nil

    local known = {}
    --- The rows that have come since it was last asked, by action; "ACTION reason" where there is a reason.
    local function added()
        local rows = {}
        for _, row in ipairs(db.read(tenant.key, [[select id, user_id, action, target, metadata, host(ip) as ip, user_agent, session_id,
          request_id from audit_auth_log where tenant_key = $1]], tenant.key)) do
            if not known[row.id] then
                known[row.id] = true
                local name = row.action .. (row.metadata and row.metadata.reason and " " .. row.metadata.reason or "")
                assert.is_nil(rows[name], name .. " stands there twice")
                rows[name] = row
            end
        end
        return rows
    end

    -- Exactly these rows are new, each about `target` and from the caller's place.
    local function wrote(target, owner, ...)
        local rows, names = added(), {}
        for name, row in pairs(rows) do
            names[#names + 1] = name
            assert.same({ target, owner, ADDRESS, AGENT }, { row.target, row.user_id, row.ip, row.user_agent }, name)
            assert.is_string(row.request_id, name)
        end
        local expected = { ... }
        table.sort(names)
        table.sort(expected)
        assert.same(expected, names)
        return rows
    end

    local function post(who, path, body, status)
        local answer = who:post(path, body)
        assert.equal(status, answer.status, path .. " " .. answer.body)
        return answer.json
    end

    local function sign_in(who)
        local before = support.mail_to(email)
        post(who, "/auth/login", { identifier = email, password = password }, 401)
        code = support.code_for(email, before and before:match("%f[%d](%d%d%d%d%d%d)%f[%D]"))
        post(who, "/auth/verify-otp", { identifier = email, code = code, type = "LOGIN" }, 200)
    end

    it("tells how an account began, by its address until there is one", function()
        added()
        post(c, "/auth/register", { email = email, password = password }, 201)
        wrote("email:" .. email, nil, "REGISTER_INITIATED")
        code = support.code_for(email)
        local wrong = ("%06d"):format((tonumber(code) + 1) % 1000000)
        post(c, "/auth/verify-otp", { identifier = email, code = wrong, type = "REGISTER" }, 401)
        local failed = wrote("email:" .. email, nil, "OTP_FAILED")
        assert.equal("REGISTER", failed.OTP_FAILED.metadata.type)
        user_id = post(c, "/auth/verify-otp", { identifier = email, code = code, type = "REGISTER" }, 200).user.id
        local rows = wrote("user:" .. user_id, user_id, "REGISTER_SUCCESS", "LOGIN_SUCCESS")
        assert.equal(c:get("/auth/sessions").json.data[1].id, rows.LOGIN_SUCCESS.session_id)
        post(client(), "/auth/register", { email = email, password = password }, 409)
        wrote("email:" .. email, nil, "REGISTER_FAILED email_exists")
    end)

    it("tells why a sign-in was refused, and by which step it was let in", function()
        post(client(), "/auth/login", { identifier = email, password = "not-it-9" }, 401)
        wrote("user:" .. user_id, user_id, "LOGIN_FAILED invalid_password")
        local nobody = support.unique("nobody") .. "@example.test"
        post(client(), "/auth/login", { identifier = nobody, password = "not-it-9" }, 401)
        wrote("email:" .. nobody, nil, "LOGIN_FAILED user_not_found")
        sign_in(c)
        local rows = wrote("user:" .. user_id, user_id, "OTP_VERIFIED_LOGIN", "LOGIN_SUCCESS")
        assert.is_string(rows.LOGIN_SUCCESS.session_id)
    end)

    it("tells when tokens were renewed, a password was changed and sessions were ended", function()
        post(c, "/auth/refresh", {}, 200)
        assert.is_string(wrote("user:" .. user_id, user_id, "TOKEN_REFRESH").TOKEN_REFRESH.session_id)
        post(c, "/users/me/change-password", { current_password = password, new_password = "secret-100" }, 200)
        password = "secret-100"
        wrote("user:" .. user_id, user_id, "PASSWORD_CHANGED")
        post(c, "/auth/logout", {}, 200)
        wrote("user:" .. user_id, user_id, "LOGOUT")
        sign_in(c)
        added()
        post(c, "/auth/logout-all", {}, 200)
        wrote("user:" .. user_id, user_id, "LOGOUT_ALL")
    end)

    it("tells of a password that was recovered, and of accounts that were locked and suspended", function()
        local before = support.mail_to(email)
        post(client(), "/auth/forgot-password", { identifier = email }, 200)
        code = support.code_for(email, before:match("%f[%d](%d%d%d%d%d%d)%f[%D]"))
        local recovered = post(client(), "/auth/verify-otp", { identifier = email, code = code, type = "FORGOT_PASSWORD" }, 200)
        added()
        post(client(), "/auth/reset-password", { reset_token = recovered.reset_token, new_password = "secret-101" }, 200)
        password = "secret-101"
        wrote("user:" .. user_id, user_id, "PASSWORD_RESET")
        local path = "/users/" .. user_id .. "/update"
        assert.equal(200, tenant.owner:post(path, { status = "locked" }).status)
        added()
        post(client(), "/auth/login", { identifier = email, password = "not-it-9" }, 401)
        wrote("user:" .. user_id, user_id, "LOGIN_FAILED invalid_password")
        post(client(), "/auth/login", { identifier = email, password = password }, 401)
        wrote("user:" .. user_id, user_id, "LOGIN_FAILED account_locked_or_suspended")
        assert.equal(200, tenant.owner:post(path, { status = "active" }).status)
        local failures = "rl:login:" .. crypto.sha256(email)
        redis.call("DEL", failures)
        for _ = 1, 20 do
            redis.call("HDEL", failures, "last") -- no wait between two
            post(support.outside(tenant.headers), "/auth/login", { identifier = email, password = "not-it-9" }, 401)
        end
        local found = {}
        for _, row in ipairs(db.read(tenant.key, "select id, action from audit_auth_log where tenant_key = $1 and user_id = $2",
            tenant.key, user_id)) do
            if not known[row.id] then found[row.action] = (found[row.action] or 0) + 1 end
        end
        assert.same({ LOGIN_FAILED = 20, ACCOUNT_SUSPENDED = 1 }, found)
    end)
end)
