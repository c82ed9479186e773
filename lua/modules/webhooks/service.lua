-- Webhooks: endpoints of a tenant, and telling them of events. An event row of the outbox becomes a delivery for each endpoint that asked
-- for it, with its row of due_work, in one transaction (fan_out); a try is made when that row falls due (dispatch.lua); what became of
-- it is kept for thirty days (finish).
--
-- Order is not promised: a try may fail while later events pass. So a delivery carries `sequence`: 1, 2, ... for the events of one
-- entity at one endpoint, in the order of their commits.
local time = require("core.time")
local uuid = require("core.uuid")
local sched = require("core.sched")
local json = require("core.json")
local audit = require("kasma.audit")
local db = require("kasma.db")
local due = require("kasma.due")
local errors = require("kasma.errors")
local events = require("kasma.events")
local log = require("kasma.log")
local mail = require("kasma.mail")
local null = require("kasma.null")
local outbox = require("kasma.outbox")
local plain = require("kasma.text").plain
local secrets = require("kasma.secrets")
local iam = require("modules.iam.service")
local roles = require("modules.iam.roles")
local sign = require("modules.webhooks.sign")
local store = require("modules.webhooks.store")
local target = require("modules.webhooks.target")

local M = {}

--- Whether a URL is one that may be called from here; other modules judge theirs by the same.
M.read_target = target.read

M.KIND = "webhooks.try"
M.TEST_EVENT = "webhook.test"

local DAY_MS = 86400000
local ENDPOINTS, OVERLAP_MS, GIVE_UP_MS, KEEP_MS = 50, DAY_MS, 5 * DAY_MS, 30 * DAY_MS
local BODY_MAX, ANSWER_MAX, ERROR_MAX, CHUNK = 262144, 8192, 500, 50
-- Milliseconds from one try to the next; the eighth is the last.
local PAUSES = { 5000, 300000, 1800000, 7200000, 18000000, 36000000, 36000000 }
local LATER_MAX = 3600000 -- longest wait that a receiver may ask for by Retry-After

M.too_many = errors.declare{ code = "webhook_limit", status = 409, message = "A tenant has at most 50 webhook endpoints",
    cause = "the tenant has 50 endpoints", cure = "remove one" }
M.endpoint_disabled = errors.declare{ code = "webhook_disabled", status = 409, message = "The webhook endpoint is disabled",
    cause = "the endpoint was disabled by hand, by its answer 410, or after five days without success",
    cure = "set its state to active" }
M.endpoint_unknown = errors.declare{ code = "webhook_endpoint_unknown", status = 404, message = "Webhook endpoint not found",
    cause = "there is no endpoint of this id", cure = "GET /webhooks/endpoints lists them" }
M.delivery_unknown = errors.declare{ code = "webhook_delivery_unknown", status = 404, message = "Webhook delivery not found",
    cause = "there is no delivery of this id, or it is older than thirty days", cure = "GET /webhooks/deliveries lists them" }

-- Endpoints ------------------------------------------------------------------------------------------------------------------

local OURS = { host = true, connection = true, ["content-length"] = true, ["content-type"] = true, ["transfer-encoding"] = true,
    expect = true, upgrade = true, te = true, trailer = true, ["user-agent"] = true, cookie = true, ["proxy-authorization"] = true }

