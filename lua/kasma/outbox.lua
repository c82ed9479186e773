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
-- A topic whose consumer talks to somebody else's service has a lane of its own (outbox.slow): however long that takes, nobody else waits.
-- A row whose consumer fails waits a while, longer each time, with the rows of its key behind it; others pass. One that has failed
-- twelve times over some six minutes, or of which its consumer says that it is wrong in itself (an error of status 400), is parked: it
-- waits for an operator (`kasma outbox`), and the rows behind it go on. While a
-- store is away, its topics wait as a whole and nothing counts as a failure.
local mongo = require("core.mongo")
local metrics = require("core.metrics")
local pg = require("core.pg")
local sched = require("core.sched")
local time = require("core.time")
local uuid = require("core.uuid")
local crash = require("kasma.crash")
local db = require("kasma.db")
local errors = require("kasma.errors")
local log = require("kasma.log")
local null = require("kasma.null")
local text = require("kasma.text")

local M = {}

local CHANNEL = "kasma_outbox"
local LOCK = 7205001 -- advisory lock of the relay
local BATCH, POLL_MS, HELD_MAX, TRIES = 500, 250, 1000, 12
local LANE_BATCH, LANE_AT_ONCE = 64, 8

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

--- An event of the catalogue: webhooks, workflow rules, realtime channels and own jobs hear it. What a workflow does carries how many
--- workflows led to it (`scope.hops`), so that a chain of them ends.
---@param scope Scope
---@param name string
---@param entity_id string
---@param data table
---@return table statement
function M.event(scope, name, entity_id, data)
    return M.row(scope, "event", entity_id, { name = name, data = data, hops = scope.hops })
end

--- The same row, written once however often it is asked for under this id (for as long as sent rows are kept: seven days).
---@param statement table of row or event
---@param id string uuid
---@return table statement
function M.once(statement, id)
    statement[1], statement[4] = statement[1] .. " on conflict (tenant_key, id) do nothing", id
    return statement
end

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

local lanes = {}

