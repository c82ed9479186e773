-- No secret that a route takes or gives is in the audit, in the outbox that carries it there, in the sign-in log or in a process's log:
-- passwords, codes, tokens and keys, found from the declarations, so that a new route is in the test by itself.
local config = require("core.config")
local crypto = require("core.crypto")
local json = require("core.json")
local mongo = require("core.mongo")
local redis = require("core.redis")
local time = require("core.time")
local audit = require("kasma.audit")
local db = require("kasma.db")
local route = require("kasma.route")
local sealed = require("kasma.secrets")
local totp = require("modules.iam.totp")
local arranged = require("api.arranged")
local catalogue = require("api.catalogue")
local command = require("api.command")
local shop_of = require("api.shop")
local support = require("api.support")

local must = shop_of.must

-- Whether a member of this name, of this route, is a secret.
local function is_secret(decl, name)
    local low = name:lower():gsub("[_%-]", "")
    if low:find("password", 1, true) or low:find("secret", 1, true) or low:find("token", 1, true) or low:find("credential", 1, true)
        or low:find("apikey", 1, true) or low:find("privatekey", 1, true) then return true end
    return decl.tag == "auth" and (low == "code" or low:find("recovery", 1, true) ~= nil)
end

describe("secrets", function()
    local planted = {} -- secret -> where it came from
    local tenants = { MASTER = true }
    local world

    -- A value that is found again: letters that no other text holds, in the length that a code takes.
    local function plant(where)
        local value = ("zq" .. crypto.random_hex(8)):sub(1, 10)
        planted[value] = where
        return value
    end

    -- What an answer hands out.
    local function gather(value, where)
        if type(value) ~= "table" then return end
        for name, member in pairs(value) do
            if type(member) == "string" and #member >= 10 and type(name) == "string"
                and (name:find("secret") or name:find("_token$") or name == "uri") then
                planted[member] = where .. " answers " .. name
            elseif name == "recovery_codes" then
                for _, code in ipairs(member) do planted[code] = where .. " answers " .. name end
            else
                gather(member, where)
            end
        end
    end

    local function post(client, path, body, headers)
        local answer = client:post(path, body, headers)
        gather(answer.json, path)
        return answer
    end

    it("are sent to every route that takes one", function()
        world = arranged.world()
        tenants[world.shop.key] = true
        local places = {}
        for _, decl in ipairs(route.all()) do
            for _, place in ipairs(decl.bare and {} or arranged.text_places(decl)) do
                if is_secret(decl, place.name) then
                    local name = ("%s %s %s"):format(decl.method, decl.path, place.text)
                    for _, client in ipairs{ world.staff, support.guest(world.shop) } do
                        local method, path, body = arranged.request(decl, world, place, plant(name))
                        local answer = client:request(method, path, body)
                        assert.is_true(answer.status < 500, name .. " " .. answer.body)
                    end
                    places[#places + 1] = name
                    if world.staff:get("/auth/me").status == 401 then support.sign_in(world.staff) end
                end
            end
        end
        assert.is_true(#places >= 12, table.concat(places, "\n"))
    end)

    it("are used where they open something", function()
        local tenant = support.tenant()
        tenants[tenant.key] = true
        local email = support.unique("s") .. "@example.test"
        local guest = support.client(tenant.headers)
        local function note_tokens(client, where)
            for _, name in ipairs{ "access_token", "refresh_token", "reg_nonce" } do
                if client.cookies[name] then planted[client.cookies[name]] = where .. " " .. name end
            end
        end
        local password = plant("the password of a registration")
        must(post(guest, "/auth/register", { email = email, password = password }))
        note_tokens(guest, "register")
        must(post(guest, "/auth/verify-otp", { identifier = email, code = support.code_for(email), type = "REGISTER" },
            { ["X-Token-Response"] = "body" }), 200)
        note_tokens(guest, "verify")
        local shopper = support.client(tenant.headers)
        assert.equal(401, post(shopper, "/auth/login", { identifier = email, password = plant("a wrong password") }).status)
        must(post(shopper, "/auth/login", { identifier = email, password = password }), 200)
        note_tokens(shopper, "login")
        must(post(shopper, "/auth/refresh", nil, { ["X-Token-Response"] = "body" }), 200)
        note_tokens(shopper, "refresh")
        local changed = plant("a changed password")
        assert.equal(400, post(shopper, "/users/me/change-password", { oldPassword = plant("a wrong one"), newPassword = changed }).status)
        must(post(shopper, "/users/me/change-password", { oldPassword = password, newPassword = changed }), 200)
        must(post(guest, "/auth/forgot-password", { identifier = email }), 200)
        local answer = must(post(guest, "/auth/verify-otp", { identifier = email, type = "FORGOT_PASSWORD",
            code = (support.eventually(function()
                local text = support.mail_to(email, "Forgot Password")
                return text and text:match("%f[%d](%d%d%d%d%d%d)%f[%D]")
            end, 20)) }), 200)
        must(post(guest, "/auth/reset-password", { reset_token = answer.reset_token, new_password = plant("a reset password") }), 200)

        local owner = tenant.owner
        must(post(owner, "/auth/2fa/setup"), 200)
        local row = db.one(nil, "select secret_enc from user_credentials where user_id = $1 and provider = 'totp'", owner.user.id)
        local secret = sealed.open("totp", row.secret_enc, owner.user.id)
        must(post(owner, "/auth/2fa/confirm", { code = totp.code(secret, math.floor(time.now() / 30000)) }), 200)
        local keys = "/tenants/" .. tenant.key .. "/keys/"
        local key = must(post(owner, keys .. "create", { name = "k", key_type = "secret", scopes = { "auth.introspect" } })).key
        must(post(support.client{ Authorization = "Bearer " .. key.secret }, "/auth/introspect",
            { token = owner.cookies.access_token }), 200)
        must(post(owner, keys .. key.id .. "/rotate", { grace_seconds = 60 }))
        planted[owner.cookies.access_token] = "an introspected token"
        must(post(owner, "/webhooks/endpoints/create", { name = "w", url = "https://hooks.shop.example.org/w", events = { "webhook.test" },
            headers = { ["X-Api-Key"] = plant("a header of a webhook") } }))
    end)

    it("stand in no trail and no log", function()
        local count = 0
        for _ in pairs(planted) do count = count + 1 end
        assert.is_true(count >= 40, count .. " secrets")

        local function clean(text, where)
            for secret, from in pairs(planted) do
                assert.is_nil(text:find(secret, 1, true), ("%s: in %s"):format(from, where))
            end
        end
        local events = 0
        for tenant in pairs(tenants) do
            -- Everything that was said so far has been carried over.
            local newest = audit.write({ tenant = tenant, app = tenant, actor_kind = "system" }, { action = "test.mark" })
            support.eventually(function() return mongo.find_one("audit_log", { _id = newest }) end, 20)
            local docs = mongo.find("audit_log", { tenant_key = tenant }, { limit = 5000 })
            for _, doc in ipairs(docs) do clean(json.encode(doc), "the audit: " .. doc.action) end
            events = events + #docs
            for _, sql in ipairs{ "select row_to_json(a)::text as text from audit_auth_log a where tenant_key = $1",
                "select row_to_json(a)::text as text from audit_index a where tenant_key = $1" } do
                for _, row in ipairs(db.read(tenant, sql, tenant)) do clean(row.text, sql) end
            end
            for _, pair in ipairs(catalogue.json("owner", ([[select coalesce(json_agg(json_build_array(topic, payload::text)), '[]')
              from outbox where tenant_key = %s]]):format(catalogue.quote(tenant)))) do
                clean(pair[2], "the outbox: " .. pair[1])
            end
        end
        assert.is_true(events >= 10, events .. " events")
        for _, name in ipairs{ "serve", "work" } do
            local file = os.getenv("DATA") and io.open(os.getenv("DATA") .. "/log/" .. name .. ".log")
            if file then
                clean(file:read("*a"), name .. ".log")
                file:close()
            end
        end
    end)

    it("that are shown once are shown again to the same request, and not to who reads Redis", function()
        local once = { ["X-Idempotency-Key"] = "one-key" }
        local function endpoint()
            return must(world.staff:post("/webhooks/endpoints/create", { name = "once", url = "https://hooks.shop.example.org/once",
                events = { "webhook.test" } }, once))
        end
        local function make()
            return must(world.staff:post("/tenants/" .. world.shop.key .. "/keys/create", { name = "once", key_type = "secret" }, once)).key
        end
        local made, key = endpoint(), make()
        assert.same({ made.id, made.secret }, { endpoint().id, endpoint().secret })
        assert.same({ key.id, key.secret }, { make().id, make().secret })
        local cursor, entries = "0", 0
        repeat
            local answer = redis.call("SCAN", cursor, "MATCH", "idem:*", "COUNT", "1000")
            cursor = answer[1]
            for _, name in ipairs(answer[2]) do
                local text = redis.call("GET", name)
                local entry = type(text) == "string" and json.decode(text)
                if entry and entry.body then
                    entries = entries + 1
                    local held = crypto.unbase64(entry.body) .. text
                    assert.is_nil(held:find(key.secret, 1, true) or held:find(made.secret, 1, true))
                end
            end
        until cursor == "0"
        assert.is_true(entries >= 1)
    end)

    it("are masked by their names whatever is passed, and codes that are none are not", function()
        local shown = audit.masked{ password = "x", newPassword = "x", api_key = "x", apiKey = "x", ["X-Api-Key"] = "x",
            client_secret = "x", accessToken = "x", privateKey = "x", otp = "x", passphrase = "x", credentials = { user = "x" },
            recovery_hashes = { "x" },
            nested = { { authorization = "x" } }, code = "MGR", countryCode = "VN", couponCode = "TEA", zipCode = "1", key = "sales",
            permission_keys = { "a.b" }, carrier_code = "ghn" }
        assert.same({ password = "***", newPassword = "***", api_key = "***", apiKey = "***", ["X-Api-Key"] = "***",
            client_secret = "***", accessToken = "***", privateKey = "***", otp = "***", passphrase = "***", credentials = "***",
            recovery_hashes = "***",
            nested = { { authorization = "***" } }, code = "MGR", countryCode = "VN", couponCode = "TEA", zipCode = "1", key = "sales",
            permission_keys = { "a.b" }, carrier_code = "ghn" }, shown)
    end)

    it("of the configuration are masked where it is printed", function()
        local _, text = command.run("config print")
        for _, name in ipairs{ "JWT_SECRET", "SERVER_KEY", "INTERNAL_WEBHOOK_SECRET", "SOCKET_INTERNAL_API_KEY", "OTP_PEPPER" } do
            local value = config.get(name)
            if value and value ~= "" then assert.is_nil(text:find(value, 1, true), name) end
        end
        assert.is_true(#text > 500)
    end)
end)
