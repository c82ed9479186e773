-- Locks over all processes: work that runs once at a time, and what becomes of a holder that slept past its lock.
local crypto = require("core.crypto")
local redis = require("core.redis")
local redlock = require("core.redlock")
local sched = require("core.sched")
local db = require("kasma.db")
local errors = require("kasma.errors")
local locks = require("kasma.locks")

local SCOPE = { tenant = "MASTER", app = "MASTER" }

local waiting = require("spec.waiting")

local function fresh() return "spec:" .. crypto.random_hex(6) end
local function eventually(what, fn) return waiting(fn, what) end

local function guard_row(resource)
    return db.one("MASTER", "select fence from lock_guards where tenant_key = 'MASTER' and resource = $1", resource)
end

local function clean(...)
    for _, resource in ipairs{ ... } do
        db.query("MASTER", "delete from lock_guards where tenant_key = 'MASTER' and resource = $1", resource)
    end
end

describe("work that runs alone", function()
    it("is refused to everybody else while it runs, and free after it, also when it failed", function()
        local name = fresh()
        local inside, most, refused, done = 0, 0, 0, 0
        local workers = {}
        for i = 1, 6 do
            workers[i] = function()
                for _ = 1, 4 do
                    local ok, err = pcall(locks.alone, SCOPE, { name }, function()
                        inside = inside + 1
                        most = math.max(most, inside)
                        sched.sleep(5)
                        inside = inside - 1
                    end)
                    if ok then
                        done = done + 1
                    else
                        assert(errors.is(err) and err.status == 409 and err.code == "resource_busy" and err.headers["Retry-After"] == "1",
                            tostring(err))
                        refused = refused + 1
                    end
                end
            end
        end
        sched.parallel(workers)
        assert.equal(1, most)
        assert.is_true(done >= 1)
        assert.has_error(function() locks.alone(SCOPE, { name }, function() error("broken", 0) end) end, "broken")
        assert.equal("free", locks.alone(SCOPE, { name }, function() return "free" end))
    end)

    it("has a higher fencing number than whoever had it before", function()
        local name, last = fresh(), 0
        for _ = 1, 3 do
            locks.alone(SCOPE, { name }, function(lock)
                assert.is_true(lock.fence > last)
                last = lock.fence
            end)
        end
    end)

    it("keeps its lock for as long as it runs: it is extended at half its life", function()
        local name = fresh()
        local key = redlock.key("MASTER", name)
        locks.alone(SCOPE, { name }, function(lock)
            local value, lives = redis.call("GET", key), 0
            local last = redis.call("PTTL", key)
            -- Three times what is left of its life goes up again; without extension it would only fall, and end.
            eventually("the life is renewed", function()
                local now = redis.call("PTTL", key)
                assert.equal(value, redis.call("GET", key))
                if now > last then lives = lives + 1 end
                last = now
                return lives >= 3
            end)
            lock:check()
            assert.is_false((pcall(locks.alone, SCOPE, { name }, function() end)))
        end, { ttl_ms = 3000 })
        assert.equal(0, redis.call("EXISTS", key))
    end)

    it("locks several resources in one order, so that two who name them differently never wait for each other", function()
        local a, b = fresh(), fresh()
        local done = 0
        local function work(first, second)
            return function()
                for _ = 1, 10 do
                    local ok = pcall(locks.alone, SCOPE, { first, second, first }, function(lock)
                        assert.is_true(lock.resources[1] < lock.resources[2])
                        assert.equal(2, #lock.resources)
                        db.pipeline("MASTER", { lock:guard() })
                    end)
                    if ok then done = done + 1 end
                end
            end
        end
        sched.parallel{ work(a, b), work(b, a) }
        assert.is_true(done >= 10)
        assert.equal(guard_row(a).fence, guard_row(b).fence)
        clean(a, b)
    end)

    it("is told when its lock was taken away, and its next write is refused once somebody else has written", function()
        local name = fresh()
        local ok, err = pcall(locks.alone, SCOPE, { name }, function(lock)
            db.pipeline("MASTER", { lock:guard() })
            redis.call("DEL", redlock.key("MASTER", name))
            locks.alone(SCOPE, { name }, function(other) db.pipeline("MASTER", { other:guard() }) end)
            eventually("the loss is seen", function() return not pcall(lock.check, lock) end)
            db.pipeline("MASTER", { lock:guard(), { "select 1" } })
        end, { ttl_ms = 2000 })
        assert.is_false(ok)
        assert.equal("lock_lost", err.code)
        clean(name)
    end)

    it("writes nothing after it slept past its lock and another holder has written", function()
        local name, mark = fresh(), fresh()
        local pid = assert(io.open("/proc/self/stat")):read("*a"):match("^(%d+)")
        local script, out = os.tmpname(), os.tmpname()
        local file = assert(io.open(script, "w"))
        -- The holder: takes the lock, tells its process id, then writes under its guard every 10 ms until it is refused.
        file:write(([[
            local db, locks, sched = require("kasma.db"), require("kasma.locks"), require("core.sched")
            local pid = io.open("/proc/self/stat"):read("*a"):match("^(%%d+)")
            local ok, err = pcall(locks.alone, { tenant = "MASTER", app = "MASTER" }, { %q }, function(lock)
                for i = 1, 3000 do
                    db.pipeline("MASTER", { lock:guard(), { "insert into lock_guards (tenant_key, app_key, resource, fence, updated_at) "
                        .. "values ('MASTER', 'MASTER', $1, $2, now()) on conflict (tenant_key, resource) do update set "
                        .. "fence = lock_guards.fence + 1", %q, i } })
                    if i == 1 then io.stdout:write("pid ", pid, "\n") io.stdout:flush() end
                    sched.sleep(10)
                end
            end, { ttl_ms = 3000 })
            io.stdout:write("end ", tostring(ok), " ", tostring(err and err.code), "\n")
        ]]):format(name, mark))
        file:close()
        os.execute(("timeout 60 /proc/%s/exe lua %s >%s 2>/dev/null &"):format(pid, script, out))
        local function told(pattern)
            local f = io.open(out)
            local text = f and f:read("*a") or ""
            if f then f:close() end
            return text:match(pattern)
        end
        local holder = eventually("the holder has written", function() return told("pid (%d+)") end)
        os.execute("kill -STOP " .. holder)
        local ok, why = pcall(function()
            local mine = eventually("the lock of the sleeper runs out", function()
                local got, fence = pcall(locks.alone, SCOPE, { name }, function(lock)
                    db.pipeline("MASTER", { lock:guard() })
                    return lock.fence
                end)
                return got and fence
            end)
            local before = guard_row(mark).fence
            os.execute("kill -CONT " .. holder)
            assert.equal("false lock_lost", eventually("the sleeper ends", function() return told("end ([^\n]+)") end))
            assert.equal(before, guard_row(mark).fence)
            assert.equal(mine, guard_row(name).fence)
        end)
        os.execute("kill -CONT " .. holder .. " 2>/dev/null")
        os.remove(script)
        os.remove(out)
        clean(name, mark)
        assert(ok, why)
    end)
end)

describe("work that is only eased by a lock", function()
    it("goes on without it when somebody else has it", function()
        local name = fresh()
        local ran = locks.alone(SCOPE, { name }, function()
            return locks.eased("MASTER", { name }, function() return "ran" end, { retries = 0 })
        end)
        assert.equal("ran", ran)
    end)

    it("needs a tenant", function()
        assert.has_error(function() locks.eased(nil, { "x" }, function() end) end)
        assert.has_error(function() locks.eased("", { "x" }, function() end) end)
    end)
end)
