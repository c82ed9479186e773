-- The demo shop: tenant `demo`, reached by the host names 127.0.0.1 and localhost. Everything a shopper or merchant could
-- make goes through the services that they use. Each thing is found by its slug, code or name first, so that a run which
-- was cut short goes on where it ended and a second run changes nothing.
local crypto = require("core.crypto")
local uuid = require("core.uuid")
local base = require("kasma.seed.base")
local data = require("kasma.seed.products")
local db = require("kasma.db")
local store = require("kasma.seed.store")

local M = {}

local TENANT, APP = "demo", "demo"
local scope = { tenant = TENANT, app = APP }

-- { e-mail, name, role, user type }; the platform's owner belongs to no tenant.
local PEOPLE = {
    { "merchant@demo.test", "Mai Trần", "tenant_owner", "TENANT_0" },
    { "warehouse@demo.test", "Hùng Lê", "warehouse", "TENANT_3" },
    { "shopper@demo.test", "Lan Nguyễn", "customer", "GENERAL_0" },
    { "owner@platform.test", "Platform owner", "platform_owner", "KASMA_0" },
}

local function tenant()
    local made = require("modules.tenants.service").create({ tenant = "MASTER", app = "MASTER" }, { tenant_key = TENANT, name = "Demo",
        is_test = true, settings = { ["auth.login_otp"] = "never" },
        app = { app_key = APP, name = "Demo shop", hostnames = { "127.0.0.1", "localhost" } } })
    local now = base.now()
    local statements = { store.name_warehouse({ tenant = TENANT, id = made.warehouse_id, name = "Kho TP. Hồ Chí Minh", code = "HCM",
        city = "Hồ Chí Minh", region = "Hồ Chí Minh" }, now) }
    for _, module in ipairs(base.modules) do
        statements[#statements + 1] = store.registry({ tenant = TENANT, app = APP, id = uuid.v7(), module = module[1] }, now)
    end
    db.pipeline(TENANT, statements)
end

local function wire_id() return crypto.random_hex(12) end

-- Catalogue -------------------------------------------------------------------------------------------------------------

local function categories(catalog)
    local known = store.known(TENANT, "product_categories")
    for i, c in ipairs(data.categories) do
        if not known[c[1]] then
            known[c[1]] = catalog.create_category(scope, { slug = c[1], name = c[2], description = c[3], parentId = c[4] and known[c[4]],
                sortOrder = i }).id
        end
    end
    return known
end

local function tags(catalog)
    local known = store.known(TENANT, "product_tags")
    for _, t in ipairs(data.tags) do
        if not known[t[1]] then known[t[1]] = catalog.create_tag(scope, { slug = t[1], name = t[2] }).id end
    end
    return known
end

-- All combinations of the axes, the first axis slowest.
local function variants(slug, price, axes)
    local list = { { sku = slug:upper(), price = price, attributes = {} } }
    for _, axis in ipairs(axes) do
        local longer = {}
        for _, v in ipairs(list) do
            for i = 2, #axis do
                local attributes = {}
                for name, value in pairs(v.attributes) do attributes[name] = value end
                attributes[axis[1]] = axis[i][1]
                longer[#longer + 1] = { sku = v.sku .. "-" .. axis[i][1]:upper():gsub("[^A-Z0-9]", ""), price = v.price + axis[i][2],
                    attributes = attributes }
            end
        end
        list = longer
    end
    return list
end

local function attributes(axes)
    local list = {}
    for i, axis in ipairs(axes) do
        local values = {}
        for n = 2, #axis do values[n - 1] = axis[n][1] end
        list[i] = { name = axis[1], values = values }
    end
    return list
end

local function products(catalog, category_ids, tag_ids)
    local known, n = store.known(TENANT, "products"), 0
    for _, c in ipairs(data.categories) do
        for _, p in ipairs(data.products[c[1]] or {}) do
            local slug, name, english, price, weight, labels, axes = p[1], p[2], p[3], p[4], p[5], p[6], p[7]
            n = n + 1
            if not known[slug] then
                local ids = {}
                for i, label in ipairs(labels) do ids[i] = tag_ids[label] end
                local input = { slug = slug, name = ("%s (%s)"):format(name, english), code = ("DEMO-%03d"):format(n), price = price,
                    weightGrams = weight, categoryId = category_ids[c[1]], tagIds = ids, taxClass = data.tax_class[c[1]],
                    description = ("<p>%s. <em>%s</em>, from the %s of the demo shop.</p>"):format(name, english, c[3]:lower()),
                    specifications = { { key = "Weight", value = weight .. " g" } }, attributes = axes and attributes(axes),
                    variants = axes and variants(slug, price, axes) }
                known[slug] = catalog.create_product(scope, input)
            end
        end
    end
    return known
end

-- Stock: everything lies in the first warehouse, every third thing in the second as well; plenty of the cheap, few of the
-- dear.
local function same(row) return row end
local function nothing() return { "select 1 as done" } end -- no request, so no idempotency record to complete

local function stock(inventory)
    local warehouses = store.known(TENANT, "warehouses")
    if not warehouses.HN then
        warehouses.HN = inventory.create_warehouse(scope, { code = "HN", name = "Kho Hà Nội", city = "Hà Nội", region = "Hà Nội",
            country = "VN" }).id
    end
    for step, code in pairs({ [1] = "HCM", [3] = "HN" }) do
        local there = {}
        for _, row in ipairs(store.stocked(TENANT, warehouses[code])) do there[row.product_id .. (row.variant_id or "")] = true end
        for i, item in ipairs(store.sellable(TENANT)) do
            if i % step == 0 and not there[item.product_id .. (item.variant_id or "")] then
                inventory.adjust(scope, { warehouseId = warehouses[code], productId = item.product_id, variantId = item.variant_id,
                    quantity = 20 + (i * 37) % 180, reason = "seed" }, same, nothing)
            end
        end
    end
    return warehouses
end

-- Money, shipping and marketing -----------------------------------------------------------------------------------------

local function finance(tax)
    local now = base.now()
    local rules = store.known(TENANT, "tax_rules")
    for _, r in ipairs({
        { name = "VAT 10%", country = "VN", rate = "10" },
        { name = "VAT sách 5%", country = "VN", rate = "5", taxClass = "books" },
        { name = "California", country = "US", region = "CA", rate = "7.25", stackGroup = "state" },
        { name = "Los Angeles County", country = "US", region = "CA", zipCode = "90001-90899", rate = "2.25", stackGroup = "county" },
    }) do
        if not rules[r.name] then tax.create_rule(scope, r) end
    end
    local statements = { store.tax_config({ tenant = TENANT, app = APP, id = uuid.v7(), wire_id = wire_id() }, now) }
    local rates = store.known(TENANT, "exchange_rates")
    -- units of the currency per VND, and VND per unit
    for _, c in ipairs({ { "USD", "$", 2, "0.000039292731", "25450" }, { "EUR", "€", 2, "0.000036101083", "27700" },
        { "JPY", "¥", 0, "0.005917159763", "169" } }) do
        statements[#statements + 1] = store.currency({ tenant = TENANT, app = APP, id = uuid.v7(), code = c[1], symbol = c[2],
            digits = c[3],
            rate = c[4], base = false }, now)
        if not rates[c[1] .. "VND"] then
            statements[#statements + 1] = store.exchange_rate({ tenant = TENANT, app = APP, id = uuid.v7(), wire_id = wire_id(),
                from = c[1],
                to = "VND", rate = c[5] }, now)
        end
    end
    for _, c in ipairs({ { "Giao Hàng Nhanh", "ghn" }, { "Giao Hàng Tiết Kiệm", "ghtk" }, { "Simulated carrier", "sim" } }) do
        statements[#statements + 1] = store.carrier({ tenant = TENANT, app = APP, id = uuid.v7(), name = c[1], code = c[2],
            adapter = "sim" }, now)
    end
    statements[#statements + 1] = store.coupon({ tenant = TENANT, app = APP, id = uuid.v7(), code = "WELCOME10", type = "percentage",
        description = "10% off the first order", value = 1000, min_order_minor = 200000 }, now)
    db.pipeline(TENANT, statements)
