-- What the rule platform does in the background: publications that fall due, previews over many orders, and writing down runs.
local due = require("kasma.due")
local jobs = require("kasma.jobs")
local outbox = require("kasma.outbox")
local schedules = require("kasma.schedules")
local settings = require("kasma.settings")
local start = require("kasma.start")
local live = require("modules.rules.live")
local preview = require("modules.rules.preview")
local retention = require("modules.rules.retention")
local runs = require("modules.rules.runs")
local rules = require("modules.rules.service")
local stream = require("modules.rules.stream")
local window = require("modules.rules.window")
local workflow_lanes = require("modules.rules.workflow_lanes")
local workflow_start = require("modules.rules.workflow_start")
local workflows = require("modules.rules.workflows")

due.handler("rules.schedule", rules.on_due)
due.handler(window.KIND, rules.on_window)

jobs.handler("rules-queue", "preview", function(job) preview.work(job.data.tenant_key, job.data.app_key, job.data.previewId) end)

outbox.on_events(workflow_start.hear)
due.handler(workflow_start.KIND, workflows.on_due, nil, true)
jobs.handler(workflow_start.QUEUE, workflow_start.JOB, function(job)
    workflow_lanes.take(job.data.tenant_key, job.data.run_id, workflows.work)
end)

schedules.declare{ name = "workflow-cleanup", pattern = "40 3 * * *", run = function() return { removed = workflows.prune() } end }

schedules.declare{ name = "rules-retention", pattern = "20 3 * * *", run = retention.run }

settings.declare("rules", {
    { key = "rules.approval", type = "enum", values = { "none", "hooks", "all" }, default = "none",
        help = "Whether a second person approves what is published" },
    { key = "rules.approvalHooks", type = "list", item = "text", default = {}, help = "Hooks whose rules a second person approves" },
    { key = "rules.http_hosts", type = "list", item = "text", default = {}, help = "Host names that rules may call" },
})

start.add("rules", function(role)
    runs.start()
    live.start()
    stream.start(role)
    if role == "serve" then return end
    -- No other run is begun meanwhile.
    start.drain(workflow_lanes.count, 5000)
end)
