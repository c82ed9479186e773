-- What is held back of a stock row: what a rule of the shop says (stock.buffer), else the stored buffer.
--
-- The buffer stands in the row itself, and the row's available units are made from it by the database. So whoever looks at stock, the
-- shop window, a cart or a hold, sees it without asking anything, and a shop without such a rule pays nothing. It is made anew when its
-- reasons change: the stock by hand, an order (what was sold), a rule that goes live or ends, and every hour for the rest. A buffer
-- breaks no promise: units that are held already stay held.
local time = require("core.time")
local sched = require("core.sched")
local db = require("kasma.db")
local due = require("kasma.due")
local hooks = require("kasma.hooks")
local outbox = require("kasma.outbox")
local tenants = require("kasma.tenant")
local events = require("modules.inventory.events")
local store = require("modules.inventory.store")

local M = {}

M.HOOK, M.KIND, M.QUEUE, M.JOB = "stock.buffer", "stock.buffer_rule", "logistics-queue", "stock-buffers"
local ROUND = "00000000-0000-7000-8000-000000000001" -- the tenant's one row of that kind
local PAGE, REST_MS = 50, 5 -- rows that one transaction locks, and the pause between two
local SOLD_MS, HOUR_MS = 30 * 86400000, 3600000
local SETTLE_MS = 2000 -- after a change of the rules: by then every process holds the new ones
local UNITS_MAX = 20000000 -- what a stock row can hold

-- The catalogue's service calls this module's.
local function catalogue() return require("modules.catalog.service") end

local function item_of(row) return row.product_id .. ":" .. (row.variant_id or "-") end

