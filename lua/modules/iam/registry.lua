-- The registry: which modules there are, and which of them an app of a tenant has. A module is installed after all it needs
-- and taken out before what needs it; both checks hold the pair's rows, so that two requests cannot pass each other.
local json = require("core.json")
local pg = require("core.pg")
local time = require("core.time")
local uuid = require("core.uuid")
local audit = require("kasma.audit")
local db = require("kasma.db")
local errors = require("kasma.errors")
local invalidate = require("kasma.invalidate")
local null = require("kasma.null")

local M = {}

M.module_exists = errors.declare{ code = "module_exists", status = 409, message = "Module already exists" }
M.installed = errors.declare{ code = "module_installed", status = 409, message = "Module is already registered for this app and tenant" }

local MODULE = "id, key, name, description, dependencies, created_at, updated_at"
local REGISTRY = "id, app_family_key, tenant_key, module_key, version, is_active, created_at, updated_at"

local function module_view(row)
    return { id = row.id, key = row.key, name = row.name, description = row.description or null,
        dependencies = json.array(row.dependencies or {}),
        created_at = row.created_at, updated_at = row.updated_at }
end

---@return table[]
function M.modules()
    local list = json.array({})
    for i, row in ipairs(db.read(nil, "select " .. MODULE .. " from modules order by key limit 500")) do list[i] = module_view(row) end
    return list
end

local function dependencies_of_all(reader)
    local needs = {}
    for _, row in ipairs(reader("select key, dependencies from modules order by key limit 500")) do needs[row.key] = row.dependencies
        or {} end
    return needs
end

