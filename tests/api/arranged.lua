-- Requests arranged from the declarations: a tenant that owns one thing of each kind, and for any declared route a request whose
-- every member is filled in. Tests that go over all routes lean on this, so that a new route is in them by itself; when a value
-- cannot be found the test fails and says what to add here.
local config = require("core.config")
local json = require("core.json")
local db = require("kasma.db")
local outbox = require("kasma.outbox")
local schema = require("kasma.schema")
local registry = require("modules.iam.registry")
local catalogue = require("api.catalogue")
local shop_of = require("api.shop")
local support = require("api.support")

local must = shop_of.must
local P = "/api/ecommerce/products"

local M = {}

-- What an id of this name is an id of; names in the table's left column are compared without case, "_" and a plural s.
local KINDS = {
    product = "product", productid = "product", variantid = "variant", categoryid = "category", parentid = "category", tagid = "tag",
    warehouseid = "warehouse", zoneid = "zone", shippingmethodid = "method", bundleid = "bundle", userid = "user", roleid = "role",
    orderid = "order", actorid = "user", permissionid = "permission", endpointid = "endpoint", cartid = "cart",
}

-- What a plain `id` means is told by the route's path.
local BY_PATH = {
    { "^/roles/", "role" }, { "/keys/", "key" }, { "^/registry/", "entry" }, { "^/auth/sessions/", "session" },
    { "^/audit/logs/", "event" }, { "^/users/", "user" }, { "/products/", "product" }, { "/promotions/", "promotion" },
    { "/bundles/", "bundle" }, { "/orders/", "order" }, { "^/webhooks/endpoints/", "endpoint" }, { "^/webhooks/deliveries/", "delivery" },
    { "/notices/", "notice" }, { "^/rules/workflows/", "workflow" }, { "^/customers/", "customer" },
}

---@class World a tenant with one of everything
---@field shop TestTenant
---@field staff TestClient the owner
---@field shopper TestClient a customer with an order
---@field secret string a secret key with all scopes; publishable: a publishable one
---@field ids table<string, string> kind -> id
---@field mark string a word in all its names
---@field slug string a word in all its slugs
---@field host string its app's host name

-- Modules are the platform's: one for all worlds.
local module_key

