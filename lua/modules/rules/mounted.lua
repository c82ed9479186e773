-- Rules that answer routes under /x/, as declarations of routes: what the manifest says of path, method, access, query, body, headers
-- and answer, in the framework's terms, so that a route of a shop is validated, limited, repeated and documented as any other.
--
-- A pattern in a query or a body is looked at by Lua's own matcher, which has no bound: only those that cannot take long are taken.
local json = require("core.json")
local schema = require("kasma.schema")

local M = {}

local METHODS = { GET = true, POST = true, PUT = true, PATCH = true, DELETE = true }
local PATH_MAX, SEGMENTS_MAX, HEADERS_MAX, PATTERN_SUBJECT_MAX = 200, 10, 20, 256

-- Never a rule's to see: they say who somebody is, or are between us and a proxy.
local HIDDEN = { cookie = true, authorization = true, ["proxy-authorization"] = true, ["x-user-id"] = true, ["x-gateway-secret"] = true,
    ["x-internal-api-key"] = true, ["x-internal-secret"] = true, ["x-kasma-rules-draft"] = true }

-- What an answer may carry; names that begin with x- besides, but not ours.
local SAFE = { ["content-type"] = true, ["content-language"] = true, ["content-disposition"] = true, location = true, link = true,
    etag = true, ["last-modified"] = true, ["retry-after"] = true, ["x-robots-tag"] = true }

-- Those would be orders to a proxy in front of us (a file of its own disk in place of the answer), or undo what we set.
local function is_order(low)
    return low:find("^x%-accel%-") or low:find("sendfile", 1, true) or low:find("send-file", 1, true) or low:find("^x%-reproxy")
        or low:find("^x%-litespeed") or low == "x-content-type-options"
end

-- Schemas ----------------------------------------------------------------------------------------------------------------------

local IDS = { uuid = true, product = true, variant = true, category = true, tag = true, vendor = true, warehouse = true,
    shipping_method = true, course = true, tier = true }

local function quick_pattern(pattern, max)
    if not max or max > PATTERN_SUBJECT_MAX then return false end
    -- Every item one character, then what repeats an item is what stands behind one.
    local bare, loops = pattern:gsub("%%[^bf]", "x"):gsub("%%[bf]", "x*"):gsub("%[%^?.-%]", "x"), 0
    local at = 1
    if bare:sub(1, 1) == "^" then at = 2 else loops = 1 end
    while at <= #bare do
        if bare:find("^.[*+?-]", at) then
            loops = loops + 1
            at = at + 1
        end
        at = at + 1
    end
    return loops <= 2 and pcall(string.find, "", pattern)
end

local convert

local function number(kind, least, most)
    return function(node)
        return schema[kind]{ min = math.max(node.min or least, least), max = math.min(node.max or most, most) }
    end
end

local converters = {
    string = function(node, at, say)
        if node.pattern and not quick_pattern(node.pattern, node.max) then
            say(("%s: a pattern of a route begins with ^, has at most two of * + - ?, and goes with max = %d or less"):format(at,
                PATTERN_SUBJECT_MAX))
        end
        return schema.string{ min = node.min, max = node.max or 4096, pattern = node.pattern, bounded = true }
    end,
    integer = number("integer", -9e15, 9e15),
    money = number("integer", 0, 9e15),
    bps = number("integer", 0, 10000),
    ppm = number("integer", 0, 1000000),
    boolean = function() return schema.boolean() end,
    date = function() return schema.date() end,
    datetime = function() return schema.date() end,
    enum = function(node)
        local values = {}
        for i = 1, #node do values[i] = node[i] end
        return schema.enum(values)
    end,
    list = function(node, at, say)
        return schema.array(convert(node.item, at .. "[]", say), { min = node.min, max = math.min(node.max or 1000, 1000) })
    end,
    map = function(node, at, say) return schema.map(convert(node.item, at .. ".*", say), { max = node.max }) end,
    object = function(node, at, say)
        local members = {}
        for name, field in pairs(node.fields or {}) do members[name] = convert(field, at .. "." .. name, say) end
        return schema.object(members)
    end,
}

convert = function(node, at, say)
    if type(node) ~= "table" then
        say(at .. ": not a schema")
        return schema.any()
    end
    local made
    if node.kind == "optional" then
        made = convert(node.item, at, say):optional()
    elseif IDS[node.kind] then
        made = schema.uuid()
    elseif converters[node.kind] then
        made = converters[node.kind](node, at, say)
    else
        say(("%s: '%s' is not for routes"):format(at, tostring(node.kind)))
        return schema.any()
    end
    if node.default ~= nil then made = made:default(node.default) end
    local about = node.title or node.help
    return about and made:describe(tostring(about)) or made
end

