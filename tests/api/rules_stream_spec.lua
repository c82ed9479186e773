-- What happens to rules, as it happens: the event streams of the rule platform.
local http = require("core.http_client")
local json = require("core.json")
local sched = require("core.sched")
local support = require("api.support")
local shop_of = require("api.shop")
local command = require("api.rules_command")
local event_source = require("kasma.event_source")

local must = shop_of.must
local URL = os.getenv("TEST_URL")

local function source(bps)
    return ("return { hook = \"promotion\", name = \"Off\", run = function(input)\n  local l = input.cart.lines[1]\n  if l.qty == 77 then "
        .. "error(\"no 77\") end\n  return { operations = { { op = \"line_percent\", line_id = l.id, bps = %d } } }\nend }\n"):format(bps)
end

-- Listens; `seen` fills up with {event, payload, id} until it ends.
local function listen(path, headers)
    local all = { Accept = "text/event-stream" }
    for name, value in pairs(headers) do all[name] = value end
    local stream = assert(http.stream{ url = URL .. path, headers = all })
    local heard = { seen = {}, ended = false }
    sched.spawn(function()
        local feed = event_source.parser()
        while true do
            local text = stream:read()
            if not text then break end
            for _, e in ipairs(feed(text)) do
                local body = json.decode(e.data)
                heard.seen[#heard.seen + 1] = { event = e.event, payload = body.payload or {}, id = e.id }
            end
        end
        heard.status = stream:status()
        heard.ended = true
    end)
    function heard.has(name, test)
        for _, e in ipairs(heard.seen) do
            if e.event == name and (not test or test(e.payload)) then return e end
        end
        return nil
    end
    function heard.wait(name, test) return (support.eventually(function() return heard.has(name, test) end)) end
    function heard.close() stream:close() end
    return heard
end

describe("the stream of a tenant's rules", function()
    local shop, product, bearer

    setup(function()
        shop, product = shop_of.simple(0, { trackInventory = false })
        bearer = { Authorization = "Bearer " .. command.key(shop) }
    end)

    it("tells what was saved, published, loaded by each worker, and failed", function()
        local heard = listen("/rules/stream", bearer)
        heard.wait("subscribed")
        must(shop.owner:post("/rules/create", { key = "off", hook = "promotion", name = "Off", source = source(1000) }))
        assert.same({ "off", 1, true }, { heard.wait("saved").payload.key, heard.wait("saved").payload.revision,
            heard.wait("saved").payload.ok })
        -- Whoever serves holds the tenant's rules once it has been asked.
        local buyer = shop_of.buyer(shop, product, 77)
        local done = must(shop.owner:post("/rules/off/publish", { revision = 1, note = "go" }))
        assert.same({ 1, done.epoch }, { heard.wait("published").payload.version, heard.wait("published").payload.epoch })
        local loaded = heard.wait("loaded", function(p) return p.epoch == done.epoch end).payload
        assert.truthy(loaded.worker and loaded.workers >= 1)
        support.eventually(function()
            must(buyer:post("/sales/cart/quote", { shippingAddress = { country = "VN" } }))
            return heard.has("failed")
        end)
        local failed = heard.has("failed").payload
        assert.same({ "off", 1, "error", 3 }, { failed.rule, failed.version, failed.outcome, failed.line })
        heard.close()
    end)

    it("gives a client that comes again what it missed", function()
        local heard = listen("/rules/stream", bearer)
        local first = heard.wait("subscribed")
        heard.close()
        local draft = must(shop.owner:get("/rules/off/draft"), 200).draft
        must(shop.owner:post("/rules/off/draft", { revision = draft.revision, source = source(2000) }))
        local again = listen("/rules/stream", { Authorization = bearer.Authorization, ["Last-Event-ID"] = first.id })
        again.wait("saved", function(p) return p.revision == draft.revision + 1 end)
        again.close()
    end)

    it("sends runs with what they cost to who asks for them", function()
        local heard = listen("/rules/stream?runs=true", bearer)
        heard.wait("subscribed")
        local buyer = shop_of.buyer(shop, product, 2)
        local run
        support.eventually(function()
            must(buyer:post("/sales/cart/quote", { shippingAddress = { country = "VN" } }))
            local e = heard.has("runs")
            run = e and e.payload.runs[1]
            return run
        end)
        assert.same({ "off", 1, "ok", 200000 }, { run.rule, run.version, run.outcome, run.limit })
        assert.same({ "number", "number" }, { type(run.instructions), type(run.micros) })
        heard.close()
    end)

    it("is closed to strangers and other tenants, and ends with what opened it", function()
        local other = support.tenant{}
        local stranger = listen("/rules/stream", { Authorization = "Bearer " .. command.key(other),
            ["X-Tenant-Kasma-Id"] = shop.key })
        support.eventually(function() return stranger.ended end)
        assert.equal(403, stranger.status)
        local poor = listen("/rules/stream", { Authorization = "Bearer " .. command.key(shop, { "orders.read" }) })
        support.eventually(function() return poor.ended end)
        assert.equal(403, poor.status)
        local nobody = listen("/rules/stream", {})
        support.eventually(function() return nobody.ended end)
        assert.equal(401, nobody.status)
        local theirs = listen("/rules/stream", { Authorization = "Bearer " .. command.key(other) })
        theirs.wait("subscribed")
        local draft = must(shop.owner:get("/rules/off/draft"), 200).draft
        must(shop.owner:post("/rules/off/draft", { revision = draft.revision, source = source(3000) }))
        local person = support.user(shop, "tenant_owner")
        local cookies = {}
        for name, value in pairs(person.cookies) do cookies[#cookies + 1] = name .. "=" .. value end
        local mine = listen("/rules/stream", { Cookie = table.concat(cookies, "; "), ["X-Tenant-Kasma-Id"] = shop.key })
        mine.wait("subscribed")
        must(shop.owner:post("/rules/off/draft", { revision = draft.revision + 1, source = source(3500) }))
        mine.wait("saved")
        person:post("/auth/logout")
        support.eventually(function() return mine.ended end)
        assert.is_nil(theirs.has("saved"))
        theirs.close()
    end)
end)

describe("the progress of a preview", function()
    it("says how far it is now, and when it is done", function()
        local shop, product = shop_of.simple(0, { trackInventory = false })
        must(shop_of.checkout(shop_of.buyer(shop, product, 1), { paymentMethod = "COD" }))
        must(shop.owner:post("/rules/create", { key = "off", hook = "promotion", name = "Off", source = source(1000) }))
        local answer = shop.owner:post("/rules/off/preview", { orders = { last = 60 } })
        assert.equal(202, answer.status)
        local path = "/rules/previews/" .. answer.json.previewId .. "/stream"
        local heard = listen(path, { Authorization = "Bearer " .. command.key(shop) })
        local done = heard.wait("progress", function(p) return p.state == "done" end)
        assert.equal(60, done.payload.total)
        heard.close()
        local other = support.tenant{}
        local theirs = listen(path, { Authorization = "Bearer " .. command.key(other) })
        support.eventually(function() return theirs.ended end)
        assert.equal(404, theirs.status)
    end)
end)

describe("an event stream's reader", function()
    it("makes the same events of any pieces", function()
        local text = ": hello\r\n\r\nid: 7\nevent: saved\ndata: {\"a\":1}\ndata: 2\n\ndata:x\n\nevent: lost\n\n"
        local want = { { event = "saved", data = "{\"a\":1}\n2", id = "7" }, { event = "message", data = "x", id = "7" } }
        for size = 1, #text do
            local feed, got = event_source.parser(), {}
            for at = 1, #text, size do
                for _, e in ipairs(feed(text:sub(at, at + size - 1))) do got[#got + 1] = e end
            end
            assert.same(want, got)
        end
    end)

    it("gives up on lines and events without an end", function()
        local feed, ok = event_source.parser(), nil
        for _ = 1, 20 do
            ok = feed(("x"):rep(100000))
            if not ok then break end
        end
        assert.is_nil(ok)
        feed = event_source.parser()
        for _ = 1, 100 do
            ok = feed("data: " .. ("x"):rep(100000) .. "\n")
            if not ok then break end
        end
        assert.is_nil(ok)
    end)
end)
