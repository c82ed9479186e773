-- The catalogue of events. An event is a row of the outbox (outbox.event); webhooks, workflow rules and realtime channels hear the
-- same row. A module declares what it tells, in its jobs_events.lua: the name, of what it is, when, and the members of its data
-- beside `id`, which is always the entity's id. Never a name, mail address, phone or street.
--
--     events.declare("order.paid", { of = "order", when = "the payment status becomes paid", data = { checkoutId = schema.uuid() } })
local json = require("core.json")
local null = require("kasma.null")
local schema = require("kasma.schema")

local M = {}

---@class kasma.Event
---@field name string
---@field of string what entity.id names
---@field when string
---@field data table<string, table> members beside id
---@field schema table of the whole data

local events, names = {}, {}

---@param name string `<entity>.<what happened>`
---@param spec {of: string, when: string, data: table|nil}
function M.declare(name, spec)
    assert(name:find("^[a-z][a-z0-9_]*%.[a-z0-9_.]+$") and spec.of and spec.when, "an event needs a name, of what it is and when")
    assert(not events[name], "declared twice: " .. name)
    local members = { id = schema.string{ max = 200 } }
    for member, node in pairs(spec.data or {}) do members[member] = node end
    events[name] = { name = name, of = spec.of, when = spec.when, schema = schema.object(members) }
    names[#names + 1] = name
    table.sort(names)
end

---@param name string
---@return kasma.Event|nil
function M.find(name) return events[name] end

---@return string[] sorted
function M.names() return names end

--- Whether a name is one that rules of a shop may give to events of their own.
---@param name string
---@return boolean
function M.is_custom(name) return #name <= 100 and name:find("^custom%.[a-z0-9_][a-z0-9_.]*$") ~= nil end

--- True for a name of the catalogue, `<entity>.*` that covers some of it, or `*`.
---@param pattern string
---@return boolean
function M.is_pattern(pattern)
    if pattern == "*" or events[pattern] or M.is_custom(pattern) then return true end
    local head = pattern:match("^([a-z0-9_.]+%.)%*$")
    if not head then return false end
    for _, name in ipairs(names) do
        if name:sub(1, #head) == head then return true end
    end
    return head == "custom."
end

---@param pattern string
---@param name string
---@return boolean
function M.matches(pattern, name)
    if pattern == "*" or pattern == name then return true end
    local head = pattern:match("^(.*%.)%*$")
    return head ~= nil and name:sub(1, #head) == head
end

--- The data of an event as it is sent: with the entity's id.
---@param row table of the outbox
---@return table
function M.data_of(row)
    local data = {}
    for key, value in pairs(row.payload.data or {}) do data[key] = value end
    data.id = row.key
    return data
end

local CUSTOM_MAX = 65536 -- bytes of JSON

--- What is wrong with an event of a shop's own, whose data no schema says: nil: nothing.
---@param name any
---@param data any
---@return string|nil
function M.custom_problem(name, data)
    if type(name) ~= "string" or not M.is_custom(name) then
        return ("'%s' is no name for an event: small letters, digits, _ and dots"):format(tostring(name):sub(1, 80))
    end
    if type(data) ~= "table" or data == null then return "a table of data is expected" end
    local ok, text = pcall(json.encode, data)
    if not ok then return "the data is more than JSON can say" end
    if text:find("^%[") and text ~= "[]" then return "the data is a list; a table with names is expected" end
    if #text > CUSTOM_MAX then return ("%d bytes of JSON; %d at most"):format(#text, CUSTOM_MAX) end
    return nil
end

--- What is wrong with a row of the outbox as an event; nil: nothing.
---@param row table
---@return string[]|nil
function M.problems(row)
    local name = row.payload.name
    if type(name) == "string" and name:find("^custom%.") then
        local problem = M.custom_problem(name, row.payload.data)
        if not problem and (type(row.key) ~= "string" or #row.key < 1 or #row.key > 200) then
            problem = "the id of what the event is about has 1 to 200 bytes"
        end
        return problem and { problem } or nil
    end
    local event = events[name]
    if not event then return { tostring(name) .. " is not in the catalogue" } end
    local _, problems = schema.check(event.schema, M.data_of(row))
    return problems
end

return M
