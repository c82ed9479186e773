-- What an operator types: doctor, tenant create, user create-admin; what they say and how they end.
local crypto = require("core.crypto")
local json = require("core.json")
local pg = require("core.pg")
local config = require("core.config")
local redis = require("core.redis")
local catalogue = require("api.catalogue")
local command = require("api.command")
local shop_of = require("api.shop")
local support = require("api.support")
local db = require("kasma.db")

local run = command.run

-- What the doctor finds, by id.
local function visit(words, env)
    local report, status = command.json("doctor --json " .. words, env)
    local by_id = {}
    for _, finding in ipairs(report.checks) do by_id[finding.id] = finding end
    return by_id, status, report
end

-- A statement as the owner of the schema, outside what the server's role may.
local function as_owner(sql)
    local session = assert(pg.pool("owner"):session())
    local _, err = session:script("set role kasma_owner; " .. sql)
    session:close()
    assert(not err, err and err.message)
end

describe("kasma doctor", function()
    it("finds the stores of these tests well, and says so a line each", function()
        local found, status, report = visit("--group config --group postgres --group redis --group mongo")
        assert.equal(0, report.failed, json.encode(report.checks))
        assert.is_true(status < 2)
        for _, id in ipairs{ "config.names", "config.secrets", "config.mail", "config.proxies", "postgres.version", "postgres.durability",
            "postgres.role", "postgres.bypass", "postgres.system", "postgres.policies", "postgres.history",
            "postgres.row_security", "postgres.migrations",
            "postgres.connections", "postgres.transactions", "postgres.bloat", "postgres.replication", "postgres.clock",
            "postgres.partitions", "postgres.prepare", "postgres.indexes", "postgres.gin", "redis.version", "redis.eviction",
            "redis.persistence", "redis.memory", "redis.clock", "redis.locks", "redis.queues", "mongo.reached", "mongo.features",
            "mongo.indexes" } do
            assert.equal("ok", (found[id] or {}).state, id)
        end
        local _, text = run("doctor --group redis")
        assert.truthy(text:find("\n0 failed, 0 warnings, %d+ ok$"), text)
    end)

    it("fails when Redis cannot be reached, tells what comes of it, and still looks at the rest", function()
        local status, text = run("doctor --group redis --group postgres", { REDIS_URL = "redis://:very-secret@127.0.0.1:1/0" })
        assert.equal(2, status)
        assert.truthy(text:find("^FAIL  redis +cannot connect to REDIS_URL %(127%.0%.0%.1:1%): connection refused\n +effect: .-\n +try: "),
            text)
        assert.is_nil(text:find("very-secret", 1, true))
        assert.truthy(text:find("OK    postgres  row security on", 1, true))
    end)

    it("fails when PostgreSQL or MongoDB cannot be reached", function()
        local found, status = visit("--group postgres --group mongo", { DATABASE_URL = "postgresql://kasma_app:x@127.0.0.1:1/kasma",
            MONGODB_URL = "mongodb://127.0.0.1:1/kasma" })
        assert.equal(2, status)
        assert.equal("fail", found["postgres.reached"].state)
        assert.equal("fail", found["mongo.reached"].state)
    end)

    it("sees a Redis that may throw queues away", function()
        local function policy(name)
            support.eventually(function() return redis.call("CONFIG", "SET", "maxmemory-policy", name) == "OK" end)
        end
        policy("allkeys-lru")
        local ok, found, status = pcall(visit, "--group redis")
        policy("noeviction")
        assert(ok, found)
        assert.equal(2, status)
        assert.equal("fail", found["redis.eviction"].state)
        assert.truthy(found["redis.eviction"].hint:find("noeviction", 1, true))
    end)

    it("sees lock servers that are one, and one that is away", function()
        local url = assert(os.getenv("REDIS_URL"))
        local found = visit("--group redis", { REDLOCK_NODES = table.concat({ url, (url:gsub("127%.0%.0%.1", "localhost")),
            "redis://127.0.0.1:1" }, ",") })
        assert.equal("fail", found["redis.locks.independent"].state)
        assert.equal("fail", found["redis.locks.reached"].state)
        assert.truthy(found["redis.locks.reached"].text:find("127.0.0.1:1", 1, true))
    end)

    it("sees a tenant's table without a wall, an open policy, and a migration that is pending", function()
        as_owner([[create table doctor_probe (tenant_key text not null, id uuid not null); create index doctor_probe_gin
          on doctor_probe using gin (id, tenant_key); create policy wide on doctor_probe to kasma_app using (true);
          alter table doctor_probe enable row level security; create table doctor_move as select * from schema_migrations
          where version = 1; delete from schema_migrations where version = 1]])
        local ok, found, status = pcall(visit, "--group postgres")
        as_owner("insert into schema_migrations select * from doctor_move; drop table doctor_move, doctor_probe")
        assert(ok, found)
        assert.equal(2, status)
        for _, id in ipairs{ "row_security", "policies", "gin", "migrations" } do
            assert.equal("fail", found["postgres." .. id].state, id)
        end
        assert.truthy(found["postgres.row_security"].text:find("doctor_probe", 1, true))
        assert.truthy(found["postgres.migrations"].text:find("0001_platform", 1, true))
    end)

    it("sees equal secrets, a proxy list that holds everybody, and production without mail", function()
        local same = ("q7"):rep(9) .. "Zx81-other-letters-9"
        local found, status = visit("--group config", { KASMA_ENV = "production", JWT_SECRET = same, MESSAGE_ENCRYPTION_KEY = same,
            TRUSTED_PROXIES = "0.0.0.0/0", PASSWORD_ARGON2 = "19456,2,1" })
        assert.equal(2, status)
        for _, id in ipairs{ "secrets", "proxies", "mail" } do assert.equal("fail", found["config." .. id].state, id) end
    end)

    it("sees that the loops behind the requests run once each, and that schedules are set", function()
        local found
        support.eventually(function()
            found = visit("--group work")
            return found["work.loops"].state == "ok" and found["work.schedulers"].state == "ok"
        end)
        assert.equal("ok", found["work.workers"].state, found["work.workers"].text)
        redis.call("ZREM", "bull:system-queue:repeat", "user-purge")
        local without = visit("--group work")["work.schedulers"]
        require("kasma.jobs_schedule").upsert("system-queue", "user-purge", { pattern = "0 3 * * *" }, { name = "user-purge",
            opts = { attempts = 3 } })
        assert.equal("fail", without.state)
        assert.truthy(without.text:find("user-purge", 1, true))
    end)

    it("sees books that do not balance", function()
        local shop = shop_of.simple(5)
        local found, status = visit("--group money --full --tenant " .. shop.key)
        assert.equal("ok", found["money.promotions"].state, found["money.promotions"].text)
        assert.same({ 0, "ok", "ok" }, { status, found["money.stock"].state, found["money.reservations"].state })
        local function spoil(by)
            db.query(shop.key, [[update warehouse_inventory set quantity = quantity + $2, reserved_quantity = reserved_quantity + $2
              where tenant_key = $1]], shop.key, by)
        end
        spoil(1)
        local wrong, code = visit("--group money --full --tenant " .. shop.key)
        spoil(-1)
        assert.equal(2, code)
        for _, id in ipairs{ "money.stock", "money.reservations" } do
            assert.equal("fail", wrong[id].state)
            assert.truthy(wrong[id].text:find(shop.key, 1, true), wrong[id].text)
        end
    end)

    it("looks at the machine", function()
        local found = visit("--group host")
        for _, id in ipairs{ "host.files", "host.disk", "host.entropy", "host.zones", "host.certificate" } do
            assert.is_truthy(found[id], id)
        end
        assert.equal("ok", found["host.port"].state, found["host.port"].text)
        assert.equal("ok", found["host.zones"].state)
        assert.equal("warn", visit("--group host", { PORT = "1" })["host.port"].state)
        local host = require("kasma.doctor.host")
        local now = require("core.time").parse("2026-11-28T03:00:00Z")
        assert.equal(1, host.days_left("notAfter=Nov 29 03:00:01 2026 GMT\n", now))
        assert.equal(-2, host.days_left("notAfter=Nov  6 03:00:01 2026 GMT\n", now + 86400000 * -20))
        assert.is_nil(host.days_left("no certificate", now))
    end)

    it("helps, and refuses what it does not know", function()
        local status, text = run("doctor --help")
        assert.equal(0, status)
        assert.truthy(text:find("kasma doctor %-%-group"))
        local said
        status, text, said = run("doctor --colour")
        assert.same({ 2, "" }, { status, text })
        assert.matches("--colour", said, 1, true)
        assert.equal(2, (run("doctor --group stars")))
        assert.equal(2, (run("doctor --group money --tenant no/key")))
        status, text = run("doctor --fix-hints --group redis", { REDIS_URL = "redis://127.0.0.1:1" })
        assert.equal(2, status)
        assert.truthy(text:find("^redis%.reached +systemctl"), text)
    end)
end)

