-- Stored orders and a preview over them, for bench/run: kasma lua bench/preview.lua setup|start|state ID|stop ID
local time = require("core.time")
local uuid = require("core.uuid")
local db = require("kasma.db")
local preview = require("modules.rules.preview")
local service = require("modules.rules.service")
local store = require("modules.rules.store")

local ORDERS = 5000
local scope = { tenant = "demo", app = "demo", actor_kind = "user", actor_id = uuid.v7() }
local command, id = ...

local function order(n)
    local lines = {}
    for i = 1, 1 + n % 5 do
        lines[i] = { id = "l" .. i, product_id = uuid.v7(), sku = ("SKU-%04d"):format(n % 50 + i), qty = 1 + (n + i) % 3,
            price = 10000 * (1 + (n + i) % 20), weight_g = 100, requires_shipping = true, purchase_type = "one_time",
            category_ids = { uuid.v7() }, tag_ids = {} }
    end
    local now = time.now()
    return store.insert_snapshot{ tenant_key = scope.tenant, app_key = scope.app, id = uuid.v7(), order_id = uuid.v7(),
        order_number = ("BENCH-%05d"):format(n), currency = "VND", total_minor = 0, result = {}, rules = {}, now = time.iso(now),
        input = { at = now, lines = lines, guest = true, address = { country = "VN" }, customer = {} } }
end

if command == "setup" then
    for first = 1, ORDERS, 100 do
        local statements = {}
        for n = first, first + 99 do statements[#statements + 1] = order(n) end
        db.pipeline(scope.tenant, statements)
    end
    service.create(scope, { key = "bench-half", hook = "promotion", name = "Half off the first line", source = [[
return { hook = "promotion", name = "Half off the first line", run = function(input)
    return { operations = { { op = "line_percent", line_id = input.cart.lines[1].id, bps = 5000, label = "Half" } } }
end }]] })
elseif command == "start" then
    local status, answer = preview.run(scope, "bench-half", { orders = { last = ORDERS } })
    assert(status == 202, "the preview did not become a job")
    print(answer.previewId)
elseif command == "state" then
    local row = store.preview(scope.tenant, id)
    print(row.state, row.done)
else
    store.cancel_preview(scope.tenant, id, time.iso(time.now()))
end
