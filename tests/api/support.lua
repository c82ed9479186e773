-- What API tests share: a client with a cookie jar, fresh tenants with people in them, waiting on conditions, parallel calls.
-- Tests run inside `kasma lua`; the server under test is at TEST_URL and uses the same stores, so tenants and users are made by
-- the services themselves and everything else goes over HTTP.
local config = require("core.config")
local crypto = require("core.crypto")
local http = require("core.http_client")
local json = require("core.json")
local sched = require("core.sched")
local time = require("core.time")
local db = require("kasma.db")
local heartbeat = require("kasma.heartbeat")

require("kasma.boot").load()
local conform = require("api.conform")
local tenants = require("modules.tenants.service")
local users = require("modules.iam.users")
local roles = require("modules.iam.roles")

local M = {}

M.url = os.getenv("TEST_URL") or ("http://%s:%d"):format(config.get("HOST"), config.get("PORT"))

---@class TestClient
---@field cookies table<string, string>
---@field headers table<string, string> sent with every request
---@field url string|nil of another server than the one under test
local Client = {}
Client.__index = Client

---@class TestAnswer
---@field status integer
---@field headers table<string, string>
---@field body string
---@field json any decoded body, nil when it is none

---@param headers table<string, string>|nil sent with every request
---@return TestClient
function M.client(headers) return setmetatable({ cookies = {}, headers = headers or {} }, Client) end

