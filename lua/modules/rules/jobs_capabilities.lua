-- What rules of routes and workflows may call, one declaration each: the shop's catalogue, customers and stock, what the rule itself
-- remembers, other servers. The functions of other modules are theirs; here stands what a rule gets of it.
--
-- Other modules are taken when they are first asked: the checker, which works without a store, needs the names only.
local capabilities = require("kasma.capabilities")
local schema = require("kasma.schema")

local M = {}

local function service(name) return require("modules." .. name .. ".service") end

local function wrong(name, why) capabilities.refuse(("%s: %s"):format(name, why)) end

local function check_text(name, what, value, most)
    if type(value) ~= "string" or value == "" or #value > most then
        wrong(name, ("%s must be a text of at most %d bytes"):format(what, most))
    end
    return value
end

local function lists_texts(name, what, value, most)
    if type(value) ~= "table" or #value > most then wrong(name, ("%s must list at most %d texts"):format(what, most)) end
    for i = 1, #value do check_text(name, what, value[i], 128) end
    return value
end

local function check_fields(name, o, known)
    if o ~= nil and type(o) ~= "table" then wrong(name, "takes a table") end
    for field in pairs(o or {}) do
        if not known[field] then wrong(name, ("there is no option '%s'"):format(tostring(field))) end
    end
    return o or {}
end

local function limit_of(name, limit)
    if limit == nil then return 20 end
    if type(limit) ~= "number" or limit ~= math.floor(limit) or limit < 1 or limit > 100 then
        wrong(name, "limit must be a whole number from 1 to 100")
    end
    return limit
end

local function ids_of(name, what, value, most)
    for _, id in ipairs(lists_texts(name, what, value, most)) do
        if not schema.is_uuid(id) then wrong(name, ("%s: '%s' is not an id"):format(what, id:sub(1, 40))) end
    end
    return value
end

-- Catalogue --------------------------------------------------------------------------------------------------------------------

local function product_view(p)
    local variants = {}
    for i, v in ipairs(p.variants or {}) do
        variants[i] = { id = v.id, sku = v.sku, name = v.name, price = v.price_minor, sale_price = v.sale_price_minor, stock = v.stock,
            active = v.is_active, attributes = v.attributes }
    end
    return { id = p.id, code = p.code, slug = p.slug, name = p.name, summary = p.short_description, category_id = p.category_id,
        category = p.category and p.category.name, vendor_id = p.vendor_id, price = p.price_minor, sale_price = p.sale_price_minor,
        currency = p.currency, active = p.is_active, tax_class = p.tax_class, variants = variants }
end

capabilities.declare("catalog.get", { needs = "catalog", limit = 20, summary = "A product, by its id or by the SKU of a variant",
    signature = "(id_or_sku: string): kasma.Product|nil, string|nil",
    fn = function(ctx, id)
        check_text("catalog.get", "id", id, 64)
        local catalog = service("catalog")
        if not schema.is_uuid(id) then
            local variant = catalog.variants_by_sku(ctx.tenant, { id })[1]
            if not variant then return nil, "not_found" end
            id = variant.product_id
        end
        local product = catalog.products_by_id(ctx.tenant, { id })[id]
        if not product then return nil, "not_found" end
        return product_view(product)
    end })

capabilities.declare("catalog.find", { needs = "catalog", limit = 20, summary = "Active products by category, tag, ids or words",
    signature = "(filter: {category?: string, tag?: string, ids?: string[], q?: string, limit?: integer}): kasma.Product[]",
    fn = function(ctx, filter)
        local name = "catalog.find"
        local o = check_fields(name, filter, { category = true, tag = true, ids = true, q = true, limit = true })
        local query = { active = true, limit = limit_of(name, o.limit), offset = 0 }
        if o.category ~= nil then query.category_id = ids_of(name, "category", { o.category }, 1)[1] end
        if o.tag ~= nil then query.tag_ids = ids_of(name, "tag", { o.tag }, 1) end
        if o.ids ~= nil then query.ids = ids_of(name, "ids", o.ids, 100) end
        if o.q ~= nil then query.search = check_text(name, "q", o.q, 200) end
        local list = {}
        for i, product in ipairs((service("catalog").list_products(ctx.scope, query))) do list[i] = product_view(product) end
        return list
    end })

-- Customers --------------------------------------------------------------------------------------------------------------------

local ADDRESS = { zipCode = "zip", receiverName = "receiver" } -- as hooks and stubs name it

-- What the buyer wrote: of a form its texts, or one text.
local function address_of(given)
    if type(given) == "string" then return { street = given } end
    if type(given) ~= "table" then return nil end
    local address = {}
    for _, name in ipairs{ "country", "region", "city", "street", "zipCode", "phone", "receiverName" } do
        if type(given[name]) == "string" then address[ADDRESS[name] or name] = given[name] end
    end
    return address
end

