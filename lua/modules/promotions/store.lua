-- Promotions' SQL. `value` is basis points for a percentage and minor units otherwise (value_type tells).
local json = require("core.json")
local pg = require("core.pg")
local db = require("kasma.db")

local M = {}

local null = json.null

local PROMOTION = [[p.id, p.tenant_key, p.app_key, p.created_at, p.updated_at, p.name, p.description, p.slug, p.type, p.value, p.value_type,
  p.currency, p.applicable_to, p.target_ids, p.level, p.min_order_value_minor, p.min_quantity, p.max_discount_minor, p.buy_qty, p.get_qty,
  p.get_discount_bps, p.scope, p.priority, p.stackable, p.exclusive, p.stop_after, p.include_bundled, p.exclusion_group, p.customer_groups,
  p.tier_ids, p.first_order_only, p.weekdays, p.hours_from, p.hours_to, p.usage_limit, p.per_customer_limit, p.used_count, p.budget_minor,
  p.budget_used_minor, p.max_units, p.units_used, p.max_units_per_customer, p.start_date, p.end_date, p.is_active, p.is_public, p.script_id,
  p.version]]

function M.insert(p)
    return { [[insert into promotions as p (tenant_key, app_key, id, name, description, slug, type, value, value_type, currency,
      applicable_to, target_ids, level, min_order_value_minor, min_quantity, max_discount_minor, buy_qty, get_qty, get_discount_bps, scope,
      priority, stackable, exclusive, stop_after, include_bundled, exclusion_group, customer_groups, tier_ids, first_order_only, weekdays,
      hours_from, hours_to, usage_limit, per_customer_limit, budget_minor, max_units, max_units_per_customer, start_date, end_date,
      is_active, is_public, created_at, updated_at, told_at)
      values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25, $26, $27,
        $28, $29, $30, $31, $32, $33, $34, $35, $36, $37, $38, $39, $40, $41, $42, $42, $42) returning ]] .. PROMOTION,
        p.tenant_key, p.app_key, p.id, p.name, p.description or null, p.slug or null, p.type, p.value, p.value_type, p.currency,
        p.applicable_to, pg.array(p.target_ids), p.level, p.min_order_value_minor, p.min_quantity, p.max_discount_minor, p.buy_qty,
        p.get_qty,
        p.get_discount_bps, p.scope, p.priority, p.stackable, p.exclusive, p.stop_after, p.include_bundled, p.exclusion_group or null,
        pg.array(p.customer_groups), pg.array(p.tier_ids), p.first_order_only, pg.array(p.weekdays), p.hours_from or null,
            p.hours_to or null,
        p.usage_limit, p.per_customer_limit, p.budget_minor, p.max_units, p.max_units_per_customer, p.start_date or null,
        p.end_date or null, p.is_active, p.is_public, p.now }
end

--- Those that a quote has to look at: switched on and inside their window, and the rows of rules, whose conditions hold whatever the day.
--- What else they ask for is decided in C.
---@param tenant string
---@param now string ISO
---@return table[] promotions, those of rules first, by id, at most 500
function M.running(tenant, now)
    return db.read(tenant, "select p.* from (select " .. PROMOTION .. [[ from promotions p where p.tenant_key = $1 and p.is_active
        and p.type <> 'script' and (p.start_date is null or p.start_date <= $2) and (p.end_date is null or p.end_date > $2)
      union all select ]] .. PROMOTION .. [[ from promotions p where p.tenant_key = $1 and p.type = 'script') p
      order by p.type <> 'script', p.id limit 500]], tenant, now)
end

--- What a customer has had of promotions, counting what is only reserved.
---@param tenant string
---@param ids string[]
---@param customer_key string user id, or hash of a guest
---@return table[] rows of promotion_id, uses, units
function M.used_by(tenant, ids, customer_key)
    return db.read(tenant, [[select u.promotion_id, count(*)::int as uses, sum(u.units)::int as units from promotion_usages u
      where u.tenant_key = $1 and u.promotion_id = any($2::uuid[]) and u.customer_key = $3 and u.state in ('reserved', 'used')
      group by u.promotion_id]], tenant, pg.array(ids), customer_key)
end

