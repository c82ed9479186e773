-- What a tenant's rules say about its accounts: who signs in how, who registers, which passwords and profiles are taken. Each function
-- answers what the rule said, already narrowed to what a rule may say; without a rule, nil.
local json = require("core.json")
local time = require("core.time")
local hooks = require("kasma.hooks")
local policy = require("kasma.policy")
local tenants = require("kasma.tenant")
local failures = require("modules.iam.failures")

local M = {}

local function texts(list)
    local copy = {}
    for i, value in ipairs(list) do copy[i] = value end
    return copy
end

--- Whether a sign-in with the right password goes on, and how. A rule that fails asks for a code.
---@param scope Scope
---@param user table
---@param client kasma.Client
---@param known_device fun(): boolean
---@return {otp: "always"|"skip"|"totp"|nil, deny: boolean|nil, reason: string|nil}|nil
function M.login(scope, user, client, known_device)
    if not policy.has(scope.tenant, "auth.login_policy") then return nil end
    local row = tenants.by_key(scope.tenant)
    local answer, info = hooks.call(scope, "auth.login_policy", {
        user = { id = user.id, email = user.email, user_type = user.user_type, created_at = user.created_at },
        ip = client.ip, user_agent = client.user_agent or "", known_device = known_device(),
        hour = time.fields(time.now(), row and row.timezone or "UTC").hour, failures = failures.state(user.email).failures })
    if answer then return answer end
    return info and info.failed and { otp = "always" } or nil
end

--- Whether somebody may register, and as what. Only GENERAL_* types are taken from a rule.
---@param scope Scope
---@param input {email: string, display_name: string|nil}
---@param client kasma.Client
---@return {allow: boolean, reason: string|nil, user_type: string|nil, role_keys: string[]|nil}|nil
function M.register(scope, input, client)
    if not policy.has(scope.tenant, "auth.before_register") then return nil end
    local answer = hooks.call(scope, "auth.before_register", { email = input.email, display_name = input.display_name or "",
        ip = client.ip, app_key = scope.app, fields = {} })
    if not answer then return nil end
    local general = answer.user_type and answer.user_type:find("^GENERAL_[0-5]$") ~= nil
    return { allow = answer.allow, reason = answer.reason, user_type = general and answer.user_type or nil,
        role_keys = answer.role_keys and json.array(texts(answer.role_keys)) or nil }
end

--- What a rule says of a password, of which it learns the measures and never the text.
---@param tenant string
---@param measure fun(): {password_length: integer, classes: integer, breached: boolean, user_type: string} asked when there is a rule
---@return {ok: boolean, message: string|nil}|nil
function M.password(tenant, measure)
    if not policy.has(tenant, "auth.password_policy") then return nil end
    return (hooks.call({ tenant = tenant, app = tenants.DEFAULT }, "auth.password_policy", measure()))
end

--- The change of a profile as a rule leaves it, or the messages with which it refuses it.
---@param scope Scope
---@param before table
---@param patch table
---@return table patch, string[]|nil messages
function M.profile(scope, before, patch)
    if not policy.has(scope.tenant, "user.profile_validate") then return patch, nil end
    local answer = hooks.call(scope, "user.profile_validate", { before = before, patch = patch })
    if not answer then return patch, nil end
    if answer.errors and answer.errors[1] then return patch, texts(answer.errors) end
    return answer.patch or patch, nil
end

return M
