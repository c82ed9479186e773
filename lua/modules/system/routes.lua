-- The process and the API about itself: health, metrics, the API document, the clock of tests.
local config = require("core.config")
local json = require("core.json")
local metrics = require("core.metrics")
local time = require("core.time")
local access = require("kasma.access")
local auth = require("kasma.auth")
local clock = require("kasma.clock")
local errors = require("kasma.errors")
local health = require("modules.system.health")
local heartbeat = require("kasma.heartbeat")
local null = require("kasma.null")
local openapi = require("kasma.openapi")
local page = require("modules.system.page")
local route = require("kasma.route")
local schema = require("kasma.schema")
local tenants = require("kasma.tenant")
local web = require("kasma.web")

local HTML = { ["Content-Type"] = "text/html; charset=utf-8" }
local JSON = { ["Content-Type"] = "application/json; charset=utf-8" }
local TEXT = { ["Content-Type"] = "text/plain; version=0.0.4; charset=utf-8" }

route.get("/", {
    summary = "A greeting", bare = true, content_type = "text/html",
    handler = function(req) req:respond(200, HTML, "Hello World!") end,
})

route.get("/health", {
    summary = "Liveness: the process answers", bare = true, content_type = "text/html",
    handler = function(req) req:respond(200, HTML, "OK") end,
})

local started = time.mono()
local floor = math.floor
local alive, alive_at

route.get("/healthz", {
    summary = "Liveness with uptime and workers, no store is asked", bare = true, process = true,
    returns = schema.object{ status = schema.string(), uptime = schema.integer(), workers = schema.integer() },
    handler = function(req)
        local second = floor((time.mono() - started) / 1e6)
        if second ~= alive_at then
            alive_at = second
            alive = '{"status":"ok","uptime":' .. second .. ',"workers":' .. heartbeat.live() .. "}"
        end
        req:respond(200, JSON, alive)
    end,
})

local function ready(req)
    local report, ok = health.check()
    -- For balancers that should keep public pages alive: enough that PostgreSQL is there.
    if not ok and req.query and req.query:find("allow=degraded", 1, true) and report.checks.postgres == "ok" then ok = true end
    req:respond(ok and 200 or 503, ok and JSON or { ["Content-Type"] = JSON["Content-Type"], ["Retry-After"] = "1" },
        json.encode(json.object({ "status", "checks" }, report)))
end

local Report = schema.object({ status = schema.string(), checks = schema.map(schema.string()) }, { name = "Health" })
for _, path in ipairs{ "/health/ready", "/readyz" } do
    route.get(path, { summary = "Readiness: the stores and the migrations", bare = true, process = true,
        returns = { [200] = Report, [503] = Report }, handler = ready })
end

route.get("/metrics", {
    summary = "Metrics for Prometheus", bare = true, process = true,
    returns = { [200] = { description = "Prometheus text", content_type = "text/plain" },
        [401] = { description = "neither the machine itself nor a key of the platform with `metrics.read`" } },
    handler = function(req)
        -- From outside the machine only with a secret key of the platform's own tenant that has the scope metrics.read: the figures are
        -- of all tenants, and each of them makes keys with all scopes of its own.
        if not web.is_loopback(web.client_ip(req)) then
            local ok, identity = pcall(auth.identify, req)
            if not ok or not identity or identity.kind ~= "key" or identity.tenant_key ~= tenants.DEFAULT
                or not access.allows(identity.scopes, "metrics.read") then
                return req:respond(401, JSON, '{"message":"Access token required","error":"Unauthorized","statusCode":401}')
            end
        end
        req:respond(200, TEXT, metrics.render())
    end,
})

local documents = {}

-- The document is made once: declarations do not change while a process runs. As text in three parts, so that a tenant's own paths go in
-- without making it again.
local function parts(tag)
    local key = tag or "*"
    if not documents[key] then
        local made = openapi.document(route.all(), { version = config.version, tag = tag })
        local paths = json.encode(made.paths)
        made.paths = "@paths@"
        local before, after = json.encode(made):match("^(.-)\"@paths@\"(.*)$")
        documents[key] = { before = before, paths = paths == "[]" and "{}" or paths, after = after }
    end
    return documents[key]
end

local function document(tag)
    local p = parts(tag)
    return p.before .. p.paths .. p.after
end

local own, kept, OWN_MAX = {}, 0, 200

