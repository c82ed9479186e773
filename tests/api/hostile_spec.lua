-- What a hostile client writes into bodies, queries and paths is refused with 400 or 404, and nothing of it is stored.
local shop_of = require("api.shop")
local support = require("api.support")

local P = "/api/ecommerce/products"
local JSON = { ["Content-Type"] = "application/json" }
local FORM = { ["Content-Type"] = "application/x-www-form-urlencoded" }

describe("a hostile client", function()
    local shop = support.tenant{ currency = "VND" }
    local function stored() return #shop_of.must(shop.owner:get(P .. "/list"), 200) end

    local function refused(body, headers)
        local answer = shop.owner:request("POST", P .. "/create", body, headers or JSON)
        assert.is_true(answer.status == 400 or answer.status == 413, body:sub(1, 60) .. " " .. answer.status .. " " .. answer.body)
        assert.equal(0, stored(), body:sub(1, 60))
    end

    it("stores no text that is none", function()
        for _, name in ipairs{ [["a\u0000b"]], [["a\ud800b"]], [["a\udc00"]], '"\255\254"', '"\192\175"', '"\237\160\128"',
            "null", "{}", "[]" } do
            refused('{"slug":"s","price":1,"name":' .. name .. "}")
        end
        for _, name in ipairs{ "a%00b", "a%ffb", "a&name=b", "a&name[x]=b" } do refused("slug=s&price=1&name=" .. name, FORM) end
    end)

    it("stores no price that is none", function()
        for _, price in ipairs{ "-1", "0.5", "1e308", "1e400", "9007199254740993", "9223372036854775807", '"9223372036854775807"', '"1.5"',
            '"1e5"', '"-1"', "NaN", "true", "{}", '"\239\188\145"' } do
            refused('{"slug":"s","name":"n","price":' .. price .. "}")
        end
    end)

    it("sends no body that is deeper, larger or other than one object", function()
        for _, body in ipairs{ ("["):rep(100000), ('{"a":'):rep(2000) .. "1" .. ("}"):rep(2000),
            '{"name":"' .. ("x"):rep(1100000) .. '"}', "[]",
            "null", '"a"', '{"slug":"s","name":"n","price":1}x', '{"__proto__":1}', [[{"a\u0000":1}]] } do
            refused(body)
        end
    end)

    it("gets no page, order, id or date that there is not", function()
        for _, query in ipairs{ "limit=0", "limit=-1", "limit=99999999999999999999", "limit=1.5", "limit=NaN", "limit=0x10",
            "limit=1&limit=2",
            "cursor=o99999999999", "cursor=%00", "search=%00", "search=%ff", "search=%ed%a0%80", "minPrice=1e308", "minPrice=-1",
            "maxPrice=9223372036854775808", "ids=%00", "ids=a,,b", "sort=", "isActive=2" } do
            assert.equal(400, shop.owner:get(P .. "/list?" .. query).status, query)
        end
        local id = "01900000-0000-7000-8000-000000000000"
        for _, other in ipairs{ "{" .. id .. "}", (id:gsub("-", "")), "urn:uuid:" .. id, id .. "%00", id .. "%0a", "%20" .. id,
            "..%2f..%2fx",
            ("0"):rep(36) } do
            assert.equal(404, shop.owner:get(P .. "/" .. other).status, other)
            assert.equal(400, shop.owner:get("/users/" .. other).status, other)
        end
        for _, date in ipairs{ "0000-01-01", "-0001-01-01", "10000-01-01", "2026-02-29", "2026-06-30T23:59:60Z",
            "2026-01-01T00:00:00%2b99:00",
            "1e9" } do
            assert.equal(400, shop.owner:get("/audit/logs?from=" .. date).status, date)
        end
        for _, date in ipairs{ "0001-01-01T00:00:00%2b14:00", "9999-12-31T23:59:59-14:00" } do
            assert.equal(200, shop.owner:get("/audit/logs?from=" .. date).status, date)
        end
    end)

    it("takes no look-alike of an address", function()
        for _, address in ipairs{ "\208\176dmin@example.test", "a@ex\208\176mple.test", "a\226\128\139@example.test", "a@example.test\n",
            "a@[127.0.0.1]", "\197\191@example.test" } do
            assert.equal(400, shop.owner:post("/users", { email = address, display_name = "x" }).status, address)
        end
    end)
end)
