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
