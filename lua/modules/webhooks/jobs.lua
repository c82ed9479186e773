-- What webhooks do beside requests: they hear events, try what falls due, forget what is old.
local time = require("core.time")
local due = require("kasma.due")
local outbox = require("kasma.outbox")
local schedules = require("kasma.schedules")
local start = require("kasma.start")
local tenants = require("kasma.tenant")
local dispatch = require("modules.webhooks.dispatch")
local webhooks = require("modules.webhooks.service")

outbox.on_events(webhooks.fan_out)
due.handler(webhooks.KIND, dispatch.due, nil, true)

schedules.declare{ name = "webhooks-cleanup", every = 86400000, run = function()
    local removed = 0
    tenants.sweep("webhooks-cleanup", function(tenant) removed = removed + webhooks.prune(tenant, time.now()) end)
    return { removed = removed }
end }

start.add("webhooks", function(role)
    if role == "serve" then return end
    -- What they leave behind falls due again.
    start.drain(dispatch.count, 12000)
end)
