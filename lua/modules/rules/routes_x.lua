-- Routes of the tenants' own: /x/<path> is answered by the live rule of the hook `route` that has this path and method. The rule's
-- manifest is a declaration like any other (mounted.lua), so the request goes through the same steps: limits, who calls, permission,
-- idempotency, validation. A path that no live rule has is 404, as if nothing were there.
local capabilities = require("kasma.capabilities")
local errors = require("kasma.errors")
local hooks = require("kasma.hooks")
local log = require("kasma.log")
local openapi = require("kasma.openapi")
local route = require("kasma.route")
local schema = require("kasma.schema")
local web = require("kasma.web")
local callers = require("modules.rules.callers")
local mounted = require("modules.rules.mounted")

local KEPT_MAX = 2000
local DEPTH_MAX, WEIGHT_MAX = 28, 1310720 -- of a body: less than the sandbox takes, so that query and headers find room

local rule_failed = errors.declare{ code = "rule_route_failed", status = 502, message = "The shop's rule for this route failed",
    cause = "the rule raised an error, ran over its budget or answered out of form",
    cure = "its owner finds the line in the rule's failures" }
local rule_unavailable = errors.declare{ code = "rule_route_unavailable", status = 503,
    message = "The shop's rule for this route is not available now", cause = "it failed too often just now, or too many of its runs wait",
    cure = "try again later" }

-- Answering --------------------------------------------------------------------------------------------------------------------

