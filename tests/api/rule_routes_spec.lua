-- Rules that answer routes under /x/, over HTTP; and the secrets that they send.
local json = require("core.json")
local sched = require("core.sched")
local db = require("kasma.db")
local support = require("api.support")
local shop_of = require("api.shop")

local must = shop_of.must

local function post(who, path, body) return who:post("/rules/" .. path, body or {}) end

local function publish(shop, key, source, settings, revision)
    if not revision then
        must(post(shop.owner, "create", { key = key, hook = "route", name = key, source = source, settings = settings }))
    end
    return must(post(shop.owner, key .. "/publish", { revision = revision or 1, note = "go" }))
end

describe("secrets of rules", function()
    it("are set and named, and never shown", function()
        local shop = support.tenant()
        local set = must(post(shop.owner, "secrets/set", { name = "crm_token", value = "v4lue-of-the-token" }))
        assert.equal("crm_token", set.name)
        local list = shop.owner:get("/rules/secrets")
        assert.equal(200, list.status)
        assert.is_nil(list.body:find("v4lue", 1, true))
        assert.equal("crm_token", list.json[1].name)
        assert.equal(shop.owner.user.id, list.json[1].updatedBy)
        local row = db.one(shop.key, "select value_enc from tenant_secrets where tenant_key = $1 and name = 'crm_token'", shop.key)
        assert.is_nil(row.value_enc:find("v4lue", 1, true))
        local events = support.eventually(function()
            local logs = shop.owner:get("/audit/logs?limit=50")
            return logs.body:find("RULE_SECRET_SET", 1, true) and logs
        end)
        assert.is_nil(events.body:find("v4lue", 1, true))
        must(post(shop.owner, "secrets/set", { name = "crm_token", value = "another" }))
        assert.equal(1, #must(shop.owner:get("/rules/secrets"), 200))
    end)

    it("stay while a live rule needs them, and are nobody else's", function()
        local shop, other = support.tenant(), support.tenant()
        must(post(shop.owner, "secrets/set", { name = "crm_token", value = "x" }))
        publish(shop, "sender", "return { hook = 'route', name = 'sender', path = 'sender', needs = { http = { 'crm.example.org' }, "
            .. "secrets = { 'crm_token' } }, run = function() return { status = 204 } end }")
        local refused = post(shop.owner, "secrets/remove", { name = "crm_token" })
        assert.equal(409, refused.status)
        assert.equal("secret_in_use", refused.json.code)
        assert.same({ "sender" }, must(shop.owner:get("/rules/secrets"), 200)[1].usedBy)
        assert.equal(404, post(other.owner, "secrets/remove", { name = "crm_token" }).status)
        assert.equal(0, #must(other.owner:get("/rules/secrets"), 200))
        must(post(shop.owner, "sender/disable", { reason = "over" }))
        must(post(shop.owner, "secrets/remove", { name = "crm_token" }))
        assert.equal(404, post(shop.owner, "secrets/remove", { name = "crm_token" }).status)
    end)

    it("have a form", function()
        local shop = support.tenant()
        for _, body in ipairs{ { name = "Crm", value = "x" }, { name = "a b", value = "x" }, { name = "ok", value = "" },
            { name = "ok", value = ("x"):rep(4097) }, { name = ("x"):rep(64), value = "x" }, { name = "ok" } } do
            assert.equal(400, post(shop.owner, "secrets/set", body).status, json.encode(body))
        end
        local shopper = support.shopper(shop)
        assert.equal(403, post(shopper, "secrets/set", { name = "ok", value = "x" }).status)
        assert.equal(403, shopper:get("/rules/secrets").status)
    end)
end)

local shipped = require("modules.rules.shipped")

-- A rule that answers GET /x/<key>, with more manifest fields before `run`.
local function answers(key, fields, body)
    return ("return { hook = 'route', name = '%s', path = '%s', %s,\nrun = function(input, config)\n%s\nend }"):format(key, key, fields,
        body)
end

local ECHO = "return { status = 200, body = input.subject }"

describe("a route of the shop's own", function()
    local shop, guest, shopper
    setup(function()
        shop = support.tenant()
        guest, shopper = support.guest(shop), support.shopper(shop)
    end)

    it("is there when its rule is published, documented and validated, and gone when it is not", function()
        local entry = shipped.find("routes/tea_finder")
        assert.equal(404, guest:get("/x/tea-finder").status)
        must(post(shop.owner, "create", { key = "tea_finder", hook = "route", name = "Tea finder", source = entry.source,
            tests = entry.tests }))
        assert.equal(404, guest:get("/x/tea-finder").status)
        publish(shop, "tea_finder", nil, nil, 1)

        local answer = guest:get("/x/tea-finder?limit=2")
        assert.equal(200, answer.status)
        assert.is_true(#answer.json.teas <= 2)
        assert.truthy(answer.headers["content-type"]:find("^application/json"))
        assert.equal("public, max-age=60", answer.headers["cache-control"])
        assert.truthy(answer.headers.vary:find("X-Tenant-Kasma-Id", 1, true))
        assert.equal("private, max-age=60", shopper:get("/x/tea-finder").headers["cache-control"])
        for _, path in ipairs{ "/X/Tea-Finder", "/x/tea-finder/", "/api/x/tea-finder" } do
            assert.equal(200, guest:get(path).status, path)
        end
        local head = guest:request("HEAD", "/x/tea-finder")
        assert.equal(200, head.status)
        assert.equal("", head.body or "")
        assert.equal(404, guest:post("/x/tea-finder", {}).status)

        local bad = guest:get("/x/tea-finder?limit=abc")
        assert.equal(400, bad.status)
        assert.same({ "Bad Request", 400 }, { bad.json.error, bad.json.statusCode })
        assert.truthy(bad.json.message[1]:find("limit must be an integer number", 1, true))
        assert.equal(400, guest:get("/x/tea-finder?limit=6").status)
        assert.equal(400, guest:get("/x/tea-finder?taste=bitter").status)
        assert.equal(400, guest:get("/x/tea-finder?colour=red").status)

        local document = must(guest:get("/openapi.json"), 200)
        local operation = document.paths["/x/tea-finder"].get
        local names = {}
        for _, p in ipairs(operation.parameters) do names[p.name or ""] = p.schema end
        assert.same({ "integer", 1, 5 }, { names.limit.type, names.limit.minimum, names.limit.maximum })
        assert.same({ "light", "strong" }, { unpack(names.taste.enum) })
        assert.equal("array", operation.responses["200"].content["application/json"].schema.properties.teas.type)
        assert.truthy(document.paths["/sales/orders/checkout"])

        local other = support.tenant()
        assert.equal(404, support.guest(other):get("/x/tea-finder").status)
        assert.is_nil(must(support.guest(other):get("/openapi.json"), 200).paths["/x/tea-finder"])

        must(post(shop.owner, "tea_finder/disable", { reason = "over" }))
        assert.equal(404, guest:get("/x/tea-finder").status)
        assert.is_nil(must(guest:get("/openapi.json"), 200).paths["/x/tea-finder"])
    end)

    it("answers browsers of other origins as any route does", function()
        publish(shop, "cors", answers("cors", "access = 'public'", ECHO))
        local preflight = guest:request("OPTIONS", "/x/cors", nil, { Origin = "http://localhost:3000",
            ["Access-Control-Request-Method"] = "GET" })
        local known = guest:request("OPTIONS", "/api/ecommerce/products/list", nil, { Origin = "http://localhost:3000",
            ["Access-Control-Request-Method"] = "GET" })
        assert.equal(known.status, preflight.status)
        assert.equal(known.headers["access-control-allow-origin"], preflight.headers["access-control-allow-origin"])
        assert.equal(known.headers["access-control-allow-methods"], preflight.headers["access-control-allow-methods"])
    end)

    it("lets in whom its manifest says", function()
        publish(shop, "mine", answers("mine", "access = 'user'", ECHO))
        publish(shop, "staff_only", answers("staff_only", "access = { permission = 'orders.read' }", ECHO))
        publish(shop, "closed", answers("closed", "description = 'no word of access: signed in'", ECHO))
        publish(shop, "open", answers("open", "access = 'public'", ECHO))

        local refused = guest:get("/x/mine")
        assert.same({ 401, "Access token required" }, { refused.status, refused.json.message })
        assert.equal(401, guest:get("/x/closed").status)
        assert.equal(401, guest:get("/x/staff_only").status)
        assert.equal(401, support.client(shop.headers):get("/x/mine", { Authorization = "Bearer nonsense" }).status)
        assert.same({ shopper.user.id, false }, { must(shopper:get("/x/mine"), 200).user.id, shopper:get("/x/mine").json.user.guest })
        assert.equal(403, shopper:get("/x/staff_only").status)
        assert.equal(200, shop.owner:get("/x/staff_only").status)

        local stranger = support.shopper(support.tenant())
        stranger.headers = shop.headers
        assert.same({ 403, "not_a_member" }, { stranger:get("/x/mine").status, stranger:get("/x/mine").json.code })
        local seen = must(stranger:get("/x/open"), 200)
        assert.same({ true }, { seen.user.guest })
        assert.is_nil(seen.user.id)
        assert.equal("no-store", guest:get("/x/open").headers["cache-control"])
    end)

    it("sees the headers that it lists, and never who somebody is", function()
        publish(shop, "headers", answers("headers", "access = 'public', headers = { 'X-Signature', 'Accept-Language' }", ECHO))
        local seen = must(shopper:get("/x/headers", { ["X-Signature"] = "abc", ["X-Other"] = "no", ["Accept-Language"] = "vi" }), 200)
        assert.same({ ["x-signature"] = "abc", ["accept-language"] = "vi" }, seen.headers)
        local text = shopper:get("/x/headers").body
        assert.is_nil(text:find("access_token", 1, true))
        for _, name in ipairs{ "Cookie", "Authorization", "X-Kasma-Key", "X-User-Id" } do
            local report = must(post(shop.owner, "check", { hook = "route",
                source = answers("peek", ("access = 'public', headers = { '%s' }"):format(name), ECHO) }))
            assert.is_false(report.ok)
            assert.equal("manifest_field", report.diagnostics[1].code)
        end
    end)

    it("takes a body of its schema, and repeats an answer under its key", function()
        publish(shop, "guestbook", answers("guestbook", "access = 'user', method = 'POST', needs = { 'kv' }, "
            .. "body = schema.object{ text = schema.string{ min = 1, max = 20 }, "
            .. "stars = schema.optional(schema.integer{ min = 1, max = 5 }) }",
            "local n = kv.incr('entries') return { status = 201, body = { n = n, text = input.subject.body.text } }"))
        local function write(body, key) return shopper:post("/x/guestbook", body, key and { ["X-Idempotency-Key"] = key }) end
        assert.equal(400, write({}).status)
        assert.equal(400, write({ text = "" }).status)
        assert.equal(400, write({ text = "hello", stars = 6 }).status)
        assert.equal(400, write({ text = "hello", more = 1 }).status)
        local first = write({ text = "hello" }, "k1")
        assert.same({ 201, 1 }, { first.status, first.json.n })
        local again = write({ text = "hello" }, "k1")
        assert.same({ 201, 1 }, { again.status, again.json.n })
        assert.equal(2, must(write({ text = "again" }, "k2"), 201).n)
        assert.equal(404, shopper:get("/x/guestbook").status)
    end)

    it("is not held back for bodies that are more than a rule can be handed", function()
        publish(shop, "suggestions", answers("suggestions", "access = 'public', method = 'POST'",
            "return { status = 200, body = { n = #input.subject.body } }"))
        local deep, wide = {}, {}
        for _ = 1, 40 do deep = { deep } end
        for i = 1, 100000 do wide[i] = {} end
        for _ = 1, 5 do
            assert.equal(413, guest:post("/x/suggestions", deep).status)
            assert.equal(413, guest:post("/x/suggestions", wide).status)
        end
        assert.equal(1, must(guest:post("/x/suggestions", { ("x"):rep(1000000) }), 200).n)
    end)

    it("tells an event once for each guest, also when two choose the same key", function()
        publish(shop, "waitlist", answers("waitlist", "access = 'public', method = 'POST', needs = { 'events' }",
            "events.emit('waitlist', { id = 'tea' }) error('the answer is lost')"))
        local function join(cart)
            return guest:post("/x/waitlist", {}, { ["X-Cart-Token"] = cart, ["X-Idempotency-Key"] = "1" }).status
        end
        assert.same({ 502, 502, 502 }, { join("guest_a"), join("guest_a"), join("guest_b") })
        local row = db.one(shop.key, "select count(*)::int as n from outbox where tenant_key = $1 and payload->>'name' = 'custom.waitlist'",
            shop.key)
        assert.equal(2, row.n)
    end)

    it("answers with a status, safe headers, JSON or text", function()
        publish(shop, "shapes", answers("shapes", "access = 'public', query = schema.object{ as = schema.string{ max = 20 } }", [[
            local as = input.subject.query.as
            if as == "none" then return { status = 204 } end
            if as == "moved" then return { status = 302, headers = { Location = "/elsewhere" } } end
            if as == "teapot" then return { status = 418, body = { short = true, stout = true }, headers = { ["X-Tea"] = "yes" } } end
            if as == "text" then return { status = 200, body = "plain" } end
            if as == "page" then return { status = 200, body = "<p>hello</p>", headers = { ["Content-Type"] = "text/html" } } end
            if as == "disguised" then
                return { status = 200, body = { a = "<script>alert(1)</script>" }, headers = { ["Content-Type"] = "text/html" } }
            end
            if as == "proxy" then return { status = 200, headers = { ["X-Accel-Redirect"] = "/internal/secret" } } end
            if as == "sniff" then return { status = 200, headers = { ["X-Content-Type-Options"] = "none" } } end
            if as == "nothing" then return nil, "not for you" end
            if as == "cookie" then return { status = 200, headers = { ["Set-Cookie"] = "a=b" } } end
            if as == "cors" then return { status = 200, headers = { ["access-control-allow-origin"] = "*" } } end
            if as == "split" then return { status = 200, headers = { ["X-A"] = "b\r\nSet-Cookie: a=b" } } end
            if as == "status" then return { status = 101 } end
            if as == "cache" then return { status = 200, cache_s = 86400 } end]]))
        local function get(as) return guest:get("/x/shapes?as=" .. as) end
        assert.same({ 204, "" }, { get("none").status, get("none").body or "" })
        assert.same({ 302, "/elsewhere" }, { get("moved").status, get("moved").headers.location })
        local teapot = get("teapot")
        assert.same({ 418, true, "yes", "no-store" }, { teapot.status, teapot.json.stout, teapot.headers["x-tea"],
            teapot.headers["cache-control"] })
        local text = get("text")
        assert.same({ 200, "plain", "text/plain; charset=utf-8", "nosniff" }, { text.status, text.body, text.headers["content-type"],
            text.headers["x-content-type-options"] })
        local page = get("page")
        assert.equal("text/html", page.headers["content-type"])
        assert.truthy(page.headers["content-security-policy"]:find("^sandbox"))
        assert.is_nil(page.headers["content-security-policy"]:find("allow-same-origin", 1, true))
        assert.equal(page.headers["content-security-policy"], get("disguised").headers["content-security-policy"])
        assert.equal(404, get("nothing").status)
    end)

    it("that answers out of form is 502, and nothing of it goes out", function()
        for _, as in ipairs{ "cookie", "cors", "split", "status", "cache", "proxy", "sniff" } do
            local answer = support.outside(shop.headers):get("/x/shapes?as=" .. as) -- one caller of so many failures is held back
            assert.same({ 502, "rule_route_failed" }, { answer.status, answer.json.code }, as)
            assert.is_nil(answer.headers["set-cookie"])
        end
        local list = support.eventually(function()
            local failures = must(shop.owner:get("/rules/shapes/failures"), 200)
            return #failures >= 3 and failures
        end)
        local found
        for _, f in ipairs(list) do found = found or f.message:find("is not a rule's to set", 1, true) end
        assert.truthy(found)
    end)

    it("that fails is 502 without a word of why; its owner finds the line", function()
        publish(shop, "broken", answers("broken", "access = 'public', query = schema.object{ how = schema.string{ max = 9 } }", [[
            if input.subject.query.how == "error" then
              error("the secret of the house")
            end
            if input.subject.query.how == "loop" then while true do end end
            if input.subject.query.how == "large" then
              local t = {}
              for i = 1, 20 do t[i] = ("x"):rep(60000) .. i end
              return { status = 200, body = t }
            end
            return { status = 200 }]]))
        local answer = guest:get("/x/broken?how=error")
        assert.same({ 502, "rule_route_failed", "Bad Gateway" }, { answer.status, answer.json.code, answer.json.error })
        assert.is_nil(answer.body:find("secret of the house", 1, true))
        assert.equal(502, guest:get("/x/broken?how=loop").status)
        assert.equal(502, guest:get("/x/broken?how=large").status)
        local runs = support.eventually(function()
            local list = must(shop.owner:get("/rules/broken/runs?outcome=failed"), 200)
            return #list >= 3 and list
        end)
        local seen = {}
        for _, run in ipairs(runs) do seen[run.outcome] = run end
        assert.same({ "route", 1, 4 }, { seen.error.hook, seen.error.version, seen.error.line })
        assert.equal("limit_instructions", seen.limit_instructions.outcome)
        assert.truthy(seen.limit_result)
        assert.equal(200, guest:get("/x/broken?how=x").status)
    end)

    it("that fails is kept with what its calls were answered, and hears the same in a replay", function()
        local SOURCE = [[local function pick(n)
              local seen = kv.get("seen")
              if seen == n then error("seen " .. n .. " times") end
              return seen
            end
            kv.incr("seen", 7)
            local customer, why = customers.get(input.subject.query.who)
            local n = pick(input.subject.query.n)
            return { status = 200, body = { n = n, orders = customer.orders_count, name = customer.name, why = why } }]]
        local fields = "access = 'public', needs = { 'kv', 'customers' }, query = schema.object{ n = schema.integer, who = schema.uuid }"
        publish(shop, "replayed", answers("replayed", fields, SOURCE))
        must(shopper:post("/customers/update", { marketingConsent = false }))
        local customer = must(shopper:post("/customers/details"))
        local path = "/x/replayed?who=" .. customer.id .. "&n="
        assert.equal(502, support.outside(shop.headers):get(path .. "7").status)
        local run = support.eventually(function()
            local one = must(shop.owner:get("/rules/replayed/runs?outcome=failed"), 200)[1]
            local body = one and must(shop.owner:get("/rules/runs/" .. one.id), 200)
            return body and body.calls[1] and body
        end, 20)
        assert.same({ "kv.incr", 7, "customers.get", customer.id, "kv.get", 7 }, { run.calls[1].name, run.calls[1].answers[1],
            run.calls[2].name, run.calls[2].answers[1].id, run.calls[3].name, run.calls[3].answers[1] })
        assert.is_nil(json.encode(run.calls):find(shopper.user.email, 1, true)) -- who they are stays out
        assert.same({ "pick", 5 }, { run.stack[1].name, run.stack[1].line })
        -- What is remembered has changed since; the replay hears what the run heard, and changes nothing.
        assert.equal(200, support.outside(shop.headers):get(path .. "1").status)
        local before = db.one(shop.key, "select v #>> '{}' as v from rule_kv where tenant_key = $1 and rule_key = 'replayed'", shop.key).v
        local same = must(post(shop.owner, "runs/" .. run.id .. "/replay", { version = 1 }))
        assert.same({ "error", "error", true }, { same.before.outcome, same.after.outcome, same.same })
        assert.truthy(same.after.message:find("seen 7 times", 1, true))
        must(post(shop.owner, "replayed/draft", { revision = 1, source = answers("replayed", fields, (SOURCE:gsub("if seen == n .- end",
            "", 1))) }))
        local after = must(post(shop.owner, "runs/" .. run.id .. "/replay", {})).after
        assert.same({ "ok", 7, 0 }, { after.outcome, after.output.body.n, after.output.body.orders })
        assert.equal(before, db.one(shop.key, "select v #>> '{}' as v from rule_kv where tenant_key = $1 and rule_key = 'replayed'",
            shop.key).v)
    end)

    it("is told a customer's address only where its manifest says that it needs it", function()
        local store, product = shop_of.simple(0, { trackInventory = false })
        local buyer = support.shopper(store)
        must(shop_of.checkout(shop_of.buyer(store, product, 1, buyer), { paymentMethod = "COD", shippingAddress = { country = "VN",
            city = "Hanoi", street = "1 Trang Tien", zipCode = "10000", receiverName = "Ann" } }))
        must(buyer:post("/customers/update", { marketingConsent = false }))
        local id = must(buyer:post("/customers/details")).id
        local body = "local c, why = customers.get(input.subject.query.id) "
            .. "return { status = 200, body = { address = c and c.address, why = why } }"
        local query = "access = 'public', query = schema.object{ id = schema.uuid }, "
        publish(store, "without", answers("without", query .. "needs = { 'customers' }", body))
        publish(store, "with", answers("with", query .. "needs = { 'customers', 'customers.address' }", body))
        assert.is_nil(support.guest(store):get("/x/without?id=" .. id).json.address)
        assert.same({ country = "VN", city = "Hanoi", street = "1 Trang Tien", zip = "10000", receiver = "Ann" },
            support.guest(store):get("/x/with?id=" .. id).json.address)
        local other = support.tenant()
        publish(other, "with", answers("with", query .. "needs = { 'customers', 'customers.address' }", body))
        assert.same({ why = "not_found" }, support.guest(other):get("/x/with?id=" .. id).json)
    end)

    it("that fails five times at once is left alone by who made it fail for a while", function()
        publish(shop, "flaky", answers("flaky", "access = 'public'", "local x = nil return { status = x.y }"))
        local last
        for _ = 1, 40 do
            last = guest:get("/x/flaky")
            if last.status == 503 then break end
            assert.equal(502, last.status)
        end
        assert.same({ 503, "rule_route_unavailable" }, { last.status, last.json.code })
        local held_s = tonumber(last.headers["retry-after"])
        assert.is_true(held_s > 200 and held_s <= 300, held_s)
        assert.equal(502, support.outside(shop.headers):get("/x/flaky").status)
    end)

    it("is refused where its manifest cannot be a route", function()
        local function first(fields)
            local report = must(post(shop.owner, "check", { hook = "route", source = ("return { hook = 'route', name = 'r', %s, "
                .. "run = function() return { status = 200 } end }"):format(fields) }))
            return report.diagnostics[1] and report.diagnostics[1].code .. ": " .. report.diagnostics[1].message
        end
        assert.is_nil(first("path = 'a/b-c/d_1'"))
        assert.truthy(first("version = 1"):find("path is missing", 1, true))
        assert.truthy(first("path = '/a'"):find("path stands without", 1, true))
        assert.truthy(first("path = 'a//b'"):find("path is words", 1, true))
        assert.truthy(first("path = '../a'"):find("path is words", 1, true))
        assert.truthy(first("path = 'a', method = 'TRACE'"):find("method is GET", 1, true))
        assert.truthy(first("path = 'a', access = 'everyone'"):find("access is", 1, true))
        assert.truthy(first("path = 'a', body = schema.object{ a = schema.string }"):find("a GET has no body", 1, true))
        assert.truthy(first("path = 'a', query = schema.string"):find("query must be", 1, true))
        assert.truthy(first("path = 'a', query = schema.object{ a = schema.string{ max = 256, pattern = '^(a*)*(b*)c*$' } }")
            :find("a pattern of a route", 1, true))
        assert.is_nil(first("path = 'a', query = schema.object{ a = schema.string{ max = 64, pattern = '^%d+-%d+$' } }"))
    end)

    it("answers what the draft says, to who tries it, and to nobody else", function()
        publish(shop, "tried", answers("tried", "access = 'public'", "return { status = 200, body = { v = 1 } }"))
        must(post(shop.owner, "tried/draft", { revision = 1,
            source = answers("tried", "access = 'public'", "return { status = 200, body = { v = 2 } }") }))
        local session = must(post(shop.owner, "tried/draft/session", { minutes = 5 }))
        assert.equal(2, must(guest:get("/x/tried", { [session.header] = session.token }), 200).v)
        assert.equal(1, must(guest:get("/x/tried"), 200).v)
    end)

    it("does nothing by its calls while it is a draft: nobody who may publish has read it", function()
        local before = "return { status = 200, body = { kept = kv.get('a') } }"
        local needs = "access = 'public', needs = { 'kv', 'customers' }"
        publish(shop, "unread", answers("unread", needs, before))
        must(post(shop.owner, "unread/draft", { revision = 1, source = answers("unread", needs, "local v, why = kv.set('a', 1) "
            .. "local c, also = customers.get('0190a000-0000-7000-8000-000000000001') return { status = 200, body = { why, also } }") }))
        local session = must(post(shop.owner, "unread/draft/session", { minutes = 5 }))
        assert.same({ "preview", "preview" }, must(guest:get("/x/unread", { [session.header] = session.token }), 200))
        assert.is_nil(must(guest:get("/x/unread"), 200).kept)
    end)

    it("belongs to the rule of the higher priority when two want it, and to one method each", function()
        local function source(name, method, priority)
            return ("return { hook = 'route', name = '%s', path = 'shared/path', access = 'public', method = '%s', priority = %d, "
                .. "run = function() return { status = 200, body = { by = '%s' } } end }"):format(name, method, priority, name)
        end
        publish(shop, "low_one", source("low", "GET", 1))
        publish(shop, "high_one", source("high", "GET", 9))
        publish(shop, "put_one", source("put", "PUT", 5))
        assert.equal("high", must(guest:get("/x/shared/path"), 200).by)
        assert.equal("put", must(guest:put("/x/shared/path"), 200).by)
        must(post(shop.owner, "high_one/disable", { reason = "over" }))
        assert.equal("low", must(guest:get("/x/shared/path"), 200).by)
        must(post(shop.owner, "pause", { reason = "all routes off", hook = "route" }))
        assert.equal(404, guest:get("/x/shared/path").status)
        must(post(shop.owner, "resume", { reason = "on again" }))
        assert.equal("low", must(guest:get("/x/shared/path"), 200).by)
    end)

    it("asks the shop: availability, with the stock that there is", function()
        local sku = support.unique("SKU")
        must(shop.owner:post("/api/ecommerce/products/create", { name = sku, slug = sku:lower(), price = 1,
            variants = { { sku = sku, price = 1, stock = 3, name = sku } } }))
        publish(shop, "availability", shipped.find("routes/availability").source)
        local answer = guest:get("/x/availability?sku=" .. sku)
        assert.same({ 200, "few_left", "public, max-age=30" }, { answer.status, answer.json.state, answer.headers["cache-control"] })
        answer = guest:get("/x/availability?sku=no-such-thing")
        assert.same({ 404, "unknown", "no-store" }, { answer.status, answer.json.state, answer.headers["cache-control"] })
        assert.equal(400, guest:get("/x/availability").status)
        must(post(shop.owner, "availability/disable", { reason = "over" }))
    end)

    it("loses no count when many ask at once, and shares none with another shop", function()
        local other = support.tenant()
        local source = answers("counter", "access = 'public', method = 'POST', needs = { 'kv' }",
            "return { status = 200, body = { n = kv.incr('n'), seen = kv.get('last'), put = kv.set('last', 1) } }")
        publish(shop, "counter", source)
        publish(other, "counter", source)
        local seen, list = {}, {}
        for i = 1, 30 do
            list[i] = function()
                local answer = support.guest(shop):post("/x/counter")
                assert(answer.status == 200, answer.body)
                seen[answer.json.n] = true
            end
        end
        sched.parallel(list)
        for i = 1, 30 do assert.is_true(seen[i], "count " .. i) end
        local first = must(support.guest(other):post("/x/counter"), 200)
        assert.equal(1, first.n)
        assert.is_nil(first.seen)
        assert.equal(1, must(support.guest(other):post("/x/counter"), 200).seen)
    end)

    it("is told of among the hooks, with what its rules may call", function()
        local hook = must(shop.owner:get("/rules/hooks/route"), 200)
        local calls = {}
        for _, c in ipairs(hook.capabilities) do calls[c.name] = { c.needs, c.limit } end
        assert.same({ "kv", 50 }, calls["kv.get"])
        assert.same({ "http", 5 }, calls["http.fetch"])
        assert.same({ "secrets", 20 }, calls.secret)
        assert.same({ "capability", true, 2000000, 16777216 }, { hook.class, hook.asked, hook.budget.instructions, hook.budget.heap })
        assert.same({}, must(shop.owner:get("/rules/hooks/promotion"), 200).capabilities)
        local stubs = must(shop.owner:get("/rules/stubs"), 200).files[1].text
        assert.truthy(stubs:find("kv.get = nil", 1, true))
        assert.truthy(loadstring(stubs))
    end)

    for _, entry in ipairs(shipped.list()) do
        if entry.hook == "route" then
            it("comes with the product: " .. entry.key, function()
                local key, path = entry.key:match("[^/]+$") .. "_shipped", entry.source:match("path%s*=%s*\"([^\"]+)\"")
                publish(shop, key, entry.source)
                local answer = guest:get("/x/" .. path)
                assert.is_true(answer.status < 500, answer.body)
                assert.truthy(must(guest:get("/openapi.json"), 200).paths["/x/" .. path])
                must(post(shop.owner, key .. "/disable", { reason = "over" }))
            end)
        end
    end
end)

local command = require("api.rules_command")

describe("a route from a file", function()
    it("is live when the tenant's list names it, as it is saved, and gone with its file", function()
        local shop = support.tenant()
        local folder = command.folder()
        os.execute("mkdir -p " .. folder .. "/routes " .. folder .. "/active")
        local list, rule = folder .. "/active/" .. shop.key .. ".lua", folder .. "/routes/tea_finder.lua"
        local server = support.server{ KASMA_RULES_DIR = folder }
        local guest = support.guest(shop)
        guest.url = server.url
        local ok, why = pcall(function()
            local function until_status(status)
                return support.eventually(function()
                    local answer = guest:get("/x/tea-finder")
                    return answer.status == status and answer
                end, 20)
            end
            command.save(rule, shipped.find("routes/tea_finder").source)
            assert.equal(404, guest:get("/x/tea-finder").status)
            command.save(list, "return { { file = 'routes/tea_finder.lua', config = { teas = { { sku = 'A', name = 'Artichoke', "
                .. "strong = false } } } } }\n")
            assert.equal("Artichoke", until_status(200).json.teas[1].name)
            local operation = must(guest:get("/openapi.json"), 200).paths["/x/tea-finder"].get
            assert.equal("Tea finder", operation.summary)
            local bad = guest:get("/x/tea-finder?limit=abc")
            assert.same({ 400, "Bad Request", 400 }, { bad.status, bad.json.error, bad.json.statusCode })

            -- What is saved with a mistake leaves the last good one live.
            command.save(rule, "return { hook = 'route', name = 'Tea finder', path = 'tea-finder', run = function( }\n")
            support.eventually(function() return command.read(server.log):find("rule file not loaded", 1, true) end, 20)
            assert.equal(200, guest:get("/x/tea-finder").status)

            command.save(rule, "return { hook = 'route', name = 'Tea finder', path = 'tea-finder', access = 'public', "
                .. "config = schema.object{ teas = schema.list(schema.object{ sku = schema.string, name = schema.string, "
                .. "strong = schema.boolean }) }, run = function() return { status = 201, body = { new = true } } end }\n")
            assert.is_true(until_status(201).json.new)

            assert(os.remove(rule))
            until_status(404)
            command.save(rule, shipped.find("routes/tea_finder").source)
            until_status(200)
            command.save(list, "return {}\n")
            until_status(404)
        end)
        server.stop()
        os.execute("rm -rf " .. folder)
        assert(ok, why)
    end)
end)

describe("a route that calls another server", function()
    it("reaches the hosts that rule and shop name, with a secret that it never sees", function()
        local port_file = os.tmpname()
        os.remove(port_file)
        local echo = assert(io.popen("exec python3 tests/spec/echo_server.py " .. port_file, "w"))
        local port = support.eventually(function() return tonumber(command.read(port_file) or "") end, 20)
        local server = support.server{ WEBHOOK_PRIVATE_HOSTS = "127.0.0.1:" .. port }
        local ok, why = pcall(function()
            local shop = support.tenant{ settings = { ["rules.http_hosts"] = { "127.0.0.1" } } }
            local closed = support.tenant()
            local source = answers("relay", "access = 'public', needs = { http = { '127.0.0.1' }, secrets = { 'token' } }", ([[
                local s, absent = secret("token")
                log("sending", s)
                local a, why = http.fetch{ url = "http://127.0.0.1:%d/x", method = "POST", json = { n = 1 },
                  headers = { Authorization = { "Bearer ", s or "none" } } }
                if not a then return { status = 503, body = { why = why } } end
                return { status = 200, body = { status = a.status, sent = a.json.body, got = a.json.headers.authorization,
                  absent = absent } }
            ]]):format(port))
            must(post(shop.owner, "secrets/set", { name = "token", value = "t0ken-v4lue" }))
            for _, one in ipairs{ shop, closed } do publish(one, "relay", source) end
            local guest, outside = support.guest(shop), support.guest(closed)
            guest.url, outside.url = server.url, server.url
            local answer = must(guest:get("/x/relay"), 200)
            assert.same({ status = 200, sent = '{"n":1}', got = "Bearer t0ken-v4lue" }, answer)
            -- The other shop named no host: refused before anything is sent, and its owner reads why.
            assert.same({ 502, "rule_route_failed" }, { outside:get("/x/relay").status, outside:get("/x/relay").json.code })
            local failures = support.eventually(function()
                local list = must(closed.owner:get("/rules/relay/failures"), 200)
                return list[1] and list
            end)
            assert.truthy(failures[1].message:find("capability_denied: http.fetch: host '127.0.0.1' is not in the setting", 1, true))
            assert.is_nil(command.read(server.log):find("t0ken", 1, true))
        end)
        server.stop()
        echo:close()
        os.remove(port_file)
        assert(ok, why)
    end)
end)
