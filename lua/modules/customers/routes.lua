-- Customers of a shop as HTTP sees them: a buyer reads their own and says whether the shop may write to them; staff keeps groups and tags.
local audit = require("kasma.audit")
local null = require("kasma.null")
local route = require("kasma.route")
local schema = require("kasma.schema")
local customers = require("modules.customers.service")

local Words = schema.array(schema.string{ pattern = "^[a-z0-9][a-z0-9_]*$", max = 50 }, { max = 50, unique = true })
local Customer = schema.object({ id = schema.uuid(), userId = schema.uuid():nullable(), groups = schema.array(schema.string()),
    tags = schema.array(schema.string()), ordersCount = schema.integer(), firstOrderAt = schema.date():nullable(),
    lifetimeSpentMinor = schema.integer(), marketingConsent = schema.boolean(), marketingConsentAt = schema.date():nullable() },
    { name = "Customer", open = true })
local Which = { id = schema.uuid{ on_bad = 404, what = "Customer" }:optional(),
    userId = schema.uuid{ on_bad = 404, what = "Customer" }:optional() }

local function or_null(value) if value == nil then return null end return value end

local function body_of(row)
    local consent = or_null(row.marketing_consent_at)
    return { id = row.id, userId = or_null(row.user_id), groups = row.groups, tags = row.tags, ordersCount = row.orders_count,
        firstOrderAt = or_null(row.first_order_at), lifetimeSpentMinor = row.lifetime_spent_minor, marketingConsent = consent ~= null,
        marketingConsentAt = consent }
end

-- Whether the caller asks about themselves; anybody else needs the permission.
local function is_own(ctx, permission)
    local own = not ctx.body.id and (not ctx.body.userId or ctx.body.userId == ctx.user.id)
    if not own then ctx.need(permission) end
    return own
end

route.post("/customers/details", {
    summary = "A customer; the caller's own without an id", access = "user", module = "sales", tag = "customers", no_store = true,
    body = schema.object(Which), returns = { [201] = Customer },
    handler = function(ctx)
        local own = is_own(ctx, "customers.read")
        local row = customers.details(ctx.tenant, ctx.body.id or ctx.body.userId or ctx.user.id)
        if not own then audit.write(ctx.scope, { action = "customers.read", entity_type = "customer", entity_id = row.id }) end
        return body_of(row)
    end,
})

route.post("/customers/update", {
    summary = "Whether the shop may write to a customer; their groups and tags, by staff", access = "user", module = "sales",
    tag = "customers",
    body = schema.object{ id = Which.id, userId = Which.userId, groups = Words:optional(), tags = Words:optional(),
        marketingConsent = schema.boolean():optional() },
    returns = { [201] = Customer },
    handler = function(ctx)
        local own = is_own(ctx, "customers.write")
        if own and (ctx.body.groups or ctx.body.tags) then ctx.need("customers.write") end
        return body_of(customers.update(ctx.scope, { id = ctx.body.id, user_id = ctx.body.userId or ctx.user.id }, ctx.body))
    end,
})
