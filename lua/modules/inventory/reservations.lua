-- Stock that is promised: held by group, claimed by an order, released or expired.
--
-- A hold is a commit of its own (the function stock_reserve grants a whole group or nothing, rows locked in the order of their ids). The
-- order's transaction then claims exactly those rows. Whatever fails in between releases the group; after a crash it expires by its
-- due_work row. No step believes a count it has read: each is a conditional statement that raises by itself.
local crypto = require("core.crypto")
local json = require("core.json")
local pg = require("core.pg")
local time = require("core.time")
local uuid = require("core.uuid")
local db = require("kasma.db")

local M = {}

local HOLD_MS = 120000 -- of a checkout, until its order claims the rows
local EXPIRED_GROUPS = 50 -- most expired holds a refused group frees before it tries again

--- The second group of a checkout: what its rules give away, which is known only when the rest is held and priced.
---@param group_key string uuid
---@return string uuid
function M.beside(group_key)
    local hex = crypto.sha256(group_key .. ":beside")
    return ("%s-%s-8%s-8%s-%s"):format(hex:sub(1, 8), hex:sub(9, 12), hex:sub(13, 15), hex:sub(16, 18), hex:sub(19, 30))
end

---@class StockLine
---@field inventory_id string row of warehouse_inventory
---@field quantity integer units

