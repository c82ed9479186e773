-- The breaker of rules, on the clock of tests: five failures within a minute, five minutes of rest in every worker, one try that decides,
-- the third opening of a day, and who is told.
local db = require("kasma.db")
local errors = require("kasma.errors")
local hooks = require("kasma.hooks")
local shop_of = require("api.shop")
local support = require("api.support")
local time = require("core.time")

local must = shop_of.must

-- Fails for 77 of the first line.
local SOURCE = [[return { hook = "promotion", name = "Breaks", run = function(input)
    local n = input.cart.lines[1].qty
    if n == 77 then error("such a cart") end
    return { operations = { { op = "line_percent", line_id = input.cart.lines[1].id, bps = 1000, label = "ten" } } }
end }]]

local function post(who, path, body) return who:post("/rules/" .. path, body or {}) end

local function live(shop, key)
    must(post(shop.owner, "create", { key = key, hook = "promotion", name = key, source = SOURCE }))
    must(post(shop.owner, key .. "/publish", { revision = 1, note = "go" }))
end

-- What became of the rule in a quote: the trace tells only what is out of the ordinary.
local function outcome(buyer, key)
    local quote = must(buyer:post("/sales/cart/quote", { shippingAddress = { country = "VN" } }, { Connection = "close" }))
    for i = #quote.trace, 1, -1 do
        local t = quote.trace[i]
        if t.rule == key and t.note and t.note ~= "applied" then return t.note end
    end
    return quote.adjustments[1] and "ok" or "none"
end

-- Outcomes of many quotes at once, over connections of their own, and so by every worker.
local function outcomes(buyer, key, n)
    local calls, seen = {}, {}
    for i = 1, n do
        calls[i] = function() return outcome(buyer:copy(), key) end
    end
    for _, what in ipairs(support.parallel(calls)) do seen[what] = (seen[what] or 0) + 1 end
    return seen
end

local function rule_now(shop) return must(shop.owner:get("/rules"), 200)[1] end

-- Fails until the breaker stands open in the list; each worker needs five failures of its own, so this takes some. Who sees it open sees
-- why.
local function fail_until_open(shop, bad, key)
    support.eventually(function()
        for _ = 1, 5 do outcome(bad, key) end
        local rule = rule_now(shop)
        if rule.health.breaker ~= "open" and rule.state ~= "off" then return false end
        assert.equal(3, rule.lastError.line)
        return true
    end, 20)
end

local function told(shop, name)
    local n = 0
    for _, row in ipairs(errors.check(db.pool("system"):read(nil, "select payload from outbox where tenant_key = $1 and topic = 'event'",
        shop.key))) do
        if row.payload.name == name then n = n + 1 end
    end
    return n
end

local function notices(who)
    local list = {}
    for i, n in ipairs(must(who:get("/api/social/notices?limit=50"), 200).data) do list[i] = n.title end
    return list
end

-- On the test's clock, which is real time again afterwards whatever happens. It begins at noon, so that minutes do not pass midnight.
local function on_clock(shop, fn)
    local platform = support.platform()
    local f = time.fields(time.now(), "UTC")
    support.advance(platform, 86400 + (12 - f.hour) * 3600)
    local ok, why = pcall(function()
        support.sign_in(shop.owner)
        fn(function(seconds)
            support.advance(platform, seconds)
            support.sign_in(shop.owner)
        end)
    end)
    support.sign_in(platform)
    support.real_time(platform)
    if not ok then error(why, 0) end
end

