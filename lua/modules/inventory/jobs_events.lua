-- What stock tells the world.
local schema = require("kasma.schema")
local events = require("kasma.events")

local uuid, count = schema.uuid(), schema.integer()

events.declare("stock.changed", { of = "stock row", when = "a movement commits", data = { productId = uuid, variantId = uuid:nullable(),
    warehouseId = uuid, onHand = count, reserved = count, available = count, delta = count, kind = schema.string() } })
