-- Runs of workflow rules as HTTP sees them.
local json = require("core.json")
local null = require("kasma.null")
local route = require("kasma.route")
local schema = require("kasma.schema")
local rules = require("modules.rules.service")
local workflows = require("modules.rules.workflows")

local PAGE = 20
local Reason = schema.object{ reason = schema.string{ not_empty = true, max = 500 } }
local Id = { id = schema.uuid{ on_bad = 404, what = "Workflow" } }

local maybe = function(node) return node:nullable() end
local Step = schema.object({ name = schema.string(), kind = schema.enum{ "run", "undo" },
    state = schema.enum{ "running", "done", "failed" }, attempt = schema.integer(), micros = schema.integer(),
    log = maybe(schema.string()), error = maybe(schema.object({}, { open = true })) }, { name = "WorkflowStep", open = true })
local Run = schema.object({ id = schema.uuid(), version = schema.integer(), event = schema.string(),
    entity = schema.object({ type = schema.string(), id = schema.string() }, { open = true }),
    state = schema.enum{ "running", "waiting", "done", "failed", "undone", "cancelled" }, step = maybe(schema.string()),
    attempts = schema.integer(), waitEvent = maybe(schema.string()), wakeAt = maybe(schema.date()),
    error = maybe(schema.object({}, { open = true })), startedAt = schema.date(), finishedAt = maybe(schema.date()),
    steps = schema.array(Step) }, { name = "WorkflowRun", open = true })

local function or_null(value) if value == nil then return null end return value end

local function bodies(tenant, runs)
    local ids, by_id, list = {}, {}, json.array{}
    for i, run in ipairs(runs) do
        ids[i] = run.id
        list[i] = { id = run.id, ruleId = run.rule_id, version = run.version, event = run.event, eventId = run.event_id,
            entity = { type = run.entity_type, id = run.entity_id }, state = run.state, undoing = run.phase == "undo",
            position = run.step, step = null, attempts = run.attempts, hops = run.hops, waitEvent = or_null(run.wait_event),
            wakeAt = or_null(run.wake_at), error = or_null(run.error), reason = or_null(run.reason), startedAt = run.started_at,
            finishedAt = or_null(run.finished_at), steps = json.array{} }
        by_id[run.id] = list[i]
    end
    if #ids == 0 then return list end
    for _, step in ipairs(workflows.steps(tenant, ids)) do
        local body = by_id[step.run_id]
        body.steps[#body.steps + 1] = { name = step.name, kind = step.kind, state = step.state, attempt = step.attempt,
            position = step.position, micros = step.micros, instructions = step.instructions, log = or_null(step.log),
            error = or_null(step.error), startedAt = step.started_at, finishedAt = or_null(step.finished_at) }
    end
    local names = workflows.step_names(tenant, runs)
    for _, run in ipairs(runs) do by_id[run.id].step = or_null(names[run.id]) end
    return list
end

route.get("/rules/:rule/workflows", {
    summary = "Runs of a workflow rule with their steps, newest first", access = { permission = "rules.read" }, module = "rules",
    params = { rule = schema.string{ not_empty = true, max = 64 } }, no_store = true,
    query = schema.object{ state = schema.enum{ "running", "waiting", "done", "failed", "undone", "cancelled" }:optional(),
        entityId = schema.string{ max = 200 }:optional(), from = schema.date():optional(), to = schema.date():optional(),
        cursor = schema.uuid():optional() },
    returns = schema.array(Run),
    handler = function(ctx)
        local rule = rules.find(ctx.tenant, ctx.params.rule)
        local runs = workflows.list(ctx.tenant, rule.id, { state = ctx.query.state, entity_id = ctx.query.entityId, from = ctx.query.from,
            to = ctx.query.to, before = ctx.query.cursor, limit = PAGE })
        if #runs == PAGE then ctx.set_header("X-Next-Cursor", runs[PAGE].id) end
        return bodies(ctx.tenant, runs)
    end,
})

for verb, summary in pairs{ retry = "A failed workflow goes on at the step that failed",
    cancel = "Undo what a workflow has done, backwards" } do
    route.post("/rules/workflows/:id/" .. verb, {
        summary = summary, access = { permission = "rules.publish" }, module = "rules", params = Id, body = Reason,
        returns = { [201] = Run, [409] = { workflows.running, workflows.finished } },
        handler = function(ctx)
            return bodies(ctx.tenant, { workflows[verb](ctx.scope, ctx.params.id, ctx.body.reason) })[1]
        end,
    })
end
