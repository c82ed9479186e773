-- What differs between two texts, line by line.
local json = require("core.json")
local audit = require("kasma.audit")

local M = {}

local LINES_MAX = 3000

local function lines_of(text)
    local list = {}
    if text == "" then return list end
    for line in ((text:gsub("\n$", "")) .. "\n"):gmatch("(.-)\r?\n") do list[#list + 1] = line end
    return list
end

--- Settings as lines that can be compared: one for each value, by its path.
---@param settings table
---@return string
function M.settings(settings)
    local out = {}
    local function walk(value, path)
        if type(value) == "table" and value[1] == nil and next(value) ~= nil then
            local names = {}
            for name in pairs(value) do names[#names + 1] = name end
            table.sort(names)
            for _, name in ipairs(names) do walk(value[name], path == "" and name or path .. "." .. name) end
        elseif path ~= "" then
            out[#out + 1] = path .. " = " .. audit.canonical(value)
        end
    end
    walk(settings, "")
    return table.concat(out, "\n")
end

--- {op = "same" | "del" | "add", line, a, b}: the changes in their order, with a and b the line numbers. Same lines are left out.
---@param a string
---@param b string
---@return table[]
function M.lines(a, b)
    local x, y, out = lines_of(a), lines_of(b), json.array{}
    local first = 1
    while first <= #x and first <= #y and x[first] == y[first] do first = first + 1 end
    local last_x, last_y = #x, #y
    while last_x >= first and last_y >= first and x[last_x] == y[last_y] do last_x, last_y = last_x - 1, last_y - 1 end
    local n, m = last_x - first + 1, last_y - first + 1
    if n * m > LINES_MAX * LINES_MAX / 9 then n, m = -1, -1 end
    if n < 0 then -- too much to compare: all of it differs
        for i = first, last_x do out[#out + 1] = { op = "del", a = i, line = x[i] } end
        for i = first, last_y do out[#out + 1] = { op = "add", b = i, line = y[i] } end
        return out
    end
    local common = {}
    for i = n + 1, 1, -1 do
        common[i] = {}
        for k = m + 1, 1, -1 do
            if i > n or k > m then
                common[i][k] = 0
            elseif x[first + i - 1] == y[first + k - 1] then
                common[i][k] = common[i + 1][k + 1] + 1
            else
                common[i][k] = math.max(common[i + 1][k], common[i][k + 1])
            end
        end
    end
    local i, k = 1, 1
    while i <= n or k <= m do
        if i <= n and k <= m and x[first + i - 1] == y[first + k - 1] then
            i, k = i + 1, k + 1
        elseif i <= n and (k > m or common[i + 1][k] >= common[i][k + 1]) then
            out[#out + 1] = { op = "del", a = first + i - 1, line = x[first + i - 1] }
            i = i + 1
        else
            out[#out + 1] = { op = "add", b = first + k - 1, line = y[first + k - 1] }
            k = k + 1
        end
    end
    return out
end

--- The changes as text.
---@param changes table[]
---@param name string
---@return string
function M.unified(changes, name)
    if #changes == 0 then return "" end
    local out = { "--- " .. name, "+++ " .. name }
    for _, c in ipairs(changes) do
        out[#out + 1] = c.op == "del" and ("@@ -%d @@"):format(c.a) or ("@@ +%d @@"):format(c.b)
        out[#out + 1] = (c.op == "del" and "-" or "+") .. c.line
    end
    return table.concat(out, "\n") .. "\n"
end

return M
