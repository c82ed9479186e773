-- Mail: each once per key. A mail is a row of mail_messages and an outbox job in the business transaction; the job asks the
-- suppressions, claims the row (state sending, one attempt more), renders the template and hands the message to the transport
-- (mail_transport.lua). The row is claimed before the dialogue with the server and marked after it, so a process that dies in
-- between leaves a row that says sending, and the mail goes out once more with the same Message-ID: the only case in which an
-- addressee may get it twice, because no mail server can be asked whether it took a message.
--
--     mail.send(scope, { to = email, template = "order-confirmation", vars = {...}, key = "order-confirmation:" .. id })
--     mail.append(statements, scope, { ... })       -- inside a business transaction
local config = require("core.config")
local crypto = require("core.crypto")
local metrics = require("core.metrics")
local pg = require("core.pg")
local time = require("core.time")
local uuid = require("core.uuid")
local crash = require("kasma.crash")
local db = require("kasma.db")
local errors = require("kasma.errors")
local log = require("kasma.log")
local null = require("kasma.null")
local outbox = require("kasma.outbox")
local policy = require("kasma.policy")
local secrets = require("kasma.secrets")
local codes = require("kasma.mail_code")
local templates = require("kasma.mail_templates")
local tenants = require("kasma.tenant")
local plain = require("kasma.text").plain
local transport = require("kasma.mail_transport")

local M = {}

-- Half a minute, doubling: long enough for a server that greylists, or is started again.
local RETRIES = { attempts = 5, backoff = { type = "exponential", delay = 30000 } }

local ended = metrics.counter("kasma_mails_total", "Mails handed over or given up", { "outcome" })

local INSERT = [[insert into mail_messages (tenant_key, app_key, id, key, template, locale, recipient, user_id, created_at)
  values ($1, $2, $3, $4, $5, $6, $7, $8, $9::timestamptz) on conflict (tenant_key, key) do nothing]]

---@class kasma.Mail
---@field to string
---@field template string
---@field vars table|nil
---@field locale string|nil default: the tenant's
---@field key string the mail goes out once per key
---@field user_id string|nil
---@field marketing boolean|nil offers a way off the list, and is not sent to those who took it

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
        vars = message.vars or {}, locale = locale, tenant_key = scope.tenant, app_key = scope.app, key = message.key,
        marketing = message.marketing or nil }, RETRIES)
end

--- Sends a mail in a transaction of its own. A second call with the same key sends nothing.
---@param scope Scope
---@param message kasma.Mail
function M.send(scope, message)
    local statements = {}
    M.append(statements, scope, message)
    db.pipeline(scope.tenant, statements)
end

--- True when mails can go out: always outside production, in production with MAIL_HOST only.
---@return boolean
function M.is_configured() return transport.is_configured() end

-- Suppressions ---------------------------------------------------------------------------------------------------------------

local STOPPED = [[select reason from mail_suppressions where tenant_key = $1 and email_hash = any($2::text[])
  and (reason <> 'unsubscribe' or $3) order by reason limit 1]]
local SUPPRESS = [[insert into mail_suppressions (tenant_key, app_key, id, email_hash, key_version, reason, source, created_at)
  values ($1, $2, $3, $4, $5, $6, $7, $8::timestamptz) on conflict (tenant_key, email_hash, reason) do nothing returning id]]

--- Address as the suppression list knows it: an HMAC under a key of the tenant, so that the list tells nobody's address.
---@param tenant string
---@param address string
---@param version integer|nil of SERVER_KEY; nil = the newest
---@return string hex, integer version
function M.address_hash(tenant, address, version)
    local key, used = secrets.tenant_key(tenant, "mail", version)
    return crypto.hmac_sha256(key, address:lower()), used
end

--- The address under every key that may have made a row.
---@param tenant string
---@param address string
---@return string[]
function M.address_hashes(tenant, address)
    local hashes = {}
    for i, version in ipairs(secrets.versions()) do hashes[i] = M.address_hash(tenant, address, version) end
    return hashes
end

secrets.kept_by_tenant{ name = "addresses that get no mail",
    lost = "bounces, complaints and unsubscriptions are forgotten: those people get mail",
    count = function(tenant)
        return db.query(tenant, [[select key_version as version, count(*)::int as n from mail_suppressions
          where tenant_key = $1 group by 1]], tenant)
    end }

---@param tenant string
---@param address string
---@param marketing boolean
---@return string|nil reason why nothing may go there
function M.stopped(tenant, address, marketing)
    local row = db.one(tenant, STOPPED, tenant, pg.array(M.address_hashes(tenant, address)), marketing or false)
    return row and row.reason
end

