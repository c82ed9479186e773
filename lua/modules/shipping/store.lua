-- Shipping zones and methods. A tenant's zones are matched in memory, never by an index.
local json = require("core.json")
local pg = require("core.pg")
local db = require("kasma.db")

local M = {}

local null = json.null

local ZONE = [[z.id, z.tenant_key, z.app_key, z.created_at, z.updated_at, z.name, z.is_active, z.priority, z.regions, z.countries,
  z.provinces, z.zip_codes]]

local METHOD = [[m.id, m.tenant_key, m.app_key, m.created_at, m.updated_at, m.name, m.zone_id, m.carrier_id, m.service_type,
  m.base_price_minor, m.price_per_kg_minor, m.estimated_days, m.currency_code, m.is_active, m.min_weight_g, m.max_weight_g, m.step_grams,
  m.volumetric_divisor, m.free_over_minor, m.cod_allowed]]

function M.insert_zone(z)
    return { [[insert into shipping_zones as z (tenant_key, app_key, id, name, is_active, priority, regions, countries, provinces,
      zip_codes, created_at, updated_at) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $11) returning ]] .. ZONE,
        z.tenant_key, z.app_key, z.id, z.name, z.is_active, z.priority, pg.array(z.regions), pg.array(z.countries), pg.array(z.provinces),
        pg.array(z.zip_codes), z.now }
end

---@param tenant string
---@return table[] active zones by priority
function M.zones(tenant)
    return db.read(tenant, "select " .. ZONE .. [[ from shipping_zones z where z.tenant_key = $1 and z.is_active
      order by z.priority desc, z.id limit 1000]], tenant)
end

---@param tenant string
---@param id string
---@return table|nil zone
function M.zone(tenant, id)
    return db.read(tenant, "select " .. ZONE .. " from shipping_zones z where z.tenant_key = $1 and z.id = $2", tenant, id)[1]
end

---@param tenant string
---@param id string
---@return boolean
function M.has_carrier(tenant, id)
    return db.read(tenant, "select 1 as one from carriers where tenant_key = $1 and id = $2", tenant, id)[1] ~= nil
end

function M.insert_method(m)
    return { [[insert into shipping_methods as m (tenant_key, app_key, id, name, zone_id, carrier_id, service_type, base_price_minor,
      price_per_kg_minor, estimated_days, currency_code, is_active, min_weight_g, max_weight_g, step_grams, free_over_minor, cod_allowed,
      created_at, updated_at) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $18)
      returning ]] .. METHOD,
        m.tenant_key, m.app_key, m.id, m.name, m.zone_id, m.carrier_id or null, m.service_type or null, m.base_price_minor,
        m.price_per_kg_minor, m.estimated_days or null, m.currency_code, m.is_active, m.min_weight_g or null, m.max_weight_g or null,
        m.step_grams or null, m.free_over_minor or null, m.cod_allowed, m.now }
end

---@param tenant string
---@return table[] active methods by id
function M.methods(tenant)
    return db.read(tenant, "select " .. METHOD .. [[ from shipping_methods m where m.tenant_key = $1 and m.is_active order by m.id
      limit 1000]], tenant)
end

--- Which of these methods there are, active or not.
---@param tenant string
---@param ids string[]
---@return string[]
function M.existing_methods(tenant, ids)
    local found = {}
    for i, row in ipairs(db.read(tenant, "select id from shipping_methods where tenant_key = $1 and id = any($2::uuid[])", tenant,
        pg.array(ids))) do found[i] = row.id end
    return found
end

---@param tenant string
---@return table[] weight bands of all methods, by method and weight
function M.rates(tenant)
    return db.read(tenant, [[select r.method_id, r.from_g, r.to_g, r.price_minor from shipping_rates r where r.tenant_key = $1
      order by r.method_id, r.from_g limit 5000]], tenant)
end

return M
