-- The realtime hub: channels, and who listens to them, in all processes.
--
-- Publishing runs one Redis script: the event goes into the channel's stream (the newest 200, for ten minutes after the last)
-- and out by pub/sub under the same id, so that the order of the stream is the order of delivery. A process subscribes to a
-- channel when its first local subscriber comes and leaves it with the last. An event is encoded once when it is published
-- and made into one message per process, whatever the number of its listeners.
--
-- Pub/sub is at most once; the stream makes it resumable; the database stays the truth. A subscriber that names the last id
-- it has seen gets what came after it, then what comes: the process listens first, then reads the stream, then hands out
-- what arrived in between, less what was read. The same is done for all subscribers of a channel after the connection to
-- Redis was lost. What the stream no longer holds is told by one `reset`: the client reads anew over HTTP.
--
-- Every key and every topic begins with tenant and app. Who may listen is decided by the kind of a channel (`notice:user`),
-- which its module registers; an unregistered kind is closed to everybody.
--
-- A subscriber is an object with
--   who                                  {tenant, app, user_id, identity}
--   subscribed(self, channel, position)  it listens from now on
--   event(self, channel, message, id)    a push.message; id is nil for what leaves no trace (typing)
--   reset(self, channel, position)       events were missed
--   room(self)                           waits while too much is queued for its client (may be absent)
--   slow(self)                           it does not take what it is given: end it
local json = require("core.json")
local metrics = require("core.metrics")
local push = require("core.push")
local redis = require("core.redis")
local sched = require("core.sched")
local time = require("core.time")
local errors = require("kasma.errors")
local invalidate = require("kasma.invalidate")
local log = require("kasma.log")
local outbox = require("kasma.outbox")
local remote = require("kasma.remote")
local texts = require("kasma.text")

local M = {}

local KEEP, KEEP_MS, PAYLOAD_MAX, EVENT_MAX, BUFFER_MAX = "200", "600000", 65536, 200, 1000

---@class kasma.Who
---@field tenant string
---@field app string
---@field user_id string
---@field identity kasma.Identity

-- KEYS[1] = stream and topic; ARGV = event and body, how many to keep, how long.
local PUBLISH = [[
local id = redis.call('XADD', KEYS[1], 'MAXLEN', ARGV[2], '*', 'e', ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('PUBLISH', KEYS[1], id .. ' ' .. ARGV[1])
return id]]

-- KEYS[1] = stream; ARGV = position or '', how many to keep, how long. Answers {newest id, 1 when events are lost, {id, text,
-- ...}}. Where there is no stream a mark is written, so that a position always is an entry: as long as the stream holds it,
-- or an older one, nothing after it is lost; when it does not, somebody must read anew.
local ATTACH = [[
local function newer(a, b)
  local am, as = string.match(a, '^(%d+)-(%d+)$')
  local bm, bs = string.match(b, '^(%d+)-(%d+)$')
  am, as, bm, bs = tonumber(am), tonumber(as), tonumber(bm), tonumber(bs)
  return am > bm or (am == bm and as > bs)
end
local since = ARGV[1]
local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
if #newest == 0 then
  local id = redis.call('XADD', KEYS[1], 'MAXLEN', ARGV[2], '*', 'm', '')
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  return {id, since == '' and 0 or 1, {}}
end
local last = newest[1][1]
if since == '' then return {last, 0, {}} end
local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1][1]
if newer(oldest, since) or newer(since, last) then return {last, 1, {}} end
local out = {}
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '(' .. since, '+')) do
  if entry[2][1] == 'e' then
    out[#out + 1] = entry[1]
    out[#out + 1] = entry[2][2]
  end
end
return {last, 0, out}]]

-- Names --------------------------------------------------------------------------------------------------------------------

local kinds = {}

--- Registers a kind of channel. `authorize(who, id)` says who may listen to `<kind>:<id>`; it may ask a store.
--- `own`: the right lies in who one is, and lasts as long as the connection; any other may end while it is used, and is asked for again
--- when roles have changed.
---@param kind string
---@param options {authorize: fun(who: kasma.Who, id: string): boolean, own: boolean|nil}
function M.channel(kind, options)
    assert(kind:find("^%l[%l_:]*%l$") and options.authorize, "hub.channel needs a kind and authorize")
    kinds[kind] = options
end

-- `chat:conversation:<id>` -> kind, id; nil when it is no channel's name.
local function parse(channel)
    if type(channel) ~= "string" or #channel > 200 then return nil end
    return channel:match("^(%l[%l_:]*%l):([%w_-]+)$")
end

---@param channel any
---@return boolean
function M.is_channel(channel) return parse(channel) ~= nil end

