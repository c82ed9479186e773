-- Attacks on accounts, sessions and tokens, each as its attacker would do it: many connections at once, other spellings, values of
-- somebody else's, words that the server did not ask for.
local config = require("core.config")
local crypto = require("core.crypto")
local json = require("core.json")
local jwt = require("core.jwt")
local redis = require("core.redis")
local time = require("core.time")
local db = require("kasma.db")
local route = require("kasma.route")
local secrets = require("kasma.secrets")
local sessions = require("modules.iam.sessions")
local totp = require("modules.iam.totp")
local arranged = require("api.arranged")
local shop_of = require("api.shop")
local support = require("api.support")

local must = shop_of.must
local function login(client, email, password) return client:post("/auth/login", { identifier = email, password = password }) end

local function verify(client, email, code, type)
    return client:post("/auth/verify-otp", { identifier = email, code = code, type = type })
end

-- Runs a call on `times` connections at once and counts the statuses.
local function storm(times, call)
    local calls = {}
    for i = 1, times do calls[i] = function() return call(i) end end
    local counts, answers = {}, support.parallel(calls)
    for _, answer in ipairs(answers) do counts[answer.status] = (counts[answer.status] or 0) + 1 end
    return counts, answers
end

local function rows_of(sql, ...) return db.one(nil, sql, ...).n end

