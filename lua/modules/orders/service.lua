-- Orders after they are placed: reading them, what a payment service reports about them, and their expiry.
local crypto = require("core.crypto")
local json = require("core.json")
local money = require("core.money")
local time = require("core.time")
local uuid = require("core.uuid")
local audit = require("kasma.audit")
local db = require("kasma.db")
local due = require("kasma.due")
local errors = require("kasma.errors")
local log = require("kasma.log")
local outbox = require("kasma.outbox")
local order_events = require("modules.orders.events")
local payments = require("modules.payments.service")
local reservations = require("modules.inventory.reservations")
local stock_events = require("modules.inventory.events")
local store = require("modules.orders.store")
local workflow = require("modules.orders.workflow")

local M = {}

local SYSTEM = { kind = "system" }
local ASKED_AGAIN_MS = 3600000 -- an order whose end a rule refused waits so long before its end is tried again

M.transition_not_allowed = errors.declare{ code = "transition_not_allowed", status = 409, message = "The order cannot change so",
    cause = "its state does not lead there, or a rule of the shop refused (details.reason)", cure = "see the order's events" }
M.payment_required = errors.declare{ code = "payment_required", status = 409, message = "The order is not paid",
    cause = "it waits for an online payment", cure = "wait for the payment" }

local function with_items(tenant, orders)
    local ids, by_id = {}, {}
    for i, order in ipairs(orders) do
        ids[i], by_id[order.id] = order.id, order
        order.items = {}
    end
    for _, item in ipairs(store.items(tenant, ids)) do table.insert(by_id[item.order_id].items, item) end
    return orders
end

---@param scope Scope
---@param user_id string
---@param filter { status: string|nil, limit: integer, offset: integer }
---@return table[] orders with items, newest first
function M.of_user(scope, user_id, filter)
    return with_items(scope.tenant, store.of_user(scope.tenant, user_id, filter.status, filter.limit, filter.offset))
end

--- Where a user had their newest order sent, as they wrote it; nil when they have none.
---@param tenant string
---@param user_id string
---@return table|string|nil
function M.last_address(tenant, user_id)
    local order = store.of_user(tenant, user_id, nil, 1, 0)[1]
    return order and order.shipping_address ~= json.null and order.shipping_address or nil
end

---@param scope Scope
---@param id string
---@param user_id string|nil only the order of this user; nil: staff
---@return table order with items, adjustments, events, payments, allocation
function M.details(scope, id, user_id)
    local order = store.order(scope.tenant, id)
    if not order or (user_id and order.user_id ~= user_id) then errors.not_found{ message = "Order not found" } end
    with_items(scope.tenant, { order })
    order.adjustments, order.events, order.payments = store.beside(scope.tenant, id)
    order.allocation = reservations.of_order(scope.tenant, id)
    return order
end

-- What a payment service reports -------------------------------------------------------------------------------------------------------

local PAID = { SUCCESS = true, COMPLETED = true }
local FAILED = { FAILED = "FAILED", EXPIRED = "EXPIRED", CANCELLED = "CANCELLED", DECLINED = "FAILED" }
local TAKEN = { CAPTURED = true, PARTIALLY_REFUNDED = true, REFUNDED = true, DISPUTED = true, CHARGED_BACK = true }
local OPEN_PAYMENT = { CREATED = true, PENDING = true, AUTHORIZED = true }

--- Minor units of an amount in a report; nil when it says none.
local function reported_amount(input, currency)
    if input.amountMinor then return input.amountMinor end
    if input.amount == nil then return nil end
    local minor = money.parse(input.amount, currency)
    return minor or -1 -- what cannot be an amount of this currency matches none
end

local function mark_review(tx, tenant, orders, payment, input, reason, now, received)
    for _, order in ipairs(orders) do
        tx:pipeline{
            store.move{ tenant_key = tenant, id = order.id, status = order.status, payment_status = "review",
                paid_minor = received and order.amount_due_minor or order.paid_total_minor, keep_expiry = true, now = now },
            store.insert_event{ tenant_key = tenant, app_key = order.app_key, id = uuid.v7(), order_id = order.id, type = "payment_review",
                from_status = order.status, to_status = order.status, actor_kind = "system", reason = reason, now = now },
        }
    end
    tx:pipeline(order_events.payment(tenant, orders, "order.payment_review", payment, input, reason))
    log.warn("payment needs a look", { tenant = tenant, order = orders[1].id, reason = reason })
end

