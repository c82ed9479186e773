-- The API page: what it loads lies on this server, and nothing else of the folder is given out.
local command = require("api.command")
local support = require("api.support")

describe("the API document", function()
    it("is the same text in every process, so that its ETag holds and two versions can be compared", function()
        local status, first, errors = command.run("openapi")
        assert.equal(0, status, errors)
        local _, second = command.run("openapi")
        assert.is_true(#first > 100000)
        assert.is_true(first == second, "two processes print two documents")
    end)

    it("shows members in the order of their declaration, and the parts of an operation in that of reading", function()
        local _, text = command.run("openapi --area auth")
        local login = text:match('"/auth/login":(%b{})')
        assert.truthy(login:find('^{"post":{"tags":%["auth"%],"summary":"[^"]+","operationId":"auth%.postAuthLogin","security":'))
        assert.truthy(login:find('"properties":{"identifier":{[^}]+},"password":{'))
    end)
end)

describe("the API page", function()
    it("loads scripts and styles of this server alone, and its policy allows no others", function()
        local answer = support.client():get("/api/docs")
        assert.equal(200, answer.status)
        assert.equal("text/html; charset=utf-8", answer.headers["content-type"])
        local policy = answer.headers["content-security-policy"]
        assert.truthy(policy:find("default-src 'none'", 1, true))
        assert.truthy(policy:find("script-src 'self';", 1, true))
        assert.is_nil(answer.body:find("https?://"))
        assert.is_nil(answer.body:find("<script>", 1, true))
        local loaded = 0
        for path in answer.body:gmatch('[hs][rer][ec]f?="(/api/docs/assets/[^"]+)"') do
            local asset = support.client():get(path)
            assert.equal(200, asset.status, path)
            assert.is_true(#asset.body > 500, path)
            assert.truthy(asset.headers["content-type"]:find(path:find("%.css") and "text/css" or "text/javascript", 1, true))
            loaded = loaded + 1
        end
        assert.equal(4, loaded)
    end)

    it("offers every area, each with a document of its own", function()
        local body = support.client():get("/api/docs").body
        local areas = 0
        for area in body:gmatch("<option>([%w_-]+)</option>") do
            local document = support.client():get("/openapi/" .. area .. ".json")
            assert.equal(200, document.status, area)
            assert.equal("3.1.0", document.json.openapi)
            assert.is_not_nil(next(document.json.paths), area)
            areas = areas + 1
        end
        assert.is_true(areas >= 8)
    end)

    it("gives out no other file", function()
        for _, name in ipairs{ "LICENSE", "VERSION", "..%2f..%2fREADME.md", "page.js%00", "swagger-ui", "%2e%2e/page.js" } do
            assert.equal(404, support.client():get("/api/docs/assets/" .. name).status, name)
        end
    end)
end)
