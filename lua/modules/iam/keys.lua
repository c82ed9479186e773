-- Access keys of a tenant: publishable ones name tenant and app, secret ones act with scopes. A secret is shown once; the
-- database holds its beginning and a hash of the whole.
local crypto = require("core.crypto")
local json = require("core.json")
local pg = require("core.pg")
local time = require("core.time")
local uuid = require("core.uuid")
local audit = require("kasma.audit")
local auth = require("kasma.auth")
local capabilities = require("kasma.capabilities")
local db = require("kasma.db")
local errors = require("kasma.errors")
local invalidate = require("kasma.invalidate")
local mail = require("kasma.mail")
local null = require("kasma.null")
local outbox = require("kasma.outbox")
local roles = require("kasma.roles")
local tenants = require("kasma.tenant")
local web = require("kasma.web")
local store = require("modules.iam.store")
local role_store = require("modules.iam.store_roles")
local tenant_roles = require("modules.iam.roles")
local users = require("modules.iam.users")

local M = {}

local KEY = [[id, owned_key, is_active, tenant_key, app_key, key_type, name, last4, scopes, allowed_ips::text[] as allowed_ips, expires_at,
  last_used_at, revoked_at, created_by, created_at, updated_at]]

-- A new key's parts: what is kept, and the secret.
local function mint(key_type, is_test)
    local mode = is_test and "test" or "live"
    if key_type == "publishable" then return { owned_key = "kpk_" .. mode .. "_" .. auth.random62(32) } end
    local head = "ksk_" .. mode .. "_" .. auth.random62(8)
    local body = head .. "_" .. auth.random62(34)
    local secret = body .. auth.key_checksum(body)
    return { owned_key = head, secret = secret, hash = crypto.sha256(secret), last4 = secret:sub(-4) }
end

---@param row table
---@return table as HTTP shows it, without the secret
function M.view(row)
    local function text(value) return value or null end
    return { id = row.id, owned_key = row.owned_key, key_type = row.key_type, name = row.name, tenant_key = row.tenant_key,
        app_key = row.app_key,
        last4 = text(row.last4), scopes = json.array(row.scopes or {}), allowed_ips = json.array(row.allowed_ips or {}),
        expires_at = text(row.expires_at), last_used_at = text(row.last_used_at), revoked_at = text(row.revoked_at),
            is_active = row.is_active,
        created_by = text(row.created_by), created_at = row.created_at, updated_at = row.updated_at }
end

---@param tenant string
---@return table[]
function M.list(tenant)
    local list = json.array({})
    local rows = db.read(nil, "select " .. KEY .. " from access_keys where tenant_key = $1 order by created_at desc, id desc limit 500",
        tenant)
    for i, row in ipairs(rows) do list[i] = M.view(row) end
    return list
end

local function insert(scope, k, made)
    return { "insert into access_keys (id, owned_key, tenant_key, app_key, key_type, name, secret_hash, last4, scopes, "
        .. "allowed_ips, expires_at, "
        .. "created_by, created_at, updated_at) values ($1, $2, $3, $4, $5, $6, $7, $8, $9::text[], $10::cidr[], $11::timestamptz, $12, "
        .. "$13::timestamptz, $13::timestamptz) returning " .. KEY, uuid.v7(), made.owned_key, scope.tenant, k.app_key, k.key_type, k.name,
        made.hash or null, made.last4 or null, pg.array(k.scopes), pg.array(k.allowed_ips), k.expires_at or null, scope.actor_id or null,
        time.iso(time.now()) }
end

-- Who made a key is on record as one who may see and rotate it. A key that is made in the moment in which its maker's membership ends is
-- not made, or ends with it.
local function append_holder(statements, scope, owned_key)
    if scope.actor_kind == "key" then table.insert(statements, 1, store.key_stands(scope.actor_id)) end
    if scope.actor_kind ~= "user" then return end
    table.insert(statements, 1, store.member_stands(scope.actor_id, scope.tenant))
    statements[#statements + 1] = { [[insert into user_access_keys (tenant_key, app_key, id, user_id, owned_key, created_at, updated_at)
      values ($1, $2, $3, $4, $5, $6::timestamptz, $6::timestamptz)]], scope.tenant, scope.app, uuid.v7(), scope.actor_id, owned_key,
        time.iso(time.now()) }
end

local LEFT = { status = 403, message = "You do not belong to this tenant", code = "not_a_member" }

