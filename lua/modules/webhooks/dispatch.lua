-- Tries of webhooks. The sweeper must not wait for receivers, and a receiver must not wait for another: a delivery that falls due takes
-- a lease (its row of due_work is moved on a minute) and goes to its endpoint's lane, a few at a time there; the sweeper goes on at
-- once. A process that dies leaves the lease: the row falls due again and the try is made again, under the same webhook-id.
-- A lane may be slower than the lease is long, so it is taken anew when a try begins, which then has six times as long as it may take.
-- Whoever takes a lease does so from the one that he knows: of two processes one gets it, and the other leaves the delivery alone.
-- The endpoint is read again with it: what waited goes where the endpoint leads by now, or nowhere.
-- Bounded: tries at once in all, of a tenant, at endpoints that fail and at one endpoint (one while it is failing); deliveries that wait
-- in a lane, for a tenant and in all. What finds no room stays in due_work and comes again when the lane will have come to it.
local http = require("core.http_client")
local metrics = require("core.metrics")
local sched = require("core.sched")
local time = require("core.time")
local crash = require("kasma.crash")
local db = require("kasma.db")
local due = require("kasma.due")
local log = require("kasma.log")
local retry_after = require("modules.webhooks.retry_after")
local sign = require("modules.webhooks.sign")
local store = require("modules.webhooks.store")
local target = require("modules.webhooks.target")
local webhooks = require("modules.webhooks.service")

local M = {}

local TIMEOUT_MS, ANSWER_MAX, LEASE_MS = 10000, 8192, 60000
local IN_ALL, AT_FAILING, OF_TENANT, IN_LANE = 100, 60, 40, 4
local WAITING, HELD, HELD_OF_TENANT = 50, 1000, 400
local SOON_MS, LONG_MS = 1000, 60000

local slots, at_failing = sched.semaphore(IN_ALL), sched.semaphore(AT_FAILING)
local lanes, shares, under_way, held = {}, {}, {}, 0
local outcomes, seconds

local function lane_of(endpoint)
    local lane = lanes[endpoint.id]
    if not lane then
        lane = { running = 0, queue = {}, pace_ms = 50, later = 0 }
        lanes[endpoint.id] = lane
    end
    lane.width = endpoint.failing_since and 1 or IN_LANE
    return lane
end

-- A try has ended: how long the lane takes from one to the next, the latest ones counting most.
local function keep_pace(lane)
    local now = time.mono() / 1000
    if lane.ended then lane.pace_ms = lane.pace_ms * 0.8 + (now - lane.ended) * 0.2 end
    lane.ended = now
end

-- When to come again for what finds the lane full: those who were sent away stand in a row, a pace apart. A row longer than a minute is not
-- kept; its end comes again to look.
local function later(lane, now)
    local at = math.max(now + SOON_MS, lane.later) + lane.pace_ms
    if at > now + LONG_MS then return now + math.random(LONG_MS / 2, LONG_MS) end
    lane.later = at
    return at
end

-- A tenant's share of what is held and tried here: a shop with many dead receivers leaves room for the others.
local function share_of(tenant)
    local share = shares[tenant]
    if not share then
        share = { held = 0, slots = sched.semaphore(OF_TENANT) }
        shares[tenant] = share
    end
    return share
end

local function masked(headers, own)
    local shown = {}
    for name, value in pairs(headers) do shown[name] = own[name] and "***" or value end
    return shown
end


--- Makes one try now. Answers what it came to; writes nothing.
---@param d table delivery row
---@param endpoint table row
---@return webhooks.Outcome
function M.try(d, endpoint)
    local place, problem = target.read(endpoint.url)
    if not place then return { error = problem, micros = 0, request = { url = endpoint.url } } end
    -- Receivers judge the age of a message by the real time, whatever our clock was set to.
    local headers = sign.headers(webhooks.secrets_of(endpoint, time.now()), "msg_" .. d.event_id, math.floor(time.real() / 1000),
        d.request.body)
    for name, value in pairs(endpoint.headers or {}) do headers[name] = value end
    headers["Content-Type"] = "application/json"
    headers["User-Agent"] = "Kasma-Webhooks/1"
    local began = time.mono()
    local answer, err = http.request{ method = "POST", url = endpoint.url, headers = headers, body = d.request.body,
        timeout_ms = TIMEOUT_MS, max_bytes = ANSWER_MAX, cut = true, follow = false, public_only = not place.private }
    local outcome = { micros = math.floor(time.mono() - began), request = { url = endpoint.url,
        headers = masked(headers, endpoint.headers or {}) } }
    if answer then
        outcome.status, outcome.answer = answer.status, answer.body
        outcome.retry_after_ms = retry_after.ms(answer.headers["retry-after"], time.real())
        if answer.status < 200 or answer.status > 299 then outcome.error = "the receiver answered " .. answer.status end
    else
        outcome.error = err.message:find("not a public one", 1, true) and "address_not_public" or err.message
    end
    return outcome
