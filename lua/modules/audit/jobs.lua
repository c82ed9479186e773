-- Nightly work of the audit: the proof of every tenant's chain, and retention.
local config = require("core.config")
local metrics = require("core.metrics")
local log = require("kasma.log")
local schedules = require("kasma.schedules")
local all_tenants = require("kasma.tenant")
local audit = require("modules.audit.service")

local function keep_days() return tonumber(config.get("AUDIT_RETENTION_DAYS")) or 400 end

local broken

-- A broken chain is no failure of the job: trying again would find the same. It is told where people look: log and metric.
local function verify_chains()
    broken = broken or metrics.gauge("kasma_audit_chain_findings", "What the last proof of the audit chains found wrong", {})
    local tenants, events, findings = 0, 0, 0
    local whole, why = pcall(all_tenants.sweep, "audit-verify-chain", function(tenant)
        local report = audit.verify(tenant, keep_days())
        tenants, events = tenants + 1, events + report.events
        if not report.ok then
            findings = findings + report.missing + report.altered + report.reordered + report.extra
            log.error("the audit chain is broken", { tenant = tenant, missing = report.missing, altered = report.altered,
                reordered = report.reordered, extra = report.extra, first = report.findings[1] and report.findings[1].what })
        end
    end)
    broken:set(findings)
    if not whole then error(why, 0) end
    return { tenants = tenants, events = events, findings = findings }
end

local function trim()
    local documents, rows = 0, 0
    all_tenants.sweep("audit-retention", function(tenant)
        local d, r = audit.trim(tenant, keep_days())
        documents, rows = documents + d, rows + r
    end)
    return { documents = documents, rows = rows }
end

schedules.declare{ name = "audit-verify-chain", pattern = "30 2 * * *", run = verify_chains }
schedules.declare{ name = "audit-retention", pattern = "45 2 * * *", run = trim }
