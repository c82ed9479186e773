-- Module gate: with the tenant's setting `registry.enforce` on, a route of a module answers only where an active registry
-- row gives that module to the (app family, tenant). Off by default: then nothing is asked and nothing is read.
local cache = require("kasma.cache")
local db = require("kasma.db")
local errors = require("kasma.errors")
local invalidate = require("kasma.invalidate")
local settings = require("kasma.settings")

local M = {}

settings.declare("iam", {
    { key = "registry.enforce", type = "enum", values = { "off", "on" }, default = "off",
        help = "module gate: routes of a module need an active registry row" },
})

local ACTIVE = [[select app_family_key, module_key, version from registries where tenant_key = $1 and is_active
  order by app_family_key, module_key limit 2000]]

local rows = cache.new{ ttl_ms = 5000, load = function(tenant)
    local set = {}
    for _, row in ipairs(db.read(tenant, ACTIVE, tenant)) do set[row.app_family_key .. "|" .. row.module_key] = row.version end
    return set
end }
invalidate.on("registry", function(tenant) rows:drop(tenant) end)

--- The version of the module that the app (or its family) has, or nil.
---@param tenant string
---@param app string
---@param module string
---@return string|nil
function M.version(tenant, app, module)
    local set = rows:get(tenant)
    local family = app:match("^[^:]+")
    return set[app .. "|" .. module] or set[family .. "|" .. module]
end

--- Raises 403 unless the module is there for the request's app and tenant.
---@param ctx table
---@param module string
function M.check(ctx, module)
    if settings.get(ctx.tenant, "registry.enforce") ~= "on" then return end
    local req = ctx.req
    if not req:header("x-tenant-kasma-id") or not req:header("x-app-kasma-id") then
        errors.forbidden{ message = "Missing X-App-Kasma-Id or X-Tenant-Kasma-Id headers", code = "headers_missing" }
    end
    if not M.version(ctx.tenant, ctx.app, module) then
        errors.forbidden{ message = "App and Tenant do not have access to module: " .. module, code = "module_unavailable" }
    end
end

return M