--- Whether the channel's kind is registered: nobody may listen to any other.
---@param channel string
---@return boolean
function M.has_kind(channel)
    local kind = parse(channel)
    return kind ~= nil and kinds[kind] ~= nil
end

--- Whether the right to a channel lies in who one is.
---@param channel string
---@return boolean
function M.is_own(channel)
    local kind = parse(channel)
    return kind ~= nil and kinds[kind] ~= nil and kinds[kind].own == true
end

--- Whether somebody may listen to a channel now. Raises when a store that must be asked is away.
---@param who kasma.Who
---@param channel string
---@return boolean
function M.may(who, channel)
    local kind, id = parse(channel)
    local registered = kind and kinds[kind]
    return registered ~= nil and registered.authorize(who, id) == true
end

---@param position any
---@return boolean
function M.is_position(position) return type(position) == "string" and #position <= 40 and position:find("^%d+%-%d+$") ~= nil end

local function key_of(tenant, app, channel) return tenant .. ":" .. app .. ":rt:" .. channel end

local function newer(a, b)
    local am, as = a:match("^(%d+)%-(%d+)$")
    local bm, bs = b:match("^(%d+)%-(%d+)$")
    am, bm = tonumber(am), tonumber(bm)
    return am > bm or (am == bm and tonumber(as) > tonumber(bs))
end

-- Publishing ---------------------------------------------------------------------------------------------------------------

-- Services name their events as they like (`orderUpdated`, `order:updated`, `order updated`): any line of text. Not what would end the
-- line of an event stream.
local function is_event_name(name)
    return type(name) == "string" and name ~= "" and #name <= EVENT_MAX and not name:find("[%z\1-\31\127]") and texts.is_plain(name)
end

-- A blank ends the name on the wire.
local function wire_name(name) return (name:gsub("[% ]", { ["%"] = "%25", [" "] = "%20" })) end
local function name_of(wire) return (wire:gsub("%%(2[05])", { ["20"] = " ", ["25"] = "%" })) end

-- What goes over the wire behind the id. Raises 400 or 413 for what cannot be an event.
local function encode(channel, event, payload)
    if not parse(channel) then errors.validation{ "channel is not valid" } end
    if not is_event_name(event) then errors.validation{ "event is not valid" } end
    local body = json.encode(payload)
    if #body > PAYLOAD_MAX then errors.raise(413, { message = "payload is too large" }) end
    return ('%s "channel":"%s","event":%s,"payload":%s,"ts":%d'):format(wire_name(event), channel, json.encode(event), body, time.now())
end

--- Sends an event to everybody who listens to the channel, in all processes. Raises 503 when Redis is away.
---@param tenant string
---@param app string
---@param channel string
---@param event string
---@param payload table
---@return string id position of the event in its channel
function M.publish(tenant, app, channel, event, payload)
    return errors.check(redis.eval(PUBLISH, { key_of(tenant, app, channel) }, { encode(channel, event, payload), KEEP, KEEP_MS }))
end

--- As publish, for what leaves no trace: it is not stored and has no id, and Redis away is no error.
---@param tenant string
---@param app string
---@param channel string
---@param event string
---@param payload table
function M.whisper(tenant, app, channel, event, payload)
    redis.call("PUBLISH", key_of(tenant, app, channel), "- " .. encode(channel, event, payload))
end

--- How many processes listen to a channel of each of these tenants. Redis away: none is known.
---@param tenants string[]
---@param app string
---@param channel string
---@return table<string, integer>
function M.audience(tenants, app, channel)
    local words, counts = { "PUBSUB", "NUMSUB" }, {}
    for i, tenant in ipairs(tenants) do words[i + 2] = key_of(tenant, app, channel) end
    local answer = #tenants > 0 and redis.call(unpack(words)) or {}
    for i = 1, #tenants do counts[tenants[i]] = tonumber(answer[2 * i]) or 0 end
    return counts
end

