-- A preview over 5,000 stored orders that all differ: what it says is what they sum to, while the shop sells on.
local db = require("kasma.db")
local time = require("core.time")
local uuid = require("core.uuid")
local store = require("modules.rules.store")
local shop_of = require("api.shop")
local support = require("api.support")

local must = shop_of.must
local ORDERS, BATCH = 5000, 100

-- Half off the first line of who buys at least two of it.
local SOURCE = [[return { hook = "promotion", name = "Half", run = function(input)
    local line = input.cart.lines[1]
    if line.qty < 2 then return nil end
    return { operations = { { op = "line_percent", line_id = line.id, bps = 5000, label = "half" } } }
end }]]

-- The n-th order: its lines, what it costs, and what the rule takes off (half of an odd amount is rounded up).
local function order(n)
    local lines, total = {}, 0
    for i = 1, 1 + n % 5 do
        local line = { id = "l" .. i, product_id = uuid.v7(), sku = ("SKU-%04d"):format(n % 50 + i), qty = 1 + (n * 7 + i) % 4,
            price = 1000 + (n * 37 + i * 11) % 9973, weight_g = 100, requires_shipping = true, purchase_type = "one_time",
            category_ids = { uuid.v7() }, tag_ids = {} }
        lines[i], total = line, total + line.qty * line.price
    end
    local first = lines[1].qty * lines[1].price
    return lines, total, lines[1].qty >= 2 and math.floor((first + 1) / 2) or 0
end

local function shop_with_orders()
    local shop, product = shop_of.simple(0, { trackInventory = false })
    local sums = { before = 0, off = 0, changed = 0, of = {} }
    local now = time.now()
    for first = 1, ORDERS, BATCH do
        local statements = {}
        for n = first, first + BATCH - 1 do
            local lines, total, off = order(n)
            local number = ("SOAK-%05d"):format(n)
            sums.before, sums.off, sums.changed = sums.before + total, sums.off + off, sums.changed + (off > 0 and 1 or 0)
            sums.of[number] = off
            statements[#statements + 1] = store.insert_snapshot{ tenant_key = shop.key, app_key = shop.app, id = uuid.v7(),
                order_id = uuid.v7(), order_number = number, currency = "VND", total_minor = total, result = {}, rules = {},
                now = time.iso(now), input = { at = now, lines = lines, guest = true, address = { country = "VN" }, customer = {} } }
        end
        db.pipeline(shop.key, statements)
    end
    must(shop.owner:post("/rules/create", { key = "half", hook = "promotion", name = "Half", source = SOURCE }))
    return shop, product, sums
end

describe("a preview over 5,000 orders", function()
    it("says what they sum to, tells how far it is, and lets the shop sell on", function()
        local shop, product, sums = shop_with_orders()
        local buyer = shop_of.buyer(shop, product)
        local began = time.mono()
        local asked = must(shop.owner:post("/rules/half/preview", { orders = { last = ORDERS } }), 202)
        local steps, seen, quotes = 0, 0, 0
        local done = support.eventually(function()
            local p = must(shop.owner:get("/rules/previews/" .. asked.previewId), 200)
            assert.equal(ORDERS, p.total)
            assert.is_true(p.done >= seen, "progress went back")
            if p.done > seen then steps, seen = steps + 1, p.done end
            assert.equal(100000, must(buyer:post("/sales/cart/quote", {})).total)
            quotes = quotes + 1
            assert.is_true(p.state == "queued" or p.state == "running" or p.state == "done", p.state)
            return p.state == "done" and p
        end, 3600)
        assert.same({ ORDERS, ORDERS, sums.changed }, { done.done, done.result.against.used, done.result.changed })
        assert.same({ sums.before, sums.before - sums.off, -sums.off }, { done.result.totals.before, done.result.totals.after,
            done.result.totals.delta })
        assert.is_true(steps > 20)

        local n, cursor, off = 0, 0, 0
        while cursor do
            local page = shop.owner:get(("/rules/previews/%s/orders?limit=100&cursor=%d"):format(asked.previewId, cursor))
            for _, one in ipairs(must(page, 200)) do
                assert.equal(-sums.of[one.orderNumber], one.delta)
                n, off, sums.of[one.orderNumber] = n + 1, off - one.delta, nil
            end
            cursor = tonumber(page.headers["x-next-cursor"])
        end
        assert.same({ sums.changed, sums.off }, { n, off })
        print(("%d orders previewed in %.1f s, %d steps of progress seen, %d quotes meanwhile"):format(ORDERS, (time.mono() - began) / 1e6,
            steps, quotes))
    end)
end)
