-- The migrations' runner: what it refuses, and that a database which is up to date stays as it is.
local crypto = require("core.crypto")
local migrate = require("kasma.migrate")
local pg = require("core.pg")
local catalogue = require("api.catalogue")

local function file(version, text)
    return { version = version, name = ("%04d_x"):format(version), sql = text, sha256 = crypto.sha256(text) }
end

local function row(version, text)
    return { version = version, name = ("%04d_x"):format(version), sha256 = crypto.sha256(text) }
end

describe("a migration", function()
    it("is pending until it was applied", function()
        local files = { file(1, "a"), file(2, "b"), file(3, "c") }
        assert.are.equal(3, #migrate.pending(files, {}))
        local pending = migrate.pending(files, { row(1, "a") })
        assert.are.equal(2, #pending)
        assert.are.equal(2, pending[1].version)
        assert.are.equal(0, #migrate.pending(files, { row(1, "a"), row(2, "b"), row(3, "c") }))
    end)

    it("that was edited after it was applied stops the run", function()
        local ok, err = pcall(migrate.pending, { file(1, "edited") }, { row(1, "a") })
        assert.is_false(ok)
        assert.matches("was changed after it was applied", tostring(err))
    end)

    it("of a newer program stops an older one", function()
        local ok, err = pcall(migrate.pending, { file(1, "a") }, { row(1, "a"), row(2, "b") })
        assert.is_false(ok)
        assert.matches("older than the database", tostring(err))
    end)

    it("that was jumped over stops the run", function()
        local ok, err = pcall(migrate.pending, { file(1, "a"), file(2, "b"), file(3, "c") }, { row(1, "a"), row(3, "c") })
        assert.is_false(ok)
        assert.matches("was never applied", tostring(err))
    end)

    it("has its number in the list, and every file is listed", function()
        local files = migrate.files()
        assert.is_true(#files >= 10)
        for i, f in ipairs(files) do assert.are.equal(i, f.version) end
    end)

    it("is not run a second time", function()
        assert.are.equal(0, #migrate.check())
        assert.are.equal(0, #migrate.plan())
        assert.are.equal(0, migrate.run())
    end)

    it("is recorded with its sum, its program and how long it took", function()
        local rows = assert(pg.pool("app"):query(nil, "select name, sha256, \"binary\", micros from schema_migrations order by version"))
        local files = migrate.files()
        assert.are.equal(#files, #rows)
        for i, f in ipairs(files) do
            assert.are.equal(f.name, rows[i].name)
            assert.are.equal(f.sha256, rows[i].sha256)
            assert.is_true(rows[i].micros > 0 and rows[i].binary ~= "")
        end
    end)
end)

describe("what stands when a migration comes", function()
    -- The migration over a shop's rows, in a transaction that is taken back.
    local function migrated(name, before, after)
        local sql
        for _, f in ipairs(migrate.files()) do if f.name == name then sql = f.sql end end
        return catalogue.psql("owner", table.concat({ "begin; set local session_replication_role = replica;", before,
            "set local role kasma_owner; set local search_path = public;", assert(sql), "reset role;", after, "rollback;" }, "\n"))
    end

    it("are promotions whose beginning and end are to be told", function()
        local out = migrated("0032_promotion_windows", [[
            alter table promotions drop column told_at;
            delete from due_work where kind = 'marketing.promotion_window';
            insert into promotions (tenant_key, id, name, type, currency, start_date, end_date, is_active, created_at, updated_at)
              select 'windowed', ('00000000-0000-4000-8000-00000000000' || n)::uuid, n, kind, 'VND', now() + starts * interval '1 hour',
                now() + ends * interval '1 hour', active, now(), now()
              from (values ('1', 'discount', 1, 2, true), ('2', 'discount', -1, 2, true), ('3', 'discount', -2, -1, true),
                ('4', 'discount', 1, 2, false), ('5', 'script', 1, 2, true), ('6', 'discount', null, null, true))
                as p (n, kind, starts, ends, active);]], [[
            select p.name, p.told_at is not null, d.due_at = p.start_date, d.due_at = p.end_date from promotions p
              left join due_work d on d.tenant_key = p.tenant_key and d.id = p.id and d.kind = 'marketing.promotion_window'
              where p.tenant_key = 'windowed' order by p.name;
            select relname, relforcerowsecurity from pg_class where relname in ('promotions', 'due_work') order by 1;]])
        assert.equal("1|t|t|f\n2|t|f|t\n3|t||\n4|t||\n5|f||\n6|t||\ndue_work|t\npromotions|t\n", out)
    end)

    it("are runs of workflows that wait for an event", function()
        local out = migrated("0033_workflow_listeners_again", [[
            insert into workflow_runs (tenant_key, id, rule_id, version, event, event_id, entity_type, entity_id, awaits, listens, state,
                started_at, finished_at, updated_at)
              select tenant, ('00000000-0000-4000-8000-00000000000' || n)::uuid, '00000000-0000-4000-8000-0000000000aa', 1, 'order.placed',
                ('00000000-0000-4000-8000-00000000001' || n)::uuid, 'order', n, awaits::text[], listens,
                case when ended then 'done' else 'waiting' end, now(), case when ended then now() end, now()
              from (values ('upgraded', '1', '{order.paid}', false, false), ('upgraded', '2', '{}', false, false),
                ('upgraded', '3', '{order.paid}', true, false), ('upgraded-too', '4', '{order.paid,order.cancelled}', false, false),
                ('upgraded-too', '5', '{order.paid}', false, true)) as r (tenant, n, awaits, listens, ended);]], [[
            select tenant_key, entity_id, listens from workflow_runs where tenant_key in ('upgraded', 'upgraded-too') order by entity_id;
            select relname, relforcerowsecurity from pg_class where relname = 'workflow_runs';]])
        assert.equal("upgraded|1|t\nupgraded|2|f\nupgraded|3|t\nupgraded-too|4|t\nupgraded-too|5|t\nworkflow_runs|t\n", out)
    end)
end)

describe("a migration that changes rows of tenants", function()
    it("takes row security off the owner before and puts it back behind", function()
        local forced, changes = {}, 0
        for name in catalogue.psql("owner", "select relname from pg_class where relforcerowsecurity"):gmatch("[^\n]+") do
            forced[name] = true
        end
        for _, f in ipairs(migrate.files()) do
            local sql = "\n" .. f.sql
            -- 0025 forgot it; 0033 does what it meant.
            for _, verb in ipairs(f.version ~= 25 and { "update", "insert into", "delete from" } or {}) do
                for at, name in sql:gmatch("()\n" .. verb .. " ([%w_]+)") do
                    if forced[name] then
                        local off = sql:find("\nalter table " .. name .. " no force row level security;", 1, true)
                        local on = sql:find("\nalter table " .. name .. " force row level security;", at, true)
                        assert.is_true(off ~= nil and off < at and on ~= nil, f.name .. " changes no row of " .. name)
                        changes = changes + 1
                    end
                end
            end
        end
        assert.is_true(changes >= 3)
    end)
end)

describe("credentials", function()
    it("come out of a URL decoded", function()
        local user, password = migrate.credentials("postgresql://kasma_app:p%40ss%2Fw%3Ard@127.0.0.1:5432/kasma")
        assert.are.equal("kasma_app", user)
        assert.are.equal("p@ss/w:rd", password)
        user, password = migrate.credentials("postgres://kasma_owner@db/kasma")
        assert.are.equal("kasma_owner", user)
        assert.is_nil(password)
        assert.is_nil(migrate.credentials("postgresql:///kasma"))
    end)

    it("go to the server as what PostgreSQL keeps of them, never as they are", function()
        -- Password and salt of RFC 7677's example; the keys follow from them.
        local salt = crypto.unbase64("W22ZaJ0SNY7soEsUEjb6gQ==")
        assert.are.equal("SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:"
            .. "wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=", migrate.scram_verifier("pencil", salt))
    end)
end)
