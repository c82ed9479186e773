-- What promotions tell the world. A promotion that follows a rule is told by the events of its rule.
local schema = require("kasma.schema")
local events = require("kasma.events")

local date = schema.date():nullable()
local Window = { type = schema.string(), startDate = date, endDate = date }

events.declare("promotion.started", { of = "promotion", when = "it begins to run: its startDate comes, or it is made or "
    .. "switched on within its window", data = Window })
events.declare("promotion.ended", { of = "promotion", when = "it no longer runs: its endDate comes, or it is switched off", data = Window })
