-- The host of the pricing pipeline: gathers rows, hands them to core/commerce and shapes what comes back. It decides nothing by itself.
local json = require("core.json")
local money = require("core.money")
local pricing = require("core.pricing")
local time = require("core.time")
local bundles = require("modules.bundles.service")
local catalog = require("modules.catalog.service")
local customers = require("modules.customers.service")
local errors = require("kasma.errors")
local catalogue = require("kasma.hooks_catalogue")
local hooks = require("kasma.hooks")
local allocation = require("modules.inventory.allocation")
local choice = require("modules.inventory.choice")
local inventory = require("modules.inventory.service")
local reservations = require("modules.inventory.reservations")
local items_of = require("modules.pricing.items")
local promotions = require("modules.promotions.service")
local settings = require("kasma.settings")
local shipping = require("modules.shipping.service")
local tax = require("modules.tax.service")
local tenants = require("kasma.tenant")
local wire = require("kasma.wire")

local M = {}

M.minor = catalog.price

local function present(value)
    if value == json.null then return nil end
    return value
end

--- The lines of a cart, as the pipeline wants them. A line whose product is gone or switched off is an error that names it.
---@param scope Scope
---@param items table[] items of a cart: lineId, productId, variantId, quantity, purchaseType, bundleId, bundleKey
---@return table[] lines
function M.cart_lines(scope, items)
    local ids = {}
    for i, item in ipairs(items) do ids[i] = item.productId end
    local products = catalog.products_by_id(scope.tenant, ids)
    local tags = catalog.tag_ids(scope.tenant, ids)
    local lines = {}
    for i, item in ipairs(items) do
        local product, variant_id = products[item.productId], present(item.variantId)
        local variant = items_of.variant(product, variant_id)
        if not product or not product.is_active or (variant_id and not (variant and variant.is_active)) then
            errors.conflict{ message = ("%s is no longer for sale"):format(product and product.name or "A product"),
                code = "product_inactive", details = { lineId = item.lineId, productId = item.productId, variantId = item.variantId } }
        end
        local line = items_of.item(product, variant, tags[product.id])
        line.id, line.qty, line.purchase_type = item.lineId, item.quantity, present(item.purchaseType) or "one_time"
        line.bundle_id, line.bundle_key, line.properties = present(item.bundleId), present(item.bundleKey), present(item.properties)
        lines[i] = line
    end
    return lines
end