describe("a command", function()
    it("says nothing but its own words, also when a killed process with its pid left something of its libraries behind", function()
        local name = os.tmpname()
        local pipe = assert(io.popen(("sh -c ': >/dev/shm/mongoc-$$; echo $$; exec %s version' 2>%s"):format(command.binary(), name)))
        local pid, output = pipe:read("*l"), pipe:read("*a")
        pipe:close()
        os.remove("/dev/shm/mongoc-" .. pid)
        local said = assert(io.open(name)):read("*a")
        os.remove(name)
        assert.matches("^kasma %d", output)
        assert.equal("", said)
    end)
end)

describe("a database in which nothing was migrated", function()
    local name = "empty_" .. support.unique("d")
    local env = {}
    setup(function()
        catalogue.psql("owner", "create database " .. name)
        for _, setting in ipairs{ "DATABASE_URL", "DATABASE_OWNER_URL", "DATABASE_SYSTEM_URL" } do
            env[setting] = (config.get(setting):gsub("^(%w+://[^/]+/)[^?]*", "%1" .. name))
        end
    end)
    teardown(function() catalogue.psql("owner", "drop database " .. name .. " with (force)") end)

    it("is told as that, with what to type, by the doctor once and by each command", function()
        local found, status, report = visit("--group postgres", env)
        assert.equal(2, status)
        assert.equal("fail", found["postgres.migrations"].state)
        assert.matches("kasma migrate", found["postgres.migrations"].hint, 1, true)
        assert.equal(1, report.failed)
        assert.equal(0, report.warnings)
        for _, words in ipairs{ "tenant create acme", "user create-admin ann@acme.example" } do
            local code, text, said = run(words, env)
            assert.same({ 1, "" }, { code, text }, words)
            assert.matches("is not migrated .*: run kasma migrate", said)
        end
    end)
end)

