-- A tenant's events on a developer's own machine, as its webhooks would get them: the rows of the outbox are followed and posted to
-- a port here, signed, each once, without an endpoint and without a log.
local http = require("core.http_client")
local sched = require("core.sched")
local time = require("core.time")
local events = require("kasma.events")
local sign = require("modules.webhooks.sign")
local store = require("modules.webhooks.store")
local webhooks = require("modules.webhooks.service")

local M = {}

local POLL_MS, OVERLAP_MS, SEEN_MAX = 250, 10000, 5000

local function wanted(patterns, name)
    for _, pattern in ipairs(patterns) do
        if events.matches(pattern, name) then return true end
    end
    return false
end

--- Follows the events of a tenant from now on.
---@param tenant string
---@param o {url: string, secret: string, events: string[], told: fun(line: string), stop: (fun(): boolean)|nil}
function M.run(tenant, o)
    local seen, order, sequence = {}, {}, {}
    local from = time.now()
    while not sched.stopping() and not (o.stop and o.stop()) do
        -- Ids carry the time: a row may be committed a while after its id was made, so the last seconds are looked at again.
        for _, row in ipairs(store.events_after(tenant, webhooks.id_at(math.max(from, time.now() - OVERLAP_MS)))) do
            if not seen[row.id] then
                seen[row.id] = true
                order[#order + 1] = row.id
                if #order > SEEN_MAX then seen[table.remove(order, 1)] = nil end
                local name = tostring(row.payload.name)
                if wanted(o.events, name) then
                    sequence[row.key] = (sequence[row.key] or 0) + 1
                    local body = webhooks.body_of(row, sequence[row.key])
                    local headers = sign.headers({ o.secret }, "msg_" .. row.id, math.floor(time.real() / 1000), body)
                    headers["Content-Type"] = "application/json"
                    local answer, err = http.request{ method = "POST", url = o.url, headers = headers, body = body, timeout_ms = 10000,
                        max_bytes = 8192, cut = true }
                    o.told(("%s  %-28s %s  %s"):format(row.created_at:sub(12, 19), name, row.key, answer and answer.status or err.message))
                end
            end
        end
        sched.sleep(POLL_MS)
    end
end

return M