-- All that a module needs, near and far, sorted.
local function closure(needs, key)
    local seen, list = {}, {}
    local function visit(name)
        for _, dependency in ipairs(needs[name] or {}) do
            if not seen[dependency] then
                seen[dependency] = true
                list[#list + 1] = dependency
                visit(dependency)
            end
        end
    end
    visit(key)
    table.sort(list)
    return list
end

---@param scope Scope
---@param input {key: string, name: string, description: string|nil, dependencies: string[]|nil}
---@return table
function M.create_module(scope, input)
    local key, dependencies = input.key:lower(), {}
    local needs = dependencies_of_all(function(sql) return db.read(nil, sql) end)
    for i, name in ipairs(input.dependencies or {}) do
        dependencies[i] = name:lower()
        if dependencies[i] == key then errors.bad_request{ message = "A module cannot depend on itself", code = "module_cycle" } end
        if not needs[dependencies[i]] then errors.bad_request{ message = "Unknown dependency: " .. dependencies[i],
            code = "module_unknown" } end
    end
    local now = time.iso(time.now())
    local statements = { { "insert into modules (id, key, name, description, dependencies, created_at, updated_at) values ($1, $2, $3, $4, "
        .. "$5::text[], $6::timestamptz, $6::timestamptz) returning " .. MODULE, uuid.v7(), key, input.name, input.description or null,
        pg.array(dependencies), now } }
    audit.append(statements, scope, { action = "registry.modules.create", entity_type = "module", entity_id = key, after = input })
    return module_view(errors.unique({ modules_name = { code = M.module_exists.code, message = M.module_exists.message } }, db.pipeline,
        scope.tenant, statements)[1][1])
end

---@param tenant string
---@param app_family string|nil
---@return table[]
function M.list(tenant, app_family)
    local rows = db.read(tenant, "select " .. REGISTRY .. [[ from registries where tenant_key = $1 and ($2::text is null or
      app_family_key = $2)
      order by app_family_key, module_key limit 1000]], tenant, app_family or null)
    rows.affected = nil -- the answer of a statement is a list and a count; JSON takes the list alone
    return json.array(rows)
end

-- The active modules of a pair, whose rows are held until the transaction ends. Read by a statement of its own after the lock: the one
-- that waits for the lock does not see what was installed meanwhile.
local function held_rows(tx, tenant, family)
    tx:query("select 1 from registries where tenant_key = $1 and app_family_key = $2 order by id for update", tenant, family)
    local active = {}
    for _, row in ipairs(tx:query("select " .. REGISTRY .. " from registries where tenant_key = $1 and app_family_key = $2 and is_active",
        tenant, family)) do active[row.module_key] = row end
    return active
end

local function check_dependencies(needs, active, key)
    local missing = {}
    for _, name in ipairs(closure(needs, key)) do
        if not active[name] then missing[#missing + 1] = name end
    end
    if #missing > 0 then
        errors.bad_request{ message = ("Missing dependencies for module %s: %s"):format(key, table.concat(missing, ", ")),
            code = "module_dependencies", details = json.array(missing) }
    end
end

---@param scope Scope
---@param input {app_family_key: string, module_key: string, version: string|nil, is_active: boolean|nil}
---@return table
function M.install(scope, input)
    local key = input.module_key:lower()
    local row = errors.unique({ registries_module = { code = M.installed.code, message = M.installed.message } }, db.transaction,
        scope.tenant,
        function(tx)
            local needs = dependencies_of_all(function(sql) return tx:query(sql) end)
            if not needs[key] then errors.not_found("Module not found") end
            local active = held_rows(tx, scope.tenant, input.app_family_key)
            if input.is_active ~= false then check_dependencies(needs, active, key) end
            local made = tx:one("insert into registries (tenant_key, app_key, id, app_family_key, module_key, version, "
                .. "is_active, created_at, updated_at) "
                .. "values ($1, $2, $3, $4, $5, $6, $7, $8::timestamptz, $8::timestamptz) returning " .. REGISTRY, scope.tenant,
                    scope.app, uuid.v7(),
                input.app_family_key, key, input.version or "1.0.0", input.is_active ~= false, time.iso(time.now()))
            local statements = {}
            audit.append(statements, scope, { action = "registry.install", entity_type = "registry", entity_id = made.id, after = input })
            tx:at_commit(statements)
            return made
        end)
    invalidate.send("registry", scope.tenant)
    return row
end

---@param scope Scope
---@param id string
---@param input {version: string|nil, is_active: boolean|nil}
---@return table
function M.update(scope, id, input)
    local row = db.transaction(scope.tenant, function(tx)
        local found = tx:one("select " .. REGISTRY .. " from registries where tenant_key = $1 and id = $2", scope.tenant, id)
        if not found then errors.not_found("Registry not found") end
        local active = held_rows(tx, scope.tenant, found.app_family_key)
        local needs = dependencies_of_all(function(sql) return tx:query(sql) end)
        found.is_active = active[found.module_key] ~= nil
        if input.is_active == true and not found.is_active then check_dependencies(needs, active, found.module_key) end
        if input.is_active == false and found.is_active then
            local dependents = {}
            for name in pairs(active) do
                for _, needed in ipairs(closure(needs, name)) do
                    if needed == found.module_key then dependents[#dependents + 1] = name end
                end
            end
            if #dependents > 0 then
                table.sort(dependents)
                errors.bad_request{ message = ("Active modules depend on %s: %s"):format(found.module_key, table.concat(dependents, ", ")),
                    code = "module_dependents", details = json.array(dependents) }
            end
        end
        local changed = tx:one("update registries set version = coalesce($3, version), is_active = coalesce($4, is_active), "
            .. "updated_at = $5::timestamptz where tenant_key = $1 and id = $2 returning " .. REGISTRY, scope.tenant, id, input.version
                or null,
            input.is_active == nil and null or input.is_active, time.iso(time.now()))
        local statements = {}
        audit.append(statements, scope, { action = "registry.update", entity_type = "registry", entity_id = id, before = found,
            after = input })
        tx:at_commit(statements)
        return changed
    end)
    invalidate.send("registry", scope.tenant)
    return row
end

return M
