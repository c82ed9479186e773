-- Secrets of rules as HTTP sees them. Values go in and never come out.
local route = require("kasma.route")
local schema = require("kasma.schema")
local rules = require("modules.rules.service")
local secrets = require("modules.rules.secrets")

local READ, PUBLISH = { permission = "rules.read" }, { permission = "rules.publish" }
local Name = schema.string{ pattern = "^[a-z][a-z0-9_]*$", max = 63 }

route.get("/rules/secrets", {
    summary = "Names of the secrets that rules may use; never a value", access = READ, module = "rules",
    returns = schema.array(schema.object{ name = Name, updatedAt = schema.string(), updatedBy = schema.uuid():nullable(),
        usedBy = schema.array(schema.string()) }),
    handler = function(ctx) return secrets.list(ctx.scope) end,
})

route.post("/rules/secrets/set", {
    summary = "Set a secret that rules may send by http.fetch", access = PUBLISH, module = "rules",
    body = schema.object{ name = Name, value = schema.string{ not_empty = true, max = 4096 } },
    returns = { [201] = schema.object{ name = Name, updatedAt = schema.string() }, [409] = secrets.secret_limit },
    handler = function(ctx) return secrets.set(ctx.scope, ctx.body.name, ctx.body.value) end,
})

route.post("/rules/secrets/remove", {
    summary = "Remove a secret that no live rule needs", access = PUBLISH, module = "rules",
    body = schema.object{ name = Name }, returns = { [201] = schema.object{ name = Name }, [409] = rules.secret_in_use },
    handler = function(ctx) return secrets.remove(ctx.scope, ctx.body.name) end,
})
