-- Warehouses and stock as HTTP sees them.
local json = require("core.json")
local errors = require("kasma.errors")
local idempotency = require("kasma.idempotency")
local route = require("kasma.route")
local schema = require("kasma.schema")
local wire = require("kasma.wire")
local inventory = require("modules.inventory.service")

local warehouse = wire.entity{ columns = { "name", "code", "address", "city", "region", "zip_code", "country", "capacity", "manager_name",
    "is_active", "priority", "kind" } }
local stock = wire.entity{ columns = { "warehouse_id", "product_id", "variant_id", "quantity", "reserved_quantity", "buffer_quantity",
    "backorder_limit", "available_quantity", "location", "low_stock_at", "version" } }

-- A buffer may be more than is left; what is then available is nothing.
local function shown(form)
    return function(row)
        row.available_quantity = math.max(row.available_quantity, 0)
        return stock[form](row)
    end
end
local echo, read = shown("echo"), shown("read")

local code_taken = errors.declare{ code = "code_taken", status = 409, message = "Code taken", cause = "another one has this code",
    cure = "choose another code" }
local below = errors.declare{ code = "stock_below_reserved", status = 409,
    message = "The stock would go below what is reserved, or below zero", cause = "the quantity takes away more than is free",
    cure = "take away less" }

local Warehouse = schema.object({ id = schema.uuid(), name = schema.string() }, { name = "Warehouse", open = true })
local Stock = schema.object({ id = schema.uuid(), warehouseId = schema.uuid(), productId = schema.uuid(), quantity = schema.integer() },
    { name = "Inventory", open = true })

route.post("/api/logistics/inventory/warehouse/create", {
    summary = "Create a warehouse",
    access = { permission = "warehouses.write" },
    module = "logistics",
    body = schema.object{
        name = schema.string{ not_empty = true, max = 255 },
        code = schema.string{ not_empty = true, max = 50 }:optional(),
        city = schema.string{ max = 120 }:optional(),
        address = schema.string{ max = 500 }:optional(),
        region = schema.string{ max = 120 }:optional(),
        zipCode = schema.string{ max = 40 }:optional(),
        country = schema.string{ pattern = "^[A-Z][A-Z]$" }:optional(),
        capacity = schema.integer{ min = 0, max = 2000000000 }:optional(),
        managerName = schema.string{ max = 255 }:optional(),
        isActive = schema.boolean():optional(),
    },
    returns = { [201] = Warehouse, [409] = code_taken },
    handler = function(ctx) return warehouse.echo(inventory.create_warehouse(ctx.scope, ctx.body)) end,
})

route.post("/api/logistics/inventory/adjust", {
    summary = "Correct the stock of a product by hand",
    access = { permission = "inventory.adjust" },
    module = "logistics",
    idempotent = "transaction",
    body = schema.object{
        warehouseId = schema.uuid{ on_bad = 404, what = "Warehouse" },
        productId = schema.uuid{ on_bad = 404, what = "Product" },
        variantId = schema.uuid{ on_bad = 404, what = "Variant" }:optional(),
        quantity = schema.integer{ min = -10000000, max = 10000000 }:describe("signed, not 0"),
        reason = schema.string{ max = 500 }:optional(),
        reference = schema.string{ max = 255 }:optional(),
    },
    returns = { [201] = Stock, [409] = below },
    handler = function(ctx)
        if ctx.body.quantity == 0 then errors.bad_request{ message = { "quantity must not be 0" } } end
        return inventory.adjust(ctx.scope, ctx.body, echo, function(body) return idempotency.complete(ctx, 201, body) end)
    end,
})

route.post("/api/logistics/inventory/list", {
    summary = "List stock",
    access = { permission = "inventory.read" },
    module = "logistics",
    idempotent = false,
    body = schema.object{
        warehouseId = schema.uuid{ on_bad = 404, what = "Warehouse" }:optional(),
        productId = schema.uuid{ on_bad = 404, what = "Product" }:optional(),
        limit = schema.integer{ min = 1, cap = 500 }:default(100),
        offset = schema.integer{ min = 0, max = 100000 }:default(0),
    },
    returns = { [201] = schema.array(Stock) },
    handler = function(ctx)
        local list = json.array({})
        for i, row in ipairs(inventory.list(ctx.tenant, { warehouse_id = ctx.body.warehouseId, product_id = ctx.body.productId,
            limit = ctx.body.limit, offset = ctx.body.offset })) do
            list[i] = read(row)
            list[i].product = { id = row.product_id, name = row.product_name, code = row.product_code or json.null }
        end
        return list
    end,
})
