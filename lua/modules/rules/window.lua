-- The window of a version: `startsAt` and `endsAt` of its settings. One that is published outside of it is not live. Every worker holds
-- the rule with its window and looks at its own clock whenever rules are asked for (core/script/rules.c), so that a rule starts and stops
-- on the second, whatever else happens. A row of due_work, written by whatever makes the rule active, does what is to be written down: at
-- the start the epoch moves on, so that people see the rule go live, and at the end the rule is disabled.
local json = require("core.json")
local time = require("core.time")
local due = require("kasma.due")

local M = {}

M.KIND = "rules.window"

local function bound(settings, name)
    local text = settings and settings[name]
    return text and text ~= json.null and type(text) == "string" and time.parse(text) or nil
end

---@param settings table|nil
---@return integer|nil starts_ms, integer|nil ends_ms
function M.of(settings) return bound(settings, "startsAt"), bound(settings, "endsAt") end

--- A bound as settings keep it: in UTC, so that the same moment is the same text.
---@param text any
---@return string|nil
function M.text(text)
    local at = bound({ at = text }, "at")
    return at and time.iso(at) or nil
end

--- What is wrong with the window, if anything.
---@param settings table|nil
---@return string|nil why
function M.wrong(settings)
    local starts, ends = M.of(settings)
    for _, name in ipairs{ "startsAt", "endsAt" } do
        local text = settings and settings[name]
        if text ~= nil and text ~= json.null and not bound(settings, name) then return name .. " is no time" end
    end
    return starts and ends and ends <= starts and "endsAt must come after startsAt" or nil
end

---@param settings table|nil
---@param now_ms integer
---@return boolean
function M.is_open(settings, now_ms)
    local starts, ends = M.of(settings)
    return (not starts or starts <= now_ms) and (not ends or ends > now_ms)
end

--- The row of what happens next to a rule that is active with these settings.
---@param scope Scope
---@param rule_id string
---@param settings table|nil
---@param now_ms integer
---@return table statement
function M.wait(scope, rule_id, settings, now_ms)
    local starts, ends = M.of(settings)
    local at = starts and starts > now_ms and starts or ends
    return at and due.put(scope, M.KIND, rule_id, at) or due.drop(scope.tenant, M.KIND, rule_id)
end

return M
