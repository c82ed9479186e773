-- What staff, keys and accounts did. An event is a row of audit_index and a row of the outbox in the act's own transaction;
-- the relay writes the body to MongoDB under the same id, chained by hashes per tenant, so that a cut or an edit shows.
--
--     audit.append(statements, scope, { action = "products.create", entity_type = "product", entity_id = id, after = input })
--
-- before and after hold only what changed; secrets are masked here, whatever the caller passes.
local crypto = require("core.crypto")
local json = require("core.json")
local mongo = require("core.mongo")
local time = require("core.time")
local uuid = require("core.uuid")
local db = require("kasma.db")
local errors = require("kasma.errors")
local null = require("kasma.null")
local outbox = require("kasma.outbox")
local policy = require("kasma.policy")
local web = require("kasma.web")

local M = {}

local COLLECTION = "audit_log"

local INDEX = [[insert into audit_index (tenant_key, app_key, id, actor_id, action, entity_type, entity_id, outcome, created_at)
  values ($1, $2, $3, $4, $5, $6, $7, $8, $9::timestamptz)]]
local AUTH = [[insert into audit_auth_log (tenant_key, app_key, id, user_id, action, target, metadata, ip, user_agent, session_id,
  request_id,
  created_at) values ($1, $2, $3, $4, $5, $6, $7::jsonb, $8::inet, $9, $10, $11, $12::timestamptz)]]

local SECRET = { "password", "passphrase", "passwd", "secret", "token", "code", "hash", "authorization", "cookie", "credential", "apikey",
    "privatekey", "signingkey", "otp", "nonce" }
-- Words that hold one of these and are none: codes that stand on every label. A bare `code` is a role's or a warehouse's; who audits
-- what a person typed as a one-time code leaves it out.
local NOT_SECRET = { couponcode = true, couponcodes = true, zipcode = true, currencycode = true, code = true, phonecode = true,
    countrycode = true, trackingcode = true, carriercode = true, reasoncode = true, postalcode = true, shortcode = true }

--- Whether the name of a member says that it holds a secret.
---@param name string
---@return boolean
function M.is_secret(name)
    local low = name:lower():gsub("[_%-]", "")
    if NOT_SECRET[low] then return false end
    for _, word in ipairs(SECRET) do
        if low:find(word, 1, true) then return true end
    end
    return false
end

--- A copy in which secrets are masked and depth is bounded.
---@param value any
---@param depth integer|nil
---@return any
function M.masked(value, depth)
    if type(value) ~= "table" then return value end
    depth = depth or 0
    if depth > 8 then return "..." end
    local copy = {}
    for key, member in pairs(value) do
        if type(key) == "string" and M.is_secret(key) then copy[key] = "***" else copy[key] = M.masked(member, depth + 1) end
    end
    return setmetatable(copy, getmetatable(value))
end

---@class kasma.AuditEvent
---@field action string `users.update`
---@field entity_type string|nil
---@field entity_id string|nil
---@field before table|nil
---@field after table|nil
---@field outcome "ok"|"denied"|"error"|nil

local function actor(scope)
    local kind = scope.actor_kind
    if not kind or kind == "guest" then kind = scope.actor_id and "user" or "system" end
    return { type = kind, id = scope.actor_id or null, email = scope.actor_email or null }
end

--- Appends the two statements of an event to the caller's pipeline, after what they report.
---@param statements table[]
---@param scope Scope
---@param event kasma.AuditEvent
---@return string event_id
function M.append(statements, scope, event)
    local id, now = uuid.v7(), time.iso(time.now())
    local request = scope.request
    local before, after = policy.mask(scope, { action = event.action, entity_type = event.entity_type, entity_id = event.entity_id,
        outcome = event.outcome or "ok", before = event.before and M.masked(event.before), after = event.after and M.masked(event.after) })
    statements[#statements + 1] = { INDEX, scope.tenant, scope.app, id, scope.actor_id or null, event.action, event.entity_type or null,
        event.entity_id and tostring(event.entity_id) or null, event.outcome or "ok", now }
    statements[#statements + 1] = outbox.row(scope, "audit", scope.tenant, {
        id = id, created_at = now, actor = actor(scope), action = event.action,
        entity = { type = event.entity_type or null, id = event.entity_id and tostring(event.entity_id) or null },
        before = before or null, after = after or null,
        request = request and { id = request.id or null, ip = request.ip or null, method = request.method or null,
            path = request.path or null, user_agent = request.user_agent or null, idempotency_key = request.idempotency_key or null }
                or null,
        outcome = event.outcome or "ok",
    })
    return id
end

--- Writes an event in a transaction of its own (denials, reads of personal data).
---@param scope Scope
---@param event kasma.AuditEvent
---@return string event_id
function M.write(scope, event)
    local statements = {}
    local id = M.append(statements, scope, event)
    db.pipeline(scope.tenant, statements)
    return id
end

