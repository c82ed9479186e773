-- What publishing looks at: the preview that is named, who wrote and who approves, the shop's past, what else gives something on the same
-- orders, what the config points at; and what is told of a rule whose category is gone or whose worker is behind.
local command = require("api.command")
local db = require("kasma.db")
local health = require("modules.system.health")
local live = require("modules.rules.live")
local pg = require("core.pg")
local rules = require("core.rules")
local service = require("modules.rules.service")
local shop_of = require("api.shop")
local store = require("modules.rules.store")
local support = require("api.support")
local time = require("core.time")
local uuid = require("core.uuid")
local workflow_store = require("modules.rules.workflow_store")

local must = shop_of.must

local function source(body, name, config)
    return ("return { hook = \"promotion\", name = %q, %srun = function(input, config)\n%s\nend }"):format(name or "Rule",
        config and "config = " .. config .. ", " or "", body)
end

local function percent(bps)
    return source(("return { operations = { { op = \"line_percent\", line_id = input.cart.lines[1].id, bps = %d, label = \"%d\" } } }")
        :format(bps, bps))
end

local function post(who, path, body) return who:post("/rules/" .. path, body or {}) end

local function create(shop, key, text, settings, hook)
    return must(post(shop.owner, "create", { key = key, hook = hook or "promotion", name = key, source = text, settings = settings }))
end

local function publish(shop, key, revision, more)
    local body = { revision = revision or 1, note = "go" }
    for name, value in pairs(more or {}) do body[name] = value end
    return post(shop.owner, key .. "/publish", body)
end

-- A shop that sells one lamp and has sold it in these quantities.
local function shop_with_orders(quantities)
    local shop, product = shop_of.simple(0, { trackInventory = false })
    local numbers = {}
    for i, quantity in ipairs(quantities) do
        numbers[i] = must(shop_of.checkout(shop_of.buyer(shop, product, quantity), { paymentMethod = "COD" })).orders[1].orderNumber
    end
    return shop, product, numbers
end

describe("a publication that names a preview", function()
    it("keeps what the preview said with the version, and takes no other's", function()
        local shop = shop_with_orders{ 1, 2 }
        create(shop, "half", percent(5000))
        create(shop, "other", percent(1000))
        local seen = must(post(shop.owner, "half/preview", { orders = { last = 10 } }))
        local theirs = must(post(shop.owner, "other/preview", { orders = { last = 10 } }))
        local refused = publish(shop, "half", 1, { previewId = theirs.previewId })
        assert.same({ 409, "preview_mismatch" }, { refused.status, refused.json.code })
        assert.equal(404, publish(shop, "half", 1, { previewId = uuid.v7() }).status)
        must(publish(shop, "half", 1, { previewId = seen.previewId }))
        local version = must(shop.owner:get("/rules/half/versions"), 200)[1]
        assert.same({ seen.previewId, 2, -150000, "draft r1" }, { version.preview.id, version.preview.changed,
            version.preview.totals.delta, version.preview.compare.to })
        must(post(shop.owner, "half/draft", { revision = 1, source = percent(1000) }))
        local late = publish(shop, "half", 2, { previewId = seen.previewId })
        assert.same({ 409, "preview_mismatch", 1, 2 }, { late.status, late.json.code, late.json.details.revision, late.json.details.draft })
        local other = shop_of.simple(0)
        create(other, "half", percent(1000))
        assert.equal(404, publish(other, "half", 1, { previewId = seen.previewId }).status)
    end)

    it("takes the result of a job, and of a job alone that is done", function()
        local shop = shop_with_orders{ 1 }
        create(shop, "half", percent(5000))
        local asked = must(post(shop.owner, "half/preview", { orders = { last = 500 } }), 202)
        local row = support.eventually(function()
            local p = must(shop.owner:get("/rules/previews/" .. asked.previewId), 200)
            return p.state == "done" and p
        end, 20)
        assert.same({ 1, 1 }, { row.done, row.result.changed })
        must(publish(shop, "half", 1, { previewId = asked.previewId }))
        db.pipeline(shop.key, { { "update rule_previews set state = 'cancelled' where tenant_key = $1 and id = $2", shop.key,
            asked.previewId } })
        assert.equal("preview_mismatch", publish(shop, "half", 1, { previewId = asked.previewId }).json.code)
    end)
end)

