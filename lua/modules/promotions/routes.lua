-- Promotions as HTTP sees them.
local json = require("core.json")
local time = require("core.time")
local errors = require("kasma.errors")
local money = require("core.money")
local route = require("kasma.route")
local schema = require("kasma.schema")
local wire = require("kasma.wire")
local promotions = require("modules.promotions.service")

local shape = wire.entity{
    columns = { "name", "description", "slug", "type", "value_type", "currency", "applicable_to", "target_ids", "level", "min_quantity",
        "buy_qty", "get_qty", "get_discount_bps", "scope", "priority", "stackable", "exclusive", "stop_after", "include_bundled",
        "exclusion_group", "customer_groups", "tier_ids", "first_order_only", "weekdays", "hours_from", "hours_to", "usage_limit",
        "per_customer_limit", "used_count", "max_units", "units_used", "max_units_per_customer", "start_date", "end_date", "is_active",
        "is_public", "script_id", "version" },
    money = { "min_order_value", "max_discount", "budget", "budget_used" },
}

local slug_taken = errors.declare{ code = "slug_taken", status = 409, message = "Slug taken" }
local Promotion = schema.object({ id = schema.uuid(), name = schema.string(), type = schema.string(), valueType = schema.string() },
    { name = "Promotion", open = true })

--- `value` is a percentage or an amount, as `valueType` says; exact beside it: valueBps or valueMinor.
local function body_of(row, form)
    local body = shape[form](row)
    if row.value_type == "percent" then
        body.value = form == "echo" and row.value / 100 or ("%.2f"):format(row.value / 100)
        body.valueBps = row.value
    else
        body.value = form == "echo" and money.major(row.value, row.currency) or money.format(row.value, row.currency)
        body.valueMinor = row.value
    end
    return body
end

local function count() return schema.integer{ min = 0, max = 2000000000 }:optional() end

-- What a promotion asks for and how far it goes; given when it is made, and to be changed later. All of it may be left out.
local function with_terms(fields)
    local terms = {
        description = schema.string{ max = 5000 }:optional(),
        minOrderValue = schema.money():optional(),
        minQuantity = count(),
        maxDiscount = schema.money():optional(),
        priority = schema.integer{ min = -1000000, max = 1000000 }:optional(),
        stackable = schema.boolean():optional(),
        exclusive = schema.boolean():optional(),
        stopAfter = schema.boolean():optional(),
        includeBundled = schema.boolean():optional(),
        exclusionGroup = schema.string{ not_empty = true, max = 50 }:optional(),
        customerGroups = schema.array(schema.string{ max = 50 }, { max = 50 }):optional(),
        firstOrderOnly = schema.boolean():optional(),
        weekdays = schema.array(schema.integer{ min = 1, max = 7 }, { max = 7, unique = true }):optional(),
        hoursFrom = schema.integer{ min = 0, max = 24 }:optional(),
        hoursTo = schema.integer{ min = 0, max = 24 }:optional(),
        usageLimit = count(),
        perCustomerLimit = count(),
        budget = schema.money():optional(),
        maxUnits = count(),
        maxUnitsPerCustomer = count(),
        startDate = schema.date():optional(),
        endDate = schema.date():optional(),
        isActive = schema.boolean():optional(),
        isPublic = schema.boolean():optional(),
    }
    for name, of in pairs(terms) do fields[name] = of end
    return fields
end

route.post("/marketing/promotions/create", {
    summary = "Create a promotion",
    access = { permission = "promotions.write" },
    module = "marketing",
    body = schema.object(with_terms{
        name = schema.string{ not_empty = true, max = 255 }:example("10 % off phones"),
        type = schema.string{ not_empty = true, max = 50 }:example("PERCENTAGE"),
        value = schema.money():example(10),
        valueType = schema.enum({ "percent", "fixed", "price" }, { fold = true }):optional(),
        slug = schema.string{ not_empty = true, max = 255 }:optional(),
        currency = schema.string{ pattern = "^[A-Z][A-Z][A-Z]$" }:optional(),
        applicableTo = schema.enum({ "all", "category", "product", "variant", "tag", "vendor", "bundle" }, { fold = true }):optional(),
        targetIds = schema.array(schema.uuid(), { max = 500 }):optional(),
        targetId = schema.uuid():optional(),
        level = schema.enum({ "line", "order", "shipping" }, { fold = true }):optional(),
        buyQty = schema.integer{ min = 1, max = 9999 }:optional(),
        getQty = schema.integer{ min = 1, max = 9999 }:optional(),
        getDiscountBps = schema.integer{ min = 1, max = 10000 }:optional(),
        scope = schema.enum{ "same_product", "pool" }:optional(),
        tierIds = schema.array(schema.uuid(), { max = 50, unique = true }):optional(),
    }),
    returns = { [201] = Promotion, [409] = slug_taken },
    handler = function(ctx) return body_of(promotions.create(ctx.scope, ctx.body), "echo") end,
})

route.get("/marketing/promotions/list", {
    summary = "List promotions",
    access = "user",
    module = "marketing",
    query = schema.object{
        type = schema.string{ max = 50 }:optional(),
        limit = schema.integer{ min = 1, cap = 500 }:default(100),
        offset = schema.integer{ min = 0, max = 100000 }:default(0),
    },
    returns = schema.array(Promotion),
    handler = function(ctx)
        local list = json.array({})
        local public_at = not ctx.may("promotions.read") and time.iso(time.now()) or nil
        for i, row in ipairs(promotions.list(ctx.tenant, { public_at = public_at, type = ctx.query.type, limit = ctx.query.limit,
            offset = ctx.query.offset })) do
            list[i] = body_of(row, "read")
        end
        return list
    end,
})

route.post("/marketing/promotions/details", {
    summary = "A promotion",
    access = "user",
    module = "marketing",
    idempotent = false,
    body = schema.object{ id = schema.uuid{ on_bad = 404, what = "Promotion" } },
    returns = { [201] = Promotion },
    handler = function(ctx) return body_of(promotions.details(ctx.scope, ctx.body.id, not ctx.may("promotions.read")), "read") end,
})

-- What may be changed; any subset.
local function changes()
    return with_terms{
        name = schema.string{ not_empty = true, max = 255 }:optional(),
        value = schema.money():optional(),
        version = schema.integer{ min = 1 }:optional(),
    }
end

local change = changes()
change.id = schema.uuid{ on_bad = 404, what = "Promotion" }
change.data = schema.object(changes()):optional()

route.post("/marketing/promotions/update", {
    summary = "Change a promotion, or the limits and conditions of a rule's",
    access = { permission = "promotions.write" },
    module = "marketing",
    body = schema.object(change),
    returns = { [201] = Promotion, [409] = { promotions.script_row, promotions.version_conflict } },
    handler = function(ctx)
        local input = ctx.body.data or ctx.body
        input.id = ctx.body.id
        return body_of(promotions.update(ctx.scope, input), "echo")
    end,
})

route.post("/marketing/promotions/remove", {
    summary = "Switch a promotion off",
    access = { permission = "promotions.write" },
    module = "marketing",
    body = schema.object{ id = schema.uuid{ on_bad = 404, what = "Promotion" }:optional() },
    returns = { [201] = schema.object({ success = schema.boolean() }, { open = true }), [409] = promotions.script_row },
    handler = function(ctx)
        if not ctx.body.id then errors.bad_request{ message = { "id should not be empty" }, code = "id_required" } end
        promotions.remove(ctx.scope, ctx.body.id)
        return { success = true }
    end,
})
