-- What must hold when many buy at once, when requests come again, when payments report and when nobody pays.
local config = require("core.config")
local json = require("core.json")
local mongo = require("core.mongo")
local db = require("kasma.db")
local shop_of = require("api.shop")
local support = require("api.support")

local must = shop_of.must

--- Units that reservations hold of a tenant's stock.
local function reserved(tenant)
    return db.read(tenant, [[select coalesce(sum(quantity - consumed_qty - released_qty), 0)::int as units, count(*)::int as rows
      from stock_reservations where tenant_key = $1 and status in ('HELD', 'CONFIRMED')]], tenant)[1]
end

local function orders_of(tenant)
    return db.read(tenant, "select count(*)::int as n from orders where tenant_key = $1", tenant)[1].n
end

-- The items that the event of an order's step named, and those of order.placed.
local function told_items(tenant, order_id, step)
    local said = {}
    for _, row in ipairs(db.read(tenant, [[select payload from outbox where tenant_key = $1 and topic = 'event' and key = $2
        order by seq]], tenant, order_id)) do
        said[row.payload.name] = row.payload.data.items
    end
    return said[step], said["order.placed"]
end

-- What the event of an order's payment said.
local function told_payment(tenant, order_id, name)
    local data = db.read(tenant, [[select payload->'data' as data from outbox where tenant_key = $1 and topic = 'event' and key = $2
      and payload->>'name' = $3]], tenant, order_id, name)[1].data
    return { reason = data.reason, amountMinor = data.amountMinor, currency = data.currency }
end

local function report(order_id, fields, secret)
    local body = { orderId = order_id, provider = "STRIPE", status = "SUCCESS", currency = "VND" }
    for name, value in pairs(fields) do body[name] = value end
    return support.client():post("/api/internal/orders/sync-payment", body,
        { ["X-Internal-Secret"] = secret or config.get("INTERNAL_WEBHOOK_SECRET") })
end

