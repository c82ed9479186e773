-- Warehouses, stock rows and movements. warehouse_inventory is the only truth about stock; reservations meet in the function
-- stock_reserve (modules.inventory.reservations). Functions that change something give a statement for the caller's pipeline.
local json = require("core.json")
local pg = require("core.pg")
local uuid = require("core.uuid")
local db = require("kasma.db")

local M = {}

local null = json.null

local WAREHOUSE = [[w.id, w.tenant_key, w.app_key, w.created_at, w.updated_at, w.name, w.code, w.address, w.city, w.region, w.zip_code,
  w.country, w.capacity, w.manager_name, w.is_active, w.priority, w.kind]]

local INVENTORY = [[i.id, i.tenant_key, i.app_key, i.created_at, i.updated_at, i.warehouse_id, i.product_id, i.variant_id, i.quantity,
  i.reserved_quantity, i.buffer_quantity, i.buffer_pct, i.backorder_limit, i.available_quantity, i.location, i.low_stock_at, i.version]]

function M.insert_warehouse(w)
    return { [[insert into warehouses as w (tenant_key, app_key, id, name, code, address, city, region, zip_code, country, capacity,
      manager_name, is_active, created_at, updated_at) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $14)
      returning ]] .. WAREHOUSE, w.tenant_key, w.app_key, w.id, w.name, w.code or null, w.address or null, w.city or null,
        w.region or null, w.zip_code or null, w.country or null, w.capacity or null, w.manager_name or null, w.is_active, w.now }
end

---@param tenant string
---@param id string
---@return table|nil warehouse
function M.warehouse(tenant, id)
    return db.read(tenant, "select " .. WAREHOUSE .. " from warehouses w where w.tenant_key = $1 and w.id = $2", tenant, id)[1]
end

---@param tenant string
---@return table[] active warehouses, the preferred first
function M.active_warehouses(tenant)
    return db.read(tenant, "select " .. WAREHOUSE .. [[ from warehouses w where w.tenant_key = $1 and w.is_active
      order by w.priority, w.id limit 500]], tenant)
end

--- Makes the stock row at zero unless it stands.
function M.ensure_row(r)
    return { [[insert into warehouse_inventory (tenant_key, app_key, id, warehouse_id, product_id, variant_id, quantity, created_at,
      updated_at) values ($1, $2, $3, $4, $5, $6, 0, $7, $7) on conflict do nothing]],
        r.tenant_key, r.app_key, r.id, r.warehouse_id, r.product_id, r.variant_id or null, r.now }
end

--- Adds `delta` (signed) to a row; raises KS004 when that would go below what is reserved or below zero, or there is no row.
function M.add_quantity(r)
    return { [[with got as (update warehouse_inventory set quantity = quantity + $5, version = version + 1, updated_at = $6
        where tenant_key = $1 and warehouse_id = $2 and product_id = $3 and variant_id is not distinct from $4
          and quantity + $5 >= greatest(reserved_quantity - backorder_limit, 0) returning 1)
      select kasma_must(count(*) = 1, 'KS004') from got]],
        r.tenant_key, r.warehouse_id, r.product_id, r.variant_id or null, r.delta, r.now }
end

--- The movement that says why; stands after add_quantity in the same transaction.
function M.insert_movement(m)
    return { [[insert into stock_movements (tenant_key, app_key, id, inventory_id, delta, kind, reason, reference, ref_type, ref_id,
        actor_id, quantity_after, created_at, updated_at)
      select i.tenant_key, $5, $6, i.id, $7, $8, $9, $10, $11, $12, $13, i.quantity, $14, $14 from warehouse_inventory i
      where i.tenant_key = $1 and i.warehouse_id = $2 and i.product_id = $3 and i.variant_id is not distinct from $4]],
        m.tenant_key, m.warehouse_id, m.product_id, m.variant_id or null, m.app_key, m.id, m.delta, m.kind, m.reason or null,
        m.reference or null, m.ref_type, m.ref_id, m.actor_id or null, m.now }
end

--- The event that tells of the row as it is after the change; stands behind it in the same transaction.
---@param c table tenant_key, app_key, warehouse_id, product_id, variant_id, delta, kind, hops, now
---@return table statement
function M.changed_event(c)
    return { [[insert into outbox (tenant_key, app_key, id, topic, key, payload, created_at)
      select i.tenant_key, $5, $6, 'event', i.id::text, jsonb_strip_nulls(jsonb_build_object('hops', $7::int))
        || jsonb_build_object('name', 'stock.changed', 'data', jsonb_build_object('productId', i.product_id, 'variantId', i.variant_id,
          'warehouseId', i.warehouse_id, 'onHand', i.quantity, 'reserved', i.reserved_quantity, 'available', i.available_quantity,
          'delta', $8::int, 'kind', $9::text)), $10::timestamptz
      from warehouse_inventory i
      where i.tenant_key = $1 and i.warehouse_id = $2 and i.product_id = $3 and i.variant_id is not distinct from $4]],
        c.tenant_key, c.warehouse_id, c.product_id, c.variant_id or null, c.app_key, uuid.v7(), c.hops or null, c.delta, c.kind, c.now,
        outbox = true }
end

function M.select_row(tenant, warehouse_id, product_id, variant_id)
    return { "select " .. INVENTORY .. [[ from warehouse_inventory i where i.tenant_key = $1 and i.warehouse_id = $2 and i.product_id = $3
      and i.variant_id is not distinct from $4]], tenant, warehouse_id, product_id, variant_id or null }
end

