-- What acts tell the world: each act once, under the id of what it is about, and nothing where nothing happened. How events are
-- delivered: webhooks_spec, tests/faults/test_webhooks.
local config = require("core.config")
local json = require("core.json")
local time = require("core.time")
local db = require("kasma.db")
local events = require("kasma.events")
local shop_of = require("api.shop")
local support = require("api.support")

local must = shop_of.must

--- What was told of an area, in order: the data of each event with its name.
local function told(tenant, area, id)
    local list = {}
    for _, row in ipairs(db.read(tenant, [[select id, key, payload from outbox where tenant_key = $1 and topic = 'event'
        and payload->>'name' like $2 and ($3::text is null or key = $3) order by seq]], tenant, area .. ".%", id or json.null)) do
        assert.is_nil(events.problems(row))
        local data = events.data_of(row)
        data.event = row.payload.name
        list[#list + 1] = data
    end
    return list
end

local function names_of(list)
    local names = {}
    for i, data in ipairs(list) do names[i] = data.event end
    return names
end

describe("the event of a product", function()
    local PATH = "/api/ecommerce/products/"

    it("tells its creation once, with its variants and what was given", function()
        local shop = support.tenant()
        local body = { name = "Tea", slug = "tea", price = 1000, attributes = { { name = "Size", values = { "S", "L" } } },
            variants = { { sku = "T-1", price = 1000, attributes = { Size = "S" } }, { sku = "T-2", price = 1200,
                attributes = { Size = "L" } } } }
        local key = { ["Idempotency-Key"] = support.unique("k") }
        local made = must(shop.owner:post(PATH .. "create", body, key))
        assert.equal(made.productId, must(shop.owner:post(PATH .. "create", body, key)).productId)
        assert.equal(409, shop.owner:post(PATH .. "create", { name = "Other tea", slug = "tea" }).status)
        assert.same({ { event = "product.changed", id = made.productId, variantIds = made.variantIds,
            fields = { "attributes", "name", "price", "slug", "variants" } } }, told(shop.key, "product"))
    end)

    it("tells its deletion once, also when two delete it at once", function()
        local shop = support.tenant()
        local made = must(shop.owner:post(PATH .. "create", { name = "Tea", slug = "tea", price = 1000,
            variants = { { sku = "T-1", price = 1000 } } }))
        local calls = {}
        for i = 1, 6 do calls[i] = function() return shop.owner:copy():post(PATH .. made.productId .. "/delete") end end
        assert.same({ [201] = 1, [404] = 5 }, shop_of.statuses(support.parallel(calls)))
        assert.equal(404, shop.owner:post(PATH .. made.productId .. "/delete").status)
        local list = told(shop.key, "product")
        assert.same({ "product.changed", "product.deleted" }, names_of(list))
        assert.same({ event = "product.deleted", id = made.productId, variantIds = made.variantIds, fields = {} }, list[2])
    end)

    it("is of its tenant alone", function()
        local shop, other = support.tenant(), support.tenant()
        local made = must(shop.owner:post(PATH .. "create", { name = "Tea", slug = "tea" }))
        assert.equal(404, other.owner:post(PATH .. made.productId .. "/delete").status)
        assert.same({ {}, 1 }, { told(other.key, "product"), #told(shop.key, "product") })
    end)
end)

describe("the event of a payment", function()
    local shop, product = shop_of.simple(40)

    local function report(order, fields)
        local body = { orderId = order.id, provider = "STRIPE", status = "SUCCESS", currency = "VND" }
        for name, value in pairs(fields) do body[name] = value end
        return must(support.client():post("/api/internal/orders/sync-payment", body,
            { ["X-Internal-Secret"] = config.get("INTERNAL_WEBHOOK_SECRET") }))
    end

    local function placed()
        local answer = must(shop_of.checkout(shop_of.buyer(shop, product)))
        return answer.orders[1], answer.paymentSession, answer.checkoutId
    end

    local function expected(name, order, session, checkout_id, reason)
        return { event = name, id = session.paymentId, checkoutId = checkout_id, provider = "STRIPE",
            transactionId = session.transactionId, currency = "VND", amountMinor = order.amountDueMinor, reason = reason or json.null }
    end

    it("tells that its money came, once, however often that is reported", function()
        local order, session, checkout_id = placed()
        local fields = { transactionId = session.transactionId, amount = order.amountDue }
        local calls = {}
        for i = 1, 6 do calls[i] = function() return report(order, fields) end end
        support.parallel(calls)
        report(order, { status = "COMPLETED", eventId = support.unique("e") })
        report(order, { status = "FAILED", eventId = support.unique("e") })
        assert.same({ expected("payment.captured", order, session, checkout_id) }, told(shop.key, "payment", session.paymentId))
    end)

    it("tells a failure, and the success of the next attempt", function()
        local order, session, checkout_id = placed()
        report(order, { status = "DECLINED", eventId = support.unique("e") })
        report(order, { status = "FAILED", eventId = support.unique("e") })
        report(order, { amount = order.amountDue })
        assert.same({ expected("payment.failed", order, session, checkout_id, "DECLINED"),
            expected("payment.captured", order, session, checkout_id) }, told(shop.key, "payment", session.paymentId))
    end)

    it("tells nothing of money that is not the amount, nor of an unknown word", function()
        local order, session = placed()
        report(order, { status = "PONDERED" })
        report(order, { amount = "1" })
        assert.same({}, told(shop.key, "payment", session.paymentId))
    end)

    it("tells that nobody paid in time, and money that comes after all", function()
        local platform = support.platform()
        local order, session, checkout_id = placed()
        support.advance(platform, 61 * 60)
        local ok, why = pcall(function()
            support.eventually(function() return #told(shop.key, "payment", session.paymentId) > 0 end, 20)
            report(order, { amount = order.amountDue })
        end)
        support.real_time(platform)
        assert(ok, why)
        assert.same({ expected("payment.expired", order, session, checkout_id, "expired"),
            expected("payment.captured", order, session, checkout_id, "paid_after_expiry") }, told(shop.key, "payment", session.paymentId))
    end)
end)

describe("the event of a promotion", function()
    local PATH = "/marketing/promotions/"
    local shop, platform

    setup(function() shop, platform = support.tenant(), support.platform() end)

    local function iso(in_seconds) return time.iso(time.now() + in_seconds * 1000) end

    local function create(fields)
        local body = { name = "Sale", type = "discount", value = 10, valueType = "percent" }
        for name, value in pairs(fields or {}) do body[name] = value end
        return must(shop.owner:post(PATH .. "create", body)).id
    end

    local function update(id, fields)
        fields.id = id
        must(shop.owner:post(PATH .. "update", fields))
    end

    local function remove(id) must(shop.owner:post(PATH .. "remove", { id = id })) end

    local function names(id) return names_of(told(shop.key, "promotion", id)) end

    -- Whether a moment waits for it.
    local function waits(id)
        return db.one(shop.key, "select due_at from due_work where tenant_key = $1 and kind = 'marketing.promotion_window' and id = $2",
            shop.key, id) ~= nil
    end

    -- What holds a while from now.
    local function at(seconds, fn)
        support.advance(platform, seconds)
        local ok, why = pcall(fn)
        support.real_time(platform)
        assert(ok, why)
    end

    it("tells that it begins when it is made, once, and that it ends when it is switched off, once", function()
        local key = { ["Idempotency-Key"] = support.unique("k") }
        local body = { name = "Sale", type = "discount", value = 10, valueType = "percent" }
        local id = must(shop.owner:post(PATH .. "create", body, key)).id
        assert.equal(id, must(shop.owner:post(PATH .. "create", body, key)).id)
        update(id, { name = "Great sale" })
        update(id, { isActive = true })
        local calls = {}
        for i = 1, 6 do calls[i] = function() return shop.owner:copy():post(PATH .. "remove", { id = id }) end end
        assert.same({ [201] = 6 }, shop_of.statuses(support.parallel(calls)))
        assert.same({ { event = "promotion.started", id = id, type = "discount", startDate = json.null, endDate = json.null },
            { event = "promotion.ended", id = id, type = "discount", startDate = json.null, endDate = json.null } },
            told(shop.key, "promotion", id))
        update(id, { isActive = true })
        update(id, { isActive = false })
        assert.same({ "promotion.started", "promotion.ended", "promotion.started", "promotion.ended" }, names(id))
        assert.is_false(waits(id))
    end)

    it("tells nothing of one that does not run", function()
        local off, over, later = create{ isActive = false }, create{ startDate = iso(-7200), endDate = iso(-3600) },
            create{ startDate = iso(3600) }
        assert.same({ false, false, true }, { waits(off), waits(over), waits(later) })
        update(over, { name = "Over" })
        remove(later)
        remove(off)
        for _, id in ipairs{ off, over, later } do
            assert.same({}, names(id))
            assert.is_false(waits(id))
        end
    end)

    it("tells a window that is moved over this moment or away from it", function()
        local id = create{ startDate = iso(3600), endDate = iso(7200) }
        assert.same({}, names(id))
        update(id, { startDate = iso(-60) })
        assert.same({ "promotion.started" }, names(id))
        update(id, { endDate = iso(-30) })
        assert.same({ "promotion.started", "promotion.ended" }, names(id))
        assert.is_false(waits(id))
    end)

    it("tells its beginning and its end when they come", function()
        local starts, ends = iso(3600), iso(7200)
        local id = create{ type = "flash_sale", startDate = starts, endDate = ends }
        at(3700, function()
            support.eventually(function() return #names(id) > 0 end, 20)
            assert.same({ { event = "promotion.started", id = id, type = "flash_sale", startDate = starts, endDate = ends } },
                told(shop.key, "promotion", id))
            assert.is_true(waits(id))
        end)
        at(7300, function()
            support.eventually(function() return #names(id) > 1 end, 20)
            assert.same({ "promotion.started", "promotion.ended" }, names(id))
            support.eventually(function() return not waits(id) end, 20)
        end)
    end)

    it("tells both of a window that passed before anybody looked", function()
        local id = create{ startDate = iso(3600), endDate = iso(7200) }
        at(9000, function()
            support.eventually(function() return #names(id) > 1 end, 20)
            assert.same({ "promotion.started", "promotion.ended" }, names(id))
        end)
    end)

    it("tells in order also where an act comes before the sweeper", function()
        local promotions = require("modules.promotions.service")
        local id = create{ startDate = iso(3600), endDate = iso(7200) }
        db.query(shop.key, "delete from due_work where tenant_key = $1 and kind = 'marketing.promotion_window' and id = $2", shop.key, id)
        at(3700, function()
            support.sign_in(shop.owner)
            remove(id)
            promotions.on_window(shop.key, id)
            promotions.on_window(shop.key, id)
        end)
        support.sign_in(shop.owner)
        assert.same({ "promotion.started", "promotion.ended" }, names(id))
    end)

    it("leaves one that follows a rule to the events of the rule", function()
        local rule = shop_of.rule(shop, "promotion", "return nil")
        assert.same({ "rule.published" }, names_of(told(shop.key, "rule")))
        must(shop.owner:post("/rules/" .. rule .. "/disable", { reason = "over" }))
        local id = told(shop.key, "rule")[1].id
        update(id, { startDate = iso(-60), endDate = iso(3600) })
        assert.same({}, names(id))
        assert.is_false(waits(id))
    end)
end)

describe("the event of a cart", function()
    it("tells each write once, and the checkout that empties it", function()
        local shop, product = shop_of.simple(5)
        local buyer = shop_of.buyer(shop, product, 2)
        must(buyer:post("/sales/cart/update", { productId = product, quantity = 3 }))
        assert.equal(404, buyer:post("/sales/cart/add", { productId = shop.warehouse_id, quantity = 1 }).status)
        must(shop_of.checkout(buyer))
        local list = told(shop.key, "cart")
        local id, first = list[1].id, list[1].version
        local function expected(version, series, count)
            return { event = "cart.changed", id = id, userId = json.null, version = first + version, series = series, itemCount = count }
        end
        assert.same({ expected(0, 0, 1), expected(1, 0, 1), expected(2, 1, 0) }, list)
    end)

    it("tells as many of parallel writes as were done, each with a version of its own", function()
        local shop, product = shop_of.simple(0)
        local shopper = support.shopper(shop)
        local calls = {}
        for i = 1, 8 do
            calls[i] = function() return shopper:copy():post("/sales/cart/add", { productId = product, quantity = 1 }) end
        end
        local done = shop_of.statuses(support.parallel(calls))[201]
        local list, seen = told(shop.key, "cart"), {}
        assert.equal(done, #list)
        for _, data in ipairs(list) do
            assert.same({ shopper.user.id, 1, nil }, { data.userId, data.itemCount, seen[data.version] })
            seen[data.version] = true
        end
        assert.equal(done, must(shopper:get("/sales/cart/me"), 200).items[1].quantity)
    end)
end)

describe("the event of a stock row", function()
    local function changes(shop)
        local list = {}
        for i, data in ipairs(told(shop.key, "stock")) do
            list[i] = data.event == "stock.back" and { "back", data.available }
                or { data.kind, data.delta, data.onHand, data.reserved, data.available }
        end
        return list
    end

    -- What is there once the claims of all orders so far are told.
    local function settled(shop)
        support.eventually(function()
            return db.one(shop.key, "select 1 as one from outbox where tenant_key = $1 and topic = 'stock.claimed' and sent_at is null "
                .. "and parked_at is null limit 1", shop.key) == nil
        end, 20)
        return changes(shop)
    end

    it("tells what an order claims and what its end gives back, and units for sale where none were", function()
        local platform = support.platform()
        local shop, product = shop_of.simple(2)
        local buyer = shop_of.buyer(shop, product, 2)
        local order = must(shop_of.checkout(buyer)).orders[1]
        local list = settled(shop)
        assert.same({ { "ADJUST", 2, 2, 0, 2 }, { "back", 2 }, { "CLAIM", 0, 2, 2, 0 } }, list)
        support.advance(platform, 61 * 60)
        local ok, why = pcall(support.eventually, function() return #changes(shop) > 3 end, 20)
        support.real_time(platform)
        assert(ok, why)
        assert.equal("cancelled", shop_of.order_now(shop, order.id).status)
        list = settled(shop)
        assert.same({ { "RELEASE", 0, 2, 0, 2 }, { "back", 2 } }, { list[4], list[5] })
        assert.equal(5, #list)
        for _, data in ipairs(told(shop.key, "stock")) do
            assert.same({ shop_of.stock_of(shop, product).id, product, shop.warehouse_id }, { data.id, data.productId, data.warehouseId })
        end
    end)

    it("tells nothing of a checkout that is refused", function()
        local shop, product = shop_of.simple(1)
        local buyer = shop_of.buyer(shop, product)
        assert.equal(409, shop_of.checkout(buyer, { expectedTotal = 1 }).status)
        assert.same({ { "ADJUST", 1, 1, 0, 1 }, { "back", 1 } }, settled(shop))
        assert.equal(1, shop_of.stock_of(shop, product).availableQuantity)
    end)

    it("ends with what there is when many claim at once", function()
        local shop, product = shop_of.simple(20)
        local calls = {}
        for i = 1, 8 do
            local buyer = shop_of.buyer(shop, product)
            calls[i] = function() return shop_of.checkout(buyer) end
        end
        assert.same({ [201] = 8 }, shop_of.statuses(support.parallel(calls)))
        local list = settled(shop)
        assert.same({ "CLAIM", 0, 20, 8, 12 }, list[#list])
        assert.is_true(#list <= 2 + 8)
    end)

    it("says that units are there again only where none were", function()
        local shop, product = shop_of.simple(0)
        for _, units in ipairs{ 3, 2, -5, 1 } do shop_of.stock(shop, product, units) end
        assert.same({ { "ADJUST", 3, 3, 0, 3 }, { "back", 3 }, { "ADJUST", 2, 5, 0, 5 }, { "ADJUST", -5, 0, 0, 0 },
            { "ADJUST", 1, 1, 0, 1 }, { "back", 1 } }, changes(shop))
    end)

    it("is told once however often its claim is handed over", function()
        local inventory = require("modules.inventory.service")
        local shop, product = shop_of.simple(2)
        must(shop_of.checkout(shop_of.buyer(shop, product)))
        local before = settled(shop)
        local claims = db.read(shop.key, "select id, tenant_key, app_key, key, payload from outbox where tenant_key = $1 "
            .. "and topic = 'stock.claimed'", shop.key)
        assert.equal(1, #claims)
        inventory.tell_claims(claims)
        assert.same(before, changes(shop))
    end)
end)
