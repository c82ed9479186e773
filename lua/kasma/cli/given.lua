-- What commands check of their words, how they print rows, and what they say of an error. A wrong word is raised as {usage = why}: wrong
-- use, exit 2.
local json = require("core.json")
local errors = require("kasma.errors")

local M = {}

-- Undefined table, function and column.
local ABSENT = { ["42P01"] = true, ["42883"] = true, ["42703"] = true }

--- What was raised, in words. A client of the API only hears that something failed; who stands at the terminal is told what.
---@param err any
---@return string
function M.why(err)
    if not errors.is(err) then return type(err) == "table" and tostring(err.message or err.kind) or tostring(err) end
    local text = tostring(err):gsub("^%d%d%d ", "")
    local cause = err.status >= 500 and type(err.cause) == "table" and err.cause
    if cause and cause.message then
        text = (errors.is_unavailable(err) and "a store cannot be reached: " or "") .. tostring(cause.message)
    end
    if cause and ABSENT[tostring(cause.code)] then
        text = ("the database is not migrated to this program's schema (%s): run kasma migrate"):format(text)
    end
    return text
end

--- A whole number among the words.
---@param text string|nil
---@param name string of the word
---@param default integer
---@param least integer
---@param most integer
---@return integer
function M.number(text, name, default, least, most)
    if text == nil then return default end
    local n = tonumber(text)
    if not n or n ~= math.floor(n) or n < least or n > most then
        error({ usage = ("--%s is a number from %d to %d, not %s"):format(name, least, most, text) }, 0)
    end
    return n
end

--- One of some words.
---@param text string|nil
---@param name string of the word
---@param list string[]
---@return string|nil
function M.one_of(text, name, list)
    if text == nil then return nil end
    for _, word in ipairs(list) do
        if word == text then return text end
    end
    error({ usage = ("--%s is one of %s, not %s"):format(name, table.concat(list, ", "), text) }, 0)
end

--- Prints rows of a query as one JSON array, without what the driver tells beside them.
---@param rows table[]
function M.print_rows(rows)
    local list = json.array({})
    for i, row in ipairs(rows) do list[i] = row end
    io.stdout:write(json.encode(list), "\n")
end

return M
