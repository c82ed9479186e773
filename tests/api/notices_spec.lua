local config = require("core.config")
local crypto = require("core.crypto")
local json = require("core.json")
local time = require("core.time")
local uuid = require("core.uuid")
local db = require("kasma.db")
local support = require("api.support")
local notices = require("modules.notices.service")
local sockets = require("api.sockets")

local service = support.client{ ["X-Internal-Api-Key"] = config.get("SOCKET_INTERNAL_API_KEY") }

local function create(tenant, user, more)
    local body = { title = "Your order is on its way", content = "It left our house today", userId = user.user.id }
    for name, value in pairs(more or {}) do body[name] = value end
    return service:post("/api/notification/create", body, tenant.headers)
end

local function list(client, query) return client:get("/api/social/notices" .. (query or "")) end

describe("notices", function()
    local shop = support.tenant()

    it("are written for a service, listed newest first with every member, and counted", function()
        local user = support.shopper(shop)
        for n = 1, 3 do
            local made = create(shop, user, { title = "n" .. n,
                metadata = { orderId = "o" .. n, total = 7, gift = false, note = json.null } })
            assert.equal(201, made.status, made.body)
            assert.is_true(made.json.success)
            assert.matches("^%x+%-", made.json.id)
        end
        local page = list(user)
        assert.equal(200, page.status)
        assert.equal(3, page.json.total)
        assert.equal(1, page.json.page)
        assert.equal(20, page.json.limit)
        assert.same({ "n3", "n2", "n1" }, { page.json.data[1].title, page.json.data[2].title, page.json.data[3].title })
        local first = page.json.data[1]
        assert.equal("SYSTEM", first.notice_type)
        assert.equal("It left our house today", first.body)
        assert.equal(user.user.id, first.recipient_id)
        assert.equal(shop.key, first.tenant_key)
        assert.equal(shop.app, first.app_key)
        assert.same({ orderId = "o3", total = 7, gift = false, note = json.null }, first.metadata)
        assert.is_false(first.is_read)
        for _, name in ipairs{ "actor_id", "reference_type", "reference_id", "read_at", "group_key" } do
            assert.equal(json.null, first[name])
        end
        assert.equal(3, user:get("/api/social/notices/unread-count").json.unread_count)
    end)

    it("reach an open WebSocket and an event stream of their recipient, and of nobody else", function()
        local user, other = support.shopper(shop), support.shopper(shop)
        local function headers(client)
            return { Cookie = "access_token=" .. client.cookies.access_token, ["X-Tenant-Kasma-Id"] = shop.key,
                ["X-App-Kasma-Id"] = shop.app }
        end
        local socket = sockets.websocket(support.url, "/ws", headers(user))
        local foreign = sockets.websocket(support.url, "/ws", headers(other))
        local stream = sockets.events(support.url, "/api/social/realtime/events", headers(user))
        socket:subscribe("notice:user:" .. user.user.id)
        foreign:subscribe("notice:user:" .. other.user.id)
        stream:event("subscribed")
        stream:event("subscribed")
        local id = create(shop, user, { metadata = { a = 1 } }).json.id
        local frame = socket:hear{ type = "event" }
        assert.equal("notice.new", frame.event)
        assert.equal(id, frame.payload.notice.id)
        assert.equal("SYSTEM", frame.payload.notice.notice_type)
        assert.equal("Your order is on its way", frame.payload.notice.title)
        assert.same({ a = 1 }, frame.payload.notice.metadata)
        assert.equal(json.null, frame.payload.notice.actor_id)
        assert.equal(id, stream:event("notice.new").data.payload.notice.id)
        assert.is_nil(foreign:next_frame())
        socket:close()
        foreign:close()
        stream:close()
    end)

    it("are marked as read one by one, once, and all at once", function()
        local user = support.shopper(shop)
        local ids = {}
        for n = 1, 3 do ids[n] = create(shop, user).json.id end
        local read = user:post("/api/social/notices/" .. ids[2] .. "/read")
        assert.equal(201, read.status)
        assert.is_true(read.json.is_read)
        assert.equal(read.json.read_at, user:post("/api/social/notices/" .. ids[2] .. "/read").json.read_at)
        assert.equal(2, user:get("/api/social/notices/unread-count").json.unread_count)
        local unread = list(user, "?unread_only=true").json
        assert.equal(2, unread.total)
        assert.same({ ids[3], ids[1] }, { unread.data[1].id, unread.data[2].id })
        assert.same({ success = true }, user:post("/api/social/notices/read-all").json)
        assert.equal(0, user:get("/api/social/notices/unread-count").json.unread_count)
        assert.equal(3, list(user).json.total)
    end)

    it("speak the reader's language, by their type and with the actor's name; a sender's own text stays", function()
        local user, actor = support.shopper(shop), support.shopper(shop)
        local scope = { tenant = shop.key, app = shop.app }
        db.query(nil, "update users set display_name = 'Lan' where id = $1", actor.user.id)
        local statements = {}
        for _, kind in ipairs{ "FRIEND_REQUEST", "LIKE", "SYSTEM" } do
            notices.append(statements, scope, { recipient_id = user.user.id, notice_type = kind, title = "as stored",
                body = "by its sender", actor_id = kind ~= "SYSTEM" and actor.user.id or nil })
        end
        db.pipeline(shop.key, statements)
        db.query(shop.key, [[update social_notices set actor_count = 3 where tenant_key = $1 and recipient_id = $2
          and notice_type = 'LIKE']], shop.key, user.user.id)
        local function said(language)
            local found = {}
            for _, row in ipairs(user:get("/api/social/notices", { ["Accept-Language"] = language }).json.data) do
                found[row.notice_type] = row.title .. ": " .. row.body
            end
            return found
        end
        assert.same({ FRIEND_REQUEST = "Friend request: Lan would like to be your friend",
            LIKE = "New reaction: Lan and 2 others reacted to what you wrote",
            SYSTEM = "as stored: by its sender" }, said("en-GB, vi;q=0.5"))
        assert.equal("Lời mời kết bạn: Lan muốn kết bạn với bạn", said("fr, vi;q=0.8, en;q=0.3").FRIEND_REQUEST)
        db.query(nil, "update users set display_name = null where id = $1", actor.user.id)
        local id = user:get("/api/social/notices", { ["Accept-Language"] = "vi" }).json.data[1].id
        local answer = user:post("/api/social/notices/" .. id .. "/read", nil, { ["Accept-Language"] = "vi" })
        assert.equal(201, answer.status)
        assert.equal("Ai đó muốn kết bạn với bạn", said("vi").FRIEND_REQUEST:match(": (.*)$"))
    end)

    it("of others are not there: another user's, another app's, another tenant's", function()
        local user, other = support.shopper(shop), support.shopper(shop)
        local id = create(shop, user).json.id
        assert.equal(404, other:post("/api/social/notices/" .. id .. "/read").status)
        assert.equal(0, list(other).json.total)
        local elsewhere = support.tenant()
        local foreign = support.shopper(elsewhere)
        assert.equal(404, foreign:post("/api/social/notices/" .. id .. "/read").status)
        assert.equal(404, create(elsewhere, user).status)
        assert.equal(404, create(shop, { user = { id = uuid.v7() } }).status)
        assert.equal(404, create(shop, { user = { id = "nobody" } }).status)
        assert.equal(1, list(user).json.total)
        assert.equal(404, user:post("/api/social/notices/" .. uuid.v7() .. "/read").status)
        assert.equal(400, user:post("/api/social/notices/nonsense/read").status)
    end)

    it("come page by page by a cursor that no new notice disturbs", function()
        local user = support.shopper(shop)
        local wanted = {}
        for n = 1, 7 do wanted[8 - n] = create(shop, user).json.id end
        local seen, cursor = {}, nil
        repeat
            local page = list(user, "?limit=3" .. (cursor and "&cursor=" .. cursor or "")).json
            for _, row in ipairs(page.data) do seen[#seen + 1] = row.id end
            cursor = page.has_more and page.next_cursor or nil
            create(shop, user)
        until not cursor
        assert.same(wanted, seen)
        assert.equal(400, list(user, "?cursor=" .. crypto.base64url("no cursor")).status)
        assert.equal(400, list(user, "?page=0").status)
        assert.equal(100, list(user, "?limit=1000").json.limit)
        assert.equal(3, #list(user, "?limit=3&page=2").json.data)
    end)

    it("need the services' key and a clean body", function()
        local user = support.shopper(shop)
        local body = { title = "t", content = "c", userId = user.user.id }
        assert.equal(401, support.client(shop.headers):post("/api/notification/create", body).status)
        assert.equal(401, shop.owner:post("/api/notification/create", body).status)
        assert.equal(400, create(shop, user, { title = "" }).status)
        assert.equal(400, create(shop, user, { title = ("x"):rep(256) }).status)
        assert.equal(400, create(shop, user, { type = "PIGEON" }).status)
        assert.equal(400, create(shop, user, { more = 1 }).status)
        local nested = create(shop, user, { metadata = { fine = 1, order = { id = "o1" }, lines = json.array({ 1 }) } })
        assert.equal(400, nested.status)
        assert.same({ "metadata.lines must be a string, a number, a boolean or null",
            "metadata.order must be a string, a number, a boolean or null" }, nested.json.message)
        assert.equal(401, support.client(shop.headers):get("/api/social/notices").status)
        assert.equal(0, list(user).json.total)
    end)

    it("follow the recipient's wishes", function()
        local user = support.shopper(shop)
        local rows = user:get("/api/social/notices/preferences").json
        assert.equal(13, #rows)
        for _, row in ipairs(rows) do assert.same({ true, true, false }, { row.in_app, row.push, row.email }) end
        local function wish(row) return user:post("/api/social/notices/preferences", { rows = { row } }) end
        local set = wish{ notice_type = "SYSTEM", email = true }
        assert.equal(201, set.status, set.body)
        create(shop, user, { title = "By mail too <b>" })
        local text = support.eventually(function() return support.mail_to(user.user.email) end, 20)
        assert.matches("By mail too <b>", text, 1, true)
        wish{ notice_type = "SYSTEM", in_app = false }
        assert.same({ success = true, id = json.null }, create(shop, user).json) -- by mail: there is no row to name
        wish{ notice_type = "SYSTEM", in_app = false, push = false, email = false }
        local unwanted = create(shop, user)
        assert.equal(201, unwanted.status)
        assert.same({ success = true, id = json.null }, unwanted.json)
        assert.equal(1, list(user).json.total)
        wish{ notice_type = "SYSTEM", in_app = true }
        create(shop, user)
        assert.equal(2, list(user).json.total)
        -- Each wish stands alone: by mail, and not in the app.
        local writer = support.shopper(shop)
        assert.equal(201, writer:post("/api/social/notices/preferences", { rows = { { notice_type = "SYSTEM", in_app = false,
            email = true } } }).status)
        assert.equal(201, create(shop, writer, { title = "By mail alone" }).status)
        assert.matches("By mail alone", support.eventually(function() return support.mail_to(writer.user.email) end, 20), 1, true)
        assert.equal(0, list(writer).json.total)
        assert.equal(400, wish{ notice_type = "WEATHER" }.status)
    end)

    it("are mailed to those who wish it, whoever tells them", function()
        local user = support.shopper(shop)
        assert.equal(201, user:post("/api/social/notices/preferences", { rows = { { notice_type = "SYSTEM", email = true } } }).status)
        local statements = {}
        notices.append(statements, { tenant = shop.key, app = shop.app }, { recipient_id = user.user.id, notice_type = "SYSTEM",
            title = "Told by a module", body = "without an address" })
        db.pipeline(shop.key, statements)
        assert.matches("Told by a module", support.eventually(function() return support.mail_to(user.user.email) end, 20), 1, true)
    end)

    it("note devices; a token belongs to who signed in on it last", function()
        local user, other = support.shopper(shop), support.shopper(shop)
        local token = crypto.random_hex(32)
        assert.same({ success = true }, user:post("/api/social/notices/devices", { platform = "ios", token = token }).json)
        assert.equal(201, other:post("/api/social/notices/devices", { platform = "android", token = token }).status)
        assert.equal(400, user:post("/api/social/notices/devices", { platform = "fridge", token = token }).status)
        assert.equal(400, user:post("/api/social/notices/devices", { platform = "ios", token = "" }).status)
        local held = db.read(shop.key, "select user_id, platform from social_push_devices where tenant_key = $1 and token = $2",
            shop.key, token)
        assert.equal(1, #held)
        assert.same({ user_id = other.user.id, platform = "android" }, held[1])
    end)

    it("go away when they are old: read ones after 90 days, all after 180", function()
        local store = require("modules.notices.store")
        local user = support.shopper(shop)
        local read = create(shop, user).json.id
        create(shop, user)
        user:post("/api/social/notices/" .. read .. "/read")
        local function left_after(days)
            time.set_shift(days * 86400000) -- of this process only, where it is asked
            local ok, why = pcall(notices.prune)
            time.set_shift(0)
            assert(ok, why)
            local _, total = store.list(shop.key, shop.app, user.user.id, { limit = 10, offset = 0, unread_only = false })
            return total
        end
        assert.equal(2, left_after(89))
        assert.equal(1, left_after(91))
        assert.equal(1, left_after(179))
        assert.equal(0, left_after(181))
    end)
end)
