-- No answer to a caller of one tenant holds a byte of another: generated from the declarations and from the catalogue, so that a new
-- route or table is in the test by itself.
--
-- Three tenants own one thing of each kind. "theirs" is what must stay unseen: every id and telling text that the database holds of it is
-- a secret. People of "mine" call every declared route with an id of theirs in each place that takes one. "spare" is called with texts of
-- theirs, and with requests that change much. At the end everything of theirs must be as it was.
local json = require("core.json")
local route = require("kasma.route")
local members = require("modules.iam.members")
local arranged = require("api.arranged")
local shop_of = require("api.shop")
local support = require("api.support")

local must = shop_of.must
local P = "/api/ecommerce/products"

-- Places that are meant to answer otherwise, and why.
local OTHERWISE = {
    ["POST /sales/cart/remove productId"] = { 201, "taking out what is not in the cart is no error" },
    ["POST /sales/cart/remove variantId"] = { 201, "taking out what is not in the cart is no error" },
    ["POST /sales/orders/checkout items.productId"] = { 409, "items are only compared with the cart" },
    ["POST /sales/orders/checkout items.variantId"] = { 409, "items are only compared with the cart" },
    ["POST /rules/:rule/draft/session customerId"] = { 201, "the draft is tried on carts of a customer that this tenant does not have" },
    ["POST /rules/:rule/preview customerId"] = { 201, "the cart of a customer that this tenant does not have is a newcomer's" },
    ["POST /rules/:rule/preview cart.items.productId"] = { 409, "what is not there is not for sale" },
    ["POST /rules/:rule/preview cart.items.variantId"] = { 409, "what is not there is not for sale" },
    ["POST /api/logistics/inventory/list productId"] = { 201, "a filter that finds nothing" },
    ["POST /api/logistics/inventory/list warehouseId"] = { 201, "a filter that finds nothing" },
}

-- Members of a path that are names: they are tried with texts.
local NAMES = { template = true, token = true, name = true, hook = true, n = true, a = true, b = true, path = true }

-- Texts that are one for the whole platform, so that another's is told from a fresh one; and why.
local PLATFORM_WIDE = {
    tenant_key = "a tenant's key is no secret: the requests of its visitors carry it",
    ["POST /rules/:rule/preview orderId"] = "the first order of every tenant has the same number: it is one's own that is found",
    ["POST /rules/secrets/remove name"] = "the test's own secret of that name, set a moment before",
    ["POST /apps app_key"] = "keys of apps are unique on the platform",
    ["POST /apps hostnames"] = "a host name leads to one app",
    ["POST /apps/:app_key/update hostnames"] = "a host name leads to one app",
    ["POST /auth/register email"] = "an account is the platform's",
    ["POST /users/me/update username"] = "a user name signs in anywhere, so it is the platform's",
    ["POST /users email"] = "an account is the platform's",
    ["POST /tenants/:tenant_key/members/add email"] = "an account is the platform's; the invitation answers its id",
}

-- Members without which a place is not looked at, by the kind of what stands in it: a function of mine.
local function target(kind) return function() return { applicableTo = kind } end end
local function of_product(mine) return { productId = mine.product } end
local WITH = {
    ["POST /marketing/promotions/create targetId"] = { product = target("product"), variant = target("variant"), bundle = target("bundle"),
        category = target("category"), tag = target("tag") },
    ["POST /sales/cart/update variantId"] = { variant = of_product },
    ["POST /sales/cart/remove variantId"] = { variant = of_product },
}
WITH["POST /rules/:rule/preview customerId"] = setmetatable({}, { __index = function()
    return function(mine) return { cart = { items = { { productId = mine.product, quantity = 1 } } } } end
end })
local function of_permission() return { permission_key = "custom.sample" } end
WITH["POST /roles/:id/permissions/assign id"] = { role = of_permission }
WITH["POST /roles/:id/permissions/remove id"] = { role = of_permission }
WITH["POST /marketing/promotions/create targetIds"] = WITH["POST /marketing/promotions/create targetId"]

-- What ends the session that the other calls of a row need.
local ENDS = { ["POST /auth/logout"] = true, ["POST /auth/logout-all"] = true }

-- An answer that does not end is not waited for; realtime_spec has what such streams carry. Who may open one is asked here too.
local function endless(decl) return decl.events ~= nil end

