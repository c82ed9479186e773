-- Draft sessions: a token that lets its holder see prices by a draft, and nobody else. The token is sealed and says all there is to
-- say (tenant, rule, until when), so there is nothing to keep; what it shows is the draft as it is saved now. No checkout takes it.
local crypto = require("core.crypto")
local json = require("core.json")
local rules = require("core.rules")
local time = require("core.time")
local cache = require("kasma.cache")
local errors = require("kasma.errors")
local secrets = require("kasma.secrets")
local check = require("modules.rules.check")
local store = require("modules.rules.store")

local M = {}

M.HEADER = "X-Kasma-Rules-Draft"
local PURPOSE, AAD = "rules-draft", "rules-draft:1"

M.expired = errors.declare{ code = "draft_session_expired", status = 409, message = "The draft session is over",
    cause = "the token is old, of another tenant, or its rule is gone", cure = "begin another session, or leave the header out" }

---@param tenant string
---@param rule table
---@param minutes integer
---@return string token, integer expires_ms
function M.open(tenant, rule, minutes)
    local expires = time.now() + minutes * 60000
    local sealed = secrets.seal(PURPOSE, json.encode{ t = tenant, r = rule.id, e = expires }, AAD)
    return crypto.base64url(sealed), expires
end

local function read(token)
    if #token > 1000 then return nil end
    local padded = token:gsub("-", "+"):gsub("_", "/")
    local raw = crypto.unbase64(padded .. ("="):rep((4 - #padded % 4) % 4))
    local plain = raw and secrets.open(PURPOSE, raw, AAD)
    return plain and json.decode(plain)
end

-- The draft's spec, for a second.
local specs = cache.new{ ttl_ms = 1000, max = 1000, load = function(key)
    local tenant, rule_id = key:match("^([^|]+)|(.+)$")
    local rule = store.find(tenant, rule_id)
    local draft = rule and store.draft(tenant, rule_id)
    if not draft then return nil end
    local report = check.run{ source = draft.source, hook = rule.hook, settings = draft.settings, id = rule.key,
        libs = require("modules.rules.service").libraries(tenant, draft.source) }
    local spec = report.spec
    if not spec then return nil end
    spec.rule_id, spec.number = rule.id, 0
    return spec
end }

--- The tenant's rules with the draft in its place.
---@param scope Scope
---@param token string
---@return userdata set
function M.set_of(scope, token)
    local said = read(token)
    if not said or said.t ~= scope.tenant or said.e < time.now() then M.expired() end
    local spec = specs:get(said.t .. "|" .. said.r)
    if not spec then M.expired() end
    return assert(assert(rules.pin(scope.tenant)):with(spec))
end

return M
