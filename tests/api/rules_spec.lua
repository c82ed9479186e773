-- The rule platform over HTTP: failing rules, other tenants, two persons, times, draft sessions, publishing under load.
local json = require("core.json")
local db = require("kasma.db")
local support = require("api.support")
local shop_of = require("api.shop")
local time = require("core.time")
local store = require("modules.rules.store")

local must = shop_of.must

local function source(body, name)
    return ("return { hook = \"promotion\", name = %q, run = function(input, config)\n%s\nend }"):format(name or "Rule", body)
end

-- Half off the first line, in so many words.
local HALF = source("return { operations = { { op = \"line_percent\", line_id = input.cart.lines[1].id, bps = 5000, label = \"Half\" } } }")

local function post(who, path, body) return who:post("/rules/" .. path, body or {}) end

local function create(shop, key, text, settings, hook)
    return must(post(shop.owner, "create", { key = key, hook = hook or "promotion", name = key, source = text, settings = settings }))
end

local function publish(shop, key, revision)
    return must(post(shop.owner, key .. "/publish", { revision = revision or 1, note = "go" }))
end

local function live(shop, key, text, settings, hook)
    create(shop, key, text, settings, hook)
    return publish(shop, key)
end

local function total_of(buyer, headers)
    return must(buyer:post("/sales/cart/quote", { shippingAddress = { country = "VN" } }, headers)).total
end

