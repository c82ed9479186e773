-- What a handler knows of its request. A handler takes from it what it needs and passes that on; services never see it.
--
--   ctx.req        the core's request (method, path, header(), cookie() ...)
--   ctx.id         request id
--   ctx.tenant     tenant key, final; ctx.app app key
--   ctx.scope      {tenant, app, actor_id, ...}: what services take as their first argument (who acts, for which tenant)
--   ctx.user       identity of the caller or nil (a guest); ctx.access its roles and permissions in this tenant
--   ctx.params, ctx.query, ctx.body   validated, converted, defaults filled in
--   ctx.may("x.write"), ctx.need("x.write"), ctx.ip(), ctx.user_agent(), ctx.now(), ctx.cart_token(), ctx.set_header(..),
--   ctx.set_cookie(..), ctx.read(max), ctx.lines(max): functions bound to the request, called with a dot
local json = require("core.json")
local time = require("core.time")
local access = require("kasma.access")
local body = require("kasma.body")
local errors = require("kasma.errors")
local policy = require("kasma.policy")
local text = require("kasma.text")
local web = require("kasma.web")

local M = {}

---@class kasma.Context
local Context = {}

local scope_of

-- A function is bound to its request, and the scope made, when it is first used; many requests use neither.
local bound = { __index = function(self, name)
    if name == "scope" then
        local scope = scope_of(self)
        if scope then rawset(self, "scope", scope) end
        return scope
    end
    local method = Context[name]
    if not method then return nil end
    local fn = function(...) return method(self, ...) end
    rawset(self, name, fn)
    return fn
end }

---@class Scope who acts, for which tenant, by which request
---@field tenant string
---@field app string
---@field actor_id string|nil
---@field actor_kind "user"|"key"|"guest"|"system"
---@field actor_email string|nil
---@field request table|nil {id, ip, method, path, user_agent, idempotency_key, rules_draft} for the audit

---@return kasma.Context
function M.new(req, decl)
    return setmetatable({ req = req, decl = decl, id = req.id, method = req.method, route = decl.path }, bound)
end

--- Client's address, behind trusted proxies too.
---@return string
function Context.ip(self)
    local address = self.address
    if not address then
        address = web.client_ip(self.req)
        self.address = address
    end
    return address
end

--- Adds a header to the answer.
---@param name string
---@param value string
function Context.set_header(self, name, value)
    local headers = self.headers
    if not headers then
        headers = {}
        self.headers = headers
    end
    headers[name] = value
end

--- Sets an HttpOnly cookie; max_age 0 clears it.
---@param name string
---@param value string
---@param max_age integer seconds
function Context.set_cookie(self, name, value, max_age)
    local cookies = self.cookies
    if not cookies then
        cookies = {}
        self.cookies = cookies
    end
    cookies[#cookies + 1] = web.cookie(name, value, max_age)
end

--- The next piece of a streamed body (`body = "stream"`). Raises 400 (damaged), 408 (too slow), 413 (too large).
---@param max integer|nil bytes at most, 1 to 1048576; default 65536
---@return string|nil piece nil: the body has ended, whole
function Context.read(self, max) return body.read(self.req, max) end

--- The lines of a streamed body, one after another: `for line, number in ctx.lines(4096) do`. Raises as ctx.read does, and 413
--- for a longer line.
---@param max integer|nil bytes of a line at most; default 65536
---@return fun(): string|nil, integer|nil line without its line end, its number
function Context.lines(self, max) return body.lines(function() return body.read(self.req) end, max) end

--- What the client calls itself: text that can be kept, whatever bytes came.
---@return string|nil
function Context.user_agent(self)
    local agent = self.req:header("user-agent")
    return agent and text.plain(agent, 512)
end

--- Business time of this request in epoch ms, the same each time it is asked.
---@return integer
function Context.now(self)
    local now = self.at
    if not now then
        now = time.now()
        self.at = now
    end
    return now
end

local function role_keys(ctx)
    local keys = {}
    for i, role in ipairs(ctx.access and ctx.access.roles or {}) do keys[i] = role.role_key end
    return keys
end

--- Whether the tenant's rules leave the caller a permission that they hold; asked once a request and permission.
---@param self kasma.Context
---@param permission string
---@return boolean
function M.left_by_rules(self, permission)
    local said = self.ruled
    if not said then
        said = {}
        self.ruled = said
    end
    if said[permission] == nil then
        said[permission] = policy.allows(self.scope, { user = self.user, role_keys = role_keys(self) }, permission, self.req.params,
            self.method)
    end
    return said[permission]
end

---@param permission string
---@return boolean true when the caller holds it in this tenant, and no rule of the tenant takes it away
function Context.may(self, permission)
    local user = self.user
    if not user then return false end
    local held
    if user.kind == "key" then
        held = access.allows(user.scopes, permission)
    else
        held = self.access ~= nil and access.allows(self.access.permissions, permission)
    end
    return held and M.left_by_rules(self, permission)
end

--- Refuses a caller who may not, as the gate does: 403, and a record of the denial.
---@param permission string
function Context.need(self, permission)
    if Context.may(self, permission) then return end
    self.denied = permission
    errors.forbidden("Forbidden resource")
end

--- The grants that the caller may hand on.
---@return table<string, boolean>
function Context.grants(self)
    if not self.user then return {} end
    if self.user.kind == "key" then return self.user.scopes end
    return self.access and self.access.permissions or {}
end

--- A guest's cart token, by header or cookie; nil when there is none or it is malformed.
---@return string|nil
function Context.cart_token(self)
    local token = self.req:header("x-cart-token") or self.req:cookie("cart_token")
    if token and #token <= 128 and token:find("^[%w_-]+$") then return token end
    return nil
end

-- What the audit tells of a request, looked up when it is asked for.
local request = { __index = function(self, key)
    local ctx = rawget(self, 1)
    if key == "id" then return ctx.id end
    if key == "ip" then return ctx.ip() end
    if key == "method" then return ctx.method end
    if key == "path" then return ctx.req.path end
    if key == "user_agent" then return ctx.user_agent() end
    if key == "rules_draft" then return ctx.req:header("x-kasma-rules-draft") end
    if key == "idempotency_key" then return ctx.idempotency and ctx.idempotency.key end
    return nil
end }

-- Nil until the tenant is settled.
scope_of = function(ctx)
    local tenant = rawget(ctx, "tenant")
    if not tenant then return nil end
    local user = ctx.user
    local scope = { tenant = tenant, app = ctx.app, request = setmetatable({ ctx }, request) }
    if user then
        scope.actor_id, scope.actor_kind, scope.actor_email, scope.session_id = user.id, user.kind, user.email, user.session_id
    else
        scope.actor_kind = "guest"
    end
    return scope
end

--- Marks an answer that the handler has given by itself (a stream, a file).
M.ANSWERED = setmetatable({}, { __tostring = function() return "answered" end })

---@param value any
---@return string
function M.encode(value) return json.encode(value) end

return M
