-- What an operator sets up: signing keys, the gateway, compatible session keys, the first owner, users of another system.
local crypto = require("core.crypto")
local json = require("core.json")
local redis = require("core.redis")
local db = require("kasma.db")
local bootstrap = require("modules.iam.bootstrap")
local import = require("modules.iam.import")
local command = require("api.command")
local shop_of = require("api.shop")
local support = require("api.support")

local must = shop_of.must
local function told(answer) return { answer.status, answer.json and answer.json.message } end

local function on(server, client)
    client.url = server.url
    return client
end

local function bearer(token) return support.client{ Authorization = "Bearer " .. token } end

-- The signed token behind an opaque handle.
local function jwt_of(client) return json.decode(redis.call("GET", "auth:at:" .. crypto.sha256(client.cookies.access_token))).jwt end

local function header_of(token) return json.decode(crypto.unbase64((token:match("^[^.]+")))) end

local PKCS8 = "\48\46\2\1\0\48\5\6\3\43\101\112\4\34\4\32" -- what stands before the 32 bytes of an Ed25519 key

local function key_file()
    local path = os.tmpname()
    local file = assert(io.open(path, "w"))
    file:write("-----BEGIN PRIVATE KEY-----\n", crypto.base64(PKCS8 .. crypto.random(32)), "\n-----END PRIVATE KEY-----\n")
    file:close()
    return path
end

