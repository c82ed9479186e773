-- Payments of checkouts. The intent is a row of the order's transaction. A provider that has to be asked over the network is asked after
-- the commit, never inside it; the simulated one answers by itself, so its session is part of the same transaction.
local config = require("core.config")
local json = require("core.json")
local outbox = require("kasma.outbox")
local sim = require("modules.payments.sim")
local store = require("modules.payments.store")
local wire = require("kasma.wire")

local M = {}

M.insert_statements = store.insert_statements
M.of_checkout = store.of_checkout
M.lock = store.lock
M.insert_event_statement = store.insert_event
M.event_result_statement = store.put_event_result

local TELLS = { CAPTURED = "payment.captured", FAILED = "payment.failed", EXPIRED = "payment.expired" }

--- Statements that bring a payment, which the caller has locked, into a state, and tell of it.
---@param payment table row as it was read
---@param c { status: string, transaction_id: string|nil, reason: string|nil, now: string } reason: why, where there is one to tell
---@return table[] statements
function M.move_statements(payment, c)
    local taken = c.status == "CAPTURED"
    local list = { store.move{ tenant_key = payment.tenant_key, id = payment.id, status = c.status,
        captured_minor = taken and payment.amount_minor or 0, transaction_id = taken and c.transaction_id or nil, now = c.now } }
    if TELLS[c.status] then
        list[2] = outbox.event({ tenant = payment.tenant_key, app = payment.app_key }, TELLS[c.status], payment.id, {
            checkoutId = payment.checkout_id, provider = payment.provider,
            transactionId = payment.transaction_id or c.transaction_id or json.null, currency = payment.currency_code,
            amountMinor = payment.amount_minor, reason = c.reason or json.null })
    end
    return list
end

--- Fills in the session of a payment that is about to be written.
---@param payment table id, provider, amount_minor, currency_code; gets status, transaction_id, session_url, client_secret
---@return string|nil code why there is no session: the order stays payable
function M.open(payment)
    payment.status = "CREATED"
    -- A provider without keys is stood in for by the simulator, outside production only.
    if config.env() == "production" then return "payment_unavailable" end
    local session = sim.create(payment)
    payment.status = "PENDING"
    payment.transaction_id, payment.session_url, payment.client_secret = session.transaction_id, session.session_url, session.client_secret
    return nil
end

---@param payment table
---@return table paymentSession as clients know it
function M.session_body(payment)
    local body = { paymentId = payment.id, provider = payment.provider, transactionId = payment.transaction_id or json.null,
        status = payment.status, sessionUrl = payment.session_url or json.null, clientSecret = payment.client_secret or json.null,
        currency = payment.currency_code, expiresAt = payment.expires_at or json.null }
    wire.amount(body, "amount", payment.amount_minor, payment.currency_code)
    return body
end

return M
