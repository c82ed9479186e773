-- The hub without sockets: subscribers are tables that note what they are told.
local json = require("core.json")
local redis = require("core.redis")
local sched = require("core.sched")
local uuid = require("core.uuid")
local hub = require("kasma.hub")
local invalidate = require("kasma.invalidate")
local eventually = require("spec.waiting")

hub.channel("spec:room", { authorize = function(who, id) return who.rooms and who.rooms[id] == true end })

local T, A = "hub_spec", "app"

local Ear = {}
Ear.__index = Ear
function Ear:subscribed(_, position) self.position = position end
function Ear:event(_, _, id) self.ids[#self.ids + 1] = id or "-" end
function Ear:reset() self.ids[#self.ids + 1] = "reset" end
function Ear:revoked(channel) self.lost = channel end
function Ear:slow() self.too_slow = true end

local function ear(tenant, user) return setmetatable({ who = { tenant = tenant or T, app = A, user_id = user or "u" }, ids = {} }, Ear) end

local function room() return "spec:room:" .. uuid.v7() end

local function listen(channel, since, tenant, user)
    local one = ear(tenant, user)
    hub.subscribe(one, channel, since)
    eventually(function() return one.position end)
    return one
end

describe("hub", function()
    invalidate.start()

    it("asks the kind of a channel who may listen; what nobody registered is closed", function()
        assert.is_true(hub.may({ rooms = { a = true } }, "spec:room:a"))
        assert.is_false(hub.may({ rooms = { a = true } }, "spec:room:b"))
        assert.is_false(hub.may({ rooms = { a = true } }, "spec:hall:a"))
        for _, name in ipairs{ "", "a", ":", "spec:room:", ":a", "spec:room:a b", "spec:room:a:b:", "Spec:room:a",
            ("a"):rep(300) .. ":b" } do
            assert.is_false(hub.is_channel(name), name)
            assert.is_false(hub.may({ rooms = {} }, name))
        end
    end)

    it("delivers to all local listeners, once and in order, and to nobody of another tenant", function()
        local channel = room()
        local one, two, foreign = listen(channel), listen(channel), listen(channel, nil, "hub_spec2")
        local ids = {}
        for n = 1, 50 do ids[n] = hub.publish(T, A, channel, "spec.event", { n = n }) end
        eventually(function() return #one.ids == 50 and #two.ids == 50 end)
        assert.same(ids, one.ids)
        assert.same(ids, two.ids)
        assert.same({}, foreign.ids)
        for _, each in ipairs{ one, two, foreign } do assert.is_true(hub.unsubscribe(each, channel)) end
        assert.is_false(hub.unsubscribe(one, channel))
    end)

    it("leaves no trace of a whisper", function()
        local channel = room()
        local one = listen(channel)
        hub.whisper(T, A, channel, "typing", { user_id = "u" })
        eventually(function() return one.ids[1] end)
        assert.same({ "-" }, one.ids)
        local late = listen(channel, one.position)
        local id = hub.publish(T, A, channel, "spec.event", { n = 1 })
        eventually(function() return late.ids[1] end)
        assert.same({ id }, late.ids)
        hub.unsubscribe(one, channel)
        hub.unsubscribe(late, channel)
    end)

    it("keeps 200 events for ten minutes, under tenant and app", function()
        local channel = room()
        for n = 1, 210 do hub.publish(T, A, channel, "spec.event", { n = n }) end
        local key = T .. ":" .. A .. ":rt:" .. channel
        assert.equal(200, redis.call("XLEN", key))
        local left = redis.call("PTTL", key)
        assert.is_true(left > 590000 and left <= 600000)
    end)

    it("resets where the stream has gone, and where a position is from a time to come", function()
        local channel = room()
        local one = listen(channel)
        hub.unsubscribe(one, channel)
        redis.call("DEL", T .. ":" .. A .. ":rt:" .. channel)
        local gone = listen(channel, one.position)
        eventually(function() return gone.ids[1] end)
        assert.same({ "reset" }, gone.ids)
        local ahead = listen(channel, "99999999999999-0")
        eventually(function() return ahead.ids[1] end)
        assert.same({ "reset" }, ahead.ids)
        hub.unsubscribe(gone, channel)
        hub.unsubscribe(ahead, channel)
    end)

    it("catches up after the connection to Redis was lost", function()
        local channel = room()
        local one, two = listen(channel), listen(channel)
        local ids = { hub.publish(T, A, channel, "spec.event", { n = 1 }) }
        eventually(function() return #one.ids == 1 and #two.ids == 1 end)
        -- Every pub/sub connection is cut, and what is published meanwhile goes past it.
        redis.call("CLIENT", "KILL", "TYPE", "pubsub")
        for n = 2, 20 do ids[n] = hub.publish(T, A, channel, "spec.event", { n = n }) end
        local three = listen(channel, ids[10])
        eventually(function() return #one.ids >= 20 and #two.ids >= 20 and #three.ids >= 10 end)
        ids[21] = hub.publish(T, A, channel, "spec.event", { n = 21 })
        eventually(function() return #one.ids >= 21 and #two.ids >= 21 and #three.ids >= 11 end)
        assert.same(ids, one.ids)
        assert.same(ids, two.ids)
        local tail = {}
        for n = 11, 21 do tail[#tail + 1] = ids[n] end
        assert.same(tail, three.ids)
        for _, each in ipairs{ one, two, three } do hub.unsubscribe(each, channel) end
    end)

    it("ends a user's subscription when it is revoked, and no other's", function()
        local channel = room()
        local one, two = listen(channel, nil, nil, "u1"), listen(channel, nil, nil, "u2")
        hub.revoke(T, A, channel, "u1")
        assert.equal(channel, one.lost)
        assert.is_nil(two.lost)
        local id = hub.publish(T, A, channel, "spec.event", json.object({}, {}))
        eventually(function() return two.ids[1] end)
        assert.same({ id }, two.ids)
        assert.same({}, one.ids)
        hub.unsubscribe(two, channel)
    end)

    it("lets a client that does not take what it missed go, instead of keeping what comes for it", function()
        local channel = room()
        local first = listen(channel)
        hub.publish(T, A, channel, "spec.event", { n = 0 })
        local slow = ear()
        local free = sched.semaphore(1)
        free:acquire()
        slow.room = function() free:with(function() end) end
        hub.subscribe(slow, channel, first.position)
        eventually(function() return slow.position end)
        for _ = 1, 1100 do hub.whisper(T, A, channel, "spec.event", { n = 1 }) end
        eventually(function() return slow.too_slow end)
        hub.unsubscribe(slow, channel)
        hub.unsubscribe(first, channel)
        free:release()
    end)

    it("refuses an event that could never be published when it is written, not in the relay", function()
        local scope = { tenant = T, app = A }
        local statements = {}
        local function status(channel, event, payload)
            local ok, err = pcall(hub.append, statements, scope, channel, event, payload)
            return ok and 200 or err.status
        end
        assert.equal(413, status(room(), "spec.event", { text = ("x"):rep(70000) }))
        assert.equal(400, status("no channel", "spec.event", {}))
        assert.equal(400, status(room(), "spec\nevent", {}))
        assert.equal(400, status(room(), "spec\255", {}))
        assert.equal(0, #statements)
        assert.equal(200, status(room(), "spec.event", { n = 1 }))
        assert.equal(1, #statements)
    end)
end)
