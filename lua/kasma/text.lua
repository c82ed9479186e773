-- Text that others made (a client's header, an answer of a mail server, words of a rule), as PostgreSQL takes it: UTF-8, no NUL, and not
-- cut within a character. A row that is refused for such a text takes with it everything that is written in its transaction.
local M = {}

local REPLACED = "\239\191\189" -- U+FFFD, as the JSON encoder writes for the same

-- How many bytes the character at `i` has; nil when there is none of UTF-8.
local function width(s, i)
    local a, b, c, d = s:byte(i, i + 3)
    local function more(x) return x ~= nil and x >= 0x80 and x <= 0xbf end
    if a > 0 and a < 0x80 then return 1 end
    if a >= 0xc2 and a <= 0xdf then return more(b) and 2 or nil end
    if a >= 0xe0 and a <= 0xef then
        local low, high = a == 0xe0 and 0xa0 or 0x80, a == 0xed and 0x9f or 0xbf
        return b and b >= low and b <= high and more(c) and 3 or nil
    end
    if a >= 0xf0 and a <= 0xf4 then
        local low, high = a == 0xf0 and 0x90 or 0x80, a == 0xf4 and 0x8f or 0xbf
        return b and b >= low and b <= high and more(c) and more(d) and 4 or nil
    end
    return nil
end

--- The text with U+FFFD in place of what is no UTF-8 and of NUL, cut to so many bytes between two characters.
---@param s string
---@param max integer|nil bytes
---@return string
function M.plain(s, max)
    max = max or math.huge
    if not s:find("[%z\128-\255]") then return #s <= max and s or s:sub(1, max) end
    local parts, n, size, i = {}, 0, 0, 1
    while i <= #s and size < max do
        local stop = s:find("[%z\128-\255]", i) or #s + 1
        local part
        if stop > i then
            part = s:sub(i, math.min(stop - 1, i + max - size - 1))
            i = stop
        else
            local wide = width(s, i)
            part = wide and s:sub(i, i + wide - 1) or REPLACED
            i = i + (wide or 1)
            if size + #part > max then break end
        end
        n, size = n + 1, size + #part
        parts[n] = part
    end
    return table.concat(parts)
end

--- Whether a text is UTF-8 and holds no NUL.
---@param s string
---@return boolean
function M.is_plain(s)
    local i = s:find("[%z\128-\255]")
    while i do
        local wide = width(s, i)
        if not wide then return false end
        i = s:find("[%z\128-\255]", i + wide)
    end
    return true
end

--- Whether a text within a value holds a NUL.
---@param value any plain data
---@return boolean
function M.holds_nul(value)
    if type(value) == "string" then return value:find("%z") ~= nil end
    if type(value) ~= "table" then return false end
    for name, member in pairs(value) do
        if M.holds_nul(name) or M.holds_nul(member) then return true end
    end
    return false
end

local function without_nul(value)
    if type(value) == "string" then return (value:gsub("%z", REPLACED)) end
    if type(value) ~= "table" then return value end
    local copy = setmetatable({}, getmetatable(value))
    for name, member in pairs(value) do copy[without_nul(name)] = without_nul(member) end
    return copy
end

--- Plain data for a JSON column: the value itself, or a copy with U+FFFD where texts of it hold a NUL. (What else is no UTF-8 the
--- encoder replaces.)
---@param value any
---@return any
function M.plain_data(value) return M.holds_nul(value) and without_nul(value) or value end

return M