describe("parallel checkouts", function()
    it("sell the last ten units ten times", function()
        local shop, product = shop_of.simple(10)
        local carts, calls = {}, {}
        for i = 1, 50 do carts[i] = function() return shop_of.buyer(shop, product) end end
        local buyers = support.parallel(carts)
        for i, buyer in ipairs(buyers) do
            calls[i] = function() return shop_of.checkout(buyer, { guestEmail = ("guest%d@example.test"):format(i) }) end
        end
        local answers = support.parallel(calls)
        assert.same({ [201] = 10, [409] = 40 }, shop_of.statuses(answers))
        for _, answer in ipairs(answers) do
            if answer.status == 409 then assert.equal("out_of_stock", answer.json.code) end
        end
        local row = shop_of.stock_of(shop, product)
        assert.same({ 10, 10, 0 }, { row.quantity, row.reservedQuantity, row.availableQuantity })
        assert.same({ units = 10, rows = 10 }, reserved(shop.key))
        assert.equal(10, orders_of(shop.key))
    end)

    it("give each order a number of its own", function()
        local shop, product = shop_of.simple(20)
        local calls = {}
        for i = 1, 20 do
            calls[i] = function() return must(shop_of.checkout(shop_of.buyer(shop, product))).orders[1].orderNumber end
        end
        local seen = {}
        for _, number in ipairs(support.parallel(calls)) do
            assert.is_nil(seen[number])
            seen[number] = true
        end
    end)

    it("answer lists that are empty as lists", function()
        local shop, product = shop_of.simple(1)
        local placed = must(shop_of.checkout(shop_of.buyer(shop, product))).orders[1]
        assert.is_true(json.is_array(placed.couponCodes))
        assert.equal(0, #placed.couponCodes)
    end)

    it("never sell half a cart", function()
        local shop, first = shop_of.simple(6)
        local second = shop_of.product(shop, { name = "Shade", price = 50000 })
        shop_of.stock(shop, second, 3)
        local calls = {}
        for i = 1, 8 do
            local buyer = shop_of.buyer(shop, second, 1, shop_of.buyer(shop, first))
            calls[i] = function() return shop_of.checkout(buyer) end
        end
        assert.same({ [201] = 3, [409] = 5 }, shop_of.statuses(support.parallel(calls)))
        assert.same({ 3, 0 }, { shop_of.stock_of(shop, first).availableQuantity, shop_of.stock_of(shop, second).availableQuantity })
        assert.equal(6, reserved(shop.key).units)
    end)

    it("make one order of one cart", function()
        local shop, product = shop_of.simple(10)
        for round = 1, 3 do
            local buyer = shop_of.buyer(shop, product)
            local answers = support.parallel{ function() return shop_of.checkout(buyer:copy()) end,
                function() return shop_of.checkout(buyer:copy()) end }
            local count = shop_of.statuses(answers)
            assert.equal(1, count[201], json.encode{ answers[1].json, answers[2].json })
            local loser = answers[1].status == 201 and answers[2] or answers[1]
            assert.is_true((loser.status == 409 and loser.json.code == "cart_changed")
                or (loser.status == 404 and loser.json.code == "cart_empty"), loser.body)
            assert.equal(round, orders_of(shop.key))
            assert.equal(round, reserved(shop.key).units)
        end
    end)
end)

describe("the largest cart", function()
    it("is ordered, with a promotion on each of its lines", function()
        local shop, first = shop_of.simple(0, { trackInventory = false })
        must(shop.owner:post("/marketing/promotions/create", { name = "Ten", type = "PERCENTAGE", value = 10 }))
        local buyer = shop_of.buyer(shop, first)
        for i = 2, 200 do
            shop_of.buyer(shop, shop_of.product(shop, { name = "P" .. i, price = 100000, trackInventory = false }), 1, buyer)
        end
        local order = must(shop_of.checkout(buyer, { paymentMethod = "COD", expectedTotal = 18000000 })).orders[1]
        assert.equal(200, #shop_of.order_now(shop, order.id).items)
    end)
end)

describe("an idempotency key", function()
    it("makes one order out of twenty requests at once", function()
        local shop, product = shop_of.simple(30)
        local buyer = shop_of.buyer(shop, product, 1, support.shopper(shop))
        local key = { ["X-Idempotency-Key"] = support.unique("k") }
        local calls = {}
        for i = 1, 20 do calls[i] = function() return shop_of.checkout(buyer:copy(), nil, key) end end
        local answers = support.parallel(calls)
        local body
        for _, answer in ipairs(answers) do
            if answer.status == 201 then
                body = body or answer.body
                assert.equal(body, answer.body)
            else
                assert.same({ 409, "in_progress" }, { answer.status, answer.json.code })
            end
        end
        assert.is_string(body)
        assert.same({ 1, 1 }, { orders_of(shop.key), reserved(shop.key).units })

        local again = shop_of.checkout(buyer, nil, key)
        assert.same({ 201, body, "true" }, { again.status, again.body, again.headers["idempotent-replayed"] })
        local other = shop_of.checkout(buyer, { notes = "ring twice" }, key)
        assert.same({ 409, "idempotency_reuse" }, { other.status, other.json.code })
        assert.equal(404, shop_of.checkout(buyer, nil, { ["X-Idempotency-Key"] = support.unique("k") }).status)
        assert.equal(1, orders_of(shop.key))
    end)

    it("keeps a refusal, too", function()
        local shop, product = shop_of.simple(1)
        local buyer = shop_of.buyer(shop, product, 2)
        local key = { ["X-Idempotency-Key"] = support.unique("k") }
        local first = shop_of.checkout(buyer, nil, key)
        assert.same({ 409, "out_of_stock" }, { first.status, first.json.code })
        shop_of.stock(shop, product, 5)
        local again = shop_of.checkout(buyer, nil, key)
        assert.same({ first.status, first.body }, { again.status, again.body })
        assert.equal(201, shop_of.checkout(buyer).status)
    end)

    it("belongs to who sent it", function()
        local shop, product = shop_of.simple(5)
        local key = { ["X-Idempotency-Key"] = support.unique("k") }
        local first = must(shop_of.checkout(shop_of.buyer(shop, product, 1, support.shopper(shop)), nil, key))
        local second = must(shop_of.checkout(shop_of.buyer(shop, product, 1, support.shopper(shop)), nil, key))
        assert.not_equal(first.orders[1].id, second.orders[1].id)
    end)
end)

describe("a payment's report", function()
    local shop, product = shop_of.simple(40)

    local function placed()
        local answer = must(shop_of.checkout(shop_of.buyer(shop, product)))
        return answer.orders[1], answer.orders[1].amountDueMinor
    end

    it("is taken once, however often and however many at a time it comes", function()
        local order, amount = placed()
        local fields = { transactionId = support.unique("tx"), amount = amount }
        local calls = {}
        for i = 1, 8 do calls[i] = function() return must(report(order.id, fields)) end end
        local applied = 0
        for _, answer in ipairs(support.parallel(calls)) do
            if answer.applied then applied = applied + 1 end
        end
        assert.equal(1, applied)
        assert.same({ true, false, "duplicate" }, { must(report(order.id, fields)).success, must(report(order.id, fields)).applied,
            must(report(order.id, fields)).reason })
        local other = must(report(order.id, { transactionId = support.unique("tx"), amount = amount, status = "COMPLETED" }))
        assert.same({ false, "already_paid" }, { other.applied, other.reason })
        local now = shop_of.order_now(shop, order.id)
        assert.same({ "processing", "paid", amount }, { now.status, now.paymentStatus, now.paidTotalMinor })
        local items, placed_items = told_items(shop.key, order.id, "order.paid")
        assert.equal(1, #items)
        assert.same(placed_items, items)
    end)

    it("of another amount or currency asks for a look and pays nothing", function()
        for reason, fields in pairs{ amount_mismatch = { amountOff = -1 }, currency_mismatch = { currency = "USD" } } do
            local order, amount = placed()
            local answer = must(report(order.id, { transactionId = support.unique("tx"), amountMinor = amount + (fields.amountOff or 0),
                currency = fields.currency or "VND" }))
            assert.same({ true, false, reason }, { answer.success, answer.applied, answer.reason })
            local now = shop_of.order_now(shop, order.id)
            assert.same({ "pending", "review", 0 }, { now.status, now.paymentStatus, now.paidTotalMinor })
            local told = told_payment(shop.key, order.id, "order.payment_review")
            assert.same({ reason = reason, amountMinor = amount, currency = "VND" }, told)
        end
    end)

    it("of a failure never takes a payment back", function()
        local order, amount = placed()
        must(report(order.id, { transactionId = support.unique("tx"), amount = amount }))
        for _, word in ipairs{ "FAILED", "EXPIRED", "CANCELLED", "DECLINED" } do
            assert.is_false(must(report(order.id, { status = word, transactionId = support.unique("tx") })).applied)
        end
        local now = shop_of.order_now(shop, order.id)
        assert.same({ "processing", "paid" }, { now.status, now.paymentStatus })
    end)

    it("of a failure lets the next attempt pay", function()
        local order, amount = placed()
        assert.is_true(must(report(order.id, { status = "FAILED", transactionId = support.unique("tx") })).applied)
        local now = shop_of.order_now(shop, order.id)
        assert.same({ "pending", "failed" }, { now.status, now.paymentStatus })
        assert.same({ reason = "FAILED", amountMinor = amount, currency = "VND" }, told_payment(shop.key, order.id, "order.payment_failed"))
        assert.is_true(must(report(order.id, { transactionId = support.unique("tx"), amount = amount })).applied)
        assert.equal("paid", shop_of.order_now(shop, order.id).paymentStatus)
    end)

    it("of an unknown word or order changes nothing", function()
        local order = placed()
        assert.is_false(must(report(order.id, { status = "DREAMING", transactionId = support.unique("tx") })).applied)
        assert.equal("unpaid", shop_of.order_now(shop, order.id).paymentStatus)
        assert.equal(404, report("01900000-0000-7000-8000-000000000000", {}).status)
        assert.equal(401, report(order.id, {}, "wrong").status)
    end)
end)

describe("an order that nobody pays", function()
    local platform = support.platform()
    local shop, product = shop_of.simple(3)

    -- Sessions end with the shifted clock, so people sign in anew on both sides of it.
    local function at(seconds, fn)
        support.advance(platform, seconds)
        local ok, why = pcall(fn)
        support.sign_in(platform)
        support.real_time(platform)
        support.sign_in(platform)
        support.sign_in(shop.owner)
        if not ok then error(why, 0) end
    end

    it("ends after its hour and gives the stock back", function()
        local order = must(shop_of.checkout(shop_of.buyer(shop, product, 2))).orders[1]
        local paid = must(shop_of.checkout(shop_of.buyer(shop, product, 1))).orders[1]
        must(report(paid.id, { transactionId = support.unique("tx"), amount = paid.amountDue }))
        assert.equal(0, shop_of.stock_of(shop, product).availableQuantity)
        at(61 * 60, function()
            support.sign_in(shop.owner)
            local ended = support.eventually(function()
                local now = shop_of.order_now(shop, order.id)
                return now.status == "cancelled" and now
            end, 20)
            assert.same({ "expired", "unpaid" }, { ended.cancelReason, ended.paymentStatus })
            assert.same({ 2, 3 }, { shop_of.stock_of(shop, product).availableQuantity, shop_of.stock_of(shop, product).quantity })
            assert.equal("processing", shop_of.order_now(shop, paid.id).status)
            assert.equal(1, reserved(shop.key).units)
            local items, placed_items = told_items(shop.key, order.id, "order.cancelled")
            assert.equal(2, items[1].quantity)
            assert.same(placed_items, items)
        end)
    end)

    it("stays as long as the hour runs", function()
        local order = must(shop_of.checkout(shop_of.buyer(shop, product, 1))).orders[1]
        local short = must(shop_of.checkout(shop_of.buyer(shop, product, 1), { paymentMethod = "COD" })).orders[1]
        at(59 * 60, function()
            support.sign_in(shop.owner)
            assert.equal("pending", shop_of.order_now(shop, order.id).status)
            assert.is_true(must(report(order.id, { transactionId = support.unique("tx"), amount = order.amountDue })).applied)
        end)
        at(61 * 60, function()
            support.sign_in(shop.owner)
            assert.equal("processing", shop_of.order_now(shop, order.id).status)
            assert.equal("pending", shop_of.order_now(shop, short.id).status)
        end)
    end)
end)

describe("what follows an act", function()
    it("mails a guest the confirmation once", function()
        local shop, product = shop_of.simple(2, { name = "Reading Lamp" })
        local address = support.unique("guest") .. "@example.test"
        local order = must(shop_of.checkout(shop_of.buyer(shop, product, 2), { guestEmail = address })).orders[1]
        local mail = support.eventually(function()
            local text, raw = support.mail_to(address)
            return text and { text = text, raw = raw }
        end, 20)
        for _, part in ipairs{ order.orderNumber, "2 x Reading Lamp", "200000.00 VND" } do
            assert.is_truthy(mail.text:find(part, 1, true), part)
        end
        assert.is_truthy(mail.raw:find("\nSubject: ", 1, true))
        assert.equal(1, support.mail_count(address))
    end)

    it("opens an account by the mailed code", function()
        local shop = support.tenant()
        local client, email = support.guest(shop), support.unique("new") .. "@example.test"
        assert.equal(401, client:get("/users/me").status)
        must(client:post("/auth/register", { email = email, password = "secret-99" }))
        must(client:post("/auth/verify-otp", { identifier = email, code = support.code_for(email), type = "REGISTER" }), 200)
        assert.equal(email, must(client:get("/users/me"), 200).user.email)
        local again = support.guest(shop)
        must(again:post("/auth/login", { identifier = email, password = "secret-99" }), 200)
        assert.equal(email, must(again:get("/users/me"), 200).user.email)
        assert.equal(0, #must(again:get("/sales/orders/me"), 200))
    end)

    it("keeps an adjustment of stock in the audit exactly once", function()
        local shop, product = shop_of.simple(0)
        local body = { warehouseId = shop.warehouse_id, productId = product, quantity = 7, reason = "found" }
        local key = { ["X-Idempotency-Key"] = support.unique("k") }
        local first = shop.owner:post("/api/logistics/inventory/adjust", body, key)
        local again = shop.owner:post("/api/logistics/inventory/adjust", body, key)
        assert.same({ 201, first.body }, { again.status, again.body })
        body.quantity, body.reason = -2, "lost"
        assert.equal(5, must(shop.owner:post("/api/logistics/inventory/adjust", body)).quantity)

        -- Events of a tenant are written in order: when the second is there, a repeat of the first would be, too.
        local docs = support.eventually(function()
            local found = assert(mongo.find("audit_log", { tenant_key = shop.key, action = "inventory.adjust" },
                { limit = 10, sort = { { "seq", 1 } } }))
            return #found >= 2 and found
        end, 20)
        assert.same({ 2, 7, -2 }, { #docs, docs[1].after.quantity, docs[2].after.quantity })
        assert.same({ shop.owner.user.id, product, "ok" }, { docs[1].actor.id, docs[1].entity.id, docs[1].outcome })
        local logged = must(shop.owner:get("/audit/logs?action=inventory.adjust"), 200).data
        assert.same({ 2, docs[2]._id, docs[1]._id }, { #logged, logged[1].id, logged[2].id })
    end)
end)
