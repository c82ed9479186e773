-- Customers of a tenant: users who bought, and guests, who are known by a keyed hash of their e-mail and by nothing else.
local crypto = require("core.crypto")
local time = require("core.time")
local uuid = require("core.uuid")
local access = require("kasma.access")
local audit = require("kasma.audit")
local db = require("kasma.db")
local errors = require("kasma.errors")
local secrets = require("kasma.secrets")
local store = require("modules.customers.store")

local M = {}

local function hash_under(tenant, email, version)
    local key, used = secrets.tenant_key(tenant, "guest_email", version)
    return crypto.hmac_sha256(key, email:lower()), used
end

--- HMAC-SHA256 of the lower-cased e-mail under a key of the tenant. A guest who is known under an older version of SERVER_KEY stays
--- that guest: what they have bought and used up is found under it.
---@param tenant string
---@param email string
---@return string hex
---@return integer key_version of SERVER_KEY
function M.guest_hash(tenant, email)
    local versions = secrets.versions()
    if #versions > 1 then
        local hashes, by_hash = {}, {}
        for i, version in ipairs(versions) do
            hashes[i] = hash_under(tenant, email, version)
            by_hash[hashes[i]] = version
        end
        local known = store.known_guest(tenant, hashes)
        if known and by_hash[known] then return known, by_hash[known] end
    end
    return hash_under(tenant, email)
end

secrets.kept_by_tenant{ name = "guests who bought", lost = "they count as new: first-order prices and limits a customer begin anew",
    count = store.guests_by_version }

--- What prices may depend on: who buys, in which groups, for the first time or not.
---@param tenant string
---@param owner CartOwner|nil
---@param guest_hash string|nil of a guest who has told an e-mail
---@return table
function M.pricing_input(tenant, owner, guest_hash)
    local user_id = owner and owner.user_id
    local row = (user_id or guest_hash) and store.find(tenant, user_id, not user_id and guest_hash or nil)
    return { id = user_id, groups = row and row.groups or {}, first_order = not row or row.orders_count == 0,
        orders_count = row and row.orders_count or 0 }
end

M.consents = store.consents
M.by_id = store.by_id

--- Gives a customer a tag; once is enough.
---@param scope Scope
---@param id string of the customer, or of its user
---@param tag string
---@return boolean|nil true; nil: there is no such customer, or it has 50 tags
---@return string|nil why "not_found" or "too_many"
function M.tag(scope, id, tag)
    local customer = store.by_id(scope.tenant, id)
    if not customer then return nil, "not_found" end
    local changed = db.transaction(scope.tenant, function(tx)
        local row = tx:pipeline{ store.add_tag(scope.tenant, customer.id, tag, time.iso(time.now())) }[1][1]
        if not row then return false end
        local statements = {}
        audit.append(statements, scope, { action = "CUSTOMER_TAGGED", entity_type = "customer", entity_id = customer.id,
            after = { tag = tag } })
        tx:pipeline(statements)
        return true
    end)
    if changed then return true end
    for _, one in ipairs(store.by_id(scope.tenant, id).tags) do
        if one == tag then return true end
    end
    return nil, "too_many"
end

---@param tenant string
---@param id string of the customer, or of its user
---@return table row; raises 404
function M.details(tenant, id)
    local row = store.details(tenant, id)
    if not row then errors.not_found{ message = "Customer not found" } end
    return row
end

--- Changes a customer; a user's row is made when they have none. Raises 404.
---@param scope Scope
---@param who {id: string|nil, user_id: string|nil}
---@param input {groups: string[]|nil, tags: string[]|nil, marketingConsent: boolean|nil}
---@return table row
function M.update(scope, who, input)
    local now, statements = time.iso(time.now()), {}
    if not who.id then
        if not access.of(scope.tenant, who.user_id).member then errors.not_found{ message = "Customer not found" } end
        statements[1] = store.ensure{ tenant_key = scope.tenant, app_key = scope.app, id = uuid.v7(), user_id = who.user_id, now = now }
    end
    db.transaction(scope.tenant, function(tx)
        local list = { unpack(statements) }
        list[#list + 1] = store.change(scope.tenant, who.id or who.user_id, { groups = input.groups, tags = input.tags,
            consent = input.marketingConsent }, now)
        local row = tx:pipeline(list)[#list][1]
        if not row then errors.not_found{ message = "Customer not found" } end
        local last = {}
        audit.append(last, scope, { action = "customers.update", entity_type = "customer", entity_id = row.id,
            after = { groups = input.groups, tags = input.tags, marketingConsent = input.marketingConsent } })
        tx:at_commit(last)
    end)
    return M.details(scope.tenant, who.id or who.user_id)
end

return M
