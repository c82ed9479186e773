-- Promotions of a tenant: what a merchant declares without a script. How they compete and what they take off is core/commerce.
local time = require("core.time")
local uuid = require("core.uuid")
local audit = require("kasma.audit")
local bundles = require("modules.bundles.service")
local catalog = require("modules.catalog.service")
local db = require("kasma.db")
local due = require("kasma.due")
local errors = require("kasma.errors")
local store = require("modules.promotions.store")
local tenants = require("kasma.tenant")
local window = require("modules.promotions.window")

local M = {}

M.running = store.running
M.given = store.given
M.set_script_state = store.set_script_state

M.script_row = errors.declare{ code = "script_row", status = 409, message = "The promotion follows a rule",
    cause = "its name, priority and state are the rule's", cure = "publish, disable or enable the rule" }
M.version_conflict = errors.declare{ code = "version_conflict", status = 409, message = "The promotion was changed by somebody else",
    cause = "version is not the newest", cure = "read the promotion again" }

--- Statement that keeps a rule's row in step with the version that goes live.
---@param scope Scope
---@param rule { id: string, name: string, priority: integer }
---@param now string
---@return table
function M.put_script(scope, rule, now)
    return store.put_script{ tenant_key = scope.tenant, app_key = scope.app, id = rule.id, name = rule.name, priority = rule.priority,
        currency = tenants.currency(scope.tenant), now = now }
end
M.used_by = store.used_by
M.list = store.list

--- The published client collection's words beside ours, in any case.
local TYPES = { discount = { "discount" }, b1g1 = { "b1g1" }, bogo = { "b1g1" }, flash_sale = { "flash_sale" },
    free_shipping = { "free_shipping" }, percentage = { "discount", "percent" }, fixed_amount = { "discount", "fixed" } }

--- Percent with up to two decimals to basis points, exactly; 400 above 100.
local function bps(value)
    local whole, digits = tostring(value):match("^(%d+)%.?(%d*)$")
    local n = whole and #digits <= 2 and tonumber(whole) * 100 + tonumber((digits .. "00"):sub(1, 2))
    if not n or n > 10000 then
        errors.bad_request{ message = { "value must be a percentage from 0 to 100 with at most 2 decimals" }, code = "percent_range" }
    end
    return n
end

--- What a value without valueType means (R20): only a plain discount or flash sale is guessed by its size.
local function value_type(kind, said, value)
    if said then return said end
    if kind == "b1g1" or kind == "free_shipping" then return "percent" end
    return tonumber(value) <= 100 and "percent" or "fixed"
end

--- A promotion on what is not there, or is another tenant's, would never apply: 400.
local function check_targets(tenant, kind, ids)
    local there = {}
    local found = kind == "bundle" and bundles.existing(tenant, ids) or catalog.existing(tenant, kind, ids)
    for _, id in ipairs(found) do there[id] = true end
    for _, id in ipairs(ids) do
        if not there[id:lower()] then
            errors.bad_request{ message = { ("targetIds names no %s of the tenant"):format(kind) }, code = "target_unknown" }
        end
    end
end

