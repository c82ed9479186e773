-- Values on their way to PostgreSQL and back, what is refused, and what an error carries.
local config = require("core.config")
local json = require("core.json")
local pg = require("core.pg")
local sched = require("core.sched")
local db = require("kasma.db")
local waiting = require("spec.waiting")

local app

local function one(sql, ...)
    local rows, err = app:read(nil, sql, ...)
    assert.is_nil(err)
    return rows[1]
end

local function refused(pattern, ...)
    local ok, err = pcall(app.read, app, nil, ...)
    assert.is_false(ok)
    assert.matches(pattern, tostring(err))
end

describe("a value from PostgreSQL", function()
    setup(function() app = pg.pool("app") end)

    it("is a number, a boolean or a text by its type", function()
        local row = one([[select 1::int2 as a, -2::int4 as b, 9007199254740992::int8 as c, 1.5::float8 as d, 0.25::float4 as e, true as f,
            false as g, 'x'::text as h, 12.3400::numeric as i, '2026-11-29'::date as j, '00000000-0000-7000-8000-000000000001'::uuid as k]])
        assert.are.same({ a = 1, b = -2, c = 9007199254740992, d = 1.5, e = 0.25, f = true, g = false, h = "x", i = "12.3400",
            j = "2026-11-29", k = "00000000-0000-7000-8000-000000000001" }, row)
    end)

    it("that no number can carry is an error, never rounded", function()
        for _, n in ipairs({ "9007199254740993", "-9223372036854775808" }) do
            local rows, err = app:read(nil, "select $1::int8 as n", n)
            assert.is_nil(rows)
            assert.are.equal("limit", err.kind)
        end
        assert.are.equal("9223372036854775807", one("select 9223372036854775807::text as n").n)
    end)

    it("that is NULL is absent", function()
        local row = one("select null::text as a, null::int as b, 1 as c")
        assert.are.same({ c = 1 }, row)
    end)

    it("is an ISO time in UTC", function()
        assert.are.equal("2026-11-29T03:00:01.204Z", one("select '2026-11-29 10:00:01.204567+07'::timestamptz as t").t)
        assert.are.equal("2026-11-29T03:00:01.000Z", one("select $1::timestamptz as t", "2026-11-29T03:00:01Z").t)
        assert.are.equal("2026-11-29T03:00:01.200Z", one("select '2026-11-29 03:00:01.2Z'::timestamptz as t").t)
        assert.are.equal("infinity", one("select 'infinity'::timestamptz as t").t)
    end)

    it("is a decoded document", function()
        local row = one([[select '{"a": [1, {"b": null}], "n": 1.50}'::jsonb as j, '[]'::json as e]])
        assert.are.equal(1, row.j.a[1])
        assert.are.equal(json.null, row.j.a[2].b)
        assert.are.equal(1.5, row.j.n)
        assert.are.equal("[]", json.encode(row.e))
    end)

    it("is an array of one dimension", function()
        local row = one([[select array[1,2,null]::int8[] as i, array['a','b "c" \d','', 'NULL', null] as t, array[true,false] as b,
            '{}'::text[] as e, array['2026-11-29 03:00:01Z'::timestamptz] as w, array[1.50]::numeric[] as n,
            array['{"k": "v,}"}'::jsonb] as j,
            array['\x0001'::bytea] as y]])
        assert.are.same({ 1, 2, json.null }, { row.i[1], row.i[2], row.i[3] })
        assert.are.same({ "a", 'b "c" \\d', "", "NULL", json.null }, { unpack(row.t, 1, 5) })
        assert.is_true(row.b[1])
        assert.is_false(row.b[2])
        assert.are.equal(0, #row.e)
        assert.are.equal("[]", json.encode(row.e))
        assert.are.equal("2026-11-29T03:00:01.000Z", row.w[1])
        assert.are.equal("1.50", row.n[1])
        assert.are.equal("v,}", row.j[1].k)
        assert.are.equal("\0\1", row.y[1])
        local rows, err = app:read(nil, "select array[[1,2],[3,4]] as a")
        assert.is_nil(rows)
        assert.are.equal("limit", err.kind)
    end)

    it("comes with the number of rows", function()
        local rows = app:read(nil, "select n from generate_series(1, 5) n order by n")
        assert.are.equal(5, #rows)
        assert.are.equal(5, rows.affected)
        rows = app:query(nil, "select 1 where false")
        assert.are.equal(0, #rows)
        assert.are.equal(0, rows.affected)
        assert.are.equal(0, #app:query(nil, "do $$ begin end $$"))
    end)
end)

describe("a parameter", function()
    it("goes there and back unchanged", function()
        local raw = {}
        for i = 0, 255 do raw[#raw + 1] = string.char(i) end
        raw = table.concat(raw)
        local row = one([[select $1::int8 as a, $2::float8 as b, $3::bool as c, $4::text as d, $5::bytea as e, $6::jsonb as f,
            $7::text[] as g, $8::text as h]], 9007199254740991, 0.1, false, "it's \\ \"x\" $1", pg.bytea(raw), pg.json({ a = { 1, "x" } }),
            pg.array({ 'a"b\\', "NULL", "", json.null, "c,d" }),
            json.null)
        assert.are.equal(9007199254740991, row.a)
        assert.are.equal(0.1, row.b)
        assert.is_false(row.c)
        assert.are.equal("it's \\ \"x\" $1", row.d)
        assert.are.equal(raw, row.e)
        assert.are.same({ 1, "x" }, { row.f.a[1], row.f.a[2] })
        assert.are.same({ 'a"b\\', "NULL", "", json.null, "c,d" }, { unpack(row.g, 1, 5) })
        assert.is_nil(row.h)
        assert.are.equal(0, #one("select $1::uuid[] as a", pg.array({})).a)
    end)

    it("that is nil is refused, never a missing filter", function()
        refused("nil", "select $1::text", nil)
        refused("%$1 is nil", "select $1::text, $2::text", nil, "x")
        refused("%$2 is nil", "select $1::text, $2::text", "x", nil)
        refused("2 parameters, 1 were given", "select $1::text, $2::text", "x")
    end)

    it("too few or too many is refused", function()
        refused("1 parameters, 0 were given", "select $1::text")
        refused("0 parameters, 1 were given", "select 1", "x")
        local ok, err = pcall(app.pipeline, app, nil, { { "select $1::text", "a", "b" } })
        assert.is_false(ok)
        assert.matches("more were given", tostring(err))
        ok = pcall(app.pipeline, app, nil, { { "select $1::text" } })
        assert.is_false(ok)
    end)

    it("is counted by the text, not by its quotes and comments", function()
        local row = one([[select $1::int as a, '$2 it''s' as b, "c$3".c, e'\'$4' as d, $q$ $5 ' $q$ as e -- don't $6
            /* $7 ' */ from (select 1 as c) "c$3" where $1 = 1]], 1)
        assert.are.equal(1, row.a)
        assert.are.equal("$2 it's", row.b)
        assert.are.equal("'$4", row.d)
        assert.are.equal(" $5 ' ", row.e)
    end)

    it("of a kind that has no SQL is refused", function()
        refused("plain table", "select $1::text", {})
        refused("function", "select $1::text", function() end)
        refused("NUL byte", "select $1::text", "a\0b")
        assert.is_false(pcall(pg.array, { {} }))
    end)

    it("must be a tenant's key where a tenant is meant", function()
        for _, key in ipairs({ "", "a'b", "-a", ("a"):rep(64) }) do
            local rows, err = app:read(key, "select 1")
            assert.is_nil(rows)
            assert.are.equal("invalid", err.kind)
        end
        assert.are.equal("acme", app:read("acme", "select current_setting('kasma.tenant_key') as t")[1].t)
        assert.are.equal("none", app:read(nil, "select coalesce(nullif(current_setting('kasma.tenant_key', true), ''), 'none') as t")[1].t)
    end)
end)

describe("an error of PostgreSQL", function()
    it("holds thousands of statements and tens of thousands of parameters", function()
        local statements = {}
        for i = 1, 3000 do
            statements[i] = { "select $1::int + $2::int + $3::int + $4::int + $5::int as n, $6 as t, $7::bool as b", i, 1, 1,
                1, 1, "t" .. i, true }
        end
        local answers = assert(app:pipeline(nil, statements))
        assert.equal(3000, #answers)
        for i, rows in ipairs(answers) do assert.same({ n = i + 4, t = "t" .. i, b = true }, rows[1]) end
    end)

    it("says what and where", function()
        local rows, err = app:pipeline(nil, { { "select 1" }, { [[do $$ begin
            raise exception 'no' using errcode = '23505', constraint = 'things_sku_102008',
            table = 'things', column = 'sku', detail = 'why' ; end $$]] }, { "select 2" } })
        assert.is_nil(rows)
        assert.are.same({ kind = "query", code = "23505", message = "no", constraint = "things_sku", table = "things", column = "sku",
            detail = "why", statement = 2 }, err)
        local _, syntax = app:query(nil, "select 1 frm x y")
        assert.are.equal("42601", syntax.code)
        assert.are.equal(1, syntax.statement)
        assert.are.equal(14, syntax.position)
    end)

    it("leaves reads beside it alone", function()
        local function divide() return select(2, app:read("acme", "select 1 / 0")) end
        local function right() return app:read("acme", "select 7 as n")[1].n end
        local r = sched.parallel({ right, divide, right, divide, right })
        assert.are.equal(7, r[1])
        assert.are.equal("22012", r[2].code)
        assert.are.equal(7, r[3])
        assert.are.equal("22012", r[4].code)
        assert.are.equal(7, r[5])
    end)
end)

describe("a transaction", function()
    it("answers each statement, and ends with its task", function()
        local tx = assert(app:begin("acme"))
        assert.are.equal(1, tx:query("select $1::int as n", 1)[1].n)
        local r = assert(tx:pipeline({ { "select 2 as n" }, { "select $1::int as n", 3 } }))
        assert.are.equal(3, r[2][1].n)
        r = assert(tx:commit({ { "select 4 as n" } }))
        assert.are.equal(4, r[1][1].n)
        assert.is_false(pcall(tx.query, tx, "select 1"))
        assert.is_true(tx:rollback())
        local used = app:stats().used
        sched.parallel({ function()
            local open = assert(app:begin("acme"))
            assert(open:query("select 1"))
        end })
        for _ = 1, 3000 do
            if app:stats().used <= used then break end
            sched.sleep(10)
        end
        assert.is_true(app:stats().used <= used)
    end)

    it("takes only rollback after an error", function()
        local tx = assert(app:begin(nil))
        local rows, err = tx:query("select 1 / 0")
        assert.is_nil(rows)
        assert.are.equal("22012", err.code)
        rows, err = tx:commit()
        assert.is_nil(rows)
        assert.are.equal("invalid", err.kind)
        assert.is_true(tx:rollback())
    end)
end)

describe("transactions", function()
    it("that ask for something beside them are all answered, however many there are at once", function()
        local work, sums = {}, {}
        for i = 1, config.get("DATABASE_POOL") + 2 do
            work[i] = function()
                sums[i] = db.transaction("many" .. i, function(tx)
                    local mine = tx:one("select $1::int as n", i).n
                    return mine + db.one(nil, "select $1::int as n", 1000).n + db.one("other" .. i, "select $1::int as n", 1000).n
                end)
            end
        end
        sched.parallel(work)
        for i = 1, #work do assert.equal(2000 + i, sums[i]) end
    end)

    it("leave room for reads while all of them stand", function()
        local most, begun, ended, over = config.get("DATABASE_POOL"), 0, 0, false
        for _ = 1, most do
            sched.spawn(function()
                pcall(db.transaction, "many", function(tx)
                    tx:query("select 1")
                    begun = begun + 1
                    waiting(function() return over end)
                end)
                ended = ended + 1
            end)
        end
        waiting(function() return begun == most - 1 end, "transactions")
        assert.equal(1, db.one(nil, "select 1 as n").n)
        assert.equal(most - 1, begun)
        over = true
        waiting(function() return ended == most end, "the end of all")
    end)
end)

describe("a session", function()
    it("runs scripts, and tells where one failed", function()
        local s = assert(app:session())
        assert(s:script("create temp table spec_own (n int); insert into spec_own values (1), (2)"))
        assert.are.equal(2, s:query("select count(*) as n from spec_own where n < $1", 9)[1].n)
        local ok, err = s:script("select 1;\nselect nothing_here")
        assert.is_nil(ok)
        assert.are.equal("42703", err.code)
        assert.are.equal(18, err.position)
        s:close()
        assert.is_false(pcall(s.query, s, "select 1"))
    end)

    it("hears what is notified", function()
        local heard = {}
        app:listen("spec_channel", function(payload) heard[#heard + 1] = payload or "again" end)
        local function wait(n)
            for _ = 1, 3000 do
                if #heard >= n then return end
                sched.sleep(10)
            end
        end
        wait(1)
        assert.are.equal("again", heard[1])
        for _ = 1, 20 do app:notify("spec_channel") end
        wait(2)
        assert.are.equal("", heard[2])
    end)
end)
