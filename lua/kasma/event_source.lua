-- Reads an event stream (text/event-stream) of a server: pieces of text in, events out. Lines and events have a bound, since a server
-- may send what it likes.
local M = {}

local LINE_MAX, EVENT_MAX = 1048576, 4194304

---@class kasma.SourceEvent
---@field event string "message" where none was named
---@field data string
---@field id string|nil the last one that was sent

--- What makes events out of pieces: `feed(text)` answers the events that are whole now, or nil and why it stops.
---@return fun(text: string): kasma.SourceEvent[]|nil, string|nil
function M.parser()
    local rest, id = "", nil
    local name, data, size = nil, {}, 0
    local function line_of(line, out)
        if line == "" then
            if data[1] then out[#out + 1] = { event = name or "message", data = table.concat(data, "\n"), id = id } end
            name, data, size = nil, {}, 0
            return true
        end
        local field, value = line:match("^([^:]*): ?(.*)$")
        if not field then field, value = line, "" end
        size = size + #line + 1 -- an empty line of data is one too
        if size > EVENT_MAX then return false end
        if field == "data" then
            data[#data + 1] = value
        elseif field == "event" then
            name = value ~= "" and value or nil
        elseif field == "id" and not value:find("%z") then
            id = value
        end
        return true
    end
    return function(text)
        local out, at = {}, 1
        rest = rest .. text
        while true do
            local from, to = rest:find("\r?\n", at)
            if not from then break end
            if not line_of(rest:sub(at, from - 1), out) then return nil, "an event is larger than allowed" end
            at = to + 1
        end
        rest = rest:sub(at)
        if #rest > LINE_MAX then return nil, "a line is longer than allowed" end
        return out
    end
end

return M
