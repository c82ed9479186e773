-- An account is one for the whole platform, and every tenant is a door to it. What one tenant does at its own door opens or shuts no
-- other's.
local shop_of = require("api.shop")
local support = require("api.support")

local must = shop_of.must

local function sign_in(tenant, who)
    local c = support.client(tenant.headers)
    return c:post("/auth/login", { identifier = who.user.email, password = who.user.password }), c
end

describe("a tenant that signs in without a code", function()
    it("does so for nobody of whom another tenant asks one", function()
        local strict, lax = support.tenant(), support.tenant()
        local owner, both = strict.owner, support.user(lax)
        must(strict.owner:post("/tenants/" .. strict.key .. "/members/add", { email = both.user.email }))
        assert.equal(200, (sign_in(strict, both)).status)
        must(owner:post("/tenants/" .. strict.key .. "/update", { settings = { ["auth.login_otp"] = "always" } }), 200)
        for _, who in ipairs{ owner, both } do
            local answer, c = sign_in(lax, who)
            assert.same({ 401, "LOGIN" }, { answer.status, answer.json.type })
            c.headers = strict.headers
            assert.equal(401, c:get("/users/me").status)
        end
        assert.equal(200, (sign_in(lax, lax.owner)).status)
        local answer, c = sign_in(lax, owner)
        assert.equal(401, answer.status)
        assert.equal(200, c:post("/auth/verify-otp", { identifier = owner.user.email, type = "LOGIN",
            code = support.code_for(owner.user.email) }).status)
    end)

    it("does so again when the other asks for none, or the membership has ended", function()
        local strict, lax = support.tenant(), support.tenant()
        local owner, both = strict.owner, support.user(lax)
        local function ask(step)
            must(owner:post("/tenants/" .. strict.key .. "/update", { settings = { ["auth.login_otp"] = step } }), 200)
        end
        must(owner:post("/tenants/" .. strict.key .. "/members/add", { email = both.user.email }))
        ask("always") -- who was only invited does not belong to it yet
        assert.equal(200, (sign_in(lax, both)).status)
        ask("never")
        assert.equal(200, (sign_in(strict, both)).status)
        ask("always")
        assert.equal(401, (sign_in(lax, both)).status)
        must(owner:post("/tenants/" .. strict.key .. "/members/remove", { email = both.user.email }), 200)
        assert.equal(200, (sign_in(lax, both)).status)
    end)
end)

describe("an account that staff made and nobody has signed in to", function()
    local tenant = support.tenant()

    local function made()
        local email = support.unique("to-come") .. "@example.test"
        return email, must(tenant.owner:post("/users", { email = email })).user.id
    end

    -- Its person comes, by another tenant's door.
    local function registers(email)
        local other = support.tenant()
        local c = support.client(other.headers)
        must(c:post("/auth/register", { email = email, password = "secret-99" }))
        return c:post("/auth/verify-otp", { identifier = email, type = "REGISTER", code = support.code_for(email) }), c
    end

    it("is locked by no tenant, before its person has come", function()
        local email, id = made()
        for _, change in ipairs{ { status = "locked" }, { is_locked = true } } do
            local answer = tenant.owner:post("/users/" .. id .. "/update", change)
            assert.same({ 409, "account_unproven" }, { answer.status, answer.json.code })
        end
        local answer, c = registers(email)
        assert.equal(200, answer.status)
        assert.equal(200, c:get("/users/me").status)
    end)

    it("is not kept from its person by way of another state", function()
        local _, id = made()
        must(tenant.owner:post("/users/" .. id .. "/update", { status = "active" }), 200)
        for _, status in ipairs{ "inactive", "suspended", "locked" } do
            assert.equal(404, tenant.owner:post("/users/" .. id .. "/update", { status = status }).status)
        end
        local email, deleted = made()
        must(tenant.owner:post("/users/" .. deleted .. "/delete"), 200)
        local back = tenant.owner:post("/users/" .. deleted .. "/restore")
        assert.same({ 409, "account_unproven" }, { back.status, back.json.code }, back.body)
        assert.equal(200, (registers(email)).status)
    end)

    it("is locked by the platform, and by its tenant once its person has come", function()
        local platform = support.platform()
        local _, id = made()
        must(platform:post("/users/" .. id .. "/update", { status = "locked" }, tenant.headers), 200)
        local email, other = made()
        local c = support.client(tenant.headers)
        must(c:post("/auth/register", { email = email, password = "secret-99" }))
        must(c:post("/auth/verify-otp", { identifier = email, type = "REGISTER", code = support.code_for(email) }), 200)
        must(tenant.owner:post("/users/" .. other .. "/update", { status = "locked" }), 200)
    end)
end)
