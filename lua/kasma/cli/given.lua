-- What commands check of their words, and how they print rows. A wrong word is raised as {usage = why}: wrong use, exit 2.
local json = require("core.json")

local M = {}

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
