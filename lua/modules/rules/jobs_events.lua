-- What rules tell the world.
local schema = require("kasma.schema")
local events = require("kasma.events")

local text, count = schema.string(), schema.integer()
local Act = { key = text, hook = text, version = count:nullable(), actorId = schema.uuid():nullable(), reason = text:nullable() }

events.declare("rule.published", { of = "rule", when = "a version becomes the live one", data = Act })
for state, when in pairs{ disabled = "a person, or the end of its window, switches it off", active = "it is switched on again",
    archived = "it is removed", draft = "it is restored after its removal" } do
    events.declare("rule." .. state, { of = "rule", when = when, data = Act })
end
local Failed = { key = text, hook = text, version = count:optional(), message = text:nullable():optional(),
    line = count:nullable():optional(), opensToday = count:optional(), reason = text:nullable():optional() }
events.declare("rule.off", { of = "rule", when = "its breaker opened for the third time in a day", data = Failed })
events.declare("rule.breaker_opened", { of = "rule", when = "it failed too often and rests for a while", data = Failed })
events.declare("workflow.failed", { of = "workflow run", when = "a step of a workflow used up its retries", data = { rule = text,
    version = count, step = text, entityId = text, message = text } })