end

local function delivery(shipping)
    local zones, methods, carriers = store.known(TENANT, "shipping_zones"), store.known(TENANT, "shipping_methods"),
        store.known(TENANT, "carriers")
    local function zone(name, input)
        input.name = name
        if not zones[name] then zones[name] = shipping.create_zone(scope, input).id end
        return zones[name]
    end
    local function method(zone_id, name, input)
        input.zoneId, input.name = zone_id, name
        if not methods[name] then shipping.add_method(scope, input) end
    end
    local city = zone("Nội thành Hà Nội và TP. HCM", { countries = { "VN" }, regions = { "Hà Nội", "Hanoi", "Hồ Chí Minh", "Ho Chi Minh" },
        priority = 10 })
    local country = zone("Việt Nam", { countries = { "VN" } })
    local world = zone("Quốc tế", { countries = { "US", "JP", "SG", "AU", "DE", "FR" } })
    method(city, "Nhận tại cửa hàng (Pick-up)", { basePrice = 0, estimatedDays = "0" })
    method(city, "Giao nhanh 2 giờ", { basePrice = 35000, pricePerKg = 5000, estimatedDays = "0-1", carrierId = carriers.ghn })
    method(country, "Giao tiêu chuẩn", { basePrice = 25000, pricePerKg = 4000, estimatedDays = "2-4", carrierId = carriers.ghtk,
        freeOver = 1000000 })
    method(country, "Nhận tại kho (Pick-up)", { basePrice = 0, estimatedDays = "1" })
    method(world, "International", { basePrice = 450000, pricePerKg = 180000, estimatedDays = "7-14", carrierId = carriers.sim,
        codAllowed = false })
