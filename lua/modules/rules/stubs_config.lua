-- What a merchant may fill in for a rule, as a class for editors: kasma.config.<key>, out of the config of the rule's manifest.
local M = {}

local WHOLE = { integer = true, money = true, bps = true, ppm = true }
local WORDS = { string = true, boolean = true }

local function one_line(text) return (tostring(text):gsub("%c+", " "):sub(1, 200)) end

local function type_of(node, name, out)
    local kind = type(node) == "table" and node.kind
    if WHOLE[kind] then return "integer" end
    if WORDS[kind] then return kind end
    if kind == "weekdays" then return "integer[]" end
    if kind == "optional" then return type_of(node.item, name, out) .. "|nil" end
    if kind == "list" then return "(" .. type_of(node.item, name, out) .. ")[]" end
    if kind == "map" then return "table<string, " .. type_of(node.item, name, out) .. ">" end
    if kind == "enum" then
        local words = {}
        for i, value in ipairs(node) do words[i] = ("%q"):format(one_line(value)) end
        return table.concat(words, "|")
    end
    if kind == "object" then
        local fields, lines = {}, { "---@class " .. name }
        for field in pairs(node.fields or {}) do fields[#fields + 1] = field end
        table.sort(fields)
        for _, field in ipairs(fields) do
            if field:find("^[%a_][%w_]*$") then
                local member = node.fields[field]
                lines[#lines + 1] = ("---@field %s %s %s"):format(field, type_of(member, name .. "." .. field, out),
                    one_line(member.title or member.help or ""))
            end
        end
        out[#out + 1] = table.concat(lines, "\n")
        return name
    end
    if kind == "hours" or kind == "secret" or not kind then return "any" end
    return "string" -- an id that a picker chose, or a date
end

--- The text of a file of such classes.
---@param rules {key: string, config: table|nil}[]
---@return string
function M.text(rules)
    local out = { "---@meta\n--- What merchants fill in for rules: `---@param config kasma.config.<key>`. Made by `kasma rules stubs`." }
    for _, rule in ipairs(rules) do
        if rule.config then type_of(rule.config, "kasma.config." .. rule.key:gsub("-", "_"), out) end
    end
    return table.concat(out, "\n\n") .. "\n"
end

return M
