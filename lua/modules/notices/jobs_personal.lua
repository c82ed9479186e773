-- Notices, wishes about them and devices in the export and the erasure of an account.
local personal = require("kasma.personal")
local store = require("modules.notices.store_personal")

personal.declare("notices", {
    export = function(tenant, user, emit)
        for _, kind in ipairs(store.kinds) do
            local after
            repeat
                local rows = store.rows(tenant, user.id, kind, after, 500)
                for _, row in ipairs(rows) do emit("postgresql", kind, row) end
                after = rows[#rows] and rows[#rows].id
            until #rows < 500
        end
    end,
    erase = function(tenant, user) return store.erase(tenant, user.id) end,
})
