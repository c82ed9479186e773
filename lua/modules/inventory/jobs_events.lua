-- What stock tells the world.
local schema = require("kasma.schema")
local events = require("kasma.events")

local uuid, count = schema.uuid(), schema.integer()

events.declare("stock.changed", { of = "stock row", when = "a movement commits, an order claims units (kind CLAIM; claims in the same "
    .. "moment are told as one) or its claim is given back (kind RELEASE); a mere hold tells nothing", data = { productId = uuid,
        variantId = uuid:nullable(), warehouseId = uuid, onHand = count, reserved = count, available = count, delta = count,
        kind = schema.string() } })
events.declare("stock.back", { of = "stock row", when = "units of it are available again where none were: by a movement, an order that is "
    .. "cancelled, a smaller buffer", data = { productId = uuid, variantId = uuid:nullable(), warehouseId = uuid, available = count,
        lowStockAt = count:nullable() } })
