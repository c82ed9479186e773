-- Reads the plans of the list and search queries at a few thousand rows in several tenants: each is answered from an index
-- and none scans the tenant, although row security hides most of what a planner could use.
local pg = require("core.pg")
local cleaner = require("spec.owner")

local app = pg.pool("app")
local TENANTS = { "plan_a", "plan_b", "plan_c", "plan_d", "plan_e", "plan_f" }
local ROWS = 3000
local NOW = "2026-01-01T00:00:00Z"
local LEAF = "/0190c000-0000-7000-8000-000000000001/0190c000-0000-7000-8000-000000000002/"

local function run(tenant, sql, ...)
    local answer, err = app:query(tenant, sql, ...)
    assert(answer, err and err.message)
    return answer
end

-- Rows are made by the server's role under each tenant, as everything is.
local MADE = {
    [[insert into product_categories (tenant_key, id, name, slug, path, created_at, updated_at)
      values ($1, '0190c000-0000-7000-8000-000000000002', 'Leaf', 'leaf', $2, $3::timestamptz, $3::timestamptz)]],
    [[insert into products (tenant_key, id, name, slug, category_id, price_minor, effective_price_minor, is_active, created_at, updated_at)
      select c.tenant_key, ('0190d000-0000-7000-8000-' || lpad(n::text, 12, '0'))::uuid, 'Product ' || n, 'product-' || n,
        case when n % 300 = 0 then c.id end, n * 1000, n * 1000, n % 10 <> 0,
        $2::timestamptz + n * interval '1 minute', $2::timestamptz
      from product_categories c, generate_series(1, $3::int) n where c.tenant_key = $1]],
    [[insert into product_search (tenant_key, product_id, name, path, tags, attributes, terms)
      select p.tenant_key, p.id, lower(p.name) || case when p.price_minor % 500000 = 0 then ' oolong' else ' green' end,
        case when p.category_id is null then '' else $2 end,
        case when p.price_minor % 700000 = 0 then array['0190e000-0000-7000-8000-000000000001'::uuid] else '{}' end,
        case when p.price_minor % 900000 = 0 then array['color=red'] else array['color=blue'] end,
        kasma_terms(p.name || case when p.price_minor % 500000 = 0 then ' oolong' else ' green' end, null, null)
      from products p where p.tenant_key = $1]],
    [[insert into checkouts (tenant_key, id, total_minor, amount_due_minor, created_at, updated_at)
      select p.tenant_key, p.id, 1000, 1000, p.created_at, p.created_at from products p where p.tenant_key = $1]],
    [[insert into orders (tenant_key, id, guest_email, order_number, checkout_id, status, subtotal_minor, total_amount_minor,
        amount_due_minor, placed_at, created_at, updated_at)
      select c.tenant_key, c.id, 'g@example.test', 'ORD-' || c.id, c.id,
        case when right(c.id::text, 2) = '00' then 'shipped' else 'processing' end, 1000, 1000,
        1000, c.created_at, c.created_at, c.created_at
      from checkouts c where c.tenant_key = $1]],
    [[insert into order_search (tenant_key, order_id, terms)
      select o.tenant_key, o.id, kasma_terms(o.order_number || ' buyer' || (row_number() over (order by o.id)), null, null)
      from orders o where o.tenant_key = $1]],
}

local LISTENER = "0190f000-0000-7000-8000-000000000001"
local NOTICES = { [[insert into users (id, email, created_at, updated_at)
      values ($1, 'plans@example.test', $2::timestamptz, $2::timestamptz) on conflict (id) do nothing]],
    [[insert into social_notices (tenant_key, app_key, id, recipient_id, notice_type, title, body, is_read, read_at, created_at, updated_at)
      select $1, 'app', ('0190f100-0000-7000-8000-' || lpad(n::text, 12, '0'))::uuid, $2, 'SYSTEM', 't', 'b', n % 500 <> 0,
        case when n % 500 <> 0 then $3::timestamptz end, $3::timestamptz + n * interval '1 second', $3::timestamptz
      from generate_series(1, $4::int) n]] }