end

local function marketing(promotions, bundles, category_ids, product_ids)
    local running = store.known(TENANT, "promotions")
    for _, p in ipairs({
        { name = "Sách giảm 15%", type = "discount", value = 15, valueType = "percent", applicableTo = "category",
            targetIds = { category_ids.books } },
        { name = "Áo thun: mua 2 tặng 1", type = "b1g1", value = 100, applicableTo = "category", targetIds = { category_ids.fashion },
            buyQty = 2,
            getQty = 1, scope = "pool" },
        { name = "Miễn phí giao hàng từ 2 triệu", type = "free_shipping", value = 100, applicableTo = "all", minOrderValue = 2000000 },
    }) do
        if not running[p.name] then promotions.create(scope, p) end
    end
    local sets = store.known(TENANT, "product_bundles")
    for _, b in ipairs({
        { name = "Bộ trà chiều (Afternoon tea)", slug = "afternoon-tea", price = 150000,
            items = { { productId = product_ids.oolong, quantity = 1 }, { productId = product_ids.mug, quantity = 1 } } },
        { name = "Giỏ quà đặc sản (Local gift basket)", slug = "gift-basket", price = 290000,
            items = { { productId = product_ids.cashew, quantity = 1 }, { productId = product_ids["dried-mango"], quantity = 1 },
                { productId = product_ids["coconut-candy"], quantity = 2 } } },
    }) do
        if not sets[b.name] then bundles.create(scope, b) end
    end
end

-- People ----------------------------------------------------------------------------------------------------------------

local function new_password() return crypto.base64url(crypto.random(15)) end

--- Makes the people that are missing. Where passwords are remembered, one that is not among them is made anew.
---@param passwords table<string, string>|nil by e-mail, those of an earlier run; nil: whoever is there keeps theirs
---@return { email: string, password: string|nil, role: string }[]
local function people(passwords)
    local list = {}
    for i, person in ipairs(PEOPLE) do
        local email, name, role, kind = person[1], person[2], person[3], person[4]
        local now, statements = base.now(), {}
        local id = store.user(email)
        local password = passwords and passwords[email]
        if not id then
            id = uuid.v7()
            for _, statement in ipairs(store.new_user({ id = id, email = email, name = name, type = kind }, now)) do
                statements[#statements + 1] = statement
            end
        end
        if (passwords and not password) or #statements > 0 then
            password = password or new_password()
            local hash, err = crypto.password_hash(password)
            if not hash then error(err, 0) end
            statements[#statements + 1] = store.password(uuid.v7(), id, hash, now)
        end
        if role == "platform_owner" then
            statements[#statements + 1] = store.platform_holder(uuid.v7(), id, now)
        else
            statements[#statements + 1] = store.member(uuid.v7(), id, TENANT, now)
            statements[#statements + 1] = store.user_role({ tenant = TENANT, app = APP, id = uuid.v7(), user_id = id, role = role }, now)
        end
        db.pipeline(TENANT, statements)
        list[i] = { email = email, password = password, role = role }
    end
    return list
end

---@class SeedReport
---@field people { email: string, password: string|nil, role: string }[]
---@field products integer

--- Makes the demo shop, or what is missing of it.
---@param passwords table<string, string>|nil by e-mail; nil: whoever is there keeps theirs
---@return SeedReport
function M.run(passwords)
    if not store.has_tenant(TENANT) then tenant() end
    local catalog, inventory = require("modules.catalog.service"), require("modules.inventory.service")
    local category_ids = categories(catalog)
    local product_ids = products(catalog, category_ids, tags(catalog))
    stock(inventory)
    finance(require("modules.tax.service"))
    delivery(require("modules.shipping.service"))
    marketing(require("modules.promotions.service"), require("modules.bundles.service"), category_ids, product_ids)
    local n = 0
    for _ in pairs(product_ids) do n = n + 1 end
    return { people = people(passwords), products = n }
end

return M
