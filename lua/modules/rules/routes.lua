-- Rules as HTTP sees them.
local json = require("core.json")
local time = require("core.time")
local core = require("core.rules")
local audit = require("kasma.audit")
local capabilities = require("kasma.capabilities")
local errors = require("kasma.errors")
local catalogue = require("kasma.hooks_catalogue")
local null = require("kasma.null")
local route = require("kasma.route")
local schema = require("kasma.schema")
local trail = require("modules.audit.service")
local promotions = require("modules.promotions.service")
local check = require("modules.rules.check")
local diff = require("modules.rules.diff")
local facts = require("modules.rules.facts")
local kept_runs = require("modules.rules.kept")
local preview = require("modules.rules.preview")
local rules = require("modules.rules.service")
local shipped = require("modules.rules.shipped")
local store = require("modules.rules.store")
local stream = require("modules.rules.stream")

local READ, WRITE, PUBLISH = { permission = "rules.read" }, { permission = "rules.write" }, { permission = "rules.publish" }
local Ref = schema.string{ not_empty = true, max = 64 }
local Key = schema.string{ pattern = "^[a-z0-9][a-z0-9_-]+$", min = 3, max = 64 }
local Note = schema.string{ not_empty = true, max = 500 }
local Any = schema.object({}, { open = true })
local Settings = schema.object{ config = schema.any():optional(), priority = schema.integer{ min = -1000, max = 1000 }:optional(),
    on_error = schema.enum{ "skip", "fallback", "block" }:optional(), fallback = schema.array(schema.any(), { max = 200 }):optional(),
    startsAt = schema.date():optional(), endsAt = schema.date():optional() }
local Source, Tests = schema.string{ max = 1000000 }, schema.string{ max = 262144 }

local too_large = errors.declare{ code = "source_too_large", status = 413, message = "A rule is 64 KiB at most",
    cause = "the source is longer",
    cure = "put shared functions into a library" }

-- Bodies ---------------------------------------------------------------------------------------------------------------------------

local function or_null(value) if value == nil then return null end return value end

local function draft_body(draft)
    return { revision = draft.revision, source = draft.source, settings = draft.settings,
        tests = draft.tests, updatedAt = draft.updated_at, updatedBy = or_null(draft.updated_by) }
end

local function rule_body(rule, extra)
    local body = { id = rule.id, key = rule.key, hook = rule.hook, name = rule.name, state = rule.state,
        activeVersion = or_null(rule.active_version), lastVersion = rule.last_version, priority = rule.priority, origin = rule.origin,
        stateReason = or_null(rule.state_reason), createdAt = rule.created_at, updatedAt = rule.updated_at }
    for name, value in pairs(extra or {}) do body[name] = value end
    return body
end

local function saved(rule, draft, report)
    return rule_body(rule, { draft = draft_body(draft), diagnostics = report.diagnostics })
end