local function check(input)
    local problems = {}
    if input.url then
        local _, problem = target.read_new(input.url)
        problems[#problems + 1] = problem
    end
    for i, pattern in ipairs(input.events or {}) do
        if not events.is_pattern(pattern) then problems[#problems + 1] = ("events.%d is no event of the catalogue"):format(i - 1) end
    end
    local bytes, count = 0, 0
    for name, value in pairs(input.headers or {}) do
        count, bytes = count + 1, bytes + #name + #tostring(value)
        local low = name:lower()
        if not name:find("^[%w-]+$") or #name > 100 or OURS[low] or low:find("^webhook%-") then
            problems[#problems + 1] = "headers." .. name .. " is not allowed"
        elseif type(value) ~= "string" or value:find("[%z\1-\31\127]") then
            problems[#problems + 1] = "headers." .. name .. " must be one line of text"
        end
    end
    if count > 10 or bytes > 4096 then problems[#problems + 1] = "headers must be at most 10 with 4096 bytes" end
    if #problems > 0 then errors.validation(problems) end
end

local function seal(tenant, id, secret) return secrets.seal("webhook", secret, tenant .. ":" .. id) end

local function public_part(e) return { name = e.name, url = e.url, events = e.events, state = e.state } end

---@param tenant string
---@param id string
---@return table row; raises 404
function M.endpoint(tenant, id) return store.endpoint(tenant, id) or M.endpoint_unknown() end

M.endpoints = store.endpoints

---@param scope Scope
---@param input {name: string, url: string, events: string[], headers: table<string, string>|nil}
---@return table row, string secret told once
function M.create(scope, input)
    check(input)
    local id, secret = uuid.v7(), sign.new_secret()
    local row = db.transaction(scope.tenant, function(tx)
        if tx:pipeline(store.count_endpoints(scope.tenant))[2][1].n >= ENDPOINTS then M.too_many() end
        local statements = { store.insert_endpoint{ tenant_key = scope.tenant, app_key = scope.app, id = id, name = input.name,
            url = input.url, events = input.events, secret_enc = seal(scope.tenant, id, secret), headers = input.headers or {},
            created_by = scope.actor_kind == "user" and scope.actor_id or nil, now = time.iso(time.now()) } }
        audit.append(statements, scope, { action = "webhooks.create", entity_type = "webhook_endpoint", entity_id = id,
            after = { name = input.name, url = input.url, events = input.events } })
        return tx:pipeline(statements)[1][1]
    end)
    db.wake_relay()
    return row, secret
end

---@param scope Scope
---@param id string
---@param input {name: string|nil, url: string|nil, events: string[]|nil, headers: table|nil, state: string|nil}
---@return table row
function M.update(scope, id, input)
    check(input)
    local before = M.endpoint(scope.tenant, id)
    local statements = { store.update_endpoint(scope.tenant, id, { name = input.name, url = input.url, events = input.events,
        headers = input.headers, state = input.state, reason = input.state == "disabled" and (before.disabled_reason or "by hand") or nil,
        now = time.iso(time.now()) }) }
    audit.append(statements, scope, { action = "webhooks.update", entity_type = "webhook_endpoint", entity_id = id,
        before = public_part(before), after = { name = input.name, url = input.url, events = input.events, state = input.state } })
    return db.pipeline(scope.tenant, statements)[1][1] or M.endpoint_unknown()
end

--- Removes an endpoint with its deliveries; what waits for it finds nothing to do.
---@param scope Scope
---@param id string
function M.remove(scope, id)
    local before = M.endpoint(scope.tenant, id)
    local statements = { store.delete_endpoint(scope.tenant, id) }
    audit.append(statements, scope, { action = "webhooks.remove", entity_type = "webhook_endpoint", entity_id = id,
        before = public_part(before) })
    db.pipeline(scope.tenant, statements)
end

--- A new secret; the old one is signed with too for a day.
---@param scope Scope
---@param id string
---@return table row, string secret told once
function M.rotate(scope, id)
    local secret, now = sign.new_secret(), time.now()
    local statements = { store.rotate(scope.tenant, id, seal(scope.tenant, id, secret), time.iso(now + OVERLAP_MS), time.iso(now)) }
    audit.append(statements, scope, { action = "webhooks.rotate", entity_type = "webhook_endpoint", entity_id = id })
    M.endpoint(scope.tenant, id)
    return db.pipeline(scope.tenant, statements)[1][1] or M.endpoint_unknown(), secret
end

secrets.kept_by_tenant{ name = "webhook secrets", lost = "deliveries stop until each endpoint's secret is rotated",
    count = store.sealed_by,
    rotate = function(tenant, newest)
        local done, lost = 0, 0
        for _, e in ipairs(store.endpoints(tenant)) do
            local aad, old = tenant .. ":" .. e.id, e.old_secret_enc
            if e.secret_enc:byte(1) ~= newest or (old and old:byte(1) ~= newest) then
                local secret = secrets.reseal("webhook", e.secret_enc, aad)
                local former = old and secrets.reseal("webhook", old, aad)
                if secret and (former or not old) then
                    done = done + store.reseal(tenant, e, secret, former, time.iso(time.now())) * (old and 2 or 1)
                else
                    lost = lost + 1
                end
            end
        end
        return done, lost
    end }

--- The secrets that hold now, the newest first.
---@param endpoint table row
---@param now integer epoch ms
---@return string[]
function M.secrets_of(endpoint, now)
    local aad = endpoint.tenant_key .. ":" .. endpoint.id
    local list = { secrets.open("webhook", endpoint.secret_enc, aad) }
    if endpoint.old_secret_enc and endpoint.old_secret_until and time.parse(endpoint.old_secret_until) > now then
        list[#list + 1] = secrets.open("webhook", endpoint.old_secret_enc, aad)
    end
    return list
end

-- From events to deliveries ----------------------------------------------------------------------------------------------------

local MEMBERS = { "type", "id", "tenant", "app", "timestamp", "sequence", "data" }

--- What is sent of an event.
---@param row table of the outbox
---@param sequence integer
---@return string
function M.body_of(row, sequence)
    return json.encode(json.object(MEMBERS, { type = row.payload.name, id = row.id, tenant = row.tenant_key, app = row.app_key,
        timestamp = row.created_at, sequence = sequence, data = events.data_of(row) }))
end

local LOOK_BACK_MS, FOLLOWED = 10000, 1000

--- A tenant's events from a place on, for who follows them without an endpoint. Ids carry the time, and a row may be committed a while
--- after its id was made: the last seconds are told again each time, and the reader drops the ids that it has seen.
---@param tenant string
---@param from string|nil place of the call before; nil: now, with no events
---@return table[] rows, at most 1000, by id
---@return string from place for the next call
function M.follow(tenant, from)
    local now = time.now()
    if not from then return {}, M.id_at(now) end
    local since = math.min(tonumber(from:sub(1, 8) .. from:sub(10, 13), 16), now)
    local rows = store.events_after(tenant, from, time.iso(since), FOLLOWED)
    if #rows == FOLLOWED then -- there is more: the next call goes on where this one ends
        local written = time.parse(rows[#rows].created_at)
        local place = M.id_at(written - 5) -- an id is made just before the time is read
        return rows, place > from and place or M.id_at(written)
    end
    local next_from = M.id_at(now - LOOK_BACK_MS)
    return rows, from > next_from and from or next_from
end

--- An event as a follower gets it.
---@param row table of the outbox
---@return table
function M.fed(row)
    return { id = row.id, type = tostring(row.payload.name), tenant = row.tenant_key, app = row.app_key, timestamp = row.created_at,
        key = row.key, data = events.data_of(row) }
end

-- The statements of a delivery whose first try is due at once.
local function delivery(statements, scope, d)
    local now = time.now()
    local at = now + (d.delay_ms or 0)
    d.tenant_key, d.app_key, d.id, d.now, d.due_at = scope.tenant, scope.app, uuid.v7(), time.iso(now), time.iso(at)
    statements[#statements + 1] = store.insert_delivery(d)
    statements[#statements + 1] = due.put(scope, M.KIND, d.id, at)
end

local function wants(endpoint, name)
    for _, pattern in ipairs(endpoint.events) do
        if events.matches(pattern, name) then return true end
    end
    return false
end

local function write_chunk(tenant, wanted)
    local ids, now = {}, time.iso(time.now())
    for i, w in ipairs(wanted) do ids[i] = w.row.id end
    db.transaction(tenant, function(tx)
        local known = {}
        for _, found in ipairs(tx:query(unpack(store.known(tenant, ids)))) do known[found.endpoint_id .. found.event_id] = true end
        local new, numbers = {}, {}
        for _, w in ipairs(wanted) do
            if not known[w.endpoint.id .. w.row.id] then
                new[#new + 1] = w
                numbers[#new] = store.next_sequence(tenant, w.row.app_key, w.endpoint.id, w.row.key, now)
            end
        end
        if #new == 0 then return end
        local given, statements = tx:pipeline(numbers), {}
        for i, w in ipairs(new) do
            local sequence = given[i][1].last
            local body = M.body_of(w.row, sequence)
            if #body > BODY_MAX then
                log.error("event is too large for a webhook", { tenant = tenant, event = w.row.payload.name, id = w.row.id })
            else
                delivery(statements, { tenant = tenant, app = w.row.app_key }, { endpoint_id = w.endpoint.id, event_id = w.row.id,
                    event = w.row.payload.name, entity_key = w.row.key, sequence = sequence, round = 0, try = 1,
                    request = { body = body } })
            end
        end
        if #statements > 0 then tx:pipeline(statements) end
    end)
end

local function fan_out_tenant(tenant, rows)
    local wanted = {}
    local endpoints = store.endpoints(tenant)
    for _, row in ipairs(rows) do
        for _, endpoint in ipairs(endpoints) do
            if endpoint.state == "active" and wants(endpoint, tostring(row.payload.name)) then
                wanted[#wanted + 1] = { row = row, endpoint = endpoint }
            end
        end
    end
    for from = 1, #wanted, CHUNK do
        local chunk = {}
        for i = from, math.min(from + CHUNK - 1, #wanted) do chunk[#chunk + 1] = wanted[i] end
        write_chunk(tenant, chunk)
    end
end

--- Event rows of the outbox become deliveries, each once however often the relay hands it over. Endpoints are read with each batch:
--- an endpoint hears every event that is committed after it.
---@param rows table[]
function M.fan_out(rows)
    local by_tenant, work = {}, {}
    for _, row in ipairs(rows) do
        if not by_tenant[row.tenant_key] then
            by_tenant[row.tenant_key] = {}
            work[#work + 1] = function() fan_out_tenant(row.tenant_key, by_tenant[row.tenant_key]) end
        end
        table.insert(by_tenant[row.tenant_key], row)
    end
    if #work == 1 then return work[1]() end
    sched.parallel(work)
end

local function one(scope, d)
    local statements = {}
    delivery(statements, scope, d)
    return db.pipeline(scope.tenant, statements)[1][1]
end

--- Sends an event of the kind webhook.test, once.
---@param scope Scope
---@param id string endpoint
---@return table delivery row
function M.test(scope, id)
    local endpoint = M.endpoint(scope.tenant, id)
    local row = { id = uuid.v7(), tenant_key = scope.tenant, app_key = scope.app, key = endpoint.id, created_at = time.iso(time.now()),
        payload = { name = M.TEST_EVENT, data = { message = "This is a test" } } }
    return one(scope, { endpoint_id = endpoint.id, event_id = row.id, event = M.TEST_EVENT, entity_key = endpoint.id, sequence = 0,
        round = 0, try = 1, request = { body = M.body_of(row, 0) } })
end

-- Log and redelivery ---------------------------------------------------------------------------------------------------------

M.deliveries = store.deliveries

local COUNTED = 10000

--- How many deliveries fit a filter, as lists tell it.
---@param tenant string
---@param f webhooks.Filter
---@return string number, or "10000+"
function M.total(tenant, f)
    local n = store.count_deliveries(tenant, f, COUNTED + 1)
    return n > COUNTED and COUNTED .. "+" or tostring(n)
end

---@param tenant string
---@param id string
---@return table row; raises 404
function M.delivery(tenant, id) return store.delivery(tenant, id) or M.delivery_unknown() end

local function again(scope, old)
    local round = db.one(scope.tenant, unpack(store.last_round(scope.tenant, old.endpoint_id, old.event_id))).round
    return one(scope, { endpoint_id = old.endpoint_id, event_id = old.event_id, event = old.event, entity_key = old.entity_key,
        sequence = old.sequence, round = round + 1, try = 1, request = { body = old.request.body } })
end

local function active(tenant, id)
    local endpoint = M.endpoint(tenant, id)
    if endpoint.state ~= "active" then M.endpoint_disabled() end
end

--- Sends the same event once more, under the same webhook-id, with a round of tries of its own.
---@param scope Scope
---@param id string delivery
---@return table delivery row; nil when somebody else asked in the same moment
function M.redeliver(scope, id)
    local old = M.delivery(scope.tenant, id)
    active(scope.tenant, old.endpoint_id)
    local row = again(scope, old)
    audit.write(scope, { action = "webhooks.redeliver", entity_type = "webhook_delivery", entity_id = id })
    return row or errors.conflict{ message = "This delivery is being sent again", code = "in_progress" }
end

--- Sends again what is dead at an endpoint, the oldest first.
---@param scope Scope
---@param f {endpoint_id: string, event: string|nil, from: string|nil, to: string|nil, limit: integer}
---@return integer queued, boolean more
function M.redeliver_dead(scope, f)
    active(scope.tenant, f.endpoint_id)
    local rows = store.dead(scope.tenant, f, f.limit + 1)
    local count = 0
    for i = 1, math.min(#rows, f.limit) do
        if again(scope, rows[i]) then count = count + 1 end
    end
    audit.write(scope, { action = "webhooks.redeliver", entity_type = "webhook_endpoint", entity_id = f.endpoint_id,
        after = { event = f.event, from = f.from, to = f.to, queued = count } })
    return count, #rows > f.limit
end

-- The end of a try -------------------------------------------------------------------------------------------------------------

---@class webhooks.Outcome what a try came to
---@field status integer|nil
---@field answer string|nil
---@field error string|nil
---@field micros integer
---@field retry_after_ms integer|nil
---@field request table url and headers as they were sent, secrets masked

local function pause_ms(try, outcome)
    local pause = PAUSES[try]
    local asked = outcome.retry_after_ms
    if asked then pause = math.max(pause, math.min(asked, LATER_MAX)) end
    return pause + math.random(0, math.floor(pause / 10))
end

local TOLD = 10 -- people at most, where the maker is not one to tell

-- Who hears that an endpoint is off: its maker, as long as they may switch it on again, else everybody who may. A key has no mail box, and
-- whoever has left the shop is told nothing of it. Asked before the transaction: of many that end at once, each would hold a connection
-- and wait for another.
local function who_hears(tenant, endpoint)
    local ids, people = {}, {}
    for _, id in ipairs(roles.holders(tenant, "webhooks.write")) do
        if id == endpoint.created_by then
            ids = { id }
            break
        end
        ids[#ids + 1] = #ids < TOLD and id or nil
    end
    for _, id in ipairs(ids) do people[#people + 1] = iam.user(id) end
    return people
end

local function switch_off(tx, scope, endpoint, people, reason, now, failing_before)
    local row = tx:query(unpack(store.disable(scope.tenant, endpoint.id, reason, now, failing_before)))[1]
    if not row then return end
    log.warn("webhook endpoint is disabled", { tenant = scope.tenant, endpoint = endpoint.id, reason = reason })
    local statements = { outbox.event(scope, "webhook.disabled", endpoint.id, { reason = reason,
        failingSince = row.failing_since or null }) }
    audit.append(statements, scope, { action = "webhooks.disable", entity_type = "webhook_endpoint", entity_id = endpoint.id,
        after = { reason = reason } })
    for _, user in ipairs(people) do
        mail.append(statements, scope, { to = user.email, user_id = user.id, template = "webhook-disabled",
            key = ("webhook-disabled:%s:%d:%s"):format(row.id, row.version, user.id), vars = { name = row.name, url = row.url,
                reason = reason } })
    end
    tx:pipeline(statements)
end

--- Writes down what a try came to, and what follows: the next try, the end of the endpoint's patience. Once, however often it is told.
---@param d table delivery row
---@param endpoint table row
---@param outcome webhooks.Outcome
---@return "sent"|"failed"|"dead"|nil state; nil when it had ended before
function M.finish(d, endpoint, outcome)
    local tenant, scope = endpoint.tenant_key, { tenant = endpoint.tenant_key, app = d.app_key, actor_kind = "system" }
    local now = time.now()
    local sent = outcome.status ~= nil and outcome.status >= 200 and outcome.status < 300
    local gone, testing = outcome.status == 410, d.event == M.TEST_EVENT
    local last = testing or gone or d.try > #PAUSES
    local state = sent and "sent" or last and "dead" or "failed"
    local since = endpoint.failing_since and time.parse(endpoint.failing_since)
    local may_end = not sent and not testing and (gone or since ~= nil and now - since >= GIVE_UP_MS)
    local people = may_end and who_hears(tenant, endpoint)
    local done = db.transaction(tenant, function(tx)
        local ended = tx:query(unpack(store.end_try(tenant, d.id, { state = state, request = outcome.request,
            status_code = outcome.status, answer = outcome.answer and plain(outcome.answer, ANSWER_MAX), micros = outcome.micros,
            error = outcome.error and plain(outcome.error, ERROR_MAX),
            now = time.iso(now) })))
        local statements = { due.drop(tenant, M.KIND, d.id) }
        if #ended > 0 then
            if state == "failed" then
                delivery(statements, scope, { endpoint_id = d.endpoint_id, event_id = d.event_id, event = d.event,
                    entity_key = d.entity_key, sequence = d.sequence, round = d.round, try = d.try + 1, request = { body = d.request.body },
                    delay_ms = pause_ms(d.try, outcome) })
            end
            if not testing then
                statements[#statements + 1] = sent and store.healthy(tenant, endpoint.id)
                    or store.failing(tenant, endpoint.id, time.iso(now))
            end
        end
        tx:pipeline(statements)
        if #ended > 0 and may_end then
            -- `since` is as it was when the try began: another may have succeeded meanwhile, which the row knows.
            switch_off(tx, scope, endpoint, people, gone and "the receiver answered 410 Gone" or "no delivery succeeded for five days",
                time.iso(now), not gone and time.iso(now - GIVE_UP_MS) or nil)
        end
        return #ended > 0
    end)
    return done and state or nil
end

--- Ends a delivery without a try: its endpoint does not take any.
---@param tenant string
---@param id string
---@param reason string
function M.abandon(tenant, id, reason)
    db.pipeline(tenant, { store.end_try(tenant, id, { state = "dead", error = reason, now = time.iso(time.now()) }),
        due.drop(tenant, M.KIND, id) })
end

--- The smallest id that is made at this time or later.
---@param ms integer epoch ms
---@return string uuid
function M.id_at(ms)
    local hex = ("%012x"):format(ms)
    return hex:sub(1, 8) .. "-" .. hex:sub(9, 12) .. "-7000-8000-000000000000"
end

--- Removes what is older than thirty days. Answers how many rows.
---@param tenant string
---@param now integer epoch ms
---@return integer
function M.prune(tenant, now)
    local total = 0
    repeat
        local gone = store.prune(tenant, M.id_at(now - KEEP_MS), 1000)
        total = total + gone
    until gone < 1000 or sched.stopping()
    repeat
        local gone = store.prune_sequences(tenant, time.iso(now - 400 * DAY_MS), 1000)
        total = total + gone
    until gone < 1000 or sched.stopping()
    return total
end

return M
