-- kasma login: keeps a server and the key for it, for the commands that talk to servers.
local args_of = require("kasma.cli.args")
local profile = require("kasma.cli.rules.profile")
local report = require("kasma.cli.rules.report")
local target = require("kasma.cli.rules.target")

local M = {}

M.usage = [[
kasma login URL [--tenant T] [--profile NAME] [--insecure]
kasma login --list
kasma login --forget [--profile NAME]

Reads a secret key of the tenant (ksk_live_.. or ksk_test_..) from standard input, tries it, and keeps it with the address in
~/.config/kasma/profiles.json, which only you can read. The key needs rules.read, and rules.write and rules.publish for what
changes rules. --insecure allows http to another machine.

Ends with 0, 2 on wrong use, 3 when the key is refused, 5 when the server cannot be reached.

  kasma login https://shop.example.org
  kasma login http://127.0.0.1:3000 --profile local <key.txt
]]

-- A terminal shows nothing meanwhile, and shows again what is typed however this ends.
local HIDDEN = [[printf 'secret key: ' >&2; trap 'stty echo' EXIT INT TERM; stty -echo; IFS= read -r k; echo >&2; printf %s "$k"]]

-- The first line of standard input.
local function read_key()
    local line
    if os.execute("test -t 0") == 0 then
        local shell = assert(io.popen(HIDDEN))
        line = shell:read("*a")
        shell:close()
    else
        line = io.stdin:read("*l")
    end
    return ((line or ""):gsub("%s+", ""))
end

local function list()
    local all = profile.all()
    local names = {}
    for name in pairs(all.profiles) do names[#names + 1] = name end
    table.sort(names)
    for _, name in ipairs(names) do
        local p = all.profiles[name]
        report.write(("%s %-16s %s%s\n"):format(name == all.default and "*" or " ", name, tostring(p.url), p.tenant and "  " .. p.tenant
            or ""))
    end
    return 0
end

local function login(args)
    local name = args.profile or "default"
    if not name:find("^[%w_-]+$") then error({ usage = "a profile's name is of letters, digits, _ and -" }, 0) end
    local url = target.address(args[1], args.insecure)
    local entry = { url = url, tenant = args.tenant, key = read_key(), insecure = args.insecure }
    local server = target.server(entry, args.insecure)
    server:get("/rules/hooks")
    local path = profile.keep(name, entry)
    report.write(("%s is kept as %s in %s\n"):format(url, name, path))
    return 0
end

---@param words string[] what follows `kasma login`
---@return integer exit 0 done, 1 failed, 2 wrong use, 3 refused, 5 unreachable
function M.run(words)
    local args, bad = args_of(words, { tenant = true, profile = true, insecure = false, list = false, forget = false })
    if words[1] == "--help" then
        io.stdout:write(M.usage)
        return 0
    end
    local plain = args and (args.list or args.forget)
    if not args or args[2] or (plain and args[1]) or (not plain and not args[1]) then
        io.stderr:write(bad and "kasma login: " .. bad .. "\n\n" or "", M.usage)
        return 2
    end
    local ok, result = pcall(function()
        target.check_words()
        if args.list then return list() end
        if not args.forget then return login(args) end
        report.write(profile.drop(args.profile) and "forgotten\n" or "there was none\n")
        return 0
    end)
    if ok then return result end
    local why = type(result) == "table" and (result.usage or result.message) or result
    io.stderr:write("kasma login: ", report.plain(why), "\n")
    if type(result) ~= "table" then return 1 end
    return result.usage and 2 or result.unreachable and 5 or (result.status == 401 or result.status == 403) and 3 or 1
end

return M
