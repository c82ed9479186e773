-- What must happen because of a commit is a row of `outbox`, written in that transaction after the statement it reports. One
-- relay in the cluster reads unsent rows in the order of seq, hands them to their consumers and marks them sent: at least
-- once, in order per tenant and key. A consumer is idempotent by the row's id.
--
--     statements[#statements + 1] = outbox.row(scope, "mirror.carts", cart.id, { id = cart.id, version = version })
--     statements[#statements + 1] = outbox.event(scope, "order.placed", order.id, { ... })
--     statements[#statements + 1] = outbox.job(scope, "mail-queue", "send-mail", data, { attempts = 5 })
--
-- db.pipeline and db.transaction see such a statement and wake the relay after the commit (never a NOTIFY inside it: that
-- takes a lock of the whole server). Polling is the net under the notice.
-- A row whose consumer fails is parked for a while, longer each time, with the rows of its key behind it; others pass.
local mongo = require("core.mongo")
local metrics = require("core.metrics")
local pg = require("core.pg")
local sched = require("core.sched")
local time = require("core.time")
local uuid = require("core.uuid")
local db = require("kasma.db")
local errors = require("kasma.errors")
local log = require("kasma.log")

local M = {}

local CHANNEL = "kasma_outbox"
local LOCK = 7205001 -- advisory lock of the relay
local BATCH, POLL_MS, PARKED_MAX = 500, 250, 1000

local INSERT = [[insert into outbox (tenant_key, app_key, id, topic, key, payload, created_at)
  values ($1, $2, $3, $4, $5, $6::jsonb, $7::timestamptz)]]

--- A row for the caller's pipeline or transaction.
---@param scope Scope
---@param topic string
---@param key string rows of one key are delivered in order
---@param payload table
---@return table statement
function M.row(scope, topic, key, payload)
    return { INSERT, scope.tenant, scope.app, uuid.v7(), topic, key, pg.json(payload), time.iso(time.now()), outbox = true }
end

--- An event of the catalogue: webhooks, workflow rules, realtime channels and own jobs hear it.
---@param scope Scope
---@param name string
---@param entity_id string
---@param data table
---@return table statement
function M.event(scope, name, entity_id, data) return M.row(scope, "event", entity_id, { name = name, data = data }) end

--- A queue job.
---@param scope Scope
---@param queue string
---@param name string
---@param data table
---@param opts table|nil BullMQ options; the job is added once per row
---@return table statement
function M.job(scope, queue, name, data, opts)
    return M.row(scope, "job", queue, { queue = queue, name = name, data = data, opts = opts or {} })
end

-- Consumers ----------------------------------------------------------------------------------------------------------------

local consumers = {}
local listeners = {}

--- The consumer of a topic: fn(rows) gets rows of that topic in order; what it raises parks them.
---@param topic string
---@param fn fun(rows: table[])
function M.consumer(topic, fn) consumers[topic] = fn end

--- Hears every event row.
---@param fn fun(row: table)
function M.on_event(fn) listeners[#listeners + 1] = fn end

local loaders = {}

--- How the document of a mirror is made when the row carries only its key: fn(tenant, keys) -> docs with id and version.
---@param collection string
---@param fn fun(tenant: string, keys: string[]): table[]
function M.mirror(collection, fn) loaders[collection] = fn end

-- Newest state per key; a document is written only over a lower version.
local function write_mirror(collection, rows)
    local newest, order = {}, {}
    for _, row in ipairs(rows) do
        local name = row.tenant_key .. "|" .. row.key
        if not newest[name] then order[#order + 1] = name end
        newest[name] = row
    end
    local docs = {}
    local load = loaders[collection]
    if load then
        local by_tenant = {}
        for _, name in ipairs(order) do
            local row = newest[name]
            by_tenant[row.tenant_key] = by_tenant[row.tenant_key] or {}
            table.insert(by_tenant[row.tenant_key], row.key)
        end
        for tenant, keys in pairs(by_tenant) do
            for _, doc in ipairs(load(tenant, keys)) do docs[#docs + 1] = doc end
        end
    else
        for _, name in ipairs(order) do
            local row = newest[name]
            local doc = {}
            for key, value in pairs(row.payload) do doc[key] = value end
            doc.tenant_key, doc.app_key, doc.id = row.tenant_key, row.app_key, row.key
            docs[#docs + 1] = doc
        end
    end
    local operations = {}
    for _, doc in ipairs(docs) do
        local version = tonumber(doc.version) or 1
        doc.version = mongo.int64(version)
        local id = doc.tenant_key .. ":" .. tostring(doc.id)
        operations[#operations + 1] = { op = "update", filter = { _id = id, version = { ["$lt"] = mongo.int64(version) } },
            update = { ["$set"] = doc }, upsert = true }
    end
    if #operations == 0 then return end
    local answer = errors.check(mongo.bulk(collection, operations))
    for _, err in ipairs(answer.errors or {}) do
        -- A duplicate _id says that a higher version is there already.
        if tostring(err.code) ~= "11000" then error(("mirror %s: %s"):format(collection, tostring(err.message)), 0) end
    end
end

local function deliver(topic, rows)
    local collection = topic:match("^mirror%.(.+)$")
    if collection then return write_mirror(collection, rows) end
    if consumers[topic] then return consumers[topic](rows) end
    if topic == "event" or topic:find(".", 1, true) then
        for _, row in ipairs(rows) do
            for _, fn in ipairs(listeners) do fn(row) end
        end
        return
    end
    error("nobody takes outbox rows of topic " .. topic, 0)
end

-- Relay ----------------------------------------------------------------------------------------------------------------------

-- What waits behind a parked row is left out too: enough of it would fill every batch and nobody's rows would move any more.
local READ = [[select tenant_key, app_key, id, seq, topic, key, payload, created_at from outbox
  where sent_at is null and not (id = any($1::uuid[]))
    and (tenant_key, topic, key) not in (select * from unnest($2::text[], $3::text[], $4::text[])) order by seq limit ]] .. BATCH
local SENT = [[update outbox set sent_at = $2::timestamptz where tenant_key = $1 and id = any($3::uuid[])]]
local COUNT = [[select count(*)::int as n, min(created_at) as oldest from (select created_at from outbox where sent_at is null order by
  seq limit 10001) o]]

local parked, parked_count = {}, 0
local gauge_rows, gauge_age

local function park(row, why)
    local entry = parked[row.id]
    if not entry then
        if parked_count >= PARKED_MAX then return end
        entry = { tries = 0, place = row.place, tenant = row.tenant_key, topic = row.topic, key = row.key }
        parked[row.id] = entry
        parked_count = parked_count + 1
    end
    entry.tries = entry.tries + 1
    entry.until_ms = time.real() + math.min(60000, 250 * 2 ^ math.min(entry.tries, 10))
    if entry.tries == 1 or entry.tries % 10 == 0 then
        log.warn("outbox row could not be delivered", { topic = row.topic, key = row.key, id = row.id, tries = entry.tries,
            error = tostring(why) })
    end
end

-- Rows that wait for another try, and the keys that wait behind them: decided once a pass.
local function held_back()
    local now = time.real()
    local ids, places, behind = {}, {}, { tenants = {}, topics = {}, keys = {} }
    for id, entry in pairs(parked) do
        if entry.until_ms > now then
            local n = #ids + 1
            ids[n], places[entry.place] = id, id
            behind.tenants[n], behind.topics[n], behind.keys[n] = entry.tenant, entry.topic, entry.key
        end
    end
    return ids, places, behind
end

local function forget(id)
    if parked[id] then
        parked[id] = nil
        parked_count = parked_count - 1
    end
end

--- Delivers what waits, once through. Answers how many rows were sent.
---@return integer
function M.relay_once()
    local system = db.pool("system")
    local ids, blocked, behind = held_back()
    local rows = errors.check(system:read(nil, READ, pg.array(ids), pg.array(behind.tenants), pg.array(behind.topics),
        pg.array(behind.keys)))
    if #rows == 0 then return 0 end
    -- Runs of one topic are handed over together; a key that failed holds back its later rows of this pass.
    local sent, groups, by_topic = {}, {}, {}
    for _, row in ipairs(rows) do
        local group = by_topic[row.topic]
        if not group then
            group = { topic = row.topic, rows = {} }
            by_topic[row.topic] = group
            groups[#groups + 1] = group
        end
        row.place = row.tenant_key .. "|" .. row.topic .. "|" .. row.key
        if not blocked[row.place] then group.rows[#group.rows + 1] = row end
    end
    for _, group in ipairs(groups) do
        local ok, why = true, nil
        if #group.rows > 0 then ok, why = pcall(deliver, group.topic, group.rows) end
        if ok then
            for _, row in ipairs(group.rows) do sent[#sent + 1] = row end
        elseif errors.is_unavailable(why) then
            for _, row in ipairs(group.rows) do
                park(row, why)
            end
        else
            -- One bad row must not hold up its neighbours: each by itself.
            for _, row in ipairs(group.rows) do
                if not blocked[row.place] then
                    local done, reason = pcall(deliver, group.topic, { row })
                    if done then
                        sent[#sent + 1] = row
                    else
                        park(row, reason)
                        blocked[row.place] = row.id
                    end
                end
            end
        end
    end
    local by_tenant = {}
    for _, row in ipairs(sent) do
        by_tenant[row.tenant_key] = by_tenant[row.tenant_key] or {}
        table.insert(by_tenant[row.tenant_key], row.id)
        forget(row.id)
    end
    local now = time.iso(time.now())
    for tenant, done in pairs(by_tenant) do errors.check(system:query(nil, SENT, tenant, now, pg.array(done))) end
    return #sent
end

--- Rows that wait: {n, oldest}.
---@return table
function M.waiting() return errors.check(db.pool("system"):read(nil, COUNT))[1] end

local wake = false

local function hold_and_relay()
    local session = errors.check(db.pool("system"):session())
    local ok, why = pcall(function()
        while not sched.stopping() do
            local held = errors.check(session:query("select pg_try_advisory_lock($1) as held", LOCK))[1].held
            if held then break end
            sched.sleep(1000)
        end
        local measured = 0
        while not sched.stopping() do
            -- The lock lives as long as its connection: a relay whose connection is gone must stop.
            errors.check(session:query("select 1"))
            local sent = M.relay_once()
            local now = time.mono()
            if now - measured > 5e6 then
                measured = now
                local waiting = M.waiting()
                gauge_rows:set(waiting.n)
                gauge_age:set(waiting.oldest and math.max(0, (time.now() - time.parse(waiting.oldest)) / 1000) or 0)
            end
            if sent < BATCH then
                local waited = 0
                while not wake and waited < POLL_MS and not sched.stopping() do
                    sched.sleep(10)
                    waited = waited + 10
                end
                wake = false
            end
        end
    end)
    session:close()
    if not ok then error(why, 0) end
end

--- The relay's loop: waits for the lock, relays, begins anew when a store was away. Ends when the process stops.
function M.run_relay()
    gauge_rows = metrics.gauge("kasma_outbox_rows", "Rows of the outbox that wait (counted to 10001)", {})
    gauge_age = metrics.gauge("kasma_outbox_age_seconds", "Age of the oldest row that waits", {})
    db.pool("system"):listen(CHANNEL, function() wake = true end)
    while not sched.stopping() do
        local ok, why = pcall(hold_and_relay)
        if not ok and not sched.stopping() then
            log.warn("outbox relay begins anew", { error = tostring(type(why) == "table" and (why.message or why.kind) or why) })
            sched.sleep(500)
        end
    end
end

return M
