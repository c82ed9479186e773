-- What accounts tell the world: never a name, an address or a phone.
local schema = require("kasma.schema")
local events = require("kasma.events")

local text = schema.string()

events.declare("user.created", { of = "user", when = "a verified registration, by staff, by an import", data = { userType = text,
    status = text } })
events.declare("user.status_changed", { of = "user", when = "its status changes", data = { from = text, to = text,
    reason = text:nullable():optional() } })
events.declare("session.revoked", { of = "session", when = "logout, token reuse, lock, deactivation or deletion",
    data = { userId = schema.uuid(), reason = text } })
events.declare("key.expiring", { of = "access key", when = "it ends within a week; once for each end", data = { keyPrefix = text,
    expiresAt = schema.date() } })
