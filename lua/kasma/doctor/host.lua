-- The machine: what the processes may open, where they write, whether they are reached, how long their certificate holds.
local config = require("core.config")
local http = require("core.http_client")
local time = require("core.time")
local report = require("kasma.doctor.report")

local M = {}

local FILES_LEAST, DISK_LEAST_PCT, DISK_LEAST_KIB, CERT_WARN_DAYS, ENTROPY_LEAST = 4096, 10, 1048576, 21, 256

local function text_of(path)
    local file = io.open(path, "r")
    if not file then return nil end
    local text = file:read(65536)
    file:close()
    return text
end

-- What a program prints, or nil when it is not there. The words are our own; what comes from settings was looked at before.
local function output_of(command)
    local pipe = io.popen(command .. " 2>/dev/null")
    local text = pipe and pipe:read(65536)
    if pipe then pipe:close() end
    return text ~= "" and text or nil
end

local function limits(d)
    local text = text_of("/proc/self/limits") or ""
    local files = text:match("Max open files%s+(%w+)")
    local wanted = math.max(FILES_LEAST, (tonumber(config.get("MAX_CONNECTIONS")) or 0) + 500)
    if not files then
        d:warn("files", "the limit of open files is not known here")
    elseif files == "unlimited" or tonumber(files) >= wanted then
        d:ok("files", ("%s files may be open (%d are needed)"):format(files, wanted))
    else
        d:warn("files", ("%s files may be open, %d are needed for MAX_CONNECTIONS"):format(files, wanted),
            { effect = "connections beyond that are refused", hint = "LimitNOFILE=65536 in the unit, or ulimit -n 65536" })
    end
    local core = text:match("Max core file size%s+(%w+)")
    if core and core ~= "0" and config.env() == "production" then
        d:warn("core", "a crash leaves a core dump", { effect = "it holds secrets and what customers sent",
            hint = "LimitCORE=0 in the unit, or a private folder in kernel.core_pattern" })
    else
        d:ok("core", core == "0" and "no core dumps" or "core dumps are kept (fine outside production)")
    end
end

local function free_of(path)
    local text = output_of("df -Pk -- '" .. path:gsub("'", "'\\''") .. "'")
    return text and text:match("\n(.*)")
end

local function disk(d)
    local low, seen = {}, 0
    for _, name in ipairs{ "SPOOL_DIR", "MAIL_DIR" } do
        local path = tostring(config.get(name) or "")
        -- A folder that is made when it is needed: the one above says as much.
        local line = path ~= "" and free_of(path)
        while not line and path:find("/", 2, true) do
            path = path:match("^(.*)/[^/]*$")
            line = free_of(path)
        end
        local total, free = (line or ""):match("%s(%d+)%s+%d+%s+(%d+)%s+%d+%%")
        if total then
            seen = seen + 1
            local share = tonumber(free) / math.max(1, tonumber(total)) * 100
            if share < DISK_LEAST_PCT and tonumber(free) < 10 * DISK_LEAST_KIB or tonumber(free) < DISK_LEAST_KIB then
                low[#low + 1] = ("%s (%s) has %.0f MiB left"):format(name, path, free / 1024)
            end
        end
    end
    if seen == 0 then return d:warn("disk", "the free space cannot be read") end
    d:none("disk", low, "there is space where uploads and mails are kept", "little space",
        { effect = "uploads and mails fail when it is full", hint = "df -h; make room, or point SPOOL_DIR elsewhere" })
end

local function kernel(d)
    local entropy = tonumber((text_of("/proc/sys/kernel/random/entropy_avail") or ""):match("%d+"))
    if entropy and entropy < ENTROPY_LEAST then
        d:warn("entropy", ("%d bits of entropy"):format(entropy), { effect = "the start may wait for random numbers",
            hint = "a virtio-rng device, or haveged" })
    else
        d:ok("entropy", "random numbers are at hand")
    end
    local missing = {}
    for _, zone in ipairs{ "UTC", "Asia/Ho_Chi_Minh", "America/New_York" } do
        if not time.zone_exists(zone) then missing[#missing + 1] = zone end
    end
    d:none("zones", missing, "time zone data is there", "time zones that are not known here",
        { effect = "dates of tenants in those zones are refused", hint = "apt-get install tzdata" })
end

local function port(d)
    local host = tostring(config.get("HOST") or "127.0.0.1")
    if host == "0.0.0.0" or host == "" then host = "127.0.0.1" elseif host == "::" then host = "::1" end
    local place = ("%s:%d"):format(host:find(":", 1, true) and "[" .. host .. "]" or host, config.get("PORT"))
    local answer, err = http.request{ method = "GET", url = "http://" .. place .. "/health", timeout_ms = 3000 }
    if answer and answer.status == 200 then return d:ok("port", "a server answers at " .. place) end
    d:warn("port", ("no server answers at %s: %s"):format(place, answer and ("status " .. answer.status) or report.why(err)),
        { effect = "nobody is served by this machine, unless it only works", hint = "kasma serve; HOST and PORT as it has them" })
end

local MONTHS = { Jan = 1, Feb = 2, Mar = 3, Apr = 4, May = 5, Jun = 6, Jul = 7, Aug = 8, Sep = 9, Oct = 10, Nov = 11, Dec = 12 }

-- Days until a certificate ends, by what openssl prints (`notAfter=Nov 29 03:00:01 2026 GMT`).
function M.days_left(text, now_ms)
    local month, day, clock, year = text:match("notAfter=(%a+)%s+(%d+)%s+([%d:]+)%s+(%d+)")
    if not month or not MONTHS[month] then return nil end
    local ends = time.parse(("%04d-%02d-%02dT%sZ"):format(tonumber(year), MONTHS[month], tonumber(day), clock))
    return ends and math.floor((ends - now_ms) / 86400000)
end

local function certificate(d)
    local host, at = tostring(config.get("PUBLIC_URL") or ""):match("^https://([%w.-]+):?(%d*)")
    if not host then return d:ok("certificate", "PUBLIC_URL is no https address: no certificate to look at") end
    local text = output_of(("timeout 10 openssl s_client -connect %s:%s -servername %s </dev/null | openssl x509 -noout -enddate")
        :format(host, at ~= "" and at or "443", host))
    local days = text and M.days_left(text, time.real())
    if not days then
        d:warn("certificate", "the certificate of " .. host .. " cannot be looked at",
            { hint = "openssl s_client -connect " .. host .. ":443" })
    elseif days < 0 then
        d:fail("certificate", ("the certificate of %s ended %d days ago"):format(host, -days), { effect = "browsers refuse the shop",
            hint = "renew it where TLS ends" })
    elseif days < CERT_WARN_DAYS then
        d:warn("certificate", ("the certificate of %s ends in %d days"):format(host, days), { hint = "renew it where TLS ends" })
    else
        d:ok("certificate", ("the certificate of %s holds for %d days"):format(host, days))
    end
end

---@param d doctor.Report
function M.run(d)
    for _, check in ipairs{ limits, disk, kernel, port, certificate } do
        local ok, why = pcall(check, d)
        if not ok then d:warn("unknown", "could not be looked at: " .. report.why(why)) end
    end
end

return M
