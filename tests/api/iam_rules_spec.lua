-- What a tenant's rules may decide about its accounts and requests. Rules are published to this process alone and the services are
-- called in it; how a rule gets to every worker is told elsewhere.
local rules = require("core.rules")
local db = require("kasma.db")
local errors = require("kasma.errors")
local mail = require("kasma.mail")
local policy = require("kasma.policy")
local cache = require("kasma.cache")
local iam = require("modules.iam.service")
local role_store = require("modules.iam.store_roles")
local users = require("modules.iam.users")
local shop_of = require("api.shop")
local support = require("api.support")

local epoch = 0

-- One rule, live for the tenant in this process.
local function publish(tenant, hook, body)
    epoch = epoch + 1
    local source = ("return { hook = %q, name = 'test', version = 1, priority = 1, on_error = 'skip', "
        .. "run = function(input, config) %s end }"):format(hook, body)
    local ok, why = rules.publish(tenant, epoch, { { id = "test", hook = hook, name = "test", number = epoch, priority = 1,
        on_error = "skip", source = source, config = "{}" } })
    assert(ok, why and why.message)
    cache.clear_all()
end

local function scope_of(tenant) return { tenant = tenant.key, app = tenant.app, actor_kind = "guest" } end
local CLIENT = { ip = "127.0.0.1", user_agent = "phone/1" }

-- Status and message of what a call raises; nil when it does not.
local function refusal(fn, ...)
    local ok, err = pcall(fn, ...)
    if ok then return nil end
    assert(errors.is(err), tostring(type(err) == "table" and (err.message or err.kind) or err))
    local message = err.object and err.object.message or err.message
    return { err.status, type(message) == "table" and message[1] or message }
end

describe("a rule of sign-in", function()
    local tenant = support.tenant{ settings = { ["auth.login_otp"] = "never" } }
    local shopper = support.shopper(tenant)
    local function login()
        return iam.login(scope_of(tenant), { identifier = shopper.user.email, password = shopper.user.password }, CLIENT)
    end

    it("asks for a code where the setting does not, or skips it", function()
        publish(tenant.key, "auth.login_policy", "return { otp = input.subject.known_device and 'skip' or 'always' }")
        assert.same({ 401, "Login requires OTP verification. OTP sent to email." }, refusal(login))
        publish(tenant.key, "auth.login_policy", "return { otp = 'skip' }")
        assert.is_string(login().access_token)
    end)

    it("denies with its reason, after the right password alone", function()
        publish(tenant.key, "auth.login_policy", "return { deny = input.subject.ip == '127.0.0.1', reason = 'Not from here' }")
        assert.same({ 403, "Not from here" }, refusal(login))
        assert.same({ 401, "Invalid credentials" }, refusal(iam.login, scope_of(tenant), { identifier = shopper.user.email,
            password = "wrong-one" }, CLIENT))
    end)

    it("that runs for ever asks for a code, and nobody waits for it", function()
        publish(tenant.key, "auth.login_policy", "while true do end")
        assert.same({ 401, "Login requires OTP verification. OTP sent to email." }, refusal(login))
        publish(tenant.key, "auth.login_policy", "return nil")
        assert.is_string(login().access_token)
    end)
end)

describe("a rule of registration", function()
    local tenant = support.tenant()
    local function register(email)
        return iam.register(scope_of(tenant), { email = email, password = "secret-99", display_name = "N" }, CLIENT)
    end

    it("refuses whom it will", function()
        publish(tenant.key, "auth.before_register", "if input.subject.email:find('@evil', 1, true) then "
            .. "return { allow = false, reason = 'Not you' } end return { allow = true }")
        assert.same({ 403, "Not you" }, refusal(register, support.unique("e") .. "@evil.test"))
        assert.is_nil(refusal(register, support.unique("g") .. "@good.test"))
    end)

    it("gives a type of shopper and roles that anybody may hold, and nothing more", function()
        publish(tenant.key, "auth.before_register",
            "return { allow = true, user_type = 'GENERAL_2', role_keys = { 'gold', 'tenant_owner' } }")
        local made = tenant.owner:post("/roles", { code = "GOLD", role_key = "gold", display_name = "Gold" })
        assert.equal(201, made.status)
        local email = support.unique("g") .. "@good.test"
        local began = register(email)
        local _, user = iam.verify_otp(scope_of(tenant), { identifier = email, code = support.code_for(email), type = "REGISTER" },
            { ip = CLIENT.ip, user_agent = CLIENT.user_agent, nonce = began.nonce })
        assert.equal("GENERAL_2", user.user_type)
        local keys = {}
        for i, role in ipairs(role_store.roles_of(tenant.key, user.id, "2020-01-01T00:00:00Z")) do keys[i] = role.role_key end
        assert.same({ "customer", "gold" }, keys)
        publish(tenant.key, "auth.before_register", "return { allow = true, user_type = 'KASMA_0' }")
        email = support.unique("g") .. "@good.test"
        began = register(email)
        _, user = iam.verify_otp(scope_of(tenant), { identifier = email, code = support.code_for(email), type = "REGISTER" },
            { ip = CLIENT.ip, nonce = began.nonce })
        assert.equal("GENERAL_0", user.user_type)
    end)

    it("decides about passwords by their measures", function()
        publish(tenant.key, "auth.password_policy", "local s = input.subject if s.password_length < 9 then "
            .. "return { ok = false, message = 'Longer, please' } end return { ok = not s.breached }")
        local function set(password)
            return refusal(iam.register, scope_of(tenant), { email = support.unique("p") .. "@good.test", password = password }, CLIENT)
        end
        assert.same({ 400, "Longer, please" }, set("short-1"))
        assert.same({ 400, "Password is refused by the policy" }, set("password123"))
        assert.is_nil(set("an unlikely one"))
    end)
end)