-- Members: every tenant has the same accounts. One in a thousand is locked, one in a thousand staff; two names begin with xy.
local MEMBERS = {
    [[insert into users (id, email, display_name, status, user_type, created_at, updated_at)
      select ('0190f200-0000-7000-8000-' || lpad(n::text, 12, '0'))::uuid, 'plans' || n || '@example.test',
        case when n % 1500 = 0 then 'Xylo' else 'Number ' || n end, case when n % 1000 = 1 then 'locked' else 'active' end,
        case when n % 1000 = 2 then 'TENANT_1' else 'GENERAL_0' end, $1::timestamptz, $1::timestamptz
      from generate_series(1, $2::int) n on conflict (id) do nothing]],
    [[insert into user_tenants (id, user_id, tenant_key, created_at, updated_at)
      select gen_random_uuid(), ('0190f200-0000-7000-8000-' || lpad(n::text, 12, '0'))::uuid, $1,
        $2::timestamptz + n * interval '1 second', $2::timestamptz from generate_series(1, $3::int) n]],
    [[insert into roles (tenant_key, id, code, role_key, display_name, created_at, updated_at)
      select $1, ('0190f300-0000-7000-8000-' || lpad(n::text, 12, '0'))::uuid, k.key, k.key, k.key, $2::timestamptz, $2::timestamptz
      from generate_series(1, 300) n, lateral (select case n when 1 then 'finance' when 2 then 'customer' else 'role' || n end) k (key)]],
    [[insert into user_roles (tenant_key, id, user_id, role_id, created_at, updated_at)
      select r.tenant_key, gen_random_uuid(), m.user_id, r.id, m.created_at, m.created_at
      from roles r join user_tenants m on m.tenant_key = r.tenant_key
      where r.tenant_key = $1 and (r.role_key = 'customer' or (r.role_key = 'finance' and right(m.user_id::text, 3) = '007'))]],
}

local FINANCE, CUSTOMER = "0190f300-0000-7000-8000-000000000001", "0190f300-0000-7000-8000-000000000002"

local TABLES = { "user_roles", "roles", "user_tenants", "social_notices", "order_search", "orders", "checkouts", "product_search",
    "products", "product_categories" }

local function clear()
    for _, tenant in ipairs(TENANTS) do
        cleaner.clear(tenant, TABLES)
    end
    cleaner.clear_users("0190f200-0000-7000-8000-000000000000", "0190f200-0000-7000-8000-ffffffffffff")
end

-- Walks a plan; calls seen(node) for each.
local function walk(node, seen)
    seen(node)
    for _, child in ipairs(node.Plans or {}) do walk(child, seen) end
end

local function plan_of(sql, ...)
    local answer = run(TENANTS[1], "explain (analyze, timing off, format json) " .. sql, ...)
    local plan = answer[1]["QUERY PLAN"]
    return plan[1].Plan
end

-- The indexes that answer a query; fails when a table is scanned or many rows are read to throw them away.
local function indexes_of(sql, ...)
    local used = {}
    walk(plan_of(sql, ...), function(node)
        assert.are_not.equal("Seq Scan", node["Node Type"], (node["Relation Name"] or "") .. " is scanned")
        if node["Index Name"] then used[node["Index Name"]] = true end
        local dropped = (node["Rows Removed by Filter"] or 0) * (node["Actual Loops"] or 1)
        assert.is_true(dropped < 500, ("%d rows of %s were read for nothing"):format(dropped, tostring(node["Relation Name"])))
    end)
    return used
end

local COUNTERS = [[select seq_tup_read::int as scanned, coalesce(idx_tup_fetch, 0)::int as fetched, seq_scan::int as scans
    from pg_stat_xact_user_tables where relname = $1]]

-- How many rows of a table a statement reads, by the server's own counters: what they grow by, for they begin with what this connection
-- has read of late.
local function touched(tenant, name, sql, ...)
    local answers, err = app:pipeline(tenant, { { COUNTERS, name }, { sql, ... }, { COUNTERS, name } })
    assert(answers, err and err.message)
    local before, after = answers[1][1], answers[3][1]
    for key, value in pairs(before) do after[key] = after[key] - value end
    return answers[2], after
end

