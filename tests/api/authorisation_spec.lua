-- Who may call what: every declared route is called by each kind of caller, and what `access` says decides the answer that is expected.
--
-- The requests are arranged so that they change nothing when they pass: ids that exist nowhere, a member that no body has. To pass is
-- not to be refused at the gate: 404, 400 and whatever the handler says come after it. What a handler refuses by itself (a session that
-- ended, a role beyond one's own) is told apart by its message or code.
local config = require("core.config")
local route = require("kasma.route")
local schema = require("kasma.schema")
local arranged = require("api.arranged")
local shop_of = require("api.shop")
local support = require("api.support")

local must = shop_of.must
local NOWHERE = "01900000-0000-7000-8000-0000000000ff"

-- Routes without a body that would end what the next calls need: only those who are refused call them here.
local ENDS = { ["POST /users/me/delete"] = "closes the caller's account; iam_accounts_spec does it",
    ["POST /users/me/deactivate"] = "makes it inactive; iam_states_spec does it" }

local function called(decl) return decl.method .. " " .. decl.path end

-- Every route that asks for no permission, and for whom it is. One that is not here forgot its own, as far as this test can know: the
-- matrix below expects what is declared, so that only a list can tell what should have been.
local OPEN = {
    ["a page, a check or a document of the server"] = [[GET /, GET /health, GET /healthz, GET /health/ready, GET /readyz, GET /metrics,
        GET /openapi.json, GET /api/docs-json, GET /openapi/:area, GET /api/docs, GET /api/docs/assets/swagger-ui.css,
        GET /api/docs/assets/swagger-ui-bundle.js, GET /api/docs/assets/page.css, GET /api/docs/assets/page.js, GET /api/docs/errors,
        GET /.well-known/jwks.json]],
    ["who has no session yet, or ends one"] = [[POST /auth/register, POST /auth/login, POST /auth/verify-otp, POST /auth/resend-otp,
        POST /auth/cancel-otp, POST /auth/forgot-password, POST /auth/reset-password, POST /auth/refresh, POST /auth/logout]],
    ["one's own account"] = [[GET /auth/logs/login, POST /auth/logout-all, GET /auth/me, GET /auth/sessions, POST /auth/sessions/:id/revoke,
        POST /auth/context, POST /auth/2fa/setup, POST /auth/2fa/confirm, POST /auth/2fa/disable, GET /users/me, POST /users/me/update,
        POST /users/me/change-password, GET /users/me/permissions, GET /users/me/tenants, GET /users/me/export, POST /users/me/delete,
        POST /users/me/deactivate,
        POST /customers/details, POST /customers/update, GET /registry/access]],
    ["who holds the link"] = "GET /mail/unsubscribe/:token, POST /mail/unsubscribe/:token",
    ["a visitor of the shop"] = [[GET /marketing/bundles/list, POST /marketing/bundles/details, GET /api/ecommerce/products/categories/list,
        GET /api/ecommerce/products/tags/list, GET /api/ecommerce/products/list, GET /api/ecommerce/products/:id]],
    ["the owner of the cart, a guest too"] = [[GET /sales/cart/me, POST /sales/cart/add, POST /sales/cart/update, POST /sales/cart/remove,
        POST /sales/cart/clear, POST /sales/cart/bundle/add, GET /sales/cart/summary, POST /sales/cart/quote, POST /sales/orders/checkout]],
    ["a customer: their orders, notices and what is on offer"] = [[GET /sales/orders/me, POST /sales/orders/details,
        GET /marketing/promotions/list, POST /marketing/promotions/details, GET /api/social/notices, GET /api/social/notices/unread-count,
        POST /api/social/notices/read-all, POST /api/social/notices/:id/read, GET /api/social/notices/preferences,
        POST /api/social/notices/preferences, POST /api/social/notices/devices]],
    ["a listener: each channel is decided by itself"] = "GET /ws, GET /api/social/realtime/events, POST /api/social/realtime/ticket",
    ["a service, by its secret"] = "POST /api/notification/create, POST /api/internal/orders/sync-payment, POST /api/socket/publish",
    ["whoever the shop's rule lets in"] = "GET /x/*path, POST /x/*path, PUT /x/*path, PATCH /x/*path, DELETE /x/*path",
}

-- What the gate says, before the handler is asked.
local NO_CREDENTIAL = { ["Access token required"] = true, ["Invalid or expired access token"] = true }
local NOT_ALLOWED = { ["Forbidden resource"] = true, ["You do not belong to this tenant"] = true }

local function outcome(answer, decl)
    local message = answer.json and answer.json.message
    if decl.public and not decl.strict then return "passes" end
    if answer.status == 401 and (NO_CREDENTIAL[message] or decl.secret) then return "401" end
    if answer.status == 403 and NOT_ALLOWED[message] then return "403" end
    return "passes"
end

describe("a route", function()
    local world = arranged.world()
    local shop = world.shop
    local elsewhere = support.tenant()
    local stranger, platform = elsewhere.owner, support.platform()
    stranger.home = elsewhere
    stranger.headers, platform.headers = shop.headers, shop.headers

    local function staff_with(permission)
        local key = support.unique("role")
        must(shop.owner:post("/roles", { code = key, role_key = key, display_name = key, permission_keys = { permission } }))
        return support.user(shop, key)
    end
    local function key_with(scopes)
        local made = must(shop.owner:post("/tenants/" .. shop.key .. "/keys/create", { name = support.unique("key"), key_type = "secret",
            scopes = scopes }))
        return support.client{ Authorization = "Bearer " .. (made.key.secret or made.key.key) }
    end

    must(shop.owner:post("/permissions", { permission_key = "custom.nothing", description = "opens no route" }))
    local callers = {
        nobody = support.guest(shop), customer = support.shopper(shop), ["staff without the permission"] = staff_with("custom.nothing"),
        ["a key without the scope"] = key_with{ "custom.nothing" }, ["a key with every scope"] = key_with{ "*" },
        ["a publishable key"] = support.client{ ["X-Kasma-Key"] = world.publishable }, ["another tenant's owner"] = stranger,
        ["the owner"] = shop.owner, ["platform staff"] = platform,
        ["a bad token"] = support.client{ Authorization = "Bearer " .. ("0"):rep(64), ["X-Tenant-Kasma-Id"] = shop.key },
    }

    -- Callers that hold exactly one permission, made when first asked for.
    local exact = {}
    local function exactly(permission)
        if not exact[permission] then
            exact[permission] = { ["staff with the permission"] = staff_with(permission),
                ["a key with the scope"] = key_with{ permission } }
        end
        return exact[permission]
    end

    -- What each caller is to get: "401", "403" or "passes".
    local function expected(decl)
        if decl.bare then return {} end
        if decl.secret then
            local all = {}
            for who in pairs(callers) do all[who] = "401" end
            return all
        end
        local all = { nobody = "401", ["a publishable key"] = "401", ["a bad token"] = "401", ["another tenant's owner"] = "403",
            ["platform staff"] = "passes", ["the owner"] = "passes", ["a key with every scope"] = "passes" }
        if decl.public then
            for who in pairs(callers) do all[who] = "passes" end
            all["a bad token"] = decl.strict and "401" or "passes"
            if decl.websocket then all["another tenant's owner"] = "403" end -- public, because a token may come in the first frame
        elseif not decl.permission then
            all.customer, all["staff without the permission"], all["a key without the scope"] = "passes", "passes", "passes"
        else
            all.customer, all["staff without the permission"], all["a key without the scope"] = "403", "403", "403"
            if decl.platform_only then
                all["the owner"], all["a key with every scope"] = "403", "403"
            else
                all["staff with the permission"], all["a key with the scope"] = "passes", "passes"
            end
        end
        return all
    end

    -- A request that finds nothing and changes nothing.
    local function request(decl)
        local path = decl.path:gsub("[:*]([%w_]+)", function(name)
            if name == "tenant_key" then return shop.key end
            return decl.params and decl.params[name] and decl.params[name].kind == "uuid" and NOWHERE or "nowhere"
        end)
        local body
        if decl.method ~= "GET" then
            body = { nonsense = true }
            if decl.named_tenant == "body" then body.tenant_key = shop.key end
        end
        return decl.method, path, body
    end

    -- A request that passed may have ended the caller's session.
    local function alive(client)
        if client.user and client:get("/auth/me").status == 401 then support.sign_in(client) end
    end

    local kinds = {}
    for _, decl in ipairs(route.all()) do
        local want = expected(decl)
        it(called(decl) .. " is opened to those to whom it is declared", function()
            for who, result in pairs(want) do
                -- A stream that opens does not end: realtime_spec opens it.
                if result ~= "passes" or not (decl.events or ENDS[called(decl)]) then
                    local client = callers[who] or exactly(decl.permission)[who]
                    local answer = client:request(request(decl))
                    local got = outcome(answer, decl)
                    local what = ("%s by %s: %d %s"):format(called(decl), who, answer.status, answer.body)
                    assert.equal(result, got, what)
                    assert.is_true(answer.status < 500, what)
                    if result == "passes" and not decl.public and schema.is_schema(decl.body) then
                        assert.is_true(answer.status >= 400, what .. ": a body that holds what is not declared was taken")
                    end
                    if decl.method ~= "GET" and result == "passes" then alive(client) end
                    kinds[result] = (kinds[result] or 0) + 1
                end
            end
        end)
    end

    it("of a service is opened by its secret alone", function()
        local count = 0
        for _, decl in ipairs(route.all()) do
            if decl.secret then
                count = count + 1
                local method, path, body = request(decl)
                local secret = config.get(decl.secret)
                assert.is_true(#secret > 20, decl.secret)
                local header = decl.access.header
                for _, wrong in ipairs{ "", "x", secret:sub(1, -2), secret .. "x", secret:upper() } do
                    assert.equal(401, support.client():request(method, path, body, { [header] = wrong }).status, called(decl))
                end
                local answer = support.client():request(method, path, body, { [header] = secret })
                assert.is_true(answer.status ~= 401 and answer.status ~= 403 and answer.status < 500, called(decl) .. " " .. answer.body)
            end
        end
        assert.is_true(count >= 1)
    end)

    it("asks for a permission, unless it is known to be open", function()
        local open, wrong = {}, {}
        for _, list in pairs(OPEN) do
            for name in list:gmatch("%u+ [^%s,]+") do open[name] = true end
        end
        for _, decl in ipairs(route.all()) do
            if not decl.permission and not open[called(decl)] then
                wrong[#wrong + 1] = called(decl) .. " asks for none: declare one, or say in OPEN for whom it is"
            elseif decl.permission and open[called(decl)] then
                wrong[#wrong + 1] = called(decl) .. " stands in OPEN and asks for " .. decl.permission
            end
            open[called(decl)] = nil
        end
        for name in pairs(open) do wrong[#wrong + 1] = name .. " stands in OPEN and is no route" end
        assert.equal("", table.concat(wrong, "\n"))
    end)

    it("is in the matrix whatever it declares", function()
        assert.is_true(kinds["401"] > 100 and kinds["403"] > 100 and kinds.passes > 100, ("%d, %d, %d"):format(kinds["401"], kinds["403"],
            kinds.passes))
    end)
end)
