-- The catalogue of hooks: for each, its class of budget, what it is given (`subject`, beside hook, now and tenant), what it may
-- answer, and what holds when no rule answers. `quote`: the core asks it while it prices a cart, at a `stage`. One declaration
-- makes the form that the core copies an input by, the check of an answer, the JSON Schemas of GET /rules/hooks and the editor stubs.
--
-- A type is a table: text{max=}, mail (the name of a template that rules may send), int{min=, max=}, num, bool, enum{...}, list(item),
-- map(item), rec{name = type}, any. What stands in an answer's rec must be there unless it is opt(type).
local json = require("core.json")
local pricing = require("core.pricing")
local rules = require("core.rules")
local mail_templates = require("kasma.mail_templates")
local text_of = require("kasma.text")

local M = {}

local function text(o) return { t = "string", max = o and o.max or 4096 } end
local function int(o) return { t = "integer", min = o and o.min or -9e15, max = o and o.max or 9e15 } end
local function enum(values) return { t = "enum", values = values } end
local function list(item, o) return { t = "list", item = item, max = o and o.max or 1000 } end
local function map(item) return { t = "map", of = item } end
local function rec(fields) return { t = "record", fields = fields } end
local function opt(of)
    local copy = { optional = true }
    for k, v in pairs(of) do copy[k] = v end
    return copy
end
local function either(...) return { t = "either", of = { ... } } end
local bool, num, any, id, minor = { t = "boolean" }, { t = "number" }, { t = "any" }, text{ max = 128 }, int{ min = 0 }
local mail = { t = "string", max = 64, mail = true }
local bps, ppm = int{ min = 0, max = 10000 }, int{ min = 0, max = 1000000 }
M.types = { text = text, int = int, enum = enum, list = list, map = map, rec = rec, opt = opt, either = either, bool = bool, num = num,
    any = any }

-- What every input holds, and what those of a quote hold (the core builds those itself; the names are its own).
local now = rec{ epoch = int(), year = int(), month = int(), day = int(), hour = int(), min = int(), sec = int(), wday = int(),
    tz = text() }
local tenant = rec{ id = id, country = text(), settings = map(any) }
local address = rec{ country = text(), province = text(), region = text(), city = text(), zip = text() }
local tier = rec{ id = id, name = text(), multiplier_pct = int() }
local customer = rec{ id = id, guest = bool, groups = list(text()), tier = tier, orders_count = int(), lifetime_spent = minor,
    first_order = bool, locale = text(), points_available = int() }
local discount = rec{ kind = text(), source_id = id, amount = minor }
local line = rec{ id = id, product_id = id, variant_id = id, sku = text(), category_ids = list(id), tag_ids = list(id), vendor_id = id,
    tax_class = text(), qty = int(), unit = minor, gross = minor, net = minor, weight_g = int(), attributes = map(any), is_gift = bool,
    properties = map(any), bundle_id = id, discounts = list(discount), purchase_type = text() }
local cart = rec{ id = id, version = int(), gross = minor, net = minor, item_count = int(), coupon_codes = list(text()),
    lines = list(line) }
local currency = rec{ code = text(), exponent = int() }
local group = rec{ warehouse_id = id, weight_g = int(), net = minor }
local shipping = rec{ address = address, method_id = id, net = minor, groups = list(group) }
local candidate = rec{ line = id, rate_ppm = ppm, name = text(), jurisdiction = text(), compound = bool }
local price_break = rec{ min_qty = int(), price = minor, sale = minor }
local price_line = rec{ id = id, product_id = id, variant_id = id, sku = text(), category_ids = list(id), tag_ids = list(id),
    vendor_id = id, qty = int(), unit = minor, list = minor, sale = minor, breaks = list(price_break), purchase_type = text() }
local prices_subject = rec{ lines = list(price_line) }
local bundle = rec{ id = id, name = text(), pricing = enum{ "fixed", "percent_off" }, price = minor, percent_off_bps = int(),
    max_per_order = int() }
local component = rec{ line_id = id, product_id = id, variant_id = id, sku = text(), qty = int(), unit = minor, gross = minor }
local bundle_subject = rec{ bundle = bundle, components = list(component), qty = int() }
local product = rec{ id = id, variant_id = id, sku = text(), name = text(), tax_class = text(), vendor_id = id, weight_g = int(),
    category_ids = list(id), tag_ids = list(id), list = minor, requires_shipping = bool }
