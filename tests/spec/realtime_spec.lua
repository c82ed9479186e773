-- Connections to the hub without sockets: what a right that ends in an unlucky moment comes to.
local crypto = require("core.crypto")
local json = require("core.json")
local redis = require("core.redis")
local sched = require("core.sched")
require("kasma.boot").load()
local hub = require("kasma.hub")
local invalidate = require("kasma.invalidate")
local users = require("modules.iam.users")
local realtime = require("modules.realtime.service")
local eventually = require("spec.waiting")

local members = {} -- who may listen to a room
local while_asked -- what happens between the look at it and the answer
hub.channel("spec:unlucky", { authorize = function(who, id)
    local may = members[id] == who.user_id
    if while_asked then while_asked() end
    return may
end })

local words = 0
invalidate.on("rt_revoke", function() words = words + 1 end)

-- Says that somebody's right has ended, and comes back when the word has gone by: here, and by Redis.
local function revoke(channel, user)
    local before = words
    hub.revoke("MASTER", "MASTER", channel, user)
    eventually(function() return words >= before + 2 end)
end

-- A client that notes what it is told.
local function connect(user)
    local client = { said = {} }
    local function send(_, text)
        client.said[#client.said + 1] = type(text) == "string" and json.decode(text) or { type = "event" }
        return true
    end
    local socket = { send = send, close = function(_, code) client.code = code end, queued = function() return 0 end }
    local options = realtime.websocket{ tenant = "MASTER", app = "MASTER", user = { id = user, sub = user, kind = "user", via = "bearer" } }
    options.opened(options.state, socket)
    function client.say(frame) options.message(options.state, json.encode(frame)) end
    function client.leave() options.closed(options.state) end
    function client.heard(kind)
        return eventually(function()
            for _, frame in ipairs(client.said) do
                if frame.type == kind then return frame end
            end
        end)
    end
    return client
end

describe("a connection", function()
    invalidate.start()
    local user

    setup(function()
        user = users.provision({ tenant = "MASTER", app = "MASTER", actor_kind = "system" }, { email = "hub" .. crypto.random_hex(6)
            .. "@example.test", password = crypto.random_hex(8), display_name = "hub", user_type = "GENERAL_0", role_keys = {} }).id
        -- Until the connection listens, words by Redis go past it.
        local listens = false
        invalidate.on("spec_listens", function() listens = true end)
        eventually(function()
            redis.call("PUBLISH", "kasma:invalidate", "spec_listens:x")
            return listens
        end)
    end)

    after_each(function() while_asked = nil end)

    it("is not left with a channel whose right ended while it was asked for", function()
        local id = crypto.random_hex(8)
        local channel = "spec:unlucky:" .. id
        members[id] = user
        local client = connect(user)
        while_asked = function()
            while_asked = nil
            members[id] = nil
            revoke(channel, user)
        end
        client.say{ type = "subscribe", channel = channel }
        assert.same({ channel, "revoked" }, { client.heard("unsubscribed").channel, client.heard("unsubscribed").reason })
        assert.same({}, hub.subscribers("MASTER", "MASTER", channel))
        client.leave()
    end)

    it("keeps a channel when another's right ended meanwhile", function()
        local id = crypto.random_hex(8)
        local channel = "spec:unlucky:" .. id
        members[id] = user
        local client, looks = connect(user), 0
        while_asked = function()
            looks = looks + 1
            if looks == 1 then revoke(channel, "somebody else") end
        end
        client.say{ type = "subscribe", channel = channel }
        client.heard("subscribed")
        eventually(function() return looks >= 2 end)
        sched.sleep(0)
        assert.equal(1, #hub.subscribers("MASTER", "MASTER", channel))
        client.leave()
    end)
end)
