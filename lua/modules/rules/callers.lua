-- The breaker of routes that anybody may call. What such a rule is given comes from outside: if its failures held it back from everybody,
-- five bad requests would take a shop's route away, and fifteen would switch it off until somebody enables it. So here a caller who makes
-- the rule fail five times within a minute is held back for five minutes, then tried once, which decides; all others are answered. The
-- rule itself is never switched off by its callers: what is told is that it fails (breaker.lua), by failures of whomever.
--
-- Kept in the worker, in two tables of which the older one is forgotten when the younger is full: who brings thousands of addresses makes
-- it forget, and wins a run that fails for each.
local time = require("core.time")

local M = {}

local FAILURES, WINDOW_MS, HELD_MS, MAX = 5, 60000, 300000, 5000

local young, old, count = {}, {}, 0

local function find(key)
    return young[key] or old[key]
end

local function put(key, entry)
    if young[key] then return end
    if count >= MAX then young, old, count = {}, young, 0 end
    young[key], count = entry, count + 1
end

-- Notes a failure; true: it was one too many.
local function count_failure(key, now)
    local entry = find(key) or { held_until = 0 }
    put(key, entry)
    local tried = entry.held_until ~= 0 and now >= entry.held_until
    table.insert(entry, 1, now)
    entry[FAILURES + 1] = nil
    if not tried and not (entry[FAILURES] and now - entry[FAILURES] <= WINDOW_MS) then return false end
    for i = 1, FAILURES do entry[i] = nil end
    entry.held_until = now + HELD_MS
    return true
end

---@class RouteCaller
---@field rule string names a version of a tenant's rule
---@field who string

--- For how long a caller is held back from the rule.
---@param caller RouteCaller
---@return integer|nil seconds nil: not at all
function M.held_s(caller)
    local entry = find(caller.rule .. "|" .. caller.who)
    local left = entry and entry.held_until - time.now() or 0
    return left > 0 and math.ceil(left / 1000) or nil
end

--- Notes what became of a caller's run.
---@param caller RouteCaller
---@param failed boolean
---@return boolean fails the rule has failed five times within a minute, for whomever; told once in five minutes
function M.note(caller, failed)
    local key, now = caller.rule .. "|" .. caller.who, time.now()
    if not failed then
        if find(key) then young[key], old[key] = nil, nil end
        return false
    end
    count_failure(key, now)
    local all = find(caller.rule)
    if all and now < all.held_until then return false end
    if all and all.held_until ~= 0 then all.held_until = 0 end
    return count_failure(caller.rule, now)
end

return M