--- Statements that publish the event when the caller's transaction has committed, and hand it to the remote socket service
--- where one is configured. The event's name must be declared.
---@param statements table[]
---@param scope Scope
---@param channel string
---@param event string
---@param payload table
function M.append(statements, scope, channel, event, payload)
    -- What could never be published must fail here and not in the relay, where it would hold up the channel.
    encode(channel, event, payload)
    statements[#statements + 1] = outbox.row(scope, event, channel, payload)
    M.append_forward(statements, scope, channel, event, payload)
end

--- Statement that hands an event, which is published otherwise, to the remote socket service, where one is configured.
---@param statements table[]
---@param scope Scope
---@param channel string
---@param event string
---@param payload table
function M.append_forward(statements, scope, channel, event, payload)
    if not remote.url("SOCKET_SERVICE_URL") then return end
    statements[#statements + 1] = outbox.row(scope, "socket.forward", channel, { event = event, payload = payload })
end

--- Declares events that are published from the outbox: topic = the event's name, key = the channel.
---@param names string[]
function M.declare(names)
    for _, name in ipairs(names) do
        outbox.consumer(name, function(rows)
            for _, row in ipairs(rows) do
                local ok, why = pcall(M.publish, row.tenant_key, row.app_key, row.key, name, row.payload)
                if not ok and errors.is(why) and why.status < 500 then
                    log.error("an event cannot be published and is left out", { topic = name, key = row.key, id = row.id,
                        error = tostring(why) })
                elseif not ok then
                    error(why, 0)
                end
            end
        end)
    end
end

outbox.slow("socket.forward", function(row)
    local url = remote.url("SOCKET_SERVICE_URL")
    if not url then return end -- switched off since
    remote.post(url .. "/api/socket/publish", {}, { tenant_key = row.tenant_key, app_key = row.app_key, channel = row.key,
        event = row.payload.event, payload = row.payload.payload }, "the socket service")
end)

-- Listening ----------------------------------------------------------------------------------------------------------------

local topics, topic_count, listener_count = {}, 0, 0
local topic_gauge = metrics.gauge("kasma_realtime_channels", "Channels with a listener, added up over the processes.", {}, "sum")
local listener_gauge = metrics.gauge("kasma_realtime_subscriptions", "Subscriptions of clients.", {}, "sum")

local function measure(topics_by, listeners_by)
    topic_count, listener_count = topic_count + topics_by, listener_count + listeners_by
    topic_gauge:set(topic_count)
    listener_gauge:set(listener_count)
end

-- The text that went over the wire -> a message for any number of sockets.
local function message_of(id, text)
    local event, body = text:match("^([^ ]+) (.*)$")
    if not event then return nil end
    event = name_of(event)
    if id == "-" then return push.message('{"type":"event",' .. body .. "}", event) end
    return push.message('{"type":"event","id":"' .. id .. '",' .. body .. "}", event)
end

-- To everybody who is up to date. `after` is the position of one who joined later than the topic's last event; once a newer
-- one has gone out it is the same as for all others.
local function dispatch(topic, id, text)
    local message = message_of(id, text)
    if not message then return end
    if id == "-" then
        for subscriber, sub in pairs(topic.subs) do
            if sub.synced then subscriber:event(topic.channel, message, nil) end
        end
    else
        for subscriber, sub in pairs(topic.subs) do
            if sub.synced and (not sub.after or newer(id, sub.after)) then
                sub.after = nil
                subscriber:event(topic.channel, message, id)
            end
        end
        topic.last = id
    end
    message:free() -- the queues hold what they need of it
end

local function hear(topic, wire)
    local id, text = wire:match("^(%S+) (.*)$")
    if not id then return end
    for subscriber, sub in pairs(topic.subs) do
        local buffer = sub.buffer
        if buffer then
            buffer[#buffer + 1] = { id, text }
            -- A client that does not take what it missed cannot be given what comes either.
            if #buffer > BUFFER_MAX then
                sub.buffer = nil
                subscriber:slow()
            end
        end
    end
    if topic.buffer then
        topic.buffer[#topic.buffer + 1] = { id, text }
    else
        dispatch(topic, id, text)
    end
end

-- Reads the stream after `since`, trying until it answers or nobody wants it any more.
local function attach(topic, since, wanted)
    local pause = 100
    while wanted() do
        local answer = redis.eval(ATTACH, { topic.key }, { since or "", KEEP, KEEP_MS })
        if answer and wanted() then return answer[1], answer[2] == 1, answer[3] end
        if answer or sched.stopping() then return nil end
        sched.sleep(pause)
        pause = math.min(pause * 2, 5000)
    end
    return nil
end

local function give(topic, subscriber, sub, id, text)
    if subscriber.room then subscriber:room() end
    local message = topic.subs[subscriber] == sub and message_of(id, text)
    if not message then return end
    subscriber:event(topic.channel, message, id ~= "-" and id or nil)
    message:free()
end

-- Brings one new subscriber up to date.
local function sync(topic, subscriber, sub)
    if sub.syncing then return end
    sub.syncing, sub.buffer = true, {}
    local function wanted() return topic.subs[subscriber] == sub end
    local last, lost, entries = attach(topic, sub.since, wanted)
    sub.syncing = nil
    if not last then return end
    subscriber:subscribed(topic.channel, last)
    if lost then
        subscriber:reset(topic.channel, last)
    else
        for i = 1, #entries, 2 do give(topic, subscriber, sub, entries[i], entries[i + 1]) end
    end
    -- What arrives while this runs goes behind it: `room` may wait.
    local at = 1
    while sub.buffer and sub.buffer[at] do
        local id, text = sub.buffer[at][1], sub.buffer[at][2]
        if id == "-" or newer(id, last) then
            give(topic, subscriber, sub, id, text)
            if id ~= "-" then last = id end
        end
        at = at + 1
    end
    sub.buffer, sub.synced, sub.after = nil, true, last
    if not topic.last then topic.last = last end
end

-- Brings all who were up to date up to date again, after messages may have been lost.
local function repair(topic)
    if topic.buffer or not topic.last then return end
    topic.buffer = {}
    local last, lost, entries = attach(topic, topic.last, function() return topics[topic.key] == topic end)
    if last then
        if lost then
            for subscriber, sub in pairs(topic.subs) do
                if sub.synced then
                    sub.after = last
                    subscriber:reset(topic.channel, last)
                end
            end
            topic.last = last
        else
            for i = 1, #entries, 2 do dispatch(topic, entries[i], entries[i + 1]) end
        end
    end
    local waiting = topic.buffer
    topic.buffer = nil
    for _, entry in ipairs(waiting) do
        if entry[1] == "-" or newer(entry[1], topic.last) then dispatch(topic, entry[1], entry[2]) end
    end
end

local function on_live(topic, again)
    topic.live = true
    for subscriber, sub in pairs(topic.subs) do
        if not sub.synced then sched.spawn(sync, topic, subscriber, sub) end
    end
    if again then repair(topic) end
end

local function open(tenant, app, channel, key)
    local topic = { key = key, tenant = tenant, app = app, channel = channel, subs = {}, count = 0, live = false }
    local handle, err = redis.subscribe(key, function(wire) hear(topic, wire) end, function(again) on_live(topic, again) end)
    if not handle then error(errors.from_store(err), 0) end
    topic.handle = handle
    topics[key] = topic
    measure(1, 0)
    return topic
end

--- Listens; what follows comes by the subscriber's functions, from a task of its own. Whether it may is the caller's
--- question (`may`), asked before.
---@param subscriber table
---@param channel string
---@param since string|nil position after which to begin; nil: now
function M.subscribe(subscriber, channel, since)
    local who = subscriber.who
    local key = key_of(who.tenant, who.app, channel)
    local topic = topics[key] or open(who.tenant, who.app, channel, key)
    if not topic.subs[subscriber] then
        topic.count = topic.count + 1
        measure(0, 1)
    end
    local sub = { since = since }
    topic.subs[subscriber] = sub
    if topic.live then sched.spawn(sync, topic, subscriber, sub) end
end

---@param subscriber table
---@param channel string
---@return boolean it listened
function M.unsubscribe(subscriber, channel)
    local who = subscriber.who
    local key = key_of(who.tenant, who.app, channel)
    local topic = topics[key]
    if not topic or not topic.subs[subscriber] then return false end
    topic.subs[subscriber] = nil
    topic.count = topic.count - 1
    measure(0, -1)
    if topic.count == 0 then
        topics[key] = nil
        topic.handle:close()
        measure(-1, 0)
    end
    return true
end

--- The local subscribers of a channel. For those who end subscriptions.
---@param tenant string
---@param app string
---@param channel string
---@return table[]
function M.subscribers(tenant, app, channel)
    local topic, list = topics[key_of(tenant, app, channel)], {}
    for subscriber in pairs(topic and topic.subs or {}) do list[#list + 1] = subscriber end
    return list
end

local REVOKED = "rt_revoke"
M.REVOKED = REVOKED -- the word that says so, for who must look again

--- Ends a user's subscription to a channel in every process, at once: for whoever was a member and is none any more.
---@param tenant string
---@param app string
---@param channel string
---@param user_id string
function M.revoke(tenant, app, channel, user_id)
    invalidate.send(REVOKED, table.concat({ tenant, app, user_id, channel }, "|"))
end

invalidate.on(REVOKED, function(key)
    local tenant, app, user_id, channel = key:match("^([^|]*)|([^|]*)|([^|]*)|(.*)$")
    if not tenant then return end
    for _, subscriber in ipairs(M.subscribers(tenant, app, channel)) do
        if subscriber.who.user_id == user_id then
            M.unsubscribe(subscriber, channel)
            if subscriber.revoked then subscriber:revoked(channel) end
        end
    end
end)

return M
