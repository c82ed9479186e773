-- The worker's cache: one load at a time, nobody waits for ever, and nothing old is kept after a drop.
local sched = require("core.sched")
local time = require("core.time")
local cache = require("kasma.cache")

-- A loader that each caller passes through a gate, so that the test decides when a load ends.
local function gated(answers)
    local gate = sched.semaphore(1)
    gate:acquire()
    local self = { begun = 0, gate = gate }
    function self.load(key)
        self.begun = self.begun + 1
        local n = self.begun
        gate:acquire()
        local answer = answers[n]
        if type(answer) == "table" then error(answer, 0) end
        return answer and key .. answer
    end
    return self
end

-- Runs get in a task of its own; what it answered is in the list that comes back.
local function ask(c, key)
    local got = {}
    sched.spawn(function() got.ok, got.value = pcall(c.get, c, key) got.done = true end)
    return got
end

local function until_true(what, test)
    local deadline = time.mono() + 30e6
    repeat
        if test() then return end
        sched.sleep(1)
    until time.mono() > deadline
    error("never: " .. what)
end

describe("a cache", function()
    it("loads a cold key once for all who ask for it", function()
        local loader = gated{ "1", "2" }
        local c = cache.new{ ttl_ms = 60000, load = loader.load }
        local all = {}
        for i = 1, 5 do all[i] = ask(c, "k") end
        until_true("one load", function() return loader.begun == 1 end)
        loader.gate:release()
        for i = 1, 5 do
            until_true("an answer", function() return all[i].done end)
            assert.equal("k1", all[i].value)
        end
        assert.equal("k1", c:get("k"))
        assert.equal(1, loader.begun)
        assert.is_nil(next(c.flights))
    end)

    it("tells all of them when the load fails, and tries again for the next", function()
        local loader = gated{ { kind = "unavailable" }, "2" }
        local c = cache.new{ ttl_ms = 60000, load = loader.load }
        local a, b = ask(c, "k"), ask(c, "k")
        until_true("a load", function() return loader.begun == 1 end)
        loader.gate:release()
        until_true("both", function() return a.done and b.done end)
        assert.is_false(a.ok)
        assert.is_false(b.ok)
        assert.equal("unavailable", b.value.kind)
        loader.gate:release()
        assert.equal("k2", c:get("k"))
    end)

    it("lets another load when the first one's client has gone", function()
        local loader = gated{ { kind = "cancelled" }, "2" }
        local c = cache.new{ ttl_ms = 60000, load = loader.load }
        local a, b = ask(c, "k"), ask(c, "k")
        until_true("a load", function() return loader.begun == 1 end)
        loader.gate:release()
        until_true("the second load", function() return a.done and loader.begun == 2 end)
        loader.gate:release()
        until_true("the other", function() return b.done end)
        assert.equal("k2", b.value)
    end)

    it("waits for a load that hangs only so long, then begins its own; what the late one brings is not kept", function()
        local hung, begun = sched.semaphore(1), 0
        hung:acquire()
        local c = cache.new{ ttl_ms = 60000, limit_ms = 20, load = function()
            begun = begun + 1
            if begun == 1 then
                hung:acquire()
                return "late"
            end
            return "fresh"
        end }
        local first, second = ask(c, "k"), ask(c, "k")
        until_true("the second", function() return second.done end)
        assert.equal("fresh", second.value)
        assert.equal(2, begun)
        assert.is_nil(first.done)
        hung:release()
        until_true("the first", function() return first.done end)
        assert.equal("late", first.value)
        assert.equal("fresh", c:get("k"))
    end)

    it("serves the old value during a load, but not for longer than a load may take", function()
        local loader = gated{ "1", "2", "3" }
        local c = cache.new{ ttl_ms = 1, limit_ms = 1000, load = loader.load }
        loader.gate:release()
        assert.equal("k1", c:get("k"))
        until_true("it is old", function() return c.entries.k.fresh_until < time.mono() end)
        local hung = ask(c, "k")
        until_true("a load", function() return loader.begun == 2 end)
        assert.equal("k1", c:get("k"))
        local other
        until_true("another load", function()
            other = ask(c, "k")
            return loader.begun == 3
        end)
        loader.gate:release()
        loader.gate:release()
        until_true("both", function() return hung.done and other.done end)
    end)

    it("keeps nothing that was dropped while it was loaded, cold or not", function()
        local loader = gated{ "old", "new", "newer" }
        local c = cache.new{ ttl_ms = 60000, load = loader.load }
        local before = ask(c, "k")
        until_true("a load", function() return loader.begun == 1 end)
        c:drop("k")
        local after = ask(c, "k")
        until_true("a load of its own", function() return loader.begun == 2 end)
        loader.gate:release()
        loader.gate:release()
        until_true("both", function() return before.done and after.done end)
        assert.equal("kold", before.value)
        assert.equal("knew", after.value)
        assert.equal("knew", c:get("k"))
        c:drop_where(function(key) return key == "k" end)
        local again = ask(c, "k")
        until_true("a load", function() return loader.begun == 3 end)
        c:clear()
        loader.gate:release()
        until_true("it", function() return again.done end)
        assert.equal("knewer", again.value)
        assert.is_nil(c.entries.k)
        assert.equal(0, c.count)
    end)

    it("remembers that there is nothing, and is bounded", function()
        local loads = 0
        local c = cache.new{ ttl_ms = 60000, max = 3, load = function() loads = loads + 1 return nil end }
        for _ = 1, 3 do assert.is_nil(c:get("a")) end
        assert.equal(1, loads)
        for i = 1, 20 do c:get("k" .. i) end
        assert.is_true(c.count <= 3)
    end)
end)
