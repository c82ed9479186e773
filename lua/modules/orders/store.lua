-- Orders' SQL. The order transaction is one pipeline of one-tenant statements, each of which raises by itself when its condition fails.
local json = require("core.json")
local pg = require("core.pg")
local db = require("kasma.db")

local M = {}

local null = json.null

local ORDER = [[o.id, o.tenant_key, o.app_key, o.created_at, o.updated_at, o.user_id, o.guest_email, o.order_number, o.checkout_id,
  o.split_index, o.parent_order_id, o.status, o.payment_status, o.payment_method, o.currency, o.tax_inclusive, o.subtotal_minor,
  o.discount_total_minor,
  o.shipping_total_minor, o.tax_total_minor, o.total_amount_minor, o.cash_rounding_minor, o.gift_card_total_minor, o.wallet_total_minor,
  o.amount_due_minor, o.paid_total_minor, o.refunded_total_minor, o.shipping_address, o.billing_address, o.tracking_number, o.notes,
  o.internal_notes, o.coupon_codes, o.workflow_state, o.placed_at, o.paid_at, o.cancelled_at, o.expires_at, o.cancel_reason, o.version]]

local ITEM = [[i.id, i.tenant_key, i.app_key, i.created_at, i.updated_at, i.order_id, i.product_id, i.variant_id, i.quantity,
  i.unit_price_minor, i.sub_total_minor, i.discount_total_minor, i.net_total_minor, i.tax_rate_ppm, i.tax_total_minor, i.line_total_minor,
  i.warehouse_id, i.name_snapshot, i.sku_snapshot, i.attributes_snapshot, i.bundle_id, i.is_gift, i.properties,
  i.purchase_type, i.shipped_qty, i.refunded_qty]]

--- The first number of a block of `count` order numbers.
---@param tenant string
---@param app string
---@param count integer
---@return integer first
function M.take_numbers(tenant, app, count)
    return db.query(tenant, [[insert into number_blocks (tenant_key, app_key, kind, period, next) values ($1, $2, 'order', '', 1 + $3)
      on conflict (tenant_key, kind, period) do update set next = number_blocks.next + $3 returning next - $3 as first]],
        tenant, app, count)[1].first
end

--- Empties the cart into the checkout; 'KS010' when the cart was changed since it was read.
function M.consume_cart(tenant, cart, now)
    return { [[with got as (update carts set series = series + 1, version = version + 1, items = '[]', coupon_codes = '{}',
        points_to_redeem = 0, updated_at = $4 where tenant_key = $1 and id = $2 and version = $3 returning 1)
      select kasma_must(count(*) = 1, 'KS010') from got]], tenant, cart.id, cart.version, now }
end

--- Counts a promotion's use against its limits; 'KS011' when one of them is exhausted.
function M.use_promotion(tenant, use, now)
    return { [[with got as (update promotions set used_count = used_count + 1, budget_used_minor = budget_used_minor + $3,
        units_used = units_used + $4, version = version + 1, updated_at = $5
      where tenant_key = $1 and id = $2 and is_active and (usage_limit = 0 or used_count < usage_limit)
        and (budget_minor = 0 or budget_used_minor + $3 <= budget_minor) and (max_units = 0 or units_used + $4 <= max_units) returning 1)
      select kasma_must(count(*) = 1, 'KS011') from got]], tenant, use.promotion_id, use.amount_minor, use.units, now }
end

--- Stands after use_promotion, whose row lock makes other checkouts wait: 'KS011' when the customer has had what one may have.
function M.check_customer_use(tenant, use, customer_key)
    return { [[select kasma_must((p.per_customer_limit = 0 or u.uses < p.per_customer_limit)
          and (p.max_units_per_customer = 0 or u.units + $4 <= p.max_units_per_customer), 'KS011')
        from promotions p cross join (select count(*) as uses, coalesce(sum(units), 0) as units from promotion_usages
          where tenant_key = $1 and promotion_id = $2 and customer_key = $3 and state in ('reserved', 'used')) u
        where p.tenant_key = $1 and p.id = $2]], tenant, use.promotion_id, customer_key, use.units }
end

function M.insert_promotion_usage(u)
    return { [[insert into promotion_usages (tenant_key, app_key, id, promotion_id, checkout_id, user_id, customer_key, amount_minor, units,
      state, created_at, updated_at) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, 'reserved', $10, $10)]],
        u.tenant_key, u.app_key, u.id, u.promotion_id, u.checkout_id, u.user_id or null, u.customer_key, u.amount_minor, u.units, u.now }