--- The lines of one group, those of one stock row added up, in the order of their ids.
local function merged(lines)
    local by_id, ids = {}, {}
    for _, line in ipairs(lines) do
        if not by_id[line.inventory_id] then ids[#ids + 1] = line.inventory_id end
        by_id[line.inventory_id] = (by_id[line.inventory_id] or 0) + line.quantity
    end
    table.sort(ids)
    return ids, by_id
end

local function reserve(scope, group_key, lines)
    local ids, quantities = merged(lines)
    local groups, slots, units, rows, keys = {}, {}, {}, {}, {}
    for i, id in ipairs(ids) do
        groups[i], slots[i], units[i], rows[i], keys[i] = 1, i, quantities[id], uuid.v7(), group_key
    end
    local now = time.now()
    local granted = db.query(scope.tenant, [[select stock_reserve($1, $2::uuid[], $3::int[], $4::int[], $5::int[], $6::uuid[], $7::uuid[],
        1, $8::timestamptz, $9::timestamptz) as granted]],
        scope.tenant, pg.array(ids), pg.array(groups), pg.array(slots), pg.array(units), pg.array(rows), pg.array(keys), time.iso(now),
        time.iso(now + HOLD_MS))[1].granted
    return #granted == 1
end

--- Gives back what is open of a group: (with $4) only what no order has claimed, or (with $5) what these orders have. EXPIRE marks it so
--- and touches only holds whose time is over.
local RELEASE = [[with open as materialized (select r.id, r.inventory_id, r.quantity - r.consumed_qty - r.released_qty as n
    from stock_reservations r where r.tenant_key = $1 and r.group_key = $2 and r.status in ('HELD', 'CONFIRMED')
      and not ($4 and r.order_id is not null) and ($5::uuid[] is null or r.order_id = any($5::uuid[])) order by r.id for update),
  held as materialized (select i.id from warehouse_inventory i where i.tenant_key = $1 and i.id in (select inventory_id from open)
    order by i.id for update),
  gone as (update stock_reservations r set released_qty = r.released_qty + o.n, expired = false, updated_at = $3 from open o
    where r.tenant_key = $1 and r.id = o.id returning 1)
  update warehouse_inventory i set reserved_quantity = i.reserved_quantity - s.n, version = i.version + 1, updated_at = $3
    from (select o.inventory_id, sum(o.n)::int as n from open o join held h on h.id = o.inventory_id group by o.inventory_id) s
    where i.tenant_key = $1 and i.id = s.inventory_id returning i.id, i.warehouse_id, i.product_id, i.variant_id, i.quantity,
      i.reserved_quantity, i.available_quantity, i.low_stock_at, s.n]]

local EXPIRE = [[with open as materialized (select r.id, r.inventory_id, r.quantity - r.consumed_qty - r.released_qty as n
    from stock_reservations r where r.tenant_key = $1 and r.group_key = $2 and r.status = 'HELD' and r.expires_at <= $3
    order by r.id for update),
  held as materialized (select i.id from warehouse_inventory i where i.tenant_key = $1 and i.id in (select inventory_id from open)
    order by i.id for update),
  gone as (update stock_reservations r set released_qty = r.released_qty + o.n, expired = true, updated_at = $3 from open o
    where r.tenant_key = $1 and r.id = o.id returning 1)
  update warehouse_inventory i set reserved_quantity = i.reserved_quantity - s.n, version = i.version + 1, updated_at = $3
    from (select o.inventory_id, sum(o.n)::int as n from open o join held h on h.id = o.inventory_id group by o.inventory_id) s
    where i.tenant_key = $1 and i.id = s.inventory_id returning i.id, s.n]]

local function forget_due(tenant, group_key)
    return { "delete from due_work where tenant_key = $1 and kind = 'stock.reservation' and id = $2", tenant, group_key }
end

--- Holds all lines of a checkout for two minutes, or none.
---@param scope Scope
---@param group_key string uuid; the checkout's id
---@param lines StockLine[]
---@return boolean granted
function M.hold(scope, group_key, lines)
    if #lines == 0 or reserve(scope, group_key, lines) then return true end
    -- Refused: rows may still carry holds whose time is over and which the sweeper has not reached.
    local ids = merged(lines)
    local now = time.iso(time.now())
    local dead = db.query(scope.tenant, [[select distinct r.group_key from stock_reservations r where r.tenant_key = $1
        and r.inventory_id = any($2::uuid[]) and r.status = 'HELD' and r.order_id is null and r.expires_at <= $3 limit $4]],
        scope.tenant, pg.array(ids), now, EXPIRED_GROUPS)
    if #dead == 0 then return false end
    for _, row in ipairs(dead) do M.expire(scope.tenant, row.group_key) end
    return reserve(scope, group_key, lines)
end

--- Ends the holds of a group whose time is over.
---@param tenant string
---@param group_key string
function M.expire(tenant, group_key)
    db.pipeline(tenant, { { EXPIRE, tenant, group_key, time.iso(time.now()) }, forget_due(tenant, group_key) })
end

--- Gives back the holds of a checkout that failed. What an order has claimed stays: when the answer of the order's transaction was lost, it
--- may be committed all the same.
---@param tenant string
---@param group_key string
function M.release(tenant, group_key)
    local beside, now = M.beside(group_key), time.iso(time.now())
    db.pipeline(tenant, { { RELEASE, tenant, group_key, now, true, json.null }, forget_due(tenant, group_key),
        { RELEASE, tenant, beside, now, true, json.null }, forget_due(tenant, beside) })
end

---@param order_ids string[] whose part of the group it is
---@return table[] statements that give it back, for the transaction that cancels the orders: the stock rows as they then are, with n
function M.release_statements(tenant, group_key, order_ids)
    local now = time.iso(time.now())
    return { { RELEASE, tenant, group_key, now, false, pg.array(order_ids) }, forget_due(tenant, group_key),
        { RELEASE, tenant, M.beside(group_key), now, false, pg.array(order_ids) } }
end

--- Statement: orders that wait on for their payment hold their stock as long.
---@param tenant string
---@param order_ids string[]
---@param expires_at string ISO
function M.extend_statement(tenant, order_ids, expires_at)
    return { [[update stock_reservations set expires_at = $3, updated_at = $4 where tenant_key = $1 and order_id = any($2::uuid[])
      and status = 'HELD']], tenant, pg.array(order_ids), expires_at, time.iso(time.now()) }
end

--- Statements of the order's transaction: the group's rows become the orders', all of them or KS001.
---@param tenant string
---@param group_key string
---@param claims { inventory_id: string, order_id: string }[] one a stock row
---@param expires_at string|nil ISO; nil = confirmed at once
---@return table[] statements
function M.claim_statements(tenant, group_key, claims, expires_at)
    local ids, orders = {}, {}
    for i, claim in ipairs(claims) do ids[i], orders[i] = claim.inventory_id, claim.order_id end
    return {
        { [[with got as (update stock_reservations r set order_id = c.order_id, expires_at = $4, updated_at = $3
              from unnest($5::uuid[], $6::uuid[]) as c(inventory_id, order_id)
              where r.tenant_key = $1 and r.group_key = $2 and r.inventory_id = c.inventory_id and r.status = 'HELD' and r.order_id is null
                and r.expires_at > $3 returning 1)
            select kasma_must(count(*) = cardinality($5::uuid[]), 'KS001') from got]],
            tenant, group_key, time.iso(time.now()), expires_at or json.null, pg.array(ids), pg.array(orders) },
        forget_due(tenant, group_key),
    }
end

--- Statement: the holds of an order become final because it is paid.
---@param tenant string
---@param order_ids string[]
---@return table statement that returns the ids confirmed
function M.confirm_statement(tenant, order_ids)
    return { [[update stock_reservations r set expires_at = null, updated_at = $3 where r.tenant_key = $1 and r.order_id = any($2::uuid[])
        and r.status = 'HELD' and r.expires_at > $3 returning r.id]], tenant, pg.array(order_ids), time.iso(time.now()) }
end

--- Whether orders have holds that ended, swept or not.
---@param tx table
---@param tenant string
---@param order_ids string[]
---@return boolean
function M.any_lapsed(tx, tenant, order_ids)
    return tx:query([[select 1 as one from stock_reservations r where r.tenant_key = $1 and r.order_id = any($2::uuid[])
        and r.status in ('HELD', 'EXPIRED') limit 1]], tenant, pg.array(order_ids))[1] ~= nil
end

--- What the orders of a group held, however it ended.
---@param tenant string
---@param group_key string
---@return table[] inventory_id, order_id, quantity
function M.of_group(tenant, group_key)
    return db.read(tenant, [[select r.inventory_id, r.order_id, sum(r.quantity)::int as quantity from stock_reservations r
      where r.tenant_key = $1 and r.group_key = any($2::uuid[]) and r.order_id is not null group by r.inventory_id, r.order_id
      order by r.inventory_id]], tenant, pg.array{ group_key, M.beside(group_key) })
end

--- The stock rows of which orders have claimed units, whatever became of those.
---@param tenant string
---@param order_ids string[]
---@return table[] stock rows with order_id, one for each order
function M.rows_of(tenant, order_ids)
    return db.read(tenant, [[select distinct r.order_id, i.id, i.warehouse_id, i.product_id, i.variant_id, i.quantity, i.reserved_quantity,
        i.available_quantity, i.low_stock_at
      from stock_reservations r join warehouse_inventory i on i.tenant_key = r.tenant_key and i.id = r.inventory_id
      where r.tenant_key = $1 and r.order_id = any($2::uuid[]) order by i.id, r.order_id]], tenant, pg.array(order_ids))
end

--- Where the units of an order are held, or were: one row a warehouse and item, and one more when a late payment took them again.
---@param tenant string
---@param order_id string
---@return table[] warehouse_id, warehouse_name, product_id, variant_id, quantity, shipped, released, status, expires_at
function M.of_order(tenant, order_id)
    return db.read(tenant, [[select i.warehouse_id, w.name as warehouse_name, i.product_id, i.variant_id, r.quantity,
        r.consumed_qty as shipped, r.released_qty as released, r.status, r.expires_at
      from stock_reservations r join warehouse_inventory i on i.tenant_key = r.tenant_key and i.id = r.inventory_id
        join warehouses w on w.tenant_key = i.tenant_key and w.id = i.warehouse_id
      where r.tenant_key = $1 and r.order_id = $2 order by r.created_at, r.id limit 1000]], tenant, order_id)
end

--- The stock rows that can serve some products, in the order in which warehouses are preferred.
---@param tenant string
---@param product_ids string[]
---@return table[] id, warehouse_id, product_id, variant_id, available_quantity, priority, region, country
function M.stock_rows(tenant, product_ids)
    if #product_ids == 0 then return {} end
    return db.read(tenant, [[select i.id, i.warehouse_id, i.product_id, i.variant_id, i.available_quantity, w.priority, w.region, w.country
      from warehouse_inventory i join warehouses w on w.tenant_key = i.tenant_key and w.id = i.warehouse_id
      where i.tenant_key = $1 and i.product_id = any($2::uuid[]) and w.is_active and w.kind in ('OWN', 'VENDOR', 'DROPSHIP')
      order by w.priority, w.id, i.id limit 5000]], tenant, pg.array(product_ids))
end

return M
