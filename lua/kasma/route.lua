-- One declaration a route, the single source of routing, validation, permission, module gate, idempotency, the API document
-- and the catalogue of permissions.
--
--     route.post("/sales/orders/checkout", {
--         summary = "Place an order from the caller's cart",
--         access = "user",               -- "public" | "user" | {permission = "orders.write"} | {platform = "tenants.write"}
--                                        -- | {secret = "INTERNAL_WEBHOOK_SECRET", header = "x-internal-secret"}
--         module = "sales",              -- gate and tag
--         idempotent = "transaction",    -- the record is completed in the business transaction; default: Redis; false: never
--         body = schema.object{ ... }, query = schema.object{ ... }, params = { id = schema.uuid{ on_bad = 404 } },
--         returns = { [201] = Checkout, [409] = orders.out_of_stock },
--         handler = function(ctx) return orders.checkout(ctx.scope, ctx.body), 201 end,
--     })
--
-- A handler answers `body [, status]`: a table is JSON, a string text/html, nil an empty body; errors are raised. POST is 201
-- and everything else 200 unless `status` says otherwise.
--
-- The steps, in this order: candidate tenant, rate limit, authenticate, tenant for good, module, permission, idempotency,
-- validate, handler, serialise, write, denials to the audit. `bare = true` skips them all: handler(req) answers by itself.
local config = require("core.config")
local json = require("core.json")
local server = require("core.server")
local access = require("kasma.access")
local auth = require("kasma.auth")
local context = require("kasma.context")
local errors = require("kasma.errors")
local idempotency = require("kasma.idempotency")
local log = require("kasma.log")
local modules_gate = require("kasma.gate")
local null = require("kasma.null")
local policy = require("kasma.policy")
local ratelimit = require("kasma.ratelimit")
local schema = require("kasma.schema")
local settings = require("kasma.settings")
local tenants = require("kasma.tenant")
local web = require("kasma.web")

local M = {}

---@class kasma.Route
---@field method string
---@field path string
---@field summary string at most 80 characters
---@field access "public"|"user"|table
---@field module string|nil
---@field tag string|nil default: module
---@field body kasma.Schema|false|"stream"|nil false: the handler reads it by itself; "stream": piece by piece, with ctx.read
---@field query kasma.Schema|nil
---@field params table<string, kasma.Schema>|nil
---@field returns kasma.Schema|table<integer, any>|nil
---@field status integer
---@field idempotent boolean|string|nil
---@field handler fun(ctx: kasma.Context): any, integer|nil
---@field body_type string|nil media type of a streamed body; default application/octet-stream
---@field strict boolean|nil public route on which a bad credential is 401 all the same
---@field account boolean|nil the caller's own account: reachable without membership
---@field ends_session boolean|nil ends a session and opens nothing: answered for a tenant that is switched off too
---@field restricted boolean|nil reachable with a session that may only set a password
---@field named_tenant "params"|"body"|"query"|nil the route names another tenant, in `tenant_key`
---@field no_store boolean|nil
---@field bare boolean|nil
---@field resolve (fun(ctx: kasma.Context): kasma.Route)|nil the declaration that answers in fact, known when the tenant is; may raise 404.
---The one that is mounted is public then, and says nothing of access, query, body and idempotency
---@field process boolean|nil about the process itself: answered by `kasma work` too, where that listens
---@field aliases string[]|nil other paths
---@field websocket (fun(ctx: kasma.Context): table)|nil instead of a handler: the request becomes a WebSocket with these options
---@field events (fun(ctx: kasma.Context): table)|nil the same for an event stream; both are those of core.push, and `opened(state, socket)`
---@field identify (fun(req: table): kasma.Identity|nil)|nil who calls; default: auth.identify
---@field tenant_in_query boolean|nil query members tenant_key and app_key stand for the headers, which browsers cannot send here

local routes = {}

--- All declared routes, in the order of declaration.
---@return kasma.Route[]
function M.all() return routes end

local permissions = {}

--- Permissions that the declarations name: key -> description.
---@return table<string, string>
function M.permissions() return permissions end

--- Names a permission that no route needs by itself (checked inside a handler).
---@param key string
---@param description string
function M.permission(key, description) permissions[key] = description end

local SAFE = { GET = true, HEAD = true }

