-- What the database itself promises, whoever writes to it: stock, history, append-only rows, the checks of orders.
local json = require("core.json")
local pg = require("core.pg")
local uuid = require("core.uuid")
local owner = require("spec.owner")

local app = pg.pool("app")
local T = "schema_test"
local NOW, UNTIL = "2026-03-01T10:00:00Z", "2026-03-01T10:02:00Z"
local null = json.null

local function run(sql, ...)
    local rows, err = app:query(T, sql, ...)
    assert(rows, err and err.message)
    return rows
end

-- The SQLSTATE and the constraint that refuse a statement.
local function refused(sql, ...)
    local rows, err = app:query(T, sql, ...)
    assert.is_nil(rows)
    return err.code, err.constraint
end

local TABLES = { "due_work", "stock_reservations", "warehouse_inventory", "product_search", "orders", "checkouts", "products",
    "warehouses" }

local function clear()
    owner.clear(T, TABLES)
end

local function product(slug)
    local id = uuid.v7()
    run([[insert into products (tenant_key, id, name, slug, price_minor, effective_price_minor, created_at, updated_at)
        values ($1, $2, $3, $3, 1000, 1000, $4::timestamptz, $4::timestamptz)]], T, id, slug, NOW)
    return id
end

local function stock(warehouse_id, slug, quantity)
    local id = uuid.v7()
    run([[insert into warehouse_inventory (tenant_key, id, warehouse_id, product_id, quantity, created_at, updated_at)
        values ($1, $2, $3, $4, $5, $6::timestamptz, $6::timestamptz)]], T, id, warehouse_id, product(slug), quantity, NOW)
    return id
end

