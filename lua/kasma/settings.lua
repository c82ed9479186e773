-- Settings of a tenant. Each module declares its own (key, type, default, help); values that differ from the default lie in
-- tenants.settings and are read with the tenant's row, which every worker holds for at most a second.
--
--     settings.declare("sales", { { key = "orderExpiryMinutes", type = "int", min = 5, max = 120, default = 60, help = "..." } })
--     local minutes = settings.get(tenant, "orderExpiryMinutes")
local json = require("core.json")
local null = require("kasma.null")
local tenants = require("kasma.tenant")

local M = {}

---@class kasma.Setting
---@field key string
---@field type "bool"|"int"|"money"|"text"|"enum"|"uuid"|"url"|"list"|"object"
---@field default any
---@field help string
---@field values string[]|nil of an enum
---@field item string|nil type of a list's items
---@field min number|nil
---@field max number|nil
---@field nullable boolean|nil
---@field pattern string|nil
---@field allows (fun(item: any): boolean)|nil what else an item of a list has to be
---@field prefix boolean|nil the key is the beginning of a family (`blog.`)

local declared, by_key, prefixes = {}, {}, {}

---@param module string
---@param list kasma.Setting[]
function M.declare(module, list)
    for _, setting in ipairs(list) do
        assert(setting.key and setting.type and setting.help, "settings.declare needs key, type and help")
        setting.module = module
        if not by_key[setting.key] then declared[#declared + 1] = setting end
        by_key[setting.key] = setting
        if setting.prefix then prefixes[#prefixes + 1] = setting end
    end
end

local function find(key)
    local setting = by_key[key]
    if setting then return setting end
    for _, candidate in ipairs(prefixes) do
        if key:sub(1, #candidate.key) == candidate.key and #key > #candidate.key then return candidate end
    end
    return nil
end

--- The value in force. An unknown key is a bug and raises.
---@param tenant string
---@param key string
---@return any
function M.get(tenant, key)
    local setting = by_key[key] or find(key)
    if not setting then error("no such setting: " .. tostring(key), 2) end
    local row = tenants.by_key(tenant)
    local value = row and row.settings and row.settings[key]
    if value == nil or value == null then return setting.default end
    return value
end

local UUID = "^%x%x%x%x%x%x%x%x%-%x%x%x%x%-%x%x%x%x%-%x%x%x%x%-%x%x%x%x%x%x%x%x%x%x%x%x$"

local checks = {
    bool = function(value) return type(value) == "boolean" end,
    int = function(value, s)
        return type(value) == "number" and value == math.floor(value) and value >= (s.min or -2 ^ 53) and value <= (s.max or 2 ^ 53)
    end,
    money = function(value) return type(value) == "number" and value == math.floor(value) and value >= 0 and value <= 2 ^ 53 end,
    text = function(value, s) return type(value) == "string" and #value <= (s.max or 1000) and (not s.pattern
        or value:find(s.pattern) ~= nil) end,
    uuid = function(value) return type(value) == "string" and value:find(UUID) ~= nil end,
    url = function(value) return type(value) == "string" and #value <= 2048 and value:find("^https://[%w.-]+[/%w%p]*$") ~= nil end,
    object = function(value) return type(value) == "table" and value[1] == nil end,
}
checks.enum = function(value, s)
    for _, known in ipairs(s.values) do
        if known == value then return true end
    end
    return false
end
checks.list = function(value, s)
    if type(value) ~= "table" or (next(value) ~= nil and value[1] == nil) or #value > (s.max or 200) then return false end
    for _, item in ipairs(value) do
        if not checks[s.item or "text"](item, { min = s.item_min, max = s.item_max }) then return false end
        if s.allows and not s.allows(item) then return false end
    end
    return #value >= (s.min or 0)
end

--- Checks a change. Null means back to the default.
---@param changes table<string, any>
---@return string[]|nil messages nil when all is well
function M.check(changes)
    local messages = {}
    local names = {}
    for key in pairs(changes) do names[#names + 1] = tostring(key) end
    table.sort(names)
    for _, key in ipairs(names) do
        local setting, value = find(key), changes[key]
        if not setting then
            messages[#messages + 1] = ("settings.property %s should not exist"):format(key)
        elseif value ~= null and not checks[setting.type](value, setting) then
            messages[#messages + 1] = setting.type == "enum"
                and ("settings.%s must be one of the following values: %s"):format(key, table.concat(setting.values, ", "))
                or ("settings.%s is no valid %s"):format(key, setting.type)
        end
    end
    return messages[1] and messages or nil
end

--- All declared settings, for the schema route.
---@return kasma.Setting[]
function M.all() return declared end

--- A default as HTTP shows it: an empty list is a list, nothing is null.
---@param setting kasma.Setting
---@return any
function M.default(setting)
    if setting.default == nil then return null end
    if setting.type ~= "list" then return setting.default end
    return json.array({ unpack(setting.default) })
end

--- Values in force.
---@param tenant string
---@return table<string, any>
function M.in_force(tenant)
    local row = tenants.by_key(tenant)
    local values = {}
    for _, setting in ipairs(declared) do
        if not setting.prefix then
            local value = row and row.settings and row.settings[setting.key]
            if value == nil then value = M.default(setting) end
            values[setting.key] = value
        end
    end
    for key, value in pairs(row and row.settings or {}) do
        local setting = find(key)
        values[key] = setting and setting.type == "list" and type(value) == "table" and json.array(value) or value
    end
    return values
end

return M
