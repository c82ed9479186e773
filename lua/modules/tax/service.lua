-- Tax tables of a tenant. The arithmetic is core/commerce/tax.c.
local time = require("core.time")
local uuid = require("core.uuid")
local audit = require("kasma.audit")
local db = require("kasma.db")
local errors = require("kasma.errors")
local store = require("modules.tax.store")

local M = {}

M.rules = store.rules
M.list = store.list

local DEFAULTS = { calculation_type = "exclusive", rounding_mode = "half_up", rounding_level = "line", regional_overrides = {},
    tax_shipping = "by_class", destination_basis = "shipping", cross_border = "keep_gross" }

---@param tenant string
---@return table config row, or the defaults for a tenant that saved none
function M.config(tenant)
    return store.config(tenant) or DEFAULTS
end

--- Percent with up to four decimals to parts per million, exactly.
---@param percent number|string "7.25" or 7.25
---@return integer ppm 0..1000000
function M.ppm(percent)
    local whole, digits = tostring(percent):match("^(%d+)%.?(%d*)$")
    local ppm = whole and #digits <= 4 and tonumber(whole) * 10000 + tonumber((digits .. "0000"):sub(1, 4))
    if not ppm or ppm > 1000000 then
        errors.bad_request{ message = { "rate must be a percentage from 0 to 100 with at most 4 decimals" }, code = "percent_range" }
    end
    return ppm
end

---@param scope Scope
---@param input table name, rate (percent), country, region, zipCode, taxClass, ...
---@return table rule row
function M.create_rule(scope, input)
    if (input.region or input.zipCode) and not input.country then
        errors.bad_request{ message = { "country should not be empty when region or zipCode is given" }, code = "country_required" }
    end
    if input.validFrom and input.validTo and time.parse(input.validTo) <= time.parse(input.validFrom) then
        errors.bad_request{ message = { "validTo must be after validFrom" }, code = "window" }
    end
    local country = input.country and input.country:upper()
    local row = { tenant_key = scope.tenant, app_key = scope.app, id = uuid.v7(), now = time.iso(time.now()), name = input.name,
        country = country, region = input.region, zip_code = input.zipCode, rate_ppm = M.ppm(input.rate),
        is_active = input.isActive ~= false,
        tax_class = input.taxClass, stack_group = input.stackGroup or "default", calc_order = input.calcOrder or 0,
        is_compound = input.isCompound == true, priority = input.priority or 0, valid_from = input.validFrom, valid_to = input.validTo,
        jurisdiction = input.jurisdiction or country and country .. (input.region and "-" .. input.region or "") }
    local statements = { store.insert_rule(row) }
    audit.append(statements, scope, { action = "TAX_RULE_CREATED", entity_type = "tax_rule", entity_id = row.id, after = input })
    return errors.unique({ tax_rules_once = "tax_rule_exists" }, db.pipeline, scope.tenant, statements)[1][1]
end

return M