local function called(decl) return decl.method .. " " .. decl.path end

describe("another tenant's things", function()
    local theirs, mine, spare = arranged.world(), arranged.world(), arranged.world()
    local keys = { tenant_key = theirs.shop.key, app_key = theirs.shop.app, area = theirs.mark, rule = theirs.rule }
    local secrets = arranged.secrets(theirs, { mine, spare })
    local my_secrets = arranged.secrets(mine, { theirs, spare })
    local seen = { routes = 0, places = 0, calls = 0, texts = 0 }

    --- Everything of theirs that staff can list: answer by path.
    local function state()
        local found = {}
        for _, path in ipairs{ P .. "/list", P .. "/categories/list?includeInactive=true", P .. "/tags/list", "/marketing/bundles/list",
            "/marketing/promotions/list", "/users", "/roles", "/apps", "/settings", "/users/" .. theirs.ids.user .. "/roles",
            "/tenants/" .. theirs.shop.key .. "/members", "/registry", "/permissions?scope=tenant" } do
            found[path] = must(theirs.staff:get(path), 200)
        end
        for _, path in ipairs{ "/api/logistics/inventory/list", "/api/finance/tax/rules/list" } do
            found[path] = must(theirs.staff:post(path))
        end
        found.order = shop_of.order_now(theirs.shop, theirs.ids.order)
        found.session = must(theirs.shopper:get("/auth/me"), 200).user.id
        return found
    end

    -- The audit of mine tells what people of mine tried, with the ids that they sent; so does what is handed out to them about themselves.
    local tried = {}
    for _, id in pairs(theirs.ids) do tried[#tried + 1] = id end
    tried = table.concat(tried, " ")

    -- Ids and addresses in answers to people of mine and spare: at the end each is asked whose it is.
    local met, met_at = {}, {}
    local function meet(text, what)
        for _, pattern in ipairs{ "%x%x%x%x%x%x%x%x%-%x%x%x%x%-%x%x%x%x%-%x%x%x%x%-%x%x%x%x%x%x%x%x%x%x%x%x", "[%w._-]+@[%w.-]+%w" } do
            for found in text:gmatch(pattern) do
                found = found:lower()
                if not met_at[found] then met[#met + 1], met_at[found] = found, what end
            end
        end
    end

    local function no_secret(answer, what, sent, of)
        local headers = {}
        for name, value in pairs(answer.headers) do headers[#headers + 1] = name .. ": " .. value end
        local text = table.concat(headers, "\n") .. "\n" .. answer.body
        local found = arranged.leaked(text, of or secrets, sent)
        assert.is_nil(found, ("%s: %d %s"):format(what, answer.status, answer.body))
        if not of then meet(answer.body, what) end
    end

    local function call(client, decl, world, place, given, more)
        seen.calls = seen.calls + 1
        local method, path, body = arranged.request(decl, world, place, given)
        for name, value in pairs(more or {}) do body[name] = value end
        return client:request(method, path, body)
    end

    local function check(decl, place, id, kind)
        local name = called(decl) .. " " .. place.text
        local other = OTHERWISE[name]
        local with = WITH[name]
        if with and not with[kind] then return end
        local answer = call(mine.staff, decl, mine, place, id, with and with[kind](mine.ids))
        local what = ("%s with their %s: %d %s"):format(name, kind, answer.status, answer.body)
        no_secret(answer, what, id)
        if answer.status == 404 then
            assert.is_nil(answer.body:find("Cannot ", 1, true), what)
        elseif answer.status == 400 then
            assert.is_truthy(answer.json.code and answer.json.code ~= "validation", what)
        elseif other then
            assert.equal(other[1], answer.status, what)
        elseif place.where == "query" then
            assert.equal(decl.status, answer.status, what) -- a filter that finds nothing
        elseif place.is_key then
            assert.equal(403, answer.status, what) -- a tenant of which the caller is no member
        else
            assert.equal(404, answer.status, what)
        end
    end

    -- On a slow machine these tests last longer than an access token. Exchanged, not signed in anew: so their session must still stand.
    local function exchange()
        for _, who in ipairs{ "staff", "shopper" } do must(theirs[who]:post("/auth/refresh"), 200) end
    end

    local before = state()
    must(mine.staff:post("/sales/cart/add", { productId = mine.ids.product, quantity = 1 }))

    for _, decl in ipairs(route.all()) do
        local places = not decl.bare and not decl.secret and not decl.platform_only and arranged.id_places(decl) or {}
        if #places > 0 then
            seen.routes = seen.routes + 1
            it(("are not there for %s"):format(called(decl)), function()
                for _, place in ipairs(places) do
                    seen.places = seen.places + 1
                    local kind = arranged.kind_of(place.name, decl)
                    if place.is_key and not NAMES[place.name] then
                        check(decl, place, assert(keys[place.name], "a path member without a UUID: " .. place.name), place.name)
                    elseif not place.is_key and kind then
                        check(decl, place, theirs.ids[kind], kind)
                    elseif not place.is_key then
                        for their_kind, id in pairs(theirs.ids) do check(decl, place, id, their_kind) end
                    end
                end
            end)
        end
    end

    -- A request of the test may end a session, change a password, close an account: then somebody new stands in.
    local function alive(who)
        if spare[who]:get("/auth/me").status ~= 200 and not pcall(support.sign_in, spare[who]) then
            spare[who] = support.user(spare.shop, who == "staff" and "tenant_owner" or "customer")
        end
    end

    it("are not in any answer to staff, to a customer, to a guest or to a key of another tenant", function()
        local guest, key = support.guest(spare.shop), support.client{ Authorization = "Bearer " .. spare.secret }
        for _, decl in ipairs(route.all()) do
            for _, who in ipairs(endless(decl) and {} or { "staff", "shopper", "guest", "key" }) do
                local client = who == "guest" and guest or who == "key" and key or spare[who]
                no_secret(call(client, decl, spare), called(decl) .. " by " .. who)
                if decl.method ~= "GET" and spare[who] then alive(who) end
            end
        end
    end)

    -- Texts of theirs. A fresh one of the same form has other digits where a name of the tests is random.
    local function texts()
        local number = before.order.orderNumber
        return { theirs.mark, theirs.slug, theirs.slug .. "-coat", theirs.shopper.user.email, theirs.shop.key, theirs.host,
            "custom." .. theirs.mark:lower(), secrets[number] and number or nil } -- ours may have an order of that number too
    end
    local function fresh(text)
        return (text:gsub("%x%x%x%x%x%x+", function(run)
            return (run:gsub("%d", function() return tostring(math.random(0, 9)) end):gsub("%l", function()
                return string.char(math.random(97, 102))
            end))
        end))
    end

    local function outcome(answer)
        return answer.status .. (answer.status >= 400 and " " .. tostring(answer.json and answer.json.code) or "")
    end

    -- No row security stands before the platform's tables, and an order leads to its tenant.
    local ids = { theirs.ids.user, theirs.ids.key, theirs.ids.session, theirs.ids.order }

    -- In each place that takes text, each of the texts is answered as a fresh one is, before or after it, and shows nothing.
    local function in_every_text(list, sent)
        for _, decl in ipairs(route.all()) do
            for _, place in ipairs(endless(decl) and {} or arranged.text_places(decl)) do
                local name = called(decl) .. " " .. place.text
                for _, text in ipairs((PLATFORM_WIDE[name] or PLATFORM_WIDE[place.name]) and {} or list) do
                    seen.texts = seen.texts + 1
                    local function with(value)
                        local answer = call(spare.staff, decl, spare, place, value)
                        if answer.status == 401 then
                            alive("staff")
                            answer = call(spare.staff, decl, spare, place, value)
                        end
                        return answer
                    end
                    local first, their = with(fresh(text)), with(text)
                    local what = ("%s: %q of theirs got %d %s; a fresh one got %s before"):format(name, text, their.status, their.body,
                        outcome(first))
                    no_secret(their, what, sent)
                    if outcome(their) ~= outcome(first) then
                        local after = outcome(with(fresh(text)))
                        assert.equal(after, outcome(their), what .. " and " .. after .. " after")
                    end
                end
            end
        end
    end

    it("are not told from what exists nowhere, by their ids in places that are declared as text", function()
        in_every_text(ids, table.concat(ids, " "))
    end)

    it("are not told from what exists nowhere, by their names, slugs, codes, numbers and addresses", function()
        in_every_text(texts(), table.concat(texts(), " ") .. table.concat(ids, " ")) -- sent: ours of the same name, made a moment ago
        assert.is_true(seen.texts > 100, seen.texts .. " texts")
    end)

    -- Ways to say that one is somebody of theirs, or works there: name -> client.
    local function games()
        local function with(client, headers, cookies)
            local other = support.client(headers)
            for name, value in pairs(cookies or client.cookies) do other.cookies[name] = value end
            return other
        end
        local their, my = theirs.shop, mine.shop
        local list = {
            ["their tenant by header"] = with(mine.staff, { ["X-Tenant-Kasma-Id"] = their.key }),
            ["their tenant and app"] = with(mine.staff, { ["x-TENANT-kasma-ID"] = their.key, ["X-App-Kasma-Id"] = their.app }),
            ["their app alone"] = with(mine.staff, { ["X-App-Kasma-Id"] = their.app }),
            ["my tenant, their app"] = with(mine.staff, { ["X-Tenant-Kasma-Id"] = my.key, ["X-App-Kasma-Id"] = their.app }),
            ["their host"] = with(mine.staff, { Host = theirs.host }),
            ["their host and tenant"] = with(mine.staff, { Host = theirs.host, ["X-Tenant-Kasma-Id"] = their.key }),
            ["their user by header"] = with(mine.staff, { ["X-User-Id"] = theirs.staff.user.id, ["X-Gateway-Secret"] = "kasma",
                ["X-Tenant-Kasma-Id"] = their.key }),
            ["nobody as their user"] = with(mine.staff, { ["X-User-Id"] = theirs.staff.user.id, ["X-Gateway-Secret"] = "",
                ["X-Forwarded-User"] = theirs.staff.user.email, ["X-Tenant-Kasma-Id"] = their.key }, {}),
            ["my key, their tenant"] = with(mine.staff, { Authorization = "Bearer " .. mine.secret,
                ["X-Tenant-Kasma-Id"] = their.key }, {}),
            ["my key and their host"] = with(mine.staff, { ["X-Kasma-Key"] = mine.secret, Host = theirs.host }, {}),
            ["my key and their app"] = with(mine.staff, { ["X-Kasma-Key"] = mine.secret, ["X-App-Kasma-Id"] = their.app }, {}),
            ["their publishable key"] = with(mine.staff, { ["X-Kasma-Key"] = theirs.publishable }),
            ["their key cut short"] = with(mine.staff, { Authorization = "Bearer " .. theirs.secret:sub(1, -2),
                ["X-Tenant-Kasma-Id"] = their.key }),
            ["a customer in their tenant"] = with(mine.shopper, { ["X-Tenant-Kasma-Id"] = their.key, ["X-App-Kasma-Id"] = their.app }),
        }
        return list
    end

    -- The other names of a route's path.
    local function paths_of(decl, path)
        local bare_path, query = path:match("^([^?]+)(.*)$")
        local list = { path, path:find("^/api/") and path:sub(5) or "/api" .. path, bare_path:upper() .. query, bare_path .. "/" .. query }
        for _, alias in ipairs(decl.aliases or {}) do
            if not alias:find(":", 1, true) then list[#list + 1] = alias .. query end
        end
        return list
    end

    it("are not reached by headers, hosts, keys and cookies that name their tenant", function()
        for name, client in pairs(games()) do
            for _, decl in ipairs(route.all()) do
                local method, path, body = arranged.request(decl, theirs)
                local sent = table.concat({ path, body and json.encode(body) or "", theirs.shop.key, theirs.shop.app,
                    theirs.host, (decl.path:find("^/audit/") or decl.path == "/users/me/export") and tried or "" }, " ")
                local paths = name == "their tenant by header" and paths_of(decl, path) or { path }
                if ENDS[called(decl)] or endless(decl) then paths = {} end
                for i, other_path in ipairs(paths) do
                    local answer = client:request(method, other_path, body)
                    local what = ("%s %s with %s: %d %s"):format(method, other_path, name, answer.status, answer.body)
                    if decl.public then
                        -- Such a caller is a visitor of that shop, and sees what any visitor may.
                        assert.is_nil(arranged.leaked(answer.body, secrets, sent, true), what)
                    else
                        no_secret(answer, what, sent)
                        if i == 1 or answer.status ~= 404 then
                            -- The caller's own tenant goes before the host.
                            local own = name == "their host" or name == "my key and their host"
                            assert.is_true(answer.status >= 400 or decl.account or own, what)
                        end
                        assert.is_true(answer.status < 500, what)
                    end
                end
            end
        end
    end)

    it("are not mixed with one's own when two people's credentials come in one request", function()
        exchange()
        support.sign_in(mine.staff) -- the calls above may have ended the session
        local both = theirs.staff:copy()
        both.headers = { Authorization = "Bearer " .. theirs.staff.cookies.access_token, ["X-Tenant-Kasma-Id"] = mine.shop.key }
        both.cookies = { access_token = mine.staff.cookies.access_token }
        for _, decl in ipairs(route.all()) do
            if not decl.public and not decl.secret and not endless(decl) then
                local method, path, body = arranged.request(decl, mine)
                local answer = both:request(method, path, body)
                no_secret(answer, called(decl), path .. " " .. (body and json.encode(body) or ""), my_secrets)
                if not decl.account then assert.equal(403, answer.status, called(decl) .. " " .. answer.body) end
            end
        end
    end)

    -- With curl, because it sends headers twice, and gives up an answer that does not end: after a minute, for a machine may be busy.
    local function curl(client, path, more)
        local words = { "curl -sS -m 60 -w '\\n%{http_code}'", more or "", "'" .. support.url .. path .. "'" }
        for name, value in pairs(client.headers) do words[#words + 1] = ("-H '%s: %s'"):format(name, value) end
        for name, value in pairs(client.cookies) do words[#words + 1] = ("-H 'Cookie: %s=%s'"):format(name, value) end
        local from = assert(io.popen(table.concat(words, " ") .. " 2>/dev/null"))
        local text = from:read("*a")
        from:close()
        return { headers = {}, body = text:match("^(.*)\n%d+$"), status = tonumber(text:match("(%d+)$")) }
    end

    it("are not reached by two headers, whichever stands first", function()
        support.sign_in(mine.staff)
        local client = support.client{ ["X-App-Kasma-Id"] = mine.shop.app }
        client.cookies = mine.staff.cookies
        local their, my = theirs.shop.key, mine.shop.key
        for _, path in ipairs{ "/users", "/sales/orders/me", "/audit/logs", P .. "/list", "/settings" } do
            assert.equal(200, curl(client, path, "-H 'X-Tenant-Kasma-Id: " .. my .. "'").status, path)
            for _, pair in ipairs{ { my, their }, { their, my }, { their, their } } do
                -- A header that comes twice is refused, whatever it says.
                local answer = curl(client, path, ("-H 'X-Tenant-Kasma-Id: %s' -H 'x-tenant-kasma-id: %s'"):format(pair[1], pair[2]))
                no_secret(answer, path)
                assert.equal(400, answer.status, path .. " " .. answer.body)
            end
            assert.equal(403, curl(client, path, ("-H 'X-Tenant-Kasma-Id: %s, %s'"):format(my, their)).status, path)
        end
    end)

    it("are not streamed to who names their tenant", function()
        support.sign_in(mine.staff)
        for _, decl in ipairs(route.all()) do
            if endless(decl) then
                for name, client in pairs(games()) do
                    local own = name == "their host" or name == "my key and their host" or name == "their publishable key"
                    if not own then assert.is_true(curl(client, decl.path).status >= 400, decl.path .. " with " .. name) end
                end
                local query = decl.path .. "?tenant_key=" .. theirs.shop.key
                local client = support.client()
                client.cookies = mine.staff.cookies
                assert.is_true(curl(client, query).status >= 400, query)
            end
        end
    end)

    it("are as they were for the one who was asked about them a moment ago on the same connection", function()
        exchange()
        support.sign_in(mine.staff) -- the calls above may have ended the session
        support.sign_in(mine.shopper)
        -- Statements that fail in the database, between reads of both sides, in one loop turn and on the same pool.
        local calls, expected = {}, {}
        for i = 1, 20 do
            for who, world in pairs{ theirs = theirs, mine = mine } do
                calls[#calls + 1] = function()
                    return world.staff:post(P .. "/create", { name = "Taken", slug = world.slug .. "-coat", price = 1 })
                end
                expected[#calls] = { 409 }
                calls[#calls + 1] = function() return world.staff:get(P .. "/list?search=Marigold&limit=" .. i) end
                expected[#calls] = { 200, who == "mine" and secrets or my_secrets }
                calls[#calls + 1] = function() return world.staff:get(P .. "/" .. (who == "mine" and theirs or mine).ids.product) end
                expected[#calls] = { 404 }
                calls[#calls + 1] = function() return world.shopper:get("/sales/orders/me") end
                expected[#calls] = { 200, who == "mine" and secrets or my_secrets }
            end
        end
        for i, answer in ipairs(support.parallel(calls)) do
            assert.equal(expected[i][1], answer.status, answer.body)
            if expected[i][2] then no_secret(answer, "call " .. i, nil, expected[i][2]) end
        end
    end)

    it("are apart for a person who belongs to both tenants", function()
        exchange()
        local person = support.shopper(mine.shop)
        members.add({ tenant = theirs.shop.key, app = theirs.shop.app, actor_kind = "system" }, { user_id = person.user.id }, true)
        local here, there = person:copy(), person:copy()
        there.headers = theirs.shop.headers
        must(here:post("/sales/cart/add", { productId = mine.ids.product, quantity = 2 }))
        assert.equal(0, #must(there:get("/sales/cart/me"), 200).items)
        -- One key, two tenants: two requests.
        local headers = { ["X-Idempotency-Key"] = support.unique("both") }
        local first = here:post("/sales/cart/add", { productId = mine.ids.product, quantity = 1 }, headers)
        local second = there:post("/sales/cart/add", { productId = mine.ids.product, quantity = 1 }, headers)
        assert.same({ 201, 404 }, { first.status, second.status })
        local order = must(shop_of.checkout(here, nil, { ["X-Idempotency-Key"] = headers["X-Idempotency-Key"] })).orders[1].id
        local refused = shop_of.checkout(there, nil, { ["X-Idempotency-Key"] = headers["X-Idempotency-Key"] })
        assert.is_true(refused.status == 400 or refused.status == 404, refused.body)
        assert.equal(201, here:post("/sales/orders/details", { id = order }).status)
        assert.equal(404, there:post("/sales/orders/details", { id = order }).status)
        assert.equal(403, there:get("/users").status)
        must(theirs.staff:post("/tenants/" .. theirs.shop.key .. "/members/remove", { user_id = person.user.id }), 200)
        assert.equal(403, there:get("/auth/sessions").status)
    end)

    it("are nobody's else either: no answer held an id or an address of any third tenant", function()
        assert.is_true(#met > 500, #met .. " ids and addresses")
        local strange = arranged.strangers(met, { mine.shop.key, spare.shop.key, theirs.shop.key })
        for i, row in ipairs(strange) do strange[i] = ("%s of %s (%s): %s"):format(row[1], row[2], row[3], met_at[row[1]]) end
        assert.equal("", table.concat(strange, "\n"))
    end)

    it("are served to their own people", function()
        exchange()
        assert.equal(200, theirs.staff:get(P .. "/" .. theirs.ids.product).status)
        assert.is_truthy(theirs.staff:get(P .. "/list").body:find(theirs.mark, 1, true))
        assert.equal(200, theirs.staff:get("/users/" .. theirs.ids.user).status)
        assert.equal(200, theirs.staff:get("/audit/logs/" .. theirs.ids.event).status)
        assert.equal(201, theirs.shopper:post("/sales/orders/details", { id = theirs.ids.order }).status)
    end)

    it("stay as they were, after every route was asked", function()
        exchange()
        local after = state()
        for path, body in pairs(before) do assert.same(body, after[path], path) end
        assert.is_true(seen.routes >= 30 and seen.calls >= seen.places and seen.places >= seen.routes,
            ("%d routes, %d places, %d calls"):format(seen.routes, seen.places, seen.calls))
        local document = must(support.client():get("/openapi.json"), 200)
        for _, decl in ipairs(route.all()) do
            local path = decl.path:gsub("[:*]([%w_]+)", "{%1}")
            assert.is_truthy(document.paths[path] and document.paths[path][decl.method:lower()], decl.method .. " " .. path)
        end
    end)
end)
