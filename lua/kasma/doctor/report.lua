-- What a doctor's visit found: one finding a check, in the order of the checks.
local json = require("core.json")

local M = {}

---@class doctor.Finding
---@field group string
---@field id string `redis.eviction`
---@field state "ok"|"warn"|"fail"
---@field text string what, with the measured value
---@field effect string|nil what comes of it
---@field hint string|nil what to type or to change

---@class doctor.Report
---@field findings doctor.Finding[]
local Report = {}
Report.__index = Report

---@return doctor.Report
function M.new() return setmetatable({ findings = json.array({}), group = "" }, Report) end

---@param state "ok"|"warn"|"fail"
---@param id string
---@param text string
---@param more {effect: string|nil, hint: string|nil}|nil
function Report:add(state, id, text, more)
    more = more or {}
    self.findings[#self.findings + 1] = { group = self.group, id = self.group .. "." .. id, state = state, text = text,
        effect = more.effect, hint = more.hint }
end

function Report:ok(id, text) self:add("ok", id, text) end
function Report:warn(id, text, more) self:add("warn", id, text, more) end
function Report:fail(id, text, more) self:add("fail", id, text, more) end

--- Fails when `wrong` holds anything, with the first few names; else ok.
---@param id string
---@param wrong string[]
---@param good string
---@param bad string what the names are
---@param more table|nil
function Report:none(id, wrong, good, bad, more)
    if #wrong == 0 then return self:ok(id, good) end
    local names = table.concat(wrong, ", ", 1, math.min(5, #wrong))
    self:fail(id, ("%s: %s%s"):format(bad, names, #wrong > 5 and (" and %d more"):format(#wrong - 5) or ""), more)
end

---@return integer ok, integer warnings, integer failed
function Report:counts()
    local n = { ok = 0, warn = 0, fail = 0 }
    for _, finding in ipairs(self.findings) do n[finding.state] = n[finding.state] + 1 end
    return n.ok, n.warn, n.fail
end

--- What went wrong, in words for a person.
---@param err any what a call raised or answered
---@return string
function M.why(err)
    if type(err) ~= "table" then return (tostring(err):match("^[^\n]*")) end
    local cause = type(err.cause) == "table" and err.cause or err
    local message = cause.message or err.message or cause.kind or "failed"
    local text = tostring(type(message) == "table" and table.concat(message, "; ") or message):gsub("%s+", " ")
    return (text:gsub(" Is the server running.*$", ""))
end

--- Host and port of a URL, without what is secret in it.
---@param url string|nil
---@return string
function M.place(url)
    local rest = tostring(url or ""):match("^%w[%w+]*://(.*)$") or ""
    return rest:match("^[^/?]*@([^/?]+)") or rest:match("^([^/?]+)") or "unset"
end

return M
