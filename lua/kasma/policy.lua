-- The rules that narrow, shape or name what the framework itself does: permissions, limits, hosts, mails, the audit. Each is asked only
-- where a tenant has such a rule; for all others the question is one look into a table.
--
-- A rule of a tenant can take rights away and never give any; and it is not asked about `rules.*`, so that nobody locks themselves out
-- of the rules by a rule.
local html = require("core.html")
local cache = require("kasma.cache")
local hooks = require("kasma.hooks")
local log = require("kasma.log")
local tenants = require("kasma.tenant")

local M = {}

-- Half a second late at most: a rule that was just published counts from then on.
local counts = cache.new{ ttl_ms = 500, max = 20000, load = function(key)
    local tenant, hook = key:match("^(.-)|(.+)$")
    local ok, set = pcall(hooks.pin, { tenant = tenant })
    return ok and set:count(hook) or 0
end }

--- Whether a tenant has a rule for the hook.
---@param tenant string
---@param hook string
---@return boolean
function M.has(tenant, hook) return counts:get(tenant .. "|" .. hook) > 0 end

--- False when a rule of the tenant takes the permission away from this request, or fails.
---@param scope Scope
---@param caller {user: kasma.Identity, role_keys: string[]}
---@param permission string
---@param entity table|nil what the path names
---@param method string
---@return boolean
function M.allows(scope, caller, permission, entity, method)
    if permission:sub(1, 6) == "rules." or not M.has(scope.tenant, "rbac.extra_check") then return true end
    local user = caller.user
    local answer, info = hooks.call(scope, "rbac.extra_check", { user = { id = user.id, email = user.email,
        user_type = user.user_type or "KEY", role_keys = caller.role_keys }, permission = permission,
        entity_type = permission:match("^(.+)%.[^.]+$") or permission, entity = entity, method = method })
    if answer then return answer.allow == true end
    return not (info and info.failed)
end

local OTHER = { "accept-language", "user-agent", "x-forwarded-host", "referer" }

--- Tenant and app that a rule of the platform names for a host, or nil.
---@param req table
---@return {tenant_key: string, app_key: string|nil}|nil
function M.resolve(req)
    if not M.has(tenants.DEFAULT, "tenant.resolve") then return nil end
    local headers = {}
    for _, name in ipairs(OTHER) do headers[name] = req:header(name) end
    local answer = hooks.call({ tenant = tenants.DEFAULT, app = tenants.DEFAULT }, "tenant.resolve", { host = req:header("host") or "",
        path = req.path, headers = headers })
    local row = answer and tenants.by_key(answer.tenant_key)
    if not row or not row.is_active then return nil end
    local app = answer.app_key and tenants.app(answer.app_key)
    if app and (app.tenant_key ~= row.tenant_key or not app.is_active) then app = nil end
    return { tenant_key = row.tenant_key, app_key = app and app.app_key or nil }
end

-- What a rule may ask for at most, in multiples of the platform's own limit, and how long a window may be.
local LIMIT_TIMES_MAX, WINDOW_MAX_S = 10, 3600
local asked = {}

local limits = cache.new{ ttl_ms = 5000, max = 20000, load = function(key)
    local tenant, rule = key:match("^(.-)|(.+)$")
    local own = asked[rule]
    local row = tenants.by_key(tenant)
    local answer = hooks.call({ tenant = tenant, app = tenants.DEFAULT }, "ratelimit.override", { rule = rule, subject_kind = rule,
        plan = row and row.plan or "" })
    if not answer then return nil end
    return { limit = math.min(answer.limit, own.limit * LIMIT_TIMES_MAX), window_s = math.min(answer.window, WINDOW_MAX_S) }
end }

--- Another limit for a rule of the general ones, or nil.
---@param tenant string|nil
---@param rule "ip"|"user"|"key"
---@param own {limit: integer, window_s: integer} the platform's
---@return {limit: integer, window_s: integer}|nil
function M.limit(tenant, rule, own)
    if not tenant or not M.has(tenant, "ratelimit.override") then return nil end
    asked[rule] = own
    return limits:get(tenant .. "|" .. rule)
end

--- A mail as a rule of the tenant writes it, its HTML made safe; nil: the template. A code that is mailed must be in it.
---@param tenant string
---@param m {template: string, locale: string, vars: table}
---@return {subject: string, text: string, html: string|nil}|nil
function M.mail(tenant, m)
    if not M.has(tenant, "mail.render") then return nil end
    local answer = hooks.call({ tenant = tenant, app = tenants.DEFAULT }, "mail.render", { template = m.template, locale = m.locale,
        vars = m.vars })
    if not answer or answer.subject:find("[\r\n]") then return nil end
    local made = { subject = answer.subject, text = answer.text, html = answer.html and html.sanitize(answer.html) or nil }
    local code = m.vars.code
    if code then
        code = tostring(code)
        if not made.text:find(code, 1, true) or (made.html and not made.html:find(code, 1, true)) then
            log.warn("a rule wrote a mail without its code; the template is sent", { tenant = tenant, template = m.template })
            return nil
        end
    end
    return made
end

local function mask_at(value, path)
    local name, rest = path:match("^([^.]+)%.?(.*)$")
    if type(value) ~= "table" or not name or value[name] == nil then return value end
    local copy = {}
    for key, member in pairs(value) do copy[key] = member end
    if rest == "" then copy[name] = "***" else copy[name] = mask_at(copy[name], rest) end
    return setmetatable(copy, getmetatable(value))
end

--- before and after of an audit event, masked where a rule of the tenant says so; events are never dropped.
---@param scope Scope
---@param event kasma.AuditEvent with before and after whose secrets are masked already
---@return any before, any after
function M.mask(scope, event)
    if not M.has(scope.tenant, "audit.filter") then return event.before, event.after end
    local answer = hooks.call({ tenant = scope.tenant, app = scope.app }, "audit.filter", { event = { action = event.action,
        entity_type = event.entity_type, entity_id = event.entity_id, outcome = event.outcome, actor_id = scope.actor_id,
        before = event.before, after = event.after } })
    local masked = { before = event.before, after = event.after }
    for _, path in ipairs(answer and answer.mask or {}) do
        if path:find("^before%.") or path:find("^after%.") then masked = mask_at(masked, path) end
    end
    return masked.before, masked.after
end

return M
