-- The example of the merchant's and the developer's walks: buy 2, third free in Tea on weekends. Oolong 120,000, Jasmine 90,000, Lotus
-- 150,000, a mug of 50,000 outside of Tea; VND, VAT of 10 %; six orders on their days.
local time = require("core.time")
local support = require("api.support")
local shop_of = require("api.shop")

local M = {}

local must = shop_of.must
local ZONE, DAY = "Asia/Ho_Chi_Minh", 86400

M.SOURCE = [[
return { hook = "promotion", name = "Buy 2, third free on weekends", priority = 100, config = schema.object{ category = schema.category,
    buy = schema.integer{min=1,max=20,default=2}, free = schema.integer{min=1,max=20,default=1},
    days = schema.weekdays{default={6,7}}, label = schema.string{max=80, default="Buy 2, third free"} },
  run = function(input, config)
    if not set.has(config.days, input.now.wday) then return nil, "not today" end
    local units = {}
    for _, line in ipairs(input.cart.lines) do
      if set.has(line.category_ids, config.category) and not line.bundle_id then
        for _ = 1, line.qty do units[#units + 1] = { id = line.id, price = line.unit } end
      end
    end
    local free = math.floor(#units / (config.buy + config.free)) * config.free
    if free == 0 then return nil, "too few items" end
    table.sort(units, function(a, b) return a.price < b.price end)
    local count, ops = {}, {}
    for i = 1, free do count[units[i].id] = (count[units[i].id] or 0) + 1 end
    for id, n in pairs(count) do ops[#ops + 1] = { op = "line_percent", line_id = id, bps = 10000, units = n, label = config.label } end
    return { operations = ops }
  end }
]]

M.TESTS = [[
return { config = { category = "tea" }, category = { tea = {"oolong","jasmine","lotus"} },
  prices = { oolong = 120000, jasmine = 90000, lotus = 150000, mug = 50000 }, tests = {
    { name = "four teas on a Sunday: the cheapest is free",
      given  = { now = "2026-11-29T10:00", cart = { oolong = 2, jasmine = 1, lotus = 1, mug = 1 } },
      expect = { discount = 90000, lines = { jasmine = 0 }, net = 440000, instructions_below = 5000 } },
    { name = "Monday: nothing", given = { now = "2026-11-30T10:00", cart = { oolong = 6 } }, expect = { none = true } },
    { name = "table", each = { {3,120000}, {5,120000}, {6,240000} },
      given = function(r) return { now = "2026-11-28T09:00", cart = { oolong = r[1] } } end,
      expect = function(r) return { discount = r[2] } end },
    { name = "never more than the cart", property = "random_carts", cases = 200, seed = 7 },
  } }
]]

M.O2 = { oolong = 2, jasmine = 1, lotus = 1, mug = 1 }

---@class WeekendWorld
---@field platform TestClient
---@field shop TestTenant
---@field category string
---@field teas table<string, string>
---@field orders table<string, table>

--- A shop with the teas and the tax; no orders yet, and the clock as it is.
---@return WeekendWorld
function M.shop()
    local world = { shop = support.tenant{ currency = "VND", country = "VN" }, teas = {}, orders = {} }
    local owner = world.shop.owner
    world.category = must(owner:post("/api/ecommerce/products/categories/create", { name = "Tea", slug = "tea" })).id
    for name, price in pairs{ oolong = 120000, jasmine = 90000, lotus = 150000, mug = 50000 } do
        world.teas[name] = shop_of.product(world.shop, { name = name, price = price, categoryId = name ~= "mug" and world.category or nil,
            trackInventory = false })
    end
    must(owner:post("/api/finance/tax/rules/create", { name = "VAT", country = "VN", rate = 10 }))

    --- Goes to ten in the morning of the next such day, and makes the owner able to act there.
    function world.go_to(wday)
        world.platform = world.platform or support.platform()
        local f = time.fields(time.now(), ZONE)
        local days = (wday - f.wday) % 7
        local seconds = days * DAY + (10 - f.hour) * 3600 - f.min * 60
        if seconds <= 0 then seconds = seconds + 7 * DAY end
        support.advance(world.platform, seconds)
        support.sign_in(owner)
    end

    function world.cart_of(items, url)
        local buyer = support.guest(world.shop)
        buyer.url = url
        for name, quantity in pairs(items) do
            must(buyer:post("/sales/cart/add", { productId = world.teas[name], quantity = quantity }))
        end
        return buyer
    end

    function world.order(items) return must(shop_of.checkout(world.cart_of(items), { paymentMethod = "COD" })).orders[1] end

    function world.quote_o2(url, headers)
        return must(world.cart_of(M.O2, url):post("/sales/cart/quote", { shippingAddress = { country = "VN" } }, headers))
    end

    --- The six orders of the past, each on its day.
    function world.place_orders()
        local orders = world.orders
        world.go_to(6)
        orders.O1, orders.O3 = world.order{ oolong = 3 }, world.order{ jasmine = 2 }
        world.go_to(7)
        orders.O2, orders.O5 = world.order(M.O2), world.order{ lotus = 1, jasmine = 6 }
        world.go_to(1)
        orders.O4 = world.order{ oolong = 6 }
        world.go_to(3)
        orders.O6 = world.order{ mug = 4 }
    end

    --- Real time again.
    function world.leave()
        if not world.platform then return end
        support.sign_in(world.platform)
        support.real_time(world.platform)
        support.sign_in(world.platform)
    end

    return world
end

return M
