-- The rules that come with the product, each by its own tests; all promotions together can do no harm; the checker's findings.
local json = require("core.json")
local pricing = require("core.pricing")
local rules = require("core.rules")
local catalogue = require("kasma.hooks_catalogue")
local check = require("modules.rules.check")
local diff = require("modules.rules.diff")
local samples = require("modules.rules.samples")
local shipped = require("modules.rules.shipped")
local tests = require("modules.rules.tests")

local function config_of(entry)
    local plan = assert(tests.read(entry.tests, entry.key .. "_test.lua"))
    return plan.config
end

describe("shipped rules", function()
    for _, entry in ipairs(shipped.list()) do
        it(entry.key .. " passes its check and its tests", function()
            assert.is_true(entry.tests ~= "", "it has no tests")
            local report = check.run{ source = entry.source, id = entry.key:match("[^/]+$"), settings = { config = config_of(entry) },
                file = entry.file }
            assert.equal("[]", json.encode(report.diagnostics))
            local result, finding = tests.run{ spec = report.spec, hook = entry.hook, tests = entry.tests }
            assert.is_nil(finding)
            for _, c in ipairs(result.cases) do assert.is_true(c.ok, c.name .. ": " .. table.concat(c.diff, "; ")) end
            assert.is_true(result.passed > 0)
        end)
    end

    it("do no harm together: no line below zero, parts sum to the whole, the order of lines is no matter", function()
        local specs = {}
        for _, entry in ipairs(shipped.list()) do
            if entry.hook == "promotion" or entry.key == "tax/viet_nam" then
                specs[#specs + 1] = { id = entry.key:match("[^/]+$"), rule_id = entry.key, hook = entry.hook, number = 1,
                    source = entry.source,
                    priority = #specs, config = check.config_text(config_of(entry)) }
            end
        end
        assert(rules.publish("rules-harm", 1, specs))
        local set = assert(rules.pin("rules-harm"))
        assert.is_true(set:count("promotion") > 8)
        local names = { "oolong", "jasmine", "lotus", "mug", "DEMO" }
        local chance = samples.chance(20261127)
        local applied = 0
        for case = 1, 400 do
            local lines = {}
            for i, name in ipairs(names) do
                if chance(3) > 1 then
                    lines[#lines + 1] = { id = "l" .. i, product_id = name, sku = name, qty = chance(chance(10) == 1 and 200 or 8),
                        price = chance(4) == 1 and chance(9) or chance(300) * 1000, weight_g = chance(900), requires_shipping = true,
                        category_ids = { chance(2) == 1 and "tea" or "ware" }, tag_ids = {}, tax_class = chance(2) == 1 and "books" or nil }
                end
            end
            if #lines == 0 then lines[1] = { id = "l", product_id = "p", sku = "p", qty = 1, price = 1 } end
            local o = { at = ("2026-%02d-%02dT%02d:30"):format(chance(12), chance(28), chance(24) - 1), shipping = chance(40000) - 1,
                customer = chance(2) == 1 and { id = "u", first_order = chance(2) == 1, groups = { "vip" } } or nil,
                    inclusive = chance(2) == 1 }
            local function price() return assert(pricing.quote(samples.input(lines, o), set)) end
            local quote = price()
            assert.is_nil(tests.fault_of(quote), "case " .. case)
            applied = applied + #quote.adjustments
            for _, run in ipairs(quote.rule_runs) do assert.equal("ok", run.outcome, run.id .. ": " .. tostring(run.message)) end
            assert.equal(json.encode(quote.lines), json.encode(price().lines))
            local by_id = {}
            for _, l in ipairs(quote.lines) do by_id[l.id] = l.net .. "/" .. l.tax end
            for i = #lines, 2, -1 do
                local k = chance(i)
                lines[i], lines[k] = lines[k], lines[i]
            end
            local other = price()
            assert.equal(quote.total, other.total, "case " .. case)
            for _, l in ipairs(other.lines) do assert.equal(by_id[l.id], l.net .. "/" .. l.tax, "case " .. case) end
        end
        assert.is_true(applied > 400)
        assert(rules.publish("rules-harm", 2, {}))
    end)
end)

describe("the checker", function()
    local function findings(source, settings)
        local out = {}
        for _, d in ipairs(check.run{ source = source, settings = settings, file = "x.lua" }.diagnostics) do
            out[#out + 1] = ("%s:%s:%s"):format(d.code, d.line or "-", d.column or "-")
        end
        return table.concat(out, " ")
    end

    local function rule(body) return "return { hook = \"promotion\", name = \"x\", run = function(input, config)\n" .. body .. "\nend }" end

    it("finds what does not exist, with line and column", function()
        assert.equal("forbidden_global:2:11", findings(rule("local t = os.time()")))
        assert.equal("undefined_global:2:1", findings(rule("prnt(1)")))
        assert.equal("forbidden_global:2:1", findings(rule("total = 5")))
        assert.equal("undefined_global:2:20", findings(rule("return nil, string.dump")))
        assert.equal("unknown_field:2:19", findings(rule("return input.cart.lnes")))
        assert.equal("undefined_global:3:8", findings(rule("local function f()\nreturn nope() end")))
        assert.equal("", findings(rule("return nil, text.fold('X')")))
    end)

    it("finds syntax, manifests and configs that are wrong", function()
        assert.equal("syntax:2:-", findings("return {\nname = = 1 }"))
        assert.equal("syntax:-:-", findings("\27LJ\2\10"))
        assert.equal("syntax:-:-", findings(("-"):rep(65537)))
        assert.equal("manifest_field:-:-", findings("return { hook = 'promotoin', name = 'x', run = function() end }"))
        assert.equal("manifest_field", findings("return { hook = 'promotion', run = function() end }"):match("^[%l_]+"))
        assert.equal("limit_instructions:1", findings("while true do end"):match("^[%l_]+:%d"))
        local with = "return { hook = \"promotion\", name = \"x\", run = function() end,\n"
            .. "config = schema.object{ n = schema.integer{ max = 5 } } }"
        assert.equal("config_invalid", findings(with, { config = { n = 6 } }):match("^[%l_]+"))
        assert.equal("", findings(with, { config = { n = 5 } }))
    end)

    it("warns of a rule that comes near its budget", function()
        local report = check.run{ source = rule("for i = 1, 60000 do local x = i end") }
        assert.same({ true, "slow_sample", "warning" }, { report.ok, report.diagnostics[1].code, report.diagnostics[1].severity })
    end)
end)

describe("the checker's coverage", function()
    local examine = require("modules.rules.examine")
    local SOURCE = [[
return { hook = "promotion", name = "x", run = function(input, config)
  local line = input.cart.lines[1]
  if line.qty == 4321 then
    log("never")
    return { operations = {
      { op = "line_percent", line_id = line.id, bps = 5 } } }
  end
  line.unit = 0
  local function helper()
    return 1
  end
  return nil, "nothing"
end }]]

    local function findings(beside)
        local out = {}
        for _, d in ipairs(examine.check_all("rules-coverage", { source = SOURCE, key = "x", tests = beside }).diagnostics) do
            out[#out + 1] = ("%s:%s:%s:%s"):format(d.severity, d.code, d.line or "-", d.lastLine or "-")
        end
        return table.concat(out, " ")
    end

    it("names the lines that no sample reached, and what is overwritten", function()
        assert.equal("warning:readonly:8:- info:not_covered:4:6 info:not_covered:10:10", findings(""))
    end)

    it("counts tests, and tells of those that fail", function()
        local function with(expect)
            return ("return { prices = { a = 5 }, tests = { { name = 't', given = { cart = { a = 4321 } }, expect = { %s } } } }")
                :format(expect)
        end
        assert.equal("warning:readonly:8:- info:not_covered:10:10", findings(with("log = 'never'")))
        assert.equal("warning:readonly:8:- error:test_failed:-:- info:not_covered:10:10", findings(with("log = 'ever and ever'")))
    end)

    it("is nothing that other runs pay for or see", function()
        local base = assert(rules.pin("rules-coverage"))
        local set = assert(base:with{ id = "x", hook = "promotion", source = SOURCE })
        rules.cover("x")
        local before = pricing.quote(samples.input({ { id = "l", product_id = "p", qty = 1, price = 100 } }, {}), set).rule_runs[1]
        rules.cover(nil)
        assert.is_true(rules.covered(8))
        assert.is_false(rules.covered(4))
        local after = pricing.quote(samples.input({ { id = "l", product_id = "p", qty = 1, price = 100 } }, {}), set).rule_runs[1]
        assert.equal(before.instructions, after.instructions)
        assert.same({ "ok", "ok" }, { before.outcome, after.outcome })
    end)
end)

describe("what is told of overwriting", function()
    local check_input = require("modules.rules.check_input")

    it("follows names through assignments and loops, and is silent about copies", function()
        local source = [==[
return { hook = "x", run = function(input, config)
  input.cart.net = 5
  local c = input.cart
  c.net = 1 c["net"] = 2
  for _, line in ipairs(c.lines) do line.unit = 0 local u = line.unit u = 3 end
  for i = 1, #c.lines do local l = c.lines[i] l.unit = l.unit - 1 end
  local out = { unit = 5, net = 2 } out.unit = 4
  local s = "input.cart.net = 4" -- input.cart.net = 4
  --[[ input.cart.net = 5
  ]] if c.net == 5 then c.mine = 5 end
  local x = c.net + 1
  local copy = { lines = c.lines }
  copy.lines = nil
  c.lines[1].unit = 5
end }]==]
        local out = {}
        for i, f in ipairs(check_input.overwritten(source, catalogue.get("promotion").input)) do
            out[i] = ("%d:%d %s"):format(f.line, f.column, f.field)
        end
        assert.same({ "2:14 net", "4:5 net", "4:15 net", "5:42 unit", "6:49 unit", "14:14 unit" }, out)
    end)

    it("follows what a function of the file is handed, and what that hands on", function()
        local source = [==[
local function cheap(out, line) line.unit = 0 out.unit = 1 end
local each = function(lines, fn)
  for _, l in ipairs(lines) do cheap({}, l) if l.qty > 1 then l.qty = 1 end end
end
local function mine(line) line.unit = 5 end
local function twice(line) line.unit = 5 end
local function twice(line) line.net = 5 end
local function never(cart) cart.net = 1 end
return { hook = "x", run = function(input)
  each(input.cart.lines, mine)
  mine({ unit = 3 })
  mine(input.cart.lines[1].unit + 1)
  twice(input.cart.lines[1])
  each(input.cart.lines, cheap)
end }]==]
        local out = {}
        for i, f in ipairs(check_input.overwritten(source, catalogue.get("promotion").input)) do
            out[i] = ("%d:%d %s"):format(f.line, f.column, f.field)
        end
        assert.same({ "1:38 unit", "3:65 qty" }, out)
    end)

    it("comes to an end for any text", function()
        local chance = samples.chance(7)
        local words = { "input", ".", "cart", "[", "]", "=", "local", "for", "in", "ipairs", "(", ")", "\"", "'", "--", "[[", "]]", "\n",
            "run", "function", "{", "}", "end", "if", "do", "until", "f", "f", "(", "(",
            "input", "--[==[", "]==]", "5", "\\", "..", "x", ",", "lines" }
        for _ = 1, 2000 do
            local text = {}
            for i = 1, chance(40) do text[i] = words[chance(#words)] end
            check_input.overwritten(table.concat(text, chance(2) == 1 and " " or ""), catalogue.get("promotion").input)
        end
    end)
end)

describe("answers of hooks", function()
    it("are checked as a whole, with the path of the fault", function()
        local function why(hook, value) return select(2, catalogue.check(catalogue.get(hook).output, value)) end
        assert.is_nil(why("auth.login_policy", { otp = "always" }))
        assert.equal("result.otp: one of always, skip, totp is expected", why("auth.login_policy", { otp = "sometimes" }))
        assert.equal("result.colour: is not known here", why("auth.login_policy", { colour = "red" }))
        assert.equal("result.allow: is missing", why("refund.policy", {}))
        assert.equal("result[2].qty: 1.5 is not an integer; use money.pct or math.floor", why("stock.allocate", {
            { line = "a", warehouse = "w", qty = 1 }, { line = "b", warehouse = "w", qty = 1.5 } }))
        assert.equal("result: must be from 300 to 7200", why("stock.reservation_ttl", 5))
        assert.is_nil(why("loyalty.earn", { multiplier_pct = 100 }))
    end)

    it("have a JSON Schema and samples for every hook", function()
        for _, name in ipairs(catalogue.names()) do
            local hook = catalogue.get(name)
            assert.equal("object", catalogue.json_schema(hook.input).type)
            assert.is_string(json.encode(catalogue.json_schema(hook.output)))
            assert.is_true(hook.summary ~= "" and hook.absent ~= "")
        end
    end)
end)

describe("differences", function()
    it("name the lines that changed", function()
        local changes = diff.lines("a\nb\nc\nd", "a\nx\nc\nd\ne")
        assert.same({ "del b", "add x", "add e" }, (function()
            local out = {}
            for i, c in ipairs(changes) do out[i] = c.op .. " " .. c.line end
            return out
        end)())
        assert.equal("", diff.unified(diff.lines("a", "a"), "f"))
    end)
end)