--- What the rule is told of the products of some rows: by item.
local function products_of(tenant, rows)
    local ids, seen = {}, {}
    for _, row in ipairs(rows) do
        if not seen[row.product_id] then
            seen[row.product_id] = true
            ids[#ids + 1] = row.product_id
        end
    end
    local products, tags, told = catalogue().products_by_id(tenant, ids), catalogue().tag_ids(tenant, ids), {}
    for _, row in ipairs(rows) do
        local product, sku = products[row.product_id] or {}, nil
        for _, variant in ipairs(row.variant_id and product.variants or {}) do
            if variant.id == row.variant_id then sku = variant.sku end
        end
        local categories = {}
        for id in (product.category and product.category.path or ""):gmatch("[^/]+") do categories[#categories + 1] = id end
        told[item_of(row)] = { id = row.product_id, variant_id = row.variant_id, sku = sku or product.code, name = product.name,
            vendor_id = product.vendor_id, category_ids = categories, tag_ids = tags[row.product_id] or {} }
    end
    return told
end

--- The stored buffer of a row: the rule of its item and place that is the most exact one.
local function stored_of(row, stored)
    local best, rank
    for _, rule in ipairs(stored) do
        local fits = rule.product_id == row.product_id and (not rule.variant_id or rule.variant_id == row.variant_id)
            and (not rule.warehouse_id or rule.warehouse_id == row.warehouse_id)
        local exact = (rule.variant_id and 2 or 0) + (rule.warehouse_id and 1 or 0)
        if fits and (not rank or exact > rank) then best, rank = rule, exact end
    end
    return best and best.buffer_quantity or 0, best and best.buffer_percent or 0
end

--- What a row holds back from now on; nil: as it is, since a rule failed without which nothing is to change.
local function wanted(row, facts)
    if facts.held then
        local units, info = hooks.call(facts.held, M.HOOK, { product = facts.products[item_of(row)], warehouse_id = row.warehouse_id,
            quantity = row.quantity, sales_30d = facts.sold[row.id] or 0 })
        if units then return units, 0 end
        if info and info.blocked then return nil end
    end
    return stored_of(row, facts.stored)
end

--- What asks rules for a buffer: those that are live, never a draft that the request tries.
---@param scope Scope
---@return Scope
function M.plain(scope) return { tenant = scope.tenant, app = scope.app, actor_kind = "system" } end

--- What decides buffers, and the rules that are asked, read before a transaction begins: one that held a connection and waited for
--- another might wait for ever.
---@param scope Scope
---@param rows table[] product_id, variant_id, and id where the row stands already
---@return table facts for settle
function M.facts(scope, rows)
    local ids, product_ids = {}, {}
    for i, row in ipairs(rows) do ids[#ids + 1], product_ids[i] = row.id, row.product_id end
    local now = time.now()
    local facts = { stored = store.stored_buffers(scope.tenant, product_ids, time.iso(now)) }
    if hooks.any(scope, M.HOOK) then
        facts.held = M.plain(scope)
        facts.held.rule_set = hooks.pin(scope)
        tenants.by_key(scope.tenant)
        facts.products, facts.sold = products_of(scope.tenant, rows), {}
        for _, row in ipairs(store.sold_since(scope.tenant, ids, time.iso(now - SOLD_MS))) do facts.sold[row.inventory_id] = row.units end
    end
    return facts
end

--- Brings the buffers of rows up to date in the caller's transaction, and the shop window with them.
---@param tx kasma.Tx
---@param scope Scope
---@param ids string[] stock rows
---@param facts table of M.facts, for these rows
---@return boolean changed
---@return table[] rows that changed, as they are now, with before: what was available
function M.settle(tx, scope, ids, facts)
    local statements, variants, before, now = {}, {}, {}, time.iso(time.now())
    for _, row in ipairs(tx:query(unpack(store.lock_rows(scope.tenant, ids)))) do
        local units, percent = wanted(row, facts)
        if units and (units ~= row.buffer_quantity or percent ~= row.buffer_pct) then
            before[#before + 1] = row.available_quantity
            statements[#before] = store.set_buffer(scope.tenant, row.id, math.min(units, UNITS_MAX), percent, now)
            if row.variant_id then variants[row.variant_id] = true end
        end
    end
    local rows = {}
    if #before == 0 then return false, rows end
    for id in pairs(variants) do statements[#statements + 1] = store.project_variant(scope.tenant, id, now) end
    local answers = tx:pipeline(statements)
    for i, available in ipairs(before) do
        rows[i] = answers[i][1]
        rows[i].before = available
    end
    return true, rows
end

--- Brings buffers up to date, a page of rows in a transaction each.
---@param scope Scope
---@param product_ids string[]|nil nil: of all products
---@return integer rows looked at
function M.refresh(scope, product_ids)
    local after, looked = nil, 0
    repeat
        local rows = store.rows_after(scope.tenant, product_ids, after, PAGE)
        if #rows > 0 then
            local ids, facts = {}, M.facts(scope, rows)
            for i, row in ipairs(rows) do ids[i] = row.id end
            db.transaction(scope.tenant, function(tx)
                local _, changed = M.settle(tx, scope, ids, facts)
                local told = {}
                for _, row in ipairs(changed) do events.append_back(told, scope, row, row.before) end
                if #told > 0 then tx:at_commit(told) end
            end)
            after, looked = ids[#ids], looked + #rows
            if #rows == PAGE then sched.sleep(REST_MS) end
        end
    until #rows < PAGE
    return looked
end

--- Statement: buffers of some products are brought up to date once this is committed. Only where a rule may be asked.
---@param scope Scope
---@param product_ids string[]|nil nil: of all products
---@return table statement
function M.job(scope, product_ids)
    return outbox.job(scope, M.QUEUE, M.JOB, { tenant_key = scope.tenant, app_key = scope.app, products = product_ids },
        { removeOnComplete = true })
end

hooks.on_switch(M.HOOK, function(scope) return due.put(scope, M.KIND, ROUND, time.now() + SETTLE_MS) end)

--- The hourly round of a shop with a rule, and the one that gives the rows their stored buffers back when it has none any more.
---@param tenant string
---@param id string
---@param due_at string ISO
function M.on_due(tenant, id, due_at)
    local scope = M.plain{ tenant = tenant, app = "MASTER" }
    local next_round = hooks.any(scope, M.HOOK) and due.claim(tenant, M.KIND, id, due_at, time.iso(time.now() + HOUR_MS))
        or due.drop_read(tenant, M.KIND, id, due_at)
    db.pipeline(tenant, { next_round, M.job(scope) })
end

return M