-- Several Set-Cookie headers come joined by line breaks.
local function take_cookies(self, text)
    for line in text:gmatch("[^\n]+") do
        local name, content = line:match("^([^=]+)=([^;]*)")
        if name then
            self.set_cookies[name] = line:sub(#name + 2)
            self.cookies[name] = content ~= "" and content or nil
        end
    end
end

---@param method string
---@param path string
---@param body table|string|nil table = JSON
---@param headers table<string, string>|nil
---@return TestAnswer
function Client:request(method, path, body, headers)
    local sent = {}
    for name, value in pairs(self.headers) do sent[name] = value end
    for name, value in pairs(headers or {}) do sent[name] = value end
    if type(body) == "table" then
        sent["Content-Type"] = sent["Content-Type"] or "application/json"
        body = json.encode(body)
    end
    local jar = {}
    for name, value in pairs(self.cookies) do jar[#jar + 1] = name .. "=" .. value end
    if #jar > 0 then sent["Cookie"] = table.concat(jar, "; ") end
    local answer, err = http.request{ method = method, url = (self.url or M.url) .. path, headers = sent, body = body, timeout_ms = 60000,
        max_bytes = 16777216 }
    if not answer then error(("%s %s: %s"):format(method, path, err and err.message or "no answer"), 2) end
    local cookies = answer.headers["set-cookie"]
    self.set_cookies = {}
    if cookies then take_cookies(self, cookies) end
    answer.json = answer.body and answer.body ~= "" and json.decode(answer.body) or nil
    local strange = conform.strange(method, path, answer)
    if strange then error(strange, 2) end
    return answer
end

function Client:get(path, headers) return self:request("GET", path, nil, headers) end
function Client:post(path, body, headers) return self:request("POST", path, body or {}, headers) end
function Client:put(path, body, headers) return self:request("PUT", path, body or {}, headers) end
function Client:patch(path, body, headers) return self:request("PATCH", path, body or {}, headers) end
function Client:delete(path, headers) return self:request("DELETE", path, nil, headers) end

--- A copy with a jar of its own that begins with the same cookies.
---@return TestClient
function Client:copy()
    local other = M.client()
    for name, value in pairs(self.cookies) do other.cookies[name] = value end
    for name, value in pairs(self.headers) do other.headers[name] = value end
    return other
end

-- Names that no other run has.
local counter = 0
---@param prefix string
---@return string
function M.unique(prefix)
    counter = counter + 1
    return ("%s%s%d"):format(prefix, crypto.random_hex(4), counter)
end

---@class TestTenant
---@field key string
---@field app string
---@field warehouse_id string
---@field owner TestClient signed in, sends the tenant's headers
---@field headers table<string, string>

--- A fresh tenant without a code step, with an owner signed in.
---@param opts {settings: table|nil, currency: string|nil, country: string|nil, hostnames: string[]|nil}|nil
---@return TestTenant
function M.tenant(opts)
    opts = opts or {}
    local key = M.unique("t")
    local settings = { ["auth.login_otp"] = "never" }
    for name, value in pairs(opts.settings or {}) do settings[name] = value end
    local made = tenants.create({ tenant = "MASTER", app = "MASTER", actor_kind = "system" }, { tenant_key = key, name = "Test " .. key,
        default_currency = opts.currency, country = opts.country, settings = settings, app = { app_key = key .. "-app",
            hostnames = opts.hostnames } })
    local tenant = { key = key, app = key .. "-app", warehouse_id = made.warehouse_id, role_ids = made.role_ids }
    tenant.headers = { ["X-Tenant-Kasma-Id"] = key, ["X-App-Kasma-Id"] = tenant.app }
    tenant.owner = M.user(tenant, "tenant_owner")
    return tenant
end

--- A signed-in user of the tenant with a role (`customer` by default). client.user holds id, email, password.
---@param tenant TestTenant
---@param role_key string|nil
---@param opts {platform: boolean|nil, user_type: string|nil}|nil
---@return TestClient
function M.user(tenant, role_key, opts)
    opts = opts or {}
    role_key = role_key or "customer"
    local email, password = M.unique("u") .. "@example.test", crypto.random_hex(8)
    if opts.platform then roles.ensure_platform() end
    local row = users.provision({ tenant = tenant.key, app = tenant.app, actor_kind = "system" }, { email = email, password = password,
        display_name = role_key, user_type = opts.user_type or (opts.platform and "KASMA_0") or (role_key == "customer" and "GENERAL_0")
            or "TENANT_0",
        role_keys = { role_key }, platform_role = opts.platform and "platform_owner" or nil })
    local client = M.client(tenant.headers)
    local answer = client:post("/auth/login", { identifier = email, password = password })
    if answer.status ~= 200 then error("sign-in of a test user failed: " .. answer.status .. " " .. tostring(answer.body), 2) end
    client.user = { id = row.id, email = email, password = password }
    return client
end

--- Signs a user of these tests in anew, with a fresh session.
---@param client TestClient with `user`
function M.sign_in(client)
    client.cookies = {}
    local answer = client:post("/auth/login", { identifier = client.user.email, password = client.user.password },
        client.home and client.home.headers)
    if answer.status ~= 200 then error("signing in anew failed: " .. answer.status .. " " .. tostring(answer.body), 2) end
end

--- A shopper who is signed in.
---@param tenant TestTenant
---@return TestClient
function M.shopper(tenant) return M.user(tenant, "customer") end

--- A guest of the tenant.
---@param tenant TestTenant
---@return TestClient
function M.guest(tenant) return M.client(tenant.headers) end

--- A platform owner, signed in on a tenant of their own; sends no tenant header unless one is given.
---@return TestClient
function M.platform()
    local home = M.tenant()
    local client = M.user(home, "tenant_owner", { platform = true })
    client.headers = {}
    client.home = home
    return client
end

-- Addresses in a row from a place that no other run has: one that came twice would meet the limits that another test has used up.
local outside_at = tonumber(crypto.random_hex(3), 16)

--- A client that seems to come from an address of its own: peers on loopback are exempt from the limits, this one is not.
---@param headers table<string, string>|nil
---@return TestClient
function M.outside(headers)
    outside_at = (outside_at + 1) % 2 ^ 24
    local sent = { ["X-Forwarded-For"] = ("11.%d.%d.%d"):format(math.floor(outside_at / 65536),
        math.floor(outside_at / 256) % 256, outside_at % 256) }
    for name, value in pairs(headers or {}) do sent[name] = value end
    return M.client(sent)
end

local function command(text)
    local pipe = assert(io.popen(text))
    local out = pipe:read("*a")
    pipe:close()
    return (out:gsub("%s+$", ""))
end

local function own_pid()
    local file = assert(io.open("/proc/self/stat"))
    local pid = file:read("*a"):match("^%d+")
    file:close()
    return pid
end

---@class TestServer
---@field url string
---@field log string path of its log
---@field stop fun()

--- Another server on the same stores, with settings of its own. Stop it before the test ends.
---@param env table<string, string>
---@return TestServer
function M.server(env)
    local port = command("stack/free-port")
    local words = { "PORT=" .. port, "WORKERS=1" }
    for name, value in pairs(env) do words[#words + 1] = name .. "='" .. tostring(value):gsub("'", "'\\''") .. "'" end
    local log = os.tmpname()
    local pid = command(("env %s /proc/%s/exe serve >%s 2>&1 </dev/null & echo $!"):format(table.concat(words, " "), own_pid(), log))
    local server = { url = "http://127.0.0.1:" .. port, log = log }
    local function ended() return command("kill -0 " .. pid .. " 2>/dev/null && echo alive") == "" end
    function server.stop()
        os.execute("kill -TERM " .. pid .. " 2>/dev/null")
        M.eventually(ended, 60)
        os.remove(log)
    end
    local ok, ready = pcall(M.eventually, function()
        local answer = http.request{ method = "GET", url = server.url .. "/readyz", timeout_ms = 2000 }
        return answer and answer.status == 200 and "ready" or ended() and "ended"
    end, 90)
    if not ok or ready == "ended" then
        local text = command("tail -5 " .. log)
        server.stop()
        error("the server did not start: " .. text, 2)
    end
    return server
end

local LEAST_S = 60

--- Waits until fn answers something true; at most a minute, which costs nothing where all is well and is needed on a busy machine; or
--- `limit_s` seconds when that is longer. Answers it, and the milliseconds waited.
---@param fn fun(): any
---@param limit_s number|nil
---@return any value, integer ms
function M.eventually(fn, limit_s)
    local began = time.mono()
    local deadline = began + math.max(limit_s or 0, LEAST_S) * 1e6
    while true do
        local value = fn()
        if value then return value, math.floor((time.mono() - began) / 1000) end
        if time.mono() > deadline then error("the condition did not come true in time", 2) end
        sched.sleep(20)
    end
end

--- Runs all at once; answers their results in order.
---@param fns fun()[]
---@return any[]
function M.parallel(fns) return sched.parallel(fns) end

-- Files of the mail folder, the newest first; none that is still being written under its other name.
local function mail_names()
    local list = assert(io.popen("ls -1 '" .. config.get("MAIL_DIR"):gsub("'", "'\\''") .. "' 2>/dev/null | grep '\\.eml$' | sort -r"))
    local names = list:read("*a")
    list:close()
    return names
end

local function mail_text(name)
    local file = io.open(config.get("MAIL_DIR") .. "/" .. name, "r")
    local text = file and file:read("*a") or ""
    if file then file:close() end
    return text
end

--- The newest mail to an address, when there is one.
---@param address string
---@param subject string|nil text that its subject holds
---@return string|nil text decoded text part, string|nil raw
function M.mail_to(address, subject)
    for name in mail_names():gmatch("[^\n]+%.eml") do
        local text = mail_text(name)
        local about = text:match("\nSubject: ([^\r\n]*)") or ""
        if text:find("\nTo: " .. address, 1, true) and (not subject or about:find(subject, 1, true)) then
            local part = text:match("text/plain.-\r\n\r\n(.-)\r\n%-%-")
            return crypto.unbase64((part:gsub("%s", ""))), text
        end
    end
    return nil
end

--- How many mails an address has got.
---@param address string
---@return integer
function M.mail_count(address)
    local count = 0
    for name in mail_names():gmatch("[^\n]+%.eml") do
        if mail_text(name):find("\nTo: " .. address, 1, true) then count = count + 1 end
    end
    return count
end

--- Waits for the code that was mailed to an address after `not_this`.
---@param address string
---@param not_this string|nil an earlier code
---@return string six digits
function M.code_for(address, not_this)
    return (M.eventually(function()
        local text = M.mail_to(address:lower(), "verification code")
        local code = text and text:match("%f[%d](%d%d%d%d%d%d)%f[%D]")
        return code ~= not_this and code or nil
    end, 20))
end

-- A shift may have ended the client's own token: it signs in anew then. A shift that not every process has taken within two seconds
-- stands all the same (a busy machine, or one that was killed and still counts as live): all have to have it before a test goes on.
local function shift(platform, change)
    local answer = platform:post("/admin/clock", change)
    if answer.status == 401 then
        M.sign_in(platform)
        answer = platform:post("/admin/clock", change)
    end
    if answer.status == 503 and answer.json and answer.json.code == "clock_pending" then
        local row = db.one(nil, "select version, shift_ms from clock_shifts where id = 1")
        M.eventually(function() return heartbeat.behind_clock(row.version) == 0 end, 30)
        time.set_shift(row.shift_ms)
    elseif answer.status == 201 then
        time.set_shift(answer.json.shift_ms)
    else
        error("the clock was not shifted: " .. answer.status .. " " .. tostring(answer.body), 3)
    end
end

--- Shifts the clock of all processes by seconds; a platform client is needed.
---@param platform TestClient
---@param seconds number
function M.advance(platform, seconds)
    shift(platform, { advance = seconds })
end

--- Real time again.
---@param platform TestClient
function M.real_time(platform)
    shift(platform, { now = json.null })
end

return M
