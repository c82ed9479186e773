-- Mails that rules send. What a shop's rule sends is marketing: it goes to customers who agreed to it and who took no way off the list, and
-- it is a template made for rules (never one with a code in it).
local json = require("core.json")
local uuid = require("core.uuid")
local access = require("kasma.access")
local capabilities = require("kasma.capabilities")
local mail = require("kasma.mail")
local templates = require("kasma.mail_templates")
local tenants = require("kasma.tenant")
local customers = require("modules.customers.service")
local iam = require("modules.iam.service")

local VARS_MAX = 16384

capabilities.declare("mail.send", { needs = "mail", limit = 5, writes = "keyed", summary = "A mail to a customer who agreed to mails",
    signature = "(template: string, user_id: string, vars?: table): boolean|nil, string|nil", fn = function(ctx, template, customer, vars)
    if type(template) ~= "string" or not templates.for_rules(template) then
        capabilities.refuse(("mail.send: there is no template '%s' for rules"):format(tostring(template):sub(1, 80)))
    end
    if vars ~= nil and type(vars) ~= "table" then capabilities.refuse("mail.send: the third argument is a table of variables") end
    local filled = { shop = (tenants.by_key(ctx.tenant) or {}).name or ctx.tenant }
    for name, value in pairs(vars or {}) do filled[name] = value end
    local ok, text = pcall(json.encode, filled)
    if not ok or #text > VARS_MAX then capabilities.refuse("mail.send: the variables are more than 16 KiB, or no plain data") end
    if type(customer) ~= "string" or not uuid.valid(customer) then return nil, "not_found" end
    local user = iam.user(customer)
    if not user or not access.of(ctx.tenant, user.id).member then return nil, "not_found" end
    if not customers.consents(ctx.tenant, user.id) then return nil, "no_consent" end
    if mail.stopped(ctx.tenant, user.email, true) then return nil, "suppressed" end
    local key = capabilities.call_key(ctx) or uuid.v7()
    mail.send(ctx.scope, { to = user.email, template = template, vars = filled, key = "rule:" .. key, user_id = user.id, marketing = true })
    return true
end })