describe("kasma tenant create", function()
    it("makes a tenant that can be used, and tells a taken key and host name apart from a mistake", function()
        local key = support.unique("c")
        local made, status = command.json(("tenant create %s --name Shop --currency usd --country us --hostname Shop.%s.example --json")
            :format(key, key))
        assert.equal(0, status)
        assert.equal("USD", made.tenant.default_currency)
        assert.same({ "shop." .. key .. ".example" }, made.app.hostnames)
        assert.equal(200, support.client({ Host = "shop." .. key .. ".example" }):get("/api/ecommerce/products/list").status)
        assert.equal(4, (run("tenant create " .. key)))
        assert.equal(4, (run(("tenant create %sx --hostname shop.%s.example"):format(key, key))))
        assert.is_nil(db.one(nil, "select 1 as one from tenants where tenant_key = $1", key .. "x"))
        for _, words in ipairs{ "a.b", key .. "y --currency XXQ", key .. "y --country Vietnam", key .. "y --timezone Mars",
            key .. "y --hostname 'a b'" } do
            local refused, text, said = run("tenant create " .. words)
            assert.same({ 1, "" }, { refused, text }, words)
            assert.is_nil(said:find("%.lua:"), said)
        end
        assert.equal(2, (run("tenant create")))
        assert.equal(0, (run("tenant create --help")))
        local away, text, said = run("tenant create " .. key .. "z", { DATABASE_URL = "postgresql://kasma_app:x@127.0.0.1:1/kasma" })
        assert.same({ 5, "" }, { away, text })
        assert.truthy(said:find("refused", 1, true), said)
    end)
end)