--- A consumer that waits for a service of others, row by row: fn(row). Rows of one key are handed over in order, those of several keys
--- a few at a time. While it raises 503 its topic waits.
---@param topic string
---@param fn fun(row: table)
function M.slow(topic, fn)
    lanes[#lanes + 1] = topic
    lanes[topic] = true
    consumers[topic] = function(rows) fn(rows[1]) end
end

--- Hears every event row.
---@param fn fun(row: table)
function M.on_event(fn)
    listeners[#listeners + 1] = function(rows)
        for _, row in ipairs(rows) do fn(row) end
    end
end

--- Hears event rows as the relay read them, many at once and in order. What it raises makes them come again, one by one.
---@param fn fun(rows: table[])
function M.on_events(fn) listeners[#listeners + 1] = fn end

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
        for _, fn in ipairs(listeners) do fn(rows) end
        return
    end
    error("nobody takes outbox rows of topic " .. topic, 0)
end

-- Relay ----------------------------------------------------------------------------------------------------------------------

-- What waits behind a held row is left out too: enough of it would fill every batch and nobody's rows would move any more.
-- A batch ends early where its payloads would be more than 32 MiB together; small ones are not measured exactly.
local READ = [[select tenant_key, app_key, id, seq, topic, key, payload, created_at, attempts from (
  select o.*, sum(o.size) over (order by o.seq) - o.size as before from (
    select tenant_key, app_key, id, seq, topic, key, payload, created_at, attempts,
      case when pg_column_size(payload) > 1000 then octet_length(payload::text) else 2000 end as size from outbox
    where sent_at is null and parked_at is null and not (id = any($1::uuid[])) and not (topic = any($5::text[]))
      and ($6::text is null or topic = $6)
      and (tenant_key, topic, key) not in (select * from unnest($2::text[], $3::text[], $4::text[])) order by seq limit $7) o) r
  where before < 33554432 order by seq]]
local SENT = [[update outbox set sent_at = $2::timestamptz where tenant_key = $1 and id = any($3::uuid[])]]
local FAILED = [[update outbox set attempts = $3, error = $4, parked_at = $5::timestamptz where tenant_key = $1 and id = $2]]
local COUNT = [[select count(*)::int as n, min(created_at) as oldest from (select created_at from outbox
  where sent_at is null and parked_at is null order by seq limit 10001) o]]
local TOPICS = [[select topic, count(*)::int as n from (select topic from outbox where sent_at is null and parked_at is null order by seq
  limit 10001) o group by topic]]
local PARKED = "select count(*)::int as n from (select 1 from outbox where parked_at is not null limit 10001) o"

-- Pauses are counted by a clock that nobody sets.
local function monotonic_ms() return time.mono() / 1000 end

-- held: rows that wait for another try, by id; away: topics whose store is away.
local held, held_count, away = {}, 0, {}
local gauge_rows, gauge_age, gauge_parked, delivered

local function describe(why)
    if type(why) == "table" and not errors.is(why) then return tostring(why.message or why.kind) end
    return tostring(why)
end

local function hold_topic(topic, why, pause_ms)
    local entry = away[topic] or { tries = 0 }
    away[topic] = entry
    entry.tries = entry.tries + 1
    entry.until_ms = monotonic_ms() + (pause_ms or math.min(10000, 250 * 2 ^ math.min(entry.tries, 6)))
    if entry.tries == 1 or entry.tries % 20 == 0 then
        log.warn("outbox topic waits", { topic = topic, tries = entry.tries, error = describe(why) })
    end
end

-- A row failed by itself. Answers the statement that notes it.
local function hold(row, why)
    local entry = held[row.id]
    if not entry then
        if held_count >= HELD_MAX then hold_topic(row.topic, "too many of its rows fail", 5000) end
        entry = { tries = row.attempts, place = row.place, tenant = row.tenant_key, topic = row.topic, key = row.key }
        held[row.id] = entry
        held_count = held_count + 1
    end
    entry.tries = entry.tries + 1
    entry.until_ms = monotonic_ms() + math.min(60000, 250 * 2 ^ math.min(entry.tries, 10))
    local gone = entry.tries >= TRIES or errors.is(why) and why.status == 400
    if entry.tries == 1 or gone then
        log[gone and "error" or "warn"](gone and "outbox row is parked" or "outbox row could not be delivered", { topic = row.topic,
            key = row.key, id = row.id, tenant = row.tenant_key, tries = entry.tries, error = describe(why) })
    end
    delivered:add(1, row.topic, gone and "parked" or "failed")
    return { FAILED, row.tenant_key, row.id, entry.tries, text.plain(describe(why), 500), gone and time.iso(time.now()) or null }, gone
end

local function forget(id)
    if held[id] then
        held[id] = nil
        held_count = held_count - 1
    end
end

-- What this pass leaves out: decided once a pass.
local function held_back()
    local now = monotonic_ms()
    local ids, places, behind, topics = {}, {}, { tenants = {}, topics = {}, keys = {} }, {}
    for id, entry in pairs(held) do
        if entry.until_ms > now then
            local n = #ids + 1
            ids[n], places[entry.place] = id, id
            behind.tenants[n], behind.topics[n], behind.keys[n] = entry.tenant, entry.topic, entry.key
        elseif entry.until_ms < now - 300000 then
            forget(id) -- it was due long ago and did not come: parked, removed or sent by somebody else
        end
    end
    for topic, entry in pairs(away) do
        if entry.until_ms > now then topics[#topics + 1] = topic end
    end
    return ids, places, behind, topics
end

-- Delivers the rows of one topic. One bad row must not hold up its neighbours: when they fail together, each goes by itself.
local function deliver_group(group, blocked, sent, notes)
    local ok, why = pcall(deliver, group.topic, group.rows)
    if ok then
        away[group.topic] = nil
        for _, row in ipairs(group.rows) do sent[#sent + 1] = row end
        return
    end
    if errors.is_unavailable(why) then return hold_topic(group.topic, why) end
    for _, row in ipairs(group.rows) do
        if not blocked[row.place] then
            local done, reason = false, why
            if #group.rows > 1 then done, reason = pcall(deliver, group.topic, { row }) end
            if done then
                sent[#sent + 1] = row
            elseif errors.is_unavailable(reason) then
                return hold_topic(group.topic, reason)
            else
                local note, gone = hold(row, reason)
                notes[#notes + 1] = note
                if gone then forget(row.id) else blocked[row.place] = row.id end
            end
        end
    end
end

local function is_away(topic)
    local entry = away[topic]
    return entry ~= nil and entry.until_ms > monotonic_ms()
end

-- Delivers the rows of a slow topic, a few keys at a time.
local function deliver_lane(group, blocked, sent, notes)
    local slots, work, by_place = sched.semaphore(LANE_AT_ONCE), {}, {}
    for _, row in ipairs(group.rows) do
        local queue = by_place[row.place]
        if not queue then
            queue = {}
            by_place[row.place] = queue
            work[#work + 1] = function()
                slots:acquire()
                for _, one in ipairs(queue) do
                    if is_away(group.topic) then break end
                    local ok, why = pcall(deliver, group.topic, { one })
                    if ok then
                        sent[#sent + 1] = one
                    elseif errors.is_unavailable(why) then
                        if not is_away(group.topic) then hold_topic(group.topic, why) end
                        break
                    else
                        local note, gone = hold(one, why)
                        notes[#notes + 1] = note
                        if gone then
                            forget(one.id)
                        else
                            blocked[one.place] = one.id
                            break
                        end
                    end
                end
                slots:release()
            end
        end
        queue[#queue + 1] = row
    end
    sched.parallel(work)
    if #sent > 0 and not is_away(group.topic) then away[group.topic] = nil end
end

--- Delivers what waits, once through. Answers how many rows were sent.
---@param lane string|nil a slow topic; nil: all others
---@return integer
function M.relay_once(lane)
    if lane and is_away(lane) then return 0 end
    local system = db.pool("system")
    delivered = delivered or metrics.counter("kasma_outbox_deliveries_total", "Rows of the outbox handed over", { "topic", "outcome" })
    local ids, blocked, behind, topics = held_back()
    if not lane then
        for _, topic in ipairs(lanes) do topics[#topics + 1] = topic end
    end
    local rows = errors.check(system:read(nil, READ, pg.array(ids), pg.array(behind.tenants), pg.array(behind.topics),
        pg.array(behind.keys), pg.array(topics), lane or null, lane and LANE_BATCH or BATCH))
    if #rows == 0 then return 0 end
    crash.at("relay.read")
    -- Rows of one topic are handed over together; a key that failed holds back its later rows of this pass.
    local sent, notes, groups, by_topic = {}, {}, {}, {}
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
        if #group.rows > 0 then (lane and deliver_lane or deliver_group)(group, blocked, sent, notes) end
        crash.at("relay.delivered")
    end
    local by_tenant, counts = {}, {}
    for _, row in ipairs(sent) do
        by_tenant[row.tenant_key] = by_tenant[row.tenant_key] or {}
        table.insert(by_tenant[row.tenant_key], row.id)
        counts[row.topic] = (counts[row.topic] or 0) + 1
        forget(row.id)
    end
    local now = time.iso(time.now())
    for tenant, done in pairs(by_tenant) do notes[#notes + 1] = { SENT, tenant, now, pg.array(done) } end
    if #notes > 0 then errors.check(system:pipeline(nil, notes)) end
    crash.at("relay.marked")
    for topic, n in pairs(counts) do delivered:add(n, topic, "sent") end
    return #sent
end

--- Rows that wait: {n, oldest}. Parked ones are not among them.
---@return table
function M.waiting() return errors.check(db.pool("system"):read(nil, COUNT))[1] end

--- How many rows are parked, counted to 10001.
---@return integer
function M.parked() return errors.check(db.pool("system"):read(nil, PARKED))[1].n end

-- For operators ----------------------------------------------------------------------------------------------------------------

local ROW = "select tenant_key, id, seq, topic, key, created_at, sent_at, attempts, error, parked_at"

--- Rows that wait or are parked, oldest first.
---@param f {tenant: string|nil, topic: string|nil, parked: boolean|nil, limit: integer|nil}
---@return table[]
function M.list(f)
    return errors.check(db.pool("system"):read(nil, ROW .. [[ from outbox where sent_at is null
      and ($1::text is null or tenant_key = $1) and ($2::text is null or topic = $2) and (not $3 or parked_at is not null)
      order by seq limit $4]], f.tenant or null, f.topic or null, f.parked or false, f.limit or 50))
end

--- One row with its payload.
---@param id string
---@return table|nil
function M.show(id)
    return errors.check(db.pool("system"):read(nil, ROW .. ", payload from outbox where id = $1 limit 1", id))[1]
end

--- Parked rows go out again, as new ones: their tries begin anew.
---@param f {id: string|nil, tenant: string|nil, topic: string|nil}
---@return integer how many
function M.retry(f)
    local done = errors.check(db.pool("system"):query(nil, [[update outbox set parked_at = null, attempts = 0
      where parked_at is not null and sent_at is null and ($1::uuid is null or id = $1::uuid) and ($2::text is null or tenant_key = $2)
        and ($3::text is null or topic = $3)]], f.id or null, f.tenant or null, f.topic or null))
    db.wake_relay()
    return done.affected
end

--- Takes a row out of the relay's way.
---@param id string
---@return boolean
function M.park(id)
    return errors.check(db.pool("system"):query(nil, [[update outbox set parked_at = $2::timestamptz,
      error = coalesce(error, 'parked by hand') where id = $1 and sent_at is null and parked_at is null]], id,
        time.iso(time.now()))).affected > 0
end

--- Removes a parked row: what it reports will never happen.
---@param id string
---@return boolean
function M.drop(id)
    return errors.check(db.pool("system"):query(nil, "delete from outbox where id = $1 and parked_at is not null and sent_at is null",
        id)).affected > 0
end

-- Sent rows are found by tenant and time, so what walks over them goes from tenant to tenant: nothing else would spare the whole table.
local function tenants_sent(tenant)
    local after = ""
    return function()
        if tenant then
            local only = tenant
            tenant, after = nil, nil
            return only
        end
        if not after then return nil end
        local row = errors.check(db.pool("system"):query(nil, [[select tenant_key from outbox where tenant_key > $1 and sent_at is not null
          order by tenant_key limit 1]], after))[1]
        after = row and row.tenant_key
        return after
    end
end

local AGAIN = [[with picked as materialized (select id, sent_at from outbox where tenant_key = $1 and topic = $2
    and sent_at >= $3::timestamptz and sent_at < $4::timestamptz order by sent_at limit 1000),
  back as (update outbox o set sent_at = null, attempts = 0, error = null from picked p where o.tenant_key = $1 and o.id = p.id)
  select count(*)::int as n, max(sent_at) as last from picked]]

--- Rows of a topic that were sent since a time go out again, a batch at a time. For what a store has lost since.
---@param topic string
---@param since_ms integer
---@param tenant string|nil
---@return table<string, integer> rows by tenant
function M.again(topic, since_ms, tenant)
    local found, cut = {}, time.iso(time.now()) -- not those that are sent while this runs: each once
    for key in tenants_sent(tenant) do
        local from = time.iso(since_ms)
        repeat
            local batch = errors.check(db.pool("system"):query(nil, AGAIN, key, topic, from, cut))[1]
            if batch.n > 0 then found[key], from = (found[key] or 0) + batch.n, batch.last end
            db.wake_relay()
        until batch.n == 0
    end
    return found
end

local GONE = [[delete from outbox where tenant_key = $1 and id in (select id from outbox where tenant_key = $1
  and sent_at < $2::timestamptz order by sent_at limit 5000)]]

--- Removes what was sent before a time.
---@param before_ms integer
---@return integer
function M.prune(before_ms)
    local removed, before = 0, time.iso(before_ms)
    for key in tenants_sent() do
        repeat
            local gone = errors.check(db.pool("system"):query(nil, GONE, key, before)).affected
            removed = removed + gone
        until gone < 5000 or sched.stopping()
        if sched.stopping() then break end
    end
    return removed
end

-- Loop -------------------------------------------------------------------------------------------------------------------------

local wake = false
local shown = {} -- topics that the gauge has a series of

local function measure()
    local waiting = M.waiting()
    gauge_age:set(waiting.oldest and math.max(0, (time.now() - time.parse(waiting.oldest)) / 1000) or 0)
    gauge_parked:set(M.parked())
    for topic in pairs(shown) do shown[topic] = 0 end
    for _, row in ipairs(errors.check(db.pool("system"):read(nil, TOPICS))) do shown[row.topic] = row.n end
    for topic, n in pairs(shown) do gauge_rows:set(n, topic) end
end

local function run_lane(topic, relay)
    while relay.on and not sched.stopping() do
        local ok, sent = pcall(M.relay_once, topic)
        if not ok then log.warn("a lane of the outbox begins anew", { topic = topic, error = describe(sent) }) end
        if not ok or sent < LANE_BATCH then sched.sleep(POLL_MS) end
    end
end

local function hold_and_relay()
    local relay = { on = true }
    local session = errors.check(db.pool("system"):session())
    local ok, why = pcall(function()
        while not sched.stopping() do
            local got = errors.check(session:query("select pg_try_advisory_lock($1) as held", LOCK))[1].held
            if got then break end
            sched.sleep(1000)
        end
        if not sched.stopping() then log.info("outbox relay begins", {}) end
        -- What another relay knew of failures lies in the rows; what we knew may be old.
        held, held_count, away = {}, 0, {}
        for _, topic in ipairs(lanes) do sched.spawn(run_lane, topic, relay) end
        local measured = 0
        while not sched.stopping() do
            -- The lock lives as long as its connection: a relay whose connection is gone must stop.
            errors.check(session:query("select 1"))
            local sent = M.relay_once()
            local now = time.mono()
            if now - measured > 5e6 then
                measured = now
                measure()
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
    relay.on = false
    session:close()
    if not ok then error(why, 0) end
end

--- The relay's loop: waits for the lock, relays, begins anew when a store was away. Ends when the process stops.
function M.run_relay()
    gauge_rows = metrics.gauge("kasma_outbox_rows", "Rows of the outbox that wait (counted to 10001)", { "topic" })
    gauge_age = metrics.gauge("kasma_outbox_age_seconds", "Age of the oldest row that waits", {})
    gauge_parked = metrics.gauge("kasma_outbox_parked", "Rows that nobody could deliver (counted to 10001)", {})
    db.pool("system"):listen(CHANNEL, function() wake = true end)
    while not sched.stopping() do
        local ok, why = pcall(hold_and_relay)
        if not ok and not sched.stopping() then
            log.warn("outbox relay begins anew", { error = describe(why) })
            if not sched.sleep(500) then return end
        end
    end
end

return M
