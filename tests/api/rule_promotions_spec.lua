-- The promotion of a rule: one row in step with what is published, with the limits, budget and conditions of any promotion.
local json = require("core.json")
local support = require("api.support")
local shop_of = require("api.shop")

local must = shop_of.must

local function post(who, path, body) return who:post("/rules/" .. path, body or {}) end

local function publish(shop, key, body, settings)
    shop_of.rule(shop, "promotion", body, settings, nil, key)
    return must(shop.owner:get("/rules/" .. key), 200).id
end

local function row_of(shop, id) return must(shop.owner:post("/marketing/promotions/details", { id = id })) end
local function change(shop, id, fields)
    fields.id = id
    return shop.owner:post("/marketing/promotions/update", fields)
end

local function quote(buyer) return must(buyer:post("/sales/cart/quote", { shippingAddress = { country = "VN" } })) end
local function traced(answer, key)
    for _, t in ipairs(answer.trace) do
        if t.rule == key then return t.note end
    end
    return nil
end
local function buy(shop, product, quantity, who)
    return shop_of.checkout(shop_of.buyer(shop, product, quantity, who), { paymentMethod = "COD" })
end

local TENTH = "return { operations = { { op = \"order_percent\", bps = 1000, label = \"Tenth\" } } }"

describe("the promotion of a rule", function()
    it("is one row, in step with publishing, disabling, rolling back and removing", function()
        local shop = shop_of.simple(0, { trackInventory = false })
        local id = publish(shop, "tenth", TENTH, { priority = 7 })
        local row = row_of(shop, id)
        assert.same({ "script", "tenth", 7, true, id, false }, { row.type, row.name, row.priority, row.isActive, row.scriptId,
            row.isPublic })
        assert.equal(201, change(shop, id, { usageLimit = 5 }).status)
        local draft = must(shop.owner:get("/rules/tenth/draft"), 200).draft
        must(post(shop.owner, "tenth/draft", { revision = draft.revision, settings = { priority = 9 } }))
        must(post(shop.owner, "tenth/publish", { revision = draft.revision + 1, note = "more" }))
        assert.same({ 9, 5, true }, { row_of(shop, id).priority, row_of(shop, id).usageLimit, row_of(shop, id).isActive })
        must(post(shop.owner, "tenth/rollback", { toVersion = 1, note = "back" }))
        assert.equal(7, row_of(shop, id).priority)
        must(post(shop.owner, "tenth/disable", { reason = "x" }))
        assert.is_false(row_of(shop, id).isActive)
        must(post(shop.owner, "tenth/enable", { reason = "x" }))
        assert.is_true(row_of(shop, id).isActive)
        must(post(shop.owner, "tenth/disable", { reason = "x" }))
        must(post(shop.owner, "tenth/remove", { reason = "x" }))
        assert.is_false(row_of(shop, id).isActive)
        assert.equal(1, #must(shop.owner:get("/marketing/promotions/list?type=script"), 200))
        -- What is the rule's is not changed beside it.
        assert.equal("script_row", change(shop, id, { isActive = true }).json.code)
        assert.equal("script_row", change(shop, id, { name = "x" }).json.code)
        assert.equal("script_row", shop.owner:post("/marketing/promotions/remove", { id = id }).json.code)
    end)

    it("counts what it gave, holds its usage limit, and gives the use back with the order", function()
        local shop, product = shop_of.simple(0, { trackInventory = false })
        local id = publish(shop, "tenth", TENTH)
        must(change(shop, id, { usageLimit = 2 }))
        assert.equal(90000, must(buy(shop, product, 1)).orders[1].totalAmount)
        local last = must(shop_of.checkout(shop_of.buyer(shop, product, 2))).orders[1]
        assert.equal(180000, last.totalAmount)
        local row = row_of(shop, id)
        assert.same({ 2, "30000.00" }, { row.usedCount, row.budgetUsed })
        local third = shop_of.buyer(shop, product)
        assert.same({ 100000, "limit_reached" }, { quote(third).totalMinor, traced(quote(third), "tenth") })
        assert.equal(400, change(shop, id, { usageLimit = 1 }).status)
        local stats = must(shop.owner:get("/rules/tenth/stats?window=1h"), 200)
        assert.same({ 30000, 2 }, { stats.discountMinor, stats.ordersTouched })
        local platform = support.platform()
        local ok, why = pcall(function()
            support.advance(platform, 3700)
            support.sign_in(shop.owner)
            support.eventually(function() return shop_of.order_now(shop, last.id).status == "cancelled" end)
            assert.same({ 1, "10000.00" }, { row_of(shop, id).usedCount, row_of(shop, id).budgetUsed })
            assert.equal(90000, quote(third).totalMinor)
        end)
        support.real_time(platform)
        assert(ok, why)
    end)

    it("counts no use of an order that it gave nothing", function()
        local shop, product = shop_of.simple(0, { trackInventory = false })
        local id = publish(shop, "tenth", "if input.cart.item_count < 3 then return nil, \"too few\" end " .. TENTH)
        must(change(shop, id, { usageLimit = 1 }))
        assert.equal(100000, must(buy(shop, product, 1)).orders[1].totalAmount)
        assert.equal(0, row_of(shop, id).usedCount)
        assert.equal(270000, must(buy(shop, product, 3)).orders[1].totalAmount)
        assert.equal(1, row_of(shop, id).usedCount)
        local stats = must(shop.owner:get("/rules/tenth/stats?window=24h"), 200)
        assert.same({ 30000, 1 }, { stats.discountMinor, stats.ordersTouched })
    end)

    it("gives what is left of its budget and not a unit more, however many operations it has", function()
        local shop, product = shop_of.simple(0, { trackInventory = false })
        local mug = shop_of.product(shop, { name = "Mug", price = 50000, trackInventory = false })
        local id = publish(shop, "many", [[local ops = { { op = "order_amount", amount = 5000, stackable = true } }
            for i, line in ipairs(input.cart.lines) do
                if i > 100 then break end
                ops[#ops + 1] = { op = "line_percent", line_id = line.id, bps = 1000 }
            end
            return { operations = ops }]])
        must(change(shop, id, { budget = 17001 }))
        local buyer = shop_of.buyer(shop, product)
        shop_of.buyer(shop, mug, 1, buyer)
        local answer = quote(buyer)
        assert.same({ 17001, 132999 }, { answer.discountMinor, answer.totalMinor }) -- 10000 + 5000 + 2001 of 5000
        assert.equal(132999, must(shop_of.checkout(buyer, { paymentMethod = "COD" })).orders[1].totalAmount)
        assert.equal("17001.00", row_of(shop, id).budgetUsed)
        assert.same({ 100000, "budget_exhausted" }, { quote(shop_of.buyer(shop, product)).totalMinor,
            traced(quote(shop_of.buyer(shop, product)), "many") })
    end)

    it("never goes over its limit when many buy at once", function()
        local shop, product = shop_of.simple(0, { trackInventory = false })
        local id = publish(shop, "tenth", TENTH)
        must(change(shop, id, { usageLimit = 3 }))
        local calls = {}
        for i = 1, 8 do
            local buyer = shop_of.buyer(shop, product)
            calls[i] = function() return shop_of.checkout(buyer, { paymentMethod = "COD" }) end
        end
        local cheap = 0
        for _, answer in ipairs(support.parallel(calls)) do
            if answer.status == 201 then
                cheap = cheap + (answer.json.orders[1].totalAmount == 90000 and 1 or 0)
            else
                assert.same({ 409, "price_changed" }, { answer.status, answer.json.code })
            end
        end
        assert.equal(3, cheap)
        assert.equal(3, row_of(shop, id).usedCount)
    end)

    it("holds the conditions about customers, sums and times", function()
        local shop, product = shop_of.simple(0, { trackInventory = false })
        local id = publish(shop, "tenth", TENTH)
        must(change(shop, id, { perCustomerLimit = 1 }))
        local regular = support.shopper(shop)
        assert.equal(90000, must(buy(shop, product, 1, regular)).orders[1].totalAmount)
        shop_of.buyer(shop, product, 1, regular)
        assert.same({ 100000, "customer_limit_reached" }, { quote(regular).totalMinor, traced(quote(regular), "tenth") })
        must(change(shop, id, { data = { perCustomerLimit = 0, firstOrderOnly = true } }))
        assert.equal("first_order_only", traced(quote(regular), "tenth"))
        assert.equal(90000, quote(shop_of.buyer(shop, product)).totalMinor)
        must(change(shop, id, { firstOrderOnly = false, minOrderValue = 150000 }))
        assert.equal("min_order_not_met", traced(quote(regular), "tenth"))
        assert.equal(180000, quote(shop_of.buyer(shop, product, 2)).totalMinor)
        must(change(shop, id, { minOrderValue = 0, endDate = "2020-01-01T00:00:00Z" }))
        assert.equal("expired", traced(quote(regular), "tenth"))
    end)
end)

describe("a promotion", function()
    it("is changed in any subset of its fields, and by whom may", function()
        local shop = shop_of.simple(0, { trackInventory = false })
        local made = must(shop.owner:post("/marketing/promotions/create", { name = "Ten", type = "PERCENTAGE", value = 10 }))
        local changed = must(change(shop, made.id, { value = 12.5, maxDiscount = 5000, endDate = "2030-01-01T00:00:00Z", version = 1 }))
        assert.same({ 1250, 5000, 2, "Ten" }, { changed.valueBps, changed.maxDiscountMinor, changed.version, changed.name })
        assert.same({ 409, "version_conflict" }, (function()
            local refused = change(shop, made.id, { value = 1, version = 1 })
            return { refused.status, refused.json.code }
        end)())
        assert.equal("window", change(shop, made.id, { startDate = "2031-01-01T00:00:00Z" }).json.code)
        assert.equal(400, change(shop, made.id, { value = 101 }).status)
        assert.equal(403, support.shopper(shop):post("/marketing/promotions/update", { id = made.id, value = 1 }).status)
        assert.equal(404, support.tenant().owner:post("/marketing/promotions/update", { id = made.id, value = 1 }).status)
        assert.equal(json.null, changed.scriptId)
    end)
end)
