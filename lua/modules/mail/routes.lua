-- Mails as HTTP sees them: what was sent, a shop's own templates, who is not written to, and the link off the list.
local crypto = require("core.crypto")
local json = require("core.json")
local audit = require("kasma.audit")
local errors = require("kasma.errors")
local null = require("kasma.null")
local route = require("kasma.route")
local schema = require("kasma.schema")
local mail = require("modules.mail.service")

local Message = schema.object({ id = schema.uuid(), key = schema.string(), template = schema.string(), locale = schema.string(),
    recipient = schema.string(), userId = schema.uuid():nullable(), state = schema.string(), attempts = schema.integer(),
    providerId = schema.string():nullable(), error = schema.string():nullable(), createdAt = schema.date(),
    sentAt = schema.date():nullable() }, { name = "MailMessage" })
local Form = schema.object({ template = schema.string(), locale = schema.string(), subject = schema.string(), html = schema.string(),
    text = schema.string(), isActive = schema.boolean(), updatedAt = schema.date() }, { name = "MailTemplateForm" })
local Template = schema.object({ template = schema.string(), shipped = schema.array(schema.string()), own = schema.array(Form) },
    { name = "MailTemplate" })
local Suppression = schema.object({ id = schema.uuid(), reason = schema.string(), source = schema.string():nullable(),
    createdAt = schema.date() }, { name = "MailSuppression" })

local function message_of(row)
    return { id = row.id, key = row.key, template = row.template, locale = row.locale, recipient = row.recipient,
        userId = row.user_id or null, state = row.state, attempts = row.attempts, providerId = row.provider_id or null,
        error = row.error or null, createdAt = row.created_at, sentAt = row.sent_at or null }
end

local function form_of(row)
    return { template = row.template, locale = row.locale, subject = row.subject, html = row.html, text = row.text,
        isActive = row.is_active, updatedAt = row.updated_at }
end

local function suppression_of(row)
    return { id = row.id, reason = row.reason, source = row.source or null, createdAt = row.created_at }
end

local function list_of(rows, view)
    local list = json.array({})
    for i, row in ipairs(rows) do list[i] = view(row) end
    return list
end