end

local function run(d, endpoint)
    local outcome = M.try(d, endpoint)
    crash.at("webhook.answered")
    local state = webhooks.finish(d, endpoint, outcome)
    outcomes = outcomes or metrics.counter("kasma_webhook_deliveries_total", "Tries of webhooks", { "outcome" })
    seconds = seconds or metrics.histogram("kasma_webhook_seconds", "How long receivers took",
        { 0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10 }, {})
    seconds:observe(outcome.micros / 1e6)
    if state then outcomes:add(1, state) end
end

local function claim(tenant, id, from, to) return unpack(due.claim(tenant, webhooks.KIND, id, from, to)) end

-- Takes the lease anew. Nil: the delivery is not ours to try any more.
---@return boolean|nil got
---@return table|nil endpoint as it is now
local function lease(entry)
    local from, to, tenant = entry.lease, time.iso(time.now() + LEASE_MS), entry.endpoint.tenant_key
    entry.lease = to
    local results = db.pipeline(tenant, { due.claim(tenant, webhooks.KIND, entry.d.id, from, to),
        store.read_endpoint(tenant, entry.endpoint.id) })
    return #results[1] > 0 or nil, results[2][1]
end

local function takes(endpoint, d) return endpoint and (endpoint.state == "active" or d.event == webhooks.TEST_EVENT) end

local function turn(entry)
    local got, endpoint = lease(entry)
    if not got then return end
    if takes(endpoint, entry.d) then return run(entry.d, endpoint) end
    webhooks.abandon(entry.endpoint.tenant_key, entry.d.id, "the endpoint is disabled")
end

local function let_go(entry)
    local tenant = entry.endpoint.tenant_key
    local share = shares[tenant]
    under_way[entry.d.id] = nil
    held, share.held = held - 1, share.held - 1
    if share.held == 0 then shares[tenant] = nil end
end

-- With the permits of all bounds that hold for the entry, in one order.
local function with_permits(entry, fn)
    local permits = { share_of(entry.endpoint.tenant_key).slots, slots }
    if entry.endpoint.failing_since then table.insert(permits, 1, at_failing) end
    for _, permit in ipairs(permits) do permit:acquire() end
    local ok, why = pcall(fn, entry)
    for i = #permits, 1, -1 do permits[i]:release() end
    return ok, why
end

local function next_in(lane, endpoint_id)
    while lane.running < lane.width and #lane.queue > 0 do
        local entry = table.remove(lane.queue, 1)
        lane.running = lane.running + 1
        sched.spawn(function()
            local ok, why = with_permits(entry, turn)
            let_go(entry)
            lane.running = lane.running - 1
            keep_pace(lane)
            if not ok then
                log.error("webhook try failed", { tenant = entry.endpoint.tenant_key, delivery = entry.d.id,
                    error = type(why) == "table" and tostring(why.message or why.kind) or tostring(why) })
            end
            next_in(lane, endpoint_id)
        end)
    end
    if lane.running == 0 and #lane.queue == 0 and lanes[endpoint_id] == lane then lanes[endpoint_id] = nil end
end

--- Handler of due_work: takes the lease and hands the delivery to its endpoint's lane. Does not wait for the receiver.
---@param tenant string
---@param id string delivery
---@param due_at string ISO, the time of the row as it was read
function M.due(tenant, id, due_at)
    local mine = under_way[id]
    if mine then
        -- It waits in its lane, or its try is being made: it stays ours.
        mine.lease = time.iso(time.now() + LEASE_MS)
        return db.query(tenant, claim(tenant, id, due_at, mine.lease))
    end
    local now = time.now()
    local d = store.delivery(tenant, id)
    if not d or d.state ~= "pending" then return db.pipeline(tenant, { due.drop(tenant, webhooks.KIND, id) }) end
    local endpoint = store.endpoint(tenant, d.endpoint_id)
    if not takes(endpoint, d) then return webhooks.abandon(tenant, id, "the endpoint is disabled") end
    local lane, share = lane_of(endpoint), shares[tenant]
    local full = #lane.queue >= WAITING or held >= HELD or share and share.held >= HELD_OF_TENANT
    if full then return db.query(tenant, claim(tenant, id, due_at, time.iso(math.floor(later(lane, now))))) end
    local entry = { d = d, endpoint = endpoint, lease = time.iso(now + LEASE_MS) }
    under_way[id] = entry
    share = share_of(tenant)
    held, share.held = held + 1, share.held + 1
    local ok, got = pcall(db.query, tenant, claim(tenant, id, due_at, entry.lease))
    if not ok or #got == 0 then
        let_go(entry)
        if not ok then error(got, 0) end
        return
    end
    crash.at("webhook.claimed")
    lane = lane_of(endpoint) -- the one from before may have ended meanwhile
    lane.queue[#lane.queue + 1] = entry
    next_in(lane, endpoint.id)
end

--- How many tries are made or wait at this moment.
---@return integer
function M.count() return held end

return M