describe("a rule of profiles", function()
    local tenant = support.tenant()
    local shopper = support.shopper(tenant)
    local function update(patch)
        return users.update_self({ tenant = tenant.key, app = tenant.app, actor_id = shopper.user.id, actor_kind = "user" },
            shopper.user.id, patch, false)
    end

    it("changes what is written, in the members of a profile alone", function()
        publish(tenant.key, "user.profile_validate",
            "local p = input.subject.patch p.city = (p.city or ''):upper() p.user_type = 'KASMA_0' return { patch = p }")
        local view = update{ city = "hanoi" }
        assert.same({ "HANOI", "GENERAL_0" }, { view.profile.city, view.user_type })
    end)

    it("refuses with its messages", function()
        publish(tenant.key, "user.profile_validate", "return { errors = { 'city is not served' } }")
        assert.same({ 400, "city is not served" }, refusal(update, { city = "Atlantis" }))
        publish(tenant.key, "user.profile_validate", "error('broken')")
        assert.equal("Hue", update{ city = "Hue" }.profile.city)
    end)
end)

describe("a rule of permissions", function()
    local tenant = support.tenant()
    local caller = { user = { id = "00000000-0000-7000-8000-000000000001", email = "a@example.test", user_type = "TENANT_0" },
        role_keys = { "finance" } }
    local function allows(permission) return policy.allows(scope_of(tenant), caller, permission, { id = "x" }, "POST") end

    it("takes rights away, and when it fails all of them but those to the rules", function()
        assert.is_true(allows("orders.refund"))
        publish(tenant.key, "rbac.extra_check", "local s = input.subject return { allow = not (s.permission == 'orders.refund' "
            .. "and s.entity.id == 'x' and s.user.role_keys[1] == 'finance') }")
        assert.is_false(allows("orders.refund"))
        assert.is_true(allows("orders.read"))
        publish(tenant.key, "rbac.extra_check", "error('broken')")
        assert.is_false(allows("orders.read"))
        assert.is_true(allows("rules.write"))
    end)
end)

describe("a rule of the framework", function()
    local tenant = support.tenant()

    it("sets limits, within ten times the platform's", function()
        local own = { limit = 300, window_s = 60 }
        assert.is_nil(policy.limit(tenant.key, "user", own))
        publish(tenant.key, "ratelimit.override", "return { limit = input.subject.rule == 'user' and 50 or 1000000, window = 90000 }")
        assert.same({ limit = 50, window_s = 3600 }, policy.limit(tenant.key, "user", own))
        assert.same({ limit = 3000, window_s = 3600 }, policy.limit(tenant.key, "key", own))
    end)

    it("masks what the audit keeps, and drops nothing", function()
        publish(tenant.key, "audit.filter", "return { mask = { 'after.address.street', 'before.phone', 'event', 'after.none.x' } }")
        local before, after = policy.mask(scope_of(tenant), { action = "x.y", before = { phone = "1", name = "n" },
            after = { address = { street = "s", city = "c" } } })
        assert.same({ phone = "***", name = "n" }, before)
        assert.same({ address = { street = "***", city = "c" } }, after)
    end)

    it("writes mails, safe and with their code", function()
        publish(tenant.key, "mail.render", "local v = input.subject.vars return { subject = 'Code', text = 'Yours: ' .. v.code, "
            .. "html = '<p onclick=\"x()\">' .. v.code .. '</p><script>x()</script>' }")
        local made = policy.mail(tenant.key, { template = "otp", locale = "en", vars = { code = "123456", type = "Login" } })
        assert.same({ "Code", "Yours: 123456" }, { made.subject, made.text })
        assert.is_nil(made.html:find("script", 1, true))
        assert.is_nil(made.html:find("onclick", 1, true))
        publish(tenant.key, "mail.render", "return { subject = 'Code', text = 'Guess' }")
        assert.is_nil(policy.mail(tenant.key, { template = "otp", locale = "en", vars = { code = "123456" } }))
        assert.equal("Guess", policy.mail(tenant.key, { template = "other", locale = "en", vars = {} }).text)
        local address = support.unique("m") .. "@example.test"
        mail.transmit(tenant.key, { id = "00000000-0000-7000-8000-000000000002", to = address, template = "account-exists", locale = "en",
            vars = {} })
        assert.equal("Guess", support.mail_to(address, "Code"))
    end)

    it("of the platform names the tenant of a host, if it is there", function()
        local other = support.tenant()
        publish("MASTER", "tenant.resolve", ("local h = input.subject.host if h == 'one.example' then "
            .. "return { tenant_key = %q, app_key = %q } elseif h == 'two.example' then return { tenant_key = 'nowhere' } end "
            .. "return nil"):format(other.key, other.app))
        local function ask(host)
            return policy.resolve{ path = "/", header = function(_, name) return name == "host" and host or nil end }
        end
        local found, none, silent = ask("one.example"), ask("two.example"), ask("three.example")
        rules.publish("MASTER", epoch + 1, {})
        epoch = epoch + 1
        cache.clear_all()
        assert.same({ tenant_key = other.key, app_key = other.app }, found)
        assert.is_nil(none)
        assert.is_nil(silent)
        assert.is_table(db.one(nil, "select 1 as yes from tenants where tenant_key = $1", other.key))
    end)
end)

