-- What stands behind the sub-commands that are written in Lua: kasma.cli.<name> with run(args) -> exit status.
local config = require("core.config")

local M = {}

--- Runs a sub-command.
---@param name string
---@param ... string what follows it
---@return integer exit status
function M.run(name, ...)
    if not name:find("^[a-z]+$") or not package.searchpath("kasma.cli." .. name, package.path) then
        io.stderr:write("kasma: there is no command ", name, "; see kasma --help\n")
        return 2
    end
    return require("kasma.cli." .. name).run({ ... })
end

--- Prints a line for each sub-command: its name and what the first line of its file says (`-- kasma NAME: what it does.`).
---@param ... string names to leave out
---@return integer exit status
function M.list(...)
    local known = {}
    for _, name in ipairs{ ... } do known[name] = true end
    local folder = config.get("KASMA_LUA_DIR") .. "/kasma/cli"
    local found = assert(io.popen("ls -1 '" .. folder:gsub("'", "'\\''") .. "'"))
    for name in found:lines() do
        local file = name:match("^%a+%.lua$") and io.open(folder .. "/" .. name, "r")
        if file then
            local first = file:read("*l") or ""
            file:close()
            local command, text = name:match("%a+"), first:match("^%-%- kasma [^:]+: (.-)%.?$")
            if text and not known[command] then io.stdout:write(("  %-12s %s\n"):format(command, text)) end
        end
    end
    found:close()
    return 0
end

--- Says what is wrong with the files that settings name, a line each: what stops a server beside what the core finds.
---@return integer exit status 78 when there is something
function M.check()
    local status = 0
    for _, name in ipairs{ "kasma.tokens", "kasma.ratelimit" } do
        for _, line in ipairs(require(name).problems()) do
            io.stderr:write(line, "\n")
            status = 78
        end
    end
    return status
end

--- Runs a Lua file with its arguments in `arg`, as the stand-alone interpreter does.
---@param file string|nil
---@param ... string
---@return integer exit status
function M.script(file, ...)
    if not file then
        io.stderr:write("usage: kasma lua FILE [ARG...]\n")
        return 2
    end
    local chunk, why = loadfile(file)
    if not chunk then
        io.stderr:write("kasma: ", tostring(why), "\n")
        return 1
    end
    _G.arg = { [0] = file, ... }
    local status = chunk(...)
    return type(status) == "number" and status or 0
end

return M
