-- kasma lua tests/faults/events.lua TENANT COUNT: commits so many events of the tenant, order.paid of an order of its own each.
local uuid = require("core.uuid")
require("kasma.boot").load()
local db = require("kasma.db")
local outbox = require("kasma.outbox")

local scope = { tenant = arg[1], app = "MASTER" }
local left = tonumber(arg[2])
while left > 0 do
    local statements = {}
    for i = 1, math.min(left, 200) do statements[i] = outbox.event(scope, "order.paid", uuid.v7(), { checkoutId = uuid.v7() }) end
    db.pipeline(scope.tenant, statements)
    left = left - #statements
end
io.stdout:write("committed\n")
return 0
