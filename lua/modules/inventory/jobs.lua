-- Stock that falls free at a time, and the settings of logistics.
local due = require("kasma.due")
local settings = require("kasma.settings")
local reservations = require("modules.inventory.reservations")

settings.declare("logistics", {
    { key = "defaultWarehouseId", type = "uuid", help = "takes initial stock; last choice of allocation; unset: the first by priority" },
})

due.handler("stock.reservation", function(tenant, id) reservations.expire(tenant, id) end)
