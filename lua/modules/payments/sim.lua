-- The simulated provider: stands in, outside production, for a provider without keys. Deterministic: the payment's id decides everything.
local M = {}

--- Opens a session. What a real adapter would ask the provider for.
---@param payment { id: string, amount_minor: integer, currency_code: string, provider: string }
---@return { transaction_id: string, session_url: string|nil, client_secret: string|nil }
function M.create(payment)
    return { transaction_id = "sim_" .. payment.id:gsub("-", "") }
end

return M
