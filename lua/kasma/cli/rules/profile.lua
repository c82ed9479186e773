-- Profiles: the servers that a person's commands talk to, with the keys for them, in $XDG_CONFIG_HOME/kasma/profiles.json (else
-- ~/.config). The file holds secrets: it is written for its owner alone, and one that others can read is not read but complained of.
local json = require("core.json")
local files = require("kasma.cli.rules.files")

local M = {}

local MAX = 65536

---@return string|nil path nil: this user has no home
function M.path()
    local base = os.getenv("XDG_CONFIG_HOME")
    if not base or base:sub(1, 1) ~= "/" then
        local home = os.getenv("HOME")
        if not home or home:sub(1, 1) ~= "/" then return nil end
        base = home .. "/.config"
    end
    return base .. "/kasma/profiles.json"
end

local function ask(command)
    local pipe = assert(io.popen(command))
    local text = pipe:read("*a")
    pipe:close()
    return text
end

-- Raises when others than its owner, who must be us, could have read or written it.
local function check_owner(path)
    local mode, owner, me = ask("stat -L -c '%a %u' -- " .. files.quoted(path) .. " 2>/dev/null; id -u"):match("^(%d+) (%d+)%s+(%d+)")
    if not mode then error({ usage = path .. ": its rights cannot be seen" }, 0) end
    if owner ~= me then error({ usage = path .. " belongs to another user; its keys are not used" }, 0) end
    if not mode:find("00$") then
        error({ usage = ("%s can be read by others (mode %s): take its keys for known, rotate them, and run chmod 600 %s"):format(path,
            mode, path) }, 0)
    end
end

---@return table {default = name, profiles = {[name] = {url, tenant, key}}}
function M.all()
    local path = M.path()
    local file = path and io.open(path, "r")
    if not file then return { profiles = {} } end
    check_owner(path)
    local text = file:read(MAX + 1) or ""
    file:close()
    local value = #text <= MAX and json.decode(text)
    if type(value) ~= "table" or type(value.profiles) ~= "table" then error({ usage = path .. " is no file of profiles" }, 0) end
    return value
end

---@param name string|nil nil: the one that was signed in to last
---@return table|nil {url, tenant, key}
function M.find(name)
    local all = M.all()
    local found = all.profiles[name or all.default or "default"]
    return type(found) == "table" and type(found.url) == "string" and found or nil
end

local function write(all)
    local path = M.path() or error({ usage = "HOME is not set: there is no place for a profile" }, 0)
    local folder = path:match("^(.*)/")
    -- By standard input of a shell that grants nothing to others, so that the key is on no command line and never open to read.
    local pipe = assert(io.popen(("umask 077 && mkdir -p -- %s && cat >%s && mv -f -- %s %s"):format(files.quoted(folder),
        files.quoted(path .. ".part"), files.quoted(path .. ".part"), files.quoted(path)), "w"))
    pipe:write(json.encode(all), "\n")
    pipe:close()
    local kept = io.open(path, "r")
    local text = kept and kept:read("*a")
    if kept then kept:close() end
    if text ~= json.encode(all) .. "\n" then error({ usage = path .. " cannot be written" }, 0) end
    check_owner(path)
    return path
end

--- Keeps a profile and makes it the default.
---@param name string
---@param entry {url: string, tenant: string|nil, key: string}
---@return string path
function M.keep(name, entry)
    local all = M.all()
    all.profiles[name], all.default = entry, name
    return write(all)
end

---@param name string|nil
---@return boolean there was one
function M.drop(name)
    local all = M.all()
    name = name or all.default or "default"
    if not all.profiles[name] then return false end
    all.profiles[name] = nil
    if all.default == name then all.default = (next(all.profiles)) end
    if next(all.profiles) == nil then all.profiles = json.object({}, {}) end
    write(all)
    return true
end

return M
