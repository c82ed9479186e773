-- Services of the platform that may stand in for a part of ours (SOCKET_SERVICE_URL, NOTI_SERVICE_URL). They are called by consumers
-- of the outbox, never within a request. A service that does not answer, or answers that it cannot (5xx, 408, 429), is away as a store
-- is: its topic waits as a whole, asked again at growing intervals, and what it has not taken is kept in order. Any other answer but
-- success is the fault of that row alone.
local config = require("core.config")
local http = require("core.http_client")
local json = require("core.json")
local errors = require("kasma.errors")

local M = {}

local TIMEOUT_MS = 5000

--- The service's address, or nil where the built-in part is used.
---@param setting string name of the setting
---@return string|nil
function M.url(setting)
    local url = config.get(setting)
    if not url or url == "" then return nil end
    return (url:gsub("/+$", ""))
end

--- Posts one body. Raises 503 when the service is away, a text when it refuses the body.
---@param url string
---@param headers table<string, string>
---@param body table
---@param what string name for messages: "the socket service"
function M.post(url, headers, body, what)
    headers["Content-Type"] = "application/json"
    headers["X-Internal-Api-Key"] = config.get("SOCKET_INTERNAL_API_KEY") or ""
    local answer, err = http.request{ method = "POST", url = url, headers = headers, body = json.encode(body), timeout_ms = TIMEOUT_MS,
        max_bytes = 65536, cut = true, follow = false }
    local status = answer and answer.status
    if not status or status >= 500 or status == 408 or status == 429 then
        local why = status and "it answered " .. status or tostring(err and err.message)
        errors.unavailable{ message = ("%s is away: %s"):format(what, why) }
    end
    if status < 200 or status > 299 then error(what .. " answered " .. status, 0) end
end

return M
