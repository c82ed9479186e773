-- Locks over all processes (Redlock, core.redlock). Two uses, and no third:
--
--     locks.eased(tenant, { "wallet:" .. user_id }, function() ... end)
--         keeps contention away from rows that PostgreSQL keeps right by itself (stock, wallet, cart, checkout). When the lock
--         cannot be got, or Redis is away, the work goes on without.
--
--     locks.alone(scope, { "import:products" }, function(lock)
--         db.pipeline(tenant, { lock:guard(), { "insert ..." } })       -- every write of the work has the guard first
--     end)
--         for long work that runs once at a time (imports, rebuilds, settlements). Somebody else has it, or Redis is away: 409
--         with Retry-After. While it runs the lock is extended at half its life. A holder that slept past its lock (a stopped
--         process, a long pause) is refused by its fencing number: `nextval` of lock_fences, taken when the lock is held, so
--         that a later holder has a higher one; the guard is an upsert of lock_guards that raises when a higher one was there.
--         The guard's row is locked until the commit, so that two holders' writes never mix either.
--
-- Several resources are locked in sorted order and guarded in it.
local redlock = require("core.redlock")
local sched = require("core.sched")
local time = require("core.time")
local db = require("kasma.db")
local errors = require("kasma.errors")
local log = require("kasma.log")

local M = {}

local EASED_TTL_MS, ALONE_TTL_MS = 5000, 10000
local LOST_STATE = "KS012"
M.LOST_STATE = LOST_STATE -- SQLSTATE with which a guard raises

M.busy = errors.declare{ code = "resource_busy", status = 409, message = "Resource is busy. Please retry.",
    cause = "the same long work is running, or it cannot be known whether it is", cure = "try again when it has ended" }
M.lost = errors.declare{ code = "lock_lost", status = 409, message = "Resource is busy. Please retry.",
    cause = "the work lost its lock while it ran and somebody else may have begun it", cure = "start it again" }

-- The one order in which locks are taken and guards written, whatever order they were named in; each once.
local function sorted(resources)
    local list, seen = {}, {}
    for _, resource in ipairs(resources) do
        if not seen[resource] then
            seen[resource] = true
            list[#list + 1] = resource
        end
    end
    assert(#list > 0, "a lock names a resource")
    table.sort(list)
    return list
end

local function keys_of(tenant, resources)
    local keys = {}
    for i, resource in ipairs(resources) do keys[i] = redlock.key(tenant, resource) end
    return keys
end

local FENCE = "select nextval('lock_fences') as fence"
-- One statement for each number of resources: a row of VALUES each, which also a distributed database takes.
local guards = {}
local function guard_of(n)
    if not guards[n] then
        local rows = {}
        for i = 1, n do rows[i] = ("($1, $2, $%d, $3, $4::timestamptz)"):format(4 + i) end
        guards[n] = "with moved as (insert into lock_guards (tenant_key, app_key, resource, fence, updated_at) values "
            .. table.concat(rows, ", ") .. [[ on conflict (tenant_key, resource) do update set fence = excluded.fence,
            updated_at = excluded.updated_at where lock_guards.fence <= excluded.fence returning 1)
          select kasma_must(count(*) = ]] .. n .. ", 'KS012') from moved"
    end
    return guards[n]
end

---@class kasma.Lock
---@field fence integer higher than that of every earlier holder
---@field resources string[] sorted
local Lock = {}
Lock.__index = Lock

--- The statement that goes first into every transaction of the work: it raises when a later holder has written.
---@return table statement
function Lock:guard()
    return { guard_of(#self.resources), self.scope.tenant, self.scope.app, self.fence, time.iso(time.now()), unpack(self.resources) }
end

--- Raises lock_lost when it is known that the lock is gone. The guard is what counts; this spares work.
function Lock:check()
    if self.gone or self.raw:left() <= 0 then M.lost() end
end

-- Keeps the lock until the work has ended. A server that does not answer is asked again at the next half of what is left.
local function keep(lock, ttl_ms)
    while not lock.ended do
        sched.sleep(math.max(1, math.min(ttl_ms / 2, lock.raw:left() / 2)))
        if lock.ended then return end
        local left, err = lock.raw:extend(ttl_ms)
        if (not left and err.code == "lost") or lock.raw:left() <= 0 then
            lock.gone = true
            -- A task that was cancelled has released its lock and nobody works under it any more.
            if not lock.ended and not (err and err.message == "the lock was released") then
                log.warn("a lock was lost while its work ran", { resource = lock.resources[1], fence = lock.fence })
            end
            return
        end
    end
end

--- Runs fn(lock) while nobody else, in any process, does the same; raises resource_busy when somebody does.
---@param scope Scope
---@param resources string[] without the tenant: `import:products`
---@param fn fun(lock: kasma.Lock): any
---@param opts {ttl_ms: integer|nil}|nil life of the lock between two extensions (10 s)
---@return any what fn answers (its first value)
function M.alone(scope, resources, fn, opts)
    local ttl_ms = opts and opts.ttl_ms or ALONE_TTL_MS
    local list = sorted(resources)
    local raw = redlock.acquire(keys_of(scope.tenant, list), ttl_ms)
    if not raw then error(errors.new(409, { message = M.busy.message, code = M.busy.code, headers = { ["Retry-After"] = "1" } }), 0) end
    local lock = setmetatable({ raw = raw, scope = scope, resources = list }, Lock)
    local ok, result = pcall(function()
        lock.fence = db.query(nil, FENCE)[1].fence
        sched.spawn(keep, lock, ttl_ms)
        return errors.state({ [LOST_STATE] = function() M.lost() end }, fn, lock)
    end)
    lock.ended = true
    raw:release()
    if not ok then error(result, 0) end
    return result
end

--- Runs fn() under the lock when it can be had, else without.
---@param tenant string
---@param resources string[]
---@param fn fun(): any
---@param opts {ttl_ms: integer|nil, retries: integer|nil}|nil
---@return any what fn answers (its first value)
function M.eased(tenant, resources, fn, opts)
    local ttl_ms = opts and opts.ttl_ms or EASED_TTL_MS
    local raw = redlock.acquire(keys_of(tenant, sorted(resources)), ttl_ms, { retries = opts and opts.retries or 3, delay_ms = 50,
        jitter_ms = 50 })
    local ok, result = pcall(fn)
    if raw then raw:release() end
    if not ok then error(result, 0) end
    return result
end

return M
