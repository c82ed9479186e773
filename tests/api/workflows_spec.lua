-- Workflow rules over HTTP: events start them, steps run in order with their state, waits, retries, undo, cancel and retry.
local json = require("core.json")
local db = require("kasma.db")
local outbox = require("kasma.outbox")
local support = require("api.support")
local shop_of = require("api.shop")
local uuid = require("core.uuid")

local must = shop_of.must

local function source(on, steps)
    return ("return { hook = \"workflow\", name = \"Flow\", on = { %s }, config = schema.object{ note = schema.string{ max = 40, "
        .. "default = \"tea\" } },\nsteps = {\n%s\n} }"):format(on, steps)
end

local function post(who, path, body) return who:post("/rules/" .. path, body or {}) end

local function publish(shop, key, text, revision)
    if revision then
        must(post(shop.owner, key .. "/draft", { revision = revision - 1, source = text }))
    else
        must(post(shop.owner, "create", { key = key, hook = "workflow", name = key, source = text }))
    end
    return must(post(shop.owner, key .. "/publish", { revision = revision or 1, note = "go" }))
end

-- An event of the shop, as a transaction of its own would write it.
local function emit(shop, name, id, data, hops)
    local statement = outbox.event({ tenant = shop.key, app = shop.app, hops = hops }, name, id, data or {})
    db.pipeline(shop.key, { statement })
    return statement[4]
end

local function delivered(shop, event)
    support.eventually(function()
        return db.one(shop.key, "select 1 as one from outbox where tenant_key = $1 and id = $2 and sent_at is not null", shop.key, event)
    end)
end

local function runs(shop, key, query) return must(shop.owner:get("/rules/" .. key .. "/workflows" .. (query or "")), 200) end

-- The run about an entity, once it is in a state.
local function run_in(shop, key, id, state)
    local seen
    local ok, run = pcall(support.eventually, function()
        seen = runs(shop, key, "?entityId=" .. id)[1]
        return seen and seen.state == state and seen
    end, 30)
    if not ok then error(("no run that is %s: %s"):format(state, seen and json.encode(seen) or "none"), 2) end
    return run
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
