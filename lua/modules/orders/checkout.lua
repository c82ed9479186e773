-- Placing an order from a cart (the steps of R46).
--
-- Stock is held first, in a commit of its own; then one transaction, a pipeline of one-tenant statements with ids made here, moves the cart
-- on, claims exactly those holds, counts what is counted and writes checkout, orders, tenders, events and what must follow. Each statement
-- raises by itself when its condition fails, so nothing is ever half done. On failure the holds go back; after a crash they expire. The
-- provider's session is opened after the commit.
local json = require("core.json")
local money = require("core.money")
local sched = require("core.sched")
local time = require("core.time")
local uuid = require("core.uuid")
local db = require("kasma.db")
local due = require("kasma.due")
local errors = require("kasma.errors")
local locks = require("kasma.locks")
local hooks = require("kasma.hooks")
local outbox = require("kasma.outbox")
local settings = require("kasma.settings")
local allocation = require("modules.inventory.allocation")
local choice = require("modules.inventory.choice")
local cart_service = require("modules.cart.service")
local customers = require("modules.customers.service")
local inventory = require("modules.inventory.service")
local stock_events = require("modules.inventory.events")
local order_events = require("modules.orders.events")
local numbers = require("modules.orders.numbers")
local payments = require("modules.payments.service")
local pricing = require("modules.pricing.service")
local reservations = require("modules.inventory.reservations")
local rules_preview = require("modules.rules.preview")
local rules_runs = require("modules.rules.runs")
local store = require("modules.orders.store")
local workflow = require("modules.orders.workflow")

local M = {}

local MINUTE_MS, DAY_MS = 60000, 86400000
local ONLINE = { STRIPE = true, PAYPAL = true }
local PLANS = 3 -- times a refused allocation is made anew from fresh figures

M.rule_failed = errors.declare{ code = "rule_failed", status = 422, message = "A rule of the shop failed, and nothing is sold without it",
    cause = "a rule with on_error = block failed", cure = "the merchant mends or disables the rule" }
M.draft_session = errors.declare{ code = "draft_session", status = 409, message = "A draft session shows prices and sells nothing",
    cause = "the request carries X-Kasma-Rules-Draft", cure = "send it without the header" }

M.rejected = errors.declare{ code = "checkout_rejected", status = 422, message = "The shop does not take this order",
    cause = "a rule of the hook checkout.validate refused it; details name the rule's own code and field", cure = "see the message" }

--- Rules of the tenant may refuse what is about to be ordered.
local function ask_rules(scope, owner, input, address, quote, asked)
    local lines, categories = {}, {}
    for _, line in ipairs(asked.lines) do categories[line.id] = line.category_ids end
    for i, line in ipairs(quote.lines) do
        lines[i] = { id = line.id, product_id = line.product_id, variant_id = line.variant_id, sku = line.sku, qty = line.qty,
            net = line.net, category_ids = categories[line.source_id or line.id] or {} }
    end
    local answer, info = hooks.call(scope, "checkout.validate", { quote = { total = quote.total, merchandise = quote.merchandise,
        currency = quote.currency, payment_method = input.paymentMethod, guest = not owner.user_id, coupon_codes = {},
        address = { country = address.country, region = address.region or address.city, city = address.city, zip = address.zipCode },
        lines = lines } })
    local reject = answer and answer.reject
    if reject then
        M.rejected{ message = reject.message, details = { code = reject.code, field = reject.field or json.null, rule = info.rule } }
    end
    if info and info.blocked then M.rule_failed{ details = { rule = info.rule } } end
end

--- An address as stored: an object; a plain string is its first line and is echoed as the client sent it.
local function address_of(value)
    if type(value) == "string" then return { line1 = value } end
    return value
end

