-- Tenants: made with all that a shop needs to start, in one transaction; their apps, members and settings.
local config = require("core.config")
local money = require("core.money")
local time = require("core.time")
local uuid = require("core.uuid")
local audit = require("kasma.audit")
local db = require("kasma.db")
local errors = require("kasma.errors")
local invalidate = require("kasma.invalidate")
local null = require("kasma.null")
local roles = require("kasma.roles")
local settings = require("kasma.settings")
local tenants = require("kasma.tenant")
local store = require("modules.tenants.store")

local M = {}

M.currency = tenants.currency
M.by_key = tenants.by_key

M.taken = errors.declare{ code = "tenant_exists", status = 409, message = "A tenant with this key exists already" }
M.app_taken = errors.declare{ code = "app_exists", status = 409, message = "An app with this key exists already" }
M.host_taken = errors.declare{ code = "hostname_taken", status = 409, message = "The host name belongs to another app" }
M.host_reserved = errors.declare{ code = "hostname_reserved", status = 403, message = "The host name is the platform's to give",
    cause = "it is the server's own (PUBLIC_URL), an address, or a name without a domain", cure = "let staff of the platform set it" }
M.stays = errors.declare{ code = "tenant_stays", status = 409, message = "This tenant stays" }
M.not_empty = errors.declare{ code = "tenant_not_empty", status = 409, message = "The tenant still has products or orders" }

errors.constraint("tenants_tenant", 409, { message = M.taken.message, code = M.taken.code })
errors.constraint("apps_app", 409, { message = M.app_taken.message, code = M.app_taken.code })
errors.constraint("apps_hostname", 409, { message = M.host_taken.message, code = M.host_taken.code })

local SYMBOLS = { VND = "₫", USD = "$", EUR = "€", GBP = "£", JPY = "¥", CNY = "¥", KRW = "₩", THB = "฿", INR = "₹" }

-- Host names as the Host header is compared: lower case, without a port.
local function host_names(list)
    if not list then return nil end
    local names = {}
    for i, name in ipairs(list) do
        names[i] = name:lower()
        if #name > 253 or not names[i]:find("^[a-z0-9][a-z0-9.-]*$") then
            errors.bad_request{ message = { "each value in hostnames must be a host name" }, code = "validation" }
        end
    end
    return names
end

-- What comes to a name without saying for which tenant belongs to whoever has the name. By its own name, by addresses and by names of the
-- network around it the server is called by everybody: these are not for a shop's staff to take.
local function check_hosts(names, had, platform)
    if platform or not names then return end
    local own = tostring(config.get("PUBLIC_URL") or ""):lower():match("^%a+://([^/:]+)")
    local kept = {}
    for _, name in ipairs(had) do kept[name] = true end
    for _, name in ipairs(names) do
        local plain = name:gsub("%.+$", "")
        if not kept[name] and (plain == own or not plain:find(".", 1, true) or plain:find("^[%d.]+$")) then M.host_reserved() end
    end
end

---@param row table
---@return table as HTTP shows it
function M.view(row)
    return { id = row.id, tenant_key = row.tenant_key, name = row.name, is_active = row.is_active, status = row.status,
        country = row.country,
        default_currency = row.default_currency, default_locale = row.default_locale, timezone = row.timezone, settings = row.settings
            or {},
        plan = row.plan or null, is_test = row.is_test, created_at = row.created_at, updated_at = row.updated_at }
end

