-- Stock as staff sees it: warehouses, adjustments and their movements. Selling goes through reservations.
local time = require("core.time")
local uuid = require("core.uuid")
local audit = require("kasma.audit")
local db = require("kasma.db")
local errors = require("kasma.errors")
local hooks = require("kasma.hooks")
local locks = require("kasma.locks")
local settings = require("kasma.settings")
local buffers = require("modules.inventory.buffers")
local events = require("modules.inventory.events")
local reservations = require("modules.inventory.reservations")
local store = require("modules.inventory.store")

local M = {}

---@param scope Scope
---@param input table body of warehouse/create
---@return table warehouse row
function M.create_warehouse(scope, input)
    local row = { tenant_key = scope.tenant, app_key = scope.app, id = uuid.v7(), now = time.iso(time.now()), name = input.name,
        code = input.code,
        address = input.address, city = input.city, region = input.region, zip_code = input.zipCode, country = input.country,
        capacity = input.capacity, manager_name = input.managerName, is_active = input.isActive ~= false }
    local statements = { store.insert_warehouse(row) }
    audit.append(statements, scope, { action = "WAREHOUSE_CREATED", entity_type = "warehouse", entity_id = row.id, after = input })
    return errors.unique({ warehouses_code = "code_taken" }, db.pipeline, scope.tenant, statements)[1][1]
end

M.warehouse = store.warehouse
M.active_warehouses = store.active_warehouses
M.list = store.list
M.levels = store.levels

--- The warehouse that takes initial stock: the setting, else the first by priority.
---@param tenant string
---@return string warehouse_id
function M.default_warehouse(tenant)
    local id = settings.get(tenant, "defaultWarehouseId")
    if id then return id end
    local first = store.active_warehouses(tenant)[1]
    if not first then errors.conflict{ message = "The tenant has no active warehouse", code = "no_warehouse" } end
    return first.id
end

