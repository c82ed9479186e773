-- Saved payment methods in the export and the erasure of an account. Payments are kept with their orders.
local personal = require("kasma.personal")
local store = require("modules.payments.store")

personal.declare("payments", {
    export = function(tenant, user, emit)
        for _, row in ipairs(store.personal_methods(tenant, user.id)) do emit("postgresql", "payment_method", row) end
    end,
    erase = function(tenant, user) return store.erase_methods(tenant, user.id) end,
})
