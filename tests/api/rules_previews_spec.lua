-- Previews over many orders, as a job: progress, a cart that is priced meanwhile, cancelling; and how long what rules leave behind is kept.
local db = require("kasma.db")
local json = require("core.json")
local pg = require("core.pg")
local preview = require("modules.rules.preview")
local retention = require("modules.rules.retention")
local shop_of = require("api.shop")
local store = require("modules.rules.store")
local support = require("api.support")
local time = require("core.time")
local uuid = require("core.uuid")

local must = shop_of.must
local ORDERS = 600 -- tests/soak/previews_spec.lua has 5,000

local SOURCE = [[return { hook = "promotion", name = "Half", run = function(input)
    return { operations = { { op = "line_percent", line_id = input.cart.lines[1].id, bps = 5000, label = "half" } } }
end }]]

local function post(who, path, body) return who:post("/rules/" .. path, body or {}) end

-- As many orders as asked for, all alike: what one was priced from, over and over.
local function shop_with(n)
    local shop, product = shop_of.simple(0, { trackInventory = false })
    must(shop_of.checkout(shop_of.buyer(shop, product), { paymentMethod = "COD" }))
    local ids = {}
    for i = 1, n - 1 do ids[i] = uuid.v7() end
    db.pipeline(shop.key, { { [[insert into pricing_snapshots (tenant_key, app_key, id, order_id, order_number, currency, total_minor,
        input, result, rules, created_at)
      select s.tenant_key, s.app_key, x.id, s.order_id, 'N' || x.n, s.currency, s.total_minor, s.input, s.result, s.rules, s.created_at
      from pricing_snapshots s, unnest($2::uuid[]) with ordinality as x(id, n) where s.tenant_key = $1]], shop.key, pg.array(ids) } })
    must(post(shop.owner, "create", { key = "half", hook = "promotion", name = "Half", source = SOURCE }))
    return shop, product
end