-- Lists that are empty look like objects in Lua; the schema of the answer knows better.
local function shaped(value, node)
    if type(value) ~= "table" or type(node) ~= "table" then return value end
    if node.kind == "optional" then return shaped(value, node.item) end
    if node.kind == "list" then
        for i = 1, #value do value[i] = shaped(value[i], node.item) end
        return json.array(value)
    end
    if node.kind == "map" then
        for name, member in pairs(value) do value[name] = shaped(member, node.item) end
    elseif node.kind == "object" then
        for name, field in pairs(node.fields or {}) do value[name] = shaped(value[name], field) end
    end
    return value
end

-- Manifests --------------------------------------------------------------------------------------------------------------------

local function path_of(path, say)
    if type(path) ~= "string" or path == "" then return say("path is missing: path = \"tea-finder\" answers /x/tea-finder") end
    if path:sub(1, 1) == "/" or path:find("^x/") then
        return say(("path stands without what is before it: \"%s\""):format((path:gsub("^/+", ""):gsub("^x/", ""))))
    end
    local segments = 0
    for segment in (path .. "/"):gmatch("([^/]*)/") do
        segments = segments + 1
        if not segment:find("^[a-z0-9][a-z0-9_.~-]*$") then
            return say("path is words of a-z, 0-9, - and _, with / between them")
        end
    end
    if #path > PATH_MAX or segments > SEGMENTS_MAX then return say("path is too long") end
    return path
end

local function access_of(access, say)
    if access == nil or access == "user" then return "user" end
    if access == "public" then return "public" end
    local permission = type(access) == "table" and access.permission
    if type(permission) == "string" and #permission <= 100 and permission:find("^[a-z][a-z0-9_.]*$") then
        return { permission = permission }
    end
    say("access is \"public\", \"user\" or { permission = \"orders.read\" }")
    return "user"
end

local function headers_of(list, say)
    local names = {}
    if list == nil then return names end
    if type(list) ~= "table" or #list > HEADERS_MAX then
        say(("headers lists at most %d names"):format(HEADERS_MAX))
        return names
    end
    for key, name in pairs(list) do
        if type(key) ~= "number" or type(name) ~= "string" or #name > 64 or not name:find("^[%w-]+$") then
            say("headers lists names: headers = { \"X-Signature\" }")
        elseif HIDDEN[name:lower()] or name:lower():find("^x%-kasma") then
            say(("header '%s' is not shown to rules"):format(name))
        else
            names[#names + 1] = name:lower()
        end
    end
    table.sort(names)
    return names
end

---@class RulePlan what a manifest of a route says
---@field method string
---@field path string below /x/
---@field access "public"|"user"|{permission: string}
---@field query kasma.Schema
---@field body kasma.Schema|nil
---@field headers string[] lower case
---@field returns kasma.Schema|nil
---@field answer table|nil the schema of the answer as it stands in the manifest

--- Reads the manifest of a route.
---@param manifest table
---@return RulePlan|nil, string[] problems
function M.read(manifest)
    local problems = {}
    local function say(text) problems[#problems + 1] = text end
    local method = manifest.method == nil and "GET" or manifest.method
    if not METHODS[method] then say("method is GET, POST, PUT, PATCH or DELETE") end
    local plan = { method = method, path = path_of(manifest.path, say), access = access_of(manifest.access, say),
        headers = headers_of(manifest.headers, say), answer = manifest.returns }
    if manifest.query ~= nil and (type(manifest.query) ~= "table" or manifest.query.kind ~= "object") then
        say("query must be schema.object{...}")
    else
        plan.query = convert(manifest.query or { kind = "object", fields = {} }, "query", say)
    end
    if manifest.body ~= nil then
        if method == "GET" then say("a GET has no body") end
        plan.body = convert(manifest.body, "body", say)
    end
    if manifest.returns ~= nil then plan.returns = convert(manifest.returns, "returns", say) end
    if #problems > 0 then return nil, problems end
    return plan, problems
end

--- Whether an answer may go out as it is; why not.
---@param answer {headers: table<string, string>|nil, body: any}
---@return boolean, string|nil
function M.judge(answer)
    for name, value in pairs(answer.headers or {}) do
        local low = tostring(name):lower()
        if not SAFE[low] and (not low:find("^x%-[%w-]+$") or low:find("^x%-kasma") or low == "x-request-id" or is_order(low)) then
            return false, ("result.headers.%s: is not a rule's to set"):format(tostring(name):sub(1, 60))
        end
        if value:find("[%z\1-\8\10-\31\127]") then return false, ("result.headers.%s: holds a control character"):format(name) end
    end
    local kind = type(answer.body)
    if kind ~= "nil" and kind ~= "table" and kind ~= "string" then return false, "result.body: a table or a text is expected" end
    if kind == "table" then
        local ok, text = pcall(json.encode, answer.body)
        if not ok then return false, "result.body: cannot be written as JSON" end
        if #text > 1048576 then return false, "result.body: larger than 1 MiB" end
    end
    return true
end

M.shaped = shaped

return M