local category = rec{ id = id, path = list(id) }
local class_subject = rec{ product = product, category = category, customer = customer, address = address }
local method = rec{ id = id, name = text(), price = minor, estimated_days = int{ min = 0 }, hidden = bool }
local parcel = rec{ warehouse_id = id, weight_g = int(), net = minor }
local rates_subject = rec{ methods = list(method), parcel = parcel, address = address, subtotal = minor, customer = customer }
local round_subject = rec{ amount = minor, currency = text(), purpose = text() }
local tax_subject = rec{ lines = list(line), address = address, customer = customer, candidates = list(candidate), date = int() }

local happened = rec{ name = text(), id = id, data = any }

do -- The core's own names and these are the same, or nothing starts.
    local mine = { now = now, tenant = tenant, address = address, tier = tier, customer = customer, discount = discount, line = line,
        cart = cart, currency = currency, group = group, shipping = shipping, candidate = candidate, tax = tax_subject,
        prices = prices_subject, price_line = price_line, price_break = price_break, bundle_subject = bundle_subject, bundle = bundle,
        component = component, product = product, category = category, class_subject = class_subject, method = method,
        parcel = parcel, rates_subject = rates_subject, round = round_subject }
    for name, record in pairs(mine) do
        local left = {}
        for field in pairs(record.fields) do left[field] = true end
        for _, field in ipairs(pricing.records[name]) do
            assert(left[field], ("the catalogue of hooks lacks %s.%s"):format(name, field))
            left[field] = nil
        end
        assert(next(left) == nil, ("the core knows no %s.%s"):format(name, tostring((next(left)))))
    end
end

local operation = rec{ op = enum{ "line_percent", "line_amount", "unit_amount", "unit_price", "order_percent", "order_amount",
    "shipping_percent", "shipping_amount", "gift_line" }, line_id = opt(id), bps = opt(bps), amount = opt(minor), price = opt(minor),
    units = opt(int{ min = 1 }), line_ids = opt(list(id)), exclude_line_ids = opt(list(id)), max = opt(minor), method_id = opt(id),
    product_id = opt(id), variant_id = opt(id), qty = opt(int{ min = 1, max = 10 }), label = opt(text{ max = 80 }), code = opt(text()),
    priority = opt(int()), stackable = opt(bool), group = opt(text()) }
M.operation = operation

-- In alphabetical order within an area. `host`: where the product asks it today; nil: declared, so that rules can be written
-- and tested on samples, and asked by nobody yet.
local user = rec{ id = id, email = text(), user_type = text(), role_keys = list(text()), created_at = text(), locale = text() }
local order = rec{ id = id, order_number = text(), status = text(), payment_status = text(), total = minor, net = minor,
    currency = text(),
    items = list(rec{ product_id = id, variant_id = id, sku = text(), qty = int(), net = minor, category_ids = list(id) }),
    placed_at = text(), customer_id = id, country = text() }