describe("approval", function()
    local function strict() return support.tenant{ currency = "VND", country = "VN", settings = { ["rules.approval"] = "all" } } end

    it("is not for whoever wrote a part of the draft, though somebody else asks", function()
        local shop = strict()
        local writer, asker, third = shop.owner, support.user(shop, "tenant_owner"), support.user(shop, "tenant_owner")
        create(shop, "half", percent(5000))
        must(post(asker, "half/draft", { revision = 1, source = percent(4000) }))
        local id = must(post(asker, "half/publish", { revision = 2, note = "please" }), 202).requestId
        for _, who in ipairs{ writer, asker } do
            local answer = post(who, "requests/" .. id .. "/approve", { note = "me" })
            assert.same({ 403, "same_person" }, { answer.status, answer.json.code })
            assert.equal(403, post(who, "requests/" .. id .. "/reject", { note = "me" }).status)
        end
        must(post(third, "requests/" .. id .. "/approve", { note = "fine" }))
        -- What was published is nobody's draft any more: the next change has its own authors.
        must(post(third, "half/draft", { revision = 2, source = percent(3000) }))
        local second = must(post(third, "half/publish", { revision = 3, note = "less" }), 202).requestId
        assert.equal(403, post(third, "requests/" .. second .. "/approve", { note = "me" }).status)
        must(post(writer, "requests/" .. second .. "/approve", { note = "fine" }))
    end)

    it("is not by a key of the author either, and is withdrawn by whoever asked", function()
        local shop = strict()
        create(shop, "half", percent(5000))
        local key = must(shop.owner:post("/tenants/" .. shop.key .. "/keys/create", { name = "ci", key_type = "secret",
            scopes = { "rules.publish", "keys.write" } })).key
        local by_key = support.client{ ["Authorization"] = "Bearer " .. key.secret }
        local made = must(by_key:post("/tenants/" .. shop.key .. "/keys/create", { name = "ci", key_type = "secret",
            scopes = { "rules.publish" } })).key
        local by_made = support.client{ ["Authorization"] = "Bearer " .. made.secret }
        local colleague = support.user(shop, "tenant_owner")
        local id = must(post(colleague, "half/publish", { revision = 1, note = "please" }), 202).requestId
        for _, key_of_theirs in ipairs{ by_key, by_made } do
            assert.equal("same_person", post(key_of_theirs, "requests/" .. id .. "/approve", { note = "me" }).json.code)
        end
        assert.equal("cancelled", must(post(colleague, "requests/" .. id .. "/cancel", { note = "no" })).state)
    end)
end)

