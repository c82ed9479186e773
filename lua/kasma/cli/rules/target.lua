-- Where the online commands go: a server, by its public routes and nothing else, or the stores of this installation. Both are asked
-- by path, as the API document has it, and answer alike, so that a command is written once.
--
-- A server: KASMA_URL with KASMA_KEY (and KASMA_TENANT, where the key's own is not meant), or a profile of `kasma login`. The key goes
-- into a header of that server alone: redirects are not followed, and without TLS only to this machine.
local config = require("core.config")
local http = require("core.http_client")
local json = require("core.json")
local sched = require("core.sched")
local event_source = require("kasma.event_source")
local files = require("kasma.cli.rules.files")
local profile = require("kasma.cli.rules.profile")

local M = {}

local TIMEOUT_MS, MAX_BYTES = 150000, 64 * 1048576

local function usage(message) error({ usage = message }, 0) end

---@param text string
---@return string
function M.escaped(text)
    return (tostring(text):gsub("[^%w_.~-]", function(c) return ("%%%02X"):format(c:byte()) end))
end

local function query_of(query)
    local parts = {}
    for name, value in pairs(query or {}) do parts[#parts + 1] = M.escaped(name) .. "=" .. M.escaped(value) end
    table.sort(parts)
    return #parts > 0 and "?" .. table.concat(parts, "&") or ""
end

-- A server ---------------------------------------------------------------------------------------------------------------------------

---@class kasma.RulesTarget
---@field remote boolean
---@field tenant string|nil
local Remote = { remote = true }
Remote.__index = Remote

--- The headers of a request, the key's among them.
---@return table<string, string>
function Remote:headers(more)
    local headers = { Authorization = "Bearer " .. self.key, Accept = "application/json" }
    if self.tenant then headers["X-Tenant-Kasma-Id"] = self.tenant end
    for name, value in pairs(more or {}) do headers[name] = value end
    return headers
end

--- What an answer that is no success means, as it is raised: {status, message, code, details} or {unreachable}.
---@param status integer
---@param text string
---@return table
function Remote:refusal(status, text)
    local body = json.decode(text)
    if status >= 300 and status < 400 then
        return { status = status, message = self.url .. " sends elsewhere; give the address that it sends to" }
    end
    if status == 502 or status == 503 or status == 504 or status == 429 then
        return { unreachable = true, message = ("%s answers %d%s"):format(self.url, status,
            type(body) == "table" and body.message and ": " .. tostring(body.message) or "") }
    end
    if type(body) ~= "table" then return { status = status, message = ("%s answers %d, and no JSON"):format(self.url, status) } end
    local message = body.message
    if type(message) == "table" then message = table.concat(message, "; ") end
    return { status = status, message = tostring(message or body.error or status), code = type(body.code) == "string" and body.code or nil,
        details = type(body.details) == "table" and body.details or nil }
end

---@param method string
---@param path string
---@param o {query: table|nil, body: table|nil}|nil
---@return any body, integer status, table<string, string> headers
function Remote:call(method, path, o)
    local body = method ~= "GET" and json.encode(o and o.body or json.object({}, {})) or nil
    local answer, err = http.request{ method = method, url = self.url .. path .. query_of(o and o.query), timeout_ms = TIMEOUT_MS,
        max_bytes = MAX_BYTES, headers = self:headers(body and { ["Content-Type"] = "application/json" }), body = body }
    if not answer then error({ unreachable = true, message = ("%s cannot be reached: %s"):format(self.url, err.message) }, 0) end
    if answer.status >= 300 then error(self:refusal(answer.status, answer.body), 0) end
    local value = answer.body ~= "" and json.decode(answer.body) or nil
    if answer.body ~= "" and value == nil then error({ status = answer.status, message = self.url .. " answers no JSON" }, 0) end
    return value, answer.status, answer.headers
end

local RETRY_MS, TEXT_MAX = 500, 65536

-- One connection: until it ends, or `told` says so. Answers whether it was open, the last id, and whether to go on.
function Remote:listen(path, last, told)
    local feed, text = event_source.parser(), ""
    local stream, err = http.stream{ url = self.url .. path, headers = self:headers{ Accept = "text/event-stream",
        ["Last-Event-ID"] = last } }
    while stream do
        local piece
        piece, err = stream:read()
        if not piece then break end
        if stream:status() ~= 200 then
            text = text .. piece
            if #text > TEXT_MAX then break end
        else
            local events, why = feed(piece)
            if not events then
                stream:close()
                error({ status = 200, message = self.url .. ": " .. why }, 0)
            end
            for _, e in ipairs(events) do
                last = e.id or last
                local body = json.decode(e.data)
                if type(body) == "table" and told(e.event, type(body.payload) == "table" and body.payload or {}) == false then
                    stream:close()
                    return true, last, false
                end
            end
        end
    end
    local status = stream and stream:status() or 0
    if status ~= 0 and status ~= 200 then error(self:refusal(status, text), 0) end
    return status == 200, last, true, err and err.message
end

--- Hears an event stream until `told` answers false. A connection that ends is begun again where it ended. Raises what keeps it from
--- being opened at first, and what ends the right to it.
---@param path string
---@param query table|nil
---@param told fun(event: string, payload: table): boolean|nil
function Remote:events(path, query, told)
    local last, was_open = nil, false
    while not sched.stopping() do
        local open, id, go_on, why = self:listen(path .. query_of(query), last, told)
        if not go_on then return end
        if not open and not was_open then
            error({ unreachable = true, message = ("%s cannot be reached: %s"):format(self.url, why or "it hangs up") }, 0)
        end
        last, was_open = id, true
        sched.sleep(RETRY_MS)
    end
end

-- This installation ------------------------------------------------------------------------------------------------------------------

local Inside = { remote = false }
Inside.__index = Inside

function Inside:events()
    usage("events come from a server: set KASMA_URL and KASMA_KEY, or run kasma login and name the --profile")
end

function Inside:call(method, path, o) return require("kasma.cli.rules.inside").call(self.scope, method, path, o) end

for _, kind in ipairs{ Remote, Inside } do
    function kind:get(path, query) return self:call("GET", path, { query = query }) end
    function kind:post(path, body) return self:call("POST", path, { body = body }) end
end

-- Which ------------------------------------------------------------------------------------------------------------------------------

local LOOPBACK = { ["127.0.0.1"] = true, localhost = true, ["[::1]"] = true }

--- The address of a server, without what follows its name and port but a path. Raises {usage=}.
---@param url string
---@param insecure boolean|nil plain http to other machines is wanted
---@return string
function M.address(url, insecure)
    local scheme, host, rest = url:match("^(https?)://(%[[%x:]+%])(.*)$")
    if not scheme then scheme, host, rest = url:match("^(https?)://([%w.-]+)(.*)$") end
    if not scheme or not (rest:find("^:%d+[%w/._-]*$") or rest:find("^[%w/._-]*$")) then
        usage("a server is an address such as https://shop.example.org, not " .. url)
    end
    if scheme == "http" and not LOOPBACK[host] and not insecure then
        usage(("%s is not encrypted, and would carry a key: use https, or say --insecure"):format(url))
    end
    return (url:gsub("/+$", ""))
end

-- A process's words are seen by every user of the machine, and kept in the shell's history.
--- Raises {usage=} when a key is among the words of this process.
function M.check_words()
    local words = files.read("/proc/self/cmdline") or ""
    if words:find("ksk_", 1, true) then
        usage("a key on the command line is seen by everybody on this machine: put it into KASMA_KEY, or run kasma login")
    end
end

---@param entry {url: string, tenant: string|nil, key: string}
---@param insecure boolean|nil
---@return kasma.RulesTarget
function M.server(entry, insecure)
    if not entry.key or not entry.key:find("^ksk_[%w_]+$") then
        usage("KASMA_KEY must hold a secret key of the tenant (ksk_live_.. or ksk_test_..)")
    end
    return setmetatable({ url = M.address(entry.url, insecure), tenant = entry.tenant, key = entry.key }, Remote)
end

local function setting(name)
    local value = config.get(name)
    return value ~= "" and value or nil
end

local function on_stores(tenant)
    if not tenant then usage("--tenant or KASMA_TENANT is needed") end
    if not require("kasma.tenant").by_key(tenant) then usage("there is no tenant " .. tenant) end
    require("kasma.boot").load()
    return setmetatable({ tenant = tenant, scope = { tenant = tenant, app = "MASTER", actor_kind = "system" } }, Inside)
end

--- Whether the command line, or who signed in, names a server.
---@param args table
---@return boolean
function M.names_server(args)
    if args.profile or setting("KASMA_URL") then return true end
    return not setting("DATABASE_URL") and profile.find() ~= nil
end

--- What this command line means: KASMA_URL, else the profile that it names, else the stores where their settings are given, else the
--- profile that was signed in to last.
---@param args {tenant: string|nil, profile: string|nil, insecure: boolean|nil}
---@return kasma.RulesTarget
function M.of(args)
    M.check_words()
    local tenant = args.tenant or setting("KASMA_TENANT")
    -- A key of the environment goes nowhere that a file of the working folder names: that may be somebody else's.
    local url = os.getenv("KASMA_KEY") and (os.getenv("KASMA_URL") or "") or setting("KASMA_URL")
    if url == "" then url = nil end
    if url and not args.profile then return M.server({ url = url, tenant = tenant, key = setting("KASMA_KEY") }, args.insecure) end
    if not args.profile and setting("DATABASE_URL") then return on_stores(tenant) end
    local found = profile.find(args.profile)
    if not found and args.profile then usage("there is no profile " .. args.profile .. "; see kasma login") end
    if not found then
        usage("no server is named: run kasma login URL, or set KASMA_URL and KASMA_KEY, or the settings of this installation's stores")
    end
    return M.server({ url = found.url, tenant = tenant or found.tenant, key = found.key }, found.insecure or args.insecure)
end

return M
