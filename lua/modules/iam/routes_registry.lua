-- Module entitlements and access keys as HTTP sees them.
local errors = require("kasma.errors")
local gate = require("kasma.gate")
local null = require("kasma.null")
local route = require("kasma.route")
local schema = require("kasma.schema")
local keys = require("modules.iam.keys")
local registry = require("modules.iam.registry")
local users = require("modules.iam.users")

local Module = schema.object({ id = schema.uuid(), key = schema.string(), name = schema.string(),
    dependencies = schema.array(schema.string()) },
    { name = "Module", open = true })
local Registry = schema.object({ id = schema.uuid(), module_key = schema.string(), version = schema.string(),
    is_active = schema.boolean() },
    { name = "Registry", open = true })
local function answer(members)
    members.success = schema.boolean()
    return schema.object(members, { open = true })
end

route.get("/registry/modules", {
    summary = "Modules that exist",
    access = { permission = "registry.read" }, tag = "registry",
    returns = answer{ modules = schema.array(Module) },
    handler = function() return { success = true, modules = registry.modules() } end,
})

route.post("/registry/modules", {
    summary = "Make a module known",
    access = { platform = "registry.write" }, tag = "registry",
    body = schema.object{
        key = schema.string{ max = 100 }:optional(),
        name = schema.string{ not_empty = true, max = 255 },
        display_name = schema.string{ max = 255 }:optional(),
        description = schema.string{ max = 2000 }:optional(),
        dependencies = schema.array(schema.string{ max = 100 }, { max = 50, unique = true }):optional(),
    },
    returns = { [201] = answer{ module = Module }, [409] = registry.module_exists },
    handler = function(ctx)
        local body = ctx.body
        -- The published collection sends name and display_name where the key and the name are meant.
        local key, name = body.key, body.name
        if key and body.display_name then errors.validation{ "property display_name should not exist" } end
        if body.display_name then key, name = body.name, body.display_name end
        if not key or key == "" then errors.validation{ "key should not be empty" } end
        return { success = true, module = registry.create_module(ctx.scope, { key = key, name = name, description = body.description,
            dependencies = body.dependencies }) }
    end,
})

route.get("/registry", {
    summary = "Modules that apps of the tenant have",
    access = { permission = "registry.read" }, tag = "registry",
    query = schema.object{ app_family_key = schema.string{ max = 63 }:optional(), tenant_key = schema.string{ max = 63 }:optional() },
    named_tenant = "query",
    returns = answer{ registries = schema.array(Registry) },
    handler = function(ctx) return { success = true, registries = registry.list(ctx.tenant, ctx.query.app_family_key) } end,
})

route.post("/registry", {
    summary = "Give a module to an app of a tenant",
    access = { permission = "registry.write" }, tag = "registry", named_tenant = "body",
    body = schema.object{
        app_family_key = schema.string{ not_empty = true, max = 63 },
        tenant_key = schema.string{ not_empty = true, max = 63 },
        module_key = schema.string{ not_empty = true, max = 100 },
        version = schema.string{ max = 50 }:optional(),
        is_active = schema.boolean():optional(),
    },
    returns = { [201] = answer{ registry = Registry }, [409] = registry.installed },
    handler = function(ctx) return { success = true, registry = registry.install(ctx.scope, ctx.body) } end,
})

route.post("/registry/:id/update", {
    summary = "Change a module of an app",
    access = { permission = "registry.write" }, tag = "registry", params = { id = schema.uuid() },
    body = schema.object{ version = schema.string{ max = 50 }:optional(), is_active = schema.boolean():optional() },
    returns = { [201] = answer{ registry = Registry } },
    handler = function(ctx) return { success = true, registry = registry.update(ctx.scope, ctx.params.id, ctx.body) } end,
})

route.get("/registry/access", {
    summary = "Whether the caller's app has a module",
    access = "user", tag = "registry",
    query = schema.object{ module_key = schema.string{ not_empty = true, max = 100 } },
    returns = answer{ allowed = schema.boolean() },
    handler = function(ctx)
        local version = gate.version(ctx.tenant, ctx.app, ctx.query.module_key:lower())
        return { success = true, allowed = version ~= nil, version = version or null }
    end,
})

-- Access keys --------------------------------------------------------------------------------------------------------------------

local Key = schema.object({ id = schema.uuid(), owned_key = schema.string(), key_type = schema.string(), name = schema.string() },
    { name = "AccessKey", open = true })
local Network = schema.string{ max = 50 }:describe("an IP address or a network, such as 10.0.0.0/8 or 2001:db8::/32")

route.get("/tenants/:tenant_key/keys", {
    summary = "Access keys of a tenant, without secrets",
    access = { permission = "keys.read" }, tag = "keys", named_tenant = "params", no_store = true,
    returns = answer{ data = schema.array(Key) },
    handler = function(ctx) return { success = true, data = keys.list(ctx.tenant) } end,
})

route.post("/tenants/:tenant_key/keys/create", {
    summary = "Make an access key; its secret is shown once",
    access = { permission = "keys.write" }, tag = "keys", named_tenant = "params", no_store = true,
    body = schema.object{
        name = schema.string{ not_empty = true, max = 255 },
        key_type = schema.enum{ "publishable", "secret" },
        app_key = schema.string{ max = 63 }:optional(),
        scopes = schema.array(schema.string{ max = 150 }, { max = 200, unique = true }):optional(),
        expires_at = schema.date():optional(),
        allowed_ips = schema.array(Network, { max = 50 }):optional(),
    },
    returns = { [201] = answer{ key = Key }, [403] = users.escalation },
    handler = function(ctx) return { success = true, key = keys.create(ctx.scope, ctx.grants(), ctx.body) } end,
})

route.post("/tenants/:tenant_key/keys/:id/rotate", {
    summary = "A new secret for a key; the old one goes on for a grace",
    access = { permission = "keys.write" }, tag = "keys", named_tenant = "params", no_store = true,
    params = { id = schema.uuid(), tenant_key = schema.string() },
    body = schema.object{ grace_seconds = schema.integer{ min = 0, max = 86400 }:default(0) },
    returns = { [201] = answer{ key = Key }, [403] = users.escalation, [409] = keys.changed },
    handler = function(ctx) return { success = true, key = keys.rotate(ctx.scope, ctx.grants(), ctx.params.id,
        ctx.body.grace_seconds) } end,
})

route.post("/tenants/:tenant_key/keys/:id/revoke", {
    summary = "End a key",
    access = { permission = "keys.write" }, tag = "keys", named_tenant = "params", status = 200,
    params = { id = schema.uuid(), tenant_key = schema.string() },
    returns = { [200] = answer{}, [409] = keys.changed },
    handler = function(ctx)
        keys.revoke(ctx.scope, ctx.params.id)
        return { success = true }
    end,
})
