-- Notices: what a person is told in the app. One is written in the transaction of what it tells of; the outbox then takes it to
-- the recipient's realtime channel, and by mail where they wish that. `notices.append` is for every module.
local crypto = require("core.crypto")
local json = require("core.json")
local sched = require("core.sched")
local time = require("core.time")
local uuid = require("core.uuid")
local access = require("kasma.access")
local cache = require("kasma.cache")
local db = require("kasma.db")
local errors = require("kasma.errors")
local hub = require("kasma.hub")
local invalidate = require("kasma.invalidate")
local mail = require("kasma.mail")
local null = require("kasma.null")
local outbox = require("kasma.outbox")
local remote = require("kasma.remote")
local schema = require("kasma.schema")
local iam = require("modules.iam.service")
local tenants = require("kasma.tenant")
local store = require("modules.notices.store")
local texts = require("modules.notices.texts")

local M = {}

M.TYPES = { "LIKE", "COMMENT", "TAG", "GROUP_JOIN_REQUEST", "GROUP_POST_PENDING", "GROUP_POST_APPROVED", "GROUP_POST_REJECTED",
    "GROUP_INVITE", "SYSTEM", "FOLLOW", "FRIEND_REQUEST", "FRIEND_ACCEPTED", "SHARE" }

local DAY_MS = 86400000
local READ_DAYS, ANY_DAYS, BATCH = 90, 180, 1000

hub.declare{ "notice.new" }

-- Preferences ----------------------------------------------------------------------------------------------------------------

local DEFAULT = { in_app = true, push = true, email = false }

local preferences = cache.new{ ttl_ms = 30000, max = 20000, load = function(key)
    local tenant, app, user = key:match("^([^|]*)|([^|]*)|(.*)$")
    local found = {}
    for _, row in ipairs(store.preferences(tenant, app, user)) do found[row.notice_type] = row end
    return found
end }
invalidate.on("notice_preferences", function(key) preferences:drop(key) end)

local function preference_key(scope, user_id) return scope.tenant .. "|" .. scope.app .. "|" .. user_id end

--- A user's wishes, one row a type.
---@param scope Scope
---@param user_id string
---@return table[] rows {notice_type, in_app, push, email}
function M.preferences(scope, user_id)
    local own = {}
    for _, row in ipairs(store.preferences(scope.tenant, scope.app, user_id)) do own[row.notice_type] = row end
    local list = json.array({})
    for i, kind in ipairs(M.TYPES) do
        local row = own[kind] or DEFAULT
        list[i] = { notice_type = kind, in_app = row.in_app, push = row.push, email = row.email }
    end
    return list
end

--- Sets some of them; what is not named stays as it is.
---@param scope Scope
---@param user_id string
---@param rows table[] {notice_type, in_app, push, email}
---@return table[] all rows
function M.set_preferences(scope, user_id, rows)
    local own, now, statements = {}, time.iso(time.now()), {}
    for _, row in ipairs(store.preferences(scope.tenant, scope.app, user_id)) do own[row.notice_type] = row end
    -- In one order, so that two calls at once do not wait for each other.
    table.sort(rows, function(a, b) return a.notice_type < b.notice_type end)
    local function pick(given, was)
        if given == nil then return was end
        return given
    end
    for _, row in ipairs(rows) do
        local was = own[row.notice_type] or DEFAULT
        statements[#statements + 1] = store.put_preference{ tenant_key = scope.tenant, app_key = scope.app, id = uuid.v7(),
            user_id = user_id, notice_type = row.notice_type, in_app = pick(row.in_app, was.in_app), push = pick(row.push, was.push),
            email = pick(row.email, was.email), now = now }
    end
    if #statements > 0 then
        db.pipeline(scope.tenant, statements)
        invalidate.send("notice_preferences", preference_key(scope, user_id))
    end
    return M.preferences(scope, user_id)
end

--- Notes a device for push; a token that another user had is theirs no more.
---@param scope Scope
---@param user_id string
---@param platform "ios"|"android"|"web"
---@param token string
function M.add_device(scope, user_id, platform, token)
    store.put_device{ tenant_key = scope.tenant, app_key = scope.app, id = uuid.v7(), user_id = user_id, platform = platform, token = token,
        now = time.iso(time.now()) }
end

-- Writing --------------------------------------------------------------------------------------------------------------------

local function view(row)
    local out = {}
    for _, column in ipairs{ "id", "tenant_key", "app_key", "recipient_id", "actor_id", "notice_type", "title", "body", "reference_type",
        "reference_id", "is_read", "read_at", "metadata", "group_key", "actor_count", "created_at", "updated_at" } do
        local value = row[column]
        if value == nil then value = null end
        out[column] = value
    end
    return out
