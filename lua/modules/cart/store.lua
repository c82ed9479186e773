-- Carts: one row an owner, its items in it. Every write compares the version it read, so that two parallel writes both count.
local json = require("core.json")
local pg = require("core.pg")
local db = require("kasma.db")

local M = {}

local null = json.null

local CART = [[c.id, c.tenant_key, c.app_key, c.created_at, c.updated_at, c.wire_id, c.user_id, c.owner_key, c.series, c.expires_at,
  c.items, c.coupon_codes, c.points_to_redeem, c.affiliate_code, c.currency, c.shipping_method_id, c.version, c.metadata]]

---@param tenant string
---@param owner_key string `u:<user id>` or `g:<sha256 of the token>`
---@return table|nil cart
function M.find(tenant, owner_key)
    return db.read(tenant, "select " .. CART .. " from carts c where c.tenant_key = $1 and c.owner_key = $2", tenant, owner_key)[1]
end

--- By its id, or by the one that clients see.
---@param tenant string
---@param ref string a UUID or 24 hexadecimal digits
---@return table|nil cart
function M.by_id(tenant, ref)
    local column = #ref == 24 and "wire_id" or "id"
    return db.read(tenant, ("select %s from carts c where c.tenant_key = $1 and c.%s = $2"):format(CART, column), tenant, ref:lower())[1]
end

--- Makes the owner's cart, or finds the one that another request has just made.
---@param c table id, wire_id, tenant_key, app_key, owner_key, user_id, currency, expires_at, now
---@return table cart
function M.create(c)
    local made = db.query(c.tenant_key, [[insert into carts as c (tenant_key, app_key, id, wire_id, user_id, owner_key, series, expires_at,
        items, currency, version, created_at, updated_at) values ($1, $2, $3, $4, $5, $6, 0, $7, '[]', $8, 1, $9, $9)
      on conflict (tenant_key, owner_key) do nothing returning ]] .. CART,
        c.tenant_key, c.app_key, c.id, c.wire_id, c.user_id or null, c.owner_key, c.expires_at or null, c.currency, c.now)[1]
    return made or M.find(c.tenant_key, c.owner_key)
end

--- Writes the items if the cart still has the version that was read, else raises KS010: what stands behind it is not done either.
---@return table statement that returns the new row
function M.put_items(tenant, id, version, items, expires_at, now)
    return { "with put as (update carts as c set items = $4, version = version + 1, expires_at = $5, updated_at = $6 "
        .. "where c.tenant_key = $1 and c.id = $2 and c.version = $3 returning " .. CART .. ") "
        .. "select p.* from (values (1)) one (n) left join put p on true where kasma_must(p.id is not null, 'KS010')",
        tenant, id, version, pg.json(json.array(items)), expires_at or null, now }
end

--- Removes carts of guests who did not come back.
---@return integer how many
function M.prune(tenant, now, limit)
    return db.query(tenant, [[delete from carts where tenant_key = $1 and id in (select id from carts where tenant_key = $1
      and user_id is null and expires_at < $2::timestamptz limit $3)]], tenant, now, limit).affected
end

--- Documents of carts for their MongoDB copy.
---@param tenant string
---@param ids string[]
---@return table[]
function M.documents(tenant, ids)
    local list = {}
    for i, c in ipairs(db.read(tenant, "select " .. CART .. " from carts c where c.tenant_key = $1 and c.id = any($2::uuid[])", tenant,
        pg.array(ids))) do
        list[i] = { id = c.wire_id, tenant_key = c.tenant_key, app_key = c.app_key, user_id = c.user_id, items = json.array(c.items),
            series = c.series, version = c.version, created_at = c.created_at, updated_at = c.updated_at }
    end
    return list
end

local PERSONAL = {
    cart = "select id, items, coupon_codes, points_to_redeem, affiliate_code, currency, created_at, updated_at from carts "
        .. "where tenant_key = $1 and user_id = $2 order by id limit 100",
    wishlist = "select id, products, created_at, updated_at from wishlists where tenant_key = $1 and user_id = $2 order by id limit 100",
    abandoned_cart = "select id, items, status, last_activity, email_sent_count, created_at from abandoned_carts "
        .. "where tenant_key = $1 and user_id = $2 order by updated_at desc limit 1000",
}
M.personal_kinds = { "cart", "wishlist", "abandoned_cart" }

--- What a user has put aside.
---@param tenant string
---@param user_id string
---@param kind "cart"|"wishlist"|"abandoned_cart"
---@return table[]
function M.personal(tenant, user_id, kind) return db.read(tenant, PERSONAL[kind], tenant, user_id) end

---@param tenant string
---@param user_id string
---@return table[] statements
function M.erase(tenant, user_id)
    return {
        { "delete from carts where tenant_key = $1 and user_id = $2", tenant, user_id },
        { "delete from wishlists where tenant_key = $1 and user_id = $2", tenant, user_id },
        { "delete from abandoned_carts where tenant_key = $1 and user_id = $2", tenant, user_id },
    }
end

return M
