-- Users of another system, brought in with the password hashes that it kept: nobody has to choose a new password, and the hash is replaced
-- by one of ours at the next sign-in. One JSON object a line; a line that cannot be taken is told with its number and why, the others
-- go on. A known address is left as it is.
local json = require("core.json")
local time = require("core.time")
local uuid = require("core.uuid")
local audit = require("kasma.audit")
local db = require("kasma.db")
local errors = require("kasma.errors")
local locks = require("kasma.locks")
local outbox = require("kasma.outbox")
local schema = require("kasma.schema")
local store = require("modules.iam.store")
local role_store = require("modules.iam.store_roles")

local M = {}

local LINE_MAX, BATCH = 65536, 100
-- What one verification may cost: a hash is text from outside, and every sign-in pays for it.
local BCRYPT_COST_MAX, ARGON_MEMORY_KIB_MAX, ARGON_PASSES_MAX, ARGON_LANES_MAX = 15, 262144, 16, 8

local Line = schema.object{
    email = schema.email{ not_empty = true, max = 254 },
    display_name = schema.string{ max = 255 }:optional():nullable(),
    user_type = schema.string{ pattern = "^%u+_[0-5]$" }:default("GENERAL_0"),
    password_hash = schema.string{ max = 127 }:optional():nullable(),
    email_verified = schema.boolean():default(false),
    role_keys = schema.array(schema.string{ max = 100 }, { max = 20, unique = true }):optional(),
    created_at = schema.date():optional():nullable(),
}

--- Why a hash cannot be taken, or nil.
---@param hash string
---@return string|nil
function M.refuse_hash(hash)
    local cost, rest = hash:match("^%$2[aby]%$(%d%d)%$([%w./]+)$")
    if cost then
        if #rest ~= 53 then return "password_hash is no whole bcrypt hash" end
        cost = tonumber(cost)
        if cost < 4 or cost > BCRYPT_COST_MAX then return ("bcrypt cost must be 4 to %d"):format(BCRYPT_COST_MAX) end
        return nil
    end
    local m, t, p, salt, digest = hash:match("^%$argon2id%$v=19%$m=(%d+),t=(%d+),p=(%d+)%$([%w+/]+)%$([%w+/]+)$")
    if m then
        m, t, p = tonumber(m), tonumber(t), tonumber(p)
        if m < 8 or m > ARGON_MEMORY_KIB_MAX or t < 1 or t > ARGON_PASSES_MAX or p < 1 or p > ARGON_LANES_MAX then
            return ("argon2id takes at most m=%d, t=%d, p=%d"):format(ARGON_MEMORY_KIB_MAX, ARGON_PASSES_MAX, ARGON_LANES_MAX)
        end
        if #salt < 11 or #digest < 22 then return "password_hash is no whole argon2id hash" end
        return nil
    end
    return "password_hash is neither bcrypt ($2a, $2b, $2y) nor argon2id"
end

-- A user of a line, or nil and why not.
local function parse(scope, line, roles)
    if #line > LINE_MAX then return nil, ("longer than %d bytes"):format(LINE_MAX) end
    local raw = json.decode(line)
    if type(raw) ~= "table" then return nil, "no JSON object" end
    local user, messages = schema.check(Line, raw)
    if messages then return nil, table.concat(messages, "; ") end
    user.email = user.email:lower()
    if user.user_type:sub(1, 6) == "KASMA_" then return nil, "staff of the platform is not imported" end
    local hash = type(user.password_hash) == "string" and user.password_hash or nil
    local why = hash and M.refuse_hash(hash)
    if why then return nil, why end
    for _, key in ipairs(user.role_keys or {}) do
        if roles[key] == nil then roles[key] = role_store.role_by_key(scope.tenant, key) or false end
        local role = roles[key]
        if not role then return nil, "there is no role " .. key end
        if user.user_type:sub(1, 8) == "GENERAL_" and #(role.permission_keys or {}) > 0 then
            return nil, ("user_type %s cannot hold the role %s"):format(user.user_type, key)
        end
    end
    user.password_hash = hash
    return user
end

