-- The SQL of the seed: platform rows and what no module's service makes. Each insert leaves a row alone that is there.
local pg = require("core.pg")
local db = require("kasma.db")

local M = {}

---@param now string ISO time
---@return table[] statements: the platform's own role over all tenants
function M.platform_owner_role(ids, now)
    return {
        { [[insert into platform_roles (id, code, role_key, display_name, is_system, created_at, updated_at)
            values ($1, 'OWNER', 'platform_owner', 'Platform owner', true, $2::timestamptz, $2::timestamptz)
            on conflict (role_key) do nothing]], ids[1], now },
        { [[insert into platform_role_permissions (id, role_id, permission_key, created_at, updated_at)
            select $1::uuid, r.id, '*', $2::timestamptz, $2::timestamptz from platform_roles r where r.role_key = 'platform_owner'
            on conflict (role_id, permission_key) do nothing]], ids[2], now },
    }
end

---@return table statement
function M.module(id, key, name, dependencies, now)
    return { [[insert into modules (id, key, name, dependencies, created_at, updated_at) values ($1, $2, $3, $4::text[], $5::timestamptz,
        $5::timestamptz) on conflict (key) do nothing]], id, key, name, pg.array(dependencies), now }
end

---@param tenant string
---@return boolean
function M.has_tenant(tenant)
    return db.read(nil, "select true as there from tenants where tenant_key = $1", tenant)[1] ~= nil
end

---@return table statement
function M.role(r, now)
    return { [[insert into roles (tenant_key, app_key, id, code, role_key, display_name, is_system, created_at, updated_at)
        values ($1, $2, $3, $4, $5, $6, true, $7::timestamptz, $7::timestamptz) on conflict (tenant_key, role_key) do nothing]],
        r.tenant, r.app, r.id, r.code, r.key, r.name, now }
end

---@return table statement grants a permission to the role of that key
function M.grant(g, now)
    return { [[insert into role_permissions (tenant_key, app_key, id, role_id, permission_key, created_at, updated_at)
        select r.tenant_key, $2, $3::uuid, r.id, $5, $6::timestamptz, $6::timestamptz from roles r where r.tenant_key = $1 and
        r.role_key = $4
        on conflict (tenant_key, role_id, permission_key) do nothing]], g.tenant, g.app, g.id, g.role, g.permission, now }
end

---@return table statement the default warehouse of a tenant that has none
function M.first_warehouse(w, now)
    return { [[insert into warehouses (tenant_key, app_key, id, name, code, country, created_at, updated_at)
        select $1, $2, $3::uuid, $4, $5, t.country, $6::timestamptz, $6::timestamptz from tenants t
        where t.tenant_key = $1 and not exists (select from warehouses w where w.tenant_key = $1)]],
        w.tenant, w.app, w.id, w.name, w.code, now }
end

---@return table statement the base currency of a tenant, or another
function M.currency(c, now)
    return { [[insert into currencies (tenant_key, app_key, id, code, symbol, decimal_places, exchange_rate_to_base, is_base, created_at,
        updated_at) values ($1, $2, $3, $4, $5, $6, $7::numeric, $8, $9::timestamptz, $9::timestamptz)
        on conflict (tenant_key, code) do nothing]], c.tenant, c.app, c.id, c.code, c.symbol, c.digits, c.rate, c.base, now }
end

---@return table statement
function M.exchange_rate(r, now)
    return { [[insert into exchange_rates (tenant_key, app_key, id, wire_id, from_currency, to_currency, rate, provider, effective_at,
        created_at,
        updated_at) values ($1, $2, $3, $4, $5, $6, $7::numeric, 'Seed', $8::timestamptz, $8::timestamptz, $8::timestamptz)]],
        r.tenant, r.app, r.id, r.wire_id, r.from, r.to, r.rate, now }
end

---@return table statement
function M.tax_config(c, now)
    return { [[insert into tax_configs (tenant_key, app_key, id, wire_id, created_at, updated_at)
        values ($1, $2, $3, $4, $5::timestamptz, $5::timestamptz) on conflict (tenant_key) do nothing]], c.tenant, c.app, c.id,
        c.wire_id, now }
end

---@return table statement
function M.carrier(c, now)
    return { [[insert into carriers (tenant_key, app_key, id, name, code, adapter, created_at, updated_at)
        values ($1, $2, $3, $4, $5, $6, $7::timestamptz, $7::timestamptz) on conflict (tenant_key, code) do nothing]],
        c.tenant, c.app, c.id, c.name, c.code, c.adapter, now }
end

---@return table statement
function M.coupon(c, now)
    return { [[insert into coupons (tenant_key, app_key, id, code, discount_type, description, discount_value, currency,
        min_order_value_minor,
        per_customer_limit, created_at, updated_at)
        values ($1, $2, $3, $4, $5, $6, $7, 'VND', $8, 1, $9::timestamptz, $9::timestamptz) on conflict (tenant_key, code) do nothing]],
        c.tenant, c.app, c.id, c.code, c.type, c.description, c.value, c.min_order_minor, now }
end