describe("a published rule of sign-in that runs for ever", function()
    it("asks for the code, lets in who has it, and leaves a run that says where it was stopped", function()
        local tenant = support.tenant()
        local shopper = support.shopper(tenant)
        local function must(answer, status)
            assert.equal(status, answer.status, answer.body)
            return answer.json
        end
        -- The check finds an endless loop, so it hides from the samples' address.
        local source = [[return { hook = "auth.login_policy", name = "Endless", run = function(input)
            if input.subject.user.email:find("example.test", 1, true) and input.subject.user.email ~= "ann@example.test" then
                while true do end
            end
            return { otp = "skip" }
        end }]]
        must(tenant.owner:post("/rules/create", { key = "endless", hook = "auth.login_policy", name = "Endless", source = source }), 201)
        assert.equal(1, must(tenant.owner:post("/rules/endless/publish", { revision = 1, note = "go" }), 201).version)

        local client = support.client(tenant.headers)
        -- The word that there is such a rule gets about within half a second.
        local asked = support.eventually(function()
            local answer = client:post("/auth/login", { identifier = shopper.user.email, password = shopper.user.password })
            return answer.status ~= 200 and answer
        end)
        assert.same({ 401, true, "LOGIN" }, { asked.status, asked.json.requiresOtp, asked.json.type })
        local code = support.code_for(shopper.user.email)
        must(client:post("/auth/verify-otp", { identifier = shopper.user.email, code = code, type = "LOGIN" }), 200)
        assert.equal(shopper.user.id, must(client:get("/auth/me"), 200).user.id)

        local run = support.eventually(function() return must(tenant.owner:get("/rules/endless/runs?outcome=failed"), 200)[1] end)
        assert.same({ "limit_instructions", "auth.login_policy", 1, 200000, 3 }, { run.outcome, run.hook, run.version, run.instructions,
            run.line })
        -- A wrong password is told nothing of it, and costs no run.
        assert.equal(401, support.client(tenant.headers):post("/auth/login", { identifier = shopper.user.email,
            password = "wrong-one" }).status)
        must(tenant.owner:post("/rules/endless/disable", { reason = "it never ends" }), 201)
        support.eventually(function()
            return support.client(tenant.headers):post("/auth/login", { identifier = shopper.user.email,
                password = shopper.user.password }).status == 200
        end)
    end)
end)

describe("a published rule of permissions", function()
    it("holds wherever the permission decides, in the gate and in what a route shows to its holders", function()
        local shop, product = shop_of.simple(5)
        local buyer = shop_of.buyer(shop, product, 1, support.shopper(shop))
        local order = shop_of.must(shop_of.checkout(buyer)).orders[1].id
        local staff = support.user(shop, "order_manager")
        local secret = shop_of.must(shop.owner:post("/tenants/" .. shop.key .. "/keys/create", { name = "ci", key_type = "secret",
            scopes = { "orders.read", "customers.read" } })).key.secret
        local key = support.client{ Authorization = "Bearer " .. secret }
        local function details(c) return c:post("/sales/orders/details", { id = order }).status end
        assert.same({ 201, 201, 201 }, { details(staff), details(key), details(buyer) })
        local source = [[return { hook = "rbac.extra_check", name = "Night", run = function(input)
            return { allow = input.subject.permission ~= "orders.read" }
        end }]]
        shop_of.must(shop.owner:post("/rules/create", { key = "night", hook = "rbac.extra_check", name = "Night", source = source }))
        shop_of.must(shop.owner:post("/rules/night/publish", { revision = 1, note = "go" }))
        support.eventually(function() return details(staff) == 404 and details(key) == 404 end)
        -- One's own order asks for no permission, and another permission is as it was.
        assert.same({ 404, 404, 201 }, { details(staff), details(key), details(buyer) })
        assert.equal(201, key:post("/customers/details", { userId = buyer.user.id }).status)
        shop_of.must(shop.owner:post("/rules/night/disable", { reason = "day" }))
        support.eventually(function() return details(staff) == 201 and details(key) == 201 end)
    end)
end)
