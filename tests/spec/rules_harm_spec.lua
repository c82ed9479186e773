-- Whatever promotion rules return, a quote stays a quote: thousands of carts through the sandbox and the real pipeline, with answers of
-- one to five rules made by chance, from the sensible to the hostile. No line, charge or order is below zero and the parts sum to the
-- whole; an answer with one bad operation counts for nothing at all; the same input and versions give the same bytes; the order of the
-- lines changes no figure.
local audit = require("kasma.audit")
local pricing = require("core.pricing")
local rules = require("core.rules")
local samples = require("modules.rules.samples")
local tests = require("modules.rules.tests")

local CASES = os.getenv("LONG") == "1" and 20000 or 2000
local TENANT = "rules-no-harm"

local WHOLE = { "1", "2", "7", "99", "100", "5000", "9999", "10000", "120000", "99999999", "9007199254740991" }
-- What no sensible rule says: each makes its whole answer count for nothing.
local BAD = { "0", "-1", "-5000", "0.5", "1e308", "2^53 * 4", "-2^53", "0/0", "1/0", "-1/0", "'5'", "true", "{}", "string",
    "function() end" }
local HARMFUL = {
    "{ op = 'line_percent' }", "{ op = 'steal', line_id = 'l1', amount = 5 }", "{}", "5", "'line_amount'", "false",
    "{ op = 'line_amount', line_id = 'nobody', amount = 5 }", "{ op = 'line_amount', line_id = 'l1', amount = 5, extra = 1 }",
    "{ op = 'order_amount', amount = 5, bps = 5 }", "{ op = 'line_percent', line_id = 'l1', bps = 10001 }",
    "{ op = 'gift_line', product_id = 'p1', qty = 11 }", "{ op = 'gift_line', product_id = 'p1', qty = 0 }",
    "{ op = 'line_amount', line_id = 1, amount = 5 }", "{ op = 1 }", "{ [1] = 'op' }",
    "{ op = 'line_percent', line_id = 'l1', bps = 5, units = 0 }",
    "{ op = 'order_percent', bps = 5000, line_ids = 'l1' }", "{ op = 'order_percent', bps = 5000, line_ids = { {} } }",
    "{ op = 'line_amount', line_id = 'l1', amount = 5, label = 5 }",
    "{ op = 'line_amount', line_id = 'l1', amount = 5, stackable = 'yes' }",
    "{ op = 'line_amount', line_id = 'l1', amount = 5, priority = 0.5 }",
}
local WHOLES_OF_HARM = { -- whole answers
    "return 5", "return 'x'", "return { operations = 5 }", "return { operations = { {} } }", "return { stolen = {} }",
    "local t = {} t.operations = t return t", "return { operations = { { op = 'line_amount', line_id = 'l1', amount = function() end } } }",
    "local o = {} for i = 1, 201 do o[i] = { op = 'order_amount', amount = 1 } end return { operations = o }",
    "error('no')", "error({})", "while true do end", "local s = 'x' while true do s = s .. s end",
    "local t = {} for i = 1, 40 do t = { t } end return { operations = t }", "return { operations = config, x = 1 }",
    "input.cart.lines[1].id = 'l99' return { operations = { { op = 'line_percent', line_id = 'l99', bps = 5 } } }",
}

