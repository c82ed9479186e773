-- Which tenants and apps there are, and which one a host name means. Platform rows, cached for at most a second.
local config = require("core.config")
local sched = require("core.sched")
local cache = require("kasma.cache")
local db = require("kasma.db")
local errors = require("kasma.errors")
local invalidate = require("kasma.invalidate")
local log = require("kasma.log")

local M = {}

M.DEFAULT = "MASTER"

local TENANT = [[select tenant_key, name, is_active and status = 'active' as is_active, status, country, default_currency, default_locale,
  timezone, settings, settings_epoch, plan, is_test from tenants where tenant_key = $1]]
local APP = [[select app_key, tenant_key, name, kind, allowed_origins, hostnames, is_active from apps where app_key = $1]]
-- A host name of an app that is switched off still names it, so that its visitors are told so and see no other shop.
local HOST = [[select app_key, tenant_key from apps where hostnames @> array[$1]::text[] order by is_active desc, app_key limit 1]]

local tenants = cache.new{ ttl_ms = 1000, load = function(key) return db.one(nil, TENANT, key) end }
local apps = cache.new{ ttl_ms = 1000, load = function(key) return db.one(nil, APP, key) end }
local hosts = cache.new{ ttl_ms = 1000, max = 2000, load = function(host) return db.one(nil, HOST, host) end }

invalidate.on("tenant", function(key) tenants:drop(key) end)
invalidate.on("app", function(key)
    apps:drop(key)
    hosts:clear()
end)

--- Calls fn with the key of every tenant, in their order; what is made meanwhile may be left out.
---@param fn fun(key: string): boolean|nil false: no further
function M.each(fn)
    local after = ""
    repeat
        local rows = db.read(nil, "select tenant_key from tenants where tenant_key > $1 order by tenant_key limit 500", after)
        for _, row in ipairs(rows) do
            if fn(row.tenant_key) == false then return end
            after = row.tenant_key
        end
    until #rows < 500
end

local GIVE_UP = 5

--- The same for the work of an hour or a night, until the process stops: a tenant whose turn fails costs the others nothing. It is logged,
--- and when all had their turn the whole fails, so that it is seen and tried again. Where a store is away for several in a row, it is for
--- all, and the rest wait for the next time.
---@param work string what is done, for the log
---@param fn fun(key: string)
function M.sweep(work, fn)
    local failed, first, away = {}, nil, 0
    M.each(function(key)
        local ok, why = pcall(fn, key)
        if ok then
            away = 0
        else
            failed[#failed + 1] = key
            first = first or why
            away = errors.is_unavailable(why) and away + 1 or 0
            log.warn("a tenant's turn failed", { work = work, tenant = key, error = tostring(why) })
        end
        return away < GIVE_UP and not sched.stopping()
    end)
    if away >= GIVE_UP then error(first, 0) end
    if failed[1] then
        error(("%s failed for %d tenant(s) (%s%s): %s"):format(work, #failed, table.concat(failed, ", ", 1, math.min(#failed, 5)),
            #failed > 5 and ", ..." or "", tostring(first)), 0)
    end
end

--- The form of every tenant key; what does not fit is no tenant.
---@param key any
---@return boolean
function M.is_key(key) return type(key) == "string" and #key <= 63 and key:find("^[A-Za-z0-9][A-Za-z0-9_-]*$") ~= nil end

---@param key string
---@return boolean
function M.is_app_key(key) return type(key) == "string" and #key <= 63 and key:find("^[A-Za-z0-9][A-Za-z0-9_:-]*$") ~= nil end

---@param key string
---@return table|nil tenant {tenant_key, name, is_active, country, default_currency, default_locale, timezone, settings, settings_epoch}
function M.by_key(key)
    -- What is cached was checked when it was loaded; the pattern stays off the plain path.
    if not tenants.entries[key] and not M.is_key(key) then return nil end
    return tenants:get(key)
end

---@param key string
---@return table|nil app {app_key, tenant_key, kind, allowed_origins, hostnames, is_active}
function M.app(key)
    if not apps.entries[key] and not M.is_app_key(key) then return nil end
    return apps:get(key)
end

-- Host headers as they come -> the name in them.
local names, named, NAMES_MAX = {}, 0, 2000

--- The app whose host name this is.
---@param host string|nil Host header
---@return table|nil {app_key, tenant_key}
function M.by_host(host)
    if not host or #host > 260 then return nil end
    local name = names[host]
    if not name then
        -- As names are written: in any case, with a port, with the root's dot.
        name = (host:match("^%[([%x:.]+)%]") or host:match("^[^:%[]+") or ""):lower():gsub("%.$", "")
        if named >= NAMES_MAX then names, named = {}, 0 end
        names[host], named = name, named + 1
    end
    return hosts:get(name)
end

--- ISO 4217 code of the tenant's base currency.
---@param key string
---@return string
function M.currency(key)
    local found = M.by_key(key)
    return found and found.default_currency or "VND"
end

local KNOWN = "select 1 as yes from apps where allowed_origins @> array[$1]::text[] and is_active limit 1"
local origins = cache.new{ ttl_ms = 1000, max = 2000, load = function(origin) return db.one(nil, KNOWN, origin) end }
invalidate.on("app", function() origins:clear() end)

--- Whether a browser may ask from there at all, before it is known for which app: a preflight carries no header of ours.
---@param origin string
---@return boolean
function M.origin_known(origin) return #origin <= 255 and origins:get(origin) ~= nil end

--- Outside production any origin may call; in production those of the app and of CORS_ORIGINS.
---@param origin string
---@param app_key string|nil
---@return boolean
function M.origin_allowed(origin, app_key)
    if config.env() ~= "production" then return true end
    for allowed in tostring(config.get("CORS_ORIGINS") or ""):gmatch("[^,%s]+") do
        if allowed == origin then return true end
    end
    local app = app_key and M.app(app_key)
    for _, allowed in ipairs(app and app.allowed_origins or {}) do
        if allowed == origin then return true end
    end
    return false
end

return M