local function place_of(cursor)
    if not cursor then return nil end
    local padded = cursor:gsub("-", "+"):gsub("_", "/")
    local at, id = (crypto.unbase64(padded .. ("="):rep((4 - #padded % 4) % 4)) or ""):match("^(.-)|(.+)$")
    if not at or not schema.is_date(at) or not schema.is_uuid(id) then errors.validation{ "cursor is not valid" } end
    return { at = at, id = id }
end

local function page(ctx, rows, limit, view)
    local last = #rows == limit and rows[#rows]
    if last then ctx.set_header("X-Next-Cursor", (crypto.base64url(last.created_at .. "|" .. last.id))) end
    return list_of(rows, view)
end

local Cursor = schema.string{ max = 200 }:optional()
local Limit = schema.integer{ min = 1, cap = 500 }:default(50)
local Reason = schema.enum({ "bounce", "complaint", "unsubscribe", "manual" })
local Name = schema.string{ not_empty = true, max = 100, pattern = "^[%w_.-]+$" }
local Locale = schema.string{ max = 20, pattern = "^%a%a[%w-]*$" }

route.get("/mail/messages", {
    summary = "Mails and what became of them, newest first",
    access = { permission = "mail.read" }, tag = "mail", no_store = true,
    query = schema.object{ state = schema.enum({ "queued", "sending", "sent", "failed", "suppressed" }):optional(),
        template = schema.string{ max = 100 }:optional(), recipient = schema.string{ max = 320 }:optional(), cursor = Cursor,
        limit = Limit },
    returns = schema.array(Message),
    handler = function(ctx)
        local q = ctx.query
        local rows = mail.messages(ctx.tenant, q, place_of(q.cursor), q.limit)
        audit.write(ctx.scope, { action = "mail.read", entity_type = "mail_message", entity_id = "list" })
        return page(ctx, rows, q.limit, message_of)
    end,
})

route.get("/mail/templates", {
    summary = "Mail templates with the shop's own forms",
    access = { permission = "mail.read" }, tag = "mail",
    returns = schema.array(Template),
    handler = function(ctx)
        return list_of(mail.templates(ctx.tenant), function(entry)
            return { template = entry.template, shipped = json.array(entry.shipped), own = list_of(entry.own, form_of) }
        end)
    end,
})

route.get("/mail/templates/:template", {
    summary = "The form that a mail would have now",
    access = { permission = "mail.read" }, tag = "mail",
    params = { template = Name },
    query = schema.object{ locale = Locale:default("en") },
    returns = { [200] = schema.object{ subject = schema.string(), html = schema.string(), text = schema.string() },
        [404] = mail.template_unknown },
    handler = function(ctx)
        local form = mail.form(ctx.tenant, ctx.params.template, ctx.query.locale)
        return { subject = form.subject, html = form.html, text = form.text }
    end,
})

route.post("/mail/templates/update", {
    summary = "Set the shop's own form of a mail template",
    access = { permission = "mail.write" }, tag = "mail",
    body = schema.object{ template = Name, locale = Locale, subject = schema.string{ not_empty = true, max = 300 },
        html = schema.string{ not_empty = true, max = 262144 }, text = schema.string{ max = 65536 }:optional(),
        isActive = schema.boolean():optional() },
    returns = { [201] = Form, [404] = mail.template_unknown },
    handler = function(ctx) return form_of(mail.put_form(ctx.scope, ctx.body)) end,
})

route.post("/mail/templates/remove", {
    summary = "Go back to the shipped form of a mail template",
    access = { permission = "mail.write" }, tag = "mail",
    body = schema.object{ template = Name, locale = Locale },
    returns = { [201] = schema.object{ removed = schema.boolean() } },
    handler = function(ctx) return { removed = mail.drop_form(ctx.scope, ctx.body.template, ctx.body.locale) } end,
})

route.get("/mail/suppressions", {
    summary = "Why addresses are not written to, newest first",
    access = { permission = "mail.read" }, tag = "mail", no_store = true,
    query = schema.object{ email = schema.email():optional(), reason = Reason:optional(),
        cursor = Cursor, limit = Limit },
    returns = schema.array(Suppression),
    handler = function(ctx)
        local q = ctx.query
        if q.email then return list_of(mail.suppressions_of(ctx.tenant, q.email), suppression_of) end
        return page(ctx, mail.suppressions(ctx.tenant, q.reason, place_of(q.cursor), q.limit), q.limit, suppression_of)
    end,
})

route.post("/mail/suppressions/create", {
    summary = "Write to an address no more",
    access = { permission = "mail.write" }, tag = "mail",
    body = schema.object{ email = schema.email(), reason = schema.enum({ "manual", "complaint" }):default("manual") },
    returns = { [201] = schema.object{ added = schema.boolean() } },
    handler = function(ctx) return { added = mail.suppress(ctx.scope, ctx.body.email, ctx.body.reason) } end,
})

route.post("/mail/suppressions/remove", {
    summary = "Write to an address again",
    access = { permission = "mail.write" }, tag = "mail",
    body = schema.object{ email = schema.email(), reason = Reason:optional() },
    returns = { [201] = schema.object{ removed = schema.integer() } },
    handler = function(ctx) return { removed = mail.unsuppress(ctx.scope, ctx.body.email, ctx.body.reason) } end,
})

-- The page asks in both languages of the shipped mails; a mail program posts without showing it (RFC 8058).
local function html(title, rest)
    return '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        .. '<meta name="robots" content="noindex"><title>' .. title .. "</title></head>"
        .. '<body style="font-family:sans-serif;max-width:32em;margin:3em auto;padding:0 1em"><h1>' .. title .. "</h1>" .. rest
        .. "</body></html>"
end

local ASK = html("Unsubscribe", '<p>No more offers and news from this shop?</p><p lang="vi">Ngừng nhận thư quảng cáo từ cửa hàng này?</p>'
    .. '<form method="post"><button type="submit">Unsubscribe / Hủy đăng ký</button></form>')
local DONE = html("Unsubscribed", '<p>You will get no more offers and news from this shop.</p>'
    .. '<p lang="vi">Bạn sẽ không nhận thư quảng cáo từ cửa hàng này nữa.</p>')

local Token = schema.string{ not_empty = true, max = 200 }
local Page = { description = "a page", content_type = "text/html" }

route.get("/mail/unsubscribe/:token", {
    summary = "The page behind the link off the list",
    access = "public", tag = "mail", no_store = true,
    params = { token = Token },
    returns = { [200] = Page, [404] = mail.token_unknown },
    handler = function(ctx)
        mail.check_link(ctx.params.token)
        return ASK
    end,
})

route.post("/mail/unsubscribe/:token", {
    summary = "Take the addressee of a marketing mail off the list",
    access = "public", tag = "mail", status = 200, no_store = true, idempotent = false,
    params = { token = Token }, body = false,
    returns = { [200] = Page, [404] = mail.token_unknown },
    handler = function(ctx)
        mail.unsubscribe(ctx.params.token)
        return DONE
    end,
})
