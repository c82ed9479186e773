-- What follows an order: its confirmation by mail, the shop window's stock, its expiry; and the settings of selling.
local json = require("core.json")
local money = require("core.money")
local due = require("kasma.due")
local jobs = require("kasma.jobs")
local mail = require("kasma.mail")
local settings = require("kasma.settings")
local tenants = require("kasma.tenant")
local iam = require("modules.iam.service")
local inventory = require("modules.inventory.service")
local orders = require("modules.orders.service")

settings.declare("sales", {
    { key = "promotionMode", type = "enum", values = { "best", "priority" }, default = "best", help = "how promotions compete" },
    { key = "maxCouponsPerOrder", type = "int", min = 1, max = 5, default = 1, help = "coupons an order may carry" },
    { key = "paymentMethods", type = "list", item = "text", default = {}, help = "allowed methods; empty: all" },
    { key = "codAutoConfirm", type = "bool", default = false, help = "cash-on-delivery orders go to processing at once" },
    { key = "orderExpiryMinutes", type = "int", min = 5, max = 120, default = 60, help = "hold of an unpaid order" },
    { key = "codExpiryDays", type = "int", min = 1, max = 60, default = 7, help = "days until an unconfirmed cash-on-delivery order ends" },
})

due.handler("sales.checkout", function(tenant, id) orders.expire(tenant, "sales.checkout", id) end)
due.handler("sales.cod_expiry", function(tenant, id) orders.expire(tenant, "sales.cod_expiry", id) end)

-- The address of who bought.
local function buyer_of(order)
    if order.guest_email then return order.guest_email end
    local user = order.user_id and iam.user(order.user_id)
    return user and user.email
end

local function text_or(...)
    for i = 1, select("#", ...) do
        local value = select(i, ...)
        if type(value) == "string" and value ~= "" then return value end
    end
end

-- A mail that a rule of workflow.order wishes for.
jobs.handler("sales-queue", "order-notice", function(job)
    local data = job.data
    local order = orders.for_job(data.tenant_key, data.orderId)
    local to = order and buyer_of(order)
    if not to then return end
    mail.send({ tenant = order.tenant_key, app = order.app_key }, { key = "order-notice:" .. job.id, template = data.template, to = to,
        user_id = order.user_id, vars = { number = order.order_number, currency = order.currency, status = order.status,
            workflowState = order.workflow_state, reason = data.reason, total = money.format(order.total_amount_minor, order.currency),
            -- What the templates for rules call it.
            shop = (tenants.by_key(order.tenant_key) or {}).name or order.tenant_key, note = data.reason, title = order.order_number,
            body = text_or(data.reason, order.workflow_state, order.status) } })
end)

jobs.handler("sales-queue", "order-confirmation", function(job)
    local data = job.data
    local order = orders.for_job(data.tenant_key, data.orderId)
    if not order then return end
    local to = buyer_of(order)
    if not to then return end
    -- One mail about all that was bought, also where it leaves from several warehouses as several orders.
    local lines, total = {}, 0
    for _, one in ipairs(orders.together(order)) do
        total = total + one.total_amount_minor
        for _, item in ipairs(one.items) do
            lines[#lines + 1] = { name = item.name_snapshot, quantity = item.quantity,
                total = money.format(item.line_total_minor, order.currency) }
        end
    end
    mail.send({ tenant = order.tenant_key, app = order.app_key },
        { key = "order-confirmation:" .. order.id, template = "order-confirmation",
        to = to, user_id = order.user_id, vars = { number = order.order_number, lines = json.array(lines), currency = order.currency,
            total = money.format(total, order.currency) } })
end)

jobs.handler("sales-queue", "stock-sync", function(job)
    local data = job.data
    local order = orders.for_job(data.tenant_key, data.orderId)
    if not order then return end
    local variants, products, seen = {}, {}, {}
    for _, one in ipairs(orders.together(order)) do
        for _, item in ipairs(one.items) do
            variants[#variants + 1] = item.variant_id
            if not seen[item.product_id] then products[#products + 1] = item.product_id end
            seen[item.product_id] = true
        end
    end
    inventory.project(order.tenant_key, variants)
    inventory.sales_changed({ tenant = order.tenant_key, app = order.app_key, actor_kind = "system" }, products)
end)
