-- Carts that every rule of a quote is tried with before it goes live, and carts made by chance for properties.
local time = require("core.time")

local M = {}

local ZONE = "Asia/Ho_Chi_Minh"
local CATEGORY = "0192f0c0-0000-7000-8000-00000000c001"

--- Ids of categories that a config names, so that a sample has products in them.
local function categories_of(config)
    local ids = { CATEGORY }
    local function look(value, name)
        if type(value) == "table" then
            for key, member in pairs(value) do look(member, type(key) == "string" and key or name) end
        elseif type(value) == "string" and type(name) == "string" and name:find("categor") then
            ids[#ids + 1] = value
        end
    end
    look(config or {}, nil)
    return ids
end

--- A whole input of core.pricing around lines.
---@param lines table[]
---@param o {at: string|nil, currency: string|nil, customer: table|nil, country: string|nil, tax_ppm: integer|nil, region: string|nil,
---zip: string|nil, coupons: string[]|nil, shipping: integer|nil, inclusive: boolean|nil}
---@return table
function M.input(lines, o)
    local at = assert(time.parse(o.at or "2026-11-27T10:00", ZONE), "a test's now is no time")
    local f = time.fields(at, ZONE)
    local country = o.country or "VN"
    local coupons = {}
    for i, code in ipairs(o.coupons or {}) do coupons[i] = { id = code, code = code, kind = "percentage", value = 0 } end
    return {
        currency = o.currency or "VND", now_ms = at, weekday = f.wday, hour = f.hour, max_coupons = 5, lines = lines, coupons = coupons,
        bundles = o.bundles,
        customer = o.customer and { id = o.customer.id, groups = o.customer.groups or {}, first_order = o.customer.first_order == true,
            tier_id = o.customer.tier and o.customer.tier.id } or {},
        shipping = { place = { country = country, region = o.region, city = o.city or o.region, zip = o.zip },
            zones = { { id = "z", countries = { country } } },
            methods = { { id = "standard", name = "Standard", zone_id = "z", currency = o.currency or "VND", base = o.shipping or 0 },
                o.express and { id = "express", name = "Express", zone_id = "z", base = o.express, per_kg = 7000,
                    estimated_days = 1 } or nil } },
        tax = { home_country = o.home_country or "VN", mode = "half_up", level = "line", shipping = "by_class", inclusive = o.inclusive,
            place = { country = country, region = o.region, zip = o.zip },
            rules = o.tax_ppm and { { id = "t", name = "VAT", country = country, ppm = o.tax_ppm } } or {} },
        snapshot = {
            now = { epoch = math.floor(at / 1000), year = f.year, month = f.month, day = f.day, hour = f.hour, min = f.min, wday = f.wday,
                tz = ZONE },
            tenant = { id = "demo", country = "VN", settings = {} },
            customer = o.customer and { orders_count = o.customer.orders_count, lifetime_spent = o.customer.lifetime_spent,
                tier = o.customer.tier, locale = "vi" } or {},
            cart = { id = "cart" },
        },
    }
end

local function line(i, categories, more)
    local l = { id = ("l%03d"):format(i), product_id = ("p%03d"):format(i), sku = ("SKU-%03d"):format(i), qty = 1 + i % 4,
        price = 10000 * (1 + i % 9), weight_g = 100 * (i % 20), requires_shipping = true,
            category_ids = { categories[1 + i % #categories] },
        tag_ids = {}, tax_class = "standard" }
    for name, value in pairs(more or {}) do l[name] = value end
    return l
end

local function lines(n, categories)
    local list = {}
    for i = 1, n do list[i] = line(i, categories) end
    return list
end

-- A bundle that was put into the cart, and one that applies by itself.
local function bundled(categories)
    local parts = { line(1, categories, { bundle_id = "b1", bundle_key = "k1", qty = 2 }), line(2, categories, { bundle_id = "b1",
        bundle_key = "k1", qty = 4 }), line(3, categories, { qty = 5 }) }
    return parts, { { id = "b1", name = "Pair", currency = "VND", pricing = "fixed", price = 40000, items = { { product_id = "p001",
        qty = 1 }, { product_id = "p002", qty = 2 } } }, { id = "b2", name = "Three", pricing = "percent_off", percent_off_bps = 1000,
        auto_apply = true, items = { { product_id = "p003", qty = 3 } } } }
end

---@param hook string
---@param config table|nil
---@return table[] {name, input}
function M.quotes(hook, config)
    local categories = categories_of(config)
    local shopper = { id = "0192f0c0-0000-7000-8000-0000000000aa", groups = { "vip" }, first_order = false, orders_count = 4,
        lifetime_spent = 81000000, tier = { id = "gold", name = "Gold", multiplier_pct = 120 } }
    local rate = hook == "tax.resolve" and 100000 or nil
    local list = {
        { name = "one line", input = M.input(lines(1, categories), { customer = shopper, tax_ppm = rate }) },
        { name = "200 lines", input = M.input(lines(200, categories), { customer = shopper, tax_ppm = rate }) },
        { name = "Sunday night", input = M.input(lines(6, categories), { at = "2026-11-29T23:30", customer = shopper, tax_ppm = rate }) },
        { name = "a guest", input = M.input(lines(5, categories), { tax_ppm = rate }) },
        { name = "another currency", input = M.input(lines(5, categories), { currency = "USD", country = "US", region = "CA", zip = "90001",
            customer = shopper, tax_ppm = rate }) },
        { name = "every optional field absent", input = M.input({ { id = "l1", product_id = "p1", qty = 12, price = 10000 } }, {}) },
    }
    if hook == "shipping.rates" then
        list[#list + 1] = { name = "two methods", input = M.input(lines(3, categories), { customer = shopper, shipping = 30000,
            express = 60000 }) }
    end
    if hook == "bundle.price" then
        local parts, bundles = bundled(categories)
        list[#list + 1] = { name = "bundles", input = M.input(parts, { customer = shopper, bundles = bundles }) }
    end
    if #categories > 1 then
        local deep = {}
        for i = 1, 8 do deep[i] = line(i, { categories[2] }, { qty = 3 }) end
        list[#list + 1] = { name = "products of its category on a Sunday", input = M.input(deep, { at = "2026-11-29T10:00",
            customer = shopper,
            tax_ppm = rate }) }
    end
    return list
end

--- The input of a hook outside of quotes around the subject of a test.
---@param hook string
---@param given {subject: table|nil, now: string|nil, tenant: table|nil}
---@return table
function M.around(hook, given)
    local at = assert(time.parse(given.now or "2026-11-27T10:00", ZONE), "a test's now is no time")
    local f = time.fields(at, ZONE)
    return { hook = hook, now = { epoch = math.floor(at / 1000), year = f.year, month = f.month, day = f.day, hour = f.hour, min = f.min,
        sec = f.sec, wday = f.wday, tz = ZONE }, tenant = given.tenant or { id = "demo", country = "VN", settings = {} },
        subject = given.subject or {} }
end

--- Numbers by chance, the same for the same seed everywhere.
---@param seed integer
---@return fun(n: integer): integer from 1 to n
function M.chance(seed)
    local state = seed % 2147483647
    if state <= 0 then state = 1 end
    return function(n)
        state = state * 16807 % 2147483647
        return state % n + 1
    end
end

return M
