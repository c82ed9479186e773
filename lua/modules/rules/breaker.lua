-- The breaker of rules. core/script/rules.c counts failures in its own worker: five within a minute, and the rule is not run for five
-- minutes, then tried once, which decides. This file writes an opening down, so that every worker holds the rule back, and tells the
-- people who write rules. The third opening in a day switches the rule off until somebody enables it.
--
-- Not so where anybody may call (callers.lua): there the opening holds nobody back and switches nothing off. It is written down, told three
-- times a day at most, and seen in the list while it lasts.
local sched = require("core.sched")
local time = require("core.time")
local audit = require("kasma.audit")
local db = require("kasma.db")
local hooks = require("kasma.hooks")
local log = require("kasma.log")
local outbox = require("kasma.outbox")
local text = require("kasma.text")
local notices = require("modules.notices.service")
local roles = require("modules.iam.roles")
local promotions = require("modules.promotions.service")
local live = require("modules.rules.live")
local store = require("modules.rules.store")
local stream = require("modules.rules.stream")

local M = {}

M.OPEN_MS = 300000

M.TOLD_A_DAY = 3 -- of a rule that its callers cannot switch off

local function notice(row, run)
    local off = row.state == "off"
    local title = off and "Rule %s is switched off" or run.by_callers and "Rule %s fails for some of its callers"
        or "Rule %s rests for five minutes"
    return { notice_type = "SYSTEM", title = title:format(row.key),
        body = ("Version %d failed five times within a minute%s: %s%s"):format(run.number, off and ", the third time today" or "",
            text.plain(tostring(run.message or run.outcome), 300), run.line and (" (line %d)"):format(run.line) or ""),
        metadata = { rule = row.key, version = run.number, outcome = run.outcome, state = row.state, opensToday = row.opens_today } }
end

--- Writes the opening down, in one transaction with the failure that was one too many, the epoch, the event and the notices: who hears
--- that the rule rests or is off finds why in the same moment.
---@param scope Scope in which the rule failed
---@param run RuleRun the failure that was one too many
---@param failure table its row, see store.count_failure
---@return table|nil row {key, state, opens_today}; nil: another worker was faster, or another version is live by now
function M.open(scope, run, failure)
    local now = time.now()
    local iso = time.iso(now)
    local own = { tenant = scope.tenant, app = scope.app, actor_kind = "system" }
    local staff = roles.holders(scope.tenant, "rules.write")
    local row
    db.transaction(scope.tenant, function(tx)
        row = tx:pipeline{ store.open_breaker(scope.tenant, run.rule_id, run.number, time.iso(now + M.OPEN_MS), iso:sub(1, 10), iso,
            run.by_callers) }[1][1]
        if not row then return end
        if run.by_callers and row.opens_today > M.TOLD_A_DAY then return tx:at_commit{ store.count_failure(failure) } end
        local off = row.state == "off"
        local statements = { store.count_failure(failure), store.bump(own, iso),
            outbox.event(own, off and "rule.off" or "rule.breaker_opened", run.rule_id, { key = row.key, hook = run.hook,
                version = run.number, message = run.message, line = run.line, opensToday = row.opens_today }) }
        for _, user_id in ipairs(staff) do
            local told = notice(row, run)
            told.recipient_id = user_id
            notices.append(statements, own, told)
        end
        if off then
            statements[#statements + 1] = promotions.set_script_state(scope.tenant, run.rule_id, false, iso)
            hooks.append_switch(statements, own, run.hook)
            audit.append(statements, own, { action = "rules.off", entity_type = "rule", entity_id = run.rule_id,
                before = { state = "active" }, after = { state = "off", version = run.number, reason = "failed too often" } })
        end
        tx:at_commit(statements)
    end)
    if not row or run.by_callers and row.opens_today > M.TOLD_A_DAY then return row end
    stream.tell(scope.tenant, row.state == "off" and "off" or "breaker", { key = row.key, version = run.number, line = run.line,
        message = run.message, opensToday = row.opens_today })
    log.warn("a rule failed too often", { tenant = scope.tenant, rule = row.key, version = run.number, state = row.state,
        opens_today = row.opens_today })
    live.changed(scope.tenant)
    return row
end

--- The same beside the request: it never waits for it. Without a store the rule is held back in this worker alone.
---@param scope Scope
---@param run RuleRun
---@param failure table
function M.trip(scope, run, failure)
    local place = { tenant = scope.tenant, app = scope.app }
    sched.spawn(function()
        local ok, why = pcall(M.open, place, run, failure)
        if not ok then
            log.warn("the breaker of a rule is open here only", { tenant = place.tenant, rule = run.id,
                error = type(why) == "table" and tostring(why.message) or tostring(why) })
        end
    end)
end

return M
