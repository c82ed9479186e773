-- docs/threat-model.md promises nothing that nobody tries: every test it names exists under that name.
local function read(path)
    local file = io.open(path, "r")
    if not file then return nil end
    local text = file:read("*a")
    file:close()
    return text
end

describe("the threat model", function()
    it("names tests that exist", function()
        local text = assert(read("docs/threat-model.md"))
        local named, missing = 0, {}
        for path, words in text:gmatch('`(tests/[%w_./]+)`: "([^"]+)"') do
            named = named + 1
            local source = read(path)
            if not source then
                missing[#missing + 1] = path
            elseif not source:find(words, 1, true) then
                missing[#missing + 1] = path .. ": " .. words
            end
        end
        assert.same({}, missing)
        assert.is_true(named > 40)
        -- Each file that is named stands in that form: a reference that the pattern above misses is none.
        local _, files = text:gsub("`tests/[%w_./]+`", "")
        assert.equal(named, files - 1)
    end)

    it("gives every threat a defence, and a test or the word that there is none", function()
        for line in assert(read("docs/threat-model.md")):gmatch("\n(|[^\n]+|)") do
            local threat, defence, shown = line:match("^| (.-) | (.-) | (.-) ?|$")
            if threat and threat ~= "threat" and threat:find("%a") then
                assert.is_true(#defence > 0, line)
                local told = shown:find("tests/", 1, true) or shown == "not tried by itself" or defence:find("not defended", 1, true)
                assert.is_truthy(told, line)
            end
        end
    end)
end)
