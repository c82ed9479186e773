-- Which rules a worker holds for a tenant. The truth is PostgreSQL: an epoch per tenant, moved on by whatever changes what is live.
-- A worker that asks reads the epoch anew when what it knows is older than a second, and loads what changed; a word by Redis makes it
-- sooner. With Redis away, or a message lost, it is a second late; with PostgreSQL away it goes on with what it holds.
local json = require("core.json")
local rules = require("core.rules")
local sched = require("core.sched")
local time = require("core.time")
local cache = require("kasma.cache")
local heartbeat = require("kasma.heartbeat")
local hooks = require("kasma.hooks")
local invalidate = require("kasma.invalidate")
local log = require("kasma.log")
local check = require("modules.rules.check")
local drafts = require("modules.rules.drafts")
local store = require("modules.rules.store")
local stream = require("modules.rules.stream")
local window = require("modules.rules.window")

local M = {}

local LOOK_MS, LOOK_TENANTS = 500, 8

local held, order, turn = {}, {}, 0 -- tenants whose rules this process holds, and the one that is looked at next
local stale = {}                    -- those whose newest rules it could not load: {epoch, why}

--- A row of a rule with its version, as the core takes it.
---@param row table id, key, hook, name, breaker_until, version, source, settings, libs
---@return table spec
function M.spec(row)
    local settings = row.settings or {}
    local starts_ms, ends_ms = window.of(settings)
    local fallback = settings.fallback
    return { id = row.key, rule_id = row.id, hook = row.hook, name = row.name, number = row.version, priority = settings.priority or 0,
        on_error = settings.on_error, source = row.source, config = check.config_text(settings.config),
        fallback = type(fallback) == "table" and fallback[1] ~= nil and json.encode(fallback) or nil,
        open_until_ms = row.breaker_until and row.breaker_until ~= json.null and time.parse(row.breaker_until) or 0,
        starts_ms = starts_ms, ends_ms = ends_ms, libs = type(row.libs) == "table" and row.libs or nil }
end

local function load(tenant, epoch)
    local row, active = store.active(tenant)
    local paused, specs = {}, {}
    for _, hook in ipairs(row and row.paused or {}) do paused[hook] = true end
    for _, rule in ipairs(active) do
        local stopped = paused["*"] or paused[rule.hook] or rule.hook == "library"
        if not stopped then specs[#specs + 1] = M.spec(rule) end
    end
    epoch = math.max(epoch, row and row.epoch or 0)
    local ok, err = rules.publish(tenant, epoch, specs)
    if not ok then
        -- What was live stays live; the next look tries again.
        log.error("rules could not be loaded", { tenant = tenant, epoch = epoch, error = err.message })
        stale[tenant] = { epoch = epoch, why = err.message }
        return
    end
    stale[tenant] = nil
    if not held[tenant] then
        held[tenant] = true
        order[#order + 1] = tenant
    end
    if epoch > 0 then
        heartbeat.set_epoch(tenant, epoch)
        stream.loaded(tenant, epoch)
    end
end

local epochs = cache.new{ ttl_ms = 1000, load = function(tenant)
    local epoch = store.epoch(tenant)
    if rules.epoch(tenant) ~= epoch then load(tenant, epoch) end
    return epoch
end }

--- Sees to it that this process holds the tenant's rules of an epoch that was true within the last second.
---@param tenant string
function M.ensure(tenant)
    local ok, why = pcall(epochs.get, epochs, tenant)
    if ok then return end
    if rules.epoch(tenant) then
        log.debug("the epoch of rules could not be read", { tenant = tenant })
        return
    end
    error(why, 0)
end

--- Tenants whose newest rules this process could not load: it goes on with those it had.
---@return table<string, {epoch: integer, why: string}>
function M.stale() return stale end

-- A word that was lost is made good when the tenant's next request comes. Where none comes, the worker looks by itself, at a few tenants
-- each time, so that whoever publishes does not see a worker that seems to be left behind.
local function look()
    for _ = 1, math.min(#order, LOOK_TENANTS) do
        turn = turn % #order + 1
        pcall(M.ensure, order[turn])
    end
end

--- Starts to look. Once a process.
function M.start() sched.every(LOOK_MS, look) end

--- Something that is live has changed: here now, elsewhere as fast as word gets about.
---@param tenant string
function M.changed(tenant)
    epochs:drop(tenant)
    local ok, why = pcall(epochs.get, epochs, tenant)
    if not ok then log.warn("rules are loaded later", { tenant = tenant, error = tostring(why) }) end
    invalidate.send("rules", tenant)
end

invalidate.on("rules", function(tenant)
    epochs:drop(tenant)
    if not rules.epoch(tenant) then return end -- nobody has asked for them here yet
    sched.spawn(function() pcall(M.ensure, tenant) end)
end)

hooks.set_source(function(scope)
    M.ensure(scope.tenant)
    local draft = scope.request and scope.request.rules_draft
    return draft and drafts.set_of(scope, draft) or nil
end)

return M
