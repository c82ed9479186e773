-- What a version would change: each order is priced twice, by the same code as a checkout, from what it was priced from when it was
-- placed (pricing_snapshots): once with the rules that are compared with, once with the version in its place. Nothing is written.
local json = require("core.json")
local core_pricing = require("core.pricing")
local sched = require("core.sched")
local time = require("core.time")
local uuid = require("core.uuid")
local db = require("kasma.db")
local errors = require("kasma.errors")
local capabilities = require("kasma.capabilities")
local hooks = require("kasma.hooks")
local catalogue = require("kasma.hooks_catalogue")
local outbox = require("kasma.outbox")
local cart = require("modules.cart.service")
local customers = require("modules.customers.service")
local pricing = require("modules.pricing.service")
local samples = require("modules.rules.samples")
local kept_runs = require("modules.rules.kept")
local store = require("modules.rules.store")
local stream = require("modules.rules.stream")

local M = {}

M.SYNC_MAX, M.MAX = 50, 5000
local LOW_PRIORITY = 100 -- behind whatever else waits in the queue
-- A job's breath: after so many orders it rests as long as they took, so that it never has more than half of a core and of a connection,
-- however fast or busy the machine is. It tells how far it is after TOLD orders.
local BATCH, TOLD = 5, 20

M.no_snapshots = errors.declare{ code = "no_snapshots", status = 422, message = "There is no order to try it on",
    cause = "no order in that range keeps what it was priced from", cure = "choose another range, or a cart" }

local null = json.null
local function present(v) if v == null then return nil end return v end

-- What is kept ---------------------------------------------------------------------------------------------------------------------

local KEPT = { "id", "product_id", "variant_id", "purchase_type", "bundle_id", "bundle_key", "sku", "name", "vendor_id", "tax_class",
    "warehouse_id", "portions", "category_ids", "tag_ids", "qty", "price", "sale_price", "price_currency", "weight_g", "requires_shipping",
        "attributes",
    "properties" }

--- What a checkout was priced from, as it is stored: no name, mail, phone or street.
---@param q table what pricing.quote was asked
---@param quote table
---@return table
function M.input_of(q, quote)
    local lines = {}
    for i, line in ipairs(q.lines) do
        local kept = {}
        for _, name in ipairs(KEPT) do kept[name] = line[name] end
        lines[i] = kept
    end
    local a, c = q.address or {}, quote.customer or {}
    return { at = quote.at_ms, lines = json.array(lines), method_id = q.shipping_method_id, guest = not (q.owner and q.owner.user_id),
        address = { country = present(a.country), region = present(a.region), city = present(a.city), zipCode = present(a.zipCode) },
        customer = { id = c.id, groups = c.groups, first_order = c.first_order, orders_count = c.orders_count, tier_id = c.tier_id } }
end

--- The outcome beside it: sums, adjustments and the trace.
---@param quote table
---@return table
function M.result_of(quote)
    local adjustments, trace = {}, {}
    for i, a in ipairs(quote.adjustment_rows) do
        adjustments[i] = { kind = a.kind, source_id = a.source_id, label = a.label, level = a.level, amount = a.amount, line_id = a.line_id,
            version = a.version }
    end
    for i, t in ipairs(quote.trace) do
        trace[i] = { stage = t.stage, rule = t.rule, version = t.version, before = t.before, after = t.after, note = t.note }
    end
    return { total = quote.total, discount = quote.discount, merchandise = quote.merchandise, tax = quote.tax,
        adjustments = json.array(adjustments), trace = json.array(trace) }
end

--- Statements that keep a checkout's snapshot, for its own transaction.
---@param scope Scope
---@param checkout_id string
---@param order table the parent order's row
---@param q table
---@param quote table
---@return table statement
function M.snapshot(scope, checkout_id, order, q, quote)
    local rules = {}
    for _, run in ipairs(quote.rule_runs or {}) do
        rules[#rules + 1] = { key = run.id, id = run.rule_id, version = run.number, sha256 = run.version, hook = run.hook,
            outcome = run.outcome, reason = run.reason, message = run.message, line = run.line, operations = run.operations }
    end
    return store.insert_snapshot{ tenant_key = scope.tenant, app_key = scope.app, id = checkout_id, order_id = order.id,
        order_number = order.order_number, currency = quote.currency, total_minor = quote.total, input = M.input_of(q, quote),
        result = M.result_of(quote), rules = json.array(rules), now = time.iso(time.now()) }
