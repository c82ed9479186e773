-- Bundles: several products sold together at a price of their own.
local time = require("core.time")
local uuid = require("core.uuid")
local audit = require("kasma.audit")
local catalog = require("modules.catalog.service")
local db = require("kasma.db")
local errors = require("kasma.errors")
local store = require("modules.bundles.store")
local tenants = require("kasma.tenant")

local M = {}

local EXACT_MAX = 2 ^ 53 -- minor units that a number says exactly; a sum above it is told to nobody

M.existing = store.existing

local function unit_price(product, variant)
    local priced = variant or product
    return priced.sale_price_minor > 0 and priced.sale_price_minor or priced.price_minor
end

--- Bundles with items, each with its product and variant, and what the parts would cost (nil: more than can be said).
local function assembled(scope, bundles)
    local ids, by_id = {}, {}
    for i, b in ipairs(bundles) do
        ids[i], by_id[b.id] = b.id, b
        b.items, b.components_total_minor = {}, 0
    end
    local items = store.items(scope.tenant, ids)
    local product_ids = {}
    for _, item in ipairs(items) do product_ids[#product_ids + 1] = item.product_id end
    local products = catalog.products_by_id(scope.tenant, product_ids)
    for _, item in ipairs(items) do
        local b, product = by_id[item.bundle_id], products[item.product_id]
        item.product = product
        for _, v in ipairs(product and product.variants or {}) do
            if v.id == item.variant_id then item.variant = v end
        end
        if product then
            b.components_total_minor = b.components_total_minor + unit_price(product, item.variant) * item.quantity
        end
        table.insert(b.items, item)
    end
    for _, b in ipairs(bundles) do
        if b.components_total_minor > EXACT_MAX then b.components_total_minor = nil end
        b.saving_minor = b.components_total_minor and math.max(b.components_total_minor - b.price_minor, 0)
    end
    return bundles
end

---@param scope Scope
---@param input table name, description, price, items[{productId, variantId, quantity}], ...
---@return table bundle with items
function M.create(scope, input)
    local currency = input.currency or tenants.currency(scope.tenant)
    local now = time.iso(time.now())
    local items = input.items
    if not items then
        items = {}
        for i, id in ipairs(input.productIds or {}) do items[i] = { productId = id, quantity = 1 } end
    end
    if #items == 0 then errors.bad_request{ message = { "items should not be empty" } } end
    if not input.price then errors.bad_request{ message = { "price should not be empty" } } end

    local ids = {}
    for i, item in ipairs(items) do ids[i] = item.productId end
    local products, total = catalog.products_by_id(scope.tenant, ids), 0
    for _, item in ipairs(items) do
        local product, variant = products[item.productId], nil
        if not product then errors.not_found{ message = "Product not found" } end
        if item.variantId then
            for _, v in ipairs(product.variants) do
                if v.id == item.variantId then variant = v end
            end
            if not variant and not catalog.variant_exists(scope.tenant, item.variantId) then
                errors.not_found{ message = "Variant not found" }
            end
            if not variant then errors.conflict{ message = "variantId is no variant of this product", code = "variant_mismatch" } end
        end
        total = total + unit_price(product, variant) * item.quantity
    end
    if total > EXACT_MAX then
        errors.bad_request{ message = { "items cost more together than an amount can be" }, code = "money_range" }
    end

    local row = { tenant_key = scope.tenant, app_key = scope.app, id = uuid.v7(), now = now, name = input.name,
        description = input.description,
        slug = input.slug, price_minor = catalog.price("price", input.price, currency), currency = currency,
        is_active = input.isActive ~= false, start_date = input.startDate, end_date = input.endDate, auto_apply = input.autoApply == true,
        max_per_order = input.maxPerOrder or 0, pricing = input.pricing or "fixed", percent_off_bps = input.percentOffBps or 0 }
    local statements = { store.insert(row) }
    for _, item in ipairs(items) do
        statements[#statements + 1] = store.insert_item{ tenant_key = scope.tenant, app_key = scope.app, id = uuid.v7(), bundle_id = row.id,
            product_id = item.productId, variant_id = item.variantId, quantity = item.quantity or 1, now = now }
    end
    audit.append(statements, scope, { action = "BUNDLE_CREATED", entity_type = "bundle", entity_id = row.id, after = input })
    local answers = errors.unique({ product_bundles_slug = "slug_taken", product_bundle_items_once = "duplicate_item" },
        db.pipeline, scope.tenant, statements)
    return assembled(scope, { answers[1][1] })[1]
end

---@param scope Scope
---@param see_all boolean staff sees the inactive ones too
---@param limit integer
---@param offset integer
---@return table[] bundles with items, newest first
function M.list(scope, see_all, limit, offset)
    return assembled(scope, store.list(scope.tenant, { active_at = not see_all and time.iso(time.now()) or nil, limit = limit,
        offset = offset }))
end

---@param scope Scope
---@param ids string[]
---@return table<string, table> bundles with items, by id
function M.by_id(scope, ids)
    local found = {}
    for _, b in ipairs(assembled(scope, store.by_id(scope.tenant, ids))) do found[b.id] = b end
    return found
end

return M
