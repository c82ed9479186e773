-- Cron patterns: `minute hour day month weekday`, or with seconds before them. `*`, lists, ranges, steps, names (JAN, MON), `?`, `L`
-- (last day of the month), `5L` (last Friday), `2#3` (third Tuesday), @yearly @monthly @weekly @daily @hourly. When day and weekday
-- are both given, either is enough, as everywhere.
--
-- In a time zone with summer time, a pattern that names hours runs once a day and hour: a time that the change skips comes with the
-- offset before it, one that occurs twice counts the first time. A pattern for every hour goes by elapsed time.
local time = require("core.time")

local M = {}

local LENGTH_MAX, YEARS = 256, 12

local MONTHS = { JAN = 1, FEB = 2, MAR = 3, APR = 4, MAY = 5, JUN = 6, JUL = 7, AUG = 8, SEP = 9, OCT = 10, NOV = 11, DEC = 12 }
local DAYS = { SUN = 0, MON = 1, TUE = 2, WED = 3, THU = 4, FRI = 5, SAT = 6 }
local MACROS = { ["@yearly"] = "0 0 1 1 *", ["@annually"] = "0 0 1 1 *", ["@monthly"] = "0 0 1 * *", ["@weekly"] = "0 0 * * 0",
    ["@daily"] = "0 0 * * *", ["@midnight"] = "0 0 * * *", ["@hourly"] = "0 * * * *" }

local FIELDS = {
    { name = "second", least = 0, most = 59 }, { name = "minute", least = 0, most = 59 }, { name = "hour", least = 0, most = 23 },
    { name = "day", least = 1, most = 31 }, { name = "month", least = 1, most = 12, names = MONTHS },
    { name = "weekday", least = 0, most = 7, names = DAYS },
}

local function number(text, field)
    local n = tonumber(text:match("^%d%d?$")) or field.names and field.names[text:upper()]
    if not n or n < field.least or n > field.most then return nil end
    return n
end

-- One part of a list: sets members of `set`. False when it is not understood.
local function part(text, field, set)
    local body, step = text:match("^(.-)/(%d+)$")
    body, step = body or text, tonumber(step)
    if step and (step < 1 or step > 60) then return false end
    local first, last
    if body == "*" or (body == "?" and (field.name == "day" or field.name == "weekday")) then
        first, last = field.least, field.name == "weekday" and 6 or field.most
    else
        local low, high = body:match("^(%w+)%-(%w+)$")
        if low then
            first, last = number(low, field), number(high, field)
        else
            first = number(body, field)
            last = step and field.most or first
        end
        if not first or not last then return false end
        if first > last then
            -- FRI-MON goes over the end of the week; other fields do not wrap.
            if field.name ~= "weekday" then return false end
            last = last + 7
        end
    end
    for n = first, last, step or 1 do set[field.name == "weekday" and n % 7 or n] = true end
    return true
end

local function special(text, field, spec)
    if field.name == "day" and text:upper() == "L" then
        spec.last_day = true
        return true
    end
    if field.name ~= "weekday" then return false end
    local day = text:match("^(%w+)[lL]$")
    if day and number(day, field) then
        spec.last_weekdays[number(day, field) % 7] = true
        return true
    end
    local which, nth = text:match("^(%w+)#([1-5])$")
    if which and number(which, field) then
        local n = number(which, field) % 7
        spec.nth[n] = spec.nth[n] or {}
        spec.nth[n][tonumber(nth)] = true
        return true
    end
    return false
end

local function sorted(set)
    local list = {}
    for n in pairs(set) do list[#list + 1] = n end
    table.sort(list)
    return list
end

--- Reads a pattern.
---@param text string
---@return table|nil spec
---@return string|nil why not
function M.parse(text)
    if type(text) ~= "string" or #text > LENGTH_MAX then return nil, "a cron pattern is a text of up to 256 characters" end
    text = MACROS[text:lower()] or text
    local words = {}
    for word in text:gmatch("%S+") do words[#words + 1] = word end
    if #words == 5 then table.insert(words, 1, "0") end
    if #words ~= 6 then return nil, "a cron pattern has five fields, or six with seconds" end
    local spec = { last_weekdays = {}, nth = {} }
    for i, field in ipairs(FIELDS) do
        local set = {}
        -- An empty part is refused: "1,,2".
        for item in (words[i] .. ","):gmatch("([^,]*),") do
            if not part(item, field, set) and not special(item, field, spec) then
                return nil, ("the %s of the cron pattern is not understood: %s"):format(field.name, words[i])
            end
        end
        spec[field.name] = set
    end
    spec.any_day = words[4] == "*" or words[4] == "?"
    spec.any_weekday = words[6] == "*" or words[6] == "?"
    spec.hours, spec.minutes, spec.seconds = sorted(spec.hour), sorted(spec.minute), sorted(spec.second)
    spec.every_hour = #spec.hours == 24
    return spec
end

local function month_days(year, month)
    if month == 2 then return (year % 4 == 0 and (year % 100 ~= 0 or year % 400 == 0)) and 29 or 28 end
    return (month == 4 or month == 6 or month == 9 or month == 11) and 30 or 31
end

local function day_matches(spec, year, month, day, weekday)
    local by_day = spec.day[day] or spec.last_day and day == month_days(year, month)
    local nth = spec.nth[weekday]
    local by_weekday = spec.weekday[weekday] or nth and nth[math.ceil(day / 7)]
        or spec.last_weekdays[weekday] and day + 7 > month_days(year, month)
    if spec.any_day then return by_weekday end
    if spec.any_weekday then return by_day end
    return by_day or by_weekday
end

-- The first time of that local day after `after`, or nil.
local function in_day(spec, year, month, day, after, zone)
    local function at(hour, min, sec)
        return time.epoch({ year = year, month = month, day = day, hour = hour, min = min, sec = sec }, zone)
    end
    if spec.every_hour then
        local t = math.max(at(0, 0, 0), math.floor(after / 1000) * 1000 + 1000)
        while true do
            local f = time.fields(t, zone)
            if f.day ~= day or f.month ~= month then return nil end
            if not spec.minute[f.min] then
                t = t + (60 - f.sec) * 1000
            elseif not spec.second[f.sec] then
                t = t + 1000
            else
                return t
            end
        end
    end
    for _, hour in ipairs(spec.hours) do
        if at(hour, 59, 59) > after then
            for _, min in ipairs(spec.minutes) do
                if at(hour, min, 59) > after then
                    for _, sec in ipairs(spec.seconds) do
                        local t = at(hour, min, sec)
                        if t > after then return t end
                    end
                end
            end
        end
    end
    return nil
end

--- The first time of the pattern after a time.
---@param spec table of parse
---@param after number epoch ms
---@param zone string|nil UTC unless given
---@return number|nil epoch ms, nil when there is none within twelve years
function M.next(spec, after, zone)
    local f = time.fields(after, zone)
    local year, month, day = f.year, f.month, f.day
    for _ = 1, YEARS * 12 do
        if spec.month[month] then
            local days = month_days(year, month)
            local weekday = time.fields(time.epoch({ year = year, month = month, day = day })).wday % 7
            for d = day, days do
                if day_matches(spec, year, month, d, (weekday + d - day) % 7) then
                    local t = in_day(spec, year, month, d, after, zone)
                    if t then return t end
                end
            end
        end
        day, month = 1, month + 1
        if month > 12 then year, month = year + 1, 1 end
    end
    return nil
end

return M
