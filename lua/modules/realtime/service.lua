-- Connections to the hub: one object per WebSocket or event stream, without a coroutine of its own. It knows who is behind it,
-- until when that holds and what it listens to. What ends a right ends the connection or the subscription at once: a session
-- that ends, a key that is revoked, a membership or a role that is taken away or whose time is over, a tenant that is closed, a
-- token that expires. A right that ends between the question and the subscription is seen too: whoever subscribes while a word of
-- changed rights comes in is asked about once more.
local config = require("core.config")
local crypto = require("core.crypto")
local json = require("core.json")
local push = require("core.push")
local redis = require("core.redis")
local sched = require("core.sched")
local time = require("core.time")
local uuid = require("core.uuid")
local access = require("kasma.access")
local auth = require("kasma.auth")
local errors = require("kasma.errors")
local hub = require("kasma.hub")
local invalidate = require("kasma.invalidate")
local log = require("kasma.log")
local tenants = require("kasma.tenant")
local web = require("kasma.web")

local M = {}

M.unknown_channel = errors.declare{ code = "unknown_channel", status = 403, message = "There are no channels of this kind here",
    cause = "no feature of this server publishes on channels of that kind, so that nobody can be allowed to listen",
    cure = "docs/realtime.md lists the kinds" }

local CHANNELS_MAX = 100
local FRAMES_A_SECOND, FRAMES_BURST = 20, 40
local WEBSOCKET_PING_MS, EVENTS_PING_MS = 25000, 15000
local AUTH_MS, PRESENCE_MS, REFRESH_MS = 10000, 60000, 20000
local ROOM = 262144 -- bytes queued above which a replay waits
local TICKET_MS = 30000

local connections, connection_count = {}, 0
local changes = 0 -- words of changed rights that have come in
local check_again

---@class kasma.Connection
---@field id string
---@field kind "websocket"|"events"
---@field who kasma.Who|nil nil until it has authenticated
---@field socket any
---@field channels table<string, boolean>
local Connection = {}
Connection.__index = Connection

-- Presence ------------------------------------------------------------------------------------------------------------------

-- KEYS[1] = a user's connections, each with the time (real ms) at which it is forgotten; ARGV = now, id, until, how many may
-- be, key's life. The oldest beyond that are answered: ids are in the order of time.
local ENTER = [[
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ARGV[1])
redis.call('ZADD', KEYS[1], ARGV[3], ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[5])
local over = redis.call('ZCARD', KEYS[1]) - tonumber(ARGV[4])
if over <= 0 then return {} end
local all, out = redis.call('ZRANGE', KEYS[1], 0, -1), {}
table.sort(all)
for i = 1, over do
  redis.call('ZREM', KEYS[1], all[i])
  out[i] = all[i]
end
return out]]

local function presence_key(tenant, app, user_id) return tenant .. ":" .. app .. ":presence:" .. user_id end

local function presence_of(connection)
    local who = connection.who
    return presence_key(who.tenant, who.app, who.user_id)
end

-- Redis away: nobody is counted, nobody is turned away.
local function enter(connection)
    local now = time.real()
    local evicted = redis.eval(ENTER, { presence_of(connection) }, { tostring(now), connection.id, tostring(now + PRESENCE_MS),
        tostring(config.get("REALTIME_CONNECTIONS")), tostring(PRESENCE_MS) })
    for _, id in ipairs(evicted or {}) do invalidate.send("rt_close", id) end
    if not connections[connection] then redis.call("ZREM", presence_of(connection), connection.id) end -- it has gone meanwhile
    -- What ended between the look at the credential and this connection's place in the list was told to nobody. Redis away: asked
    -- when it is back.
    local ok, holds = pcall(auth.still, connection.who.identity)
    if ok and not holds then connection:close(1008, connection.who.identity.kind == "key" and "key ended" or "session ended") end
    if changes ~= connection.seen then check_again(function(c) return c == connection end) end
end

