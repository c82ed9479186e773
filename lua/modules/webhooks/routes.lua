-- Webhooks as HTTP sees them: endpoints, what was sent to them, and the catalogue of events.
local json = require("core.json")
local events = require("kasma.events")
local null = require("kasma.null")
local route = require("kasma.route")
local schema = require("kasma.schema")
local webhooks = require("modules.webhooks.service")

local READ, WRITE = { permission = "webhooks.read" }, { permission = "webhooks.write" }
local State = schema.enum({ "active", "disabled" })
local Id = schema.uuid{ on_bad = 404, what = "Webhook endpoint" }
local DeliveryId = schema.uuid{ on_bad = 404, what = "Webhook delivery" }

local Endpoint = schema.object({ id = schema.uuid(), name = schema.string(), url = schema.string(), events = schema.array(schema.string()),
    headers = schema.map(schema.string()):describe("values are not shown"), state = schema.string(),
    disabledReason = schema.string():nullable(), failingSince = schema.date():nullable(), oldSecretUntil = schema.date():nullable(),
    version = schema.integer(), createdAt = schema.date(), updatedAt = schema.date() }, { name = "WebhookEndpoint" })
local WithSecret = schema.extend(Endpoint, { secret = schema.string():describe("shown once") }, { name = "WebhookEndpointWithSecret" })
local Delivery = schema.object({ id = schema.uuid(), endpointId = schema.uuid(), eventId = schema.uuid(), event = schema.string(),
    entityKey = schema.string(), sequence = schema.integer(), round = schema.integer(), try = schema.integer(), state = schema.string(),
    dueAt = schema.date(), statusCode = schema.integer():nullable(), micros = schema.integer():nullable(),
    error = schema.string():nullable(), createdAt = schema.date(), sentAt = schema.date():nullable() }, { name = "WebhookDelivery" })
local DeliveryWhole = schema.extend(Delivery, { request = schema.object({ url = schema.string():optional(),
    headers = schema.map(schema.string()):optional(), body = schema.string() }), answer = schema.string():nullable() },
    { name = "WebhookDeliveryWhole" })

