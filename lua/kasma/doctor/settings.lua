-- Settings: all there, secrets that are secrets, mail and proxies as meant. Names and forms were checked when they were loaded:
-- a program with a bad one does not start, and says so by itself.
local config = require("core.config")
local http = require("core.http_client")
local report = require("kasma.doctor.report")

local M = {}

local NEEDED = { "DATABASE_URL", "DATABASE_SYSTEM_URL", "REDIS_URL", "MONGODB_URL", "JWT_SECRET", "SERVER_KEY" }
-- Secrets of ours (not URLs): two that are equal fall together.
local SECRETS = { "JWT_SECRET", "SERVER_KEY", "OTP_PEPPER", "GATEWAY_SHARED_SECRET", "INTERNAL_WEBHOOK_SECRET",
    "SOCKET_INTERNAL_API_KEY", "MESSAGE_ENCRYPTION_KEY", "METRICS_TOKEN" }

local function names(d)
    local set = 0
    for _, entry in ipairs(config.all()) do
        if entry.origin ~= "default" and entry.origin ~= "unset" then set = set + 1 end
    end
    local missing = {}
    for _, name in ipairs(NEEDED) do
        if (config.get(name) or "") == "" then missing[#missing + 1] = name end
    end
    if config.env() == "production" and (config.get("OTP_PEPPER") or "") == "" then missing[#missing + 1] = "OTP_PEPPER" end
    d:none("names", missing, ("%d settings given, all names known, nothing missing (%s)"):format(set, config.env()), "not set",
        { effect = "kasma serve and kasma work do not start", hint = "kasma config check" })
end

local function is_private(path)
    local ffi = require("ffi")
    pcall(ffi.cdef, "int access(const char *path, int mode);")
    if ffi.C.access(path, 4) ~= 0 then return nil end
    local pipe = io.popen("stat -Lc %a -- '" .. path:gsub("'", "'\\''") .. "' 2>/dev/null")
    local mode = pipe and pipe:read("*l")
    if pipe then pipe:close() end
    return mode and mode:sub(-1) == "0", mode
end

local function secrets(d)
    local seen, equal = {}, {}
    for _, name in ipairs(SECRETS) do
        local value = config.get(name)
        if value and value ~= "" then
            if seen[value] then equal[#equal + 1] = seen[value] .. " = " .. name end
            seen[value] = name
        end
    end
    d:none("secrets", equal, "secrets are long enough, none is published, no two are equal", "secrets that are the same",
        { effect = "who learns one has both", hint = "head -c 32 /dev/urandom | base64   # for each, then restart" })
    local open = {}
    for _, name in ipairs{ "KASMA_DOTENV", "KASMA_CONF" } do
        local path = config.get(name)
        local private, mode = is_private(path)
        if private == false then open[#open + 1] = ("%s (mode %s)"):format(path, mode) end
    end
    if #open > 0 then
        d:warn("files", "everybody on this machine can read " .. table.concat(open, ", "), { hint = "chmod 640 " .. open[1]:match("^%S+") })
    end
    local versions = select(2, tostring(config.get("SERVER_KEY") or ""):gsub("[^,]+", ""))
    if versions > 1 then d:ok("server_key", ("SERVER_KEY holds %d versions, the first makes, all open"):format(versions)) end
end

local function mail(d)
    local host = config.get("MAIL_HOST") or ""
    if host == "" then
        if config.env() == "production" then
            return d:fail("mail", "MAIL_HOST is not set", { effect = "registration and sign-in by code answer 503",
                hint = "set MAIL_HOST, MAIL_PORT, MAIL_USER, MAIL_PASS" })
        end
        return d:ok("mail", "no SMTP server: mails are files in " .. tostring(config.get("MAIL_DIR")))
    end
    -- Whether the port answers at all is what is asked; the server's own words come when a mail is sent.
    local place = ("%s:%d"):format(host, config.get("MAIL_PORT"))
    local _, err = http.request{ method = "GET", url = "http://" .. place .. "/", timeout_ms = 5000 }
    local why = err and report.why(err):lower() or ""
    local late = why:find("timed out", 1, true) and not why:find("receiv", 1, true)
    if late or why:find("connect", 1, true) or why:find("resolve", 1, true) then
        d:fail("mail", ("cannot reach MAIL_HOST at %s: %s"):format(place, report.why(err)),
            { effect = "mails wait in mail-queue and are tried again", hint = "check MAIL_HOST, MAIL_PORT and the firewall" })
    else
        d:ok("mail", "the mail server answers at " .. place)
    end
end

local function edge(d)
    local url = config.get("PUBLIC_URL") or ""
    local production = config.env() == "production"
    if url == "" then
        if production then
            d:warn("public_url", "PUBLIC_URL is not set", { effect = "links in mails point at the host name of the request or nowhere",
                hint = "PUBLIC_URL=https://shop.example" })
        else
            d:ok("public_url", "PUBLIC_URL is not set (needed in production alone)")
        end
    elseif production and not url:find("^https://") then
        d:warn("public_url", "PUBLIC_URL is " .. url, { effect = "cookies are Secure: browsers send them over https alone",
            hint = "put TLS in front and set PUBLIC_URL=https://.." })
    else
        d:ok("public_url", "PUBLIC_URL is " .. url)
    end
    local proxies, wide = {}, {}
    for network in tostring(config.get("TRUSTED_PROXIES") or ""):gmatch("[^,%s]+") do
        proxies[#proxies + 1] = network
        local bits = tonumber(network:match("/(%d+)$"))
        if bits and (bits < 8 or (network:find(":", 1, true) and bits < 32)) then wide[#wide + 1] = network end
    end
    local believed = #proxies == 0 and "no proxy is believed" or "X-Forwarded-For is believed from " .. table.concat(proxies, ", ")
    d:none("proxies", wide, believed,
        "TRUSTED_PROXIES holds nearly everybody", { effect = "any client can claim any address: limits and key allow-lists are void",
            hint = "name the balancer's addresses alone" })
    local host = config.get("HOST")
    if production and (host == "0.0.0.0" or host == "::") and #proxies == 0 then
        d:warn("listen", ("listens on %s and trusts no proxy"):format(host), { effect = "fine when clients connect directly; behind a "
            .. "balancer all clients share its address and its limits", hint = "TRUSTED_PROXIES=<balancer>" })
    end
end

---@param d doctor.Report
function M.run(d)
    names(d)
    secrets(d)
    mail(d)
    edge(d)
end

return M
