-- What payments tell the world. One that waits for its provider tells nothing yet.
local schema = require("kasma.schema")
local events = require("kasma.events")

local text = schema.string()
local Moved = { checkoutId = schema.uuid(), provider = text, transactionId = text:nullable(), currency = text,
    amountMinor = schema.integer(), reason = text:nullable() }

events.declare("payment.captured", { of = "payment", when = "its money is taken, also when that came late (reason: paid_after_expiry)",
    data = Moved })
events.declare("payment.failed", { of = "payment", when = "its provider reports that it failed or was declined", data = Moved })
events.declare("payment.expired", { of = "payment", when = "nobody paid in time, or its provider reports so", data = Moved })