local list_of_hooks = {
    -- commerce
    { "price.lines", "commerce", "Unit prices of the lines, before any discount", prices_subject,
        rec{ units = map(minor), label = opt(text{ max = 80 }) }, "the product's prices", host = true, quote = true, stage = 1 },
    { "bundle.price", "commerce", "Price of one instance of a bundle", bundle_subject,
        rec{ price = minor }, "the stored price", host = true, quote = true, stage = 2 },
    { "promotion", "commerce", "Discounts, gifts and cheaper shipping for a cart", rec{ promotion = any },
        rec{ operations = opt(list(operation, { max = 200 })), messages = opt(list(text())) }, "nothing",
        host = true, quote = true, stage = 3 },
    { "coupon.eligibility", "commerce", "Whether a coupon may be used", rec{ coupon = rec{ id = id, code = text(), kind = text(),
        value = int(), min_order = minor } }, rec{ eligible = bool, reason = opt(text{ max = 200 }), operations = opt(list(operation)) },
        "the coupon's own conditions" },
    { "loyalty.earn", "commerce", "Points that an order earns", rec{ order = order, customer = customer },
        either(rec{ points = int{ min = 0 } }, rec{ multiplier_pct = int{ min = 0, max = 1000 } }), "the programme's rate" },
    { "loyalty.limits", "commerce", "How many points may be spent", rec{ balance = int(), net = minor },
        rec{ max_points = int{ min = 0 }, value = opt(minor) }, "the programme's limit" },
    { "shipping.rates", "commerce", "Which shipping methods are offered, and for how much", rates_subject, list(rec{ id = id,
        name = opt(text{ max = 120 }), price = opt(minor), estimated_days = opt(int{ min = 0, max = 3650 }), hidden = opt(bool) },
        { max = 500 }), "the methods as they are stored", host = true, quote = true, stage = 6 },
    { "tax.class_for_item", "commerce", "Tax class of an item", class_subject, text{ max = 64 }, "the product's class",
        host = true, quote = true, stage = 1 },
    { "tax.resolve", "commerce", "Tax rates of the lines", tax_subject, list(rec{ line = id, rate_ppm = ppm, name = opt(text()),
        jurisdiction = opt(text()), compound = opt(bool) }, { max = 800 }), "the tax rules of the tenant",
        host = true, quote = true, stage = 7 },
    { "stock.allocate", "commerce", "Which warehouse each line comes from", rec{ lines = list(rec{ id = id, product_id = id,
        variant_id = id, qty = int(), warehouse_id = id }), address = address, warehouses = list(rec{ id = id, available = map(int()),
        distance_class = int{ min = 0, max = 2 }, priority = int() }) },
        list(rec{ line = id, warehouse = id, qty = int{ min = 1 } }), "the allocation of the house", host = true },
    { "checkout.validate", "commerce", "Refuses a checkout", rec{ quote = rec{ total = minor, merchandise = minor, currency = text(),
        payment_method = text(), guest = bool, coupon_codes = list(text()), address = address,
        lines = list(rec{ id = id, product_id = id, variant_id = id, sku = text(), qty = int(), net = minor,
        category_ids = list(id) }) } },
        rec{ reject = opt(rec{ code = text{ max = 64 }, message = text{ max = 200 }, field = opt(text{ max = 64 }) }) }, "accept",
        host = true },
    { "workflow.order", "commerce", "Whether an order may change its state", rec{ order = order, from = text(), to = text(),
        actor = rec{ id = id, kind = text() } }, rec{ allow = bool, reason = opt(text{ max = 200 }),
        workflow_state = opt(text{ max = 64 }),
        notify = opt(rec{ template = mail }) }, "allow", host = true },
    { "affiliate.commission", "commerce", "Commission of an affiliate", rec{ order = order, program = any }, rec{ amount = minor },
        "the programme's rate" },
    { "cart.abandoned_plan", "commerce", "Reminders of an abandoned cart", rec{ cart = any, steps_sent = int() }, rec{ send = bool,
        after_s = opt(int{ min = 0 }), template = opt(text()), coupon_template = opt(text()) }, "the stored plan" },
    { "subscription.retry", "commerce", "When a failed renewal is tried again", rec{ subscription = any, attempts = int(),
        failure = text() },
        either(rec{ retry_after_s = int{ min = 60 } }, rec{ give_up = bool }), "the stored plan" },
    -- finance and operations
    { "currency.round", "finance", "What the total of a cart is rounded to", round_subject, minor, "the currency's own rounding",
        host = true, quote = true, stage = 7 },
    { "commission.calculate", "finance", "Commission of a vendor", rec{ vendor = any, line = any, rule = any, order = order },
        rec{ rate_ppm = ppm, fixed = opt(minor) }, "the vendor's rate" },
    { "payout.policy", "finance", "Whether a vendor is paid out", rec{ vendor = any, balance = minor, amount = minor,
        history = list(any) },
        rec{ allow = bool, hold_days = opt(int{ min = 0 }), reason = opt(text()) }, "refused", closed = true },
    { "refund.policy", "finance", "Whether a refund is given", rec{ order = order, lines = list(any), amount = minor, method = text(),
        days_since_delivery = int() }, rec{ allow = bool, method = opt(text()), fee = opt(minor), needs_approval = opt(bool) }, "refused",
        closed = true },
    { "fraud.score", "finance", "Risk of an order", rec{ order = order, customer = customer, history = any, score = int(),
        flags = list(text()) }, rec{ score = int{ min = 0, max = 100 }, flags = opt(list(text())), decision = opt(text()) },
        "the built-in score" },
    { "stock.buffer", "operations", "Units of a product that a warehouse keeps back", rec{ product = rec{ id = id, variant_id = id,
        sku = text(), name = text(), vendor_id = id, category_ids = list(id), tag_ids = list(id) }, warehouse_id = id,
        quantity = int{ min = 0 }, sales_30d = int{ min = 0 }, channel = text() }, int{ min = 0, max = 20000000 }, "the stored buffer",
        host = true },
    { "stock.reservation_ttl", "operations", "How long an order holds its stock", rec{ customer = customer, payment_method = text(),
        total = minor }, int{ min = 300, max = 7200 }, "the setting", host = true },
    { "fulfillment.carrier", "operations", "Which carrier's quote is taken", rec{ order = order, parcel = parcel, quotes = list(any) },
        int{ min = 1 }, "the cheapest" },
    { "rma.eligible", "operations", "Whether an item may be returned", rec{ order = order, item = any, reason = text(), days = int() },
        rec{ allow = bool, window_days = opt(int{ min = 0 }), auto_approve = opt(bool), return_label = opt(bool) }, "the setting" },
    { "rma.restock", "operations", "Where a returned item goes", rec{ item = any, condition = text() }, text{ max = 64 }, "quarantine" },
    { "review.moderate", "operations", "What happens to a review", rec{ text = text(), rating = int(), user = user, verified = bool },
        enum{ "publish", "hold", "reject" }, "hold" },
    { "ticket.route", "operations", "Who gets a ticket", rec{ ticket = any, customer = customer }, rec{ assignee = opt(id),
        priority = opt(text()), tags = opt(list(text())), sla = opt(text()) }, "the queue" },
    { "dashboard.metric", "operations", "A figure on the dashboard", rec{ rows = list(any) }, num, "none" },
    -- identity
    { "auth.login_policy", "identity", "Whether a sign-in needs a code, or is denied", rec{ user = user, ip = text(), user_agent = text(),
        known_device = bool, hour = int(), failures = int() }, rec{ otp = opt(enum{ "always", "skip", "totp" }), deny = opt(bool),
        reason = opt(text{ max = 200 }) }, "a code is asked for", closed = true, host = true },
    { "auth.before_register", "identity", "Whether somebody may register", rec{ email = text(), display_name = text(), ip = text(),
        app_key = text(), fields = map(any) }, rec{ allow = bool, reason = opt(text{ max = 200 }), user_type = opt(text{ max = 32 }),
        role_keys = opt(list(text{ max = 64 }, { max = 20 })) }, "allow", host = true },
    { "auth.password_policy", "identity", "Whether a password is good enough", rec{ password_length = int(), classes = int(),
        breached = bool, user_type = text() }, rec{ ok = bool, message = opt(text{ max = 200 }) }, "the built-in policy", host = true },
    { "user.profile_validate", "identity", "Changes or refuses a change of a profile", rec{ before = map(any), patch = map(any) },
        either(rec{ patch = map(any) }, rec{ errors = list(text{ max = 200 }, { max = 20 }) }), "the change as it came", host = true },
    { "rbac.extra_check", "identity", "Narrows a permission", rec{ user = user, permission = text(), entity_type = text(), entity = any,
        method = text() }, rec{ allow = bool }, "denied", closed = true, host = true },
    { "tenant.resolve", "identity", "Which tenant a host name means", rec{ host = text(), path = text(), headers = map(text()) },
        rec{ tenant_key = text{ max = 63 }, app_key = opt(text{ max = 63 }) }, "the host names of the apps",
        host = true },
    { "ratelimit.override", "identity", "Another rate limit", rec{ rule = text(), subject_kind = text(), plan = text() }, rec{
         limit = int{ min = 1 }, window = int{ min = 1 } }, "the table of limits", host = true },
    { "mail.render", "identity", "The text of a mail", rec{ template = text(), locale = text(), vars = map(any) }, rec{
        subject = text{ max = 200 }, html = opt(text{ max = 200000 }), text = text{ max = 100000 } }, "the template", slow = true,
        host = true },
    { "audit.filter", "identity", "Masks parts of an audit event", rec{ event = any }, rec{ mask = list(text{ max = 200 },
        { max = 100 }) },
        "nothing is masked", host = true },
    -- what answers requests and follows events
    { "library", "platform", "Functions that other rules take with lib(\"key\")", rec{}, any, "-", kind = "library" },
    { "route", "platform", "A route of the tenant's own under /x/", rec{ method = text(), path = text(), query = map(any), body = any,
        headers = map(text()), user = rec{ id = id, guest = bool } }, rec{ status = int{ min = 200, max = 599 },
        headers = opt(map(text{ max = 1000 })), body = opt(any), cache_s = opt(int{ min = 0, max = 3600 }) }, "404", kind = "route",
        host = true },
    { "workflow", "platform", "Steps that follow an event", rec{ event = happened, state = any, step = text(),
        attempt = int(), waited = rec{ event = happened, timed_out = bool } }, any, "-", kind = "workflow" },
}