end

--- The customer's row is made by the first checkout; the figures change with each. `first_only`: a price of this checkout holds for a first
--- order only, 'KS011' when another one came before it.
function M.count_order(c)
    return { [[with got as (insert into customers (tenant_key, app_key, id, user_id, guest_hash, guest_key_version, orders_count,
        first_order_at, lifetime_spent_minor, created_at, updated_at) values ($1, $2, $3, $4, $5, $6, 1, $7, 0, $7, $7)
      on conflict (tenant_key, ]] .. (c.user_id and "user_id) where user_id" or "guest_hash) where guest_hash") .. [[ is not null
      do update set orders_count = customers.orders_count + 1, first_order_at = coalesce(customers.first_order_at, excluded.first_order_at),
        updated_at = excluded.updated_at returning orders_count)
      select kasma_must(not $8::boolean or orders_count = 1, 'KS011') from got]],
        c.tenant_key, c.app_key, c.id, c.user_id or null, c.guest_hash or null, c.guest_key_version or null, c.now, c.first_only }
end

function M.insert_checkout(c)
    return { [[insert into checkouts (tenant_key, app_key, id, cart_id, cart_series, user_id, guest_hash, guest_key_version, currency,
      total_minor, amount_due_minor, created_at, updated_at) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $12)]],
        c.tenant_key, c.app_key, c.id, c.cart_id, c.cart_series, c.user_id or null, c.guest_hash or null, c.guest_key_version or null,
        c.currency, c.total_minor, c.amount_due_minor, c.now }
end

function M.insert_order(o)
    return { [[insert into orders as o (tenant_key, app_key, id, user_id, guest_email, order_number, checkout_id, split_index,
        parent_order_id,
      status, payment_status, payment_method, currency, tax_inclusive, subtotal_minor, discount_total_minor, shipping_total_minor,
      tax_total_minor, total_amount_minor, cash_rounding_minor, amount_due_minor, shipping_address, billing_address, notes, coupon_codes,
      placed_at, paid_at, expires_at, workflow_state, created_at, updated_at)
      values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25, $26, $27,
        $28, $29, $26, $26) returning ]] .. ORDER,
        o.tenant_key, o.app_key, o.id, o.user_id or null, o.guest_email or null, o.order_number, o.checkout_id, o.split_index,
        o.parent_order_id or null, o.status, o.payment_status, o.payment_method, o.currency, o.tax_inclusive, o.subtotal_minor,
        o.discount_total_minor, o.shipping_total_minor, o.tax_total_minor, o.total_amount_minor, o.cash_rounding_minor, o.amount_due_minor,
        pg.json(o.shipping_address), o.billing_address and pg.json(o.billing_address) or null, o.notes or null, pg.array(o.coupon_codes),
        o.now, o.paid_at or null, o.expires_at or null, o.workflow_state or null }
end

function M.insert_item(i)
    return { [[insert into order_items as i (tenant_key, app_key, id, order_id, product_id, variant_id, quantity, unit_price_minor,
      sub_total_minor, discount_total_minor, net_total_minor, tax_rate_ppm, tax_total_minor, line_total_minor, warehouse_id, name_snapshot,
      sku_snapshot, attributes_snapshot, bundle_id, is_gift, position, properties, purchase_type, created_at, updated_at)
      values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, left($16::text, 255), left($17::text, 64), $18, $19, $20,
        $21, $22, $23, $24, $24) returning ]] .. ITEM,
        i.tenant_key, i.app_key, i.id, i.order_id, i.product_id, i.variant_id or null, i.quantity, i.unit_price_minor, i.sub_total_minor,
        i.discount_total_minor, i.net_total_minor, i.tax_rate_ppm, i.tax_total_minor, i.line_total_minor, i.warehouse_id or null,
        i.name_snapshot, i.sku_snapshot or null, pg.json(i.attributes_snapshot or {}), i.bundle_id or null, i.is_gift, i.position,
        i.properties and pg.json(i.properties) or null, i.purchase_type or "one_time", i.now }
end

function M.insert_adjustment(a)
    return { [[insert into order_adjustments (tenant_key, app_key, id, order_id, order_item_id, kind, source_id, code, label, level,
      amount_minor, position, rule_version, created_at, updated_at)
      values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $14)]],
        a.tenant_key, a.app_key, a.id, a.order_id, a.order_item_id or null, a.kind, a.source_id or null, a.code or null, a.label or "",
        a.level, a.amount_minor, a.position, a.rule_version or null, a.now }
