-- kasma rules watch: checks and tests whatever is saved below a folder, and follows it further.
--
-- Where a server has the folder as its own (make up), its workers load what is saved by themselves: the stream says which of them have,
-- and the line ends when all have or a while is over. With --session what passes is saved as the draft of a shared server, and the
-- header that shows its prices is printed once a rule. Without a server it ends at the tests.
local json = require("core.json")
local sched = require("core.sched")
local time = require("core.time")
local files = require("kasma.cli.rules.files")
local report = require("kasma.cli.rules.report")
local target = require("kasma.cli.rules.target")

local M = {}

local commands = {}
M.commands = commands

local LOOK_MS, LIVE_MS, SESSION_MINUTES = 300, 3000, 240

-- path -> when and how large; one look at a folder.
local function stamps(dir)
    local found, list = assert(io.popen("find " .. files.quoted(dir)
        .. " -name '*.lua' -type f -printf '%T@ %s %p\\n' 2>/dev/null")), {}
    for line in found:lines() do
        local stamp, file = line:match("^(%S+ %S+) (.*)$")
        if file then list[file] = stamp end
    end
    found:close()
    return list
end

-- The rules whose file, or whose tests, are not as they were: file -> whether the rule itself changed; and their names in order.
local function changed_of(known, now)
    local changed, list = {}, {}
    for file, stamp in pairs(now) do
        local rule = file:gsub("_test%.lua$", ".lua")
        if known[file] ~= stamp and not rule:find("/active/", 1, true) and now[rule] then
            if changed[rule] == nil then list[#list + 1] = rule end
            changed[rule] = changed[rule] or rule == file
        end
    end
    table.sort(list)
    return changed, list
end

-- What the workers say -----------------------------------------------------------------------------------------------------------------

---@class kasma.Heard what a server's workers have loaded since a file was last reported
local Heard = {}
Heard.__index = Heard

-- Listens in a task of its own. What ends the listening is told once, and the watch goes on without.
local function hear(server)
    local heard = setmetatable({ by_file = {}, epoch = 0, workers = 1 }, Heard)
    sched.spawn(function()
        local ok, why = pcall(server.events, server, "/rules/stream", nil, function(event, payload)
            if event == "subscribed" then heard.open = true end
            if event ~= "loaded" or type(payload.worker) ~= "string" then return true end
            heard.epoch, heard.workers = tonumber(payload.epoch) or heard.epoch, tonumber(payload.workers) or heard.workers
            for _, file in ipairs(type(payload.files) == "table" and payload.files or {}) do
                heard.by_file[file] = heard.by_file[file] or {}
                heard.by_file[file][payload.worker] = true
            end
            return true
        end)
        heard.ended = ok and "the stream has ended" or type(why) == "table" and (why.usage or why.message) or tostring(why)
        io.stderr:write("kasma rules: ", report.plain(heard.ended), "\n")
    end)
    return heard
end

function Heard:count(file)
    local n = 0
    for _ in pairs(self.by_file[file] or {}) do n = n + 1 end
    return n
end

-- Waits until all workers have loaded a file; says what came of it.
function Heard:await(file, dir)
    local deadline = time.mono() + LIVE_MS * 1000
    while self:count(file) < self.workers and not self.ended and time.mono() < deadline do sched.sleep(20) end
    local n = self:count(file)
    self.by_file[file] = nil
    if n > 0 then return ("live on %d of %d workers (epoch %d)"):format(n, self.workers, self.epoch) end
    local pipe = assert(io.popen(("grep -rlF -- %s %s/active 2>/dev/null"):format(files.quoted(file), files.quoted(dir))))
    local listed = pipe:read("*l")
    pipe:close()
    if self.ended then return "the server is not heard" end
    return listed and "as it was: the server has loaded nothing new" or "live for nobody: no list below active/ names it"
end

-- Draft sessions -----------------------------------------------------------------------------------------------------------------------

-- Saves the draft; answers what to say of it.
local function into_session(server, sessions, file)
    local key = file:match("([^/]+)%.lua$")
    local saved = require("kasma.cli.rules.online").save_draft(server, { file = file })
    local text = "draft r" .. saved.draft.revision
    local session = sessions[key]
    if not session or session.until_ms < time.now() + 60000 then
        local opened = server:post("/rules/" .. target.escaped(key) .. "/draft/session", { minutes = SESSION_MINUTES })
        sessions[key] = { until_ms = time.parse(opened.expiresAt) or 0 }
        text = ("%s\n  %s: %s\n  until %s"):format(text, opened.header, opened.token, opened.expiresAt)
    end
    return text
end

-- The watch ----------------------------------------------------------------------------------------------------------------------------

-- One file as it was saved: its findings, then a line about it, which `further` ends.
local function tell(args, file, further)
    local r = files.look(file)
    local t = r.tests
    local ok = r.errors == 0 and not (t and t.failed > 0)
    local went, text = true, nil
    if ok and further then went, text = pcall(further) end
    if not went then text = "not taken: " .. tostring(type(text) == "table" and (text.message or text.usage) or text) end
    if report.form(args) == "json" then
        io.stdout:write(json.encode{ file = file, ok = ok, diagnostics = json.array(r.diagnostics), tests = t, further = text }, "\n")
        io.stdout:flush()
        return ok and went
    end
    for _, d in ipairs(r.diagnostics) do report.finding(d, r.source) end
    for _, c in ipairs(t and t.cases or {}) do
        if not c.ok then report.write(("%s: FAILED %s: %s\n"):format(file, c.name, table.concat(c.diff, "; "))) end
    end
    report.write(("%s  %s  tests %s%s\n"):format(file:match("([^/]+)%.lua$"), r.errors > 0 and "refused" or "checked", t and t.passed .. "/"
        .. t.passed + t.failed or "none", text and "  " .. text or r.errors > 0 and "  what was live stays live" or ""))
    io.stdout:flush()
    return ok and went
end

local function watch(args, server)
    local dir = (args[2] or "rules"):gsub("(.)/+$", "%1")
    local heard, sessions = server and server.remote and not args.session and hear(server) or nil, {}
    while heard and not heard.open and not heard.ended do sched.sleep(20) end
    local known, n = stamps(dir), 0
    for _ in pairs(known) do n = n + 1 end
    if report.form(args) ~= "json" then
        report.write(("watching %d files below %s; %s\n"):format(n, dir, args.session and "what passes goes into a draft session"
            or "files that rules/active/<tenant>.lua lists are live as they are saved"))
        io.stdout:flush()
    end
    while not sched.stopping() do
        sched.sleep(LOOK_MS)
        local now = stamps(dir)
        local changed, list = changed_of(known, now)
        known = now
        for _, file in ipairs(list) do
            local ok = tell(args, file, args.session and function() return into_session(server, sessions, file) end
                or heard and changed[file] and function() return heard:await(file:sub(#dir + 2), dir) end or nil)
            if args.once then return ok and 0 or 1 end
        end
    end
    return 0
end

function commands.watch(args)
    return watch(args, (args.session or target.names_server(args)) and target.of(args) or nil)
end

--- The same on the files alone, whatever server there is.
---@param args table
---@return integer exit
function M.here(args) return watch(args, nil) end

return M
