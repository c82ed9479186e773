-- Migrations: numbered SQL files, forward only, each in one transaction together with its row of schema_migrations.
--
-- The owner URL's role does the work: kasma_owner itself, or an administrator who may become it. Roles and extensions that
-- are missing are made first, in one transaction; if the role may not, the SQL is given back for an administrator and
-- nothing has been done. Files run as kasma_owner, so that it owns everything, whoever started the run. An advisory lock
-- of the session keeps two runs apart. An applied file whose sum differs from the recorded one stops the run: the past is
-- never edited. A file is sent whole, as one script; the server splits it.
local config = require("core.config")
local crypto = require("core.crypto")
local pg = require("core.pg")

local M = {}

local LOCK = 7281940355 -- any number that nothing else uses
-- Of the roles that serve. The limits of time are the server's own, so that a client that vanished holds no lock for
-- long; the program gives up sooner or at the same time (DATABASE_STATEMENT_MS).
local ROLE_SETTINGS = { { "citus.propagate_set_commands", "local" }, { "statement_timeout", "15s" }, { "lock_timeout", "5s" },
    { "idle_in_transaction_session_timeout", "60s" } }
local EXTENSIONS = { "btree_gin", "pg_trgm", "unaccent" }

---@class MigrationError
---@field message string plain English, for the terminal
---@field sql string|nil what an administrator has to run first

local function fail(message, sql)
    error(setmetatable({ message = message, sql = sql }, { __tostring = function(e) return e.message end }), 0)
end

local function must(value, err)
    if value == nil or value == false then fail(err and err.message or "the database gave no answer") end
    return value
end

-- The folder named by the configuration, else the one beside the Lua files that run.
local function folder()
    local named = config.get("KASMA_MIGRATIONS_DIR") or (config.get("KASMA_HOME") and config.get("KASMA_HOME") .. "/migrations")
    if named then return named end
    local here = assert(package.searchpath("kasma.migrate", package.path), "kasma.migrate is not on the path")
    return (here:gsub("lua/kasma/migrate%.lua$", "migrations"))
end

local function read_file(path)
    local file, why = io.open(path, "rb")
    if not file then fail("cannot read " .. path .. ": " .. tostring(why)) end
    local text = file:read("*a")
    file:close()
    return text
end

---@class Migration
---@field version integer
---@field name string the file's name without .sql
---@field sql string
---@field sha256 string

---@return Migration[] all known migrations in order
function M.files()
    local names = assert(loadfile(folder() .. "/list.lua"))()
    local files = {}
    for i, name in ipairs(names) do
        local version = tonumber(name:match("^(%d%d%d%d)_[a-z0-9_]+$"))
        if version ~= i then fail("migrations/list.lua: " .. name .. " is not number " .. i) end
        local sql = read_file(folder() .. "/" .. name .. ".sql")
        files[i] = { version = version, name = name, sql = sql, sha256 = crypto.sha256(sql) }
    end
    return files
end

-- Roles -----------------------------------------------------------------------------------------------------------------

local function url_decode(text)
    return (text:gsub("%%(%x%x)", function(hex) return string.char(tonumber(hex, 16)) end))
end

---@param url string
---@return string|nil user, string|nil password
function M.credentials(url)
    local user, password = url:match("^postgres%a*://([^:@/]*):?([^@/]*)@")
    if not user then return nil, nil end
    return url_decode(user), password ~= "" and url_decode(password) or nil
end

local function xor(a, b)
    local bit = require("bit")
    local out = {}
    for i = 1, #a do out[i] = string.char(bit.bxor(a:byte(i), b:byte(i))) end
    return table.concat(out)
end

-- What PostgreSQL keeps of a password under SCRAM-SHA-256 (RFC 5803), made here, so that the password itself is in no
-- statement, no server log and no SQL that is printed for an administrator.
---@param password string
---@param salt string 16 random bytes
---@return string verifier
function M.scram_verifier(password, salt)
    local rounds = 4096
    local u = crypto.hmac_sha256_raw(password, salt .. "\0\0\0\1")
    local salted = u
    for _ = 2, rounds do
        u = crypto.hmac_sha256_raw(password, u)
        salted = xor(salted, u)
    end
    local stored = crypto.sha256_raw(crypto.hmac_sha256_raw(salted, "Client Key"))
    local server = crypto.hmac_sha256_raw(salted, "Server Key")
    return ("SCRAM-SHA-256$%d:%s$%s:%s"):format(rounds, crypto.base64(salt), crypto.base64(stored), crypto.base64(server))
end

local function quote(text)
    return "'" .. text:gsub("'", "''") .. "'"
end