end

-- Pricing ----------------------------------------------------------------------------------------------------------------------------

local function ask_of(input, at_ms)
    local customer = {}
    for name, value in pairs(input.customer or {}) do customer[name] = present(value) end
    local lines = {}
    for i, line in ipairs(input.lines) do
        local copy = {}
        for name, value in pairs(line) do copy[name] = present(value) end
        lines[i] = copy
    end
    return { lines = lines, customer = customer, address = input.address, shipping_method_id = present(input.method_id),
        owner = { user_id = not input.guest and customer.id or nil }, at_ms = at_ms or input.at }
end

local function price(scope, input, set, at_ms)
    local q = ask_of(input, at_ms)
    q.rules = set
    local ok, quote = pcall(pricing.quote, scope, q)
    -- A method that is gone since would make the order unpriceable: the cheapest that fits stands in, on both sides.
    if not ok and q.shipping_method_id then
        q.shipping_method_id = nil
        ok, quote = pcall(pricing.quote, scope, q)
    end
    if not ok then
        return nil, type(quote) == "table" and (type(quote.message) == "table" and quote.message[1] or quote.message) or tostring(quote)
    end
    return quote
end

local function adjustments_of(quote)
    local by = {}
    for _, a in ipairs(quote.adjustments) do
        by[(a.source_id or a.kind) .. "|" .. (a.label or "")] = a
    end
    return by
end

