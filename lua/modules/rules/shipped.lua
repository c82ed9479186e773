-- The rules that come with the product: files below rules/, each with its tests beside it.
local core = require("core.rules")
local json = require("core.json")

local M = {}

local function folder()
    return core.folder()
end

local function read(path)
    local file = io.open(path, "r")
    if not file then return nil end
    local text = file:read("*a")
    file:close()
    return text
end

local list, by_key

local function load()
    if list then return end
    list, by_key = {}, {}
    local root = folder()
    local found = assert(io.popen("cd '" .. root:gsub("'", "'\\''") .. "' && ls -1 */*.lua 2>/dev/null | sort"))
    for file in found:lines() do
        local key = file:match("^(.+)%.lua$")
        if key and not key:find("_test$") and not key:find("^active/") then
            local source = read(root .. "/" .. file)
            local entry = { key = key, file = file, source = source, tests = read(root .. "/" .. key .. "_test.lua") or "",
                hook = source:match("hook%s*=%s*\"([%w_.]+)\"") or "promotion", title = source:match("name%s*=%s*\"([^\"]+)\"") or key,
                about = source:match("^%-%- ([^\n]*)") or "" }
            list[#list + 1] = entry
            by_key[key] = entry
        end
    end
    found:close()
end

---@return table[] {key, file, hook, title, about, source, tests}
function M.list()
    load()
    return json.array(list)
end

---@param key string path without ".lua", or its last part
---@return table|nil
function M.find(key)
    load()
    if by_key[key] then return by_key[key] end
    for _, entry in ipairs(list) do
        if entry.key:match("[^/]+$") == key then return entry end
    end
    return nil
end

--- The source of a rule of this hook, to begin from.
---@param hook string
---@return string|nil
function M.example(hook)
    load()
    for _, entry in ipairs(list) do
        if entry.hook == hook then return entry.source end
    end
    return nil
end

return M
