-- Row security, seen from a raw session: whoever gets hold of the server's own connection sees one tenant's rows, or none.
--
-- Every table and partition of the catalogue gets a row of "mine" and one of "theirs". Then the role of the server tries, on each
-- of them, to read, change, remove and plant rows without a tenant, with a wrong one and with mine. The rows are made and tried
-- in one transaction that is rolled back. What the server had really stored is asked in a session of DATABASE_URL itself.
local catalogue = require("api.catalogue")
local shop_of = require("api.shop")
local support = require("api.support")

local quote = catalogue.quote

-- Values for tables whose constraints cannot be satisfied by trying.
local VALUES = { carts = { owner_key = "g:" .. ("0"):rep(64) }, webhook_endpoints = { url = "https://a.example.org/", events = "{*}",
    state = "active" } }

-- SECURITY DEFINER functions that the server may call and that take no tenant, and why.
local NO_TENANT = { history_partitions = "makes and drops partitions by time, returns a count" }

local MINE, THEIRS = "isolation-mine", "isolation-theirs"
-- What a session may have set instead of a tenant.
local NOBODY = { "", MINE:upper(), MINE .. " ", MINE .. "'", "%", "*", MINE .. "," .. THEIRS, "null" }

local function none(list) assert.equal("", table.concat(list, "\n")) end

