-- What staff do about mails: a shop's own words, who is not written to, what became of a mail; and the way off the list that
-- marketing mails offer.
local time = require("core.time")
local uuid = require("core.uuid")
local audit = require("kasma.audit")
local db = require("kasma.db")
local errors = require("kasma.errors")
local mail = require("kasma.mail")
local codes = require("kasma.mail_code")
local templates = require("kasma.mail_templates")
local store = require("modules.mail.store")

local M = {}

M.template_unknown = errors.declare{ code = "mail_template_unknown", status = 404, message = "Mail template not found",
    cause = "no mail of this name is sent", cure = "GET /mail/templates lists the names" }
M.token_unknown = errors.declare{ code = "unsubscribe_link_unknown", status = 404, message = "This link is not valid",
    cause = "the link was cut or changed", cure = "use the link of the mail as it is" }

M.messages, M.message = store.messages, store.message
M.suppressions = store.suppressions

--- Shipped templates with the tenant's own forms of each.
---@param tenant string
---@return table[] {template, shipped = locales, own = rows}
function M.templates(tenant)
    local list, by_name = templates.list(), {}
    for _, entry in ipairs(list) do
        entry.shipped, entry.own, entry.locales = entry.locales, {}, nil
        by_name[entry.template] = entry
    end
    for _, row in ipairs(store.forms(tenant)) do
        if by_name[row.template] then table.insert(by_name[row.template].own, row) end
    end
    return list
end

local function known(template)
    for _, entry in ipairs(templates.list()) do
        if entry.template == template then return end
    end
    M.template_unknown()
end

--- The form that a mail of this template and locale would have now.
---@param tenant string
---@param template string
---@param locale string
---@return {subject: string, html: string, text: string}
function M.form(tenant, template, locale)
    known(template)
    return mail.form(tenant, template, locale)
end

---@param scope Scope
---@param input {template: string, locale: string, subject: string, html: string, text: string|nil, isActive: boolean|nil}
---@return table row
function M.put_form(scope, input)
    known(input.template)
    local problem = templates.problem(input.subject) or templates.problem(input.html) or templates.problem(input.text or "")
    if not problem and templates.has_code(input.template) then
        local vars, mark = codes.hide{ code = "000000", type = "Login" }
        local ok, made = pcall(function()
            return { subject = templates.fill(input.subject, vars, false), html = templates.fill(input.html, vars, true),
                text = templates.fill(input.text or "", vars, false) }
        end)
        problem = not (ok and codes.show(made, mark, "000000")) and codes.PROBLEM or nil
    end
    if problem then errors.bad_request{ message = problem, code = "bad_form" } end
    local statements = { store.put_form{ tenant_key = scope.tenant, app_key = scope.app, id = uuid.v7(), template = input.template,
        locale = input.locale, subject = input.subject, html = input.html, text = input.text or "", is_active = input.isActive ~= false,
        updated_by = scope.actor_kind == "user" and scope.actor_id or nil, now = time.iso(time.now()) } }
    audit.append(statements, scope, { action = "mail.template_update", entity_type = "mail_template",
        entity_id = input.template .. "/" .. input.locale, after = { subject = input.subject, is_active = input.isActive ~= false } })
    return db.pipeline(scope.tenant, statements)[1][1]
end

---@param scope Scope
---@param template string
---@param locale string
---@return boolean whether there was one
function M.drop_form(scope, template, locale)
    local statements = { store.drop_form(scope.tenant, template, locale) }
    audit.append(statements, scope, { action = "mail.template_remove", entity_type = "mail_template",
        entity_id = template .. "/" .. locale })
    return #db.pipeline(scope.tenant, statements)[1] > 0
end

--- Nothing is sent to this address any more.
---@param scope Scope
---@param address string
---@param reason "manual"|"complaint"
---@return boolean whether it is new
function M.suppress(scope, address, reason)
    local hash, version = mail.address_hash(scope.tenant, address)
    local statements = { mail.suppression(scope, hash, version, reason, "staff") }
    audit.append(statements, scope, { action = "mail.suppress", entity_type = "mail_suppression", entity_id = hash:sub(1, 16),
        after = { reason = reason } })
    return #db.pipeline(scope.tenant, statements)[1] > 0
end

--- The address is written to again.
---@param scope Scope
---@param address string
---@param reason string|nil nil = whatever the reason was
---@return integer rows
function M.unsuppress(scope, address, reason)
    local statements = { store.drop_suppressions(scope.tenant, mail.address_hashes(scope.tenant, address), reason) }
    audit.append(statements, scope, { action = "mail.unsuppress", entity_type = "mail_suppression",
        entity_id = mail.address_hash(scope.tenant, address):sub(1, 16) })
    return #db.pipeline(scope.tenant, statements)[1]
end

--- Why nothing goes to an address.
---@param tenant string
---@param address string
---@return table[] rows
function M.suppressions_of(tenant, address) return store.suppressions_of(tenant, mail.address_hashes(tenant, address)) end

--- Takes the addressee of a link off the tenant's marketing mails; raises when the link is not ours.
---@param token string
---@return string tenant
function M.unsubscribe(token)
    local found = mail.read_unsubscribe(token) or M.token_unknown()
    db.pipeline(found.tenant, { mail.suppression({ tenant = found.tenant, app = "MASTER" }, found.hash, found.version, "unsubscribe",
        "link") })
    return found.tenant
end

--- Raises when a link is not ours.
---@param token string
function M.check_link(token)
    if not mail.read_unsubscribe(token) then M.token_unknown() end
end

return M
