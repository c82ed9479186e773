-- The audit trail: what a reader of MongoDB could do to it is found and named; lists, export and the sign-in log.
local crypto = require("core.crypto")
local json = require("core.json")
local mongo = require("core.mongo")
local time = require("core.time")
local uuid = require("core.uuid")
local command = require("api.command")
local shop_of = require("api.shop")
local support = require("api.support")
local audit = require("kasma.audit")
local db = require("kasma.db")
local service = require("modules.audit.service")

local EVENTS = 9

-- A tenant whose chain has events 1 .. EVENTS at least, all delivered.
local function trail(n)
    local shop = support.tenant()
    local scope = { tenant = shop.key, app = shop.app, actor_kind = "system" }
    for i = 1, n or EVENTS do
        audit.write(scope, { action = "test.step", entity_type = "step", entity_id = tostring(i),
            after = { n = i, list = {}, price = 1.5 } })
    end
    -- The head is moved last, when the documents are there.
    support.eventually(function()
        return (db.one(shop.key, [[select h.seq = (select count(*) from audit_index i where i.tenant_key = h.tenant_key) as whole
          from audit_heads h where h.tenant_key = $1]], shop.key) or {}).whole
    end, 20)
    return shop
end

local function at(shop, seq) return (mongo.find_one("audit_log", { tenant_key = shop.key, seq = seq })) end

local function found(shop)
    local report = service.verify(shop.key)
    local words = {}
    for i, finding in ipairs(report.findings) do
        words[i] = finding.kind .. " " .. tostring(finding.seq) .. " " .. tostring(finding.id)
    end
    table.sort(words)
    return words, report
end

