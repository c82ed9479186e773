-- What is done at most once in a while for each of many names (a session seen, a key used, a refusal on record): when it was done last is
-- kept in this worker. The number of names is bounded: when it is passed all are forgotten, which costs one time more of each.
local Seldom = {}
Seldom.__index = Seldom

local M = {}

---@class kasma.Seldom
---@field at table<string, integer> when it was done last, by name
---@field count integer
---@field every_ms integer
---@field max integer names

---@param every_ms integer
---@param max integer names that are kept
---@return kasma.Seldom
function M.new(every_ms, max) return setmetatable({ at = {}, count = 0, every_ms = every_ms, max = max }, Seldom) end

--- Whether it is time again for a name; then it counts as done. A clock that was put back makes it time.
---@param name string
---@param now integer epoch ms
---@return boolean
function Seldom:due(name, now)
    local last = self.at[name]
    if last and now >= last and now - last < self.every_ms then return false end
    if not last then
        if self.count >= self.max then self.at, self.count = {}, 0 end
        self.count = self.count + 1
    end
    self.at[name] = now
    return true
end

return M
