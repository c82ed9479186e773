-- A small cache of one worker: a value is loaded by key, held for a time (real time) and dropped when another process says
-- that it changed. While one task loads a value anew, the others are served the old one; where there is none, they wait for that
-- load. Both have a limit: a load that hangs (LOAD_LIMIT_MS) holds nobody up for longer, and the next caller begins its own.
-- What was dropped while it was being loaded is not kept, since what was read may be the old state; nor is what a load brings that
-- another has overtaken.
-- `nil` from the loader is remembered too. The number of entries is bounded: when it is passed, all are dropped, which costs
-- one load each and needs no book-keeping on the path that counts.
local sched = require("core.sched")
local time = require("core.time")

local Cache = {}
Cache.__index = Cache

local M = {}
local all = {}

local ABSENT = {}
local LOAD_LIMIT_MS = 5000

---@class kasma.Cache
---@field entries table<string, table>
---@field flights table<string, table> loads under way; one that is not here any more keeps nothing
---@field count integer

---@param opts {ttl_ms: integer, max: integer|nil, limit_ms: integer|nil, load: fun(key: string): any} limit_ms: how long others wait
--- for a load; default 5000
---@return kasma.Cache
function M.new(opts)
    local self = setmetatable({ entries = {}, flights = {}, count = 0, ttl_us = opts.ttl_ms * 1000, max = opts.max or 10000,
        limit_us = (opts.limit_ms or LOAD_LIMIT_MS) * 1000, load = opts.load }, Cache)
    all[#all + 1] = self
    return self
end

---@param key string
---@return any value, nil when the loader found nothing; raises what the loader raises
function Cache:get(key)
    local entry = self.entries[key]
    local now = time.mono()
    if entry and (entry.fresh_until > now or (entry.loading_until and entry.loading_until > now)) then
        if entry.value == ABSENT then return nil end
        return entry.value
    end
    return self:fill(key, entry, now)
end

-- What became of a client or of its time says nothing to the others who wait for the same value.
local function is_own(err)
    local cause = type(err) == "table" and (err.kind and err or err.cause)
    return cause and (cause.kind == "cancelled" or cause.kind == "deadline")
end

function Cache:fill(key, entry, now)
    local flight = not entry and self.flights[key]
    if flight and flight.until_us > now then
        if not flight.done then
            flight.done = sched.semaphore(1)
            flight.done:acquire()
        end
        local ok, err = flight.done:acquire(math.max(1, math.ceil((flight.until_us - now) / 1000)))
        if not ok and err.kind ~= "timeout" then error(err, 0) end
        if flight.failed and not is_own(flight.err) then error(flight.err, 0) end
        return self:get(key)
    end
    flight = { until_us = now + self.limit_us }
    self.flights[key] = flight
    if entry then entry.loading_until = flight.until_us end
    local ok, value = pcall(self.load, key)
    if self.flights[key] == flight then
        self.flights[key] = nil
        if ok then
            self:put(key, value)
        elseif entry then
            entry.loading_until = nil
        end
    end
    flight.failed, flight.err = not ok, value
    if flight.done then
        for _ = 1, flight.done:waiting() do flight.done:release() end
    end
    if not ok then error(value, 0) end
    return value
end

function Cache:put(key, value)
    if not self.entries[key] then
        if self.count >= self.max then self.entries, self.count = {}, 0 end
        self.count = self.count + 1
    end
    self.entries[key] = { value = value == nil and ABSENT or value, fresh_until = time.mono() + self.ttl_us }
end

---@param key string
function Cache:drop(key)
    self.flights[key] = nil
    if self.entries[key] then
        self.entries[key] = nil
        self.count = self.count - 1
    end
end

--- Drops every entry whose key fulfils `test`.
---@param test fun(key: string): boolean
function Cache:drop_where(test)
    for key in pairs(self.flights) do
        if test(key) then self.flights[key] = nil end
    end
    for key in pairs(self.entries) do
        if test(key) then self:drop(key) end
    end
end

function Cache:clear() self.entries, self.flights, self.count = {}, {}, 0 end

--- Drops everything in every cache of this worker (a notice may have been lost).
function M.clear_all()
    for _, cache in ipairs(all) do cache:clear() end
end

return M
