-- The database as tests see it from outside the server: psql sessions under a role of choice, the tenant tables as the catalogue
-- tells them, and rows that satisfy whatever constraints a table has, found by trying. A table that is made tomorrow is in every
-- test that uses this by itself.
local config = require("core.config")
local json = require("core.json")

local M = {}

--- Runs SQL with psql and answers what it printed, rows as `a|b` lines. Raises with psql's message when it fails.
---@param role "app"|"owner"
---@param sql string
---@param with_notices boolean|nil also what was printed to stderr
---@return string
function M.psql(role, sql, with_notices)
    local url = config.get(role == "app" and "DATABASE_URL" or "DATABASE_OWNER_URL")
    local name = os.tmpname()
    local file = assert(io.open(name, "w"))
    file:write(sql)
    file:close()
    local out, errors = name .. ".out", name .. ".err"
    local code = os.execute(("psql '%s' -XAtq -v ON_ERROR_STOP=1 -f '%s' >'%s' 2>'%s'"):format(url:gsub("'", "'\\''"), name, out, errors))
    local function slurp(path)
        local from = assert(io.open(path, "r"))
        local text = from:read("*a")
        from:close()
        os.remove(path)
        return text
    end
    local text, complaints = slurp(out), slurp(errors)
    os.remove(name)
    if code ~= 0 and code ~= true then error("psql: " .. complaints, 2) end
    return with_notices and text .. complaints or text
end

--- Decoded JSON that one statement prints.
---@param role "app"|"owner"
---@param sql string
---@return any
function M.json(role, sql) return assert(json.decode((M.psql(role, sql):gsub("%s+$", "")))) end

---@param text string
---@return string SQL literal
function M.quote(text) return "'" .. tostring(text):gsub("'", "''") .. "'" end
local quote = M.quote

--- The whole list of tables that belong to no tenant. A table is added here only when it holds no business data.
---@type table<string, true>
M.PLATFORM = {}
for name in ([[users user_credentials otps auth_sessions user_tenants user_contexts access_keys tenants apps modules permissions
    platform_roles platform_role_permissions platform_role_holders public_refs schema_migrations clock_shifts worker_heartbeats
    operations]]):gmatch("%S+") do M.PLATFORM[name] = true end

---@class TestTable
---@field name string
---@field kind "r"|"p" plain or partitioned
---@field bound string of a partition, else empty
---@field may string rights of the server role: of insert, update, delete
---@field columns {name: string, type: string, required: boolean, generated: boolean}[]
---@field checks table<string, {columns: string[], def: string}>

