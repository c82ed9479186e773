-- Bundles as HTTP sees them.
local json = require("core.json")
local errors = require("kasma.errors")
local route = require("kasma.route")
local schema = require("kasma.schema")
local wire = require("kasma.wire")
local bundles = require("modules.bundles.service")

local shape = wire.entity{ columns = { "name", "description", "slug", "currency", "is_active", "start_date", "end_date", "auto_apply",
    "max_per_order", "pricing", "percent_off_bps" }, money = { "price", "components_total", "saving" } }
local item = wire.entity{ columns = { "bundle_id", "product_id", "variant_id", "quantity" } }
local product = wire.entity{ columns = { "name", "slug", "code", "currency", "is_active" }, money = { "price", "sale_price" } }
local variant = wire.entity{ columns = { "product_id", "sku", "name", "attributes", "currency" }, money = { "price", "sale_price" } }

local mismatch = errors.declare{ code = "variant_mismatch", status = 409, message = "variantId is no variant of this product" }
local Bundle = schema.object({ id = schema.uuid(), name = schema.string(), items = schema.array(schema.any()) },
    { name = "Bundle", open = true })

local function body_of(row, form)
    local body = shape[form](row)
    body.items = json.array({})
    for i, part in ipairs(row.items) do
        local one = item.read(part)
        one.product = part.product and product[form](part.product) or json.null
        if part.variant then part.variant.currency = part.product.currency end
        one.variant = part.variant and variant[form](part.variant) or json.null
        body.items[i] = one
    end
    return body
end

route.post("/marketing/bundles/create", {
    summary = "Create a bundle",
    access = { permission = "bundles.write" },
    module = "marketing",
    body = schema.object{
        name = schema.string{ not_empty = true, max = 255 }:example("Gamer Pack"),
        description = schema.string{ max = 5000 }:optional(),
        slug = schema.string{ not_empty = true, max = 255 }:optional(),
        price = schema.money():alias("bundlePrice"):example(850000),
        currency = schema.string{ pattern = "^[A-Z][A-Z][A-Z]$" }:optional(),
        isActive = schema.boolean():optional(),
        items = schema.array(schema.object{
            productId = schema.uuid{ on_bad = 404, what = "Product" },
            variantId = schema.uuid{ on_bad = 404, what = "Variant" }:optional(),
            quantity = schema.integer{ min = 1, max = 9999 }:default(1),
        }, { min = 1, max = 50 }):optional(),
        productIds = schema.array(schema.uuid{ on_bad = 404, what = "Product" }, { min = 1, max = 50 }):optional(),
        startDate = schema.date():optional(),
        endDate = schema.date():optional(),
        autoApply = schema.boolean():optional(),
        maxPerOrder = schema.integer{ min = 0, max = 9999 }:optional(),
        pricing = schema.enum{ "fixed", "percent_off" }:optional(),
        percentOffBps = schema.integer{ min = 0, max = 10000 }:optional(),
    },
    returns = { [201] = Bundle, [409] = mismatch },
    handler = function(ctx) return body_of(bundles.create(ctx.scope, ctx.body), "echo") end,
})

route.get("/marketing/bundles/list", {
    summary = "List bundles",
    access = "public",
    module = "marketing",
    query = schema.object{
        limit = schema.integer{ min = 1, cap = 500 }:default(100),
        offset = schema.integer{ min = 0, max = 100000 }:default(0),
    },
    returns = schema.array(Bundle),
    handler = function(ctx)
        local list = json.array({})
        for i, row in ipairs(bundles.list(ctx.scope, ctx.may("bundles.write"), ctx.query.limit, ctx.query.offset)) do
            list[i] = body_of(row, "read")
        end
        return list
    end,
})

route.post("/marketing/bundles/details", {
    summary = "A bundle",
    access = "public",
    module = "marketing",
    idempotent = false,
    body = schema.object{ id = schema.uuid{ on_bad = 404, what = "Bundle" } },
    returns = { [201] = Bundle },
    handler = function(ctx)
        local row = bundles.by_id(ctx.scope, { ctx.body.id })[ctx.body.id]
        if not row or not (row.is_active or ctx.may("bundles.write")) then errors.not_found{ message = "Bundle not found" } end
        return body_of(row, "read")
    end,
})
