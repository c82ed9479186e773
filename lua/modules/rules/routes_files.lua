-- Rules as files, as HTTP sees them.
local json = require("core.json")
local route = require("kasma.route")
local schema = require("kasma.schema")
local files = require("modules.rules.files")
local rules = require("modules.rules.service")

local File = schema.object({ path = schema.string{ not_empty = true, max = 200 }:example("rules/promotions/b2g1_weekend.lua"),
    text = schema.string{ max = 262144 } }, { name = "RuleFile" })
local Names = schema.array(schema.string())

route.get("/rules/export", {
    summary = "The rules as files, with the list of what is live", access = { permission = "rules.read" }, module = "rules",
    no_store = true, returns = schema.object({ files = schema.array(File) }),
    handler = function(ctx) return { files = files.export(ctx.tenant) } end,
})

route.post("/rules/import", {
    summary = "Make the rules what files say, or see what that would change",
    description = "Files are those of GET /rules/export; others are left alone. What rules/active/<tenant>.lua lists is to be live, with "
        .. "the config and priority given there; other rules are drafts, and what is live and not among the files is disabled. `plan` "
        .. "answers what would be done and what the checks find; `apply` does it, a transaction a rule, or nothing when one of them is "
        .. "refused.",
    access = { permission = "rules.publish" }, module = "rules", timeout_ms = 120000, body_limit = 16 * 1048576, idempotent = false,
    body = schema.object{ files = schema.array(File, { min = 1, max = 1000 }), mode = schema.enum{ "plan", "apply" },
        note = schema.string{ not_empty = true, max = 500 }:default("imported from files"),
        acceptWarnings = schema.array(schema.string{ max = 40 }, { max = 20 }):optional() },
    returns = { [201] = schema.object({ create = Names, update = Names, disable = Names, same = Names,
        diagnostics = schema.array(schema.any()), versions = schema.any():optional(), pending = schema.array(schema.any()):optional(),
        epoch = schema.integer():optional(), live = schema.any():optional() }),
        [409] = { rules.rule_locked, rules.warning_not_accepted, rules.draft_conflict, rules.hook_limit, rules.rule_limit },
        [422] = { files.files_invalid, rules.check_failed, rules.tests_failed } },
    handler = function(ctx)
        return files.import(ctx.scope, json.array(ctx.body.files), { mode = ctx.body.mode, note = ctx.body.note,
            accepted = ctx.body.acceptWarnings })
    end,
})