describe("a refresh token", function()
    local tenant = support.tenant()

    it("that comes back fifty times at once opens nothing and ends its family", function()
        local platform = support.platform()
        local shopper = support.shopper(tenant)
        local stolen = shopper:copy()
        assert.equal(200, shopper:post("/auth/refresh").status)
        support.advance(platform, 11)
        local counts = storm(50, function() return stolen:copy():post("/auth/refresh") end)
        local newest = shopper:post("/auth/refresh")
        support.real_time(platform)
        assert.same({ [401] = 50 }, counts)
        assert.equal(401, newest.status)
        assert.equal(401, shopper:get("/auth/me").status)
        assert.equal(0, rows_of([[select count(*)::int as n from auth_sessions where user_id = $1 and revoked_at is null]],
            shopper.user.id))
        assert.is_true(db.one(tenant.key, [[select count(*)::int as n from audit_auth_log where tenant_key = $1 and user_id = $2
          and action = 'TOKEN_REUSE']], tenant.key, shopper.user.id).n >= 1)
    end)

    it("that fifty tabs use at once makes one session and no more", function()
        local shopper = support.shopper(tenant)
        local counts = storm(50, function() return shopper:copy():post("/auth/refresh") end)
        assert.same({ [200] = 50 }, counts)
        assert.equal(2, rows_of("select count(*)::int as n from auth_sessions where user_id = $1", shopper.user.id))
    end)

    it("that races with a sign-out everywhere leaves no session behind", function()
        for _ = 1, 6 do
            local shopper = support.shopper(tenant)
            local tabs = { shopper }
            for i = 2, 5 do
                tabs[i] = shopper:copy()
                tabs[i].cookies = {}
                assert.equal(200, login(tabs[i], shopper.user.email, shopper.user.password).status)
            end
            -- On a session of its own: the exchange of another's tokens may come first, and would turn it away.
            local leaving = shopper:copy()
            leaving.cookies = {}
            assert.equal(200, login(leaving, shopper.user.email, shopper.user.password).status)
            storm(6, function(i)
                if i == 3 then return leaving:post("/auth/logout-all") end
                local tab = tabs[i > 3 and i - 1 or i]
                return i == 6 and login(tab, shopper.user.email, shopper.user.password) or tab:post("/auth/refresh")
            end)
            -- A sign-in that began after the sign-out is one of its own.
            local ended = db.one(nil, "select max(revoked_at) as at from auth_sessions where user_id = $1", shopper.user.id).at
            assert.equal(0, rows_of([[select count(*)::int as n from auth_sessions where user_id = $1 and revoked_at is null
              and rotated_at is null and (parent_id is not null or created_at < $2::timestamptz)]], shopper.user.id, ended))
        end
    end)

    it("that races with its own sign-out leaves no session behind", function()
        for _ = 1, 6 do
            local shopper = support.shopper(tenant)
            local leaving = shopper:copy()
            storm(4, function(i) return i == 2 and leaving:post("/auth/logout") or shopper:copy():post("/auth/refresh") end)
            assert.equal(0, rows_of([[select count(*)::int as n from auth_sessions where user_id = $1 and revoked_at is null
              and rotated_at is null]], shopper.user.id))
        end
    end)

    it("whose answer for parallel tabs was lost opens nothing and signs nobody out", function()
        local shopper = support.shopper(tenant)
        local tab = shopper:copy()
        assert.equal(200, shopper:post("/auth/refresh").status)
        redis.call("DEL", "auth:rtn:" .. crypto.sha256(tab.cookies.refresh_token))
        assert.equal(401, tab:post("/auth/refresh").status)
        assert.equal(200, shopper:get("/auth/me").status)
        assert.equal(200, shopper:post("/auth/refresh").status)
    end)

    it("whose old handle Redis brings back opens nothing once that is seen, and nobody is signed out", function()
        local shopper, other = support.shopper(tenant), support.shopper(tenant)
        local stale, key = shopper:copy(), "auth:at:" .. crypto.sha256(shopper.cookies.access_token)
        local entry = redis.call("GET", key)
        local sid = json.decode(entry).sid
        for _, client in ipairs{ shopper, other } do assert.equal(200, client:post("/auth/refresh").status) end
        -- As after the death of a Redis that had not yet written that the handle is dropped.
        redis.call("DEL", "sess:revoked:" .. sid)
        redis.call("SET", key, entry, "PX", "1800000")
        assert.equal(200, stale:get("/auth/me").status)
        sessions.drop_exchanged()
        assert.equal(401, stale:get("/auth/me").status)
        assert.is_string(redis.call("GET", "sess:revoked:" .. sid))
        assert.equal(0, sessions.drop_exchanged(), "what Redis remembers is left alone")
        for _, client in ipairs{ shopper, other } do assert.equal(200, client:get("/auth/me").status) end
        assert.equal(200, shopper:post("/auth/refresh").status)
    end)

    it("is no access token, nor the other way round", function()
        local shopper = support.shopper(tenant)
        local swapped = support.client(tenant.headers)
        swapped.cookies.access_token, swapped.cookies.refresh_token = shopper.cookies.refresh_token, shopper.cookies.access_token
        assert.equal(401, swapped:get("/auth/me").status)
        assert.equal(401, swapped:post("/auth/refresh").status)
        assert.equal(401, support.client{ Authorization = "Bearer " .. shopper.cookies.refresh_token }:get("/auth/me").status)
    end)
end)

describe("a session that an attacker put into the browser", function()
    local tenant = support.tenant()

    it("does not become the victim's by signing in", function()
        local attacker, victim = support.shopper(tenant), support.shopper(tenant)
        local browser = support.client(tenant.headers)
        browser.cookies.access_token, browser.cookies.refresh_token = attacker.cookies.access_token, attacker.cookies.refresh_token
        assert.equal(200, login(browser, victim.user.email, victim.user.password).status)
        assert.equal(victim.user.id, browser:get("/auth/me").json.user.id)
        assert.is_true(browser.cookies.access_token ~= attacker.cookies.access_token)
        assert.is_true(browser.cookies.refresh_token ~= attacker.cookies.refresh_token)
        assert.equal(attacker.user.id, attacker:get("/auth/me").json.user.id)
    end)

    it("under a value of the attacker's choice is never taken over", function()
        local chosen, victim = crypto.random_hex(32), support.shopper(tenant)
        local browser = support.client(tenant.headers)
        browser.cookies.access_token, browser.cookies.refresh_token = chosen, chosen
        assert.equal(200, login(browser, victim.user.email, victim.user.password).status)
        assert.equal(401, support.client{ Authorization = "Bearer " .. chosen }:get("/auth/me").status)
    end)
end)