end

-- As their reader sees them: texts in his language, with the names that actors have now.
local function views(scope, rows, accept)
    local tenant = tenants.by_key(scope.tenant)
    local language = texts.language(accept, tenant and tenant.default_locale)
    local ids = {}
    for _, row in ipairs(rows) do
        if row.actor_id and row.actor_id ~= null then ids[#ids + 1] = row.actor_id end
    end
    local names, list = iam.names(ids), json.array({})
    for i, row in ipairs(rows) do
        list[i] = view(row)
        local title, body = texts.of(row.notice_type, language, names[row.actor_id], row.actor_count or 1)
        if title then list[i].title, list[i].body = title, body end
    end
    return list
end

---@class kasma.Notice
---@field recipient_id string
---@field notice_type string one of TYPES
---@field title string at most 255 characters
---@field body string
---@field actor_id string|nil
---@field reference_type "POST"|"COMMENT"|"GROUP"|"USER"|nil
---@field reference_id string|nil
---@field metadata table|nil flat
---@field email string|nil the recipient's address, where the caller has it at hand
---@field here boolean|nil never by the remote notice service
---@field id string|nil of the notice, where it comes out of the caller's key; the caller sees first that it is not there

-- What the remote notice service is sent of one, as the channels say that its recipient wishes.
local function append_forward(statements, scope, notice, wish, id)
    local told = {}
    for name, value in pairs(notice.metadata or {}) do told[name] = value end
    told.social_notice_id, told.notice_type = wish.in_app and id or null, notice.notice_type
    told.reference_type, told.reference_id = notice.reference_type or null, notice.reference_id or null
    for _, channel in ipairs{ wish.in_app and "IN_APP" or false, wish.push and "PUSH" or false } do
        if channel then
            statements[#statements + 1] = outbox.row(scope, "notice.forward", notice.recipient_id, { type = channel,
                title = notice.title, content = notice.body, userId = notice.recipient_id, metadata = told })
        end
    end
    return wish.in_app or wish.push
end

local function append_mail(statements, scope, notice, id)
    local address = notice.email
    if not address then
        local user = iam.user(notice.recipient_id)
        address = user and user.status == "active" and user.email
    end
    if not address then return false end
    mail.append(statements, scope, { to = address, template = "notice", key = "notice:" .. id, user_id = notice.recipient_id,
        vars = { title = notice.title, body = notice.body } })
    return true
end

--- Appends the statements of a notice to the caller's pipeline: in the app, by mail, by the remote notice service, each as its recipient
--- wishes. Answers its id, or nil when the recipient wants none of that type.
---@param statements table[]
---@param scope Scope
---@param notice kasma.Notice
---@return string|nil id
---@return boolean kept whether the id is that of a row: who wants a notice by mail alone has none in the app
function M.append(statements, scope, notice)
    local kind = notice.notice_type
    local wish = preferences:get(preference_key(scope, notice.recipient_id))[kind] or DEFAULT
    local id, now, told = notice.id or uuid.v7(), time.iso(time.now()), wish.in_app
    if wish.in_app then
        statements[#statements + 1] = store.insert{ tenant_key = scope.tenant, app_key = scope.app, id = id,
            recipient_id = notice.recipient_id, actor_id = notice.actor_id, notice_type = kind, title = notice.title, body = notice.body,
            reference_type = notice.reference_type, reference_id = notice.reference_id, metadata = notice.metadata, created_at = now }
        hub.append(statements, scope, "notice:user:" .. notice.recipient_id, "notice.new", { notice = { id = id, notice_type = kind,
            title = notice.title, body = notice.body, actor_id = notice.actor_id or null,
            reference_type = notice.reference_type or null, reference_id = notice.reference_id or null,
            metadata = notice.metadata or null, created_at = now } })
    end
    if remote.url("NOTI_SERVICE_URL") and not notice.here then
        told = append_forward(statements, scope, notice, wish, id) or told
    elseif wish.email then
        told = append_mail(statements, scope, notice, id) or told
    end
    return told and id or nil, wish.in_app
end

outbox.slow("notice.forward", function(row)
    local url = remote.url("NOTI_SERVICE_URL")
    if not url then return end -- switched off since
    remote.post(url .. "/api/notification/create", { ["X-Tenant-Kasma-Id"] = row.tenant_key, ["X-App-Kasma-Id"] = row.app_key,
        ["X-User-Id"] = row.payload.userId }, row.payload, "the notice service")
end)

