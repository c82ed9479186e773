-- What a cart means. Items are stored by product and variant and priced live on every read; the price at addition only feeds a notice.
local crypto = require("core.crypto")
local json = require("core.json")
local money = require("core.money")
local time = require("core.time")
local uuid = require("core.uuid")
local bundles = require("modules.bundles.service")
local catalog = require("modules.catalog.service")
local db = require("kasma.db")
local errors = require("kasma.errors")
local outbox = require("kasma.outbox")
local store = require("modules.cart.store")
local tenants = require("kasma.tenant")

local M = {}

local MAX_LINES, MAX_QUANTITY = 200, 9999
local GUEST_DAYS = 30
local PROPERTIES_MAX = 4096 -- bytes of a line's properties: every write of a cart writes all its lines
local DAY_MS = 86400000
local WRITE_TRIES = 20 -- parallel writers of one cart; each loser reads the winner's row and tries again

--- 24 hex characters as an ObjectId has them: 4 bytes of time, 8 random.
local function wire_id()
    return ("%08x"):format(math.floor(time.now() / 1000)) .. crypto.random_hex(8)
end

---@class CartOwner
---@field key string `u:<user id>` or `g:<sha256 of the token>`
---@field user_id string|nil
---@field token string|nil a guest's token, to be given back

---@param user_id string|nil
---@param token string|nil X-Cart-Token of a guest, 32 hex
---@return CartOwner|nil owner nil: a guest without a token
function M.owner(user_id, token)
    if user_id then return { key = "u:" .. user_id, user_id = user_id } end
    if token and token:match("^%x+$") and #token == 32 then
        return { key = "g:" .. crypto.sha256(token:lower()), token = token }
    end
    return nil
end

--- A guest's first write mints the token.
---@return CartOwner
function M.new_guest()
    local token = crypto.random_hex(16)
    return { key = "g:" .. crypto.sha256(token), token = token }
end

local function expiry(owner)
    return not owner.user_id and time.iso(time.now() + GUEST_DAYS * DAY_MS) or nil
end

---@param scope Scope
---@param owner CartOwner
---@return table cart the row; made when missing
function M.get(scope, owner)
    return store.find(scope.tenant, owner.key) or store.create{ tenant_key = scope.tenant, app_key = scope.app, id = uuid.v7(),
        wire_id = wire_id(), owner_key = owner.key, user_id = owner.user_id, currency = tenants.currency(scope.tenant),
        expires_at = expiry(owner), now = time.iso(time.now()) }
end

M.prune = store.prune

---@param scope Scope
---@param owner CartOwner
---@return table|nil cart
function M.find(scope, owner)
    return store.find(scope.tenant, owner.key)
end

--- Whosesoever it is: for those who may look into the shop's carts.
---@param scope Scope
---@param ref string its id, or the one that clients see
---@return table|nil cart
function M.by_id(scope, ref) return store.by_id(scope.tenant, ref) end

--- A write of a cart, told in its transaction behind it.
---@param scope Scope
---@param cart table row as it was before
---@param series integer
---@param count integer lines that it has now
---@return table[] statements
function M.changed(scope, cart, series, count)
    local version = cart.version + 1
    return { outbox.row(scope, "mirror.carts", cart.id, { id = cart.id, version = version }),
        outbox.event(scope, "cart.changed", cart.id, { userId = cart.user_id or json.null, version = version, series = series,
            itemCount = count }) }
end

local function lost() return nil end