describe("a reset token", function()
    it("that twenty bring at once sets one password", function()
        local tenant = support.tenant()
        local shopper = support.shopper(tenant)
        local client = support.client(tenant.headers)
        must(client:post("/auth/forgot-password", { identifier = shopper.user.email }), 200)
        local token = verify(client, shopper.user.email, support.code_for(shopper.user.email), "FORGOT_PASSWORD").json.reset_token
        local counts, answers = storm(20, function(i)
            return support.client(tenant.headers):post("/auth/reset-password", { reset_token = token, new_password = "brand-new-" .. i })
        end)
        assert.same({ [200] = 1, [401] = 19 }, counts)
        for i, answer in ipairs(answers) do
            assert.equal(answer.status, login(support.client(tenant.headers), shopper.user.email, "brand-new-" .. i).status)
        end
    end)
end)

describe("a signed token", function()
    local tenant = support.tenant()
    local secret = config.get("JWT_SECRET")

    local function claims_of(client)
        local entry = json.decode(redis.call("GET", "auth:at:" .. crypto.sha256(client.cookies.access_token)))
        return json.decode(crypto.unbase64(entry.jwt:match("%.([^.]+)%."))), entry.jwt
    end
    local function part(fields) return crypto.base64url(json.encode(fields)) end
    local function ask(token) return support.client{ Authorization = "Bearer " .. token }:get("/auth/me").status end
    -- HS256 by hand, so that the header says what the attacker likes.
    local function signed(header, claims, key)
        local text = part(header) .. "." .. part(claims)
        local mac = crypto.hmac_sha256(key or secret, text):gsub("..", function(hex) return string.char(tonumber(hex, 16)) end)
        return text .. "." .. crypto.base64url(mac)
    end

    it("holds only as it was signed, whatever its header says", function()
        local claims, token = claims_of(tenant.owner)
        assert.equal(200, ask(token))
        assert.equal(200, ask(signed({ alg = "HS256", typ = "JWT" }, claims)))
        local head, body, mark = token:match("^(.-)%.(.-)%.(.-)$")
        for what, forged in pairs{
            ["no algorithm"] = part{ alg = "none", typ = "JWT" } .. "." .. body .. ".",
            ["no algorithm, signed"] = part{ alg = "none", typ = "JWT" } .. "." .. body .. "." .. mark,
            ["NONE"] = signed({ alg = "NONE" }, claims), ["None with a kid"] = signed({ alg = "none", kid = "one" }, claims),
            ["another algorithm"] = signed({ alg = "HS512", typ = "JWT" }, claims),
            ["a public key's algorithm"] = signed({ alg = "RS256", typ = "JWT" }, claims),
            ["no alg"] = signed({ typ = "JWT" }, claims),
            ["an empty secret"] = signed({ alg = "HS256" }, claims, ""),
            ["another secret"] = signed({ alg = "HS256" }, claims, "0123456789abcdef0123456789abcdef"),
            ["a kid that is a path"] = signed({ alg = "HS256", kid = "../../../../dev/null" }, claims, ""),
            ["a kid that is SQL"] = signed({ alg = "HS256", kid = "x' union select 'a" }, claims, "a"),
            ["a kid that is no text"] = signed({ alg = "HS256", kid = 1 }, claims),
            ["a key in the header"] = signed({ alg = "HS256", jwk = { kty = "oct", k = crypto.base64url("mine") } }, claims, "mine"),
            ["no mark"] = head .. "." .. body .. ".", ["a cut mark"] = head .. "." .. body .. "." .. mark:sub(1, -5),
            ["a longer mark"] = token .. "A", ["a fourth part"] = token .. ".AAAA",
        } do assert.equal(401, ask(forged), what) end
    end)

    it("says for whom, by whom and until when, or holds nothing", function()
        local claims = claims_of(tenant.owner)
        for what, change in pairs{
            ["another audience"] = { aud = "other" }, ["a list of audiences"] = { aud = json.array{ "kasma" } },
            ["another issuer"] = { iss = "evil" }, ["no end"] = { exp = json.null }, ["an end that is text"] = { exp = "9999999999" },
            ["an end that was"] = { exp = claims.iat - 1 }, ["no session"] = { sid = json.null }, ["no subject"] = { sub = json.null },
            ["no tenant"] = { tenant_key = json.null },
        } do
            local changed = {}
            for name, value in pairs(claims) do changed[name] = value end
            for name, value in pairs(change) do
                if value == json.null then changed[name] = nil else changed[name] = value end
            end
            assert.equal(401, ask(jwt.sign(changed, secret, "HS256")), what)
        end
    end)

    it("of a session that has ended does not outlive it", function()
        local shopper = support.shopper(tenant)
        local _, token = claims_of(shopper)
        assert.equal(200, ask(token))
        must(shopper:post("/auth/logout-all"), 200)
        assert.equal(401, ask(token))
    end)
end)

