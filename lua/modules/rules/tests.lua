-- Tests of a rule: a chunk beside it that returns {config, category, prices, tests = {...}}. It is a merchant's code like the rule
-- itself, so it runs in the sandbox, and hands out plain cases: `each` and functions are resolved there.
--
-- given: now, cart = {NAME = quantity} or lines = {...}, customer, country, region, zip, coupons, currency, shipping, tax = "VN10";
-- or the hook's subject alone. expect: discount, net, lines = {NAME = net}, total, shipping, tax, none, error (code),
-- log (part of a text), reason, result and operations (exact), instructions_below. property: random_carts, line_order, idempotent.
-- from_run: the id of a kept run; what it was given stands in for `given` and `config` where these are left out.
local json = require("core.json")
local pricing = require("core.pricing")
local rules = require("core.rules")
local time = require("core.time")
local capabilities = require("kasma.capabilities")
local hooks = require("kasma.hooks")
local catalogue = require("kasma.hooks_catalogue")
local schema = require("kasma.schema")
local check = require("modules.rules.check")
local mounted = require("modules.rules.mounted")
local samples = require("modules.rules.samples")
local workflow = require("modules.rules.tests_workflow")

local M = {}

local CASES_MAX = 500

local WRAP = [[ end)() return { hook = "route", name = "tests", run = function()
local out = {}
local function add(t, row, i)
  local given, expect = t.given, t.expect
  if type(given) == "function" then given = given(row) end
  if type(expect) == "function" then expect = expect(row) end
  out[#out + 1] = { name = i and t.name .. " [" .. i .. "]" or t.name, given = given, expect = expect, property = t.property,
      cases = t.cases, seed = t.seed, from_run = t.from_run, config = t.config }
end
for _, t in ipairs(T.tests or {}) do
  if t.each then for i, row in ipairs(t.each) do add(t, row, i) end else add(t) end
end
return { config = T.config, category = T.category, prices = T.prices, weights = T.weights, products = T.products, customer = T.customer,
  currency = T.currency, tests = out }
end }]]

--- Runs the chunk of tests. Nil and a finding when it cannot be read.
---@param source string
---@param file string
---@return table|nil plan, table|nil finding
function M.read(source, file)
    local fair, unfair, at = rules.fair(source)
    if not fair then return nil, { severity = "error", code = "syntax", file = file, line = at, message = unfair } end
    local _, why = loadstring(source, "=" .. file, "t")
    if why then
        local line, message = tostring(why):match(":(%d+): (.*)$")
        return nil, { severity = "error", code = "syntax", file = file, line = tonumber(line), message = message or why }
    end
    local base = assert(rules.pin("rules-check"))
    local set = assert(base:with{ id = file, hook = "route", name = "tests", source = "local T = (function() " .. source .. "\n" .. WRAP })
    local index
    for _, rule in ipairs(set:list("route")) do
        if rule.id == file then index = rule.index end
    end
    local plan, report = set:run(index, {})
    if report.outcome ~= "ok" then
        local code, message = check.told(report)
        return nil, { severity = "error", code = code, file = file, line = report.line, message = message }
    end
    if type(plan) ~= "table" or type(plan.tests) ~= "table" then
        return nil, { severity = "error", code = "test_failed", file = file, message = "the tests must return a table with tests = {...}" }
    end
    return plan
end