---@param scope Scope
---@param input table the body of /promotions/create, aliases resolved by the schema
---@return table promotion row
function M.create(scope, input)
    local known = TYPES[input.type:lower()]
    if not known then
        errors.bad_request{ message = { "type must be one of the following values: discount, b1g1, flash_sale, free_shipping" } }
    end
    local kind = known[1]
    local meaning = value_type(kind, known[2] or input.valueType, input.value)
    local currency = input.currency or tenants.currency(scope.tenant)
    local value
    if kind == "b1g1" and meaning == "percent" and tonumber(input.value) <= 1 then
        value = 10000 -- "buy one get one" with 0 or 1: the other is free
    elseif meaning == "percent" then
        value = bps(input.value)
    else
        value = catalog.price("value", input.value, currency)
    end
    if input.startDate and input.endDate and time.parse(input.endDate) <= time.parse(input.startDate) then
        errors.bad_request{ message = { "endDate must be after startDate" }, code = "window" }
    end
    if kind == "flash_sale" and not (input.startDate and input.endDate) then
        errors.bad_request{ message = { "startDate and endDate should not be empty for a flash sale" }, code = "window" }
    end
    local targets = input.targetIds or (input.targetId and { input.targetId }) or {}
    local applicable = input.applicableTo and input.applicableTo:lower() or "all"
    if applicable ~= "all" and #targets == 0 then
        errors.bad_request{ message = { "targetIds should not be empty unless applicableTo is all" }, code = "targets_required" }
    end
    if applicable == "all" then targets = {} else check_targets(scope.tenant, applicable, targets) end
    if #(input.tierIds or {}) > 0 then -- no tenant has loyalty tiers, so no id can name one
        errors.bad_request{ message = { "tierIds names no tier of the tenant" }, code = "tier_unknown" }
    end
    local level = kind == "free_shipping" and "shipping" or kind ~= "discount" and "line" or input.level
        or (applicable == "all" and "order" or "line")
    local now_ms = time.now()
    local row = { tenant_key = scope.tenant, app_key = scope.app, id = uuid.v7(), now = time.iso(now_ms), name = input.name,
        description = input.description, slug = input.slug, type = kind, value = value, value_type = meaning, currency = currency,
        applicable_to = applicable, target_ids = targets, level = level,
        min_order_value_minor = catalog.price("minOrderValue", input.minOrderValue, currency) or 0, min_quantity = input.minQuantity or 0,
        max_discount_minor = catalog.price("maxDiscount", input.maxDiscount, currency) or 0, buy_qty = input.buyQty or 1,
        get_qty = input.getQty or 1, get_discount_bps = input.getDiscountBps or (kind == "b1g1" and value or 10000),
        scope = input.scope or "same_product", priority = input.priority or 0, stackable = input.stackable == true,
        exclusive = input.exclusive == true, stop_after = input.stopAfter == true, include_bundled = input.includeBundled == true,
        exclusion_group = input.exclusionGroup, customer_groups = input.customerGroups or {}, tier_ids = {},
        first_order_only = input.firstOrderOnly == true, weekdays = input.weekdays or {}, hours_from = input.hoursFrom,
        hours_to = input.hoursTo, usage_limit = input.usageLimit or 0, per_customer_limit = input.perCustomerLimit or 0,
        budget_minor = catalog.price("budget", input.budget, currency) or 0, max_units = input.maxUnits or 0,
        max_units_per_customer = input.maxUnitsPerCustomer or 0, start_date = input.startDate, end_date = input.endDate,
        is_active = input.isActive ~= false, is_public = input.isPublic ~= false }
    local statements = { store.insert(row) }
    window.append_act(statements, false, row, now_ms)
    statements[#statements + 1] = window.wait(row, now_ms)
    audit.append(statements, scope, { action = "PROMOTION_CREATED", entity_type = "promotion", entity_id = row.id, after = input })
    return errors.unique({ promotions_slug = "slug_taken" }, db.pipeline, scope.tenant, statements)[1][1]
end

---@param scope Scope
---@param id string
---@param public_only boolean a shopper sees the public ones that run now
---@return table promotion row
function M.details(scope, id, public_only)
    local row = store.promotion(scope.tenant, id)
    local hidden = row and public_only and not (row.is_public and window.is_running(row, time.now()))
    if not row or hidden then errors.not_found{ message = "Promotion not found" } end
    return row
end

-- Members of a change that are columns as they stand.
local PLAIN = { name = "name", description = "description", priority = "priority", stackable = "stackable", exclusive = "exclusive",
    stopAfter = "stop_after", includeBundled = "include_bundled", exclusionGroup = "exclusion_group", customerGroups = "customer_groups",
    firstOrderOnly = "first_order_only", weekdays = "weekdays", hoursFrom = "hours_from", hoursTo = "hours_to",
    usageLimit = "usage_limit", perCustomerLimit = "per_customer_limit", minQuantity = "min_quantity", maxUnits = "max_units",
    maxUnitsPerCustomer = "max_units_per_customer", startDate = "start_date", endDate = "end_date", isActive = "is_active",
    isPublic = "is_public" }
local AMOUNTS = { minOrderValue = "min_order_value_minor", maxDiscount = "max_discount_minor", budget = "budget_minor" }
local THE_RULES = { "name", "priority", "isActive", "value", "stackable", "exclusive", "stopAfter", "includeBundled", "exclusionGroup",
    "maxUnits", "maxUnitsPerCustomer" }

local function below_used(field)
    errors.bad_request{ message = { field .. " must not be less than what was used" }, code = "limit_below_used" }
end

--- Puts a change into a row.
local function merge(row, input)
    if row.type == "script" then
        for _, name in ipairs(THE_RULES) do
            if input[name] ~= nil then M.script_row{ details = { field = name, ruleId = row.id } } end
        end
    end
    for name, column in pairs(PLAIN) do
        if input[name] ~= nil then row[column] = input[name] end
    end
    for name, column in pairs(AMOUNTS) do
        if input[name] ~= nil then row[column] = catalog.price(name, input[name], row.currency) end
    end
    if input.value ~= nil then
        if row.type == "b1g1" then
            errors.bad_request{ message = { "value of a b1g1 promotion is not changed; make another one" }, code = "value_fixed" }
        end
        row.value = row.value_type == "percent" and bps(input.value) or catalog.price("value", input.value, row.currency)
    end
    if row.start_date and row.end_date and time.parse(row.end_date) <= time.parse(row.start_date) then
        errors.bad_request{ message = { "endDate must be after startDate" }, code = "window" }
    end
    if row.usage_limit > 0 and row.usage_limit < row.used_count then below_used("usageLimit") end
    if row.budget_minor > 0 and row.budget_minor < row.budget_used_minor then below_used("budget") end
    if row.max_units > 0 and row.max_units < row.units_used then below_used("maxUnits") end
end

---@param scope Scope
---@param input table id, version, and what changes
---@return table promotion row
function M.update(scope, input)
    local row
    db.transaction(scope.tenant, function(tx)
        row = store.lock(tx, scope.tenant, input.id)
        if not row then errors.not_found{ message = "Promotion not found" } end
        if input.version and input.version ~= row.version then M.version_conflict() end
        local now_ms, last = time.now(), {}
        local was = window.is_running(row, now_ms)
        window.append_passed(last, row, now_ms)
        merge(row, input)
        row = tx:pipeline{ store.update(row, time.iso(now_ms)) }[1][1]
        window.append_act(last, was, row, now_ms)
        last[#last + 1] = window.wait(row, now_ms)
        audit.append(last, scope, { action = "PROMOTION_UPDATED", entity_type = "promotion", entity_id = input.id, after = input })
        tx:at_commit(last)
    end)
    return row
end

---@param scope Scope
---@param id string
function M.remove(scope, id)
    db.transaction(scope.tenant, function(tx)
        local row = store.lock(tx, scope.tenant, id)
        if not row then errors.not_found{ message = "Promotion not found" } end
        if row.type == "script" then M.script_row{ details = { ruleId = id } } end
        local now_ms, last = time.now(), {}
        local was = window.is_running(row, now_ms)
        last[1] = store.switch_off(scope.tenant, id, time.iso(now_ms))
        window.append_passed(last, row, now_ms)
        row.is_active = false
        window.append_act(last, was, row, now_ms)
        last[#last + 1] = window.wait(row, now_ms)
        audit.append(last, scope, { action = "PROMOTION_REMOVED", entity_type = "promotion", entity_id = id })
        tx:at_commit(last)
    end)
end

--- Tells the beginning or end of a promotion that has come. Finds nothing to tell when it comes again.
---@param tenant string
---@param id string
function M.on_window(tenant, id)
    db.transaction(tenant, function(tx)
        local row = store.lock(tx, tenant, id)
        if not row then return tx:at_commit{ due.drop(tenant, window.KIND, id) } end
        local now_ms = time.now()
        local last = { store.put_told(tenant, id, time.iso(now_ms)) }
        window.append_passed(last, row, now_ms)
        last[#last + 1] = window.wait(row, now_ms)
        tx:at_commit(last)
    end)
end

return M
