-- Tax rules, configuration and exemptions. All of a tenant's rules are read at once and matched in C: there are few, and every quote
-- needs them.
local json = require("core.json")
local db = require("kasma.db")

local M = {}

local null = json.null

local RULE = [[t.id, t.tenant_key, t.app_key, t.created_at, t.updated_at, t.name, t.country, t.region, t.zip_code, t.rate_ppm, t.is_active,
  t.tax_class, t.stack_group, t.calc_order, t.is_compound, t.priority, t.valid_from, t.valid_to, t.jurisdiction]]

function M.insert_rule(r)
    return { [[insert into tax_rules as t (tenant_key, app_key, id, name, country, region, zip_code, rate_ppm, is_active, tax_class,
      stack_group, calc_order, is_compound, priority, valid_from, valid_to, jurisdiction, created_at, updated_at)
      values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $18) returning ]] .. RULE,
        r.tenant_key, r.app_key, r.id, r.name, r.country or null, r.region or null, r.zip_code or null, r.rate_ppm, r.is_active,
        r.tax_class or null, r.stack_group, r.calc_order, r.is_compound, r.priority, r.valid_from or null, r.valid_to or null,
        r.jurisdiction or null, r.now }
end

---@param tenant string
---@param now string ISO: rules valid at that time
---@return table[] active rules, at most 5000, by id
function M.rules(tenant, now)
    return db.read(tenant, "select " .. RULE .. [[ from tax_rules t where t.tenant_key = $1 and t.is_active
      and (t.valid_from is null or t.valid_from <= $2) and (t.valid_to is null or t.valid_to > $2) order by t.id limit 5000]], tenant, now)
end

---@param tenant string
---@param limit integer
---@param offset integer
---@return table[] rules, newest first
function M.list(tenant, limit, offset)
    return db.read(tenant, "select " .. RULE .. [[ from tax_rules t where t.tenant_key = $1 order by t.created_at desc, t.id desc
      limit $2 offset $3]], tenant, limit, offset)
end

---@param tenant string
---@return table|nil config the row of tax_configs
function M.config(tenant)
    return db.read(tenant, [[select c.id, c.tenant_key, c.app_key, c.created_at, c.updated_at, c.wire_id, c.calculation_type,
      c.rounding_mode, c.rounding_level, c.regional_overrides, c.tax_shipping, c.destination_basis, c.cross_border, c.version
      from tax_configs c where c.tenant_key = $1]], tenant)[1]
end

return M