local function categories_of(plan, name)
    local ids = {}
    for category, members in pairs(plan.category or {}) do
        for _, member in ipairs(members) do
            if member == name then ids[#ids + 1] = category end
        end
    end
    table.sort(ids)
    return ids
end

local function item(plan, name, quantity)
    local more = plan.products and plan.products[name] or {}
    local l = { id = name, product_id = name, sku = name, qty = quantity, price = plan.prices and plan.prices[name] or 0,
        weight_g = plan.weights and plan.weights[name] or 100, requires_shipping = true, category_ids = categories_of(plan, name),
            tag_ids = {} }
    for field, value in pairs(more) do l[field] = value end
    return l
end

local function lines_of(plan, given)
    local lines, names = {}, {}
    if given.lines then
        for i, l in ipairs(given.lines) do
            local made = item(plan, l.sku or l.id or "item", l.qty or 1)
            made.id = l.id or made.sku .. i
            for field, value in pairs(l) do made[field] = value end
            lines[i] = made
        end
        return lines
    end
    for name in pairs(given.cart or {}) do names[#names + 1] = name end
    table.sort(names)
    for i, name in ipairs(names) do lines[i] = item(plan, name, given.cart[name]) end
    return lines
end

local function options(plan, given)
    local country, percent = tostring(given.tax or ""):match("^(%u%u)(%d+)$")
    return { at = given.now, currency = given.currency or plan.currency, customer = given.customer or plan.customer,
        country = given.country or country, region = given.region, zip = given.zip, city = given.city, coupons = given.coupons,
        shipping = given.shipping, tax_ppm = percent and tonumber(percent) * 10000 or given.tax_ppm, home_country = given.home_country }
end

local function same(a, b)
    if type(a) ~= "table" or type(b) ~= "table" then return a == b end
    for k, v in pairs(a) do
        if not same(v, b[k]) then return false end
    end
    for k in pairs(b) do
        if a[k] == nil then return false end
    end
    return true
end

local function text_of(value)
    if type(value) == "table" then return json.encode(value) end
    return tostring(value)
end

local EXPECT = { discount = true, net = true, lines = true, total = true, shipping = true, tax = true, none = true, error = true,
    log = true,
    reason = true, result = true, operations = true, instructions_below = true, calls = true, ends = true }

local function compare(diff, name, expected, got)
    if expected ~= nil and not same(expected, got) then
        diff[#diff + 1] = ("%s: expected %s, got %s"):format(name, text_of(expected), text_of(got))
    end
end

local function judge(expect, run, quote, answer)
    local diff = {}
    for name in pairs(expect) do
        if not EXPECT[name] then diff[#diff + 1] = ("'%s' is nothing that can be expected"):format(tostring(name)) end
    end
    local failed = run.outcome ~= "ok"
    if expect.error then
        compare(diff, "error", expect.error, failed and (check.told(run)) or "none")
    elseif failed then
        local code, message = check.told(run)
        diff[#diff + 1] = ("%s%s: %s"):format(code, run.line and " at line " .. run.line or "", message)
    end
    if expect.none then compare(diff, "operations", 0, run.operations or 0) end
    compare(diff, "reason", expect.reason, run.reason)
    if expect.log and not (run.log or ""):find(expect.log, 1, true) then
        diff[#diff + 1] = ("log: expected %s in it, got %s"):format(expect.log, run.log or "nothing")
    end
    if expect.instructions_below and run.instructions >= expect.instructions_below then
        diff[#diff + 1] = ("instructions: expected below %d, got %d"):format(expect.instructions_below, run.instructions)
    end
    if expect.result ~= nil then compare(diff, "result", expect.result, answer) end
    if expect.operations ~= nil then
        local said = run.output and json.decode(run.output) or answer or {}
        compare(diff, "operations", expect.operations, type(said) == "table" and said.operations or {})
    end
    compare(diff, "calls", expect.calls, run.calls)
    compare(diff, "ends", expect.ends, run.ends)
    if quote then
        compare(diff, "discount", expect.discount, quote.discount)
        compare(diff, "net", expect.net, quote.merchandise)
        compare(diff, "total", expect.total, quote.total)
        compare(diff, "tax", expect.tax, quote.tax)
        compare(diff, "shipping", expect.shipping, quote.shipping and quote.shipping.net)
        local nets = {}
        for _, l in ipairs(quote.lines) do nets[l.source_id or l.id] = (nets[l.source_id or l.id] or 0) + l.net end
        for name, net in pairs(expect.lines or {}) do compare(diff, "line " .. name, net, nets[name]) end
    end
    return diff
end

local NOTHING = { outcome = "ok", instructions = 0, heap = 0, micros = 0, operations = 0 }

local function priced(set, id, input)
    local quote, err = pricing.quote(input, set)
    if not quote then return nil, { outcome = "error", message = err.message, instructions = 0, heap = 0, micros = 0 } end
    for _, run in ipairs(quote.rule_runs or {}) do
        if run.id == id then return quote, run end
    end
    return quote, NOTHING
end

-- Properties -------------------------------------------------------------------------------------------------------------------

local function chance_cart(plan, chance)
    local names, lines = {}, {}
    for name in pairs(plan.prices or {}) do names[#names + 1] = name end
    table.sort(names)
    for _, name in ipairs(names) do
        if chance(3) > 1 then lines[#lines + 1] = item(plan, name, chance(chance(20) == 1 and 300 or 9)) end
    end
    if #lines == 0 then lines[1] = item(plan, names[1] or "item", chance(5)) end
    local day = chance(28)
    return lines, { at = ("2026-%02d-%02dT%02d:%02d"):format(chance(12), day, chance(24) - 1, chance(60) - 1), tax_ppm = chance(2) == 1
        and 100000 or nil, shipping = chance(2) == 1 and 30000 or 0 }
end

--- What holds for every quote, whatever a rule does. Nil when it holds.
---@param quote table
---@return string|nil fault
function M.fault_of(quote)
    local net, discount, gross, tax = 0, 0, 0, 0
    for _, l in ipairs(quote.lines) do
        if l.net < 0 or l.discount < 0 or l.discount > l.gross then return "a line is below zero, or its discount above it" end
        if l.net ~= l.gross - l.discount then return "a line's net is not its gross less its discount" end
        net, discount, gross, tax = net + l.net, discount + l.discount, gross + l.gross, tax + l.tax
    end
    if net ~= quote.merchandise then return "the lines do not sum to the merchandise" end
    if gross ~= quote.subtotal then return "the lines do not sum to the subtotal" end
    if quote.total < 0 then return "the total is below zero" end
    if quote.shipping and quote.shipping.net < 0 then return "shipping is below zero" end
    local rows = 0
    for _, row in ipairs(quote.adjustment_rows) do
        if row.line_id then rows = rows + row.amount end
    end
    if rows ~= discount then return "the adjustments do not sum to the discount" end
    return nil
end

local function essence(quote)
    local nets = {}
    for _, l in ipairs(quote.lines) do nets[#nets + 1] = l.id .. "=" .. l.net .. "/" .. l.tax end
    table.sort(nets)
    return table.concat(nets, " ") .. " total " .. quote.total
end

local properties = {}

function properties.random_carts(plan, set, id, chance)
    local lines, o = chance_cart(plan, chance)
    local quote, run = priced(set, id, samples.input(lines, o))
    if run.outcome ~= "ok" then return check.told(run) .. ": " .. tostring(run.message), run end
    return M.fault_of(quote), run
end

function properties.line_order(plan, set, id, chance)
    local lines, o = chance_cart(plan, chance)
    local first, run = priced(set, id, samples.input(lines, o))
    for i = #lines, 2, -1 do
        local k = chance(i)
        lines[i], lines[k] = lines[k], lines[i]
    end
    local second = priced(set, id, samples.input(lines, o))
    if not first or not second then return "the cart has no price", run end
    if essence(first) ~= essence(second) then return ("another order of lines: %s, not %s"):format(essence(second), essence(first)), run end
    return nil, run
end

function properties.idempotent(plan, set, id, chance)
    local lines, o = chance_cart(plan, chance)
    local first, run = priced(set, id, samples.input(lines, o))
    local second = priced(set, id, samples.input(lines, o))
    if not first or not second then return "the cart has no price", run end
    if essence(first) ~= essence(second) then return "the same cart has two prices", run end
    return nil, run
end

local function run_property(t, plan, set, id)
    local property = properties[t.property]
    if not property then return { ("'%s' is no property"):format(tostring(t.property)) }, NOTHING end
    local chance, most = samples.chance(t.seed or 1), NOTHING
    for n = 1, math.min(t.cases or 100, 2000) do
        local fault, run = property(plan, set, id, chance)
        if fault then return { ("case %d of seed %d: %s"):format(n, t.seed or 1, fault) }, run or NOTHING end
        if run and run.instructions >= most.instructions then most = run end
    end
    return {}, most
end

-- Kept runs ---------------------------------------------------------------------------------------------------------------------

local function plain(value)
    if value == json.null then return nil end
    return value
end

local LINE = { "id", "product_id", "variant_id", "purchase_type", "bundle_id", "bundle_key", "sku", "vendor_id", "tax_class",
    "category_ids", "tag_ids", "qty", "price", "sale_price", "weight_g", "requires_shipping", "attributes", "properties" }

--- What a kept run was given, as a test gives it.
---@param input table {quote, currency} of a rule of a quote, else the hook's input
---@return table given
function M.given_of(input)
    local quote = plain(input.quote)
    if not quote then
        local now = type(input.now) == "table" and input.now.epoch
        return { now = now and time.iso(now * 1000) or nil, subject = input.subject, tenant = input.tenant }
    end
    local address, customer = plain(quote.address) or {}, plain(quote.customer) or {}
    local given = { now = time.iso(quote.at), currency = plain(input.currency), country = plain(address.country),
        region = plain(address.region), city = plain(address.city), zip = plain(address.zipCode), lines = {} }
    if plain(customer.id) then
        given.customer = { id = customer.id, groups = plain(customer.groups), first_order = plain(customer.first_order),
            orders_count = plain(customer.orders_count), tier = plain(customer.tier_id) and { id = customer.tier_id } or nil }
    end
    for i, line in ipairs(quote.lines) do
        local kept = {}
        for _, name in ipairs(LINE) do kept[name] = plain(line[name]) end
        given.lines[i] = kept
    end
    return given
end

-- A request to a route, as it is after the checks of the query: with the defaults of its schema. `answers` stands for what the rule asks.
local function run_route(set, rule, given)
    local manifest, calls = capabilities.manifest(set, rule), {}
    local plan = manifest and mounted.read(manifest)
    local input = samples.around("route", given)
    if plan then
        local clean, errs = schema.check(plan.query, input.subject.query or {}, true)
        if clean and not errs then input.subject.query = clean end
    end
    local answer, run = capabilities.run(nil, set, rule, nil, input, { judge = mounted.judge,
        preview = { answers = given.answers, calls = calls } })
    run.calls = calls
    return answer, run
end

-- All of them ------------------------------------------------------------------------------------------------------------------

---@class RuleTestReport
---@field passed integer
---@field failed integer
---@field skipped integer
---@field cases table[] {name, ok, diff, budget, log}

-- The rules with one in its place that has this config.
local function with_config(base, spec, config)
    local copy = {}
    for name, value in pairs(spec) do copy[name] = value end
    copy.config = check.config_text(config)
    local set = assert(base:with(copy))
    for _, one in ipairs(set:list(spec.hook)) do
        if one.id == spec.id then return set, one end
    end
    return set
end

-- Fills in what a kept run was given. False: there is no telling.
local function resolve(t, stored)
    if not t.from_run or t.given then return true end
    local kept = stored and stored(t.from_run)
    if not kept then return false end
    t.given, t.config = M.given_of(kept.input), t.config or plain(kept.config)
    return true
end

--- Runs the tests of a rule that has passed the check.
---@param o {spec: table, hook: string, tests: string, file: string|nil, only: string|nil, stored: (fun(id: string): table|nil)|nil}
--- spec: of the check's report; stored: a kept run, {input, config}
---@return RuleTestReport|nil, table|nil finding
function M.run(o)
    local plan, finding = M.read(o.tests, o.file or o.spec.id .. "_test.lua")
    if not plan then return nil, finding end
    local hook = catalogue.get(o.hook)
    local report = { passed = 0, failed = 0, skipped = 0, cases = {} }
    local config = plan.config or {}
    if not plan.config and o.spec.config then config = json.decode(o.spec.config) end
    local base, spec = assert(rules.pin("rules-check")), o.spec
    local plans_set, plans_rule = with_config(base, spec, config)
    for i, t in ipairs(plan.tests) do
        if i > CASES_MAX or (o.only and not tostring(t.name):find(o.only, 1, true)) then
            report.skipped = report.skipped + 1
        else
            local diff, run
            local known, set, rule = resolve(t, o.stored), plans_set, plans_rule
            if known and t.config then set, rule = with_config(base, spec, t.config) end
            if not known then
                diff, run = { "run " .. tostring(t.from_run) .. " is not kept here: kasma rules capture writes what it was given" }, NOTHING
            elseif t.property then
                diff, run = run_property(t, plan, set, spec.id)
            elseif hook.quote and not (t.given and t.given.subject) then
                local given = t.given or {}
                local quote, ran = priced(set, spec.id, samples.input(lines_of(plan, given), options(plan, given)))
                diff, run = judge(t.expect or {}, ran, quote), ran
            elseif hook.kind == "workflow" then
                local answer, ran = workflow.run(set, rule, t.given or {}, t.expect or {})
                diff, run = judge(t.expect or {}, ran, nil, answer), ran
            elseif hook.kind == "route" then
                local answer, ran = run_route(set, rule, t.given or {})
                diff, run = judge(t.expect or {}, ran, nil, answer), ran
            else
                local answer, ran = hooks.run(set, rule, samples.around(o.hook, t.given or {}))
                diff, run = judge(t.expect or {}, ran, nil, answer), ran
            end
            local ok = #diff == 0
            report[ok and "passed" or "failed"] = report[ok and "passed" or "failed"] + 1
            report.cases[#report.cases + 1] = { name = tostring(t.name or i), ok = ok, diff = json.array(diff),
                budget = check.budget_of(run, o.hook), log = run.log }
        end
    end
    json.array(report.cases)
    return report
end

return M
