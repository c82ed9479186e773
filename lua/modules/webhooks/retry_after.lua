-- Retry-After of an answer: seconds, or a date in one of the three forms that HTTP knows (RFC 9110, 5.6.7). What is neither counts as
-- not said.
local time = require("core.time")

local M = {}

local MONTHS = { jan = 1, feb = 2, mar = 3, apr = 4, may = 5, jun = 6, jul = 7, aug = 8, sep = 9, oct = 10, nov = 11, dec = 12 }
local CLOCK = "(%d%d):(%d%d):(%d%d)"

-- Two digits mean the latest year that is at most fifty ahead.
local function year_of(text, now)
    local year = tonumber(text)
    if #text == 4 then return year end
    local this = time.fields(now).year
    local latest = this + 50
    return latest - (latest - year) % 100
end

local function date_ms(text, now)
    local day, month, year, hour, min, sec = text:match("^%a%a%a, (%d%d) (%a%a%a) (%d%d%d%d) " .. CLOCK .. " GMT$")
    if not day then day, month, year, hour, min, sec = text:match("^%a+day, (%d%d)%-(%a%a%a)%-(%d%d) " .. CLOCK .. " GMT$") end
    if not day then month, day, hour, min, sec, year = text:match("^%a%a%a (%a%a%a) ([ %d]%d) " .. CLOCK .. " (%d%d%d%d)$") end
    month = day and MONTHS[month:lower()]
    if not month then return nil end
    local parts = { year = year_of(year, now), month = month, day = tonumber(day), hour = tonumber(hour), min = tonumber(min),
        sec = math.min(tonumber(sec), 59) } -- 60 is a leap second
    local at = time.epoch(parts)
    -- The 31st of February is no day, whatever the calendar makes of it.
    local read = time.fields(at)
    for name, value in pairs(parts) do
        if read[name] ~= value then return nil end
    end
    return at
end

--- How long a receiver asks to be left alone.
---@param text string|nil value of the header
---@param now integer epoch ms, of the real clock: the receiver knows no other
---@return integer|nil ms not negative
function M.ms(text, now)
    text = text and #text <= 64 and text:match("^%s*(.-)%s*$")
    if not text then return nil end
    if text:find("^%d+$") then return #text <= 6 and tonumber(text) * 1000 or nil end
    local at = date_ms(text, now)
    return at and math.max(0, at - now)
end

return M
