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

return M
