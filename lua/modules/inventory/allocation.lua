-- Which warehouse ships what: one that can fill the whole order if there is one, else as few as possible. A line that no warehouse
-- holds alone leaves from several, those that send a parcel anyway first, then those that hold most. Pure: no I/O.
local M = {}

M.PARTS_MAX = 50 -- warehouses that one line may leave from; the pricing of it takes no more

---@class AllocationLine
---@field key string the line
---@field product_id string
---@field variant_id string|nil
---@field quantity integer
---@field warehouse_id string|nil where the merchant wants it from

---@class AllocationRow a row of reservations.stock_rows

--- Units of a line that leave one warehouse. A line has one, or one a warehouse.
---@class AllocationPart
---@field warehouse_id string
---@field inventory_id string the stock row
---@field quantity integer units > 0

local function stock_key(product_id, variant_id)
    return product_id .. ":" .. (variant_id or "-")
end

--- Warehouses in the order of preference: priority number, the address's region, its country, the default one, id.
local function ranked(rows, address, default_id)
    local seen, list = {}, {}
    for _, row in ipairs(rows) do
        if not seen[row.warehouse_id] then
            seen[row.warehouse_id] = true
            list[#list + 1] = { id = row.warehouse_id, priority = row.priority,
                region = address.region and row.region == address.region and 0 or 1,
                country = address.country and row.country == address.country and 0 or 1,
                default = row.warehouse_id == default_id and 0 or 1 }
        end
    end
    table.sort(list, function(a, b)
        for _, field in ipairs{ "priority", "region", "country", "default" } do
            if a[field] ~= b[field] then return a[field] < b[field] end
        end
        return a.id < b.id
    end)
    return list
end

--- What of the lines a warehouse can ship with what is left of its stock.
local function fillable(warehouse_id, lines, left)
    local taken, filled = {}, {}
    for _, line in ipairs(lines) do
        if not line.warehouse_id or line.warehouse_id == warehouse_id then
            local key = warehouse_id .. "/" .. stock_key(line.product_id, line.variant_id)
            local row = left[key]
            if row and row.quantity - (taken[key] or 0) >= line.quantity then
                taken[key] = (taken[key] or 0) + line.quantity
                filled[#filled + 1] = line
            end
        end
    end
    return filled
end

--- A line over several warehouses, and its units taken from what is left there; nil when they have too few together.
local function spread(line, warehouses, left, used)
    if line.warehouse_id then return nil end -- the merchant wants it from there
    local there = {}
    for rank, warehouse in ipairs(warehouses) do
        local row = left[warehouse.id .. "/" .. stock_key(line.product_id, line.variant_id)]
        if row and row.quantity > 0 then there[#there + 1] = { id = warehouse.id, row = row, rank = rank } end
    end
    table.sort(there, function(a, b)
        if (used[a.id] or false) ~= (used[b.id] or false) then return used[a.id] ~= nil end
        if a.row.quantity ~= b.row.quantity then return a.row.quantity > b.row.quantity end
        return a.rank < b.rank
    end)
    local parts, open = {}, line.quantity
    for i = 1, math.min(#there, M.PARTS_MAX) do
        local units = math.min(open, there[i].row.quantity)
        if units > 0 then parts[i] = { warehouse_id = there[i].id, inventory_id = there[i].row.id, quantity = units } end
        open = open - units
    end
    if open > 0 then return nil end
    for i, part in ipairs(parts) do
        there[i].row.quantity = there[i].row.quantity - part.quantity
        used[part.warehouse_id] = true
    end
    return parts
end

--- Spreads the lines that no warehouse fills alone. Answers those that all of them together do not fill.
local function spread_all(lines, warehouses, left, chosen)
    local used, short = {}, {}
    for _, parts in pairs(chosen) do used[parts[1].warehouse_id] = true end
    for _, line in ipairs(lines) do
        chosen[line.key] = spread(line, warehouses, left, used)
        if not chosen[line.key] then short[#short + 1] = line end
    end
    return short
end

---@param lines AllocationLine[] tracked lines only
---@param rows AllocationRow[]
---@param address { country: string|nil, region: string|nil }
---@param default_id string|nil the tenant's default warehouse
---@return table<string, AllocationPart[]>|nil by line key; nil when something is short
---@return AllocationLine[] short the lines that cannot be filled
function M.plan(lines, rows, address, default_id)
    local left = {}
    for _, row in ipairs(rows) do
        left[row.warehouse_id .. "/" .. stock_key(row.product_id, row.variant_id)] = { id = row.id, quantity = row.available_quantity }
    end
    local warehouses = ranked(rows, address, default_id)
    local chosen, open = {}, lines
    while #open > 0 do
        local best, best_filled
        for _, warehouse in ipairs(warehouses) do
            local filled = fillable(warehouse.id, open, left)
            if #filled > 0 and (not best or #filled > #best_filled) then best, best_filled = warehouse, filled end
            if best_filled and #best_filled == #open then break end
        end
        if not best then
            local short = spread_all(open, warehouses, left, chosen)
            return #short == 0 and chosen or nil, short
        end
        for _, line in ipairs(best_filled) do
            local row = left[best.id .. "/" .. stock_key(line.product_id, line.variant_id)]
            row.quantity = row.quantity - line.quantity
            chosen[line.key] = { { warehouse_id = best.id, inventory_id = row.id, quantity = line.quantity } }
        end
        local rest = {}
        for _, line in ipairs(open) do
            if not chosen[line.key] then rest[#rest + 1] = line end
        end
        open = rest
    end
    return chosen, {}
end

--- Tells every line where it leaves from. What needs no stock goes with the dearest parcel of what does: were it priced as a parcel of its
--- own, its shipping would belong to no order.
---@param lines table[] of pricing.cart_lines; get their warehouse_id, and portions when they leave from several
---@param chosen table<string, AllocationPart[]> answer of plan
function M.place(lines, chosen)
    local worth, home = {}, nil
    for _, line in ipairs(lines) do
        local price = line.sale_price > 0 and line.sale_price or line.price
        for _, part in ipairs(chosen[line.id] or {}) do
            worth[part.warehouse_id] = (worth[part.warehouse_id] or 0) + part.quantity * price
        end
    end
    for id, sum in pairs(worth) do
        if not home or sum > worth[home] or (sum == worth[home] and id < home) then home = id end
    end
    for _, line in ipairs(lines) do
        local parts = chosen[line.id]
        line.warehouse_id, line.portions = parts and parts[1].warehouse_id or home, nil
        if parts and #parts > 1 then
            line.portions = {}
            for i, part in ipairs(parts) do line.portions[i] = { warehouse_id = part.warehouse_id, qty = part.quantity } end
        end
    end
end

return M
