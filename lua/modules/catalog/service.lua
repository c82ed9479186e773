-- What the catalogue means: categories, tags, products with their variants and rich content.
--
-- A product's rich content is written first, as a new immutable revision in MongoDB; the PostgreSQL transaction then points the row at it.
-- A failure between the two leaves the old state (or no product) and an orphan that is swept. Reads go on with MongoDB away.
local crypto = require("core.crypto")
local html = require("core.html")
local json = require("core.json")
local money = require("core.money")
local time = require("core.time")
local uuid = require("core.uuid")
local audit = require("kasma.audit")
local db = require("kasma.db")
local errors = require("kasma.errors")
local outbox = require("kasma.outbox")
local inventory = require("modules.inventory.service")
local store = require("modules.catalog.store")
local tenants = require("kasma.tenant")

local M = {}

local MAX_DEPTH = 8 -- levels of categories

---@class Scope who acts, for which tenant
---@field tenant string
---@field app string
---@field actor_id string|nil

--- Minor units of a price on the wire, or 400 money_precision.
---@param member string name for the message
---@param value number|string|nil
---@param currency string
---@return integer|nil minor nil when value is nil
function M.price(member, value, currency)
    if value == nil then return nil end
    local minor, code = money.parse(value, currency)
    if not minor or minor < 0 then
        errors.bad_request{ message = { code == "money_precision"
            and ("%s has more digits than %s has"):format(member, currency) or ("%s must be an amount of at least 0"):format(member) },
            code = code or "money_range" }
    end
    return minor
end

-- Categories ------------------------------------------------------------------------------------------------------------------------

--- Which of these categories there are.
---@param tenant string
---@param ids string[]
---@return table<string, table> by id
function M.categories_exist(tenant, ids)
    local there = {}
    for _, category in ipairs(store.categories_by_id(tenant, ids)) do there[category.id] = category end
    return there
end


---@param scope Scope
---@param input table name, slug, description, parentId, sortOrder, isActive
---@return table category row
function M.create_category(scope, input)
    local id, path = uuid.v7(), nil
    if input.parentId then
        local parent = store.category(scope.tenant, input.parentId)
        if not parent then errors.bad_request{ message = "parentId names no category", code = "category_unknown" } end
        local _, slashes = parent.path:gsub("/", "")
        if slashes > MAX_DEPTH then
            errors.conflict{ message = ("Categories may be %d levels deep"):format(MAX_DEPTH), code = "category_depth" }
        end
        path = parent.path .. id .. "/"
    end
    local row = { id = id, tenant_key = scope.tenant, app_key = scope.app, name = input.name, slug = input.slug, now = time.iso(time.now()),
        description = input.description, parent_id = input.parentId, path = path or ("/" .. id .. "/"),
        sort_order = input.sortOrder or 0, is_active = input.isActive ~= false }
    local statements = { store.insert_category(row) }
    audit.append(statements, scope, { action = "CATEGORY_CREATED", entity_type = "category", entity_id = id, after = input })
    local answers = errors.unique({ product_categories_slug = "slug_taken" }, db.pipeline, scope.tenant, statements)
    return answers[1][1]
end

M.list_categories = store.list_categories

-- Tags ------------------------------------------------------------------------------------------------------------------------------

---@param scope Scope
---@param input table name, slug
---@return table tag row
function M.create_tag(scope, input)
    local row = { id = uuid.v7(), tenant_key = scope.tenant, app_key = scope.app, name = input.name, slug = input.slug,
        now = time.iso(time.now()) }
    local statements = { store.insert_tag(row) }
    audit.append(statements, scope, { action = "TAG_CREATED", entity_type = "tag", entity_id = row.id, after = input })
    return errors.unique({ product_tags_slug = "slug_taken" }, db.pipeline, scope.tenant, statements)[1][1]
end

M.list_tags = store.list_tags

---@param tenant string
---@param product_ids string[]
---@return table<string, string[]> tag ids by product
function M.tag_ids(tenant, product_ids)
    local found = {}
    for _, row in ipairs(store.tag_mappings(tenant, product_ids)) do
        found[row.product_id] = found[row.product_id] or {}
        table.insert(found[row.product_id], row.tag_id)
    end
    return found
end

-- Products --------------------------------------------------------------------------------------------------------------------------

--- Only one medium is the main one: the first that says so, else the first.
local function one_main(media)
    local found
    for _, medium in ipairs(media) do
        medium.isMain = medium.isMain == true and not found
        found = found or medium.isMain
    end
    if not found and media[1] then media[1].isMain = true end
    return media
end