--- Brings product_variants.stock, the shop window's copy, up to the stock rows.
function M.project_variant(tenant, variant_id, now)
    return { [[update product_variants v set updated_at = $3, stock = greatest(coalesce((select sum(greatest(i.available_quantity, 0))
        from warehouse_inventory i where i.tenant_key = $1 and i.product_id = v.product_id and i.variant_id = v.id), 0), 0)
      where v.tenant_key = $1 and v.id = $2]], tenant, variant_id, now }
end

-- Buffers ------------------------------------------------------------------------------------------------------------------------

--- Stock rows by id.
---@param tenant string
---@param product_ids string[]|nil nil: of all products
---@param after string|nil id of the last one of the page before
---@param limit integer
---@return table[] id, product_id, variant_id
function M.rows_after(tenant, product_ids, after, limit)
    after = after or "00000000-0000-0000-0000-000000000000"
    if not product_ids then
        return db.read(tenant, [[select i.id, i.product_id, i.variant_id from warehouse_inventory i where i.tenant_key = $1 and i.id > $2
          order by i.id limit $3]], tenant, after, limit)
    end
    return db.read(tenant, [[select i.id, i.product_id, i.variant_id from warehouse_inventory i
      where i.tenant_key = $1 and i.product_id = any($2::uuid[]) and i.id > $3 order by i.id limit $4]], tenant, pg.array(product_ids),
        after, limit)
end

--- Statement that locks rows in the order of their ids.
function M.lock_rows(tenant, ids)
    return { [[select i.id, i.warehouse_id, i.product_id, i.variant_id, i.quantity, i.buffer_quantity, i.buffer_pct, i.available_quantity
      from warehouse_inventory i where i.tenant_key = $1 and i.id = any($2::uuid[]) order by i.id for update]], tenant, pg.array(ids) }
end

--- The stored buffers that hold now for all channels.
---@param tenant string
---@param product_ids string[]
---@param now string ISO
---@return table[] product_id, variant_id, warehouse_id, buffer_quantity, buffer_percent
function M.stored_buffers(tenant, product_ids, now)
    return db.read(tenant, [[select b.product_id, b.variant_id, b.warehouse_id, b.buffer_quantity, b.buffer_percent
      from inventory_buffers b where b.tenant_key = $1 and b.product_id = any($2::uuid[]) and b.channel is null and b.is_active
        and (b.active_from is null or b.active_from <= $3::timestamptz) and (b.active_to is null or b.active_to > $3::timestamptz)
      order by b.id limit 5000]], tenant, pg.array(product_ids), now)
end

--- Units that orders took of stock rows since a time, and did not give back.
---@param tenant string
---@param ids string[]
---@param since string ISO
---@return table[] inventory_id, units
function M.sold_since(tenant, ids, since)
    return db.read(tenant, [[select r.inventory_id, sum(r.quantity - r.released_qty)::int as units from stock_reservations r
      where r.tenant_key = $1 and r.inventory_id = any($2::uuid[]) and r.order_id is not null and r.created_at >= $3::timestamptz
      group by r.inventory_id]], tenant, pg.array(ids), since)
end

---@return table statement that returns the row
function M.set_buffer(tenant, id, units, percent, now)
    return { [[update warehouse_inventory i set buffer_quantity = $3, buffer_pct = $4, version = version + 1, updated_at = $5
      where i.tenant_key = $1 and i.id = $2 returning ]] .. INVENTORY, tenant, id, units, percent, now }
end

---@param tenant string
---@param filter { warehouse_id: string|nil, product_id: string|nil, limit: integer, offset: integer }
---@return table[] stock rows with product_name, product_code
function M.list(tenant, filter)
    return db.read(tenant, "select " .. INVENTORY .. [[, p.name as product_name, p.code as product_code from warehouse_inventory i
      join products p on p.tenant_key = i.tenant_key and p.id = i.product_id
      where i.tenant_key = $1 and ($2::uuid is null or i.warehouse_id = $2::uuid) and ($3::uuid is null or i.product_id = $3::uuid)
      order by i.created_at desc, i.id desc limit $4 offset $5]],
        tenant, filter.warehouse_id or null, filter.product_id or null, filter.limit, filter.offset)
end

--- The stock of variants by warehouse.
---@param tenant string
---@param variant_ids string[]
---@param warehouse_id string|nil nil: all
---@return table[] {variant_id, warehouse_id, quantity, reserved_quantity, available_quantity}
function M.levels(tenant, variant_ids, warehouse_id)
    if #variant_ids == 0 then return {} end
    return db.read(tenant, [[select i.variant_id, i.warehouse_id, i.quantity, i.reserved_quantity, i.available_quantity
      from warehouse_inventory i where i.tenant_key = $1 and i.variant_id = any($2::uuid[])
        and ($3::uuid is null or i.warehouse_id = $3::uuid) order by i.variant_id, i.warehouse_id limit 2000]],
        tenant, pg.array(variant_ids), warehouse_id or null)
end

---@param tenant string
---@param product_id string
---@param variant_id string|nil
---@return boolean product_found, boolean variant_fits (true when no variant is named)
function M.subject_exists(tenant, product_id, variant_id)
    local row = db.read(tenant, [[select ($3::uuid is null or exists (select 1 from product_variants v where v.tenant_key = $1
        and v.product_id = p.id and v.id = $3::uuid)) as fits from products p
      where p.tenant_key = $1 and p.id = $2 and p.deleted_at is null]], tenant, product_id, variant_id or null)[1]
    return row ~= nil, row ~= nil and row.fits
end

return M