describe("kasma tenant create --owner", function()
    it("prints a code with which the owner chooses a password, and leaves an account that is known as it is", function()
        local key, email = support.unique("c"), support.unique("owner") .. "@example.test"
        local status, text = run(("tenant create %s --owner %s"):format(key, email:upper()))
        assert.equal(0, status, text)
        assert.matches("^tenant " .. key .. " with app " .. key .. "%-app, %d+ roles, a warehouse and VND as currency\n", text)
        assert.matches(email .. " is its owner", text, 1, true)
        local code = text:match("one%-time code  (%d%d%d%d%d%d)  %(good for 5 minutes%)")
        local verified = support.client():post("/auth/verify-otp", { identifier = email, code = code, type = "FORGOT_PASSWORD" })
        assert.equal(200, verified.status, verified.body)
        assert.equal(200, support.client():post("/auth/reset-password", { reset_token = verified.json.reset_token,
            new_password = "chosen-words-1" }).status)
        local owner = support.client{ ["X-Tenant-Kasma-Id"] = key }
        local answer = owner:post("/auth/login", { identifier = email, password = "chosen-words-1" })
        assert.same({ 401, true }, { answer.status, answer.json.requiresOtp })
        assert.equal(200, owner:post("/auth/verify-otp", { identifier = email, code = support.code_for(email, code),
            type = "LOGIN" }).status)
        assert.equal(200, owner:get("/users").status)

        local made
        made, status = command.json(("tenant create %s --owner %s --json"):format(key .. "b", email))
        assert.equal(0, status)
        assert.same({ email, nil }, { made.owner.email, made.owner.code })
        assert.equal(200, owner:get("/users", { ["X-Tenant-Kasma-Id"] = key .. "b" }).status)

        -- A mistake leaves neither tenant nor account.
        assert.equal(1, (run(("tenant create %s --owner nobody"):format(key .. "c"))))
        assert.equal(4, (run(("tenant create %s --owner other-%s"):format(key, email))))
        assert.is_nil(db.one(nil, "select 1 as one from tenants where tenant_key = $1", key .. "c"))
        assert.is_nil(db.one(nil, "select 1 as one from users where email = $1", "other-" .. email))
    end)
end)

