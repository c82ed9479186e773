-- The roles that every tenant gets, and what a user_type may hold. A grant is `*`, `<resource>.*` or a permission key.
local access = require("kasma.access")

local M = {}

--- Seeded into each tenant. `staff = false`: the role may be held by anybody.
M.templates = {
    { role_key = "tenant_owner", code = "OWNER", display_name = "Owner", grants = { "*" } },
    { role_key = "tenant_admin", code = "ADMIN", display_name = "Administrator", grants = {
        "tenants.read", "tenants.write", "tenants.members", "apps.*", "keys.*", "roles.*", "users.*", "registry.read", "audit.*",
        "products.*", "categories.*", "tags.*", "bundles.*", "promotions.*", "coupons.*", "orders.*", "carts.read", "inventory.*",
        "warehouses.*", "shipping.*", "fulfillments.*", "procurement.*", "taxes.*", "currencies.*", "payments.*", "wallets.read",
            "gift_cards.*",
        "reviews.*", "returns.*", "tickets.*", "vendors.*", "analytics.read", "subscriptions.*", "preorders.*", "loyalty.*", "affiliates.*",
        "blog.*", "articles.*", "menus.*", "media.*", "seo.*", "learning.*", "social.*", "rules.*", "webhooks.*", "customers.*",
            "settings.*", "exports.*",
    } },
    { role_key = "catalog_manager", code = "CATALOG_MANAGER", display_name = "Catalogue manager", grants = {
        "products.*", "categories.*", "tags.*", "bundles.*", "media.*", "reviews.*", "inventory.read", "warehouses.read", "vendors.read",
    } },
    { role_key = "order_manager", code = "ORDER_MANAGER", display_name = "Order manager", grants = {
        "orders.*", "carts.read", "customers.read", "users.read", "products.read", "inventory.read", "fulfillments.*", "shipping.read",
            "returns.*",
        "payments.read", "subscriptions.*", "preorders.*", "tickets.*",
    } },
    { role_key = "warehouse", code = "WAREHOUSE", display_name = "Warehouse", grants = {
        "inventory.*", "warehouses.*", "fulfillments.*", "procurement.*", "orders.read", "products.read", "returns.read", "shipping.read",
    } },
    { role_key = "finance", code = "FINANCE", display_name = "Finance", grants = {
        "taxes.*", "currencies.*", "payments.*", "wallets.*", "gift_cards.*", "ledgers.*", "orders.read", "orders.refund", "refunds.*",
            "payouts.*",
        "vendors.read", "analytics.read", "fraud.*", "exports.*",
    } },
    { role_key = "marketer", code = "MARKETER", display_name = "Marketer", grants = {
        "promotions.*", "coupons.*", "bundles.*", "loyalty.*", "affiliates.*", "carts.read", "analytics.read", "products.read",
            "rules.read",
        "seo.*", "media.read", "customers.read",
    } },
    { role_key = "editor", code = "EDITOR", display_name = "Editor", grants = { "articles.*", "blog.*", "media.*", "menus.*", "seo.*",
        "products.read" } },
    { role_key = "instructor", code = "INSTRUCTOR", display_name = "Instructor", grants = { "learning.*", "media.*" } },
    { role_key = "support_agent", code = "SUPPORT_AGENT", display_name = "Support agent", grants = {
        "tickets.*", "orders.read", "customers.read", "users.read", "returns.read", "returns.write", "products.read", "payments.read",
            "social.moderate",
    } },
    { role_key = "auditor", code = "AUDITOR", display_name = "Auditor", grants = {
        "audit.read", "audit.export", "tenants.read", "users.read", "roles.read", "keys.read", "registry.read", "orders.read",
            "payments.read",
        "inventory.read", "products.read", "ledgers.read", "taxes.read", "rules.read", "settings.read", "webhooks.read",
    } },
    { role_key = "customer", code = "CUSTOMER", display_name = "Customer", grants = {} },
}

--- Roles over all tenants.
M.platform = {
    { role_key = "platform_owner", code = "PLATFORM_OWNER", display_name = "Platform owner", grants = { "*" } },
}

--- user_type is a ceiling: GENERAL_* holds roles without permissions, TENANT_* those of tenants, KASMA_* any.
---@param user_type string
---@param role {scope: string, grants: string[]}
---@return boolean
function M.within_ceiling(user_type, role)
    local kind = user_type:match("^(%u+)_")
    if kind == "KASMA" then return true end
    if role.scope == "platform" then return false end
    if kind == "TENANT" then return true end
    return #role.grants == 0
end

--- The first grant that the giver lacks, or nil: nobody hands out what they do not hold.
---@param held table<string, boolean>
---@param grants string[]
---@return string|nil
function M.beyond(held, grants)
    for _, grant in ipairs(grants) do
        if not access.covers(held, grant) then return grant end
    end
    return nil
end

return M
