-- Tax tables as HTTP sees them.
local json = require("core.json")
local errors = require("kasma.errors")
local route = require("kasma.route")
local schema = require("kasma.schema")
local wire = require("kasma.wire")
local tax = require("modules.tax.service")

local shape = wire.entity{ columns = { "name", "country", "region", "zip_code", "is_active", "tax_class", "stack_group", "calc_order",
    "is_compound", "priority", "valid_from", "valid_to", "jurisdiction" } }

local exists = errors.declare{ code = "tax_rule_exists", status = 409, message = "Tax rule exists",
    cause = "a rule for this place, class, group and date is there", cure = "change that rule" }

local Rule = schema.object({ id = schema.uuid(), name = schema.string() }, { name = "TaxRule", open = true })

--- 10.5 percent as a number when echoed, "10.50" when read.
local function body_of(row, echo)
    local body = shape.read(row)
    body.rate = echo and row.rate_ppm / 10000 or ("%.2f"):format(row.rate_ppm / 10000)
    body.ratePpm = row.rate_ppm
    return body
end

route.post("/api/finance/tax/rules/create", {
    summary = "Create a tax rule",
    access = { permission = "taxes.write" },
    module = "finance",
    body = schema.object{
        name = schema.string{ not_empty = true, max = 120 }:example("VAT"),
        rate = schema.money():describe("percent, at most 4 decimals"):example(10),
        country = schema.string{ pattern = "^[A-Za-z][A-Za-z]$" }:optional():example("VN"),
        region = schema.string{ not_empty = true, max = 120 }:optional(),
        zipCode = schema.string{ not_empty = true, max = 40 }:optional(),
        isActive = schema.boolean():optional(),
        taxClass = schema.string{ not_empty = true, max = 50 }:optional(),
        stackGroup = schema.string{ not_empty = true, max = 50 }:optional(),
        calcOrder = schema.integer{ min = 0, max = 1000 }:optional(),
        isCompound = schema.boolean():optional(),
        priority = schema.integer{ min = -1000000, max = 1000000 }:optional(),
        validFrom = schema.date():optional(),
        validTo = schema.date():optional(),
        jurisdiction = schema.string{ max = 120 }:optional(),
    },
    returns = { [201] = Rule, [409] = exists },
    handler = function(ctx) return body_of(tax.create_rule(ctx.scope, ctx.body), true) end,
})

route.post("/api/finance/tax/rules/list", {
    summary = "List tax rules",
    access = { permission = "taxes.read" },
    module = "finance",
    idempotent = false,
    body = schema.object{ limit = schema.integer{ min = 1, cap = 500 }:default(100),
        offset = schema.integer{ min = 0, max = 100000 }:default(0) },
    returns = { [201] = schema.array(Rule) },
    handler = function(ctx)
        local list = json.array({})
        for i, row in ipairs(tax.list(ctx.tenant, ctx.body.limit, ctx.body.offset)) do list[i] = body_of(row, false) end
        return list
    end,
})
