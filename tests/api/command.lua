-- Runs the very program that runs these tests as a command: command.run("doctor --json", { REDIS_URL = "..." }).
local json = require("core.json")
local sched = require("core.sched")
local time = require("core.time")

local M = {}

local LIMIT_S = 120

local function quoted(text) return "'" .. tostring(text):gsub("'", "'\\''") .. "'" end

-- What a file holds, which is removed; without its log lines when so asked.
local function taken(name, without_log)
    local lines = {}
    local file = assert(io.open(name))
    for line in file:lines() do
        if not (without_log and line:find('^{"t":')) then lines[#lines + 1] = line end
    end
    file:close()
    os.remove(name)
    return table.concat(lines, "\n")
end

--- The program that runs these tests, for a shell.
---@return string path
function M.binary() return ("/proc/%s/exe"):format(assert(io.open("/proc/self/stat")):read("*a"):match("^(%d+)")) end

---@param words string the command line after `kasma`; the tests' own words, so the shell may split them
---@param env table<string, string>|nil
---@param input string|nil standard input
---@return integer status
---@return string output standard output
---@return string errors standard error, without log lines
function M.run(words, env, input)
    local sets = {}
    for name, value in pairs(env or {}) do sets[#sets + 1] = name .. "=" .. quoted(value) end
    local out, err = os.tmpname(), os.tmpname()
    local status = os.execute(("printf %%s %s | %s timeout %d %s %s >%s 2>%s"):format(quoted(input or ""),
        #sets > 0 and "env " .. table.concat(sets, " ") or "", LIMIT_S, M.binary(), words, out, err))
    sched.sleep(1) -- the loop stood still meanwhile: its clock goes on before anything is asked of a store with a time limit
    return status / 256, taken(out), taken(err, true)
end

--- The same of a command that works alone: it comes again while it is told that somebody else does (4). On a busy machine the lock's
--- server may not answer in time, which ends the same way.
---@param words string
---@param env table<string, string>|nil
---@param input string|nil
---@return integer status
---@return string output
---@return string errors
function M.when_free(words, env, input)
    local deadline = time.mono() + LIMIT_S * 1e6
    while true do
        local status, output, errors = M.run(words, env, input)
        if status ~= 4 or time.mono() > deadline then return status, output, errors end
    end
end

--- The same of a command whose whole output is one JSON document.
---@param words string
---@param env table<string, string>|nil
---@param input string|nil
---@return table answer
---@return integer status
function M.json(words, env, input)
    local status, output, errors = M.run(words, env, input)
    local ok, answer = pcall(json.decode, output)
    if ok and type(answer) == "table" then return answer, status end
    error(("kasma %s ended with %s, and its output is no JSON document: %q\nIt said: %q"):format(words, tostring(status), output,
        errors), 2)
end

return M
