-- Shipping zones and methods of a tenant. What a method costs for a parcel is core/commerce/shipping.c.
local time = require("core.time")
local uuid = require("core.uuid")
local audit = require("kasma.audit")
local catalog = require("modules.catalog.service")
local db = require("kasma.db")
local errors = require("kasma.errors")
local store = require("modules.shipping.store")
local tenants = require("kasma.tenant")

local M = {}

M.zones = store.zones
M.methods = store.methods
M.existing_methods = store.existing_methods
M.rates = store.rates

---@param scope Scope
---@param input table name, regions, countries, provinces, zipCodes, isActive, priority
---@return table zone row
function M.create_zone(scope, input)
    local countries = {}
    for i, country in ipairs(input.countries or {}) do countries[i] = country:upper() end
    local row = { tenant_key = scope.tenant, app_key = scope.app, id = uuid.v7(), now = time.iso(time.now()), name = input.name,
        is_active = input.isActive ~= false, priority = input.priority or 0, regions = input.regions or input.provinces or {},
        countries = countries, provinces = input.provinces or {}, zip_codes = input.zipCodes or {} }
    local statements = { store.insert_zone(row) }
    audit.append(statements, scope, { action = "SHIPPING_ZONE_CREATED", entity_type = "shipping_zone", entity_id = row.id, after = input })
    return db.pipeline(scope.tenant, statements)[1][1]
end

---@param scope Scope
---@param input table zoneId, name, basePrice, pricePerKg, estimatedDays, ...
---@return table method row
function M.add_method(scope, input)
    if not store.zone(scope.tenant, input.zoneId) then errors.not_found{ message = "Shipping zone not found" } end
    if input.carrierId and not store.has_carrier(scope.tenant, input.carrierId) then errors.not_found{ message = "Carrier not found" } end
    local currency = input.currencyCode or tenants.currency(scope.tenant)
    local row = { tenant_key = scope.tenant, app_key = scope.app, id = uuid.v7(), now = time.iso(time.now()), name = input.name,
        zone_id = input.zoneId, carrier_id = input.carrierId, service_type = input.serviceType,
        base_price_minor = catalog.price("basePrice", input.basePrice, currency) or 0,
        price_per_kg_minor = catalog.price("pricePerKg", input.pricePerKg, currency) or 0,
        estimated_days = input.estimatedDays and tostring(input.estimatedDays), currency_code = currency,
        is_active = input.isActive ~= false, min_weight_g = input.minWeight, max_weight_g = input.maxWeight, step_grams = input.stepGrams,
        free_over_minor = catalog.price("freeOver", input.freeOver, currency), cod_allowed = input.codAllowed ~= false }
    local statements = { store.insert_method(row) }
    audit.append(statements, scope, { action = "SHIPPING_METHOD_CREATED", entity_type = "shipping_method", entity_id = row.id,
        after = input })
    return db.pipeline(scope.tenant, statements)[1][1]
end

return M