-- One change of stock: the row, its movement and the shop window's copy, all in the caller's transaction.
local function append_change(statements, scope, c)
    c.tenant_key, c.app_key, c.now = scope.tenant, scope.app, time.iso(time.now())
    c.id, c.actor_id = uuid.v7(), scope.actor_id
    if c.delta > 0 then
        statements[#statements + 1] = store.ensure_row{ tenant_key = c.tenant_key, app_key = c.app_key, id = uuid.v7(), now = c.now,
            warehouse_id = c.warehouse_id, product_id = c.product_id, variant_id = c.variant_id }
    end
    statements[#statements + 1] = store.add_quantity(c)
    statements[#statements + 1] = store.insert_movement(c)
    if c.variant_id then statements[#statements + 1] = store.project_variant(scope.tenant, c.variant_id, c.now) end
end

--- Appends the statements of a RECEIVE movement into the tenant's default warehouse: the initial stock of a new variant.
---@param statements table[] the caller's pipeline
---@param scope Scope
---@param receipt { product_id: string, variant_id: string|nil, quantity: integer, reference: string }
function M.append_receipt(statements, scope, receipt)
    local change = { warehouse_id = M.default_warehouse(scope.tenant), product_id = receipt.product_id, variant_id = receipt.variant_id,
        delta = receipt.quantity, kind = "RECEIVE", reference = receipt.reference, ref_type = "initial",
        ref_id = receipt.variant_id or receipt.product_id, hops = scope.hops }
    append_change(statements, scope, change)
    statements[#statements + 1] = store.changed_event(change)
    if hooks.any(scope, buffers.HOOK) then statements[#statements + 1] = buffers.job(scope, { receipt.product_id }) end
end

--- What was sold of products has changed, or came back: a rule may want to hold back another number of units.
---@param scope Scope
---@param product_ids string[]
function M.sales_changed(scope, product_ids)
    if #product_ids > 0 and hooks.any(scope, buffers.HOOK) then buffers.refresh(scope, product_ids) end
end

--- Brings the shop window's stock of variants up to the stock rows.
---@param tenant string
---@param variant_ids string[]
function M.project(tenant, variant_ids)
    local statements, now = {}, time.iso(time.now())
    for i, id in ipairs(variant_ids) do statements[i] = store.project_variant(tenant, id, now) end
    if #statements > 0 then db.pipeline(tenant, statements) end
end

-- What was for sale of a row before its units on hand changed by delta: as the column available_quantity counts it.
local function available_before(row, delta)
    local on_hand = row.quantity - delta
    return on_hand + row.backorder_limit - row.reserved_quantity - row.buffer_quantity - math.floor((on_hand * row.buffer_pct + 99) / 100)
end

--- Tells of the stock rows of which orders have claimed units.
---@param claims table[] rows of the outbox
function M.tell_claims(claims)
    local by_tenant = {}
    for _, claim in ipairs(claims) do
        local list = by_tenant[claim.tenant_key] or {}
        by_tenant[claim.tenant_key] = list
        list[#list + 1] = claim
    end
    for tenant, list in pairs(by_tenant) do
        local ids = {}
        for _, claim in ipairs(list) do
            for _, id in ipairs(claim.payload.orders) do ids[#ids + 1] = id end
        end
        local told = events.told_claims(list, reservations.rows_of(tenant, ids))
        if #told > 0 then db.pipeline(tenant, told) end
    end
end

--- Corrects on-hand stock by hand.
---@param scope Scope
---@param input table warehouseId, productId, variantId, quantity (signed units, not 0), reason, reference
---@param shape fun(row: table): table how the row is answered
---@param complete fun(body: table): table the statement that completes the caller's idempotency record
---@return table body
function M.adjust(scope, input, shape, complete)
    if not store.warehouse(scope.tenant, input.warehouseId) then errors.not_found{ message = "Warehouse not found" } end
    local found, fits = store.subject_exists(scope.tenant, input.productId, input.variantId)
    if not found then errors.not_found{ message = "Product not found" } end
    if not fits then errors.bad_request{ message = "variantId is no variant of this product", code = "variant_mismatch" } end

    local statements = {}
    append_change(statements, scope, { warehouse_id = input.warehouseId, product_id = input.productId, variant_id = input.variantId,
        delta = input.quantity, kind = "ADJUST", reason = input.reason, reference = input.reference, ref_type = "adjust",
        ref_id = uuid.v7() })
    local answer = #statements + 1
    statements[answer] = store.select_row(scope.tenant, input.warehouseId, input.productId, input.variantId)
    audit.append(statements, scope, { action = "inventory.adjust", entity_type = "inventory", entity_id = input.productId, after = input })
    local own, facts = buffers.plain(scope), nil
    if hooks.any(own, buffers.HOOK) then
        local row = db.read(scope.tenant, unpack(store.select_row(scope.tenant, input.warehouseId, input.productId, input.variantId)))[1]
        facts = buffers.facts(own, { row or { product_id = input.productId, variant_id = input.variantId } })
    end
    -- The lock keeps a crowd off the row; what makes the stock right is the statement.
    local resource = ("inventory:%s:%s:%s"):format(input.warehouseId, input.productId, input.variantId or "-")
    return locks.eased(scope.tenant, { resource }, function()
        return errors.state({ KS004 = { status = 409, code = "stock_below_reserved",
            message = "The stock would go below what is reserved, or below zero" } }, db.transaction, scope.tenant, function(tx)
            local row = tx:pipeline(statements)[answer][1]
            local before = available_before(row, input.quantity)
            if facts then
                local _, changed = buffers.settle(tx, own, { row.id }, facts)
                row = changed[1] or row
            end
            local body, last = shape(row), { events.changed(scope, row, input.quantity, "ADJUST") }
            events.append_back(last, scope, row, before)
            last[#last + 1] = complete(body)
            tx:at_commit(last)
            return body
        end)
    end)
end

return M
