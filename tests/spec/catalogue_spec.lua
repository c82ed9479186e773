-- Reads the database's own catalogue and refuses a table that breaks the ground rules, so that a new table is covered the
-- day it appears. Everything is read as the server role, which may see the catalogue but owns nothing.
local pg = require("core.pg")
local catalogue = require("api.catalogue")

local app = pg.pool("app")
local PLATFORM = catalogue.PLATFORM

-- The only indexes of tenant tables that do not begin with the tenant: what the system reads across tenants.
local ACROSS = { outbox_unsent = "seq", due_work_due = "due_at" }

local SEARCH_TABLES = { customer_search = true, order_search = true, product_search = true }

-- Types whose comparison operators are leakproof: an index over others is not used under row security.
local LEAKPROOF = {}
for name in ("text varchar uuid int2 int4 int8 bool date timestamptz"):gmatch("%S+") do LEAKPROOF[name] = true end

local function rows(sql, ...)
    local answer, err = app:query(nil, sql, ...)
    assert(answer, err and err.message)
    return answer
end

local function none(list, what)
    assert.are.equal("", table.concat(list, "\n"), what)
end

local function tenant_tables()
    local list = {}
    for _, row in ipairs(rows([[select c.oid::bigint as oid, c.relname as name, c.relrowsecurity as secured,
        c.relforcerowsecurity as forced from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where n.nspname = 'public' and c.relkind in ('r', 'p') order by c.relname]])) do
        if not PLATFORM[row.name] then list[#list + 1] = row end
    end
    return list
end

describe("the catalogue", function()
    local tables = tenant_tables()

    it("has tables, and every platform table of the list", function()
        assert.is_true(#tables > 60)
        for name in pairs(PLATFORM) do
            assert.is_true(rows("select to_regclass('public.' || $1) is not null as there", name)[1].there, name)
        end
    end)

    it("forces row security on every tenant table and partition, by the tenant's policy", function()
        local bad = {}
        for _, t in ipairs(tables) do
            if not (t.secured and t.forced) then bad[#bad + 1] = t.name .. ": row security is not forced" end
            local policy = rows([[select pg_get_expr(polqual, polrelid) as using
                , pg_get_expr(polwithcheck, polrelid) as checked, polcmd::text as cmd
                from pg_policy where polrelid = $1::oid and polname = 'tenant' and polroles = array['kasma_app'::regrole::oid] ]], t.oid)[1]
            local want = "(tenant_key = current_setting('kasma.tenant_key'::text, true))"
            if not policy or policy.using ~= want or policy.checked ~= want or policy.cmd ~= "*" then
                bad[#bad + 1] = t.name .. ": no policy `tenant` for kasma_app"
            end
        end
        none(bad)
    end)

    it("has no row security and no tenant's key column as a wall on platform tables", function()
        for _, row in ipairs(rows([[select relname as name from pg_class where relnamespace = 'public'::regnamespace
            and relkind = 'r' and relrowsecurity]])) do
            assert.is_nil(PLATFORM[row.name], row.name)
        end
    end)

    it("opens no table to anybody but the owner, the server, the relay and the search role", function()
        local bad = {}
        for _, row in ipairs(rows([[select c.relname as name, p.polname as policy,
            array(select pg_get_userbyid(r)::text from unnest(p.polroles) r) as roles
            from pg_policy p join pg_class c on c.oid = p.polrelid where p.polname <> 'tenant' order by 1, 2]])) do
            local role = row.roles[1]
            local ok = #row.roles == 1 and ((row.policy == "search" and role == "kasma_search" and SEARCH_TABLES[row.name])
                or (row.policy == "system" and role == "kasma_system" and (row.name == "outbox" or row.name == "due_work")))
            if not ok then bad[#bad + 1] = row.name .. ": policy " .. row.policy .. " for " .. tostring(role) end
        end
        for _, row in ipairs(rows([[select table_name as name, grantee, string_agg(privilege_type, ',' order by privilege_type) as rights
            from information_schema.table_privileges where table_schema = 'public' and grantee not in ('kasma_owner', 'kasma_app')
            group by 1, 2]])) do
            local ok = (row.grantee == "kasma_search" and SEARCH_TABLES[row.name] and row.rights == "SELECT")
                or (row.grantee == "kasma_system" and (row.name == "outbox" or row.name == "due_work"))
                or (row.grantee == "kasma_system" and PLATFORM[row.name] and row.rights == "SELECT")
            if not ok then bad[#bad + 1] = row.name .. ": " .. row.rights .. " for " .. row.grantee end
        end
        none(bad)
    end)

    it("shows the server nothing but these tables: no view, no foreign table, no other schema", function()
        local bad = {}
        for _, row in ipairs(rows([[select n.nspname || '.' || c.relname as name, c.relkind::text as kind from pg_class c
            join pg_namespace n on n.oid = c.relnamespace where n.nspname not in ('pg_catalog', 'information_schema', 'pg_toast')
            and n.nspname not like 'pg_temp%' and n.nspname not like 'pg_toast_temp%' and c.relkind in ('r', 'p', 'v', 'm', 'f')
            and not exists (select from pg_depend d where d.objid = c.oid and d.deptype = 'e')
            and (n.nspname <> 'public' or c.relkind not in ('r', 'p'))
            and (has_any_column_privilege('kasma_app', c.oid, 'select') or has_any_column_privilege('kasma_app', c.oid, 'update'))]])) do
            bad[#bad + 1] = row.name .. ": what it shows (" .. row.kind .. ") stands under no row security of its own"
        end
        none(bad)
    end)

    it("gives the server rights on every tenant table and partition, and never TRUNCATE, REFERENCES or TRIGGER", function()
        local bad = {}
        for _, t in ipairs(tables) do
            local r = rows([[select has_table_privilege('kasma_app', $1::oid, 'select')
                and has_table_privilege('kasma_app', $1::oid, 'insert') as normal,
                has_table_privilege('kasma_app', $1::oid, 'truncate') or has_table_privilege('kasma_app', $1::oid, 'references')
                or has_table_privilege('kasma_app', $1::oid, 'trigger') as strange]], t.oid)[1]
            if not r.normal then bad[#bad + 1] = t.name .. ": the server may not read or write it" end
            if r.strange then bad[#bad + 1] = t.name .. ": the server has rights it does not need" end
        end
        none(bad)
    end)

    it("gives tables to kasma_owner alone; no role of ours is a superuser or bypasses row security", function()
        local bad = {}
        for _, row in ipairs(rows([[select c.relname as name, pg_get_userbyid(c.relowner)::text as owner from pg_class c
            where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p', 'S', 'v', 'm')
            and not exists (select from pg_depend d where d.objid = c.oid and d.deptype = 'e')]])) do
            if row.owner ~= "kasma_owner" then bad[#bad + 1] = row.name .. " belongs to " .. row.owner end
        end
        for _, row in ipairs(rows([[select rolname as name, rolsuper as super, rolbypassrls as bypass, rolcanlogin as login,
            array_to_string(rolconfig, ',') as settings
                from pg_roles where rolname in ('kasma_owner', 'kasma_app', 'kasma_system', 'kasma_search')]])) do
            if row.super or row.bypass then bad[#bad + 1] = row.name .. " is not bound by row security" end
            if (row.name == "kasma_app" or row.name == "kasma_system")
                and not (row.settings or ""):find("citus.propagate_set_commands=local", 1, true) then
                bad[#bad + 1] = row.name .. " does not propagate SET LOCAL on Citus"
            end
            if (row.name == "kasma_app" or row.name == "kasma_system") then
                for _, limit in ipairs({ "statement_timeout=15s", "lock_timeout=5s", "idle_in_transaction_session_timeout=60s" }) do
                    if not (row.settings or ""):find(limit, 1, true) then bad[#bad + 1] = row.name .. " has no " .. limit end
                end
            end
        end
        none(bad)
    end)

    it("has tenant_key and app_key, both NOT NULL, in every tenant table", function()
        local bad = {}
        for _, t in ipairs(tables) do
            local n = rows([[select count(*)::int as n from pg_attribute where attrelid = $1::oid and attname in ('tenant_key', 'app_key')
                and attnotnull and atttypid = 'text'::regtype]], t.oid)[1].n
            if n ~= 2 then bad[#bad + 1] = t.name end
        end
        none(bad)
    end)

    it("begins every primary key, unique key and index of a tenant table with tenant_key", function()
        local bad = {}
        for _, row in ipairs(rows([[select c.relname as name, i.relname as index, x.indisunique as unique, a.attname as first
            from pg_index x join pg_class i on i.oid = x.indexrelid join pg_class c on c.oid = x.indrelid
            left join pg_attribute a on a.attrelid = c.oid and a.attnum = x.indkey[0]
            where c.relnamespace = 'public'::regnamespace order by 1, 2]])) do
            if not PLATFORM[row.name] and row.first ~= "tenant_key" then
                if row.unique or ACROSS[row.index] ~= row.first then bad[#bad + 1] = row.index .. " of " .. row.name end
            end
        end
        for _, t in ipairs(tables) do
            if rows("select count(*)::int as n from pg_constraint where conrelid = $1::oid and contype = 'p'", t.oid)[1].n ~= 1 then
                bad[#bad + 1] = t.name .. " has no primary key"
            end
        end
        none(bad)
    end)

    it("indexes only types whose comparison is leakproof, outside the search tables", function()
        local bad = {}
        for _, row in ipairs(rows([[select c.relname as name, i.relname as index, t.typname as type
            from pg_index x join pg_class i on i.oid = x.indexrelid join pg_class c on c.oid = x.indrelid
            join pg_attribute a on a.attrelid = i.oid and a.attnum > 0 join pg_type t on t.oid = a.atttypid
            where c.relnamespace = 'public'::regnamespace]])) do
            if not PLATFORM[row.name] and not SEARCH_TABLES[row.name] and not LEAKPROOF[row.type] then
                bad[#bad + 1] = row.index .. " over " .. row.type
            end
        end
        for name in pairs(LEAKPROOF) do
            local unsafe = rows([[select count(*)::int as n from pg_operator o join pg_proc p on p.oid = o.oprcode
                where o.oprname in ('=', '<', '<=', '>', '>=') and o.oprleft = o.oprright
                and o.oprleft = case $1 when 'varchar' then 'text' else $1 end::regtype and not p.proleakproof]], name)[1].n
            if unsafe > 0 then bad[#bad + 1] = "comparison of " .. name .. " is not leakproof" end
        end
        none(bad)
    end)

    it("carries tenant_key first in every foreign key between tenant tables, and has none from a platform table", function()
        local bad = {}
        for _, row in ipairs(rows([[select k.conname as name, c.relname as from, f.relname as to, k.confdeltype::text as on_delete,
            (select attname from pg_attribute where attrelid = k.conrelid and attnum = k.conkey[1]) as first,
            (select attname from pg_attribute where attrelid = k.confrelid and attnum = k.confkey[1]) as target
            from pg_constraint k join pg_class c on c.oid = k.conrelid join pg_class f on f.oid = k.confrelid
            where k.contype = 'f' and k.connamespace = 'public'::regnamespace and k.conparentid = 0]])) do
            if not PLATFORM[row.to] then
                if PLATFORM[row.from] then bad[#bad + 1] = row.name .. ": from a platform table to a tenant table" end
                if row.first ~= "tenant_key" or row.target ~= "tenant_key" then
                    bad[#bad + 1] = row.name .. ": does not begin with tenant_key"
                end
            end
            if row.on_delete ~= "a" and row.on_delete ~= "c" then bad[#bad + 1] = row.name .. ": neither NO ACTION nor CASCADE" end
            if row.to == "apps" or (row.to == "tenants" and not PLATFORM[row.from]) then
                bad[#bad + 1] = row.name .. ": share-locks one hot row"
            end
        end
        none(bad)
    end)

    it("has a name of our own for every constraint and index", function()
        local bad = {}
        for _, row in ipairs(rows([[select k.conname as name, c.relname as table, k.contype::text as type from pg_constraint k
            join pg_class c on c.oid = k.conrelid where k.connamespace = 'public'::regnamespace and k.conparentid = 0
            and not c.relispartition]])) do
            local automatic = (row.type == "c" and row.name:find("_check%d*$")) or (row.type == "f" and row.name:find("_fkey%d*$"))
                or (row.type == "u" and row.name:find("_key%d*$")) or row.name:find("_excl%d*$")
            if automatic or row.name:sub(1, #row.table + 1) ~= row.table .. "_" or #row.name > 58 then
                bad[#bad + 1] = row.name .. " of " .. row.table
            end
        end
        for _, row in ipairs(rows([[select i.relname as name, c.relname as table from pg_index x join pg_class i on i.oid = x.indexrelid
            join pg_class c on c.oid = x.indrelid where c.relnamespace = 'public'::regnamespace and not c.relispartition]])) do
            if row.name:find("_idx%d*$") or row.name:sub(1, #row.table + 1) ~= row.table .. "_" then
                bad[#bad + 1] = row.name .. " of " .. row.table
            end
        end
        none(bad)
    end)

    it("has no ENUM, no float, no json, no char(n) and no timestamp without a zone", function()
        local bad = {}
        for _, row in ipairs(rows([[select c.relname as name, a.attname as column, t.typname as type, t.typtype::text as kind
            from pg_attribute a join pg_class c on c.oid = a.attrelid join pg_type t on t.oid = a.atttypid
            where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p') and a.attnum > 0 and not a.attisdropped]])) do
            if row.kind == "e" or row.type == "float4" or row.type == "float8" or row.type == "json" or row.type == "bpchar"
                or row.type == "timestamp" or row.type == "money" then
                bad[#bad + 1] = row.name .. "." .. row.column .. " is " .. row.type
            end
            if row.column:find("_minor$") and row.type ~= "int8" then bad[#bad + 1] = row.name .. "." .. row.column .. " is not bigint" end
        end
        none(bad)
    end)

    it("takes no time and no id from the database by default", function()
        local bad = {}
        for _, row in ipairs(rows([[select c.relname as name, a.attname as column, pg_get_expr(d.adbin, d.adrelid) as value
            from pg_attrdef d join pg_class c on c.oid = d.adrelid join pg_attribute a on a.attrelid = d.adrelid and a.attnum = d.adnum
            where c.relnamespace = 'public'::regnamespace and a.attgenerated = '']])) do
            local volatile = row.value:find("now()", 1, true) or row.value:find("timestamp()", 1, true)
                or row.value:find("CURRENT_", 1, true)
                or row.value:find("uuid(", 1, true) or (row.value:find("nextval", 1, true) and row.name .. row.column ~= "outboxseq")
            if volatile then bad[#bad + 1] = row.name .. "." .. row.column .. ": " .. row.value end
        end
        none(bad)
    end)

    it("leads every GIN index of a tenant table with tenant_key", function()
        local bad = {}
        for _, row in ipairs(rows([[select c.relname as name, i.relname as index, a.attname as first, x.indnatts as n
            from pg_index x join pg_class i on i.oid = x.indexrelid join pg_class c on c.oid = x.indrelid join pg_am m on m.oid = i.relam
            left join pg_attribute a on a.attrelid = c.oid and a.attnum = x.indkey[0]
            where m.amname = 'gin' and c.relnamespace = 'public'::regnamespace]])) do
            if not PLATFORM[row.name] and (row.first ~= "tenant_key" or row.n < 2 or not SEARCH_TABLES[row.name]) then
                bad[#bad + 1] = row.index
            end
        end
        none(bad)
    end)

    it("lets search functions run as kasma_search, with a fixed path, for the server alone", function()
        local bad, found = {}, 0
        for _, row in ipairs(rows([[select p.oid::regprocedure::text as name, p.prosecdef as definer
            , pg_get_userbyid(p.proowner)::text as owner,
            array_to_string(p.proconfig, ';') as config, has_function_privilege('kasma_app', p.oid, 'execute') as app,
            exists (select from aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a where a.grantee = 0) as public,
            p.proname as short, pg_get_function_arguments(p.oid) as arguments, p.prosrc as source
            from pg_proc p where p.pronamespace = 'public'::regnamespace
            and not exists (select from pg_depend d where d.objid = p.oid and d.deptype = 'e')]])) do
            if row.definer then
                if not (row.config or ""):find("search_path=pg_catalog, public, pg_temp", 1, true) then
                    bad[#bad + 1] = row.name .. ": no fixed search_path"
                end
                if row.public then bad[#bad + 1] = row.name .. ": PUBLIC may execute it" end
                if not row.app then bad[#bad + 1] = row.name .. ": the server may not execute it" end
                if row.owner == "kasma_search" then
                    found = found + 1
                    if not row.arguments:find("^p_tenant text") then
                        bad[#bad + 1] = row.name .. ": the tenant is not its first parameter"
                    end
                    if not row.source:find("current_setting('kasma.tenant_key', true)", 1, true) then
                        bad[#bad + 1] = row.name .. ": does not ask whose transaction it is"
                    end
                elseif row.short ~= "history_partitions" then
                    bad[#bad + 1] = row.name .. ": runs as " .. row.owner
                end
            elseif row.owner ~= "kasma_owner" then
                bad[#bad + 1] = row.name .. " belongs to " .. row.owner
            end
        end
        assert.is_true(found >= 3)
        assert.is_false(rows([[select has_schema_privilege('kasma_search', 'public', 'create')
            or has_schema_privilege('kasma_app', 'public', 'create') as may]])[1].may)
        none(bad)
    end)

    it("refuses changes to append-only tables twice: no right, and a trigger", function()
        local n = 0
        for _, row in ipairs(rows([[select c.relname as name, has_table_privilege('kasma_app', c.oid, 'update')
            or has_table_privilege('kasma_app', c.oid, 'delete') as may
            from pg_trigger t join pg_class c on c.oid = t.tgrelid where t.tgfoid = 'kasma_refuse_change'::regproc]])) do
            n = n + 1
            assert.is_false(row.may, row.name)
        end
        assert.is_true(n >= 3)
    end)

    it("keeps the history of money: the server's role has no right to remove it", function()
        local bad = {}
        for name in ([[orders order_items order_payments order_adjustments order_events checkouts payments payment_events
            coupon_redemptions promotion_usages stock_movements number_blocks audit_heads users tenants apps access_keys]]):gmatch("%S+") do
            if rows("select has_table_privilege('kasma_app', $1, 'delete') as may", name)[1].may then bad[#bad + 1] = name end
        end
        none(bad)
    end)

    it("keeps the MASTER rows from the first migration", function()
        assert.are.equal(1, #rows("select id from tenants where tenant_key = 'MASTER'"))
        assert.are.equal(1, #rows("select id from apps where app_key = 'MASTER' and tenant_key = 'MASTER'"))
    end)
end)

describe("row security", function()
    local A, B = "wall_a", "wall_b"
    local NOW = "2026-01-01T00:00:00Z"
    local role = { [A] = "0190a000-0000-7000-8000-00000000000a", [B] = "0190a000-0000-7000-8000-00000000000b" }

    setup(function()
        for _, tenant in ipairs({ A, B }) do
            app:query(tenant, "delete from roles where tenant_key = $1", tenant)
            assert(app:query(tenant, [[insert into roles (tenant_key, id, code, role_key, display_name, created_at, updated_at)
                values ($1, $2, 'T', 'wall_test', 'Wall', $3::timestamptz, $3::timestamptz)]], tenant, role[tenant], NOW))
        end
    end)

    teardown(function()
        for _, tenant in ipairs({ A, B }) do app:query(tenant, "delete from roles where tenant_key = $1", tenant) end
    end)

    it("shows nothing when no tenant is set", function()
        assert.are.equal(0, rows("select count(*)::int as n from roles")[1].n)
    end)

    it("shows a tenant its own rows and no others, also without a filter", function()
        local seen = app:query(A, "select tenant_key from roles where role_key = 'wall_test'")
        assert.are.equal(1, #seen)
        assert.are.equal(A, seen[1].tenant_key)
    end)

    it("lets no tenant write, move or remove a row of another", function()
        local ok, err = app:query(A, [[insert into roles (tenant_key, id, code, role_key, display_name, created_at, updated_at)
            values ($1, $2, 'T', 'other', 'Other', $3::timestamptz, $3::timestamptz)]], B, "0190a000-0000-7000-8000-00000000000c", NOW)
        assert.is_nil(ok)
        assert.are.equal("42501", err.code)
        app:query(A, "update roles set display_name = 'stolen' where id = $1", role[B])
        app:query(A, "delete from roles where id = $1", role[B])
        local kept = app:query(B, "select display_name from roles where tenant_key = $1 and id = $2", B, role[B])
        assert.are.equal("Wall", kept[1].display_name)
        ok, err = app:query(A, "update roles set tenant_key = $1 where tenant_key = $2 and id = $3", B, A, role[A])
        assert.is_nil(ok)
        assert.are.equal("42501", err.code)
    end)
end)
