-- Mails as staff see and shape them, over HTTP.
local command = require("api.command")
local support = require("api.support")
local db = require("kasma.db")
local mail = require("kasma.mail")
local outbox = require("kasma.outbox")

describe("kasma mail and kasma outbox", function()
    it("print what there is as JSON, and say what word is wrong", function()
        local shop = support.tenant()
        local scope = { tenant = shop.key, app = "MASTER" }
        mail.send(scope, { to = "cli@example.test", template = "account-exists", key = "cli", locale = "en" })
        local row = outbox.row(scope, "spec-cli", "k", { n = 1 })
        db.pipeline(shop.key, { row })
        local listed = command.json("mail list " .. shop.key .. " --to cli@example.test --json")
        assert.same({ 1, "cli@example.test", "account-exists" }, { #listed, listed[1].recipient, listed[1].template })
        assert.equal(listed[1].id, command.json("mail show " .. shop.key .. " " .. listed[1].id .. " --json").id)
        assert.equal(0, #command.json("mail suppressed " .. shop.key .. " cli@example.test --json"))
        assert.equal(0, (command.run("outbox park " .. row[4])))
        local waits = command.json("outbox list --parked --tenant " .. shop.key .. " --json")
        assert.same({ 1, row[4], "spec-cli" }, { #waits, waits[1].id, waits[1].topic })
        assert.is_number(command.json("outbox status --json").parked)
        assert.equal(1, command.json("outbox show " .. row[4] .. " --json").payload.n)
        assert.equal(0, (command.run("outbox drop " .. row[4])))
        for _, words in ipairs{ "mail list " .. shop.key .. " --limit -5", "mail list " .. shop.key .. " --limit x",
            "mail list " .. shop.key .. " --state odd", "outbox list --limit 0", "outbox odd" } do
            assert.equal(2, (command.run(words)), words)
        end
    end)
end)

describe("the mails of a shop", function()
    local shop, customer

    setup(function()
        shop = support.tenant()
        customer = support.shopper(shop)
    end)

    it("are shaped by staff alone", function()
        for _, path in ipairs{ "/mail/messages", "/mail/templates", "/mail/suppressions" } do
            assert.equal(403, customer:get(path).status)
            assert.equal(401, support.guest(shop):get(path).status)
        end
        assert.equal(403, customer:post("/mail/suppressions/create", { email = "a@example.test" }).status)
        local form = { template = "otp", locale = "en", subject = "s", html = "<p>{{code}}</p>" }
        assert.equal(403, customer:post("/mail/templates/update", form).status)
    end)

    it("take the shop's own words", function()
        local address = support.unique("g") .. "@example.test"
        local form = { template = "invitation", locale = "vi", subject = "Chào {{tenant}}", html = "<p>Own words for {{tenant}}</p>",
            text = "Own words for {{tenant}}\n" }
        assert.equal(201, shop.owner:post("/mail/templates/update", form).status)
        assert.equal("Chào {{tenant}}", shop.owner:get("/mail/templates/invitation?locale=vi").json.subject)
        local made = require("kasma.mail")
        made.send({ tenant = shop.key, app = shop.app }, { to = address, template = "invitation", vars = { tenant = "<Tea>" },
            key = "i:" .. address })
        support.eventually(function() return (support.mail_to(address)) end, 20)
        local text, raw = support.mail_to(address)
        assert.truthy(text:find("Own words for <Tea>", 1, true))
        assert.truthy(raw:find("\nSubject: =?UTF-8?B?", 1, true))
        local row = support.eventually(function()
            local list = shop.owner:get("/mail/messages?recipient=" .. address).json
            return list[1] and list[1].state == "sent" and list[1]
        end)
        assert.same({ "invitation", "vi", 1 }, { row.template, row.locale, row.attempts })
        assert.same({}, support.tenant().owner:get("/mail/messages?recipient=" .. address).json)
        form.template = "nope"
        assert.equal(404, shop.owner:post("/mail/templates/update", form).status)
        form.template, form.locale = "otp", "../x"
        assert.equal(400, shop.owner:post("/mail/templates/update", form).status)
        assert.is_true(shop.owner:post("/mail/templates/remove", { template = "invitation", locale = "vi" }).json.removed)
    end)

    it("go to nobody who is on the list", function()
        local address = support.unique("s") .. "@example.test"
        assert.is_true(shop.owner:post("/mail/suppressions/create", { email = address }).json.added)
        assert.equal("manual", shop.owner:get("/mail/suppressions?email=" .. address).json[1].reason)
        require("kasma.mail").send({ tenant = shop.key, app = shop.app }, { to = address, template = "account-exists",
            key = "s:" .. address })
        support.eventually(function()
            local list = shop.owner:get("/mail/messages?recipient=" .. address).json
            return list[1] and list[1].state == "suppressed"
        end, 20)
        assert.equal(0, support.mail_count(address))
        assert.equal(1, shop.owner:post("/mail/suppressions/remove", { email = address }).json.removed)
        assert.same({}, shop.owner:get("/mail/suppressions?email=" .. address).json)
    end)

    it("are listed page by page", function()
        for i = 1, 3 do
            require("kasma.mail").send({ tenant = shop.key, app = shop.app }, { to = "p" .. i .. "@example.test",
                template = "account-exists", key = "page" .. i })
        end
        local seen, cursor = {}, nil
        for _ = 1, 10 do
            local answer = shop.owner:get("/mail/messages?template=account-exists&limit=2" .. (cursor and "&cursor=" .. cursor or ""))
            assert.equal(200, answer.status)
            for _, row in ipairs(answer.json) do
                assert.is_nil(seen[row.id])
                seen[row.id] = row.key
            end
            cursor = answer.headers["x-next-cursor"]
            if not cursor then break end
        end
        local keys = {}
        for _, key in pairs(seen) do keys[key] = true end
        assert.is_true(keys.page1 and keys.page2 and keys.page3)
        assert.equal(400, shop.owner:get("/mail/messages?cursor=nonsense").status)
    end)
end)
