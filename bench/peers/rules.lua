-- The peer's side of pricing by rules: the rules that the platform ships, as trusted Lua, and what a server would do around them:
-- build their input from a cart, take what they say off, sum up. No sandbox, no limits, no check of what they answer. For nginx and for
-- bench/rules.lua; plain Lua alone.
local M = {}

M.FIVE = {
    { key = "promotions/percent_off", config = { bps = 1000, skus = { "SKU-003", "SKU-004" } }, defaults = { label = "10 % off" } },
    { key = "promotions/buy_x_get_y", config = { category = "tea" },
        defaults = { buy = 2, free = 1, days = { 1, 2, 3, 4, 5, 6, 7 }, label = "Buy 2, third free" } },
    { key = "promotions/tiered_quantity", config = {}, defaults = { steps = { { from = 5, bps = 500 }, { from = 10, bps = 1000 } },
        label = "{percent} % off from {from}" } },
    { key = "promotions/free_shipping", config = { from = 100000 }, defaults = { bps = 10000, countries = {}, label = "Free shipping" } },
    { key = "promotions/customer_tier", config = {},
        defaults = { tiers = { Gold = 500 }, groups = { vip = 700 }, label = "Members' price" } },
}

-- Ten lines, as a client sends them.
function M.cart()
    local lines = {}
    for i = 1, 10 do
        lines[i] = { id = "l" .. i, product_id = "p" .. i, sku = ("SKU-%03d"):format(i), qty = i % 3 + 1, price = 10000 * i, weight_g = 100,
            category_ids = { i % 2 == 0 and "tea" or "ware" } }
    end
    return { customer = "u", group = "vip", country = "VN", shipping = 30000, lines = lines }
end

local any_schema = setmetatable({}, { __index = function() return function() return {} end end })
local env = { schema = any_schema, math = math, table = table, ipairs = ipairs, pairs = pairs, string = string, tostring = tostring,
    text = { template = function(s, values) return (s:gsub("{(%w+)}", function(name) return tostring(values[name]) end)) end },
    set = {
        has = function(list, x)
            if list[x] == true then return true end
            for i = 1, #list do
                if list[i] == x then return true end
            end
            return false
        end,
        of = function(list)
            local out = {}
            for i = 1, #list do out[list[i]] = true end
            return out
        end,
    } }

---@param root string folder of the project
---@return table[] rules {key, run, config}
function M.load(root)
    local rules = {}
    for i, one in ipairs(M.FIVE) do
        local chunk = assert(loadfile(root .. "/rules/" .. one.key .. ".lua"))
        setfenv(chunk, env)
        local config = {}
        for name, value in pairs(one.defaults) do config[name] = value end
        for name, value in pairs(one.config) do config[name] = value end
        rules[i] = { key = one.key, run = chunk().run, config = config }
    end
    return rules
end

local function input_of(cart)
    local lines, net, items = {}, 0, 0
    for i, l in ipairs(cart.lines) do
        local sum = l.price * l.qty
        lines[i] = { id = l.id, product_id = l.product_id, sku = l.sku, qty = l.qty, unit = l.price, gross = sum, net = sum,
            weight_g = l.weight_g, category_ids = l.category_ids, tag_ids = {}, is_gift = false, attributes = {}, properties = {},
            discounts = {}, purchase_type = "one_time" }
        net, items = net + sum, items + l.qty
    end
    return { hook = "promotion", now = { epoch = 1795748400, year = 2026, month = 11, day = 27, hour = 10, min = 0, wday = 5, tz = "UTC" },
        currency = { code = "VND", exponent = 0 }, tenant = { id = "demo", country = "VN", settings = {} },
        customer = { id = cart.customer, guest = false, groups = { cart.group }, first_order = false },
        cart = { id = "cart", gross = net, net = net, item_count = items, coupon_codes = {}, lines = lines },
        shipping = { address = { country = cart.country }, groups = {} }, subject = {} }
end

local function share(amount, bps) return math.floor(amount * bps / 10000 + 0.5) end

--- Prices the cart: what each rule takes off, and what is to be paid.
---@param rules table[] of M.load
---@param cart table
---@return table {adjustments = {{rule, amount}}, total}
function M.price(rules, cart)
    local input = input_of(cart)
    local left, at, merchandise, shipping = {}, {}, input.cart.net, cart.shipping
    for i, line in ipairs(input.cart.lines) do
        left[i] = line.net
        at[line.id] = i
    end
    local adjustments = {}
    for _, rule in ipairs(rules) do
        local answer = rule.run(input, rule.config)
        local amount = 0
        for _, op in ipairs(answer and answer.operations or {}) do
            local off
            if op.op == "line_percent" then
                local i = at[op.line_id]
                local line = input.cart.lines[i]
                off = share(left[i] / line.qty * (op.units or line.qty), op.bps)
                left[i], merchandise = left[i] - off, merchandise - off
            elseif op.op == "order_percent" then
                off = share(merchandise, op.bps)
                merchandise = merchandise - off
            else
                off = share(shipping, op.bps)
                shipping = shipping - off
            end
            amount = amount + off
        end
        if amount > 0 then adjustments[#adjustments + 1] = { rule = rule.key, amount = amount } end
    end
    return { adjustments = adjustments, total = merchandise + shipping }
end

--- Microseconds of CPU that fn takes: the best of many short rounds.
---@param fn fun()
---@return number
function M.measure(fn)
    for _ = 1, 300 do fn() end
    local best = math.huge
    for _ = 1, 200 do
        local began = os.clock()
        for _ = 1, 100 do fn() end
        best = math.min(best, os.clock() - began)
    end
    return best / 100 * 1e6
end

return M
