-- What accounts themselves hold about a person, for export and erasure (kasma.personal).
local personal = require("kasma.personal")
local store = require("modules.iam.store")
local profiles = require("modules.iam.store_profiles")

local function each(rows, emit, kind)
    for _, row in ipairs(rows) do emit("postgresql", kind, row) end
end

personal.declare("account", {
    account = true,
    export = function(_, user, emit)
        each({ store.user(user.id) }, emit, "user")
        each(store.credentials_of(user.id), emit, "credential")
        each(store.memberships_of(user.id), emit, "membership")
        each(store.all_sessions_of(user.id), emit, "session")
        local profile = profiles.of(user.id)
        if profile then profile.written = nil end
        if profile then emit("mongodb", "user_profile", profile) end
    end,
    erase = function(_, user) profiles.delete(user.id) end,
})

personal.declare("tenancy", {
    export = function(tenant, user, emit)
        each(store.role_keys_of(tenant, user.id), emit, "role")
        for _, kind in ipairs{ "sign_in_event", "mail", "action" } do
            local after
            repeat
                local rows = store.personal_rows(tenant, user.id, kind, after, 500)
                each(rows, emit, kind)
                after = rows[#rows] and rows[#rows].id
            until #rows < 500
        end
    end,
    erase = function(tenant, user) return store.erase_tenant_rows(tenant, user.id, user.email) end,
})
