-- Every answer that an API test gets is held against the document: its status must be declared, and its body must be what is declared for
-- that status. So what the document says is true at least wherever a test looks.
local json = require("core.json")
local openapi = require("kasma.openapi")
local route = require("kasma.route")

local M = {}

-- What the core answers before a route is asked, on any route.
local ANYWHERE = { [304] = true, [400] = true, [408] = true, [413] = true, [414] = true, [417] = true, [431] = true, [503] = true }

local document
local by_length = {} -- method and number of segments -> { {segments, decl, responses} }

local function segments_of(path)
    local list = {}
    for segment in path:gmatch("[^/]+") do list[#list + 1] = segment end
    return list
end

local function prepare()
    document = openapi.document(route.all(), { version = "test" })
    for _, decl in ipairs(route.all()) do
        local item = document.paths[(decl.path:gsub("[:*]([%w_]+)", "{%1}"))]
        local operation = item and item[decl.method:lower()]
        local paths = { decl.path }
        for _, alias in ipairs(decl.aliases or {}) do paths[#paths + 1] = alias end
        for _, path in ipairs(operation and paths or {}) do
            local segments = segments_of(path:lower())
            local key = decl.method .. " " .. (path:find("*", 1, true) and "*" or #segments)
            by_length[key] = by_length[key] or {}
            table.insert(by_length[key], { segments = segments, decl = decl, responses = operation.responses })
        end
    end
end

-- The declaration that answers a path: the one with the most literal segments from the left.
local function find(method, segments)
    local best, best_score
    for _, candidate in ipairs(by_length[method .. " " .. #segments] or {}) do
        local score = ""
        for i, segment in ipairs(candidate.segments) do
            if segment:sub(1, 1) == ":" then
                score = score .. "0"
            elseif segment == segments[i] then
                score = score .. "1"
            else
                score = nil
                break
            end
        end
        if score and (not best or score > best_score) then best, best_score = candidate, score end
    end
    return best
end

--- The declaration that a request reaches, or nil.
---@param method string
---@param path string with or without a query
---@return {decl: kasma.Route, responses: table}|nil
function M.route_of(method, path)
    if not document then prepare() end
    local segments = segments_of(path:match("^[^?]*"):lower())
    local found = find(method, segments)
    if found then return found end
    if segments[1] == "api" then
        table.remove(segments, 1)
    else
        table.insert(segments, 1, "api")
    end
    return find(method, segments)
end

local holds

local types = {
    string = function(value) return type(value) == "string" end,
    number = function(value) return type(value) == "number" end,
    integer = function(value) return type(value) == "number" and value == math.floor(value) end,
    boolean = function(value) return type(value) == "boolean" end,
    null = function(value) return value == json.null end,
    array = function(value) return type(value) == "table" and json.is_array(value) end,
    object = function(value) return type(value) == "table" and not json.is_array(value) end,
}

local function fits(value, wanted)
    if type(wanted) ~= "table" then return types[wanted](value) end
    for _, name in ipairs(wanted) do
        if types[name](value) then return true end
    end
    return false
end

-- What is wrong with a value, or nil.
holds = function(value, schema, at)
    if schema == true then return nil end
    if schema["$ref"] then return holds(value, document.components.schemas[schema["$ref"]:match("[^/]+$")], at) end
    if schema.type and not fits(value, schema.type) then
        local wanted = type(schema.type) == "table" and table.concat(schema.type, " or ") or schema.type
        return ("%s is no %s but %s"):format(at, wanted, value == json.null and "null" or type(value))
    end
    if schema.enum then
        local known = false
        for _, one in ipairs(schema.enum) do known = known or one == value end
        if not known then return ("%s is %s, which is not declared"):format(at, tostring(value)) end
    end
    if schema.format == "uuid" and type(value) == "string" and not value:find("^%x+%-%x+%-%x+%-%x+%-%x+$") then
        return ("%s is no UUID: %s"):format(at, value)
    end
    for _, one in ipairs(schema.allOf or {}) do
        local wrong = holds(value, one, at)
        if wrong then return wrong end
    end
    if schema.anyOf then
        local last
        for _, one in ipairs(schema.anyOf) do
            last = holds(value, one, at)
            if not last then break end
        end
        if last then return last end
    end
    if type(value) ~= "table" or value == json.null then return nil end
    if json.is_array(value) then
        for i, item in ipairs(schema.items and value or {}) do
            local wrong = holds(item, schema.items, at .. "." .. i - 1)
            if wrong then return wrong end
        end
        return nil
    end
    for _, name in ipairs(schema.required or {}) do
        if value[name] == nil then return ("%s.%s is missing"):format(at, name) end
    end
    local properties = schema.properties or {}
    for name, member in pairs(value) do
        local declared = properties[name]
        if declared then
            local wrong = holds(member, declared, at .. "." .. name)
            if wrong then return wrong end
        elseif schema.additionalProperties == false then
            return ("%s.%s is not declared"):format(at, name)
        elseif type(schema.additionalProperties) == "table" then
            local wrong = holds(member, schema.additionalProperties, at .. "." .. name)
            if wrong then return wrong end
        end
    end
    return nil
end

--- What an answer has that the document does not say of its route, or nil.
---@param method string
---@param path string
---@param answer TestAnswer
---@return string|nil
function M.strange(method, path, answer)
    local found = M.route_of(method, path)
    if not found then return nil end
    local name = found.decl.method .. " " .. found.decl.path
    if answer.status == 404 and answer.body:find('"Cannot ', 1, true) then return nil end -- no route after all
    local declared = found.responses[tostring(answer.status)]
    if not declared then
        if ANYWHERE[answer.status] then return nil end
        return ("%s does not declare %d: %s"):format(name, answer.status, tostring(answer.body):sub(1, 300))
    end
    local content = declared.content
    if not content or answer.body == "" then return nil end
    local kind = (answer.headers["content-type"] or ""):match("^[^;%s]+")
    local media = kind and content[kind]
    if not media then return ("%s answers %d as %s, which is not declared"):format(name, answer.status, tostring(kind)) end
    if kind ~= "application/json" then return nil end
    if answer.json == nil then return ("%s answers %d with what is no JSON: %s"):format(name, answer.status, answer.body:sub(1, 100)) end
    local wrong = holds(answer.json, media.schema, "body")
    return wrong and ("%s answers %d and %s: %s"):format(name, answer.status, wrong, answer.body:sub(1, 400))
end

return M
