-- Users, roles and permissions as HTTP sees them.
local json = require("core.json")
local access = require("kasma.access")
local errors = require("kasma.errors")
local null = require("kasma.null")
local route = require("kasma.route")
local schema = require("kasma.schema")
local audit = require("kasma.audit")
local personal = require("kasma.personal")
local cookies = require("modules.iam.cookies")
local iam = require("modules.iam.service")
local members = require("modules.iam.members")
local roles = require("modules.iam.roles")
local totp = require("modules.iam.totp")
local users = require("modules.iam.users")

local User = schema.object({ id = schema.uuid(), email = schema.string(), status = schema.string(), user_type = schema.string() },
    { name = "User", open = true })
local Role = schema.object({ id = schema.uuid(), role_key = schema.string(), display_name = schema.string() }, { name = "Role",
    open = true })
local One = schema.object({ success = schema.boolean(), user = User }, { open = true })
local Said = schema.object({ success = schema.boolean(), message = schema.string():optional() }, { open = true })

local STATUSES = { "active", "inactive", "pending", "suspended", "locked", "deleted" }
local USER_TYPES = {}
for _, kind in ipairs{ "KASMA", "TENANT", "GENERAL" } do
    for level = 0, 5 do USER_TYPES[#USER_TYPES + 1] = kind .. "_" .. level end
end

local function caller(ctx)
    return { id = ctx.user.id, grants = ctx.grants(), platform = ctx.access and ctx.access.platform or {} }
end

route.get("/users/me", {
    summary = "The caller's account and profile",
    access = "user", account = true, restricted = true, tag = "users", no_store = true,
    returns = One,
    handler = function(ctx) return { success = true, user = users.get({ tenant = ctx.tenant, app = ctx.app }, ctx.user.id) } end,
})

local function texts(...)
    local all = {}
    for _, name in ipairs{ ... } do all[name] = schema.string{ max = 2000 }:optional() end
    return all
end

local own = texts("background_url", "first_name", "last_name", "phone", "address", "city", "state", "zip", "country", "language",
    "timezone",
    "currency", "gender", "website", "bio", "avatar_url")
own.display_name = schema.string{ max = 255 }:optional()
own.username = schema.string{ min = 3, max = 64, trim = true, fold = true, pattern = "^[a-z0-9][a-z0-9._-]*$" }:optional()
    :describe("signs in beside the address; one for the whole platform")
own.date_of_birth = schema.date():optional()
for _, name in ipairs{ "social_links", "notification_preferences", "privacy_settings", "security_settings" } do
    own[name] = schema.array(schema.string{ max = 500 }, { max = 50 }):optional()
end
-- Accepted and ignored: only billing writes them.
for _, name in ipairs(users.profile_members) do
    if name:sub(1, 13) == "subscription_" then own[name] = schema.any():optional() end
end

route.post("/users/me/update", {
    summary = "Change the caller's profile",
    access = "user", account = true, tag = "users", no_store = true, status = 200,
    body = schema.object(own),
    returns = { [200] = One, [409] = users.username_taken },
    handler = function(ctx)
        local on = ctx.body.security_settings ~= nil and totp.is_on(ctx.user.id)
        return { success = true, user = (users.update_self(ctx.scope, ctx.user.id, ctx.body, on)) }
    end,
})

route.post("/users/me/change-password", {
    summary = "Change the caller's password; ends all other sessions",
    access = "user", account = true, restricted = true, tag = "users", no_store = true, status = 200, idempotent = false,
    body = schema.object{
        current_password = schema.string{ max = 1024 }:optional():alias("oldPassword"),
        new_password = schema.string{ not_empty = true, min = 6, max = 1024,
            messages = { min = "New password must be at least 6 characters" } }
            :alias("newPassword"),
    },
    returns = Said,
    handler = function(ctx)
        iam.change_password(ctx.scope, ctx.user, ctx.body, { ip = ctx.ip() })
        return { success = true, message = "Password changed successfully" }
    end,
})

route.get("/users/me/permissions", {
    summary = "What the caller may in this tenant",
    access = "user", account = true, tag = "users", no_store = true,
    returns = schema.object({ success = schema.boolean(), permissions = schema.array(schema.string()) }, { open = true }),
    handler = function(ctx)
        local list = json.array({})
        for key in pairs(ctx.grants()) do list[#list + 1] = key end
        table.sort(list)
        return { success = true, permissions = list }
    end,
})

route.get("/users/me/tenants", {
    summary = "Tenants that the caller belongs to",
    access = "user", account = true, tag = "users", no_store = true,
    returns = schema.object({ success = schema.boolean(), data = schema.array(schema.any()) }, { open = true }),
    handler = function(ctx)
        local data = json.array({})
        for i, row in ipairs(users.tenants_of(ctx.user.id)) do
            data[i] = { tenant_key = row.tenant_key, name = row.name, status = row.status, joined_at = row.joined_at or null }
        end
        return { success = true, data = data }
    end,
})

route.get("/users/me/export", {
    summary = "All that is held about the caller, as NDJSON",
    access = "user", account = true, tag = "users", no_store = true, timeout_ms = 600000,
    returns = { [200] = { description = "one thing a line: {area, store, kind, data}", content_type = "application/x-ndjson" },
        [401] = iam.not_recent },
    handler = function(ctx)
        iam.check_recent(ctx.user, ctx.now())
        local user = iam.user(ctx.user.id)
        audit.write(ctx.scope, { action = "users.export_self", entity_type = "user", entity_id = user.id })
        local w = errors.check(ctx.req:stream(200, { ["Content-Type"] = "application/x-ndjson; charset=utf-8",
            ["Cache-Control"] = "no-store", ["Content-Disposition"] = 'attachment; filename="account.ndjson"' }))
        personal.export(user, users.tenants_ever(user.id), function(line) w:write(json.encode(line) .. "\n") end)
        w:close()
        return route.ANSWERED
    end,
})

route.post("/users/me/delete", {
    summary = "Delete the caller's account: sessions end, the address is free",
    access = "user", account = true, tag = "users", no_store = true, status = 200, idempotent = false,
    returns = { [200] = Said, [401] = iam.not_recent, [409] = members.last_owner },
    handler = function(ctx)
        iam.check_recent(ctx.user, ctx.now())
        users.delete_self(ctx.scope, ctx.user.id)
        cookies.clear(ctx)
        return { success = true, message = "User deleted successfully" }
    end,
})

route.post("/users/me/deactivate", {
    summary = "Make the caller's account inactive; signing in with a code ends that",
    access = "user", account = true, tag = "users", no_store = true, status = 200, idempotent = false,
    returns = { [200] = Said, [401] = iam.not_recent, [409] = { members.last_owner, users.transition } },
    handler = function(ctx)
        iam.check_recent(ctx.user, ctx.now())
        users.deactivate_self(ctx.scope, ctx.user.id)
        cookies.clear(ctx)
        return { success = true, message = "Account deactivated. Sign in to come back." }
    end,
})

route.get("/users", {
    summary = "Users of the tenant, newest first",
    access = { permission = "users.read" }, tag = "users", no_store = true,
    query = schema.page{
        q = schema.string{ max = 100 }:optional()
            :describe("part of the address or the name; one or two characters are looked for where words begin"),
        status = schema.enum(STATUSES, { fold = true }):optional(),
        user_type = schema.enum(USER_TYPES):optional(),
        role_key = schema.string{ max = 100 }:optional(),
        sort = schema.enum{ "-created_at", "created_at", "email", "-email" }:optional(),
    },
    returns = schema.object({ success = schema.boolean(), data = schema.array(User), total = schema.integer() }, { open = true }),
    handler = function(ctx)
        local views, total = users.list(ctx.scope, ctx.query)
        audit.write(ctx.scope, { action = "users.read", entity_type = "user", entity_id = "list" })
        return { success = true, data = views, total = total, page = ctx.query.page, limit = ctx.query.limit }
    end,
})

route.post("/users", {
    summary = "Make a user, pending until the address is verified",
    access = { permission = "users.write" }, tag = "users", no_store = true,
    body = schema.object{
        email = schema.email{ not_empty = true, messages = { not_empty = "Email is required", email = "Invalid email format" } },
        display_name = schema.string{ max = 255 }:optional(),
        user_type = schema.enum(USER_TYPES):optional(),
        role_ids = schema.array(schema.uuid(), { max = 20, unique = true }):optional(),
        send_invite = schema.boolean():default(false),
    },
    returns = { [201] = One, [409] = users.user_exists, [403] = { users.escalation, users.ceiling } },
    handler = function(ctx)
        -- Giving roles is a right of its own.
        if #(ctx.body.role_ids or {}) > 0 then ctx.need("users.roles") end
        return { success = true, user = users.create(ctx.scope, caller(ctx), ctx.body) }
    end,
})

local Id = { id = schema.uuid() }
local function is_self(ctx) return ctx.req.params.id:lower() == ctx.user.id end

route.get("/users/:id", {
    summary = "A user of the tenant",
    access = { permission = "users.read", unless = is_self }, tag = "users", no_store = true,
    params = Id,
    returns = One,
    handler = function(ctx)
        if ctx.params.id == ctx.user.id then return { success = true, user = users.get(ctx.scope, ctx.user.id) } end
        local view = users.get_member(ctx.scope, ctx.params.id)
        audit.write(ctx.scope, { action = "users.read", entity_type = "user", entity_id = ctx.params.id })
        return { success = true, user = view }
    end,
})

route.post("/users/:id/update", {
    summary = "Change a user's status, lock or type",
    access = { permission = "users.write" }, tag = "users", no_store = true, status = 200,
    params = Id,
    body = schema.object{
        status = schema.enum(STATUSES, { fold = true }):optional(),
        is_locked = schema.boolean():optional(),
        user_type = schema.enum(USER_TYPES):optional(),
    },
    returns = { [200] = One, [409] = { users.transition, users.unproven, members.last_owner },
        [403] = { users.escalation, users.foreign, users.outranked, users.ceiling } },
    handler = function(ctx) return { success = true, user = users.update(ctx.scope, caller(ctx), ctx.params.id, ctx.body) } end,
})

route.post("/users/:id/delete", {
    summary = "Delete a user; ends sessions, frees the address",
    access = { permission = "users.delete" }, tag = "users", no_store = true, status = 200,
    params = Id,
    returns = { [200] = Said, [403] = { users.foreign, users.outranked }, [409] = members.last_owner },
    handler = function(ctx)
        users.delete(ctx.scope, caller(ctx), ctx.params.id)
        return { success = true, message = "User deleted successfully" }
    end,
})

route.post("/users/:id/restore", {
    summary = "Bring a deleted user back within thirty days, inactive",
    access = { permission = "users.write" }, tag = "users", no_store = true, status = 200,
    params = Id,
    returns = { [200] = One, [403] = users.foreign, [409] = { users.user_exists, users.username_taken, users.unproven } },
    handler = function(ctx) return { success = true, user = users.restore(ctx.scope, caller(ctx), ctx.params.id) } end,
})

route.post("/users/:id/unlock", {
    summary = "End a lock, a suspension or the waits after failed sign-ins",
    access = { permission = "users.write" }, tag = "users", no_store = true, status = 200,
    params = Id,
    returns = { [200] = One, [403] = { users.foreign, users.outranked } },
    handler = function(ctx) return { success = true, user = users.unlock(ctx.scope, caller(ctx), ctx.params.id) } end,
})

route.get("/users/:id/lockout", {
    summary = "Failed sign-ins of a user, waits, suspension, who deactivated",
    access = { permission = "users.write" }, tag = "users", no_store = true,
    params = Id,
    returns = schema.object({ success = schema.boolean(), lockout = schema.any() }, { open = true }),
    handler = function(ctx) return { success = true, lockout = users.lockout(ctx.scope, ctx.params.id) } end,
})

route.post("/users/:id/sessions/revoke-all", {
    summary = "End all sessions of a user",
    access = { permission = "users.write" }, tag = "users", no_store = true, status = 200,
    params = Id,
    returns = { [200] = Said, [403] = { users.foreign, users.outranked } },
    handler = function(ctx)
        users.revoke_sessions(ctx.scope, caller(ctx), ctx.params.id)
        return { success = true }
    end,
})

route.get("/users/:id/roles", {
    summary = "Roles of a user in the tenant",
    access = { permission = "users.read", unless = is_self }, tag = "users", no_store = true,
    params = Id,
    returns = schema.object({ success = schema.boolean(), roles = schema.array(Role) }, { open = true }),
    handler = function(ctx) return { success = true, roles = users.roles_of(ctx.scope, ctx.params.id) } end,
})

route.post("/users/:id/roles/assign", {
    summary = "Give a user a role",
    access = { permission = "users.roles" }, tag = "users", no_store = true,
    params = Id,
    body = schema.object{ role_id = schema.uuid(), expires_at = schema.date():optional() },
    returns = { [201] = Said, [409] = users.role_held, [403] = { users.escalation, users.ceiling } },
    handler = function(ctx)
        users.assign_role(ctx.scope, caller(ctx), ctx.params.id, ctx.body)
        return { success = true, message = "Role assigned successfully" }
    end,
})

route.post("/users/:id/roles/remove", {
    summary = "Take a role from a user",
    access = { permission = "users.roles" }, tag = "users", no_store = true, status = 200,
    params = Id,
    body = schema.object{ role_id = schema.uuid() },
    returns = { [200] = Said, [409] = members.last_owner, [403] = users.escalation },
    handler = function(ctx)
        users.remove_role(ctx.scope, caller(ctx), ctx.params.id, ctx.body.role_id)
        return { success = true, message = "Role removed successfully" }
    end,
})

-- Roles ------------------------------------------------------------------------------------------------------------------------

local OneRole = schema.object({ success = schema.boolean(), role = Role }, { open = true })
local PermissionKey = schema.string{ max = 150, not_empty = true }

route.get("/roles", {
    summary = "Roles of the tenant",
    access = { permission = "roles.read" }, tag = "roles",
    returns = schema.object({ success = schema.boolean(), roles = schema.array(Role) }, { open = true }),
    handler = function(ctx) return { success = true, roles = roles.list(ctx.scope, caller(ctx).platform) } end,
})

route.post("/roles", {
    summary = "Make a role of the tenant's own",
    access = { permission = "roles.write" }, tag = "roles",
    body = schema.object{
        code = schema.string{ not_empty = true, max = 100 },
        role_key = schema.string{ not_empty = true, max = 100, pattern = "^[%w_.-]+$" },
        display_name = schema.string{ not_empty = true, max = 255 },
        permission_keys = schema.array(PermissionKey:copy(), { max = 200, unique = true }):optional(),
    },
    returns = { [201] = OneRole, [409] = roles.taken, [403] = users.escalation },
    handler = function(ctx) return { success = true, role = roles.create(ctx.scope, ctx.grants(), ctx.body) } end,
})

route.get("/roles/:id", {
    summary = "A role",
    access = { permission = "roles.read" }, tag = "roles", params = Id,
    returns = OneRole,
    handler = function(ctx) return { success = true, role = roles.get(ctx.scope, ctx.params.id) } end,
})

route.get("/roles/:id/permissions", {
    summary = "Permissions of a role",
    access = { permission = "roles.read" }, tag = "roles", params = Id,
    returns = schema.object({ success = schema.boolean(), permissions = schema.array(schema.string()) }, { open = true }),
    handler = function(ctx) return { success = true, permissions = roles.get(ctx.scope, ctx.params.id).permission_keys } end,
})

route.post("/roles/:id/update", {
    summary = "Rename a role",
    access = { permission = "roles.write" }, tag = "roles", params = Id, status = 200,
    body = schema.object{ display_name = schema.string{ not_empty = true, max = 255 }:optional(),
        code = schema.string{ max = 100 }:optional() },
    returns = { [200] = OneRole, [403] = { roles.is_system, users.escalation } },
    handler = function(ctx) return { success = true, role = roles.update(ctx.scope, ctx.grants(), ctx.params.id, ctx.body) } end,
})

route.post("/roles/:id/delete", {
    summary = "Delete a role that nobody holds",
    access = { permission = "roles.write" }, tag = "roles", params = Id, status = 200,
    returns = { [200] = Said, [403] = { roles.is_system, users.escalation }, [409] = roles.in_use },
    handler = function(ctx)
        roles.delete(ctx.scope, ctx.grants(), ctx.params.id)
        return { success = true }
    end,
})

local Grant = schema.object{ permission_id = schema.uuid():optional(), permission_key = PermissionKey:copy():optional() }

route.post("/roles/:id/permissions/assign", {
    summary = "Grant a permission to a role",
    access = { permission = "roles.write" }, tag = "roles", params = Id,
    body = Grant,
    returns = { [201] = Said, [409] = roles.granted, [403] = { users.escalation, roles.is_system } },
    handler = function(ctx)
        roles.grant(ctx.scope, ctx.grants(), ctx.params.id, ctx.body)
        return { success = true }
    end,
})

route.post("/roles/:id/permissions/remove", {
    summary = "Take a permission from a role",
    access = { permission = "roles.write" }, tag = "roles", params = Id, status = 200,
    body = Grant:copy(),
    returns = { [200] = Said, [403] = { users.escalation, roles.is_system }, [409] = members.last_owner },
    handler = function(ctx)
        roles.revoke(ctx.scope, ctx.grants(), ctx.params.id, ctx.body)
        return { success = true }
    end,
})

route.get("/permissions", {
    summary = "The catalogue of permissions",
    access = { permission = "roles.read" }, tag = "roles",
    returns = schema.object({ success = schema.boolean(), permissions = schema.array(schema.any()) }, { open = true }),
    handler = function(ctx) return { success = true, permissions = json.array(roles.permissions(ctx.tenant)) } end,
})

route.permission("permissions.write", "Make permissions of the catalogue (platform)")

route.post("/permissions", {
    summary = "Make a permission: custom.* of the tenant, others for the platform",
    access = { permission = "roles.write" }, tag = "roles",
    body = schema.object{
        permission_key = schema.string{ max = 150, pattern = "^[a-z_]+%.[a-z_.*]+$" }:describe("`^[a-z_]+(\\.[a-z_*]+)+$`"),
        description = schema.string{ max = 255 }:optional(),
    },
    returns = { [201] = schema.object({ success = schema.boolean(), permission = schema.any() }, { open = true }),
        [409] = roles.permission_taken },
    handler = function(ctx)
        local key = ctx.body.permission_key
        if key:find("..", 1, true) or key:sub(-1) == "." then errors.validation{ "permission_key is not valid" } end
        if key:sub(1, 7) == "custom." then
            if key:find("*", 1, true) then errors.validation{ "permission_key is not valid" } end
            return { success = true, permission = roles.create_custom(ctx.scope, ctx.body) }
        end
        if not access.allows(ctx.access and ctx.access.platform or {}, "permissions.write") then errors.forbidden("Forbidden resource") end
        return { success = true, permission = roles.create_permission(ctx.scope, ctx.body) }
    end,
})
