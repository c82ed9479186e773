-- Orders in the export of an account. They are not erased with it: the books keep them, under an id that then names nobody, and of their
-- addresses what taxes are proven by. An order that is still under way needs its address: the account waits for its end.
local personal = require("kasma.personal")
local store = require("modules.orders.store")

personal.declare("orders", {
    export = function(tenant, user, emit)
        local after
        repeat
            local rows = store.personal(tenant, user.id, after, 200)
            for _, row in ipairs(rows) do emit("postgresql", "order", row) end
            after = rows[#rows] and rows[#rows].id
        until #rows < 200
    end,
    erase = function(tenant, user, now)
        if store.has_open(tenant, user.id) then return nil, true end
        return { store.erase_addresses(tenant, user.id, now) }
    end,
})
