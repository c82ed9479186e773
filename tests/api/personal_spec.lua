-- What is held about a person is handed out and erased, table by table: a new table that names a user is in this test by itself, and fails
-- it until it is said here what becomes of its rows.
local config = require("core.config")
local json = require("core.json")
local db = require("kasma.db")
local cleanup = require("modules.iam.cleanup")
local catalogue = require("api.catalogue")
local shop_of = require("api.shop")
local support = require("api.support")

local must = shop_of.must

-- Column of a user -> the kind under which the export shows the rows and whether erasure removes them; or why they are neither.
local TABLES = {
    ["carts.user_id"] = { kind = "cart", gone = true }, ["wishlists.user_id"] = { kind = "wishlist", gone = true },
    ["abandoned_carts.user_id"] = { kind = "abandoned_cart", gone = true },
    ["customers.user_id"] = { kind = "customer" }, ["orders.user_id"] = { kind = "order" },
    ["payment_methods.user_id"] = { kind = "payment_method", gone = true },
    ["user_roles.user_id"] = { kind = "role", gone = true },
    ["user_apps.user_id"] = { why = "names an app", gone = true }, ["user_access_keys.user_id"] = { why = "names a key", gone = true },
    ["mail_messages.user_id"] = { kind = "mail", gone = true },
    ["audit_auth_log.user_id"] = { kind = "sign_in_event" }, ["audit_index.actor_id"] = { kind = "action" },
    ["social_notices.recipient_id"] = { kind = "notice", gone = true },
    ["social_notice_preferences.user_id"] = { kind = "notice_preference", gone = true },
    ["social_push_devices.user_id"] = { kind = "push_device", gone = true },
    ["workflow_runs.user_id"] = { kind = "workflow", gone = true },
    ["checkouts.user_id"] = { why = "an attempt of an order, which is exported" },
    ["payments.user_id"] = { why = "a payment of an order; the id names nobody after erasure" },
    ["promotion_usages.user_id"] = { why = "counts uses; the id names nobody after erasure" },
    ["coupon_redemptions.user_id"] = { why = "counts uses; the id names nobody after erasure" },
}

describe("what is held about a person", function()
    it("is known of every table that names one", function()
        local found = {}
        for _, t in ipairs(catalogue.tenant_tables()) do
            for _, column in ipairs(t.columns) do
                local name = column.name
                if t.bound == "" and (name == "user_id" or name == "recipient_id" or name == "owner_id" or name == "customer_user_id") then
                    local key = t.name .. "." .. name
                    found[key] = true
                    assert.is_truthy(TABLES[key], key .. " is neither exported nor erased: declare it in its module's jobs_personal.lua, "
                        .. "and name it here")
                end
            end
        end
        for key in pairs(TABLES) do
            if key ~= "audit_index.actor_id" then assert.is_true(found[key] == true, key .. " is no table any more") end
        end
    end)

    it("is handed out whole, and erased but for what the books keep", function()
        local shop, product = shop_of.simple(5)
        local platform = support.platform()
        local buyer = shop_of.buyer(shop, product, 1, support.shopper(shop))
        must(shop_of.checkout(buyer))
        must(buyer:post("/sales/cart/add", { productId = product, quantity = 1 }))
        must(buyer:post("/api/social/notices/devices", { platform = "ios", token = "device-token-of-a-phone" }))
        must(support.client(shop.headers):post("/api/notification/create", { title = "Hello", content = "A word for you",
            userId = buyer.user.id }, { ["X-Internal-Api-Key"] = config.get("SOCKET_INTERNAL_API_KEY") }))
        local kinds, text = {}, buyer:get("/users/me/export").body
        for line in text:gmatch("[^\n]+") do kinds[json.decode(line).kind] = true end
        for _, kind in ipairs{ "order", "cart", "notice", "push_device", "role", "sign_in_event", "action", "customer" } do
            assert.is_true(kinds[kind] or false, kind)
        end
        assert.is_nil(text:find("device-token-of-a-phone", 1, true))

        must(buyer:post("/users/me/delete"), 200)
        db.query(shop.key, "update orders set status = 'cancelled' where tenant_key = $1", shop.key)
        support.advance(platform, 30 * 86400 + 60)
        local function purged_at() return db.one(nil, "select purged_at from users where id = $1", buyer.user.id).purged_at end
        -- A store that is busy lets the account wait for the next run.
        pcall(support.eventually, function()
            cleanup.user_purge()
            return type(purged_at()) == "string"
        end)
        support.real_time(platform)
        assert.is_string(purged_at())
        for key, what in pairs(TABLES) do
            local name, column = key:match("^(.-)%.(.+)$")
            if what.gone then
                local n = catalogue.json("owner", ("select json_build_array(count(*)) from %s where tenant_key = %s and %s = %s"):format(
                    name, catalogue.quote(shop.key), column, catalogue.quote(buyer.user.id)))[1]
                assert.equal(0, n, key)
            end
        end
    end)
end)