describe("the registration of a known address, where the tenant hides it", function()
    it("goes on as that of any other", function()
        local hiding, platform = support.tenant{ settings = { ["auth.hide_existence"] = true } }, support.platform()
        local function steps(email)
            local mine, other = support.client(hiding.headers), support.client(hiding.headers)
            local seen = {}
            local function try(client, path, body)
                body.identifier, body.type = email, "REGISTER"
                local answer = client:post("/auth/" .. path, body)
                seen[#seen + 1] = { path, answer.status, answer.json.message }
            end
            mine:post("/auth/register", { email = email, password = "secret-99" })
            try(other, "resend-otp", {})
            support.advance(platform, 61)
            try(other, "resend-otp", {})
            try(mine, "resend-otp", {})
            try(other, "cancel-otp", {})
            try(mine, "resend-otp", {})
            try(other, "verify-otp", { code = "00000x" })
            try(mine, "cancel-otp", {})
            try(mine, "resend-otp", {})
            support.real_time(platform)
            return seen
        end
        local known = support.shopper(hiding)
        assert.same(steps(support.unique("f") .. "@example.test"), steps(known.user.email))
        assert.equal(200, known:get("/auth/me").status)
    end)
end)

describe("a key that a key made", function()
    local tenant = support.tenant()
    local keys = "/tenants/" .. tenant.key .. "/keys"

    local function by(key) return support.client{ Authorization = "Bearer " .. key.secret } end

    local function make(who, change)
        local wanted = { name = "k", key_type = "secret", scopes = { "keys.write", "users.read" } }
        for name, value in pairs(change or {}) do wanted[name] = value end
        return who:post(keys .. "/create", wanted)
    end

    it("ends with the membership of the one behind both, and with their account", function()
        for _, path in ipairs{ "/tenants/" .. tenant.key .. "/members/remove", "/users/%s/delete" } do
            local staff = support.user(tenant, "tenant_admin")
            local first = must(make(staff)).key
            local second = must(make(by(first))).key
            local third = must(by(second):post(keys .. "/" .. second.id .. "/rotate", { grace_seconds = 600 })).key
            local others = must(make(tenant.owner)).key
            must(tenant.owner:post(path:format(staff.user.id), path:find("members") and { user_id = staff.user.id } or {}), 200)
            for _, key in ipairs{ first, second, third } do
                support.eventually(function() return by(key):get("/users").status == 401 end)
            end
            assert.equal(200, by(others):get("/users").status)
        end
    end)

    it("in the moment of that end does not stay", function()
        local staff = support.user(tenant, "tenant_admin")
        local first = by(must(make(staff)).key)
        local acts, made = { function()
            must(tenant.owner:post("/tenants/" .. tenant.key .. "/members/remove", { user_id = staff.user.id }), 200)
        end }, {}
        for i = 1, 12 do
            acts[#acts + 1] = function()
                local answer = make(first)
                if answer.status == 201 then made[i] = answer.json.key end
            end
        end
        support.parallel(acts)
        for _, key in pairs(made) do support.eventually(function() return by(key):get("/users").status == 401 end) end
    end)

    it("lives no longer, and is taken from nowhere else, than the one that made it", function()
        local ends = time.iso(time.now() + 3600000)
        local bound = { expires_at = ends, allowed_ips = { "127.0.0.0/8" } }
        local narrow, wide = must(make(tenant.owner, bound)).key, must(make(tenant.owner)).key
        local child = must(make(by(narrow))).key
        assert.same({ ends, "127.0.0.0/8" }, { child.expires_at, child.allowed_ips[1] })
        must(make(by(narrow), { allowed_ips = { "127.0.0.1" }, expires_at = time.iso(time.now() + 60000) }))
        for _, change in ipairs{ { expires_at = time.iso(time.now() + 7200000) }, { allowed_ips = { "127.0.0.0/7" } },
            { allowed_ips = { "127.0.0.1", "10.0.0.1" } }, { allowed_ips = { "::1" } } } do
            local answer = make(by(narrow), change)
            assert.is_true(answer.status == 403 or answer.status == 400, answer.body)
        end
        local got = must(by(narrow):post(keys .. "/" .. wide.id .. "/rotate", {})).key
        assert.same({ ends, "127.0.0.0/8" }, { got.expires_at, got.allowed_ips[1] })
    end)
end)

describe("guessing", function()
    local tenant = support.tenant()

    it("a password over forty connections at once gets no more than five tries", function()
        local shopper = support.shopper(tenant)
        local from = support.outside(tenant.headers)
        local counts = storm(40, function(i) return login(from:copy(), shopper.user.email, "wrong-" .. i) end)
        assert.same({ [401] = 5, [429] = 35 }, counts)
        assert.equal(429, login(from, shopper.user.email, shopper.user.password).status)
    end)

    it("from one address over many connections and names stops at thirty", function()
        local from = support.outside(tenant.headers)
        local mark = support.unique("s")
        local counts = storm(60, function(i) return login(from:copy(), mark .. i .. "@example.test", "wrong-password") end)
        assert.same({ [401] = 30, [429] = 30 }, counts)
    end)

    it("is counted for one account however its address is written", function()
        local shopper = support.shopper(tenant)
        local email = shopper.user.email
        local from = support.outside(tenant.headers)
        for _, spelling in ipairs{ email:upper(), " " .. email, email .. "\t", (email:gsub("^%l", string.upper)),
            (email:gsub("t$", "T")) } do
            assert.equal(401, login(from, spelling, "wrong-password").status, spelling)
        end
        assert.equal(429, login(from, email, shopper.user.password).status)
        assert.equal(429, login(from, " " .. email:upper() .. " ", shopper.user.password).status)
    end)

    it("under the name of another's address or second factor uses up none of their tries", function()
        local user = support.shopper(tenant)
        local theirs = support.outside(tenant.headers)
        for _, name in ipairs{ theirs.headers["X-Forwarded-For"], "totp:" .. user.user.id } do
            for _, type in ipairs{ "REGISTER", "LOGIN", "FORGOT_PASSWORD", "TWO_FA" } do
                for _ = 1, 5 do assert.equal(401, verify(support.outside(tenant.headers), name, "000000", type).status) end
            end
        end
        assert.equal(401, theirs:post("/auth/reset-password", { reset_token = "x", new_password = "secret-99" }).status)
        assert.is_false(totp.verify(user.user.id, "000000", theirs.headers["X-Forwarded-For"]))
    end)

    it("finds no account under a look-alike of its address", function()
        local shopper = support.shopper(tenant)
        local email, password = shopper.user.email, shopper.user.password
        for _, other in ipairs{ (email:gsub("^u", "\239\189\149")), (email:gsub("e", "\208\181", 1)), "\226\128\139" .. email,
            (email:gsub("example", "ex\194\173ample")), email .. "\194\160", email .. ".", '"' .. email .. '"',
            (email:gsub("@", "+x@")), (email:gsub("s", "\197\191")) } do
            local answer = login(support.client(tenant.headers), other, password)
            assert.is_true(answer.status == 401 or answer.status == 400, other .. " " .. answer.status)
        end
        assert.equal(400, login(support.client(tenant.headers), email .. "\0", password).status)
        assert.equal(200, login(support.client(tenant.headers), email, password).status)
    end)

    it("a code over sixty connections at once gets no more than five tries", function()
        local email = support.unique("g") .. "@example.test"
        must(support.client(tenant.headers):post("/auth/register", { email = email, password = "secret-99" }))
        local code = support.code_for(email)
        local wrong = code == "000000" and "000001" or "000000"
        local counts = storm(60, function(i)
            return verify(support.client(tenant.headers), i % 2 == 0 and email or email:upper(), wrong, "REGISTER")
        end)
        assert.same({ [401] = 60 }, counts)
        assert.equal(5, db.one(nil, "select attempts from otps where identifier = $1", email).attempts)
        assert.equal(401, verify(support.client(tenant.headers), email, code, "REGISTER").status)
        assert.equal(0, rows_of("select count(*)::int as n from users where email = $1", email))
    end)

    it("with the code of another step or another person opens nothing", function()
        local one, other = support.unique("a") .. "@example.test", support.unique("b") .. "@example.test"
        for _, email in ipairs{ one, other } do
            must(support.client(tenant.headers):post("/auth/register", { email = email, password = "secret-99" }))
        end
        local code = support.code_for(one)
        if code ~= support.code_for(other) then
            assert.equal(401, verify(support.client(tenant.headers), other, code, "REGISTER").status)
        end
        for _, type in ipairs{ "LOGIN", "FORGOT_PASSWORD", "TWO_FA" } do
            assert.equal(401, verify(support.client(tenant.headers), one, code, type).status, type)
        end
        assert.equal(200, verify(support.client(tenant.headers), one, code, "REGISTER").status)
    end)
end)

describe("a code of the second factor", function()
    it("that twenty bring at once lets one in", function()
        local tenant = support.tenant()
        local shopper = support.shopper(tenant)
        must(shopper:post("/auth/2fa/setup"), 200)
        local row = db.one(nil, "select secret_enc from user_credentials where user_id = $1 and provider = 'totp'", shopper.user.id)
        local secret = secrets.open("totp", row.secret_enc, shopper.user.id)
        local function code(offset) return totp.code(secret, math.floor(time.now() / 30000) + offset) end
        must(shopper:post("/auth/2fa/confirm", { code = code(0) }), 200)
        assert.equal(401, login(support.client(tenant.headers), shopper.user.email, shopper.user.password).status)
        local now = code(1) -- a step ahead: it holds as well when this step ends on the way
        local counts = storm(20, function() return verify(support.client(tenant.headers), shopper.user.email, now, "TWO_FA") end)
        assert.same({ [200] = 1, [401] = 19 }, counts)
    end)
end)

describe("a body", function()
    local world = arranged.world()
    -- What an attacker would like to set; members that a route declares are its own matter.
    local WANTED = { "id", "user_id", "tenant_key", "app_key", "role_ids", "permissions", "is_system", "is_admin", "user_type", "status",
        "is_locked", "email_verified_at", "token_version", "must_change_password", "created_at", "deleted_at", "password_hash", "scopes",
        "__proto__", "constructor" }

    -- The members that a schema takes, or nil when it takes any.
    local function taken(node)
        if node.kind ~= "object" or (node.opts and node.opts.open) then return nil end
        local names = {}
        for name, member in pairs(node.members) do
            names[name] = true
            for _, alias in ipairs(member.aliases or {}) do names[alias] = true end
        end
        return names
    end

    it("sets nothing that its route does not declare", function()
        local routes, members = 0, 0
        for _, decl in ipairs(route.all()) do
            local own = type(decl.body) == "table" and not decl.secret and taken(decl.body)
            if own then
                local extra = {}
                for _, name in ipairs(WANTED) do
                    if not own[name] then extra[#extra + 1] = name end
                end
                local method, path, body = arranged.request(decl, world)
                for _, name in ipairs(extra) do body[name] = "x" end
                local answer = world.staff:request(method, path, body)
                local what = ("%s %s: %d %s"):format(method, decl.path, answer.status, answer.body)
                -- Routes of the platform refuse a tenant's owner before they look.
                if not decl.platform_only then
                    assert.equal(400, answer.status, what)
                    local said = {}
                    for _, message in ipairs(type(answer.json.message) == "table" and answer.json.message or {}) do said[message] = true end
                    for _, name in ipairs(extra) do
                        assert.is_true(said[("property %s should not exist"):format(name)] == true, what .. " " .. name)
                        members = members + 1
                    end
                    routes = routes + 1
                end
            end
        end
        assert.is_true(routes > 40, routes .. " routes")
        assert.is_true(members > 500, members .. " members")
    end)

    it("of a profile, a registration or a user gives nobody another type or state", function()
        local tenant = support.tenant()
        local shopper = support.shopper(tenant)
        must(shopper:post("/users/me/update", { first_name = "x", subscription_status = "PAID" }), 200)
        local me = must(shopper:get("/users/me"), 200).user
        assert.same({ "GENERAL_0", "active", json.null }, { me.user_type, me.status, me.profile.subscription_status })
        assert.equal(400, shopper:post("/users/me/update", { user_type = "KASMA_0" }).status)
        assert.equal(403, shopper:post("/users/" .. shopper.user.id .. "/update", { user_type = "KASMA_0" }).status)
        assert.equal(403, tenant.owner:post("/users/" .. shopper.user.id .. "/update", { user_type = "KASMA_0" }).status)
        assert.equal(403, tenant.owner:post("/users", { email = support.unique("k") .. "@example.test", user_type = "KASMA_5" }).status)
        assert.equal("GENERAL_0", db.one(nil, "select user_type from users where id = $1", shopper.user.id).user_type)
    end)

    it("holds no NUL in any text of any route", function()
        local places = 0
        for _, decl in ipairs(route.all()) do
            if not decl.secret and not decl.platform_only then
                for _, place in ipairs(arranged.text_places(decl)) do
                    -- A path with %00 names nothing: that is another answer, which hostile_spec has.
                    if place.where == "body" then
                        local method, path, body = arranged.request(decl, world, place, "a\0b")
                        local answer = world.staff:request(method, path, body)
                        -- A route that runs under the tenant that its body names has no such tenant.
                        local refused = decl.named_tenant and place.name == "tenant_key" and 403 or 400
                        local what = ("%s %s %s: %d %s"):format(method, decl.path, place.text, answer.status, answer.body)
                        -- What may be anything is refused where it would be written, and may be passed over.
                        if place.node.kind == "any" then
                            assert.is_true(answer.status < 500, what)
                        else
                            assert.equal(refused, answer.status, what)
                        end
                        places = places + 1
                    end
                end
            end
        end
        assert.is_true(places > 60, places .. " places")
    end)
end)

describe("a page", function()
    local world = arranged.world()

    it("far behind the last is empty or refused, on every route that pages", function()
        local routes = 0
        for _, decl in ipairs(route.all()) do
            local pages = type(decl.query) == "table" and decl.query.members and decl.query.members.page
            if pages and decl.method == "GET" then
                routes = routes + 1
                local method, path = arranged.request(decl, world)
                path = path:match("^[^?]+")
                for _, page in ipairs{ "2147483647", "9007199254740991", "9223372036854775807", "99999999999999999999" } do
                    local answer = world.staff:request(method, path .. "?limit=100&page=" .. page)
                    assert.is_true(answer.status == 200 or answer.status == 400 or (answer.status == 403 and decl.platform_only)
                        or answer.status == 404, ("%s page %s: %d %s"):format(path, page, answer.status, answer.body))
                end
            end
        end
        assert.is_true(routes >= 3, routes .. " routes")
    end)
end)