--- The lines of a priced cart that need stock, with where each comes from.
local function plan_stock(scope, lines, address)
    local tracked, product_ids = {}, {}
    for _, line in ipairs(lines) do
        if line.track_inventory then
            tracked[#tracked + 1] = { key = line.id, product_id = line.product_id, variant_id = line.variant_id, quantity = line.qty,
                warehouse_id = line.warehouse_id }
            product_ids[#product_ids + 1] = line.product_id
        end
    end
    if #tracked == 0 then return {}, {} end
    local chosen, short, blocked_by = choice.plan(scope, tracked, reservations.stock_rows(scope.tenant, product_ids), address,
        inventory.default_warehouse(scope.tenant))
    if blocked_by then M.rule_failed{ details = { rule = blocked_by } } end
    if not chosen then
        local details = {}
        for i, line in ipairs(short) do
            details[i] = { lineId = line.key, productId = line.product_id, variantId = line.variant_id or json.null,
                quantity = line.quantity }
        end
        errors.conflict{ message = "Not enough stock", code = "out_of_stock", details = details }
    end
    local holds = {}
    for _, line in ipairs(tracked) do
        for _, part in ipairs(chosen[line.key]) do holds[#holds + 1] = { inventory_id = part.inventory_id, quantity = part.quantity } end
    end
    return chosen, holds
end

--- Holds the stock of the lines under the checkout's id; plans anew when another buyer was faster.
local function hold_stock(scope, checkout_id, lines, address)
    for try = 1, PLANS do
        local chosen, holds = plan_stock(scope, lines, address)
        if reservations.hold(scope, checkout_id, holds) then return chosen end
        if try == PLANS then errors.conflict{ message = "Not enough stock", code = "out_of_stock" } end
    end
end

--- Holds what the rules of a quote give away; false when another buyer was faster.
local function hold_gifts(scope, c)
    local holds = {}
    for _, line in ipairs(c.quote.lines) do
        if line.is_gift and line.inventory_id then
            c.chosen[line.id] = { { warehouse_id = line.warehouse_id, inventory_id = line.inventory_id, quantity = line.qty } }
            holds[#holds + 1] = { inventory_id = line.inventory_id, quantity = line.qty }
        end
    end
    return #holds == 0 or reservations.hold(scope, reservations.beside(c.id), holds)
end

--- Prices the checkout and holds its gifts; a gift that went meanwhile is not among what is priced anew.
local function price(scope, c)
    for _ = 1, PLANS do
        c.quote = pricing.quote(scope, c.asked)
        if hold_gifts(scope, c) then return end
    end
    errors.conflict{ message = "Not enough stock", code = "out_of_stock" }
end

--- The lines of a quote, one that leaves from several warehouses as one line for each: `portion` is its place among them.
local function parted(quote)
    local lines = {}
    for _, line in ipairs(quote.lines) do
        if not line.portions then lines[#lines + 1] = line end
        for i, portion in ipairs(line.portions or {}) do
            local part = { portion = i }
            for name, value in pairs(line) do part[name] = value end
            for name, value in pairs(portion) do part[name] = value end
            lines[#lines + 1] = part
        end
    end
    return lines
end

--- The lines by warehouse: one order each; the parent is the one with the largest net, then the smaller warehouse id.
local function split(quote)
    local groups, by_warehouse = {}, {}
    for _, line in ipairs(parted(quote)) do
        local warehouse = line.warehouse_id or ""
        local group = by_warehouse[warehouse]
        if not group then
            group = { warehouse_id = warehouse, lines = {}, net = 0 }
            by_warehouse[warehouse] = group
            groups[#groups + 1] = group
        end
        table.insert(group.lines, line)
        group.net = group.net + line.net
    end
    table.sort(groups, function(a, b)
        if a.net ~= b.net then return a.net > b.net end
        return a.warehouse_id < b.warehouse_id
    end)
    return groups
end

--- The sums of one order out of its lines and its part of the shipping.
local function order_sums(quote, group)
    local sums = { subtotal = 0, discount = 0, tax = 0 }
    for _, line in ipairs(group.lines) do
        sums.subtotal = sums.subtotal + line.gross
        sums.discount = sums.discount + line.discount
        sums.tax = sums.tax + line.tax
    end
    local parcel = { net = 0, tax = 0 }
    for _, candidate in ipairs(quote.groups) do
        if (candidate.warehouse_id or "") == group.warehouse_id then parcel = candidate end
    end
    sums.shipping = parcel.net
    sums.tax = sums.tax + parcel.tax
    sums.total = sums.subtotal - sums.discount + sums.shipping + (quote.inclusive and 0 or sums.tax)
    return sums
end

--- Each order's part of the cash rounding by its total, so that the orders sum to the quote. What the division leaves, a few units,
--- is taken from the last orders that have as much: one of gifts alone has nothing.
local function spread_rounding(quote, orders)
    local left, whole = quote.cash_rounding, math.max(quote.total + quote.cash_rounding, 1)
    for _, order in ipairs(orders) do
        local record = order.record
        record.cash_rounding_minor = money.mul_div(quote.cash_rounding, record.before_rounding, whole, "floor")
        left = left - record.cash_rounding_minor
    end
    for i = #orders, 1, -1 do
        local record = orders[i].record
        local more = math.min(left, record.before_rounding - record.cash_rounding_minor)
        record.cash_rounding_minor = record.cash_rounding_minor + more
        record.total_amount_minor = record.before_rounding - record.cash_rounding_minor
        record.amount_due_minor = record.total_amount_minor
        left = left - more
    end
end

--- How long an unpaid order holds its stock: a rule's word, else the setting.
local function hold_ms(scope, method, quote, owner)
    if hooks.any(scope, "stock.reservation_ttl") then
        local c = quote.customer or {}
        local seconds, info = hooks.call(scope, "stock.reservation_ttl", { payment_method = method, total = quote.total, customer = {
            id = c.id, guest = not owner.user_id, groups = c.groups, first_order = c.first_order, orders_count = c.orders_count } })
        if info and info.blocked then M.rule_failed{ details = { rule = info.rule } } end
        if seconds then return seconds * 1000 end
    end
    return settings.get(scope.tenant, "orderExpiryMinutes") * MINUTE_MS
end

--- Who pays how, and until when the order waits for it.
local function terms(scope, input, quote, owner)
    local amount_due = quote.due
    local method = input.paymentMethod:upper()
    local allowed = settings.get(scope.tenant, "paymentMethods")
    if method == "INTERNAL_WALLET" then method = "WALLET" end
    if #allowed > 0 then
        local known = false
        for _, word in ipairs(allowed) do known = known or word:upper() == method end
        if not known then errors.bad_request{ message = { "paymentMethod is not accepted here" }, code = "payment_method_unknown" } end
    end
    if method == "WALLET" and amount_due > 0 then
        errors.conflict{ message = "The wallet does not hold the amount due", code = "insufficient_funds" }
    end
    local now = time.now()
    local t = { method = method, online = ONLINE[method] == true, status = "pending", payment_status = "unpaid" }
    if amount_due == 0 then
        t.status, t.payment_status, t.online = "processing", "paid", false
    elseif t.online then
        t.expires_ms = now + hold_ms(scope, method, quote, owner)
        t.due_kind = "sales.checkout"
    else
        if method == "COD" and settings.get(scope.tenant, "codAutoConfirm") then
            t.status = "processing"
        else
            t.expires_ms = now + settings.get(scope.tenant, "codExpiryDays") * DAY_MS
            t.due_kind = "sales.cod_expiry"
        end
    end
    t.expires_at = t.expires_ms and time.iso(t.expires_ms)
    return t
end

--- All statements of the order transaction, in the order in which rows are locked.
local function statements_of(scope, c)
    local list, now = {}, c.now
    local function add(statement) list[#list + 1] = statement end
    local base = { tenant_key = scope.tenant, app_key = scope.app, now = now }
    local function row(fields)
        for name, value in pairs(base) do fields[name] = value end
        fields.id = fields.id or uuid.v7()
        return fields
    end

    add(store.consume_cart(scope.tenant, c.cart, now))
    local claims, gifts = {}, {}
    for _, order in ipairs(c.orders) do
        local seen = {}
        for _, line in ipairs(order.lines) do
            local mine = line.is_gift and gifts or claims
            for _, part in ipairs(c.chosen[line.source_id or line.id] or {}) do
                local key = (line.is_gift and "+" or "") .. part.inventory_id
                if part.warehouse_id == line.warehouse_id and not seen[key] then
                    seen[key] = true
                    mine[#mine + 1] = { inventory_id = part.inventory_id, order_id = order.record.id }
                end
            end
        end
    end
    local hold_until = c.terms.online and c.terms.expires_at or nil
    local function claim(group_key, rows)
        if #rows == 0 then return end
        for _, s in ipairs(reservations.claim_statements(scope.tenant, group_key, rows, hold_until)) do add(s) end
    end
    claim(c.id, claims)
    claim(reservations.beside(c.id), gifts)
    local claimed = #claims + #gifts > 0
    local customer_key, first_only = c.owner.user_id or c.guest_hash, false
    for _, use in ipairs(c.promotion_uses) do
        add(store.use_promotion(scope.tenant, use, now))
        if use.by_customer then add(store.check_customer_use(scope.tenant, use, customer_key)) end
        first_only = first_only or use.first_order_only
    end
    add(store.count_order(row{ user_id = c.owner.user_id, guest_hash = c.guest_hash, guest_key_version = c.guest_key_version,
        first_only = first_only }))
    add(store.insert_checkout(row{ id = c.id, cart_id = c.cart.id, cart_series = c.cart.series, user_id = c.owner.user_id,
        guest_hash = c.guest_hash, guest_key_version = c.guest_key_version, currency = c.quote.currency, total_minor = c.quote.total,
        amount_due_minor = c.quote.due }))
    for _, use in ipairs(c.promotion_uses) do
        add(store.insert_promotion_usage(row{ promotion_id = use.promotion_id, checkout_id = c.id, user_id = c.owner.user_id,
            customer_key = customer_key, amount_minor = use.amount_minor, units = use.units }))
    end
    if c.payment then
        for _, s in ipairs(payments.insert_statements(row(c.payment))) do add(s) end
    end

    for index, order in ipairs(c.orders) do
        add(store.insert_order(order.record))
        local item_of, portion_of = {}, {}
        for i, item in ipairs(order.record.items) do
            item_of[order.lines[i].id], portion_of[order.lines[i].id] = item, order.lines[i].portion
            add(store.insert_item(item))
        end
        for i, adjustment in ipairs(c.quote.adjustment_rows) do
            local item = adjustment.line_id and item_of[adjustment.line_id]
            local amount = item and adjustment.portions and adjustment.portions[portion_of[adjustment.line_id]] or adjustment.amount
            if (item and amount ~= 0) or (not adjustment.line_id and index == 1) then
                add(store.insert_adjustment(row{ order_id = order.record.id, order_item_id = item and item.id, kind = adjustment.kind,
                    source_id = adjustment.source_id, code = adjustment.code, label = adjustment.label, level = adjustment.level,
                    amount_minor = amount, position = i - 1, rule_version = adjustment.version }))
            end
        end
        if c.payment then
            add(store.insert_order_payment(row{ checkout_id = c.id, order_id = order.record.id, ref_id = c.payment.id,
                amount_minor = order.record.amount_due_minor, currency = c.quote.currency, state = "held" }))
        end
        add(store.insert_event(row{ order_id = order.record.id, type = "placed", to_status = order.record.status,
            actor_id = c.owner.user_id, actor_kind = "user", data = { rules = json.array(c.quote.rules) } }))
        if order.verdict then workflow.append(list, order.record, "processing", order.verdict, now) end
        add(store.insert_ref(order.record.id, scope.tenant, now))
    end
    if c.terms.due_kind then add(due.put(scope, c.terms.due_kind, c.id, c.terms.expires_ms)) end
    local parent = c.orders[1].record.id
    add(outbox.job(scope, "sales-queue", "order-confirmation", { orderId = parent, userId = c.owner.user_id or json.null,
        tenant_key = scope.tenant, app_key = scope.app }, { jobId = "oc-" .. parent }))
    add(outbox.job(scope, "sales-queue", "stock-sync", { orderId = parent, tenant_key = scope.tenant, app_key = scope.app }))
    add(rules_preview.snapshot(scope, c.id, c.orders[1].record, c.asked, c.quote))
    for _, s in ipairs(rules_runs.of_checkout(scope, c.id, c.quote.rule_runs)) do add(s) end
    local records, ids = {}, {}
    for i, order in ipairs(c.orders) do records[i], ids[i] = order.record, order.record.id end
    for _, event in ipairs(order_events.placed(scope, records)) do add(event) end
    if claimed then add(stock_events.claimed(scope, c.id, ids)) end
    for _, statement in ipairs(cart_service.changed(scope, c.cart, c.cart.series + 1, 0)) do add(statement) end
    return list
end

--- Whole = the whole cart; items that are sent must equal it.
local function check_items(cart, items)
    if not items or #items == 0 then return end
    local want = {}
    local function key(item) return item.productId .. ":" .. (item.variantId and item.variantId ~= json.null and item.variantId or "-") end
    for _, item in ipairs(cart.items) do want[key(item)] = (want[key(item)] or 0) + item.quantity end
    for _, item in ipairs(items) do want[key(item)] = (want[key(item)] or 0) - item.quantity end
    for _, left in pairs(want) do
        if left ~= 0 then errors.conflict{ message = "The items differ from the cart", code = "cart_changed" } end
    end
end

local REFUSED = {
    KS001 = { status = 409, code = "out_of_stock", message = "The reserved stock is no longer there" },
    KS010 = { status = 409, code = "cart_changed", message = "The cart was changed by another request" },
    KS011 = { status = 409, code = "price_changed", message = "A promotion has just been used up; the price has changed" },
}

--- The row of one order and its items, as they will stand in the database and as the client is answered.
local function record_of(scope, c, index, group)
    local sums = order_sums(c.quote, group)
    local record = { id = uuid.v7(), tenant_key = scope.tenant, app_key = scope.app, now = c.now, created_at = c.now, updated_at = c.now,
        user_id = c.owner.user_id, guest_email = c.guest_email, order_number = numbers.next(scope), checkout_id = c.id,
        split_index = index - 1,
        parent_order_id = index > 1 and c.orders[1].record.id or nil, status = c.terms.status, payment_status = c.terms.payment_status,
        payment_method = c.terms.method, currency = c.quote.currency, tax_inclusive = c.quote.inclusive, subtotal_minor = sums.subtotal,
        discount_total_minor = sums.discount, shipping_total_minor = sums.shipping, tax_total_minor = sums.tax,
        before_rounding = sums.total,
        gift_card_total_minor = 0, wallet_total_minor = 0, paid_total_minor = 0, refunded_total_minor = 0, shipping_address = c.address,
        billing_address = c.billing_address, notes = c.notes, coupon_codes = json.array({}), placed_at = c.now,
        paid_at = c.terms.payment_status == "paid" and c.now or nil, expires_at = c.terms.expires_at, version = 1, items = {} }
    for i, line in ipairs(group.lines) do
        local held = c.chosen[line.source_id or line.id] ~= nil
        record.items[i] = { id = uuid.v7(), tenant_key = scope.tenant, app_key = scope.app, now = c.now, created_at = c.now,
            updated_at = c.now,
            order_id = record.id, product_id = line.product_id, variant_id = line.variant_id, quantity = line.qty,
            unit_price_minor = line.unit,
            sub_total_minor = line.gross, discount_total_minor = line.discount, net_total_minor = line.net, tax_rate_ppm = line.rate_ppm,
            tax_total_minor = line.tax, line_total_minor = c.quote.inclusive and line.net or line.net + line.tax,
            warehouse_id = held and line.warehouse_id or nil, name_snapshot = line.name, sku_snapshot = line.sku,
            attributes_snapshot = line.attributes, bundle_id = line.bundle_id, is_gift = line.is_gift == true,
            properties = line.properties, purchase_type = line.purchase_type, shipped_qty = 0, refunded_qty = 0, position = i - 1,
            currency = c.quote.currency }
    end
    return record
end

--- An order that would go on at once waits when a rule says so: paid or confirmed later, as one of its method that nobody confirmed.
local function ask_workflow(scope, c)
    local held = c.terms.status == "processing" and workflow.hold(scope)
    if not held then return end
    local actor = { id = c.owner.user_id, kind = c.owner.user_id and "user" or "guest" }
    for _, order in ipairs(c.orders) do
        local record = order.record
        record.status = "pending"
        local verdict = workflow.ask(held, record, "processing", actor)
        order.verdict, record.workflow_state = verdict, verdict.workflow_state
        if verdict.allow then
            record.status = "processing"
        elseif c.terms.payment_status ~= "paid" then
            c.terms.expires_ms = c.terms.expires_ms or time.now() + settings.get(scope.tenant, "codExpiryDays") * DAY_MS
            c.terms.due_kind, record.expires_at = "sales.cod_expiry", time.iso(c.terms.expires_ms)
        end
    end
end

---@class Placed
---@field id string checkout id
---@field orders table[] order rows, each with items, the parent first
---@field quote table
---@field payment table|nil the payment of an online method
---@field payment_error string|nil why it has no session

local function place(scope, owner, input, complete)
    if scope.request and scope.request.rules_draft then M.draft_session() end
    local cart = cart_service.find(scope, owner)
    if not cart or #cart.items == 0 then errors.not_found{ message = "The cart is empty", code = "cart_empty" } end
    check_items(cart, input.items)
    if not owner.user_id and not input.guestEmail then
        errors.bad_request{ message = { "guestEmail should not be empty for a guest" }, code = "guest_email_required" }
    end
    local address = address_of(input.shippingAddress)
    local c = { id = uuid.v7(), now = time.iso(time.now()), cart = cart, owner = owner, address = address, notes = input.notes,
        billing_address = input.billingAddress and address_of(input.billingAddress), orders = {} }
    if not owner.user_id then
        c.guest_email = input.guestEmail
        c.guest_hash, c.guest_key_version = customers.guest_hash(scope.tenant, input.guestEmail)
    end
    local lines = pricing.cart_lines(scope, cart.items)
    c.chosen = hold_stock(scope, c.id, lines, address)

    local ok, placed = pcall(function()
        allocation.place(lines, c.chosen)
        c.asked = { lines = lines, owner = owner, guest_hash = c.guest_hash, address = address,
            shipping_method_id = input.shippingMethodId, checkout = true, held = true }
        price(scope, c)
        if c.quote.shipping.reason == "nothing_offered" then pricing.method_unavailable() end
        if c.quote.blocked_by then M.rule_failed{ details = { rule = c.quote.blocked_by } } end
        ask_rules(scope, owner, input, address, c.quote, c.asked)
        if input.expectedTotal and pricing.minor("expectedTotal", input.expectedTotal, c.quote.currency) ~= c.quote.total then
            errors.conflict{ message = "The price has changed", code = "price_changed", details = pricing.summary(c.quote) }
        end
        c.terms = terms(scope, input, c.quote, owner)
        c.promotion_uses = c.quote.promotion_uses
        -- The order in which rows are locked, whatever order the promotions were applied in.
        table.sort(c.promotion_uses, function(a, b) return a.promotion_id < b.promotion_id end)
        for i, group in ipairs(split(c.quote)) do
            c.orders[i] = { lines = group.lines }
            c.orders[i].record = record_of(scope, c, i, group)
        end
        spread_rounding(c.quote, c.orders)
        ask_workflow(scope, c)
        local result = { id = c.id, orders = {}, quote = c.quote }
        for i, order in ipairs(c.orders) do result.orders[i] = order.record end
        if c.terms.online then
            c.payment = { id = uuid.v7(), checkout_id = c.id, provider = c.terms.method, amount_minor = c.quote.due,
                user_id = owner.user_id,
                currency_code = c.quote.currency, return_url = input.returnUrl, expires_at = c.terms.expires_at, idem_key = c.id .. ":pay" }
            result.payment, result.payment_error = c.payment, payments.open(c.payment)
        end
        local list = statements_of(scope, c)
        if complete then list[#list + 1] = complete(result) end
        errors.state(REFUSED, db.pipeline, scope.tenant, list)
        rules_runs.placed(scope, c.quote)
        return result
    end)
    if not ok then
        -- A request whose client has gone, or whose time is over, cannot wait for anything any more: a task of its own then does it.
        if not pcall(reservations.release, scope.tenant, c.id) then sched.spawn(pcall, reservations.release, scope.tenant, c.id) end
        error(placed, 0)
    end
    return placed
end

--- Places the order. One at a time of a buyer, where the lock can be had: the others find the cart empty instead of holding stock that
--- they cannot keep. What makes it right without is the cart's version in the order's transaction.
---@param scope Scope
---@param owner CartOwner
---@param input table the body of /checkout
---@param complete fun(placed: Placed): table|nil the statement that completes the caller's idempotency record in the same transaction
---@return Placed
function M.place(scope, owner, input, complete)
    return locks.eased(scope.tenant, { "checkout:" .. owner.key }, function() return place(scope, owner, input, complete) end,
        { ttl_ms = 30000 })
end

return M
