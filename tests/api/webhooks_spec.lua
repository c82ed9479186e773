-- Webhook endpoints over HTTP: who may set them, what they may be, and whose they are. Deliveries: tests/faults/test_webhooks.
local time = require("core.time")
local uuid = require("core.uuid")
local db = require("kasma.db")
local support = require("api.support")
local store = require("modules.webhooks.store")

local URL = "https://hooks.shop.example.org/kasma"

describe("webhook endpoints", function()
    local shop, other

    setup(function()
        shop, other = support.tenant(), support.tenant()
    end)

    local function create(body)
        body = body or {}
        return shop.owner:post("/webhooks/endpoints/create", { name = body.name or "w", url = body.url or URL, events = body.events
            or { "order.*" }, headers = body.headers })
    end

    it("are set by staff alone, under both paths", function()
        local customer = support.shopper(shop)
        assert.equal(403, customer:get("/webhooks/endpoints").status)
        assert.equal(403, customer:post("/webhooks/endpoints/create", { name = "w", url = URL, events = { "*" } }).status)
        assert.equal(403, customer:get("/webhooks/events").status)
        assert.equal(401, support.guest(shop):get("/webhooks/deliveries").status)
        assert.equal(201, shop.owner:post("/webhooks/endpoints", { name = "w", url = URL, events = { "*" } }).status)
    end)

    it("refuse what is no event, no public URL, no header of one's own", function()
        local function messages(body)
            local answer = create(body)
            assert.equal(400, answer.status)
            return table.concat(answer.json.message, "; ")
        end
        assert.truthy(messages{ events = { "order.*", "order.nothing" } }:find("events.1", 1, true))
        assert.truthy(messages{ url = "http://shop.example.org/" }:find("https", 1, true))
        assert.truthy(messages{ url = "https://localhost/" }:find("public", 1, true))
        assert.truthy(messages{ headers = { Host = "x" } }:find("headers.Host", 1, true))
        assert.truthy(messages{ headers = { ["Webhook-Id"] = "x" } }:find("not allowed", 1, true))
        assert.truthy(messages{ headers = { ["X-A"] = "1\r\nX-B: 2" } }:find("one line", 1, true))
        assert.equal(400, create{ events = {} }.status)
        assert.equal(400, create{ name = "" }.status)
    end)

    it("refuse an address that is not public, however it is written, when they are made and when they are changed", function()
        local made = create().json
        for _, host in ipairs{ "127.0.0.1", "10.0.0.1", "192.168.1.1", "100.64.0.1", "169.254.169.254", "127.1", "2130706433", "0x7f000001",
            "0177.0.0.1", "0x7f.1", "127.0.0.1.", "0.0.0.0", ("0"):rep(60) .. "177.0.0.1", "[::1]", "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]", "[64:ff9b::a00:1]", "[2002:7f00:1::]", "[fe80::1]", "[fd00:ec2::254]", "[::7F00:1]" } do
            local url = "https://" .. host .. ":8443/x"
            local answer = create{ url = url }
            assert.equal(400, answer.status, host)
            assert.matches("url must lead to a public address", answer.json.message[1], 1, true)
            assert.equal(400, shop.owner:post("/webhooks/endpoints/" .. made.id .. "/update", { url = url }).status, host)
        end
        for _, host in ipairs{ "999.1.1.1", "4294967296", "1.2.3.4.5", "shop.1", "[1:2]", "[::zz]" } do
            assert.equal(400, create{ url = "https://" .. host .. "/" }.status, host)
        end
        for _, host in ipairs{ "8.8.8.8", "134744072", "[2606:4700::1111]", "1.shop.vn" } do
            assert.equal(201, create{ url = "https://" .. host .. "/" }.status, host)
        end
        assert.equal(URL, shop.owner:get("/webhooks/endpoints/" .. made.id).json.url)
    end)

    it("show their secret once, and belong to their tenant", function()
        local made = create{ headers = { ["X-Token"] = "hidden" } }.json
        assert.truthy(made.secret:find("^whsec_[%w+/]+=*$"))
        local path = "/webhooks/endpoints/" .. made.id
        local shown = shop.owner:get(path)
        assert.equal(200, shown.status)
        assert.is_nil(shown.json.secret)
        assert.is_nil(shown.body:find("hidden", 1, true))
        for _, word in ipairs{ "", "/update", "/remove", "/rotate", "/test" } do
            local answer = word == "" and other.owner:get(path) or other.owner:post(path .. word, {})
            assert.equal(404, answer.status, word)
        end
        assert.equal(404, shop.owner:get("/webhooks/endpoints/not-a-uuid").status)
        local changed = shop.owner:post(path .. "/update", { state = "disabled" }).json
        assert.same({ "disabled", "by hand", 2 }, { changed.state, changed.disabledReason, changed.version })
        local again = shop.owner:post(path .. "/update", { state = "active", name = "Other" }).json
        assert.same({ "active", "Other" }, { again.state, again.name })
        local rotated = shop.owner:post(path .. "/rotate").json
        assert.not_equal(made.secret, rotated.secret)
        assert.equal(201, shop.owner:post(path .. "/remove").status)
        assert.equal(404, shop.owner:get(path).status)
    end)

    it("are fifty at most, also when they come at once", function()
        local home = support.tenant()
        local calls = {}
        for i = 1, 60 do
            calls[i] = function()
                return (support.eventually(function() -- a full pool says 503: come again
                    local status = home.owner:copy():post("/webhooks/endpoints/create", { name = "n" .. i, url = URL, events = { "*" } })
                        .status
                    return status ~= 503 and status
                end))
            end
        end
        local counts = {}
        for _, status in ipairs(support.parallel(calls)) do counts[status] = (counts[status] or 0) + 1 end
        assert.same({ [201] = 50, [409] = 10 }, counts)
        assert.equal(50, #home.owner:get("/webhooks/endpoints").json)
    end)

    it("find every event in the catalogue with its schema", function()
        local list = shop.owner:get("/webhooks/events").json
        local by_name = {}
        for _, entry in ipairs(list) do by_name[entry.event] = entry end
        assert.equal("order", by_name["order.placed"].of)
        assert.truthy(by_name["order.placed"].schema.properties.checkoutId)
        assert.truthy(by_name["stock.changed"] and by_name["user.created"] and by_name["webhook.disabled"])
    end)

    it("are told of nothing that does not fit the catalogue, in all that these tests did", function()
        local events, pg = require("kasma.events"), require("core.pg")
        local rows = assert(pg.pool("system"):read(nil, "select id, tenant_key, key, payload from outbox where topic = 'event' "
            .. "order by seq desc limit 20000"))
        for _, row in ipairs(rows) do
            local problems = events.problems(row)
            assert.is_nil(problems, tostring(row.payload.name) .. ": " .. table.concat(problems or {}, "; "))
        end
    end)

    it("hear of a stock row by its own id, and what lies there", function()
        local events = require("kasma.events")
        local home = support.tenant()
        local product = home.owner:post("/api/ecommerce/products/create", { name = "Tea", slug = "tea", price = 1000 }).json.productId
        local function adjust(quantity)
            local answer = home.owner:post("/api/logistics/inventory/adjust", { warehouseId = home.warehouse_id, productId = product,
                quantity = quantity, reason = "count" })
            assert.equal(201, answer.status, answer.body)
        end
        adjust(5)
        adjust(-2)
        local stock = db.one(home.key, "select id from warehouse_inventory where tenant_key = $1 and product_id = $2", home.key, product)
        local rows = db.read(home.key, "select id, key, payload from outbox where tenant_key = $1 and topic = 'event' "
            .. "and payload->>'name' = 'stock.changed' order by seq", home.key)
        assert.equal(2, #rows)
        for i, on_hand in ipairs{ 5, 3 } do
            local data = events.data_of(rows[i])
            assert.same({ stock.id, product, home.warehouse_id, on_hand, 0, on_hand },
                { data.id, data.productId, data.warehouseId, data.onHand, data.reserved, data.available })
            assert.is_nil(events.problems(rows[i]))
        end
    end)

    it("hear of each session that ends by its own id", function()
        local events = require("kasma.events")
        local home = support.tenant()
        local user = support.shopper(home)
        local function again()
            local copy = user:copy()
            copy.user = user.user
            support.sign_in(copy)
            return copy
        end
        local function id_of(client) return client:get("/auth/me").json.user.session_id end
        local function told()
            local found = {}
            for _, row in ipairs(db.read(home.key, "select id, key, payload from outbox where tenant_key = $1 and topic = 'event' "
                .. "and payload->>'name' = 'session.revoked' order by seq", home.key)) do
                local data = events.data_of(row)
                found[#found + 1] = data.id .. " " .. data.userId .. " " .. data.reason
            end
            table.sort(found)
            return found
        end
        local second, third = again(), again()
        local first_id, second_id, third_id = id_of(user), id_of(second), id_of(third)
        assert.truthy(first_id and second_id and third_id)
        assert.equal(200, second:post("/auth/logout").status)
        assert.same({ second_id .. " " .. user.user.id .. " logout" }, told())
        assert.equal(200, user:post("/auth/logout-all").status)
        local wanted = { second_id .. " " .. user.user.id .. " logout", first_id .. " " .. user.user.id .. " logout_all",
            third_id .. " " .. user.user.id .. " logout_all" }
        table.sort(wanted)
        assert.same(wanted, told())
    end)

    it("hear who put a rule live or switched it off, which version, and why", function()
        local events = require("kasma.events")
        local home = support.tenant()
        assert.equal(201, home.owner:post("/rules/create", { key = "told", hook = "promotion", name = "Told",
            source = 'return { hook = "promotion", name = "Told", run = function() return nil end }' }).status)
        assert.equal(201, home.owner:post("/rules/told/publish", { revision = 1, note = "for tea" }).status)
        assert.equal(201, home.owner:post("/rules/told/disable", { reason = "season over" }).status)
        local rows = db.read(home.key, "select id, key, payload from outbox where tenant_key = $1 and topic = 'event' "
            .. "and payload->>'name' like 'rule.%' order by seq", home.key)
        local told = {}
        for i, row in ipairs(rows) do
            local data = events.data_of(row)
            told[i] = { row.payload.name, data.key, data.hook, data.version, data.actorId, data.reason }
        end
        local owner = home.owner.user.id
        assert.same({ { "rule.published", "told", "promotion", 1, owner, "for tea" },
            { "rule.disabled", "told", "promotion", 1, owner, "season over" } }, told)
    end)

    it("list what was sent from a moment to a moment, in either order, and how many there are", function()
        local home = support.tenant()
        local made = home.owner:post("/webhooks/endpoints/create", { name = "w", url = URL, events = { "order.paid" } }).json
        local began, all = time.now(), {}
        local function at(n) return time.iso(began - (5 - n) * 60000) end
        for n = 1, 5 do -- nothing makes them fall due, so that they stay as they are
            local row = db.query(home.key, unpack(store.insert_delivery{ tenant_key = home.key, app_key = home.app, id = uuid.v7(),
                endpoint_id = made.id, event_id = uuid.v7(), event = "order.paid", entity_key = "o" .. n, sequence = n, round = 0, try = 1,
                due_at = at(n), request = { body = "{}" }, now = at(n) }))[1]
            all[row.id] = n
        end
        local function ids(query)
            local answer = home.owner:get("/webhooks/deliveries?" .. query)
            assert.equal(200, answer.status, answer.body)
            local list = {}
            for i, row in ipairs(answer.json) do list[i] = all[row.id] end
            return list, answer.headers["x-total-count"], answer.headers["x-next-cursor"]
        end
        assert.same({ { 5, 4, 3, 2, 1 }, "5" }, { ids("") })
        assert.same({ { 1, 2, 3, 4, 5 }, "5" }, { ids("sort=createdAt") })
        assert.same({ { 5, 4, 3 }, "3" }, { ids("createdAt[gte]=" .. at(3)) })
        assert.same({ { 3, 2, 1 }, "3" }, { ids("createdAt%5Blte%5D=" .. at(3)) })
        assert.same({ { 2, 3, 4 }, "3" }, { ids("sort=createdAt&createdAt[gte]=" .. at(2) .. "&createdAt[lte]=" .. at(4)) })
        local page, total, cursor = ids("sort=createdAt&limit=2")
        assert.same({ { 1, 2 }, "5" }, { page, total })
        assert.same({ { 3, 4, 5 }, "5" }, { ids("sort=createdAt&limit=4&cursor=" .. cursor) })
        assert.same({ {}, "0" }, { ids("state=sent") })
        for _, bad in ipairs{ "sort=url", "createdAt[gte]=yesterday", "createdAt[gt]=" .. at(1), "createdAt=" .. at(1) } do
            assert.equal(400, home.owner:get("/webhooks/deliveries?" .. bad).status, bad)
        end
        assert.equal("0", shop.owner:get("/webhooks/deliveries?endpointId=" .. made.id).headers["x-total-count"])
    end)

    it("send nothing again that is not theirs", function()
        assert.equal(404, shop.owner:post("/webhooks/deliveries/018f6d2e-7a41-7c11-9d7b-0d1f2c3b4a59/redeliver").status)
        assert.equal(404, shop.owner:post("/webhooks/deliveries/redeliver",
            { endpointId = "018f6d2e-7a41-7c11-9d7b-0d1f2c3b4a59" }).status)
        assert.equal(400, shop.owner:get("/webhooks/deliveries?state=odd").status)
    end)
end)
