-- kasma seed: the rows that every installation has and, outside production, the demo shop.
local base = require("kasma.seed.base")

local M = {}

M.usage = [[
kasma seed [--users-file PATH] [--json]

Makes the platform's roles, the modules and the roles of tenant MASTER; outside production also the tenant `demo` with a
hundred products, stock, taxes, shipping, promotions and users with random passwords, which are printed. What is there is
left alone, so it can be run again.

  --users-file PATH  keep the demo users' passwords here (mode 600), so that the next run prints the same; a user who is not in the
                     file gets a new one

  kasma seed --users-file var/demo-users
]]

-- Lines `e-mail password role`.
local function remembered(path)
    if not path then return nil end
    local passwords = {}
    local file = io.open(path, "r")
    if not file then return passwords end
    for line in file:lines() do
        local email, password = line:match("^(%S+) (%S+)")
        if email then passwords[email] = password end
    end
    file:close()
    return passwords
end

local function remember(path, people)
    local ffi = require("ffi")
    ffi.cdef([[int open(const char *path, int flags, ...); int fchmod(int fd, unsigned mode);
        long write(int fd, const void *data, size_t n); int close(int fd);]])
    local lines = {}
    for i, p in ipairs(people) do lines[i] = ("%s %s %s\n"):format(p.email, p.password, p.role) end
    local text = table.concat(lines)
    local O_WRONLY_CREAT_TRUNC = 1 + 64 + 512
    local fd = ffi.C.open(path, O_WRONLY_CREAT_TRUNC, ffi.cast("int", 384)) -- 0600 from the start
    if fd < 0 then return false end
    local ok = ffi.C.fchmod(fd, 384) == 0 and ffi.C.write(fd, text, #text) == #text
    return ffi.C.close(fd) == 0 and ok
end

local function seed(path, as_json)
    -- Seen before anybody gets a password that could then be kept nowhere.
    local probe = path and not base.is_production() and io.open(path, "a")
    if path and not base.is_production() and not probe then error("cannot write " .. path, 0) end
    if probe then probe:close() end
    base.run()
    if base.is_production() then
        io.stdout:write("platform rows are there; no demo shop in production\n")
        return 0
    end
    local report = require("kasma.seed.demo").run(remembered(path))
    if path and not remember(path, report.people) then error("cannot write " .. path, 0) end
    if as_json then
        io.stdout:write(require("core.json").encode(report), "\n")
    else
        io.stdout:write(("tenant demo: %d products\n"):format(report.products))
        for _, p in ipairs(report.people) do
            io.stdout:write(("  %-24s %-22s %s\n"):format(p.email, p.password or "(as it was)", p.role))
        end
    end
    return 0
end

---@param args string[] what follows `kasma seed`
---@return integer exit 0 done, 1 failed, 2 wrong use, 5 a store cannot be reached
function M.run(args)
    local path, as_json
    local i = 1
    while i <= #args do
        if args[i] == "--help" then
            io.stdout:write(M.usage)
            return 0
        elseif args[i] == "--json" then
            as_json = true
        elseif args[i] == "--users-file" and args[i + 1] then
            path = args[i + 1]
            i = i + 1
        else
            io.stderr:write("kasma seed: ", args[i], args[i] == "--users-file" and " needs a path" or " is not known here", "\n\n", M.usage)
            return 2
        end
        i = i + 1
    end
    local ok, result = pcall(seed, path, as_json)
    if ok then return result end
    return require("kasma.cli.failure")("seed", result)
end

return M