--- SHA-256 of the attributes as JSON with sorted keys: what makes a variant the same variant.
local function attributes_hash(attributes)
    local names = {}
    for name in pairs(attributes) do names[#names + 1] = name end
    table.sort(names)
    local parts = {}
    for i, name in ipairs(names) do parts[i] = json.encode(name) .. ":" .. json.encode(attributes[name]) end
    return crypto.sha256("{" .. table.concat(parts, ",") .. "}")
end

--- Each attribute of a variant must be an axis of the product, each value one of the axis.
local function check_attributes(axes, variant)
    for name, value in pairs(variant.attributes or {}) do
        local known = false
        for _, axis in ipairs(axes) do
            if axis.name == name then
                for _, allowed in ipairs(axis.values or {}) do known = known or allowed == value end
            end
        end
        if not known then
            errors.bad_request{ message = ("variant %s: %s = %s is not among the product's attributes"):format(variant.sku, name,
                tostring(value)), code = "variant_attributes" }
        end
    end
end

--- "Titanium / 256GB": the values in the order of the axes.
local function variant_name(axes, variant)
    if variant.name then return variant.name end
    local values = {}
    for _, axis in ipairs(axes) do values[#values + 1] = (variant.attributes or {})[axis.name] end
    return #values > 0 and table.concat(values, " / ") or nil
end

local function variant_rows(scope, product, axes, variants, now)
    local rows = {}
    for i, v in ipairs(variants) do
        check_attributes(axes, v)
        local row = { id = uuid.v7(), tenant_key = scope.tenant, app_key = scope.app, product_id = product.id, sku = v.sku,
            price_minor = M.price(("variants.%d.price"):format(i - 1), v.price, product.currency),
            sale_price_minor = M.price(("variants.%d.salePrice"):format(i - 1), v.salePrice, product.currency) or 0,
            name = variant_name(axes, v), attributes = v.attributes or {}, attributes_hash = attributes_hash(v.attributes or {}),
            is_active = v.isActive ~= false, position = i - 1, weight_grams = v.weightGrams, warehouse_id = v.warehouseId, now = now }
        if product.track_inventory then row.stock = v.stock or 0 end
        rows[i] = row
    end
    return rows
end

local TAKEN = { products_slug = "slug_taken", products_code = "code_taken", product_variants_sku = "sku_taken",
    product_variants_attributes_once = "variant_duplicate" }

---@param scope Scope
---@param input table the body of POST /create
---@return string product_id, string[] variant_ids
function M.create_product(scope, input)
    local now = time.iso(time.now())
    local currency = input.currency or tenants.currency(scope.tenant)
    local price = M.price("price", input.price, currency) or 0
    local sale = M.price("salePrice", input.salePrice, currency) or 0
    if sale > 0 and sale >= price then errors.bad_request{ message = "salePrice must be less than price", code = "sale_price_range" } end

    if input.categoryId and not store.category(scope.tenant, input.categoryId) then
        errors.bad_request{ message = "categoryId names no category", code = "category_unknown" }
    end
    local tags = store.tags_by_id(scope.tenant, input.tagIds or {})
    if #tags ~= #(input.tagIds or {}) then errors.bad_request{ message = "tagIds names an unknown tag", code = "tag_unknown" } end
    if input.vendorId and #store.existing(scope.tenant, "vendor", { input.vendorId }) == 0 then
        errors.bad_request{ message = "vendorId names no vendor", code = "vendor_unknown" }
    end
    for i, v in ipairs(input.variants or {}) do
        if v.warehouseId and not inventory.warehouse(scope.tenant, v.warehouseId) then
            errors.bad_request{ message = ("variants.%d.warehouseId names no warehouse"):format(i - 1), code = "warehouse_unknown" }
        end
    end

    local requires_shipping = input.requiresShipping ~= false
    local track = input.trackInventory
    if track == nil then track = requires_shipping end
    local description = input.description and html.sanitize(input.description)
    local product = { id = uuid.v7(), tenant_key = scope.tenant, app_key = scope.app, name = input.name, slug = input.slug,
        code = input.code,
        category_id = input.categoryId, vendor_id = input.vendorId, price_minor = price, sale_price_minor = sale, currency = currency,
        short_description = description and html.excerpt(description, 255) or nil, is_active = input.isActive ~= false,
        weight_grams = input.weightGrams or 0, requires_shipping = requires_shipping, tax_class = input.taxClass, track_inventory = track,
        min_qty = 1, max_qty = 9999, subscribable = true, publish_at = input.publishAt, unpublish_at = input.unpublishAt,
        effective_price_minor = sale > 0 and sale or price, detail_revision = 1, now = now }
    local axes = input.attributes or {}
    local variants = variant_rows(scope, product, axes, input.variants or {}, now)

    store.insert_detail(scope, { product_id = product.id, revision = 1, description = description,
        specifications = input.specifications or {},
        attributes = axes, media = one_main(input.media or {}), metadata = input.metadata })

    local statements = { store.insert_product(product), store.drop_redirect(scope.tenant, product.slug) }
    for _, v in ipairs(variants) do statements[#statements + 1] = store.insert_variant(v) end
    for _, tag in ipairs(tags) do statements[#statements + 1] = store.map_tag(scope.tenant, scope.app, product.id, tag.id) end
    statements[#statements + 1] = store.refresh_search(scope.tenant, product.id)
    for _, v in ipairs(variants) do
        if (v.stock or 0) > 0 then
            inventory.append_receipt(statements, scope, { product_id = product.id, variant_id = v.id, quantity = v.stock,
                reference = v.sku })
        end
    end
    local variant_ids, fields = json.array({}), json.array({})
    for i, v in ipairs(variants) do variant_ids[i] = v.id end
    for name in pairs(input) do fields[#fields + 1] = name end
    table.sort(fields)
    statements[#statements + 1] = outbox.event(scope, "product.changed", product.id, { variantIds = variant_ids, fields = fields })
    audit.append(statements, scope, { action = "PRODUCT_CREATED", entity_type = "product", entity_id = product.id, after = input })
    errors.unique(TAKEN, db.pipeline, scope.tenant, statements)
    return product.id, variant_ids
end

--- Products with their category and variants beside them, in the order given.
local function assembled(tenant, products)
    local product_ids, category_ids = {}, {}
    for i, p in ipairs(products) do
        product_ids[i] = p.id
        category_ids[#category_ids + 1] = p.category_id
    end
    local categories, variants = {}, {}
    for _, c in ipairs(store.categories_by_id(tenant, category_ids)) do categories[c.id] = c end
    for _, v in ipairs(store.variants_of(tenant, product_ids)) do
        variants[v.product_id] = variants[v.product_id] or {}
        table.insert(variants[v.product_id], v)
    end
    for _, p in ipairs(products) do
        p.category = categories[p.category_id]
        p.variants = variants[p.id] or {}
    end
    return products
end

---@param tenant string
---@param ids string[]
---@return table<string, table> products with category and variants, by id, inactive ones too
function M.products_by_id(tenant, ids)
    local found = {}
    for _, p in ipairs(assembled(tenant, store.products_by_id(tenant, ids))) do found[p.id] = p end
    return found
end

M.variant_exists = store.variant_exists
M.variants_by_sku = store.variants_by_sku
M.existing = store.existing

---@class ProductQuery
---@field search string|nil
---@field category_id string|nil
---@field tag_ids string[]|nil
---@field min_price number|string|nil in the tenant's base currency
---@field max_price number|string|nil
---@field active boolean|nil
---@field ids string[]|nil
---@field sort string|nil
---@field limit integer
---@field offset integer

local SEARCH_LIMIT = 2000 -- most ids a search hands to the list

---@param scope Scope
---@param q ProductQuery
---@return table[] products with category and variants, integer total
function M.list_products(scope, q)
    local currency = tenants.currency(scope.tenant)
    local filter = { active = q.active, ids = q.ids, sort = q.sort or "newest", limit = q.limit, offset = q.offset,
        min_minor = M.price("minPrice", q.min_price, currency), max_minor = M.price("maxPrice", q.max_price, currency) }
    local path
    if q.category_id then
        local category = store.category(scope.tenant, q.category_id)
        if not category then return {}, 0 end
        path = category.path
    end
    if q.search or path or q.tag_ids then
        local found = store.search(scope.tenant, { text = q.search, path = path, tags = q.tag_ids, limit = SEARCH_LIMIT })
        if q.ids then
            local wanted, both = {}, {}
            for _, id in ipairs(q.ids) do wanted[id] = true end
            for _, id in ipairs(found) do
                if wanted[id] then both[#both + 1] = id end
            end
            found = both
        end
        if #found == 0 then return {}, 0 end
        filter.ids = found
    end
    local products, total = store.list_products(scope.tenant, filter)
    return assembled(scope.tenant, products), total
end

---@param scope Scope
---@param id string
---@param see_inactive boolean
---@return table product with category, tags, variants, rich_content (or nil) and stale (true: MongoDB is away)
function M.product(scope, id, see_inactive)
    local product = store.product(scope.tenant, id)
    if not product or not (product.is_active or see_inactive) then errors.not_found{ message = "Product not found" } end
    assembled(scope.tenant, { product })
    product.tags = store.tags_of(scope.tenant, id)
    local ok, detail = pcall(store.detail, scope, id, product.detail_revision)
    if ok then
        product.rich_content = detail
    elseif errors.is_unavailable(detail) then
        product.stale = true
    else
        error(detail, 0)
    end
    return product
end

---@param scope Scope
---@param id string
function M.delete_product(scope, id)
    db.transaction(scope.tenant, function(tx)
        local row = tx:query(unpack(store.delete_product(scope.tenant, id, time.iso(time.now()))))[1]
        if not row then errors.not_found{ message = "Product not found" } end
        local last = { store.refresh_search(scope.tenant, id),
            outbox.event(scope, "product.deleted", id, { variantIds = json.array(row.variant_ids), fields = json.array({}) }) }
        audit.append(last, scope, { action = "PRODUCT_DELETED", entity_type = "product", entity_id = id })
        tx:at_commit(last)
    end)
end

return M
