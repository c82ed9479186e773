-- Customers' rows.
local json = require("core.json")
local pg = require("core.pg")
local db = require("kasma.db")

local M = {}

---@param tenant string
---@param user_id string|nil
---@param guest_hash string|nil
---@return table|nil customer
function M.find(tenant, user_id, guest_hash)
    return db.read(tenant, [[select c.id, c.user_id, c.groups, c.tags, c.orders_count, c.first_order_at, c.lifetime_spent_minor
      from customers c where c.tenant_key = $1 and (c.user_id = $2::uuid or c.guest_hash = $3::text) limit 1]],
        tenant, user_id or json.null, guest_hash or json.null)[1]
end

--- The hash under which a guest is known, the oldest if several are.
---@param tenant string
---@param hashes string[]
---@return string|nil
function M.known_guest(tenant, hashes)
    local row = db.one(tenant, [[select guest_hash from customers where tenant_key = $1 and guest_hash = any($2::text[])
      order by guest_key_version, created_at limit 1]], tenant, pg.array(hashes))
    return row and row.guest_hash
end

---@param tenant string
---@return table[] {version, n}
function M.guests_by_version(tenant)
    return db.query(tenant, [[select guest_key_version as version, count(*)::int as n from customers where tenant_key = $1
      and guest_hash is not null group by 1]], tenant)
end

---@param tenant string
---@param user_id string
---@return boolean whether they agreed to be written to
function M.consents(tenant, user_id)
    return db.one(tenant, "select 1 as one from customers where tenant_key = $1 and user_id = $2 and marketing_consent_at is not null",
        tenant, user_id) ~= nil
end

---@param tenant string
---@param id string of the customer, or of its user
---@return table|nil
function M.by_id(tenant, id)
    return db.read(tenant, [[select c.id, c.user_id, c.groups, c.tags, c.orders_count, c.first_order_at, c.lifetime_spent_minor
      from customers c where c.tenant_key = $1 and (c.id = $2::uuid or c.user_id = $2::uuid) limit 1]], tenant, id)[1]
end

--- The same with what its own page shows.
---@param tenant string
---@param id string of the customer, or of its user
---@return table|nil
function M.details(tenant, id)
    return db.one(tenant, [[select c.id, c.user_id, c.groups, c.tags, c.orders_count, c.first_order_at, c.lifetime_spent_minor,
        c.marketing_consent_at
      from customers c where c.tenant_key = $1 and (c.id = $2::uuid or c.user_id = $2::uuid) limit 1]], tenant, id)
end

--- A user's row, unless it is there.
function M.ensure(row)
    return { [[insert into customers (tenant_key, app_key, id, user_id, created_at, updated_at)
      values ($1, $2, $3, $4, $5::timestamptz, $5::timestamptz)
      on conflict (tenant_key, user_id) where user_id is not null do nothing]], row.tenant_key, row.app_key, row.id, row.user_id, row.now }
end

--- Changes what is given; a consent that stands keeps its time.
function M.change(tenant, id, change, now)
    return { [[update customers set groups = coalesce($3::text[], groups), tags = coalesce($4::text[], tags),
        marketing_consent_at = case when $5::boolean is null then marketing_consent_at
          when $5::boolean then coalesce(marketing_consent_at, $6::timestamptz) end,
        version = version + 1, updated_at = $6::timestamptz
      where tenant_key = $1 and (id = $2::uuid or user_id = $2::uuid) returning id]], tenant, id,
        change.groups and pg.array(change.groups) or json.null, change.tags and pg.array(change.tags) or json.null,
        change.consent == nil and json.null or change.consent, now }
end

--- A statement that gives a customer a tag. No row: it has the tag already, or 50 others.
---@param tenant string
---@param id string
---@param tag string
---@param now string
---@return table statement
function M.add_tag(tenant, id, tag, now)
    return { [[update customers set tags = array_append(tags, $3::text), version = version + 1, updated_at = $4::timestamptz
      where tenant_key = $1 and id = $2 and not ($3::text = any(tags)) and cardinality(tags) < 50 returning id]], tenant, id, tag, now }
end

---@param tenant string
---@param user_id string
---@return table[]
function M.personal(tenant, user_id)
    return db.read(tenant, [[select id, groups, tags, orders_count, first_order_at, lifetime_spent_minor, marketing_consent_at, created_at
      from customers where tenant_key = $1 and user_id = $2 limit 10]], tenant, user_id)
end

--- What staff finds a person by; the counts stay, under an id that names nobody.
---@param tenant string
---@param user_id string
---@param now string
---@return table[] statements
function M.erase(tenant, user_id, now)
    return {
        { [[delete from customer_search where tenant_key = $1 and customer_id in (select id from customers where tenant_key = $1
          and user_id = $2)]], tenant, user_id },
        { [[update customers set tags = '{}', marketing_consent_at = null, version = version + 1, updated_at = $3::timestamptz
          where tenant_key = $1 and user_id = $2]], tenant, user_id, now },
    }
end

return M