describe("at a few thousand rows in several tenants", function()
    setup(function()
        clear()
        for _, tenant in ipairs(TENANTS) do
            run(tenant, MADE[1], tenant, LEAF, NOW)
            run(tenant, MADE[2], tenant, NOW, ROWS)
            run(tenant, MADE[3], tenant, LEAF)
            for i = 4, #MADE do run(tenant, MADE[i], tenant) end
            run(tenant, NOTICES[1], LISTENER, NOW)
            run(tenant, NOTICES[2], tenant, LISTENER, NOW, ROWS)
            run(nil, MEMBERS[1], NOW, ROWS)
            run(nil, MEMBERS[2], tenant, NOW, ROWS)
            run(tenant, MEMBERS[3], tenant, NOW)
            run(tenant, MEMBERS[4], tenant)
        end
        -- The owner's job in life; here the figures must be there before the first plan.
        local owner = pg.pool("owner"):session()
        for _, name in ipairs(TABLES) do assert(owner:query("vacuum analyze " .. name)) end
        assert(owner:query("vacuum analyze users"))
        owner:close()
    end)

    teardown(clear)

    describe("the plan of", function()
        it("the newest products is an index in the order asked for", function()
            local used = indexes_of([[select p.id from products p where p.tenant_key = $1 and p.deleted_at is null and p.is_active
                order by p.created_at desc, p.id desc limit 20]], TENANTS[1])
            assert.is_true(used.products_newest)
        end)

        it("products by price is an index in the order asked for, with its bounds", function()
            local used = indexes_of([[select p.id from products p where p.tenant_key = $1 and p.deleted_at is null
                and p.effective_price_minor >= $2 and p.effective_price_minor <= $3 order by p.effective_price_minor, p.id limit 20]],
                TENANTS[1], 100000, 200000)
            assert.is_true(used.products_by_price)
        end)

        it("products by slug, and products of a category, is one index each", function()
            local used = indexes_of("select p.id from products p where p.tenant_key = $1 and p.slug = $2 and p.deleted_at is null",
                TENANTS[1], "product-77")
            assert.is_true(used.products_slug)
            used = indexes_of([[select p.id from products p where p.tenant_key = $1 and p.category_id = $2::uuid and p.deleted_at is null
                order by p.created_at desc limit 20]], TENANTS[1], "0190c000-0000-7000-8000-000000000002")
            assert.is_true(used.products_of_category)
        end)

        it("orders by status is an index in the order asked for", function()
            local used = indexes_of([[select o.id from orders o where o.tenant_key = $1 and o.status = 'shipped'
                order by o.created_at desc limit 20]], TENANTS[1])
            assert.is_true(used.orders_by_status)
        end)

        it("somebody's notices, from the start and from a cursor, is an index in the order asked for; what is unread, its own", function()
            local list = require("modules.notices.store").LIST
            local tenant, id = TENANTS[1], "0190f100-0000-7000-8000-000000000100"
            for _, from in ipairs{ { "infinity", "ffffffff-ffff-ffff-ffff-ffffffffffff" }, { "2026-01-01T00:01:40Z", id } } do
                local used = indexes_of(list[false][1], tenant, "app", LISTENER, from[1], from[2], 21, 0)
                assert.is_true(used.social_notices_newest)
            end
            local used = indexes_of(list[true][1], tenant, "app", LISTENER, "infinity", "ffffffff-ffff-ffff-ffff-ffffffffffff", 21, 0)
            assert.is_true(used.social_notices_unread)
            assert.is_true(indexes_of(list[true][2], tenant, "app", LISTENER).social_notices_unread)
        end)

        it("users of a tenant is one index under each filter and in each order, and their count the same index", function()
            local users = require("modules.iam.store")
            for wanted, filters in pairs{
                user_tenants_listed = { {}, { sort = "created_at" }, { sort = "-created_at" } },
                user_tenants_by_email = { { sort = "email" }, { sort = "-email" } },
                user_tenants_by_status = { { status = "locked" }, { status = "locked", user_type = "GENERAL_0" },
                    { status = "locked", sort = "email" } },
                user_tenants_by_type = { { user_type = "TENANT_1" }, { user_type = "TENANT_1", status = "active" } },
                user_tenants_search = { { q = "number 1234" }, { q = "number 1234", status = "active", sort = "email" }, { q = "xy" } },
                user_roles_holders = { { role_id = FINANCE }, { role_id = FINANCE, sort = "email" } },
            } do
                for _, filter in ipairs(filters) do
                    filter.limit, filter.offset, filter.now = 20, 0, NOW
                    local page, count = users.user_list(TENANTS[1], filter)
                    local name = wanted .. " for " .. (filter.sort or "") .. (filter.status or "") .. (filter.q or "")
                    assert.is_true(indexes_of(unpack(page))[wanted], name)
                    if not filter.sort then assert.is_true(indexes_of(unpack(count))[wanted], "count: " .. name) end
                end
            end
        end)

        it("users with a role that all have reads a page and no more", function()
            local page = require("modules.iam.store").user_list(TENANTS[1], { role_id = CUSTOMER, limit = 20, offset = 0, now = NOW })
            local _, read = touched(TENANTS[1], "user_tenants", unpack(page))
            indexes_of(unpack(page))
            assert.is_true(read.scanned == 0 and read.fetched <= 100, ("%d scanned, %d fetched"):format(read.scanned, read.fetched))
        end)

        it("memberships of a tenant, newest first, is an index in that order, and their count the same index", function()
            local members = require("modules.tenants.store")
            assert.is_true(indexes_of(members.MEMBERS, TENANTS[1], 20, 0).user_tenants_present)
            assert.is_true(indexes_of(members.MEMBER_COUNT, TENANTS[1]).user_tenants_present)
        end)

        it("the relay is the index of what is unsent, and the sweeper's is that of what is due", function()
            local system = pg.pool("system")
            for sql, index in pairs({
                ["select o.id from outbox o where o.sent_at is null and o.parked_at is null order by o.seq limit 100"] =
                    "outbox_unsent",
                ["select d.id from due_work d where d.due_at <= '2026-01-01' order by d.due_at limit 100"] = "due_work_due",
            }) do
                local answers = assert(system:pipeline(nil, { { "set local enable_seqscan = off" }, { "explain (format json) " .. sql } }))
                local found
                walk(answers[2][1]["QUERY PLAN"][1].Plan, function(node) found = found or node["Index Name"] == index end)
                assert.is_true(found, index)
            end
        end)
    end)

    describe("a search", function()
        local SEARCH = "select s as id from search_products($1, $2, $3, $4::uuid[], $5::text[], 100) s"
        local null = require("core.json").null
        local tag = "0190e000-0000-7000-8000-000000000001"

        local cases = {
            { "by words", 6, "oolo prod", null, null, null },
            { "by a name that is misspelt", 6, "oolnog", null, null, null },
            { "by category path", 10, null, LEAF:sub(1, 38), null, null },
            { "by tag", 4, null, null, pg.array({ tag }), null },
            { "by attribute", 3, null, null, null, pg.array({ "color=red" }) },
        }
        for _, case in ipairs(cases) do
            it(case[1] .. " reads what it finds and not the tenant", function()
                local found, counts = touched(TENANTS[2], "product_search", SEARCH, TENANTS[2], case[3], case[4], case[5], case[6])
                assert.are.equal(case[2], #found)
                assert.are.equal(0, counts.scans)
                assert.is_true(counts.fetched < 500, counts.fetched .. " rows were read")
            end)
        end

        it("combines its filters", function()
            local found = run(TENANTS[2], SEARCH, TENANTS[2], "product", LEAF, null, pg.array({ "color=red" }))
            assert.are.equal(3, #found)
            assert.are.equal(0, #run(TENANTS[2], SEARCH, TENANTS[2], "oolong", null, null, pg.array({ "color=red", "size=m" })))
        end)

        it("finds nothing for another tenant, whichever way round, and nothing when no tenant is set", function()
            assert.are.equal(0, #run(TENANTS[1], SEARCH, TENANTS[2], "oolong", null, null, null))
            assert.are.equal(0, #run(nil, SEARCH, TENANTS[2], "oolong", null, null, null))
        end)

        it("takes whatever a person types", function()
            for _, text in ipairs({ "", "   ", "'", "\\", "a & | ! b:*", "<->", "%", "_", ("x"):rep(1000), "trà ô long", "đ" }) do
                run(TENANTS[1], SEARCH, TENANTS[1], text, null, null, null)
            end
        end)

        it("of orders reads what it finds and not the tenant", function()
            local found, counts = touched(TENANTS[3], "order_search", "select s as id from search_orders($1, $2, 20) s",
                TENANTS[3], "buyer77")
            assert.is_true(#found > 0 and #found <= 20)
            assert.are.equal(0, counts.scans)
            assert.is_true(counts.fetched < 500)
            assert.are.equal(0, #run(TENANTS[1], "select s as id from search_orders($1, $2, 20) s", TENANTS[3], "buyer77"))
        end)
    end)
end)