describe("a rule that fails", function()
    local ENDLESS = source("while true do end")

    it("is left out by default; the sale goes on and the run is kept with its line and budget", function()
        local shop, product = shop_of.simple(0, { trackInventory = false })
        -- An endless loop never gets past the check, so it hides behind a quantity that no sample has.
        live(shop, "endless", source("if input.cart.lines[1].qty == 77 then\nwhile true do end\nend"))
        local buyer = shop_of.buyer(shop, product, 77)
        assert.equal(7700000, total_of(buyer))
        local placed = shop_of.checkout(buyer, { paymentMethod = "COD" })
        assert.equal(201, placed.status)
        local runs = support.eventually(function()
            local list = must(shop.owner:get("/rules/endless/runs?outcome=failed"), 200)
            return #list >= 2 and list
        end)
        assert.same({ "limit_instructions", 1, 200000, 3 }, { runs[1].outcome, runs[1].version, runs[1].instructions, runs[1].line })
        local failures = support.eventually(function()
            local list = must(shop.owner:get("/rules/endless/failures"), 200)
            return list[1] and list
        end)
        assert.same({ 1, 3 }, { #failures, failures[1].line })
        local one = support.eventually(function()
            local run = must(shop.owner:get("/rules/runs/" .. failures[1].lastRunId), 200)
            return run.outcome and run
        end)
        assert.equal("limit_instructions", one.outcome)
        local seen = must(shop.owner:get("/rules"), 200)[1]
        assert.equal(3, seen.lastError.line)
    end)

    it("stops the sale when it says so, and only then", function()
        local shop, product = shop_of.simple(0, { trackInventory = false })
        live(shop, "blocks", source("if input.cart.lines[1].qty == 77 then error(\"no\") end"), { on_error = "block" })
        local buyer = shop_of.buyer(shop, product, 77)
        assert.is_true(must(buyer:post("/sales/cart/quote", { shippingAddress = { country = "VN" } })).blocked)
        local refused = shop_of.checkout(buyer, { paymentMethod = "COD" })
        assert.same({ 422, "rule_failed" }, { refused.status, refused.json.code })
        assert.equal(201, shop_of.checkout(shop_of.buyer(shop, product, 1), { paymentMethod = "COD" }).status)
    end)

    it("has operations that stand in, when it has a fallback", function()
        local shop, product = shop_of.simple(0, { trackInventory = false })
        live(shop, "fallback", source("if input.cart.lines[1].qty == 77 then error(\"no\") end"),
            { on_error = "fallback", fallback = { { op = "order_amount", amount = 7000 } } })
        assert.equal(7700000 - 7000, total_of(shop_of.buyer(shop, product, 77)))
    end)

    it("is left alone for five minutes after five failures", function()
        local shop, product = shop_of.simple(0, { trackInventory = false })
        live(shop, "breaks", source("if input.cart.lines[1].qty == 77 then error(\"no\") end"))
        local buyer = shop_of.buyer(shop, product, 77)
        support.eventually(function()
            total_of(buyer)
            local rule = must(shop.owner:get("/rules"), 200)[1]
            return rule.health.breaker == "open"
        end)
        -- The worker that is asked has heard of it.
        support.eventually(function()
            local trace = must(buyer:post("/sales/cart/quote", { shippingAddress = { country = "VN" } })).trace
            local note
            for _, t in ipairs(trace) do
                if t.rule == "breaks" then note = t.note end
            end
            return note == "breaker"
        end)
    end)

    it("never gets published when its check finds it", function()
        local shop = shop_of.simple(0)
        create(shop, "endless", ENDLESS)
        local refused = post(shop.owner, "endless/publish", { revision = 1, note = "x" })
        assert.same({ 422, "rule_check_failed", "limit_instructions" }, { refused.status, refused.json.code,
            refused.json.details.diagnostics[1].code })
        local checked = must(post(shop.owner, "check", { source = "return os.time()" }))
        assert.same({ false, "forbidden_global", 1, 8 }, { checked.ok, checked.diagnostics[1].code, checked.diagnostics[1].line,
            checked.diagnostics[1].column })
        local rich = must(post(shop.owner, "check", { source = [[return { hook = "promotion", name = "Deep", run = function(input)
            local function price(line) local none return none.at end
            local function each(lines) for _, line in ipairs(lines) do local p = price(line) log(p) end end
            each(input.cart.lines)
        end }]] }))
        local d = rich.diagnostics[1]
        assert.same({ "runtime_error", 2, 3, 4, "price", "each", nil }, { d.code, d.stack[1].line, d.stack[2].line, d.stack[3].line,
            d.stack[1].name, d.stack[2].name, d.stack[3].name })
        assert.same({ 3, 0, 65536 }, { #d.stack, d.budget.result.used, d.budget.result.limit })
        local plain = must(post(shop.owner, "check", { source = HALF }))
        assert.is_true(plain.sampleRuns[1].budget.result.used > 0)
        assert.same({ 413, "source_too_large" }, (function()
            local answer = post(shop.owner, "check", { source = ("-"):rep(65537) })
            return { answer.status, answer.json.code }
        end)())
    end)
end)

describe("checkout.validate", function()
    it("refuses an order with the rule's own words, and lets the others through", function()
        local shop, product = shop_of.simple(0, { trackInventory = false })
        live(shop, "no-more-than-five", [[return { hook = "checkout.validate", name = "Five at most", run = function(input)
            for _, line in ipairs(input.subject.quote.lines) do
                if line.qty > 5 then return { reject = { code = "too_many", message = "Five of each at most", field = "quantity" } } end
            end
            if input.subject.quote.total == 100000 * 3 then error("no") end
        end }]], { on_error = "block" }, "checkout.validate")
        local refused = shop_of.checkout(shop_of.buyer(shop, product, 6), { paymentMethod = "COD" })
        assert.same({ 422, "checkout_rejected", "Five of each at most", "too_many", "no-more-than-five" }, { refused.status,
            refused.json.code,
            refused.json.message, refused.json.details.code, refused.json.details.rule })
        assert.equal(201, shop_of.checkout(shop_of.buyer(shop, product, 5), { paymentMethod = "COD" }).status)
        local failed = shop_of.checkout(shop_of.buyer(shop, product, 3), { paymentMethod = "COD" })
        assert.same({ 422, "rule_failed" }, { failed.status, failed.json.code })
    end)
end)

describe("rules of tenants", function()
    it("are nobody else's", function()
        local shop, product = shop_of.simple(0, { trackInventory = false })
        local other, product_b = shop_of.simple(0, { trackInventory = false })
        live(shop, "half", HALF)
        assert.equal(50000, total_of(shop_of.buyer(shop, product)))
        assert.equal(100000, total_of(shop_of.buyer(other, product_b)))
        assert.equal(404, other.owner:get("/rules/half").status)
        local rule = must(shop.owner:get("/rules/half"), 200)
        assert.equal(404, other.owner:get("/rules/" .. rule.id .. "/draft").status)
        assert.equal(404, post(other.owner, rule.id .. "/disable", { reason = "x" }).status)
        assert.equal(0, #must(other.owner:get("/rules"), 200))
        assert.equal(403, support.shopper(shop):get("/rules").status)
        assert.equal(401, support.guest(shop):get("/rules").status)
    end)

    it("have unique keys that are none of our words", function()
        local shop = shop_of.simple(0)
        create(shop, "one", HALF)
        assert.equal("key_taken", post(shop.owner, "create", { key = "one", hook = "promotion", name = "x", source = HALF }).json.code)
        assert.equal(400, post(shop.owner, "create", { key = "hooks", hook = "promotion", name = "x", source = HALF }).status)
        assert.equal(400, post(shop.owner, "create", { key = "No", hook = "promotion", name = "x", source = HALF }).status)
        assert.equal(400, post(shop.owner, "create", { key = "abc", hook = "nothing", name = "x", source = HALF }).status)
    end)

    it("are 25 of a hook at most", function()
        local shop = shop_of.simple(0)
        for i = 1, 25 do live(shop, ("rule-%02d"):format(i), HALF) end
        create(shop, "one-more", HALF)
        local refused = post(shop.owner, "one-more/publish", { revision = 1, note = "x" })
        assert.same({ 409, "hook_limit" }, { refused.status, refused.json.code })
        must(post(shop.owner, "rule-01/disable", { reason = "room" }))
        publish(shop, "one-more")
    end)

    it("keep their state through disabling, removing and restoring", function()
        local shop, product = shop_of.simple(0, { trackInventory = false })
        live(shop, "half", HALF)
        local buyer = shop_of.buyer(shop, product)
        assert.equal(409, post(shop.owner, "half/remove", { reason = "x" }).status)
        must(post(shop.owner, "half/disable", { reason = "x" }))
        assert.equal(100000, total_of(buyer))
        must(post(shop.owner, "half/enable", { reason = "x" }))
        assert.equal(50000, total_of(buyer))
        assert.same({ paused = 0, hooks = { "tax.resolve" } }, must(post(shop.owner, "pause", { reason = "x", hook = "tax.resolve" })))
        assert.equal(50000, total_of(buyer))
        local stopped = must(post(shop.owner, "pause", { reason = "all is wrong" }))
        table.sort(stopped.hooks)
        assert.same({ paused = 1, hooks = { "*", "tax.resolve" } }, stopped)
        assert.equal(100000, total_of(buyer))
        assert.same({ paused = 0, hooks = {} }, must(post(shop.owner, "resume", { reason = "all is well" })))
        assert.equal(50000, total_of(buyer))
        must(post(shop.owner, "half/disable", { reason = "x" }))
        assert.equal("archived", must(post(shop.owner, "half/remove", { reason = "x" })).state)
        assert.equal(0, #must(shop.owner:get("/rules"), 200))
        assert.equal("disabled", must(post(shop.owner, "half/restore", { reason = "x" })).state)
    end)
end)

describe("publishing", function()
    it("needs another person where the tenant says so", function()
        local shop = support.tenant{ currency = "VND", country = "VN", settings = { ["rules.approval"] = "all" } }
        local product = shop_of.product(shop, { name = "Lamp", price = 100000, trackInventory = false })
        create(shop, "half", HALF)
        local asked = post(shop.owner, "half/publish", { revision = 1, note = "please" })
        assert.same({ 202, "pending_approval" }, { asked.status, asked.json.state })
        local id = asked.json.requestId
        local buyer = shop_of.buyer(shop, product)
        assert.equal(100000, total_of(buyer))
        local own = post(shop.owner, "requests/" .. id .. "/approve", { note = "me" })
        assert.same({ 403, "same_person" }, { own.status, own.json.code })
        local colleague = support.user(shop, "tenant_owner")
        assert.equal(1, must(post(colleague, "requests/" .. id .. "/approve", { note = "fine" })).version)
        assert.equal(50000, total_of(buyer))
        assert.equal(409, post(colleague, "requests/" .. id .. "/reject", { note = "late" }).status)
    end)

    it("is approved by nobody through a key of their own", function()
        local shop = support.tenant{ currency = "VND", country = "VN", settings = { ["rules.approval"] = "all" } }
        create(shop, "half", HALF)
        local key = must(shop.owner:post("/tenants/" .. shop.key .. "/keys/create", { name = "ci", key_type = "secret",
            scopes = { "rules.publish" } })).key
        local by_key = support.client{ ["Authorization"] = "Bearer " .. key.secret }
        local asked = must(post(by_key, "half/publish", { revision = 1, note = "by key" }), 202).requestId
        assert.equal("same_person", post(shop.owner, "requests/" .. asked .. "/approve", { note = "me" }).json.code)
        local own = must(post(shop.owner, "half/publish", { revision = 1, note = "by hand" }), 202).requestId
        assert.equal("same_person", post(by_key, "requests/" .. own .. "/approve", { note = "me" }).json.code)
        assert.equal(201, post(support.user(shop, "tenant_owner"), "requests/" .. asked .. "/approve", { note = "fine" }).status)
    end)

    it("is decided once by those who decide at once", function()
        local shop = support.tenant{ currency = "VND", country = "VN", settings = { ["rules.approval"] = "all" } }
        create(shop, "half", HALF)
        local colleague = support.user(shop, "tenant_owner")
        for i = 1, 3 do
            local id = must(post(shop.owner, "half/publish", { revision = 1, note = "please" }), 202).requestId
            local calls = {}
            for n, verb in ipairs{ "approve", "cancel", "approve", "reject" } do
                local who = colleague:copy()
                calls[n] = function() return post(who, "requests/" .. id .. "/" .. verb, { note = "x" }) end
            end
            local answers = support.parallel(calls)
            assert.same({ [201] = 1, [409] = 3 }, shop_of.statuses(answers))
            local published = answers[1].status == 201 or answers[3].status == 201
            local versions = must(shop.owner:get("/rules/half/versions"), 200)
            assert.equal(published, versions[1] ~= nil and versions[1].active and versions[1].note == "please", "round " .. i)
            if published then must(post(shop.owner, "half/disable", { reason = "x" })) end
        end
    end)

    it("is stopped for each hook by those who stop several at once", function()
        local shop = support.tenant{}
        local hooks, calls = { "promotion", "tax.resolve", "checkout.validate", "price.lines" }, {}
        for i, hook in ipairs(hooks) do
            local who = shop.owner:copy()
            calls[i] = function() return post(who, "pause", { hook = hook, reason = "x" }) end
        end
        assert.same({ [201] = 4 }, shop_of.statuses(support.parallel(calls)))
        local left = must(post(shop.owner, "resume", { hook = "tax.resolve", reason = "x" })).hooks
        table.sort(left)
        assert.same({ "checkout.validate", "price.lines", "promotion" }, left)
        assert.same({ paused = 0, hooks = {} }, must(post(shop.owner, "resume", { reason = "x" })))
    end)

    it("happens at its time and ends at another", function()
        local platform = support.platform()
        local shop, product = shop_of.simple(0, { trackInventory = false })
        create(shop, "half", HALF)
        local at, until_ = time.iso(time.now() + 3600000), time.iso(time.now() + 7200000)
        local asked = post(shop.owner, "half/publish", { revision = 1, note = "later", at = at, ["until"] = until_ })
        assert.same({ 202, "scheduled" }, { asked.status, asked.json.state })
        local buyer = shop_of.buyer(shop, product)
        assert.equal(100000, total_of(buyer))
        support.advance(platform, 3601)
        local ok, why = pcall(function()
            support.eventually(function() return total_of(buyer) == 50000 end, 20)
            support.advance(platform, 7201)
            support.eventually(function() return total_of(buyer) == 100000 end, 20)
        end)
        support.sign_in(platform)
        support.real_time(platform)
        if not ok then error(why, 0) end
    end)

    it("is wholly old or wholly new for every quote, and none fails", function()
        local shop, product = shop_of.simple(0, { trackInventory = false })
        local function off(bps)
            return source(("local ops = {} for i, l in ipairs(input.cart.lines) do ops[i] = { op = \"line_percent\", line_id = l.id, "
                .. "bps = %d, label = \"%d\" } end return { operations = ops }"):format(bps, bps))
        end
        live(shop, "moves", off(1000))
        local buyer = shop_of.buyer(shop, product)
        local stop, seen, tasks = false, {}, {}
        for i = 1, 4 do
            tasks[i] = function()
                while not stop do
                    local quote = must(buyer:post("/sales/cart/quote", { shippingAddress = { country = "VN" } }))
                    seen[quote.total .. "|" .. tostring(quote.adjustments[1] and quote.adjustments[1].label)] = true
                end
            end
        end
        tasks[5] = function()
            for i = 2, 6 do
                local saved = must(post(shop.owner, "moves/draft", { revision = i - 1, source = off(i * 1000) }))
                local done = must(post(shop.owner, "moves/publish", { revision = saved.draft.revision, note = "n" .. i }))
                assert(done.version == i and done.live.loaded == done.live.workers, json.encode(done))
            end
            stop = true
        end
        support.parallel(tasks)
        local allowed = {}
        for i = 1, 6 do allowed[(100000 - i * 10000) .. "|" .. i * 1000] = true end
        for value in pairs(seen) do assert.is_true(allowed[value], value) end
        assert.equal(40000, total_of(buyer))
    end)

    it("is seen by every worker also when the word about it is lost", function()
        local shop, product = shop_of.simple(0, { trackInventory = false })
        live(shop, "half", HALF)
        local buyer = shop_of.buyer(shop, product)
        assert.equal(50000, total_of(buyer))
        -- The rows alone: nobody is told.
        local rule = must(shop.owner:get("/rules/half"), 200)
        local now = time.iso(time.now())
        db.pipeline(shop.key, { store.set_state(shop.key, rule.id, "active", "disabled", "quietly", now),
            store.bump({ tenant = shop.key, app = shop.app }, now) })
        local right = 0
        support.eventually(function()
            right = total_of(buyer) == 100000 and right + 1 or 0
            return right >= 10 -- by whichever worker
        end)
    end)

    it("by two at once gives one version each", function()
        local shop = shop_of.simple(0)
        create(shop, "half", HALF)
        local answers = support.parallel{
            function() return post(shop.owner, "half/publish", { revision = 1, note = "a" }) end,
            function() return post(shop.owner, "half/publish", { revision = 1, note = "b" }) end,
        }
        local versions = { answers[1].json.version, answers[2].json.version }
        table.sort(versions)
        assert.same({ 1, 2 }, versions)
        local saves = support.parallel{
            function() return post(shop.owner, "half/draft", { revision = 1, source = HALF .. "-- a" }) end,
            function() return post(shop.owner, "half/draft", { revision = 1, source = HALF .. "-- b" }) end,
        }
        assert.same({ [201] = 1, [409] = 1 }, shop_of.statuses(saves))
    end)
end)

describe("a draft session", function()
    it("shows its holder the draft's prices and sells nothing", function()
        local shop, product = shop_of.simple(0, { trackInventory = false })
        create(shop, "half", HALF)
        local session = must(post(shop.owner, "half/draft/session", { minutes = 5 }))
        assert.equal("X-Kasma-Rules-Draft", session.header)
        local buyer = shop_of.buyer(shop, product)
        local with = { [session.header] = session.token }
        assert.equal(50000, total_of(buyer, with))
        assert.equal(100000, total_of(buyer))
        local refused = shop_of.checkout(buyer, { paymentMethod = "COD" }, with)
        assert.same({ 409, "draft_session" }, { refused.status, refused.json.code })
        local other, product_b = shop_of.simple(0, { trackInventory = false })
        local stranger = other and shop_of.buyer(other, product_b)
        assert.equal(409, stranger:post("/sales/cart/quote", { shippingAddress = { country = "VN" } }, with).status)
        assert.equal(409, buyer:post("/sales/cart/quote", { shippingAddress = { country = "VN" } }, { [session.header] = "x" }).status)
    end)
end)

describe("replaying", function()
    it("puts a kept run through the draft", function()
        local shop, product = shop_of.simple(0, { trackInventory = false })
        live(shop, "half", HALF)
        must(shop_of.checkout(shop_of.buyer(shop, product), { paymentMethod = "COD" }))
        local run = must(shop.owner:get("/rules/half/runs"), 200)[1]
        local same = must(post(shop.owner, "runs/" .. run.id .. "/replay", { version = 1 }))
        assert.same({ true, 50000 }, { same.same, same.after.total })
        must(post(shop.owner, "half/draft", { revision = 1, source = (HALF:gsub("5000", "1000")) }))
        local other = must(post(shop.owner, "runs/" .. run.id .. "/replay", {}))
        assert.same({ false, 50000, 90000 }, { other.same, other.before.total, other.after.total })
    end)

    it("previews many orders as a job", function()
        local shop, product = shop_of.simple(0, { trackInventory = false })
        create(shop, "half", HALF)
        for _ = 1, 3 do must(shop_of.checkout(shop_of.buyer(shop, product), { paymentMethod = "COD" })) end
        local asked = post(shop.owner, "half/preview", { orders = { last = 500 } })
        assert.equal(202, asked.status)
        local done = support.eventually(function()
            local row = must(shop.owner:get("/rules/previews/" .. asked.json.previewId), 200)
            return row.state == "done" and row
        end, 20)
        assert.same({ 3, -150000 }, { done.result.changed, done.result.totals.delta })
        local none = shop_of.simple(0)
        create(none, "half", HALF)
        assert.same({ 422, "no_snapshots" }, (function()
            local answer = post(none.owner, "half/preview", { orders = { last = 5 } })
            return { answer.status, answer.json.code }
        end)())
    end)
end)