--- Which of these users have a connection open, in any process.
---@param tenant string
---@param app string
---@param user_ids string[]
---@return table<string, boolean>
function M.online(tenant, app, user_ids)
    local commands, now = {}, tostring(time.real())
    for i, id in ipairs(user_ids) do commands[i] = { "ZCOUNT", presence_key(tenant, app, id), now, "+inf" } end
    local found = {}
    if #commands == 0 then return found end
    local answers = errors.check(redis.pipeline(commands))
    for i, id in ipairs(user_ids) do found[id] = type(answers[i]) == "number" and answers[i] > 0 end
    return found
end

local function refresh_presence()
    local commands, now = {}, time.real()
    local function send()
        if #commands > 0 then redis.pipeline(commands) end
        commands = {}
    end
    -- A copy: sending waits, and connections come and go meanwhile.
    local open = {}
    for connection in pairs(connections) do
        if connection.who then open[#open + 1] = connection end
    end
    for _, connection in ipairs(open) do
        if connections[connection] then
            local key = presence_of(connection)
            commands[#commands + 1] = { "ZADD", key, tostring(now + PRESENCE_MS), connection.id }
            commands[#commands + 1] = { "PEXPIRE", key, tostring(PRESENCE_MS) }
            if #commands >= 500 then send() end
        end
    end
    send()
end

-- What goes out -------------------------------------------------------------------------------------------------------------

local function frame(kind, members)
    members.type = kind
    return json.encode(members)
end

function Connection:say(kind, members) return self.socket:send(frame(kind, members)) end

function Connection:fail(code, message, channel) self:say("error", { code = code, message = message, channel = channel }) end

function Connection:close(code, reason)
    if self.socket then self.socket:close(code, reason) end
end

-- The positions of all channels of an event stream, in the order in which it asked for them.
local function positions_of(connection)
    local list = {}
    for i, channel in ipairs(connection.order) do list[i] = connection.positions[channel] or "-" end
    return table.concat(list, ",")
end

function Connection:subscribed(channel, position)
    if self.kind == "websocket" then return self:say("subscribed", { channel = channel, position = position }) end
    self.positions[channel] = self.positions[channel] or position
    local text = frame("subscribed", { channel = channel, position = position })
    return self.socket:send(push.message(text, "subscribed"), positions_of(self))
end

function Connection:event(channel, message, id)
    if self.kind == "websocket" then return self.socket:send(message) end
    if id then self.positions[channel] = id end
    return self.socket:send(message, positions_of(self))
end

function Connection:reset(channel, position)
    local text = frame("event", { channel = channel, event = "reset", payload = json.object({}, {}), id = position, ts = time.now() })
    return self:event(channel, push.message(text, "reset"), position)
end

-- One waits at a time: several channels may be catching up at once.
function Connection:room()
    if self.socket:queued() <= ROOM then return end
    self.lock = self.lock or sched.semaphore(1)
    self.lock:with(self.socket.room, self.socket, ROOM)
end

function Connection:slow() self:close(1013, "slow reader") end

function Connection:revoked(channel)
    self.channels[channel] = nil
    self.channel_count = self.channel_count - 1
    if self.kind == "websocket" then
        self:say("unsubscribed", { channel = channel, reason = "revoked" })
    else
        local text = frame("unsubscribed", { channel = channel, reason = "revoked" })
        self.socket:send(push.message(text, "unsubscribed"), positions_of(self))
    end
end

-- Who ----------------------------------------------------------------------------------------------------------------------

local function who_of(tenant, app, identity)
    return { tenant = tenant, app = app, user_id = identity.id, identity = identity }
end

-- Whether the caller still may be in the tenant, as the route pipeline decides it.
local function belongs(who)
    local tenant = tenants.by_key(who.tenant)
    if not tenant or not tenant.is_active then return false end
    if who.identity.kind == "key" then return who.identity.tenant_key == who.tenant end
    local mine = access.of(who.tenant, who.user_id)
    return mine.member or access.allows(mine.platform, "tenants.switch")
end

-- Until when the roles hold by which it listens to what is not its own: the first end among them.
local function note_end(connection)
    local who, until_ms = connection.who, nil
    for channel in pairs(connection.channels) do
        if not hub.is_own(channel) and who.identity.kind == "user" then
            until_ms = access.of(who.tenant, who.user_id).until_ms
            break
        end
    end
    connection.roles_end = until_ms
end

local function welcome(connection, identity)
    connection.who = who_of(connection.tenant, connection.app, identity)
    connection.expires_at = identity.expires_at
    sched.spawn(enter, connection)
end

-- What a browser carries by itself must come from a page of ours.
local function check_origin(ctx)
    if ctx.user and ctx.user.via == "cookie" and web.is_cross_site(ctx.req, ctx.app) then
        errors.forbidden{ message = "Origin is not allowed", code = "cross_site" }
    end
    if ctx.stranger then errors.forbidden{ message = "You do not belong to this tenant", code = "not_a_member" } end
    if ctx.user and ctx.user.restricted then
        errors.forbidden{ message = "Password change required", code = "password_change_required" }
    end
end

local function new(ctx, kind)
    return setmetatable({ id = uuid.v7(), kind = kind, tenant = ctx.tenant, app = ctx.app, channels = {}, channel_count = 0,
        opened_us = time.mono(), seen = changes }, Connection)
end

local function opened(connection, socket)
    connection.socket = socket
    connections[connection] = true
    connection_count = connection_count + 1
    if connection.identity then
        welcome(connection, connection.identity)
        connection.identity = nil
    end
end

local function closed(connection)
    if not connections[connection] then return end
    connections[connection] = nil
    connection_count = connection_count - 1
    for channel in pairs(connection.channels) do hub.unsubscribe(connection, channel) end
    connection.channels, connection.channel_count = {}, 0
    if connection.who then redis.call("ZREM", presence_of(connection), connection.id) end
end

-- Frames -------------------------------------------------------------------------------------------------------------------

local handlers = {}

function handlers.ping(connection) connection:say("pong", {}) end

function handlers.auth(connection, frame_)
    -- A secret key may be bound to addresses: it belongs into the handshake.
    local token = type(frame_.token) == "string" and frame_.token:sub(1, 4) ~= "ksk_" and frame_.token or ""
    local ok, identity = pcall(auth.of_token, token)
    if not ok then
        local code = errors.is(identity) and identity.status or 503
        connection:fail(code, errors.is(identity) and identity.message or "Service temporarily unavailable")
        if not connection.who and code == 401 then connection:close(1008, "not authenticated") end
        return
    end
    if connection.who and connection.who.user_id ~= identity.id then return connection:fail(403, "The connection is another user's") end
    local asked, member = pcall(belongs, who_of(connection.tenant, connection.app, identity))
    if not asked then return connection:fail(503, "Service temporarily unavailable") end
    if identity.restricted or not member then
        connection:fail(403, "You do not belong to this tenant")
        return connection:close(1008, "not a member")
    end
    if connection.who then
        connection.who.identity, connection.expires_at = identity, identity.expires_at
    else
        welcome(connection, identity)
    end
    connection:say("authenticated", { user_id = identity.id, expires_at = identity.expires_at })
end

function handlers.subscribe(connection, frame_)
    local channel, since = frame_.channel, frame_.since
    if since == json.null then since = nil end
    if not hub.is_channel(channel) then return connection:fail(400, "channel is not valid") end
    if since ~= nil and not hub.is_position(since) then return connection:fail(400, "since is not valid", channel) end
    if not connection.channels[channel] and connection.channel_count >= CHANNELS_MAX then
        return connection:fail(429, "Too many channels", channel)
    end
    if not hub.has_kind(channel) then return connection:fail(403, M.unknown_channel.message, channel) end
    local seen = changes
    local ok, allowed = pcall(hub.may, connection.who, channel)
    if not ok then return connection:fail(503, "Service temporarily unavailable", channel) end
    if not allowed then return connection:fail(403, "Forbidden resource", channel) end
    if not connections[connection] then return end -- it has gone while we asked
    if not connection.channels[channel] then
        connection.channels[channel] = true
        connection.channel_count = connection.channel_count + 1
    end
    hub.subscribe(connection, channel, since)
    pcall(note_end, connection)
    if changes ~= seen then check_again(function(c) return c == connection end) end
end

function handlers.unsubscribe(connection, frame_)
    local channel = frame_.channel
    if type(channel) ~= "string" or not connection.channels[channel] then return connection:fail(404, "Not subscribed", channel) end
    connection.channels[channel] = nil
    connection.channel_count = connection.channel_count - 1
    hub.unsubscribe(connection, channel)
    connection:say("unsubscribed", { channel = channel, reason = "asked" })
end

function handlers.typing(connection, frame_)
    local channel = frame_.channel
    if type(channel) ~= "string" or not connection.channels[channel] then return connection:fail(404, "Not subscribed", channel) end
    if channel:sub(1, 5) ~= "chat:" then return connection:fail(403, "Forbidden resource", channel) end
    hub.whisper(connection.tenant, connection.app, channel, "typing", { user_id = connection.who.user_id })
end

-- A bucket of frames, filled again as time goes by.
local function may_speak(connection)
    local now = time.mono()
    local left = math.min(FRAMES_BURST, (connection.frames or FRAMES_BURST) + (now - (connection.spoke_us or now)) / 1e6 * FRAMES_A_SECOND)
    connection.spoke_us, connection.frames = now, left - 1
    return left >= 1
end

local function message(connection, text)
    if not may_speak(connection) then return connection:close(1008, "too many frames") end
    local frame_ = json.decode(text)
    if type(frame_) ~= "table" or json.is_array(frame_) then return connection:fail(400, "A frame is a JSON object") end
    local handler = type(frame_.type) == "string" and handlers[frame_.type]
    if not handler then return connection:fail(400, "type is not known") end
    if not connection.who and frame_.type ~= "auth" and frame_.type ~= "ping" then return connection:fail(401, "Access token required") end
    handler(connection, frame_)
end

-- Opening ------------------------------------------------------------------------------------------------------------------

-- At least two pings fit into the silence that ends a connection.
local function heartbeat(options, ping_ms)
    local silence_ms = tonumber(config.get("REALTIME_SILENCE_MS"))
    options.ping_ms, options.silence_ms = math.min(ping_ms, math.floor(silence_ms / 2.4)), silence_ms
    return options
end

--- Options of core.push for a WebSocket.
---@param ctx kasma.Context
---@return table
function M.websocket(ctx)
    check_origin(ctx)
    local connection = new(ctx, "websocket")
    connection.identity = ctx.user
    return heartbeat({ state = connection, opened = opened, message = message, closed = closed }, WEBSOCKET_PING_MS)
end

-- `a,b` -> list of distinct channels that the caller may hear.
local function wanted_channels(who, text)
    local list, seen = {}, {}
    for channel in text:gmatch("[^,]+") do
        if not hub.is_channel(channel) then errors.validation{ "channels is not valid" } end
        if not seen[channel] then
            seen[channel] = true
            list[#list + 1] = channel
        end
    end
    if #list == 0 or #list > CHANNELS_MAX then errors.validation{ "channels must hold 1 to 100 channels" } end
    for _, channel in ipairs(list) do
        if not hub.has_kind(channel) then M.unknown_channel() end
        if not hub.may(who, channel) then errors.forbidden("Forbidden resource") end
    end
    return list
end

local function event_stream(ctx, app, order, first, seen)
    local connection = new(ctx, "events")
    connection.app, connection.seen = app, seen
    connection.identity, connection.order, connection.positions = ctx.user, order, {}
    local positions = {}
    local last_id = ctx.req:header("last-event-id") or ctx.query.lastEventId
    if last_id and #last_id <= 8192 then
        local i = 0
        for position in (last_id .. ","):gmatch("([^,]*),") do
            i = i + 1
            if order[i] and hub.is_position(position) then
                positions[order[i]] = position
                connection.positions[order[i]] = position
            end
        end
    end
    local function open(self, socket)
        opened(self, socket)
        for _, channel in ipairs(order) do
            self.channels[channel] = true
            self.channel_count = self.channel_count + 1
            hub.subscribe(self, channel, positions[channel])
        end
        sched.spawn(pcall, note_end, self)
        if first then sched.spawn(first, socket) end
    end
    return heartbeat({ state = connection, opened = open, closed = closed }, EVENTS_PING_MS)
end

--- Options of core.push for an event stream.
---@param ctx kasma.Context
---@return table
function M.events(ctx)
    check_origin(ctx)
    local who, seen = who_of(ctx.tenant, ctx.app, ctx.user), changes
    local me = ctx.user.id
    local order = wanted_channels(who, ctx.query.channels or ("notice:user:" .. me .. ",feed:user:" .. me))
    return event_stream(ctx, ctx.app, order, nil, seen)
end

--- The same for a route of another module, which says what is listened to. What ends a session or a right ends it as well.
---@param ctx kasma.Context
---@param o {app: string, channels: string[], first: fun(socket: table)|nil} first: a task that runs once it listens
---@return table
function M.stream(ctx, o)
    check_origin(ctx)
    local who, seen = who_of(ctx.tenant, o.app, ctx.user), changes
    return event_stream(ctx, o.app, wanted_channels(who, table.concat(o.channels, ",")), o.first, seen)
end

-- Tickets: what a browser puts into a URL, where a token would be written into logs. One use, thirty seconds.

local function ticket_key(ticket) return "rt:ticket:" .. ticket end

--- A ticket that stands for the caller, here.
---@param ctx kasma.Context
---@return {ticket: string, expires_in: integer}
function M.ticket(ctx)
    local ticket = crypto.random_hex(32)
    local user = ctx.user
    local entry = { id = user.id, kind = user.kind, email = user.email, user_type = user.user_type, tenant_key = ctx.tenant,
        app_key = ctx.app, session_id = user.session_id, family_id = user.family_id, expires_at = user.expires_at, key = user.key,
        exp = time.now() + TICKET_MS }
    errors.check(redis.call("SET", ticket_key(ticket), json.encode(entry), "PX", tostring(TICKET_MS)))
    return { ticket = ticket, expires_in = math.floor(TICKET_MS / 1000) }
end

--- Who calls: the holder of the ticket in the query, else whoever the headers say.
---@param req table
---@return kasma.Identity|nil
function M.identify(req)
    local ticket = req:query_table().ticket
    if ticket == nil then return auth.identify(req) end
    if type(ticket) ~= "string" or #ticket ~= 64 or not ticket:find("^%x+$") then errors.unauthorized("Invalid or expired ticket") end
    local text, err = redis.call("GETDEL", ticket_key(ticket))
    if err then error(errors.from_store(err), 0) end
    local entry = type(text) == "string" and json.decode(text)
    if not entry or entry.exp <= time.now() then errors.unauthorized("Invalid or expired ticket") end
    entry.sub, entry.via = entry.id, "ticket"
    if entry.kind == "key" then entry.scopes = {} end -- a ticket is for listening
    -- The session or key may have ended in the ticket's thirty seconds.
    if not auth.still(entry) then errors.unauthorized("Invalid or expired ticket") end
    return entry
end

-- What ends them -------------------------------------------------------------------------------------------------------------

local function close_where(test, reason)
    for connection in pairs(connections) do
        if connection.who and test(connection) then connection:close(1008, reason) end
    end
end

invalidate.on("session", function(family_id)
    close_where(function(c) return c.who.identity.family_id == family_id end, "session ended")
end)

invalidate.on("key", function(owned_key)
    close_where(function(c) return c.who.identity.key == owned_key end, "key ended")
end)

invalidate.on("rt_close", function(id)
    for connection in pairs(connections) do
        if connection.id == id then connection:close(1008, "too many connections") end
    end
end)

-- Still a member, and of every channel? Asked when something of it has changed.
function check_again(test)
    local list = {}
    for connection in pairs(connections) do
        if connection.who and test(connection) then list[#list + 1] = connection end
    end
    if #list == 0 then return end
    sched.spawn(function()
        for _, connection in ipairs(list) do
            local ok, still = pcall(belongs, connection.who)
            if ok and not still then
                connection:close(1008, "not a member")
            elseif ok then
                local channels = {}
                for channel in pairs(connection.channels) do channels[#channels + 1] = channel end
                for _, channel in ipairs(channels) do
                    local asked, may = pcall(hub.may, connection.who, channel)
                    if asked and not may and connection.channels[channel] then
                        hub.unsubscribe(connection, channel)
                        connection:revoked(channel)
                    end
                end
                pcall(note_end, connection)
            else
                log.warn("a connection's rights could not be looked at", { error = tostring(still) })
            end
        end
    end)
end

for _, word in ipairs{ "access_user", "access_tenant", hub.REVOKED } do
    invalidate.on(word, function() changes = changes + 1 end)
end

invalidate.on("access_user", function(user_id) check_again(function(c) return c.who.user_id == user_id end) end)

local function listens_by_right(connection)
    for channel in pairs(connection.channels) do
        if not hub.is_own(channel) then return true end
    end
    return false
end

-- A role of the tenant grants something else now: that concerns only what is listened to by a right that a role may grant.
invalidate.on("access_tenant", function(tenant)
    check_again(function(c) return c.who.tenant == tenant and listens_by_right(c) end)
end)

-- Any setting of a tenant says this word: only whether it is open matters here.
invalidate.on("tenant", function(tenant)
    sched.spawn(function()
        local ok, row = pcall(tenants.by_key, tenant)
        if ok and (not row or not row.is_active) then close_where(function(c) return c.who.tenant == tenant end, "tenant closed") end
    end)
end)

-- Words may have been lost while Redis was away: every session and key is looked up again.
local function check_credentials()
    local sessions, others = {}, {}
    for connection in pairs(connections) do
        local identity = connection.who and connection.who.identity
        if identity then
            local list = identity.family_id and sessions or others
            list[#list + 1] = connection
        end
    end
    for from = 1, #sessions, 500 do
        local commands = {}
        for i = from, math.min(from + 499, #sessions) do
            commands[#commands + 1] = { "GET", auth.ended_key(sessions[i].who.identity.family_id) }
        end
        local answers = errors.check(redis.pipeline(commands))
        for i, answer in ipairs(answers) do
            if type(answer) == "string" then sessions[from + i - 1]:close(1008, "session ended") end
        end
    end
    for _, connection in ipairs(others) do
        if not auth.still(connection.who.identity) then connection:close(1008, "key ended") end
    end
end

invalidate.on_gap(function()
    changes = changes + 1
    check_again(function() return true end)
    sched.spawn(function()
        local ok, why = pcall(check_credentials)
        if not ok then log.warn("credentials of open connections could not be looked up", { error = tostring(why) }) end
    end)
end)

local function sweep()
    local now, mono = time.now(), time.mono()
    for connection in pairs(connections) do
        if not connection.who then
            if mono - connection.opened_us > AUTH_MS * 1000 then connection:close(1008, "not authenticated") end
        elseif connection.expires_at and connection.expires_at <= now then
            connection:close(1008, "token expired")
        elseif connection.roles_end and connection.roles_end <= now then
            connection.roles_end = nil -- noted anew by the look
            check_again(function(c) return c == connection end)
        end
    end
end

--- Starts the loops of a process that serves.
function M.start()
    sched.every(1000, sweep)
    sched.every(REFRESH_MS, function() pcall(refresh_presence) end)
end

--- Open connections of this process.
---@return integer
function M.count() return connection_count end

-- Channels that belong to one user; the other kinds are registered by their modules.
for _, kind in ipairs{ "notice:user", "feed:user", "order:user" } do
    hub.channel(kind, { own = true, authorize = function(who, id) return who.identity.kind == "user" and who.user_id == id end })
end

return M
