-- One JSON line per event, by core.log. What belongs to a request passes its ctx, so that the line carries the request's id,
-- tenant and user. Secrets and bodies are never fields.
local log = require("core.log")

local M = {}

local function with(ctx, fields)
    if not ctx then return fields or {} end
    local all = { req = ctx.id, tenant = ctx.tenant, user = ctx.user and ctx.user.id or nil, route = ctx.route }
    for key, value in pairs(fields or {}) do all[key] = value end
    return all
end

---@param message string
---@param fields table|nil
---@param ctx table|nil request context
function M.debug(message, fields, ctx) log.debug(message, with(ctx, fields)) end
function M.info(message, fields, ctx) log.info(message, with(ctx, fields)) end
function M.warn(message, fields, ctx) log.warn(message, with(ctx, fields)) end
function M.error(message, fields, ctx) log.error(message, with(ctx, fields)) end

return M
