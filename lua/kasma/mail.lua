-- Mail: each once per key. A mail is a row of mail_messages and an outbox job in the business transaction; the job asks the
-- suppressions, claims the row, renders the template and hands the message to the transport: files under var/mail
-- (MAIL_DIR) as long as no MAIL_HOST is configured.
--
--     mail.send(scope, { to = email, template = "order-confirmation", vars = {...}, key = "order-confirmation:" .. id })
--     mail.append(statements, scope, { ... })       -- inside a business transaction
local config = require("core.config")
local crypto = require("core.crypto")
local time = require("core.time")
local uuid = require("core.uuid")
local db = require("kasma.db")
local errors = require("kasma.errors")
local log = require("kasma.log")
local null = require("kasma.null")
local outbox = require("kasma.outbox")
local templates = require("kasma.mail_templates")
local tenants = require("kasma.tenant")

local M = {}

local INSERT = [[insert into mail_messages (tenant_key, app_key, id, key, template, locale, recipient, user_id, created_at)
  values ($1, $2, $3, $4, $5, $6, $7, $8, $9::timestamptz) on conflict (tenant_key, key) do nothing]]

---@class kasma.Mail
---@field to string
---@field template string
---@field vars table|nil
---@field locale string|nil default: the tenant's
---@field key string the mail goes out once per key
---@field user_id string|nil

--- Appends the statements of a mail to the caller's pipeline.
---@param statements table[]
---@param scope Scope
---@param message kasma.Mail
function M.append(statements, scope, message)
    local id = uuid.v7()
    local row = tenants.by_key(scope.tenant)
    local locale = message.locale or (row and row.default_locale) or "en"
    statements[#statements + 1] = { INSERT, scope.tenant, scope.app, id, message.key, message.template, locale, message.to,
        message.user_id or null, time.iso(time.now()) }
    statements[#statements + 1] = outbox.job(scope, "mail-queue", "send-mail", { to = message.to, template = message.template,
        vars = message.vars or {}, locale = locale, tenant_key = scope.tenant, app_key = scope.app, key = message.key }, { attempts = 5 })
end

--- Sends a mail in a transaction of its own. A second call with the same key sends nothing.
---@param scope Scope
---@param message kasma.Mail
function M.send(scope, message)
    local statements = {}
    M.append(statements, scope, message)
    db.pipeline(scope.tenant, statements)
end

-- Message ----------------------------------------------------------------------------------------------------------------------

local function header_text(text)
    if not text:find("[\128-\255\r\n]") then return text end
    return "=?UTF-8?B?" .. crypto.base64((text:gsub("[\r\n]+", " "))) .. "?="
end

local function wrapped_base64(text)
    local encoded = crypto.base64(text)
    local lines = {}
    for at = 1, #encoded, 76 do lines[#lines + 1] = encoded:sub(at, at + 75) end
    return table.concat(lines, "\r\n")
end

local DAYS = { "Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun" }
local MONTHS = { "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec" }

local function date_header(ms)
    local f = time.fields(ms, "UTC")
    return ("%s, %02d %s %d %02d:%02d:%02d +0000"):format(DAYS[f.wday], f.day, MONTHS[f.month], f.year, f.hour, f.min, f.sec)
end

--- The message as it goes out, RFC 5322 with a text and an HTML part.
---@param m {id: string, to: string, subject: string, text: string, html: string}
---@return string
function M.render(m)
    local from = config.get("MAIL_FROM_EMAIL") or "no-reply@localhost"
    local name = config.get("MAIL_FROM_NAME") or "Kasma"
    local boundary = "kasma-" .. m.id
    return table.concat({
        "From: " .. (name:find("[\128-\255]") and header_text(name) or ('"' .. name:gsub('["\\\r\n]', "") .. '"')) .. " <" .. from .. ">",
        "To: " .. m.to:gsub("[\r\n]", ""),
        "Subject: " .. header_text(m.subject),
        "Date: " .. date_header(time.now()),
        "Message-ID: <" .. m.id .. "@" .. (from:match("@(.+)$") or "localhost") .. ">",
        "MIME-Version: 1.0",
        'Content-Type: multipart/alternative; boundary="' .. boundary .. '"',
        "",
        "--" .. boundary,
        "Content-Type: text/plain; charset=utf-8",
        "Content-Transfer-Encoding: base64",
        "",
        wrapped_base64(m.text),
        "--" .. boundary,
        "Content-Type: text/html; charset=utf-8",
        "Content-Transfer-Encoding: base64",
        "",
        wrapped_base64(m.html),
        "--" .. boundary .. "--",
        "",
    }, "\r\n")
