-- Rules that answer routes under /x/, over HTTP; and the secrets that they send.
local json = require("core.json")
local db = require("kasma.db")
local support = require("api.support")
local shop_of = require("api.shop")

local must = shop_of.must

local function post(who, path, body) return who:post("/rules/" .. path, body or {}) end

local function publish(shop, key, source, settings, revision)
    if not revision then
        must(post(shop.owner, "create", { key = key, hook = "route", name = key, source = source, settings = settings }))
    end
    return must(post(shop.owner, key .. "/publish", { revision = revision or 1, note = "go" }))
end

describe("secrets of rules", function()
    it("are set and named, and never shown", function()
        local shop = support.tenant()
        local set = must(post(shop.owner, "secrets/set", { name = "crm_token", value = "v4lue-of-the-token" }))
        assert.equal("crm_token", set.name)
        local list = shop.owner:get("/rules/secrets")
        assert.equal(200, list.status)
        assert.is_nil(list.body:find("v4lue", 1, true))
        assert.equal("crm_token", list.json[1].name)
        assert.equal(shop.owner.user.id, list.json[1].updatedBy)
        local row = db.one(shop.key, "select value_enc from tenant_secrets where tenant_key = $1 and name = 'crm_token'", shop.key)
        assert.is_nil(row.value_enc:find("v4lue", 1, true))
        local events = support.eventually(function()
            local logs = shop.owner:get("/audit/logs?limit=50")
            return logs.body:find("RULE_SECRET_SET", 1, true) and logs
        end)
        assert.is_nil(events.body:find("v4lue", 1, true))
        must(post(shop.owner, "secrets/set", { name = "crm_token", value = "another" }))
        assert.equal(1, #must(shop.owner:get("/rules/secrets"), 200))
    end)

    it("stay while a live rule needs them, and are nobody else's", function()
        local shop, other = support.tenant(), support.tenant()
        must(post(shop.owner, "secrets/set", { name = "crm_token", value = "x" }))
        publish(shop, "sender", "return { hook = 'route', name = 'sender', path = 'sender', needs = { http = { 'crm.example.org' }, "
            .. "secrets = { 'crm_token' } }, run = function() return { status = 204 } end }")
        local refused = post(shop.owner, "secrets/remove", { name = "crm_token" })
        assert.equal(409, refused.status)
        assert.equal("secret_in_use", refused.json.code)
        assert.same({ "sender" }, must(shop.owner:get("/rules/secrets"), 200)[1].usedBy)
        assert.equal(404, post(other.owner, "secrets/remove", { name = "crm_token" }).status)
        assert.equal(0, #must(other.owner:get("/rules/secrets"), 200))
        must(post(shop.owner, "sender/disable", { reason = "over" }))
        must(post(shop.owner, "secrets/remove", { name = "crm_token" }))
        assert.equal(404, post(shop.owner, "secrets/remove", { name = "crm_token" }).status)
    end)

    it("have a form", function()
        local shop = support.tenant()
        for _, body in ipairs{ { name = "Crm", value = "x" }, { name = "a b", value = "x" }, { name = "ok", value = "" },
            { name = "ok", value = ("x"):rep(4097) }, { name = ("x"):rep(64), value = "x" }, { name = "ok" } } do
            assert.equal(400, post(shop.owner, "secrets/set", body).status, json.encode(body))
        end
        local shopper = support.shopper(shop)
        assert.equal(403, post(shopper, "secrets/set", { name = "ok", value = "x" }).status)
        assert.equal(403, shopper:get("/rules/secrets").status)
    end)
end)
