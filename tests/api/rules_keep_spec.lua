-- What a server keeps, from the command line: a run that becomes a test, workflows that are tried again, secrets.
local json = require("core.json")
local support = require("api.support")
local shop_of = require("api.shop")
local command = require("api.rules_command")

local must = shop_of.must
local URL = os.getenv("TEST_URL")

local function source(body)
    return "return { hook = \"promotion\", name = \"Rule\", config = schema.object{ bps = schema.bps{ default = 1000 } },\n"
        .. "  run = function(input, config)\n" .. body .. "\n  end }\n"
end

local FAILS = source("    local l = input.cart.lines[1]\n    if l.qty == 77 then error(\"no 77\") end\n"
    .. "    return { operations = { { op = \"line_percent\", line_id = l.id, bps = config.bps } } }")

describe("a run that failed", function()
    local shop, product, dir, key, run

    local function rules(...) return command.run({ dir = dir, env = { KASMA_URL = URL, KASMA_KEY = key } }, { "rules", ... }) end
    local function post(path, body) return shop.owner:post("/rules/" .. path, body) end

    setup(function()
        shop, product = shop_of.simple(0, { trackInventory = false })
        dir, key = command.folder(), command.key(shop)
        must(post("create", { key = "picky", hook = "promotion", name = "Rule", source = FAILS, settings = { config = { bps = 2000 } } }))
        must(post("picky/publish", { revision = 1, note = "go" }))
        must(shop_of.buyer(shop, product, 77):post("/sales/cart/quote", { shippingAddress = { country = "VN", city = "Hanoi",
            street = "1 Trang Tien" } }))
        run = support.eventually(function()
            local list = must(shop.owner:get("/rules/picky/runs?outcome=failed"), 200)
            return list[1] and must(shop.owner:get("/rules/runs/" .. list[1].id), 200).input ~= json.null and list[1]
        end)
    end)
    teardown(function() os.execute("rm -rf " .. command.quoted(dir)) end)

    it("is kept with what the cart was, and no street, and can be replayed through the draft", function()
        local kept = must(shop.owner:get("/rules/runs/" .. run.id), 200)
        local quote = kept.input.quote
        assert.same({ 77, 100000, "VN" }, { quote.lines[1].qty, quote.lines[1].price, quote.address.country })
        assert.is_nil(json.encode(kept.input):find("Trang Tien", 1, true))
        local status, out = rules("replay", run.id)
        assert.equal(0, status)
        assert.truthy(out:find("before  error  total 7,700,000  ", 1, true) and out:find("the same", 1, true), out)
        local draft = must(shop.owner:get("/rules/picky/draft"), 200).draft
        must(post("picky/draft", { revision = draft.revision, source = (FAILS:gsub("error%(\"no 77\"%)", "l = l")) }))
        status, out = rules("replay", run.id)
        assert.equal(1, status)
        assert.truthy(out:find("after   ok  total 6,160,000", 1, true), out)
    end)

    it("becomes a test that fails until the rule is mended", function()
        command.save(dir .. "/picky.lua", FAILS)
        local status, out, said = rules("capture", run.id)
        assert.equal(0, status, said)
        assert.truthy(out:find("picky_test.lua", 1, true), out)
        assert.truthy(command.read(dir .. "/picky_test.lua"):find("from_run = \"" .. run.id .. "\"", 1, true))
        status, out = rules("test", "picky.lua")
        assert.equal(1, status)
        assert.truthy(out:find("runtime_error at line 4: .*no 77"), out)
        command.save(dir .. "/picky.lua", (FAILS:gsub("error%(\"no 77\"%)", "return nil, \"not for 77\"")))
        assert.equal(0, (rules("test", "picky.lua")))
        assert.equal(2, (rules("capture", run.id)))
    end)

    it("goes to the head of the tests that are there already, or says that it cannot", function()
        command.save(dir .. "/picky_test.lua", "local case = { name = \"one\", given = { cart = { a = 1 } } }\nreturn {\n"
            .. "    prices = { a = 1000 },\n    tests = { case },\n}\n")
        assert.equal(0, (rules("capture", run.id)))
        assert.truthy(select(2, rules("test", "picky.lua")):find("ok 2  failed 0", 1, true))
        command.save(dir .. "/picky_test.lua", "local made = {}\nreturn { tests = made }\n")
        local status, out = rules("capture", run.id)
        assert.equal(2, status)
        assert.truthy(out:find("from_run", 1, true))
        assert.equal("local made = {}\nreturn { tests = made }\n", command.read(dir .. "/picky_test.lua"))
    end)

    it("can be named alone in tests of the server that keeps it, by its own shop and rule", function()
        local tests = ("return { tests = { { name = \"kept\", from_run = %q, expect = { error = \"runtime_error\" } } } }"):format(run.id)
        local report = must(post("picky/test", { version = 1, tests = tests }))
        assert.same({ 1, 0 }, { report.passed, report.failed })
        local other = support.tenant{}
        must(other.owner:post("/rules/create", { key = "picky", hook = "promotion", name = "Rule", source = FAILS }))
        local theirs = must(other.owner:post("/rules/picky/test", { tests = tests }))
        assert.same({ 0, 1 }, { theirs.passed, theirs.failed })
        assert.truthy(theirs.cases[1].diff[1]:find("is not kept here", 1, true))
    end)

    it("is nothing to another key", function()
        local other = support.tenant{}
        local o = { dir = dir, env = { KASMA_URL = URL, KASMA_KEY = command.key(other) } }
        assert.equal(1, (command.run(o, { "rules", "capture", run.id })))
        assert.equal(1, (command.run(o, { "rules", "replay", run.id })))
    end)
end)

