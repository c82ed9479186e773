-- What can be said of a tenant's rules at a glance: for the list in the console and for `kasma doctor`.
local json = require("core.json")
local rules = require("core.rules")
local time = require("core.time")
local pickers = require("modules.rules.pickers")
local store = require("modules.rules.store")

local M = {}

local DAY_MS = 86400000

local function picks_of(row)
    local report = row.check_report
    return type(report) == "table" and type(report.picks) == "table" and report.picks or {}
end

--- What the configs of active rules point at and is gone, by rule.
---@param tenant string
---@param rows table[] id, check_report
---@return table<string, string[]> in words
function M.lost(tenant, rows)
    local all, lost = {}, {}
    for _, row in ipairs(rows) do
        for _, pick in ipairs(picks_of(row)) do all[#all + 1] = { kind = pick.kind, id = pick.id, path = pick.path, rule = row.id } end
    end
    for _, pick in ipairs(pickers.lost(tenant, all)) do
        lost[pick.rule] = lost[pick.rule] or {}
        table.insert(lost[pick.rule], pickers.told(pick))
    end
    return lost
end

--- A percentile out of 16 buckets: the upper bound of the one it falls into.
---@param buckets integer[]
---@param p number 0..1
---@return integer|userdata null when there is nothing in them
function M.percentile(buckets, p)
    local total, sum = 0, 0
    for i = 1, 16 do total = total + buckets[i] end
    if total == 0 then return json.null end
    for i = 1, 16 do
        sum = sum + buckets[i]
        if sum >= total * p then return 4 ^ i end
    end
    return 4 ^ 16
end

--- Runs of the last day, by rule.
---@param tenant string
---@param now integer
---@return table<string, table> {runs24h, failures24h, p50Micros, p99Micros}
function M.health(tenant, now)
    local by = {}
    for _, h in ipairs(store.hours_of_all(tenant, time.iso(now - DAY_MS))) do
        local health = by[h.rule_id]
        if not health then
            health = { runs24h = 0, failures24h = 0, micros = {} }
            for i = 1, 16 do health.micros[i] = 0 end
            by[h.rule_id] = health
        end
        health.runs24h = health.runs24h + h.n
        if h.outcome ~= "ok" then health.failures24h = health.failures24h + h.n end
        for i = 1, 16 do health.micros[i] = health.micros[i] + (h.micros[i] or 0) end
    end
    for _, health in pairs(by) do
        health.p50Micros, health.p99Micros = M.percentile(health.micros, 0.5), M.percentile(health.micros, 0.99)
        health.micros = nil
    end
    return by
end

--- Everything the doctor asks of one tenant.
---@param tenant string
---@return {epoch: integer|nil, changed_ms: integer|nil, paused: string[], rules: table[]} rules: {key, state, open, share, lost, unpinned,
---older}; share: of the instruction budget, the most that a kept run of the last day used
function M.of(tenant)
    local now = time.now()
    local epoch, rows, libraries = store.overview(tenant, time.iso(now - DAY_MS))
    local newest = {}
    for _, library in ipairs(libraries) do newest[library.key] = library.sha256 end
    local lost = M.lost(tenant, rows)
    local facts = { epoch = epoch and epoch.epoch, changed_ms = epoch and time.parse(epoch.updated_at), paused = epoch and epoch.paused
        or {}, rules = {} }
    for i, row in ipairs(rows) do
        local pinned, unpinned, older = {}, {}, {}
        for _, library in ipairs(type(row.libs) == "table" and row.libs or {}) do
            pinned[library.key] = true
            if newest[library.key] and newest[library.key] ~= library.sha256 then older[#older + 1] = library.key end
        end
        for key in (row.source or ""):gmatch("%f[%w_]lib%s*%(?%s*[\"']([%w_-]+)[\"']") do
            if not pinned[key] then unpinned[#unpinned + 1] = key end
        end
        facts.rules[i] = { key = row.key, state = row.state, lost = lost[row.id] or {}, unpinned = unpinned, older = older,
            open = row.breaker_until ~= json.null and row.breaker_until ~= nil and time.parse(row.breaker_until) > now,
            share = (tonumber(row.instructions) or 0) / rules.limits(row.hook).instructions }
    end
    return facts
end

return M
