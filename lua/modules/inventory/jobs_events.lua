-- What stock tells the world.
local schema = require("kasma.schema")
local events = require("kasma.events")

local uuid, count = schema.uuid(), schema.integer()

events.declare("stock.changed", { of = "stock row", when = "a movement or an order's claim commits", data = { productId = uuid,
    variantId = uuid:nullable():optional(), warehouseId = uuid:nullable():optional(), onHand = count:optional(),
    reserved = count:optional(), available = count:optional(),
    delta = count:optional(), kind = schema.string():optional() } })
