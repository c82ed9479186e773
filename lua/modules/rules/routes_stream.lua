-- What happens to rules, as event streams.
local json = require("core.json")
local push = require("core.push")
local errors = require("kasma.errors")
local route = require("kasma.route")
local schema = require("kasma.schema")
local realtime = require("modules.realtime.service")
local store = require("modules.rules.store")
local stream = require("modules.rules.stream")

local Place = {
    tenant_key = schema.string{ max = 63 }:optional():describe("tenant, where no header can be sent"),
    app_key = schema.string{ max = 63 }:optional():describe("app, where no header can be sent"),
    ticket = schema.string{ max = 64 }:optional():describe("of POST /api/social/realtime/ticket"),
    lastEventId = schema.string{ max = 8192 }:optional():describe("for clients that cannot send Last-Event-ID"),
}
local EVENTS = { [200] = { description = "Events", content_type = "text/event-stream" } }

route.get("/rules/stream", {
    summary = "What happens to the tenant's rules, as it happens",
    description = "Events: saved {key, revision, ok}, published {key, version, epoch}, loaded {worker, epoch, workers} by each worker "
        .. "that serves, failed {rule, version, line, message, instructions}, breaker and off {key, opensToday}. An event of a file (where "
        .. "rules lie in files) names `file` or `files`. With `runs` also runs, {runs[], left}: what rules have cost, twice a second at "
        .. "most. A client that comes again with Last-Event-ID gets what it missed; runs leave no trace.",
    access = { permission = "rules.read" }, module = "rules", tenant_in_query = true, identify = realtime.identify,
    query = schema.extend(schema.object(Place), { runs = schema.boolean():default(false) }), returns = EVENTS,
    events = function(ctx)
        return realtime.stream(ctx, { app = stream.APP, channels = ctx.query.runs and { stream.CHANNEL, stream.RUNS }
            or { stream.CHANNEL } })
    end,
})

-- How far it is now, in the form of the channel's own events: what came before the client listened is in it.
local function tell_now(tenant, id)
    return function(socket)
        local row = store.preview(tenant, id)
        if not row then return end
        local text = json.encode{ type = "event", channel = stream.PREVIEW .. id, event = "progress",
            payload = { state = row.state, done = row.done, total = row.total } }
        socket:send(push.message(text, "progress"))
    end
end

route.get("/rules/previews/:id/stream", {
    summary = "The progress of a preview over many orders", access = { permission = "rules.write" }, module = "rules",
    description = "Events: progress {state, done, total}; the first says how far it is now. After state done, failed or cancelled nothing "
        .. "more comes.",
    params = { id = schema.uuid{ on_bad = 404, what = "Preview" } }, tenant_in_query = true, identify = realtime.identify,
    query = schema.object(Place), returns = EVENTS,
    events = function(ctx)
        local id = ctx.params.id
        if not store.preview(ctx.tenant, id) then errors.not_found{ message = "Preview not found" } end
        return realtime.stream(ctx, { app = stream.APP, channels = { stream.PREVIEW .. id }, first = tell_now(ctx.tenant, id) })
    end,
})
