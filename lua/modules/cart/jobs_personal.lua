-- Carts and wishlists in the export and the erasure of an account; their copies in the document store go too.
local docs = require("kasma.docs")
local personal = require("kasma.personal")
local store = require("modules.cart.store")

personal.declare("cart", {
    export = function(tenant, user, emit)
        for _, kind in ipairs(store.personal_kinds) do
            for _, row in ipairs(store.personal(tenant, user.id, kind)) do emit("postgresql", kind, row) end
        end
    end,
    erase = function(tenant, user)
        for _, collection in ipairs{ "shopping_carts", "wishlists" } do
            docs.delete({ tenant = tenant }, collection, { user_id = user.id }, { multi = true })
        end
        return store.erase(tenant, user.id)
    end,
})
