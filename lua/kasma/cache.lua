-- A small cache of one worker: a value is loaded by key, held for a time (real time) and dropped when another process says
-- that it changed. While one task loads a value anew, the others are served the old one; nothing waits for another's load.
-- `nil` from the loader is remembered too. The number of entries is bounded: when it is passed, all are dropped, which costs
-- one load each and needs no book-keeping on the path that counts.
local time = require("core.time")

local Cache = {}
Cache.__index = Cache

local M = {}
local all = {}

local ABSENT = {}

---@class kasma.Cache
---@field entries table<string, table>
---@field count integer

---@param opts {ttl_ms: integer, max: integer|nil, load: fun(key: string): any}
---@return kasma.Cache
function M.new(opts)
    local self = setmetatable({ entries = {}, count = 0, ttl_us = opts.ttl_ms * 1000, max = opts.max or 10000, load = opts.load }, Cache)
    all[#all + 1] = self
    return self
end

---@param key string
---@return any value, nil when the loader found nothing; raises what the loader raises
function Cache:get(key)
    local entry = self.entries[key]
    local now = time.mono()
    if entry and (entry.fresh_until > now or entry.loading) then
        if entry.value == ABSENT then return nil end
        return entry.value
    end
    if entry then entry.loading = true end
    local ok, value = pcall(self.load, key)
    if not ok then
        if entry then entry.loading = nil end
        error(value, 0)
    end
    if not self.entries[key] then
        if self.count >= self.max then self:clear() end
        self.count = self.count + 1
    end
    -- Dropped while it was loading: what was read may be the old state, so it serves this caller only.
    if entry and self.entries[key] ~= entry then
        self.entries[key] = nil
        self.count = self.count - 1
        return value
    end
    self.entries[key] = { value = value == nil and ABSENT or value, fresh_until = time.mono() + self.ttl_us }
    return value
end

---@param key string
function Cache:drop(key)
    if self.entries[key] then
        self.entries[key] = nil
        self.count = self.count - 1
    end
end

--- Drops every entry whose key fulfils `test`.
---@param test fun(key: string): boolean
function Cache:drop_where(test)
    for key in pairs(self.entries) do
        if test(key) then self:drop(key) end
    end
end

function Cache:clear() self.entries, self.count = {}, 0 end

--- Drops everything in every cache of this worker (a notice may have been lost).
function M.clear_all()
    for _, cache in ipairs(all) do cache:clear() end
end

return M