describe("stock_reserve", function()
    local a, b

    before_each(function()
        clear()
        local warehouse = uuid.v7()
        run([[insert into warehouses (tenant_key, id, name, created_at, updated_at) values ($1, $2, 'W', $3::timestamptz,
            $3::timestamptz)]],
            T, warehouse, NOW)
        a, b = stock(warehouse, "a", 10), stock(warehouse, "b", 3)
    end)

    teardown(clear)

    -- groups: { { {slot, quantity}, ... }, ... } over the rows a (1) and b (2)
    local function reserve(groups)
        local grp, slot, qty, rid, key = {}, {}, {}, {}, {}
        for g, lines in ipairs(groups) do
            local id = uuid.v7()
            for _, line in ipairs(lines) do
                grp[#grp + 1], slot[#slot + 1], qty[#qty + 1] = g, line[1], line[2]
                rid[#rid + 1], key[#key + 1] = uuid.v7(), id
            end
        end
        return run([[select stock_reserve($1, $2::uuid[], $3::int[], $4::int[], $5::int[], $6::uuid[], $7::uuid[], $8::int,
            $9::timestamptz, $10::timestamptz) as granted]], T, pg.array({ a, b }), pg.array(grp), pg.array(slot), pg.array(qty),
            pg.array(rid), pg.array(key), #groups, NOW, UNTIL)[1].granted
    end

    local function figures(id)
        local row = run([[select reserved_quantity, available_quantity, version from warehouse_inventory
            where tenant_key = $1 and id = $2]],
            T, id)[1]
        return row.reserved_quantity, row.available_quantity, row.version
    end

    it("grants what fits in the order of arrival, and all or nothing to each group", function()
        local granted = reserve({ { { 1, 4 }, { 2, 2 } }, { { 1, 1 }, { 2, 2 } }, { { 1, 6 } }, { { 2, 1 } } })
        assert.are.same({ 1, 3, 4 }, granted)
        assert.are.equal(10, (figures(a)))
        assert.are.equal(3, (figures(b)))
        assert.are.equal(4, #run("select id from stock_reservations where tenant_key = $1 and status = 'HELD'", T))
        assert.are.equal(3, #run("select id from due_work where tenant_key = $1 and kind = 'stock.reservation'", T))
    end)

    it("writes nothing when it refuses everybody", function()
        local _, _, version = figures(a)
        assert.are.same({}, reserve({ { { 1, 11 } }, { { 2, 4 } } }))
        local reserved, available, after = figures(a)
        assert.are.same({ 0, 10, version }, { reserved, available, after })
        assert.are.equal(0, #run("select id from stock_reservations where tenant_key = $1", T))
    end)

    it("counts buffer and backorder", function()
        run([[update warehouse_inventory set buffer_pct = 15, buffer_quantity = 1, backorder_limit = 2
            where tenant_key = $1 and id = $2]], T, a)
        -- 10 + 2 - 1 - ceil(1.5) = 9
        assert.are.same({}, reserve({ { { 1, 10 } } }))
        assert.are.same({ 1 }, reserve({ { { 1, 9 } } }))
    end)

    it("is backed by a CHECK: no statement reserves more than there is", function()
        local code, constraint = refused("update warehouse_inventory set reserved_quantity = 11 where tenant_key = $1 and id = $2", T, a)
        assert.are.same({ "23514", "warehouse_inventory_reserved" }, { code, constraint })
    end)

    it("reserves nothing of another tenant", function()
        local rows = assert(app:query("schema_other", [[select stock_reserve($1, $2::uuid[], '{1}', '{1}', '{1}', $3::uuid[], $3::uuid[], 1,
            $4::timestamptz, $5::timestamptz) as granted]], T, pg.array({ a }), pg.array({ uuid.v7() }), NOW, UNTIL))
        assert.are.same({}, rows[1].granted)
        assert.are.equal(0, (figures(a)))
    end)
end)

describe("a reservation's status", function()
    it("follows from what is open, consumed, released and expired", function()
        clear()
        local warehouse = uuid.v7()
        run([[insert into warehouses (tenant_key, id, name, created_at, updated_at) values ($1, $2, 'W', $3::timestamptz,
            $3::timestamptz)]],
            T, warehouse, NOW)
        local row = stock(warehouse, "a", 10)
        local id = uuid.v7()
        run([[insert into stock_reservations (tenant_key, id, group_key, inventory_id, quantity, expires_at, created_at, updated_at)
            values ($1, $2, $2, $3, 3, $4::timestamptz, $5::timestamptz, $5::timestamptz)]], T, id, row, UNTIL, NOW)
        local function after(change)
            return run("update stock_reservations set " .. change .. " where tenant_key = $1 and id = $2 returning status", T, id)[1].status
        end
        assert.are.equal("HELD", after("closed_at = null"))
        assert.are.equal("CONFIRMED", after("expires_at = null"))
        assert.are.equal("CONFIRMED", after("consumed_qty = 1"))
        assert.are.equal("CONSUMED", after("released_qty = 2"))
        assert.are.equal("RELEASED", after("consumed_qty = 0, released_qty = 3"))
        assert.are.equal("EXPIRED", after("expired = true"))
        assert.are.equal("23514", (refused("update stock_reservations set consumed_qty = 1 where tenant_key = $1 and id = $2", T, id)))
        clear()
    end)
end)

describe("kasma_must", function()
    it("raises the SQLSTATE that it is given", function()
        assert.are.equal("KS003", (refused("select kasma_must(false, 'KS003')")))
        assert.are.equal("KS001", (refused("select kasma_must(null, 'KS001')")))
        assert.is_true(run("select kasma_must(true, 'KS001') as ok")[1].ok)
    end)
end)

describe("an order", function()
    local function insert(change)
        local o = { subtotal = 1000, discount = 100, shipping = 50, tax = 95, total = 1045, due = 1045, inclusive = false, rounding = 0 }
        for name, value in pairs(change) do o[name] = value end
        local checkout, id = uuid.v7(), uuid.v7()
        run([[insert into checkouts (tenant_key, id, total_minor, amount_due_minor, created_at, updated_at)
            values ($1, $2, 0, 0, $3::timestamptz, $3::timestamptz)]], T, checkout, NOW)
        return app:query(T, [[insert into orders (tenant_key, id, guest_email, order_number, checkout_id, subtotal_minor,
            discount_total_minor,
            shipping_total_minor, tax_total_minor, cash_rounding_minor, total_amount_minor, amount_due_minor, tax_inclusive, placed_at,
            created_at, updated_at) values ($1, $2::uuid, $3, $2::uuid::text, $4, $5, $6, $7, $8, $9, $10, $11, $12,
            $13::timestamptz, $13::timestamptz,
            $13::timestamptz)]], T, id, change.email or "a@b.test", checkout, o.subtotal, o.discount, o.shipping, o.tax, o.rounding,
            o.total,
            o.due, o.inclusive, NOW)
    end

    teardown(clear)

    it("adds up, with the tax on top or inside, and after rounding to cash", function()
        assert.is_truthy(insert({}))
        assert.is_truthy(insert({ inclusive = true, total = 950, due = 950 }))
        assert.is_truthy(insert({ rounding = 45, total = 1000, due = 1000 }))
    end)

    it("that does not add up is refused", function()
        for _, change in ipairs({ { total = 1044, due = 1044 }, { due = 1000 }, { discount = -100, total = 1245, due = 1245 } }) do
            local ok, err = insert(change)
            assert.is_nil(ok)
            assert.are.equal("23514", err.code)
        end
    end)
end)

describe("history", function()
    it("gets partitions ahead with policy and grants, keeps a range of which DEFAULT holds rows, and drops what is over", function()
        local tx = assert(app:begin(T))
        local far = "2093-05-20T00:00:00Z"
        local early = assert(tx:query("select history_id('2093-07-02T00:00:00Z'::timestamptz)::text as id"))[1].id
        assert(tx:query([[insert into audit_index (tenant_key, id, action, created_at) values ($1, $2, 'test', $3::timestamptz)]], T,
        early, far))
        assert(tx:query("select history_partitions($1::timestamptz, '400 days')", far))
        local names = {}
        for _, row in ipairs(assert(tx:query([[select c.relname as name, c.relrowsecurity and c.relforcerowsecurity as forced,
            has_table_privilege('kasma_app', c.oid, 'insert') as may, exists (select from pg_policy p where p.polrelid = c.oid
            and p.polname = 'tenant') as policy
            from pg_inherits i join pg_class c on c.oid = i.inhrelid where i.inhparent = 'audit_index'::regclass]]))) do
            names[row.name] = row.forced and row.may and row.policy
        end
        assert.is_true(names.audit_index_default)
        assert.is_true(names.audit_index_20930501)
        assert.is_true(names.audit_index_20930601)
        assert.is_nil(names.audit_index_20930701)
        assert.is_true(names.audit_index_20930801)
        assert.are.equal(0, assert(tx:query("select history_partitions($1::timestamptz, '400 days') as n", far))[1].n)

        local past = "2021-05-20T00:00:00Z"
        assert(tx:query("select history_partitions($1::timestamptz, '400 days')", past))
        local there = "select to_regclass('audit_index_20210501') is not null as there"
        assert.is_true(assert(tx:query(there))[1].there)
        assert(tx:query("select history_partitions('2026-11-01T00:00:00Z'::timestamptz, '400 days')"))
        assert.is_false(assert(tx:query(there))[1].there)
        tx:rollback()
    end)

    it("loses no partition of the last thirty days, whatever moment the caller names", function()
        local tx = assert(app:begin(T))
        local function partitions()
            local names = {}
            for i, row in ipairs(assert(tx:query([[select c.relname as name from pg_inherits i join pg_class c on c.oid = i.inhrelid
                where i.inhparent in ('audit_index'::regclass, 'audit_auth_log'::regclass) and c.relname ~ '_[0-9]{8}$'
                and to_date(right(c.relname, 8), 'YYYYMMDD') > clock_timestamp() - interval '30 days' order by 1]]))) do
                names[i] = row.name
            end
            return names
        end
        assert(tx:query("select history_partitions(clock_timestamp(), '400 days')"))
        local before = partitions()
        assert.is_true(#before >= 6)
        assert(tx:query("select history_partitions('2999-01-01T00:00:00Z'::timestamptz, '-1000 years')"))
        local left = {}
        for _, name in ipairs(partitions()) do left[name] = true end
        for _, name in ipairs(before) do assert.is_true(left[name], name) end
        tx:rollback()
    end)

    it("keeps each row for thirty days, and lets older ones go", function()
        local function made(days)
            local id = uuid.v7()
            run([[insert into audit_index (tenant_key, id, action, created_at) values ($1, $2, 'test',
                clock_timestamp() - make_interval(days => $3::int))]], T, id, days)
            return id
        end
        local young, old = made(29), made(31)
        for _, name in ipairs{ "audit_index", "audit_auth_log" } do
            if name == "audit_auth_log" then
                run([[insert into audit_auth_log (tenant_key, id, action, created_at) values ($1, $2, 'TEST',
                    clock_timestamp())]], T, young)
            end
            assert.are.equal("KS005", (refused("delete from " .. name .. " where tenant_key = $1 and id = $2", T, young)), name)
        end
        assert.are.equal(1, run("delete from audit_index where tenant_key = $1 and id = $2", T, old).affected)
        assert.are.equal("42501", (refused("update audit_index set created_at = created_at - interval '1 year' where tenant_key = $1", T)))
    end)
end)

describe("append-only rows", function()
    it("are neither changed nor removed by the server", function()
        local id = uuid.v7()
        run([[insert into exchange_rates (tenant_key, id, wire_id, from_currency, to_currency, rate, effective_at, created_at, updated_at)
            values ($1, $2::uuid, left(replace($2::uuid::text, '-', ''), 24), 'USD', 'VND', 25450, $3::timestamptz,
            $3::timestamptz, $3::timestamptz)]],
            T, id, NOW)
        assert.are.equal("42501", (refused("update exchange_rates set rate = 1 where tenant_key = $1 and id = $2", T, id)))
        assert.are.equal("42501", (refused("delete from exchange_rates where tenant_key = $1 and id = $2", T, id)))
    end)
end)

describe("a host name", function()
    it("belongs to one app", function()
        local insert = [[insert into apps (id, app_key, tenant_key, name, hostnames, created_at, updated_at)
            values ($1, $2, 'MASTER', 'x', $3::text[], $4::timestamptz, $4::timestamptz)]]
        local tx = assert(app:begin())
        assert(tx:query(insert, uuid.v7(), "schema_one", pg.array({ "one.test", "two.test" }), NOW))
        local ok, err = tx:query(insert, uuid.v7(), "schema_two", pg.array({ "two.test" }), NOW)
        assert.is_nil(ok)
        assert.are.same({ "23505", "apps_hostname" }, { err.code, err.constraint })
        tx:rollback()
    end)
end)

describe("a tenant's key", function()
    it("has its form and never changes", function()
        local insert = [[insert into tenants (id, tenant_key, name, created_at, updated_at)
            values ($1, $2, 'x', $3::timestamptz, $3::timestamptz)]]
        for _, key in ipairs({ "", "-a", "a b", "a'b", "ä", ("x"):rep(64) }) do
            local ok, err = app:query(nil, insert, uuid.v7(), key, NOW)
            assert.is_nil(ok)
            assert.are.equal("tenants_key_form", err.constraint)
        end
        local ok, err = app:query(nil, "update tenants set tenant_key = 'OTHER' where tenant_key = 'MASTER'")
        assert.is_nil(ok)
        assert.are.equal("KS005", err.code)
    end)
end)

describe("a person's text", function()
    it("is folded: no accents, no case, the Vietnamese d as d", function()
        assert.are.equal("tra o long da lat", run("select kasma_fold($1) as t", "Trà Ô Long Đà Lạt")[1].t)
        assert.are.equal("strasse", run("select kasma_fold($1) as t", "Straße")[1].t)
    end)

    it("becomes a query of prefixes whatever it holds, or none", function()
        assert.are.equal("'o':* & 'tra':*", run("select kasma_query($1)::text as q", "Trà ô")[1].q)
        for _, text in ipairs({ "", "'", "\\", ":*", "& | !" }) do
            assert.is_nil(run("select kasma_query($1)::text as q", text)[1].q)
        end
        assert.is_nil(run("select kasma_query($1)::text as q", null)[1].q)
    end)
end)