describe("the breaker", function()
    it("rests the rule in every worker for five minutes, tries once, and closes when that goes well", function()
        local shop, product = shop_of.simple(0, { trackInventory = false })
        on_clock(shop, function(advance)
            live(shop, "breaks")
            local bad, good = shop_of.buyer(shop, product, 77), shop_of.buyer(shop, product, 1)
            assert.equal("ok", outcome(good, "breaks"))
            for _ = 1, 4 do assert.equal("error", outcome(bad:copy(), "breaks")) end
            assert.equal("closed", rule_now(shop).health.breaker)
            fail_until_open(shop, bad, "breaks")
            support.eventually(function() return (outcomes(good, "breaks", 16).breaker or 0) == 16 end, 20)
            assert.equal("active", rule_now(shop).state)
            advance(240) -- and the seconds that this test takes
            assert.same({ breaker = 16 }, outcomes(good, "breaks", 16))
            advance(61)
            support.eventually(function() return (outcomes(good, "breaks", 16).ok or 0) == 16 end, 20)
            assert.equal("closed", rule_now(shop).health.breaker)
        end)
    end)

    it("opens again at the first failure of its try; the third time in a day the rule is off until somebody enables it", function()
        local shop, product = shop_of.simple(0, { trackInventory = false })
        local writer, shopper = support.user(shop, "tenant_owner"), support.shopper(shop)
        on_clock(shop, function(advance)
            live(shop, "breaks")
            local bad, good = shop_of.buyer(shop, product, 77), shop_of.buyer(shop, product, 1)
            fail_until_open(shop, bad, "breaks")
            local off
            for opening = 2, 3 do
                support.eventually(function() return (outcomes(good, "breaks", 16).breaker or 0) == 16 end, 20)
                advance(301)
                -- One failure a worker is enough now.
                support.eventually(function()
                    outcome(bad, "breaks")
                    off = rule_now(shop)
                    return opening == 3 and off.state == "off" or opening == 2 and off.health.breaker == "open"
                end, 20)
            end
            assert.same({ "off", "failed too often", 3 }, { off.state, off.stateReason, off.lastError.line })
            support.eventually(function() return (outcomes(good, "breaks", 16).none or 0) == 16 end, 20)
            assert.same({ 2, 1 }, { told(shop, "rule.breaker_opened"), told(shop, "rule.off") })
            support.sign_in(writer)
            support.sign_in(shopper)
            local titles = notices(writer)
            assert.same({ 3, "Rule breaks is switched off" }, { #titles, titles[1] })
            assert.equal("Rule breaks rests for five minutes", titles[3])
            assert.equal(0, #notices(shopper))
            local actions = {}
            for _, e in ipairs(must(shop.owner:get("/rules/breaks/audit"), 200)) do actions[e.action] = true end
            assert.is_true(actions["rules.off"])
            must(post(shop.owner, "breaks/enable", { reason = "the cart is gone" }))
            support.eventually(function() return (outcomes(good, "breaks", 16).ok or 0) == 16 end, 20)
        end)
    end)

    it("counts openings by the day", function()
        local shop, product = shop_of.simple(0, { trackInventory = false })
        on_clock(shop, function(advance)
            live(shop, "breaks")
            local bad = shop_of.buyer(shop, product, 77)
            for _ = 1, 3 do
                fail_until_open(shop, bad, "breaks")
                assert.equal("active", rule_now(shop).state)
                advance(86400)
            end
        end)
    end)

    it("closes for a new version", function()
        local shop, product = shop_of.simple(0, { trackInventory = false })
        live(shop, "breaks")
        local bad, good = shop_of.buyer(shop, product, 77), shop_of.buyer(shop, product, 1)
        fail_until_open(shop, bad, "breaks")
        must(post(shop.owner, "breaks/draft", { revision = 1, source = (SOURCE:gsub("== 77", "== 78")) }))
        must(post(shop.owner, "breaks/publish", { revision = 2, note = "mended" }))
        -- Workers that were told nothing yet rest the old version still.
        support.eventually(function() return (outcomes(good, "breaks", 16).ok or 0) == 16 end, 20)
        assert.equal("closed", rule_now(shop).health.breaker)
    end)

    it("counts answers that are out of the hook's form, and is opened by nobody's trial", function()
        local shop = shop_of.simple(0)
        must(post(shop.owner, "create", { key = "form", hook = "auth.login_policy", name = "form",
            source = "return { hook = \"auth.login_policy\", name = \"form\", run = function(input) if input.subject.failures > 90 then "
                .. "return { otp = \"sometimes\" } end end }" }))
        must(post(shop.owner, "form/publish", { revision = 1, note = "go" }))
        local scope = { tenant = shop.key, app = shop.app, actor_kind = "guest" }
        local set = support.eventually(function()
            local pinned = hooks.pin(scope)
            return pinned:count("auth.login_policy") == 1 and pinned
        end)
        local one = set:list("auth.login_policy")[1]
        local input = hooks.input(shop.key, "auth.login_policy", { failures = 99 })
        local trial = set:with{ id = "form", hook = "auth.login_policy", source = "return { hook = \"auth.login_policy\", name = \"f\", "
            .. "run = function() return { otp = \"never heard of\" } end }" }
        for _ = 1, 9 do assert.is_false(select(2, hooks.run(trial, trial:list("auth.login_policy")[1], input)).tripped) end
        for i = 1, 5 do
            local _, run = hooks.run(set, one, input)
            assert.same({ "invalid_result", i == 5 }, { run.outcome, run.tripped })
        end
        assert.equal("breaker", select(2, hooks.run(set, one, input)).outcome)
    end)
end)

describe("a route that anybody may call", function()
    local function route(shop, key, access)
        must(post(shop.owner, "create", { key = key, hook = "route", name = key, source = ([[return { hook = "route", name = "Open",
            path = "%s", access = %s, query = schema.object{ bad = schema.optional(schema.integer) }, run = function(input)
                if input.subject.query.bad then error("such a query") end
                return { status = 200, body = { ok = true } }
            end }]]):format(key, access) }))
        must(post(shop.owner, key .. "/publish", { revision = 1, note = "go" }))
    end
    local function ask(who, path) return who:get("/x/" .. path, { Connection = "close" }) end

    -- Asks badly, over connections of its own, until every answer of a row is 503: each worker holds the caller back. The row is long,
    -- because the kernel chooses the worker of each connection by chance.
    local function until_held(who, path)
        return support.eventually(function()
            local last
            for _ = 1, 32 do
                last = ask(who, path .. "?bad=1")
                if last.status ~= 503 then return false end
            end
            return last
        end, 30)
    end

    it("holds back the caller who makes it fail and nobody else, and is never switched off from outside", function()
        local shop = support.tenant()
        local platform = support.platform()
        local f = time.fields(time.now(), "UTC")
        support.advance(platform, 86400 + (12 - f.hour) * 3600)
        local ok, why = pcall(function()
            support.sign_in(shop.owner)
            route(shop, "open", "\"public\"")
            local bad, good, other = nil, support.guest(shop), support.shopper(shop)
            for round = 1, 5 do
                bad = support.outside(shop.headers)
                local held = until_held(bad, "open")
                assert.truthy(tonumber(held.headers["retry-after"]) > 200)
                assert.equal(503, ask(bad, "open").status) -- whatever it asks for
                for _ = 1, 8 do
                    assert.equal(200, ask(good, "open").status)
                    assert.equal(200, ask(other, "open").status)
                end
                support.eventually(function()
                    return db.one(shop.key, "select opens_today as n from rules where tenant_key = $1", shop.key).n == round
                end, 20)
                assert.same({ "active", "open" }, { rule_now(shop).state, rule_now(shop).health.breaker })
                support.advance(platform, 301)
                support.sign_in(shop.owner)
                support.sign_in(other)
            end
            assert.equal(200, ask(bad, "open").status)
            assert.equal(3, rule_now(shop).lastError.line)
            assert.same({ 3, 0 }, { told(shop, "rule.breaker_opened"), told(shop, "rule.off") })
            local titles = notices(shop.owner)
            assert.same({ 3, "Rule open fails for some of its callers" }, { #titles, titles[1] })
        end)
        support.sign_in(platform)
        support.real_time(platform)
        if not ok then error(why, 0) end
    end)

    it("keeps some of such failures and counts all", function()
        local shop, platform = support.tenant(), support.platform()
        route(shop, "flood", "\"user\"")
        local callers, n = {}, 0
        for i = 1, 9 do callers[i] = support.shopper(shop) end
        -- A worker keeps so many within a minute: it begins here in all of them, with the first failure.
        support.advance(platform, 61)
        local ok, why = pcall(function()
            for _, who in ipairs(callers) do
                for _ = 1, 8 do
                    local answer = ask(who, "flood?bad=1")
                    if answer.status == 502 then n = n + 1 end
                end
            end
        end)
        support.real_time(platform)
        assert(ok, why)
        assert.is_true(n > 44, n) -- nine callers, five failures in some worker each
        local kept = support.eventually(function()
            local row = db.one(shop.key, "select count(*)::int as n from rule_runs where tenant_key = $1", shop.key)
            return row.n >= 20 and row.n
        end, 20)
        assert.is_true(kept <= 20 * math.max(2, tonumber(os.getenv("WORKERS") or 2)), kept)
    end)

    it("rests like any other rule where a permission lets people in", function()
        local shop = support.tenant()
        route(shop, "inside", "{ permission = \"orders.read\" }")
        until_held(shop.owner, "inside")
        support.eventually(function() return rule_now(shop).health.breaker == "open" end, 20)
        support.eventually(function()
            for _ = 1, 8 do
                if ask(support.user(shop, "tenant_owner"), "inside").status ~= 503 then return false end
            end
            return true
        end, 20)
    end)
end)
