-- What the steps of a workflow can do: orders, mails, notices, other rules and events. All of it is written once, however often a step is
-- tried.
local json = require("core.json")
local time = require("core.time")
local uuid = require("core.uuid")
local capabilities = require("kasma.capabilities")
local db = require("kasma.db")
local support = require("api.support")
local shop_of = require("api.shop")
local flow = require("api.flow")

local must = shop_of.must
local post, emit, runs, run_in = flow.post, flow.emit, flow.runs, flow.run_in

local function publish(shop, key, needs, on, steps)
    must(post(shop.owner, "create", { key = key, hook = "workflow", name = key, source = ([[return { hook = "workflow", name = "Flow",
        needs = { %s }, on = { %s }, steps = { %s } }]]):format(needs, on, steps) }))
    return must(post(shop.owner, key .. "/publish", { revision = 1, note = "go" }))
end

-- Runs a step that does something and then fails, twice: by retry of the run. The log of the last attempt.
local function twice(shop, key, needs, body, data)
    publish(shop, key, needs, "\"custom." .. key .. "\"", ([[{ name = "a", run = function(input)
        local data = input.subject.event.data
        %s
        if data.fails then error("once more") end
    end }]]):format(body))
    local id = uuid.v4()
    data.fails = true
    emit(shop, "custom." .. key, id, data)
    local run = run_in(shop, key, id, "failed")
    must(post(shop.owner, "workflows/" .. run.id .. "/retry", { reason = "again" }))
    support.eventually(function()
        run = runs(shop, key)[1]
        return run.state == "failed" and #run.steps == 2
    end, 20)
    assert.equal("once more", run.error.message)
    return run.steps[2].log
end

-- Runs a step of one event and answers what it logged.
local function once(shop, key, needs, body, data)
    publish(shop, key, needs, "\"custom." .. key .. "\"", ([[{ name = "a", run = function(input)
        local data = input.subject.event.data
        %s
    end }]]):format(body))
    local id = uuid.v4()
    emit(shop, "custom." .. key, id, data)
    local run
    support.eventually(function()
        run = runs(shop, key, "?entityId=" .. id)[1]
        return run and run.finishedAt ~= json.null
    end, 30)
    return run.steps[1].log, run
end

local function words(log) return (tostring(log):gsub("%s+", " "):gsub(" $", "")) end

