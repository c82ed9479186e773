-- Where the product takes locks, and that it goes on without them, or refuses, as each place must.
local config = require("core.config")
local json = require("core.json")
local redis = require("core.redis")
local redlock = require("core.redlock")
local db = require("kasma.db")
local command = require("api.command")
local shop_of = require("api.shop")
local support = require("api.support")

local NOWHERE = { REDLOCK_NODES = "redis://127.0.0.1:1" }

-- Runs fn beside a look-out for the key, which asks again as soon as it is answered; answers whether the key was held at some moment.
local function watched(key, fn)
    local seen, over = false, false
    support.parallel{
        function()
            fn()
            over = true
        end,
        function()
            while not over and not seen do seen = redis.call("EXISTS", key) == 1 end
        end,
    }
    return seen
end

describe("stock that is corrected by hand", function()
    local shop, product = shop_of.simple(0)
    local resource = ("inventory:%s:%s:-"):format(shop.warehouse_id, product)
    local key = redlock.key(shop.key, resource)

    local function adjust(client)
        return (client or shop.owner):post("/api/logistics/inventory/adjust", { warehouseId = shop.warehouse_id, productId = product,
            quantity = 1, reason = "count" })
    end

    it("is locked by warehouse, product and variant while it changes, and free after it", function()
        assert.equal(("lock:{%s}:%s"):format(shop.key, resource), key)
        local calls = {}
        for i = 1, 20 do calls[i] = function() assert.equal(201, adjust().status) end end
        assert.is_true(watched(key, function() support.parallel(calls) end))
        assert.equal(0, redis.call("EXISTS", key))
        assert.equal(20, shop_of.stock_of(shop, product).availableQuantity)
    end)

    it("is right without the lock: somebody else has it, or there is none to be had", function()
        local held = assert(redlock.acquire({ key }, 10000))
        assert.equal(201, adjust().status)
        held:release()
        local server = support.server(NOWHERE)
        local owner = shop.owner:copy()
        owner.url = server.url
        local calls = {}
        for i = 1, 10 do calls[i] = function() return adjust(owner).status end end
        local statuses = support.parallel(calls)
        server.stop()
        for _, status in ipairs(statuses) do assert.equal(201, status) end
        assert.equal(31, shop_of.stock_of(shop, product).availableQuantity)
    end)
end)

describe("a checkout", function()
    it("is locked by its buyer, and makes one order of a cart with the lock and without", function()
        local shop, product = shop_of.simple(50)
        local server = support.server(NOWHERE)
        for _, url in ipairs{ support.url, server.url } do
            local buyer = shop_of.buyer(shop, product, 1, support.shopper(shop))
            buyer.url = url
            local key = redlock.key(shop.key, "checkout:u:" .. buyer.user.id)
            local statuses
            local seen = watched(key, function()
                local calls = {}
                for i = 1, 8 do
                    local tab = buyer:copy()
                    tab.url = url
                    calls[i] = function() return shop_of.checkout(tab).status end
                end
                statuses = support.parallel(calls)
            end)
            assert.equal(url == support.url, seen)
            assert.equal(0, redis.call("EXISTS", key))
            local made = 0
            for _, status in ipairs(statuses) do
                made = made + (status == 201 and 1 or 0)
                assert.is_true(status == 201 or status == 404 or status == 409, status)
            end
            assert.equal(1, made)
        end
        server.stop()
        assert.equal(48, shop_of.stock_of(shop, product).availableQuantity)
    end)
end)

describe("users that are imported", function()
    local tenant = support.tenant()
    local SCOPE = { tenant = tenant.key, app = "MASTER", actor_kind = "system" }
    local function line() return json.encode{ email = support.unique("i") .. "@example.test", email_verified = true } .. "\n" end

    local function import(env, words)
        return command.run("user import - --tenant " .. tenant.key .. (words or ""), env, line())
    end
    local function import_when_free() return command.when_free("user import - --tenant " .. tenant.key, nil, line()) end

    it("are imported once at a time, fenced", function()
        assert.equal(0, (import_when_free()))
        local fence = db.one(tenant.key, "select fence from lock_guards where tenant_key = $1 and resource = 'import:users'",
            tenant.key).fence
        local status, text, said
        -- The command holds this process up, so that nothing extends its lock meanwhile: that lasts for as long as a command may.
        support.eventually(function()
            local got, why = pcall(require("kasma.locks").alone, SCOPE, { "import:users" }, function() status, text, said = import() end,
                { ttl_ms = 300000 })
            assert(got or why.code == "resource_busy", why)
            return got
        end)
        assert.same({ 4, "" }, { status, text })
        assert.matches("Resource is busy. Please retry.", said, 1, true)
        assert.equal(0, (import_when_free()))
        assert.is_true(db.one(tenant.key, "select fence from lock_guards where tenant_key = $1 and resource = 'import:users'",
            tenant.key).fence > fence)
    end)

    it("are not imported while nobody knows whether somebody else does; a dry run waits for nobody", function()
        assert.equal(4, (import(NOWHERE)))
        assert.equal(0, (import(NOWHERE, " --dry-run")))
        assert.is_string(config.get("REDIS_URL"))
    end)

    it("are refused to a holder who slept past the lock", function()
        local importing = require("modules.iam.import")
        local email = support.unique("late") .. "@example.test"
        local ok, why
        support.eventually(function()
            local first = true
            ok, why = pcall(importing.run, SCOPE, function()
                if not first then return nil end
                first = false
                -- While it read its first line a later holder has written.
                db.query(tenant.key, [[insert into lock_guards (tenant_key, app_key, resource, fence, updated_at)
                  values ($1, 'MASTER', 'import:users', nextval('lock_fences') + 1000000, now())
                  on conflict (tenant_key, resource) do update set fence = excluded.fence]], tenant.key)
                return json.encode{ email = email, email_verified = true }
            end, { told = function() end })
            return ok or why.code ~= "resource_busy"
        end)
        db.query(tenant.key, "delete from lock_guards where tenant_key = $1", tenant.key)
        assert.is_false(ok)
        assert.equal("lock_lost", why.code)
        assert.is_nil(db.one(nil, "select 1 as one from users where email = $1", email))
    end)
end)
