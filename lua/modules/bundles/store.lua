-- Bundles and their items.
local json = require("core.json")
local pg = require("core.pg")
local db = require("kasma.db")

local M = {}

local null = json.null

local ITEMS_MAX = 50 -- of a bundle: what the route takes

local BUNDLE = [[b.id, b.tenant_key, b.app_key, b.created_at, b.updated_at, b.name, b.description, b.slug, b.price_minor, b.currency,
  b.is_active, b.start_date, b.end_date, b.auto_apply, b.max_per_order, b.pricing, b.percent_off_bps]]

function M.insert(b)
    return { [[insert into product_bundles as b (tenant_key, app_key, id, name, description, slug, price_minor, currency, is_active,
      start_date, end_date, auto_apply, max_per_order, pricing, percent_off_bps, created_at, updated_at)
      values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $16) returning ]] .. BUNDLE,
        b.tenant_key, b.app_key, b.id, b.name, b.description or null, b.slug or null, b.price_minor, b.currency, b.is_active,
        b.start_date or null, b.end_date or null, b.auto_apply, b.max_per_order, b.pricing, b.percent_off_bps, b.now }
end

function M.insert_item(i)
    return { [[insert into product_bundle_items (tenant_key, app_key, id, bundle_id, product_id, variant_id, quantity, created_at,
        updated_at)
      values ($1, $2, $3, $4, $5, $6, $7, $8, $8)]],
        i.tenant_key, i.app_key, i.id, i.bundle_id, i.product_id, i.variant_id or null, i.quantity, i.now }
end

---@param tenant string
---@param filter { active_at: string|nil, limit: integer, offset: integer } active_at: only those sold then
---@return table[] bundles, newest first
function M.list(tenant, filter)
    return db.read(tenant, "select " .. BUNDLE .. [[ from product_bundles b where b.tenant_key = $1
      and ($2::timestamptz is null or (b.is_active and (b.start_date is null or b.start_date <= $2::timestamptz)
        and (b.end_date is null or b.end_date > $2::timestamptz)))
      order by b.created_at desc, b.id desc limit $3 offset $4]], tenant, filter.active_at or null, filter.limit, filter.offset)
end

---@param tenant string
---@param ids string[]
---@return table[] bundles in no order
function M.by_id(tenant, ids)
    if #ids == 0 then return {} end
    return db.read(tenant, "select " .. BUNDLE .. " from product_bundles b where b.tenant_key = $1 and b.id = any($2::uuid[])",
        tenant, pg.array(ids))
end

---@param tenant string
---@param ids string[]
---@return string[] those that the tenant has
function M.existing(tenant, ids)
    local found = {}
    for i, row in ipairs(db.read(tenant, "select id from product_bundles where tenant_key = $1 and id = any($2::uuid[])",
        tenant, pg.array(ids))) do
        found[i] = row.id
    end
    return found
end

---@param tenant string
---@param bundle_ids string[]
---@return table[] items by bundle, in the order of their ids
function M.items(tenant, bundle_ids)
    if #bundle_ids == 0 then return {} end
    return db.read(tenant, [[select i.id, i.tenant_key, i.app_key, i.created_at, i.updated_at, i.bundle_id, i.product_id, i.variant_id,
      i.quantity from product_bundle_items i where i.tenant_key = $1 and i.bundle_id = any($2::uuid[])
      order by i.bundle_id, i.id limit $3]], tenant, pg.array(bundle_ids), #bundle_ids * ITEMS_MAX)
end

return M
