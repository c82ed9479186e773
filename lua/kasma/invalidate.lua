-- "This changed": a word between the processes, by Redis pub/sub on one channel. A message is `<kind>:<key>`; who caches that
-- kind says so with on(). When the connection was lost, messages may have been too: everything cached is dropped then.
-- Caches also expire by themselves (a second to half a minute), which is the net under this.
local redis = require("core.redis")
local cache = require("kasma.cache")
local log = require("kasma.log")

local M = {}

local CHANNEL = "kasma:invalidate"
local listeners = {}

---@param kind string word without a colon
---@param fn fun(key: string)
function M.on(kind, fn)
    listeners[kind] = listeners[kind] or {}
    table.insert(listeners[kind], fn)
end

local gap_listeners = {}

--- Called when messages may have been missed (the connection was lost, and is back).
---@param fn fun()
function M.on_gap(fn) gap_listeners[#gap_listeners + 1] = fn end

local function hear(message)
    if message == nil then
        cache.clear_all()
        for _, fn in ipairs(gap_listeners) do fn() end
        return
    end
    local kind, key = message:match("^([^:]+):(.*)$")
    for _, fn in ipairs(listeners[kind] or {}) do fn(key) end
end

--- Here at once, in the other processes as fast as Redis carries it. Redis away is no error: their caches expire.
---@param kind string
---@param key string
function M.send(kind, key)
    local message = kind .. ":" .. key
    hear(message)
    local sent, err = redis.call("PUBLISH", CHANNEL, message)
    if not sent then log.warn("invalidation was not sent", { kind = kind, why = err and err.message }) end
end

--- Starts to listen. Called once by boot.
function M.start() redis.subscribe(CHANNEL, hear) end

return M