local TABLES = [[select json_agg(t order by t.name) from (select c.relname as name, c.relkind as kind,
  case when c.relispartition then pg_get_expr(c.relpartbound, c.oid) else '' end as bound,
  concat_ws(' ', case when has_table_privilege('kasma_app', c.oid, 'insert') then 'insert' end,
    case when has_table_privilege('kasma_app', c.oid, 'update') then 'update' end,
    case when has_table_privilege('kasma_app', c.oid, 'delete') then 'delete' end) as may,
  (select json_agg(json_build_object('name', a.attname, 'type', format_type(a.atttypid, null), 'generated', a.attgenerated <> '',
      'required', a.attnotnull and not a.atthasdef and a.attidentity = '' and a.attgenerated = '') order by a.attnum)
    from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped) as columns,
  coalesce((select json_object_agg(k.conname, json_build_object('def', pg_get_constraintdef(k.oid), 'columns',
      (select json_agg(a.attname) from unnest(k.conkey) n join pg_attribute a on a.attrelid = c.oid and a.attnum = n)))
    from pg_constraint k where k.conrelid = c.oid and k.contype = 'c'), '{}'::json) as checks
  from pg_class c where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p')) t]]

--- Every table and partition that is none of the platform's, whether it is under row security (as it must) or not.
---@return TestTable[]
function M.tenant_tables()
    local list = {}
    for _, t in ipairs(M.json("owner", TABLES)) do
        if not M.PLATFORM[t.name] then list[#list + 1] = t end
    end
    return list
end

-- Rows ---------------------------------------------------------------------------------------------------------------------

-- What a value of a type may be, tried in this order where a CHECK refuses the first.
local CANDIDATES = {
    text = {
        "sample", "a", "VND", "USD", "VN", "a@b.test", "a.b", "custom.b", "a:b", "2026", ("0"):rep(64), ("0"):rep(24), "A-1", "/a", "",
    },
    integer = { "1", "0", "2", "10", "100", "-1" }, bigint = { "1", "0", "2", "100", "-1" }, smallint = { "1", "0", "2" },
    numeric = { "1", "0", "0.5", "100" }, boolean = { "true", "false" }, uuid = { "gen" }, jsonb = { "{}", "[]", "null" }, json = { "{}" },
    ["timestamp with time zone"] = { "2026-03-01T10:00:00Z", "2026-03-02T10:00:00Z" }, date = { "2026-03-01", "2026-03-02" },
    bytea = { "\\x00", "\\x" .. ("00"):rep(32) }, inet = { "127.0.0.1" }, tsvector = { "" }, interval = { "1 day" },
    ["double precision"] = { "1", "0" }, ["time without time zone"] = { "10:00" },
}

CANDIDATES["character varying"] = CANDIDATES.text

local function candidates(column, check)
    local list = {}
    if check then
        for text in check.def:gmatch("'([^']*)'") do list[#list + 1] = text end
    end
    local of_type = CANDIDATES[column.type] or (column.type:find("[]", 1, true) and { "{}" }) or { "1" }
    for _, text in ipairs(of_type) do list[#list + 1] = text end
    return list
end

--- An INSERT of a row for a tenant.
---@param t TestTable
---@param row table<string, string>
---@param tenant string
---@param nth integer tells rows of one tenant apart
---@return string sql
function M.insert(t, row, tenant, nth)
    local names, values = {}, {}
    for _, column in ipairs(t.columns) do
        local value = row[column.name]
        if column.name == "tenant_key" then value = tenant end
        if value == "gen" then
            -- A partition takes the ids of its range only.
            local from = column.name == "id" and t.bound:match("FROM %('(%x%x%x%x%x%x%x%x%-%x%x%x%x%-[%x-]+)'%)")
            local tail = ("%012x"):format(nth)
            if from then
                value = from:sub(1, -13) .. tail
            else
                value = "fffffff0-0000-4000-8000-" .. tail
            end
        end
        if value ~= nil then
            names[#names + 1] = '"' .. column.name .. '"'
            values[#values + 1] = quote(value) .. "::" .. column.type
        end
    end
    return ("insert into %s (%s) values (%s)"):format(t.name, table.concat(names, ", "), table.concat(values, ", "))
end

-- Runs each statement in a subtransaction; answers what the database said: `ok <rows>`, or `<SQLSTATE> <constraint>`.
M.ATTEMPT = [[create function pg_temp.attempt(statement text) returns text language plpgsql as $attempt$
declare n bigint; state text; name text;
begin
  execute statement;
  get diagnostics n = row_count;
  return 'ok ' || n;
exception when others then
  get stacked diagnostics state = returned_sqlstate, name = constraint_name;
  return state || ' ' || name;
end $attempt$;
create function pg_temp.counted(statement text) returns bigint language plpgsql as $counted$
declare n bigint;
begin
  execute statement into n;
  return n;
end $counted$;
]]

local REPLICA = "set session_replication_role = replica;\n"

-- The tries of all tables in one session; nothing stays.
local function tried(lists)
    local sql = { REPLICA, M.ATTEMPT }
    for i, list in ipairs(lists) do
        for _, statement in ipairs(list) do
            sql[#sql + 1] = ("begin; select %d, pg_temp.attempt(%s); rollback;"):format(i, quote(statement))
        end
    end
    local answers = {}
    for line in M.psql("owner", table.concat(sql, "\n")):gmatch("[^\n]+") do
        local i, said = line:match("^(%d+)|(.*)$")
        i = tonumber(i)
        answers[i] = answers[i] or {}
        table.insert(answers[i], said)
    end
    return answers
end

-- Rows that differ from `row` in the columns of a check, in every combination up to a limit.
local function variants(t, row, check)
    local list = { row }
    for _, name in ipairs(check.columns) do
        local column
        for _, one in ipairs(t.columns) do if one.name == name then column = one end end
        if column and not column.generated and name ~= "tenant_key" and #list < 400 then
            local more = {}
            for _, base in ipairs(list) do
                more[#more + 1] = base
                for _, value in ipairs(candidates(column, check)) do
                    local copy = {}
                    for key, was in pairs(base) do copy[key] = was end
                    copy[name] = value
                    more[#more + 1] = copy
                end
            end
            list = more
        end
    end
    return list
end

--- A row for each table that its constraints take: name -> column -> text. Foreign keys and triggers are not asked.
---@param tables TestTable[]
---@param given table<string, table<string, string>> values that cannot be found by trying
---@return table<string, table<string, string>> rows
---@return string[] failed names of tables without one, with what the database said
function M.rows(tables, given)
    local rows, open = {}, {}
    for _, t in ipairs(tables) do
        local row = {}
        for _, column in ipairs(t.columns) do
            if column.required or column.name == "id" then row[column.name] = candidates(column)[1] end
        end
        for name, value in pairs(given[t.name] or {}) do row[name] = value end
        rows[t.name] = row
        open[#open + 1] = { t = t, list = { row }, met = {} }
    end
    local failed = {}
    local function give_up(one, said)
        local check = one.t.checks[said:match(" (.*)$")]
        failed[#failed + 1] = one.t.name .. ": " .. said .. (check and " " .. check.def or "")
        rows[one.t.name] = nil
    end
    for round = 1, 12 do
        local lists = {}
        for i, one in ipairs(open) do
            lists[i] = {}
            for k, row in ipairs(one.list) do lists[i][k] = M.insert(one.t, row, "some", 1) end
        end
        local answers = tried(lists)
        local next_open = {}
        for i, one in ipairs(open) do
            local best
            for k, said in ipairs(answers[i]) do
                if said:sub(1, 3) == "ok " then
                    best = k
                    break
                end
            end
            if best then
                rows[one.t.name] = one.list[best]
            else
                -- One step further: a variant that a constraint refuses which was not met before; its variants are tried next.
                for k, said in ipairs(answers[i]) do
                    local name = said:match(" (.*)$")
                    if not best and not one.met[name] and one.t.checks[name] then
                        best = k
                        one.met[name] = true
                    end
                end
                local said = answers[i][best or 1]
                if best and round < 12 then
                    local check = one.t.checks[said:match(" (.*)$")]
                    next_open[#next_open + 1] = { t = one.t, list = variants(one.t, one.list[best], check), met = one.met }
                else
                    give_up(one, said)
                end
            end
        end
        if #next_open == 0 then break end
        open = next_open
    end
    return rows, failed
end

return M
