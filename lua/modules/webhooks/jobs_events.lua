local schema = require("kasma.schema")
local events = require("kasma.events")

events.declare("webhook.disabled", { of = "endpoint", when = "the receiver answered 410, or five days passed without success",
    data = { reason = schema.string(), failingSince = schema.date():nullable() } })
events.declare("webhook.test", { of = "endpoint", when = "somebody asked for a test; sent to that endpoint alone, once",
    data = { message = schema.string() } })
