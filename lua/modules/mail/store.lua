-- SQL of mails, templates and the suppression list as staff see them; what sending itself asks stands in kasma.mail.
local pg = require("core.pg")
local db = require("kasma.db")
local null = require("kasma.null")

local M = {}

local MESSAGE = "id, key, template, locale, recipient, user_id, state, attempts, provider_id, error, created_at, sent_at"

---@param tenant string
---@param f {state: string|nil, template: string|nil, recipient: string|nil}
---@param place {at: string, id: string}|nil after this one
---@param limit integer
---@return table[] newest first
function M.messages(tenant, f, place, limit)
    return db.read(tenant, "select " .. MESSAGE .. [[ from mail_messages where tenant_key = $1
      and ($2::text is null or state = $2) and ($3::text is null or template = $3) and ($4::text is null or recipient = $4)
      and ($5::timestamptz is null or (created_at, id) < ($5::timestamptz, $6::uuid))
      order by created_at desc, id desc limit $7]], tenant, f.state or null, f.template or null, f.recipient or null,
        place and place.at or null, place and place.id or null, limit)
end

---@param tenant string
---@param id string
---@return table|nil
function M.message(tenant, id)
    return db.one(tenant, "select " .. MESSAGE .. " from mail_messages where tenant_key = $1 and id = $2", tenant, id)
end

local FORM = "id, template, locale, subject, html, text, is_active, updated_by, created_at, updated_at"

---@param tenant string
---@return table[] the tenant's own forms, at most 500
function M.forms(tenant)
    return db.read(tenant, "select " .. FORM .. " from mail_templates where tenant_key = $1 order by template, locale limit 500", tenant)
end

---@param row table tenant_key, app_key, id, template, locale, subject, html, text, is_active, updated_by, now
---@return table statement
function M.put_form(row)
    return { "insert into mail_templates as t (tenant_key, app_key, id, template, locale, subject, html, text, is_active, updated_by, "
        .. [[created_at, updated_at) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11::timestamptz, $11::timestamptz)
      on conflict (tenant_key, template, locale) do update set subject = excluded.subject, html = excluded.html, text = excluded.text,
        is_active = excluded.is_active, updated_by = excluded.updated_by, updated_at = excluded.updated_at
      returning ]] .. FORM, row.tenant_key, row.app_key, row.id, row.template, row.locale, row.subject, row.html, row.text, row.is_active,
        row.updated_by or null, row.now }
end

---@param tenant string
---@param template string
---@param locale string
---@return table statement
function M.drop_form(tenant, template, locale)
    return { "delete from mail_templates where tenant_key = $1 and template = $2 and locale = $3 returning id", tenant, template, locale }
end

---@param tenant string
---@param reason string|nil
---@param place {at: string, id: string}|nil
---@param limit integer
---@return table[] newest first
function M.suppressions(tenant, reason, place, limit)
    return db.read(tenant, [[select id, reason, source, created_at from mail_suppressions where tenant_key = $1
      and ($2::text is null or reason = $2) and ($3::timestamptz is null or (created_at, id) < ($3::timestamptz, $4::uuid))
      order by created_at desc, id desc limit $5]], tenant, reason or null, place and place.at or null, place and place.id or null, limit)
end

---@param tenant string
---@param hashes string[] of one address
---@param reason string|nil nil = all
---@return table statement
function M.drop_suppressions(tenant, hashes, reason)
    return { [[delete from mail_suppressions where tenant_key = $1 and email_hash = any($2::text[]) and ($3::text is null or reason = $3)
      returning id, reason]], tenant, pg.array(hashes), reason or null }
end

---@param tenant string
---@param hashes string[] of one address
---@return table[]
function M.suppressions_of(tenant, hashes)
    return db.read(tenant, [[select id, reason, source, created_at from mail_suppressions where tenant_key = $1 and email_hash =
      any($2::text[]) order by reason limit 10]], tenant, pg.array(hashes))
end

return M