local function endpoint_of(row, secret)
    local names, headers = {}, {}
    for name in pairs(row.headers or {}) do
        names[#names + 1], headers[name] = name, "***"
    end
    table.sort(names)
    return { id = row.id, name = row.name, url = row.url, events = json.array(row.events), headers = json.object(names, headers),
        state = row.state, disabledReason = row.disabled_reason or null, failingSince = row.failing_since or null,
        oldSecretUntil = row.old_secret_until or null, version = row.version, createdAt = row.created_at, updatedAt = row.updated_at,
        secret = secret }
end

local function delivery_of(row)
    return { id = row.id, endpointId = row.endpoint_id, eventId = row.event_id, event = row.event, entityKey = row.entity_key,
        sequence = row.sequence, round = row.round, try = row.try, state = row.state, dueAt = row.due_at,
        statusCode = row.status_code or null, micros = row.micros or null, error = row.error or null, createdAt = row.created_at,
        sentAt = row.sent_at or null }
end

local function list_of(rows, view)
    local list = json.array({})
    for i, row in ipairs(rows) do list[i] = view(row) end
    return list
end

local Name = schema.string{ not_empty = true, max = 100 }
local Url = schema.string{ not_empty = true, max = 2048 }
local Events = schema.array(schema.string{ max = 100 }, { min = 1, max = 100, unique = true })
local Headers = schema.map(schema.string{ max = 2000 }):optional()

route.get("/webhooks/endpoints", {
    summary = "Webhook endpoints of the shop",
    access = READ, tag = "webhooks",
    returns = schema.array(Endpoint),
    handler = function(ctx) return list_of(webhooks.endpoints(ctx.tenant), endpoint_of) end,
})

route.post("/webhooks/endpoints/create", {
    summary = "Add a webhook endpoint; its secret is shown once",
    access = WRITE, tag = "webhooks", aliases = { "/webhooks/endpoints" }, no_store = true,
    body = schema.object{ name = Name:example("Warehouse"), url = Url:example("https://hooks.shop.example.org/kasma"),
        events = Events:example({ "order.*", "stock.back" }), headers = Headers },
    returns = { [201] = WithSecret, [409] = webhooks.too_many },
    handler = function(ctx) return endpoint_of(webhooks.create(ctx.scope, ctx.body)) end,
})

route.get("/webhooks/endpoints/:id", {
    summary = "One webhook endpoint",
    access = READ, tag = "webhooks",
    params = { id = Id },
    returns = { [200] = Endpoint, [404] = webhooks.endpoint_unknown },
    handler = function(ctx) return endpoint_of(webhooks.endpoint(ctx.tenant, ctx.params.id)) end,
})

route.post("/webhooks/endpoints/:id/update", {
    summary = "Change a webhook endpoint, or switch it on or off",
    access = WRITE, tag = "webhooks",
    params = { id = Id },
    body = schema.object{ name = Name:optional(), url = Url:optional(), events = Events:optional(), headers = Headers,
        state = State:optional() },
    returns = { [201] = Endpoint, [404] = webhooks.endpoint_unknown },
    handler = function(ctx) return endpoint_of(webhooks.update(ctx.scope, ctx.params.id, ctx.body)) end,
})

route.post("/webhooks/endpoints/:id/remove", {
    summary = "Remove a webhook endpoint and its log",
    access = WRITE, tag = "webhooks",
    params = { id = Id },
    returns = { [201] = schema.object{ removed = schema.boolean() }, [404] = webhooks.endpoint_unknown },
    handler = function(ctx)
        webhooks.remove(ctx.scope, ctx.params.id)
        return { removed = true }
    end,
})

route.post("/webhooks/endpoints/:id/rotate", {
    summary = "Make a new secret; the old one is signed with too for a day",
    access = WRITE, tag = "webhooks", no_store = true,
    params = { id = Id },
    returns = { [201] = WithSecret, [404] = webhooks.endpoint_unknown },
    handler = function(ctx) return endpoint_of(webhooks.rotate(ctx.scope, ctx.params.id)) end,
})

route.post("/webhooks/endpoints/:id/test", {
    summary = "Send the event webhook.test to an endpoint, once",
    access = WRITE, tag = "webhooks",
    params = { id = Id },
    returns = { [201] = Delivery, [404] = webhooks.endpoint_unknown },
    handler = function(ctx) return delivery_of(webhooks.test(ctx.scope, ctx.params.id)) end,
})

route.get("/webhooks/deliveries", {
    summary = "Tries of webhooks, newest first; kept thirty days",
    description = "`X-Total-Count` says how many fit the filter (`10000+` above that), `X-Next-Cursor` where the next page begins.",
    access = READ, tag = "webhooks", no_store = true,
    query = schema.object{ endpointId = schema.uuid():optional(), event = schema.string{ max = 100 }:optional(),
        eventId = schema.uuid():optional(), state = schema.enum({ "pending", "sent", "failed", "dead" }):optional(),
        ["createdAt[gte]"] = schema.date():optional():describe("made then or later"),
        ["createdAt[lte]"] = schema.date():optional():describe("made then or earlier"),
        sort = schema.enum({ "-createdAt", "createdAt" }):default("-createdAt"):describe("the newest first, or the oldest"),
        cursor = schema.uuid():optional(), limit = schema.integer{ min = 1, cap = 500 }:default(50) },
    returns = schema.array(Delivery),
    handler = function(ctx)
        local q = ctx.query
        local wanted = { endpoint_id = q.endpointId, event = q.event, state = q.state, event_id = q.eventId,
            from = q["createdAt[gte]"], to = q["createdAt[lte]"] }
        local rows = webhooks.deliveries(ctx.tenant, wanted, q.cursor, q.limit, q.sort == "createdAt")
        ctx.set_header("X-Total-Count", webhooks.total(ctx.tenant, wanted))
        if #rows == q.limit then ctx.set_header("X-Next-Cursor", rows[#rows].id) end
        return list_of(rows, delivery_of)
    end,
})

route.get("/webhooks/deliveries/:id", {
    summary = "One try with what was sent and answered",
    access = READ, tag = "webhooks", no_store = true,
    params = { id = DeliveryId },
    returns = { [200] = DeliveryWhole, [404] = webhooks.delivery_unknown },
    handler = function(ctx)
        local row = webhooks.delivery(ctx.tenant, ctx.params.id)
        local view = delivery_of(row)
        view.request, view.answer = row.request, row.answer or null
        return view
    end,
})

route.post("/webhooks/deliveries/:id/redeliver", {
    summary = "Send the same event once more, under the same webhook-id",
    access = WRITE, tag = "webhooks",
    params = { id = DeliveryId },
    returns = { [201] = Delivery, [404] = webhooks.delivery_unknown, [409] = webhooks.endpoint_disabled },
    handler = function(ctx) return delivery_of(webhooks.redeliver(ctx.scope, ctx.params.id)) end,
})

route.post("/webhooks/deliveries/redeliver", {
    summary = "Send again what is dead at an endpoint, the oldest first",
    access = WRITE, tag = "webhooks",
    body = schema.object{ endpointId = schema.uuid{ on_bad = 404, what = "Webhook endpoint" },
        event = schema.string{ max = 100 }:optional(), from = schema.date():optional(), to = schema.date():optional(),
        limit = schema.integer{ min = 1, max = 500 }:default(200) },
    returns = { [201] = schema.object{ queued = schema.integer(), more = schema.boolean() }, [404] = webhooks.endpoint_unknown,
        [409] = webhooks.endpoint_disabled },
    handler = function(ctx)
        local b = ctx.body
        local queued, more = webhooks.redeliver_dead(ctx.scope, { endpoint_id = b.endpointId, event = b.event, from = b.from, to = b.to,
            limit = b.limit })
        return { queued = queued, more = more }
    end,
})

route.get("/webhooks/events/feed", {
    summary = "The tenant's events from a place on, without an endpoint",
    description = "For a developer's machine (`kasma webhooks listen`). Without `from` it answers the place of now. A reader who comes "
        .. "again with the place that was answered is told of the last ten seconds once more, and drops the ids that he has seen.",
    access = READ, tag = "webhooks", no_store = true,
    query = schema.object{ from = schema.uuid():optional() },
    returns = schema.object({ from = schema.uuid(), events = schema.array(schema.object({
        id = schema.uuid(), type = schema.string(),
        tenant = schema.string(), app = schema.string(), timestamp = schema.date(),
        key = schema.string():describe("id of the entity"), data = schema.any() }, { name = "FedEvent" })) }, { name = "EventFeed" }),
    handler = function(ctx)
        local rows, from = webhooks.follow(ctx.tenant, ctx.query.from)
        return { from = from, events = list_of(rows, webhooks.fed) }
    end,
})

route.get("/webhooks/events", {
    summary = "Catalogue of events with their schemas",
    access = READ, tag = "webhooks",
    returns = schema.array(schema.object({ event = schema.string(), of = schema.string(), when = schema.string(), schema = schema.any() },
        { name = "WebhookEvent" })),
    handler = function()
        local list = json.array({})
        for i, name in ipairs(events.names()) do
            local event = events.find(name)
            list[i] = { event = name, of = event.of, when = event.when, schema = schema.json_schema(event.schema, {}) }
        end
        return list
    end,
})
