-- What a tenant knows of a customer, in the export and the erasure of an account.
local personal = require("kasma.personal")
local store = require("modules.customers.store")

personal.declare("customers", {
    export = function(tenant, user, emit)
        for _, row in ipairs(store.personal(tenant, user.id)) do emit("postgresql", "customer", row) end
    end,
    erase = function(tenant, user, now) return store.erase(tenant, user.id, now) end,
})