---@return table statement
function M.registry(r, now)
    return { [[insert into registries (tenant_key, app_key, id, app_family_key, module_key, created_at, updated_at)
        values ($1, $2, $3, $2, $4, $5::timestamptz, $5::timestamptz) on conflict (tenant_key, app_family_key, module_key) do nothing]],
        r.tenant, r.app, r.id, r.module, now }
end

-- Names that are there already, so that a second run makes only what is missing.

local KEYS = {
    product_categories = "select slug as key, id from product_categories where tenant_key = $1 limit 10000",
    product_tags = "select slug as key, id from product_tags where tenant_key = $1 limit 10000",
    products = "select slug as key, id from products where tenant_key = $1 and deleted_at is null limit 10000",
    warehouses = "select code as key, id from warehouses where tenant_key = $1 and code is not null limit 1000",
    tax_rules = "select name as key, id from tax_rules where tenant_key = $1 limit 1000",
    shipping_zones = "select name as key, id from shipping_zones where tenant_key = $1 limit 1000",
    shipping_methods = "select name as key, id from shipping_methods where tenant_key = $1 limit 1000",
    promotions = "select name as key, id from promotions where tenant_key = $1 limit 1000",
    product_bundles = "select name as key, id from product_bundles where tenant_key = $1 limit 1000",
    carriers = "select code as key, id from carriers where tenant_key = $1 limit 100",
    exchange_rates = "select from_currency || to_currency as key, id from exchange_rates where tenant_key = $1 limit 1000",
}

---@param tenant string
---@param name string table
---@return table<string, string> ids by slug, code or name
function M.known(tenant, name)
    local found = {}
    for _, row in ipairs(db.read(tenant, KEYS[name], tenant)) do found[row.key] = row.id end
    return found
end

---@param tenant string
---@return table[] stock rows: product_id, variant_id of a warehouse
function M.stocked(tenant, warehouse_id)
    return db.read(tenant, [[select product_id, variant_id from warehouse_inventory where tenant_key = $1 and warehouse_id = $2::uuid
        limit 100000]],
        tenant, warehouse_id)
end

---@param tenant string
---@return table[] product_id, variant_id (nil: the product has none) of what is sold, in the order of slugs and positions
function M.sellable(tenant)
    return db.read(tenant, [[select p.id as product_id, v.id as variant_id from products p
        left join product_variants v on v.tenant_key = p.tenant_key and v.product_id = p.id and v.deleted_at is null
        where p.tenant_key = $1 and p.deleted_at is null order by p.slug, v.position limit 100000]], tenant)
end

---@return table statement names the default warehouse of the demo shop
function M.name_warehouse(w, now)
    return { [[update warehouses set name = $3, code = $4, city = $5, region = $6, updated_at = $7::timestamptz
        where tenant_key = $1 and id = $2::uuid]], w.tenant, w.id, w.name, w.code, w.city, w.region, now }
end

-- People ----------------------------------------------------------------------------------------------------------------

---@param email string
---@return string|nil user_id
function M.user(email)
    local row = db.read(nil, "select id from users where lower(email) = $1 and deleted_at is null", email)[1]
    return row and row.id
end

---@param u table id, email, name, type
---@return table[] statements
function M.new_user(u, now)
    return {
        { [[insert into users (id, email, display_name, user_type, status, email_verified_at, created_at, updated_at)
            values ($1, $2, $3, $4, 'active', $5::timestamptz, $5::timestamptz, $5::timestamptz)]], u.id, u.email, u.name, u.type, now },
    }
end

---@return table statement sets the password of a user, the first or another
function M.password(id, user_id, hash, now)
    return { [[insert into user_credentials (id, user_id, password, provider, password_changed_at, created_at, updated_at)
        values ($1, $2, $3, 'local', $4::timestamptz, $4::timestamptz, $4::timestamptz)
        on conflict (user_id, provider) do update set password = excluded.password, is_active = true,
          password_changed_at = excluded.password_changed_at, updated_at = excluded.updated_at]], id, user_id, hash, now }
end

---@return table statement
function M.member(id, user_id, tenant, now)
    return { [[insert into user_tenants (id, user_id, tenant_key, status, joined_at, created_at, updated_at)
        values ($1, $2, $3, 'active', $4::timestamptz, $4::timestamptz, $4::timestamptz) on conflict (user_id, tenant_key) do nothing]],
        id, user_id, tenant, now }
end

---@return table statement
function M.user_role(r, now)
    return { [[insert into user_roles (tenant_key, app_key, id, user_id, role_id, created_at, updated_at)
        select r.tenant_key, $2, $3::uuid, $4::uuid, r.id, $6::timestamptz, $6::timestamptz from roles r
        where r.tenant_key = $1 and r.role_key = $5 on conflict (tenant_key, user_id, role_id) do nothing]],
        r.tenant, r.app, r.id, r.user_id, r.role, now }
end

---@return table statement
function M.platform_holder(id, user_id, now)
    return { [[insert into platform_role_holders (id, user_id, role_id, created_at, updated_at)
        select $1::uuid, $2::uuid, r.id, $3::timestamptz, $3::timestamptz from platform_roles r where r.role_key = 'platform_owner'
        on conflict (user_id, role_id) do nothing]], id, user_id, now }
end

return M
