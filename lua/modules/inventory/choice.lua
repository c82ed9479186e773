-- Which warehouse each line of a cart comes from: as a rule of the shop (stock.allocate) says, else as the house does it
-- (allocation.plan). A rule's answer covers every line exactly, from one warehouse or from several, and from stock that is there; anything
-- else counts as failed. That the stock is still there when it is held, the hold itself sees to.
local hooks = require("kasma.hooks")
local tenants = require("kasma.tenant")
local allocation = require("modules.inventory.allocation")

local M = {}

local function item_key(warehouse_id, product_id, variant_id) return warehouse_id .. "/" .. product_id .. ":" .. (variant_id or "-") end

--- Stock rows by warehouse and item.
local function index(rows)
    local by = {}
    for _, row in ipairs(rows) do by[item_key(row.warehouse_id, row.product_id, row.variant_id)] = row end
    return by
end

--- 0: in the address's region, 1: in its country, 2: elsewhere. An address without a country is the tenant's.
local function distance_class(row, address, home)
    local country = address.country or home
    if address.region and row.region == address.region then return 0 end
    return country and row.country == country and 1 or 2
end

--- What the rule is told: of each warehouse how many units of each line it could ship, were it alone.
local function subject_of(tenant_key, lines, rows, stock, address)
    local tenant = tenants.by_key(tenant_key)
    local told, warehouses, seen = {}, {}, {}
    for i, line in ipairs(lines) do
        told[i] = { id = line.key, product_id = line.product_id, variant_id = line.variant_id, qty = line.quantity,
            warehouse_id = line.warehouse_id }
    end
    for _, row in ipairs(rows) do
        if not seen[row.warehouse_id] then
            seen[row.warehouse_id] = true
            local available = {}
            for _, line in ipairs(lines) do
                local here = stock[item_key(row.warehouse_id, line.product_id, line.variant_id)]
                available[line.key] = here and math.max(here.available_quantity, 0) or 0
            end
            warehouses[#warehouses + 1] = { id = row.warehouse_id, priority = row.priority, available = available,
                distance_class = distance_class(row, address, tenant and tenant.country) }
        end
    end
    return { lines = told, warehouses = warehouses, address = { country = address.country, region = address.region or address.city,
        city = address.city, zip = address.zipCode } }
end

--- Adds units of a line to its parts, those of one warehouse together; nil and why when there are too many.
local function add_part(parts, row, quantity)
    for _, part in ipairs(parts) do
        if part.inventory_id == row.id then
            part.quantity = part.quantity + quantity
            return true
        end
    end
    if #parts == allocation.PARTS_MAX then return nil end
    parts[#parts + 1] = { warehouse_id = row.warehouse_id, inventory_id = row.id, quantity = quantity }
    return true
end

--- The answer as allocation.plan would give it; nil and why when it does not cover the lines from what is there.
local function placed(answer, lines, stock)
    local by_key, chosen, left, units = {}, {}, {}, {}
    for _, line in ipairs(lines) do by_key[line.key], chosen[line.key], units[line.key] = line, {}, 0 end
    for i, entry in ipairs(answer) do
        local line = by_key[entry.line]
        if not line then return nil, ("result[%d].line: is not among the lines"):format(i) end
        local row = stock[item_key(entry.warehouse, line.product_id, line.variant_id)]
        if not row then return nil, ("result[%d].warehouse: is not offered for the line"):format(i) end
        left[row.id] = (left[row.id] or row.available_quantity) - entry.qty
        if left[row.id] < 0 then return nil, ("result[%d].warehouse: does not hold as many units"):format(i) end
        if not add_part(chosen[line.key], row, entry.qty) then
            return nil, ("result[%d].line: leaves from more than %d warehouses"):format(i, allocation.PARTS_MAX)
        end
        units[line.key] = units[line.key] + entry.qty
    end
    for _, line in ipairs(lines) do
        if units[line.key] ~= line.quantity then
            return nil, ("result: %d of the %d units of line %s are placed"):format(units[line.key], line.quantity, line.key)
        end
    end
    return chosen
end

---@param scope Scope
---@param lines AllocationLine[] tracked lines only
---@param rows AllocationRow[] of reservations.stock_rows
---@param address { country: string|nil, region: string|nil, city: string|nil, zipCode: string|nil }
---@param default_id string|nil the tenant's default warehouse
---@return table<string, AllocationPart[]>|nil by line key; nil when something is short
---@return AllocationLine[] short
---@return string|nil blocked_by a rule that failed, and without which nothing is sold
function M.plan(scope, lines, rows, address, default_id)
    local blocked_by
    if #lines > 0 and hooks.any(scope, "stock.allocate") then
        local stock, chosen = index(rows), nil
        local _, info = hooks.call(scope, "stock.allocate", subject_of(scope.tenant, lines, rows, stock, address), function(answer)
            local why
            chosen, why = placed(answer, lines, stock)
            return chosen ~= nil, why
        end)
        if chosen then return chosen, {} end
        blocked_by = info and info.blocked and info.rule or nil
    end
    local chosen, short = allocation.plan(lines, rows, address, default_id)
    return chosen, short, blocked_by
end

return M
