-- What reads an event stream of a server that may send what it likes.
local event_source = require("kasma.event_source")

describe("an event stream", function()
    it("is read in whatever pieces it comes", function()
        local text = "event: saved\r\nid: 7\r\ndata: {\"a\":1}\r\ndata:two\r\n\r\n: still here\n\ndata\n\nevent: empty\n\n"
        local wanted = { { event = "saved", data = '{"a":1}\ntwo', id = "7" }, { event = "message", data = "", id = "7" } }
        for size = 1, #text do
            local feed, got = event_source.parser(), {}
            for at = 1, #text, size do
                for _, event in ipairs(feed(text:sub(at, at + size - 1))) do got[#got + 1] = event end
            end
            assert.same(wanted, got)
        end
    end)

    it("that never ends a line or an event is given up", function()
        local pieces = { ("x"):rep(65536), ("data: " .. ("x"):rep(1000) .. "\n"):rep(64), ("data:\n"):rep(10000), ("\r"):rep(65536) }
        for _, piece in ipairs(pieces) do
            local feed, stopped = event_source.parser(), nil
            for _ = 1, 200 do
                local got, why = feed(piece)
                if not got then stopped = why break end
            end
            assert.truthy(stopped)
        end
    end)
end)