--- A fresh tenant with one of everything, its names with a mark that no other tenant's hold.
---@return World
function M.world()
    local mark, slug = support.unique("Marigold"), support.unique("magnolia")
    local host = mark:lower() .. ".test"
    local shop = support.tenant{ currency = "VND", country = "VN", hostnames = { host } }
    local staff = shop.owner
    local ids = {}
    ids.category = must(staff:post(P .. "/categories/create", { name = mark, slug = slug })).id
    ids.tag = must(staff:post(P .. "/tags/create", { name = mark, slug = slug })).id
    ids.product = shop_of.product(shop, { name = mark, price = 100000, categoryId = ids.category, tagIds = { ids.tag },
        weightGrams = 100 })
    ids.variant = must(staff:post(P .. "/create", { name = mark .. " coat", slug = slug .. "-coat", price = 1,
        variants = { { sku = mark, price = 1, stock = 3, name = mark } } })).variantIds[1]
    shop_of.stock(shop, ids.product, 50)
    ids.warehouse = must(staff:post("/api/logistics/inventory/warehouse/create", { name = mark, code = mark })).id
    ids.bundle = must(staff:post("/marketing/bundles/create", { name = mark, price = 5, items = { { productId = ids.product } } })).id
    ids.promotion = must(staff:post("/marketing/promotions/create", { name = mark, type = "PERCENTAGE", value = 1 })).id
    ids.endpoint = must(staff:post("/webhooks/endpoints/create", { name = mark, url = "https://hooks.shop.example.org/" .. slug,
        events = { "webhook.test" } })).id
    ids.delivery = must(staff:post("/webhooks/endpoints/" .. ids.endpoint .. "/test")).id
    ids.notice = must(support.client(shop.headers):post("/api/notification/create", { title = mark, content = mark,
        userId = staff.user.id }, { ["X-Internal-Api-Key"] = config.get("SOCKET_INTERNAL_API_KEY") })).id
    ids.zone = must(staff:post("/api/logistics/shipping/zone/create", { name = mark, countries = { "VN" } })).id
    ids.method = must(staff:post("/api/logistics/shipping/method/add", { zoneId = ids.zone, name = mark, baseCost = 1 })).id
    ids.tax = must(staff:post("/api/finance/tax/rules/create", { name = mark, country = "VN", rate = 1 })).id
    ids.role = must(staff:post("/roles", { code = mark, role_key = mark:lower(), display_name = mark })).role.id
    local letters = mark:lower():gsub("%d", function(digit) return string.char(103 + tonumber(digit)) end) -- a permission has no digits
    ids.permission = must(staff:post("/permissions", { permission_key = "custom." .. letters, description = mark })).permission.id
    if not module_key then
        module_key = support.unique("module")
        registry.create_module({ tenant = "MASTER", app = "MASTER", actor_kind = "system" }, { key = module_key, name = module_key })
    end
    ids.entry = must(staff:post("/registry", { app_family_key = shop.app, tenant_key = shop.key,
        module_key = module_key })).registry.id
    local rule = slug:gsub("%W", "_"):sub(1, 40)
    must(staff:post("/rules/create", { key = rule, hook = "promotion", name = mark, source = "return { hook = 'promotion', name = '"
        .. mark .. "', version = 1, priority = 1, run = function() return { operations = {} } end }" }))
    ids.rule = must(staff:get("/rules/" .. rule), 200).id
    local flow = rule:sub(1, 35) .. "_flow"
    must(staff:post("/rules/create", { key = flow, hook = "workflow", name = mark, source = ("return { hook = 'workflow', name = '%s', "
        .. "on = { 'custom.%s' }, steps = { { name = '%s', wait = '30d' } } }"):format(mark, rule, mark) }))
    must(staff:post("/rules/" .. flow .. "/publish", { revision = 1, note = mark }))
    db.pipeline(shop.key, { outbox.event({ tenant = shop.key, app = shop.app }, "custom." .. rule, mark, {}) })
    ids.workflow = support.eventually(function() return must(staff:get("/rules/" .. flow .. "/workflows"), 200)[1] end, 20).id
    local keys = "/tenants/" .. shop.key .. "/keys/create"
    local key = must(staff:post(keys, { name = mark, key_type = "secret", scopes = { "*" } })).key
    ids.key = key.id
    local publishable = must(staff:post(keys, { name = mark, key_type = "publishable" })).key
    local shopper = support.shopper(shop)
    must(shopper:post("/users/me/update", { first_name = mark, bio = mark }), 200)
    ids.user = shopper.user.id
    ids.order = must(shop_of.checkout(shop_of.buyer(shop, ids.product, 1, shopper), { notes = mark })).orders[1].id
    ids.cart = db.one(shop.key, "select id from carts where tenant_key = $1 and user_id = $2", shop.key, ids.user).id
    ids.customer = must(shopper:post("/customers/details")).id
    ids.session = must(shopper:get("/auth/sessions"), 200).data[1].id
    ids.event = support.eventually(function() return must(staff:get("/audit/logs?limit=1"), 200).data[1] end).id
    return { shop = shop, staff = staff, shopper = shopper, ids = ids, rule = rule, mark = mark, slug = slug, host = host,
        secret = key.secret or key.key, publishable = publishable.owned_key }
end

-- What belongs to a tenant, byte by byte ---------------------------------------------------------------------------------

local PUBLIC = { products = true, product_categories = true, product_tags = true, product_tags_mapping = true, product_variants = true,
    product_prices = true, product_search = true, product_redirects = true, product_bundles = true, product_bundle_items = true,
    promotions = true, shipping_zones = true, shipping_methods = true, shipping_rates = true, warehouses = true,
    warehouse_inventory = true, tax_rules = true, currencies = true }