-- Whether a page of another origin has no business with what its visitor's browser carries by itself. A session is for the pages of its
-- own tenant. In another tenant that its person belongs to it serves that tenant's pages too, but not for the account, which is one over
-- all tenants, and not for a tenant that the request names otherwise: its app is none of that tenant's then.
local function is_foreign_page(ctx, decl)
    local req, identity = ctx.req, ctx.user or ctx.stranger
    if not identity then return web.is_cross_site(req) and web.is_cross_site(req, ctx.app) end
    if not web.is_cross_site(req, web.app_of(req, identity)) then return false end
    return web.is_cross_site(req, ctx.app) or (decl.account and ctx.tenant ~= identity.tenant_key)
end

-- Lets the pages read an answer whose app has let them in; one that was made for a cookie only those that the cookie is for.
local function add_cors(ctx, headers, origin)
    local user = ctx.user
    if user and user.via == "cookie" then
        local ok, foreign = pcall(is_foreign_page, ctx, ctx.decl)
        if not ok or foreign then
            headers["Vary"] = "Origin"
            return
        end
    end
    web.add_cors(ctx.req, headers, origin, ctx.app)
end

-- A body that is taken piece by piece is never there whole, so that nothing can be said about it before the handler has begun:
-- neither validated nor compared with that of an earlier request of the same key.
local function declare_stream(name, decl)
    assert(not decl.idempotent, name .. ": a route that streams its body cannot be idempotent by key")
    assert(not decl.spool, name .. ": a body is streamed or spooled")
    assert(not SAFE[decl.method], name .. ": a body to stream needs POST, PUT, PATCH or DELETE")
    decl.streamed, decl.body, decl.idempotent = true, false, false
    decl.body_type = (decl.body_type or "application/octet-stream"):lower()
end

-- Turns the request into a connection that stays, when the handshake is in order.
local function becomes(kind, open)
    return function(ctx)
        local req = ctx.req
        local options = open(ctx)
        local origin = req:header("origin")
        if kind == "events" and origin then
            options.headers = options.headers or {}
            add_cors(ctx, options.headers, origin)
        end
        local socket, err = req[kind](req, options)
        if not socket then
            local status = tonumber(err.code) or 503
            if status == 426 then ctx.set_header("Sec-WebSocket-Version", "13") end
            if status == 503 then errors.unavailable(err.message) end
            errors.raise(status, err.message)
        end
        if options.opened then options.opened(options.state, socket) end
        return context.ANSWERED
    end
end

