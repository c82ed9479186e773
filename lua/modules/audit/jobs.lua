-- Nightly work of the audit: the proof of every tenant's chain, and retention.
local config = require("core.config")
local metrics = require("core.metrics")
local sched = require("core.sched")
local time = require("core.time")
local jobs = require("kasma.jobs")
local log = require("kasma.log")
local start = require("kasma.start")
local audit = require("modules.audit.service")

local QUEUE = "system-queue"
local HOUR_MS = 3600000

local function keep_days() return tonumber(config.get("AUDIT_RETENTION_DAYS")) or 400 end

local broken

-- A broken chain is no failure of the job: trying again would find the same. It is told where people look: log and metric.
jobs.handler(QUEUE, "audit-verify-chain", function()
    broken = broken or metrics.gauge("kasma_audit_chain_findings", "What the last proof of the audit chains found wrong", {})
    local tenants, events, findings = 0, 0, 0
    audit.each_tenant(function(tenant)
        local report = audit.verify(tenant, keep_days())
        tenants, events = tenants + 1, events + report.events
        if not report.ok then
            findings = findings + report.missing + report.altered + report.reordered + report.extra
            log.error("the audit chain is broken", { tenant = tenant, missing = report.missing, altered = report.altered,
                reordered = report.reordered, extra = report.extra, first = report.findings[1] and report.findings[1].what })
        end
    end)
    broken:set(findings)
    return { tenants = tenants, events = events, findings = findings }
end)

jobs.handler(QUEUE, "audit-retention", function()
    local documents, rows = 0, 0
    audit.each_tenant(function(tenant)
        local d, r = audit.trim(tenant, keep_days())
        documents, rows = documents + d, rows + r
    end)
    return { documents = documents, rows = rows }
end)

-- Once a day, whichever process asks first: the job's id holds the day.
start.add("audit jobs", function(role)
    if role == "serve" then return end
    local function ask()
        local day = time.iso(time.now()):sub(1, 10)
        jobs.add(QUEUE, "audit-verify-chain", {}, { jobId = "audit-verify-chain-" .. day, attempts = 3, backoff = 3000,
            removeOnComplete = { age = 2 * 86400 } })
        jobs.add(QUEUE, "audit-retention", {}, { jobId = "audit-retention-" .. day, attempts = 3, backoff = 3000,
            removeOnComplete = { age = 2 * 86400 } })
    end
    ask()
    sched.every(HOUR_MS, function() pcall(ask) end)
end)
