-- What the bench serves beside the product: the product's own boot, and routes that do a peer's work and nothing more.
package.path = debug.getinfo(1, "S").source:match("^@(.*)/lua/bench/") .. "/peers/?.lua;" .. package.path
local boot = require("kasma.boot")
local json = require("core.json")
local pg = require("core.pg")
local pricing = require("core.pricing")
local redis = require("core.redis")
local server = require("core.server")

local headers = { ["Content-Type"] = "application/json; charset=utf-8" }

local function echo(req)
    req:respond_json(200, headers, assert(req:json()))
end

local function get_redis(req)
    local value, err = redis.call("GET", "bench:key")
    if not value then return req:respond(503, headers, json.encode(err)) end
    req:respond(200, headers, json.encode({ value = value }))
end

-- A cart priced with five rules in the sandbox: the whole pipeline, whose answer must be the peers'.
local rule_set, ask

local function open_rules()
    local rules = require("core.rules")
    local check = require("modules.rules.check")
    local shipped = require("modules.rules.shipped")
    local specs = {}
    for i, one in ipairs(require("rules").FIVE) do
        specs[i] = { id = one.key, rule_id = one.key, hook = "promotion", number = 1, source = shipped.find(one.key).source, priority = -i,
            config = check.config_text(one.config) }
    end
    assert(rules.publish("bench-rules", 1, specs))
    rule_set = assert(rules.pin("bench-rules"))
    ask = require("modules.rules.samples").input({}, { customer = { id = "u" }, shipping = 0 })
end

local function price(req)
    local cart = assert(req:json())
    if not rule_set then open_rules() end
    for _, line in ipairs(cart.lines) do line.requires_shipping = true end
    ask.lines, ask.customer.id, ask.customer.groups = cart.lines, cart.customer, { cart.group }
    ask.shipping.place.country, ask.shipping.methods[1].base = cart.country, cart.shipping
    local quote = assert(pricing.quote(ask, rule_set))
    local adjustments = {}
    for i, a in ipairs(quote.adjustments) do adjustments[i] = { rule = a.source_id, amount = a.amount } end
    req:respond_json(200, headers, { adjustments = adjustments, total = quote.total })
end

-- A quote of a stored order, by the service that carts use.
local asked

local function quote_order(req)
    local scope = { tenant = "demo", app = "demo", actor_kind = "system" }
    if not asked then
        local store = require("modules.rules.store")
        local input = store.snapshots(scope.tenant, nil, nil, nil, 1)[1].input
        asked = { lines = input.lines, customer = input.customer, address = { country = input.address.country }, owner = {} }
        for _, line in ipairs(asked.lines) do
            for name, value in pairs(line) do if value == json.null then line[name] = nil end end
        end
    end
    local quote = require("modules.pricing.service").quote(scope, { lines = asked.lines, customer = asked.customer,
        address = asked.address, owner = asked.owner })
    req:respond_json(200, headers, { total = quote.total })
end

local app

local function get_postgres(req)
    app = app or pg.pool("app")
    local rows, err = app:read("MASTER", "select v from bench_kv where tenant_key = $1 and k = $2", "MASTER", math.random(1, 1000))
    if not rows then return req:respond(503, headers, json.encode(err)) end
    req:respond(200, headers, json.encode({ value = rows[1].v }))
end

local M = {}

---@param role string
function M.start(role)
    boot.start(role)
    server.route("POST", "/bench/echo", echo)
    server.route("POST", "/bench/price", price)
    server.route("GET", "/bench/quote", quote_order)
    server.route("GET", "/bench/redis", get_redis)
    server.route("GET", "/bench/postgres", get_postgres)
end

return M