--- A row of the sign-in log, for the act's transaction.
---@param scope Scope
---@param entry {action: string, user_id: string|nil, target: string|nil, metadata: table|nil, session_id: string|nil}
---@return table statement
function M.auth_row(scope, entry)
    local request = scope.request or {}
    local agent = request.user_agent
    return { AUTH, scope.tenant, scope.app, uuid.v7(), entry.user_id or null, entry.action, entry.target or null,
        entry.metadata and json.encode(entry.metadata) or "{}", web.kept_address(request.ip) or null,
        agent and agent:sub(1, 512) or null, entry.session_id or scope.session_id or null, request.id or null, time.iso(time.now()) }
end

-- The chain --------------------------------------------------------------------------------------------------------------------

-- JSON with sorted members: the same event has the same text, whoever wrote it and in whatever order.
local function canonical(value)
    if type(value) ~= "table" then return json.encode(value) end
    if value[1] ~= nil or json.is_array(value) then
        local parts = {}
        for i = 1, #value do parts[i] = canonical(value[i]) end
        return "[" .. table.concat(parts, ",") .. "]"
    end
    local names = {}
    for name in pairs(value) do names[#names + 1] = name end
    table.sort(names)
    local parts = {}
    for i, name in ipairs(names) do parts[i] = json.encode(name) .. ":" .. canonical(value[name]) end
    return "{" .. table.concat(parts, ",") .. "}"
end
M.canonical = canonical

--- SHA-256 of the previous hash, the place in the chain and the event's text.
---@param doc table {prev_hash, seq, body}
---@return string hex
function M.chain_hash(doc) return crypto.sha256(doc.prev_hash .. ("%d"):format(doc.seq) .. doc.body) end

local FIRST = ("0"):rep(64)
local HEAD = "select seq, hash from audit_heads where tenant_key = $1 for update"
local MOVE = [[insert into audit_heads (tenant_key, app_key, seq, hash) values ($1, 'MASTER', $2, $3)
  on conflict (tenant_key) do update set seq = excluded.seq, hash = excluded.hash]]

-- Bodies of one tenant, in order. A row that is there already (the relay died between MongoDB and its mark) keeps its place
-- in the chain; the head is moved to it.
local function write_tenant(tenant, rows)
    local ids = {}
    for i, row in ipairs(rows) do ids[i] = row.payload.id end
    local known = {}
    for _, doc in ipairs(errors.check(mongo.find(COLLECTION, { _id = { ["$in"] = json.array(ids) } },
        { limit = #ids, projection = { seq = 1, hash = 1 } }))) do
        known[doc._id] = doc
    end
    db.transaction(tenant, function(tx)
        local head = tx:one(HEAD, tenant) or { seq = 0, hash = FIRST }
        local seq, hash = head.seq, head.hash
        for _, doc in pairs(known) do
            if tonumber(doc.seq) > seq then seq, hash = tonumber(doc.seq), doc.hash end
        end
        local docs = {}
        for _, row in ipairs(rows) do
            local event = row.payload
            if not known[event.id] then
                seq = seq + 1
                -- The event is hashed as the text that is stored: a document store may give numbers and order back otherwise.
                local doc = { _id = event.id, tenant_key = row.tenant_key, app_key = row.app_key, actor = event.actor,
                    action = event.action,
                    entity = event.entity, request = event.request, outcome = event.outcome, created_at = event.created_at,
                    before = event.before, after = event.after, seq = seq, prev_hash = hash }
                doc.body = canonical{ _id = doc._id, tenant_key = doc.tenant_key, app_key = doc.app_key, actor = doc.actor,
                    action = doc.action, entity = doc.entity, request = doc.request, outcome = doc.outcome, created_at = doc.created_at,
                    before = doc.before, after = doc.after }
                hash = M.chain_hash(doc)
                doc.hash = hash
                docs[#docs + 1] = doc
            end
        end
        if #docs > 0 then errors.check(mongo.insert(COLLECTION, docs)) end
        tx:query(MOVE, tenant, seq, hash)
    end)
end

outbox.consumer("audit", function(rows)
    local by_tenant, order = {}, {}
    for _, row in ipairs(rows) do
        if not by_tenant[row.tenant_key] then
            by_tenant[row.tenant_key] = {}
            order[#order + 1] = row.tenant_key
        end
        table.insert(by_tenant[row.tenant_key], row)
    end
    for _, tenant in ipairs(order) do write_tenant(tenant, by_tenant[tenant]) end
end)

local BODIES = 20 -- a read: bodies may be large

--- Bodies by id. MongoDB away is no error: the lists then show their index rows alone.
---@param tenant string
---@param ids string[]
---@return table<string, table>
function M.bodies(tenant, ids)
    local found = {}
    for first = 1, #ids, BODIES do
        local some = { unpack(ids, first, math.min(first + BODIES - 1, #ids)) }
        local docs = mongo.find(COLLECTION, { _id = { ["$in"] = json.array(some) }, tenant_key = tenant }, { limit = #some })
        if not docs then break end
        for _, doc in ipairs(docs) do found[doc._id] = doc end
    end
    return found
end

return M
