-- Workflow rules over HTTP: events start them, steps run in order with their state, waits, retries, undo, cancel and retry.
local json = require("core.json")
local rules = require("core.rules")
local db = require("kasma.db")
local outbox = require("kasma.outbox")
local support = require("api.support")
local shop_of = require("api.shop")
local flow = require("api.flow")
local time = require("core.time")
local uuid = require("core.uuid")
local sched = require("core.sched")
local personal = require("kasma.personal")
local live = require("modules.rules.live")
local live_store = require("modules.rules.store")
local start = require("modules.rules.workflow_start")
local store = require("modules.rules.workflow_store")
local workflows = require("modules.rules.workflows")

local must = shop_of.must
local post, emit, runs, run_in = flow.post, flow.emit, flow.runs, flow.run_in

local function source(on, steps)
    return ("return { hook = \"workflow\", name = \"Flow\", on = { %s }, config = schema.object{ note = schema.string{ max = 40, "
        .. "default = \"tea\" } },\nsteps = {\n%s\n} }"):format(on, steps)
end

local function publish(shop, key, text, revision)
    if revision then
        must(post(shop.owner, key .. "/draft", { revision = revision - 1, source = text }))
    else
        must(post(shop.owner, "create", { key = key, hook = "workflow", name = key, source = text }))
    end
    return must(post(shop.owner, key .. "/publish", { revision = revision or 1, note = "go" }))
end

local function delivered(shop, event)
    support.eventually(function()
        return db.one(shop.key, "select 1 as one from outbox where tenant_key = $1 and id = $2 and sent_at is not null", shop.key, event)
    end)
end

local function trail(run)
    local list = {}
    for i, step in ipairs(run.steps) do list[i] = ("%s %s %d %s"):format(step.kind, step.name, step.attempt, step.state) end
    return list
end