end

function M.insert_event(e)
    return { [[insert into order_events (tenant_key, app_key, id, order_id, type, from_status, to_status, actor_id, actor_kind, reason,
      data, created_at, updated_at) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $12)]],
        e.tenant_key, e.app_key, e.id, e.order_id, e.type, e.from_status or null, e.to_status or null, e.actor_id or null, e.actor_kind,
        e.reason or null, pg.json(e.data or {}), e.now }
end

--- An event of an order that is written once by its id; answers the id when it was not there.
function M.insert_event_once(e)
    local statement = M.insert_event(e)
    statement[1] = statement[1] .. " on conflict (tenant_key, id) do nothing returning id"
    return statement
end

--- Adds a line to what staff notes of an order.
function M.add_note(tenant, id, text, now)
    return { [[update orders set internal_notes = concat_ws(E'\n', nullif(internal_notes, ''), $3::text), version = version + 1,
        updated_at = $4::timestamptz where tenant_key = $1 and id = $2]], tenant, id, text, now }
end

function M.set_workflow_state(tenant, id, state, now)
    return { [[update orders set workflow_state = $3, version = version + 1, updated_at = $4::timestamptz
      where tenant_key = $1 and id = $2]], tenant, id, state, now }
end

--- Locks one order, for what rules write on it.
---@return table|nil {id, app_key, status, workflow_state, notes_bytes}
function M.lock_notes(tx, tenant, id)
    return tx:one("select id, app_key, status, workflow_state, octet_length(internal_notes) as notes_bytes from orders "
        .. "where tenant_key = $1 and id = $2 for update", tenant, id)
end

function M.insert_order_payment(p)
    return { [[insert into order_payments (tenant_key, app_key, id, checkout_id, order_id, kind, ref_id, amount_minor, currency, state,
      created_at, updated_at) values ($1, $2, $3, $4, $5, 'external', $6, $7, $8, $9, $10, $10)]],
        p.tenant_key, p.app_key, p.id, p.checkout_id, p.order_id, p.ref_id, p.amount_minor, p.currency, p.state, p.now }
end

function M.insert_ref(order_id, tenant, now)
    return { [[insert into public_refs (kind, ref, tenant_key, id, created_at) values ('order', $1, $2, $3, $4)]],
        order_id, tenant, order_id, now }
end

--- Which tenant an order belongs to, before a tenant is known.
---@param order_id string
---@return string|nil tenant
function M.tenant_of(order_id)
    local row = db.read(nil, "select tenant_key from public_refs where kind = 'order' and ref = $1", order_id)[1]
    return row and row.tenant_key
end

---@param tenant string
---@param id string
---@return table|nil order
function M.order(tenant, id)
    return db.read(tenant, "select " .. ORDER .. " from orders o where o.tenant_key = $1 and o.id = $2", tenant, id)[1]
end

---@param tenant string
---@param checkout_id string
---@return table[] its orders, the parent first
function M.of_checkout(tenant, checkout_id)
    return db.read(tenant, "select " .. ORDER .. [[ from orders o where o.tenant_key = $1 and o.checkout_id = $2
      order by o.split_index limit 500]], tenant, checkout_id)
end

---@param tenant string
---@param user_id string
---@param status string|nil
---@param limit integer
---@param offset integer
---@return table[] orders, newest first
function M.of_user(tenant, user_id, status, limit, offset)
    return db.read(tenant, "select " .. ORDER .. [[ from orders o where o.tenant_key = $1 and o.user_id = $2
      and ($3::text is null or o.status = $3::text) order by o.created_at desc, o.id desc limit $4 offset $5]],
        tenant, user_id, status or null, limit, offset)
end

---@param tenant string
---@param order_ids string[]
---@return table[] items by order and id
function M.items(tenant, order_ids)
    if #order_ids == 0 then return {} end
    return db.read(tenant, "select " .. ITEM .. [[ from order_items i where i.tenant_key = $1 and i.order_id = any($2::uuid[])
      order by i.order_id, i.position, i.id limit 20000]], tenant, pg.array(order_ids))
end

