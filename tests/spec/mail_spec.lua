-- Mails before they go out: forms filled in, headers, what a refusal means, whose form is taken, who is not written to.
local crypto = require("core.crypto")
local uuid = require("core.uuid")
local db = require("kasma.db")
local mail = require("kasma.mail")
local message = require("kasma.mail_message")
local templates = require("kasma.mail_templates")
local transport = require("kasma.mail_transport")
local tenants = require("modules.tenants.service")
local mails = require("modules.mail.service")

local function tenant(locale)
    local key = "m" .. crypto.random_hex(6)
    tenants.create({ tenant = "MASTER", app = "MASTER", actor_kind = "system" }, { tenant_key = key, name = key, default_locale = locale,
        app = { app_key = key .. "-app" } })
    return { tenant = key, app = "MASTER", actor_kind = "system" }
end

describe("a form", function()
    it("is filled in once, from left to right, and escaped in HTML", function()
        local vars = { name = "<b>{{secret}}</b>", secret = "s", lines = { { n = "{{secret}}" }, { n = "2" } }, empty = {},
            user = { id = 7 } }
        assert.equal("<b>{{secret}}</b>", templates.fill("{{name}}", vars, false))
        assert.equal("&lt;b&gt;{{secret}}&lt;/b&gt;", templates.fill("{{ name }}", vars, true))
        assert.equal("[{{secret}}][2]", templates.fill("{{#lines}}[{{n}}]{{/lines}}", vars, false))
        assert.equal("none7", templates.fill("{{#empty}}x{{/empty}}{{^empty}}none{{/empty}}{{user.id}}{{gone}}{{lines}}", vars, false))
        assert.equal("yes", templates.fill("{{#secret}}yes{{/secret}}{{#gone}}no{{/gone}}", vars, false))
        assert.equal("a open", templates.fill("a {{#secret}}open", vars, false))
        assert.equal("{s}{{ no name}}{{}}{{", templates.fill("{{{secret}}}{{ no name}}{{}}{{", vars, false))
        assert.equal("[s]", templates.fill("[{{#secret}}{{#user}}{{/secret}}{{secret}}]", vars, false))
        assert.equal("{{/gone}}", templates.fill("{{/gone}}", vars, false))
    end)

    it("is read in time, whatever its author wrote, and refused when its sections lie too deep", function()
        local vars, size = { number = "n", lines = { {}, {} } }, 262144
        for _, piece in ipairs{ "{{", "{{ ", "{{#", "{{#number}}", "{{^gone}}", "{{#lines}}", "{{number}}", "}}", "{{#number}}{{/number}}",
            "<", "<!--", "<style", "<style>", "<b> ", " <br>", "&", "&amp;", "<p></", " " } do
            local text = piece:rep(size / #piece)
            pcall(templates.fill, text, vars, true)
            assert.equal("string", type(message.text_of(text)))
        end
        assert.equal("{{" .. (" "):rep(size), templates.fill("{{" .. (" "):rep(size), vars, false))
        local deep = ("{{#number}}"):rep(11)
        assert.has_error(function() templates.fill(deep, vars, false) end)
        assert.equal("x", templates.fill(("{{#number}}"):rep(9) .. "x", vars, false))
        local lines = {}
        for i = 1, 5000 do lines[i] = { n = i } end
        for _, inside in ipairs{ ("x"):rep(200000), ("{{n}}"):rep(40000), ("{{#gone}}{{/gone}}"):rep(14000) } do
            local ok, why = pcall(templates.fill, "{{#lines}}" .. inside .. "{{/lines}}", { lines = lines }, true)
            assert.is_false(ok)
            assert.equal("the mail is larger than its form may make it", why)
        end
        assert.equal(5000, select(2, templates.fill("{{#lines}}<li>{{n}}</li>{{/lines}}", { lines = lines }, true):gsub("<li>", "")))
        local scope = tenant("en")
        for _, form in ipairs{ { html = deep }, { subject = deep }, { text = deep } } do
            local _, err = pcall(mails.put_form, scope, { template = "invitation", locale = "en", subject = form.subject or "s",
                html = form.html or "h", text = form.text })
            assert.equal("bad_form", err.code)
        end
    end)

    it("is the shop's own before the shipped one, and its default language before English", function()
        local scope = tenant("vi")
        assert.truthy(mail.form(scope.tenant, "invitation", "fr").subject:find("Bạn được mời", 1, true))
        assert.truthy(mail.form(scope.tenant, "invitation", "en").subject:find("You are invited", 1, true))
        mails.put_form(scope, { template = "invitation", locale = "vi", subject = "Own vi", html = "<p>v</p>" })
        assert.equal("Own vi", mail.form(scope.tenant, "invitation", "en").subject)
        mails.put_form(scope, { template = "invitation", locale = "en", subject = "Own en", html = "<p>e</p>" })
        assert.equal("Own en", mail.form(scope.tenant, "invitation", "en").subject)
        mails.put_form(scope, { template = "invitation", locale = "en", subject = "Own en", html = "<p>e</p>", isActive = false })
        assert.equal("Own vi", mail.form(scope.tenant, "invitation", "en").subject)
        assert.truthy(mail.form(tenant("en").tenant, "invitation", "en").subject:find("You are invited", 1, true))
        assert.equal(404, select(2, pcall(mails.put_form, scope, { template = "nope", locale = "en", subject = "s", html = "h" })).status)
        -- A locale with a country is served by what there is in its language.
        local english = tenant("en")
        mails.put_form(english, { template = "invitation", locale = "vi", subject = "Own too", html = "<p>v</p>" })
        assert.equal("Own too", mail.form(english.tenant, "invitation", "vi-VN").subject)
        assert.is_true(mails.drop_form(scope, "invitation", "vi"))
    end)

    it("exists for every shipped mail in English and Vietnamese, with both parts", function()
        for _, entry in ipairs(templates.list()) do
            for _, locale in ipairs{ "en", "vi" } do
                local form = templates.find(entry.template, locale)
                assert.truthy(form, entry.template .. " in " .. locale)
                assert.truthy(form.subject ~= "" and form.html ~= "" and form.text ~= "")
            end
        end
    end)
end)

describe("a header", function()
    it("is plain, or encoded words of at most 75 bytes that cut no character", function()
        assert.equal("Hello", message.header_text("Hello"))
        assert.equal("a Bcc: x", message.header_text("a\r\nBcc: x"))
        local text = ("Đơn hàng của bạn "):rep(30)
        local folded, back = message.header_text(text), ""
        for word in folded:gmatch("[^\r\n]+") do
            assert.is_true(#word <= 76)
            local part = crypto.unbase64((word:match("^ ?=%?UTF%-8%?B%?(.-)%?=$")))
            assert.is_nil(part:find("^[\128-\191]"))
            back = back .. part
        end
        assert.equal(text:sub(1, #back), back)
        assert.is_true(#back > 490)
        assert.truthy(message.header_text("=?UTF-8?B?x?="):find("^=%?UTF%-8%?B%?PT"))
    end)

    it("has a text part also when the form has none", function()
        local raw = message.render{ id = uuid.v7(), from = "a@b.test", to = "c@d.test", subject = "s", text = "",
            html = "<style>p{}</style><p>Hello&nbsp;<b>you</b> &amp; me</p><p>Bye</p>" }
        assert.equal("Hello you & me\r\nBye\r\n", crypto.unbase64((raw:match("text/plain.-\r\n\r\n(.-)\r\n%-%-"):gsub("%s", ""))))
    end)
end)

describe("a refusal", function()
    it("is a bounce only when it says that the address does not exist", function()
        local function bounce(code, command, reply) return transport.is_bounce{ code = code, command = command, reply = reply } end
        assert.is_true(bounce(550, "RCPT", "550 5.1.1 no such user"))
        assert.is_true(bounce(550, "RCPT", "550-5.1.10 gone"))
        assert.is_true(bounce(553, "RCPT", "553 no mailbox here"))
        assert.is_false(bounce(550, "RCPT", "550 5.7.1 your address is on a list"))
        assert.is_false(bounce(552, "RCPT", "552 5.2.2 full"))
        assert.is_false(bounce(450, "RCPT", "450 4.1.1 later"))
        assert.is_false(bounce(550, "MAIL", "550 5.1.1 sender"))
        assert.is_false(bounce(554, ".", "554 5.1.1 what"))
    end)
end)

describe("the suppression list", function()
    it("stops all mails, or marketing alone, of one tenant, whatever the case of the address", function()
        local scope, other = tenant("en"), tenant("en")
        assert.is_true(mails.suppress(scope, "Ann@Example.test", "manual"))
        assert.is_false(mails.suppress(scope, "ann@example.test", "manual"))
        assert.equal("manual", mail.stopped(scope.tenant, "ANN@example.test", false))
        assert.is_nil(mail.stopped(other.tenant, "ann@example.test", true))
        assert.equal(1, mails.unsuppress(scope, "ann@example.test"))
        assert.is_nil(mail.stopped(scope.tenant, "ann@example.test", true))
        local hash, version = mail.address_hash(scope.tenant, "bob@example.test")
        db.pipeline(scope.tenant, { mail.suppression(scope, hash, version, "unsubscribe", "link") })
        assert.is_nil(mail.stopped(scope.tenant, "bob@example.test", false))
        assert.equal("unsubscribe", mail.stopped(scope.tenant, "bob@example.test", true))
    end)

    it("lets one job at a time send a mail, and the same one again after a crash", function()
        local scope = tenant("en")
        mail.send(scope, { to = "race@example.test", template = "account-exists", key = "k2" })
        db.query(scope.tenant, "update mail_messages set state = 'sending', attempts = 1, claimed_by = 'j1' where tenant_key = $1",
            scope.tenant)
        local function job(id)
            return { id = id, opts = {}, attempts_made = 0, data = { tenant_key = scope.tenant, key = "k2", to = "race@example.test",
                template = "account-exists" } }
        end
        assert.is_true(mail.run(job("j2")).skipped)
        assert.is_true(mail.run(job("j1")).sent)
        assert.equal(2, mails.messages(scope.tenant, {}, nil, 1)[1].attempts)
    end)

    it("is asked for a mail of another producer too, which has no row yet", function()
        local scope = tenant("en")
        local job = { id = "n1", opts = {}, attempts_made = 0, data = { tenant_key = scope.tenant, key = "node", to = "node@example.test",
            template = "account-exists" } }
        assert.is_true(mail.run(job).sent)
        assert.is_true(mail.run(job).skipped)
        assert.equal("node@example.test", mails.messages(scope.tenant, {}, nil, 1)[1].recipient)
        for _, bad in ipairs{ {}, { tenant_key = scope.tenant, key = "x", to = "a@b.test" }, { tenant_key = "nobody-here", key = "x",
            to = "a@b.test", template = "otp" }, { tenant_key = scope.tenant, key = ("k"):rep(201), to = "a@b.test", template = "otp" } } do
            assert.is_false((pcall(mail.run, { id = "b", opts = {}, attempts_made = 0, data = bad })))
        end
    end)

    it("is kept of a mail whose job comes twice: it is not sent again", function()
        local scope = tenant("en")
        local statements = {}
        mail.append(statements, scope, { to = "twice@example.test", template = "account-exists", key = "k1" })
        db.pipeline(scope.tenant, statements)
        local job = { opts = { attempts = 1 }, attempts_made = 0, data = { tenant_key = scope.tenant, key = "k1",
            to = "twice@example.test", template = "account-exists" } }
        assert.is_true(mail.run(job).sent)
        assert.is_true(mail.run(job).skipped)
        local row = mails.messages(scope.tenant, { recipient = "twice@example.test" }, nil, 5)
        assert.equal(1, #row)
        assert.same({ "sent", 1, "file" }, { row[1].state, row[1].attempts, row[1].provider_id })
    end)
end)
