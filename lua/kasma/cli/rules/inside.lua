-- The routes of the server, called inside this process on the stores of this installation: for who stands at the machine and needs no
-- key. Nothing is served; the declaration's own checks of input run, those of who calls do not.
local json = require("core.json")
local errors = require("kasma.errors")
local route = require("kasma.route")
local schema = require("kasma.schema")

local M = {}

local function segments(path)
    local list = {}
    for part in path:gmatch("[^/]+") do list[#list + 1] = part end
    return list
end

local function unescaped(text)
    return (text:gsub("%%(%x%x)", function(hex) return string.char(tonumber(hex, 16)) end))
end

-- The declaration that a path means: literal words go before parameters, the first ones first.
local function find(method, path)
    local wanted = segments(path)
    local best, params, rank
    for _, decl in ipairs(route.all()) do
        local have = decl.method == method and segments(decl.path) or {}
        local found, weight = {}, {}
        local fits = #have == #wanted
        for i = 1, fits and #have or 0 do
            local name = have[i]:match("^:(.+)$")
            if name then found[name] = unescaped(wanted[i]) elseif have[i] ~= wanted[i] then fits = false end
            weight[i] = name and "0" or "1"
        end
        if fits and (not rank or table.concat(weight) > rank) then best, params, rank = decl, found, table.concat(weight) end
    end
    return best, params
end

local function checked(node, value, query)
    local clean, wrong = schema.check(node, value, query)
    if wrong and wrong[1] then errors.validation(wrong) end
    if wrong then errors.not_found(wrong.not_found) end
    return clean
end

local function texts(query)
    local out = {}
    for name, value in pairs(query or {}) do out[name] = tostring(value) end
    return out
end

--- Answers a declared route. Raises what the route raises.
---@param scope Scope who acts
---@param method string
---@param path string without a query; parameters percent-encoded
---@param o {query: table|nil, body: table|nil}|nil
---@return any body as it would be over the wire, integer status, table<string, string> headers in lower case
function M.call(scope, method, path, o)
    local decl, params = find(method, path)
    if not decl then errors.not_found{ message = ("Cannot %s %s"):format(method, path) } end
    local ctx = { tenant = scope.tenant, app = scope.app, scope = scope, params = params, query = {} }
    local headers = {}
    function ctx.set_header(name, value) headers[name:lower()] = value end
    function ctx.may() return true end
    if decl.params then ctx.params = checked(schema.object(decl.params), params, true) end
    if decl.query then ctx.query = checked(decl.query, texts(o and o.query), true) end
    if decl.body then ctx.body = checked(decl.body, json.decode(json.encode(o and o.body or json.object({}, {}))), false) end
    local body, status = decl.handler(ctx)
    if type(body) == "table" then body = json.decode(json.encode(body)) end
    return body, status or decl.status, headers
end

return M