end

--- Where messages lie while no SMTP server is configured.
---@return string
function M.folder() return config.get("MAIL_DIR") or "var/mail" end

--- True when mails can go out: always outside production, in production with MAIL_HOST only.
---@return boolean
function M.is_configured() return config.env() ~= "production" or (config.get("MAIL_HOST") or "") ~= "" end

-- The file is written whole under another name first: whoever watches the folder never reads half a message.
local function write_file(m)
    local path = ("%s/%s-%s.eml"):format(M.folder(), time.iso(time.real()):gsub("[:.]", ""), m.id)
    local file, why = io.open(path .. ".part", "w")
    if not file then error("mail folder: " .. tostring(why), 0) end
    file:write(M.render(m))
    file:close()
    local moved, reason = os.rename(path .. ".part", path)
    if not moved then error("mail folder: " .. tostring(reason), 0) end
    log.info("mail written", { file = path })
end

--- Hands a message to the transport. Raises when it could not.
---@param m {id: string, to: string, subject: string, text: string, html: string}
function M.deliver(m) write_file(m) end

-- Jobs -------------------------------------------------------------------------------------------------------------------------

local CLAIM = [[update mail_messages set state = 'sending', attempts = attempts + 1
  where tenant_key = $1 and key = $2 and state in ('queued', 'sending', 'failed') returning id, template, locale, recipient]]
local ENDED = [[update mail_messages set state = $3, sent_at = $4::timestamptz, error = $5 where tenant_key = $1 and key = $2]]
local STOPPED = [[select reason from mail_suppressions where tenant_key = $1 and email_hash = $2 and reason <> 'unsubscribe' limit 1]]
local OWN_FORM = [[select locale, subject, html, text from mail_templates where tenant_key = $1 and template = $2 and locale =
  any($3::text[]) and is_active]]

--- Address as the suppression list knows it.
---@param tenant string
---@param address string
---@return string hex
function M.address_hash(tenant, address)
    local secrets = require("kasma.secrets")
    return crypto.hmac_sha256(secrets.tenant_key(tenant, "mail"), address:lower())
end

local function form_of(tenant, template, locale)
    local row = tenants.by_key(tenant)
    local locales = { locale, row and row.default_locale or "en" }
    local pg = require("core.pg")
    local own = db.read(tenant, OWN_FORM, tenant, template, pg.array(locales))
    for _, wanted in ipairs(locales) do
        for _, form in ipairs(own) do
            if form.locale == wanted then return form end
        end
    end
    for _, wanted in ipairs(locales) do
        local shipped = templates.find(template, wanted)
        if shipped then return shipped end
    end
    return templates.find(template, "en")
end

--- The job `send-mail`.
---@param job table
function M.run(job)
    local data = job.data
    local tenant, key = data.tenant_key, data.key
    local claimed = db.query(tenant, CLAIM, tenant, key)[1]
    if not claimed then return { skipped = true } end
    if db.one(tenant, STOPPED, tenant, M.address_hash(tenant, claimed.recipient)) then
        db.query(tenant, ENDED, tenant, key, "suppressed", null, null)
        return { suppressed = true }
    end
    local form = form_of(tenant, claimed.template, claimed.locale)
    if not form then
        db.query(tenant, ENDED, tenant, key, "failed", null, "no template " .. claimed.template)
        require("kasma.jobs").give_up("no mail template " .. claimed.template)
    end
    local ok, why = pcall(M.deliver, { id = claimed.id, to = claimed.recipient, subject = templates.fill(form.subject, data.vars, false),
        text = templates.fill(form.text, data.vars, false), html = templates.fill(form.html, data.vars, true) })
    if not ok then
        local text = errors.is(why) and tostring(why) or (type(why) == "table" and tostring(why.message)) or tostring(why)
        db.query(tenant, ENDED, tenant, key, "failed", null, text:sub(1, 500))
        error(why, 0)
    end
    db.query(tenant, ENDED, tenant, key, "sent", time.iso(time.now()), null)
    return { sent = true }
end

return M
