-- What HTTP says around a request: client address behind proxies, cookies, CORS, cross-site checks.
local config = require("core.config")
local tenant = require("kasma.tenant")

local M = {}

-- Addresses ------------------------------------------------------------------------------------------------------------

local function v4_groups(text)
    local bytes = { text:match("^(%d+)%.(%d+)%.(%d+)%.(%d+)$") }
    if #bytes == 0 then return nil end
    for i, byte in ipairs(bytes) do
        if #byte > 3 or tonumber(byte) > 255 or byte:find("^0%d") then return nil end
        bytes[i] = tonumber(byte)
    end
    return { bytes[1] * 256 + bytes[2], bytes[3] * 256 + bytes[4] }
end

-- The 16-bit groups of a part of an IPv6 address, whose last four bytes may be written as an IPv4 address; or nil.
local function groups_of(part)
    local list = {}
    if part == "" then return list end
    for group in (part .. ":"):gmatch("([^:]*):") do
        if list.ended then return nil end
        local last = v4_groups(group)
        if last then
            list[#list + 1], list[#list + 2], list.ended = last[1], last[2], true
        elseif group:find("^%x%x?%x?%x?$") then
            list[#list + 1] = tonumber(group, 16)
        else
            return nil
        end
    end
    return list
end

-- An address as 16-bit groups: two of IPv4, eight of IPv6. `::ffff:a.b.c.d` is the IPv4 address (mapped = true: it had 96 bits before
-- it). Nil: it is none.
local function address_groups(text)
    local v4 = v4_groups(text)
    if v4 then return v4, false end
    if not text:find(":", 1, true) then return nil end
    local head, tail = text:match("^(.-)::(.*)$")
    local left, right = groups_of(head or text), groups_of(tail or "")
    if not left or not right or (head and (left.ended or #left + #right > 7)) then return nil end
    while head and #left + #right < 8 do left[#left + 1] = 0 end
    for _, value in ipairs(right) do left[#left + 1] = value end
    if #left ~= 8 then return nil end
    for i = 1, 6 do
        if left[i] ~= (i == 6 and 0xffff or 0) then return left, false end
    end
    return { left[7], left[8] }, true
end

-- The groups of a network and how many of their bits count, which is less than none for a prefix that ends before a mapped address.
local function network_groups(text)
    local base, digits = text:match("^(.-)/(%d%d?%d?)$")
    local groups, mapped = address_groups(base or text)
    if not groups then return nil end
    local bits = digits and tonumber(digits) - (mapped and 96 or 0) or #groups * 16
    if bits > #groups * 16 then return nil end
    return groups, bits
end

-- How much of a group lies beyond the first `left` bits.
local function beyond(left) return left >= 16 and 1 or left <= 0 and 65536 or 2 ^ (16 - left) end

--- The one form in which an address or a network (`10.0.0.0/8`, `::1`) is kept; `::ffff:a.b.c.d` is the IPv4 address.
---@param text string
---@return string|nil network nil: it is none
---@return string|nil why
function M.network(text)
    local groups, bits = network_groups(text)
    if not groups then return nil, "is none" end
    for i, group in ipairs(groups) do
        if group % beyond(bits - (i - 1) * 16) ~= 0 then return nil, "has bits set beyond its prefix" end
    end
    if bits < 0 then return nil, "has bits set beyond its prefix" end
    local form = #groups == 2 and "%d.%d.%d.%d/%d" or "%x:%x:%x:%x:%x:%x:%x:%x/%d"
    if #groups == 2 then
        groups = { math.floor(groups[1] / 256), groups[1] % 256, math.floor(groups[2] / 256), groups[2] % 256 }
    end
    groups[#groups + 1] = bits
    return form:format(unpack(groups))
end

--- True when the address lies in the network (`10.0.0.0/8`, `::1`, `fd00::/8`).
---@param address string
---@param network string
---@return boolean
function M.in_network(address, network)
    local a = address_groups(address)
    local b, bits = network_groups(network)
    if not a or not b or #a ~= #b then return false end
    for i = 1, #a do
        local size = beyond(bits - (i - 1) * 16)
        if math.floor(a[i] / size) ~= math.floor(b[i] / size) then return false end
    end
    return true
end

--- True when a network lies wholly in another.
---@param inner string
---@param outer string
---@return boolean
function M.is_within(inner, outer)
    local _, inner_bits = network_groups(inner)
    local _, outer_bits = network_groups(outer)
    return inner_bits ~= nil and outer_bits ~= nil and inner_bits >= outer_bits and M.in_network((inner:gsub("/%d+$", "")), outer)
end

--- The client's address: the peer, or behind trusted proxies the last forwarded address that is none of them; the same that the access
--- log shows (core/http/forwarded.c).
---@param req table
---@return string
function M.client_ip(req) return req.client or "" end

--- An address as it is kept and compared; nil for a peer that has none (a Unix socket).
---@param address string|nil of client_ip
---@return string|nil
function M.kept_address(address) return address ~= "" and address ~= "unix" and address or nil end

---@param address string
---@return boolean
function M.is_loopback(address) return address == "::1" or address:sub(1, 4) == "127." or address == "" end

--- What limits count by: the address, for IPv6 its /64.
---@param address string
---@return string
function M.limit_subject(address)
    local groups = address_groups(address)
    if not groups or #groups == 2 then return address end
    return ("%x:%x:%x:%x::/64"):format(groups[1], groups[2], groups[3], groups[4])
end

-- Cookies --------------------------------------------------------------------------------------------------------------

---@param name string
---@param value string hex or base64url: nothing that needs quoting
---@param max_age integer seconds; 0 clears
---@return string Set-Cookie value
function M.cookie(name, value, max_age)
    local text
    if max_age == 0 then
        text = name .. "=; Path=/; Expires=Thu, 01 Jan 1970 00:00:00 GMT; HttpOnly; SameSite=Lax"
    else
        text = ("%s=%s; Max-Age=%d; Path=/; HttpOnly; SameSite=Lax"):format(name, value, max_age)
    end
    if config.env() == "production" then text = text .. "; Secure" end
    return text
end

-- CORS -----------------------------------------------------------------------------------------------------------------

local METHODS = "GET,HEAD,POST,PUT,PATCH,DELETE,OPTIONS"
local ALLOWED = "Content-Type, Authorization, X-Tenant-Kasma-Id, X-App-Kasma-Id, X-Idempotency-Key, X-Kasma-Key, X-Request-Id, "
    .. "Idempotency-Key, X-CSRF-Token, X-Token-Response, X-Cart-Token, X-Kasma-Rules-Draft"
local EXPOSED = "X-Request-Id, Retry-After, X-RateLimit-Limit, X-RateLimit-Remaining, X-RateLimit-Reset, Idempotent-Replayed, ETag, "
    .. "X-Total-Count, X-Next-Cursor, Link, X-Cart-Token"
local extra_headers = {}

--- A route's own request headers, allowed to browsers from then on.
---@param names string[]
function M.allow_headers(names)
    for _, name in ipairs(names) do
        local known = ALLOWED:find(name, 1, true) ~= nil
        for _, other in ipairs(extra_headers) do known = known or other == name end
        if not known then extra_headers[#extra_headers + 1] = name end
    end
end

local function candidate_app(req)
    local key = req:header("x-app-kasma-id")
    if key then return key end
    local host = tenant.by_host(req:header("host"))
    return host and host.app_key
end

--- The app whose pages may use a session by its cookie alone: the one that the request or the host names, but a header's only within
--- the session's tenant: any tenant may let a page of its own in, and none into the sessions of others.
---@param req table
---@param session {tenant_key: string, app_key: string}
---@return string|nil app_key
function M.app_of(req, session)
    local named = req:header("x-app-kasma-id")
    if not named then return candidate_app(req) or session.app_key end
    local found = tenant.app(named)
    return found and found.tenant_key == session.tenant_key and named or session.app_key
end

--- Adds the CORS headers of an answer when the origin may read it.
---@param req table
---@param headers table
---@param origin string
---@param app string|nil the app that answered, when it is known: a key or a session may name it where no header does
function M.add_cors(req, headers, origin, app)
    headers["Vary"] = "Origin"
    local ok, allowed = pcall(function()
        return tenant.origin_allowed(origin, candidate_app(req)) or (app ~= nil and tenant.origin_allowed(origin, app))
    end)
    if not ok or not allowed then return end
    headers["Access-Control-Allow-Origin"] = origin
    headers["Access-Control-Allow-Credentials"] = "true"
    headers["Access-Control-Expose-Headers"] = EXPOSED
end

--- Answers a preflight request.
---@param req table
---@param origin string
function M.preflight(req, origin)
    local headers = { ["Vary"] = "Origin" }
    local ok, allowed = pcall(function() return tenant.origin_allowed(origin, candidate_app(req)) or tenant.origin_known(origin) end)
    if ok and allowed then
        headers["Access-Control-Allow-Origin"] = origin
        headers["Access-Control-Allow-Credentials"] = "true"
        headers["Access-Control-Allow-Methods"] = METHODS
        headers["Access-Control-Allow-Headers"] = #extra_headers > 0 and (ALLOWED .. ", " .. table.concat(extra_headers, ", ")) or ALLOWED
        headers["Access-Control-Max-Age"] = "86400"
    end
    req:respond(204, headers)
end

--- A request that changes something and is carried by a cookie must come from an allowed origin: browsers say where it
--- comes from by Origin, Referer or Sec-Fetch-Site. One with none of the three is no browser's.
---@param req table
---@param app string|nil app whose origins are allowed; default: the one that headers or host name
---@return boolean
function M.is_cross_site(req, app)
    local origin = req:header("origin")
    local site = req:header("sec-fetch-site")
    local host = req:header("host")
    if not origin then
        local referer = req:header("referer")
        origin = referer and referer:match("^(%a[%w+.-]*://[^/?#]+)")
    end
    if origin and origin ~= "null" then
        if host and origin:match("^%a[%w+.-]*://(.+)$") == host then return false end
        return not tenant.origin_allowed(origin, app or candidate_app(req))
    end
    if origin == "null" then return true end
    if site == "cross-site" then
        local cookie, header = req:cookie("csrf_token"), req:header("x-csrf-token")
        return not (cookie and header and cookie == header)
    end
    return false
end

return M
