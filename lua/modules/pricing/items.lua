-- Products as the pricing takes them, and those that rules may give away.
local uuid = require("core.uuid")
local catalog = require("modules.catalog.service")
local reservations = require("modules.inventory.reservations")

local M = {}

--- Ids of a category and all above it, from its path.
local function ancestors(category)
    local ids = {}
    for id in (category and category.path or ""):gmatch("[^/]+") do ids[#ids + 1] = id end
    return ids
end

--- The variant of a product with this id.
---@param product table|nil
---@param variant_id string|nil
---@return table|nil
function M.variant(product, variant_id)
    for _, v in ipairs(product and product.variants or {}) do
        if v.id == variant_id then return v end
    end
    return nil
end

--- What a line is, whatever its quantity.
---@param product table of catalog.products_by_id
---@param variant table|nil
---@param tags string[]|nil
---@return table
function M.item(product, variant, tags)
    local priced = variant or product
    return { product_id = product.id, variant_id = variant and variant.id, sku = variant and variant.sku or product.code,
        name = variant and variant.name and product.name .. " " .. variant.name or product.name, vendor_id = product.vendor_id,
        tax_class = product.tax_class, warehouse_id = variant and variant.warehouse_id, category_ids = ancestors(product.category),
        tag_ids = tags or {}, price = priced.price_minor, sale_price = priced.sale_price_minor, price_currency = product.currency,
        weight_g = variant and variant.weight_grams or product.weight_grams, requires_shipping = product.requires_shipping,
        track_inventory = product.track_inventory, attributes = variant and variant.attributes or {} }
end

local function key_of(x) return x.product_id .. ":" .. (x.variant_id or "-") end

--- How many units the lines take of each item, in all and by warehouse; and the warehouses that they leave from.
local function taken_by(lines)
    local units, there, used = {}, {}, {}
    local function take(line, warehouse_id, qty)
        local place = (warehouse_id or "") .. "/" .. key_of(line)
        units[key_of(line)], there[place] = (units[key_of(line)] or 0) + qty, (there[place] or 0) + qty
        if warehouse_id then used[warehouse_id] = true end
    end
    for _, line in ipairs(lines) do
        if not line.portions then take(line, line.warehouse_id, line.qty) end
        for _, portion in ipairs(line.portions or {}) do take(line, portion.warehouse_id, portion.qty) end
    end
    return units, there, used
end

--- Where a gift leaves from: a warehouse that has as many, if there is one, and best one that sends a parcel anyway.
local function place_of(gift, qty, rows, there, used, held)
    local best, best_left, best_rank
    for _, row in ipairs(rows) do
        if row.product_id == gift.product_id and row.variant_id == gift.variant_id then
            local left = row.available_quantity - (held and 0 or there[row.warehouse_id .. "/" .. key_of(gift)] or 0)
            local rank = (left >= qty and 2 or 0) + (used[row.warehouse_id] and 1 or 0)
            if not best or rank > best_rank then best, best_left, best_rank = row, left, rank end
        end
    end
    return best, math.max(best_left or 0, 0)
end

--- What rules wish to give away and the shop has: products that are for sale, each with where it leaves from and how many there are.
---@param tenant string
---@param wanted { product_id: string, variant_id: string|nil, qty: integer }[] of a quote
---@param lines table[] of the cart
---@param held boolean|nil the stock of the lines is held already
---@return table[] gifts for core.pricing, with inventory_id
function M.gifts(tenant, wanted, lines, held)
    local ids = {}
    for _, one in ipairs(wanted) do
        if uuid.valid(one.product_id) then ids[#ids + 1] = one.product_id end
    end
    local products, tags = catalog.products_by_id(tenant, ids), catalog.tag_ids(tenant, ids)
    local rows, list = reservations.stock_rows(tenant, ids), {}
    local units, there, used = taken_by(lines)
    for _, one in ipairs(wanted) do
        local product = products[one.product_id]
        local variant = M.variant(product, one.variant_id)
        local whole = product and #(product.variants or {}) == 0 and not one.variant_id
        if product and product.is_active and (whole or variant and variant.is_active) then
            local gift = M.item(product, variant, tags[product.id])
            gift.stock, gift.warehouse_id = -1, lines[1] and lines[1].warehouse_id
            if gift.track_inventory then
                local row, left = place_of(gift, one.qty, rows, there, used, held)
                -- The pricing counts what the lines take of it against this.
                gift.stock = left + (units[key_of(gift)] or 0)
                gift.inventory_id, gift.warehouse_id = row and row.id, row and row.warehouse_id or gift.warehouse_id
            end
            list[#list + 1] = gift
        end
    end
    return list
end

--- Tells the gifts of a quote what the pricing does not: which stock row they are taken from.
---@param quote table
---@param gifts table[]
function M.tell(quote, gifts)
    local by = {}
    for _, gift in ipairs(gifts) do by[key_of(gift)] = gift end
    for _, line in ipairs(quote.lines) do
        local gift = line.is_gift and by[key_of(line)]
        if gift then line.inventory_id, line.track_inventory, line.attributes = gift.inventory_id, gift.track_inventory, gift.attributes end
    end
end

return M
