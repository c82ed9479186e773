-- Secrets of a tenant: tokens that rules send to other servers and never see. A value lies sealed under the server's key beside its
-- tenant and name; it is opened when http.fetch sends it, and told to nobody.
local json = require("core.json")
local pg = require("core.pg")
local time = require("core.time")
local uuid = require("core.uuid")
local audit = require("kasma.audit")
local capabilities = require("kasma.capabilities")
local db = require("kasma.db")
local errors = require("kasma.errors")
local hooks = require("kasma.hooks")
local log = require("kasma.log")
local null = require("kasma.null")
local vault = require("kasma.secrets")
local rules = require("modules.rules.service")
local store = require("modules.rules.store")

local M = {}

local PURPOSE, MOST = "tenant_secret", 200

M.secret_limit = errors.declare{ code = "secret_limit", status = 409, message = "A tenant has 200 secrets at most",
    cause = "200 secrets exist", cure = "remove one" }

local function aad(tenant, name) return tenant .. ":" .. name end

-- Which live rules name which secret: name -> keys.
local function users(scope)
    local set, used = hooks.pin(scope), {}
    for _, rule in ipairs(set:list()) do
        if rule.hook == "route" or rule.hook == "workflow" then
            local manifest = capabilities.manifest(set, rule)
            for name in pairs(manifest and capabilities.needs_of(manifest).secrets or {}) do
                used[name] = used[name] or json.array{}
                table.insert(used[name], rule.id)
            end
        end
    end
    return used
end

---@param scope Scope
---@return table[] {name, updatedAt, updatedBy, usedBy}
function M.list(scope)
    local list, used = json.array{}, users(scope)
    for i, s in ipairs(store.secrets(scope.tenant)) do
        list[i] = { name = s.name, updatedAt = s.updated_at, updatedBy = s.updated_by or null, usedBy = used[s.name] or json.array{} }
    end
    return list
end

---@param scope Scope
---@param name string
---@param value string
---@return table {name, updatedAt}
function M.set(scope, name, value)
    local now = time.iso(time.now())
    if store.count_secrets(scope.tenant, name) >= MOST then M.secret_limit() end
    local statements = { store.put_secret{ tenant_key = scope.tenant, app_key = scope.app, id = uuid.v7(), name = name,
        value_enc = pg.bytea(vault.seal(PURPOSE, value, aad(scope.tenant, name))), key_version = vault.versions()[1],
        updated_by = scope.actor_id, now = now } }
    audit.append(statements, scope, { action = "RULE_SECRET_SET", entity_type = "rule_secret", entity_id = name, after = { name = name } })
    db.pipeline(scope.tenant, statements)
    return { name = name, updatedAt = now }
end

---@param scope Scope
---@param name string
---@return table {name}; raises not found, secret_in_use
function M.remove(scope, name)
    local by = users(scope)[name]
    if by then rules.secret_in_use{ details = { usedBy = by } } end
    db.transaction(scope.tenant, function(tx)
        local statements = { store.drop_secret(scope.tenant, name) }
        audit.append(statements, scope, { action = "RULE_SECRET_REMOVED", entity_type = "rule_secret", entity_id = name,
            before = { name = name } })
        if not tx:pipeline(statements)[1][1] then errors.not_found{ message = "Secret not found" } end
    end)
    return { name = name }
end

---@param tenant string
---@param name string
---@return boolean
function M.exists(tenant, name) return store.secret(tenant, name) ~= nil end

vault.kept_by_tenant{ name = "secrets of rules", lost = "rules cannot send them until each is set again",
    count = store.secrets_by_version,
    rotate = function(tenant, newest)
        local done, lost = 0, 0
        for _, row in ipairs(store.secrets_sealed_before(tenant, newest)) do
            local sealed = vault.reseal(PURPOSE, row.value_enc, aad(tenant, row.name))
            if sealed then
                done = done + store.reseal_secret(tenant, row.name, row.value_enc, sealed, newest)
            else
                lost = lost + 1
            end
        end
        return done, lost
    end }

--- The value, for sending it.
---@param tenant string
---@param name string
---@return string|nil
function M.open(tenant, name)
    local row = store.secret(tenant, name)
    if not row then return nil end
    local value = vault.open(PURPOSE, row.value_enc, aad(tenant, name))
    if not value then
        log.error("a secret of a tenant cannot be opened", { tenant = tenant, name = name, key_version = row.key_version })
    end
    return value
end

return M
