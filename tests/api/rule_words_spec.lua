-- What rules say in their own words: cut within a character, with a NUL, longer than is kept. It is kept as text, and neither a sale nor
-- a workflow fails because of it.
local support = require("api.support")
local shop_of = require("api.shop")
local flow = require("api.flow")

local must, post = shop_of.must, flow.post

local function publish(shop, key, hook, source)
    must(post(shop.owner, "create", { key = key, hook = hook, name = key, source = source }))
    must(post(shop.owner, key .. "/publish", { revision = 1, note = "go" }))
end

local function promotion(body)
    return "return { hook = \"promotion\", name = \"P\", run = function(input) local four = input.cart.lines[1].qty == 4 " .. body
        .. " end }"
end

local function failure(shop, key)
    return support.eventually(function() return must(shop.owner:get("/rules/" .. key .. "/failures"), 200)[1] end)
end

local TENTH = "return { operations = { { op = \"order_percent\", bps = 1000, label = %s } } }"

describe("what a promotion says", function()
    -- Without the words the price is 360000 for four.
    local cases = {
        { "reason", [[return nil, ("tr\195\160"):sub(1, 3)]], 400000 },
        { "log", [[log("a\0b", ("tr\195\160"):sub(1, 3)) ]] .. TENTH:format([["Tenth"]]), 360000 },
        { "label", TENTH:format([[four and ("tr\195\160"):sub(1, 3) or "Tenth"]]), 400000, "is no UTF-8" },
        { "nul", TENTH:format([[four and "a\0b" or "Tenth"]]), 400000, "is no UTF-8" },
        { "long", [[if four then error("x" .. ("\195\169"):rep(400)) end ]] .. TENTH:format([["Tenth"]]), 400000, "x\195\169" },
        { "error", [[if four then error(("tr\195\160"):sub(1, 3)) end ]] .. TENTH:format([["Tenth"]]), 400000, "tr\239\191\189" },
    }
    for _, case in ipairs(cases) do
        it("keeps nobody from buying: " .. case[1], function()
            local shop, product = shop_of.simple(0, { trackInventory = false })
            publish(shop, case[1], "promotion", promotion(case[2]))
            local buyer = shop_of.buyer(shop, product, 4)
            assert.equal(case[3], must(buyer:post("/sales/cart/quote", { shippingAddress = { country = "VN" } })).totalMinor)
            assert.equal(case[3], must(shop_of.checkout(buyer, { paymentMethod = "COD" })).orders[1].totalAmount)
            if case[4] then assert.is_truthy(failure(shop, case[1]).message:find(case[4], 1, true)) end
        end)
    end
end)

describe("what a step of a workflow says", function()
    local function ran(steps)
        local shop = support.tenant()
        publish(shop, "words", "workflow", "return { hook = \"workflow\", name = \"W\", on = { \"custom.go\" }, steps = {" .. steps
            .. "} }")
        flow.emit(shop, "custom.go", "x")
        return shop, flow.run_in(shop, "words", "x", steps:find("error", 1, true) and "failed" or "done")
    end

    it("in its log is kept", function()
        local _, run = ran([[{ name = "a", run = function() log("a\0b", ("tr\195\160"):sub(1, 3)) end }]])
        assert.same({ 1, "a\239\191\189b tr\239\191\189\n" }, { #run.steps, run.steps[1].log })
    end)

    it("when it fails is told, cut between characters", function()
        local shop, run = ran([[{ name = "a", run = function() error("x" .. ("\195\169"):rep(400) .. "\255") end }]])
        assert.equal("x" .. ("\195\169"):rep(400) .. "\239\191\189", run.steps[1].error.message)
        assert.equal("x" .. ("\195\169"):rep(249), failure(shop, "words").message)
    end)

    it("in its state may hold no NUL: the step fails once, and is not run again and again", function()
        local shop = support.tenant()
        publish(shop, "nul", "workflow", [[return { hook = "workflow", name = "W", on = { "custom.go" }, steps = {
            { name = "a", run = function() return { list = { "a\0b" } } end } } }]])
        flow.emit(shop, "custom.go", "x")
        local run = flow.run_in(shop, "nul", "x", "failed")
        assert.same({ 1, "state: a text holds a NUL" }, { #run.steps, run.steps[1].error.message })
    end)
end)

describe("a client that calls itself by odd bytes", function()
    it("signs in as any other", function()
        local shop = support.tenant()
        for _, agent in ipairs{ "\255\254", "x" .. ("\195\169"):rep(400) } do
            local user = shop.owner.user
            local answer = support.guest(shop):post("/auth/login", { identifier = user.email, password = user.password },
                { ["User-Agent"] = agent })
            must(answer, 200)
        end
    end)
end)