describe("the shop's past", function()
    local HIDDEN = "if input.cart.lines[1].qty == 77 then error(\"such a cart\") end"

    it("refuses a rule that fails on an order of it, and names the order", function()
        local shop, _, numbers = shop_with_orders{ 1, 77, 77 }
        create(shop, "hidden", source(HIDDEN))
        local refused = publish(shop, "hidden")
        local d = refused.json.details.diagnostics[1]
        assert.same({ 422, "rule_check_failed", "runtime_error", 2, "hidden.lua", numbers[3] }, { refused.status, refused.json.code, d.code,
            d.line, d.file, d.sample })
        assert.is_truthy(d.message:find("2 of the last 3", 1, true), d.message)
        assert.equal(200000, d.budget.instructions.limit)
        must(post(shop.owner, "hidden/draft", { revision = 1, source = source("") }))
        must(publish(shop, "hidden", 2))
    end)

    it("is asked as of its own day: a rule that fails on Sundays fails on Sunday's order", function()
        local platform = support.platform()
        local shop, product = shop_of.simple(0, { trackInventory = false })
        local f = time.fields(time.now(), "UTC")
        support.advance(platform, ((7 - f.wday) % 7) * 86400 + (10 - f.hour) * 3600 + (f.hour >= 10 and f.wday == 7 and 7 * 86400 or 0))
        local ok, why = pcall(function()
            support.sign_in(shop.owner)
            -- No sample's moment, whatever day these tests are run on.
            local sunday = math.floor(time.now() / 1000)
            must(shop_of.checkout(shop_of.buyer(shop, product), { paymentMethod = "COD" }))
            support.advance(platform, 86400)
            support.sign_in(shop.owner)
            create(shop, "sundays", source(("if input.now.wday == 7 and input.now.epoch >= %d then error(\"never on Sunday\") end")
                :format(sunday)))
            local refused = publish(shop, "sundays")
            assert.same({ 422, "never on Sunday" }, { refused.status,
                (refused.json.details.diagnostics[1].message:gsub("^.-: ", "")) })
        end)
        support.sign_in(platform)
        support.real_time(platform)
        if not ok then error(why, 0) end
    end)

    it("warns of a rule that comes near its budget on it, until the warning is accepted by its code", function()
        local shop = shop_with_orders{ 77 }
        create(shop, "slow", source("if input.cart.lines[1].qty == 77 then for i = 1, 60000 do local x = i end end"))
        local warned = publish(shop, "slow")
        assert.same({ 409, "warning_not_accepted", "slow_sample", "warning" }, { warned.status, warned.json.code,
            warned.json.details.diagnostics[1].code, warned.json.details.diagnostics[1].severity })
        assert.equal(409, publish(shop, "slow", 1, { acceptWarnings = { "stacks_with" } }).status)
        must(publish(shop, "slow", 1, { acceptWarnings = { "slow_sample" } }))
        assert.same({ "slow_sample" }, must(shop.owner:get("/rules/slow/versions/1"), 200).checkReport.warnings)
    end)

    it("tells which other promotions gave something on the same orders", function()
        local shop = shop_with_orders{ 1, 2, 3 }
        create(shop, "first", (percent(1000):gsub("Rule", "first")))
        must(publish(shop, "first"))
        create(shop, "second", source("if input.cart.lines[1].qty > 1 then return { operations = { { op = \"order_amount\", amount = 1000, "
            .. "label = \"x\" } } } end"))
        local seen = must(post(shop.owner, "second/preview", { orders = { last = 10 } }))
        assert.same({ { with = "promotion 'first'", orders = 2 } }, seen.interactions)
        assert.equal("stacks with promotion 'first': 2 of 3 orders got both", seen.warnings[1].message)
        local warned = publish(shop, "second")
        assert.same({ 409, "stacks_with" }, { warned.status, warned.json.details.diagnostics[1].code })
        must(publish(shop, "second", 1, { acceptWarnings = { "stacks_with" } }))
    end)

    it("of a hook outside of quotes is what its rules were asked", function()
        local shop, product = shop_of.simple(0, { trackInventory = false })
        local function validate(body) return ("return { hook = \"checkout.validate\", name = \"v\", run = function(input)\n%s\nend }")
            :format(body) end
        local fails = "if input.subject.quote.lines[1].qty == 77 then error(\"no\") end"
        create(shop, "limits", validate(fails), nil, "checkout.validate")
        must(publish(shop, "limits"))
        must(shop_of.checkout(shop_of.buyer(shop, product, 77), { paymentMethod = "COD" }))
        support.eventually(function() return #store.inputs(shop.key, "checkout.validate", 10) > 0 end, 20)
        must(post(shop.owner, "limits/draft", { revision = 1, source = validate(fails .. " -- still") }))
        assert.equal("rule_check_failed", publish(shop, "limits", 2).json.code)
        must(post(shop.owner, "limits/draft", { revision = 2, source = validate("return nil") }))
        must(publish(shop, "limits", 3))
    end)
end)

describe("a config that points at nothing", function()
    local CONFIG = "schema.object{ gift = schema.product, more = schema.optional(schema.list(schema.category)) }"

    it("is found when it is saved and published, with the field; what was live goes on and lists say so", function()
        local shop, product = shop_of.simple(0, { trackInventory = false })
        local text = source("return nil, 'nothing'", "Rule", CONFIG)
        local none = uuid.v7()
        local made = create(shop, "gift", text, { config = { gift = product, more = { none } } })
        local d = made.diagnostics[1]
        assert.same({ "config_invalid", "config.more[1]", ("config.more[1]: category %s does not exist in this tenant"):format(none) },
            { d.code, d.field, d.message })
        assert.equal("rule_check_failed", publish(shop, "gift").json.code)
        local other, theirs = shop_of.simple(0)
        assert.is_table(other)
        must(post(shop.owner, "gift/draft", { revision = 1, settings = { config = { gift = theirs } } }))
        assert.equal("rule_check_failed", publish(shop, "gift", 2).json.code)
        must(post(shop.owner, "gift/draft", { revision = 2, settings = { config = { gift = product } } }))
        must(publish(shop, "gift", 3))
        assert.same({}, must(shop.owner:get("/rules"), 200)[1].findings)
        must(post(shop.owner, "gift/draft", { revision = 3, settings = { config = { gift = product, more = {} } } }))
        must(publish(shop, "gift", 4))
        db.pipeline(shop.key, { { "update products set deleted_at = now() where tenant_key = $1 and id = $2", shop.key, product } })
        local row = must(shop.owner:get("/rules"), 200)[1]
        assert.same({ "active", "config_invalid" }, { row.state, row.findings[1].code })
        assert.is_truthy(row.findings[1].message:find("config.gift: product " .. product, 1, true))
        for _, answer in ipairs{ publish(shop, "gift", 4), post(shop.owner, "gift/rollback", { toVersion = 1, note = "x" }) } do
            assert.same({ 422, "rule_check_failed", "config_invalid" }, { answer.status, answer.json.code,
                answer.json.details.diagnostics[1].code })
        end
        must(post(shop.owner, "gift/disable", { reason = "x" }))
        assert.equal(422, post(shop.owner, "gift/enable", { reason = "x" }).status)
    end)
end)

describe("a rule that was switched off", function()
    it("comes back only when everything is well again, its past included", function()
        local shop, product = shop_of.simple(0, { trackInventory = false })
        create(shop, "bad", source("if input.cart.lines[1].qty == 77 then error(\"no\") end"))
        must(publish(shop, "bad"))
        must(shop_of.checkout(shop_of.buyer(shop, product, 77), { paymentMethod = "COD" }))
        local rule = must(shop.owner:get("/rules/bad"), 200)
        local now = time.iso(time.now())
        db.pipeline(shop.key, { store.set_state(shop.key, rule.id, "active", "off", "failed too often", now) })
        local refused = post(shop.owner, "bad/enable", { reason = "again" })
        assert.same({ 422, "rule_check_failed" }, { refused.status, refused.json.code })
        must(post(shop.owner, "bad/draft", { revision = 1, source = source("return nil") }))
        must(publish(shop, "bad", 2))
        db.pipeline(shop.key, { store.set_state(shop.key, rule.id, "active", "off", "failed too often", now) })
        assert.equal("active", must(post(shop.owner, "bad/enable", { reason = "again" })).state)
    end)
end)

describe("the window of a version", function()
    local function quoted(buyer) return must(buyer:post("/sales/cart/quote", {})).total end
    local function in_hours(n) return time.iso(time.now() + n * 3600000) end
    local function state_of(shop) return store.find(shop.key, "half").state end

    it("opens and closes at its times, and ends with the rule disabled", function()
        local platform = support.platform()
        local shop, product = shop_of.simple(0, { trackInventory = false })
        create(shop, "half", percent(5000), { startsAt = in_hours(1), endsAt = in_hours(2) })
        create(shop, "flow", "return { hook = 'workflow', name = 'Flow', on = { 'custom.x' }, steps = { { name = 'a', wait = '1d' } } }",
            { startsAt = in_hours(1) }, "workflow")
        must(publish(shop, "half"))
        must(publish(shop, "flow"))
        local buyer = shop_of.buyer(shop, product)
        assert.same({ 100000, "active" }, { quoted(buyer), state_of(shop) })
        local function flows() return #(select(2, workflow_store.look(shop.key, time.iso(time.now())))) end
        assert.equal(0, flows())
        local ok, why = pcall(function()
            support.advance(platform, 3601)
            support.eventually(function() return quoted(buyer) == 50000 end, 20)
            assert.equal(1, #(select(2, workflow_store.look(shop.key, in_hours(1)))))
            support.advance(platform, 7201)
            support.eventually(function() return quoted(buyer) == 100000 and state_of(shop) == "disabled" end, 20)
            support.sign_in(shop.owner)
            local again = post(shop.owner, "half/enable", { reason = "x" })
            assert.same({ 409, "rule_off" }, { again.status, again.json.code })
            local late = publish(shop, "half")
            assert.same({ 400, "window_invalid" }, { late.status, late.json.code })
        end)
        support.sign_in(platform)
        support.real_time(platform)
        if not ok then error(why, 0) end
    end)

    it("is kept to by each worker's own clock, also where nothing is published and no sweeper comes by", function()
        local platform = support.platform()
        local shop, product = shop_of.simple(0, { trackInventory = false })
        create(shop, "half", percent(5000), { startsAt = in_hours(1), endsAt = in_hours(2) })
        must(publish(shop, "half"))
        local buyer = shop_of.buyer(shop, product)
        assert.equal(100000, quoted(buyer))
        db.query(shop.key, "delete from due_work where tenant_key = $1 and kind = 'rules.window'", shop.key)
        local epoch = store.epoch(shop.key)
        local ok, why = pcall(function()
            support.advance(platform, 3601)
            for _ = 1, 20 do assert.equal(50000, quoted(buyer)) end
            support.advance(platform, 7201)
            for _ = 1, 20 do assert.equal(100000, quoted(buyer)) end
            assert.same({ "active", epoch }, { state_of(shop), store.epoch(shop.key) })
        end)
        support.sign_in(platform)
        support.real_time(platform)
        if not ok then error(why, 0) end
        assert.equal(100000, quoted(buyer))
    end)

    it("is a version's: another version has another, or none, and what is disabled stays so", function()
        local shop, product = shop_of.simple(0, { trackInventory = false })
        create(shop, "half", percent(5000), { startsAt = in_hours(1), endsAt = in_hours(2) })
        local buyer = shop_of.buyer(shop, product)
        local function rows()
            return db.one(shop.key, "select count(*)::int as n from due_work where tenant_key = $1 and kind = 'rules.window'", shop.key).n
        end
        must(publish(shop, "half"))
        assert.same({ 100000, 1 }, { quoted(buyer), rows() })
        must(post(shop.owner, "half/draft", { revision = 1, settings = {} }))
        must(publish(shop, "half", 2))
        assert.same({ 50000, 0 }, { quoted(buyer), rows() })
        must(post(shop.owner, "half/rollback", { toVersion = 1, note = "as before" }))
        assert.same({ 100000, 1 }, { quoted(buyer), rows() })
        must(post(shop.owner, "half/disable", { reason = "x" }))
        assert.equal(0, rows())
        -- A row of it that the sweeper has read already does nothing.
        service.on_window(shop.key, must(shop.owner:get("/rules/half"), 200).id)
        assert.same({ 100000, "disabled" }, { quoted(buyer), state_of(shop) })
        must(post(shop.owner, "half/enable", { reason = "x" }))
        assert.same({ 100000, 1 }, { quoted(buyer), rows() })
        local wrong = must(post(shop.owner, "half/draft", { revision = 2, settings = { startsAt = in_hours(2), endsAt = in_hours(1) } }))
        assert.same({ "config_invalid", "endsAt must come after startsAt" }, { wrong.diagnostics[1].code, wrong.diagnostics[1].message })
        assert.equal(422, publish(shop, "half", 3).status)
        assert.equal(400, post(shop.owner, "half/draft", { revision = 3, settings = { startsAt = "soon" } }).status)
    end)

    it("goes with the rule into files and comes back the same", function()
        local shop = shop_of.simple(0)
        create(shop, "half", percent(5000), { startsAt = in_hours(1), endsAt = in_hours(2) })
        must(publish(shop, "half"))
        local files = must(shop.owner:get("/rules/export"), 200).files
        local plan = must(post(shop.owner, "import", { files = files, mode = "plan" }))
        assert.same({ 0, 0, 0 }, { #plan.create, #plan.update, #plan.disable })
        for _, file in ipairs(files) do file.text = file.text:gsub(", endsAt = \"[^\"]*\"", "") end
        assert.equal(1, #must(post(shop.owner, "import", { files = files, mode = "plan" })).update)
    end)
end)

describe("kasma doctor", function()
    it("tells of rules that are off, rest, are paused, near their budget, or point at nothing", function()
        local shop, product = shop_of.simple(0, { trackInventory = false })
        local now = time.now()
        local ids = {}
        for _, key in ipairs{ "offed", "rests", "lost", "near" } do
            create(shop, key, source("return nil", key, "schema.object{ gift = schema.product }"), { config = { gift = product } })
            must(publish(shop, key))
            ids[key] = must(shop.owner:get("/rules/" .. key), 200).id
        end
        local gone = shop_of.product(shop, { name = "Gone", price = 5 })
        must(post(shop.owner, "lost/draft", { revision = 1, settings = { config = { gift = gone } } }))
        must(publish(shop, "lost", 2))
        local _, said = command.run("rules pause --hook promotion -m x --tenant " .. shop.key)
        assert.is_truthy(said:find("paused: promotion  4 live rules stand still", 1, true), said)
        _, said = command.run("rules resume -m x --tenant " .. shop.key)
        assert.is_truthy(said:find("nothing is paused", 1, true), said)
        must(post(shop.owner, "pause", { hook = "tax.resolve", reason = "x" }))
        db.pipeline(shop.key, {
            { "update products set deleted_at = now() where tenant_key = $1 and id = $2", shop.key, gone },
            store.set_state(shop.key, ids.offed, "active", "off", "failed too often", time.iso(now)),
            store.open_breaker(shop.key, ids.rests, 1, time.iso(now + 300000), time.iso(now):sub(1, 10), time.iso(now)),
            store.insert_run{ tenant_key = shop.key, app_key = shop.app, id = uuid.v7(), at = time.iso(now), rule_id = ids.near,
                version = 1, hook = "promotion", outcome = "ok", instructions = 190000, micros = 1, heap = 1 } })
        local found = {}
        for _, check in ipairs(command.json("doctor --json --group rules").checks) do found[check.id] = check end
        local facts = service.doctor(shop.key)
        local by = {}
        for _, r in ipairs(facts.rules) do by[r.key] = r end
        assert.same({ "off", true, 0.95, 1 }, { by.offed.state, by.rests.open, by.near.share, #by.lost.lost })
        assert.same({ "tax.resolve" }, facts.paused)
        for _, id in ipairs{ "rules.off", "rules.breaker", "rules.paused", "rules.budget", "rules.config" } do
            assert.equal("warn", found[id].state, id)
        end
        assert.is_table(found["rules.epochs"])
        assert.equal("ok", found["rules.libraries"].state)
    end)
end)

describe("a removed rule", function()
    it("is restorable for thirty days and no longer", function()
        local platform = support.platform()
        local shop = shop_of.simple(0)
        for _, key in ipairs{ "young", "old" } do
            create(shop, key, percent(1000))
            must(post(shop.owner, key .. "/remove", { reason = "x" }))
        end
        support.advance(platform, 29 * 86400)
        local ok, why = pcall(function()
            support.sign_in(shop.owner)
            assert.equal("draft", must(post(shop.owner, "young/restore", { reason = "x" })).state)
            support.advance(platform, 2 * 86400)
            support.sign_in(shop.owner)
            assert.equal(410, post(shop.owner, "old/restore", { reason = "x" }).status)
        end)
        support.sign_in(platform)
        support.real_time(platform)
        if not ok then error(why, 0) end
    end)
end)

describe("a worker that is behind", function()
    local function workers_of(shop) return must(shop.owner:get("/rules"), 200)[1].live end

    -- Lets every worker price something, so that each holds the rules. Requests at once take connections of their own.
    local function everywhere(shop, buyer)
        local all
        support.eventually(function()
            -- Asked anew: servers that other tests have just ended count for some seconds.
            all = workers_of(shop).workers
            local calls = {}
            for i = 1, 8 do
                calls[i] = function() must(buyer:copy():post("/sales/cart/quote", {}, { Connection = "close" })) end
            end
            support.parallel(calls)
            return db.one(nil, [[select count(*)::int as n from worker_heartbeats where jsonb_exists(epochs, $1)
                and role in ('serve', 'all') and seen_at > $2::timestamptz]], shop.key, time.iso(time.real() - 6000)).n >= all
        end, 20)
        return all
    end

    it("catches up without a request when the word was lost", function()
        local shop, product = shop_of.simple(0, { trackInventory = false })
        create(shop, "half", percent(5000))
        must(publish(shop, "half"))
        local buyer = shop_of.buyer(shop, product)
        local all = everywhere(shop, buyer)
        db.pipeline(shop.key, { store.bump({ tenant = shop.key, app = shop.app }, time.iso(time.now())) })
        local _, ms = support.eventually(function() return store.live(shop.key, store.epoch(shop.key)).loaded == all end, 60)
        print(("all workers hold an epoch that nobody told them of after %d ms"):format(ms))
    end)

    it("keeps what it had when it cannot load the newest, and says so", function()
        local shop, product = shop_of.simple(0, { trackInventory = false })
        create(shop, "half", percent(5000))
        must(publish(shop, "half"))
        local buyer = shop_of.buyer(shop, product)
        local function total() return must(buyer:post("/sales/cart/quote", {})).total end
        assert.equal(50000, total())
        everywhere(shop, buyer)
        live.ensure(shop.key)
        local rule = must(shop.owner:get("/rules/half"), 200)
        local now = time.iso(time.now())
        -- A version that passes no check: no worker can take it in.
        db.pipeline(shop.key, {
            { [[insert into rule_versions (tenant_key, app_key, rule_id, version, source, settings, sha256, note, published_at)
              values ($1, $2, $3, 2, 'return {}', $4::jsonb, repeat('0', 64), 'broken', $5::timestamptz)]], shop.key, shop.app, rule.id,
                pg.json{ on_error = "a word that is too long" }, now },
            store.activate(shop.key, rule.id, 2, 0, "Half", now), store.bump({ tenant = shop.key, app = shop.app }, now) })
        support.eventually(function() return workers_of(shop).stale > 0 and workers_of(shop).stale == workers_of(shop).workers end, 20)
        assert.equal(50000, total())
        support.eventually(function()
            pcall(live.ensure, shop.key)
            return live.stale()[shop.key]
        end)
        assert.is_truthy((health.check().checks.rules or ""):find("stale", 1, true))
        -- A worker finds out when it is asked for a price, or when the tenant's turn comes among all that it holds.
        support.eventually(function()
            must(buyer:copy():post("/sales/cart/quote", {}, { Connection = "close" }))
            return (must(support.client():get("/readyz"), 200).checks.rules or ""):find("stale", 1, true)
        end)
        must(post(shop.owner, "half/rollback", { toVersion = 1, note = "back" }))
        assert.equal(50000, total())
        support.eventually(function() return workers_of(shop).stale == 0 end, 20)
        support.eventually(function()
            live.ensure(shop.key)
            return not live.stale()[shop.key]
        end)
        assert.is_true(rules.holds(shop.key, "half", 3))
    end)
end)