describe("signing keys", function()
    local first, second = key_file(), key_file()
    local tenant = support.tenant()
    local servers = {}

    local function server(keys)
        local made = support.server{ JWT_KEYS = keys }
        servers[#servers + 1] = made
        return made
    end
    teardown(function()
        for _, made in ipairs(servers) do made.stop() end
        os.remove(first)
        os.remove(second)
    end)

    local function sign_in(at)
        local client = on(at, support.client(tenant.headers))
        must(client:post("/auth/login", { identifier = tenant.owner.user.email, password = tenant.owner.user.password }), 200)
        return jwt_of(client)
    end

    it("are rotated while the tokens of the old one still hold", function()
        local plain = jwt_of(tenant.owner)
        assert.same({ "HS256", nil }, { header_of(plain).alg, header_of(plain).kid })
        local old = server("one=" .. first)
        local token = sign_in(old)
        assert.same({ "EdDSA", "one" }, { header_of(token).alg, header_of(token).kid })
        assert.equal(200, on(old, bearer(token)):get("/auth/me").status)
        assert.equal(200, on(old, bearer(plain)):get("/auth/me").status)
        local both = server(("two=%s,one=%s"):format(second, first))
        local newer = sign_in(both)
        assert.equal("two", header_of(newer).kid)
        for _, held in ipairs{ token, newer } do assert.equal(200, on(both, bearer(held)):get("/auth/me").status) end
        local jwks = must(on(both, support.client()):get("/.well-known/jwks.json"), 200).keys
        assert.same({ 2, "two", "one", "Ed25519" }, { #jwks, jwks[1].kid, jwks[2].kid, jwks[1].crv })
        assert.is_nil(jwks[1].d)
        local rotated = server("two=" .. second)
        assert.equal(200, on(rotated, bearer(newer)):get("/auth/me").status)
        assert.same({ 401, "Invalid or expired access token" }, told(on(rotated, bearer(token)):get("/auth/me")))
        assert.same({ 401, "Invalid or expired access token" }, told(bearer(newer):get("/auth/me")))
    end)

    it("decide the algorithm, whatever a token says", function()
        local at = server("one=" .. first)
        local token = sign_in(at)
        local head, body, mark = token:match("^(.-)%.(.-)%.(.-)$")
        local function header(fields) return crypto.base64url(json.encode(fields)) end
        local forged = {
            header{ alg = "none", kid = "one" } .. "." .. body .. "." .. mark,
            header{ alg = "HS256", kid = "one" } .. "." .. body .. "." .. mark,
            header{ alg = "EdDSA", kid = "two" } .. "." .. body .. "." .. mark,
            header{ alg = "EdDSA", kid = json.array{ "one" } } .. "." .. body .. "." .. mark,
            head .. "." .. header{ sub = "x" } .. "." .. mark,
            head .. "." .. body .. "." .. ("A"):rep(86),
        }
        for _, text in ipairs(forged) do assert.equal(401, on(at, bearer(text)):get("/auth/me").status, text) end
        assert.equal(200, on(at, bearer(token)):get("/auth/me").status)
    end)

    it("that cannot be read stop the start", function()
        local ok, why = pcall(support.server, { JWT_KEYS = "one=/nowhere/key.pem" })
        assert.is_false(ok)
        assert.matches("nowhere", why, 1, true)
    end)
end)

describe("a gateway", function()
    local secret = crypto.random_hex(24)
    local server
    setup(function() server = support.server{ GATEWAY_SHARED_SECRET = secret, AUTH_REDIS_COMPAT = "on" } end)
    teardown(function() if server then server.stop() end end)

    it("is believed with its secret alone, and only about users who may act", function()
        local tenant = support.tenant()
        local shopper = support.shopper(tenant)
        local function ask(headers)
            local c = on(server, support.client(tenant.headers))
            return c:get("/auth/me", headers)
        end
        local right = { ["X-User-Id"] = shopper.user.id, ["X-Gateway-Secret"] = secret }
        assert.same({ 200, shopper.user.id }, { ask(right).status, ask(right).json.user.id })
        assert.same({ 401, "Access token required" }, told(ask{ ["X-User-Id"] = shopper.user.id }))
        assert.equal(401, ask{ ["X-User-Id"] = shopper.user.id, ["X-Gateway-Secret"] = secret .. "x" }.status)
        assert.equal(401, ask{ ["X-Gateway-Secret"] = secret }.status)
        assert.equal(401, ask{ ["X-User-Id"] = "nonsense", ["X-Gateway-Secret"] = secret }.status)
        assert.equal(403, on(server, support.client(support.tenant().headers)):get("/sales/orders/me", right).status)
        must(tenant.owner:post("/users/" .. shopper.user.id .. "/update", { is_locked = true }), 200)
        support.eventually(function() return ask(right).status == 401 end)
        -- Where no secret is configured nobody is believed.
        assert.equal(401, support.client(tenant.headers):get("/auth/me", right).status)
    end)

    it("finds sessions under the keys of the former backend where that is on", function()
        local tenant = support.tenant()
        local client = on(server, support.client(tenant.headers))
        must(client:post("/auth/login", { identifier = tenant.owner.user.email, password = tenant.owner.user.password }), 200)
        local key = "auth:token:" .. client.cookies.access_token
        local entry = json.decode(redis.call("GET", key))
        assert.equal(jwt_of(client), entry.value)
        assert.is_true(redis.call("PTTL", key) > 900000)
        must(client:post("/auth/refresh"), 200)
        assert.equal(0, redis.call("EXISTS", key))
        key = "auth:token:" .. client.cookies.access_token
        assert.equal(1, redis.call("EXISTS", key))
        must(client:post("/auth/logout"), 200)
        assert.equal(0, redis.call("EXISTS", key))
        assert.equal(0, redis.call("EXISTS", "auth:token:" .. tenant.owner.cookies.access_token))
    end)
end)

describe("the first owner", function()
    it("is who proves the configured address, and nobody when there is one", function()
        local email = support.unique("boot") .. "@example.test"
        assert.is_nil(bootstrap.run(email))
        local held = db.query(nil, [[delete from platform_role_holders h using platform_roles r where r.id = h.role_id
          and r.role_key = 'platform_owner' returning h.*]])
        local ok, why = pcall(function()
            local function run() return bootstrap.run(email) or "" end
            local ids = support.parallel{ run, run }
            assert.is_true((ids[1] == "") ~= (ids[2] == ""))
            local master = { ["X-Tenant-Kasma-Id"] = "MASTER" }
            local client = support.client(master)
            assert.equal(401, client:post("/auth/login", { identifier = email, password = "anything-1" }).status)
            assert.equal(201, client:post("/auth/register", { email = email, password = "secret-99" }).status)
            local code
            support.eventually(function()
                code = (support.mail_to(email, "verification code") or ""):match("%f[%d](%d%d%d%d%d%d)%f[%D]")
                return code
            end)
            must(client:post("/auth/verify-otp", { identifier = email, code = code, type = "REGISTER" }), 200)
            client.headers = {}
            assert.equal(200, client:get("/tenants").status)
            assert.equal("KASMA_0", client:get("/auth/me").json.user.user_type)
        end)
        for _, row in ipairs(held) do
            db.query(nil, [[insert into platform_role_holders (id, user_id, role_id, granted_by, expires_at, created_at, updated_at)
              values ($1, $2, $3, $4, $5::timestamptz, $6::timestamptz, $7::timestamptz)]], row.id, row.user_id, row.role_id,
                row.granted_by or json.null, row.expires_at or json.null, row.created_at, row.updated_at)
        end
        db.query(nil, [[delete from platform_role_holders h using users u where u.id = h.user_id and u.email = $1]], email)
        assert(ok, why)
    end)
end)

describe("users of another system", function()
    -- "secret-99", bcrypt cost 4, by crypt(3).
    local BCRYPT = "$2b$04$abcdefghijklmnopqrstuu7Pa7p9/IaVfya3f9WhEOzVP09kbBR46"
    local tenant = support.tenant()
    local scope = { tenant = tenant.key, app = tenant.app, actor_kind = "system" }

    local function run(lines, opts)
        local refused = {}
        opts = opts or {}
        opts.told = function(number, why) refused[number] = why end
        local at = 0
        local report = import.run(scope, function()
            at = at + 1
            local line = lines[at]
            return type(line) == "table" and json.encode(line) or line
        end, opts)
        return report, refused
    end

    it("sign in with the password that they have, and get a hash of ours", function()
        local email = support.unique("im") .. "@Example.test"
        local hash = require("modules.iam.passwords").hash("secret-99")
        local other = support.unique("im") .. "@example.test"
        local report = run{ { email = email, display_name = "Im", password_hash = BCRYPT, email_verified = true }, "",
            { email = other, password_hash = hash, email_verified = true, user_type = "TENANT_0", role_keys = { "marketer" } } }
        assert.same({ lines = 3, made = 2, known = 0, refused = 0 }, report)
        local client = support.client(tenant.headers)
        must(client:post("/auth/login", { identifier = email, password = "secret-99" }), 200)
        local stored = db.one(nil, [[select c.password from user_credentials c join users u on u.id = c.user_id
          where u.email = $1 and c.provider = 'local']], email:lower()).password
        assert.matches("^%$argon2id%$", stored)
        must(support.client(tenant.headers):post("/auth/login", { identifier = email, password = "secret-99" }), 200)
        must(client:post("/auth/login", { identifier = other, password = "secret-99" }), 200)
        assert.same({ "marketer" }, { unpack(must(client:get("/auth/me"), 200).user.roles) })
    end)

    it("prove their address at the first sign-in when nobody vouches for it", function()
        local email = support.unique("im") .. "@example.test"
        run{ { email = email, password_hash = BCRYPT } }
        local client = support.client(tenant.headers)
        local answer = client:post("/auth/login", { identifier = email, password = "secret-99" })
        assert.same({ 401, "REGISTER", "Email not verified. OTP sent to email." }, { answer.status, answer.json.type,
            answer.json.message })
        must(client:post("/auth/verify-otp", { identifier = email, code = support.code_for(email), type = "REGISTER" }), 200)
        assert.equal(200, client:get("/sales/orders/me").status)
        must(support.client(tenant.headers):post("/auth/login", { identifier = email, password = "secret-99" }), 200)
    end)

    it("are left as they are when they are known, and refused line by line when they are no good", function()
        local fresh = support.unique("im") .. "@example.test"
        local before = db.one(nil, "select updated_at from users where id = $1", tenant.owner.user.id).updated_at
        local report, refused = run{
            { email = tenant.owner.user.email, password_hash = BCRYPT },
            "no json", { email = "nonsense" }, { email = support.unique("x") .. "@example.test", surprise = 1 },
            { email = support.unique("x") .. "@example.test", password_hash = "5f4dcc3b5aa765d61d8327deb882cf99" },
            { email = support.unique("x") .. "@example.test", password_hash = BCRYPT:gsub("%$04%$", "$31$") },
            { email = support.unique("x") .. "@example.test",
                password_hash = "$argon2id$v=19$m=4194304,t=3,p=1$c29tZXNhbHRzb21l$" .. ("A"):rep(43) },
            { email = support.unique("x") .. "@example.test", user_type = "KASMA_0" },
            { email = support.unique("x") .. "@example.test", role_keys = { "nobody" } },
            { email = support.unique("x") .. "@example.test", role_keys = { "tenant_owner" } },
            ("x"):rep(70000), { email = fresh }, { email = fresh:upper() },
        }
        assert.same({ lines = 13, made = 1, known = 2, refused = 10 }, report)
        local numbers = {}
        for number in pairs(refused) do numbers[#numbers + 1] = number end
        table.sort(numbers)
        assert.same({ 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 }, numbers)
        assert.equal(before, db.one(nil, "select updated_at from users where id = $1", tenant.owner.user.id).updated_at)
    end)

    it("come by the command, which tells how it went", function()
        local email = support.unique("im") .. "@example.test"
        local lines = json.encode{ email = email, password_hash = BCRYPT, email_verified = true } .. "\nnonsense\n"
        local words = "user import - --tenant " .. tenant.key
        local status, output, said = command.run(words .. " --dry-run", nil, lines)
        assert.equal(1, status)
        assert.matches("1 would be made, 0 known already, 1 refused", output, 1, true)
        assert.matches("line 2: ", said, 1, true)
        status, output = command.when_free(words .. " --json", nil, lines:match("^[^\n]+"))
        assert.same({ 0, 1 }, { status, json.decode(output).made })
        must(support.client(tenant.headers):post("/auth/login", { identifier = email, password = "secret-99" }), 200)
        assert.equal(2, (command.run("user import - --nonsense")))
    end)

    it("are only counted in a dry run", function()
        local email = support.unique("im") .. "@example.test"
        assert.equal(1, run({ { email = email } }, { dry_run = true }).made)
        assert.is_nil(db.one(nil, "select id from users where email = $1", email))
    end)
end)
