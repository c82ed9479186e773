-- Shipping zones and methods as HTTP sees them.
local route = require("kasma.route")
local schema = require("kasma.schema")
local wire = require("kasma.wire")
local shipping = require("modules.shipping.service")

local zone = wire.entity{ columns = { "name", "is_active", "priority", "regions", "countries", "provinces", "zip_codes" } }
local method = wire.entity{ columns = { "name", "zone_id", "carrier_id", "service_type", "estimated_days", "currency_code", "is_active",
    "min_weight_g", "max_weight_g", "step_grams", "volumetric_divisor", "cod_allowed" },
    money = { "base_price", "price_per_kg", "free_over" } }

local Zone = schema.object({ id = schema.uuid(), name = schema.string() }, { name = "ShippingZone", open = true })
local Method = schema.object({ id = schema.uuid(), name = schema.string(), zoneId = schema.uuid() },
    { name = "ShippingMethod", open = true })

local function words() return schema.array(schema.string{ not_empty = true, max = 120 }, { max = 500 }):optional() end

route.post("/api/logistics/shipping/zone/create", {
    summary = "Create a shipping zone",
    access = { permission = "shipping.write" },
    module = "logistics",
    body = schema.object{
        name = schema.string{ not_empty = true, max = 255 }:example("Viet Nam"),
        regions = words(),
        countries = schema.array(schema.string{ pattern = "^[A-Za-z][A-Za-z]$" }, { max = 300 }):optional(),
        provinces = words(),
        zipCodes = words(),
        isActive = schema.boolean():optional(),
        priority = schema.integer{ min = -1000000, max = 1000000 }:optional(),
    },
    returns = { [201] = Zone },
    handler = function(ctx) return zone.echo(shipping.create_zone(ctx.scope, ctx.body)) end,
})

route.post("/api/logistics/shipping/method/add", {
    summary = "Add a shipping method to a zone",
    access = { permission = "shipping.write" },
    module = "logistics",
    body = schema.object{
        zoneId = schema.uuid{ on_bad = 404, what = "Shipping zone" },
        name = schema.string{ not_empty = true, max = 255 }:example("Standard"),
        basePrice = schema.money():alias("baseCost"):optional(),
        pricePerKg = schema.money():alias("costPerKg"):optional(),
        estimatedDays = schema.one_of(schema.string{ max = 50 }, schema.integer{ min = 0, max = 365 }):optional(),
        currencyCode = schema.string{ pattern = "^[A-Z][A-Z][A-Z]$" }:optional(),
        carrierId = schema.uuid():optional(),
        serviceType = schema.string{ max = 50 }:optional(),
        isActive = schema.boolean():optional(),
        minWeight = schema.integer{ min = 0, max = 1000000000 }:optional(),
        maxWeight = schema.integer{ min = 1, max = 1000000000 }:optional(),
        stepGrams = schema.integer{ min = 1, max = 1000000 }:optional(),
        freeOver = schema.money():optional(),
        codAllowed = schema.boolean():optional(),
    },
    returns = { [201] = Method },
    handler = function(ctx) return method.echo(shipping.add_method(ctx.scope, ctx.body)) end,
})