-- The paths of a tenant's own, as members of an object; "" when it has none, or nobody can tell.
local function own_paths(req)
    local tenant = req:header("x-tenant-kasma-id")
    if not tenant then
        local ok, host = pcall(tenants.by_host, req:header("host"))
        tenant = ok and host and host.tenant_key or tenants.DEFAULT
    end
    local ok, row = pcall(tenants.by_key, tenant)
    if not ok or not row or not row.is_active then return "" end
    local told, list, key = pcall(openapi.added, { tenant = row.tenant_key, app = tenants.DEFAULT, actor_kind = "guest" })
    if not told or #list == 0 then return "" end
    key = row.tenant_key .. " " .. key
    if not own[key] then
        if kept >= OWN_MAX then own, kept = {}, 0 end
        own[key], kept = json.encode(openapi.document(list, { version = config.version }).paths):sub(2, -2), kept + 1
    end
    return own[key]
end

local function document_for(req)
    local p, more = parts(), own_paths(req)
    if more == "" then return document() end
    return p.before .. p.paths:sub(1, -2) .. "," .. more .. "}" .. p.after
end

local function docs_on() return config.get("SWAGGER_ENABLED") ~= false end
local function no_docs(req) req:respond(404, JSON, '{"message":"Cannot GET ' .. req.path:gsub('[%c"\\<>]', "")
    .. '","error":"Not Found","statusCode":404}') end

for _, path in ipairs{ "/openapi.json", "/api/docs-json" } do
    route.get(path, {
        summary = "This document (OpenAPI 3.1), with the routes of the tenant's own", bare = true,
        handler = function(req)
            if not docs_on() then return no_docs(req) end
            req:respond(200, JSON, document_for(req))
        end,
    })
end

route.get("/openapi/:area", {
    summary = "The document of one area, by tag", bare = true,
    returns = { [200] = schema.any(), [404] = { description = "There is no such area" } },
    handler = function(req)
        local tag = req.params.area:match("^([%w_-]+)%.json$")
        local known = false
        for _, decl in ipairs(route.all()) do known = known or decl.tag == tag end
        if not docs_on() or not tag or not known then return no_docs(req) end
        req:respond(200, JSON, document(tag))
    end,
})

local areas

-- Tags of what the document shows, once: declarations do not change while a process runs.
local function area_names()
    if areas then return areas end
    local seen = {}
    areas = {}
    for _, decl in ipairs(route.all()) do
        if decl.tag and not decl.hidden and not seen[decl.tag] then
            seen[decl.tag] = true
            areas[#areas + 1] = decl.tag
        end
    end
    table.sort(areas)
    return areas
end

route.get("/api/docs", {
    summary = "The API for reading and trying", bare = true, content_type = "text/html",
    handler = function(req)
        if not docs_on() then return no_docs(req) end
        req:respond(200, page.headers, page.render(area_names()))
    end,
})

for _, name in ipairs(page.files) do
    route.get("/api/docs/assets/" .. name, {
        summary = "What the API page loads: " .. name, bare = true,
        content_type = name:find("%.css$") and "text/css" or "text/javascript",
        handler = function(req)
            if not docs_on() then return no_docs(req) end
            req:file(page.path_of(name), { ["Cache-Control"] = "public, max-age=86400" })
        end,
    })
end

route.get("/api/docs/errors", {
    summary = "Every error code with its cause and cure", access = "public", tag = "system",
    returns = schema.object({ errors = schema.array(schema.any()) }, { open = true }),
    handler = function()
        local list = json.array({})
        for i, declared in ipairs(errors.catalogue()) do
            list[i] = { code = declared.code, status = declared.status, message = declared.message, cause = declared.cause or null,
                cure = declared.cure or null }
        end
        table.sort(list, function(a, b) return a.code < b.code end)
        return { errors = list }
    end,
})

route.post("/admin/clock", {
    summary = "Shift the clock of all processes (not in production)",
    access = { platform = "clock.write" }, tag = "system", idempotent = false,
    body = schema.object{ now = schema.date():optional():nullable(), advance = schema.number{ positive = true, max = 1e10 }:optional() },
    returns = { [201] = schema.object{ now = schema.date(), shift_ms = schema.integer() } },
    handler = function(ctx)
        if config.env() == "production" then errors.not_found("Cannot POST " .. ctx.req.target) end
        local body = ctx.body
        if body.now == nil and body.advance == nil then errors.validation{ "now or advance should not be empty" } end
        if body.now ~= nil and body.advance ~= nil then errors.validation{ "now and advance must not be sent together" } end
        local change = {}
        if body.advance then
            change.advance_s = body.advance
        elseif body.now ~= null then
            change.now_ms = time.parse(body.now)
        end
        return json.object({ "now", "shift_ms" }, clock.set(change, ctx.user.kind == "user" and ctx.user.id or nil))
    end,
})

route.permission("metrics.read", "Read the metrics from outside the machine (key of MASTER)")
route.permission("tenants.switch", "Work in a tenant without being its member (platform)")
route.permission("queues.read", "See queues and jobs")
route.permission("queues.write", "Pause queues, retry and remove jobs")

return { document = document }
