-- Waits until something is so, for tests of what happens by itself.
local sched = require("core.sched")
local time = require("core.time")

local LIMIT_US = 60e6

--- Asks until the answer is true; fails after a minute.
---@generic T
---@param fn fun(): T
---@param what string|nil for the failure
---@return T
return function(fn, what)
    local deadline = time.mono() + LIMIT_US
    repeat
        local value = fn()
        if value then return value end
        sched.sleep(5)
    until time.mono() > deadline
    error((what or "the condition") .. " did not come true in time", 2)
end
