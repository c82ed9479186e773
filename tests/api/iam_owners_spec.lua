-- A tenant keeps an owner, whoever goes, is removed or loses a role in the same moment.
local time = require("core.time")
local db = require("kasma.db")
local role_store = require("modules.iam.store_roles")
local shop_of = require("api.shop")
local support = require("api.support")

local must = shop_of.must

describe("of two owners", function()
    it("who remove each other at once, one stays", function()
        for _ = 1, 3 do
            local tenant = support.tenant()
            local first, second = tenant.owner, support.user(tenant, "tenant_owner")
            local answers = support.parallel{
                function() return first:post("/users/" .. second.user.id .. "/delete").status end,
                function() return second:post("/users/" .. first.user.id .. "/delete").status end,
            }
            table.sort(answers)
            local left = db.one(nil, [[select count(*)::int as n from users u join user_tenants m on m.user_id = u.id
              where m.tenant_key = $1 and m.status = 'active' and u.status = 'active']], tenant.key).n
            assert.equal(1, left)
            assert.equal(200, answers[1])
        end
    end)

    it("and many, all leave at once but one", function()
        local tenant = support.tenant()
        local owners = { tenant.owner }
        for i = 2, 10 do owners[i] = support.user(tenant, "tenant_owner") end
        local calls = {}
        for i, owner in ipairs(owners) do calls[i] = function() return owner:post("/users/me/delete") end end
        local statuses = shop_of.statuses(support.parallel(calls))
        assert.same({ [200] = 9, [409] = 1 }, statuses)
    end)

    it("one may leave, the last may not; nor may the role lose what makes an owner", function()
        local tenant = support.tenant()
        local second = support.user(tenant, "tenant_owner")
        must(second:post("/users/me/delete"), 200)
        assert.equal(409, tenant.owner:post("/users/me/delete").status)
        local own = must(tenant.owner:post("/roles", { code = "O", role_key = "own", display_name = "Own",
            permission_keys = { "*" } })).role
        local third = support.user(tenant, "customer", { user_type = "TENANT_0" })
        must(tenant.owner:post("/users/" .. third.user.id .. "/roles/assign", { role_id = own.id }))
        support.eventually(function() return third:get("/users").status == 200 end)
        must(third:post("/users/" .. tenant.owner.user.id .. "/roles/remove", { role_id = tenant.role_ids.tenant_owner }), 200)
        assert.equal(409, third:post("/roles/" .. own.id .. "/permissions/remove", { permission_key = "*" }).status)
    end)

    -- A tenant with two owners, each by a role of the tenant's own.
    local function two_owners()
        local tenant = support.tenant()
        local list = {}
        for i = 1, 2 do
            local role = must(tenant.owner:post("/roles", { code = "O" .. i, role_key = "own" .. i, display_name = "Own",
                permission_keys = { "*" } })).role
            list[i] = { who = support.user(tenant, "own" .. i), role = role.id }
        end
        must(list[1].who:post("/tenants/" .. tenant.key .. "/members/remove", { user_id = tenant.owner.user.id }), 200)
        return tenant, list
    end

    local function owners_of(tenant) return #role_store.owners(tenant.key, time.iso(time.now())) end

    it("whose roles lose all permissions in one moment leave one", function()
        for i = 1, 6 do
            local tenant, pair = two_owners()
            local function strip(k)
                local by = i % 2 == 0 and pair[k].who or pair[3 - k].who
                return by:post("/roles/" .. pair[k].role .. "/permissions/remove", { permission_key = "*" })
            end
            local statuses = shop_of.statuses(support.parallel{ function() return strip(1) end, function() return strip(2) end })
            assert.equal(1, owners_of(tenant))
            assert.equal(1, statuses[200])
        end
    end)

    it("of whom one goes while the other's role loses all permissions are one afterwards", function()
        local GO = { function(one) return one.who:post("/users/me/delete") end,
            function(one, other) return other.who:post("/users/" .. one.who.user.id .. "/roles/remove", { role_id = one.role }) end,
            function(one, other) return other.who:post("/users/" .. one.who.user.id .. "/update", { is_locked = true }) end,
            function(one) return one.who:post("/users/me/deactivate") end }
        for _, go in ipairs(GO) do
            local tenant, pair = two_owners()
            local statuses = shop_of.statuses(support.parallel{ function() return go(pair[1], pair[2]) end, function()
                return pair[2].who:post("/roles/" .. pair[2].role .. "/permissions/remove", { permission_key = "*" })
            end })
            assert.equal(1, owners_of(tenant))
            assert.equal(1, statuses[200])
        end
    end)

    it("for a time keep no tenant: the last whose role has no end stays", function()
        local tenant = support.tenant()
        local second = support.user(tenant, "customer", { user_type = "TENANT_0" })
        local role = tenant.role_ids.tenant_owner
        local tomorrow = time.iso(time.now() + 86400000)
        must(tenant.owner:post("/users/" .. second.user.id .. "/roles/assign", { role_id = role, expires_at = tomorrow }))
        support.eventually(function() return second:get("/users").status == 200 end)
        local answer = tenant.owner:post("/users/me/delete")
        assert.same({ 409, "last_owner" }, { answer.status, answer.json.code })
        assert.equal(409, second:post("/users/" .. tenant.owner.user.id .. "/roles/remove", { role_id = role }).status)
        must(second:post("/users/me/delete"), 200)
    end)

    it("are not lost with a role that is given and deleted in one moment", function()
        local tenant = support.tenant()
        for i = 1, 6 do
            local role = must(tenant.owner:post("/roles", { code = "G" .. i, role_key = "given" .. i, display_name = "Given",
                permission_keys = { "orders.read" } })).role.id
            local user = support.user(tenant, "customer", { user_type = "TENANT_0" })
            local answers = support.parallel{
                function() return tenant.owner:post("/users/" .. user.user.id .. "/roles/assign", { role_id = role }).status end,
                function() return tenant.owner:post("/roles/" .. role .. "/delete").status end,
            }
            local held = db.one(tenant.key, "select count(*)::int as n from user_roles where tenant_key = $1 and role_id = $2", tenant.key,
                role).n
            assert.equal(answers[1] == 201 and 1 or 0, held)
            assert.equal(answers[1] == 201 and 409 or 200, answers[2])
        end
    end)
end)
