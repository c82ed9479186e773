-- Another tenant's ids are 404 on every route: generated from the declarations, so that a new route is in the test by itself.
--
-- Tenant "theirs" owns one thing of each kind, with names that carry a mark. Staff of "mine", with all permissions, calls every declared
-- route (but those that a service secret or a platform role opens) once for each place of its path, query and body that takes a UUID, with
-- an id of theirs in that place and valid values of mine in all others. The answer must be 404, or 400 with the area's own code, and
-- must not hold a byte of theirs; afterwards everything of theirs must be as it was.
local json = require("core.json")
local route = require("kasma.route")
local schema = require("kasma.schema")
local shop_of = require("api.shop")
local support = require("api.support")

local must = shop_of.must
local P = "/api/ecommerce/products"

-- What an id of this name is an id of; names in the table's left column are compared without case, "_" and a plural s.
local KINDS = {
    product = "product", productid = "product", variantid = "variant", categoryid = "category", parentid = "category", tagid = "tag",
    warehouseid = "warehouse", zoneid = "zone", shippingmethodid = "method", bundleid = "bundle", userid = "user", roleid = "role",
    orderid = "order", actorid = "user",
}

-- Places that are meant to answer otherwise, and why.
local OTHERWISE = {
    ["POST /sales/cart/remove productId"] = { 201, "taking out what is not in the cart is no error" },
    ["POST /sales/cart/remove variantId"] = { 201, "taking out what is not in the cart is no error" },
    ["POST /sales/orders/checkout items.productId"] = { 409, "items are only compared with the cart" },
    ["POST /sales/orders/checkout items.variantId"] = { 409, "items are only compared with the cart" },
    ["POST /api/logistics/inventory/list productId"] = { 201, "a filter that finds nothing" },
    ["POST /api/logistics/inventory/list warehouseId"] = { 201, "a filter that finds nothing" },
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
WITH["POST /marketing/promotions/create targetIds"] = WITH["POST /marketing/promotions/create targetId"]

--- One of everything, its names with a mark.
local function stocked()
    local shop = support.tenant{ currency = "VND", country = "VN" }
    local mark = support.unique("Marigold")
    local staff = shop.owner
    local ids = {}
    ids.category = must(staff:post(P .. "/categories/create", { name = mark, slug = mark:lower() })).id
    ids.tag = must(staff:post(P .. "/tags/create", { name = mark, slug = mark:lower() })).id
    ids.product = shop_of.product(shop, { name = mark, price = 100000, categoryId = ids.category, tagIds = { ids.tag }, weightGrams = 100 })
    ids.variant = must(staff:post(P .. "/create", { name = mark .. " coat", slug = mark:lower() .. "-coat", price = 1,
        variants = { { sku = mark, price = 1, stock = 3, name = mark } } })).variantIds[1]
    shop_of.stock(shop, ids.product, 50)
    ids.warehouse = must(staff:post("/api/logistics/inventory/warehouse/create", { name = mark, code = mark })).id
    ids.bundle = must(staff:post("/marketing/bundles/create", { name = mark, price = 5, items = { { productId = ids.product } } })).id
    ids.promotion = must(staff:post("/marketing/promotions/create", { name = mark, type = "PERCENTAGE", value = 1 })).id
    ids.zone = must(staff:post("/api/logistics/shipping/zone/create", { name = mark, countries = { "VN" } })).id
    ids.method = must(staff:post("/api/logistics/shipping/method/add", { zoneId = ids.zone, name = mark, baseCost = 1 })).id
    ids.tax = must(staff:post("/api/finance/tax/rules/create", { name = mark, country = "VN", rate = 1 })).id
    ids.role = must(staff:post("/roles", { code = mark, role_key = mark:lower(), display_name = mark })).role.id
    local shopper = support.shopper(shop)
    must(shopper:post("/users/me/update", { first_name = mark, bio = mark }), 200)
    ids.user = shopper.user.id
    ids.order = must(shop_of.checkout(shop_of.buyer(shop, ids.product, 1, shopper), { notes = mark })).orders[1].id
    ids.session = must(shopper:get("/auth/sessions"), 200).data[1].id
    ids.event = support.eventually(function() return must(staff:get("/audit/logs?limit=1"), 200).data[1] end).id
    return { shop = shop, staff = staff, shopper = shopper, ids = ids, mark = mark,
        secrets = { mark, mark:lower(), shopper.user.email, staff.user.email } }
end

-- Values for declarations ------------------------------------------------------------------------------------------------------------

local function has(node, place)
    if node == place then return true end
    if node.kind == "object" then
        for _, member in pairs(node.members) do
            if has(member, place) then return true end
        end
    elseif node.kind == "array" or node.kind == "map" then
        return node.item ~= nil and has(node.item, place)
    elseif node.kind == "one_of" then
        for _, alternative in ipairs(node.alternatives) do
            if has(alternative, place) then return true end
        end
    end
    return false
end

local function kind_of(name)
    local plain = name:lower():gsub("_", "")
    return KINDS[plain] or KINDS[plain:gsub("s$", "")] or nil
end

local WORDS = { "sample", "VN", "VND", "sample-" .. support.unique("w"), "https://example.test", "custom.sample", "1" }
local function word(node)
    for _, text in ipairs(WORDS) do
        if schema.check(node, text) ~= nil then return text end
    end
    return nil
end

local value_of

local simple = {
    string = word, email = function() return "somebody@example.test" end, date = function() return "2026-06-01T00:00:00Z" end,
    url = function() return "https://example.test/a" end,
    integer = function(node) return math.max(node.opts.min or 1, 1) end,
    number = function(node) return math.max(node.opts.min or 1, 1) end, money = function() return 1000 end,
    boolean = function() return true end,
    enum = function(node) return node.values[1] end, any = function() return "sample" end, map = function() return {} end,
}

--- A value that the declaration takes, with `id` in the place and ids of `mine` in other required ones.
value_of = function(node, name, place, id, mine)
    if node == place then return id end
    if node.kind == "uuid" then
        local kind = kind_of(name)
        if not kind then error("tests/api/tenancy_spec.lua does not know what " .. name .. " names: add it to KINDS") end
        return assert(mine[kind], "no own " .. kind)
    elseif node.kind == "object" then
        local body = {}
        for member_name, member in pairs(node.members) do
            if not member.is_optional or has(member, place) then body[member_name] = value_of(member, member_name, place, id, mine) end
        end
        return body
    elseif node.kind == "array" then
        if has(node, place) or (node.opts.min or 0) > 0 then return { value_of(node.item, name, place, id, mine) } end
        return json.array({})
    elseif node.kind == "one_of" then
        for _, alternative in ipairs(node.alternatives) do
            if has(alternative, place) then return value_of(alternative, name, place, id, mine) end
        end
        return value_of(node.alternatives[1], name, place, id, mine)
    end
    local example = node.example_value
    if example ~= nil and type(example) ~= "table" then return example end
    local value = simple[node.kind] and simple[node.kind](node)
    if value == nil then
        error(("tests/api/tenancy_spec.lua has no value for %s (%s): add a word, or an example to the route"):format(name, node.kind))
    end
    return value
end

--- Places of a declaration that take a UUID: { node, path as text, last name }.
local function places_in(node, prefix, list)
    list = list or {}
    if node.kind == "object" then
        for name, member in pairs(node.members) do
            local at = prefix == "" and name or prefix .. "." .. name
            if member.kind == "uuid" then list[#list + 1] = { node = member, text = at, name = name } else places_in(member, at, list) end
        end
    elseif node.kind == "array" or node.kind == "map" then
        if node.item and node.item.kind == "uuid" then
            list[#list + 1] = { node = node.item, text = prefix, name = prefix:match("[^.]+$") or prefix }
        elseif node.item then
            places_in(node.item, prefix, list)
        end
    elseif node.kind == "one_of" then
        for _, alternative in ipairs(node.alternatives) do places_in(alternative, prefix, list) end
    end
    return list
end

--- The places of a route: in its path, its query, its body.
local function places_of(decl)
    local list = {}
    for name in decl.path:gmatch(":([%w_]+)") do
        local own = decl.params and decl.params[name]
        list[#list + 1] = { where = "path", name = name, text = name, node = own or {}, is_key = not (own and own.kind == "uuid") }
    end
    for _, where in ipairs{ "query", "body" } do
        local node = decl[where]
        for _, place in ipairs(schema.is_schema(node) and places_in(node, "") or {}) do
            place.where = where
            list[#list + 1] = place
        end
    end
    return list
end

local function escape(text) return (tostring(text):gsub("[^%w_.~-]", function(c) return ("%%%02X"):format(c:byte()) end)) end

describe("another tenant's things", function()
    local theirs, mine = stocked(), stocked()
    local keys = { tenant_key = theirs.shop.key, app_key = theirs.shop.app }
    local own_keys = { tenant_key = mine.shop.key, app_key = mine.shop.app }
    local seen = { routes = 0, places = 0, calls = 0 }

    --- Everything of theirs that staff can list: answer by path.
    local function state()
        local found = {}
        for _, path in ipairs{ P .. "/list", P .. "/categories/list?includeInactive=true", P .. "/tags/list", "/marketing/bundles/list",
            "/marketing/promotions/list", "/users", "/roles", "/apps", "/settings", "/users/" .. theirs.ids.user .. "/roles",
            "/tenants/" .. theirs.shop.key .. "/members", "/registry" } do
            found[path] = must(theirs.staff:get(path), 200)
        end
        for _, path in ipairs{ "/api/logistics/inventory/list", "/api/finance/tax/rules/list" } do
            found[path] = must(theirs.staff:post(path))
        end
        found.order = shop_of.order_now(theirs.shop, theirs.ids.order)
        found.session = must(theirs.shopper:get("/auth/me"), 200).user.id
        return found
    end

    -- The request with `id` in the place.
    local function call(decl, place, id, with)
        seen.calls = seen.calls + 1
        local path = decl.path:gsub(":([%w_]+)", function(name)
            if place.where == "path" and place.name == name then return escape(id) end
            return escape(own_keys[name] or mine.ids[kind_of(name) or ""] or mine.ids.user)
        end)
        if schema.is_schema(decl.query) then
            local query = {}
            for name, value in pairs(value_of(decl.query, "query", place.node, id, mine.ids)) do
                if type(value) ~= "table" then query[#query + 1] = name .. "=" .. escape(value) end
            end
            if #query > 0 then path = path .. "?" .. table.concat(query, "&") end
        end
        local body
        if decl.method ~= "GET" then
            body = schema.is_schema(decl.body) and value_of(decl.body, "body", place.node, id, mine.ids) or {}
            for name, value in pairs(with and with(mine.ids) or {}) do body[name] = value end
        end
        return mine.staff:request(decl.method, path, body)
    end

    local function check(decl, place, id, kind)
        local name = decl.method .. " " .. decl.path .. " " .. place.text
        local other = OTHERWISE[name]
        if other and other.skip then return end
        local with = WITH[name]
        if with and not with[kind] then return end
        local answer = call(decl, place, id, with and with[kind])
        local what = ("%s with their %s: %d %s"):format(name, kind, answer.status, answer.body)
        for _, secret in ipairs(theirs.secrets) do assert.is_nil(answer.body:find(secret, 1, true), what) end
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

    local before = state()
    must(mine.staff:post("/sales/cart/add", { productId = mine.ids.product, quantity = 1 }))

    for _, decl in ipairs(route.all()) do
        local places = not decl.bare and not decl.secret and not decl.platform_only and places_of(decl) or {}
        if #places > 0 then
            seen.routes = seen.routes + 1
            it(("are not there for %s %s"):format(decl.method, decl.path), function()
                for _, place in ipairs(places) do
                    seen.places = seen.places + 1
                    local kind = kind_of(place.name)
                    if place.is_key then
                        check(decl, place, assert(keys[place.name], "a path member without a UUID: " .. place.name), place.name)
                    elseif kind then
                        check(decl, place, theirs.ids[kind], kind)
                    else
                        for their_kind, id in pairs(theirs.ids) do check(decl, place, id, their_kind) end
                    end
                end
            end)
        end
    end

    it("cannot be reached by naming their tenant", function()
        for _, decl in ipairs(route.all()) do
            if decl.method == "GET" and not decl.bare and not decl.public and not decl.secret and not decl.path:find(":", 1, true) then
                local answer = mine.staff:get(decl.path, theirs.shop.headers)
                for _, secret in ipairs(theirs.secrets) do
                    assert.is_nil(answer.body:find(secret, 1, true), decl.path .. " " .. answer.body)
                end
                assert.equal(403, answer.status, decl.path .. " " .. answer.body)
            end
        end
    end)

    it("are served to their own people", function()
        assert.equal(200, theirs.staff:get(P .. "/" .. theirs.ids.product).status)
        assert.is_truthy(theirs.staff:get(P .. "/list").body:find(theirs.mark, 1, true))
        assert.equal(200, theirs.staff:get("/users/" .. theirs.ids.user).status)
        assert.equal(200, theirs.staff:get("/audit/logs/" .. theirs.ids.event).status)
        assert.equal(201, theirs.shopper:post("/sales/orders/details", { id = theirs.ids.order }).status)
    end)

    it("stay as they were, after every route was asked", function()
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
