-- What a process that serves does for its open connections, and what the relay tells the hub of other areas' events.
local db = require("kasma.db")
local errors = require("kasma.errors")
local hub = require("kasma.hub")
local null = require("kasma.null")
local outbox = require("kasma.outbox")
local start = require("kasma.start")
local orders = require("modules.orders.service")
local realtime = require("modules.realtime.service")

start.add("realtime", function(role)
    if role ~= "work" then realtime.start() end
end)

-- Whatever happens to an order is told to its buyer, on `order:user:<id>`, as one kind of event that names the step.
hub.declare{ "order.changed" }

outbox.on_event(function(row)
    local name = row.payload.name
    if type(name) ~= "string" or name:sub(1, 6) ~= "order." then return end
    local order = orders.for_job(row.tenant_key, row.payload.data and row.payload.data.orderId or row.key)
    if not order or not order.user_id or order.user_id == null then return end
    local channel = "order:user:" .. order.user_id
    local payload = { id = row.id, order_id = order.id, order_number = order.order_number, step = name, status = order.status,
        payment_status = order.payment_status }
    local scope, statements = { tenant = row.tenant_key, app = order.app_key }, {}
    hub.append_forward(statements, scope, channel, "order.changed", payload)
    local ok, why = pcall(hub.publish, row.tenant_key, order.app_key, channel, "order.changed", payload)
    if not ok then
        if not errors.is_unavailable(why) then error(why, 0) end
        -- Redis is away. Other listeners of this row must not wait for it: it waits by itself.
        statements[#statements + 1] = outbox.row(scope, "order.changed", channel, payload)
    end
    if #statements > 0 then db.pipeline(row.tenant_key, statements) end
end)
