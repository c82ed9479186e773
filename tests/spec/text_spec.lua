-- Text of others, as the database takes it.
local text = require("kasma.text")

describe("text that others made", function()
    it("stays as it is when it is UTF-8", function()
        for _, s in ipairs{ "", "tea", "trà đá", "\240\159\141\181", "a\tb\n" } do
            assert.equal(s, text.plain(s))
            assert.equal(s, text.plain(s, 100))
            assert.is_true(text.is_plain(s))
        end
    end)

    it("has a mark where bytes are no character, and where a NUL was", function()
        local cases = { ["a\0b"] = "a\239\191\189b", ["a\255"] = "a\239\191\189", ["\195"] = "\239\191\189", ["\195("] = "\239\191\189(",
            ["\192\128"] = ("\239\191\189"):rep(2), ["\237\160\128"] = ("\239\191\189"):rep(3),
            ["\244\144\128\128"] = ("\239\191\189"):rep(4), ["\226\130"] = ("\239\191\189"):rep(2), ["\128tea"] = "\239\191\189tea" }
        for from, to in pairs(cases) do
            assert.equal(to, text.plain(from))
            assert.is_false(text.is_plain(from))
        end
    end)

    it("is cut between characters", function()
        assert.equal("abc", text.plain("abcdef", 3))
        assert.equal("x" .. ("é"):rep(249), text.plain("x" .. ("é"):rep(700), 500))
        assert.equal("tr", text.plain("trà", 3))
        assert.equal("trà", text.plain("trà", 4))
        assert.equal("", text.plain("\255", 2))
        assert.equal("a\239\191\189", text.plain("a\0\0", 4))
        for max = 0, 20 do
            local cut = text.plain("é\255tea\0đá\240\159\141\181", max)
            assert.is_true(#cut <= max and text.is_plain(cut))
        end
    end)

    it("within data loses its NUL, and other data is handed back as it is", function()
        local data = { a = "tea", list = { "x", 1, true } }
        assert.equal(data, text.plain_data(data))
        assert.same({ a = "b\239\191\189", ["k\239\191\189"] = { { x = "\239\191\189" } } },
            text.plain_data{ a = "b\0", ["k\0"] = { { x = "\0" } } })
    end)
end)