-- What rules of a hook may call.
local function capability_bodies(hook)
    local list = json.array{}
    for _, name in ipairs((hook.kind == "route" or hook.kind == "workflow") and capabilities.names() or {}) do
        local c = capabilities.get(name)
        list[#list + 1] = { name = name, needs = c.needs, limit = c.limit, summary = or_null(c.summary) }
    end
    return list
end

local function hook_body(name, full)
    local hook = catalogue.get(name)
    local limits = core.limits(name)
    local body = { hook = name, area = hook.area, class = hook.kind ~= "hook" and "capability" or hook.slow and "slow" or "pure",
        summary = hook.summary, inputSchema = catalogue.json_schema(hook.input), outputSchema = catalogue.json_schema(hook.output),
        capabilities = capability_bodies(hook),
        budget = { instructions = limits.instructions, heap = limits.heap, wallMicros = limits.wall_us, result = limits.result },
        whenAbsent = hook.absent, failClosed = hook.closed, asked = hook.host, samples = json.array{} }
    local samples = hook.kind == "library" and {} or hook.quote and require("modules.rules.samples").quotes(name) or catalogue.samples(hook)
    for i, s in ipairs(samples) do
        body.samples[i] = full and { name = s.name, input = s.input } or s.name
    end
    if full then
        local example = shipped.example(name)
        body.example = or_null(example)
    end
    return body
end

local function guarded(input)
    if input.source and #input.source > 65536 then too_large() end
end

-- The catalogue ----------------------------------------------------------------------------------------------------------------------

route.get("/rules/hooks", {
    summary = "The hooks that rules may be written for", access = READ, module = "rules",
    query = schema.object{ area = schema.string{ max = 40 }:optional() }, returns = schema.array(Any),
    handler = function(ctx)
        local list = json.array{}
        for _, name in ipairs(catalogue.names()) do
            if not ctx.query.area or catalogue.get(name).area == ctx.query.area then list[#list + 1] = hook_body(name, false) end
        end
        return list
    end,
})

route.get("/rules/hooks/:hook", {
    summary = "A hook with sample inputs and an example", access = READ, module = "rules", params = { hook = schema.string{ max = 64 } },
    returns = Any,
    handler = function(ctx)
        if not catalogue.get(ctx.params.hook) then errors.not_found{ message = "Hook not found" } end
        return hook_body(ctx.params.hook, true)
    end,
})

route.get("/rules/templates", {
    summary = "The rules that come with the product", access = READ, module = "rules",
    query = schema.object{ hook = schema.string{ max = 64 }:optional() }, returns = schema.array(Any),
    handler = function(ctx)
        local list = json.array{}
        for _, t in ipairs(shipped.list()) do
            if not ctx.query.hook or t.hook == ctx.query.hook then list[#list + 1] = t end
        end
        return list
    end,
})

route.get("/rules/stubs", {
    summary = "Files by which an editor knows what rules may use", access = READ, module = "rules", returns = Any,
    handler = function() return { files = json.array(require("modules.rules.stubs").files()) } end,
})

-- Lists and drafts -------------------------------------------------------------------------------------------------------------------

route.get("/rules", {
    summary = "The tenant's rules", access = READ, module = "rules",
    query = schema.object{ hook = schema.string{ max = 64 }:optional(), state = schema.enum{ "draft", "active", "disabled", "off",
        "archived" }:optional(), q = schema.string{ max = 100 }:optional() }, returns = schema.array(Any),
    handler = function(ctx)
        local list, q = json.array{}, ctx.query.q and ctx.query.q:lower()
        local epoch = store.epoch(ctx.tenant)
        local live = store.live(ctx.tenant, epoch)
        local now = time.now()
        local rows = store.list(ctx.tenant, ctx.query.hook, ctx.query.state)
        local lost, health = facts.lost(ctx.tenant, rows), facts.health(ctx.tenant, now)
        for _, rule in ipairs(rows) do
            if not q or (rule.key .. " " .. rule.name:lower()):find(q, 1, true) then
                local open = rule.breaker_until ~= null and rule.breaker_until and time.parse(rule.breaker_until) > now
                local h = health[rule.id] or { runs24h = 0, failures24h = 0, p50Micros = null, p99Micros = null }
                h.breaker = open and "open" or "closed"
                local findings = json.array{}
                for i, what in ipairs(lost[rule.id] or {}) do
                    findings[i] = { severity = "warning", code = "config_invalid", message = what }
                end
                list[#list + 1] = rule_body(rule, { draft = { revision = or_null(rule.revision), dirty = rule.dirty == true },
                    health = h, findings = findings,
                    lastError = rule.error_at and rule.error_at ~= null and { line = or_null(rule.error_line), message = rule.error_message,
                        at = rule.error_at } or null,
                    live = { epoch = epoch, workers = live.workers, stale = live.workers - live.loaded } })
            end
        end
        return list
    end,
})

route.post("/rules/create", {
    summary = "Make a rule as a draft", access = WRITE, module = "rules",
    body = schema.object{ key = Key:example("b2g1_weekend"), hook = schema.string{ not_empty = true, max = 64 }:example("promotion"),
        name = schema.string{ not_empty = true, max = 120 }:example("Buy 2, third free on weekends"), source = Source:optional(),
        template = schema.string{ max = 100 }:optional(), settings = Settings:optional(), tests = Tests:optional() },
    returns = { [201] = Any, [409] = { rules.key_taken, rules.rule_limit }, [413] = too_large },
    handler = function(ctx)
        local input = ctx.body
        if rules.RESERVED[input.key] then errors.bad_request{ message = { "key is a word of ours" }, code = "key_reserved" } end
        guarded(input)
        if input.template then
            local t = shipped.find(input.template)
            if not t then errors.not_found{ message = "Template not found" } end
            input.source, input.tests = t.source, input.tests or t.tests
        end
        if not input.source then errors.bad_request{ message = { "source should not be empty" } } end
        local rule, draft, report = rules.create(ctx.scope, input)
        return saved(rule, draft, report)
    end,
})

route.post("/rules/check", {
    summary = "Check a source; nothing is stored", access = WRITE, module = "rules",
    body = schema.object{ source = Source, hook = schema.string{ max = 64 }:optional(), settings = Settings:optional(),
        tests = Tests:optional() }, returns = { [201] = Any, [413] = too_large },
    handler = function(ctx)
        guarded(ctx.body)
        local report = rules.check_all(ctx.tenant, ctx.body)
        return { ok = report.ok, diagnostics = report.diagnostics, manifest = or_null(check.manifest_body(report.manifest)),
            sampleRuns = report.sampleRuns }
    end,
})

route.get("/rules/:rule", {
    summary = "A rule", access = READ, module = "rules", params = { rule = Ref }, returns = Any,
    handler = function(ctx) return rule_body(rules.find(ctx.tenant, ctx.params.rule)) end,
})

route.get("/rules/:rule/draft", {
    summary = "The draft of a rule", access = READ, module = "rules", params = { rule = Ref }, returns = Any,
    handler = function(ctx)
        local rule = rules.find(ctx.tenant, ctx.params.rule)
        local draft = store.draft(ctx.tenant, rule.id)
        local report = rules.check(ctx.tenant, { source = draft.source, hook = rule.hook, settings = draft.settings, key = rule.key })
        return saved(rule, draft, report)
    end,
})

route.post("/rules/:rule/draft", {
    summary = "Save the draft over the revision it was made from", access = WRITE, module = "rules", params = { rule = Ref },
    body = schema.object{ revision = schema.integer{ min = 1 }, source = Source:optional(), settings = Settings:optional(),
        tests = Tests:optional() }, returns = { [201] = Any, [409] = { rules.draft_conflict, rules.rule_locked }, [413] = too_large },
    handler = function(ctx)
        guarded(ctx.body)
        return saved(rules.save(ctx.scope, ctx.params.rule, ctx.body))
    end,
})

route.post("/rules/:rule/draft/discard", {
    summary = "The draft becomes the active version again", access = WRITE, module = "rules", params = { rule = Ref },
    returns = { [201] = Any, [409] = rules.rule_off },
    handler = function(ctx) return saved(rules.discard(ctx.scope, ctx.params.rule)) end,
})

route.post("/rules/:rule/draft/session", {
    summary = "A token that shows prices by the draft to whoever sends it", access = WRITE, module = "rules", params = { rule = Ref },
    body = schema.object{ minutes = schema.integer{ min = 1, max = 240 }:default(30), customerId = schema.uuid():optional() },
    request_headers = { "X-Kasma-Rules-Draft" }, returns = { [201] = Any },
    handler = function(ctx) return rules.draft_session(ctx.scope, ctx.params.rule, ctx.body.minutes) end,
})

route.post("/rules/:rule/test", {
    summary = "Run the tests of a rule", access = WRITE, module = "rules", params = { rule = Ref },
    body = schema.object{ version = schema.integer{ min = 1 }:optional(), tests = Tests:optional(),
        only = schema.string{ max = 200 }:optional() },
    returns = { [201] = Any, [422] = { rules.check_failed, rules.tests_failed } },
    handler = function(ctx)
        local rule = rules.find(ctx.tenant, ctx.params.rule)
        local from
        if ctx.body.version then
            from = store.version(ctx.tenant, rule.id, ctx.body.version) or errors.not_found{ message = "Version not found" }
        else
            from = store.draft(ctx.tenant, rule.id)
        end
        return rules.test(ctx.tenant, { source = from.source, hook = rule.hook, settings = from.settings, key = rule.key,
            tests = ctx.body.tests or from.tests ~= "" and from.tests or "return { tests = {} }", only = ctx.body.only })
    end,
})

-- Preview ------------------------------------------------------------------------------------------------------------------------------

local Which = schema.one_of(schema.integer{ min = 1 }, schema.enum{ "draft" })

route.post("/rules/:rule/preview", {
    summary = "What a version would change in carts and orders; nothing is written", access = WRITE, module = "rules",
    params = { rule = Ref }, timeout_ms = 30000,
    body = schema.object{
        cart = schema.object{ items = schema.array(schema.object{ productId = schema.uuid(), variantId = schema.uuid():optional(),
            quantity = schema.integer{ min = 1, max = 10000 } }, { min = 1, max = 200 }), shippingAddress = schema.object({},
                { open = true }):optional(), customerGroups = schema.array(schema.string{ max = 50 }, { max = 50 }):optional() }:optional(),
        cartId = schema.one_of(schema.uuid(), schema.string{ pattern = "^%x+$", min = 24, max = 24 }):optional(),
        orderId = schema.string{ max = 64 }:optional(), sample = schema.string{ max = 100 }:optional(),
        orders = schema.object{ last = schema.integer{ min = 1, max = preview.MAX }:optional(), from = schema.date():optional(),
            to = schema.date():optional(), ids = schema.array(schema.string{ max = 64 }, { min = 1,
                max = preview.MAX }):optional() }:optional(),
        version = Which:optional(), compareTo = schema.one_of(schema.integer{ min = 1 }, schema.enum{ "active", "none" }):optional(),
        at = schema.date():optional(), customerId = schema.uuid():optional() },
    returns = { [201] = Any, [202] = Any, [422] = preview.no_snapshots },
    handler = function(ctx)
        local status, body = preview.run(ctx.scope, ctx.params.rule, ctx.body)
        return body, status
    end,
})

local function preview_of(ctx)
    local row = store.preview(ctx.tenant, ctx.params.id)
    if not row then errors.not_found{ message = "Preview not found" } end
    return row
end

route.get("/rules/previews/:id", {
    summary = "A preview over many orders: progress, then its result", access = WRITE, module = "rules",
    params = { id = schema.uuid{ on_bad = 404, what = "Preview" } }, returns = Any,
    handler = function(ctx)
        local row = preview_of(ctx)
        return { id = row.id, state = row.state, done = row.done, total = row.total, result = or_null(row.result),
            createdAt = row.created_at }
    end,
})

local ORDERS_MAX = 100

route.get("/rules/previews/:id/orders", {
    summary = "The orders that a preview changes, those with the largest difference first", access = WRITE, module = "rules",
    description = "Empty until the preview is done. Where more follow, X-Next-Cursor is the cursor of the next page.",
    params = { id = schema.uuid{ on_bad = 404, what = "Preview" } },
    query = schema.object{ cursor = schema.integer{ min = 0, max = preview.MAX }:default(0),
        limit = schema.integer{ min = 1, max = ORDERS_MAX }:default(50) }, returns = schema.array(Any),
    handler = function(ctx)
        local q, list = ctx.query, json.array{}
        local rows = store.preview_orders(ctx.tenant, preview_of(ctx).id, q.cursor, q.limit + 1)
        for i = 1, math.min(#rows, q.limit) do list[i] = rows[i].body end
        if #rows > q.limit then ctx.set_header("X-Next-Cursor", tostring(q.cursor + q.limit)) end
        return list
    end,
})

route.post("/rules/previews/:id/cancel", {
    summary = "Stop a preview", access = WRITE, module = "rules", params = { id = schema.uuid{ on_bad = 404, what = "Preview" } },
    returns = { [201] = Any },
    handler = function(ctx)
        local row = preview_of(ctx)
        if store.cancel_preview(ctx.tenant, row.id, time.iso(time.now())) then
            stream.progress(ctx.tenant, row.id, { state = "cancelled", done = row.done, total = row.total })
        end
        return { id = row.id, state = preview_of(ctx).state }
    end,
})

-- Publishing -----------------------------------------------------------------------------------------------------------------------------

route.post("/rules/:rule/publish", {
    summary = "Make the draft live", access = PUBLISH, module = "rules", params = { rule = Ref }, timeout_ms = 30000,
    body = schema.object{ revision = schema.integer{ min = 1 }, note = Note:example("weekend tea"), at = schema.date():optional(),
        ["until"] = schema.date():optional(), acceptWarnings = schema.array(schema.string{ max = 40 }, { max = 20 }):optional(),
        previewId = schema.uuid():optional() },
    returns = { [201] = Any, [202] = Any, [409] = { rules.draft_conflict, rules.hook_limit, rules.rule_off, rules.warning_not_accepted,
        preview.mismatch }, [422] = { rules.check_failed, rules.tests_failed } },
    handler = function(ctx)
        local status, body = rules.publish(ctx.scope, ctx.params.rule, ctx.body)
        return body, status
    end,
})

route.post("/rules/:rule/rollback", {
    summary = "Publish an older version again", access = PUBLISH, module = "rules", params = { rule = Ref }, timeout_ms = 30000,
    body = schema.object{ toVersion = schema.integer{ min = 1 }, note = Note },
    returns = { [201] = Any, [409] = { rules.hook_limit, rules.rule_off }, [422] = rules.check_failed },
    handler = function(ctx) return rules.rollback(ctx.scope, ctx.params.rule, ctx.body) end,
})

for verb, summary in pairs{ disable = "Take a rule out of service", enable = "Put a rule back into service",
    remove = "Remove a rule; it is restorable for 30 days", restore = "Bring a removed rule back" } do
    route.post("/rules/:rule/" .. verb, {
        summary = summary, access = PUBLISH, module = "rules", params = { rule = Ref }, body = schema.object{ reason = Note },
        returns = { [201] = Any, [409] = { rules.rule_active, rules.rule_off, rules.hook_limit, rules.rule_limit },
            [410] = verb == "restore" and rules.too_late or nil,
            [422] = verb == "enable" and { rules.check_failed, rules.tests_failed } or nil },
        handler = function(ctx) return rule_body(rules[verb](ctx.scope, ctx.params.rule, ctx.body.reason)) end,
    })
end

for verb, on in pairs{ pause = true, resume = false } do
    route.post("/rules/" .. verb, {
        summary = on and "The red switch: all rules stop, or those of a hook" or "Rules run again", access = PUBLISH, module = "rules",
        description = "paused: how many live rules stand still now; hooks: those that are stopped, * for all of them.",
        body = schema.object{ reason = Note, hook = schema.string{ max = 64 }:optional() },
        returns = { [201] = schema.object{ paused = schema.integer(), hooks = schema.array(schema.string()) } },
        handler = function(ctx) return rules.pause(ctx.scope, ctx.body.hook, ctx.body.reason, on) end,
    })
end

route.post("/rules/requests/:id/approve", {
    summary = "Approve a publication that somebody else asked for", access = PUBLISH, module = "rules", timeout_ms = 30000,
    params = { id = schema.uuid{ on_bad = 404, what = "Request" } }, body = schema.object{ note = Note },
    returns = { [201] = Any, [202] = Any, [403] = rules.same_person, [409] = { rules.request_decided, rules.hook_limit, rules.rule_off,
        rules.warning_not_accepted }, [422] = { rules.check_failed, rules.tests_failed } },
    handler = function(ctx)
        local status, body = rules.approve(ctx.scope, ctx.params.id, ctx.body.note)
        return body, status
    end,
})

for verb, state in pairs{ reject = "rejected", cancel = "cancelled" } do
    route.post("/rules/requests/:id/" .. verb, {
        summary = verb == "reject" and "Reject a publication" or "Withdraw a publication", access = PUBLISH, module = "rules",
        params = { id = schema.uuid{ on_bad = 404, what = "Request" } }, body = schema.object{ note = Note },
        returns = { [201] = Any, [403] = verb == "reject" and rules.same_person or nil, [409] = rules.request_decided },
        handler = function(ctx) return rules.refuse(ctx.scope, ctx.params.id, state, ctx.body.note) end,
    })
end

-- History --------------------------------------------------------------------------------------------------------------------------------

local function version_body(v, rule, full)
    local body = { version = v.version, sha256 = v.sha256, note = v.note, publishedBy = or_null(v.published_by),
        approvedBy = or_null(v.approved_by), publishedAt = v.published_at, sourceVersion = or_null(v.source_version),
        active = rule.active_version == v.version and rule.state == "active" }
    if v.preview and v.preview ~= null then body.preview = v.preview end
    if full then body.source, body.settings, body.tests, body.checkReport = v.source, v.settings, v.tests, v.check_report end
    return body
end

route.get("/rules/:rule/versions", {
    summary = "Versions of a rule, newest first", access = READ, module = "rules", params = { rule = Ref }, returns = schema.array(Any),
    handler = function(ctx)
        local rule, list = rules.find(ctx.tenant, ctx.params.rule), json.array{}
        for i, v in ipairs(store.versions(ctx.tenant, rule.id)) do list[i] = version_body(v, rule, false) end
        return list
    end,
})

local function version_of(tenant, rule, which)
    if which == "draft" then return store.draft(tenant, rule.id) end
    local v = tonumber(which) and store.version(tenant, rule.id, tonumber(which))
    if not v then errors.not_found{ message = "Version not found" } end
    return v
end

route.get("/rules/:rule/versions/:n", {
    summary = "A version of a rule", access = READ, module = "rules", params = { rule = Ref,
        n = schema.string{ pattern = "^%d%d?%d?%d?%d?$" } },
    returns = Any,
    handler = function(ctx)
        local rule = rules.find(ctx.tenant, ctx.params.rule)
        return version_body(version_of(ctx.tenant, rule, ctx.params.n), rule, true)
    end,
})

route.get("/rules/:rule/versions/:a/diff/:b", {
    summary = "What differs between two versions; b may be draft", access = READ, module = "rules",
    params = { rule = Ref, a = schema.string{ max = 8 }, b = schema.string{ max = 8 } },
    query = schema.object{ format = schema.enum{ "json", "unified" }:optional() }, returns = Any,
    handler = function(ctx)
        local rule = rules.find(ctx.tenant, ctx.params.rule)
        local a, b = version_of(ctx.tenant, rule, ctx.params.a), version_of(ctx.tenant, rule, ctx.params.b)
        local body = { source = diff.lines(a.source, b.source), settings = diff.lines(diff.settings(a.settings), diff.settings(b.settings)),
            tests = diff.lines(a.tests, b.tests) }
        if ctx.query.format == "unified" then
            return { unified = diff.unified(body.source, rule.key .. ".lua") .. diff.unified(body.settings, "settings")
                .. diff.unified(body.tests, rule.key .. "_test.lua") }
        end
        return body
    end,
})

local WINDOWS = { ["1h"] = 3600000, ["24h"] = 86400000, ["7d"] = 604800000, ["30d"] = 2592000000 }

route.get("/rules/:rule/stats", {
    summary = "Runs of a rule in figures", access = READ, module = "rules", params = { rule = Ref },
    query = schema.object{ window = schema.enum{ "1h", "24h", "7d", "30d" }:default("24h") }, returns = Any,
    handler = function(ctx)
        local rule = rules.find(ctx.tenant, ctx.params.rule)
        local since = time.iso(time.now() - WINDOWS[ctx.query.window])
        local given = promotions.given(ctx.tenant, rule.id, since)
        local body = { runs = 0, outcomes = {}, series = json.array{}, discountMinor = given.amount, ordersTouched = given.orders }
        local instructions, micros = {}, {}
        for i = 1, 16 do instructions[i], micros[i] = 0, 0 end
        for _, h in ipairs(store.hours(ctx.tenant, rule.id, since)) do
            body.runs = body.runs + h.n
            body.outcomes[h.outcome] = (body.outcomes[h.outcome] or 0) + h.n
            for i = 1, 16 do
                instructions[i], micros[i] = instructions[i] + (h.instructions[i] or 0), micros[i] + (h.micros[i] or 0)
            end
            body.series[#body.series + 1] = { hour = h.hour, version = h.version, outcome = h.outcome, n = h.n,
                discountMinor = h.discount_minor }
        end
        body.instructions = { p50 = facts.percentile(instructions, 0.5), p99 = facts.percentile(instructions, 0.99) }
        body.micros = { p50 = facts.percentile(micros, 0.5), p99 = facts.percentile(micros, 0.99) }
        return body
    end,
})

local function run_body(run)
    return { id = run.id, at = run.at, ruleId = run.rule_id, version = run.version, hook = run.hook, outcome = run.outcome,
        line = or_null(run.line), message = or_null(run.message), instructions = run.instructions, micros = run.micros, heapPeak = run.heap,
        checkoutId = or_null(run.checkout_id), fingerprint = or_null(run.fingerprint) }
end

route.get("/rules/:rule/runs", {
    summary = "Kept runs of a rule, newest first", access = READ, module = "rules", params = { rule = Ref }, no_store = true,
    query = schema.object{ outcome = schema.string{ max = 40 }:optional(), version = schema.integer{ min = 1 }:optional(),
        cursor = schema.uuid():optional() }, returns = schema.array(Any),
    handler = function(ctx)
        local rule, list = rules.find(ctx.tenant, ctx.params.rule), json.array{}
        for i, run in ipairs(store.runs(ctx.tenant, rule.id, { outcome = ctx.query.outcome, version = ctx.query.version,
            before = ctx.query.cursor })) do list[i] = run_body(run) end
        if #list == 20 then ctx.set_header("X-Next-Cursor", list[20].id) end
        return list
    end,
})

route.get("/rules/runs/:id", {
    summary = "A run with its input, output and log", access = READ, module = "rules", no_store = true,
    params = { id = schema.uuid{ on_bad = 404, what = "Run" } }, returns = Any,
    handler = function(ctx)
        local run = store.run(ctx.tenant, ctx.params.id)
        if not run then errors.not_found{ message = "Run not found" } end
        local body = run_body(run)
        local kept = kept_runs.body(ctx.tenant, run)
        body.input, body.output, body.log, body.reason = or_null(kept.input), or_null(kept.output), or_null(kept.log), or_null(kept.reason)
        body.opsIn = or_null(kept.opsIn)
        body.stack = or_null(check.frames{ stack = kept.stack })
        body.calls = json.array{}
        for i, call in ipairs(kept.heard or {}) do
            local answers = call.answer and call.answer ~= null and json.decode(call.answer)
            body.calls[i] = { name = call.name, answers = answers or null }
        end
        return body
    end,
})

route.post("/rules/runs/:id/replay", {
    summary = "A kept run through another version, without effect", access = WRITE, module = "rules",
    params = { id = schema.uuid{ on_bad = 404, what = "Run" } }, body = schema.object{ version = Which:optional() },
        returns = { [201] = Any },
    handler = function(ctx) return preview.replay(ctx.scope, ctx.params.id, ctx.body.version) end,
})

route.get("/rules/:rule/failures", {
    summary = "Failures of a rule, those alike together", access = READ, module = "rules", params = { rule = Ref }, no_store = true,
    returns = schema.array(Any),
    handler = function(ctx)
        local rule, list = rules.find(ctx.tenant, ctx.params.rule), json.array{}
        for i, f in ipairs(store.failures(ctx.tenant, rule.id)) do
            list[i] = { fingerprint = f.fingerprint, count = f.n, firstAt = f.first_at, lastAt = f.last_at, version = f.version,
                outcome = f.outcome, line = or_null(f.line), message = f.message, lastRunId = f.last_run_id }
        end
        return list
    end,
})

route.get("/rules/:rule/audit", {
    summary = "Who did what to a rule, newest first", access = READ, module = "rules", params = { rule = Ref }, no_store = true,
    returns = schema.array(Any),
    handler = function(ctx)
        local rule = rules.find(ctx.tenant, ctx.params.rule)
        local rows = trail.events(ctx.tenant, { entity_type = "rule", entity_id = rule.id }, nil, 200)
        local ids = {}
        for i, row in ipairs(rows) do ids[i] = row.id end
        local bodies, list = audit.bodies(ctx.tenant, ids), json.array{}
        for i, row in ipairs(rows) do
            local body = bodies[row.id] or {}
            list[i] = { id = row.id, at = row.created_at, action = row.action, actorId = or_null(row.actor_id), outcome = row.outcome,
                before = or_null(body.before), after = or_null(body.after) }
        end
        return list
    end,
})

-- The trace of an order ------------------------------------------------------------------------------------------------------------

route.post("/sales/orders/trace", {
    summary = "How an order came to its price: stages, adjustments, rules and versions",
    access = { permission = "orders.read" }, module = "sales",
    body = schema.object{ id = schema.uuid{ on_bad = 404, what = "Order" } }, returns = { [201] = Any }, status = 201,
    handler = function(ctx)
        local s = store.snapshot(ctx.tenant, ctx.body.id)
        if not s then errors.not_found{ message = "Order not found" } end
        local keys = {}
        for _, r in ipairs(s.rules) do
            if r.id then keys[r.id] = r.key end
        end
        local stages, adjustments, refused = json.array{}, json.array{}, json.array{}
        for i, t in ipairs(s.result.trace or {}) do
            stages[i] = { stage = t.stage, rule = t.rule and (keys[t.rule] or t.rule) or null, version = or_null(t.version),
                before = or_null(t.before), after = or_null(t.after), amount = type(t.before) == "number" and type(t.after) == "number"
                    and t.before - t.after or null, note = or_null(t.note) }
        end
        for i, a in ipairs(s.result.adjustments or {}) do
            adjustments[i] = { source = a.kind, rule = a.source_id and (keys[a.source_id] or a.source_id) or null,
                version = or_null(a.version),
                label = or_null(a.label), level = a.level, lineId = or_null(a.line_id), amount = a.amount }
        end
        for _, r in ipairs(s.rules) do
            if r.outcome ~= "ok" or r.reason then
                refused[#refused + 1] = { rule = r.key, version = or_null(r.version), outcome = r.outcome, reason = r.reason
                    or r.message or null,
                    line = or_null(r.line) }
            end
        end
        return { orderId = s.order_id, orderNumber = s.order_number, total = s.total_minor, currency = s.currency, stages = stages,
            adjustments = adjustments, rules = json.array(s.rules), refused = refused }
    end,
})