-- What only `customers.address` shows, and what says who somebody is, stays out of what is kept of a run.
capabilities.declare("customers.get", { needs = "customers", limit = 20, hides = { "name", "email", "address" },
    summary = "A customer, by its id or its user's; with customers.address where they had their last order sent",
    signature = "(id: string): kasma.Customer|nil, string|nil",
    fn = function(ctx, id)
        ids_of("customers.get", "id", { id }, 1)
        local c = service("customers").by_id(ctx.tenant, id)
        if not c then return nil, "not_found" end
        local user = c.user_id and service("iam").user(c.user_id)
        return { id = c.id, user_id = c.user_id, guest = c.user_id == nil, name = user and user.display_name,
            email = user and user.email, locale = user and user.locale, groups = c.groups, tags = c.tags,
            orders_count = c.orders_count, first_order_at = c.first_order_at, lifetime_spent = c.lifetime_spent_minor,
            address = ctx.needs["customers.address"] and c.user_id and address_of(service("orders").last_address(ctx.tenant, c.user_id)) }
    end })

capabilities.declare("customers.tag", { needs = "customers", limit = 20, summary = "Gives a customer a tag",
    signature = "(id: string, tag: string): boolean|nil, string|nil",
    fn = function(ctx, id, tag)
        ids_of("customers.tag", "id", { id }, 1)
        check_text("customers.tag", "tag", tag, 64)
        if tag:find("[%z\1-\31\127]") then wrong("customers.tag", "the tag holds a control character") end
        return service("customers").tag(ctx.scope, id, tag)
    end })

-- Stock ------------------------------------------------------------------------------------------------------------------------

local function levels(ctx, skus, warehouse)
    local by_id, ids, list, by_sku = {}, {}, {}, {}
    for i, v in ipairs(service("catalog").variants_by_sku(ctx.tenant, skus)) do
        local level = { sku = v.sku, product_id = v.product_id, variant_id = v.id, on_hand = 0, reserved = 0, available = 0,
            warehouses = {} }
        by_id[v.id], by_sku[v.sku], ids[i] = level, level, v.id
    end
    for _, row in ipairs(service("inventory").levels(ctx.tenant, ids, warehouse)) do
        local level = by_id[row.variant_id]
        level.on_hand = level.on_hand + row.quantity
        level.reserved = level.reserved + row.reserved_quantity
        local available = math.max(row.available_quantity, 0)
        level.available = level.available + available
        level.warehouses[#level.warehouses + 1] = { id = row.warehouse_id, on_hand = row.quantity, reserved = row.reserved_quantity,
            available = available }
    end
    for _, sku in ipairs(skus) do
        if by_sku[sku] then list[#list + 1], by_sku[sku] = by_sku[sku], nil end
    end
    return list
end

capabilities.declare("stock.get", { needs = "stock", limit = 20, summary = "The stock of a SKU, in all warehouses or in one",
    signature = "(sku: string, warehouse?: string): kasma.Stock|nil, string|nil",
    fn = function(ctx, sku, warehouse)
        check_text("stock.get", "sku", sku, 64)
        if warehouse ~= nil then ids_of("stock.get", "warehouse", { warehouse }, 1) end
        local level = levels(ctx, { sku }, warehouse)[1]
        if not level then return nil, "not_found" end
        return level
    end })

capabilities.declare("stock.find", { needs = "stock", limit = 20, summary = "The stock of up to 100 SKUs; those that exist",
    signature = "(skus: string[]): kasma.Stock[]",
    fn = function(ctx, skus) return levels(ctx, lists_texts("stock.find", "skus", skus, 100)) end })

-- What the rule remembers ------------------------------------------------------------------------------------------------------

local KV = {
    { "get", "The value under a key, and its version", "(key: string): any, integer|string" },
    { "set", "Puts a value under a key; answers its version",
        "(key: string, value: any, options?: {ttl_s?: integer, if_version?: integer}): integer|nil, string|nil", "once" },
    { "incr", "Adds to the number under a key, at once for all; answers the sum", "(key: string, n?: integer): integer|nil, string|nil",
        "once" },
    { "delete", "Takes a key away; whether it was there", "(key: string): boolean", "once" },
    { "list", "Keys that begin so, with values and versions",
        "(prefix?: string, limit?: integer): {key: string, value: any, version: integer}[]" },
}
for _, entry in ipairs(KV) do
    local member = entry[1]
    capabilities.declare("kv." .. member, { needs = "kv", limit = 50, summary = entry[2], signature = entry[3], writes = entry[4],
        fn = function(...) return require("modules.rules.kv")[member](...) end })
end

-- Other servers ----------------------------------------------------------------------------------------------------------------

capabilities.declare("http.fetch", { needs = "http", limit = 5, takes_secrets = true,
    summary = "A request to a host that needs.http and the setting rules.http_hosts name",
    signature = "(request: {url: string, method?: string, headers?: table, json?: any, body?: string, timeout_ms?: integer}): "
        .. "{status: integer, headers: table<string, string>, json: any, body: string|nil}|nil, string|nil",
    fn = function(...) return require("modules.rules.fetch").fetch(...) end })

capabilities.declare("secret", { needs = "secrets", limit = 20, gives_secret = true,
    summary = "A secret of the tenant, for headers of http.fetch; it shows as ***",
    signature = "(name: string): kasma.Secret|nil, string|nil",
    fn = function(ctx, name)
        check_text("secret", "name", name, 63)
        if type(ctx.needs.secrets) ~= "table" or not ctx.needs.secrets[name] then
            capabilities.refuse(("capability_denied: secret: '%s' is not in needs.secrets"):format(name))
        end
        if not require("modules.rules.secrets").exists(ctx.tenant, name) then return nil, "not_found" end
        return name
    end })

return M