-- Clients read metadata as texts, numbers and booleans side by side.
local function check_flat(metadata)
    local problems = {}
    for name, value in pairs(metadata or {}) do
        if type(value) == "table" and value ~= null then
            problems[#problems + 1] = "metadata." .. name .. " must be a string, a number, a boolean or null"
        end
    end
    table.sort(problems)
    if #problems > 0 then errors.validation(problems) end
end

--- A notice that a service of the platform asks for. Raises 400 where its metadata is not flat, 404 for who is no member.
---@param scope Scope
---@param input {title: string, content: string, userId: string, metadata: table|nil, type: string, templateId: string|nil}
---@return string|nil id of the notice in the app; nil when the recipient wants none there, which is no failure of who asked
function M.create(scope, input)
    check_flat(input.metadata)
    local user = iam.user(input.userId)
    if not user or not access.of(scope.tenant, user.id).member then errors.not_found{ message = "User not found" } end
    local statements = {}
    local id, kept = M.append(statements, scope, { recipient_id = user.id, notice_type = "SYSTEM", title = input.title,
        body = input.content, metadata = input.metadata, email = user.email, here = true })
    if #statements > 0 then db.pipeline(scope.tenant, statements) end
    return kept and id or nil
end

--- Tells a member of the tenant something, once however often it is said under the same id.
---@param scope Scope
---@param id string
---@param notice {user_id: string, title: string, body: string, metadata: table|nil}
---@return boolean|nil, string|nil why
function M.tell(scope, id, notice)
    local user = iam.user(notice.user_id)
    if not user or not access.of(scope.tenant, user.id).member then return nil, "not_found" end
    if store.exists(scope.tenant, id) then return true end
    local statements = {}
    if not M.append(statements, scope, { id = id, recipient_id = user.id, notice_type = "SYSTEM", title = notice.title, body = notice.body,
        metadata = notice.metadata, email = user.email }) then return nil, "not_wanted" end
    db.pipeline(scope.tenant, statements)
    return true
end

-- Reading --------------------------------------------------------------------------------------------------------------------

-- A cursor is the place of the last row, in a form that nobody need understand.
local function cursor_of(row) return (crypto.base64url(row.created_at .. "|" .. row.id)) end

local function place_of(cursor)
    local padded = cursor:gsub("-", "+"):gsub("_", "/")
    local text = crypto.unbase64(padded .. ("="):rep((4 - #padded % 4) % 4))
    local at, id = (text or ""):match("^(.-)|(.+)$")
    if not at or not schema.is_date(at) or not schema.is_uuid(id) then errors.validation{ "cursor is not valid" } end
    return at, id
end

--- A page of somebody's notices, newest first, by page number or by cursor.
---@param scope Scope
---@param user_id string
---@param q {page: integer, limit: integer, unread_only: boolean, cursor: string|nil}
---@param accept string|nil Accept-Language
---@return table body
function M.list(scope, user_id, q, accept)
    local after_at, after_id
    if q.cursor then
        after_at, after_id = place_of(q.cursor)
    elseif (q.page - 1) * q.limit > 10000 then
        errors.validation{ "page is too large: go on by cursor" }
    end
    local rows, total = store.list(scope.tenant, scope.app, user_id, { limit = q.limit, offset = q.cursor and 0 or (q.page - 1) * q.limit,
        unread_only = q.unread_only == true, after_at = after_at, after_id = after_id })
    local more = #rows > q.limit
    local shown = { unpack(rows, 1, math.min(#rows, q.limit)) }
    return { data = views(scope, shown, accept), total = total, page = q.page, limit = q.limit, has_more = more,
        next_cursor = more and cursor_of(rows[q.limit]) or null }
end

---@param scope Scope
---@param user_id string
---@return integer
function M.unread_count(scope, user_id) return store.unread_count(scope.tenant, scope.app, user_id) end

---@param scope Scope
---@param user_id string
function M.read_all(scope, user_id) store.read_all(scope.tenant, scope.app, user_id, time.iso(time.now())) end

---@param scope Scope
---@param user_id string
---@param id string
---@param accept string|nil Accept-Language
---@return table notice
function M.read_one(scope, user_id, id, accept)
    local row = store.read_one(scope.tenant, scope.app, user_id, id, time.iso(time.now()))
    if not row then errors.not_found{ message = "Notice not found" } end
    return views(scope, { row }, accept)[1]
end

--- Removes what is old enough, tenant by tenant and in batches.
---@return integer removed
function M.prune()
    local removed = 0
    tenants.sweep("notice-retention", function(tenant)
        repeat
            local now = time.now()
            local gone = store.prune(tenant, time.iso(now - READ_DAYS * DAY_MS), time.iso(now - ANY_DAYS * DAY_MS), BATCH)
            removed = removed + gone
        until gone < BATCH or sched.stopping()
    end)
    return removed
end

return M