--- What events say of the items of these orders; read in the transaction that reports. Sets `items` of each.
---@param tx kasma.Tx
---@param tenant string
---@param orders table[]
---@return table[] the same orders
function M.items_in(tx, tenant, orders)
    local ids, by_id = {}, {}
    for i, order in ipairs(orders) do
        ids[i], by_id[order.id], order.items = order.id, order, {}
    end
    if #ids == 0 then return orders end
    for _, item in ipairs(tx:query([[select i.id, i.order_id, i.product_id, i.variant_id, i.quantity, i.net_total_minor, i.sku_snapshot
      from order_items i where i.tenant_key = $1 and i.order_id = any($2::uuid[])
      order by i.order_id, i.position, i.id limit 20000]], tenant, pg.array(ids))) do
        table.insert(by_id[item.order_id].items, item)
    end
    return orders
end

---@param tenant string
---@param order_id string
---@return table[] adjustments, table[] events, table[] payments
function M.beside(tenant, order_id)
    local answers = db.pipeline(tenant, {
        { [[select a.id, a.order_id, a.order_item_id, a.kind, a.source_id, a.code, a.label, a.level, a.amount_minor, a.position,
            a.rule_version,
            a.created_at, a.updated_at, a.tenant_key, a.app_key from order_adjustments a where a.tenant_key = $1 and a.order_id = $2
            order by a.position, a.id limit 5000]], tenant, order_id },
        { [[select e.id, e.order_id, e.type, e.from_status, e.to_status, e.actor_id, e.actor_kind, e.reason, e.data, e.created_at,
            e.updated_at, e.tenant_key, e.app_key from order_events e where e.tenant_key = $1 and e.order_id = $2
            order by e.created_at, e.id limit 1000]], tenant, order_id },
        { [[select p.id, p.checkout_id, p.order_id, p.kind, p.ref_id, p.amount_minor, p.refunded_minor, p.currency, p.state, p.created_at,
            p.updated_at, p.tenant_key, p.app_key from order_payments p where p.tenant_key = $1 and p.order_id = $2 order by p.id
            limit 100]], tenant, order_id },
    })
    return answers[1], answers[2], answers[3]
end

--- Locks the orders of a checkout, by id.
---@param tx table
---@return table[] orders
function M.lock_checkout(tx, tenant, checkout_id)
    return tx:query("select " .. ORDER .. [[ from orders o where o.tenant_key = $1 and o.checkout_id = $2 order by o.id for update]],
        tenant, checkout_id)
end

---@param m { tenant_key: string, id: string, status: string, payment_status: string, paid_minor: integer, paid_at: string|nil,
---cancelled_at: string|nil, cancel_reason: string|nil, keep_expiry: boolean|nil, workflow_state: string|nil, now: string }
function M.move(m)
    return { [[update orders set status = $3, payment_status = $4, paid_total_minor = $5, paid_at = coalesce($6::timestamptz, paid_at),
        cancelled_at = coalesce($7::timestamptz, cancelled_at), cancel_reason = coalesce($8, cancel_reason),
        expires_at = case when $9 then expires_at end, workflow_state = coalesce($11, workflow_state), version = version + 1,
        updated_at = $10 where tenant_key = $1 and id = $2]],
        m.tenant_key, m.id, m.status, m.payment_status, m.paid_minor, m.paid_at or null, m.cancelled_at or null, m.cancel_reason or null,
        m.keep_expiry == true, m.now, m.workflow_state or null }
end

--- An order whose end was refused waits on.
function M.wait_on(tenant, id, expires_at, workflow_state, now)
    return { [[update orders set expires_at = $3, workflow_state = coalesce($4, workflow_state), version = version + 1, updated_at = $5
      where tenant_key = $1 and id = $2]], tenant, id, expires_at, workflow_state or null, now }
end

--- What staff says of an order beside its states; what is nil stays.
---@return table statement that answers the row
function M.annotate(tenant, id, fields, now)
    return { "update orders o set " .. [[tracking_number = coalesce($3, tracking_number), internal_notes = coalesce($4, internal_notes),
        workflow_state = coalesce($5, workflow_state), version = version + 1, updated_at = $6 where o.tenant_key = $1 and o.id = $2
      returning ]] .. ORDER, tenant, id, fields.tracking_number or null, fields.internal_notes or null, fields.workflow_state or null, now }
end

--- Locks one order.
---@return table|nil order
function M.lock_order(tx, tenant, id)
    return tx:query("select " .. ORDER .. " from orders o where o.tenant_key = $1 and o.id = $2 for update", tenant, id)[1]