---@param tenant string
---@param filter { public_at: string|nil, type: string|nil, limit: integer, offset: integer } public_at: only public ones running then
---@return table[] promotions, newest first
function M.list(tenant, filter)
    return db.read(tenant, "select " .. PROMOTION .. [[ from promotions p where p.tenant_key = $1
      and ($2::timestamptz is null or (p.is_active and p.is_public and (p.start_date is null or p.start_date <= $2::timestamptz)
        and (p.end_date is null or p.end_date > $2::timestamptz)))
      and ($3::text is null or p.type = $3::text) order by p.created_at desc, p.id desc limit $4 offset $5]],
        tenant, filter.public_at or null, filter.type or null, filter.limit, filter.offset)
end

---@param tenant string
---@param id string
---@return table|nil promotion
function M.promotion(tenant, id)
    return db.read(tenant, "select " .. PROMOTION .. " from promotions p where p.tenant_key = $1 and p.id = $2", tenant, id)[1]
end

--- The row of a rule, in step with what is published; its limits and conditions stay.
function M.put_script(r)
    return { [[insert into promotions as p (tenant_key, app_key, id, name, type, value, currency, level, priority, stackable, is_public,
        script_id, created_at, updated_at)
      values ($1, $2, $3, left($4::text, 255), 'script', 0, $5, 'line', $6, true, false, $3, $7, $7)
      on conflict (tenant_key, id) do update set name = excluded.name, priority = excluded.priority, is_active = true,
        version = p.version + 1, updated_at = excluded.updated_at where p.type = 'script']],
        r.tenant_key, r.app_key, r.id, r.name, r.currency, r.priority, r.now }
end

--- The rule of a row is live, or is not.
function M.set_script_state(tenant, rule_id, active, now)
    return { [[update promotions set is_active = $3, version = version + 1, updated_at = $4
      where tenant_key = $1 and id = $2 and type = 'script' and is_active <> $3]], tenant, rule_id, active, now }
end

---@param tx table
---@return table|nil promotion with told_at, locked
function M.lock(tx, tenant, id)
    return tx:query("select " .. PROMOTION .. ", p.told_at from promotions p where p.tenant_key = $1 and p.id = $2 for update",
        tenant, id)[1]
end

--- Writes what may be changed of a row that was locked.
function M.update(p, now)
    return { [[update promotions p set name = $3, description = $4, value = $5, min_order_value_minor = $6, min_quantity = $7,
        max_discount_minor = $8, priority = $9, stackable = $10, exclusive = $11, stop_after = $12, include_bundled = $13,
        exclusion_group = $14, customer_groups = $15, first_order_only = $16, weekdays = $17, hours_from = $18, hours_to = $19,
        usage_limit = $20, per_customer_limit = $21, budget_minor = $22, max_units = $23, max_units_per_customer = $24, start_date = $25,
        end_date = $26, is_active = $27, is_public = $28, version = version + 1, updated_at = $29, told_at = $29
      where p.tenant_key = $1 and p.id = $2 returning ]] .. PROMOTION,
        p.tenant_key, p.id, p.name, p.description or null, p.value, p.min_order_value_minor, p.min_quantity, p.max_discount_minor,
        p.priority, p.stackable, p.exclusive, p.stop_after, p.include_bundled, p.exclusion_group or null, pg.array(p.customer_groups),
        p.first_order_only, pg.array(p.weekdays), p.hours_from or null, p.hours_to or null, p.usage_limit, p.per_customer_limit,
        p.budget_minor, p.max_units, p.max_units_per_customer, p.start_date or null, p.end_date or null, p.is_active, p.is_public, now }
end

--- What a promotion gave since a moment, on checkouts that stand.
---@return { orders: integer, amount: integer }
function M.given(tenant, id, since)
    return db.read(tenant, [[select count(*)::int as orders, coalesce(sum(u.amount_minor), 0)::bigint as amount from promotion_usages u
      where u.tenant_key = $1 and u.promotion_id = $2 and u.created_at >= $3::timestamptz and u.state in ('reserved', 'used')]],
        tenant, id, since)[1]
end

--- Switches off a row that was locked.
function M.switch_off(tenant, id, now)
    return { [[update promotions set is_active = false, version = version + 1, updated_at = $3, told_at = $3
      where tenant_key = $1 and id = $2]], tenant, id, now }
end

--- Its beginning and end are told up to this moment.
function M.put_told(tenant, id, now)
    return { "update promotions set told_at = $3 where tenant_key = $1 and id = $2", tenant, id, now }
end

return M
