-- Pages of other origins that hold no credential of their own and use what the visitor's browser carries: what the app of one tenant
-- lets in is let into that tenant, and into nothing else that the visitor's session opens.
local shop_of = require("api.shop")
local support = require("api.support")

local must = shop_of.must

describe("a page that a tenant lets in, with the cookie of a session on another", function()
    local theirs = "https://theirs.example"
    local home, other, server, victim

    setup(function()
        home, other = support.tenant(), support.tenant()
        must(other.owner:post("/apps/" .. other.app .. "/update", { allowed_origins = { theirs } }), 200)
        victim = home.owner
        must(other.owner:post("/tenants/" .. other.key .. "/members/add", { email = victim.user.email }))
        local visit = support.client(other.headers)
        must(visit:post("/auth/login", { identifier = victim.user.email, password = victim.user.password }), 200)
        support.sign_in(victim)
        server = support.server{ KASMA_ENV = "production", NODE_ENV = "production", MAIL_HOST = "", RATE_LIMITS = "off" }
    end)
    teardown(function() if server then server.stop() end end)

    -- What the page may send: the cookies come along by themselves, and the headers are of its choice.
    local function page(who)
        local c = support.client(other.headers)
        c.url, c.cookies = server.url, who:copy().cookies
        c.headers.Origin, c.headers["X-Token-Response"] = theirs, "body"
        return c
    end

    local function refused(answer, what)
        assert.same({ 403, "cross_site" }, { answer.status, answer.json and answer.json.code }, what)
    end

    local function not_read(c, path)
        assert.is_nil(c:get(path).headers["access-control-allow-origin"], path)
    end

    it("gets no tokens of it, and changes nothing of the account", function()
        local c = page(victim)
        for _, tenant in ipairs{ home, other } do refused(c:post("/auth/context", { tenant_key = tenant.key }), "/auth/context") end
        local sessions = must(victim:get("/auth/sessions"), 200).data
        for path, body in pairs{
            ["/auth/2fa/setup"] = {}, ["/auth/logout-all"] = {}, ["/users/me/delete"] = {}, ["/users/me/deactivate"] = {},
            ["/users/me/update"] = { username = support.unique("taken") },
            ["/users/me/change-password"] = { current_password = victim.user.password, new_password = "another-99" },
            ["/auth/sessions/" .. sessions[1].id .. "/revoke"] = {},
        } do refused(c:post(path, body), path) end
        assert.equal(200, victim:get("/auth/me").status)
    end)

    it("does nothing in the session's own tenant by naming it in a path or a body", function()
        local c = page(victim)
        refused(c:post("/tenants/" .. home.key .. "/keys/create", { name = "x", key_type = "secret", scopes = { "*" } }), "keys")
        refused(c:post("/tenants/" .. home.key .. "/members/add", { email = "x@example.test" }), "members")
        refused(c:post("/tenants/" .. home.key .. "/update", { settings = { ["auth.login_otp"] = "never" } }), "settings")
        refused(c:post("/registry", { app_family_key = home.app, tenant_key = home.key, module_key = "sales" }), "registry")
        assert.same({}, must(victim:get("/tenants/" .. home.key .. "/keys"), 200).data)
    end)

    it("does so with the cookie of the platform's staff neither, who may be everywhere", function()
        local staff = support.platform()
        local c = page(staff)
        refused(c:post("/tenants/" .. home.key .. "/keys/create", { name = "x", key_type = "secret", scopes = { "*" } }), "keys")
        not_read(c, "/tenants/" .. home.key)
        refused(c:post("/auth/context", { tenant_key = home.key }), "/auth/context")
    end)

    it("reads nothing of the account or of a tenant that it only names", function()
        local c = page(victim)
        for _, path in ipairs{ "/auth/me", "/auth/sessions", "/users/me", "/users/me/tenants", "/users/me/export",
            "/tenants/" .. home.key, "/tenants/" .. home.key .. "/keys", "/tenants/" .. home.key .. "/members" } do not_read(c, path) end
    end)

    it("gets no ticket that opens the session's own tenant", function()
        local ticket = must(page(victim):post("/api/social/realtime/ticket")).ticket
        local anywhere = support.client()
        local opened = anywhere:get(("/api/social/realtime/events?ticket=%s&tenant_key=%s&app_key=%s"):format(ticket, home.key, home.app))
        assert.same({ 403, "not_a_member" }, { opened.status, opened.json and opened.json.code })
    end)

    it("is served as any page in its own tenant", function()
        local c = page(victim)
        for _, path in ipairs{ "/api/ecommerce/products/list", "/sales/cart/me" } do
            local answer = c:get(path)
            assert.same({ 200, theirs }, { answer.status, answer.headers["access-control-allow-origin"] }, path)
        end
        local item = { productId = shop_of.product(other, { name = "Mug", price = 5 }), quantity = 1 }
        local added = c:post("/sales/cart/add", item)
        assert.same({ 201, theirs }, { added.status, added.headers["access-control-allow-origin"] })
    end)
end)