end

function M.move_tenders(tenant, checkout_id, from, to, now)
    return { [[update order_payments set state = $4, updated_at = $5 where tenant_key = $1 and checkout_id = $2 and state = $3
      and kind = 'external']], tenant, checkout_id, from, to, now }
end

--- The single way out of cancelled: its payment came late, and all it needs is there again.
function M.revive(tenant, id, workflow_state, now)
    return { [[update orders set status = 'processing', payment_status = 'paid', paid_total_minor = amount_due_minor, paid_at = $3,
        cancelled_at = null, cancel_reason = null, expires_at = null, workflow_state = coalesce($4, workflow_state),
        version = version + 1, updated_at = $3
      where tenant_key = $1 and id = $2]], tenant, id, now, workflow_state or null }
end

--- Locks the uses of promotions that a checkout gave back.
---@return table[] promotion_id, customer_key, amount_minor, units
function M.lock_released_promotions(tx, tenant, checkout_id)
    return tx:query([[select u.promotion_id, u.customer_key, u.amount_minor, u.units from promotion_usages u
      where u.tenant_key = $1 and u.checkout_id = $2 and u.state = 'released' order by u.promotion_id for update]], tenant, checkout_id)
end

function M.reserve_promotions(tenant, checkout_id, now)
    return { [[update promotion_usages set state = 'reserved', updated_at = $3
      where tenant_key = $1 and checkout_id = $2 and state = 'released']], tenant, checkout_id, now }
end

--- The uses of promotions by a checkout go back, once.
function M.release_promotions(tenant, checkout_id, now)
    return { [[with gone as (update promotion_usages u set state = 'released', updated_at = $3
        where u.tenant_key = $1 and u.checkout_id = $2 and u.state in ('reserved', 'used') returning u.promotion_id, u.amount_minor,
        u.units)
      update promotions p set used_count = p.used_count - 1, budget_used_minor = p.budget_used_minor - g.amount_minor,
        units_used = p.units_used - g.units, version = p.version + 1, updated_at = $3
      from gone g where p.tenant_key = $1 and p.id = g.promotion_id]], tenant, checkout_id, now }
end

--- Whether a buyer has an order that is still to be paid or sent.
---@param tenant string
---@param user_id string
---@return boolean
function M.has_open(tenant, user_id)
    return db.one(tenant, [[select exists (select from orders where tenant_key = $1 and user_id = $2
      and status in ('pending', 'processing', 'shipped')) as yes]], tenant, user_id).yes
end

--- Leaves of a buyer's addresses country, region and postal code: no name, phone, street or note.
---@param tenant string
---@param user_id string
---@param now string
---@return table statement
function M.erase_addresses(tenant, user_id, now)
    return { [[update orders set notes = null, version = version + 1, updated_at = $3::timestamptz,
        shipping_address = (select jsonb_object_agg(key, value) from jsonb_each(shipping_address)
          where key in ('country', 'region', 'state', 'zip', 'zipCode', 'postalCode') and jsonb_typeof(value) = 'string'),
        billing_address = (select jsonb_object_agg(key, value) from jsonb_each(billing_address)
          where key in ('country', 'region', 'state', 'zip', 'zipCode', 'postalCode') and jsonb_typeof(value) = 'string')
      where tenant_key = $1 and user_id = $2]], tenant, user_id, now }
end

--- What a buyer may have of their own orders; the notes of staff are not among it.
---@param tenant string
---@param user_id string
---@param after string|nil id of the last one
---@param limit integer
---@return table[]
function M.personal(tenant, user_id, after, limit)
    return db.read(tenant, [[select o.id, o.order_number, o.status, o.payment_status, o.payment_method, o.currency, o.total_amount_minor,
        o.shipping_address, o.billing_address, o.tracking_number, o.notes, o.coupon_codes, o.placed_at, o.paid_at, o.cancelled_at,
        (select jsonb_agg(jsonb_build_object('product_id', i.product_id, 'name', i.name_snapshot, 'quantity', i.quantity,
          'line_total_minor', i.line_total_minor) order by i.id) from order_items i where i.tenant_key = $1 and i.order_id = o.id) as items
      from orders o where o.tenant_key = $1 and o.user_id = $2 and o.id > $3 order by o.id limit $4]], tenant, user_id,
        after or "00000000-0000-0000-0000-000000000000", limit)
end

return M