-- The row of a new key, of the results of its transaction.
local function made_row(results)
    for _, rows in ipairs(results) do
        if rows[1] and rows[1].owned_key then return rows[1] end
    end
end

local function shown(row, made)
    local view = M.view(row)
    if made.secret then view.secret = made.secret end
    return view
end

-- The networks that a key is bound to, each in the one form in which they are kept and compared.
local function networks(list)
    local kept, wrong = {}, {}
    for i, entry in ipairs(list or {}) do
        local network, why = web.network(entry)
        kept[i] = network
        if not network then
            wrong[#wrong + 1] = ("each value in allowed_ips must be an IP address or a network: '%s' %s"):format(entry, why)
        end
    end
    if wrong[1] then errors.validation(wrong) end
    return kept
end

-- A key makes none that lives longer, or is taken from elsewhere, than itself: raises 403. Answers its own bounds.
local function check_bounds(scope, expires_at, allowed)
    local maker = scope.actor_kind == "key" and db.one(nil, "select " .. KEY .. " from access_keys where id = $1", scope.actor_id)
    if not maker then return expires_at, allowed end
    local ends = maker.expires_at
    if ends and expires_at and time.parse(expires_at) > time.parse(ends) then users.escalation() end
    local bound = maker.allowed_ips or {}
    for _, network in ipairs(#bound > 0 and allowed or {}) do
        local within = false
        for _, outer in ipairs(bound) do within = within or web.is_within(network, outer) end
        if not within then users.escalation() end
    end
    return expires_at or ends, #allowed > 0 and allowed or bound
end

---@param scope Scope
---@param held table<string, boolean>
---@param input table name, key_type, app_key, scopes, expires_at, allowed_ips (body of the route)
---@return table view with the secret
function M.create(scope, held, input)
    local scopes = input.scopes or {}
    if roles.beyond(held, scopes) then users.escalation() end
    tenant_roles.check_known(scope, scopes)
    if input.expires_at and time.parse(input.expires_at) <= time.now() then
        errors.validation{ "expires_at must lie in the future" }
    end
    local expires_at, allowed = check_bounds(scope, input.expires_at, networks(input.allowed_ips))
    local app = input.app_key or scope.app
    local known = tenants.app(app)
    if app ~= tenants.DEFAULT and (not known or known.tenant_key ~= scope.tenant) then errors.not_found("App not found") end
    local made = mint(input.key_type, tenants.by_key(scope.tenant).is_test)
    local statements = { insert(scope, { app_key = app, key_type = input.key_type, name = input.name,
        scopes = input.key_type == "secret" and scopes or {}, allowed_ips = allowed, expires_at = expires_at },
            made) }
    append_holder(statements, scope, made.owned_key)
    audit.append(statements, scope, { action = "keys.create", entity_type = "access_key", entity_id = made.owned_key,
        after = { name = input.name, key_type = input.key_type, scopes = json.array(scopes) } })
    return shown(made_row(errors.state({ KS403 = LEFT }, db.pipeline, scope.tenant, statements)), made)
end

local function existing(scope, id)
    local row = db.one(nil, "select " .. KEY .. " from access_keys where tenant_key = $1 and id = $2", scope.tenant, id)
    if not row or row.revoked_at then errors.not_found("Key not found") end
    return row
end

M.changed = errors.declare{ code = "key_changed", status = 409, message = "The key was changed meanwhile",
    cause = "somebody rotated or revoked it at the same time", cure = "list the keys and look" }

-- A grace never makes a key live longer than it would have. Of two who end or rotate a key at once, one does.
local END = [[with done as (update access_keys set
    expires_at = case when $3::timestamptz > $4::timestamptz then least(expires_at, $3::timestamptz) else expires_at end,
    revoked_at = case when $3::timestamptz > $4::timestamptz then revoked_at else $4::timestamptz end,
    is_active = $3::timestamptz > $4::timestamptz, updated_at = $4::timestamptz
    where tenant_key = $1 and id = $2 and revoked_at is null and updated_at = $5::timestamptz returning 1)
  select kasma_must((select count(*) from done) = 1, 'KS409')]]

--- Ends a key now, or after a grace. The processes hear of it at once; their cache lasts a second.
local function ending(scope, row, grace_s)
    -- Never the time that stands there: two changes within a millisecond are two.
    local now = math.max(time.now(), time.parse(row.updated_at) + 1)
    return { END, scope.tenant, row.id, time.iso(now + grace_s * 1000), time.iso(now), row.updated_at }
end

---@param scope Scope
---@param id string
function M.revoke(scope, id)
    local row = existing(scope, id)
    local statements = { ending(scope, row, 0) }
    audit.append(statements, scope, { action = "keys.revoke", entity_type = "access_key", entity_id = row.owned_key })
    errors.state({ KS409 = M.changed }, db.pipeline, scope.tenant, statements)
    invalidate.send("key", row.owned_key)
end

--- A new key like the old one, which goes on for the grace.
---@param scope Scope
---@param held table<string, boolean>
---@param id string
---@param grace_s integer 0..86400
---@return table view with the secret
function M.rotate(scope, held, id, grace_s)
    local row = existing(scope, id)
    if roles.beyond(held, row.scopes or {}) then users.escalation() end
    local expires_at, allowed = check_bounds(scope, row.expires_at, row.allowed_ips or {})
    local made = mint(row.key_type, tenants.by_key(scope.tenant).is_test)
    local statements = { insert(scope, { app_key = row.app_key, key_type = row.key_type, name = row.name, scopes = row.scopes or {},
        allowed_ips = allowed, expires_at = expires_at }, made), ending(scope, row, grace_s) }
    append_holder(statements, scope, made.owned_key)
    audit.append(statements, scope, { action = "keys.rotate", entity_type = "access_key", entity_id = row.owned_key,
        after = { new = made.owned_key } })
    local results = errors.state({ KS409 = M.changed, KS403 = LEFT }, db.pipeline, scope.tenant, statements)
    invalidate.send("key", row.owned_key)
    return shown(made_row(results), made)
end

local MAKER = [[with recursive chain as (select created_by from access_keys where tenant_key = $1 and id = $2
    union select k.created_by from access_keys k join chain c on k.id = c.created_by)
  select created_by from chain c where not exists (select from access_keys k where k.id = c.created_by) limit 1]]

--- Who made a key, by themselves or by a key of theirs.
---@param tenant string
---@param id string
---@return string|nil user_id nil: there is no such key, or nobody is on record
function M.maker(tenant, id)
    local row = db.one(nil, MAKER, tenant, id)
    local made_by = row and row.created_by
    return made_by ~= json.null and made_by or nil
end

local EXPIRING = [[select id, owned_key, tenant_key, app_key, name, expires_at, created_by from access_keys
  where expires_at > $1::timestamptz and expires_at <= $2::timestamptz and is_active and revoked_at is null
    and (expires_at, id) > ($3::timestamptz, $4::uuid) order by expires_at, id limit 200]]
local NOTICE_MS = 7 * 86400000
local PREFIX_LEN = 17 -- `ksk_live_` and the eight that tell keys apart

-- Once for each key and end: a row that was sent is kept for as long as the notice is early.
local function expiring(scope, row)
    local event = outbox.event(scope, "key.expiring", row.id, { keyPrefix = row.owned_key:sub(1, PREFIX_LEN), expiresAt = row.expires_at })
    return outbox.once(event, capabilities.once_id(("key.expiring:%s:%s"):format(row.id, row.expires_at)))
end

--- Tells whoever made a key, and the owners of its tenant, a week before it ends, and whoever listens to the tenant's events. Each mail
--- goes out once, and so does the event.
---@param now integer
---@return integer keys
function M.expiry_notices(now)
    local seen = 0
    local place = { at = time.iso(now), id = "00000000-0000-0000-0000-000000000000" }
    repeat
        local rows = db.read(nil, EXPIRING, time.iso(now), time.iso(now + NOTICE_MS), place.at, place.id)
        for _, row in ipairs(rows) do
            local people = { row.created_by }
            for _, owner in ipairs(role_store.owners(row.tenant_key, time.iso(now))) do people[#people + 1] = owner.user_id end
            local scope, told, statements = { tenant = row.tenant_key, app = row.app_key, actor_kind = "system" }, {}, {}
            statements[1] = expiring(scope, row)
            for _, id in ipairs(people) do
                local user = not told[id] and store.user(id)
                told[id] = true
                if user and user.status == "active" and not user.deleted_at then
                    mail.append(statements, scope, { to = user.email, template = "key-expiry", user_id = user.id,
                        vars = { name = row.name, key = row.owned_key, tenant = row.tenant_key, ends = row.expires_at },
                        key = ("key-expiry:%s:%s:%s"):format(row.id, row.expires_at, user.id) })
                end
            end
            db.pipeline(row.tenant_key, statements)
            seen, place = seen + 1, { at = row.expires_at, id = row.id }
        end
    until #rows < 200
    return seen
end

return M
