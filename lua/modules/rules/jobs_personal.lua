-- Runs of workflows about a person in the export and the erasure of their account.
local personal = require("kasma.personal")
local start = require("modules.rules.workflow_start")
local store = require("modules.rules.workflow_store")

personal.declare("rules", {
    export = function(tenant, user, emit)
        local after
        repeat
            local rows = store.of_user(tenant, user.id, after, 500)
            for _, row in ipairs(rows) do emit("postgresql", "workflow", row) end
            after = rows[#rows] and rows[#rows].id
        until #rows < 500
    end,
    erase = function(tenant, user, now) return store.erase(tenant, user.id, start.KIND, now) end,
})