describe("the chain of the audit", function()
    it("is whole as it was written, also while events arrive", function()
        local shop = trail(EVENTS)
        assert.same({}, (found(shop)))
        local scope = { tenant = shop.key, app = shop.app, actor_kind = "system" }
        local reports = support.parallel{
            function()
                for i = 1, 40 do audit.write(scope, { action = "test.more", entity_type = "step", entity_id = tostring(i) }) end
            end,
            function()
                local all = {}
                for i = 1, 10 do all[i] = service.verify(shop.key) end
                return all
            end,
        }
        for _, report in ipairs(reports[2]) do assert.same({}, report.findings) end
    end)

    it("names an event that was changed", function()
        local shop = trail()
        local doc = at(shop, 4)
        assert.equal(1, mongo.update("audit_log", { _id = doc._id }, { ["$set"] = { body = doc.body:gsub("step", "stop") } }).modified)
        assert.same({ "altered 4 " .. doc._id }, (found(shop)))
    end)

    it("names an event whose shown members say something else than its text", function()
        local shop = trail()
        local doc = at(shop, 5)
        mongo.update("audit_log", { _id = doc._id }, { ["$set"] = { ["after.n"] = 77 } })
        local words, report = found(shop)
        assert.same({ "altered 5 " .. doc._id }, words)
        assert.truthy(report.findings[1].what:find("after", 1, true))
    end)

    it("names an event that was changed together with its hash", function()
        local shop = trail()
        local doc = at(shop, 5)
        local body = doc.body:gsub('"outcome":"ok"', '"outcome":"denied"')
        mongo.update("audit_log", { _id = doc._id }, { ["$set"] = { body = body, outcome = "denied",
            hash = audit.chain_hash{ prev_hash = doc.prev_hash, seq = 5, body = body } } })
        -- Once because the next one follows another hash, once because the index row says otherwise.
        assert.same({ "altered 5 " .. doc._id, "altered 5 " .. doc._id }, (found(shop)))
    end)

    it("finds a trail that was written anew from one event to the end", function()
        local shop = trail()
        local head = db.one(shop.key, "select seq from audit_heads where tenant_key = $1", shop.key).seq
        local previous = at(shop, 5).hash
        for seq = 6, head do
            local doc = at(shop, seq)
            local body = seq == 6 and doc.body:gsub('"n":%d+', '"n":1000') or doc.body
            local hash = audit.chain_hash{ prev_hash = previous, seq = seq, body = body }
            local set = { body = body, prev_hash = previous, hash = hash }
            if seq == 6 then set["after.n"] = 1000 end
            mongo.update("audit_log", { _id = doc._id }, { ["$set"] = set })
            previous = hash
        end
        local words, report = found(shop)
        assert.equal(1, #words)
        assert.truthy(report.findings[1].what:find("audit_heads", 1, true))
    end)

    it("names events that were removed, by place and by id", function()
        local shop = trail()
        local doc = at(shop, 3)
        mongo.delete("audit_log", { _id = doc._id })
        assert.same({ "missing 3 nil", "missing nil " .. doc._id }, (found(shop)))
    end)

    it("sees that the newest were cut off", function()
        local shop = trail()
        local head = db.one(shop.key, "select seq from audit_heads where tenant_key = $1", shop.key).seq
        local doc = at(shop, head)
        mongo.delete("audit_log", { _id = doc._id })
        assert.same({ ("missing %d nil"):format(head), "missing nil " .. doc._id }, (found(shop)))
    end)

    it("names events that changed places", function()
        local shop = trail()
        local a, b = at(shop, 4), at(shop, 7)
        mongo.update("audit_log", { _id = a._id }, { ["$set"] = { seq = 7 } })
        mongo.update("audit_log", { _id = b._id }, { ["$set"] = { seq = 4 } })
        local words, report = found(shop)
        assert.same({ "reordered 4 " .. b._id, "reordered 7 " .. a._id }, words)
        assert.truthy(report.findings[1].what:find("written at 7", 1, true))
    end)

    it("names events that were added: at a taken place, past the end, at no place", function()
        local shop = trail()
        local doc = at(shop, 4)
        local function forged(seq)
            local copy = {}
            for key, value in pairs(doc) do copy[key] = value end
            copy._id, copy.seq = uuid.v7(), seq
            mongo.insert("audit_log", copy)
            return copy._id
        end
        local expected = { "extra 4 " .. forged(4), "extra nil " .. forged(100000), "extra nil " .. forged(nil) }
        table.sort(expected)
        assert.same(expected, (found(shop)))
    end)

    it("names what was added under an id that is no text, however many documents stand beside it", function()
        local shop = trail(230)
        local number, hex, text = tonumber(crypto.random_hex(6), 16), crypto.random_hex(12), support.unique("zz")
        for _, id in ipairs{ number, mongo.oid(hex), { k = shop.key }, text } do
            assert(mongo.insert("audit_log", { _id = id, tenant_key = shop.key, action = "test.step" }))
        end
        local expected = { ("extra nil %d"):format(number), "extra nil " .. hex, ('extra nil {"k":"%s"}'):format(shop.key),
            "extra nil " .. text }
        table.sort(expected)
        assert.same(expected, (found(shop)))
    end)

    it("counts all of what was added under strange ids, and names as many as it names of anything", function()
        local shop = trail(1)
        local first, writes = tonumber(crypto.random_hex(5), 16) * 4096, {}
        for i = 1, 1005 do writes[i] = { op = "insert", doc = { _id = first + i, tenant_key = shop.key } } end
        assert(mongo.bulk("audit_log", writes))
        local words, report = found(shop)
        mongo.delete("audit_log", { tenant_key = shop.key, _id = { ["$gte"] = first } }, { multi = true })
        assert.same({ 1005, 1000 }, { report.extra, #words })
    end)

    it("names an event that was given to another tenant, and finds nothing wrong with that tenant but the stranger", function()
        local shop, other = trail(), trail()
        local doc = at(shop, 4)
        mongo.update("audit_log", { _id = doc._id }, { ["$set"] = { tenant_key = other.key, seq = 100000 } })
        assert.same({ "altered 100000 " .. doc._id, "missing 4 nil" }, (found(shop)))
        assert.same({ "extra nil " .. doc._id }, (found(other)))
    end)

    it("is proven to its end whatever stands in a document", function()
        local shop = trail()
        local doc, other = at(shop, 4), at(shop, 6)
        mongo.delete("audit_log", { _id = doc._id })
        local copy = {}
        for key, value in pairs(doc) do copy[key] = value end
        copy._id = support.unique("no id of ours ")
        mongo.insert("audit_log", copy)
        mongo.update("audit_log", { _id = other._id }, { ["$set"] = { actor = 5, entity = "x", created_at = false, body = 7,
            prev_hash = {} } })
        local words, report = found(shop)
        -- Once by its own text, once by its index row.
        assert.same({ "altered 4 " .. copy._id, "altered 6 " .. other._id, "altered 6 " .. other._id, "extra 4 " .. copy._id,
            "missing nil " .. doc._id }, words)
        assert.equal(report.head, report.events)
    end)

    it("is told by the command, with the exit status", function()
        local shop = trail()
        local run = command.run
        local status, text = run("audit verify --tenant " .. shop.key)
        assert.equal(0, status, text)
        assert.truthy(text:find("^OK +" .. shop.key), text)
        local doc = at(shop, 2)
        mongo.delete("audit_log", { _id = doc._id })
        status, text = run("audit verify --tenant " .. shop.key)
        assert.equal(1, status)
        assert.truthy(text:find(doc._id, 1, true), text)
        local report
        report, status = command.json("audit verify --json --tenant " .. shop.key)
        assert.same({ 1, 2 }, { status, report.missing })
        assert.equal(2, (run("audit verify --tenant no-such-tenant")))
        assert.equal(2, (run("audit")))
        assert.equal(0, (run("audit verify --help")))
    end)
end)

describe("retention of the audit", function()
    it("removes what is old with its index row, and the rest is still proven", function()
        local young = trail(3)
        assert.same({ 0, 0 }, { service.trim(young.key, 30) })
        -- What was written forty days ago.
        time.set_shift(-40 * 86400000)
        local made, shop = pcall(trail, 30)
        time.set_shift(0)
        assert(made, shop)
        local head = db.one(shop.key, "select seq from audit_heads where tenant_key = $1", shop.key).seq
        assert.same({ 0, 0 }, { service.trim(shop.key, 400) })
        assert.equal(head, (service.trim(shop.key, 30)))
        assert.same({}, (found(shop)))
        assert.equal(0, db.one(shop.key, "select count(*)::int as n from audit_index where tenant_key = $1", shop.key).n)
        local scope = { tenant = shop.key, app = shop.app, actor_kind = "system" }
        audit.write(scope, { action = "test.after", entity_type = "step", entity_id = "1" })
        support.eventually(function() return at(shop, head + 1) ~= json.null and at(shop, head + 1) end)
        local words, report = found(shop)
        assert.same({}, words)
        assert.equal(head, report.trimmed)
        mongo.delete("audit_log", { tenant_key = shop.key, seq = head + 1 })
        assert.equal(2, #found(shop))
    end)

    -- Events of forty days ago, whose index rows nothing protects any more.
    local function forty_days_old()
        time.set_shift(-40 * 86400000)
        local made, shop = pcall(trail, 12)
        time.set_shift(0)
        assert(made, shop)
        return shop, db.one(shop.key, "select seq from audit_heads where tenant_key = $1", shop.key).seq
    end

    local function documents(shop)
        return #mongo.find("audit_log", { tenant_key = shop.key }, { limit = 1000, projection = { seq = 1 } })
    end

    local function nothing_goes(shop, head)
        assert.same({ 0, 0 }, { service.trim(shop.key, 400) })
        assert.equal(head, db.one(shop.key, "select count(*)::int as n from audit_index where tenant_key = $1", shop.key).n)
        assert.equal(head, documents(shop))
    end

    it("is not made to remove what is still to be kept by whoever ages it in MongoDB", function()
        local shop, head = forty_days_old()
        for seq = 1, head do
            mongo.update("audit_log", { tenant_key = shop.key, seq = seq }, { ["$set"] = { created_at = "2020-01-01T00:00:00.000Z" } })
        end
        nothing_goes(shop, head)
        assert.equal(head, select(2, found(shop)).altered / 2) -- each by its text and by its index row
    end)

    it("is not made to by an aged event that is whole in itself, nor by one of an id that nobody wrote", function()
        for _, id in ipairs{ false, "00dc6acf-ac00-7000-8000-" .. crypto.random_hex(6) } do
            local shop, head = forty_days_old()
            local doc = at(shop, head)
            local text = json.decode(doc.body)
            text.created_at, text._id = "2020-01-01T00:00:00.000Z", id or doc._id
            local body = audit.canonical(text)
            mongo.delete("audit_log", { _id = doc._id })
            doc._id, doc.created_at, doc.body = text._id, text.created_at, body
            doc.hash = audit.chain_hash{ prev_hash = doc.prev_hash, seq = head, body = body }
            -- In a place by itself, behind a hole: what stands before it says nothing about it.
            mongo.delete("audit_log", { tenant_key = shop.key, seq = head - 1 })
            mongo.insert("audit_log", doc)
            assert.same({ 0, 0 }, { service.trim(shop.key, 400) })
            assert.equal(head, db.one(shop.key, "select count(*)::int as n from audit_index where tenant_key = $1", shop.key).n)
            assert.equal(head - 1, documents(shop))
        end
    end)

    it("goes past a damaged event to what PostgreSQL knows to be old", function()
        local shop, head = forty_days_old()
        mongo.delete("audit_log", { tenant_key = shop.key, seq = 3 })
        mongo.update("audit_log", { tenant_key = shop.key, seq = 5 }, { ["$set"] = { body = "{}" } })
        service.trim(shop.key, 30)
        assert.equal(0, documents(shop))
        assert.equal(0, db.one(shop.key, "select count(*)::int as n from audit_index where tenant_key = $1", shop.key).n)
        assert.equal(head, db.one(shop.key, "select trimmed_seq from audit_heads where tenant_key = $1", shop.key).trimmed_seq)
        assert.same({}, (found(shop)))
    end)
end)

describe("GET /audit/logs", function()
    it("filters by actor, action, entity and time, and pages by cursor", function()
        local shop = trail(25)
        local function list(query)
            local answer = shop.owner:get("/audit/logs?" .. query)
            assert.equal(200, answer.status, answer.body)
            return answer.json, answer
        end
        local seen, cursor, pages = {}, nil, 0
        repeat
            local page, answer = list("action=test.step&limit=10" .. (cursor and "&cursor=" .. cursor or ""))
            for _, entry in ipairs(page.data) do
                assert.is_nil(seen[entry.id])
                seen[entry.id] = true
                assert.equal("test.step", entry.action)
                assert.equal("table", type(entry.after))
            end
            cursor, pages = page.next_cursor, pages + 1
            assert.equal(cursor ~= json.null and cursor or nil, answer.headers["x-next-cursor"])
        until cursor == json.null or pages > 5
        local n = 0
        for _ in pairs(seen) do n = n + 1 end
        assert.equal(25, n)
        assert.equal(1, #list("entity_type=step&entity_id=7").data)
        assert.equal(0, #list("actor_id=" .. uuid.v4()).data)
        assert.equal(0, #list("action=test.step&to=2020-01-01T00:00:00Z").data)
        assert.equal(20, #list("action=test.step&from=2020-01-01T00:00:00Z").data)
        assert.equal(25, #list("action=test.step&limit=1000").data)
        for _, bad in ipairs{ "cursor=zzz", "limit=0", "limit=x", "from=yesterday", "actor_id=7", "colour=red" } do
            assert.equal(400, shop.owner:get("/audit/logs?" .. bad).status, bad)
        end
    end)
end)

describe("the audit of what is personal", function()
    it("tells which staff read whom, and who was denied, in the gate and behind it", function()
        local shop, product = shop_of.simple(5)
        local one, other = shop_of.buyer(shop, product, 1, support.shopper(shop)), support.shopper(shop)
        shop_of.must(shop_of.checkout(one))
        local function rows(actor)
            local list = {}
            for i, row in ipairs(db.read(shop.key, [[select action, entity_id, outcome from audit_index where tenant_key = $1
              and actor_id = $2 and (outcome = 'denied' or action like '%.read') order by id]], shop.key, actor.user.id)) do
                list[i] = ("%s %s %s"):format(row.action, row.entity_id or "-", row.outcome)
            end
            table.sort(list)
            return list
        end
        local customer = one:post("/customers/details").json.id
        assert.same({}, rows(one))
        assert.equal(200, shop.owner:get("/users").status)
        assert.equal(200, shop.owner:get("/users/" .. one.user.id).status)
        assert.equal(201, shop.owner:post("/customers/details", { userId = one.user.id }).status)
        assert.same({ "customers.read " .. customer .. " ok", "users.read " .. one.user.id .. " ok", "users.read list ok" },
            rows(shop.owner))
        for _, path in ipairs{ "/tenants/" .. shop.key .. "/members", "/mail/messages", "/auth/logs/login",
            "/auth/logs/login?user_id=" .. one.user.id, "/auth/logs/login?user_id=" .. shop.owner.user.id } do
            assert.equal(200, shop.owner:get(path).status)
        end
        assert.equal(200, other:get("/auth/logs/login").status)
        assert.same({ "customers.read " .. customer .. " ok", "mail.read list ok", "members.read list ok",
            "sign_ins.read " .. one.user.id .. " ok", "sign_ins.read list ok", "users.read " .. one.user.id .. " ok",
            "users.read list ok" }, rows(shop.owner))
        assert.equal(403, other:get("/users").status)
        assert.equal(403, other:post("/customers/details", { userId = one.user.id }).status)
        assert.equal(403, other:post("/customers/update", { tags = { "vip" } }).status)
        local denied = rows(other)
        assert.equal(3, #denied)
        for i, permission in ipairs{ "customers.read", "customers.write", "users.read" } do
            assert.matches(permission .. " .*denied$", denied[i])
        end
    end)

    it("tells which staff read and changed whose order, and nothing of one's own", function()
        local shop, product = shop_of.simple(9)
        local buyer = shop_of.buyer(shop, product, 1, support.shopper(shop))
        local order = shop_of.must(shop_of.checkout(buyer, { paymentMethod = "COD" })).orders[1]
        local own = shop_of.must(shop_of.checkout(shop_of.buyer(shop, product, 1, shop.owner))).orders[1]
        local function rows()
            local list = {}
            for i, row in ipairs(db.read(shop.key, [[select actor_id, action, entity_id, outcome from audit_index where tenant_key = $1
              and entity_type = 'order' order by created_at, id]], shop.key)) do
                list[i] = { row.actor_id, row.action, row.entity_id, row.outcome }
            end
            return list
        end
        local function details(client, id) return client:post("/sales/orders/details", { id = id }).status end
        local support_agent = support.user(shop, "support_agent")
        assert.same({ 201, 404, 201 }, { details(buyer, order.id), details(support.shopper(shop), order.id), details(shop.owner, own.id) })
        assert.same({}, rows())
        assert.equal(201, details(support_agent, order.id))
        local function change(fields)
            fields.id = order.id
            return shop.owner:post("/sales/orders/update-status", fields).status
        end
        assert.equal(409, change{ status = "shipped" })
        assert.equal(201, change{ status = "processing", reason = "called", trackingNumber = "T-1" })
        assert.same({ { support_agent.user.id, "orders.read", order.id, "ok" },
            { shop.owner.user.id, "orders.update_status", order.id, "ok" } }, rows())
        local entry
        support.eventually(function()
            entry = shop.owner:get("/audit/logs?action=orders.update_status").json.data[1]
            return type(entry.after) == "table"
        end, 20)
        assert.same({ { status = "pending" }, { status = "processing", reason = "called", trackingNumber = "T-1" } },
            { entry.before, entry.after })
    end)
end)

describe("GET /audit/export", function()
    it("streams every event once, newest first, filtered", function()
        local shop = trail(450)
        local answer = shop.owner:get("/audit/export?action=test.step")
        assert.equal(200, answer.status)
        assert.equal("application/x-ndjson; charset=utf-8", answer.headers["content-type"])
        local last, n = "~", 0
        for line in answer.body:gmatch("([^\n]+)\n") do
            local event = json.decode(line)
            assert.equal("test.step", event.action)
            assert.equal("table", type(event.after))
            assert.is_true(event.id < last)
            last, n = event.id, n + 1
        end
        assert.equal(450, n)
        assert.equal("", shop.owner:get("/audit/export?to=2020-01-01T00:00:00Z").body)
        assert.equal(1, select(2, shop.owner:get("/audit/export?entity_id=7&entity_type=step").body:gsub("\n", "")))
        assert.equal(403, support.shopper(shop):get("/audit/export").status)
    end)

    it("asks no further pages for a client that has gone", function()
        local shop = support.tenant()
        -- Index rows alone are enough: bodies that are missing are shown as null.
        local rows = 60000
        db.query(shop.key, [[insert into audit_index (tenant_key, app_key, id, action, entity_type, entity_id, outcome, created_at)
          select $1, $1, ('0000' || lpad(to_hex(n), 4, '0') || '-0000-7000-8000-' || left($2, 12))::uuid, 'test.bulk', repeat('x', 90),
            'entity ' || n, 'ok', '2024-01-01T00:00:00Z'::timestamptz
          from generate_series(1, $3::int) n join tenants t on t.tenant_key = $1]], shop.key, crypto.random_hex(6), rows)
        local host, port = support.url:match("//([^:]+):(%d+)")
        local jar = {}
        for name, value in pairs(shop.owner.cookies) do jar[#jar + 1] = name .. "=" .. value end
        local function tasks()
            local text = support.client():get("/metrics").body
            return tonumber(text:match("\nkasma_tasks (%d+)") or text:match("\nkasma_tasks{[^}]*} (%d+)"))
        end
        local before = tasks()
        -- curl reads a little and is ended by the limit on bytes: the connection closes while the server has much to send.
        local line = ("curl -s -m 60 -H 'Cookie: %s' -H 'X-Tenant-Kasma-Id: %s' "
            .. "'http://%s:%s/audit/export?action=test.bulk' | head -c 4096 | wc -c"):format(table.concat(jar, "; "), shop.key, host, port)
        local pipe = assert(io.popen(line))
        assert.equal(4096, tonumber(pipe:read("*a")))
        pipe:close()
        support.eventually(function() return tasks() <= before + 1 end, 20)
        db.query(shop.key, "delete from audit_index where tenant_key = $1 and action = 'test.bulk'", shop.key)
    end)
end)

describe("GET /auth/logs/login", function()
    it("counts, pages and filters; without audit.read it shows one's own rows alone", function()
        local shop = support.tenant()
        local shopper = support.shopper(shop)
        for _ = 1, 3 do
            assert.equal(401, support.guest(shop):post("/auth/login", { identifier = shopper.user.email, password = "wrong-1" }).status)
        end
        local all = shop.owner:get("/auth/logs/login?action=LOGIN_FAILED&limit=2").json
        assert.same({ 3, 1, 2, 2, 2 }, { all.total, all.page, all.limit, all.totalPages, #all.data })
        assert.equal("string", type(all.data[1].metadata))
        assert.equal("table", type(json.decode(all.data[1].metadata)))
        local past = shop.owner:get("/auth/logs/login?action=LOGIN_FAILED&limit=2&page=3").json
        assert.same({ 3, 3, 0 }, { past.total, past.page, #past.data })
        local own = shopper:get("/auth/logs/login?limit=100&user_id=" .. shop.owner.user.id).json
        assert.is_true(#own.data > 0)
        for _, row in ipairs(own.data) do assert.equal(shopper.user.id, row.user_id) end
        local other = shop.owner:get("/auth/logs/login?user_id=" .. shopper.user.id).json
        for _, row in ipairs(other.data) do assert.equal(shopper.user.id, row.user_id) end
        assert.equal(400, shop.owner:get("/auth/logs/login?page=1.5").status)
        assert.equal(400, shop.owner:get("/auth/logs/login?page=1&page=2").status)
    end)
end)
