-- The catalogue as HTTP sees it.
local json = require("core.json")
local errors = require("kasma.errors")
local route = require("kasma.route")
local schema = require("kasma.schema")
local wire = require("kasma.wire")
local catalog = require("modules.catalog.service")

local P = "/api/ecommerce/products"
local SLUG = "^[a-z0-9][a-z0-9-]*$"

local slug_taken = errors.declare{ code = "slug_taken", status = 409, message = "Slug taken", cause = "another one has this slug",
    cure = "choose another slug" }
local category_depth = errors.declare{ code = "category_depth", status = 409, message = "Categories may be 8 levels deep",
    cause = "the parent is at the deepest level", cure = "choose a parent nearer to the root" }

local category = wire.entity{ columns = { "name", "slug", "description", "parent_id", "path", "sort_order", "is_active" } }
local tag = wire.entity{ columns = { "name", "slug" } }
local variant = wire.entity{ columns = { "product_id", "sku", "stock", "name", "attributes", "is_active", "position", "weight_grams",
    "warehouse_id", "currency" }, money = { "price", "sale_price" } }
local product = wire.entity{ columns = { "name", "vendor_id", "category_id", "code", "slug", "short_description", "currency", "is_active",
    "weight_grams", "requires_shipping", "tax_class", "track_inventory", "min_qty", "max_qty", "subscribable", "publish_at",
    "unpublish_at" },
    money = { "price", "sale_price", "effective_price" } }

local Category = schema.object({ id = schema.uuid(), name = schema.string(), slug = schema.string() }, { name = "Category", open = true })
local Tag = schema.object({ id = schema.uuid(), name = schema.string(), slug = schema.string() }, { name = "Tag", open = true })
local Product = schema.object({ id = schema.uuid(), name = schema.string(), slug = schema.string(), price = schema.string(),
    priceMinor = schema.integer(), currency = schema.string() }, { name = "Product", open = true })

--- A product with what stands beside it.
local function product_body(row)
    local body = product.read(row)
    body.category = row.category and category.read(row.category) or json.null
    body.variants = json.array({})
    for i, v in ipairs(row.variants) do
        v.currency = row.currency
        body.variants[i] = variant.read(v)
    end
    return body
end

-- Categories and tags -------------------------------------------------------------------------------------------------------------------

route.post(P .. "/categories/create", {
    summary = "Create a category",
    access = { permission = "categories.write" },
    module = "catalog",
    body = schema.object{
        name = schema.string{ not_empty = true, max = 255 }:example("Phones"),
        slug = schema.string{ not_empty = true, max = 255, pattern = SLUG }:example("phones"),
        description = schema.string{ max = 5000 }:optional(),
        parentId = schema.uuid{ on_bad = 404, what = "Category" }:optional(),
        sortOrder = schema.integer{ min = -1000000, max = 1000000 }:optional(),
        isActive = schema.boolean():optional(),
    },
    returns = { [201] = Category, [409] = { slug_taken, category_depth } },
    handler = function(ctx) return category.echo(catalog.create_category(ctx.scope, ctx.body)) end,
})

route.get(P .. "/categories/list", {
    summary = "List categories",
    access = "public",
    module = "catalog",
    query = schema.object{
        parentId = schema.uuid{ on_bad = 404, what = "Category" }:optional(),
        includeInactive = schema.boolean():default(false),
    },
    returns = schema.array(Category),
    handler = function(ctx)
        local rows = catalog.list_categories(ctx.tenant, ctx.query.parentId, ctx.query.includeInactive and ctx.may("categories.write"))
        local list = json.array({})
        for i, row in ipairs(rows) do list[i] = category.read(row) end
        return list
    end,
})

route.post(P .. "/tags/create", {
    summary = "Create a tag",
    access = { permission = "tags.write" },
    module = "catalog",
    body = schema.object{
        name = schema.string{ not_empty = true, max = 100 },
        slug = schema.string{ not_empty = true, max = 255, pattern = SLUG },
    },
    returns = { [201] = Tag, [409] = slug_taken },
    handler = function(ctx) return tag.echo(catalog.create_tag(ctx.scope, ctx.body)) end,
})

route.get(P .. "/tags/list", {
    summary = "List tags",
    access = "public",
    module = "catalog",
    returns = schema.array(Tag),
    handler = function(ctx)
        local list = json.array({})
        for i, row in ipairs(catalog.list_tags(ctx.tenant)) do list[i] = tag.read(row) end
        return list
    end,
})

-- Products ------------------------------------------------------------------------------------------------------------------------------

local Media = schema.object{
    mediaUrl = schema.url{ max = 2048 },
    mediaType = schema.enum{ "image", "video", "image_360", "document" }:default("image"),
    isMain = schema.boolean():optional(),
    sortOrder = schema.integer{ min = 0, max = 1000000 }:optional(),
    metadata = schema.map():optional(),
}

local Variant = schema.object{
    sku = schema.string{ not_empty = true, max = 64 },
    price = schema.money(),
    salePrice = schema.money():optional(),
    stock = schema.integer{ min = 0, max = 10000000 }:default(0),
    name = schema.string{ max = 255 }:optional(),
    attributes = schema.map(schema.string{ max = 255 }):optional(),
    media = schema.array(Media, { max = 100 }):optional(),
    isActive = schema.boolean():optional(),
    weightGrams = schema.integer{ min = 0, max = 1000000000 }:optional(),
    warehouseId = schema.uuid():optional(),
}