--- Money that came when its orders were given up, or their stock was: it is booked, and staff looks at it unless `revive` succeeds.
local function apply_late(tx, tenant, orders, payment, input, now)
    local list = payments.move_statements(payment, { status = "CAPTURED", transaction_id = input.transactionId,
        reason = "paid_after_expiry", now = now })
    list[#list + 1] = store.move_tenders(tenant, payment.checkout_id, "held", "captured", now)
    list[#list + 1] = store.move_tenders(tenant, payment.checkout_id, "released", "captured", now)
    tx:pipeline(list)
    mark_review(tx, tenant, orders, payment, input, "paid_after_expiry", now, true)
    return { applied = false, reason = "paid_after_expiry" }
end

local function after_payment(order) return order.status == "pending" and "processing" or order.status end

--- A verified success: the payment is captured and every order of the checkout is paid, in one transaction. A rule may keep an order from
--- going on: it is paid all the same, holds its stock, and waits for staff.
local function apply_paid(tx, tenant, orders, payment, input, held, now)
    local ids = {}
    for i, order in ipairs(orders) do
        ids[i] = order.id
        if order.status == "cancelled" then return apply_late(tx, tenant, orders, payment, input, now) end
    end
    tx:query(unpack(reservations.confirm_statement(tenant, ids)))
    -- A hold of a checkout ends for all its rows at once: what is not confirmed now was late.
    if reservations.any_lapsed(tx, tenant, ids) then return apply_late(tx, tenant, orders, payment, input, now) end
    local list = payments.move_statements(payment, { status = "CAPTURED", transaction_id = input.transactionId, now = now })
    local verdicts = workflow.ask_all(tx, held, orders, after_payment, SYSTEM)
    local function to(order) return verdicts[order.id].allow and after_payment(order) or order.status end
    for _, order in ipairs(orders) do
        local verdict = verdicts[order.id]
        list[#list + 1] = store.move{ tenant_key = tenant, id = order.id, status = to(order), payment_status = "paid",
            paid_minor = order.amount_due_minor, paid_at = now, workflow_state = verdict.workflow_state, now = now }
        list[#list + 1] = store.insert_event{ tenant_key = tenant, app_key = order.app_key, id = uuid.v7(), order_id = order.id,
            type = "paid", from_status = order.status, to_status = to(order), actor_kind = "system", reason = input.status, now = now }
        workflow.append(list, order, after_payment(order), verdict, now)
    end
    list[#list + 1] = store.move_tenders(tenant, payment.checkout_id, "held", "captured", now)
    list[#list + 1] = due.drop(tenant, "sales.checkout", payment.checkout_id)
    for _, event in ipairs(order_events.paid(tenant, store.items_in(tx, tenant, orders), to)) do list[#list + 1] = event end
    tx:pipeline(list)
    return { applied = true }
end

local function apply_failed(tx, tenant, orders, payment, input, now)
    local list = {}
    if OPEN_PAYMENT[payment.status] then
        list = payments.move_statements(payment, { status = FAILED[input.status:upper()], transaction_id = input.transactionId,
            reason = input.status, now = now })
    end
    local touched = {}
    for _, order in ipairs(orders) do
        if order.payment_status == "unpaid" or order.payment_status == "authorized" then
            touched[#touched + 1] = order
            list[#list + 1] = store.move{ tenant_key = tenant, id = order.id, status = order.status, payment_status = "failed",
                paid_minor = order.paid_total_minor, keep_expiry = true, now = now }
        end
    end
    if #touched == 0 then return { applied = false, reason = "not_applicable" } end
    local told = order_events.payment(tenant, touched, "order.payment_failed", payment, input, input.status)
    for _, event in ipairs(told) do list[#list + 1] = event end
    tx:pipeline(list)
    return { applied = true }
end

--- What a report does to the checkout, decided under the locks of its payments and orders.
local function apply(tx, tenant, checkout_id, input, held, now)
    local rows = payments.lock(tx, tenant, checkout_id)
    local orders = store.lock_checkout(tx, tenant, checkout_id)
    local payment = rows[1]
    if not payment then return { applied = false, reason = "no_payment" } end
    local word = input.status:upper()
    if PAID[word] then
        if TAKEN[payment.status] then return { applied = false, reason = "already_paid" } end
        if input.provider:upper() ~= payment.provider then return { applied = false, reason = "provider_mismatch" } end
        local amount = reported_amount(input, payment.currency_code)
        if input.currency and input.currency:upper() ~= payment.currency_code then
            mark_review(tx, tenant, orders, payment, input, "currency_mismatch", now)
            return { applied = false, reason = "currency_mismatch" }
        end
        if amount and amount ~= payment.amount_minor then
            mark_review(tx, tenant, orders, payment, input, "amount_mismatch", now)
            return { applied = false, reason = "amount_mismatch" }
        end
        return apply_paid(tx, tenant, orders, payment, input, held, now)
    end
    if FAILED[word] then return apply_failed(tx, tenant, orders, payment, input, now) end
    log.warn("a payment service reports an unknown status", { tenant = tenant, order = orders[1].id, status = word })
    return { applied = false, reason = "unknown_status" }
end

local function revived() return "processing" end

--- Stock, promotions and orders of a late payment, in one transaction; KS001 or KS011 when something of it is gone. Nil when the orders
--- do not wait for that any more, or a rule keeps one of them from it: they wait for staff.
local function take_again(tx, scope, checkout_id, event_id, claims, held, now)
    local tenant = scope.tenant
    payments.lock(tx, tenant, checkout_id)
    local orders = store.lock_checkout(tx, tenant, checkout_id)
    for _, order in ipairs(orders) do
        if order.status ~= "cancelled" or order.payment_status ~= "review" then return nil end
    end
    local verdicts, list = workflow.ask_all(tx, held, orders, revived, SYSTEM), {}
    for _, order in ipairs(orders) do
        if not verdicts[order.id].allow then workflow.append(list, order, "processing", verdicts[order.id], now) end
    end
    if #list > 0 then
        tx:pipeline(list)
        return nil
    end
    list = #claims > 0 and reservations.claim_statements(tenant, event_id, claims, nil) or {}
    local ids = {}
    for i, order in ipairs(orders) do ids[i] = order.id end
    for _, use in ipairs(store.lock_released_promotions(tx, tenant, checkout_id)) do
        list[#list + 1] = store.use_promotion(tenant, use, now)
        if use.customer_key then list[#list + 1] = store.check_customer_use(tenant, use, use.customer_key) end
    end
    list[#list + 1] = store.reserve_promotions(tenant, checkout_id, now)
    for _, order in ipairs(orders) do
        list[#list + 1] = store.revive(tenant, order.id, verdicts[order.id].workflow_state, now)
        workflow.append(list, order, "processing", verdicts[order.id], now)
        list[#list + 1] = store.insert_event{ tenant_key = tenant, app_key = order.app_key, id = uuid.v7(), order_id = order.id,
            type = "paid", from_status = "cancelled", to_status = "processing", actor_kind = "system", reason = "late_payment", now = now }
    end
    local result = { applied = true }
    list[#list + 1] = payments.event_result_statement(tenant, event_id, result, true, now)
    list[#list + 1] = outbox.job(scope, "sales-queue", "stock-sync", { orderId = orders[1].id, tenant_key = tenant, app_key = scope.app })
    local paid = order_events.paid(tenant, store.items_in(tx, tenant, orders), revived)
    for _, event in ipairs(paid) do list[#list + 1] = event end
    if #claims > 0 then list[#list + 1] = stock_events.claimed(scope, checkout_id, ids) end
    tx:pipeline(list)
    return result
end

--- A payment that came after its checkout had expired: what the orders held is held again, under the event's id, and they go on. Nil when
--- something is gone meanwhile: they then wait for staff, and so they do after a crash.
local function revive(scope, checkout_id, event_id)
    local tenant = scope.tenant
    M.expire(tenant, "sales.checkout", checkout_id) -- the sweeper may not have come by yet
    local claims, held = reservations.of_group(tenant, checkout_id), workflow.hold(scope)
    local ok, result = pcall(function()
        if not reservations.hold(scope, event_id, claims) then return nil end
        return db.transaction(tenant, take_again, scope, checkout_id, event_id, claims, held, time.iso(time.now()))
    end)
    if ok and result then return result end
    reservations.release(tenant, event_id)
    if not ok then
        log.warn("a late payment could not revive its orders", { tenant = tenant, checkout = checkout_id, why = tostring(result) })
    end
    return nil
end

--- Takes the report of a payment service. The tenant is the order's, found in public_refs.
---@param input table orderId, status, provider, transactionId, amount or amountMinor, currency, eventId
---@return { applied: boolean, reason: string|nil }
function M.sync_payment(input)
    local tenant = store.tenant_of(input.orderId)
    local order = tenant and store.order(tenant, input.orderId)
    if not order then errors.not_found{ message = "Order not found" } end
    local scope = { tenant = tenant, app = order.app_key }
    local now = time.iso(time.now())
    -- The amount belongs to the event: a report that corrects one is another event.
    local event_id = input.eventId and input.eventId ~= "" and input.eventId or crypto.sha256(table.concat({ input.orderId, input.status,
        input.provider, input.transactionId or "", tostring(input.amountMinor or input.amount or ""), input.currency or "" }, "|"))
    local held = workflow.hold(scope)
    local result, late = unpack(db.transaction(tenant, function(tx)
        local event = tx:query(unpack(payments.insert_event_statement{ tenant_key = tenant, app_key = order.app_key, id = uuid.v7(),
            provider = input.provider:upper(), event_id = event_id, type = input.status, raw_sha256 = crypto.sha256(json.encode(input)),
            payload = input, now = now }))[1]
        if not event then return { { applied = false, reason = "duplicate" } } end
        local result = apply(tx, tenant, order.checkout_id, input, held, now)
        tx:query(unpack(payments.event_result_statement(tenant, event.id, result, result.applied, now)))
        return { result, result.reason == "paid_after_expiry" and event.id or nil }
    end))
    return late and revive(scope, order.checkout_id, late) or result
end

-- Expiry -------------------------------------------------------------------------------------------------------------------------------

-- The end of orders that a rule refused: they and their stock wait on, and are tried again.
local function wait_on(tx, tenant, pending, verdicts, now)
    local until_at, ids, list = time.iso(time.now() + ASKED_AGAIN_MS), {}, {}
    for i, order in ipairs(pending) do
        ids[i] = order.id
        local verdict = verdicts[order.id]
        list[#list + 1] = store.wait_on(tenant, order.id, until_at, verdict.workflow_state, now)
        if not verdict.allow then workflow.append(list, order, "cancelled", verdict, now) end
    end
    table.insert(list, 1, reservations.extend_statement(tenant, ids, until_at))
    tx:pipeline(list)
    return until_at
end

local function cancelled() return "cancelled" end

--- Cancels what nobody paid in time, under the locks of the checkout's payments and orders: all that are due, or none. Answers until when
--- an order waits that is not yet due.
local function expire(tx, tenant, checkout_id, held, now)
    local rows = payments.lock(tx, tenant, checkout_id)
    local orders = store.lock_checkout(tx, tenant, checkout_id)
    local pending, ids, waits, alive = {}, {}, nil, false
    for _, order in ipairs(orders) do
        if order.status == "pending" and order.payment_status ~= "paid" and order.expires_at then
            if order.expires_at <= now then
                pending[#pending + 1], ids[#ids + 1] = order, order.id
            else
                waits = order.expires_at
            end
        else
            alive = alive or order.status ~= "cancelled"
        end
    end
    if #pending == 0 then return waits end
    local verdicts = workflow.ask_all(tx, held, pending, cancelled, SYSTEM)
    for _, order in ipairs(pending) do
        if not verdicts[order.id].allow then return wait_on(tx, tenant, pending, verdicts, now) end
    end
    local scope, list, freed = { tenant = tenant, app = pending[1].app_key }, {}, {}
    for _, released in ipairs(tx:pipeline(reservations.release_statements(tenant, checkout_id, ids))) do
        for _, row in ipairs(released) do freed[#freed + 1] = row end
    end
    for _, payment in ipairs(rows) do
        if OPEN_PAYMENT[payment.status] then
            local moved = payments.move_statements(payment, { status = "EXPIRED", reason = "expired", now = now })
            for _, statement in ipairs(moved) do list[#list + 1] = statement end
        end
    end
    for _, order in ipairs(pending) do
        list[#list + 1] = store.move{ tenant_key = tenant, id = order.id, status = "cancelled", payment_status = order.payment_status,
            paid_minor = order.paid_total_minor, cancelled_at = now, cancel_reason = "expired",
            workflow_state = verdicts[order.id].workflow_state, now = now }
        list[#list + 1] = store.insert_event{ tenant_key = tenant, app_key = order.app_key, id = uuid.v7(), order_id = order.id,
            type = "cancelled", from_status = order.status, to_status = "cancelled", actor_kind = "system", reason = "expired", now = now }
        workflow.append(list, order, "cancelled", verdicts[order.id], now)
    end
    -- What the checkout used goes back with the last of its orders.
    if not alive and not waits then
        list[#list + 1] = store.release_promotions(tenant, checkout_id, now)
        list[#list + 1] = store.move_tenders(tenant, checkout_id, "held", "released", now)
    end
    list[#list + 1] = outbox.job(scope, "sales-queue", "stock-sync", { orderId = pending[1].id, tenant_key = tenant, app_key = scope.app })
    for _, event in ipairs(stock_events.released(scope, freed)) do list[#list + 1] = event end
    for _, event in ipairs(order_events.cancelled(tenant, store.items_in(tx, tenant, pending), "expired")) do list[#list + 1] = event end
    tx:pipeline(list)
    return waits
end

--- Ends the wait of an unpaid checkout: its orders are cancelled and everything goes back. Finds nothing to do when it comes again.
---@param tenant string
---@param kind string the due_work kind
---@param checkout_id string
function M.expire(tenant, kind, checkout_id)
    local now = time.iso(time.now())
    local held = workflow.hold{ tenant = tenant, app = "MASTER", actor_kind = "system" }
    db.transaction(tenant, function(tx)
        local waits = expire(tx, tenant, checkout_id, held, now)
        tx:at_commit{ waits and due.move(tenant, kind, checkout_id, waits) or due.drop(tenant, kind, checkout_id) }
    end)
end

-- Staff ----------------------------------------------------------------------------------------------------------------------------------

-- From pending to processing, by hand: needs the money, or a method that brings it later.
local function confirm(tx, held, order, input, actor, now)
    local online = order.payment_method == "STRIPE" or order.payment_method == "PAYPAL"
    if online and order.payment_status ~= "paid" and order.payment_status ~= "authorized" then M.payment_required() end
    local verdict = workflow.ask_all(tx, held, { order }, function() return "processing" end, actor)[order.id]
    local list = {}
    if not verdict.allow then
        workflow.append(list, order, "processing", verdict, now)
        list[#list + 1] = store.annotate(order.tenant_key, order.id, { workflow_state = verdict.workflow_state }, now)
        tx:pipeline(list)
        return verdict
    end
    list[1] = store.move{ tenant_key = order.tenant_key, id = order.id, status = "processing", payment_status = order.payment_status,
        paid_minor = order.paid_total_minor, workflow_state = verdict.workflow_state, now = now }
    list[2] = store.insert_event{ tenant_key = order.tenant_key, app_key = order.app_key, id = uuid.v7(), order_id = order.id,
        type = "status_changed", from_status = order.status, to_status = "processing", actor_id = actor.id, actor_kind = "staff",
        reason = input.reason, now = now }
    list[3] = order_events.moved({ tenant = order.tenant_key, app = order.app_key }, order, "processing", input.reason, actor)
    workflow.append(list, order, "processing", verdict, now)
    tx:pipeline(list)
    return verdict
end

--- What staff does to an order. Of the changes of state only the one from pending to processing is made by hand today.
---@param scope Scope
---@param input table id, status, trackingNumber, internalNotes, workflowState, reason
---@return table order row
function M.update_status(scope, input)
    local now, held = time.iso(time.now()), workflow.hold(scope)
    local actor = { id = scope.actor_id, kind = "staff" }
    local refused
    local row = db.transaction(scope.tenant, function(tx)
        refused = nil
        local order = store.lock_order(tx, scope.tenant, input.id)
        if not order then errors.not_found{ message = "Order not found" } end
        if order.status ~= input.status then
            if order.status ~= "pending" or input.status ~= "processing" then M.transition_not_allowed() end
            local verdict = confirm(tx, held, order, input, actor, now)
            if not verdict.allow then
                refused = verdict
                return order
            end
        end
        local list = { store.annotate(scope.tenant, order.id, { tracking_number = input.trackingNumber,
            internal_notes = input.internalNotes, workflow_state = input.workflowState }, now) }
        local moved = order.status ~= input.status
        audit.append(list, scope, { action = "orders.update_status", entity_type = "order", entity_id = order.id,
            before = moved and { status = order.status } or nil, after = { status = moved and input.status or nil, reason = input.reason,
                trackingNumber = input.trackingNumber, internalNotes = input.internalNotes, workflowState = input.workflowState } })
        return tx:pipeline(list)[1][1]
    end)
    if refused then
        M.transition_not_allowed{ details = { rule = refused.rule or json.null, reason = refused.reason or json.null,
            workflowState = refused.workflow_state or json.null } }
    end
    return row
end

--- The order a job is about, with its items, or nil when it is gone.
---@param tenant string|nil nil: found by the order, for jobs of other producers, who name none
---@param id string
---@return table|nil
function M.for_job(tenant, id)
    tenant = tenant or store.tenant_of(id)
    local order = tenant and store.order(tenant, id)
    return order and with_items(tenant, { order })[1]
end

--- The orders that were placed together with the one that a job is about, with their items.
---@param order table
---@return table[] the parent first
function M.together(order)
    return with_items(order.tenant_key, store.of_checkout(order.tenant_key, order.checkout_id))
end

return M
