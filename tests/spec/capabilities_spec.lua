-- Rules that may wait, as the framework runs them: answers, refusals, limits, the end of a run in the middle.
local rules = require("core.rules")
local sched = require("core.sched")
local capabilities = require("kasma.capabilities")
local errors = require("kasma.errors")
local hooks = require("kasma.hooks")
local check = require("modules.rules.check")

local TENANT = "rules-capabilities"
local asked, gate, seen = {}, nil, {}

capabilities.declare("probe.echo", { needs = "probe", limit = 5, fn = function(ctx, ...)
    asked[#asked + 1] = { ... }
    seen = ctx
    return ...
end })
capabilities.declare("probe.wait", { needs = "probe", limit = 5, fn = function()
    gate = sched.semaphore(1)
    for _ = 1, 2 do
        local ok, why = gate:acquire()
        if not ok then error(why, 0) end
    end
    return "late"
end })
capabilities.declare("probe.fail", { needs = "probe", limit = 5, fn = function(_, how)
    if how == "gone" then errors.not_found{ message = "No such thing", code = "thing_not_found" } end
    if how == "refuse" then capabilities.refuse("capability_denied: probe.fail: not this one") end
    if how == "values" then return nil, "not today" end
    if how == "function" then return print end
    error("a bug of ours")
end })

local epoch = 0
local function live(body, needs)
    epoch = epoch + 1
    local source = ("return { hook = 'route', name = 'r', needs = %s, path = 'r', run = function(input, config)\n%s\nend }"):format(
        needs or "{ 'probe' }", body)
    assert(rules.publish(TENANT, epoch, { { id = "r", rule_id = "11111111-1111-4111-8111-111111111111", hook = "route", name = "r",
        number = 1, source = source } }))
    local set = assert(rules.pin(TENANT))
    return set, set:list("route")[1]
end

local scope = { tenant = TENANT, app = "MASTER", actor_kind = "system" }

local function run(body, opts, needs)
    asked = {}
    local set, rule = live(body, needs)
    local o = { key = "k1", limits = { wall_us = 20000000 } }
    for name, value in pairs(opts or {}) do o[name] = value end
    local input = hooks.input(TENANT, "route", { method = "GET", path = "r", query = {}, headers = {} })
    return capabilities.run(scope, set, rule, nil, input, o)
end

describe("a rule that may wait", function()
    it("gets what it asks for", function()
        local answer, told = run("local a, b = probe.echo({ x = 1 }, 'two') return { status = 200, body = { a = a, b = b } }")
        assert.is_nil(told.message)
        assert.same({ status = 200, body = { a = { x = 1 }, b = "two" } }, answer)
        assert.same({ { { x = 1 }, "two" } }, asked)
        assert.equal("k1", seen.key)
        assert.equal(TENANT, seen.tenant)
        assert.same({ id = "r", rule_id = "11111111-1111-4111-8111-111111111111", number = 1 }, seen.rule)
        assert.equal(1, seen.calls.probe)
    end)

    it("is answered nil and a text for what is not there, and for what is broken here", function()
        local answer = run("local v, why = probe.fail('gone') return { status = 200, body = { v == nil, why } }")
        assert.same({ true, "thing_not_found" }, answer.body)
        answer = run("local v, why = probe.fail('values') return { status = 200, body = { v == nil, why } }")
        assert.same({ true, "not today" }, answer.body)
        answer = run("local v, why = probe.fail('bug') return { status = 200, body = { v == nil, why } }")
        assert.same({ true, "unavailable" }, answer.body)
    end)

    it("is refused what its manifest does not need, at the line of the call", function()
        local answer, told = run("local x = 1\nlocal v = probe.echo('a')\nreturn { status = 200 }", nil, "{ 'kv' }")
        assert.is_nil(answer)
        assert.equal("error", told.outcome)
        assert.equal("capability_denied: probe.echo: 'probe' is not in needs", told.message)
        assert.equal(3, told.line)
        assert.same({}, asked)
        told = select(2, run("local v = probe.fail('refuse') return { status = 200 }"))
        assert.equal("capability_denied: probe.fail: not this one", told.message)
        answer = run("local ok, why = pcall(probe.fail, 'refuse') return { status = 200, body = { ok, why } }")
        assert.is_false(answer.body[1])
    end)

    it("has a number of calls, one for all functions of a need", function()
        local answer, told = run("for i = 1, 4 do local v = probe.echo(i) end probe.fail('values') local v = probe.echo(6) "
            .. "return { status = 200 }")
        assert.is_nil(answer)
        assert.truthy(told.message:find("capability_limit: probe.echo: more than 5 calls that need 'probe'", 1, true))
        assert.equal(4, #asked)
        told = select(2, run("for i = 1, 10000 do pcall(probe.echo, i) end return { status = 200 }"))
        assert.equal("ok", told.outcome)
        assert.equal(5, #asked)
    end)

    it("asks nothing in a preview", function()
        local answer = run("local v, why = probe.echo('a') return { status = 200, body = { v == nil, why } }", { preview = true })
        assert.same({ true, "preview" }, answer.body)
        assert.same({}, asked)
        local set, rule = live("local v, why = probe.echo('a') return { status = 200, body = { why } }")
        answer = hooks.run(set, rule, hooks.input(TENANT, "route", {}))
        assert.same({ "preview" }, answer.body)
    end)

    it("is told when an answer cannot be given to it", function()
        local _, told = run("local v = probe.fail('function') return { status = 200 }")
        assert.equal("error", told.outcome)
        assert.truthy(told.message:find("probe.fail: a function is not plain data", 1, true))
    end)

    it("answers in the form of its hook", function()
        local answer, told = run("return { status = 99 }")
        assert.is_nil(answer)
        assert.equal("invalid_result", told.outcome)
        assert.truthy(told.message:find("result.status", 1, true))
    end)

    it("ends with its two seconds, though nothing comes", function()
        local answer, told = run("local x\nlocal v = probe.wait()\nreturn { status = 200 }", { limits = { wall_us = 1000000 } })
        assert.is_nil(answer)
        assert.equal("limit_time", told.outcome)
        assert.equal(3, told.line)
        assert.truthy(told.message:find("probe.wait took too long", 1, true))
        assert.equal(0, (rules.waits()))
    end)

    it("lets other runs of the tenant go on while it waits", function()
        local set, rule = live("local v = probe.wait() return { status = 200, body = { v } }")
        local input = hooks.input(TENANT, "route", {})
        local order, tries = {}, 0
        gate = nil
        sched.parallel{
            function()
                local answer = capabilities.run(scope, set, rule, nil, input, { limits = { wall_us = 20000000 } })
                order[#order + 1] = answer.body[1]
            end,
            function()
                while not gate and tries < 5000 do
                    sched.sleep(1)
                    tries = tries + 1
                end
                local waiting = rules.waits()
                assert.equal(1, waiting)
                local base = assert(rules.pin(TENANT)) -- the tenant's shared state is free
                assert(base:describe(rule.index))
                order[#order + 1] = "beside"
                gate:release()
            end,
        }
        assert.same({ "beside", "late" }, order)
    end)

    it("is gone with its client, and its state is free again", function()
        local set, rule = live("local v = probe.wait() return { status = 200 }")
        gate = nil
        local ended
        pcall(sched.parallel, { function()
            sched.deadline(30)
            local ok, why = pcall(capabilities.run, scope, set, rule, nil, hooks.input(TENANT, "route", {}),
                { limits = { wall_us = 20000000 } })
            ended = { ok, why }
            error(why, 0)
        end })
        assert.is_false(ended[1])
        assert.equal(0, (rules.waits()))
        local _, idle = rules.waits()
        assert.is_true(idle >= 1)
    end)

    it("is not compiled for each run", function()
        local set, rule = live("local v = probe.echo('a') return { status = 200 }")
        local input = hooks.input(TENANT, "route", {})
        for _ = 1, 3 do
            local _, told = capabilities.run(scope, set, rule, nil, input, {})
            assert.equal("ok", told.outcome)
        end
        local _, idle = rules.waits()
        assert.is_true(idle >= 1)
    end)

    it("is at most 32 times under way for a tenant", function()
        local set, rule = live("local v = probe.wait() return { status = 200 }")
        local runs = {}
        for i = 1, 32 do runs[i] = assert(set:open(rule.index)) end
        local none, report = set:open(rule.index)
        assert.is_nil(none)
        assert.equal("budget", report.outcome)
        for _, one in ipairs(runs) do one:close() end
        assert(set:open(rule.index)):close()
        local _, idle = rules.waits()
        assert.is_true(idle <= 64)
    end)
end)

describe("the checker", function()
    local function codes(source, hook)
        local out = {}
        for _, d in ipairs(check.run{ source = source, hook = hook }.diagnostics) do
            out[#out + 1] = d.code .. ":" .. tostring(d.line) .. ": " .. d.message
        end
        return out
    end

    it("finds a capability that the manifest does not need", function()
        assert.same({ "capability_denied:2: probe.echo: 'probe' is not in needs" }, codes(
            "return { hook = 'route', name = 'r', path = 'r', run = function()\n local v = probe.echo(1) return { status = 200 } end }",
            "route"))
    end)

    it("finds one in a rule that cannot wait", function()
        assert.same({ "capability_denied:2: 'probe' is only for route and workflow rules" }, codes(
            "return { hook = 'promotion', name = 'r', run = function()\n local v = probe.echo(1) return {} end }", "promotion"))
    end)

    it("finds needs that are none, and a name that is none", function()
        assert.same({ "manifest_field:nil: needs: there is no capability 'prob'" }, codes(
            "return { hook = 'route', name = 'r', path = 'r', needs = { 'prob' }, run = function() return { status = 200 } end }",
            "route"))
        assert.same({ "undefined_global:2: 'probe.ecko' is not available in rules" }, codes(
            "return { hook = 'route', name = 'r', path = 'r', needs = { 'probe' }, run = function()\n local v = probe.ecko(1) "
                .. "return { status = 200 } end }",
            "route"))
    end)
end)
