-- PostgreSQL for the modules: the calls of core.pg that raise, always with the tenant they work for.
--
--     local rows = db.read(tenant, "select ... where tenant_key = $1 and id = $2", tenant, id)   -- lone SELECT, cheapest
--     local rows = db.query(tenant, "update ... returning ...", tenant, ...)                     -- one statement, one transaction
--     local all  = db.pipeline(tenant, { { sql, ... }, outbox.row(scope, ...) })                 -- one transaction, one round trip
--     db.transaction(tenant, function(tx) ... tx:query(sql, ...) ... end)                        -- when a statement needs an answer
--
-- Each is one transaction that carries its tenant (BEGIN, SET LOCAL, statements, COMMIT in one pipeline). A nil tenant means
-- the platform tables, under which no tenant's row is visible. A statement is a table {sql, p1, p2, ...}; a nil parameter is
-- an error of the core, NULL is json.null. Serialisation failures and deadlocks are tried again, three times in all.
local pg = require("core.pg")
local sched = require("core.sched")
local errors = require("kasma.errors")

local M = {}

local TRIES = 3
local AGAIN = { ["40001"] = true, ["40P01"] = true }
local OUTBOX_CHANNEL = "kasma_outbox"

local pools = {}
local function pool(name)
    local found = pools[name]
    if not found then
        found = pg.pool(name)
        pools[name] = found
    end
    return found
end
M.pool = pool

local function fail(err)
    if errors.is_store(err) then
        error(errors.from_store(err), 0)
    end
    error(err, 0)
end

-- Waits a little before another try, longer each time and never the same for two that clashed.
local function may_retry(err, try)
    if try >= TRIES or type(err) ~= "table" or not AGAIN[err.code] then return false end
    sched.sleep(math.random(1, 10 * try))
    return true
end

local function has_outbox(statements)
    for i = 1, #statements do
        if statements[i].outbox then return true end
    end
    return false
end

--- Tells the relay that rows wait in the outbox. Never waits; at most one notice goes out in 20 ms.
function M.wake_relay() pool("app"):notify(OUTBOX_CHANNEL) end

--- A lone SELECT. Those of one tenant that arrive in one loop turn share a transaction.
---@param tenant string|nil nil = platform tables
---@param sql string
---@param ... any parameters
---@return table[] rows
function M.read(tenant, sql, ...)
    local rows, err = pool("app"):read(tenant, sql, ...)
    if not rows then fail(err) end
    return rows
end

--- The first row of a lone SELECT, or nil.
---@param tenant string|nil
---@param sql string
---@param ... any
---@return table|nil
function M.one(tenant, sql, ...) return M.read(tenant, sql, ...)[1] end

--- One statement in a transaction of its own.
---@param tenant string|nil
---@param sql string
---@param ... any
---@return table[] rows with `affected`
function M.query(tenant, sql, ...)
    local try = 1
    while true do
        local rows, err = pool("app"):query(tenant, sql, ...)
        if rows then return rows end
        if not may_retry(err, try) then fail(err) end
        try = try + 1
    end
end

--- All statements in one transaction and one round trip, all or nothing.
---@param tenant string|nil
---@param statements table[] {sql, p1, ...}
---@return table[][] rows of each
function M.pipeline(tenant, statements)
    local try = 1
    while true do
        local results, err = pool("app"):pipeline(tenant, statements)
        if results then
            if has_outbox(statements) then M.wake_relay() end
            return results
        end
        if not may_retry(err, try) then fail(err) end
        try = try + 1
    end
end

---@class kasma.Tx
---@field raw userdata the core's transaction
---@field tenant string|nil
---@field outbox boolean
local Tx = {}
Tx.__index = Tx

---@param sql string
---@param ... any
---@return table[] rows
function Tx:query(sql, ...)
    local rows, err = self.raw:query(sql, ...)
    if not rows then error(err, 0) end
    return rows
end

---@param sql string
---@param ... any
---@return table|nil first row
function Tx:one(sql, ...) return self:query(sql, ...)[1] end

---@param statements table[]
---@return table[][]
function Tx:pipeline(statements)
    local results, err = self.raw:pipeline(statements)
    if not results then error(err, 0) end
    if has_outbox(statements) then self.outbox = true end
    return results
end

--- Statements that go out with the COMMIT, in the same round trip.
---@param statements table[]
function Tx:at_commit(statements)
    self.last = self.last or {}
    for i = 1, #statements do self.last[#self.last + 1] = statements[i] end
end

local function attempt(tenant, fn, ...)
    local raw, err = pool("app"):begin(tenant)
    if not raw then return nil, err end
    local tx = setmetatable({ raw = raw, tenant = tenant, outbox = false }, Tx)
    local ok, result = pcall(fn, tx, ...)
    if not ok then
        raw:rollback()
        return nil, result
    end
    local done
    if tx.last then
        if has_outbox(tx.last) then tx.outbox = true end
        done, err = raw:commit(tx.last)
    else
        done, err = raw:commit()
    end
    if not done then return nil, err end
    if tx.outbox then M.wake_relay() end
    return { result }
end

--- A text as LIKE finds it: what a person typed is no pattern.
---@param text string
---@return string
function M.like(text) return (text:gsub("[%%_\\]", "\\%0")) end

--- Runs fn(tx, ...) in a transaction that holds a connection. It is run again after a serialisation failure or deadlock,
--- so it must have no effect but through tx.
---@param tenant string|nil
---@param fn fun(tx: kasma.Tx, ...): any
---@param ... any
---@return any what fn answers (its first value)
function M.transaction(tenant, fn, ...)
    local try = 1
    while true do
        local done, err = attempt(tenant, fn, ...)
        if done then return done[1] end
        if not may_retry(err, try) then fail(err) end
        try = try + 1
    end
end

return M