--- The promotions that may take part, with what the customer has had of those that count by customer; and the same by id.
local function promotion_inputs(tenant, now, customer_key)
    local running, limited = promotions.running(tenant, now), {}
    for _, p in ipairs(running) do
        if p.per_customer_limit > 0 or p.max_units_per_customer > 0 then limited[#limited + 1] = p.id end
    end
    local had = {}
    if customer_key and #limited > 0 then
        for _, row in ipairs(promotions.used_by(tenant, limited, customer_key)) do had[row.promotion_id] = row end
    end
    local list, by_id = {}, {}
    for i, p in ipairs(running) do
        by_id[p.id] = p
        list[i] = { id = p.id, label = p.name, currency = p.currency, exclusion_group = p.exclusion_group, version = p.version,
            kind = p.type,
            value_type = p.value_type, level = p.level, value = p.value, targets = { kind = p.applicable_to, ids = p.target_ids },
            min_order = p.min_order_value_minor, min_qty = p.min_quantity, max_discount = p.max_discount_minor, buy_qty = p.buy_qty,
            get_qty = p.get_qty, get_bps = p.get_discount_bps, pool = p.scope == "pool", priority = p.priority, stackable = p.stackable,
            exclusive = p.exclusive, stop_after = p.stop_after, include_bundled = p.include_bundled, first_order_only = p.first_order_only,
            customer_groups = p.customer_groups, tier_ids = p.tier_ids, weekdays = p.weekdays, hour_from = p.hours_from,
            hour_to = p.hours_to,
            customer_limit = p.per_customer_limit, customer_used = had[p.id] and had[p.id].uses or 0,
            max_units_customer = p.max_units_per_customer, units_customer = had[p.id] and had[p.id].units or 0,
            usage_limit = p.usage_limit, used_count = p.used_count, budget = p.budget_minor, budget_used = p.budget_used_minor,
            max_units = p.max_units, units_used = p.units_used, starts_ms = p.start_date and time.parse(p.start_date),
            ends_ms = p.end_date and time.parse(p.end_date) }
    end
    return list, by_id
end

local function bundle_inputs(scope, lines)
    local ids, seen = {}, {}
    for _, line in ipairs(lines) do
        if line.bundle_id and not seen[line.bundle_id] then
            seen[line.bundle_id] = true
            ids[#ids + 1] = line.bundle_id
        end
    end
    local list = {}
    for id, b in pairs(bundles.by_id(scope, ids)) do
        local items = {}
        for i, item in ipairs(b.items) do items[i] = { product_id = item.product_id, variant_id = item.variant_id, qty = item.quantity } end
        list[#list + 1] = { id = id, name = b.name, currency = b.currency, pricing = b.pricing, price = b.price_minor,
            percent_off_bps = b.percent_off_bps, max_per_order = b.max_per_order, auto_apply = b.auto_apply, inactive = not b.is_active,
            starts_ms = b.start_date and time.parse(b.start_date), ends_ms = b.end_date and time.parse(b.end_date), items = items }
    end
    table.sort(list, function(a, b) return a.id < b.id end)
    return list
end

-- A method that does not go to the address, or not with this weight, would cost nothing: it is refused, never taken for free.
M.method_unavailable = errors.declare{ code = "shipping_method_unavailable", status = 409,
    message = "This shipping method does not take the order to the address", cause = "the method's zone or weight does not fit",
    cure = "choose another method, or none for the cheapest that fits" }

local function shipping_input(scope, address, method_id, list)
    local zones, methods, bands = {}, {}, {}
    for _, rate in ipairs(shipping.rates(scope.tenant)) do
        bands[rate.method_id] = bands[rate.method_id] or {}
        table.insert(bands[rate.method_id], { from_g = rate.from_g, to_g = rate.to_g, price = rate.price_minor })
    end
    for i, z in ipairs(shipping.zones(scope.tenant)) do
        zones[i] = { id = z.id, priority = z.priority, countries = z.countries, provinces = z.provinces, regions = z.regions,
            zips = z.zip_codes }
    end
    local known = not method_id
    for i, m in ipairs(shipping.methods(scope.tenant)) do
        known = known or m.id == method_id
        methods[i] = { id = m.id, name = m.name, zone_id = m.zone_id, currency = m.currency_code, base = m.base_price_minor,
            per_kg = m.price_per_kg_minor, estimated_days = m.estimated_days, min_weight_g = m.min_weight_g, max_weight_g = m.max_weight_g,
            step_grams = m.step_grams, volumetric_divisor = m.volumetric_divisor, free_over = m.free_over_minor, bands = bands[m.id] }
    end
    if not known then errors.not_found{ message = "Shipping method not found" } end
    return { zones = zones, methods = methods, method_id = method_id, list = list, place = address and { country = address.country,
        region = address.region or address.city, city = address.city, zip = address.zipCode } }
end

local function tax_input(scope, address, now)
    local tenant = tenants.by_key(scope.tenant)
    local config = tax.config(scope.tenant)
    local listed = {}
    for i, r in ipairs(tax.rules(scope.tenant, now)) do
        listed[i] = { id = r.id, name = r.name, country = r.country, region = r.region, zip = r.zip_code, ppm = r.rate_ppm,
            tax_class = r.tax_class, stack_group = r.stack_group, calc_order = r.calc_order, compound = r.is_compound,
            priority = r.priority, from_ms = r.valid_from and time.parse(r.valid_from),
            to_ms = r.valid_to and time.parse(r.valid_to), jurisdiction = r.jurisdiction }
    end
    return { inclusive = config.calculation_type == "inclusive", keep_net = config.cross_border == "keep_net", mode = config.rounding_mode,
        level = config.rounding_level, shipping = config.tax_shipping, home_country = tenant.country, rules = listed,
        place = address and { country = address.country, region = address.region or address.city, zip = address.zipCode } }
end

--- The rules that may take part in a quote, with their versions.
local function versions_of(set)
    local versions = {}
    for _, hook in ipairs(catalogue.of_quotes) do
        for _, rule in ipairs(set:count(hook) > 0 and set:list(hook) or {}) do
            versions[#versions + 1] = { id = rule.id, name = rule.name, version = rule.version, number = rule.number }
        end
    end
    return versions
end

--- What rules are told beside the figures of the quote; no name, mail, phone or street.
local function snapshot_of(tenant, fields, now_ms, customer, owner)
    return {
        now = { epoch = math.floor(now_ms / 1000), year = fields.year, month = fields.month, day = fields.day, hour = fields.hour,
            min = fields.min, wday = fields.wday, tz = tenant.timezone },
        tenant = { id = tenant.tenant_key, country = tenant.country, settings = {} },
        customer = { id = customer.id, guest = not (owner and owner.user_id), groups = customer.groups, first_order = customer.first_order,
            orders_count = customer.orders_count, locale = tenant.default_locale },
        cart = {},
    }
end

--- Places lines as a checkout of this moment would, so that what is quoted for shipping is what is charged. Where something is short they
--- stay where they are: the price is then only a guess, and the checkout is refused anyway.
---@param scope Scope
---@param lines table[]
---@param address table
---@return string|nil blocked_by a rule of stock.allocate that failed, and without which nothing is sold: for quote
function M.foresee(scope, lines, address)
    local tracked, ids = {}, {}
    for _, line in ipairs(lines) do
        if line.track_inventory then
            tracked[#tracked + 1] = { key = line.id, product_id = line.product_id, variant_id = line.variant_id, quantity = line.qty,
                warehouse_id = line.warehouse_id }
            ids[#ids + 1] = line.product_id
        end
    end
    local rows = reservations.stock_rows(scope.tenant, ids)
    if #rows == 0 then return end
    local chosen, _, blocked_by = choice.plan(scope, tracked, rows, address, inventory.default_warehouse(scope.tenant))
    if chosen then allocation.place(lines, chosen) end
    return blocked_by
end

--- Prices lines for an owner.
---@param scope Scope
---@param q { lines: table[], owner: CartOwner|nil, guest_hash: string|nil, address: table|nil, shipping_method_id: string|nil,
---   at_ms: integer|nil, customer: table|nil, rules: userdata|nil, checkout: boolean|nil, list_methods: boolean|nil,
---   blocked_by: string|nil, held: boolean|nil }
--- at_ms, customer, rules: instead of what holds now, for previews; checkout: its runs are kept by the order's transaction;
--- list_methods: quote.shipping.offers has all methods that the shopper may choose from;
--- blocked_by: of foresee; held: the stock of the lines is held already
---@return table quote amounts in minor units; see core.pricing
function M.quote(scope, q)
    local tenant = tenants.by_key(scope.tenant)
    local now_ms = q.at_ms or time.now()
    local now = time.iso(now_ms)
    local fields = time.fields(now_ms, tenant.timezone)
    local customer = q.customer or customers.pricing_input(scope.tenant, q.owner, q.guest_hash)
    local promos, promo_by_id = promotion_inputs(scope.tenant, now, customer.id or q.guest_hash)
    local set = q.rules or hooks.pin(scope)
    local input = {
        currency = tenant.default_currency, now_ms = now_ms, weekday = fields.wday, hour = fields.hour,
        priority_mode = settings.get(scope.tenant, "promotionMode") == "priority",
        max_coupons = settings.get(scope.tenant, "maxCouponsPerOrder"),
        lines = q.lines, bundles = bundle_inputs(scope, q.lines), promotions = promos,
        customer = customer, shipping = shipping_input(scope, q.address, q.shipping_method_id, q.list_methods),
        tax = tax_input(scope, q.address, now), snapshot = snapshot_of(tenant, fields, now_ms, customer, q.owner),
    }
    local quote, err = pricing.quote(input, set)
    if quote and #quote.wanted > 0 then
        -- Rules give things away: now that they are named, with what the shop has of them.
        input.gifts = items_of.gifts(scope.tenant, quote.wanted, q.lines, q.held)
        if #input.gifts > 0 then quote, err = pricing.quote(input, set) end
    end
    if not quote then
        if err.kind == "busy" then errors.unavailable{ message = "The rules of the shop took too long", code = "rules_busy" } end
        if err.kind == "invalid" or err.kind == "limit" then
            errors.bad_request{ message = { err.message }, code = "quote_" .. err.kind }
        end
        error(err, 0)
    end
    if quote.shipping and quote.shipping.reason == "method_not_available" then M.method_unavailable() end
    quote.blocked_by = quote.blocked_by or q.blocked_by
    quote.rules = versions_of(set)
    quote.at_ms, quote.customer = now_ms, customer
    hooks.plain_words(quote.rule_runs or {})
    if not q.rules then hooks.note_quote(scope, quote.rule_runs, q.checkout, q, quote) end
    for _, use in ipairs(quote.promotion_uses) do
        local p = promo_by_id[use.promotion_id]
        use.by_customer = p ~= nil and (p.per_customer_limit > 0 or p.max_units_per_customer > 0)
        use.first_order_only = p ~= nil and p.first_order_only
    end
    local by_id = {}
    for _, line in ipairs(q.lines) do by_id[line.id] = line end
    for _, line in ipairs(quote.lines) do
        local asked = by_id[line.source_id or line.id]
        line.attributes = asked and asked.attributes or {}
        line.track_inventory = asked and asked.track_inventory
        line.properties = asked and asked.properties
    end
    if input.gifts then items_of.tell(quote, input.gifts) end
    return quote
end

local function line_body(line, currency)
    local body = { lineId = line.id, name = line.name, productId = line.product_id, variantId = line.variant_id or json.null,
        quantity = line.qty, bundleId = line.bundle_id or json.null, isGift = line.is_gift == true, taxRatePpm = line.rate_ppm }
    if line.price_label then body.priceLabel = line.price_label end
    wire.amount(body, "unitPrice", line.unit, currency)
    wire.amount(body, "subTotal", line.gross, currency)
    wire.amount(body, "discountTotal", line.discount, currency)
    wire.amount(body, "netTotal", line.net, currency)
    wire.amount(body, "taxTotal", line.tax, currency)
    return body
end

--- The methods that the shopper may choose from, with what each would cost before what reduces shipping.
local function offers_body(quote)
    local list = json.array({})
    for i, offer in ipairs(quote.shipping and quote.shipping.offers or {}) do
        local one = { methodId = offer.id, name = offer.name, estimatedDays = offer.days or json.null }
        wire.amount(one, "price", offer.amount, quote.currency)
        list[i] = one
    end
    return list
end

--- A quote as the cart routes answer it.
---@param quote table
---@param with_trace boolean|nil
---@return table
function M.summary(quote, with_trace)
    local currency = quote.currency
    local body = { itemsCount = #quote.lines, currency = currency, lines = {}, adjustments = {}, rejected = {},
        pointsUsed = quote.points_used or 0, earnPoints = quote.earn_points or 0 }
    wire.amount(body, "subtotal", quote.subtotal, currency)
    wire.amount(body, "discount", quote.discount, currency)
    wire.amount(body, "shipping", quote.shipping and quote.shipping.known and quote.shipping.net or nil, currency)
    wire.amount(body, "tax", quote.tax, currency)
    wire.amount(body, "cashRounding", quote.cash_rounding, currency)
    wire.amount(body, "total", quote.total, currency)
    wire.amount(body, "giftCard", quote.gift_card, currency)
    wire.amount(body, "wallet", quote.wallet, currency)
    wire.amount(body, "amountDue", quote.due, currency)
    body.shippingMethodId = quote.shipping and quote.shipping.method_id or json.null
    for i, line in ipairs(quote.lines) do body.lines[i] = line_body(line, currency) end
    for i, a in ipairs(quote.adjustments) do
        local one = { source = a.kind, id = a.source_id or json.null, code = a.code or json.null, label = a.label or json.null,
            level = a.level }
        wire.amount(one, "amount", a.amount, currency)
        body.adjustments[i] = one
    end
    for i, r in ipairs(quote.rejected) do body.rejected[i] = { code = r.code, reason = r.reason } end
    body.blocked = quote.blocked_by ~= nil
    if with_trace then
        body.shippingMethods = offers_body(quote)
        body.trace = {}
        local keys = {}
        for _, run in ipairs(quote.rule_runs or {}) do keys[run.rule_id or run.id] = run.id end
        for i, t in ipairs(quote.trace) do
            body.trace[i] = { stage = t.stage, rule = t.rule and (keys[t.rule] or t.rule) or json.null, version = t.version or json.null,
                before = t.before,
                after = t.after, note = t.note }
        end
        for _, run in ipairs(quote.rule_runs or {}) do
            if run.reason or run.outcome ~= "ok" then
                body.trace[#body.trace + 1] = { stage = catalogue.get(run.hook).stage, rule = run.id, version = run.number,
                    before = json.null, after = json.null, note = run.reason or run.outcome }
            end
        end
        json.array(body.trace)
    end
    json.array(body.lines)
    json.array(body.adjustments)
    json.array(body.rejected)
    return body
end

--- Major units of an amount, as a number on the wire.
M.major = money.major

return M
