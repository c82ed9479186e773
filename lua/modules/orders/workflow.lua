-- Whether an order may change its state: rules of the hook workflow.order may refuse a change that the product is about to make, name a
-- state of the shop's own beside it, and have a mail sent. They never add a change, and what happened outside of the shop stays: money
-- that came is booked whatever they say.
--
-- A rule is asked under the locks of the order, so nothing here may wait: `hold` reads the shop's rules before the transaction.
local crypto = require("core.crypto")
local json = require("core.json")
local uuid = require("core.uuid")
local hooks = require("kasma.hooks")
local outbox = require("kasma.outbox")
local tenants = require("kasma.tenant")
local store = require("modules.orders.store")

local M = {}

local HOOK = "workflow.order"

---@class OrderVerdict
---@field allow boolean
---@field reason string|nil
---@field workflow_state string|nil
---@field template string|nil mail to the buyer
---@field rule string|nil key of the rule that spoke

local ALLOWED = { allow = true }

--- A scope that holds on to the rules of now, when there are any of this hook; else nil, and nobody is asked.
---@param scope Scope
---@return Scope|nil
function M.hold(scope)
    if not hooks.any(scope, HOOK) then return nil end
    local own = { tenant = scope.tenant, app = scope.app, actor_kind = scope.actor_kind }
    local ok, set = pcall(hooks.pin, scope)
    if ok then own.rule_set = set end
    tenants.by_key(scope.tenant)
    return own
end

local function subject_of(order, to, actor)
    local told, net = {}, 0
    for i, item in ipairs(order.items) do
        told[i] = { product_id = item.product_id, variant_id = item.variant_id ~= json.null and item.variant_id or nil,
            sku = item.sku_snapshot, qty = item.quantity, net = item.net_total_minor }
        net = net + item.net_total_minor
    end
    local address = type(order.shipping_address) == "table" and order.shipping_address or {}
    return { from = order.status, to = to, actor = { id = actor.id, kind = actor.kind }, order = { id = order.id,
        order_number = order.order_number, status = order.status, payment_status = order.payment_status,
        total = order.total_amount_minor, net = net, currency = order.currency, items = told, placed_at = order.placed_at,
        customer_id = order.user_id ~= json.null and order.user_id or nil,
        country = address.country ~= json.null and address.country or nil } }
end

--- Asks the rules about one change.
---@param held Scope|nil of hold
---@param order table row with items
---@param to string
---@param actor { id: string|nil, kind: string }
---@return OrderVerdict
function M.ask(held, order, to, actor)
    if not held then return ALLOWED end
    local answer, info = hooks.call(held, HOOK, subject_of(order, to, actor))
    if answer then
        return { allow = answer.allow, reason = answer.reason, workflow_state = answer.workflow_state,
            template = answer.notify and answer.notify.template, rule = info.rule }
    end
    if info and info.blocked then return { allow = false, reason = "rule_failed", rule = info.rule } end
    return ALLOWED
end

--- The same for orders of a transaction: verdicts by order id.
---@param tx table
---@param held Scope|nil
---@param orders table[] rows of one tenant
---@param to fun(order: table): string the state each is to have; its own: it does not change, and nobody is asked
---@param actor table
---@return table<string, OrderVerdict>
function M.ask_all(tx, held, orders, to, actor)
    local verdicts = {}
    if held and orders[1] then store.items_in(tx, held.tenant, orders) end
    for _, order in ipairs(orders) do
        verdicts[order.id] = held and to(order) ~= order.status and M.ask(held, order, to(order), actor) or ALLOWED
    end
    return verdicts
end

--- Appends what a verdict leaves behind: of a refusal an event on the order and one for the world, and the mail it wishes for.
---@param list table[] statements
---@param order table row as it was before
---@param to string
---@param verdict OrderVerdict
---@param now string
function M.append(list, order, to, verdict, now)
    local scope = { tenant = order.tenant_key, app = order.app_key }
    if not verdict.allow then
        list[#list + 1] = store.insert_event{ tenant_key = order.tenant_key, app_key = order.app_key, id = uuid.v7(),
            order_id = order.id, type = "transition_denied", from_status = order.status, to_status = to, actor_kind = "script",
            reason = verdict.reason, data = { rule = verdict.rule, workflowState = verdict.workflow_state }, now = now }
        list[#list + 1] = outbox.event(scope, "order.transition_denied", order.id, { checkoutId = order.checkout_id,
            from = order.status, to = to, rule = verdict.rule or json.null, reason = verdict.reason or json.null,
            workflowState = verdict.workflow_state or json.null })
    end
    if verdict.template then
        -- The same words about the same change are mailed once: a change that a rule refuses is asked about again and again.
        local words = crypto.sha256(verdict.template .. "|" .. (verdict.reason or "")):sub(1, 16)
        list[#list + 1] = outbox.job(scope, "sales-queue", "order-notice", { orderId = order.id, template = verdict.template,
            reason = verdict.reason or json.null, tenant_key = scope.tenant, app_key = scope.app },
            { jobId = ("on-%s-%s-%s"):format(order.id, to, words) })
    end
end

return M
