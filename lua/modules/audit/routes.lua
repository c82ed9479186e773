-- The audit as HTTP sees it: the sign-in log, and what staff did, newest first.
local crypto = require("core.crypto")
local json = require("core.json")
local audit = require("kasma.audit")
local errors = require("kasma.errors")
local null = require("kasma.null")
local route = require("kasma.route")
local schema = require("kasma.schema")
local store = require("modules.audit.store")

route.get("/auth/logs/login", {
    summary = "The sign-in log, newest first; without audit.read one's own",
    access = "user", account = true, tag = "audit", no_store = true,
    query = schema.page{ user_id = schema.uuid():optional(), action = schema.string{ max = 100 }:optional() },
    returns = schema.object({ success = schema.boolean(), data = schema.array(schema.any()), total = schema.integer(),
        page = schema.integer(),
        limit = schema.integer(), totalPages = schema.integer() }),
    handler = function(ctx)
        local q = ctx.query
        local user_id = ctx.may("audit.read") and q.user_id or (not ctx.may("audit.read") and ctx.user.id) or nil
        local rows, total = store.sign_ins(ctx.tenant, user_id, q.action, q.limit, (q.page - 1) * q.limit)
        if user_id ~= ctx.user.id then
            audit.write(ctx.scope, { action = "sign_ins.read", entity_type = "user", entity_id = user_id or "list" })
        end
        local data = json.array({})
        for i, row in ipairs(rows) do
            data[i] = { id = row.id, user_id = row.user_id or null, action = row.action, target = row.target or null,
                metadata = row.metadata and next(row.metadata) and json.encode(row.metadata) or null, created_at = row.created_at }
        end
        return json.object({ "success", "data", "total", "page", "limit", "totalPages" }, { success = true, data = data, total = total,
            page = q.page, limit = q.limit, totalPages = math.ceil(total / q.limit) })
    end,
})

local Entry = schema.object({ id = schema.uuid(), action = schema.string(), outcome = schema.string() }, { name = "AuditEntry",
    open = true })

local function view(row, body)
    body = body or {}
    return { id = row.id, created_at = row.created_at, action = row.action, outcome = row.outcome, actor_id = row.actor_id or null,
        entity_type = row.entity_type or null, entity_id = row.entity_id or null, actor = body.actor or null, before = body.before or null,
        after = body.after or null, request = body.request or null, seq = body.seq or null, hash = body.hash or null,
        prev_hash = body.prev_hash or null }
end

-- A cursor is the place of the last row, in a form that nobody need understand.
local function cursor_of(row) return (crypto.base64url(row.created_at .. "|" .. row.id)) end

local function place_of(cursor)
    if not cursor then return nil end
    local padded = cursor:gsub("-", "+"):gsub("_", "/")
    local text = crypto.unbase64(padded .. ("="):rep((4 - #padded % 4) % 4))
    local at, id = (text or ""):match("^(.-)|(.+)$")
    if not at or not schema.is_date(at) or not schema.is_uuid(id) then errors.validation{ "cursor is not valid" } end
    return { at = at, id = id }
end

local Filters = {
    actor_id = schema.uuid():optional(), action = schema.string{ max = 150 }:optional(),
        entity_type = schema.string{ max = 100 }:optional(),
    entity_id = schema.string{ max = 255 }:optional(), from = schema.date():optional(), to = schema.date():optional(),
}

local function filters(more)
    local all = {}
    for name, member in pairs(Filters) do all[name] = member end
    for name, member in pairs(more) do all[name] = member end
    return schema.object(all)
end

route.get("/audit/logs", {
    summary = "What staff, keys and accounts did, newest first",
    access = { permission = "audit.read" }, tag = "audit", no_store = true,
    query = filters{ cursor = schema.string{ max = 200 }:optional(), limit = schema.integer{ min = 1, cap = 100 }:default(20) },
    returns = schema.object({ success = schema.boolean(), data = schema.array(Entry), next_cursor = schema.string():nullable() },
        { open = true }),
    handler = function(ctx)
        local q = ctx.query
        local rows = store.events(ctx.tenant, q, place_of(q.cursor), q.limit)
        local data, ids = json.array({}), {}
        for i, row in ipairs(rows) do ids[i] = row.id end
        local bodies = audit.bodies(ctx.tenant, ids)
        for i, row in ipairs(rows) do data[i] = view(row, bodies[row.id]) end
        local following = #rows == q.limit and cursor_of(rows[#rows]) or nil
        if following then ctx.set_header("X-Next-Cursor", following) end
        return { success = true, data = data, next_cursor = following or null }
    end,
})

route.get("/audit/logs/:id", {
    summary = "One audit event with its body",
    access = { permission = "audit.read" }, tag = "audit", no_store = true,
    params = { id = schema.uuid() },
    returns = schema.object({ success = schema.boolean(), event = Entry }, { open = true }),
    handler = function(ctx)
        local row = store.event(ctx.tenant, ctx.params.id)
        if not row then errors.not_found("Audit event not found") end
        return { success = true, event = view(row, audit.bodies(ctx.tenant, { row.id })[row.id]) }
    end,
})

local PAGE = 200

-- Walks the index by id, so that the ten-thousandth page costs what the first does, and holds one page at a time. A write waits
-- while the client is slow, and a client that has gone ends the walk.
local function export(tenant, q, w)
    local after
    repeat
        local rows = store.events_by_id(tenant, q, after, PAGE)
        local ids, lines = {}, {}
        for i, row in ipairs(rows) do ids[i] = row.id end
        local bodies = audit.bodies(tenant, ids)
        for i, row in ipairs(rows) do lines[i] = json.encode(view(row, bodies[row.id])) end
        if #lines > 0 and not w:write(table.concat(lines, "\n") .. "\n") then return end
        after = rows[#rows] and rows[#rows].id
    until #rows < PAGE
end

route.get("/audit/export", {
    summary = "Audit events as NDJSON, newest first",
    access = { permission = "audit.export" }, tag = "audit", timeout_ms = 3600000,
    query = filters{},
    returns = { [200] = { description = "one event a line", content_type = "application/x-ndjson" } },
    handler = function(ctx)
        local q = ctx.query
        audit.write(ctx.scope, { action = "audit.export", entity_type = "audit", entity_id = "export", after = q })
        local w = errors.check(ctx.req:stream(200, { ["Content-Type"] = "application/x-ndjson; charset=utf-8",
            ["Cache-Control"] = "no-store", ["Content-Disposition"] = 'attachment; filename="audit.ndjson"' }))
        export(ctx.tenant, q, w)
        w:close()
        return route.ANSWERED
    end,
})