route.post(P .. "/create", {
    summary = "Create a product",
    access = { permission = "products.write" },
    module = "catalog",
    body = schema.object{
        name = schema.string{ not_empty = true, max = 255 }:example("Smartphone Kasma Pro"),
        slug = schema.string{ not_empty = true, max = 255, pattern = SLUG }:example("smartphone-kasma-pro"),
        code = schema.string{ not_empty = true, max = 64 }:optional(),
        description = schema.string{ max = 204800 }:optional(),
        price = schema.money():optional():example(25000000),
        salePrice = schema.money():optional(),
        currency = schema.string{ pattern = "^[A-Z][A-Z][A-Z]$" }:optional(),
        isActive = schema.boolean():optional(),
        categoryId = schema.uuid():optional(),
        vendorId = schema.uuid():optional(),
        tagIds = schema.array(schema.uuid(), { max = 100, unique = true }):optional(),
        weightGrams = schema.integer{ min = 0, max = 1000000000 }:optional(),
        requiresShipping = schema.boolean():optional(),
        trackInventory = schema.boolean():optional(),
        taxClass = schema.string{ max = 50 }:optional(),
        publishAt = schema.date():optional(),
        unpublishAt = schema.date():optional(),
        specifications = schema.array(schema.object{ key = schema.string{ not_empty = true, max = 255 },
            value = schema.string{ not_empty = true, max = 2000 } }, { max = 200 }):optional(),
        attributes = schema.array(schema.object{ name = schema.string{ not_empty = true, max = 100 },
            values = schema.array(schema.string{ max = 255 }, { max = 100 }):optional() }, { max = 10 }):optional(),
        variants = schema.array(Variant, { max = 200 }):optional(),
        media = schema.array(Media, { max = 100 }):optional(),
        metadata = schema.map():optional(),
    },
    returns = { [201] = schema.object({ success = schema.boolean(), productId = schema.uuid() }, { name = "ProductCreated", open = true }),
        [409] = slug_taken },
    handler = function(ctx)
        local id, variant_ids = catalog.create_product(ctx.scope, ctx.body)
        return { success = true, productId = id, variantIds = json.array(variant_ids) }
    end,
})

--- tagIds come repeated, with commas, or single.
local function ids_of(value, name)
    if not value then return nil end
    local ids = {}
    for _, part in ipairs(type(value) == "table" and value or { value }) do
        for id in part:gmatch("[^,%s]+") do
            if not schema.is_uuid(id) then errors.bad_request{ message = { "each value in " .. name .. " must be a UUID" } } end
            ids[#ids + 1] = id
        end
    end
    return ids
end

local MAX_OFFSET = 100000

--- An opaque cursor is the place of the next row.
local function offset_of(cursor)
    local offset = cursor and tonumber(cursor:match("^o(%d+)$"))
    if cursor and (not offset or offset > MAX_OFFSET) then errors.bad_request{ message = { "cursor is not one of ours" } } end
    return offset or 0
end

route.get(P .. "/list", {
    summary = "List and search products",
    access = "public",
    module = "catalog",
    query = schema.object{
        search = schema.string{ max = 200 }:optional(),
        categoryId = schema.uuid{ on_bad = 404, what = "Category" }:optional(),
        tagIds = schema.one_of(schema.array(schema.string{ max = 200 }, { max = 20 }), schema.string{ max = 800 }):optional(),
        minPrice = schema.number{ min = 0 }:optional(),
        maxPrice = schema.number{ min = 0 }:optional(),
        isActive = schema.boolean():optional(),
        ids = schema.string{ max = 4000 }:optional(),
        sort = schema.enum{ "newest", "price_asc", "price_desc", "name", "relevance" }:optional(),
        limit = schema.integer{ min = 1, cap = 500 }:default(100),
        cursor = schema.string{ max = 20 }:optional(),
    },
    returns = schema.array(Product),
    handler = function(ctx)
        local q = ctx.query
        local active = true
        if ctx.may("products.read") then active = q.isActive end
        local offset = offset_of(q.cursor)
        local rows, total = catalog.list_products(ctx.scope, { search = q.search ~= "" and q.search or nil, category_id = q.categoryId,
            tag_ids = ids_of(q.tagIds, "tagIds"), min_price = q.minPrice, max_price = q.maxPrice, active = active,
            ids = ids_of(q.ids, "ids"), sort = q.sort, limit = q.limit, offset = offset })
        ctx.set_header("X-Total-Count", tostring(total))
        if offset + #rows < total then ctx.set_header("X-Next-Cursor", "o" .. offset + #rows) end
        local list = json.array({})
        for i, row in ipairs(rows) do list[i] = product_body(row) end
        return list
    end,
})

route.get(P .. "/:id", {
    summary = "A product with its rich content",
    access = "public",
    module = "catalog",
    params = { id = schema.uuid{ on_bad = 404, what = "Product" } },
    returns = Product,
    handler = function(ctx)
        local row = catalog.product(ctx.scope, ctx.params.id, ctx.may("products.read"))
        local body = product_body(row)
        body.tags = json.array({})
        for i, t in ipairs(row.tags) do body.tags[i] = tag.read(t) end
        body.richContent = row.rich_content or json.null
        if row.stale then body.stale = true end
        return body
    end,
})

route.post(P .. "/:id/delete", {
    summary = "Delete a product",
    access = { permission = "products.write" },
    module = "catalog",
    params = { id = schema.uuid{ on_bad = 404, what = "Product" } },
    returns = { [201] = schema.object({ success = schema.boolean() }, { open = true }) },
    handler = function(ctx)
        catalog.delete_product(ctx.scope, ctx.params.id)
        return { success = true, message = "Product deleted successfully" }
    end,
})