--- Statement that puts an address on the list. Answers its row's id when it was not there.
---@param scope Scope
---@param hash string
---@param version integer of SERVER_KEY
---@param reason "bounce"|"complaint"|"unsubscribe"|"manual"
---@param source string|nil
---@return table statement
function M.suppression(scope, hash, version, reason, source)
    return { SUPPRESS, scope.tenant, scope.app, uuid.v7(), hash, version, reason, source and plain(source, 300) or null,
        time.iso(time.now()) }
end

--- URL that takes an address off the tenant's marketing mails, without telling the address; nil without PUBLIC_URL.
---@param tenant string
---@param address string
---@return string|nil
function M.unsubscribe_url(tenant, address)
    local public = config.get("PUBLIC_URL")
    if not public or public == "" then return nil end
    local hash, version = M.address_hash(tenant, address)
    local seal = crypto.hmac_sha256((secrets.tenant_key(tenant, "unsubscribe", version)), hash):sub(1, 32)
    return ("%s/mail/unsubscribe/%s.%d.%s.%s"):format((public:gsub("/+$", "")), tenant, version, hash, seal)
end

--- What an unsubscribe token means, or nil when we did not make it.
---@param token string
---@return {tenant: string, version: integer, hash: string}|nil
function M.read_unsubscribe(token)
    local tenant, version, hash, seal = token:match("^([%w_-]+)%.(%d+)%.(%x+)%.(%x+)$")
    if not tenant or #hash ~= 64 or #version > 3 or not tenants.is_key(tenant) then return nil end
    local ok, key = pcall(secrets.tenant_key, tenant, "unsubscribe", tonumber(version))
    if not ok or not crypto.equal(crypto.hmac_sha256(key, hash):sub(1, 32), seal) then return nil end
    return { tenant = tenant, version = tonumber(version), hash = hash }
end

-- Forms ----------------------------------------------------------------------------------------------------------------------

local OWN_FORM = [[select locale, subject, html, text from mail_templates where tenant_key = $1 and template = $2 and locale =
  any($3::text[]) and is_active]]

