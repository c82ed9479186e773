-- Passwords: argon2id on the thread pool behind a bounded queue, hashes of other makes verified and replaced, and a policy
-- of the tenant. An unknown user costs one verification of a hash of nobody's, so that time does not tell.
-- The list of passwords that attackers try first is shipped (common_passwords.txt), so that nothing about a password leaves the machine.
local config = require("core.config")
local crypto = require("core.crypto")
local errors = require("kasma.errors")
local settings = require("kasma.settings")
local policies = require("modules.iam.policies")

local M = {}

local MAX_BYTES, HISTORY = 1024, 5

local params
local function argon2()
    if not params then
        local m, t, p = tostring(config.get("PASSWORD_ARGON2") or "19456,2,1"):match("^(%d+),(%d+),(%d+)$")
        params = { m = tonumber(m) or 19456, t = tonumber(t) or 2, p = tonumber(p) or 1 }
    end
    return params
end

---@param password string
---@return string hash
function M.hash(password) return errors.check(crypto.password_hash(password, argon2())) end

local nobody

--- True when the password is the hash's. A nil hash costs as much and is false.
---@param password string
---@param hash string|nil
---@return boolean
function M.verify(password, hash)
    if #password > MAX_BYTES then password = password:sub(1, MAX_BYTES) end
    if not hash then
        nobody = nobody or M.hash(crypto.random_hex(16))
        errors.check(crypto.password_verify(password, nobody))
        return false
    end
    return errors.check(crypto.password_verify(password, hash)) == true
end

---@param hash string
---@return boolean
function M.needs_rehash(hash) return crypto.password_needs_rehash(hash, argon2()) end

local function classes(password)
    local count = 0
    for _, class in ipairs{ "%l", "%u", "%d", "[^%w]" } do
        if password:find(class) then count = count + 1 end
    end
    return count
end

local common

-- The list is read when a tenant first asks for it: 28,000 words, two megabytes in a worker that needs them.
local function load_common()
    local path = assert(package.searchpath("modules.iam.passwords", package.path)):gsub("passwords%.lua$", "common_passwords.txt")
    local file = assert(io.open(path, "r"))
    common = {}
    for line in file:lines() do
        if line:sub(1, 1) ~= "#" then common[line] = true end
    end
    file:close()
end

--- Whether attackers try this password first: as it is, or with digits or signs behind it that people add to meet a policy.
---@param password string
---@return boolean
function M.is_common(password)
    if not common then load_common() end
    local text = password:lower()
    if common[text] then return true end
    local stem = text:match("^(.-)[%d%p]+$")
    return stem ~= nil and #stem >= 6 and common[stem] == true
end

--- Raises 400 when the tenant's policy refuses the password: its rule where it has one and it answers, else its settings.
---@param tenant string
---@param password string
---@param user_type string
function M.check_policy(tenant, password, user_type)
    local ruled = #password <= MAX_BYTES and policies.password(tenant, function()
        return { password_length = #password, classes = classes(password), breached = M.is_common(password), user_type = user_type }
    end)
    if ruled then
        if not ruled.ok then errors.validation{ ruled.message or "Password is refused by the policy" } end
        return
    end
    local messages = {}
    local min = settings.get(tenant, "auth.password_min_length")
    if #password < min then messages[#messages + 1] = ("Password must be at least %d characters"):format(min) end
    if #password > MAX_BYTES then
        messages[#messages + 1] = ("password must be shorter than or equal to %d characters"):format(MAX_BYTES)
    end
    local wanted = settings.get(tenant, "auth.password_classes")
    if wanted > 0 and classes(password) < wanted then
        messages[#messages + 1] = ("Password must hold %d of: small letters, capitals, digits, other characters"):format(wanted)
    end
    if settings.get(tenant, "auth.password_breached_check") and #password <= MAX_BYTES and M.is_common(password) then
        messages[#messages + 1] = "Password is in the list of passwords that are known to attackers"
    end
    if messages[1] then errors.validation(messages) end
end

--- Raises 400 when the password was used before.
---@param password string
---@param credential table password, previous_hashes
---@return string[] hashes to keep as history
function M.check_history(password, credential)
    local hashes = { credential.password }
    for _, hash in ipairs(credential.previous_hashes or {}) do hashes[#hashes + 1] = hash end
    for i = 1, math.min(#hashes, HISTORY) do
        if M.verify(password, hashes[i]) then errors.bad_request{ message = "Password was used before", code = "password_reused" } end
    end
    local keep = {}
    for i = 1, math.min(#hashes, HISTORY) do keep[i] = hashes[i] end
    return keep
end

return M
