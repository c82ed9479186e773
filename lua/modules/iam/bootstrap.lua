-- The first owner of the platform: the address of BOOTSTRAP_ADMIN_EMAIL, while nobody holds that role. The account has no password. Its
-- person registers with the address, proves it by the code that is mailed, and is owner then; a default password never exists.
local time = require("core.time")
local uuid = require("core.uuid")
local audit = require("kasma.audit")
local db = require("kasma.db")
local mail = require("kasma.mail")
local roles = require("modules.iam.roles")
local store = require("modules.iam.store")
local role_store = require("modules.iam.store_roles")

local M = {}

local PLACE = { tenant = "MASTER", app = "MASTER", actor_kind = "system" }

--- Makes the account when there is no owner yet. Of several processes that start at once, one does.
---@param email string
---@return string|nil user_id when it was made now
function M.run(email)
    email = email:lower()
    roles.ensure_platform()
    return db.transaction(PLACE.tenant, function(tx)
        tx:query(unpack(role_store.lock_bootstrap()))
        if tx:one(unpack(role_store.platform_owner())) then return nil end
        local now = time.iso(time.now())
        local user = store.user_by_email(email)
        local id = user and user.id or uuid.v7()
        local statements = {}
        if user then
            statements[1] = store.update_user(id, { user_type = "KASMA_0" }, now)
        else
            statements[1] = store.insert_user{ id = id, email = email, user_type = "KASMA_0", status = "pending", now = now }
        end
        statements[#statements + 1] = store.put_membership{ id = uuid.v7(), user_id = id, tenant_key = PLACE.tenant,
            status = user and user.status == "active" and "active" or "invited", now = now }
        statements[#statements + 1] = role_store.insert_platform_holder{ id = uuid.v7(), user_id = id, role_key = "platform_owner",
            now = now }
        if not user or user.status == "pending" then
            mail.append(statements, PLACE, { to = email, template = "invitation", vars = { tenant = "Kasma" }, user_id = id,
                key = "bootstrap:" .. id })
        end
        audit.append(statements, PLACE, { action = "users.bootstrap", entity_type = "user", entity_id = id })
        tx:at_commit(statements)
        return id
    end)
end

return M
