-- What an editor knows of a workflow rule: its manifest, its steps, and the events of the catalogue.
--
--     ---@type kasma.WorkflowRule
--     return { hook = "workflow", on = { "order.placed" }, steps = { ... } }
local events = require("kasma.events")

local M = {}

local CLASSES = [[
--- An event that starts a workflow or ends a wait; those of your own are "custom." and a name.
---@alias kasma.EventName %s|string

---@class kasma.WorkflowWait
---@field event kasma.EventName of the same entity
---@field timeout string "48h": a number and s, m, h, d or w

---@class kasma.WorkflowStep
---@field name string once in a rule
---@field wait string|kasma.WorkflowWait|nil before the step: "24h", or an event
---@field run (fun(input: kasma.workflow, config: table): table|nil, string|nil)|nil answers the new state, or nil and why nothing was done
---@field undo (fun(input: kasma.workflow, config: table): table|nil)|nil
---@field retries integer|nil 0 to 10

---@class kasma.WorkflowRule
---@field hook "workflow"
---@field name string
---@field on kasma.EventName[]|nil none: only jobs.enqueue of another rule starts it
---@field needs table|nil capabilities
---@field config table|nil schema.object{...}
---@field steps kasma.WorkflowStep[]
]]

---@return string
function M.text()
    if #events.names() == 0 then require("kasma.boot").load_for_rules() end
    local names = {}
    for i, name in ipairs(events.names()) do names[i] = ("%q"):format(name) end
    return CLASSES:format(table.concat(names, "|"))
end

return M
