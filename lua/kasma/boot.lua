-- Starts a process: kasma.boot(role) with role "serve", "work" or "all". Loads every module's declarations, gives the routes
-- to the core's server and starts the loops that the role has. What waits for a store is started as tasks, so that the
-- process listens at once and says by /readyz when its stores are there.
local config = require("core.config")
local sched = require("core.sched")
local clock = require("kasma.clock")
local due = require("kasma.due")
local heartbeat = require("kasma.heartbeat")
local invalidate = require("kasma.invalidate")
local jobs = require("kasma.jobs")
local log = require("kasma.log")
local outbox = require("kasma.outbox")
local route = require("kasma.route")
local start = require("kasma.start")

local M = {}

-- Folders under lua/modules, sorted. Read once at start, before anything is served.
local function module_names()
    local here = assert(package.searchpath("kasma.boot", package.path), "kasma.boot is not on the path")
    local folder = here:gsub("kasma/boot%.lua$", "modules")
    local list = assert(io.popen("ls -1 '" .. folder:gsub("'", "'\\''") .. "'"))
    local names = {}
    for name in list:lines() do
        if name:find("^[%w_]+$") then names[#names + 1] = name end
    end
    list:close()
    table.sort(names)
    return names, folder
end

local function files_of(folder, name)
    local list = assert(io.popen("ls -1 '" .. (folder .. "/" .. name):gsub("'", "'\\''") .. "'"))
    local files = {}
    for file in list:lines() do
        local stem = file:match("^(routes[%w_]*)%.lua$") or file:match("^(jobs[%w_]*)%.lua$")
        if stem then files[#files + 1] = stem end
    end
    list:close()
    table.sort(files)
    return files
end

--- Loads the declarations of all modules (routes, jobs, settings).
---@return string[] names
function M.load()
    local names, folder = module_names()
    for _, name in ipairs(names) do
        for _, file in ipairs(files_of(folder, name)) do require("modules." .. name .. "." .. file) end
    end
    return names
end

local function start_loops(role)
    sched.spawn(function() invalidate.start() end)
    sched.spawn(function()
        clock.start()
        heartbeat.start(role, role ~= "serve" and jobs.queues() or {})
    end)
    if role == "serve" then return end
    sched.spawn(outbox.run_relay)
    sched.spawn(due.run_sweeper)
    local wanted = config.get("KASMA_QUEUES")
    local only
    if wanted and wanted ~= "" then
        only = {}
        for name in tostring(wanted):gmatch("[^,%s]+") do only[name] = true end
    end
    for _, queue in ipairs(jobs.queues()) do
        if not only or only[queue] then jobs.work(queue) end
    end
end

---@param role "serve"|"work"|"all"
function M.start(role)
    local names = M.load()
    if role ~= "work" then route.mount() end
    start_loops(role)
    start.run(role)
    log.debug("started", { role = role, modules = table.concat(names, " ") })
end

--- Whether this process reaches its stores. Asked during an upgrade, before it takes requests: until it answers true the older
--- process serves on.
---@return boolean
function M.ready()
    local _, ok = require("modules.system.health").check()
    return ok
end

--- HUP: the rules in files are read again (where files are watched this finds nothing new).
function M.reload()
    require("core.rules").reload()
end

return setmetatable(M, { __call = function(_, role) return M.start(role) end })