-- Raises 400 for a currency or a time zone that does not exist: whatever is priced or dated there would fail.
local function check_place(input)
    local messages = {}
    if input.default_currency and not money.exponent(input.default_currency) then
        messages[#messages + 1] = "default_currency must be an ISO 4217 currency"
    end
    if input.timezone and not time.zone_exists(input.timezone) then messages[#messages + 1] = "timezone must be a time zone" end
    if messages[1] then errors.validation(messages) end
end

--- Makes a tenant with its first app, the seeded roles, a default warehouse and its base currency.
---@param scope Scope who does it (the platform's side)
---@param input table tenant_key, name, country, default_currency, default_locale, timezone, is_test, settings, and app: {app_key, name,
---hostnames, allowed_origins}; all but the first two have defaults
---@param also fun(statements: table[], place: Scope, tenant: table)|nil adds statements of the same transaction
---@return {tenant: table, app: table, warehouse_id: string, role_ids: table<string, string>}
function M.create(scope, input, also)
    if not tenants.is_key(input.tenant_key) then
        errors.bad_request{ message = { "tenant_key must be 1 to 63 letters, digits, _ or -, beginning with a letter or digit" },
            code = "tenant_key" }
    end
    check_place(input)
    local now = time.iso(time.now())
    local currency = input.default_currency or "VND"
    local app_input = input.app or {}
    local row = { id = uuid.v7(), tenant_key = input.tenant_key, app_key = app_input.app_key or (input.tenant_key .. "-app"),
        name = input.name,
        country = input.country or "VN", default_currency = currency, default_locale = input.default_locale or "vi",
        timezone = input.timezone or "Asia/Ho_Chi_Minh", settings = input.settings or {}, is_test = input.is_test == true, now = now }
    local warehouse_id, role_ids = uuid.v7(), {}
    local statements = { store.insert(row), store.insert_app{ id = uuid.v7(), app_key = row.app_key, tenant_key = row.tenant_key,
        name = app_input.name or input.name, kind = "storefront", allowed_origins = app_input.allowed_origins or {},
        hostnames = host_names(app_input.hostnames) or {}, now = now } }
    for _, template in ipairs(roles.templates) do
        local role_id = uuid.v7()
        role_ids[template.role_key] = role_id
        statements[#statements + 1] = store.insert_role(row, template, role_id, now)
        for _, grant in ipairs(template.grants) do statements[#statements + 1] = store.insert_grant(row, role_id, uuid.v7(), grant, now) end
    end
    statements[#statements + 1] = store.insert_warehouse(row, warehouse_id, now)
    statements[#statements + 1] = store.insert_base_currency(row, { id = uuid.v7(), code = currency, symbol = SYMBOLS[currency] or currency,
        decimals = money.exponent(currency) }, now)
    local own = { tenant = row.tenant_key, app = row.app_key, actor_id = scope.actor_id, actor_kind = scope.actor_kind,
        actor_email = scope.actor_email, request = scope.request }
    audit.append(statements, own, { action = "tenants.create", entity_type = "tenant", entity_id = row.tenant_key,
        after = { name = row.name, country = row.country, default_currency = currency } })
    if also then also(statements, own, { name = row.name, locale = row.default_locale }) end
    local results = db.pipeline(row.tenant_key, statements)
    invalidate.send("tenant", row.tenant_key)
    invalidate.send("app", row.app_key)
    return { tenant = results[1][1], app = results[2][1], warehouse_id = warehouse_id, role_ids = role_ids }
end

---@param scope Scope whose tenant is changed
---@param input table
---@return table row
function M.update(scope, input)
    local before = store.tenant(scope.tenant)
    if not before then errors.not_found{ message = "Tenant not found" } end
    -- The platform's own: without it nobody could sign in to switch it on again.
    if scope.tenant == tenants.DEFAULT and input.is_active == false then M.stays() end
    check_place(input)
    local set, unset
    if input.settings then
        local messages = settings.check(input.settings)
        if messages then errors.validation(messages) end
        set, unset = {}, {}
        for key, value in pairs(input.settings) do
            if value == null then unset[#unset + 1] = key else set[key] = value end
        end
    end
    local statements = { store.update(scope.tenant, { name = input.name, is_active = input.is_active, country = input.country,
        default_locale = input.default_locale, timezone = input.timezone, set = set, unset = unset }, time.iso(time.now())) }
    audit.append(statements, scope, { action = "tenants.update", entity_type = "tenant", entity_id = scope.tenant,
        before = { name = before.name, settings = before.settings }, after = input })
    local row = db.pipeline(scope.tenant, statements)[1][1]
    invalidate.send("tenant", scope.tenant)
    return row
end

--- Closes a tenant that has no business in it.
---@param scope Scope
---@return table row
function M.close(scope)
    if scope.tenant == tenants.DEFAULT then M.stays() end
    if store.has_business(scope.tenant) then M.not_empty() end
    local statements = { store.update(scope.tenant, { is_active = false, status = "closed" }, time.iso(time.now())) }
    audit.append(statements, scope, { action = "tenants.delete", entity_type = "tenant", entity_id = scope.tenant })
    local row = db.pipeline(scope.tenant, statements)[1][1]
    invalidate.send("tenant", scope.tenant)
    return row
end

---@param scope Scope
---@param input {app_key: string, name: string, kind: string, allowed_origins: string[]|nil, hostnames: string[]|nil}
---@param platform boolean the caller is staff of the platform
---@return table row
function M.create_app(scope, input, platform)
    local hosts = host_names(input.hostnames) or {}
    check_hosts(hosts, {}, platform)
    local statements = { store.insert_app{ id = uuid.v7(), app_key = input.app_key, tenant_key = scope.tenant, name = input.name,
        kind = input.kind, allowed_origins = input.allowed_origins or {}, hostnames = hosts,
        now = time.iso(time.now()) } }
    audit.append(statements, scope, { action = "apps.create", entity_type = "app", entity_id = input.app_key, after = input })
    local row = db.pipeline(scope.tenant, statements)[1][1]
    invalidate.send("app", input.app_key)
    return row
end

---@param scope Scope
---@param app_key string
---@param input table
---@param platform boolean the caller is staff of the platform
---@return table row
function M.update_app(scope, app_key, input, platform)
    input.hostnames = host_names(input.hostnames)
    local before = input.hostnames and tenants.app(app_key)
    check_hosts(input.hostnames, before and before.tenant_key == scope.tenant and before.hostnames or {}, platform)
    local statements = { store.update_app(scope.tenant, app_key, input, time.iso(time.now())) }
    audit.append(statements, scope, { action = "apps.update", entity_type = "app", entity_id = app_key, after = input })
    local row = db.pipeline(scope.tenant, statements)[1][1]
    if not row then errors.not_found{ message = "App not found" } end
    invalidate.send("app", app_key)
    return row
end

M.list = store.list
M.tenant = store.tenant
M.apps = store.apps
M.members = store.members

return M