local function add(method, path, decl)
    if decl.websocket then decl.handler = becomes("websocket", decl.websocket) end
    if decl.events then decl.handler = becomes("events", decl.events) end
    assert(type(decl.handler) == "function", method .. " " .. path .. ": a route needs a handler")
    assert(decl.bare or decl.access, method .. " " .. path .. ": who may call it?")
    decl.method, decl.path = method, path
    if decl.body == "stream" then declare_stream(method .. " " .. path, decl) end
    decl.status = decl.status or (method == "POST" and 201 or 200)
    local who = decl.access
    if type(who) == "table" then
        decl.permission = who.permission or who.platform
        decl.platform_only = who.platform ~= nil
        decl.secret = who.secret
        assert(decl.permission or decl.secret, method .. " " .. path .. ": access names no permission and no secret")
        if decl.permission and not permissions[decl.permission] then permissions[decl.permission] = decl.summary or "" end
    end
    decl.public = who == "public" or decl.bare
    decl.tag = decl.tag or decl.module or "system"
    -- A session that may only set a password reaches what belongs to signing in.
    if decl.tag == "auth" then decl.restricted = true end
    if decl.request_headers then web.allow_headers(decl.request_headers) end
    routes[#routes + 1] = decl
    return decl
end

---@param path string
---@param decl kasma.Route
function M.get(path, decl) return add("GET", path, decl) end
function M.post(path, decl) return add("POST", path, decl) end
function M.put(path, decl) return add("PUT", path, decl) end
function M.patch(path, decl) return add("PATCH", path, decl) end
function M.delete(path, decl) return add("DELETE", path, decl) end

-- Answers ----------------------------------------------------------------------------------------------------------------

local JSON_TYPE = "application/json; charset=utf-8"
local HTML_TYPE = "text/html; charset=utf-8"
local JSON_HEADERS = { ["Content-Type"] = JSON_TYPE }
local JSON_NO_STORE = { ["Content-Type"] = JSON_TYPE, ["Cache-Control"] = "no-store" }
local HTML_HEADERS = { ["Content-Type"] = HTML_TYPE }

local function respond(req, status, headers, body)
    if type(body) == "table" then return req:respond_json(status, headers, body) end
    return req:respond(status, headers, body)
end

-- Writes the answer: text, or a table to be encoded. `fixed` is the shared header table of the plain case, which is what
-- nearly every answer is. Raises when the table cannot be encoded; nothing was sent then.
local function write(ctx, status, fixed, body)
    local req = ctx.req
    local own, cookies = ctx.headers, ctx.cookies
    local origin = req:header("origin")
    local no_store = ctx.decl.no_store
    if not own and not cookies and not origin then
        if no_store and fixed == JSON_HEADERS then fixed = JSON_NO_STORE end
        respond(req, status, fixed, body)
        return
    end
    local headers = {}
    if fixed then for name, value in pairs(fixed) do headers[name] = value end end
    if no_store then headers["Cache-Control"] = "no-store" end
    if own then for name, value in pairs(own) do headers[name] = value end end
    if cookies then headers["Set-Cookie"] = cookies end
    if origin then add_cors(ctx, headers, origin) end
    respond(req, status, headers, body)
end

local function error_text(ctx, err)
    if err.object then return json.encode(err.object) end
    local message = err.message
    if type(message) == "table" then message = json.array(message) end
    local order = { "message", "error", "statusCode" }
    local body = { message = message, error = errors.reason(err.status), statusCode = err.status }
    if err.status == 413 or err.status == 415 or err.status == 500 then
        order = { "statusCode", "message" }
        body.error = nil
    end
    if err.code then
        order[#order + 1] = "code"
        body.code = err.code
    end
    if err.details ~= nil then
        order[#order + 1] = "details"
        body.details = err.details
    end
    if err.status ~= 413 and err.status ~= 415 then
        order[#order + 1] = "requestId"
        body.requestId = ctx.id
    end
    return json.encode(json.object(order, body))
end

local function fail(ctx, err)
    if not errors.is(err) then
        if errors.is_store(err) then
            err = errors.from_store(err)
        else
            log.error("request failed", { error = tostring(err), method = ctx.method }, ctx)
            err = errors.new(500, "Internal server error")
        end
    end
    if err.status >= 500 and err.cause then
        local cause = err.cause
        log.error("store failed", { kind = cause.kind, code = cause.code, error = cause.message, constraint = cause.constraint,
            statement = cause.statement, method = ctx.method, trace = err.trace }, ctx)
    end
    if err.headers then
        for name, value in pairs(err.headers) do ctx.set_header(name, value) end
    end
    local text = error_text(ctx, err)
    return err.status, text
end

-- Body ---------------------------------------------------------------------------------------------------------------------

local function parse_json(req)
    local value, err = req:json()
    if value == nil then errors.bad_request((err and err.message) or "Unexpected end of JSON input") end
    if type(value) ~= "table" then
        errors.bad_request(("Unexpected token %s in JSON at position 0"):format(req:body():match("^%s*(.)") or ""))
    end
    return value
end

local function read_body(ctx)
    local req = ctx.req
    if req.body_size == 0 then return nil end
    if req.content == "json" then return parse_json(req) end
    local content_type = req:header("content-type")
    local kind = content_type and content_type:match("^%s*([^;%s]+)")
    kind = kind and kind:lower()
    if kind == "application/json" or (kind and kind:find("^application/[%w.-]+%+json$")) then return parse_json(req) end
    if kind == "application/x-www-form-urlencoded" then return (req:form()) end
    if kind == nil or kind == "text/plain" then
        local text, err = req:body()
        if not text then errors.bad_request(err.message) end
        if not text:find("^%s*[%[{]") then return nil end
        -- A browser sends text/plain anywhere without asking first: with a session cookie that would be a forgery's way in.
        if req:cookie("access_token") or req:cookie("refresh_token") then
            errors.raise(415, { message = 'unsupported content type "' .. (kind or "") .. '"' })
        end
        return parse_json(req)
    end
    return nil
end

-- Types that a browser sends anywhere without asking first are never a streamed body's.
local function check_stream_type(ctx, decl)
    local req = ctx.req
    if req.content == "none" then return end
    local kind = (req:header("content-type") or ""):match("^%s*([^;%s]*)"):lower()
    if kind ~= decl.body_type then errors.unsupported{ message = ('unsupported content type "%s"'):format(kind) } end
end

-- Steps ----------------------------------------------------------------------------------------------------------------------

local function unavailable_tenant() errors.forbidden{ message = "Tenant is not available", code = "tenant_unavailable" } end
local function not_a_member() errors.forbidden{ message = "You do not belong to this tenant", code = "not_a_member" } end

local function cross_site() errors.forbidden{ message = "Cross-site request refused", code = "cross_site" } end

local SWITCH = "tenants.switch"

-- Whether the caller may work in `tenant`: as itself (true), or as a guest (false, public routes only).
local function admitted(ctx, identity, tenant)
    if identity.kind == "key" then
        if identity.tenant_key ~= tenant then not_a_member() end
        return true
    end
    local mine = access.of(tenant, identity.id)
    if mine.member then
        ctx.access = mine
        return true
    end
    if access.allows(mine.platform, SWITCH) then
        ctx.access = mine
        ctx.switched = true
        return true
    end
    return false
end

-- What a publishable key says, when there is one.
local function published(req)
    local key = req:header("x-kasma-key")
    return key and key:sub(1, 4) == "kpk_" and auth.publishable(key, web.client_ip(req)) or nil
end

-- Tenant and app for good: the key's; a header's; the session's; the host name's; MASTER.
local function settle_tenant(ctx, decl, identity)
    local req = ctx.req
    local wanted, wanted_app = req:header("x-tenant-kasma-id"), req:header("x-app-kasma-id")
    if decl.tenant_in_query then
        local query = req:query_table()
        if not wanted and type(query.tenant_key) == "string" then wanted = query.tenant_key end
        if not wanted_app and type(query.app_key) == "string" then wanted_app = query.app_key end
    end
    local tenant, app
    -- A key and a ticket of the realtime hub are for the tenant that they were made in.
    local by_key = identity and (identity.kind == "key" or identity.via == "ticket") and identity or published(req)
    if by_key then
        tenant, app = by_key.tenant_key, by_key.app_key
        if wanted and wanted ~= tenant then not_a_member() end
    elseif wanted then
        tenant = wanted
    elseif identity and identity.tenant_key then
        tenant, app = identity.tenant_key, identity.app_key
    else
        local host = policy.resolve(req) or tenants.by_host(req:header("host"))
        if host then tenant, app = host.tenant_key, host.app_key else tenant = tenants.DEFAULT end
    end
    local row = tenants.by_key(tenant)
    if not row or not row.is_active then
        if not decl.ends_session then unavailable_tenant() end
        row, app, wanted_app = tenants.by_key(tenants.DEFAULT), nil, nil
    end
    ctx.tenant = row.tenant_key
    if wanted_app == tenants.DEFAULT then
        app = wanted_app    -- no app in particular: what answers say where there is none
    elseif wanted_app then
        local found = tenants.app(wanted_app)
        if not found or not found.is_active or found.tenant_key ~= ctx.tenant then unavailable_tenant() end
        app = found.app_key
    elseif not app and identity and identity.tenant_key == ctx.tenant then
        app = identity.app_key
    end
    if not app then
        local host = tenants.by_host(req:header("host"))
        app = host and host.tenant_key == ctx.tenant and host.app_key or tenants.DEFAULT
    end
    if app ~= wanted_app and app ~= tenants.DEFAULT then
        -- What the key, the session or the host name says may have been switched off since.
        local found = tenants.app(app)
        if not found or not found.is_active or found.tenant_key ~= ctx.tenant then unavailable_tenant() end
    end
    ctx.app = app
    ctx.user = identity
    if identity and not admitted(ctx, identity, ctx.tenant) then
        if decl.public then
            ctx.user = nil
            ctx.stranger = identity
        elseif decl.account and (not wanted or wanted == identity.tenant_key) then
            ctx.access = access.of(ctx.tenant, identity.id)
        else
            not_a_member()
        end
    end
end

-- A route that names another tenant in its path or body runs under that tenant, after the same check as a header.
local function name_tenant(ctx, decl, value)
    if type(value) ~= "string" then return end
    local row = tenants.by_key(value)
    if not row then
        if decl.named_tenant == "params" then errors.not_found{ message = "Tenant not found" } end
        unavailable_tenant()
    end
    if row.tenant_key == ctx.tenant then return end
    ctx.access = nil
    if not admitted(ctx, ctx.user, row.tenant_key) then not_a_member() end
    -- Of one that is switched off the platform's staff alone decides.
    if not row.is_active and not access.allows(ctx.access.platform, SWITCH) then unavailable_tenant() end
    local app = tenants.app(ctx.app)
    ctx.tenant = row.tenant_key
    if not app or app.tenant_key ~= row.tenant_key then ctx.app = tenants.DEFAULT end
end

local function check_permission(ctx, decl)
    local user = ctx.user
    if user.restricted and not decl.restricted then
        errors.forbidden{ message = "Password change required", code = "password_change_required" }
    end
    local permission = decl.permission
    if not permission then return end
    local allowed
    if user.kind == "key" then
        allowed = not decl.platform_only and access.allows(user.scopes, permission)
    elseif decl.platform_only then
        allowed = ctx.access and access.allows(ctx.access.platform, permission)
    else
        allowed = ctx.access and access.allows(ctx.access.permissions, permission)
    end
    if allowed and not decl.platform_only then allowed = context.left_by_rules(ctx, permission) end
    if not allowed and not (decl.access.unless and decl.access.unless(ctx)) then
        ctx.denied = permission
        errors.forbidden("Forbidden resource")
    end
end

local function validate(ctx, decl)
    local messages, missing
    if decl.params_schema then
        local clean, errs = schema.check(decl.params_schema, ctx.req.params, true)
        if errs then
            messages, missing = errs[1] and errs, errs.not_found
        else
            ctx.params = clean
        end
    end
    if decl.query_schema then
        local clean, errs = schema.check(decl.query_schema, ctx.req:query_table(), true)
        if errs then
            messages, missing = messages or (errs[1] and errs), missing or errs.not_found
        else
            ctx.query = clean
        end
    end
    if decl.body then
        local clean, errs = schema.check(decl.body, ctx.parsed)
        if errs then
            messages, missing = messages or (errs[1] and errs), missing or errs.not_found
        else
            ctx.body = clean
        end
    end
    if messages then errors.validation(messages) end
    if missing then errors.not_found(missing) end
end

local function principal(ctx)
    local user = ctx.user
    if user then return user.kind .. ":" .. user.id end
    local token = ctx.cart_token()
    return token and ("cart:" .. token) or nil
end

-- `METHOD path` however it is written: a path has no case, and /api before it or a slash behind it say nothing.
local function plain_name(method, path)
    path = path:lower():gsub("^/api/", "/"):gsub("/+$", "")
    return method:upper() .. " " .. path
end

local function is_called(decl, entry)
    local method, path = entry:match("^%s*(%a+)%s+(/%S*)%s*$")
    local name = method and plain_name(method, path)
    if not name then return false end
    if plain_name(decl.method, decl.path) == name then return true end
    for _, alias in ipairs(decl.aliases or {}) do
        if plain_name(decl.method, alias) == name then return true end
    end
    return false
end

local function required_key(ctx, decl)
    for _, entry in ipairs(settings.get(ctx.tenant, "idempotency.required")) do
        if is_called(decl, entry) then return true end
    end
    return false
end

--- Whether `METHOD path` is a route that takes an idempotency key: one that is declared (parameters as it names them), or a shop's own
--- under /x/.
---@param entry string
---@return boolean
function M.takes_key(entry)
    local method, path = entry:match("^%s*(%a+)%s+(/%S*)%s*$")
    if not method then return false end
    local name = plain_name(method, path)
    for _, decl in ipairs(routes) do
        if not SAFE[decl.method] and decl.idempotent ~= false and not decl.bare then
            if is_called(decl, entry) then return true end
            local mounted = decl.resolve and decl.path:match("^(.-)%*")
            if mounted and name:find(plain_name(decl.method, mounted) .. "/", 1, true) == 1 then return true end
        end
    end
    return false
end

-- Reads the key and claims it; answers what to replay, or nil.
local function claim_key(ctx, decl)
    local required = required_key(ctx, decl)
    local key = idempotency.key_of(ctx, required)
    if not key then return nil end
    local who = principal(ctx)
    if not who then return nil end
    local state = idempotency.start(ctx, key, who, decl.body ~= false and ctx.req:body() or nil)
    state.transaction = decl.idempotent == "transaction"
    ctx.idempotency = state
    if state.transaction then return idempotency.claim(ctx, state) end
    return idempotency.claim_redis(state)
end

local function close_key(ctx, failed, status, fixed, text)
    local state = ctx.idempotency
    if not state then return end
    -- Not kept: what failed before the handler began, and server errors.
    -- What asks to be tried again must not be the answer to the next try.
    local again = ctx.headers and ctx.headers["Retry-After"]
    local kept = ctx.began and status < 500 and status ~= 429 and not again
    local content_type = ctx.headers and ctx.headers["Content-Type"] or fixed and fixed["Content-Type"] or nil
    if state.transaction then
        idempotency.finish(ctx, state, failed, kept and status or nil, content_type, text)
    else
        idempotency.finish_redis(state, kept and status or nil, content_type, text)
    end
end

local denial_sink, switch_sink

--- Tells who writes denials into the audit.
---@param fn fun(ctx: kasma.Context, permission: string)
function M.on_denied(fn) denial_sink = fn end

--- Tells who records that platform staff works in a tenant it is no member of.
---@param fn fun(ctx: kasma.Context)
function M.on_switched(fn) switch_sink = fn end

-- Which tenant a request seems to be for, before anything is known of its caller: only limits look at it.
local function candidate_tenant(req)
    local named = req:header("x-tenant-kasma-id")
    if named then return tenants.is_key(named) and named or nil end
    local host = tenants.by_host(req:header("host"))
    return host and host.tenant_key
end

-- Whether the caller is known by what a browser carries by itself: a session, or a guest's cart.
local function by_cookie(req, identity)
    if identity then return identity.via == "cookie" end
    return req:cookie("cart_token") ~= nil and not req:header("x-cart-token")
end

-- Runs the steps; answers status, shared headers, text. Raises.
local function run(ctx, decl)
    local req = ctx.req
    local limited = ratelimit.address_of(req)
    local subject, candidate = limited and web.limit_subject(limited), limited and candidate_tenant(req)
    if limited then ratelimit.general("ip", subject, candidate) end

    local identity, refused
    local identify = decl.identify or auth.identify
    if decl.secret then
        if not auth.has_secret(req, decl.access.header, decl.secret) then
            errors.unauthorized(decl.access.message or "Access token required")
        end
    elseif decl.public and not decl.strict then
        local ok, found = pcall(identify, req)
        if ok then
            identity = found
        elseif errors.is(found) or errors.is_store(found) then
            refused = found
        elseif not errors.is(found) and not errors.is_store(found) then
            error(found, 0)
        end
    else
        identity = identify(req)
        if not identity and not decl.public then errors.unauthorized("Access token required") end
    end
    if limited and identity then
        local key = identity.kind == "key"
        if key then ratelimit.by_key(subject, candidate) end
        ratelimit.general(key and "key" or "user", identity.id, identity.tenant_key)
    end

    settle_tenant(ctx, decl, identity)
    local unsafe = not SAFE[decl.method]
    local carried = unsafe and by_cookie(req, identity)
    if carried and is_foreign_page(ctx, decl) then cross_site() end
    if decl.resolve then
        decl = decl.resolve(ctx)
        ctx.decl, ctx.route = decl, decl.path
        if not decl.public then
            if refused then error(refused, 0) end
            if not identity then errors.unauthorized("Access token required") end
            if not ctx.user then not_a_member() end
        end
    end
    if decl.streamed then
        check_stream_type(ctx, decl)
    elseif unsafe and decl.body ~= false then
        ctx.parsed = read_body(ctx)
    end
    if decl.named_tenant then
        local source = decl.named_tenant == "params" and req.params or decl.named_tenant == "query" and req:query_table()
            or (type(ctx.parsed) == "table" and ctx.parsed) or {}
        if ctx.user then
            name_tenant(ctx, decl, source.tenant_key)
            if carried and is_foreign_page(ctx, decl) then cross_site() end
        end
    end
    if decl.module then modules_gate.check(ctx, decl.module) end
    if ctx.user then check_permission(ctx, decl) end
    if ctx.switched and switch_sink then switch_sink(ctx) end

    if unsafe and decl.idempotent ~= false then
        local answer = claim_key(ctx, decl)
        if answer then
            for name, value in pairs(answer.headers) do
                if value and value ~= "" then ctx.set_header(name, value) end
            end
            ctx.idempotency = nil
            return answer.status, nil, answer.body
        end
    end
    ctx.params = req.params
    validate(ctx, decl)
    if ctx.idempotency and not ctx.idempotency.transaction then idempotency.keep_redis(ctx.idempotency) end
    ctx.began = true
    local body, status = decl.handler(ctx)
    status = status or decl.status
    if body == context.ANSWERED then return context.ANSWERED end
    if body == nil then return status, nil, nil end
    local kind = type(body)
    if kind == "table" then
        local encoded = ctx.encoded
        local text = encoded and encoded.body == body and encoded.text
        if text or ctx.idempotency then return status, JSON_HEADERS, text or json.encode(body) end
        write(ctx, status, JSON_HEADERS, body)
        return context.ANSWERED
    end
    if body == null then return status, nil, nil end
    return status, HTML_HEADERS, tostring(body)
end

local function traced(err)
    if type(err) == "table" then
        if errors.is(err) and err.status >= 500 and not err.trace then err.trace = debug.traceback("", 2) end
        return err
    end
    return debug.traceback(tostring(err), 2)
end

local function handle(decl)
    return function(req)
        local ctx = context.new(req, decl)
        local ok, status, fixed, text = xpcall(run, traced, ctx, decl)
        if status == context.ANSWERED then return end
        if not ok then
            local err = status
            if ctx.denied and denial_sink then
                local written, why = pcall(denial_sink, ctx, ctx.denied)
                if not written then log.error("a denial could not be recorded", { error = tostring(why) }, ctx) end
            end
            status, text = fail(ctx, err)
            fixed = JSON_HEADERS
        end
        if ctx.idempotency then
            local closed, why = pcall(close_key, ctx, not ok, status, fixed, text)
            if not closed then log.error("idempotency was not closed", { error = tostring(why) }, ctx) end
        end
        write(ctx, status, fixed, text)
    end
end

-- Mounting ---------------------------------------------------------------------------------------------------------------------

local function compile(decl)
    if decl.params then decl.params_schema = schema.object(decl.params) end
    if decl.query then decl.query_schema = decl.query end
end

local function not_found(req)
    local origin = req:header("origin")
    if req.method == "OPTIONS" and origin and req:header("access-control-request-method") then return web.preflight(req, origin) end
    local ctx = context.new(req, { path = "" })
    write(ctx, 404, JSON_HEADERS, error_text(ctx, errors.new(404, ("Cannot %s %s"):format(req.method, req.target))))
end

local function mount(decl)
    local fn = decl.handler
    if not decl.bare then
        compile(decl)
        fn = handle(decl)
    end
    local opts = { body_limit = decl.body_limit, spool = decl.spool, stream = decl.streamed, timeout_ms = decl.timeout_ms }
    server.route(decl.method, decl.path, fn, opts)
    for _, alias in ipairs(decl.aliases or {}) do server.route(decl.method, alias, fn, opts) end
end

--- Gives the declared routes to the core's server. Called once by boot.
---@param role "serve"|"work"|"all" "work" has only what is about the process itself (`process = true`)
function M.mount(role)
    for _, decl in ipairs(routes) do
        if role ~= "work" or decl.process then mount(decl) end
    end
    server.fallback(not_found)
end

--- Fills in a declaration that a `resolve` answers: it is not mounted, and not among all().
---@param method string
---@param path string what documents and logs call it
---@param decl kasma.Route
---@return kasma.Route
function M.resolved(method, path, decl)
    local who = decl.access
    decl.method, decl.path = method, path
    decl.status = decl.status or (method == "POST" and 201 or 200)
    decl.permission = type(who) == "table" and who.permission or nil
    decl.public = who == "public"
    compile(decl)
    return decl
end

M.ANSWERED = context.ANSWERED
M.is_production = function() return config.env() == "production" end

return M
