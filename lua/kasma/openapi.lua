-- The API document (OpenAPI 3.1), made from the route declarations: nothing is described twice. It is the same text in every process,
-- so that its ETag holds across workers and two versions can be compared: members go as declared where a schema says so, else by name.
local json = require("core.json")
local errors = require("kasma.errors")
local schema = require("kasma.schema")

local M = {}

local ERROR_TEXT = {
    [400] = "What was sent is malformed or not allowed", [401] = "No valid credential", [403] = "Not allowed",
    [404] = "Not found", [409] = "In conflict with the state of things", [413] = "The body is too large",
    [414] = "The address is too long",
    [415] = "The body's type is not supported", [422] = "Refused by a rule", [429] = "Too many requests", [503] = "A store is away; retry",
}

-- What the server refuses before there is a request to answer: the status alone, and the connection is closed.
local EMPTY = { [414] = true }

local function error_schema()
    return {
        type = "object", required = { "message", "statusCode" },
        properties = {
            message = { anyOf = { { type = "string" }, { type = "array", items = { type = "string" } } } },
            error = { type = "string" }, statusCode = { type = "integer" }, code = { type = "string" },
            details = {}, requestId = { type = "string" },
        },
    }
end

-- "/users/:id/roles" -> "/users/{id}/roles", { "id" }
local function path_of(pattern)
    local names = {}
    local path = pattern:gsub("[:*]([%w_]+)", function(name)
        names[#names + 1] = name
        return "{" .. name .. "}"
    end)
    return path, names
end

local function camel(text)
    return (text:gsub("[^%w]+(%w)", string.upper):gsub("[^%w]", ""))
end

local used_ids
local function operation_id(decl)
    local id = decl.id
    if not id then
        local words = decl.path:gsub("^/api/", "/"):gsub("^/", ""):gsub(":", "by_"):gsub("%*", "rest_")
        id = (decl.tag or "system") .. "." .. decl.method:lower() .. camel("_" .. (words == "" and "root" or words))
    end
    local candidate, n = id, 1
    while used_ids[candidate] do
        n = n + 1
        candidate = id .. n
    end
    used_ids[candidate] = true
    return candidate
end

local function parameters(decl, names, components)
    local list = {}
    for _, name in ipairs(names) do
        local own = decl.params and decl.params[name]
        list[#list + 1] = { name = name, ["in"] = "path", required = true,
            schema = own and schema.json_schema(own, components) or { type = "string" },
            description = own and own.description or nil }
    end
    if decl.query then
        for _, entry in ipairs(schema.members(decl.query)) do
            list[#list + 1] = { name = entry.name, ["in"] = "query", required = not entry.schema.is_optional,
                schema = schema.json_schema(entry.schema, components), description = entry.schema.description }
        end
    end
    if decl.method ~= "GET" and decl.idempotent ~= false and not decl.bare then
        list[#list + 1] = { ["$ref"] = "#/components/parameters/IdempotencyKey" }
    end
    if not decl.bare then
        list[#list + 1] = { ["$ref"] = "#/components/parameters/TenantHeader" }
        list[#list + 1] = { ["$ref"] = "#/components/parameters/AppHeader" }
    end
    return list
end

local function success(decl, returns, components)
    local answer = { description = "Success" }
    if returns then
        if schema.is_schema(returns) then
            answer.content = { ["application/json"] = { schema = schema.json_schema(returns, components) } }
        else
            answer.description = returns.description or "Success"
            if returns.content_type then answer.content = { [returns.content_type] = { schema = { type = "string" } } } end
        end
    elseif decl.content_type then
        answer.content = { [decl.content_type] = { schema = { type = "string" } } }
    else
        answer.content = { ["application/json"] = { schema = {} } }
    end
    return answer
end

local function responses(decl, components)
    local all, codes = {}, {}
    local returns = decl.returns
    if returns == nil or schema.is_schema(returns) then
        all[tostring(decl.status)] = success(decl, returns, components)
    else
        for status, what in pairs(returns) do
            if errors.is_declared(what) then
                codes[what.status] = codes[what.status] or {}
                table.insert(codes[what.status], what.code)
            elseif type(what) == "table" and not schema.is_schema(what) and errors.is_declared(what[1]) then
                for _, one in ipairs(what) do
                    codes[one.status] = codes[one.status] or {}
                    table.insert(codes[one.status], one.code)
                end
            else
                local answer = success(decl, what, components)
                -- A refusal with a body of its own comes beside the common one.
                if status >= 400 and schema.is_schema(what) then
                    local media = answer.content["application/json"]
                    media.schema = { anyOf = { media.schema, { ["$ref"] = "#/components/schemas/Error" } } }
                    answer.description = ERROR_TEXT[status] or errors.reason(status)
                end
                all[tostring(status)] = answer
            end
        end
        if not next(all) then all[tostring(decl.status)] = success(decl, nil, components) end
    end
    if decl.bare then return all end
    local statuses = { 400, 403, 404, 429, 503 }
    if decl.access ~= "public" then table.insert(statuses, 401) end
    if decl.method ~= "GET" then
        for _, status in ipairs{ 409, 413, 415 } do table.insert(statuses, status) end
    end
    -- What belongs to signing in judges credentials by itself.
    if decl.strict or (decl.access == "public" and decl.tag == "auth") then table.insert(statuses, 401) end
    if decl.query or decl.path:find("[:*]") then table.insert(statuses, 414) end
    for status in pairs(codes) do
        local known = false
        for _, s in ipairs(statuses) do known = known or s == status end
        if not known then table.insert(statuses, status) end
    end
    for _, status in ipairs(statuses) do
        local key = tostring(status)
        if not all[key] then
            local text = ERROR_TEXT[status] or errors.reason(status)
            if codes[status] then
                table.sort(codes[status])
                text = text .. ": " .. table.concat(codes[status], ", ")
            end
            all[key] = { description = text, content = not EMPTY[status]
                and { ["application/json"] = { schema = { ["$ref"] = "#/components/schemas/Error" } } } or nil }
        end
    end
    return all
end

local function operation(decl, names, components)
    local op = {
        operationId = operation_id(decl), summary = decl.summary, tags = { decl.tag }, description = decl.description,
        parameters = parameters(decl, names, components), responses = responses(decl, components),
        deprecated = decl.deprecated or nil, ["x-permission"] = decl.permission, ["x-module"] = decl.module,
        ["x-idempotent"] = decl.method ~= "GET" and decl.idempotent ~= false and not decl.bare or nil,
    }
    if #op.parameters == 0 then op.parameters = nil end
    if schema.is_schema(decl.body) then
        local body = schema.json_schema(decl.body, components)
        op.requestBody = { required = body.required ~= nil, content = { ["application/json"] = { schema = body } } }
        if decl.example then op.requestBody.content["application/json"].example = decl.example end
    end
    if decl.streamed then
        op.requestBody = { required = true, content = { [decl.body_type] = { schema = { type = "string", format = "binary" } } } }
    end
    if decl.access == "public" or decl.bare then
        op.security = { {} }
    else
        op.security = { { bearer = {} }, { cookie = {} } }
    end
    return op
end

-- Marks what must print as an array even when empty.
local function with_arrays(value)
    if type(value) ~= "table" then return value end
    if value[1] ~= nil then
        for i = 1, #value do with_arrays(value[i]) end
        return value
    end
    for key, member in pairs(value) do
        if type(member) == "table" then
            if (key == "bearer" or key == "cookie") and next(member) == nil then
                value[key] = schema.array_mark(member)
            else
                with_arrays(member)
            end
        end
    end
    return value
end

-- What a reader looks for first; the rest goes by name.
local RANK = {}
for i, name in ipairs{ "openapi", "info", "servers", "tags", "paths", "components", "get", "post", "put", "patch", "delete", "$ref", "name",
    "in", "title", "version", "type", "summary", "description", "operationId", "required", "security", "parameters", "requestBody",
    "responses" } do RANK[name] = i end

local function before(a, b)
    local first, second = RANK[a] or math.huge, RANK[b] or math.huge
    if first ~= second then return first < second end
    return a < b
end

-- The same document, printed in one order.
local function in_order(value)
    if type(value) ~= "table" then return value end
    local names = {}
    for key, member in pairs(value) do
        in_order(member)
        if type(key) == "string" then names[#names + 1] = key end
    end
    if names[1] and not getmetatable(value) then
        table.sort(names, before)
        json.object(names, value)
    end
    return value
end

local sources = {}

--- Names what a tenant has beside the declared routes: fn(scope) answers declarations, and a text that changes when they do.
---@param fn fun(scope: Scope): kasma.Route[], string
function M.add(fn) sources[#sources + 1] = fn end

--- What a tenant has beside the declared routes.
---@param scope Scope
---@return kasma.Route[], string key
function M.added(scope)
    local list, keys = {}, {}
    for _, fn in ipairs(sources) do
        local more, key = fn(scope)
        for _, decl in ipairs(more) do list[#list + 1] = decl end
        keys[#keys + 1] = key
    end
    return list, table.concat(keys, "|")
end

---@param routes kasma.Route[]
---@param info {version: string, title: string|nil, tag: string|nil} `tag`: only the operations of one area
---@return table document
function M.document(routes, info)
    used_ids = {}
    local components = { Error = error_schema() }
    local paths, tags, seen = {}, {}, {}
    for _, decl in ipairs(routes) do
        if not decl.hidden and (not info.tag or decl.tag == info.tag) then
            local path, names = path_of(decl.path)
            paths[path] = paths[path] or {}
            paths[path][decl.method:lower()] = operation(decl, names, components)
            if not seen[decl.tag] then
                seen[decl.tag] = true
                tags[#tags + 1] = { name = decl.tag }
            end
        end
    end
    table.sort(tags, function(a, b) return a.name < b.name end)
    return in_order(with_arrays{
        openapi = "3.1.0",
        info = { title = info.title or "Kasma", version = info.version, description = "Commerce, content and learning for many tenants." },
        servers = { { url = "/" } },
        tags = tags,
        paths = paths,
        components = {
            schemas = components,
            parameters = {
                IdempotencyKey = { name = "X-Idempotency-Key", ["in"] = "header", required = false,
                    schema = { type = "string", minLength = 1, maxLength = 255 },
                        description = "The same key and body get the same answer" },
                TenantHeader = { name = "X-Tenant-Kasma-Id", ["in"] = "header", required = false, schema = { type = "string" },
                    description = "Tenant to work in" },
                AppHeader = { name = "X-App-Kasma-Id", ["in"] = "header", required = false, schema = { type = "string" },
                    description = "App of the tenant" },
            },
            securitySchemes = {
                bearer = { type = "http", scheme = "bearer", description = "Session token, JWT or secret key" },
                cookie = { type = "apiKey", ["in"] = "cookie", name = "access_token" },
            },
        },
    })
end

return M
