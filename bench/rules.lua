-- Rules: what five of them cost over a cart of ten lines, what a fresh state costs, and what a thousand tenants hold. Run by
-- bench/run, or by hand: kasma lua bench/rules.lua. Prints one JSON object.
--
-- The peer is the same five rules as trusted Lua in this process (bench/peers/rules.lua), with the JIT and without.
package.path = debug.getinfo(1, "S").source:match("^@(.*)/") .. "/peers/?.lua;" .. package.path
local json = require("core.json")
local pricing = require("core.pricing")
local rules = require("core.rules")
local peer = require("rules")
local check = require("modules.rules.check")
local samples = require("modules.rules.samples")
local shipped = require("modules.rules.shipped")

local ROOT = debug.getinfo(1, "S").source:match("^@(.*)/") .. "/.."

local function specs()
    local list = {}
    for i, one in ipairs(peer.FIVE) do
        local entry = shipped.find(one.key)
        list[i] = { id = one.key, rule_id = one.key, hook = "promotion", number = 1, source = entry.source, priority = -i,
            config = check.config_text(one.config) }
    end
    return list
end

local cart = peer.cart()
local lines = {}
for i, line in ipairs(cart.lines) do
    lines[i] = line
    lines[i].requires_shipping, lines[i].tag_ids = true, {}
end
local input = samples.input(lines, { customer = { id = "u", groups = { "vip" } }, shipping = 30000 })

-- The CPU time of this process, which nothing else on the machine adds to.
local function cpu_us() return os.clock() * 1e6 end

-- Microseconds a call: the best of several rounds, which is the one that nothing else disturbed.
local function measure(fn, n)
    for _ = 1, math.min(n, 200) do fn() end
    local best = math.huge
    local some = math.max(1, math.floor(n / 30))
    for _ = 1, 120 do
        local began = cpu_us()
        for _ = 1, some do fn() end
        best = math.min(best, (cpu_us() - began) / some)
    end
    return best
end

assert(rules.publish("bench-rules", 1, specs()))
local set = assert(rules.pin("bench-rules"))
local checked = assert(pricing.quote(input, set))
for _, run in ipairs(checked.rule_runs) do assert(run.outcome == "ok", run.id .. ": " .. tostring(run.message)) end

local bare = measure(function() pricing.quote(input) end, 3000)
local ruled = measure(function() pricing.quote(input, set) end, 3000)
-- What the rules' operations make the pipeline do is not the rules' cost: five that look at every line and answer nothing.
local looking = {}
for i = 1, 5 do
    looking[i] = { id = "look-" .. i, rule_id = "look-" .. i, hook = "promotion", number = 1, config = "{\"sku\":\"none\"}", priority = -i,
        source = [[return { hook = "promotion", name = "Look", config = schema.object{ sku = schema.string }, run = function(input, config)
            for _, line in ipairs(input.cart.lines) do
                if line.sku == config.sku and line.qty > 2 and line.net > 0 and not line.is_gift then return {} end
            end
            return nil, "nothing"
        end }]] }
end
assert(rules.publish("bench-looking", 1, looking))
local looked = assert(rules.pin("bench-looking"))
local idle = measure(function() pricing.quote(input, looked) end, 3000)
-- And the runs' own time, with the input, the answer and its check.
local inside = math.huge
for _ = 1, 500 do
    local sum = 0
    for _, run in ipairs(pricing.quote(input, set).rule_runs) do sum = sum + run.micros end
    inside = math.min(inside, sum)
end

-- The peer ------------------------------------------------------------------------------------------------------------------------

local trusted = peer.load(ROOT)
local answer = peer.price(trusted, cart)
assert(answer.total == checked.total, "the peer has another total")
for i, one in ipairs(answer.adjustments) do
    local found
    for _, a in ipairs(checked.adjustments) do found = found or a.source_id == one.rule and a.amount == one.amount end
    assert(found, "the peer has another amount for " .. one.rule .. " (" .. i .. ")")
end
local function run_trusted() peer.price(trusted, cart) end
local trusted_jit = measure(run_trusted, 3000)
local jit = require("jit")
jit.off(true, true)
jit.off(peer.price, true)
for _, t in ipairs(trusted) do jit.off(t.run, true) end
jit.off(run_trusted, true)
jit.off()
jit.flush()
local trusted_plain = measure(run_trusted, 3000)

-- States --------------------------------------------------------------------------------------------------------------------------

local function resident()
    local file = assert(io.open("/proc/self/status"))
    local kib = tonumber(file:read("*a"):match("VmRSS:%s+(%d+)"))
    file:close()
    return kib
end

local one = { specs()[1] }
local n = 1000
local function publish(prefix, list)
    local sets = {}
    for i = 1, n do
        local key = prefix .. i
        assert(rules.publish(key, 1, list))
        sets[i] = assert(rules.pin(key))
    end
    return sets
end
local before = resident()
local began = cpu_us()
local made = publish("bench-tenant-", one)
local published = (cpu_us() - began) / n
began = cpu_us()
for i = 1, n do pricing.quote(input, made[i]) end
local first = (cpu_us() - began) / n
local after = resident()
local state_bytes = made[1]:memory()
-- A state with a rule that says one thing: made, the rule loaded (its text is known by then) and run.
local plain = publish("bench-plain-", { { id = "plain", rule_id = "plain", hook = "promotion", number = 1, priority = 1, config = "{}",
    source = 'return { hook = "promotion", name = "Plain", run = function(input) return nil, input.a end }' } })
local given = { a = "a reason" }
began = cpu_us()
for i = 1, n do assert(select(2, plain[i]:run(1, given)).reason == "a reason") end
local plain_us = (cpu_us() - began) / n - measure(function() plain[1]:run(1, given) end, 2000)

print(json.encode{
    quote_us = bare, quote_5_rules_us = ruled, rules_and_their_discounts_us = ruled - bare,
    looking_rules_us = idle - bare, runs_us = inside, trusted_jit_us = trusted_jit,
    trusted_nojit_us = trusted_plain, made_us = plain_us, state_us = first - measure(function() pricing.quote(input, made[1]) end, 2000),
    state_kib = state_bytes / 1024, publish_us = published, tenants = n, tenants_mib = (after - before) / 1024,
    tenant_kib = (after - before) / n,
})
