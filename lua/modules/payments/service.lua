-- Payments of checkouts. The intent is a row of the order's transaction. A provider that has to be asked over the network is asked after
-- the commit, never inside it; the simulated one answers by itself, so its session is part of the same transaction.
local config = require("core.config")
local json = require("core.json")
local sim = require("modules.payments.sim")
local store = require("modules.payments.store")
local wire = require("kasma.wire")

local M = {}

M.insert_statements = store.insert_statements
M.of_checkout = store.of_checkout
M.lock = store.lock
M.insert_event_statement = store.insert_event
M.event_result_statement = store.put_event_result
M.move_statement = store.move

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
