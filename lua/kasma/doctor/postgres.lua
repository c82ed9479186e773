-- PostgreSQL: the walls between tenants stand, the schema is this program's, and it has room, time and honest disks.
-- What only an administrator sees (transactions of other roles) is looked at when DATABASE_OWNER_URL is set.
local config = require("core.config")
local pg = require("core.pg")
local sched = require("core.sched")
local time = require("core.time")
local migrate = require("kasma.migrate")
local report = require("kasma.doctor.report")

local M = {}

-- Tables without a tenant; the same list stands in the test of the catalogue.
local PLATFORM = [['users', 'user_credentials', 'otps', 'auth_sessions', 'user_tenants', 'user_contexts', 'access_keys', 'tenants',
  'apps', 'modules', 'permissions', 'platform_roles', 'platform_role_permissions', 'platform_role_holders', 'public_refs',
  'schema_migrations', 'clock_shifts', 'worker_heartbeats', 'operations']]
local SYSTEM_TABLES = { outbox = true, due_work = true }
local OLDEST, NEWEST = 150000, 179999

local function reader(pool)
    return function(sql, ...)
        local rows, err = pool:read(nil, sql, ...)
        if not rows then error(err, 0) end
        return rows
    end
end

local function names_of(rows, member)
    local names = {}
    for i, row in ipairs(rows) do names[i] = row[member or "name"] end
    return names
end

local function version(d, read)
    local row = read("select current_setting('server_version') as text, current_setting('server_version_num')::int as n")[1]
    local text = row.text:match("^%S+")
    if row.n < OLDEST then
        d:fail("version", "version " .. text .. ", needs 15 to 17", { hint = "upgrade PostgreSQL" })
    elseif row.n > NEWEST then
        d:warn("version", "version " .. text .. " is newer than what is tested (15 to 17)")
    else
        d:ok("version", text)
    end
    local off = names_of(read([[select name || ' = ' || setting as name from pg_settings
      where name in ('fsync', 'full_page_writes', 'synchronous_commit') and setting = 'off' order by name]]))
    d:none("durability", off, "fsync, full_page_writes and synchronous_commit are on", "switched off",
        { effect = "an order that was answered may be lost in a crash", hint = "alter system set fsync = on; select pg_reload_conf()" })
end