describe("a workflow", function()
    it("is started by a real order, once, and hands its state from step to step", function()
        local shop, product = shop_of.simple(0, { trackInventory = false })
        publish(shop, "placed", source("\"order.placed\"", [[
            { name = "first", run = function(input, config)
                log("total", input.subject.event.data.totalMinor, config.note)
                return { total = input.subject.event.data.totalMinor, seen = { input.subject.step } }
            end },
            { name = "look", run = function(input) assert(input.subject.state.total == 200000) return nil, "nothing to do" end },
            { name = "last", run = function(input)
                local state = input.subject.state
                state.seen[2] = input.subject.step
                log(state.total, state.seen[1], state.seen[2])
                return state
            end },]]))
        local order = must(shop_of.checkout(shop_of.buyer(shop, product, 2), { paymentMethod = "COD" })).orders[1]
        local run = run_in(shop, "placed", order.id, "done")
        assert.same({ "run first 1 done", "run look 1 done", "run last 1 done" }, trail(run))
        assert.same({ "order.placed", "order", order.id, 1, json.null }, { run.event, run.entity.type, run.entity.id, run.version,
            run.error })
        assert.equal("total 200000 tea\n", run.steps[1].log:gsub("\t", " "))
        assert.is_truthy(run.steps[3].log:find("200000%sfirst%slast"))
        assert.equal(1, #runs(shop, "placed"))
        assert.is_truthy(run.finishedAt)
    end)

    it("keeps the version that it began with, and one row of the outbox starts it once", function()
        local shop = support.tenant()
        publish(shop, "versions", source("\"custom.go\"", [[
            { name = "one", run = function() return { version = 1 } end },
            { name = "wait", wait = { event = "custom.on", timeout = "48h" }, run = function(input) log("version 1 goes on") end },]]))
        emit(shop, "custom.go", "a")
        run_in(shop, "versions", "a", "waiting")
        publish(shop, "versions", source("\"custom.go\"", [[ { name = "new", run = function() log("version 2") end }, ]]), 2)
        local event = emit(shop, "custom.go", "b")
        assert.equal(2, run_in(shop, "versions", "b", "done").version)
        emit(shop, "custom.on", "a")
        local old = run_in(shop, "versions", "a", "done")
        assert.same({ 1, "version 1 goes on\n" }, { old.version, old.steps[2].log })
        -- The relay hands rows over at least once.
        db.query(shop.key, "update outbox set sent_at = null where tenant_key = $1 and id = $2", shop.key, event)
        db.wake_relay()
        delivered(shop, event)
        assert.equal(1, #runs(shop, "versions", "?entityId=b"))
    end)

    it("is not started by a rule that is disabled or paused, while runs under way go on", function()
        local shop = support.tenant()
        publish(shop, "stops", source("\"custom.go\"", [[
            { name = "wait", wait = { event = "custom.on", timeout = "48h" }, run = function() end },]]))
        emit(shop, "custom.go", "a")
        run_in(shop, "stops", "a", "waiting")
        must(post(shop.owner, "pause", { hook = "workflow", reason = "quiet" }))
        local first = emit(shop, "custom.go", "b")
        delivered(shop, first)
        must(post(shop.owner, "resume", { hook = "workflow", reason = "go" }))
        must(post(shop.owner, "stops/disable", { reason = "over" }))
        local second = emit(shop, "custom.go", "c")
        delivered(shop, second)
        emit(shop, "custom.on", "a")
        run_in(shop, "stops", "a", "done")
        assert.equal(1, #runs(shop, "stops"))
    end)

    it("ends a chain of events after eight hops", function()
        local shop = support.tenant()
        publish(shop, "chain", source("\"custom.go\"", [[ { name = "one", run = function() end }, ]]))
        emit(shop, "custom.go", "seven", {}, 7)
        local refused = emit(shop, "custom.go", "eight", {}, 8)
        assert.equal(7, run_in(shop, "chain", "seven", "done").hops)
        delivered(shop, refused)
        assert.equal(0, #runs(shop, "chain", "?entityId=eight"))
    end)

    it("is nobody else's", function()
        local shop, other = support.tenant(), support.tenant()
        publish(shop, "mine", source("\"custom.go\"", [[ { name = "one", run = function() error("no") end }, ]]))
        publish(other, "mine", source("\"custom.go\"", [[ { name = "one", run = function() end }, ]]))
        emit(shop, "custom.go", "a")
        local run = run_in(shop, "mine", "a", "failed")
        assert.equal(0, #runs(other, "mine"))
        assert.equal(404, post(other.owner, "workflows/" .. run.id .. "/retry", { reason = "x" }).status)
        assert.equal(404, post(other.owner, "workflows/" .. run.id .. "/cancel", { reason = "x" }).status)
        assert.equal(404, post(shop.owner, "workflows/" .. uuid.v7() .. "/cancel", { reason = "x" }).status)
        assert.equal(404, post(shop.owner, "workflows/nothing/retry", { reason = "x" }).status)
        assert.equal(403, post(support.shopper(shop), "workflows/" .. run.id .. "/retry", { reason = "x" }).status)
    end)
end)

describe("a step that fails", function()
    it("undoes what was done, backwards, and says so in an event", function()
        local shop = support.tenant()
        publish(shop, "backwards", source("\"custom.go\"", [[
            { name = "a", run = function() return { a = 1 } end, undo = function(input) log("undo a", input.subject.state.b) end },
            { name = "b", run = function(input) return { a = 1, b = 2 } end },
            { name = "c", run = function(input) return input.subject.state end, undo = function(input) return { b = 7 } end },
            { name = "d",
              run = function() error("no tea left") end, undo = function() error("never done, never undone") end },]]))
        emit(shop, "custom.go", "x")
        local run = run_in(shop, "backwards", "x", "undone")
        assert.same({ "run a 1 done", "run b 1 done", "run c 1 done", "run d 1 failed", "undo c 2 done", "undo a 2 done" }, trail(run))
        assert.is_truthy(run.steps[6].log:find("undo a%s7"))
        assert.same({ "d", "no tea left", 7 }, { run.error.step, run.error.message, run.error.line })
        local row = support.eventually(function()
            return db.one(shop.key, [[select payload from outbox where tenant_key = $1 and key = $2
              and payload ->> 'name' = 'workflow.failed']], shop.key, run.id)
        end)
        assert.same({ "backwards", "d", "x", 1 }, { row.payload.data.rule, row.payload.data.step, row.payload.data.entityId,
            row.payload.hops })
        assert.same({ 409, "workflow_finished" }, (function()
            local answer = post(shop.owner, "workflows/" .. run.id .. "/retry", { reason = "again" })
            return { answer.status, answer.json.code }
        end)())
        -- The runs of its steps are runs of the rule.
        support.eventually(function() return must(shop.owner:get("/rules/backwards/failures"), 200)[1] end)
    end)

    it("leaves a run failed when nothing can be undone; retry goes on at that step with the state it had", function()
        local shop = support.tenant()
        publish(shop, "again", source("\"custom.go\"", [[
            { name = "a", run = function() return { n = 1 } end },
            { name = "b", run = function(input)
                log("attempt", input.subject.attempt, input.subject.state.n)
                assert(input.subject.attempt > 1, "not yet")
              end, retries = 0 },]]))
        emit(shop, "custom.go", "x")
        local run = run_in(shop, "again", "x", "failed")
        assert.same({ "run a 1 done", "run b 1 failed" }, trail(run))
        assert.same({ "b", "b" }, { run.step, run.error.step })
        local answer = must(post(shop.owner, "workflows/" .. run.id .. "/retry", { reason = "mended" }))
        assert.equal("mended", answer.reason)
        local again = support.eventually(function()
            local one = runs(shop, "again")[1]
            return one.state == "failed" and #one.steps == 3 and one
        end)
        assert.same({ "run a 1 done", "run b 1 failed", "run b 2 failed" }, trail(again))
        assert.is_truthy(again.steps[3].log:find("attempt%s1%s1"))
        local audit = support.eventually(function()
            for _, entry in ipairs(must(shop.owner:get("/rules/again/audit"), 200)) do
                if entry.action == "rules.workflow_retry" then return entry end
            end
        end)
        assert.equal("rules.workflow_retry", audit.action)
        must(post(shop.owner, "workflows/" .. run.id .. "/cancel", { reason = "enough" }))
        assert.same({ "run a 1 done", "run b 1 failed", "run b 2 failed" }, trail(run_in(shop, "again", "x", "cancelled")))
    end)

    it("fails when what it returns is no state, or too large", function()
        local shop = support.tenant()
        publish(shop, "large", source("\"custom.go\", \"custom.text\"", [[
            { name = "a", run = function(input)
                if input.subject.event.name == "custom.text" then return "done" end
                if input.subject.event.id == "many" then
                    local list = {}
                    for i = 1, 9000 do list[i] = {} end
                    return list
                end
                local big = string.rep("x", 60000)
                return { big, big }
              end },]]))
        emit(shop, "custom.go", "x")
        emit(shop, "custom.text", "y")
        assert.same({ "invalid_result", "state: 120007 bytes of JSON; 65536 at most" }, (function()
            local run = run_in(shop, "large", "x", "failed")
            return { run.error.code, run.error.message }
        end)())
        assert.equal("invalid_result", run_in(shop, "large", "y", "failed").error.code)
        emit(shop, "custom.go", "many")
        assert.equal("state: too many small tables; keep a text, or fewer members", run_in(shop, "large", "many", "failed").error.message)
    end)
end)

describe("many workflows", function()
    it("begin with a burst of events, and each step runs once though everybody works at them", function()
        local shop = support.tenant()
        publish(shop, "burst", source("\"custom.go\"", [[
            { name = "a", run = function() return { n = 1 } end },
            { name = "b", run = function(input) return { n = input.subject.state.n + 1 } end },
            { name = "c", run = function(input) return { n = input.subject.state.n + 1 } end },]]))
        local statements = {}
        for n = 1, 60 do
            statements[n] = outbox.event({ tenant = shop.key, app = shop.app }, "custom.go", "e" .. n, {})
        end
        db.pipeline(shop.key, statements)
        local ids = support.eventually(function()
            local rows = db.read(shop.key, "select id from workflow_runs where tenant_key = $1", shop.key)
            return #rows == 60 and rows
        end, 30)
        -- This process takes part, several at once on each.
        local work = {}
        for _, row in ipairs(ids) do
            for _ = 1, 3 do work[#work + 1] = function() workflows.work(shop.key, row.id) end end
        end
        sched.parallel(work)
        support.eventually(function()
            return db.one(shop.key, "select count(*)::int as n from workflow_runs where tenant_key = $1 and state = 'done'",
                shop.key).n == 60
        end, 30)
        local row = db.one(shop.key, [[select count(*)::int as n, count(*) filter (where state = 'done')::int as done,
          (select count(*)::int from workflow_runs where tenant_key = $1 and data = '{"n": 3}') as three
          from workflow_steps where tenant_key = $1]], shop.key)
        assert.same({ 180, 180, 60 }, { row.n, row.done, row.three })
        assert.equal(0, db.one(shop.key, "select count(*)::int as n from due_work where tenant_key = $1", shop.key).n)
        -- And are read page by page.
        local pages, cursor, seen = {}, nil, {}
        repeat
            local answer = shop.owner:get("/rules/burst/workflows?state=done" .. (cursor and "&cursor=" .. cursor or ""))
            for _, run in ipairs(must(answer, 200)) do
                assert.is_nil(seen[run.id])
                seen[run.id] = true
            end
            pages[#pages + 1], cursor = #answer.json, answer.headers["x-next-cursor"]
        until not cursor
        assert.same({ 20, 20, 20, 0 }, pages)
        local started = time.parse(runs(shop, "burst")[1].startedAt)
        assert.equal(0, #runs(shop, "burst", "?from=" .. time.iso(started + 60000)))
        assert.equal(20, #runs(shop, "burst", "?from=" .. time.iso(started - 60000) .. "&to=" .. time.iso(started + 60000)))
        assert.equal(0, #runs(shop, "burst", "?to=" .. time.iso(started - 60000)))
        assert.equal(1, #runs(shop, "burst", "?state=done&entityId=e7"))
        assert.equal(0, #runs(shop, "burst", "?state=failed&entityId=e7"))
        assert.equal(400, shop.owner:get("/rules/burst/workflows?state=lost").status)
    end)
end)

describe("a whole batch of the relay", function()
    it("starts its workflows together", function()
        local shop = support.tenant()
        publish(shop, "crowd", source("\"custom.crowd\"", "{ name = \"a\", run = function() end }"))
        local rows = {}
        for i = 1, 600 do
            rows[i] = { id = uuid.v7(), tenant_key = shop.key, app_key = shop.app, key = uuid.v4(), topic = "event",
                created_at = time.iso(time.now()), payload = { name = "custom.crowd", data = {} } }
        end
        for _ = 1, 2 do start.hear(rows) end
        assert.equal(600, db.one(shop.key, "select count(*)::int as n from workflow_runs where tenant_key = $1", shop.key).n)
        support.eventually(function()
            local row = db.one(shop.key, "select count(*)::int as n from workflow_runs where tenant_key = $1 and state = 'done'",
                shop.key)
            return row.n == 600
        end, 300)
    end)
end)

describe("a step of a shop of which as many runs wait as may", function()
    it("waits its turn and has not failed", function()
        local shop = support.tenant()
        publish(shop, "turn", source("\"custom.turn\"", "{ name = \"a\", run = function() end }"))
        local row = db.one(shop.key, "select id, active_version as version from rules where tenant_key = $1 and key = 'turn'", shop.key)
        live.changed(shop.key)
        local set, open, id = assert(rules.pin(shop.key)), {}, uuid.v7()
        for i = 1, 32 do open[i] = assert(set:open(set:list("workflow")[1].index)) end
        db.pipeline(shop.key, { store.insert{ tenant_key = shop.key, app_key = shop.app, id = id, rule_id = row.id, version = row.version,
            event = "custom.turn", event_id = uuid.v4(), event_data = {}, entity_type = "custom", entity_id = "x", awaits = {}, hops = 0,
            now = time.iso(time.now()) } })
        local ok, why = pcall(workflows.work, shop.key, id)
        for _, run in ipairs(open) do run:close() end
        assert(ok, why)
        assert.same({ "run a 1 done" }, trail(run_in(shop, "turn", "x", "done")))
    end)
end)

describe("runs about a person", function()
    it("are handed out with the account and erased with it", function()
        local shop = support.tenant()
        local person = support.shopper(shop)
        publish(shop, "about", source("\"custom.go\"", [[
            { name = "a", run = function() log("Ann") return { name = "Ann" } end }, { name = "b", wait = "30d" },]]))
        emit(shop, "custom.go", "x", { userId = person.user.id, city = "Hue" })
        emit(shop, "custom.go", "y", { userId = uuid.v7() })
        run_in(shop, "about", "x", "waiting")
        run_in(shop, "about", "y", "waiting")
        local seen = {}
        personal.export({ id = person.user.id, email = person.user.email }, { shop.key }, function(line)
            if line.kind == "workflow" then seen[#seen + 1] = line.data end
        end)
        assert.same({ 1, "Ann", "Hue" }, { #seen, seen[1].data.name, seen[1].event_data.city })
        personal.erase({ id = person.user.id, email = person.user.email }, { shop.key }, time.iso(time.now()))
        local run = run_in(shop, "about", "x", "cancelled")
        assert.equal(json.null, run.steps[1].log)
        local row = db.one(shop.key, "select data, event_data from workflow_runs where tenant_key = $1 and id = $2", shop.key, run.id)
        assert.same({ nil, nil }, { next(row.data), next(row.event_data) })
        assert.is_nil(db.one(shop.key, "select 1 as one from due_work where tenant_key = $1 and id = $2", shop.key, run.id))
        assert.equal("waiting", runs(shop, "about", "?entityId=y")[1].state)
    end)
end)

describe("a workflow that is cancelled", function()
    it("undoes what was done while it waited, and ends", function()
        local shop = support.tenant()
        publish(shop, "cancels", source("\"custom.go\"", [[
            { name = "a", run = function() return { n = 1 } end, undo = function(input) log("undone", input.subject.state.n) end },
            { name = "b", wait = "72h", run = function() error("never") end },]]))
        emit(shop, "custom.go", "x")
        local run = run_in(shop, "cancels", "x", "waiting")
        assert.same({ "b", json.null }, { run.step, run.waitEvent })
        assert.is_truthy(run.wakeAt)
        assert.same({ 409, "workflow_running" }, (function()
            local answer = post(shop.owner, "workflows/" .. run.id .. "/retry", { reason = "again" })
            return { answer.status, answer.json.code }
        end)())
        must(post(shop.owner, "workflows/" .. run.id .. "/cancel", { reason = "changed my mind" }))
        local ended = run_in(shop, "cancels", "x", "cancelled")
        assert.same({ "run a 1 done", "undo a 2 done" }, trail(ended))
        assert.equal("changed my mind", ended.reason)
        assert.same({ 409, "workflow_finished" }, (function()
            local answer = post(shop.owner, "workflows/" .. run.id .. "/cancel", { reason = "again" })
            return { answer.status, answer.json.code }
        end)())
        assert.is_nil(db.one(shop.key, "select 1 as one from due_work where tenant_key = $1 and id = $2", shop.key, run.id))
    end)
end)

describe("the check of a workflow", function()
    local shop = support.tenant()

    local function findings(text)
        local checked = must(post(shop.owner, "check", { source = text }))
        local list = {}
        for i, d in ipairs(checked.diagnostics) do list[i] = ("%s %s: %s%s"):format(d.code, tostring(d.line), d.message,
            d.hint and " (" .. d.hint .. ")" or "") end
        table.sort(list)
        return list
    end

    it("finds events that do not exist, names that are there twice, and waits that are none", function()
        assert.same({
            "manifest_field 1: on[1]: 'order.payd' is no event (did you mean 'order.paid'?)",
            "manifest_field 4: steps[2].name: 'a' is the name of steps[1] too",
            "manifest_field 5: steps[3].wait: 'soon' is no time; a number and s, m, h, d or w, a year at most",
            "manifest_field 6: steps[4].wait: an event needs a timeout (wait = { event = \"order.shipped\", timeout = \"48h\" })",
            "manifest_field 7: steps[5].wait.event: 'order.pai' is no event (did you mean 'order.paid'?)",
            "manifest_field 8: steps[6] needs run, or wait, or both",
            "manifest_field 9: steps[7].retries must be a whole number from 0 to 10",
        }, findings([[return { hook = "workflow", name = "x", on = { "order.payd" },
            steps = {
                { name = "a", run = function() end },
                { name = "a", run = function() end },
                { name = "c", wait = "soon" },
                { name = "d", wait = "order.shipped" },
                { name = "e", wait = { event = "order.pai", timeout = "1h" } },
                { name = "f" },
                { name = "g", run = function() end, retries = 11 },
            } }
        ]]))
        assert.same({
            "manifest_field 2: steps[1]: 'undoo' is not a field of a step (did you mean 'undo'?)",
            "manifest_field 3: steps[2].wait.event: 'rule.published' is about rule, which this workflow does not follow",
        }, findings([[return { hook = "workflow", name = "x", on = { "order.placed" }, steps = {
                { name = "a", run = function() end, undoo = function() end },
                { name = "b", wait = { event = "rule.published", timeout = "1h" } },
            } }
        ]]))
        assert.same({ "manifest_field nil: 'steps' is for workflow rules" }, findings([[return { hook = "promotion", name = "x",
            steps = {}, run = function() end }]]))
        assert.same({}, findings([[return { hook = "workflow", name = "x", on = "order.placed", steps = {
            { name = "a", wait = { event = "order.cancelled", timeout = "2d" } }, { name = "b", wait = "1w" } } }]]))
    end)

    it("keeps a workflow that it refuses from being published", function()
        must(post(shop.owner, "create", { key = "refused", hook = "workflow", name = "x",
            source = source("\"order.gone\"", [[ { name = "a", run = function() end } ]]) }))
        local answer = post(shop.owner, "refused/publish", { revision = 1, note = "go" })
        assert.same({ 422, "rule_check_failed" }, { answer.status, answer.json.code })
    end)
end)

describe("a workflow that waits", function()
    local platform, shop

    setup(function()
        platform = support.platform()
        shop = support.tenant()
    end)
    teardown(function() support.real_time(platform) end)

    -- Sessions end with the shifted clock, so people sign in anew.
    local function advance(seconds)
        support.advance(platform, seconds)
        support.sign_in(shop.owner)
    end

    local function due_of(run)
        return db.one(shop.key, "select due_at from due_work where tenant_key = $1 and id = $2", shop.key, run.id)
    end

    it("sleeps for a time through one row of due_work, and through a restart of everybody's clock", function()
        publish(shop, "sleeps", source("\"custom.sleep\"", [[
            { name = "a", run = function() return { n = 1 } end },
            { name = "b", wait = "24h", run = function(input)
                log(input.subject.state.n, input.subject.waited.timed_out) return { n = 2 }
            end },
            { name = "pause", wait = "3d" },]]))
        emit(shop, "custom.sleep", "x")
        local run = run_in(shop, "sleeps", "x", "waiting")
        assert.same({ run.wakeAt, "b", json.null }, { due_of(run).due_at, run.step, run.waitEvent })
        advance(23 * 3600)
        assert.equal("waiting", runs(shop, "sleeps")[1].state)
        advance(3600 + 60)
        support.eventually(function() return runs(shop, "sleeps")[1].step == "pause" end, 20)
        assert.is_truthy(runs(shop, "sleeps")[1].steps[2].log:find("1%sfalse"))
        advance(3 * 86400 + 60)
        assert.equal(2, #run_in(shop, "sleeps", "x", "done").steps)
        assert.is_nil(due_of(run))
        emit(shop, "custom.sleep", "later")
        run_in(shop, "sleeps", "later", "waiting")
        advance(90 * 86400 + 60)
        run_in(shop, "sleeps", "later", "waiting") -- for the second pause
        workflows.prune()
        assert.same({ 0, 1 }, { #runs(shop, "sleeps", "?entityId=x"), #runs(shop, "sleeps", "?entityId=later") })
    end)

    it("wakes on the event of its own entity, or when the time for it is over", function()
        publish(shop, "awaits", source("\"custom.go\"", [[
            { name = "a", wait = { event = "custom.reply", timeout = "48h" }, run = function(input)
                local waited = input.subject.waited
                log(waited.timed_out and "late" or waited.event.data.word)
            end },]]))
        for _, id in ipairs{ "answered", "silent" } do emit(shop, "custom.go", id) end
        run_in(shop, "awaits", "answered", "waiting")
        assert.equal("custom.reply", run_in(shop, "awaits", "silent", "waiting").waitEvent)
        emit(shop, "custom.reply", "answered", { word = "tea" })
        assert.equal("tea\n", run_in(shop, "awaits", "answered", "done").steps[1].log)
        assert.equal("waiting", runs(shop, "awaits", "?entityId=silent")[1].state)
        advance(48 * 3600 + 60)
        assert.equal("late\n", run_in(shop, "awaits", "silent", "done").steps[1].log)
    end)

    it("takes an event that came before the step did, once", function()
        publish(shop, "early", source("\"custom.begin\"", [[
            { name = "a", wait = { event = "custom.early", timeout = "48h" }, run = function() end },
            { name = "b", wait = { event = "custom.early", timeout = "48h" }, run = function() end },]]))
        db.pipeline(shop.key, { outbox.event({ tenant = shop.key, app = shop.app }, "custom.begin", "x", {}),
            outbox.event({ tenant = shop.key, app = shop.app }, "custom.early", "x", {}) })
        local run = run_in(shop, "early", "x", "waiting")
        assert.same({ "b", "run a 1 done" }, { run.step, trail(run)[1] })
        emit(shop, "custom.early", "x")
        run_in(shop, "early", "x", "done")
    end)

    it("tries a step that fails again, later each time, with one key", function()
        publish(shop, "retries", source("\"custom.retry\"", [[
            { name = "a", retries = 2, run = function(input)
                if input.subject.attempt < 3 then error("attempt " .. input.subject.attempt) end
                return { attempt = input.subject.attempt }
            end },]]))
        emit(shop, "custom.retry", "x")
        for attempt = 1, 2 do
            support.eventually(function()
                local run = runs(shop, "retries")[1]
                return run and run.attempts == attempt and run.wakeAt ~= json.null
            end, 20)
            advance(5 * 2 ^ (attempt - 1) + 1)
        end
        local run = run_in(shop, "retries", "x", "done")
        assert.same({ "run a 1 failed", "run a 2 failed", "run a 3 done" }, trail(run))
        local keys = db.read(shop.key, "select distinct key from workflow_steps where tenant_key = $1 and run_id = $2", shop.key, run.id)
        assert.equal(1, #keys)
    end)

    it("can be replayed step by step, by what the step was given and its calls were answered", function()
        publish(shop, "again", (source("\"custom.again\"", [[
            { name = "a", run = function() return { n = 3 } end },
            { name = "b", run = function(input)
                local n = kv.incr("n", input.subject.state.n)
                if n == 3 then error("three") end
                return { n = n }
            end },]]):gsub("return {", "return { needs = { \"kv\" },", 1)))
        emit(shop, "custom.again", "x")
        run_in(shop, "again", "x", "failed")
        local kept = support.eventually(function()
            local one = must(shop.owner:get("/rules/again/runs?outcome=failed"), 200)[1]
            local body = one and must(shop.owner:get("/rules/runs/" .. one.id), 200)
            return body and body.calls[1] and body
        end, 20)
        assert.same({ "kv.incr", 3 }, { kept.calls[1].name, kept.calls[1].answers[1] })
        local same = must(post(shop.owner, "runs/" .. kept.id .. "/replay", { version = 1 }))
        assert.same({ "error", "error", true }, { same.before.outcome, same.after.outcome, same.same })
        local draft = must(shop.owner:get("/rules/again/draft"), 200).draft
        must(post(shop.owner, "again/draft", { revision = draft.revision, source = (draft.source:gsub("n == 3", "n == 4")) }))
        local mended = must(post(shop.owner, "runs/" .. kept.id .. "/replay", {}))
        assert.same({ "ok", 3 }, { mended.after.outcome, mended.after.output.n })
        assert.equal("3", db.one(shop.key, "select v #>> '{}' as v from rule_kv where tenant_key = $1 and rule_key = 'again'", shop.key).v)
    end)

    it("ends failed when an undo fails; retry goes on with the undoing", function()
        publish(shop, "stuck", source("\"custom.stick\"", [[
            { name = "a", run = function() return { n = 1 } end, undo = function() log("a undone") end },
            { name = "b", run = function() end, undo = function() error("stuck") end },
            { name = "c", run = function() error("no") end },]]))
        emit(shop, "custom.stick", "x")
        local run = run_in(shop, "stuck", "x", "failed")
        assert.same({ "run a 1 done", "run b 1 done", "run c 1 failed", "undo b 2 failed" }, trail(run))
        assert.same({ "b", "undo", true }, { run.error.step, run.error.kind, run.undoing })
        must(post(shop.owner, "workflows/" .. run.id .. "/retry", { reason = "again" }))
        support.eventually(function() return #runs(shop, "stuck")[1].steps == 5 end, 20)
        assert.equal("undo b 3 failed", trail(run_in(shop, "stuck", "x", "failed"))[5])
    end)

    it("lets a step under way come to its end before it is cancelled, and takes over from a process that died", function()
        publish(shop, "taken", source("\"custom.take\"", [[
            { name = "a", wait = { event = "custom.never", timeout = "48h" }, run = function() return { n = 7 } end,
              undo = function(input) log("undone", input.subject.state.n) end },
            { name = "b", run = function() error("never") end },]]))
        emit(shop, "custom.take", "x")
        local run = run_in(shop, "taken", "x", "waiting")
        -- As a worker that took the step and died leaves it.
        db.pipeline(shop.key, {
            { [[update workflow_runs set state = 'running', wait_event = null, wake_at = null, waited = '{"timed_out": true}', tries = 1,
              claim = id, claimed_until = $3::timestamptz where tenant_key = $1 and id = $2]], shop.key, run.id,
                time.iso(time.real() + 600000) },
            { [[insert into workflow_steps (tenant_key, app_key, run_id, position, attempt, n, name, kind, key, started_at)
              values ($1, $2, $3, 1, 1, 1, 'a', 'run', 'k', $4::timestamptz)]], shop.key, shop.app, run.id, time.iso(time.now()) },
        })
        local answer = must(post(shop.owner, "workflows/" .. run.id .. "/cancel", { reason = "stop" }))
        assert.same({ "running", false }, { answer.state, answer.undoing })
        db.query(shop.key, "update workflow_runs set claimed_until = $3::timestamptz where tenant_key = $1 and id = $2", shop.key, run.id,
            time.iso(time.real() - 1))
        advance(3600)
        local ended = run_in(shop, "taken", "x", "cancelled")
        assert.same({ "run a 1 failed", "run a 2 done", "undo a 3 done" }, trail(ended))
        assert.same({ "interrupted", true }, { ended.steps[1].error.code, ended.steps[3].log:find("undone%s7") ~= nil })
    end)
end)

describe("the breaker of a workflow", function()
    it("holds back the steps of a rule that fails again and again; their runs wait and lose nothing", function()
        local shop = support.tenant()
        publish(shop, "breaks", source("\"custom.go\"", [[
            { name = "a", run = function(input) if input.subject.event.id ~= "good" then error("no") end end },]]))
        local opened
        for n = 1, 40 do
            emit(shop, "custom.go", "bad" .. n)
            support.eventually(function()
                opened = db.one(shop.key, "select breaker_until from rules where tenant_key = $1 and breaker_until is not null", shop.key)
                local run = runs(shop, "breaks", "?entityId=bad" .. n)[1]
                return opened or run and run.state == "failed"
            end, 20)
            if opened then break end
        end
        assert.is_truthy(opened)
        -- Whoever works and holds the shop's rules has heard of it: another would run the step.
        local epoch = live_store.epoch(shop.key)
        support.eventually(function()
            return db.one(nil, [[select count(*)::int as n from worker_heartbeats where jsonb_exists(epochs, $1)
              and (epochs ->> $1)::bigint < $2::bigint and seen_at > $3::timestamptz]], shop.key, epoch,
                time.iso(time.real() - 6000)).n == 0
        end)
        emit(shop, "custom.go", "good")
        local run = support.eventually(function()
            local one = runs(shop, "breaks", "?entityId=good")[1]
            return one and one.wakeAt ~= json.null and one
        end, 20)
        assert.same({ "running", 0, 0 }, { run.state, run.attempts, #run.steps })
    end)
end)

describe("a version that is not understood any more", function()
    it("ends its runs, which are shown all the same and can be tried again", function()
        local shop = support.tenant()
        publish(shop, "older", source("\"custom.go\"", [[
            { name = "a", wait = { event = "custom.on", timeout = "48h" }, run = function() end },]]))
        emit(shop, "custom.go", "x")
        local run = run_in(shop, "older", "x", "waiting")
        db.pipeline(shop.key, {
            { [[insert into rule_versions (tenant_key, rule_id, version, source, sha256, note, published_at)
              values ($1, $2, 2, 'return { hook = "workflow", name = "W", steps = 7 }', repeat('0', 64), 'older', $3::timestamptz)]],
                shop.key, run.ruleId, time.iso(time.now()) },
            { "update workflow_runs set version = 2 where tenant_key = $1 and id = $2", shop.key, run.id },
        })
        emit(shop, "custom.on", "x")
        run = run_in(shop, "older", "x", "failed")
        assert.same({ "version_unreadable", json.null, 0 }, { run.error.code, run.step, #run.steps })
        assert.is_truthy(run.error.message:find("^workflow rule older: "))
        assert.equal(0, #db.query(shop.key, "select 1 as one from due_work where tenant_key = $1 and id = $2", shop.key, run.id))
        assert.equal("running", must(post(shop.owner, "workflows/" .. run.id .. "/retry", { reason = "again" })).state)
        run_in(shop, "older", "x", "failed")
    end)
end)
