-- `kasma rules` as a developer has it: the program, a folder and a key, and nothing of the server's own settings.
local M = {}

-- The program under test is the one that runs these tests.
local function binary()
    local pipe = assert(io.popen("readlink /proc/$PPID/exe"))
    local path = pipe:read("*l")
    pipe:close()
    return path
end

M.binary = binary()

---@param text string
---@return string
function M.quoted(text) return "'" .. tostring(text):gsub("'", "'\\''") .. "'" end

--- A fresh folder under /tmp.
---@return string path
function M.folder()
    local pipe = assert(io.popen("mktemp -d /tmp/kasma-rules.XXXXXX"))
    local path = pipe:read("*l")
    pipe:close()
    return path
end

---@param path string
---@return string|nil
function M.read(path)
    local file = io.open(path, "r")
    local text = file and file:read("*a")
    if file then file:close() end
    return text
end

--- Saves a file whole: whoever watches it never reads half of it.
---@param path string
---@param text string
function M.save(path, text)
    local file = assert(io.open(path .. ".part", "w"))
    file:write(text)
    file:close()
    assert(os.rename(path .. ".part", path))
end

--- A secret key of a tenant.
---@param shop TestTenant
---@param scopes string[]|nil default: all of rules
---@return string
function M.key(shop, scopes)
    local answer = shop.owner:post("/tenants/" .. shop.key .. "/keys/create", { name = "rules", key_type = "secret",
        scopes = scopes or { "rules.read", "rules.write", "rules.publish" } })
    if answer.status ~= 201 then error("no key: " .. tostring(answer.body), 2) end
    return answer.json.key.secret or answer.json.key.key or answer.json.secret
end

--- The command line of `kasma WORDS`, to be run by a shell in a folder.
---@param o {dir: string, env: table<string, string>|nil}
---@param words string[]
---@return string
function M.line(o, words)
    local list = { "cd", M.quoted(o.dir), "&&", "env", "-i" }
    local env = { KASMA_CONF = "/dev/null", HOME = o.dir }
    for _, name in ipairs{ "PATH", "ASAN_OPTIONS", "LSAN_OPTIONS", "UBSAN_OPTIONS" } do env[name] = os.getenv(name) end
    for name, value in pairs(o.env or {}) do env[name] = value end
    for name, value in pairs(env) do list[#list + 1] = name .. "=" .. M.quoted(value) end
    list[#list + 1] = M.quoted(M.binary)
    for _, word in ipairs(words) do list[#list + 1] = M.quoted(word) end
    return table.concat(list, " ")
end

--- Runs `kasma WORDS`.
---@param o {dir: string, env: table<string, string>|nil, input: string|nil}
---@param words string[]
---@return integer status, string out, string errors
function M.run(o, words)
    local err = os.tmpname()
    local text = ("printf %%s %s | ( %s ) 2>%s; echo \"status $?\""):format(M.quoted(o.input or ""), M.line(o, words), err)
    local pipe = assert(io.popen(text))
    local said_out = pipe:read("*a")
    pipe:close()
    local out, status = said_out:match("^(.-)status (%d+)%s*$")
    local said = M.read(err)
    os.remove(err)
    return tonumber(status), out, said
end

return M
