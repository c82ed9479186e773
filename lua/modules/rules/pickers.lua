-- What a rule's config points at. A picker of the manifest (category, product, ...) holds the id of a row of the tenant; that it is there
-- is checked when the rule is checked and published, and looked at again for lists and the doctor, since a row can be removed later.
local schema = require("kasma.schema")
local catalog = require("modules.catalog.service")
local inventory = require("modules.inventory.service")
local shipping = require("modules.shipping.service")

local M = {}

local IDS_MAX = 500 -- of one config

-- Which of the ids there are. Kinds whose rows are kept nowhere yet (courses) or are no rows (groups of customers) are not looked up.
local LOOK = {
    warehouse = function(tenant, ids)
        local found = {}
        for _, id in ipairs(ids) do found[#found + 1] = inventory.warehouse(tenant, id) and id or nil end
        return found
    end,
    shipping_method = function(tenant, ids) return shipping.existing_methods(tenant, ids) end,
}
for _, kind in ipairs{ "product", "variant", "category", "tag", "vendor" } do
    LOOK[kind] = function(tenant, ids) return catalog.existing(tenant, kind, ids) end
end

---@class RulePick
---@field kind string the picker
---@field id string what was filled in
---@field path string where: `config.category`

--- What a config points at.
---@param manifest table|nil as the check answers it
---@param config any
---@return RulePick[]
function M.of(manifest, config)
    local picks = {}
    local function look(form, value, path)
        if type(form) ~= "table" or #picks >= IDS_MAX then return end
        if value == nil then value = form.default end
        if value == nil then return end
        if form.kind == "optional" then return look(form.item, value, path) end
        if form.kind == "list" or form.kind == "map" then
            if type(value) ~= "table" then return end
            for k, member in pairs(value) do
                look(form.item, member, type(k) == "number" and ("%s[%d]"):format(path, k) or path .. "." .. tostring(k))
            end
        elseif form.kind == "object" then
            if type(value) ~= "table" then return end
            for name, of in pairs(form.fields or {}) do look(of, value[name], path .. "." .. name) end
        elseif LOOK[form.kind] and type(value) == "string" then
            picks[#picks + 1] = { kind = form.kind, id = value, path = path }
        end
    end
    look(manifest and manifest.config, config, "config")
    table.sort(picks, function(a, b) return a.path < b.path end)
    return picks
end

--- Those that point at nothing.
---@param tenant string
---@param picks RulePick[]
---@return RulePick[]
function M.lost(tenant, picks)
    local wanted, there, lost = {}, {}, {}
    for _, pick in ipairs(picks) do
        if schema.is_uuid(pick.id) and LOOK[pick.kind] then
            wanted[pick.kind] = wanted[pick.kind] or {}
            table.insert(wanted[pick.kind], pick.id:lower())
        end
    end
    for kind, ids in pairs(wanted) do
        for _, id in ipairs(LOOK[kind](tenant, ids)) do there[kind .. ":" .. id] = true end
    end
    for _, pick in ipairs(picks) do
        if LOOK[pick.kind] and not there[pick.kind .. ":" .. pick.id:lower()] then lost[#lost + 1] = pick end
    end
    return lost
end

--- A lost pick in words.
---@param pick RulePick
---@return string
function M.told(pick) return ("%s: %s %s does not exist in this tenant"):format(pick.path, (pick.kind:gsub("_", " ")), pick.id) end

return M
