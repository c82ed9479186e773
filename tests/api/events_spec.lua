-- What acts tell the world: each act once, under the id of what it is about, and nothing where nothing happened. How events are
-- delivered: webhooks_spec, tests/faults/test_webhooks.
local config = require("core.config")
local json = require("core.json")
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