describe("the server's own role", function()
    local tables = catalogue.tenant_tables()
    local by_name = {}
    for _, t in ipairs(tables) do by_name[t.name] = t end
    local rows, failed = catalogue.rows(tables, VALUES)

    it("meets a row in every table under row security", function()
        assert.is_true(#tables > 60, #tables .. " tables")
        none(failed) -- add what the table needs to VALUES
    end)

    -- Rows of all tables and then the lines, as the role of the server: `<table>|<what>|<answer>`.
    local function asked(lines)
        none(failed)
        local sql = { catalogue.ATTEMPT, "begin;", "set local session_replication_role = replica;" }
        for i, t in ipairs(tables) do
            sql[#sql + 1] = catalogue.insert(t, rows[t.name], MINE, 2 * i) .. ";"
            sql[#sql + 1] = catalogue.insert(t, rows[t.name], THEIRS, 2 * i + 1) .. ";"
        end
        sql[#sql + 1] = "set local session authorization kasma_app;"
        lines(sql)
        sql[#sql + 1] = "rollback;"
        local answers = {}
        for line in catalogue.psql("owner", table.concat(sql, "\n")):gmatch("[^\n]+") do
            local name, what, said = line:match("^([%w_]+)|([^|]*)|(.*)$")
            if name then answers[#answers + 1] = { name, what, said } end
        end
        assert.is_true(#answers >= #tables, #answers .. " answers")
        return answers
    end

    local function count(sql, t, what, where)
        sql[#sql + 1] = ("select %s, %s, pg_temp.counted(%s);"):format(quote(t.name), quote(what),
            quote("select count(*) from " .. t.name .. (where and " where " .. where or "")))
    end
    local function attempt(sql, t, what, statement)
        sql[#sql + 1] = ("select %s, %s, pg_temp.attempt(%s);"):format(quote(t.name), quote(what), quote(statement))
    end

    -- Nothing was hit: no row, or refused by rights (42501).
    local function untouched(said) return said == "ok 0" or said:find("^42501") ~= nil end

    local function writes(sql, t, tenant, condition)
        attempt(sql, t, "update", ("update %s set tenant_key = tenant_key%s"):format(t.name, condition))
        attempt(sql, t, "take over", ("update %s set tenant_key = %s%s"):format(t.name, quote(MINE), condition))
        attempt(sql, t, "delete", "delete from " .. t.name .. condition)
        attempt(sql, t, "plant", catalogue.insert(t, rows[t.name], tenant, 100000))
    end

    local function check(answers)
        local bad = {}
        for _, answer in ipairs(answers) do
            local name, what, said = answer[1], answer[2], answer[3]
            local ok
            if what == "sees mine" then
                ok = said ~= "0"
            elseif what:find("^sees") then
                ok = said == "0"
            elseif what == "plant" or what == "give away" then
                ok = said:find("^42501") ~= nil
            else
                ok = untouched(said)
            end
            if not ok then bad[#bad + 1] = table.concat({ name, what, said }, " ") end
        end
        none(bad)
    end

    it("sees and writes nothing without a tenant", function()
        check(asked(function(sql)
            for _, t in ipairs(tables) do
                count(sql, t, "sees")
                count(sql, t, "sees theirs", "tenant_key = " .. quote(THEIRS))
                writes(sql, t, THEIRS, "")
                writes(sql, t, MINE, " where tenant_key = " .. quote(MINE))
            end
        end))
    end)

    it("sees and writes nothing with what is nearly a tenant", function()
        check(asked(function(sql)
            for _, setting in ipairs(NOBODY) do
                sql[#sql + 1] = "set local kasma.tenant_key = " .. quote(setting) .. ";"
                for _, t in ipairs(tables) do count(sql, t, "sees as " .. setting) end
            end
            for _, t in ipairs(tables) do writes(sql, t, THEIRS, "") end
        end))
    end)

    it("sees and writes one tenant's rows with that tenant", function()
        check(asked(function(sql)
            sql[#sql + 1] = "set local kasma.tenant_key = " .. quote(MINE) .. ";"
            for _, t in ipairs(tables) do
                -- A partitioned table also shows the rows of its partitions.
                if t.kind == "r" then count(sql, t, "sees mine", "tenant_key = " .. quote(MINE)) end
                count(sql, t, "sees others", "tenant_key is distinct from " .. quote(MINE))
                attempt(sql, t, "update", ("update %s set tenant_key = tenant_key where tenant_key = %s"):format(t.name, quote(THEIRS)))
                attempt(sql, t, "delete", "delete from " .. t.name .. " where tenant_key = " .. quote(THEIRS))
                attempt(sql, t, "plant", catalogue.insert(t, rows[t.name], THEIRS, 100000))
                if t.may:find("update", 1, true) then
                    attempt(sql, t, "give away", ("update %s set tenant_key = %s"):format(t.name, quote(THEIRS)))
                end
            end
        end))
    end)

    it("may not lift row security", function()
        local answers = asked(function(sql)
            local one = by_name.orders
            attempt(sql, one, "disable", "alter table orders disable row level security")
            attempt(sql, one, "no force", "alter table orders no force row level security")
            attempt(sql, one, "policy", "create policy open on orders using (true)")
            attempt(sql, one, "drop policy", "drop policy tenant on orders")
            attempt(sql, one, "truncate", "truncate orders cascade")
            attempt(sql, one, "row_security", "set local row_security = off; select 1 from orders")
            attempt(sql, one, "replica", "set local session_replication_role = replica")
            attempt(sql, one, "function", "create function public.own() returns int language sql security definer return 1")
            for _ = 1, #tables do count(sql, one, "sees") end
        end)
        local bad = {}
        for _, answer in ipairs(answers) do
            if answer[2] ~= "sees" and not answer[3]:find("^42501") then bad[#bad + 1] = table.concat(answer, " ") end
        end
        none(bad)
    end)
end)

describe("a session of the server's database address", function()
    local theirs, mine = support.tenant{ currency = "VND", country = "VN" }, support.tenant{ currency = "VND", country = "VN" }
    local mark = support.unique("Marigold")
    for _, shop in ipairs{ theirs, mine } do
        shop.product = shop_of.product(shop, { name = mark, price = 1000 })
        shop_of.stock(shop, shop.product, 5)
        shop.order = shop_of.must(shop_of.checkout(shop_of.buyer(shop, shop.product, 1, support.shopper(shop)))).orders[1].id
        catalogue.psql("app", ([[begin; set local kasma.tenant_key = %s;
            insert into order_search (tenant_key, order_id, terms) select tenant_key, id, kasma_terms(%s, '', '') from orders
              on conflict on constraint order_search_pkey do update set terms = excluded.terms;
            insert into customer_search (tenant_key, customer_id, name, terms)
              select tenant_key, id, kasma_fold(%s), kasma_terms(%s, '', '') from customers
              on conflict on constraint customer_search_pkey do update set terms = excluded.terms;
            commit;]]):format(quote(shop.key), quote(mark), quote(mark), quote(mark)))
    end
    local tables = catalogue.tenant_tables()

    it("shows no row of any table before it names a tenant, and afterwards that tenant's alone", function()
        local sql = { catalogue.ATTEMPT }
        for _, t in ipairs(tables) do
            sql[#sql + 1] = ("select '%s', 'without', pg_temp.counted('select count(*) from %s');"):format(t.name, t.name)
        end
        sql[#sql + 1] = "begin; set local kasma.tenant_key = " .. quote(mine.key) .. ";"
        for _, t in ipairs(tables) do
            sql[#sql + 1] = ("select '%s', 'mine', count(*), count(*) filter (where tenant_key is distinct from %s) from %s;"):format(
                t.name, quote(mine.key), t.name)
        end
        sql[#sql + 1] = "commit;"
        for _, t in ipairs(tables) do
            sql[#sql + 1] = ("select '%s', 'after', pg_temp.counted('select count(*) from %s');"):format(t.name, t.name)
        end
        local bad, own, lines = {}, 0, 0
        for line in catalogue.psql("app", table.concat(sql, "\n")):gmatch("[^\n]+") do
            local name, what, count, strange = line:match("^([%w_]+)|(%w+)|(%d+)|?(%d*)$")
            lines = lines + 1
            if what == "mine" then
                if count ~= "0" then own = own + 1 end
                if strange ~= "0" then bad[#bad + 1] = name .. " shows rows of another tenant: " .. strange end
            elseif count ~= "0" then
                bad[#bad + 1] = name .. " shows rows " .. what .. " a tenant: " .. count
            end
        end
        none(bad)
        assert.is_true(lines == 3 * #tables and own > 20, lines .. " lines, own rows in " .. own .. " tables")
    end)

    it("becomes no other role", function()
        local sql = { catalogue.ATTEMPT }
        for _, role in ipairs{ "kasma_owner", "kasma_search", "kasma_system" } do
            sql[#sql + 1] = ("select pg_temp.attempt('set role %s');"):format(role)
            sql[#sql + 1] = ("select pg_temp.attempt('set session authorization %s');"):format(role)
        end
        for line in catalogue.psql("app", table.concat(sql, "\n")):gmatch("[^\n]+") do assert.equal("42501 ", line) end
    end)

    it("shows a function of its own, in a condition, no row of another tenant", function()
        local text = catalogue.psql("app", ([[create function pg_temp.leak(t text) returns boolean language plpgsql cost 0.0001 as
            $l$ begin raise notice 'leaked %%', t; return true; end $l$;
            begin; set local kasma.tenant_key = %s;
            select count(*) from products where pg_temp.leak(id::text); select count(*) from orders where pg_temp.leak(id::text);
            select count(*) from product_search where pg_temp.leak(product_id::text);]]):format(quote(mine.key)), true)
        assert.is_truthy(text:find("leaked " .. mine.product, 1, true), text)
        assert.is_truthy(text:find("leaked " .. mine.order, 1, true), text)
        assert.is_nil(text:find(theirs.product, 1, true))
        assert.is_nil(text:find(theirs.order, 1, true))
    end)

    it("gets from functions that see more what belongs to the tenant that it named, and asked for", function()
        local functions = catalogue.json("owner", [[select json_agg(json_build_object('name', p.proname, 'settings', p.proconfig,
            'types', (select json_agg(format_type(t, null) order by n) from unnest(p.proargtypes) with ordinality x(t, n)))) from pg_proc p
            where p.pronamespace = 'public'::regnamespace and p.prosecdef and has_function_privilege('kasma_app', p.oid, 'execute')]])
        local asked, found = 0, 0
        for _, fn in ipairs(functions) do
            local path = table.concat(fn.settings, " ")
            assert.is_truthy(path:find("search_path=[^=]*pg_temp$") or path:find("search_path=[^=]*pg_temp "), fn.name .. " " .. path)
            if not NO_TENANT[fn.name] then
                assert.equal("text", fn.types[1], fn.name .. " takes no tenant first: add it to NO_TENANT and say why")
                local function call(tenant)
                    local arguments = { quote(tenant) }
                    for i = 2, #fn.types do
                        local kind = fn.types[i]
                        arguments[i] = i == 2 and quote(mark) .. "::" .. kind or kind == "integer" and "50" or "null::" .. kind
                    end
                    return ("select count(*) from (select %s(%s)) x"):format(fn.name, table.concat(arguments, ", "))
                end
                local function with(setting, tenant)
                    return tonumber((catalogue.psql("app", ("begin; %s %s;"):format(
                        setting and "set local kasma.tenant_key = " .. quote(setting) .. ";" or "", call(tenant))):match("%d+")))
                end
                asked = asked + 1
                found = found + with(theirs.key, theirs.key)
                assert.equal(0, with(nil, theirs.key), fn.name .. " without a tenant")
                assert.equal(0, with("", theirs.key), fn.name .. " with an empty tenant")
                assert.equal(0, with(mine.key, theirs.key), fn.name .. " of mine for theirs")
                assert.equal(0, with("", ""), fn.name .. " for nobody")
                assert.equal(0, with(theirs.key, mine.key), fn.name .. " of theirs for mine")
            end
        end
        assert.is_true(asked >= 3 and found >= 3, asked .. " functions found " .. found .. " rows")
    end)
end)