describe("kasma user create-admin", function()
    it("prints a code with which the owner chooses a password, once", function()
        local email = support.unique("boss") .. "@example.test"
        local made, status = command.json("user create-admin " .. email:upper() .. " --json")
        assert.equal(0, status)
        assert.same({ email, "KASMA_0", nil }, { made.email, made.userType, made.password })
        local client = support.client()
        local verified = client:post("/auth/verify-otp", { identifier = email, code = made.code, type = "FORGOT_PASSWORD" })
        assert.equal(200, verified.status, verified.body)
        assert.equal(401, support.client():post("/auth/verify-otp",
            { identifier = email, code = made.code, type = "FORGOT_PASSWORD" }).status)
        assert.equal(200, support.client():post("/auth/reset-password", { reset_token = verified.json.reset_token,
            new_password = "chosen-words-1" }).status)
        assert.is_true(db.one(nil, "select exists (select from platform_role_holders where user_id = $1) as held", made.id).held)

        -- Named again: no second user, and the password stays theirs.
        local again = command.json("user create-admin " .. email .. " --json")
        assert.equal(made.id, again.id)
        local answer = support.client():post("/auth/login", { identifier = email, password = "chosen-words-1" })
        assert.truthy(answer.status == 200 or answer.json.requiresOtp, answer.body)
    end)

    it("takes a password from standard input and never from the command line", function()
        local email = support.unique("boss") .. "@example.test"
        assert.equal(1, (run("user create-admin " .. email .. " --password-stdin", nil, "tiny")))
        local status, text, said = run("user create-admin " .. email .. " --password-stdin", nil, "piped-words-1\n")
        assert.equal(0, status, said)
        text = text .. said
        assert.is_nil(text:find("piped", 1, true))
        assert.is_nil(text:find("code", 1, true))
        assert.equal(2, (run("user create-admin " .. email .. " --password piped-words-1")))
        assert.equal(1, (run("user create-admin nobody")))
    end)
end)

describe("a store that is away", function()
    it("is told to who stands at the terminal, and ends a command with 5", function()
        local database = { DATABASE_URL = "postgresql://kasma_app:x@127.0.0.1:1/kasma",
            DATABASE_SYSTEM_URL = "postgresql://kasma_system:x@127.0.0.1:1/kasma" }
        for words, env in pairs{ ["seed"] = database, ["repair queues --since 1h"] = database, ["outbox"] = database,
            ["mail list MASTER"] = database, ["webhooks endpoints MASTER"] = database, ["rules list --tenant MASTER"] = database,
            ["queues list"] = { REDIS_URL = "redis://127.0.0.1:1" } } do
            local exit, text, said = run(words, env)
            assert.same({ 5, "" }, { exit, text }, words)
            assert.truthy(said:lower():find("connection refused", 1, true), words .. " said " .. said)
        end
    end)
end)

