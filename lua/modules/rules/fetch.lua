-- http.fetch: what a rule sends to another server. The host stands in the manifest and in the tenant's setting rules.http_hosts; the
-- address that its name resolves to is a public one, looked at by the core when the socket is opened. Redirects are not followed: the
-- rule gets their status and `location`. What an operator lists in WEBHOOK_PRIVATE_HOSTS may be private and plain http, as for webhooks.
--
-- A host that does not answer, or answers 5xx, five times within a minute is left alone for half a minute, by each process for itself.
local http = require("core.http_client")
local json = require("core.json")
local time = require("core.time")
local capabilities = require("kasma.capabilities")
local settings = require("kasma.settings")
local secrets = require("modules.rules.secrets")
local webhooks = require("modules.webhooks.service")

local M = {}

local OUT_MAX, IN_MAX, TIMEOUT_MS, HEADERS_MAX = 256 * 1024, 1024 * 1024, 1500, 30
local FAILURES, WINDOW_US, OPEN_US, HOSTS_MAX = 5, 60e6, 30e6, 2000
local METHODS = { GET = true, HEAD = true, POST = true, PUT = true, PATCH = true, DELETE = true }
local FIELDS = { method = true, url = true, headers = true, json = true, body = true, timeout_ms = true }
-- What the client itself sets, or what would make one request two.
local OWN = { host = true, ["content-length"] = true, ["transfer-encoding"] = true, connection = true, te = true, upgrade = true,
    trailer = true, expect = true, ["proxy-authorization"] = true, ["proxy-connection"] = true, ["keep-alive"] = true }

local breakers, hosts = {}, 0

local function breaker_of(tenant, host)
    local key = tenant .. "|" .. host
    local b = breakers[key]
    if not b then
        if hosts >= HOSTS_MAX then breakers, hosts = {}, 0 end
        b = { failures = 0, since = 0, open_until = 0 }
        breakers[key], hosts = b, hosts + 1
    end
    return b
end

local function note(b, ok)
    local now = time.mono()
    if ok then
        b.failures, b.open_until = 0, 0
        return
    end
    if b.open_until > 0 then -- the one try after its time
        b.open_until = now + OPEN_US
        return
    end
    if now - b.since > WINDOW_US then b.failures, b.since = 0, now end
    b.failures = b.failures + 1
    if b.failures >= FAILURES then b.failures, b.open_until = 0, now + OPEN_US end
end

local function wrong(why) capabilities.refuse("http.fetch: " .. why) end

local function denied(why) capabilities.refuse("capability_denied: http.fetch: " .. why) end

local function secret_value(ctx, name)
    if not (ctx.needs.secrets or {})[name] then denied(("secret '%s' is not in needs.secrets"):format(name)) end
    return secrets.open(ctx.tenant, name) or wrong(("there is no secret '%s'"):format(name))
end

-- A text, a secret, or a list of both that is put together: { "Bearer ", secret("token") }.
local function header_value(ctx, name, value)
    if type(value) == "table" and value["$secret"] then
        value = secret_value(ctx, tostring(value["$secret"]))
    elseif type(value) == "table" then
        local parts = {}
        for i, part in ipairs(value) do
            if type(part) == "table" and part["$secret"] then part = secret_value(ctx, tostring(part["$secret"])) end
            if type(part) ~= "string" then wrong(("headers['%s'] must be text, a secret, or a list of both"):format(name)) end
            parts[i] = part
        end
        value = table.concat(parts)
    elseif type(value) == "number" then
        value = ("%.14g"):format(value)
    end
    if type(value) ~= "string" then wrong(("headers['%s'] must be text, a secret, or a list of both"):format(name)) end
    if #value > 8192 or value:find("[%z\1-\8\10-\31\127]") then wrong(("headers['%s'] cannot be sent"):format(name)) end
    return value
end

