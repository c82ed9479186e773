-- A tenant's events on a developer's own machine, as its webhooks would get them: they are followed on a server, by its public route and a
-- key, or on the stores of this installation, and posted to a port here, signed, each once, without an endpoint and without a log.
local http = require("core.http_client")
local json = require("core.json")
local sched = require("core.sched")
local time = require("core.time")
local events = require("kasma.events")
local sign = require("modules.webhooks.sign")

local M = {}

local SEEN_MAX, TIMEOUT_MS = 50000, 10000
local MEMBERS = { "type", "id", "tenant", "app", "timestamp", "sequence", "data" }

local function wanted(patterns, name)
    for _, pattern in ipairs(patterns) do
        if events.matches(pattern, name) then return true end
    end
    return false
end

local function post(o, event, sequence)
    local body = json.encode(json.object(MEMBERS, { type = event.type, id = event.id, tenant = event.tenant, app = event.app,
        timestamp = event.timestamp, sequence = sequence, data = event.data }))
    local headers = sign.headers({ o.secret }, "msg_" .. event.id, math.floor(time.real() / 1000), body)
    headers["Content-Type"] = "application/json"
    local answer, err = http.request{ method = "POST", url = o.url, headers = headers, body = body, timeout_ms = TIMEOUT_MS,
        max_bytes = 8192, cut = true }
    o.told(("%s  %-28s %s  %s"):format(event.timestamp:sub(12, 19), event.type, event.key, answer and answer.status or err.message))
end

---@class webhooks.Listening
---@field url string where the events go
---@field secret string
---@field events string[] patterns
---@field poll_ms integer
---@field feed fun(from: string|nil): table[], string events {id, type, tenant, app, timestamp, key, data} and the place for the next call
---@field told fun(line: string)
---@field lost fun(why: any): boolean the feed raised; false ends it

--- Follows the events of a tenant from now on.
---@param o webhooks.Listening
function M.run(o)
    local seen, order, first, sequence = {}, {}, 1, {}
    local from
    while not sched.stopping() do
        local ok, list, place = pcall(o.feed, from)
        if not ok and not o.lost(list) then return end
        if ok then from = place end
        for _, event in ipairs(ok and list or {}) do
            if not seen[event.id] then
                seen[event.id] = true
                order[#order + 1] = event.id
                if #order - first >= SEEN_MAX then
                    seen[order[first]], order[first] = nil, false
                    first = first + 1
                end
                if wanted(o.events, event.type) then
                    sequence[event.key] = (sequence[event.key] or 0) + 1
                    post(o, event, sequence[event.key])
                end
            end
        end
        sched.sleep(o.poll_ms)
    end
end

return M
