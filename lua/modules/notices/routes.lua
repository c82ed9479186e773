-- Notices as HTTP sees them.
local json = require("core.json")
local null = require("kasma.null")
local route = require("kasma.route")
local schema = require("kasma.schema")
local notices = require("modules.notices.service")

local Kind = schema.enum(notices.TYPES)
local Notice = schema.object({ id = schema.uuid(), notice_type = Kind:copy(), title = schema.string(), body = schema.string(),
    is_read = schema.boolean() }, { name = "Notice", open = true })
local Preference = schema.object({ notice_type = Kind:copy(), in_app = schema.boolean(), push = schema.boolean(),
    email = schema.boolean() }, { name = "NoticePreference" })
local Done = schema.object({ success = schema.boolean() })

route.get("/api/social/notices", {
    summary = "One's notices, newest first",
    access = "user", module = "social", no_store = true,
    query = schema.page{
        unread_only = schema.boolean():default(false),
        cursor = schema.string{ max = 200 }:optional():describe("next_cursor of the page before; then `page` is not used"),
    },
    returns = schema.object({ data = schema.array(Notice), total = schema.integer(), page = schema.integer(), limit = schema.integer(),
        has_more = schema.boolean(), next_cursor = schema.string():nullable() }),
    handler = function(ctx) return notices.list(ctx.scope, ctx.user.id, ctx.query, ctx.req:header("accept-language")) end,
})

route.get("/api/social/notices/unread-count", {
    summary = "How many of one's notices are unread",
    access = "user", module = "social", no_store = true,
    returns = schema.object({ unread_count = schema.integer() }),
    handler = function(ctx) return { unread_count = notices.unread_count(ctx.scope, ctx.user.id) } end,
})

route.post("/api/social/notices/read-all", {
    summary = "Mark all of one's notices as read",
    access = "user", module = "social",
    returns = Done,
    handler = function(ctx)
        notices.read_all(ctx.scope, ctx.user.id)
        return { success = true }
    end,
})

route.post("/api/social/notices/:id/read", {
    summary = "Mark one of one's notices as read",
    access = "user", module = "social",
    params = { id = schema.uuid() },
    returns = Notice,
    handler = function(ctx) return notices.read_one(ctx.scope, ctx.user.id, ctx.params.id, ctx.req:header("accept-language")) end,
})

route.get("/api/social/notices/preferences", {
    summary = "How one wants to hear of each type of notice",
    access = "user", module = "social", no_store = true,
    returns = schema.array(Preference),
    handler = function(ctx) return notices.preferences(ctx.scope, ctx.user.id) end,
})

route.post("/api/social/notices/preferences", {
    summary = "Say how one wants to hear of some types of notices",
    access = "user", module = "social",
    body = schema.object{
        rows = schema.array(schema.object{ notice_type = Kind:copy(), in_app = schema.boolean():optional(),
            push = schema.boolean():optional(), email = schema.boolean():optional() }, { min = 1, max = 50 }),
    },
    returns = schema.array(Preference),
    handler = function(ctx) return notices.set_preferences(ctx.scope, ctx.user.id, ctx.body.rows) end,
})

route.post("/api/social/notices/devices", {
    summary = "Note a device for push",
    access = "user", module = "social",
    body = schema.object{
        platform = schema.enum{ "ios", "android", "web" },
        token = schema.string{ not_empty = true, max = 1024 },
    },
    returns = Done,
    handler = function(ctx)
        notices.add_device(ctx.scope, ctx.user.id, ctx.body.platform, ctx.body.token)
        return { success = true }
    end,
})

route.post("/api/notification/create", {
    summary = "A notice for a user (services of the platform)",
    access = { secret = "SOCKET_INTERNAL_API_KEY", header = "x-internal-api-key", message = "Invalid internal API key" },
    tag = "social", idempotent = false,
    body = schema.object{
        title = schema.string{ not_empty = true, max = 255 },
        content = schema.string{ not_empty = true, max = 10000 },
        type = schema.enum{ "IN_APP", "PUSH", "SYSTEM" }:default("IN_APP"),
        userId = schema.uuid{ on_bad = 404, what = "User" },
        templateId = schema.string{ max = 255 }:optional():describe("taken and not used: templates are the sender's"),
        metadata = schema.map(schema.any(), { max = 50 }):optional():describe("flat: texts, numbers, booleans and null"),
        channels = schema.array(schema.string{ max = 50 }, { max = 20 }):optional(),
        priority = schema.string{ max = 50 }:optional(),
    },
    returns = schema.object({ success = schema.boolean(),
        id = schema.uuid():nullable():describe("null where the recipient wants no such notice in the app") }),
    handler = function(ctx)
        return json.object({ "success", "id" }, { success = true, id = notices.create(ctx.scope, ctx.body) or null })
    end,
})
