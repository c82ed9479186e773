-- Bodies taken piece by piece: what the declaration refuses, and lines that are cut where pieces are not.
local body = require("kasma.body")
local errors = require("kasma.errors")
local route = require("kasma.route")

-- A reader of `text` in pieces of `size` bytes.
local function pieces(text, size)
    local from = 1
    return function()
        if from > #text then return nil end
        local piece = text:sub(from, from + size - 1)
        from = from + size
        return piece
    end
end

local function lines_of(text, size, max)
    local list = {}
    for line, number in body.lines(pieces(text, size), max) do
        assert.equal(#list + 1, number)
        list[number] = line
    end
    return list
end

local function raised(fn, ...)
    local ok, err = pcall(fn, ...)
    assert.is_false(ok)
    return err
end

describe("the lines of a body", function()
    it("are the same however the pieces fall", function()
        for size = 1, 20 do
            assert.same({ "one", "", "three", "last" }, lines_of("one\n\r\nthree\r\nlast", size))
            assert.same({ "one" }, lines_of("one\n", size))
        end
        assert.same({}, lines_of("", 5))
    end)

    it("are bounded: a longer one is 413, before it is gathered", function()
        assert.same({ "12345", "x" }, lines_of("12345\r\nx", 3, 5))
        local read = 0
        local endless = function()
            read = read + 1
            return ("y"):rep(100)
        end
        local err = raised(body.lines(endless, 250))
        assert.is_true(errors.is(err))
        assert.equal(413, err.status)
        assert.is_true(read <= 4)
        assert.equal(413, raised(lines_of, "ok\n123456\nok", 100, 5).status)
    end)
end)

describe("a piece of a body", function()
    local function request(...)
        local answers = { ... }
        return { read = function() return unpack(answers) end }
    end

    it("is handed on, and so is the end", function()
        assert.equal("abc", body.read(request("abc")))
        assert.is_nil(body.read(request(nil)))
    end)

    it("that cannot be had raises what the client is told", function()
        local slow = raised(body.read, request(nil, { kind = "deadline", code = "408", message = "the body came too slowly" }))
        assert.equal(408, slow.status)
        assert.equal("the body came too slowly", slow.message)
        assert.equal(413, raised(body.read, request(nil, { kind = "limit", code = "413", message = "m" })).status)
        assert.equal("cancelled", raised(body.read, request(nil, { kind = "cancelled", message = "the client has gone" })).kind)
    end)
end)

describe("a route that streams its body", function()
    local function declare(more)
        local decl = { summary = "s", access = "public", body = "stream", handler = function() end }
        for key, value in pairs(more) do decl[key] = value end
        return decl
    end

    it("is neither idempotent, nor spooled, nor a GET", function()
        assert.truthy(raised(route.post, "/spec/x", declare{ idempotent = true }):find("cannot be idempotent"))
        assert.truthy(raised(route.post, "/spec/x", declare{ idempotent = "transaction" }):find("cannot be idempotent"))
        assert.truthy(raised(route.post, "/spec/x", declare{ spool = true }):find("streamed or spooled"))
        assert.truthy(raised(route.get, "/spec/x", declare{}):find("needs POST"))
    end)
end)
