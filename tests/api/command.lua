-- Runs the very program that runs these tests as a command: command.run("doctor --json", { REDIS_URL = "..." }).
local sched = require("core.sched")

local M = {}

local function quoted(text) return "'" .. tostring(text):gsub("'", "'\\''") .. "'" end

---@param words string the command line after `kasma`; the tests' own words, so the shell may split them
---@param env table<string, string>|nil
---@param input string|nil standard input
---@return integer status
---@return string output what it said, without log lines
function M.run(words, env, input)
    local pid = assert(io.open("/proc/self/stat")):read("*a"):match("^(%d+)")
    local sets = {}
    for name, value in pairs(env or {}) do sets[#sets + 1] = name .. "=" .. quoted(value) end
    local name = os.tmpname()
    local status = os.execute(("printf %%s %s | %s timeout 120 /proc/%s/exe %s >%s 2>&1"):format(quoted(input or ""),
        #sets > 0 and "env " .. table.concat(sets, " ") or "", pid, words, name))
    sched.sleep(1) -- the loop stood still meanwhile: its clock goes on before anything is asked of a store with a time limit
    local file = assert(io.open(name))
    local lines = {}
    for line in file:lines() do
        if not line:find('^{"t":') then lines[#lines + 1] = line end
    end
    file:close()
    os.remove(name)
    return status / 256, table.concat(lines, "\n")
end

return M
