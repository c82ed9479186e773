-- Files by which an editor with a Lua language server knows what rules may use: one class for each record of a hook's input.
local capabilities = require("kasma.capabilities")
local catalogue = require("kasma.hooks_catalogue")
local workflow = require("modules.rules.stubs_workflow")

local M = {}

local RECORDS = [[
---@class kasma.Secret a value without content: headers of http.fetch take it
---@class kasma.Variant
---@field id string
---@field sku string
---@field name string|nil
---@field price integer minor units
---@field sale_price integer
---@field stock integer|nil
---@field active boolean
---@field attributes table<string, any>

---@class kasma.Product
---@field id string
---@field code string|nil
---@field slug string
---@field name string
---@field summary string|nil
---@field category_id string|nil
---@field category string|nil
---@field vendor_id string|nil
---@field price integer minor units
---@field sale_price integer
---@field currency string
---@field active boolean
---@field tax_class string|nil
---@field variants kasma.Variant[]

---@class kasma.Customer
---@field id string
---@field user_id string|nil
---@field guest boolean
---@field name string|nil
---@field email string|nil
---@field locale string|nil
---@field groups string[]
---@field tags string[]
---@field orders_count integer
---@field first_order_at string|nil
---@field lifetime_spent integer minor units
---@field address kasma.CustomerAddress|nil of their newest order; only with needs = {"customers.address"}

---@class kasma.CustomerAddress
---@field country string|nil
---@field region string|nil
---@field city string|nil
---@field street string|nil
---@field zip string|nil
---@field phone string|nil
---@field receiver string|nil

---@class kasma.StockLevel
---@field id string warehouse
---@field on_hand integer
---@field reserved integer
---@field available integer

---@class kasma.Stock
---@field sku string
---@field product_id string
---@field variant_id string
---@field on_hand integer
---@field reserved integer
---@field available integer
---@field warehouses kasma.StockLevel[]
]]

-- What rules of routes and workflows may call: a table a group, a function a capability.
local function capability_stubs()
    if #capabilities.names() == 0 then require("kasma.boot").load_for_rules() end
    local lines, groups = { RECORDS }, {}
    for _, name in ipairs(capabilities.names()) do
        local c, group = capabilities.get(name), name:match("^([%w_]+)%.")
        if group and not groups[group] then
            groups[group] = true
            lines[#lines + 1] = ("--- Only for route and workflow rules whose `needs` name it.\n%s = {}"):format(group)
        end
        lines[#lines + 1] = ("--- %s (needs %q, %d calls a run)\n---@type fun%s\n%s = nil"):format(c.summary or name, c.needs, c.limit,
            c.signature or "(...): any", name)
    end
    return table.concat(lines, "\n")
end

local FUNCTIONS = [[
---@meta
--- What rules may call. Made by `kasma rules stubs`; not to be edited.

---@class kasma.money
money = {}
---@param amount integer minor units ---@param bps integer ---@return integer
function money.pct(amount, bps) end
---@param amount integer ---@param ppm integer ---@return integer
function money.ppm(amount, ppm) end
---@param amount integer ---@param weights integer[] ---@return integer[] shares that sum to the amount
function money.alloc(amount, weights) end
---@param total integer ---@param units integer ---@return integer[]
function money.split(total, units) end
---@param list table ---@param field? string ---@return integer
function money.sum(list, field) end
---@param amount integer ---@param currency string ---@return string
function money.format(amount, currency) end

---@class kasma.set
set = {}
---@return boolean
function set.has(list, value) end
---@return boolean
function set.any(list, values) end
---@return boolean
function set.all(list, values) end
---@param list string[] ---@return table<string, boolean>
function set.of(list) end
---@return integer
function set.count(list) end

---@class kasma.text
text = {}
function text.lower(s) end
function text.upper(s) end
function text.fold(s) end
function text.trim(s) end
function text.split(s, separator) end
function text.starts(s, part) end
function text.ends(s, part) end
function text.contains(s, part) end
function text.len(s) end
function text.cut(s, n) end
function text.template(s, values) end

---@class kasma.dt
dt = {}
function dt.between(now, from, to) end
function dt.weekday(now) end
function dt.days_between(a, b) end
function dt.add_days(a, n, tz) end
function dt.parse(s, tz) end
function dt.format(a, tz) end
function dt.local_time(epoch, tz) end
time = dt

---@param ... any
function log(...) end
---@param key string ---@return table
function lib(key) end
schema = {}
]]

local function class_name(hook, path) return "kasma." .. hook:gsub("[.]", "_") .. (path == "" and "" or "." .. path) end

local function type_name(type_, hook, path, out)
    local t = type_.t
    if t == "record" then
        local name = class_name(hook, path)
        local lines, names = { "---@class " .. name }, {}
        for field in pairs(type_.fields) do names[#names + 1] = field end
        table.sort(names)
        for _, field in ipairs(names) do
            lines[#lines + 1] = ("---@field %s %s|nil"):format(field, type_name(type_.fields[field], hook, path == "" and field
                or path .. "."
                .. field, out))
        end
        out[#out + 1] = table.concat(lines, "\n")
        return name
    end
    if t == "list" then return type_name(type_.item, hook, path, out) .. "[]" end
    if t == "map" then return "table<string, any>" end
    if t == "enum" then return "\"" .. table.concat(type_.values, "\"|\"") .. "\"" end
    if t == "any" or t == "either" then return "any" end
    return t
end

--- {path, text} of each file.
---@return table[]
function M.files()
    -- An annotation is the rest of its line: several on one are written for the reader of this file.
    local out = { (FUNCTIONS:gsub(" (%-%-%-@)", "\n%1")), capability_stubs(), workflow.text() }
    for _, name in ipairs(catalogue.names()) do
        local hook = catalogue.get(name)
        type_name(hook.input, name, "", out)
        if hook.output.t == "record" then type_name(hook.output, name, "result", out) end
    end
    return {
        { path = ".kasma/kasma.d.lua", text = table.concat(out, "\n\n") .. "\n" },
        { path = ".luarc.json", text = [[{
  "runtime.version": "LuaJIT",
  "runtime.builtin": { "io": "disable", "os": "disable", "debug": "disable", "package": "disable", "ffi": "disable", "jit": "disable",
    "coroutine": "disable" },
  "workspace.library": [".kasma"]
}
]] },
    }
end

return M