-- A locale, then its language: vi-VN is served by what there is in vi.
local function with_language(locales, locale)
    locales[#locales + 1] = locale
    local language = locale:match("^(%a+)[-_]")
    if language then locales[#locales + 1] = language end
    return locales
end

local function shipped(template, locales)
    for _, wanted in ipairs(locales) do
        local form = templates.find(template, wanted)
        if form then return form end
    end
    return templates.find(template, "en")
end

local function locales_of(tenant, locale)
    local row = tenants.by_key(tenant)
    return with_language(with_language({}, locale), row and row.default_locale or "en")
end

--- The form of a template: the tenant's own in the locale (or its language), its own in its default locale, the shipped ones in that
--- order, the shipped English one.
---@param tenant string
---@param template string
---@param locale string
---@return {subject: string, html: string, text: string}|nil form
---@return boolean own it is the tenant's
function M.form(tenant, template, locale)
    local locales = locales_of(tenant, locale)
    local own = db.read(tenant, OWN_FORM, tenant, template, pg.array(locales))
    for _, wanted in ipairs(locales) do
        for _, form in ipairs(own) do
            if form.locale == wanted then return form, true end
        end
    end
    return shipped(template, locales), false
end

-- Sending --------------------------------------------------------------------------------------------------------------------

local function give_up(text) require("kasma.jobs").give_up(text) end

local function filled(form, vars, ruled, subject)
    return { subject = ruled.subject or subject or templates.fill(form.subject, vars, false),
        text = ruled.text or templates.fill(form.text, vars, false), html = ruled.html or templates.fill(form.html, vars, true) }
end

-- The words of a mail: a rule's, the tenant's own form's, or ours. A code is handed to neither of the first two.
local function write(tenant, m)
    local form, own = M.form(tenant, m.template, m.locale)
    if not form then give_up("no mail template " .. m.template) end
    local vars, mark = m.vars, nil
    if templates.has_code(m.template) then vars, mark = codes.hide(m.vars) end
    local ruled = policy.mail(tenant, { template = m.template, locale = m.locale, vars = vars })
    if not mark then return filled(form, vars, ruled or {}, m.subject) end
    if ruled or own then
        local made = codes.show(filled(form, vars, ruled or {}, m.subject), mark, tostring(m.vars.code))
        if made then return made end
        log.warn("a mail's code would not be where it belongs; the shipped form is sent", { tenant = tenant, template = m.template })
    end
    return filled(shipped(m.template, locales_of(tenant, m.locale)) or form, m.vars, {}, m.subject)
end

--- Renders and hands over one mail now; for jobs. Asks the suppressions first. An address that bounces goes on the list.
---@param tenant string
---@param m {id: string, to: string, template: string, locale: string, vars: table, subject: string|nil, marketing: boolean|nil}
---@return {sent: boolean|nil, suppressed: string|nil, by: string|nil} by: what the server said. Raises kasma.MailRefused or a failure
--- that ends the job
function M.transmit(tenant, m)
    local reason = M.stopped(tenant, m.to, m.marketing or false)
    if reason then
        ended:add(1, "suppressed")
        return { suppressed = reason }
    end
    local made = write(tenant, m)
    local ok, by = pcall(transport.deliver, { id = m.id, to = m.to, subject = made.subject, text = made.text, html = made.html,
        unsubscribe = m.marketing and M.unsubscribe_url(tenant, m.to) or nil })
    if ok then
        ended:add(1, "sent")
        return { sent = true, by = by }
    end
    local refused = transport.is_refusal(by) and by or nil
    ended:add(1, refused and refused.bounce and "bounced" or refused and refused.final and "refused" or "failed")
    if refused and refused.bounce then
        local hash, version = M.address_hash(tenant, m.to)
        db.pipeline(tenant, { M.suppression({ tenant = tenant, app = "MASTER" }, hash, version, "bounce", refused.message) })
    end
    if refused and refused.final then give_up(refused.message) end
    error(refused and refused.message or by, 0)
end

-- A mail that says sending is taken up again by the job that claimed it, after a crash, and by no other job of its key.
local CLAIM = [[update mail_messages set state = 'sending', attempts = attempts + 1, claimed_by = $3
  where tenant_key = $1 and key = $2 and (state in ('queued', 'failed') or state = 'sending' and claimed_by is not distinct from $3)
  returning id, template, locale, recipient, attempts]]
local ENDED = [[update mail_messages set state = $3, sent_at = $4::timestamptz, error = $5, provider_id = $6
  where tenant_key = $1 and key = $2]]

--- Mails whose sending was begun by a job that is lost are free for another. One that had just been handed over goes out again, under the
--- same Message-ID. For `kasma repair`.
---@param tenant string
---@param since_ms integer made a day before that time or later
function M.release(tenant, since_ms)
    db.query(tenant, [[update mail_messages set state = 'queued', claimed_by = null where tenant_key = $1 and state = 'sending'
      and created_at >= $2::timestamptz]], tenant, time.iso(since_ms - 86400000))
end

local function describe(why)
    if errors.is(why) then return tostring(why) end
    return tostring(type(why) == "table" and (why.message or why.kind) or why)
end

-- A failed try is queued again as long as the job has tries left: then, and only then, somebody will come back for it.
local function comes_again(job, why)
    if type(why) == "table" and not errors.is(why) and not errors.is_store(why) then return false end -- given up
    return (job.attempts_made or 0) + 1 < (tonumber(job.opts and job.opts.attempts) or 1)
end

-- A job may come from somebody else's producer: then its data is all there is, and the row is made here.
local function check(data)
    for _, name in ipairs{ "to", "template", "key", "tenant_key" } do
        local value = type(data) == "table" and data[name]
        if type(value) ~= "string" or value == "" or #value > 320 then give_up("send-mail needs " .. name) end
    end
    if not tenants.by_key(data.tenant_key) then give_up("there is no tenant " .. data.tenant_key) end
    if #data.key > 200 then give_up("key has at most 200 characters") end
end

--- The job `send-mail`.
---@param job table
function M.run(job)
    local data = job.data
    check(data)
    local tenant, key = data.tenant_key, data.key
    local row = tenants.by_key(tenant)
    local locale = type(data.locale) == "string" and data.locale:sub(1, 20) or row.default_locale or "en"
    local app = type(data.app_key) == "string" and data.app_key or "MASTER"
    local claimed = db.pipeline(tenant, { { INSERT, tenant, app, uuid.v7(), key, data.template, locale, data.to, null,
        time.iso(time.now()) }, { CLAIM, tenant, key, tostring(job.id) } })[2][1]
    if not claimed then return { skipped = true } end
    if claimed.attempts > 1 then log.info("mail is tried again", { tenant = tenant, id = claimed.id, attempt = claimed.attempts }) end
    crash.at("mail.claimed")
    local ok, answer = pcall(M.transmit, tenant, { id = claimed.id, to = claimed.recipient, template = claimed.template,
        locale = claimed.locale, vars = type(data.vars) == "table" and data.vars or {}, marketing = data.marketing == true })
    if not ok then
        db.query(tenant, ENDED, tenant, key, comes_again(job, answer) and "queued" or "failed", null, plain(describe(answer), 500), null)
        error(answer, 0)
    end
    crash.at("mail.accepted")
    if answer.suppressed then
        db.query(tenant, ENDED, tenant, key, "suppressed", null, answer.suppressed, null)
    else
        db.query(tenant, ENDED, tenant, key, "sent", time.iso(time.now()), null, plain(answer.by, 200))
    end
    return answer
end

return M