--- Changes the items by compare-and-set: `change(items, cart)` gets a copy of the present items and gives the new ones, or raises.
local function write(scope, owner, change)
    for _ = 1, WRITE_TRIES do
        local cart = M.get(scope, owner)
        local items = change(cart.items, cart)
        if #items > MAX_LINES then errors.conflict{ message = ("A cart holds %d lines at most"):format(MAX_LINES), code = "cart_full" } end
        local now = time.iso(time.now())
        local answers = errors.state({ KS010 = lost }, db.pipeline, scope.tenant, {
            store.put_items(scope.tenant, cart.id, cart.version, items, expiry(owner), now),
            unpack(M.changed(scope, cart, cart.series, #items)) })
        if answers then return answers[1][1] end
    end
    errors.conflict{ message = "The cart is being changed by another request. Please retry.", code = "cart_changed" }
end

local function same(value, other)
    return (value or json.null) == (other or json.null)
end

local function find_plain(items, want)
    for i, item in ipairs(items) do
        if not item.bundleKey and item.productId == want.productId and same(item.variantId, want.variantId)
            and item.purchaseType == want.purchaseType and json.encode(item.properties or {}) == json.encode(want.properties or {}) then
            return i
        end
    end
end

--- The product and variant of a line that is to be sold, or the error that says why not.
local function sellable(scope, product, variant_id)
    if not product then errors.not_found{ message = "Product not found" } end
    if not product.is_active then errors.conflict{ message = "This product is not for sale", code = "product_inactive" } end
    if not variant_id then
        for _, v in ipairs(product.variants) do
            if v.is_active then errors.bad_request{ message = "variantId is required for this product", code = "variant_required" } end
        end
        return product
    end
    for _, v in ipairs(product.variants) do
        if v.id == variant_id then
            if not v.is_active then errors.conflict{ message = "This variant is not for sale", code = "product_inactive" } end
            return v
        end
    end
    if catalog.variant_exists(scope.tenant, variant_id) then
        errors.bad_request{ message = "variantId is no variant of this product", code = "variant_mismatch" }
    end
    errors.not_found{ message = "Variant not found" }
end

--- A line of a cart is bounded, whichever way it grew.
local function check_quantity(quantity, product)
    local most = math.min(MAX_QUANTITY, product and product.max_qty or MAX_QUANTITY)
    if quantity > most then errors.conflict{ message = ("At most %d of this product"):format(most), code = "max_quantity" } end
end

local function price_text(priced, currency)
    return money.format(priced.sale_price_minor > 0 and priced.sale_price_minor or priced.price_minor, currency)
end

--- Lines that are priced without a cart. What is not there or not for sale is the error that adding it to a cart would be.
---@param scope Scope
---@param items table[] productId, variantId, quantity
---@return table[] items as a cart holds them
function M.loose_items(scope, items)
    local ids, list = {}, {}
    for i, item in ipairs(items) do ids[i] = item.productId end
    local products = catalog.products_by_id(scope.tenant, ids)
    for i, item in ipairs(items) do
        sellable(scope, products[item.productId], item.variantId)
        list[i] = { lineId = "q" .. i, productId = item.productId, variantId = item.variantId, quantity = item.quantity }
    end
    return list
end

---@param scope Scope
---@param owner CartOwner
---@param input table productId, variantId, quantity, purchaseType, properties
---@return table cart
function M.add(scope, owner, input)
    if input.properties and #json.encode(input.properties) > PROPERTIES_MAX then
        errors.bad_request{ message = { ("properties must not be larger than %d bytes"):format(PROPERTIES_MAX) }, code = "properties_size" }
    end
    local product = catalog.products_by_id(scope.tenant, { input.productId })[input.productId]
    local priced = sellable(scope, product, input.variantId)
    local line = { lineId = uuid.v7(), productId = input.productId, variantId = input.variantId or json.null, quantity = input.quantity,
        addedAt = time.iso(time.now()), priceAtAddition = price_text(priced, product.currency),
        purchaseType = input.purchaseType or "one_time", properties = input.properties }
    return write(scope, owner, function(items)
        local at = find_plain(items, line)
        if not at then
            items[#items + 1] = line
        else
            items[at].quantity = items[at].quantity + input.quantity
        end
        check_quantity(at and items[at].quantity or line.quantity, product)
        return items
    end)
end

--- The plain line that a client names by its id or by product and variant.
local function named(items, input)
    for i, item in ipairs(items) do
        if input.lineId then
            if item.lineId == input.lineId then return i end
        elseif item.productId == input.productId and same(item.variantId, input.variantId) then
            return i
        end
    end
end

--- A bundle's lines change only together: touching one dissolves the bundle into plain lines.
local function dissolve(items, bundle_key)
    for _, item in ipairs(items) do
        if item.bundleKey == bundle_key then item.bundleKey, item.bundleId = nil, nil end
    end
end

---@param scope Scope
---@param owner CartOwner
---@param input table productId, variantId or lineId, quantity (<= 0 removes)
---@return table cart
function M.update(scope, owner, input)
    if input.quantity > MAX_QUANTITY then
        errors.conflict{ message = ("At most %d of a product"):format(MAX_QUANTITY), code = "max_quantity" }
    end
    return write(scope, owner, function(items)
        local at = named(items, input)
        if not at then errors.not_found{ message = "Item not in cart" } end
        if items[at].bundleKey then dissolve(items, items[at].bundleKey) end
        if input.quantity <= 0 then
            table.remove(items, at)
        else
            items[at].quantity = input.quantity
        end
        return items
    end)
end

---@param scope Scope
---@param owner CartOwner
---@param input table productId, variantId or lineId
---@return table cart no error when the line is absent
function M.remove(scope, owner, input)
    return write(scope, owner, function(items)
        local at = named(items, input)
        if at then
            if items[at].bundleKey then dissolve(items, items[at].bundleKey) end
            table.remove(items, at)
        end
        return items
    end)
end

---@param scope Scope
---@param owner CartOwner
---@return table cart
function M.clear(scope, owner)
    return write(scope, owner, function() return {} end)
end

---@param scope Scope
---@param owner CartOwner
---@param bundle_id string
---@param quantity integer instances of the bundle, 1..99
---@return table cart with one line a component, all under one bundleKey
function M.add_bundle(scope, owner, bundle_id, quantity)
    local bundle = bundles.by_id(scope, { bundle_id })[bundle_id]
    if not bundle then errors.not_found{ message = "Bundle not found" } end
    local now = time.iso(time.now())
    local running = bundle.is_active and (not bundle.start_date or bundle.start_date <= now)
        and (not bundle.end_date or now < bundle.end_date)
    if not running then errors.conflict{ message = "This bundle is not for sale", code = "bundle_inactive" } end
    return write(scope, owner, function(items)
        -- The same bundle again: its lines grow together.
        local key
        for _, item in ipairs(items) do
            if item.bundleId == bundle_id and item.bundleKey then key = item.bundleKey end
        end
        if key then
            for _, item in ipairs(items) do
                if item.bundleKey == key then
                    for _, part in ipairs(bundle.items) do
                        if part.product_id == item.productId and same(part.variant_id, item.variantId) then
                            item.quantity = item.quantity + part.quantity * quantity
                            check_quantity(item.quantity, part.product)
                        end
                    end
                end
            end
            return items
        end
        key = uuid.v7()
        for _, part in ipairs(bundle.items) do
            local priced = sellable(scope, part.product, part.variant_id)
            check_quantity(part.quantity * quantity, part.product)
            items[#items + 1] = { lineId = uuid.v7(), productId = part.product_id, variantId = part.variant_id or json.null,
                quantity = part.quantity * quantity, addedAt = now, priceAtAddition = price_text(priced, part.product.currency),
                purchaseType = "one_time", bundleId = bundle_id, bundleKey = key }
        end
        return items
    end)
end

return M
