-- How a database row looks on the wire, in one place: columns are snake_case and JSON members camelCase, but for the base columns, which
-- clients know as they are stored. A money column `x_minor` becomes two members: `x` in major units (decimal text when an entity is read,
-- a number when a create or update echoes it) and the exact integer `xMinor`. What is NULL is null, never absent.
local json = require("core.json")
local money = require("core.money")
local new_table = require("table.new")

local M = {}

local BASE = { "id", "tenant_key", "app_key", "created_at", "updated_at" }

---@param column string snake_case
---@return string camelCase
function M.camel(column)
    return (column:gsub("_(%w)", string.upper))
end

---@class WireEntity
---@field read fun(row: table): table an entity read from the database
---@field echo fun(row: table): table an entity just created or updated

---@param spec { columns: string[], money: string[]|nil, hidden_id: string|nil } columns beyond the base; money columns without `_minor`;
---hidden_id: the column shown as `id` in place of the key (`wire_id`)
---@return WireEntity
function M.entity(spec)
    local names, amounts = {}, {}
    for i, column in ipairs(spec.columns) do names[i] = { column, M.camel(column) } end
    for i, column in ipairs(spec.money or {}) do amounts[i] = { column .. "_minor", M.camel(column), M.camel(column) .. "Minor" } end

    local members = #BASE + #names + 2 * #amounts

    local function shape(row, amount_of)
        -- With some room for what its caller adds: a table that grows member by member is hashed anew at each doubling.
        local out = new_table(0, members + 4)
        for _, column in ipairs(BASE) do out[column] = row[column] end
        if spec.hidden_id then out.id = row[spec.hidden_id] end
        for _, name in ipairs(names) do
            local value = row[name[1]]
            if value == nil then value = json.null end
            out[name[2]] = value
        end
        for _, amount in ipairs(amounts) do
            local minor = row[amount[1]]
            out[amount[2]] = minor and amount_of(minor, row.currency or row.currency_code) or json.null
            out[amount[3]] = minor or json.null
        end
        return out
    end

    return {
        read = function(row) return shape(row, money.format) end,
        echo = function(row) return shape(row, money.major) end,
    }
end

--- Adds the two members of a computed amount to a body.
---@param body table
---@param member string camelCase name of the amount in major units
---@param minor integer|nil nil = null
---@param currency string
function M.amount(body, member, minor, currency)
    body[member] = minor and money.major(minor, currency) or json.null
    body[member .. "Minor"] = minor or json.null
end

return M
