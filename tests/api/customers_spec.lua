-- Customers over HTTP: one's own consent, groups and tags by staff, and nobody else's.
local json = require("core.json")
local support = require("api.support")
local shop_of = require("api.shop")

local must = shop_of.must

describe("a customer", function()
    local shop, buyer

    setup(function()
        shop = support.tenant()
        buyer = support.shopper(shop)
    end)

    it("says whether the shop may write to them, before the first order too, and takes it back", function()
        assert.equal(404, buyer:post("/customers/details").status)
        local first = must(buyer:post("/customers/update", { marketingConsent = true }))
        assert.same({ buyer.user.id, true, 0 }, { first.userId, first.marketingConsent, first.ordersCount })
        local again = must(buyer:post("/customers/update", { marketingConsent = true }))
        assert.same({ first.id, first.marketingConsentAt }, { again.id, again.marketingConsentAt })
        local back = must(buyer:post("/customers/update", { marketingConsent = false }))
        assert.same({ false, json.null }, { back.marketingConsent, back.marketingConsentAt })
        assert.equal(first.id, must(buyer:post("/customers/details")).id)
    end)

    it("has groups and tags that only staff sets", function()
        local id = must(buyer:post("/customers/update", { marketingConsent = true })).id
        assert.equal(403, buyer:post("/customers/update", { groups = { "vip" } }).status)
        local set = must(shop.owner:post("/customers/update", { id = id, groups = { "vip" }, tags = { "tea", "early" } }))
        assert.same({ { "vip" }, { "tea", "early" }, true }, { set.groups, set.tags, set.marketingConsent })
        assert.same({ "vip" }, must(shop.owner:post("/customers/details", { userId = buyer.user.id })).groups)
        assert.equal(400, shop.owner:post("/customers/update", { id = id, tags = { "Not a tag" } }).status)
    end)

    it("is nobody else's", function()
        local id = must(buyer:post("/customers/update", { marketingConsent = true })).id
        local other = support.shopper(shop)
        assert.equal(403, other:post("/customers/details", { id = id }).status)
        assert.equal(403, other:post("/customers/update", { userId = buyer.user.id, marketingConsent = false }).status)
        assert.equal(401, support.guest(shop):post("/customers/details").status)
        local stranger = support.tenant().owner
        assert.equal(404, stranger:post("/customers/details", { id = id }).status)
        assert.equal(404, stranger:post("/customers/update", { id = id, tags = { "x" } }).status)
        assert.equal(404, stranger:post("/customers/update", { userId = buyer.user.id, tags = { "x" } }).status)
    end)
end)
