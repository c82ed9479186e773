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
local schedules = require("kasma.schedules")
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

--- Loads what rules are checked against, for who checks them without serving: the catalogue of events and the capabilities.
function M.load_for_rules()
    local names, folder = module_names()
    for _, name in ipairs(names) do
        for _, file in ipairs(files_of(folder, name)) do
            if file == "jobs_events" or file:find("^jobs_capabilities") then require("modules." .. name .. "." .. file) end
        end
    end
end

-- Each once: a queue that is named twice is not served twice.
local function names_of(text)
    local names, seen = {}, {}
    for name in tostring(text or ""):gmatch("[^,%s]+") do
        if not seen[name] then names[#names + 1] = name end
        seen[name] = true
    end
    return names
end

local function work_on(queues)
    for _, queue in ipairs(queues) do
        jobs.work(queue, { lock_ms = config.get("KASMA_LOCK_MS"), stalled_ms = config.get("KASMA_STALLED_MS") })
    end
end

-- A developer's own handlers: a file that returns {[job name] = function}, for each of the queues named. Of the product's own
-- only what tells others about this process runs beside them.
local function start_handlers(file)
    local queues = names_of(config.get("KASMA_QUEUES"))
    if #queues == 0 then error("--handlers needs --queues: which queues the handlers serve", 0) end
    local chunk, why = loadfile(file)
    if not chunk then error(why, 0) end
    local list = chunk()
    if type(list) ~= "table" then error(file .. " returns no table of handlers", 0) end
    for name, fn in pairs(list) do
        if type(name) ~= "string" or type(fn) ~= "function" then error(file .. ": a handler is a function under its job's name", 0) end
        for _, queue in ipairs(queues) do jobs.handler(queue, name, fn) end
    end
    if config.get("WORK_METRICS_PORT") ~= 0 then
        require("modules.system.routes")
        route.mount("work")
    end
    sched.spawn(function()
        clock.start()
        heartbeat.start("work", queues)
    end)
    work_on(queues)
    log.info("own handlers are served", { queues = table.concat(queues, " "), file = file })
end

-- The queues of the product that are asked for. A name of none would be served by nobody, and nobody would know.
local function queues_served()
    local all, known = jobs.queues(), {}
    for _, queue in ipairs(all) do known[queue] = true end
    local wanted = names_of(config.get("KASMA_QUEUES"))
    for _, queue in ipairs(wanted) do
        if not known[queue] then
            error(("KASMA_QUEUES: nothing here handles %s; there are %s (handlers of your own: --handlers)"):format(queue,
                table.concat(all, ", ")), 0)
        end
    end
    return #wanted > 0 and wanted or all
end

local function start_loops(role)
    local queues = role ~= "serve" and queues_served() or {}
    sched.spawn(function() invalidate.start() end)
    sched.spawn(function()
        clock.start()
        heartbeat.start(role, queues)
    end)
    if role == "serve" then return end
    sched.spawn(outbox.run_relay)
    sched.spawn(due.run_sweeper)
    work_on(queues)
    schedules.start()
end

---@param role "serve"|"work"|"all"
function M.start(role)
    local own = role == "work" and config.get("KASMA_HANDLERS")
    if own and own ~= "" then return start_handlers(own) end
    require("kasma.tokens").load()
    require("kasma.ratelimit").load()
    local names = M.load()
    if role ~= "work" or config.get("WORK_METRICS_PORT") ~= 0 then route.mount(role) end
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
