-- The numbered edge cases of platform and IAM over HTTP.
local json = require("core.json")
local route = require("kasma.route")
local command = require("api.command")
local shop_of = require("api.shop")
local support = require("api.support")

local function told(answer) return { answer.status, answer.json and answer.json.message } end
local function typed(kind) return { ["Content-Type"] = kind } end

local FIVE = { "Email or username is required", "identifier must be a string", "Password is required",
    "Password must be at least 6 characters", "password must be a string" }

local function sorted(list)
    local copy = { unpack(list) }
    table.sort(copy)
    return copy
end

describe("edge case", function()
    local tenant = support.tenant()
    local c = support.client(tenant.headers)

    it("1: a sign-in body that is no object is 400 with a text", function()
        for _, body in ipairs{ "null", '"a"' } do
            local answer = c:request("POST", "/auth/login", body, typed("application/json"))
            assert.equal(400, answer.status)
            assert.is_string(answer.json.message)
        end
    end)

    it("2: no body at all tells all that is missing", function()
        local answer = c:request("POST", "/auth/login")
        assert.equal(400, answer.status)
        assert.same(sorted(FIVE), sorted(answer.json.message))
        local two = c:post("/auth/login", { identifier = "", password = "1", x = 1 })
        assert.same({ "property x should not exist", "Email or username is required", "Password must be at least 6 characters" },
            { unpack(two.json.message) })
    end)

    it("3: a form is as good as JSON", function()
        local form = ("identifier=%s&password=%s"):format(tenant.owner.user.email:gsub("@", "%%40"), tenant.owner.user.password)
        local answer = support.client(tenant.headers):request("POST", "/auth/login", form, typed("application/x-www-form-urlencoded"))
        assert.same({ 200, true }, { answer.status, answer.json.success })
    end)

    it("4: says Cannot for what is not there", function()
        local answer = c:request("DELETE", "/auth/login")
        assert.same({ 404, "Cannot DELETE /auth/login", "Not Found", 404 }, { answer.status, answer.json.message, answer.json.error,
            answer.json.statusCode })
        -- The address as it was sent, with its query.
        answer = c:get("/Nope/?page=2&q=a%20b")
        assert.same({ 404, "Cannot GET /Nope/?page=2&q=a%20b" }, { answer.status, answer.json.message })
        answer = c:get("/api/x/nope?page=2")
        assert.same({ 404, "Cannot GET /api/x/nope?page=2" }, { answer.status, answer.json.message })
    end)

    it("1 again: a byte order mark before the JSON is passed over, and named anywhere else, for nobody sees one", function()
        local body = '{"identifier":"nobody@example.test","password":"wrong-Password-1"}'
        local answer = c:request("POST", "/auth/login", "\239\187\191" .. body, typed("application/json"))
        assert.equal(401, answer.status)
        answer = c:request("POST", "/auth/login", "\239\187\191\239\187\191" .. body, typed("application/json"))
        assert.same({ 400, "Unexpected byte order mark in JSON at position 0" }, { answer.status, answer.json.message })
    end)

    it("the clock is set or moved on, not both in one call", function()
        local platform = support.platform()
        for _, now in ipairs{ "2030-01-01T00:00:00.000Z", json.null } do
            local answer = platform:post("/admin/clock", { now = now, advance = 5 })
            if answer.status == 201 then support.real_time(platform) end
            assert.same({ 400, { "now and advance must not be sent together" } }, { answer.status, answer.json.message })
        end
    end)

    it("5: paths know no case and no last slash", function()
        local answer = c:get("/HEALTH/")
        assert.same({ 200, "OK" }, { answer.status, answer.body })
    end)

    it("6: an id that is none is 400", function() assert.equal(400, tenant.owner:get("/users/not-a-uuid").status) end)

    it("7: pages are whole numbers from 1, and no longer than 100 rows", function()
        assert.equal(400, tenant.owner:get("/users?page=0").status)
        assert.equal(400, tenant.owner:get("/users?page=abc").status)
        local many, lines = support.tenant(), {}
        for i = 1, 101 do lines[i] = json.encode{ email = support.unique("n") .. "@example.test", email_verified = true } end
        assert.equal(0, (command.when_free("user import - --tenant " .. many.key, nil, table.concat(lines, "\n") .. "\n")))
        local answer = many.owner:get("/users?limit=1000")
        assert.same({ 200, 100, 100, 102 }, { answer.status, answer.json.limit, #answer.json.data, answer.json.total })
    end)

    it("8: a page that is a fraction or given twice is told so", function()
        assert.same({ "page must be an integer number" }, { unpack(tenant.owner:get("/auth/logs/login?page=1.5").json.message) })
        local twice = tenant.owner:get("/auth/logs/login?page=1&page=2")
        assert.equal(400, twice.status)
        assert.same({ "page must be an integer number", "page must not be less than 1" }, sorted(twice.json.message))
    end)

    it("9: a body over the limit is 413 in just this form", function()
        local answer = c:request("POST", "/auth/login", ('{"identifier":"%s"}'):format(("x"):rep(1100000)), typed("application/json"))
        assert.same({ 413, '{"statusCode":413,"message":"request entity too large"}' }, { answer.status, answer.body })
    end)

    it("10: statuses are taken in any case, and listed", function()
        local shopper = support.shopper(tenant)
        local path = "/users/" .. shopper.user.id .. "/update"
        assert.same({ "status must be one of the following values: active, inactive, pending, suspended, locked, deleted" },
            { unpack(tenant.owner:post(path, { status = "ACTIV" }).json.message) })
        local answer = tenant.owner:post(path, { status = "ACTIVE" })
        assert.same({ 200, "active" }, { answer.status, answer.json.user.status })
        assert.equal("locked", tenant.owner:post(path, { status = "LOCKED" }).json.user.status)
        assert.equal(401, shopper:get("/auth/me").status)
        assert.same({ 409, "Invalid status transition" }, told(tenant.owner:post(path, { status = "suspended" })))
    end)

    it("11: the last owner stays", function()
        local own = support.tenant()
        local admin = support.platform()
        admin.headers = own.headers
        local path = "/users/" .. own.owner.user.id
        for _, call in ipairs{ { path .. "/delete" }, { path .. "/update", { status = "locked" } },
            { path .. "/update", { is_locked = true } },
            { "/tenants/" .. own.key .. "/members/remove", { user_id = own.owner.user.id } } } do
            assert.same({ 409, "The last active owner of a tenant stays" }, told(admin:post(call[1], call[2])), call[1])
        end
        assert.same({ 409, "The last active owner of a tenant stays" }, told(own.owner:post("/users/me/delete")))
        assert.equal(200, own.owner:get("/auth/me").status)
    end)

    it("12: a deleted buyer's order stays, and the address is free at once", function()
        local shop, product = shop_of.simple(5)
        local buyer = shop_of.buyer(shop, product, 1, support.shopper(shop))
        local order = shop_of.must(shop_of.checkout(buyer)).orders[1]
        assert.same({ 200, "User deleted successfully" }, told(shop.owner:post("/users/" .. buyer.user.id .. "/delete")))
        assert.equal(401, buyer:get("/auth/me").status)
        local seen = shop_of.order_now(shop, order.id)
        assert.same({ order.id, buyer.user.id }, { seen.id, seen.userId })
        local again = support.client(shop.headers)
        assert.equal(201, again:post("/auth/register", { email = buyer.user.email, password = "secret-99" }).status)
        local made = again:post("/auth/verify-otp", { identifier = buyer.user.email, code = support.code_for(buyer.user.email),
            type = "REGISTER" })
        assert.equal(200, made.status)
        assert.is_not.equal(buyer.user.id, made.json.user.id)
    end)

    it("13: of two parallel codes one is through, with one session", function()
        local email = support.unique("p") .. "@example.test"
        assert.equal(201, c:post("/auth/register", { email = email, password = "secret-99" }).status)
        local code = support.code_for(email)
        local calls, winner = {}, nil
        for i = 1, 2 do
            local client = c:copy()
            calls[i] = function()
                local answer = client:post("/auth/verify-otp", { identifier = email, code = code, type = "REGISTER" })
                if answer.status == 200 then winner = client end
                return answer.status
            end
        end
        local statuses = support.parallel(calls)
        table.sort(statuses)
        assert.same({ 200, 401 }, statuses)
        assert.equal(1, #winner:get("/auth/sessions").json.data)
    end)

    it("18: text is read as JSON where no session rides on it", function()
        local right = json.encode{ identifier = tenant.owner.user.email, password = tenant.owner.user.password }
        assert.equal(200, support.client(tenant.headers):request("POST", "/auth/login", right, typed("text/plain")).status)
        assert.equal(415, tenant.owner:request("POST", "/auth/login", right, typed("text/plain")).status)
        local only_refresh = support.client(tenant.headers)
        only_refresh.cookies.refresh_token = tenant.owner.cookies.refresh_token
        assert.equal(415, only_refresh:request("POST", "/auth/refresh", "{}", typed("text/plain")).status)
        local answer = c:request("POST", "/auth/login", "hello", typed("text/plain"))
        assert.same({ 400, 5 }, { answer.status, #answer.json.message })
    end)

    it("21: a stranger is a guest on public routes and refused elsewhere", function()
        local other = support.tenant()
        assert.equal(200, tenant.owner:get("/api/ecommerce/products/list", other.headers).status)
        assert.same({ 403, "You do not belong to this tenant" }, told(tenant.owner:get("/sales/orders/me", other.headers)))
    end)

    it("22: where sign-up is closed, only the invited become members", function()
        local closed = support.tenant{ settings = { ["auth.open_signup"] = false } }
        local function sign_up(email)
            local client = support.client(closed.headers)
            assert.equal(201, client:post("/auth/register", { email = email, password = "secret-99" }).status)
            assert.equal(200, client:post("/auth/verify-otp", { identifier = email, code = support.code_for(email),
                type = "REGISTER" }).status)
            return client
        end
        local stranger = sign_up(support.unique("q") .. "@example.test")
        assert.equal(200, stranger:get("/users/me").status)
        assert.same({ 403, "You do not belong to this tenant" }, told(stranger:get("/sales/orders/me")))
        local email = support.unique("q") .. "@example.test"
        local invited = closed.owner:post("/tenants/" .. closed.key .. "/members/add", { email = email })
        assert.same({ 201, "invited" }, { invited.status, invited.json.member.status })
        assert.matches(closed.key, support.eventually(function() return support.mail_to(email) end), 1, true)
        local guest = sign_up(email)
        assert.equal(200, guest:get("/sales/orders/me").status)
        local mine = guest:get("/users/me/tenants").json.data
        assert.same({ 1, closed.key, "active" }, { #mine, mine[1].tenant_key, mine[1].status })
    end)
end)

describe("in production", function()
    local allowed, foreign = "https://shop.example", "https://evil.example"
    local tenant = support.tenant()
    local server

    setup(function()
        shop_of.must(tenant.owner:post("/apps/" .. tenant.app .. "/update", { allowed_origins = { allowed } }), 200)
        server = support.server{ KASMA_ENV = "production", NODE_ENV = "production", MAIL_HOST = "", RATE_LIMITS = "off",
            CORS_ORIGINS = "https://office.example" }
    end)
    teardown(function() if server then server.stop() end end)

    local function preflight(origin)
        local c = support.client()
        c.url = server.url
        return c:request("OPTIONS", "/sales/cart/remove", nil, { Origin = origin, ["Access-Control-Request-Method"] = "DELETE",
            ["Access-Control-Request-Headers"] = "x-tenant-kasma-id" })
    end

    it("edge case 14: a foreign origin's preflight is answered without leave, an allowed one's with all methods", function()
        local refused = preflight(foreign)
        assert.same({ 204, nil }, { refused.status, refused.headers["access-control-allow-origin"] })
        for _, origin in ipairs{ allowed, "https://office.example" } do
            local answer = preflight(origin)
            assert.same({ 204, origin, "true", "86400", "Origin" }, { answer.status, answer.headers["access-control-allow-origin"],
                answer.headers["access-control-allow-credentials"], answer.headers["access-control-max-age"], answer.headers.vary })
            assert.matches("DELETE", answer.headers["access-control-allow-methods"], 1, true)
            assert.matches("X-Idempotency-Key", answer.headers["access-control-allow-headers"], 1, true)
        end
    end)

    it("an origin may read only the answers of its own app", function()
        local c = support.client(tenant.headers)
        c.url = server.url
        local answer = c:get("/api/ecommerce/products/list", { Origin = allowed })
        assert.same({ 200, allowed }, { answer.status, answer.headers["access-control-allow-origin"] })
        local other = support.tenant()
        for _, case in ipairs{ { allowed, other.headers }, { foreign, tenant.headers } } do
            c.headers = case[2]
            answer = c:get("/api/ecommerce/products/list", { Origin = case[1] })
            assert.same({ 200, nil }, { answer.status, answer.headers["access-control-allow-origin"] })
        end
    end)

    it("a cookie's write needs an allowed origin, a bearer's none", function()
        local owner = tenant.owner:copy()
        owner.url = server.url
        local function update(headers) return owner:post("/users/me/update", { first_name = "x" }, headers).status end
        assert.equal(403, update{ Origin = foreign })
        assert.equal(403, update{ Referer = foreign .. "/page" })
        assert.equal(403, update{ Origin = "null" })
        assert.equal(403, update{ ["Sec-Fetch-Site"] = "cross-site" })
        assert.equal(200, update{ Origin = allowed })
        assert.equal(200, update{ Referer = allowed .. "/page" })
        assert.equal(200, update{ Origin = (server.url:gsub("^http", "http")) })
        assert.equal(200, update())
        owner.cookies.csrf_token = "abc"
        assert.equal(200, update{ ["Sec-Fetch-Site"] = "cross-site", ["X-CSRF-Token"] = "abc" })
        assert.equal(403, update{ ["Sec-Fetch-Site"] = "cross-site", ["X-CSRF-Token"] = "abd" })
        local refresh = support.client()
        refresh.url = server.url
        refresh.cookies.refresh_token = owner.cookies.refresh_token
        assert.equal(403, refresh:post("/auth/refresh", {}, { Origin = foreign }).status)
        local bearer = support.client{ Authorization = "Bearer " .. owner.cookies.access_token }
        bearer.url = server.url
        assert.equal(200, bearer:post("/users/me/update", { first_name = "x" }, { Origin = foreign }).status)
    end)

    it("a page that another tenant lets in gets no session of this one", function()
        local other, theirs = support.tenant(), "https://other.example"
        shop_of.must(other.owner:post("/apps/" .. other.app .. "/update", { allowed_origins = { theirs } }), 200)
        local victim = support.user(tenant, "customer")
        local jar = support.client()
        jar.url = server.url
        local function ask(path, origin, headers)
            jar.cookies = { access_token = victim.cookies.access_token, refresh_token = victim.cookies.refresh_token }
            local sent = { Origin = origin, ["X-Token-Response"] = "body" }
            for name, value in pairs(headers) do sent[name] = value end
            return jar:post(path, {}, sent)
        end
        for _, path in ipairs{ "/auth/refresh", "/auth/logout" } do
            for _, headers in ipairs{ other.headers, { ["X-Tenant-Kasma-Id"] = other.key }, {} } do
                assert.equal(403, ask(path, theirs, headers).status, path)
            end
        end
        victim.cookies.access_token = "" -- has run out
        assert.equal(403, ask("/auth/refresh", theirs, other.headers).status)
        assert.equal(403, ask("/auth/logout", theirs, other.headers).status)
        local mine = ask("/auth/refresh", allowed, tenant.headers)
        assert.same({ 200, allowed }, { mine.status, mine.headers["access-control-allow-origin"] })
        victim.cookies = { refresh_token = mine.json.refresh_token }
        assert.equal(200, ask("/auth/logout", allowed, tenant.headers).status)
    end)

    it("a page that another tenant lets in signs nobody in here, and writes into no guest's cart", function()
        local other, theirs = support.tenant(), "https://third.example"
        shop_of.must(other.owner:post("/apps/" .. other.app .. "/update", { allowed_origins = { theirs } }), 200)
        local c = support.client(tenant.headers)
        c.url = server.url
        local right = { identifier = tenant.owner.user.email, password = tenant.owner.user.password }
        assert.equal(403, c:post("/auth/login", right, { Origin = theirs }).status)
        assert.equal(403, c:post("/auth/verify-otp", { identifier = right.identifier, code = "000000", type = "LOGIN" },
            { Origin = theirs }).status)
        assert.same({}, c.cookies)
        local product = shop_of.product(tenant, { name = "Mug", price = 5 })
        local item = { productId = product, quantity = 1 }
        assert.equal(201, c:post("/sales/cart/add", item, { Origin = allowed }).status)
        assert.is_string(c.cookies.cart_token)
        assert.equal(403, c:post("/sales/cart/add", item, { Origin = theirs }).status)
        assert.equal(403, c:post("/sales/cart/clear", {}, { Origin = foreign }).status)
        local token = c.cookies.cart_token
        local plain = support.client(tenant.headers)
        plain.url = server.url
        assert.equal(201, plain:post("/sales/cart/add", item, { Origin = foreign, ["X-Cart-Token"] = token }).status)
        assert.equal(200, c:post("/auth/login", right, { Origin = allowed }).status)
    end)

    it("a key names the app whose origins may read", function()
        local key = shop_of.must(tenant.owner:post("/tenants/" .. tenant.key .. "/keys/create", { name = "shop",
            key_type = "publishable", app_key = tenant.app })).key
        local c = support.client{ ["X-Kasma-Key"] = key.owned_key }
        c.url = server.url
        for origin, may in pairs{ [allowed] = allowed, [foreign] = false } do
            local answer = c:get("/api/ecommerce/products/list", { Origin = origin })
            assert.same({ 200, may }, { answer.status, answer.headers["access-control-allow-origin"] or false })
        end
    end)

    it("a page of another origin cannot sign its visitor in, nor write by any route with their cookie", function()
        local c = support.client(tenant.headers)
        c.url = server.url
        local right = { identifier = tenant.owner.user.email, password = tenant.owner.user.password }
        for _, headers in ipairs{ { Origin = foreign }, { Origin = "null" }, { ["Sec-Fetch-Site"] = "cross-site" } } do
            for _, kind in ipairs{ "application/x-www-form-urlencoded", "text/plain" } do
                headers["Content-Type"] = kind
                local form = kind ~= "text/plain"
                local sign_in = form and ("identifier=%s&password=%s"):format(right.identifier, right.password) or json.encode(right)
                local code = { identifier = right.identifier, code = "000000", type = "LOGIN" }
                code = form and ("identifier=%s&code=000000&type=LOGIN"):format(right.identifier) or json.encode(code)
                assert.equal(403, c:request("POST", "/auth/login", sign_in, headers).status)
                assert.equal(403, c:request("POST", "/auth/verify-otp", code, headers).status)
            end
        end
        assert.same({}, c.cookies)
        assert.equal(200, c:post("/auth/login", right, { Origin = allowed }).status)
        local routes = 0
        for _, decl in ipairs(route.all()) do
            if decl.method ~= "GET" and not decl.bare and not decl.secret then
                local path = decl.path:gsub("[:*]([%w_]+)", function(name)
                    return name == "tenant_key" and tenant.key or "01900000-0000-7000-8000-000000000000"
                end)
                local answer = c:request(decl.method, path, decl.body ~= false and "{}" or nil, { Origin = foreign,
                    ["Content-Type"] = decl.streamed and decl.body_type or "application/json" })
                assert.same({ 403, "cross_site" }, { answer.status, answer.json and answer.json.code }, decl.method .. " " .. decl.path)
                routes = routes + 1
            end
        end
        assert.is_true(routes > 60, routes)
        assert.equal(200, c:get("/auth/me").status)
    end)

    it("cookies are Secure, the clock is not there, and no mail server means no sign-up", function()
        local c = support.client(tenant.headers)
        c.url = server.url
        local answer = c:post("/auth/login", { identifier = tenant.owner.user.email, password = tenant.owner.user.password })
        assert.equal(200, answer.status)
        assert.matches("; Secure", c.set_cookies.access_token, 1, true)
        assert.matches("; Secure", c.set_cookies.refresh_token, 1, true)
        assert.equal(503, c:post("/auth/register", { email = support.unique("r") .. "@example.test", password = "secret-99" }).status)
        assert.equal(503, c:post("/auth/forgot-password", { identifier = tenant.owner.user.email }).status)
        local platform = support.platform()
        platform.url = server.url
        assert.equal(404, platform:post("/admin/clock", { advance = 1 }).status)
    end)
end)
