-- Tenants, their apps and settings as HTTP sees them.
local json = require("core.json")
local access = require("kasma.access")
local audit = require("kasma.audit")
local errors = require("kasma.errors")
local route = require("kasma.route")
local schema = require("kasma.schema")
local settings = require("kasma.settings")
local members = require("modules.iam.members")
local tenants = require("modules.tenants.service")

local Key = schema.string{ pattern = "^[A-Za-z0-9][A-Za-z0-9_-]*$", max = 63, not_empty = true }
local AppKey = schema.string{ pattern = "^[A-Za-z0-9][A-Za-z0-9_:-]*$", max = 63, not_empty = true }
local Country = schema.string{ pattern = "^%u%u$" }
local Tenant = schema.object({ id = schema.uuid(), tenant_key = schema.string(), name = schema.string() }, { name = "Tenant", open = true })
local App = schema.object({ id = schema.uuid(), app_key = schema.string(), tenant_key = schema.string() }, { name = "App", open = true })
local Success = { success = schema.boolean() }

-- Whether the caller decides over tenants: staff of the platform.
local function is_platform(ctx) return ctx.access ~= nil and access.allows(ctx.access.platform, "tenants.write") end

local function answer(members_of)
    local all = {}
    for name, member in pairs(Success) do all[name] = member end
    for name, member in pairs(members_of) do all[name] = member end
    return schema.object(all, { open = true })
end

route.get("/tenants", {
    summary = "Tenants",
    access = { platform = "tenants.read" },
    tag = "tenants",
    query = schema.page{ q = schema.string{ max = 100 }:optional() },
    returns = answer{ data = schema.array(Tenant), total = schema.integer() },
    handler = function(ctx)
        local q = ctx.query
        local rows, total = tenants.list(q.q, q.limit, (q.page - 1) * q.limit)
        local data = json.array({})
        for i, row in ipairs(rows) do data[i] = tenants.view(row) end
        return { success = true, data = data, total = total, page = q.page, limit = q.limit }
    end,
})

route.post("/tenants", {
    summary = "Make a tenant with its app, roles, warehouse and currency",
    access = { platform = "tenants.write" },
    tag = "tenants",
    body = schema.object{
        tenant_key = Key:copy():example("acme"),
        name = schema.string{ not_empty = true, max = 255 }:example("Acme"),
        owner_email = schema.email():optional(),
        country = Country:copy():optional(),
        default_currency = schema.string{ pattern = "^%u%u%u$" }:optional(),
        default_locale = schema.string{ pattern = "^%a%a[%w-]*$", max = 20 }:optional(),
        timezone = schema.string{ max = 64 }:optional(),
        is_test = schema.boolean():optional(),
    },
    returns = { [201] = answer{ tenant = Tenant }, [409] = tenants.taken },
    handler = function(ctx)
        local email, owner = ctx.body.owner_email, nil
        local made = tenants.create(ctx.scope, ctx.body, email and function(statements, place, tenant)
            owner = members.append_owner(statements, place, tenant, email)
        end)
        if owner then access.changed_user(owner) end
        return { success = true, tenant = tenants.view(made.tenant), app = made.app }
    end,
})

route.get("/tenants/:tenant_key", {
    summary = "A tenant",
    access = { permission = "tenants.read" },
    tag = "tenants",
    named_tenant = "params",
    returns = answer{ tenant = Tenant },
    handler = function(ctx)
        local row = tenants.tenant(ctx.tenant)
        if not row then errors.not_found{ message = "Tenant not found" } end
        return { success = true, tenant = tenants.view(row) }
    end,
})

route.post("/tenants/:tenant_key/update", {
    summary = "Change a tenant and its settings",
    access = { permission = "tenants.write" },
    tag = "tenants",
    named_tenant = "params",
    status = 200,
    body = schema.object{
        name = schema.string{ not_empty = true, max = 255 }:optional(),
        is_active = schema.boolean():optional(),
        country = Country:copy():optional(),
        default_locale = schema.string{ pattern = "^%a%a[%w-]*$", max = 20 }:optional(),
        timezone = schema.string{ max = 64 }:optional(),
        settings = schema.map(schema.any():nullable()):optional(),
    },
    returns = { [200] = answer{ tenant = Tenant }, [409] = tenants.stays },
    handler = function(ctx)
        -- Whether a tenant is served at all is the platform's business.
        if ctx.body.is_active ~= nil and not is_platform(ctx) then
            errors.forbidden("Forbidden resource")
        end
        return { success = true, tenant = tenants.view(tenants.update(ctx.scope, ctx.body)) }
    end,
})

route.post("/tenants/:tenant_key/delete", {
    summary = "Close a tenant that has no products and no orders",
    access = { platform = "tenants.write" },
    tag = "tenants",
    named_tenant = "params",
    status = 200,
    returns = { [200] = answer{ tenant = Tenant }, [409] = { tenants.not_empty, tenants.stays } },
    handler = function(ctx) return { success = true, tenant = tenants.view(tenants.close(ctx.scope)) } end,
})