describe("a test of a rule", function()
    it("compares operations word by word", function()
        local dir = command.folder()
        command.save(dir .. "/exact.lua", source("    return { operations = { { op = \"line_percent\", line_id = input.cart.lines[1].id,"
            .. " bps = config.bps, label = \"Tea\" } } }"))
        local function try(expect)
            command.save(dir .. "/exact_test.lua", "return { config = { bps = 500 }, prices = { tea = 1000 }, tests = { { name = \"exact\","
                .. " given = { cart = { tea = 1 } }, expect = { operations = " .. expect .. " } } } }\n")
            return command.run({ dir = dir }, { "rules", "test", "exact.lua" })
        end
        assert.equal(0, (try("{ { op = \"line_percent\", line_id = \"tea\", bps = 500, label = \"Tea\" } }")))
        local status, out = try("{ { op = \"line_percent\", line_id = \"tea\", bps = 500 } }")
        assert.equal(1, status)
        assert.truthy(out:find("operations: expected", 1, true), out)
        assert.equal(1, (try("{}")))
        os.execute("rm -rf " .. command.quoted(dir))
    end)
end)

describe("kasma rules secrets", function()
    it("takes a value from standard input alone, and shows none", function()
        local shop, dir = support.tenant{}, command.folder()
        local o = { dir = dir, env = { KASMA_URL = URL, KASMA_KEY = command.key(shop) }, input = "s3cret-value\n" }
        local status, out, said = command.run(o, { "rules", "secrets", "set", "crm_token" })
        assert.equal(0, status, said)
        assert.is_nil((out .. said):find("s3cret", 1, true))
        assert.equal(2, (command.run(o, { "rules", "secrets", "set", "crm_token", "s3cret-value" })))
        o.input = nil
        assert.equal(2, (command.run(o, { "rules", "secrets", "set", "other" })))
        status, out = command.run(o, { "rules", "secrets", "list" })
        assert.equal(0, status)
        assert.truthy(out:find("^crm_token "), out)
        assert.equal(0, (command.run(o, { "rules", "secrets", "remove", "crm_token" })))
        assert.equal(1, (command.run(o, { "rules", "secrets", "remove", "crm_token" })))
        assert.truthy(select(2, command.run(o, { "rules", "secrets", "list" })):find("no secrets", 1, true))
        os.execute("rm -rf " .. command.quoted(dir))
    end)
end)

describe("kasma rules workflows", function()
    it("shows runs with their steps, and tries again or undoes what failed", function()
        local shop, product = shop_of.simple(0, { trackInventory = false })
        local dir = command.folder()
        local o = { dir = dir, env = { KASMA_URL = URL, KASMA_KEY = command.key(shop) } }
        must(shop.owner:post("/rules/create", { key = "flow", hook = "workflow", name = "Flow", source = [[
return { hook = "workflow", name = "Flow", on = { "order.placed" }, steps = {
  { name = "first", run = function(input) return { n = 1 } end },
  { name = "second", run = function(input) error("not yet") end },
} }
]] }))
        must(shop.owner:post("/rules/flow/publish", { revision = 1, note = "go" }))
        assert.truthy(select(2, command.run(o, { "rules", "workflows", "flow" })):find("no workflows", 1, true))
        must(shop_of.checkout(shop_of.buyer(shop, product, 1), { paymentMethod = "COD" }))
        local id
        support.eventually(function()
            local list = must(shop.owner:get("/rules/flow/workflows"), 200)
            id = list[1] and list[1].id
            return list[1] and list[1].state == "failed"
        end, 30)
        local status, out = command.run(o, { "rules", "workflows", "flow", "--state", "failed" })
        assert.equal(0, status)
        assert.truthy(out:find(id, 1, true) == 1 and out:find("  v1  failed +order%.placed"), out)
        assert.truthy(out:find("second +run +failed") and out:find("not yet", 1, true), out)
        assert.equal(2, (command.run(o, { "rules", "workflows", "flow", "retry", id })))
        local again, _, said = command.run(o, { "rules", "workflows", "flow", "retry", id, "-m", "again" })
        assert.equal(0, again, said)
        support.eventually(function() return must(shop.owner:get("/rules/flow/workflows"), 200)[1].state == "failed" end, 30)
        assert.equal(0, (command.run(o, { "rules", "workflows", "flow", "cancel", id, "-m", "enough" })))
        support.eventually(function()
            local state = must(shop.owner:get("/rules/flow/workflows"), 200)[1].state
            return state == "cancelled" or state == "undone"
        end, 30)
        assert.equal(4, (command.run(o, { "rules", "workflows", "flow", "retry", id, "-m", "too late" })))
        os.execute("rm -rf " .. command.quoted(dir))
    end)
end)
