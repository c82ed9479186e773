-- Tries of webhooks. The sweeper must not wait for receivers, and a receiver must not wait for another: a delivery that falls due takes
-- a lease (its row of due_work is moved on a minute) and goes to its endpoint's lane, a few at a time there; the sweeper goes on at
-- once. A process that dies leaves the lease: the row falls due again and the try is made again, under the same webhook-id.
-- A lane may be slower than the lease is long, so it is taken anew when a try begins, which then has six times as long as it may take.
-- Whoever takes a lease does so from the one that he knows: of two processes one gets it, and the other leaves the delivery alone.
-- Bounded: tries at once in all and at an endpoint (one while it is failing), deliveries that wait in a lane and in all. What finds its
-- lane full stays in due_work and comes again in a while.
local http = require("core.http_client")
local metrics = require("core.metrics")
local sched = require("core.sched")
local time = require("core.time")
local crash = require("kasma.crash")
local db = require("kasma.db")
local due = require("kasma.due")
local log = require("kasma.log")
local sign = require("modules.webhooks.sign")
local store = require("modules.webhooks.store")
local target = require("modules.webhooks.target")
local webhooks = require("modules.webhooks.service")

local M = {}

local TIMEOUT_MS, ANSWER_MAX, LEASE_MS = 10000, 8192, 60000
local IN_ALL, IN_LANE, WAITING, HELD = 100, 4, 20, 1000

local slots = sched.semaphore(IN_ALL)
local lanes, under_way, held = {}, {}, 0
local outcomes, seconds

local function lane_of(endpoint)
    local lane = lanes[endpoint.id]
    if not lane then
        lane = { running = 0, queue = {} }
        lanes[endpoint.id] = lane
    end
    lane.width = endpoint.failing_since and 1 or IN_LANE
    return lane
end

local function masked(headers, own)
    local shown = {}
    for name, value in pairs(headers) do shown[name] = own[name] and "***" or value end
    return shown
end

local function retry_after_ms(answer)
    local text = answer.headers["retry-after"]
    local n = text and text:match("^%s*(%d+)%s*$")
    return n and #n <= 6 and tonumber(n) * 1000 or nil
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
        outcome.retry_after_ms = retry_after_ms(answer)
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

-- Whether the delivery is still ours to try.
local function lease(entry)
    local from, to, tenant = entry.lease, time.iso(time.now() + LEASE_MS), entry.endpoint.tenant_key
    entry.lease = to
    return #db.query(tenant, claim(tenant, entry.d.id, from, to)) > 0
end

local function let_go(entry)
    under_way[entry.d.id] = nil
    held = held - 1
end

local function next_in(lane, endpoint_id)
    while lane.running < lane.width and #lane.queue > 0 do
        local entry = table.remove(lane.queue, 1)
        lane.running = lane.running + 1
        sched.spawn(function()
            slots:acquire()
            local ok, why = pcall(function()
                if lease(entry) then run(entry.d, entry.endpoint) end
            end)
            slots:release()
            let_go(entry)
            lane.running = lane.running - 1
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
    if not endpoint or endpoint.state ~= "active" and d.event ~= webhooks.TEST_EVENT then
        return webhooks.abandon(tenant, id, "the endpoint is disabled")
    end
    local lane = lane_of(endpoint)
    local full = #lane.queue >= WAITING or held >= HELD
    if full then return db.query(tenant, claim(tenant, id, due_at, time.iso(now + math.random(5000, 30000)))) end
    local entry = { d = d, endpoint = endpoint, lease = time.iso(now + LEASE_MS) }
    under_way[id] = entry
    held = held + 1
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
