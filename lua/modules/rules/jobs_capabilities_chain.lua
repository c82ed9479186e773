-- What rules that may wait can cause: runs of other workflow rules, and events of the shop. Both carry how many workflows led to them,
-- and a chain ends after eight. Its width has a bound too: ten events a run would be a hundred million runs in eight. What is caused by
-- what a rule has caused is counted, for a shop in each process: so many at once, and so many a second.
local json = require("core.json")
local time = require("core.time")
local uuid = require("core.uuid")
local capabilities = require("kasma.capabilities")
local db = require("kasma.db")
local events = require("kasma.events")
local log = require("kasma.log")
local outbox = require("kasma.outbox")
local start = require("modules.rules.workflow_start")

local DATA_MAX, DELAY_MAX_S = 65536, 366 * 86400

local AT_ONCE, A_SECOND, SHOPS_MAX = 200, 5, 2000

local wells, shops = {}, 0

-- Whether what a rule has caused may cause one thing more now.
local function may_go_on(scope)
    if (scope.hops or 1) < 2 then return true end
    local now, well = time.mono() / 1e6, wells[scope.tenant]
    if not well then
        if shops >= SHOPS_MAX then wells, shops = {}, 0 end
        well = { left = AT_ONCE, at = now, told = false }
        wells[scope.tenant], shops = well, shops + 1
    end
    well.left, well.at = math.min(AT_ONCE, well.left + (now - well.at) * A_SECOND), now
    if well.left >= 1 then
        well.left = well.left - 1
        if well.left > AT_ONCE / 2 then well.told = false end
        return true
    end
    if not well.told then log.warn("workflows of a shop cause more and more", { tenant = scope.tenant }) end
    well.told = true
    return false
end

local function check_data(name, data)
    if type(data) ~= "table" then capabilities.refuse(name .. ": a table of data is expected") end
    local ok, text = pcall(json.encode, data)
    if not ok then capabilities.refuse(name .. ": the data is more than JSON can say") end
    if #text > DATA_MAX then capabilities.refuse(("%s: %d bytes of JSON; 65536 at most"):format(name, #text)) end
end

local OPTIONS = { delay_s = true, dedupe = true }

capabilities.declare("jobs.enqueue", { needs = "jobs", limit = 10, writes = "keyed", summary = "Starts another workflow rule",
    signature = "(rule: string, payload?: table, options?: { delay_s: integer?, dedupe: string? }): table|nil, string|nil",
    fn = function(ctx, rule, payload, o)
    o = o or {}
    if type(rule) ~= "string" then capabilities.refuse("jobs.enqueue: the key of a workflow rule is expected") end
    check_data("jobs.enqueue", payload or {})
    if type(o) ~= "table" then capabilities.refuse("jobs.enqueue: the third argument is { delay_s = .., dedupe = .. }") end
    for name in pairs(o) do
        if not OPTIONS[name] then capabilities.refuse(("jobs.enqueue: '%s' is no option"):format(tostring(name):sub(1, 80))) end
    end
    local delay = o.delay_s or 0
    if type(delay) ~= "number" or delay ~= math.floor(delay) or delay < 0 or delay > DELAY_MAX_S then
        capabilities.refuse("jobs.enqueue: delay_s is a whole number of seconds, a year at most")
    end
    if o.dedupe ~= nil and (type(o.dedupe) ~= "string" or #o.dedupe < 1 or #o.dedupe > 200) then
        capabilities.refuse("jobs.enqueue: dedupe is a text of 1 to 200 bytes")
    end
    local key = o.dedupe and ("dedupe:%s:%s"):format(rule, o.dedupe) or capabilities.call_key(ctx)
    if not may_go_on(ctx.scope) then return nil, "too_many" end
    local started, why = start.enqueue(ctx.scope, rule, { id = capabilities.once_id(key), payload = payload or {},
        delay_ms = delay * 1000 })
    if started == nil then return nil, why end
    return { started = started }
end })

capabilities.declare("events.emit", { needs = "events", limit = 10, writes = "keyed", summary = "An event of the shop's own",
    signature = "(name: string, data?: table): boolean|nil, string|nil", fn = function(ctx, name, data)
    if type(name) ~= "string" then capabilities.refuse("events.emit: the name of an event is expected") end
    if name:sub(1, 7) ~= "custom." then name = "custom." .. name end
    data = data or {}
    local problem = events.custom_problem(name, data)
    if problem then capabilities.refuse("events.emit: " .. problem) end
    if not may_go_on(ctx.scope) then return nil, "too_many" end
    local entity = ctx.scope.entity
    if data.id ~= nil and (type(data.id) ~= "string" or #data.id < 1 or #data.id > 200) then
        capabilities.refuse("events.emit: data.id is a text of 1 to 200 bytes: of what the event is")
    end
    local id = data.id or entity and entity.id or uuid.v7()
    local hops = ctx.scope.hops or 1
    local row = outbox.row(ctx.scope, "event", id, { name = name, data = data, hops = hops,
        of = entity and entity.id == id and entity.type or nil })
    db.pipeline(ctx.scope.tenant, { outbox.once(row, capabilities.once_id(capabilities.call_key(ctx))) })
    return true
end })