local function append(statements, scope, user, now)
    local id = uuid.v7()
    local status = user.email_verified and "active" or "pending"
    statements[#statements + 1] = store.insert_user{ id = id, email = user.email, display_name = user.display_name ~= json.null
        and user.display_name or nil, user_type = user.user_type, status = status, verified = user.email_verified, now = now }
    statements[#statements + 1] = store.put_credential{ id = uuid.v7(), user_id = id, password = user.password_hash, now = now }
    statements[#statements + 1] = store.put_membership{ id = uuid.v7(), user_id = id, tenant_key = scope.tenant, status = "active",
        now = now }
    for _, key in ipairs(user.role_keys or { "customer" }) do
        statements[#statements + 1] = role_store.give_role{ tenant_key = scope.tenant, app_key = scope.app, id = uuid.v7(), user_id = id,
            role_key = key, now = now }
    end
    statements[#statements + 1] = outbox.row(scope, "profile", id, { user_id = id })
    statements[#statements + 1] = outbox.event(scope, "user.created", id, { userType = user.user_type, status = status })
end

-- One transaction; when it fails (somebody registered meanwhile), each user by itself.
local function write(scope, batch, report, told, lock)
    local now = time.iso(time.now())
    local emails = {}
    for i, entry in ipairs(batch) do emails[i] = entry.user.email end
    local known = store.known_emails(emails)
    local fresh, statements = {}, { lock:guard() }
    for _, entry in ipairs(batch) do
        local email = entry.user.email
        if known[email] then
            report.known = report.known + 1
        else
            known[email] = true
            fresh[#fresh + 1] = entry
            append(statements, scope, entry.user, now)
        end
    end
    if #fresh == 0 then return end
    audit.append(statements, scope, { action = "users.import", entity_type = "user", entity_id = "batch", after = { users = #fresh } })
    local whole, failed = pcall(db.pipeline, scope.tenant, statements)
    if whole then
        report.made = report.made + #fresh
        return
    end
    -- Somebody else imports by now, or the store is away: that is no line's fault.
    if errors.sqlstate(failed) == locks.LOST_STATE or errors.is_unavailable(failed) then error(failed, 0) end
    for _, entry in ipairs(fresh) do
        local one = { lock:guard() }
        append(one, scope, entry.user, now)
        audit.append(one, scope, { action = "users.import", entity_type = "user", entity_id = entry.user.email })
        local ok, why = pcall(db.pipeline, scope.tenant, one)
        if ok then
            report.made = report.made + 1
        elseif errors.sqlstate(why) == locks.LOST_STATE or errors.is_unavailable(why) then
            error(why, 0)
        else
            report.refused = report.refused + 1
            told(entry.number, tostring(type(why) == "table" and why.message or why))
        end
    end
end

local function run(scope, lines, opts, lock)
    local report = { lines = 0, made = 0, known = 0, refused = 0 }
    local batch, roles = {}, {}
    for line in lines do
        report.lines = report.lines + 1
        if line:find("%S") then
            local user, why = parse(scope, line, roles)
            if user then
                batch[#batch + 1] = { user = user, number = report.lines }
            else
                report.refused = report.refused + 1
                opts.told(report.lines, why)
            end
        end
        if #batch == BATCH then
            if opts.dry_run then report.made = report.made + #batch else write(scope, batch, report, opts.told, lock) end
            batch = {}
        end
    end
    if opts.dry_run then report.made = report.made + #batch elseif #batch > 0 then write(scope, batch, report, opts.told, lock) end
    return report
end

--- Takes users line by line; raises resource_busy (409) while the tenant's users are being imported already, or when that cannot be known.
--- A dry run waits for nobody.
---@param scope Scope
---@param lines fun(): string|nil
---@param opts {dry_run: boolean|nil, told: fun(number: integer, why: string)}
---@return {lines: integer, made: integer, known: integer, refused: integer}
function M.run(scope, lines, opts)
    if opts.dry_run then return run(scope, lines, opts) end
    return locks.alone(scope, { "import:users" }, function(lock) return run(scope, lines, opts, lock) end)
end

return M