describe("a preview over many orders", function()
    it("runs as a job with progress while the shop sells on, and is told in sum", function()
        local shop, product = shop_with(ORDERS)
        local buyer = shop_of.buyer(shop, product)
        local began = time.mono()
        local asked = must(post(shop.owner, "half/preview", { orders = { last = 5000 } }), 202)
        local steps, seen = 0, -1
        local row = support.eventually(function()
            local p = must(shop.owner:get("/rules/previews/" .. asked.previewId), 200)
            if p.state == "running" and p.done > seen then steps, seen = steps + 1, p.done end
            assert.equal(100000, must(buyer:post("/sales/cart/quote", {})).total)
            return p.state == "done" and p
        end, 120)
        local took = (time.mono() - began) / 1e6
        assert.same({ ORDERS, ORDERS, ORDERS, -50000 * ORDERS }, { row.done, row.result.against.used, row.result.changed,
            row.result.totals.delta })
        assert.equal(500, #row.result.orders)
        local seen_ids, n, cursor = {}, 0, nil
        repeat
            local page = shop.owner:get(("/rules/previews/%s/orders?limit=100&cursor=%d"):format(asked.previewId, cursor or 0))
            for _, o in ipairs(must(page, 200)) do
                assert.is_nil(seen_ids[o.orderNumber])
                seen_ids[o.orderNumber], n = true, n + 1
                assert.equal(-50000, o.delta)
            end
            cursor = page.headers["x-next-cursor"]
        until not cursor
        assert.equal(ORDERS, n)
        assert.equal(row.result.orders[1].orderNumber, must(shop.owner:get("/rules/previews/" .. asked.previewId .. "/orders?limit=1"),
            200)[1].orderNumber)
        assert.equal(404, support.tenant{}.owner:get("/rules/previews/" .. asked.previewId .. "/orders").status)
        assert.is_true(steps > 1)
        print(("%d orders previewed in %.1f s, %d steps of progress seen"):format(ORDERS, took, steps))
    end)

    it("stops when it is cancelled, and keeps no result", function()
        local shop = shop_with(ORDERS)
        local asked = must(post(shop.owner, "half/preview", { orders = { last = 5000 } }), 202)
        support.eventually(function()
            local p = must(shop.owner:get("/rules/previews/" .. asked.previewId), 200)
            assert.not_equal("done", p.state)
            return p.done > 0
        end, 60)
        assert.equal("cancelled", must(post(shop.owner, "previews/" .. asked.previewId .. "/cancel")).state)
        -- The very job, called once more, finds that nobody wants it.
        preview.work(shop.key, shop.app, asked.previewId)
        local row = must(shop.owner:get("/rules/previews/" .. asked.previewId), 200)
        assert.same({ "cancelled", true, json.null }, { row.state, row.done < ORDERS, row.result })
        assert.equal("cancelled", must(post(shop.owner, "previews/" .. asked.previewId .. "/cancel")).state)
        local none = shop.owner:get("/rules/previews/" .. asked.previewId .. "/orders")
        assert.same({ 200, "[]", nil }, { none.status, none.body, none.headers["x-next-cursor"] })
        local refused = post(shop.owner, "half/publish", { revision = 1, note = "x", previewId = asked.previewId })
        assert.equal("preview_mismatch", refused.json.code)
    end)

    it("says what is wrong when it cannot be made", function()
        local shop = shop_with(1)
        local id, now = uuid.v7(), time.iso(time.now())
        db.pipeline(shop.key, { store.insert_preview{ tenant_key = shop.key, app_key = shop.app, id = id, rule_id =
            must(shop.owner:get("/rules/half"), 200).id, spec = { version = 99, orders = { last = 100 } }, total = 100, now = now } })
        preview.work(shop.key, shop.app, id)
        local row = must(shop.owner:get("/rules/previews/" .. id), 200)
        assert.same({ "failed", "Version not found" }, { row.state, row.result.message })
    end)
end)

describe("a preview of a cart", function()
    it("prices what lies in a customer's cart, by either of its ids, and leaves it as it is", function()
        local shop, product = shop_with(1)
        local buyer = shop_of.buyer(shop, product, 3, support.shopper(shop))
        local mine = must(buyer:get("/sales/cart/me"), 200)
        local id = db.one(shop.key, "select id from carts where tenant_key = $1 and wire_id = $2", shop.key, mine.id).id
        for _, ref in ipairs{ mine.id, id } do
            local seen = must(post(shop.owner, "half/preview", { cartId = ref }))
            assert.same({ "cart", 300000, 150000, 1, "ok" }, { seen.against.kind, seen.totals.before, seen.totals.after, seen.changed,
                seen.run.outcome })
        end
        assert.same(mine.items, must(buyer:get("/sales/cart/me"), 200).items)
        assert.equal(404, post(shop.owner, "half/preview", { cartId = uuid.v7() }).status)
        assert.equal(400, post(shop.owner, "half/preview", { cartId = "x" }).status)
        local other = shop_with(1)
        assert.equal(404, post(other.owner, "half/preview", { cartId = mine.id }).status)
    end)

    it("tells a rule who the cart's owner is, or the customer that is asked for", function()
        local shop, product = shop_with(1)
        must(post(shop.owner, "create", { key = "known", hook = "promotion", name = "Known", source = [[
            return { hook = "promotion", name = "Known", run = function(input)
                return { operations = { { op = "line_percent", line_id = input.cart.lines[1].id,
                    bps = input.customer.orders_count and input.customer.orders_count * 1000 or 0, label = "x" } } }
            end }]] }))
        local first, second = support.shopper(shop), support.shopper(shop)
        must(shop_of.checkout(shop_of.buyer(shop, product, 1, first), { paymentMethod = "COD" }))
        local id = must(shop_of.buyer(shop, product, 1, first):get("/sales/cart/me"), 200).id
        assert.equal(-10000, must(post(shop.owner, "known/preview", { cartId = id })).totals.delta)
        assert.equal(0, must(post(shop.owner, "known/preview", { cartId = id, customerId = second.user.id })).totals.delta)
    end)
end)

describe("a preview of a sample", function()
    it("prices one of the carts that every rule is tried with", function()
        local shop = shop_with(1)
        local names = must(shop.owner:get("/rules/hooks/promotion"), 200).samples
        local seen = must(post(shop.owner, "half/preview", { sample = names[1].name }))
        assert.same({ "sample", 1, "ok" }, { seen.against.kind, seen.changed, seen.run.outcome })
        assert.is_true(seen.totals.delta < 0 and seen.adjustments[1].amount == -seen.totals.merchandiseNet)
        assert.equal(404, post(shop.owner, "half/preview", { sample = "no such sample" }).status)
        assert.equal(400, post(shop.owner, "half/preview", {}).status)
    end)
end)

describe("what rules leave behind", function()
    it("is kept for thirty days, counts by the hour for ninety", function()
        local shop = shop_with(1)
        local rule = must(shop.owner:get("/rules/half"), 200)
        local now = time.now()
        local function at(days) return now - days * 86400000 end
        -- An id of that moment: what is old is found by it.
        local function id_of(days) return db.one(nil, "select history_id($1::timestamptz)::text as id", time.iso(at(days))).id end
        local ids = {}
        for _, days in ipairs{ 29, 31 } do
            local id = id_of(days)
            ids[days] = id
            local row = { tenant_key = shop.key, app_key = shop.app, id = id, rule_id = rule.id, spec = {}, total = 1,
                now = time.iso(at(days)), at = time.iso(at(days)), version = 1, hook = "promotion", outcome = "error",
                fingerprint = "f" .. days, message = "m", instructions = 1, micros = 1, heap = 1, document = id, n = 1 }
            db.pipeline(shop.key, { store.insert_preview(row), store.insert_run(row), store.count_failure(row) })
            store.write_bodies{ { _id = id, tenant_key = shop.key, input = { n = days } } }
        end
        local buckets = {}
        for i = 1, 16 do buckets[i] = 0 end
        for _, days in ipairs{ 89, 91 } do
            db.pipeline(shop.key, { store.add_hour{ tenant_key = shop.key, app_key = shop.app, rule_id = rule.id, version = 1,
                hour = time.iso(at(days)), outcome = "ok", n = 1, discount_minor = 0, instructions = buckets,
                micros = buckets } })
        end
        assert.same({ previews = 1, runs = 1, failures = 1, hours = 1 }, retention.of(shop.key, now))
        assert.same({ previews = 0, runs = 0, failures = 0, hours = 0 }, retention.of(shop.key, now))
        assert.equal(200, shop.owner:get("/rules/previews/" .. ids[29]).status)
        assert.equal(404, shop.owner:get("/rules/previews/" .. ids[31]).status)
        assert.is_table(store.body(shop.key, ids[29]))
        assert.is_nil(store.body(shop.key, ids[31]))
        assert.equal("f29", must(shop.owner:get("/rules/half/failures"), 200)[1].fingerprint)
    end)
end)