route.get("/tenants/:tenant_key/members", {
    summary = "Members of a tenant",
    access = { permission = "tenants.members" },
    tag = "tenants",
    named_tenant = "params",
    query = schema.page(),
    returns = answer{ data = schema.array(schema.any()), total = schema.integer() },
    handler = function(ctx)
        local q = ctx.query
        local rows, total = tenants.members(ctx.tenant, q.limit, (q.page - 1) * q.limit)
        audit.write(ctx.scope, { action = "members.read", entity_type = "user", entity_id = "list" })
        return { success = true, data = rows, total = total, page = q.page, limit = q.limit }
    end,
})

local MemberKey = schema.object({ id = schema.uuid(), owned_key = schema.string(), name = schema.string(),
    last4 = schema.string():nullable(), revoked = schema.boolean() }, { name = "MemberKey" })
local Member = schema.object{ user_id = schema.uuid():optional(), email = schema.email():optional() }

route.post("/tenants/:tenant_key/members/add", {
    summary = "Make a user a member, or invite one by e-mail",
    access = { permission = "tenants.members" },
    tag = "tenants",
    named_tenant = "params",
    body = Member,
    returns = { [201] = answer{ member = schema.any() }, [409] = members.already },
    handler = function(ctx)
        local platform = ctx.access and ctx.access.platform or {}
        return { success = true, member = members.add(ctx.scope, ctx.body, access.allows(platform, "tenants.switch")) }
    end,
})

route.post("/tenants/:tenant_key/members/remove", {
    summary = "End a membership, and the secret keys that the member made",
    access = { permission = "tenants.members" },
    tag = "tenants",
    named_tenant = "params",
    status = 200,
    body = schema.object{ user_id = schema.uuid():optional(), email = schema.email():optional(),
        revoke_keys = schema.boolean():alias("revokeKeys"):default(true)
            :describe("false: secret keys that the member made go on; the answer names them") },
    returns = { [200] = answer{ keys = schema.array(MemberKey) }, [403] = members.outranked, [409] = members.last_owner },
    handler = function(ctx) return { success = true, keys = members.remove(ctx.scope, ctx.grants(), ctx.body) } end,
})

route.get("/apps", {
    summary = "Apps of the tenant",
    access = { permission = "apps.read" },
    tag = "tenants",
    returns = answer{ data = schema.array(App) },
    handler = function(ctx) return { success = true, data = json.array(tenants.apps(ctx.tenant)) } end,
})

local Kind = schema.enum({ "storefront", "backoffice", "mobile", "service" })
-- In the form in which browsers say them.
local Origins = schema.array(schema.string{ max = 255, pattern = "^https?://[%w.:%[%]-]+$", fold = true }, { max = 50 })
local Hosts = schema.array(schema.string{ max = 253, pattern = "^[%w.-]+$", fold = true }, { max = 50, unique = true })

route.post("/apps", {
    summary = "Make an app",
    access = { permission = "apps.write" },
    tag = "tenants",
    body = schema.object{
        app_key = AppKey:copy():example("acme-shop"),
        name = schema.string{ not_empty = true, max = 255 },
        kind = Kind:copy():default("storefront"),
        allowed_origins = Origins:copy():optional(),
        hostnames = Hosts:copy():optional(),
    },
    returns = { [201] = answer{ app = App }, [403] = tenants.host_reserved, [409] = { tenants.app_taken, tenants.host_taken } },
    handler = function(ctx) return { success = true, app = tenants.create_app(ctx.scope, ctx.body, is_platform(ctx)) } end,
})

route.post("/apps/:app_key/update", {
    summary = "Change an app",
    access = { permission = "apps.write" },
    tag = "tenants",
    status = 200,
    body = schema.object{
        name = schema.string{ not_empty = true, max = 255 }:optional(),
        kind = Kind:copy():optional(),
        is_active = schema.boolean():optional(),
        allowed_origins = Origins:copy():optional(),
        hostnames = Hosts:copy():optional(),
    },
    returns = { [200] = answer{ app = App }, [403] = tenants.host_reserved, [409] = tenants.host_taken },
    handler = function(ctx)
        return { success = true, app = tenants.update_app(ctx.scope, ctx.params.app_key, ctx.body, is_platform(ctx)) }
    end,
})

route.get("/settings", {
    summary = "Settings in force",
    access = { permission = "tenants.read" },
    tag = "tenants",
    returns = answer{ settings = schema.map() },
    handler = function(ctx) return { success = true, settings = settings.in_force(ctx.tenant) } end,
})

route.get("/settings/schema", {
    summary = "Which settings there are",
    access = { permission = "tenants.read" },
    tag = "tenants",
    returns = answer{ settings = schema.array(schema.any()) },
    handler = function()
        local list = json.array({})
        for i, s in ipairs(settings.all()) do
            list[i] = { key = s.key, type = s.type, default = settings.default(s), module = s.module, help = s.help, values = s.values
                and json.array(s.values) }
        end
        return { success = true, settings = list }
    end,
})