local hooks, names, of_quotes = {}, {}, {}
for _, h in ipairs(list_of_hooks) do
    local hook = { name = h[1], area = h[2], summary = h[3], subject = h[4], output = h[5], absent = h[6], closed = h.closed == true,
        host = h.host == true, quote = h.quote == true, stage = h.stage, kind = h.kind or "hook", slow = h.slow == true }
    local fields = { hook = text(), now = now, tenant = tenant, subject = hook.subject }
    if hook.quote then fields.currency, fields.customer, fields.cart, fields.shipping = currency, customer, cart, shipping end
    hook.input = rec(fields)
    if hook.kind ~= "library" then hook.form = rules.form(hook.input, "input") end
    hooks[hook.name], names[#names + 1] = hook, hook.name
    if hook.quote then of_quotes[#of_quotes + 1] = hook.name end
end
table.sort(names)

-- The hooks that the pricing of a quote asks.
M.of_quotes = of_quotes

---@param name string
---@return table|nil hook
function M.get(name) return hooks[name] end

---@return string[] sorted
function M.names() return names end

-- The check of an answer ---------------------------------------------------------------------------------------------------

local check

local function check_record(type_, value, path)
    if type(value) ~= "table" then return false, path .. ": a table is expected" end
    for name in pairs(value) do
        if not type_.fields[name] then return false, ("%s.%s: is not known here"):format(path, tostring(name)) end
    end
    for name, of in pairs(type_.fields) do
        local member = value[name]
        if member == nil then
            if not of.optional then return false, ("%s.%s: is missing"):format(path, name) end
        else
            local ok, why = check(of, member, path .. "." .. name)
            if not ok then return false, why end
        end
    end
    return true
end

local checks = {
    any = function() return true end,
    boolean = function(_, v, path) return type(v) == "boolean", path .. ": true or false is expected" end,
    number = function(_, v, path) return type(v) == "number", path .. ": a number is expected" end,
    string = function(o, v, path)
        if type(v) ~= "string" then return false, path .. ": a text is expected" end
        if #v > o.max then return false, ("%s: longer than %d bytes"):format(path, o.max) end
        if o.mail and not mail_templates.for_rules(v) then
            return false, ("%s: there is no mail template '%s' for rules; there are %s"):format(path, v,
                table.concat(mail_templates.names_for_rules(), ", "))
        end
        return text_of.is_plain(v), path .. ": is no UTF-8; text.cut keeps characters whole"
    end,
    integer = function(o, v, path)
        if type(v) ~= "number" then return false, path .. ": a number is expected" end
        if v ~= math.floor(v) then return false, ("%s: %.14g is not an integer; use money.pct or math.floor"):format(path, v) end
        return v >= o.min and v <= o.max, ("%s: must be from %.0f to %.0f"):format(path, o.min, o.max)
    end,
    enum = function(o, v, path)
        for _, known in ipairs(o.values) do
            if known == v then return true end
        end
        return false, path .. ": one of " .. table.concat(o.values, ", ") .. " is expected"
    end,
    list = function(o, v, path)
        if type(v) ~= "table" then return false, path .. ": a list is expected" end
        if #v > o.max then return false, ("%s: more than %d elements"):format(path, o.max) end
        for key in pairs(v) do
            if type(key) ~= "number" or key < 1 or key > #v then return false, path .. ": a list is expected" end
        end
        for i = 1, #v do
            local ok, why = check(o.item, v[i], ("%s[%d]"):format(path, i))
            if not ok then return false, why end
        end
        return true
    end,
    map = function(o, v, path)
        if type(v) ~= "table" then return false, path .. ": a table is expected" end
        for key, member in pairs(v) do
            if type(key) ~= "string" then return false, path .. ": keys must be texts" end
            local ok, why = check(o.of, member, path .. "." .. key)
            if not ok then return false, why end
        end
        return true
    end,
    record = check_record,
    either = function(o, v, path)
        local ok, why
        for _, of in ipairs(o.of) do
            ok, why = check(of, v, path)
            if ok then return true end
        end
        return false, why
    end,
}

check = function(type_, value, path)
    local ok, why = checks[type_.t](type_, value, path)
    return ok, not ok and why or nil
end

--- Whether an answer is of the hook's form.
---@param type_ table
---@param value any
---@return boolean, string|nil why with the path
function M.check(type_, value) return check(type_, value, "result") end

-- JSON Schema 2020-12 --------------------------------------------------------------------------------------------------------

---@param type_ table
---@return table
function M.json_schema(type_)
    local t = type_.t
    if t == "any" then return {} end
    if type_.mail then return { type = "string", enum = json.array(mail_templates.names_for_rules()) } end
    if t == "string" then return { type = "string", maxLength = type_.max } end
    if t == "integer" then return { type = "integer", minimum = type_.min, maximum = type_.max } end
    if t == "enum" then return { type = "string", enum = json.array{ unpack(type_.values) } } end
    if t == "list" then return { type = "array", items = M.json_schema(type_.item), maxItems = type_.max } end
    if t == "map" then return { type = "object", additionalProperties = M.json_schema(type_.of) } end
    if t == "either" then
        local any_of = {}
        for i, of in ipairs(type_.of) do any_of[i] = M.json_schema(of) end
        return { anyOf = json.array(any_of) }
    end
    if t == "record" then
        local properties, required = {}, {}
        for name, of in pairs(type_.fields) do
            properties[name] = M.json_schema(of)
            if not of.optional then required[#required + 1] = name end
        end
        table.sort(required)
        return { type = "object", properties = properties, required = json.array(required), additionalProperties = false }
    end
    return { type = t }
end

-- What a hook may be tried with ------------------------------------------------------------------------------------------------

-- A small value of a type: every field filled in (`full`), or only what must be there.
local function sample(type_, name)
    local t = type_.t
    if t == "string" then
        return name == "country" and "VN" or name == "tz" and "Asia/Ho_Chi_Minh" or name == "email" and "ann@example.test"
            or name == "ip" and "203.0.113.7" or name
    elseif t == "integer" or t == "number" then
        return math.max(type_.min or 0, 1)
    elseif t == "boolean" then
        return false
    elseif t == "enum" then
        return type_.values[1]
    elseif t == "list" then
        return { sample(type_.item, name) }
    elseif t == "map" and type_.of.t == "integer" then
        return { id = sample(type_.of, name) } -- what a sample's id is
    elseif t == "record" then
        local out = {}
        for field, of in pairs(type_.fields) do out[field] = sample(of, field) end
        return out
    end
    return {}
end

--- Inputs that a rule of a hook is tried with before it goes live, for hooks outside of quotes: {name, input}.
---@param hook table
---@return table[]
function M.samples(hook)
    local sunday = { epoch = 1795921200, year = 2026, month = 11, day = 29, hour = 23, min = 0, sec = 0, wday = 7,
        tz = "Asia/Ho_Chi_Minh" }
    local monday = { epoch = 1795964400, year = 2026, month = 11, day = 30, hour = 10, min = 0, sec = 0, wday = 1,
        tz = "Asia/Ho_Chi_Minh" }
    local shop = { id = "demo", country = "VN", settings = {} }
    return {
        { name = "every field given", input = { hook = hook.name, now = monday, tenant = shop, subject = sample(hook.subject,
        "subject") } },
        { name = "Sunday night", input = { hook = hook.name, now = sunday, tenant = shop, subject = sample(hook.subject, "subject") } },
    }
end

return M
