-- Keys derived from SERVER_KEY: `[<version>:]<base64>` with commas between, newest first; the first makes, all open.
-- A tenant's key is HKDF-SHA256(SERVER_KEY, "<tenant>|<purpose>"), one purpose for each use.
--
-- A module that keeps what was made with a key declares it (`kept`), so that `kasma secrets rotate` can bring it under the newest
-- version, or say why it cannot: what was sealed is sealed anew, a hash of an address that nobody holds is not.
local config = require("core.config")
local crypto = require("core.crypto")

local M = {}

local list

local function load()
    list = {}
    for part in tostring(config.get("SERVER_KEY") or ""):gmatch("[^,%s]+") do
        local version, encoded = part:match("^(%d+):(.+)$")
        assert(not version or (tonumber(version) >= 1 and tonumber(version) <= 255), "a version of SERVER_KEY is 1 to 255")
        local raw = crypto.unbase64(encoded or part)
        assert(raw and #raw == 32, "SERVER_KEY holds a key that is not 32 bytes of base64")
        list[#list + 1] = { version = tonumber(version) or 1, raw = raw }
    end
    assert(list[1], "SERVER_KEY is not set")
end

local function key_of(version)
    if not list then load() end
    if not version then return list[1] end
    for _, key in ipairs(list) do
        if key.version == version then return key end
    end
    error("SERVER_KEY has no version " .. tostring(version))
end

--- Versions of SERVER_KEY that can be used, the newest first.
---@return integer[]
function M.versions()
    if not list then load() end
    local versions = {}
    for i, key in ipairs(list) do versions[i] = key.version end
    return versions
end

--- 32 bytes for one purpose of one tenant.
---@param tenant string
---@param purpose string
---@param version integer|nil of SERVER_KEY; nil = the newest
---@return string key, integer version
function M.tenant_key(tenant, purpose, version)
    local key = key_of(version)
    return crypto.hkdf(key.raw, tenant .. "|" .. purpose, 32), key.version
end

--- Seals under the server's newest key; the version stands in the first byte.
---@param purpose string
---@param plain string
---@param aad string what it belongs to: it opens only beside the same
---@return string
function M.seal(purpose, plain, aad)
    local key = key_of()
    return string.char(key.version) .. crypto.seal(crypto.hkdf(key.raw, "server|" .. purpose, 32), plain, aad)
end

--- Opens what seal made, or nil.
---@param purpose string
---@param sealed string
---@param aad string
---@return string|nil
function M.open(purpose, sealed, aad)
    if #sealed < 2 then return nil end
    local ok, key = pcall(key_of, sealed:byte(1))
    if not ok then return nil end
    return (crypto.open(crypto.hkdf(key.raw, "server|" .. purpose, 32), sealed:sub(2), aad))
end

--- Seals anew, under the newest key, what an older one sealed.
---@param purpose string
---@param sealed string
---@param aad string
---@return string|nil sealed the same when it is under the newest already; nil: no key in the list opens it
function M.reseal(purpose, sealed, aad)
    if sealed:byte(1) == key_of().version then return sealed end
    local plain = M.open(purpose, sealed, aad)
    return plain and M.seal(purpose, plain, aad)
end

---@class kasma.Kept what a module keeps that was made with SERVER_KEY
---@field name string for people: "second factors"
---@field count fun(newest: integer): table<integer, integer> how many rows of each version there are
---@field rotate (fun(newest: integer): integer, integer)|nil brings rows under the newest; answers how many were, and how many no key
---  opens. nil: it cannot be done
---@field lost string what is lost with a version that is taken out of the list

local kept = {}

---@param how kasma.Kept
function M.kept(how) kept[#kept + 1] = how end

--- The same for what lies in tenants' rows.
---@param how {name: string, lost: string, count: (fun(tenant: string): {version: integer, n: integer}[]), rotate: (fun(tenant: string,
---  newest: integer): integer, integer)|nil}
function M.kept_by_tenant(how)
    local tenants = require("kasma.tenant")
    M.kept{ name = how.name, lost = how.lost,
        count = function()
            local counts = {}
            tenants.each(function(tenant)
                for _, row in ipairs(how.count(tenant)) do counts[row.version] = (counts[row.version] or 0) + row.n end
            end)
            return counts
        end,
        rotate = how.rotate and function(newest)
            local done, lost = 0, 0
            tenants.each(function(tenant)
                local d, l = how.rotate(tenant, newest)
                done, lost = done + d, lost + l
            end)
            return done, lost
        end }
end

---@return kasma.Kept[]
function M.all_kept()
    table.sort(kept, function(a, b) return a.name < b.name end)
    return kept
end

return M