-- A sensible operation as Lua text, on the lines of the cart.
local function sensible(chance, n)
    local function whole() return WHOLE[chance(#WHOLE)] end
    local function line() return ("'l%d'"):format(chance(n)) end
    local function some()
        local list = {}
        for i = 1, chance(3) do list[i] = line() end
        return "{ " .. table.concat(list, ", ") .. " }"
    end
    local units = chance(2) == 1 and ", units = " .. chance(400) or ""
    local what = chance(9)
    local text
    if what == 1 then text = ("op = 'line_percent', line_id = %s, bps = %d%s"):format(line(), chance(10000), units)
    elseif what == 2 then text = ("op = 'line_amount', line_id = %s, amount = %s"):format(line(), whole())
    elseif what == 3 then text = ("op = 'unit_amount', line_id = %s, amount = %s%s"):format(line(), whole(), units)
    elseif what == 4 then text = ("op = 'unit_price', line_id = %s, price = %s%s"):format(line(), whole(), units)
    elseif what == 5 then text = ("op = 'order_percent', bps = %d"):format(chance(10000))
    elseif what == 6 then text = ("op = 'order_amount', amount = %s"):format(whole())
    elseif what == 7 then text = ("op = 'shipping_percent', bps = %d"):format(chance(10000))
    elseif what == 8 then text = ("op = 'shipping_amount', amount = %s"):format(whole())
    else text = ("op = 'order_amount', amount = %s, line_ids = %s"):format(whole(), some()) end
    if (what == 5 or what == 6) and chance(3) == 1 then text = text .. ", max = " .. whole() end
    if what == 5 and chance(3) == 1 then text = text .. ", exclude_line_ids = " .. some() end
    if chance(2) == 1 then text = text .. ", stackable = " .. (chance(2) == 1 and "true" or "false") end
    if chance(4) == 1 then text = text .. ", priority = " .. (chance(2000) - 1000) end
    if chance(4) == 1 then text = text .. (", group = 'g%d'"):format(chance(2)) end
    return "{ " .. text .. ", label = 'x' }"
end

local function bad(chance)
    local value = BAD[chance(#BAD)]
    local what = chance(5)
    if what == 1 then return ("{ op = 'line_amount', line_id = 'l1', amount = %s }"):format(value) end
    if what == 2 then return ("{ op = 'order_percent', bps = %s }"):format(value) end
    if what == 3 then return ("{ op = 'unit_amount', line_id = 'l1', amount = 5, units = %s }"):format(value) end
    if what == 4 then return ("{ op = 'shipping_amount', amount = %s }"):format(value) end
    return HARMFUL[chance(#HARMFUL)]
end

-- A rule's text, and whether its answer may count.
local function rule(chance, n)
    local good, body = true
    if chance(8) == 1 then
        body, good = WHOLES_OF_HARM[chance(#WHOLES_OF_HARM)], false
    else
        local operations = {}
        for i = 1, chance(6) do operations[i] = sensible(chance, n) end
        if chance(3) == 1 then
            table.insert(operations, chance(#operations + 1), bad(chance))
            good = false
        end
        body = "return { operations = { " .. table.concat(operations, ", ") .. " } }"
    end
    return "return { hook = 'promotion', name = 'x', run = function(input, config) " .. body .. " end }", good
end

local function cart(chance)
    local lines = {}
    for i = 1, chance(7) do
        lines[i] = { id = "l" .. i, product_id = "p" .. i, sku = "s" .. i, qty = chance(6) == 1 and chance(300) or chance(5),
            price = chance(5) == 1 and chance(9) - 1 or chance(300) * 1000, weight_g = chance(900), requires_shipping = chance(4) > 1,
            category_ids = {}, tag_ids = {} }
    end
    return lines, { shipping = chance(3) == 1 and 0 or chance(40000), tax_ppm = chance(3) > 1 and chance(250000) or nil,
        inclusive = chance(2) == 1, currency = chance(4) == 1 and "USD" or nil, country = "VN" }
end

-- A quote without what is measured.
local function bytes(quote)
    local copy = {}
    for name, value in pairs(quote) do copy[name] = value end
    copy.rule_runs = nil
    return audit.canonical(copy)
end

local function essence(quote)
    local list = {}
    for _, l in ipairs(quote.lines) do
        list[#list + 1] = ("%s %s %s %s %s"):format(l.source_id or l.id, l.qty, l.net, l.discount, l.tax)
    end
    table.sort(list)
    return table.concat(list, "\n") .. ("\n%s %s %s"):format(quote.total, quote.tax, quote.shipping and quote.shipping.net or "-")
end

describe("no harm", function()
    it("comes of whatever rules return, in " .. CASES .. " carts", function()
        local chance = samples.chance(20261127)
        assert(rules.publish(TENANT, 1, {}))
        local base = assert(rules.pin(TENANT))
        local applied, refused, worth = 0, 0, 0
        for case = 1, CASES do
            local lines, o = cart(chance)
            local set, only, good, texts = base, base, {}, {}
            for i = 1, chance(5) do
                local text, may = rule(chance, #lines)
                local spec = { id = "r" .. i, rule_id = "r" .. i, hook = "promotion", number = i, priority = chance(200) - 100,
                    source = text, config = "{}" }
                set = assert(set:with(spec))
                if may then only = assert(only:with(spec)) end
                good["r" .. i], texts["r" .. i] = may, text
            end
            local quote, err = pricing.quote(samples.input(lines, o), set)
            local where = ("case %d: "):format(case)
            if not quote then
                -- Amounts near 2^53 may pass what money can be: the quote is refused as a whole, never priced wrong.
                assert.equal("limit", err.kind, where .. tostring(err.message))
            else
                local fault = tests.fault_of(quote)
                assert.is_nil(fault, where .. tostring(fault))
                assert.is_true(quote.tax >= 0 and quote.total >= 0 and quote.discount >= 0, where)
                for _, l in ipairs(quote.lines) do assert.is_true(l.tax >= 0 and l.unit >= 0 and l.qty > 0, where) end
                if quote.shipping then assert.is_true(quote.shipping.net >= 0 and quote.shipping.net <= quote.shipping.charge, where) end
                for _, run in ipairs(quote.rule_runs) do
                    if good[run.id] then
                        assert.equal("ok", run.outcome, where .. run.id .. ": " .. tostring(run.message))
                    else
                        assert.not_equal("ok", run.outcome, where .. run.id .. " " .. texts[run.id])
                        assert.equal(0, run.operations)
                        refused = refused + 1
                    end
                end
                for _, a in ipairs(quote.adjustments) do
                    assert.is_true(good[a.source_id] ~= false, where .. "an answer that counts for nothing gave " .. tostring(a.amount))
                    applied, worth = applied + 1, worth + a.amount
                end
                -- All or nothing: as if the bad ones were not there.
                assert.equal(essence(assert(pricing.quote(samples.input(lines, o), only))), essence(quote), where)
                assert.equal(bytes(quote), bytes(assert(pricing.quote(samples.input(lines, o), set))), where .. "other bytes")
                for i = #lines, 2, -1 do
                    local k = chance(i)
                    lines[i], lines[k] = lines[k], lines[i]
                end
                assert.equal(essence(quote), essence(assert(pricing.quote(samples.input(lines, o), set))), where .. "another order")
            end
        end
        print(("%d carts: %d adjustments applied, %d answers refused"):format(CASES, applied, refused))
        assert.is_true(applied > CASES / 2 and refused > CASES / 4 and worth > 0)
    end)
end)