local function login(name, url_name)
    local url = config.get(url_name)
    if not url then fail(url_name .. " is not set") end
    local user, password = M.credentials(url)
    if user ~= name then fail(("%s must sign in as %s, not as %s"):format(url_name, name, tostring(user))) end
    local sql = "create role " .. name .. " login nosuperuser nobypassrls"
    if not password then return sql end
    if password:find("[\128-\255]") then fail("the password in " .. url_name .. " must be plain ASCII") end
    return sql .. " password " .. quote(M.scram_verifier(password, crypto.random(16)))
end

-- Statements that are needed before the first migration can run, in their order; none when all is there.
local function preparations(session)
    local need = {}
    local function add(sql) need[#need + 1] = sql end
    local roles = {}
    for _, role in ipairs(must(session:query([[select rolname as name, rolsuper or rolbypassrls as unbound,
        ' ' || coalesce(array_to_string(rolconfig, ' '), '') || ' ' as settings from pg_roles where rolname like 'kasma\_%']]))) do
        roles[role.name] = role
    end
    local me = must(session:query("select current_user::text as name"))[1]

    if not roles.kasma_owner then
        local user, password = M.credentials(config.get("DATABASE_OWNER_URL"))
        local sql = "create role kasma_owner nosuperuser nobypassrls"
        if user == "kasma_owner" and password then
            sql = sql .. " login password " .. quote(M.scram_verifier(password, crypto.random(16)))
        end
        add(sql)
    end
    for name, url in pairs({ kasma_app = "DATABASE_URL", kasma_system = "DATABASE_SYSTEM_URL" }) do
        local role = roles[name]
        if role and role.unbound then
            fail("the role " .. name .. " may bypass row security: it must be no superuser and have no BYPASSRLS")
        end
        if not role then add(login(name, url)) end
        for _, setting in ipairs(ROLE_SETTINGS) do
            if not (role and role.settings:find(" " .. setting[1] .. "=" .. setting[2] .. " ", 1, true)) then
                add(("alter role %s set %s = %s"):format(name, setting[1], quote(setting[2])))
            end
        end
    end
    if not roles.kasma_search then add("create role kasma_search nologin nosuperuser nobypassrls") end

    local function lacks(sql) return not must(session:query("select coalesce((" .. sql .. "), false) as ok"))[1].ok end
    local have = roles.kasma_owner and roles.kasma_app and roles.kasma_system and roles.kasma_search
    if not have or lacks("select pg_has_role('kasma_owner', 'kasma_search', 'member')") then add("grant kasma_search to kasma_owner") end
    if me.name ~= "kasma_owner" and (not have or lacks("select pg_has_role(current_user, 'kasma_owner', 'member')")) then
        add("grant kasma_owner to current_user")
    end
    for _, name in ipairs(EXTENSIONS) do
        if lacks("select true from pg_extension where extname = " .. quote(name)) then add("create extension " .. name) end
    end
    if not have or lacks("select has_schema_privilege('kasma_owner', 'public', 'create with grant option')") then
        add("grant create, usage on schema public to kasma_owner with grant option")
    end
    for _, name in ipairs({ "kasma_app", "kasma_system", "kasma_search" }) do
        if not have or lacks("select has_schema_privilege(" .. quote(name) .. ", 'public', 'usage')") then
            add("grant usage on schema public to " .. name)
        end
    end
    return need
end

local function prepare(session)
    local need = preparations(session)
    if #need == 0 then return need end
    local sql = table.concat(need, ";\n") .. ";\n"
    local _, err = session:script("begin;\n" .. sql .. "commit;")
    if err then
        session:script("rollback;")
        if err.code == "42501" or err.code == "0LP01" then
            fail("This role may not make what is missing. Run this as an administrator, then migrate again:", sql)
        end
        fail(err.message)
    end
    return need
end

-- The run ---------------------------------------------------------------------------------------------------------------

local function applied(session)
    if not must(session:query("select to_regclass('public.schema_migrations') is not null as there"))[1].there then return {} end
    return must(session:query("select version, name, sha256 from schema_migrations order by version limit 10000"))
end

---@param files Migration[]
---@param rows table[] of schema_migrations
---@return Migration[] pending
function M.pending(files, rows)
    local known = {}
    for _, file in ipairs(files) do known[file.version] = file end
    for _, row in ipairs(rows) do
        local file = known[row.version]
        if not file then
            fail(("the database has migration %04d (%s), which this program does not know: it is older than the database"):format(
                row.version, row.name))
        end
        if file.sha256 ~= row.sha256 then
            fail(("migration %s was changed after it was applied (recorded %s, file %s): an applied file is never edited"):format(
                file.name, row.sha256:sub(1, 12), file.sha256:sub(1, 12)))
        end
        known[row.version] = nil
    end
    local pending = {}
    for _, file in ipairs(files) do
        if known[file.version] then pending[#pending + 1] = file end
    end
    if #pending > 0 and #rows > 0 and pending[1].version < rows[#rows].version then
        fail(("migration %s was never applied, though later ones were"):format(pending[1].name))
    end
    return pending
end

local function apply(session, file)
    local _, err = session:script(table.concat({
        "begin; set local role kasma_owner; set local search_path = public;",
        "set local lock_timeout = '10s'; set local statement_timeout = 0;",
        file.sql,
        ("; insert into public.schema_migrations (version, name, sha256, \"binary\", applied_at, micros) values (%d, %s, %s, %s, "
            .. "clock_timestamp(), (extract(epoch from clock_timestamp() - now()) * 1000000)::bigint);"):format(
            file.version, quote(file.name), quote(file.sha256), quote(config.version)),
        "commit;",
    }, "\n"))
    if err then
        session:script("rollback;")
        fail(("migration %s failed and was undone: %s%s"):format(file.name, err.message, err.code and " (" .. err.code .. ")" or ""))
    end
end

local STRONG = { { "alter table ([%w_]+)", "ACCESS EXCLUSIVE" }, { "drop table ([%w_]+)", "ACCESS EXCLUSIVE" },
    { "create u?n?i?q?u?e? ?index [%w_]+ on ([%w_]+)", "SHARE" }, { "create trigger [%w_ ]+ on ([%w_]+)", "SHARE ROW EXCLUSIVE" },
    { "update ([%w_]+) set", "ROW EXCLUSIVE" }, { "delete from ([%w_]+)", "ROW EXCLUSIVE" } }

-- What a file does to tables that are there already: the lock and how many rows lie below it.
local function weigh(session, file)
    local text = file.sql:gsub("%-%-[^\n]*", ""):gsub("%s+", " "):lower()
    local made, notes, seen = {}, {}, {}
    for name in text:gmatch("create table ([%w_]+)") do made[name] = true end
    for _, form in ipairs(STRONG) do
        for name in text:gmatch(form[1]) do
            if not made[name] and not seen[name .. form[2]] then
                seen[name .. form[2]] = true
                local row = must(session:query("select reltuples::bigint as n from pg_class where oid = to_regclass($1)", name))[1]
                if row then notes[#notes + 1] = ("%s on %s, about %d rows"):format(form[2], name, math.max(row.n, 0)) end
            end
        end
    end
    local tables = 0
    for _ in pairs(made) do tables = tables + 1 end
    table.insert(notes, 1, ("%d new tables"):format(tables))
    return table.concat(notes, "; ")
end

local function with_session(work)
    local session = must(pg.pool("owner"):session())
    must(session:query("select pg_advisory_lock($1::bigint) is null as locked", LOCK))
    local ok, result = pcall(work, session)
    session:query("select pg_advisory_unlock($1::bigint) as unlocked", LOCK)
    session:close()
    if not ok then error(result, 0) end
    return result
end

---@return Migration[] pending ones, nothing is changed
function M.check()
    return with_session(function(session) return M.pending(M.files(), applied(session)) end)
end

---@return { name: string, note: string }[] what a run would do, nothing is changed
function M.plan()
    return with_session(function(session)
        local steps = {}
        for _, sql in ipairs(preparations(session)) do
            steps[#steps + 1] = { name = "prepare", note = sql:gsub("'SCRAM[^']*'", "'***'") }
        end
        for _, file in ipairs(M.pending(M.files(), applied(session))) do
            steps[#steps + 1] = { name = file.name, note = weigh(session, file) }
        end
        return steps
    end)
end

---@param to integer|nil last version to apply; nil = all
---@param on_step fun(name: string)|nil called after each migration
---@return integer applied how many
function M.run(to, on_step)
    return with_session(function(session)
        local pending = M.pending(M.files(), applied(session))
        prepare(session)
        local n = 0
        for _, file in ipairs(pending) do
            if not to or file.version <= to then
                apply(session, file)
                n = n + 1
                if on_step then on_step(file.name) end
            end
        end
        if must(session:query("select to_regprocedure('history_partitions(timestamptz, interval)') is not null as there"))[1].there then
            must(session:query("select history_partitions(clock_timestamp(), interval '100 years')")) -- makes, drops nothing
        end
        return n
    end)
end

--- The indexes of the document collections: {collection, keys, options}.
---@return table[]
function M.document_indexes() return assert(loadfile(folder() .. "/mongo/indexes.lua"))() end

-- Makes the document indexes that are missing.
---@return integer made how many indexes the list has
function M.documents()
    local mongo = require("core.mongo")
    local list = M.document_indexes()
    for _, index in ipairs(list) do
        local ok, err = mongo.index(index[1], index[2], index[3])
        if not ok then fail(("index %s of %s: %s"):format(index[3].name, index[1], err.message)) end
    end
    return #list
end

return M
