-- Payments and the provider's events about them. Statements for the caller's pipeline, and a few reads.
local json = require("core.json")
local pg = require("core.pg")
local db = require("kasma.db")

local M = {}

local null = json.null

local PAYMENT = [[p.id, p.tenant_key, p.app_key, p.created_at, p.updated_at, p.checkout_id, p.purpose, p.provider, p.transaction_id,
  p.amount_minor, p.authorized_minor, p.captured_minor, p.refunded_minor, p.currency_code, p.status, p.session_url, p.client_secret,
  p.expires_at]]

--- The payment, and the reference by which a call of its provider finds it.
---@param p table
---@return table[] statements
function M.insert_statements(p)
    local list = { { [[insert into payments (tenant_key, app_key, id, checkout_id, purpose, provider, user_id, amount_minor, currency_code,
      status, transaction_id, session_url, client_secret, return_url, expires_at, idem_key, created_at, updated_at)
      values ($1, $2, $3, $4, 'ORDER', $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $16)]],
        p.tenant_key, p.app_key, p.id, p.checkout_id, p.provider, p.user_id or null, p.amount_minor, p.currency_code, p.status,
        p.transaction_id or null, p.session_url or null, p.client_secret or null, p.return_url or null, p.expires_at or null, p.idem_key,
        p.now } }
    if p.transaction_id then
        list[2] = { [[insert into public_refs (kind, ref, tenant_key, id, created_at) values ('payment', $1, $2, $3, $4)]],
            p.provider:lower() .. ":" .. p.transaction_id, p.tenant_key, p.id, p.now }
    end
    return list
end

---@param tenant string
---@param checkout_id string
---@return table|nil payment the newest of the checkout
function M.of_checkout(tenant, checkout_id)
    return db.read(tenant, "select " .. PAYMENT .. [[ from payments p where p.tenant_key = $1 and p.checkout_id = $2
      order by p.created_at desc, p.id desc limit 1]], tenant, checkout_id)[1]
end

--- Locks the checkout's payments, the first rows in the order of locks.
---@param tx table
---@return table[] payments newest first
function M.lock(tx, tenant, checkout_id)
    return tx:query("select " .. PAYMENT .. [[ from payments p where p.tenant_key = $1 and p.checkout_id = $2
      order by p.created_at desc, p.id desc for update]], tenant, checkout_id)
end

--- One row an event of the provider; no row comes back when it is known already.
function M.insert_event(e)
    return { [[insert into payment_events as e (tenant_key, app_key, id, provider, event_id, type, raw_sha256, payload, received_at,
        created_at,
      updated_at) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9, $9) on conflict (tenant_key, provider,
      event_id) do nothing returning e.id]],
        e.tenant_key, e.app_key, e.id, e.provider, e.event_id, e.type, e.raw_sha256, pg.json(e.payload), e.now }
end

function M.put_event_result(tenant, id, result, applied, now)
    return { "update payment_events set result = $3, applied_at = $4, updated_at = $5 where tenant_key = $1 and id = $2",
        tenant, id, pg.json(result), applied and now or null, now }
end

---@param c { tenant_key: string, id: string, status: string, captured_minor: integer, transaction_id: string|nil, now: string }
function M.move(c)
    return { [[update payments set status = $3, captured_minor = $4, transaction_id = coalesce(transaction_id, $5), updated_at = $6
      where tenant_key = $1 and id = $2]], c.tenant_key, c.id, c.status, c.captured_minor, c.transaction_id or null, c.now }
end

---@param tenant string
---@param user_id string
---@return table[] saved methods, without their tokens
function M.personal_methods(tenant, user_id)
    return db.read(tenant, [[select id, provider, brand, last4, expires_at, is_default, status, created_at from payment_methods
      where tenant_key = $1 and user_id = $2 order by created_at limit 1000]], tenant, user_id)
end

---@param tenant string
---@param user_id string
---@return table[] statements
function M.erase_methods(tenant, user_id)
    return { { "delete from payment_methods where tenant_key = $1 and user_id = $2", tenant, user_id } }
end

return M