describe("orders in a workflow", function()
    local shop, order

    setup(function()
        local product
        shop, product = shop_of.simple(0, { trackInventory = false })
        order = must(shop_of.checkout(shop_of.buyer(shop, product, 2), { paymentMethod = "COD" })).orders[1]
    end)

    it("are read without names and addresses, and only the shop's own", function()
        local log = once(shop, "reads", "\"orders\"", [[local order = orders.get(data.order)
            log(order.number, order.status, order.total, order.currency, #order.items, order.items[1].qty, order.country)
            log(orders.get(data.other), select(2, orders.get(data.other)), select(2, orders.get("nonsense")))
            local fields = {} for name in pairs(order) do fields[#fields + 1] = name end
            log(table.concat(fields, ","))]], { order = order.id, other = uuid.v7() })
        local lines = {}
        for line in log:gmatch("[^\n]+") do lines[#lines + 1] = words(line) end
        assert.equal(("%s pending 200000 VND 1 2 VN"):format(order.orderNumber), lines[1])
        assert.equal("nil not_found not_found", lines[2])
        for _, word in ipairs{ "address", "email", "phone", "notes" } do assert.is_nil(lines[3]:find(word, 1, true), word) end
        local other = support.tenant()
        assert.equal("nil not_found", words(once(other, "reads", "\"orders\"", [[log(orders.get(data.order))]], { order = order.id })))
    end)

    it("take a note and a state once, however often the step is tried", function()
        twice(shop, "notes", "\"orders\"", [[assert(orders.note(data.order, "Gift wrap")) assert(orders.note(data.order, "Call first"))
            assert(orders.set_workflow_state(data.order, "packing"))]], { order = order.id })
        local details = must(shop.owner:post("/sales/orders/details", { id = order.id }))
        assert.same({ "Gift wrap\nCall first", "packing" }, { details.internalNotes, details.workflowState })
        local noted = {}
        for _, event in ipairs(details.events) do
            if event.actorKind == "script" then noted[#noted + 1] = event.type .. " " .. event.reason end
        end
        table.sort(noted) -- three of one millisecond
        assert.same({ "note Call first", "note Gift wrap", "workflow_state packing" }, noted)
    end)

    it("hold a bounded number of notes", function()
        publish(shop, "chatter", "\"orders\"", "\"custom.chatter\"", [[{ name = "a", run = function(input)
            for i = 1, 20 do
                local ok, why = orders.note(input.subject.event.data.order, ("x"):rep(2000))
                if not ok then log(why) break end
            end
        end }]])
        local full
        for _ = 1, 3 do
            local id = uuid.v4()
            emit(shop, "custom.chatter", id, { order = order.id })
            full = run_in(shop, "chatter", id, "done").steps[1].log
        end
        assert.truthy(full:find("too_many_notes", 1, true), full)
    end)

    it("are not there for a rule that does not need them", function()
        local answer = must(post(shop.owner, "check", { source = [[return { hook = "workflow", name = "x", on = { "order.placed" },
            steps = { { name = "a", run = function(input) orders.note(input.subject.event.id, "x") end } } }]] }))
        assert.same({ "capability_denied", 2 }, { answer.diagnostics[1].code, answer.diagnostics[1].line })
    end)
end)

describe("what a step remembers", function()
    it("is counted, set and deleted once however often the step is tried, and read anew each time", function()
        local shop = support.tenant()
        local log = twice(shop, "counts", "\"kv\"", [[local n = kv.incr("n", 2)
            local version = kv.set("v", "x", { if_version = 0 })
            kv.set("gone", 1)
            local there, absent = kv.delete("gone"), kv.delete("never")
            log(n, version, there, absent, kv.get("n"), #kv.list())]], {})
        assert.equal("2 1 true false 2 2", words(log))
        local rows = db.read(shop.key, "select k, v #>> '{}' as v, version from rule_kv where tenant_key = $1 order by k", shop.key)
        assert.same({ { k = "n", v = "2", version = 1 }, { k = "v", v = "x", version = 1 } }, { rows[1], rows[2] })
    end)

    it("is written when a write that came to nothing comes to something the next time", function()
        local shop = support.tenant()
        publish(shop, "later", "\"kv\"", "\"custom.later\"", [[{ name = "a", run = function(input)
            local version, why = kv.set("v", "mine", { if_version = 1 })
            if not version then error(why) end
        end }]])
        local id = uuid.v4()
        emit(shop, "custom.later", id, {})
        local run = run_in(shop, "later", id, "failed")
        assert.truthy(run.error.message:find("version_conflict", 1, true))
        db.query(shop.key, [[insert into rule_kv (tenant_key, app_key, rule_key, k, v, bytes, updated_at)
            values ($1, 'MASTER', 'later', 'v', '"theirs"', 8, $2::timestamptz)]], shop.key, time.iso(time.now()))
        must(post(shop.owner, "workflows/" .. run.id .. "/retry", { reason = "again" }))
        run_in(shop, "later", id, "done")
        assert.equal("mine", db.one(shop.key, "select v #>> '{}' as v from rule_kv where tenant_key = $1", shop.key).v)
        assert.equal(1, db.one(shop.key, "select count(*)::int as n from workflow_calls where tenant_key = $1", shop.key).n)
    end)
end)

describe("a step that calls something else when it is tried again", function()
    local shop, order

    setup(function()
        local product
        shop, product = shop_of.simple(0, { trackInventory = false })
        order = must(shop_of.checkout(shop_of.buyer(shop, product, 1), { paymentMethod = "COD" })).orders[1]
    end)

    -- Runs a step that fails at its end, and by a person's word once more; answers the error of the second attempt.
    local function again(key, body)
        publish(shop, key, "\"kv\", \"orders\", \"events\"", "\"custom." .. key .. "\"", ([[{ name = "a", run = function(input)
            local order, before = input.subject.event.data.order, kv.get("tried") ~= nil
            %s
            error("at the end")
        end }]]):format(body))
        local id = uuid.v4()
        emit(shop, "custom." .. key, id, { order = order.id })
        local run = run_in(shop, key, id, "failed")
        assert.truthy(run.error.message:find("at the end", 1, true), run.error.message)
        must(post(shop.owner, "workflows/" .. run.id .. "/retry", { reason = "again" }))
        support.eventually(function()
            run = runs(shop, key)[1]
            return run.state == "failed" and #run.steps == 2
        end, 20)
        return run.error
    end

    it("is stopped where the name differs, and catches nothing", function()
        local failed = again("branch", [[pcall(function()
            if before then orders.note(order, "second") else kv.set("tried", true) end
        end)
        orders.note(order, "after")]])
        assert.equal("calls_differ: orders.note: call 1 that writes was made that was kv.set when this step was tried before; "
            .. "what may turn out otherwise the next time belongs into a step of its own", failed.message)
        assert.equal("after", must(shop.owner:post("/sales/orders/details", { id = order.id })).internalNotes)
    end)

    it("is stopped where the arguments differ, of what this process writes and of what others write once", function()
        for key, call in pairs{ sums = [[kv.incr("n", before and 2 or 1)]], notes = [[orders.note(order, before and "b" or "a")]],
            tells = [[events.emit("told", { n = before and 2 or 1 })]] } do
            local failed = again(key, call .. [[ kv.set("tried", true)]])
            assert.truthy(failed.message:find("with other arguments", 1, true), key .. ": " .. failed.message)
        end
        assert.equal("1", db.one(shop.key, "select v #>> '{}' as v from rule_kv where tenant_key = $1 and k = 'n'", shop.key).v)
    end)

    it("goes on where only what it reads differs", function()
        local failed = again("reads", [[if before then orders.get(order) end
            orders.note(order, "read or not") kv.set("tried", true)]])
        assert.truthy(failed.message:find("at the end", 1, true), failed.message)
        local notes = must(shop.owner:post("/sales/orders/details", { id = order.id })).internalNotes
        assert.equal(1, select(2, notes:gsub("read or not", "")))
    end)
end)

describe("people in a workflow", function()
    local shop, buyer

    setup(function()
        local product
        shop, product = shop_of.simple(0, { trackInventory = false })
        buyer = support.shopper(shop)
        must(shop_of.checkout(shop_of.buyer(shop, product, 1, buyer), { paymentMethod = "COD" }))
    end)

    local function mails()
        local list = {}
        for i, row in ipairs(db.read(shop.key, [[select template, state, recipient from mail_messages where tenant_key = $1
          and key like 'rule:%']], shop.key)) do
            list[i] = row
        end
        return list
    end

    it("get a mail of the shop only when they agreed, once, and never after they left the list", function()
        local typo = must(post(shop.owner, "check", { source = [[return { hook = 'workflow', name = 'x', on = { 'order.placed' },
            needs = { 'mail' }, steps = { { name = 'a', run = function(input)
                mail.send("thank-yuo", input.subject.event.data.userId, {}) end } } }]] })).diagnostics
        assert.same({ "invalid_result", 3, "did you mean 'thank-you'?" }, { typo[1].code, typo[1].line, typo[1].hint })
        assert.equal("nil no_consent", words(once(shop, "unasked", "\"mail\"", [[log(mail.send("thank-you", data.user, {}))]],
            { user = buyer.user.id })))
        assert.same({}, mails())
        assert.is_true(must(buyer:post("/customers/update", { marketingConsent = true })).marketingConsent)
        twice(shop, "mails", "\"mail\"", [[assert(mail.send("shop-message", data.user, { title = "About N-1", body = "See you" }))]],
            { user = buyer.user.id })
        support.eventually(function() return mails()[1].state == "sent" end, 20)
        assert.same({ { template = "shop-message", state = "sent", recipient = buyer.user.email } }, mails())
        local text = support.mail_to(buyer.user.email, "About N-1")
        assert.is_truthy(text and text:find("See you", 1, true))
        must(shop.owner:post("/mail/suppressions/create", { email = buyer.user.email }))
        assert.equal("nil suppressed", words(once(shop, "left", "\"mail\"", [[log(mail.send("thank-you", data.user, {}))]],
            { user = buyer.user.id })))
        local stranger = support.user(support.tenant())
        assert.equal("nil not_found", words(once(shop, "stranger", "\"mail\"", [[log(mail.send("thank-you", data.user, {}))]],
            { user = stranger.user.id })))
        local _, run = once(shop, "codes", "\"mail\"", [[mail.send("o" .. "tp", data.user, { code = "123456" })]], { user = buyer.user.id })
        assert.same({ "failed", "mail.send: there is no template 'otp' for rules" }, { run.state, run.error.message })
        assert.equal(1, #mails())
    end)

    it("are told something in the app, once", function()
        twice(shop, "tells", "\"notify\"", [[assert(notify.user(data.user, "Your tea", "is on its way"))]], { user = buyer.user.id })
        local notices = must(buyer:get("/api/social/notices"), 200)
        local told = {}
        for _, notice in ipairs(notices.data) do
            if notice.title == "Your tea" then told[#told + 1] = notice.body end
        end
        assert.same({ "is on its way" }, told)
        local stranger = support.user(support.tenant())
        assert.equal("nil not_found", words(once(shop, "others", "\"notify\"", [[log(notify.user(data.user, "a", "b"))]],
            { user = stranger.user.id })))
    end)
end)

describe("what a workflow causes", function()
    it("starts another rule once by a name that it gives, and later when it says so", function()
        local shop = support.tenant()
        publish(shop, "target", "", "", [[{ name = "t", run = function(input)
            log(input.subject.event.name, input.subject.event.data.word) end }]])
        local log = twice(shop, "asks", "\"jobs\"", [[
            log(jobs.enqueue("target", { word = "tea" }, { dedupe = "same" }).started,
              jobs.enqueue("target", { word = "again" }, { dedupe = "same" }).started, jobs.enqueue("target", { word = "plain" }).started)
            log(jobs.enqueue("target", { word = "late" }, { delay_s = 86400 }).started, select(2, jobs.enqueue("nothing", {})))]], {})
        assert.equal("false false false false not_found", words(log)) -- of the second attempt
        local list = support.eventually(function()
            local all = runs(shop, "target")
            local done = 0
            for _, run in ipairs(all) do done = done + (run.state == "done" and 1 or 0) end
            return #all == 3 and done == 2 and all
        end, 20)
        local said, late = {}, nil
        for _, run in ipairs(list) do
            if run.state == "done" then said[#said + 1] = words(run.steps[1].log) else late = run end
        end
        table.sort(said)
        assert.same({ "job plain", "job tea" }, said)
        assert.same({ "running", {} }, { late.state, late.steps })
        assert.is_true(time.parse(late.wakeAt) > time.now() + 86000000)
    end)

    it("is an event that workflows and webhooks hear once, of the same entity", function()
        local shop = support.tenant()
        local endpoint = must(shop.owner:post("/webhooks/endpoints/create", { name = "x", url = "https://hooks.shop.example.org/x",
            events = { "custom.packed" } }))
        publish(shop, "hears", "", "\"custom.packed\"", [[{ name = "h", run = function(input) log(input.subject.event.data.boxes) end }]])
        twice(shop, "packs", "\"events\"", [[assert(events.emit("packed", { boxes = 3 }))]], {})
        local heard = support.eventually(function() return runs(shop, "hears")[1] end, 20)
        local source = runs(shop, "packs")[1]
        assert.same({ source.entity.id, 1, "3" }, { heard.entity.id, heard.hops, words(run_in(shop, "hears", source.entity.id,
            "done").steps[1].log) })
        assert.equal(1, #runs(shop, "hears"))
        local deliveries = support.eventually(function()
            local list = must(shop.owner:get("/webhooks/deliveries?endpointId=" .. endpoint.id), 200)
            return #list > 0 and list
        end, 20)
        assert.equal("custom.packed", deliveries[1].event)
    end)

    it("ends after eight hops where rules cause each other", function()
        local shop = support.tenant()
        publish(shop, "loops", "\"events\"", "\"custom.loop\"", [[{ name = "a", run = function()
            assert(events.emit("custom.loop", { round = 1 })) end }]])
        emit(shop, "custom.loop", "x")
        support.eventually(function()
            local list = runs(shop, "loops")
            return #list == 8 and list[1].state == "done"
        end, 30)
        -- The last event is out, and nobody follows.
        support.eventually(function()
            return db.one(shop.key, [[select 1 as one from outbox where tenant_key = $1 and sent_at is not null
              and payload ->> 'name' = 'custom.loop' and payload ->> 'hops' = '8']], shop.key)
        end, 20)
        local list = runs(shop, "loops")
        assert.same({ 8, 7 }, { #list, list[1].hops })
    end)
end)

describe("the shipped workflow that thanks", function()
    local platform

    setup(function() platform = support.platform() end)
    teardown(function() support.real_time(platform) end)

    it("writes to a buyer days after the order, and only to one who agreed", function()
        local shop, product = shop_of.simple(0, { trackInventory = false })
        must(post(shop.owner, "create", { key = "thanks", hook = "workflow", name = "Thanks", template = "workflows/thank_you",
            settings = { config = { note = "See you" } } }))
        must(post(shop.owner, "thanks/publish", { revision = 1, note = "go" }))
        local buyer = support.shopper(shop)
        local order = must(shop_of.checkout(shop_of.buyer(shop, product, 2, buyer), { paymentMethod = "COD" })).orders[1]
        must(buyer:post("/customers/update", { marketingConsent = true }))
        assert.equal("paid", run_in(shop, "thanks", order.id, "waiting").step)
        support.advance(platform, 2 * 86400 + 60)
        support.sign_in(shop.owner)
        support.eventually(function() return runs(shop, "thanks")[1].step == "thank" end, 20)
        assert.is_nil(db.one(shop.key, "select 1 as one from mail_messages where tenant_key = $1 and template = 'thank-you'", shop.key))
        support.advance(platform, 3 * 86400 + 60)
        support.sign_in(shop.owner)
        local run = run_in(shop, "thanks", order.id, "done")
        assert.equal("thanked\n", run.steps[#run.steps].log)
        support.eventually(function()
            return db.one(shop.key, [[select 1 as one from mail_messages where tenant_key = $1 and template = 'thank-you'
              and state = 'sent' and user_id = $2]], shop.key, buyer.user.id)
        end, 20)
    end)
end)

describe("what rules cause by what rules have caused", function()
    it("has a bound for a shop, and what a shop's own events cause has none", function()
        local shop, other = support.tenant(), support.tenant()
        publish(shop, "told", "", "\"custom.never\"", "{ name = \"a\", run = function() end }")
        local function call(name, tenant, hops, ...)
            local c = capabilities.get(name)
            return c.fn({ scope = { tenant = tenant.key, app = tenant.app, actor_kind = "system", hops = hops }, tenant = tenant.key,
                rule = { id = "x" }, needs = {}, calls = { [c.needs] = 1 }, call = 1 }, ...)
        end
        local emitted = 0
        local function exhaust()
            for _ = 1, 2000 do
                local ok, why = call("events.emit", shop, 2, "custom.more", {})
                if not ok then return why end
                emitted = emitted + 1
            end
        end
        assert.equal("too_many", exhaust())
        assert.is_true(emitted >= 200)
        -- A little may be had again with every moment that goes by.
        support.eventually(function()
            exhaust()
            return select(2, call("jobs.enqueue", shop, 3, "told")) == "too_many"
        end)
        assert.is_true(call("events.emit", shop, 1, "custom.more", {}))
        assert.is_true(call("events.emit", other, 2, "custom.more", {}))
    end)

    it("tell only what is an event: a name of small letters, data with names, no more than 64 KiB", function()
        local shop = support.tenant()
        local c = capabilities.get("events.emit")
        local function refused(...)
            local ok, why = pcall(c.fn, { scope = { tenant = shop.key, app = shop.app, actor_kind = "system" }, tenant = shop.key,
                rule = { id = "x" }, needs = {}, calls = { [c.needs] = 1 }, call = 1 }, ...)
            return not ok and tostring(type(why) == "table" and why.refused or why)
        end
        assert.matches("is a list", refused("packed", { "a", "b" }), 1, true)
        assert.matches("is no name for an event", refused("Packed", {}), 1, true)
        assert.matches("a table of data is expected", refused("packed", "text"), 1, true)
        assert.matches("65536 at most", refused("packed", { text = ("x"):rep(65536) }), 1, true)
        assert.is_false(refused("packed", {}))
        local row = db.one(shop.key, "select payload->>'name' as name from outbox where tenant_key = $1 and topic = 'event' "
            .. "and payload->>'name' like 'custom.%'", shop.key)
        assert.equal("custom.packed", row.name)
    end)
end)