local function roles(d, read)
    local me = read([[select current_user::text as name, rolsuper as super, rolbypassrls as bypass,
      (select count(*)::int from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.relowner = r.oid
        and n.nspname = 'public') as owns,
      exists (select from pg_roles o where o.rolname = 'kasma_owner' and pg_has_role(r.oid, o.oid, 'member')) as owner
      from pg_roles r where r.rolname = current_user]])[1]
    local wrong = {}
    if me.super then wrong[#wrong + 1] = "is a superuser" end
    if me.bypass then wrong[#wrong + 1] = "passes by row security" end
    if me.owns > 0 then wrong[#wrong + 1] = ("owns %d tables"):format(me.owns) end
    if me.owner then wrong[#wrong + 1] = "may become kasma_owner" end
    d:none("role", wrong, ("the server's role is %s: no superuser, owns nothing"):format(me.name), me.name,
        { effect = "one tenant may see another's rows", hint = "DATABASE_URL must sign in as kasma_app, as kasma migrate makes it" })
    local bypassing = names_of(read([[select rolname as name from pg_roles where rolbypassrls and not rolsuper
      and rolname not like 'pg\_%' order by 1]]))
    d:none("bypass", bypassing, "no role passes by row security", "roles with BYPASSRLS", { effect = "their sessions see every tenant",
        hint = "alter role <name> nobypassrls" })
    local system, err = pg.pool("system"):read(nil, "select current_user::text as name")
    if not system then
        d:fail("system", "cannot connect to DATABASE_SYSTEM_URL: " .. report.why(err),
            { effect = "relay and sweeper stand still: no mails, no jobs, nothing expires",
                hint = "kasma config print DATABASE_SYSTEM_URL" })
    elseif system[1].name ~= "kasma_system" then
        d:fail("system", "DATABASE_SYSTEM_URL signs in as " .. system[1].name, { hint = "it must sign in as kasma_system" })
    else
        d:ok("system", "relay and sweeper sign in as kasma_system")
    end
end

local function policies(d, read)
    local wrong, covered, searched = {}, {}, {}
    for _, row in ipairs(read([[select tablename as name, roles::text[] as roles, qual from pg_policies where schemaname = 'public'
      order by tablename, policyname]])) do
        for _, role in ipairs(row.roles) do
            if role == "kasma_system" then
                if SYSTEM_TABLES[row.name] then covered[row.name] = true else wrong[#wrong + 1] = "kasma_system on " .. row.name end
            elseif role == "kasma_search" then
                searched[row.name] = true
            elseif row.qual ~= "(tenant_key = current_setting('kasma.tenant_key'::text, true))" then
                wrong[#wrong + 1] = ("%s on %s is open: %s"):format(role, row.name, tostring(row.qual))
            end
        end
    end
    for name in pairs(SYSTEM_TABLES) do
        if not covered[name] then wrong[#wrong + 1] = "kasma_system has none on " .. name end
    end
    local n = 0
    for _, row in ipairs(read([[select c.relname as name from pg_class c join pg_namespace n on n.oid = c.relnamespace
      where n.nspname = 'public' and c.relkind in ('r', 'p') and has_table_privilege('kasma_search', c.oid, 'select') order by 1]])) do
        n = n + 1
        if not searched[row.name] then wrong[#wrong + 1] = "kasma_search reads " .. row.name end
    end
    for name in pairs(searched) do
        if not name:find("_search$") then wrong[#wrong + 1] = "kasma_search on " .. name end
    end
    d:none("policies", wrong, ("kasma_system sees outbox and due_work alone, kasma_search %d search tables"):format(n),
        "policies that should not be", { effect = "a role sees what is not its own", hint = "drop the policy; kasma migrate --check" })
end

-- What the server's role has no right to remove (migration 0019).
local KEPT = "{orders,order_items,order_payments,order_adjustments,order_events,checkouts,payments,payment_events,stock_movements,"
    .. "coupon_redemptions,promotion_usages,audit_heads}"

local function history(d, read)
    local open = names_of(read([[select c.relname as name from pg_class c join pg_namespace n on n.oid = c.relnamespace
      where n.nspname = 'public' and c.relname = any($1::text[]) and (has_table_privilege(current_user, c.oid, 'delete')
        or has_table_privilege(current_user, c.oid, 'truncate')) order by 1]], KEPT))
    d:none("history", open, "the server's role cannot remove the history of money", "history of money that the server's role may remove",
        { effect = "a stolen password removes what was sold", hint = "revoke delete, truncate on <name> from kasma_app" })
end

local function row_security(d, read)
    local rows = read([[select c.relname as name, c.relrowsecurity and c.relforcerowsecurity as forced from pg_class c
      join pg_namespace n on n.oid = c.relnamespace where n.nspname = 'public' and c.relkind in ('r', 'p') and not c.relname in (]]
        .. PLATFORM .. [[) and exists (select from pg_attribute a where a.attrelid = c.oid and a.attname = 'tenant_key'
      and not a.attisdropped) order by 1]])
    local open = {}
    for _, row in ipairs(rows) do
        if not row.forced then open[#open + 1] = row.name end
    end
    d:none("row_security", open, ("row security on %d of %d tables"):format(#rows, #rows), "tables without forced row security",
        { effect = "one tenant may see another's rows",
            hint = "alter table <name> enable row level security; alter table <name> force row level security" })
    if #read("select 1 as one from pg_extension where extname = 'citus'") > 0 then
        local setting = read("select current_setting('citus.propagate_set_commands', true) as value")[1].value
        if setting == "local" then
            d:ok("citus", "citus.propagate_set_commands is local")
        else
            d:fail("citus", "citus.propagate_set_commands is " .. tostring(setting), { effect = "the nodes do not know the tenant: no rows",
                hint = "alter role kasma_app set citus.propagate_set_commands = 'local'   # and kasma_system" })
        end
    end
end

local function migrations(d, read)
    local files, applied = migrate.files(), {}
    local newest = 0
    for _, row in ipairs(read("select version, name, sha256 from schema_migrations order by version")) do
        applied[row.version] = row
        newest = math.max(newest, row.version)
    end
    local pending, changed = {}, {}
    for _, file in ipairs(files) do
        local row = applied[file.version]
        if not row then pending[#pending + 1] = file.name elseif row.sha256 ~= file.sha256 then changed[#changed + 1] = file.name end
    end
    d:none("migrations", pending, ("migrations %04d = binary"):format(newest), "migrations that are pending",
        { effect = "routes that need them answer 500", hint = "kasma migrate" })
    if #changed > 0 then
        d:fail("migrations.sums", "applied migrations differ from the files: " .. table.concat(changed, ", "),
            { effect = "nobody knows what the schema is", hint = "install the files of the version that applied them" })
    end
    if newest > #files then
        d:warn("migrations.newer", ("the database is at %04d, this binary knows %04d"):format(newest, #files),
            { hint = "run the newer binary" })
    end
end

local function connections(d, read)
    local row = read([[select (select count(*)::int from pg_stat_activity where backend_type = 'client backend') as used,
      current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int as max]])[1]
    local text = ("%d of %d connections"):format(row.used, row.max)
    local more = { effect = "new workers cannot connect: 503", hint = "fewer WORKERS, a smaller DATABASE_POOL, or PgBouncer in front" }
    if row.used > 0.95 * row.max then
        d:fail("connections", text, more)
    elseif row.used > 0.8 * row.max then
        d:warn("connections", text, more)
    else
        d:ok("connections", text)
    end
end

-- Transactions of another role show their start to members and administrators alone, so each URL that there is looks.
local function transactions(d)
    local oldest, by = 0, nil
    for _, name in ipairs{ "app", "system", "owner" } do
        local url = ({ app = "DATABASE_URL", system = "DATABASE_SYSTEM_URL", owner = "DATABASE_OWNER_URL" })[name]
        local rows = (config.get(url) or "") ~= "" and pg.pool(name):read(nil, [[select extract(epoch from clock_timestamp()
          - xact_start)::float8 as age, usename::text as name, pid from pg_stat_activity where xact_start is not null
          and backend_type = 'client backend' and pid <> pg_backend_pid() order by xact_start limit 1]])
        if rows and rows[1] and rows[1].age > oldest then
            oldest, by = rows[1].age, ("%s, pid %d"):format(rows[1].name, rows[1].pid)
        end
    end
    if oldest > 60 then
        d:warn("transactions", ("the oldest transaction is %.0f s old (%s)"):format(oldest, by),
            { effect = "dead rows cannot be removed, migrations wait", hint = "select pg_terminate_backend(<pid>)" })
    else
        d:ok("transactions", ("the oldest transaction is %.0f s old"):format(oldest))
    end
end

local function bloat(d, read)
    local rows = read([[select relname as name, n_dead_tup::float8 as dead, n_live_tup::float8 as live from pg_stat_user_tables
      where n_dead_tup > 100000 and n_dead_tup > n_live_tup order by n_dead_tup desc limit 5]])
    if #rows == 0 then return d:ok("bloat", "no table with more dead rows than live ones") end
    local names = {}
    for i, row in ipairs(rows) do names[i] = ("%s (%.0f dead, %.0f live)"):format(row.name, row.dead, row.live) end
    d:warn("bloat", "more dead rows than live ones: " .. table.concat(names, ", "),
        { effect = "reads get slower, the disk fills", hint = "vacuum analyze " .. rows[1].name })
end

local function replication(d, read)
    local slots = names_of(read([[select slot_name::text as name from pg_replication_slots where not active order by 1]]))
    if #slots > 0 then
        d:warn("slots", "replication slots that nobody reads: " .. table.concat(slots, ", "),
            { effect = "WAL is kept until the disk is full", hint = "select pg_drop_replication_slot('" .. slots[1] .. "')" })
    end
    local row = read([[select count(*)::int as n, max(extract(epoch from replay_lag))::float8 as lag from pg_stat_replication]])[1]
    if row.n == 0 then return d:ok("replication", "no replicas") end
    if not row.lag then return d:ok("replication", ("%d replicas (their lag is shown to pg_monitor alone)"):format(row.n)) end
    local text = ("%d replicas, %.1f s behind at most"):format(row.n, row.lag)
    if row.lag > 10 then d:warn("replication", text, { effect = "reads from replicas are old" }) else d:ok("replication", text) end
end

local function clock(d, read)
    local before = time.real()
    local there = read("select (extract(epoch from clock_timestamp()) * 1000)::float8 as ms")[1].ms
    local away = there - (before + time.real()) / 2
    if math.abs(away) >= 1000 then
        d:warn("clock", ("its clock differs by %.1f s"):format(away / 1000),
            { effect = "leases of idempotent requests end too soon or too late", hint = "timedatectl set-ntp true   # on both machines" })
    else
        d:ok("clock", ("its clock differs by %d ms"):format(math.abs(away)))
    end
end

local function partitions(d, read)
    local missing, filled, n = {}, {}, 0
    for _, row in ipairs(read([[select t.name, to_char(date_trunc(t.step, $1::timestamptz at time zone 'UTC')
        + ahead * ('1 ' || t.step)::interval, '_YYYYMMDD') as suffix from history_tables() t, generate_series(0, 3) ahead order by 1, 2]],
        time.iso(time.now()))) do
        n = n + 1
        if not read("select to_regclass($1) is not null as there", "public." .. row.name .. row.suffix)[1].there then
            missing[#missing + 1] = row.name .. row.suffix
        end
    end
    d:none("partitions", missing, ("%d partitions for now and 3 ahead"):format(n), "partitions that are missing",
        { effect = "rows go to the DEFAULT partition, which is never dropped", hint = "start kasma work, which makes them" })
    for _, row in ipairs(read([[select s.relname as name, s.n_live_tup::float8 as n from pg_stat_user_tables s
      join history_tables() t on s.relname = t.name || '_default' where s.n_live_tup > 0 order by 1]])) do
        filled[#filled + 1] = ("%s (%.0f rows)"):format(row.name, row.n)
    end
    if #filled > 0 then
        d:warn("partitions.default", "DEFAULT partitions hold rows: " .. table.concat(filled, ", "),
            { effect = "their ranges get no partition of their own; retention removes such rows one by one" })
    else
        d:ok("partitions.default", "DEFAULT partitions are empty")
    end
end

-- A transaction pooler that does not track prepared statements gives a session's statements to another: what a worker does all
-- the time is done here on several connections at once, and the pooler tells by its errors.
local function prepared(d)
    local pool = pg.pool("app")
    local works, why = {}, nil
    for i = 1, 8 do
        works[i] = function()
            for n = 1, 10 do
                local rows, err = pool:query(nil, "select $1::int + $2::int as n", i, n)
                if not rows and (err.code == "42P05" or err.code == "26000" or err.code == "08P01") then why = err.message end
            end
        end
    end
    sched.parallel(works)
    local on = config.get("DATABASE_PREPARE")
    if why then
        d:fail("prepare", "prepared statements get lost on the way: " .. why,
            { effect = "requests fail at random", hint = "DATABASE_PREPARE=off, or PgBouncer 1.21 with max_prepared_statements" })
    elseif on then
        d:ok("prepare", "prepared statements hold")
    else
        d:ok("prepare", "prepared statements are off (right behind a transaction pooler; else DATABASE_PREPARE=on is faster)")
    end
end

local function indexes(d, read)
    d:none("indexes", names_of(read([[select i.indexrelid::regclass::text as name from pg_index i join pg_class c on c.oid = i.indexrelid
      join pg_namespace n on n.oid = c.relnamespace where n.nspname = 'public' and not i.indisvalid order by 1]])), "all indexes are valid",
        "indexes that are not valid", { effect = "they cost and do not serve", hint = "reindex index concurrently <name>" })
    d:none("gin", names_of(read([[select c.relname as name from pg_index i join pg_class c on c.oid = i.indexrelid join pg_am m
      on m.oid = c.relam join pg_class t on t.oid = i.indrelid join pg_namespace n on n.oid = t.relnamespace
      join pg_attribute a on a.attrelid = t.oid and a.attname = 'tenant_key' and not a.attisdropped
      where n.nspname = 'public' and m.amname = 'gin' and t.relname not in (]] .. PLATFORM .. [[) and i.indkey[0] <> a.attnum
      order by 1]])), "GIN indexes are led by tenant_key", "GIN indexes that are not led by tenant_key",
        { effect = "a search looks at all tenants", hint = "create index .. using gin (tenant_key, ..)" })
end

-- What can be said of a database in which nothing was migrated; the others would report its consequences.
local EMPTY_CHECKS = { version, roles, connections, transactions, replication, clock }
local CHECKS = { version, roles, policies, history, row_security, migrations, connections, transactions, bloat, replication, clock,
    partitions, prepared, indexes }

---@param d doctor.Report
function M.run(d)
    local read = reader(pg.pool("app"))
    local ok, why = pcall(read, "select 1 as one")
    if not ok then
        return d:fail("reached", ("cannot connect to DATABASE_URL (%s): %s"):format(report.place(config.get("DATABASE_URL")),
            report.why(why)), { effect = "everything but /health answers 503",
                hint = "systemctl status postgresql; kasma config print DATABASE_URL" })
    end
    local migrated = read("select to_regclass('public.schema_migrations') is not null as there")[1].there
    if not migrated then
        d:fail("migrations", "the database holds no tables of Kasma: nothing was migrated", { effect = "everything but /health answers 500",
            hint = "kasma migrate (or another DATABASE_URL: kasma config print DATABASE_URL)" })
    end
    for _, check in ipairs(migrated and CHECKS or EMPTY_CHECKS) do
        local done, reason = pcall(check, d, read)
        if not done then d:warn("unknown", "could not be looked at: " .. report.why(reason)) end
    end
end

return M