--- Every id and every text that the database holds of a tenant: value -> the table it is from (one that visitors see, where several
--- hold it).
---@param key string
---@return table<string, string>
function M.texts_of(key)
    local parts = { ("select 'users' as name, v from users u, unnest(array[u.id::text, u.email::text]) v where exists (select from "
        .. "user_tenants t where t.user_id = u.id and t.tenant_key = %s)"):format(catalogue.quote(key)) }
    for _, t in ipairs(catalogue.tenant_tables()) do
        local columns = {}
        for _, column in ipairs(t.columns) do
            local kind = column.type
            if column.name ~= "tenant_key" and column.name ~= "app_key"
                and (kind == "uuid" or kind == "text" or kind == "character varying") then
                columns[#columns + 1] = '"' .. column.name .. '"::text'
            end
        end
        if #columns > 0 and t.bound == "" then
            parts[#parts + 1] = ("select '%s', u.held as v from %s x, unnest(array[%s]) u (held) where x.tenant_key = %s"):format(t.name,
                t.name, table.concat(columns, ", "), catalogue.quote(key))
        end
    end
    local texts = {}
    for _, pair in ipairs(catalogue.json("owner", "select coalesce(json_agg(json_build_array(name, v)), '[]') from ("
        .. table.concat(parts, " union ") .. ") x where v is not null and length(v) >= 8")) do
        if not PUBLIC[texts[pair[2]]] then texts[pair[2]] = pair[1] end
    end
    return texts
end

--- What must not be seen outside `theirs`: its texts less those that `others` hold as well.
---@param theirs World
---@param others World[]
---@return table<string, string> text -> table
function M.secrets(theirs, others)
    local secrets = M.texts_of(theirs.shop.key)
    for _, other in ipairs(others) do
        for text in pairs(M.texts_of(other.shop.key)) do secrets[text] = nil end
    end
    for text in pairs(secrets) do
        local telling = text:lower():find(theirs.mark:lower(), 1, true) or text:find("@", 1, true) or schema.is_uuid(text)
            or select(2, text:gsub("%d", "")) >= 6
        if not telling then secrets[text] = nil end
    end
    secrets[theirs.mark], secrets[theirs.mark:lower()] = "products", "products"
    for _, id in pairs(theirs.ids) do secrets[id] = secrets[id] or "users" end
    return secrets
end

--- Which of these ids and addresses belong to other tenants than `keys`, whatever table they are from.
---@param values string[] UUIDs and e-mail addresses, in lower case
---@param keys string[] tenant keys
---@return string[][] {value, table, tenant}
function M.strangers(values, keys)
    local function list(texts)
        local quoted = {}
        for i, text in ipairs(texts) do quoted[i] = catalogue.quote(text) end
        return table.concat(quoted, ", ")
    end
    local own = list(keys)
    -- An account is whoever's member it is; one that is nobody's is the platform's.
    local parts = { ([[select m.v, 'users', min(t.tenant_key) from met m join users u on u.id::text = m.v or lower(u.email) = m.v
        join user_tenants t on t.user_id = u.id group by m.v having not bool_or(t.tenant_key in (%s))]]):format(own) }
    local function of(name) -- the table's rows by id
        parts[#parts + 1] = ("select m.v, '%s', x.tenant_key from met m join %s x on x.id::text = m.v where x.tenant_key not in (%s)")
            :format(name, name, own)
    end
    for _, name in ipairs{ "auth_sessions", "access_keys", "apps" } do of(name) end
    for _, t in ipairs(catalogue.tenant_tables()) do
        for _, column in ipairs(t.columns) do
            if column.name == "id" and column.type == "uuid" and t.bound == "" then of(t.name) end
        end
    end
    return catalogue.json("owner", ("with met (v) as (select unnest(array[%s])) select coalesce(json_agg(json_build_array(v, n, t)), '[]') "
        .. "from (%s) x (v, n, t)"):format(list(values), table.concat(parts, " union all ")))
end

--- The first secret that a text holds, but for what was sent (and what is part of it).
---@param text string
---@param secrets table<string, string>
---@param sent string|nil
---@param private boolean|nil only what no visitor of that shop may see
---@return string|nil
function M.leaked(text, secrets, sent, private)
    if #text < 8 then return nil end
    sent = (sent or ""):lower()
    local function counts(secret, from) return not (private and PUBLIC[from]) and not sent:find(secret:lower(), 1, true) end
    for id in text:gmatch("%f[%x]%x%x%x%x%x%x%x%x%-%x%x%x%x%-%x%x%x%x%-%x%x%x%x%-%x+") do
        id = id:sub(1, 36):lower()
        if secrets[id] and counts(id, secrets[id]) then return id .. " of " .. secrets[id] end
    end
    for secret, from in pairs(secrets) do
        if not (#secret == 36 and schema.is_uuid(secret)) and text:find(secret, 1, true) and counts(secret, from) then
            return secret .. " of " .. from
        end
    end
    return nil
end

-- Values for declarations ------------------------------------------------------------------------------------------------

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

--- What an id of this name is an id of, or nil.
---@param name string
---@param decl kasma.Route|nil tells what `:id` is
---@return string|nil
function M.kind_of(name, decl)
    local plain = name:lower():gsub("_", "")
    local kind = KINDS[plain] or KINDS[plain:gsub("s$", "")]
    if not kind and decl and name == "id" then
        for _, pair in ipairs(BY_PATH) do
            if decl.path:find(pair[1]) then return pair[2] end
        end
    end
    return kind or nil
end
local kind_of = M.kind_of

local WORDS = { "sample", "VN", "VND", "sample-" .. support.unique("w"), "https://example.test", "custom.sample", "1" }
local function word(node)
    for _, text in ipairs(WORDS) do
        if schema.check(node, text) ~= nil then return text end
    end
    return nil
end

local value_of
local current -- the route that values are made for

local simple = {
    string = word, date = function() return "2026-06-01T00:00:00Z" end,
    url = function() return "https://example.test/a" end,
    integer = function(node) return math.max(node.opts.min or 1, 1) end,
    number = function(node) return math.max(node.opts.min or 1, 1) end, money = function() return 1000 end,
    boolean = function() return true end,
    enum = function(node) return node.values[1] end, any = function() return "sample" end, map = function() return {} end,
}

--- A value that a declaration takes: `given` in the place, ids of `ids` in other required ones.
---@param node kasma.Schema
---@param name string
---@param place kasma.Schema|nil
---@param given any
---@param ids table<string, string>
---@return any
value_of = function(node, name, place, given, ids)
    if node == place then return given end
    if node.kind == "uuid" then
        local kind = kind_of(name, current)
        if not kind then error("tests/api/arranged.lua does not know what " .. name .. " names: add it to KINDS") end
        return assert(ids[kind], "no " .. kind .. " in the world")
    elseif node.kind == "object" then
        local body = {}
        for member_name, member in pairs(node.members) do
            if not member.is_optional or (place and has(member, place)) then
                body[member_name] = value_of(member, member_name, place, given, ids)
            end
        end
        return body
    elseif node.kind == "array" then
        if (place and has(node, place)) or (node.opts.min or 0) > 0 then return { value_of(node.item, name, place, given, ids) } end
        return json.array({})
    elseif node.kind == "map" and place and has(node, place) then
        return { sample = value_of(node.item, name, place, given, ids) }
    elseif node.kind == "one_of" then
        for _, alternative in ipairs(node.alternatives) do
            if place and has(alternative, place) then return value_of(alternative, name, place, given, ids) end
        end
        return value_of(node.alternatives[1], name, place, given, ids)
    end
    -- One account has one address on the whole platform.
    if node.kind == "email" then return support.unique("somebody") .. "@example.test" end
    local example = node.example_value
    if example ~= nil and type(example) ~= "table" then return example end
    local value = simple[node.kind] and simple[node.kind](node)
    if value == nil then
        error(("tests/api/arranged.lua has no value for %s (%s): add a word, or an example to the route"):format(name, node.kind))
    end
    return value
end

---@class Place where a value can stand in a request
---@field where "path"|"query"|"body"
---@field name string last name; text: whole name
---@field node kasma.Schema
---@field is_key boolean|nil a member of the path that is no UUID

local TEXT = { string = true, email = true, any = true }

local function places_in(node, prefix, list, wanted)
    if node.kind == "object" then
        for name, member in pairs(node.members) do
            local at = prefix == "" and name or prefix .. "." .. name
            if wanted[member.kind] then
                list[#list + 1] = { node = member, text = at, name = name }
            else
                places_in(member, at, list, wanted)
            end
        end
    elseif node.kind == "array" or node.kind == "map" then
        if node.item and wanted[node.item.kind] then
            list[#list + 1] = { node = node.item, text = prefix, name = prefix:match("[^.]+$") or prefix }
        elseif node.item then
            places_in(node.item, prefix, list, wanted)
        end
    elseif node.kind == "one_of" then
        for _, alternative in ipairs(node.alternatives) do places_in(alternative, prefix, list, wanted) end
    end
    return list
end

local function places(decl, wanted)
    local list = {}
    for name in decl.path:gmatch("[:*]([%w_]+)") do
        local own = decl.params and decl.params[name]
        local is_uuid = own ~= nil and own.kind == "uuid"
        if is_uuid == (wanted.uuid == true) or wanted.uuid then
            list[#list + 1] = { where = "path", name = name, text = name, node = own or {}, is_key = not is_uuid or nil }
        end
    end
    for _, where in ipairs{ "query", "body" } do
        local node = decl[where]
        if schema.is_schema(node) then
            for _, place in ipairs(places_in(node, "", {}, wanted)) do
                place.where = where
                list[#list + 1] = place
            end
        end
    end
    table.sort(list, function(a, b) return a.where .. a.text < b.where .. b.text end)
    return list
end

--- Places of a route that take a UUID, and the members of its path.
---@param decl kasma.Route
---@return Place[]
function M.id_places(decl) return places(decl, { uuid = true }) end

--- Places of a route that take free text.
---@param decl kasma.Route
---@return Place[]
function M.text_places(decl) return places(decl, TEXT) end

local function escape(text) return (tostring(text):gsub("[^%w_.~-]", function(c) return ("%%%02X"):format(c:byte()) end)) end

--- A request that the declaration takes, about things of `world`, with `given` in the place.
---@param decl kasma.Route
---@param world World
---@param place Place|nil
---@param given any
---@return string method, string path, table|nil body
function M.request(decl, world, place, given)
    current = decl
    local own_keys = { tenant_key = world.shop.key, app_key = world.shop.app, area = "catalog", rule = world.rule, hook = "promotion",
        n = "1", a = "1", b = "1" }
    local path = decl.path:gsub("[:*]([%w_]+)", function(name)
        if place and place.where == "path" and place.name == name then return escape(given) end
        return escape(own_keys[name] or world.ids[kind_of(name, decl) or ""] or world.ids.user)
    end)
    local node = place and place.node
    if schema.is_schema(decl.query) then
        local query = {}
        for name, value in pairs(value_of(decl.query, "query", node, given, world.ids)) do
            if type(value) == "table" then value = value[1] end
            if value ~= nil then query[#query + 1] = name .. "=" .. escape(value) end
        end
        if #query > 0 then path = path .. "?" .. table.concat(query, "&") end
    end
    local body
    if decl.method ~= "GET" then
        body = schema.is_schema(decl.body) and value_of(decl.body, "body", node, given, world.ids) or {}
        if body.tenant_key and decl.named_tenant == "body" and not (place and place.name == "tenant_key") then
            body.tenant_key = world.shop.key
        end
    end
    return decl.method, path, body
end

return M