describe("kasma seed", function()
    it("gives nobody a password that it could keep nowhere, and without a file leaves the passwords as they are", function()
        local before = db.query(nil, "select c.user_id, c.password from user_credentials c join users u on u.id = c.user_id "
            .. "where u.email like '%@demo.test' order by c.user_id")
        assert.is_true(#before > 0)
        local exit, _, said = run("seed --users-file /no/such/folder/users")
        assert.equal(1, exit)
        assert.truthy(said:find("/no/such/folder/users", 1, true))
        local report = command.json("seed --json")
        for _, person in ipairs(report.people) do assert.is_nil(person.password) end
        local after = db.query(nil, "select c.user_id, c.password from user_credentials c join users u on u.id = c.user_id "
            .. "where u.email like '%@demo.test' order by c.user_id")
        assert.equal(#before, #after)
        for i, row in ipairs(before) do assert.equal(row.password, after[i].password) end
    end)
end)

describe("kasma user create", function()
    it("gives an account that is there the role, and leaves its password, name and what it may hold elsewhere", function()
        local first, second = support.tenant(), support.tenant()
        local email = support.unique("both") .. "@example.test"
        local made = command.json(("user create %s --tenant %s --role customer --name Both --json"):format(email, first.key))
        assert.equal("GENERAL_0", made.userType)
        local known, status = command.json(("user create %s --tenant %s --role catalog_manager --name Other --json"):format(email,
            second.key))
        assert.equal(0, status)
        assert.same({ made.id, "TENANT_0", true, nil }, { known.id, known.userType, known.known, known.password })
        -- What its type may hold never falls.
        assert.equal("TENANT_0", command.json(("user create %s --tenant %s --role customer --json"):format(email, second.key)).userType)
        assert.equal("Both", db.one(nil, "select display_name from users where id = $1", made.id).display_name)
        local client = support.guest(second)
        local answer = client:post("/auth/login", { identifier = email, password = made.password })
        assert.truthy(answer.status == 200 or answer.json.requiresOtp, answer.body)

        local exit, _, said = run(("user create %s --tenant %s --role customer --password-stdin"):format(email, second.key), nil,
            "other-words-1")
        assert.equal(1, exit)
        assert.truthy(said:find("whose password stays", 1, true))
    end)
end)

describe("a word that is wrong", function()
    it("is named, and ends a command with 2 before anything is done", function()
        for words, named in pairs{
            ["config print PORT NO_SUCH_SETTING"] = "NO_SUCH_SETTING",
            ["doctor --group money --tenant no-such-tenant"] = "no-such-tenant",
            ["migrate --to soon"] = "soon",
            ["queues tidy"] = "tidy",
            ["queues show"] = "show needs a queue",
            ["queues clean mail-queue"] = "--state",
            ["outbox tidy"] = "tidy",
            ["outbox drop 17"] = "17",
            ["webhooks tidy"] = "tidy",
            ["webhooks deliveries MASTER --state lost"] = "lost",
            ["webhooks show MASTER 17"] = "17",
            ["mail tidy"] = "tidy",
            ["openapi --area nowhere"] = "nowhere",
        } do
            local exit, _, said = run(words)
            assert.equal(2, exit, words)
            assert.truthy(said:find(named, 1, true), words .. " said " .. said)
        end
    end)

    it("among the members of a job on standard input adds nothing", function()
        local queue = support.unique("words")
        local exit, _, said = run("queues add " .. queue, nil, '{"name":"a","priority":1}')
        assert.equal(2, exit)
        assert.truthy(said:find("priority", 1, true))
        assert.equal(1, (run("queues show " .. queue)))
    end)
end)

describe("kasma config check", function()
    local files = {}

    local function file(text)
        local name = os.tmpname()
        local out = assert(io.open(name, "w"))
        out:write(text)
        out:close()
        files[#files + 1] = name
        return name
    end

    teardown(function()
        for _, name in ipairs(files) do os.remove(name) end
    end)

    it("is content with files that a server takes", function()
        -- An Ed25519 key: what stands before its 32 bytes, and those.
        local pem = file("-----BEGIN PRIVATE KEY-----\n" .. crypto.base64("\48\46\2\1\0\48\5\6\3\43\101\112\4\34\4\32"
            .. crypto.random(32)) .. "\n-----END PRIVATE KEY-----\n")
        local status, text, said = run("config check", { JWT_KEYS = "new=" .. pem,
            RATE_LIMITS = file(json.encode{ ip = { limit = 1200, window_s = 60 } }) })
        assert.equal(0, status, said)
        assert.equal("the settings are good", text)
    end)

    it("reads the files that settings name, and says all that is wrong with them and where", function()
        local words, limits = file("not a key"), file('{"ip": {"limit": 20, "window_s": }}')
        local status, text, said = run("config check", { JWT_KEYS = "one=/nowhere/key.pem,two=" .. words .. ",two=" .. words .. ",six=/tmp",
            RATE_LIMITS = limits })
        assert.same({ 78, "" }, { status, text })
        for _, line in ipairs{ "JWT_KEYS: one: /nowhere/key.pem: No such file or directory", "JWT_KEYS: two: " .. words .. ": no PEM key",
            "JWT_KEYS: the kid two is given twice", "JWT_KEYS: six: /tmp: Is a directory",
            "RATE_LIMITS: " .. limits .. " holds no JSON object of rules (Unexpected token } in JSON at position 33)" } do
            assert.truthy(said:find(line, 1, true), said)
        end
        status, text, said = run("config check", { RATE_LIMITS = file(json.encode{ users = { limit = 1, window_s = 1 },
            key = { limit = 0, window_s = 60 } }) })
        assert.same({ 78, "" }, { status, text })
        assert.truthy(said:find("key needs limit and window_s, whole numbers from 1; users is no rule", 1, true), said)
    end)
end)
