-- Plain data as Lua text that a person may read and change: the inverse of running it.
local json = require("core.json")

local M = {}

local WORDS = {}
for word in ("and break do else elseif end false for function goto if in local nil not or repeat return then true until while")
    :gmatch("%l+") do
    WORDS[word] = true
end

local function quoted(text)
    return '"' .. text:gsub('[%c"\\\127]', function(c)
        if c == "\n" then return "\\n" end
        if c == '"' or c == "\\" then return "\\" .. c end
        return ("\\%03d"):format(c:byte())
    end) .. '"'
end

local function number(n)
    if n % 1 == 0 and n > -2 ^ 53 and n < 2 ^ 53 then return ("%d"):format(n) end
    return ("%.17g"):format(n)
end

local function sorted_keys(value)
    local names = {}
    for name in pairs(value) do names[#names + 1] = tostring(name) end
    table.sort(names)
    return names
end

--- Lua text of texts, numbers, booleans, lists and records. Null and what it cannot say is nil.
---@param value any
---@param indent integer|nil columns that a value on lines of its own stands in
---@return string
function M.of(value, indent)
    indent = indent or 0
    local kind = type(value)
    if kind == "string" then return quoted(value) end
    if kind == "number" then return number(value) end
    if kind == "boolean" then return tostring(value) end
    if kind ~= "table" or value == json.null then return "nil" end
    local parts, list = {}, #value > 0
    if list then
        for i, member in ipairs(value) do parts[i] = M.of(member, indent + 4) end
    else
        for _, name in ipairs(sorted_keys(value)) do
            local plain = name:find("^[%a_][%w_]*$") and not WORDS[name]
            local text = M.of(value[name], indent + 4)
            if text ~= "nil" then parts[#parts + 1] = (plain and name or "[" .. quoted(name) .. "]") .. " = " .. text end
        end
    end
    if #parts == 0 then return "{}" end
    local line = "{ " .. table.concat(parts, ", ") .. " }"
    if #line + indent <= 120 and not line:find("\n", 1, true) then return line end
    local pad = (" "):rep(indent + 4)
    return "{\n" .. pad .. table.concat(parts, ",\n" .. pad) .. ",\n" .. (" "):rep(indent) .. "}"
end

return M
