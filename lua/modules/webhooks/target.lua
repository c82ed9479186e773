-- Where a webhook may go: public https addresses. The form of a URL is looked at here, when it is set; the address is looked at by the
-- core whenever a socket is about to be opened, after the name was resolved, so that a name that resolves elsewhere on the second
-- look leads nowhere. Redirects are not followed. What an operator lists in WEBHOOK_PRIVATE_HOSTS (host or host:port) may also be
-- private and http: a receiver beside the server.
local config = require("core.config")
local http = require("core.http_client")

local M = {}

local function listed(host, port)
    for entry in tostring(config.get("WEBHOOK_PRIVATE_HOSTS") or ""):gmatch("[^,%s]+") do
        local name, only = entry:lower():match("^(.-):(%d+)$")
        if (name or entry:lower()) == host and (not only or tonumber(only) == port) then return true end
    end
    return false
end

local INSIDE = { "localhost", "local", "internal", "intranet", "lan", "home", "corp", "invalid", "test", "example", "onion", "arpa" }

local function is_inside(host)
    if not host:find(".", 1, true) then return true end
    local top = host:match("([^.]+)%.?$")
    for _, name in ipairs(INSIDE) do
        if top == name then return true end
    end
    return false
end

---@class webhooks.Target
---@field url string
---@field private boolean listed by the operator: any address
---@field host string in lower case, an IPv6 address without its brackets

--- Reads a URL.
---@param url string
---@return webhooks.Target|nil, string|nil what is wrong with it
function M.read(url)
    if #url > 2048 or url:find("[%z\1-\32\127-\255\\<>\"{}|^`]") then return nil, "url must be an URL of at most 2048 plain characters" end
    local scheme, authority, rest = url:match("^(%w+)://([^/?#]*)(.*)$")
    if not scheme or (scheme ~= "https" and scheme ~= "http") then return nil, "url must begin with https://" end
    if authority:find("@", 1, true) then return nil, "url must not hold credentials" end
    if rest:find("#", 1, true) then return nil, "url must not hold a fragment" end
    local host, port = authority:match("^(%[[%x:.]+%]):?(%d*)$")
    if not host then host, port = authority:match("^([%w.-]+):?(%d*)$") end
    if not host or host:find("^[.-]") then return nil, "url must name a host" end
    host = host:lower()
    if authority:sub(-1) == ":" then return nil, "url must name a port behind the colon" end
    port = port ~= "" and tonumber(port) or (scheme == "https" and 443 or 80)
    if port < 1 or port > 65535 then return nil, "url must name a port up to 65535" end
    local place = { url = url, private = listed(host, port), host = host:match("^%[(.*)%]$") or host:gsub("%.$", "") }
    if place.private then return place end
    if scheme ~= "https" then return nil, "url must begin with https://" end
    if port ~= 443 and port < 1024 then return nil, "url must use port 443 or one from 1024 on" end
    -- Names that only mean something inside a network; addresses in figures are judged by the core.
    local literal = host:find("^%[") or host:find("^[%d.]+$") or host:find("^0x")
    if not literal and is_inside(host) then return nil, "url must name a public host" end
    return place
end

--- Reads a URL that is about to be set: as read does, and an address that is written out in it must be a public one. What is set already
--- is judged by the core with each try, as any name is.
---@param url string
---@return webhooks.Target|nil, string|nil what is wrong with it
function M.read_new(url)
    local place, problem = M.read(url)
    if not place or place.private then return place, problem end
    local public = http.is_public(place.host)
    if public == false then return nil, ("url must lead to a public address; %s is none"):format(place.host) end
    -- What ends in figures and is no address is no name either.
    local last = place.host:match("[^.:]+$") or ""
    if public == nil and (place.host:find(":", 1, true) or last:find("^%d+$") or last:find("^0x%x*$")) then
        return nil, "url must name a public host"
    end
    return place
end

return M