local function headers_of(ctx, given)
    if given ~= nil and type(given) ~= "table" then wrong("headers is a table of names and values") end
    local headers, n = { ["User-Agent"] = "Kasma-Rules/1" }, 0
    for name, value in pairs(given or {}) do
        n = n + 1
        if n > HEADERS_MAX then wrong(("more than %d headers"):format(HEADERS_MAX)) end
        if type(name) ~= "string" or #name > 100 or not name:find("^[%w!#$%%&'*+%-.^_`|~]+$") then wrong("a header has no name") end
        if OWN[name:lower()] then wrong(("header '%s' is not the rule's to set"):format(name)) end
        headers[name] = header_value(ctx, name, value)
    end
    return headers
end

local function body_of(o, headers)
    if o.json ~= nil and o.body ~= nil then wrong("json and body exclude each other") end
    if o.body ~= nil and type(o.body) ~= "string" then wrong("body must be text") end
    local body = o.body
    if o.json ~= nil then
        body = json.encode(o.json)
        headers["Content-Type"] = headers["Content-Type"] or "application/json"
    end
    if body and #body > OUT_MAX then wrong("the body is larger than 256 KiB") end
    return body
end

local function answer_of(answer)
    local headers, n = {}, 0
    for name, value in pairs(answer.headers) do
        if name ~= "set-cookie" and n < 100 and #value <= 8192 then headers[name], n = value, n + 1 end
    end
    local out = { status = answer.status, headers = headers }
    local kind = headers["content-type"] or ""
    local parsed
    if kind:find("json", 1, true) and #answer.body > 0 then parsed = json.decode(answer.body) end
    if parsed ~= nil then out.json = parsed else out.body = answer.body end
    return out
end

local function reason(err)
    if err.kind == "deadline" or err.kind == "cancelled" then error(err, 0) end
    if err.message:find("not a public one", 1, true) then return "address_not_public" end
    if err.kind == "timeout" then return "timeout" end
    if err.kind == "limit" then return "answer_too_large" end
    return "unreachable"
end

---@param ctx CapabilityContext
---@param o {method: string|nil, url: string, headers: table|nil, json: any, body: string|nil, timeout_ms: integer|nil}
---@return table|nil {status, headers, json or body}, string|nil why
function M.fetch(ctx, o)
    if type(o) ~= "table" then wrong("takes a table: { url = \"https://...\" }") end
    for name in pairs(o) do
        if not FIELDS[name] then wrong(("there is no option '%s'"):format(tostring(name))) end
    end
    local method = o.method == nil and "GET" or o.method
    if not METHODS[method] then wrong("method must be GET, HEAD, POST, PUT, PATCH or DELETE") end
    if type(o.url) ~= "string" then wrong("url must be text") end
    local place, problem = webhooks.read_target(o.url)
    if not place then wrong(problem) end
    local host = o.url:match("^%w+://%[?([^/?#%]]+)"):gsub(":%d*$", ""):lower()
    if type(ctx.needs.http) ~= "table" or not ctx.needs.http[host] then denied(("host '%s' is not in needs.http"):format(host)) end
    local allowed = false
    for _, name in ipairs(settings.get(ctx.tenant, "rules.http_hosts")) do allowed = allowed or tostring(name):lower() == host end
    if not allowed then denied(("host '%s' is not in the setting rules.http_hosts"):format(host)) end
    local timeout = o.timeout_ms == nil and TIMEOUT_MS or o.timeout_ms
    if type(timeout) ~= "number" or timeout ~= math.floor(timeout) or timeout < 1 or timeout > TIMEOUT_MS then
        wrong(("timeout_ms must be from 1 to %d"):format(TIMEOUT_MS))
    end
    local headers = headers_of(ctx, o.headers)
    local body = body_of(o, headers)
    if body and (method == "GET" or method == "HEAD") then wrong(method .. " has no body") end
    local breaker = breaker_of(ctx.tenant, host)
    if breaker.open_until > time.mono() then return nil, "breaker_open" end
    local answer, err = http.request{ method = method, url = o.url, headers = headers, body = body, timeout_ms = timeout,
        max_bytes = IN_MAX, follow = false, public_only = not place.private }
    if not answer then
        local why = reason(err)
        if why ~= "address_not_public" and why ~= "answer_too_large" then note(breaker, false) end
        return nil, why
    end
    note(breaker, answer.status < 500)
    return answer_of(answer)
end

return M
