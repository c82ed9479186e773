-- What carts tell the world.
local schema = require("kasma.schema")
local events = require("kasma.events")

local count = schema.integer()

events.declare("cart.changed", { of = "cart", when = "its lines change, also by the checkout that empties it; itemCount is how many it has",
    data = { userId = schema.uuid():nullable(), version = count, series = count, itemCount = count } })
