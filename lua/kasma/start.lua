-- What a module does when the process starts: fn(role) runs as a task of its own, after the routes are mounted. A store may
-- not be there yet: it is tried again with growing pauses until it succeeds or the process stops.
local sched = require("core.sched")
local log = require("kasma.log")

local M = {}

local list = {}

---@param name string for the log
---@param fn fun(role: "serve"|"work"|"all")
function M.add(name, fn) list[#list + 1] = { name = name, fn = fn } end

---@param role "serve"|"work"|"all"
function M.run(role)
    for _, entry in ipairs(list) do
        sched.spawn(function()
            local pause = 200
            while not sched.stopping() do
                local ok, why = pcall(entry.fn, role)
                if ok then return end
                log.warn("start is tried again", { what = entry.name, error = tostring(why) })
                sched.sleep(pause)
                pause = math.min(pause * 2, 10000)
            end
        end)
    end
end

--- When the process stops, what is under way gets its time.
---@param count fun(): integer how much is under way
---@param limit_ms integer the longest wait
function M.drain(count, limit_ms)
    sched.on_stop(function()
        local waited = 0
        while count() > 0 and waited < limit_ms do
            sched.sleep(50)
            waited = waited + 50
        end
    end)
end

return M
