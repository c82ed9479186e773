-- Access tokens, signed and verified. Without JWT_KEYS they are HS256 under JWT_SECRET. With it (`<kid>=<file>`, newest first, PEM keys
-- of Ed25519 or RSA) the first key signs, every key in the list verifies, and `kid` in the token's header says which: to rotate, put a
-- new key in front, wait for the life of a token, take the old one out. Tokens without a kid are those made before there were keys.
--
-- The algorithm is the key's. What the header claims must agree with it and decides nothing.
local config = require("core.config")
local crypto = require("core.crypto")
local json = require("core.json")
local jwt = require("core.jwt")
local signature = require("core.signature")
local time = require("core.time")
local setting_file = require("kasma.setting_file")

local M = {}

local keys, by_kid

--- The keys that JWT_KEYS names, and what is wrong with them: a line each, with where it is.
---@return table[] keys kid, key, algorithm
---@return string[] problems
local function read_keys()
    local list, problems, seen = {}, {}, {}
    for entry in tostring(config.get("JWT_KEYS") or ""):gmatch("[^,%s]+") do
        local kid, path = entry:match("^([%w._-]+)=(.+)$")
        if not kid or #kid > 64 then
            problems[#problems + 1] = ("JWT_KEYS: %s is not <kid>=<file>"):format(entry)
        elseif seen[kid] then
            problems[#problems + 1] = ("JWT_KEYS: the kid %s is given twice"):format(kid)
        else
            local text, why = setting_file.read(path)
            local key, err
            if text then key, err = signature.key(text) end
            if not key then
                problems[#problems + 1] = ("JWT_KEYS: %s: %s"):format(kid, why or ("%s: %s"):format(path, err.message))
            elseif not next(seen) and not key:is_private() then
                problems[#problems + 1] = ("JWT_KEYS: %s: %s: the first key signs, so it must be a private one"):format(kid, path)
            else
                list[#list + 1] = { kid = kid, key = key, algorithm = key:algorithm() }
            end
        end
        if kid then seen[kid] = true end
    end
    return list, problems
end

--- What is wrong with JWT_KEYS and the files that it names.
---@return string[] lines
function M.problems() return (select(2, read_keys())) end

--- Reads the keys. Called at start, so that a key that cannot be read stops it.
function M.load()
    local list, problems = read_keys()
    if #problems > 0 then error(table.concat(problems, "; "), 0) end
    keys, by_kid = list, {}
    for _, held in ipairs(list) do by_kid[held.kid] = held end
end

local function ring()
    if not keys then M.load() end
    return keys
end

---@param claims table
---@return string token
function M.sign(claims)
    local first = ring()[1]
    if not first then return jwt.sign(claims, config.get("JWT_SECRET"), "HS256") end
    local header = json.encode(json.object({ "alg", "kid", "typ" }, { alg = first.algorithm, kid = first.kid, typ = "JWT" }))
    local text = crypto.base64url(header) .. "." .. crypto.base64url(json.encode(claims))
    local made = assert(first.key:sign(text))
    return text .. "." .. crypto.base64url(made)
end

local function decoded(part)
    local text = part ~= "" and crypto.unbase64(part)
    local value = text and json.decode(text)
    return type(value) == "table" and value or nil
end

local MALFORMED, BAD, EXPIRED = { code = "malformed" }, { code = "bad_signature" }, { code = "expired" }

--- The claims of a token that holds, or nil and why (`code`: malformed, bad_signature, expired by the business clock).
---@param token string
---@return table|nil claims
---@return {code: string}|nil
function M.verify(token)
    local head, body, mark = token:match("^([%w_-]+)%.([%w_-]+)%.([%w_-]+)$")
    local header = head and decoded(head)
    if not header then return nil, MALFORMED end
    if header.kid == nil then return jwt.verify(token, config.get("JWT_SECRET"), "HS256") end
    local _ = ring()
    local held = type(header.kid) == "string" and by_kid[header.kid]
    if not held or header.alg ~= held.algorithm then return nil, BAD end
    local raw = crypto.unbase64(mark)
    if not raw or not held.key:verify(head .. "." .. body, raw) then return nil, BAD end
    local claims = decoded(body)
    if not claims then return nil, MALFORMED end
    if type(claims.exp) ~= "number" or claims.exp * 1000 <= time.now() then return nil, EXPIRED end
    return claims
end

--- The public halves, so that other services verify without a secret (RFC 7517).
---@return {keys: table[]}
function M.jwks()
    local list = json.array({})
    for i, held in ipairs(ring()) do
        local jwk = json.decode(assert(held.key:jwk()))
        jwk.kid = held.kid
        list[i] = jwk
    end
    return { keys = list }
end

return M
