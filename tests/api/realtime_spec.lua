local config = require("core.config")
local json = require("core.json")
local time = require("core.time")
local support = require("api.support")
local sockets = require("api.sockets")

local URL = support.url

-- The headers of a signed-in client, for a raw socket.
local function as(client, more)
    local jar = {}
    for name, value in pairs(client.cookies) do jar[#jar + 1] = name .. "=" .. value end
    local headers = { Cookie = table.concat(jar, "; ") }
    for name, value in pairs(client.headers) do headers[name] = value end
    for name, value in pairs(more or {}) do headers[name] = value end
    return headers
end

local service = support.client{ ["X-Internal-Api-Key"] = config.get("SOCKET_INTERNAL_API_KEY") }

local function publish(tenant, channel, event, payload)
    local answer = service:post("/api/socket/publish", { tenant_key = tenant.key, app_key = tenant.app, channel = channel, event = event,
        payload = payload or json.object({}, {}) })
    assert.equal(201, answer.status, answer.body)
    assert.is_true(answer.json.success)
    return answer.json.id
end

local function notices_of(client) return "notice:user:" .. client.user.id end

local open = {}
local function websocket(client, more, path)
    local socket, head, status = sockets.websocket(URL, path or "/ws", client and as(client, more) or more)
    open[#open + 1] = socket
    return socket, head, status
end
local function events(client, query, more)
    local socket, head, status = sockets.events(URL, "/api/social/realtime/events" .. (query or ""), client and as(client, more) or more)
    open[#open + 1] = socket
    return socket, head, status
end

describe("realtime", function()
    local shop = support.tenant()
    local shopper = support.shopper(shop)

    after_each(function()
        for _, socket in ipairs(open) do socket:close() end
        open = {}
    end)

    describe("the handshake", function()
        it("answers 101 on version 13 and 426 on any other", function()
            local _, head, status = websocket(shopper)
            assert.equal(101, status)
            assert.matches("\r\nSec%-WebSocket%-Accept: ", head)
            _, head, status = websocket(shopper, { ["Sec-WebSocket-Version"] = "8" })
            assert.equal(426, status)
            assert.matches("\r\nSec%-WebSocket%-Version: 13\r\n", head)
        end)

        it("is 400 for a plain request, also under /api", function()
            assert.equal(400, shopper:get("/ws").status)
            local _, _, status = websocket(shopper, nil, "/api/ws")
            assert.equal(101, status)
        end)

        it("refuses a bad credential, a stranger, and a page of nobody's", function()
            local _, _, status = websocket(nil, { Authorization = "Bearer " .. ("0"):rep(64) })
            assert.equal(401, status)
            local other = support.shopper(support.tenant())
            _, _, status = websocket(other, { ["X-Tenant-Kasma-Id"] = shop.key, ["X-App-Kasma-Id"] = shop.app })
            assert.equal(403, status)
            _, _, status = websocket(shopper, { Origin = "null" })
            assert.equal(403, status)
            _, _, status = websocket(shopper, { Origin = "https://shop.example.test" })
            assert.equal(101, status)
        end)

        it("takes tenant and app from the query, where a browser can send no header", function()
            local headers = as(shopper)
            headers["X-Tenant-Kasma-Id"], headers["X-App-Kasma-Id"] = nil, nil
            local socket, _, status = websocket(nil, headers, "/ws?tenant_key=" .. shop.key .. "&app_key=" .. shop.app)
            assert.equal(101, status)
            socket:subscribe(notices_of(shopper))
            publish(shop, notices_of(shopper), "notice.new", { n = 1 })
            assert.equal(1, socket:hear{ type = "event" }.payload.n)
            _, _, status = websocket(nil, headers, "/ws?tenant_key=no-such-tenant")
            assert.equal(403, status)
        end)
    end)

    describe("tickets", function()
        it("stand for their holder once", function()
            local ticket = shopper:post("/api/social/realtime/ticket")
            assert.equal(201, ticket.status)
            assert.equal(30, ticket.json.expires_in)
            local path = "/ws?ticket=" .. ticket.json.ticket
            local socket, _, status = websocket(nil, nil, path)
            assert.equal(101, status)
            socket:subscribe(notices_of(shopper))
            _, _, status = websocket(nil, nil, path)
            assert.equal(401, status)
            _, _, status = websocket(nil, nil, "/ws?ticket=" .. ("f"):rep(64))
            assert.equal(401, status)
        end)

        it("let nobody in whose session has signed out since, and outlive an exchange of its tokens", function()
            local user = support.shopper(shop)
            local function ticket()
                local answer = user:post("/api/social/realtime/ticket")
                assert.equal(201, answer.status)
                return "/ws?ticket=" .. answer.json.ticket
            end
            local exchanged, ended = ticket(), ticket()
            assert.equal(200, user:post("/auth/refresh").status)
            local socket, _, status = websocket(nil, nil, exchanged)
            assert.equal(101, status)
            socket:subscribe(notices_of(user))
            assert.equal(200, user:post("/auth/logout").status)
            assert.equal(1008, (socket:closed()))
            _, _, status = websocket(nil, nil, ended)
            assert.equal(401, status)
        end)
    end)

    describe("frames", function()
        it("carry what is published to a channel, in order and with rising ids", function()
            local socket = websocket(shopper)
            socket:subscribe(notices_of(shopper))
            local ids = {}
            for n = 1, 20 do ids[n] = publish(shop, notices_of(shopper), "notice.new", { n = n, text = "xin chào" }) end
            for n = 1, 20 do
                local frame = socket:hear{ type = "event" }
                assert.same({ n = n, text = "xin chào" }, frame.payload)
                assert.equal("notice.new", frame.event)
                assert.equal(notices_of(shopper), frame.channel)
                assert.equal(ids[n], frame.id)
                assert.is_number(frame.ts)
            end
        end)

        it("stop with unsubscribe", function()
            local socket = websocket(shopper)
            socket:subscribe(notices_of(shopper))
            socket:say{ type = "unsubscribe", channel = notices_of(shopper) }
            assert.equal("asked", socket:hear{ type = "unsubscribed" }.reason)
            publish(shop, notices_of(shopper), "notice.new", { n = 1 })
            socket:say{ type = "ping" }
            assert.equal("pong", socket:hear().type)
        end)

        it("that make no sense are told so, and the connection goes on", function()
            local socket = websocket(shopper)
            local function fails(frame, code)
                socket:say(frame)
                local answer = socket:hear()
                assert.equal("error", answer.type)
                assert.equal(code, answer.code)
                assert.is_string(answer.message)
            end
            fails("not json", 400)
            fails("[]", 400)
            fails("7", 400)
            fails({ type = "dance" }, 400)
            fails({ type = "subscribe" }, 400)
            fails({ type = "subscribe", channel = "../../etc" }, 400)
            fails({ type = "subscribe", channel = notices_of(shopper), since = "x" }, 400)
            fails({ type = "unsubscribe", channel = notices_of(shopper) }, 404)
            fails({ type = "typing", channel = notices_of(shopper) }, 404)
            fails({ type = "auth", token = 5 }, 401)
            socket:say{ type = "ping" }
            assert.equal("pong", socket:hear().type)
        end)

        it("beyond the rate end the connection", function()
            local socket = websocket(shopper)
            local many = {}
            for i = 1, 200 do many[i] = sockets.frame(0x81, '{"type":"ping"}') end
            socket:write(table.concat(many))
            local code, reason = socket:closed()
            assert.equal(1008, code)
            assert.equal("too many frames", reason)
        end)

        it("that break the protocol end the connection with the code that says why", function()
            local function closes(bytes, code)
                local socket = websocket(shopper)
                socket:write(bytes)
                assert.equal(code, (socket:closed()))
            end
            closes("\129\2hi", 1002)
            closes(sockets.frame(0x82, "binary"), 1003)
            closes(sockets.frame(0x81, "\255"), 1007)
            closes("\129\255\0\0\0\0\0\1\0\1abcd", 1009)
            closes(sockets.frame(0x88, "\3\232bye"), 1000)
        end)
    end)

    describe("who may listen", function()
        it("is decided a channel: not another's notices, not an unknown kind", function()
            local other = support.shopper(shop)
            local socket = websocket(shopper)
            local function refused(channel, why)
                socket:say{ type = "subscribe", channel = channel }
                local answer = socket:hear()
                assert.same({ "error", 403, channel, why }, { answer.type, answer.code, answer.channel, answer.message })
                local _, _, status = events(shopper, "?channels=" .. channel)
                assert.equal(403, status)
            end
            for _, channel in ipairs{ notices_of(other), "feed:user:" .. other.user.id } do refused(channel, "Forbidden resource") end
            for _, channel in ipairs{ "secret:room:1", "chat:conversation:" .. shopper.user.id, "group:" .. shopper.user.id } do
                refused(channel, "There are no channels of this kind here")
            end
        end)

        it("never crosses tenants or apps, also for one user of both", function()
            local second = support.tenant()
            local socket = websocket(shopper)
            socket:subscribe(notices_of(shopper))
            publish(second, notices_of(shopper), "notice.new", { from = "another tenant" })
            service:post("/api/socket/publish", { tenant_key = shop.key, app_key = "another-app", channel = notices_of(shopper),
                event = "notice.new", payload = { from = "another app" } })
            publish(shop, notices_of(shopper), "notice.new", { from = "here" })
            assert.equal("here", socket:hear{ type = "event" }.payload.from)
            assert.is_nil(socket:next_frame())
        end)

        it("waits for the first frame where the handshake had no credential", function()
            local socket, _, status = websocket(nil, shop.headers)
            assert.equal(101, status)
            socket:say{ type = "subscribe", channel = notices_of(shopper) }
            assert.equal(401, socket:hear().code)
            socket:say{ type = "auth", token = shopper.cookies.access_token }
            assert.equal(shopper.user.id, socket:hear{ type = "authenticated" }.user_id)
            socket:subscribe(notices_of(shopper))
            local stranger = support.shopper(support.tenant())
            socket:say{ type = "auth", token = stranger.cookies.access_token }
            assert.equal(403, socket:hear().code)
            local second = websocket(nil, shop.headers)
            second:say{ type = "auth", token = stranger.cookies.access_token }
            assert.equal(1008, (second:closed()))
            local third = websocket(nil, shop.headers)
            third:say{ type = "auth", token = "wrong" }
            assert.equal(1008, (third:closed()))
        end)

        it("ends after ten seconds of silence about who it is", function()
            local socket = websocket(nil, shop.headers)
            local code, reason = socket:closed()
            assert.equal(1008, code)
            assert.equal("not authenticated", reason)
        end)
    end)

    describe("rights that end", function()
        it("close every connection of a session that signs out, and no other", function()
            local user = support.shopper(shop)
            local again = user:copy()
            again.user = user.user
            support.sign_in(again)
            local one, two, stream = websocket(user), websocket(again), events(user)
            one:subscribe(notices_of(user))
            two:subscribe(notices_of(user))
            assert.equal(200, user:post("/auth/logout").status)
            local code, reason = one:closed()
            assert.equal(1008, code)
            assert.equal("session ended", reason)
            sockets.eventually(function()
                stream:poll()
                return stream.eof
            end, 10, "the stream's end")
            publish(shop, notices_of(user), "notice.new", { n = 1 })
            assert.equal(1, two:hear{ type = "event" }.payload.n)
        end)

        it("close a connection whose token was refreshed before the session signed out", function()
            local user = support.shopper(shop)
            local socket = websocket(user)
            socket:subscribe(notices_of(user))
            assert.equal(200, user:post("/auth/refresh").status)
            publish(shop, notices_of(user), "notice.new", { n = 1 })
            assert.equal(1, socket:hear{ type = "event" }.payload.n)
            assert.equal(200, user:post("/auth/logout").status)
            assert.equal(1008, (socket:closed()))
        end)

        it("close the connections of a key that is revoked, and end its tickets", function()
            local key = shop.owner:post("/tenants/" .. shop.key .. "/keys/create", { name = "hub", key_type = "secret",
                scopes = { "users.read" } }).json.key
            local bearer = { Authorization = "Bearer " .. key.secret }
            local socket, _, status = websocket(nil, bearer)
            assert.equal(101, status)
            socket:say{ type = "ping" }
            socket:hear{ type = "pong" }
            local ticket = support.client(bearer):post("/api/social/realtime/ticket")
            assert.equal(201, ticket.status, ticket.body)
            assert.equal(200, shop.owner:post(("/tenants/%s/keys/%s/revoke"):format(shop.key, key.id)).status)
            local code, reason = socket:closed()
            assert.same({ 1008, "key ended" }, { code, reason })
            _, _, status = websocket(nil, nil, "/ws?ticket=" .. ticket.json.ticket)
            assert.equal(401, status)
        end)

        it("close when the token expires, unless a fresh one was sent", function()
            local platform = support.platform()
            local user = support.shopper(shop)
            local old, renewed = websocket(user), websocket(user)
            old:subscribe(notices_of(user))
            renewed:subscribe(notices_of(user))
            local ok, why = pcall(function()
                support.advance(platform, 600)
                assert.equal(200, user:post("/auth/refresh").status)
                renewed:say{ type = "auth", token = user.cookies.access_token }
                renewed:hear{ type = "authenticated" }
                support.advance(platform, 400)
                assert.equal(1008, (old:closed()))
                publish(shop, notices_of(user), "notice.new", { n = 2 })
                assert.equal(2, renewed:hear{ type = "event" }.payload.n)
            end)
            support.sign_in(platform)
            support.real_time(platform)
            if not ok then error(why, 0) end
        end)

        it("close when the tenant is closed, and not when something else of it changes", function()
            local platform = support.platform()
            local tenant = support.tenant()
            local user = support.shopper(tenant)
            local socket = websocket(user)
            socket:subscribe(notices_of(user))
            local function update(body)
                local answer = platform:post("/tenants/" .. tenant.key .. "/update", body)
                assert.equal(200, answer.status, answer.body)
            end
            update{ name = "Another name" }
            publish(tenant, notices_of(user), "notice.new", { n = 1 })
            assert.equal(1, socket:hear{ type = "event" }.payload.n)
            update{ is_active = false }
            local code, reason = socket:closed()
            assert.equal(1008, code)
            assert.equal("tenant closed", reason)
        end)

        it("close when the membership is taken away", function()
            local user = support.shopper(shop)
            local socket = websocket(user)
            socket:subscribe(notices_of(user))
            local answer = shop.owner:post("/tenants/" .. shop.key .. "/members/remove", { user_id = user.user.id })
            assert.is_true(answer.status < 300, answer.body)
            assert.equal(1008, (socket:closed()))
        end)
    end)

    describe("rights that a role grants", function()
        -- A member who may read rules by a role of the shop's own, and listens to them.
        local function reader(expires_at)
            local user = support.user(shop, "customer", { user_type = "TENANT_0" })
            local key = "r" .. user.user.id:gsub("-", "")
            local role = shop.owner:post("/roles", { code = key, role_key = key, display_name = key, permission_keys = { "rules.read" } })
            assert.equal(201, role.status, role.body)
            local id = role.json.role.id
            local given = shop.owner:post("/users/" .. user.user.id .. "/roles/assign", { role_id = id, expires_at = expires_at })
            assert.equal(201, given.status, given.body)
            local stream, _, status = sockets.events(URL, "/rules/stream", as(user))
            open[#open + 1] = stream
            assert.equal(200, status)
            stream:event("subscribed")
            return user, id, stream
        end

        it("end what is listened to when the role loses the permission", function()
            local user, id, stream = reader()
            local _, _, other = reader()
            local own = websocket(user)
            own:subscribe(notices_of(user))
            assert.equal(200, shop.owner:post("/roles/" .. id .. "/permissions/remove", { permission_key = "rules.read" }).status)
            assert.equal("revoked", stream:event("unsubscribed").data.reason)
            -- What is one's own goes on, and so does another's right.
            publish(shop, notices_of(user), "notice.new", { n = 1 })
            assert.equal(1, own:hear{ type = "event" }.payload.n)
            assert.equal(201, shop.owner:post("/rules/create", { key = "k" .. id:sub(1, 8), hook = "promotion", name = "k",
                source = 'return { hook = "promotion", name = "k", run = function() return nil end }' }).status)
            assert.equal("saved", other:event("saved").event)
            stream:poll()
            assert.is_nil(stream.input:find("saved", 1, true))
        end)

        it("end when the role was taken from its holder, or its time is over", function()
            local user, id, stream = reader()
            assert.equal(200, shop.owner:post("/users/" .. user.user.id .. "/roles/remove", { role_id = id }).status)
            assert.equal("revoked", stream:event("unsubscribed").data.reason)
            local platform = support.platform()
            local ends = time.iso(time.now() + 300000)
            local _, _, timed = reader(ends)
            local _, _, lasting = reader()
            local ok, why = pcall(function()
                support.advance(platform, 301)
                assert.equal("revoked", timed:event("unsubscribed").data.reason)
                lasting:poll()
                assert.is_nil(lasting.input:find("revoked", 1, true))
            end)
            support.sign_in(platform)
            support.real_time(platform)
            if not ok then error(why, 0) end
        end)

        it("end with the account: locked, or deleted", function()
            for _, act in ipairs{ function(id) return shop.owner:post("/users/" .. id .. "/update", { is_locked = true }) end,
                function(id) return shop.owner:post("/users/" .. id .. "/delete") end } do
                local user = support.shopper(shop)
                local socket, stream = websocket(user), events(user)
                socket:subscribe(notices_of(user))
                stream:event("subscribed")
                local answer = act(user.user.id)
                assert.is_true(answer.status < 300, answer.body)
                assert.equal(1008, (socket:closed()))
                sockets.eventually(function()
                    stream:poll()
                    return stream.eof
                end, 10, "the stream's end")
            end
        end)
    end)

    describe("bounds", function()
        it("keep ten connections a user: the oldest gives way", function()
            local user = support.shopper(shop)
            local list = {}
            for i = 1, 11 do
                list[i] = websocket(user)
                list[i]:subscribe(notices_of(user))
                -- Who is the oldest is told by the millisecond, each worker's own.
                local opened = time.real()
                support.eventually(function() return time.real() > opened end)
            end
            local code, reason = list[1]:closed()
            assert.equal(1008, code)
            assert.equal("too many connections", reason)
            publish(shop, notices_of(user), "notice.new", { n = 1 })
            for i = 2, 11 do assert.equal(1, list[i]:hear{ type = "event" }.payload.n) end
        end)

        it("drop a client that does not read, and nobody else", function()
            local user = support.shopper(shop)
            local slow = sockets.websocket(URL, "/ws", as(user), 4096)
            open[#open + 1] = slow
            local well = websocket(user)
            slow:subscribe(notices_of(user))
            well:subscribe(notices_of(user))
            local text = ("x"):rep(60000)
            local function drops()
                local metrics = support.client():get("/metrics").body
                return tonumber(metrics:match('kasma_push_dropped_total{reason="slow_reader"} (%d+)') or 0)
            end
            local before = drops()
            for n = 1, 400 do
                publish(shop, notices_of(user), "notice.new", { n = n, text = text })
                assert.equal(n, well:hear{ type = "event" }.payload.n)
                if n % 20 == 0 and drops() > before then break end
            end
            support.eventually(function() return drops() > before end)
            assert.equal(1013, (slow:closed()))
        end)

        it("hand on an event under whatever name its service gives it", function()
            local socket = websocket(shopper)
            socket:subscribe(notices_of(shopper))
            for _, name in ipairs{ "orderUpdated", "ORDER_UPDATED", "order:updated", "order-updated", "order/updated", "Order updated",
                "100% off 20%20", 'say "hi" \\', "đơn hàng" } do
                publish(shop, notices_of(shopper), name, { name = name })
                local heard = socket:hear{ type = "event" }
                assert.same({ name, name }, { heard.event, heard.payload.name })
            end
            socket:close()
        end)

        it("refuse an event that is too large, and one of no channel", function()
            local function status(body)
                body.tenant_key, body.app_key = shop.key, shop.app
                return service:post("/api/socket/publish", body).status
            end
            assert.equal(413, status{ channel = notices_of(shopper), event = "notice.new", payload = { text = ("x"):rep(70000) } })
            assert.equal(400, status{ channel = "no channel", event = "notice.new" })
            for _, name in ipairs{ "", "two\nlines", "nul\0", ("x"):rep(201) } do
                assert.equal(400, status{ channel = notices_of(shopper), event = name })
            end
            assert.equal(400, status{ channel = notices_of(shopper), event = "notice.new", more = 1 })
        end)
    end)

    describe("publishing", function()
        it("needs the services' key", function()
            local body = { tenant_key = shop.key, channel = notices_of(shopper), event = "notice.new" }
            assert.equal(401, support.client():post("/api/socket/publish", body).status)
            assert.equal(401, support.client{ ["X-Internal-Api-Key"] = "wrong" }:post("/api/socket/publish", body).status)
            assert.equal(401, shop.owner:post("/api/socket/publish", body).status)
        end)
    end)

    describe("coming again", function()
        it("gives what was missed, once and in order, then what comes", function()
            local channel = notices_of(shopper)
            local socket = websocket(shopper)
            socket:subscribe(channel)
            local position = publish(shop, channel, "notice.new", { n = 1 })
            assert.equal(position, socket:hear{ type = "event" }.id)
            socket:close()
            publish(shop, channel, "notice.new", { n = 2 })
            publish(shop, channel, "notice.new", { n = 3 })
            local second = websocket(shopper)
            second:subscribe(channel, position)
            publish(shop, channel, "notice.new", { n = 4 })
            for n = 2, 4 do assert.equal(n, second:hear{ type = "event" }.payload.n) end
            assert.is_nil(second:next_frame())
        end)

        it("loses and repeats nothing while others publish all the time", function()
            local user = support.shopper(shop)
            local channel, last, total = notices_of(user), 0, 150
            local position
            local function take(socket, upto)
                while last < upto do
                    local frame = socket:hear{ type = "event" }
                    assert.equal(last + 1, frame.payload.n)
                    last, position = frame.payload.n, frame.id
                end
            end
            local first = websocket(user)
            position = first:subscribe(channel)
            support.parallel{
                function()
                    for n = 1, total do publish(shop, channel, "notice.new", { n = n }) end
                end,
                function()
                    local socket = first
                    for round = 1, 6 do
                        take(socket, math.min(total, last + 1 + round * 5))
                        socket:close()
                        socket = websocket(user)
                        socket:subscribe(channel, position)
                    end
                    take(socket, total)
                end,
            }
            assert.equal(total, last)
        end)

        it("gives more than a queue may hold, on several channels at once, as fast as the client reads", function()
            local user = support.shopper(shop)
            local channels = { notices_of(user), "feed:user:" .. user.user.id }
            local first, since, text = websocket(user), {}, ("x"):rep(40000)
            for _, channel in ipairs(channels) do since[channel] = first:subscribe(channel) end
            first:close()
            for n = 1, 60 do
                for _, channel in ipairs(channels) do publish(shop, channel, "notice.new", { n = n, text = text }) end
            end
            local second = websocket(user)
            for _, channel in ipairs(channels) do second:say{ type = "subscribe", channel = channel, since = since[channel] } end
            local seen = { [channels[1]] = 0, [channels[2]] = 0 }
            while seen[channels[1]] < 60 or seen[channels[2]] < 60 do
                local frame = second:hear{ type = "event" }
                assert.equal(seen[frame.channel] + 1, frame.payload.n)
                seen[frame.channel] = frame.payload.n
            end
        end)

        it("is told by one reset that the stream no longer holds what was missed", function()
            local user = support.shopper(shop)
            local channel = notices_of(user)
            local socket = websocket(user)
            local position = socket:subscribe(channel)
            socket:close()
            for n = 1, 220 do publish(shop, channel, "notice.new", { n = n }) end
            local second = websocket(user)
            second:subscribe(channel, position)
            publish(shop, channel, "notice.new", { n = 221 })
            local frame = second:hear{ type = "event" }
            assert.equal("reset", frame.event)
            assert.equal(221, second:hear{ type = "event" }.payload.n)
            local third = websocket(user)
            third:subscribe(channel, "1-0")
            assert.equal("reset", third:hear{ type = "event" }.event)
        end)
    end)

    describe("event streams", function()
        it("carry the same, resume by Last-Event-ID, and are not held up by a proxy", function()
            local user = support.shopper(shop)
            local stream, head, status = events(user)
            assert.equal(200, status)
            assert.matches("\r\nContent%-Type: text/event%-stream", head)
            assert.matches("\r\nCache%-Control: no%-store", head)
            assert.matches("\r\nX%-Accel%-Buffering: no\r\n", head)
            stream:event("subscribed")
            stream:event("subscribed")
            publish(shop, notices_of(user), "notice.new", { n = 1 })
            local event = stream:event("notice.new")
            assert.equal(1, event.data.payload.n)
            assert.equal(notices_of(user), event.data.channel)
            stream:close()
            publish(shop, notices_of(user), "notice.new", { n = 2 })
            publish(shop, "feed:user:" .. user.user.id, "post.new", { n = 3 })
            local second = events(user, nil, { ["Last-Event-ID"] = event.id })
            assert.equal(2, second:event("notice.new").data.payload.n)
            local third = events(user, nil, { ["Last-Event-ID"] = event.id })
            assert.equal(3, third:event("post.new").data.payload.n)
        end)

        it("take a ticket, name their channels, and refuse others'", function()
            local ticket = shopper:post("/api/social/realtime/ticket").json.ticket
            local stream, _, status = events(nil, "?ticket=" .. ticket .. "&channels=" .. notices_of(shopper))
            assert.equal(200, status)
            stream:event("subscribed")
            publish(shop, notices_of(shopper), "notice.new", { n = 9 })
            assert.equal(9, stream:event("notice.new").data.payload.n)
            local other = support.shopper(shop)
            _, _, status = events(shopper, "?channels=" .. notices_of(other))
            assert.equal(403, status)
            _, _, status = events(shopper, "?channels=,")
            assert.equal(400, status)
            _, _, status = events(nil, nil, shop.headers)
            assert.equal(401, status)
        end)

        it("let a page of another origin read them", function()
            local _, head, status = events(shopper, nil, { Origin = "https://shop.example.test" })
            assert.equal(200, status)
            assert.matches("\r\nAccess%-Control%-Allow%-Origin: https://shop.example.test\r\n", head)
            _, _, status = events(shopper, nil, { Origin = "null" })
            assert.equal(403, status)
        end)
    end)

    it("tells a buyer of each step of an order, and nobody else", function()
        local sales = require("api.shop")
        local store, product = sales.simple(5)
        local buyer, other = support.shopper(store), support.shopper(store)
        local socket, foreign = websocket(buyer), websocket(other)
        socket:subscribe("order:user:" .. buyer.user.id)
        foreign:subscribe("order:user:" .. other.user.id)
        sales.buyer(store, product, 1, buyer)
        local placed = sales.must(sales.checkout(buyer, { guestEmail = json.null }))
        local order = placed.orders[1]
        local frame = socket:hear{ type = "event" }
        assert.equal("order.changed", frame.event)
        assert.equal("order.placed", frame.payload.step)
        assert.equal(order.id, frame.payload.order_id)
        assert.is_string(frame.payload.order_number)
        support.client():post("/api/internal/orders/sync-payment", { orderId = order.id, status = "SUCCESS", provider = "STRIPE" },
            { ["X-Internal-Secret"] = config.get("INTERNAL_WEBHOOK_SECRET") })
        assert.equal("order.paid", socket:hear{ type = "event" }.payload.step)
        assert.is_nil(foreign:next_frame())
    end)

    it("tells who is there", function()
        local realtime = require("modules.realtime.service")
        local user, away = support.shopper(shop), support.shopper(shop)
        local socket = websocket(user)
        local function online() return realtime.online(shop.key, shop.app, { user.user.id, away.user.id }) end
        support.eventually(function() return online()[user.user.id] end)
        assert.is_false(online()[away.user.id])
        socket:close()
        support.eventually(function() return not online()[user.user.id] end)
    end)
end)
