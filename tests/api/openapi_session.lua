-- A tenant of its own for the run over the API document, with one of everything. Started by tests/api/test_openapi inside `kasma lua`
-- with a folder: writes `session` (TENANT APP OWNER_TOKEN CUSTOMER_TOKEN SECRET_KEY) and `called.json`, the served document as it is
-- to be called.
--
-- In that document ids of the tenant stand beside any UUID, so that requests find something; and who calls for which tenant is said by
-- fixed headers, so that not every second request ends at the gate (authorisation_spec has the gate).
package.path = "./tests/?.lua;" .. package.path
local json = require("core.json")
local route = require("kasma.route")
local arranged = require("api.arranged")
local support = require("api.support")

local folder = assert(arg[1], "openapi_session.lua FOLDER")

local function write(name, text)
    local file = assert(io.open(folder .. "/" .. name, "w"))
    file:write(text)
    file:close()
end

local world = arranged.world()
-- Somebody whom the owner's calls neither lock nor delete.
local customer = support.shopper(world.shop)
local document = support.client():get("/openapi.json").json

local function either(values, schema)
    return { anyOf = json.array{ { type = "string", enum = json.array(values) }, schema } }
end

-- `node` is a schema below a member of this name.
local function with_ids(node, name, decl)
    if type(node) ~= "table" then return node end
    if node.format == "uuid" then
        local kind = arranged.kind_of(name, decl)
        return kind and world.ids[kind] and either({ world.ids[kind] }, node) or node
    end
    for member, schema in pairs(type(node.properties) == "table" and node.properties or {}) do
        node.properties[member] = with_ids(schema, member, decl)
    end
    if node.items then node.items = with_ids(node.items, name, decl) end
    for _, word in ipairs{ "anyOf", "allOf" } do
        for i, schema in ipairs(type(node[word]) == "table" and node[word] or {}) do node[word][i] = with_ids(schema, name, decl) end
    end
    return node
end

for _, decl in ipairs(route.all()) do
    local path = document.paths[(decl.path:gsub("[:*]([%w_]+)", "{%1}"))]
    local operation = path and path[decl.method:lower()]
    if operation then
        operation.security = nil
        local parameters = json.array{}
        for _, parameter in ipairs(operation.parameters or {}) do
            local ref = parameter["$ref"]
            if not ref or not (ref:find("TenantHeader", 1, true) or ref:find("AppHeader", 1, true)) then
                if parameter.name == "tenant_key" then
                    parameter.schema = either({ world.shop.key }, parameter.schema)
                elseif parameter.name == "app_key" then
                    parameter.schema = either({ world.shop.app }, parameter.schema)
                elseif parameter.schema then
                    parameter.schema = with_ids(parameter.schema, parameter.name, decl)
                end
                parameters[#parameters + 1] = parameter
            end
        end
        operation.parameters = parameters
        local content = operation.requestBody and operation.requestBody.content
        for _, body in pairs(content or {}) do body.schema = with_ids(body.schema, "body", decl) end
    end
end
document.components.securitySchemes = nil

write("called.json", json.encode(document))
write("session", ("%s %s %s %s %s\n"):format(world.shop.key, world.shop.app, world.staff.cookies.access_token,
    customer.cookies.access_token, world.secret))
return 0
