-- The API document is made from the declarations, whole and consistent.
local boot = require("kasma.boot")
local openapi = require("kasma.openapi")
local route = require("kasma.route")

boot.load()

describe("the API document", function()
    local document = openapi.document(route.all(), { version = "1.2.3" })

    local function each_operation(fn)
        for path, item in pairs(document.paths) do
            for method, operation in pairs(item) do fn(path, method, operation) end
        end
    end

    it("is OpenAPI 3.1 with every declared route", function()
        assert.equal("3.1.0", document.openapi)
        assert.equal("1.2.3", document.info.version)
        for _, decl in ipairs(route.all()) do
            if not decl.hidden then
                local path = decl.path:gsub("[:*]([%w_]+)", "{%1}")
                assert.is_table(document.paths[path] and document.paths[path][decl.method:lower()], decl.method .. " " .. decl.path)
            end
        end
    end)

    it("names each operation once and summarises it in a line", function()
        local seen = {}
        each_operation(function(path, method, operation)
            local name = method .. " " .. path
            assert.is_nil(seen[operation.operationId], name)
            seen[operation.operationId] = true
            assert.is_true(#operation.summary > 0 and #operation.summary <= 80, name)
            assert.equal(1, #operation.tags, name)
            assert.is_table(next(operation.responses) and operation.responses, name)
        end)
    end)

    it("promises no body where the server refuses before there is a request", function()
        each_operation(function(path, method, operation)
            local name = method .. " " .. path
            local too_long, bad = operation.responses["414"], operation.responses["400"]
            assert.is_true(too_long == nil or too_long.content == nil, name)
            assert.is_true(bad == nil or bad.content ~= nil, name)
        end)
    end)

    it("declares every parameter of a path", function()
        each_operation(function(path, method, operation)
            for wanted in path:gmatch("{([%w_]+)}") do
                local found = false
                for _, parameter in ipairs(operation.parameters or {}) do
                    found = found or (parameter["in"] == "path" and parameter.name == wanted and parameter.required)
                end
                assert.is_true(found, method .. " " .. path .. " " .. wanted)
            end
        end)
    end)

    it("refers only to what it holds", function()
        local function walk(value)
            if type(value) ~= "table" then return end
            local ref = rawget(value, "$ref")
            if ref then
                local kind, name = ref:match("^#/components/(%w+)/([%w_]+)$")
                assert.is_table(document.components[kind] and document.components[kind][name], ref)
            end
            for _, member in pairs(value) do walk(member) end
        end
        walk(document)
    end)

    it("says who may call, and catalogues what that takes", function()
        local users = document.paths["/users"].get
        assert.equal("users.read", users["x-permission"])
        assert.is_string(route.permissions()["users.read"])
        assert.same({ {} }, document.paths["/auth/login"].post.security)
        for key in pairs(route.permissions()) do assert.matches("^[a-z_]+[a-z_.]*%.[a-z_]+$", key) end
    end)
end)
