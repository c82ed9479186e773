-- One shop, two customers: no answer to one holds what is the other's, and nothing of the other's changes. Generated from the
-- declarations, as isolation_spec does it for two shops; row security does not stand between two people of one tenant.
local json = require("core.json")
local route = require("kasma.route")
local db = require("kasma.db")
local arranged = require("api.arranged")
local shop_of = require("api.shop")
local support = require("api.support")

local must = shop_of.must

-- What ends the session that the other calls need.
local ENDS = { ["POST /auth/logout"] = true, ["POST /auth/logout-all"] = true, ["POST /users/me/delete"] = true,
    ["POST /users/me/deactivate"] = true }

describe("a customer's things", function()
    local world = arranged.world()
    local theirs = world.shopper
    local order = must(theirs:post("/sales/orders/details", { id = world.ids.order }))
    must(theirs:post("/users/me/update", { phone = "+84 90 555 01 99", address = "17 Hidden Lane" }), 200)
    local secrets = { theirs.user.email, "555 01 99", "17 Hidden Lane", world.ids.user, world.ids.session, world.ids.customer,
        world.ids.cart, world.ids.order }

    local function of_theirs()
        return { order = must(theirs:post("/sales/orders/details", { id = world.ids.order })), me = must(theirs:get("/users/me"), 200),
            customer = must(theirs:post("/customers/details")), cart = must(theirs:get("/sales/cart/me"), 200),
            sessions = #must(theirs:get("/auth/sessions"), 200).data, orders = must(theirs:get("/sales/orders/me"), 200) }
    end
    local before = of_theirs()

    for who, caller in pairs{ customer = support.shopper(world.shop), guest = support.guest(world.shop) } do
        it("are not in any answer to another " .. who, function()
            local routes = 0
            for _, decl in ipairs(route.all()) do
                local name = decl.method .. " " .. decl.path
                if not decl.events and not decl.bare and not ENDS[name] then
                    routes = routes + 1
                    -- With no ids but the declared ones, and with theirs in each place that takes one.
                    local requests = { { arranged.request(decl, world) } }
                    for _, place in ipairs(arranged.id_places(decl)) do
                        for _, kind in ipairs(place.is_key and {} or { "user", "order", "customer", "cart", "session" }) do
                            requests[#requests + 1] = { arranged.request(decl, world, place, world.ids[kind]) }
                        end
                    end
                    for _, r in ipairs(requests) do
                        local answer = caller:request(r[1], r[2], r[3])
                        local sent = r[2] .. " " .. (r[3] and json.encode(r[3]) or "")
                        for _, secret in ipairs(secrets) do
                            if not sent:find(secret, 1, true) then
                                assert.is_nil(answer.body:find(secret, 1, true), ("%s %s by a %s: %d %s"):format(r[1], sent, who,
                                    answer.status, answer.body))
                            end
                        end
                        assert.is_true(answer.status < 500, name)
                        if who == "customer" and decl.method ~= "GET" and caller:get("/auth/me").status ~= 200 then
                            support.sign_in(caller)
                        end
                    end
                end
            end
            assert.is_true(routes > 150, routes .. " routes")
        end)
    end

    it("are as they were", function()
        assert.same(before, of_theirs())
        assert.equal(order.orderNumber, before.order.orderNumber)
        assert.equal(1, db.one(world.shop.key, "select count(*)::int as n from orders where tenant_key = $1 and user_id = $2",
            world.shop.key, world.ids.user).n)
    end)
end)
