-- The realtime hub as HTTP sees it: the WebSocket, the event stream, tickets for both, and publishing for services.
local json = require("core.json")
local errors = require("kasma.errors")
local hub = require("kasma.hub")
local route = require("kasma.route")
local schema = require("kasma.schema")
local tenants = require("kasma.tenant")
local realtime = require("modules.realtime.service")

local Place = {
    tenant_key = schema.string{ max = 63 }:optional():describe("tenant, where no header can be sent"),
    app_key = schema.string{ max = 63 }:optional():describe("app, where no header can be sent"),
    ticket = schema.string{ max = 64 }:optional():describe("of POST /api/social/realtime/ticket"),
}

route.get("/ws", {
    summary = "The realtime hub over a WebSocket",
    description = "Frames are JSON objects with `type`: auth, subscribe, unsubscribe, typing, ping from the client; subscribed, event, "
        .. "unsubscribed, error, pong from the server. Without a credential in the handshake the first frame must be "
        .. '`{"type":"auth","token":".."}` within ten seconds.',
    access = "public", strict = true, tag = "realtime",
    tenant_in_query = true, identify = realtime.identify,
    query = schema.object(Place),
    returns = { [101] = { description = "Switching Protocols" } },
    websocket = realtime.websocket,
})

route.get("/api/social/realtime/events", {
    summary = "The realtime hub as an event stream",
    description = "An event's `id` holds the positions of all channels: a client that comes again with Last-Event-ID gets what it missed.",
    access = "user", tag = "realtime",
    tenant_in_query = true, identify = realtime.identify,
    query = schema.extend(schema.object(Place), {
        channels = schema.string{ max = 8192 }:optional():describe("comma list; default: one's notices and feed"),
        lastEventId = schema.string{ max = 8192 }:optional():describe("for clients that cannot send Last-Event-ID"),
    }),
    returns = { [200] = { description = "Events", content_type = "text/event-stream" }, [403] = realtime.unknown_channel },
    events = realtime.events,
})

route.post("/api/social/realtime/ticket", {
    summary = "A ticket for the URL of a WebSocket or event stream: one use, 30 seconds",
    access = "user", tag = "realtime", no_store = true, idempotent = false,
    returns = schema.object({ ticket = schema.string(), expires_in = schema.integer() }),
    handler = realtime.ticket,
})

route.post("/api/socket/publish", {
    summary = "Publishes an event (services of the platform)",
    access = { secret = "SOCKET_INTERNAL_API_KEY", header = "x-internal-api-key", message = "Invalid internal API key" },
    tag = "realtime", idempotent = false, body_limit = 131072,
    body = schema.object{
        tenant_key = schema.string{ not_empty = true, max = 63 },
        app_key = schema.string{ max = 63 }:optional(),
        channel = schema.string{ not_empty = true, max = 200 },
        event = schema.string{ not_empty = true, max = 200 }:describe("any line of text"),
        payload = schema.any():optional(),
    },
    returns = schema.object({ success = schema.boolean(), id = schema.string() }),
    handler = function(ctx)
        local body = ctx.body
        local tenant = tenants.by_key(body.tenant_key)
        if not tenant then errors.not_found{ message = "Tenant not found" } end
        local app = body.app_key or tenants.DEFAULT
        if not tenants.is_app_key(app) then errors.validation{ "app_key is not valid" } end
        return { success = true, id = hub.publish(tenant.tenant_key, app, body.channel, body.event, body.payload or json.object({}, {})) }
    end,
})
