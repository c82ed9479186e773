-- Stock that falls free at a time, and the settings of logistics.
local due = require("kasma.due")
local jobs = require("kasma.jobs")
local outbox = require("kasma.outbox")
local settings = require("kasma.settings")
local buffers = require("modules.inventory.buffers")
local events = require("modules.inventory.events")
local inventory = require("modules.inventory.service")
local reservations = require("modules.inventory.reservations")

settings.declare("logistics", {
    { key = "defaultWarehouseId", type = "uuid", help = "takes initial stock; last choice of allocation; unset: the first by priority" },
})

due.handler(buffers.KIND, buffers.on_due)
jobs.handler(buffers.QUEUE, buffers.JOB, function(job)
    buffers.refresh({ tenant = job.data.tenant_key, app = job.data.app_key, actor_kind = "system" }, job.data.products)
end)

outbox.consumer(events.CLAIMED, inventory.tell_claims)
due.handler("stock.reservation", function(tenant, id) reservations.expire(tenant, id) end)