local function beyond(a, b)
    local list = {}
    for key, adjustment in pairs(a) do
        if not b[key] or b[key].amount ~= adjustment.amount then
            list[#list + 1] = { source = adjustment.kind, label = adjustment.label or null, amount = adjustment.amount }
        end
    end
    table.sort(list, function(x, y) return x.amount > y.amount end)
    return json.array(list)
end

local function run_of(quote, key)
    for _, run in ipairs(quote and quote.rule_runs or {}) do
        if run.id == key then return run end
    end
    return nil
end

M.price, M.run_of = price, run_of

--- Counts, over quotes in which a rule takes part, what else gave something on the same orders.
---@param rule table
---@return {add: fun(quote: table), interactions: (fun(): table[]), warnings: fun(orders: integer): table[]}
function M.companions(rule)
    local counts, promotion = {}, {}

    local function name_of(a, quote)
        local name = a.label or a.source_id
        if a.kind == "script" then
            for _, run in ipairs(quote.rule_runs or {}) do
                if (run.rule_id or run.id) == a.source_id then name = run.name end
            end
        end
        name = (a.kind == "coupon" and "coupon '%s'" or "promotion '%s'"):format(name)
        promotion[name] = a.kind ~= "coupon"
        return name
    end

    local function add(quote)
        local own, others = false, {}
        for _, a in ipairs(quote.adjustments) do
            if a.source_id == rule.id or a.source_id == rule.key then
                own = own or a.amount > 0
            elseif a.kind == "script" or a.kind == "promotion" or a.kind == "coupon" then
                local name = name_of(a, quote)
                others[name] = others[name] or a.amount > 0
            end
        end
        for name, gave in pairs(others) do counts[name] = (counts[name] or 0) + (own and gave and 1 or 0) end
    end

    local function interactions()
        local list = json.array{}
        for name, n in pairs(counts) do list[#list + 1] = { with = name, orders = n } end
        table.sort(list, function(a, b) return a.orders > b.orders or a.orders == b.orders and a.with < b.with end)
        return list
    end

    local function warnings(orders)
        local list = json.array{}
        for _, i in ipairs(interactions()) do
            if i.orders > 0 and promotion[i.with] then
                list[#list + 1] = { severity = "warning", code = "stacks_with", with = i.with, orders = i.orders, of = orders,
                    message = ("stacks with %s: %d of %d orders got both"):format(i.with, i.orders, orders) }
            end
        end
        return list
    end
    return { add = add, interactions = interactions, warnings = warnings }
end

--- A tally of previews.
local function tally_new(rule, from, to, kind)
    return { key = rule.key, both = M.companions(rule), against = { kind = kind, asked = 0, used = 0, skipped = {} },
        compare = { from = from, to = to }, before = 0, after = 0, net = 0, tax = 0, changed = 0, same = 0,
        failed = 0, orders = {}, instructions = {} }
end

local function tally_add(t, ref, before, after, why)
    t.against.asked = t.against.asked + 1
    if not before or not after then
        t.against.skipped[#t.against.skipped + 1] = { orderNumber = ref.number, reason = why or "it has no price today" }
        return
    end
    t.against.used = t.against.used + 1
    t.currency = t.currency or after.currency
    local run = run_of(after, t.key)
    if run then t.instructions[#t.instructions + 1] = run.instructions end
    if run and run.outcome ~= "ok" then
        t.failed = t.failed + 1
        t.first_failure = t.first_failure or { orderNumber = ref.number, outcome = run.outcome, line = run.line, message = run.message }
    end
    t.before, t.after = t.before + before.total, t.after + after.total
    t.net, t.tax = t.net + after.merchandise - before.merchandise, t.tax + after.tax - before.tax
    t.both.add(after)
    if before.total == after.total and before.merchandise == after.merchandise then
        t.same = t.same + 1
        return
    end
    t.changed = t.changed + 1
    local was, is = adjustments_of(before), adjustments_of(after)
    t.orders[#t.orders + 1] = { orderNumber = ref.number or null, orderId = ref.order_id or null, before = before.total,
        after = after.total,
        delta = after.total - before.total, reason = run and run.reason or null, added = beyond(is, was), removed = beyond(was, is) }
end

local function quantile(sorted, p)
    if #sorted == 0 then return 0 end
    return sorted[math.max(1, math.ceil(#sorted * p))]
end

local function tally_result(t)
    table.sort(t.instructions)
    table.sort(t.orders, function(a, b)
        if math.abs(a.delta) ~= math.abs(b.delta) then return math.abs(a.delta) > math.abs(b.delta) end
        return tostring(a.orderNumber) < tostring(b.orderNumber)
    end)
    json.array(t.against.skipped)
    return { against = t.against, compare = t.compare, totals = { before = t.before, after = t.after, delta = t.after - t.before,
        merchandiseNet = t.net, tax = t.tax, currency = t.currency or null }, changed = t.changed, same = t.same, failed = t.failed,
        firstFailure = t.first_failure or null, orders = json.array(t.orders), interactions = t.both.interactions(),
        budget = { instructions = { p50 = quantile(t.instructions, 0.5), p99 = quantile(t.instructions, 0.99),
            max = t.instructions[#t.instructions] or 0, limit = 200000 } }, warnings = t.both.warnings(t.against.used) }
end

-- What is compared ---------------------------------------------------------------------------------------------------------------------

local function spec_of(scope, rule, which)
    local live, service = require("modules.rules.live"), require("modules.rules.service")
    local row = which == "draft" and store.draft(scope.tenant, rule.id) or store.version(scope.tenant, rule.id, which)
    if not row then errors.not_found{ message = "Version not found" } end
    local libs = row.libs or service.libraries(scope.tenant, row.source)
    return live.spec{ id = rule.id, key = rule.key, hook = rule.hook, name = rule.name, version = row.version or 0, source = row.source,
        settings = row.settings, libs = libs }, row
end

--- Both sides: the set compared with, and the one with the version in it.
local function sides(scope, rule, body)
    local base = hooks.pin{ tenant = scope.tenant, app = scope.app }
    local to = body.version or "draft"
    local spec, row = spec_of(scope, rule, to)
    local after = assert(base:with(spec))
    local from = body.compareTo or (rule.state == "active" and "active" or "none")
    local before
    if from == "none" then
        before = assert(base:without(rule.key))
    elseif from == "active" then
        before = base
    else
        before = assert(base:with((spec_of(scope, rule, from))))
    end
    local function told(which, draft)
        if which == "draft" then return "draft r" .. draft.revision end
        return type(which) == "number" and "version " .. which or which
    end
    local from_text = from == "active" and "version " .. tostring(rule.active_version) or told(from, row)
    return { before = before, after = after, from = from_text, to = told(to, row), settings = row.settings,
        revision = to == "draft" and row.revision or nil }
end

local function each_snapshot(tenant, o, visit)
    if o.ids then
        for _, id in ipairs(o.ids) do
            local s = store.snapshot(tenant, id)
            if s then
                if visit(s) == false then return end
            else
                visit(nil, id)
            end
        end
        return
    end
    local before, left = nil, o.last
    while left > 0 do
        local page = store.snapshots(tenant, o.from, o.to, before, math.min(left, 100))
        for _, s in ipairs(page) do
            if visit(s) == false then return end
            before = s.id
        end
        left = left - #page
        if #page < 100 then return end
    end
end

local function over_orders(scope, rule, body, progress)
    local both = sides(scope, rule, body)
    local before_set, after_set = both.before, both.after
    local t = tally_new(rule, both.from, both.to, "orders")
    local at = body.at and time.parse(body.at)
    local n = 0
    each_snapshot(scope.tenant, body.orders, function(s, id)
        if not s then
            tally_add(t, { number = id }, nil, nil, "not found, or too old")
            return true
        end
        local before, why = price(scope, s.input, before_set, at)
        local after, why_after = price(scope, s.input, after_set, at)
        tally_add(t, { number = s.order_number, order_id = s.order_id }, before, after, why or why_after)
        n = n + 1
        if progress then return progress(n) end
        return true
    end)
    return tally_result(t), both.revision
end

-- What one cart, order or sample says: `quoted` prices it with a set of rules; nil and why.
local function told_of(rule, both, kind, ref, quoted)
    local t = tally_new(rule, both.from, both.to, kind)
    local before, why = quoted(both.before)
    local after, why_after = quoted(both.after)
    if not before or not after then errors.unprocessable{ message = why or why_after, code = "no_price" } end
    tally_add(t, ref, before, after)
    local result = tally_result(t)
    local run = run_of(after, rule.key)
    result.run = run and { outcome = run.outcome, line = run.line or null, message = run.message or null, reason = run.reason or null,
        log = run.log or null, instructions = run.instructions } or null
    result.adjustments = json.array{}
    for i, a in ipairs(after.adjustments) do
        result.adjustments[i] = { source = a.kind, id = a.source_id or null, label = a.label or null, amount = a.amount }
    end
    return result
end

local function one(scope, rule, body, input, ref, kind)
    local at = body.at and time.parse(body.at)
    return told_of(rule, sides(scope, rule, body), kind, ref, function(set) return price(scope, input, set, at) end)
end

-- One of the carts that every rule of the hook is tried with, by its name.
local function sampled(scope, rule, body)
    local both = sides(scope, rule, body)
    for _, sample in ipairs(samples.quotes(rule.hook, both.settings.config)) do
        if sample.name == body.sample then
            return told_of(rule, both, "sample", { number = sample.name }, function(set)
                local quote, err = core_pricing.quote(sample.input, set)
                return quote, err and err.message
            end)
        end
    end
    errors.not_found{ message = "Sample not found" }
end

-- What a cart that lies in the shop would be priced from now: as its owner's, or as another customer's.
local function input_of_cart(scope, body)
    local row = cart.by_id(scope, body.cartId) or errors.not_found{ message = "Cart not found" }
    local user_id = body.customerId or present(row.user_id)
    return { at = time.now(), lines = pricing.cart_lines(scope, row.items), guest = not user_id,
        method_id = present(row.shipping_method_id), customer = customers.pricing_input(scope.tenant, { user_id = user_id }) }
end

--- A preview of a version against a cart, an order or many.
---@param scope Scope
---@param ref string
---@param body table see the route
---@return integer status, table
function M.run(scope, ref, body)
    local rule = require("modules.rules.service").find(scope.tenant, ref)
    if not catalogue.get(rule.hook).quote then
        errors.unprocessable{ message = "Only rules of a quote are previewed on carts and orders", code = "hook_not_previewed" }
    end
    if body.cart then
        local items = {}
        for i, item in ipairs(body.cart.items) do
            items[i] = { lineId = "l" .. i, productId = item.productId, variantId = item.variantId or null, quantity = item.quantity }
        end
        local a = body.cart.shippingAddress or {}
        local input = { at = time.now(), lines = pricing.cart_lines(scope, items), guest = not body.customerId, customer = { id =
            body.customerId, groups = body.cart.customerGroups or {} }, address = { country = a.country, region = a.region, city = a.city,
            zipCode = a.zipCode } }
        return 201, one(scope, rule, body, input, {}, "cart")
    end
    if body.cartId then return 201, one(scope, rule, body, input_of_cart(scope, body), {}, "cart") end
    if body.orderId then
        local s = store.snapshot(scope.tenant, body.orderId)
        if not s then M.no_snapshots() end
        return 201, one(scope, rule, body, s.input, { number = s.order_number, order_id = s.order_id }, "order")
    end
    if body.sample then return 201, sampled(scope, rule, body) end
    if not body.orders then errors.bad_request{ message = { "one of cart, cartId, orderId, sample and orders should not be empty" } } end
    local o = body.orders
    local asked = o.ids and #o.ids or o.last or M.SYNC_MAX
    o.last = asked
    if not o.ids and #store.snapshots(scope.tenant, o.from, o.to, nil, 1) == 0 then M.no_snapshots() end
    local id, now = uuid.v7(), time.iso(time.now())
    if asked <= M.SYNC_MAX then
        local result, revision = over_orders(scope, rule, body)
        -- Kept like a job's, so that a publication can name it.
        db.pipeline(scope.tenant, { store.insert_preview{ tenant_key = scope.tenant, app_key = scope.app, id = id, rule_id = rule.id,
            spec = body, total = asked, created_by = scope.actor_id, now = now, state = "done", done = result.against.asked,
            result = result, revision = revision } })
        result.previewId = id
        return 201, result
    end
    db.pipeline(scope.tenant, { store.insert_preview{ tenant_key = scope.tenant, app_key = scope.app, id = id, rule_id = rule.id,
        spec = body, total = asked, created_by = scope.actor_id, now = now },
        outbox.job(scope, "rules-queue", "preview", { previewId = id, tenant_key = scope.tenant, app_key = scope.app },
            { jobId = "preview-" .. id, attempts = 2, priority = LOW_PRIORITY }) })
    return 202, { previewId = id }
end

--- A preview in one go, however many orders: for the command line, which may wait.
---@param scope Scope
---@param ref string
---@param body table
---@return table result
function M.now(scope, ref, body)
    local rule = require("modules.rules.service").find(scope.tenant, ref)
    if body.orderId then
        local s = store.snapshot(scope.tenant, body.orderId)
        if not s then M.no_snapshots() end
        return one(scope, rule, body, s.input, { number = s.order_number, order_id = s.order_id }, "order")
    end
    if #store.snapshots(scope.tenant, body.orders.from, body.orders.to, nil, 1) == 0 then M.no_snapshots() end
    return over_orders(scope, rule, body)
end

--- The job of a preview over many orders.
---@param tenant string
---@param app string
---@param id string
function M.work(tenant, app, id)
    local row = store.preview(tenant, id)
    if not row or (row.state ~= "queued" and row.state ~= "running") then return end
    local scope = { tenant = tenant, app = app, actor_kind = "system" }
    local function now() return time.iso(time.now()) end
    if not store.move_preview(tenant, id, "running", 0, nil, now()) then return end
    local function tell(state, done) stream.progress(tenant, id, { state = state, done = done, total = row.total }) end
    tell("running", 0)
    local rule = store.find(tenant, row.rule_id)
    local body = row.spec
    local began = time.mono()
    local ok, result, revision = pcall(over_orders, scope, rule, body, function(n)
        if n % BATCH ~= 0 then return true end
        sched.sleep(math.ceil((time.mono() - began) / 1000))
        local goes_on = true
        if n % TOLD == 0 then
            tell("running", n)
            goes_on = store.move_preview(tenant, id, "running", n, nil, now()) ~= nil
        end
        began = time.mono()
        return goes_on
    end)
    if not ok then
        if errors.is_unavailable(result) then error(result, 0) end
        store.move_preview(tenant, id, "failed", row.done, { message = type(result) == "table" and tostring(result.message)
            or tostring(result) }, now())
        tell("failed", row.done)
        return
    end
    if store.move_preview(tenant, id, "done", result.against.asked, result, now(), revision) then tell("done", result.against.asked) end
end

M.mismatch = errors.declare{ code = "preview_mismatch", status = 409, message = "The preview is not of this draft",
    cause = "it is of another rule or revision, or has no result", cure = "preview the draft as it is now, or leave previewId out" }

--- What a preview of a draft said, in short, for the version that is published on its strength. Raises not found, preview_mismatch.
---@param tenant string
---@param id string
---@param rule table
---@param revision integer of the draft
---@return table
function M.cited(tenant, id, rule, revision)
    local row = store.preview(tenant, id)
    if not row then errors.not_found{ message = "Preview not found" } end
    if row.rule_id ~= rule.id or row.state ~= "done" or row.revision ~= revision then
        M.mismatch{ details = { state = row.state, revision = row.revision ~= null and row.revision or null, draft = revision } }
    end
    local r = row.result
    return { id = row.id, at = row.created_at, against = { kind = r.against.kind, asked = r.against.asked, used = r.against.used },
        compare = r.compare, totals = r.totals, changed = r.changed, same = r.same, failed = r.failed,
        interactions = r.interactions }
end

-- Replay -------------------------------------------------------------------------------------------------------------------------------

--- A stored run through another version: of a quote by what it was priced from, of other hooks by the input that was kept.
---@param scope Scope
---@param run_id string
---@param which "draft"|integer|nil
---@return table {before, after, same}
function M.replay(scope, run_id, which)
    local run = store.run(scope.tenant, run_id)
    if not run then errors.not_found{ message = "Run not found" } end
    local rule = store.find(scope.tenant, run.rule_id)
    local spec = spec_of(scope, rule, which or "draft")
    local base = hooks.pin{ tenant = scope.tenant, app = scope.app }
    local function outcome(r, extra)
        return { outcome = r.outcome, line = r.line or null, message = r.message or null, reason = r.reason or null,
            instructions = r.instructions, operations = r.operations or null, output = extra ~= nil and extra or null }
    end
    local before = { outcome = run.outcome, line = run.line or null, message = run.message ~= "" and run.message or null,
        instructions = run.instructions }
    local body = kept_runs.body(scope.tenant, run)
    if not body.input then errors.gone{ message = "What the run was given is no longer kept" } end
    local quote = present(body.input.quote)
    if quote then
        local then_set = assert(base:with((spec_of(scope, rule, run.version))))
        local was, why = price(scope, quote, then_set)
        local is, why_is = price(scope, quote, assert(base:with(spec)))
        if not was or not is then errors.unprocessable{ message = why or why_is, code = "no_price" } end
        local a, b = run_of(was, rule.key), run_of(is, rule.key)
        before = outcome(a or { outcome = "ok", instructions = 0 })
        before.total = was.total
        local after = outcome(b or { outcome = "ok", instructions = 0 })
        after.total = is.total
        return { before = before, after = after, same = was.total == is.total and before.outcome == after.outcome }
    end
    local set = assert(base:with(spec))
    for _, one_of in ipairs(set:list(rule.hook)) do
        if one_of.id == rule.key then
            local answer, again
            if rule.hook == "route" or rule.hook == "workflow" then
                answer, again = capabilities.run(nil, set, one_of, body.entry, body.input, { kind = rule.hook,
                    preview = { heard = body.heard } })
            else
                answer, again = hooks.run(set, one_of, body.input)
            end
            local after = outcome(again, answer)
            return { before = before, after = after, same = before.outcome == after.outcome
                and json.encode(body.output or null) == json.encode(answer or null) }
        end
    end
    errors.not_found{ message = "Rule not found" }
end

return M