-- Counts a body as the sandbox does when it is handed over. What is too much is the caller's fault and never the rule's: failures of a
-- rule open its breaker, and anybody may send a body.
local function weigh(value, left, depth)
    local kind = type(value)
    if kind == "string" then return left - #value - 8 end
    if kind ~= "table" then return left - 8 end
    if depth >= DEPTH_MAX then return -1 end
    left = left - 16
    for key, member in pairs(value) do
        if left < 0 then return left end
        left = weigh(member, type(key) == "string" and left - #key or left, depth + 1)
    end
    return left
end

local function subject_of(ctx, plan)
    local shown = {}
    for _, name in ipairs(plan.headers) do
        local value = ctx.req:header(name)
        if value then shown[name] = value end
    end
    local body = ctx.body
    if body == nil and not plan.body then body = ctx.parsed end
    if weigh(body, WEIGHT_MAX, 0) < 0 then errors.raise(413, { message = "request entity too large" }) end
    return { method = ctx.method, path = plan.path, query = ctx.query or {}, body = body, headers = shown,
        user = { id = ctx.user and ctx.user.id, guest = ctx.user == nil } }
end

local function check_outcome(told)
    if told.outcome == "ok" then return end
    if told.outcome == "breaker" or told.outcome == "budget" then
        rule_unavailable{ headers = { ["Retry-After"] = told.outcome == "budget" and "1" or "60" } }
    end
    rule_failed()
end

-- Kept by others only when it is everybody's; the tenant is in headers, so these belong to what is kept.
local function cache_control(ctx, plan, seconds)
    if not seconds or seconds == 0 then return "no-store" end
    if plan.access ~= "public" or ctx.user then return ("private, max-age=%d"):format(seconds) end
    ctx.set_header("Vary", "X-Tenant-Kasma-Id, X-App-Kasma-Id, X-Kasma-Key, Authorization, Cookie")
    return ("public, max-age=%d"):format(seconds)
end

local function answer_of(ctx, plan, answer)
    for name, value in pairs(answer.headers or {}) do ctx.set_header(name:gsub("^%l", string.upper):gsub("%-%l", string.upper), value) end
    ctx.set_header("Cache-Control", cache_control(ctx, plan, answer.cache_s))
    -- A page of one shop must not reach what the visitor may do elsewhere on this host; JSON that is called text/html is a page too.
    ctx.set_header("Content-Security-Policy", "sandbox allow-forms allow-popups allow-scripts")
    local body, status = answer.body, answer.status
    if body == nil or status == 204 or status == 205 or status == 304 then return nil, status end
    if type(body) == "table" then return mounted.shaped(body, plan.answer), status end
    if not ctx.headers["Content-Type"] then ctx.set_header("Content-Type", "text/plain; charset=utf-8") end
    return body, status
end

-- Who may be anybody is held back alone when the rule fails for them; people of the shop, whom a permission lets in, are as the rule's
-- own callers: its breaker counts.
local function caller_of(ctx, rule, plan)
    if type(plan.access) == "table" then return nil end
    return { rule = ctx.tenant .. "|" .. rule.id .. "|" .. rule.version,
        who = ctx.user and ctx.user.id or web.limit_subject(web.client_ip(ctx.req)) }
end

local function settled_of(caller)
    return caller and function(told)
        if told.outcome == "budget" then return end
        told.by_callers = true
        told.tripped = callers.note(caller, told.outcome ~= "ok")
    end
end

local function run(ctx, set, rule, plan)
    local caller = caller_of(ctx, rule, plan)
    local held_s = caller and callers.held_s(caller)
    if held_s then rule_unavailable{ headers = { ["Retry-After"] = tostring(held_s) } } end
    local input = hooks.input(ctx.tenant, "route", subject_of(ctx, plan))
    -- Of the client's key, of who sent it (a guest: by the cart) and of where: nobody else's key is the same.
    local once = ctx.idempotency and ctx.idempotency.scope_hash
    local answer, told = capabilities.run(ctx.scope, set, rule, nil, input, { kind = "route", judge = mounted.judge,
        settled = settled_of(caller),
        key = once and ("route:%s:%s"):format(rule.id, once) or nil })
    check_outcome(told)
    if answer == nil then errors.not_found{ message = ("Cannot %s %s"):format(ctx.method, ctx.req.target) } end
    return answer_of(ctx, plan, answer)
end

-- Finding ----------------------------------------------------------------------------------------------------------------------

local plans, kept = {}, 0

-- The plan of a rule's version; nil: it cannot answer (the checker says why before it is published; a file says it in the log).
local function plan_of(tenant, set, rule)
    local key = rule.id .. "|" .. rule.version
    local plan = plans[key]
    if plan ~= nil then return plan or nil end
    local manifest, failure = capabilities.manifest(set, rule)
    local problems = failure and { failure.message }
    if manifest then plan, problems = mounted.read(manifest) end
    if kept >= KEPT_MAX then plans, kept = {}, 0 end
    plans[key], kept = plan or false, kept + 1
    if plan then
        plan.name, plan.version = rule.name, rule.version
    else
        log.warn("a route rule answers nothing", { tenant = tenant, rule = rule.id, problem = problems and problems[1] })
    end
    return plan
end

-- What the documents say of a rule's route, and how a request to it is treated.
local function declaration(rule, plan, handler)
    return route.resolved(plan.method, "/x/" .. plan.path, { summary = (rule.name:gsub("%c", " ")):sub(1, 80), access = plan.access,
        tag = "x", query = plan.query, body = plan.body, returns = { [200] = plan.returns or { description = "The rule's answer" },
        [502] = rule_failed, [503] = rule_unavailable }, status = 200, handler = handler })
end

local function normal(path) return (path:lower():gsub("/+$", "")) end

local function resolve(ctx)
    local set = hooks.pin(ctx.scope)
    local wanted = normal(ctx.req.params.path or "")
    local method = ctx.method == "HEAD" and "GET" or ctx.method
    for _, rule in ipairs(set:list("route")) do
        local plan = plan_of(ctx.tenant, set, rule)
        if plan and plan.path == wanted and plan.method == method then
            return declaration(rule, plan, function(c) return run(c, set, rule, plan) end)
        end
    end
    return errors.not_found{ message = ("Cannot %s %s"):format(ctx.method, ctx.req.target) }
end

for _, method in ipairs{ "get", "post", "put", "patch", "delete" } do
    route[method]("/x/*path", { summary = "A route of the shop's own, answered by its rule", access = "public", tag = "x",
        params = { path = schema.string() }, resolve = resolve, body_limit = 1048576, status = 200,
        returns = { [200] = { description = "The rule's answer" }, [502] = rule_failed, [503] = rule_unavailable },
        handler = function() errors.not_found() end })
end

-- Documenting ------------------------------------------------------------------------------------------------------------------

openapi.add(function(scope)
    local set = hooks.pin(scope)
    local list, seen, names = {}, {}, {}
    for _, rule in ipairs(set:list("route")) do
        local plan = plan_of(scope.tenant, set, rule)
        local place = plan and plan.method .. " " .. plan.path
        if plan and not seen[place] then
            seen[place] = true
            names[#names + 1] = rule.id .. "=" .. rule.version
            list[#list + 1] = declaration(rule, plan, function() end)
        end
    end
    return list, table.concat(names, " ")
end)

