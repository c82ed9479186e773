-- Places for the runs of a shop's workflows in one process.
local sched = require("core.sched")
local lanes = require("modules.rules.workflow_lanes")
local eventually = require("spec.waiting")

describe("runs of a shop", function()
    it("have six places; what comes then waits in order, once, and leaves the places of others alone", function()
        local open, begun, under_way, most = false, {}, 0, 0
        local function slow(_, id)
            begun[#begun + 1] = id
            under_way = under_way + 1
            most = math.max(most, under_way)
            while not open do sched.sleep(1) end
            under_way = under_way - 1
        end
        local ended = 0
        for n = 1, 6 do
            sched.spawn(function()
                lanes.take("busy", "r" .. n, slow)
                ended = ended + 1
            end)
        end
        eventually(function() return #begun == 6 end)
        for n = 7, 20 do
            lanes.take("busy", "r" .. n, slow) -- answers at once: its job is over
            lanes.take("busy", "r" .. n, slow)
        end
        local other = false
        lanes.take("other", "r1", function() other = true end)
        assert.same({ true, 6 }, { other, #begun })
        open = true
        eventually(function() return #begun == 20 and under_way == 0 and lanes.count() == 0 end)
        assert.same({ 6, 6 }, { most, ended })
        for n = 7, 20 do assert.equal("r" .. n, begun[n]) end
    end)

    it("make place again when they fail, and who is worked on in the job hears why", function()
        local function broken() error("no", 0) end
        for _ = 1, 10 do
            local ok, why = pcall(lanes.take, "broken", "r", broken)
            assert.same({ false, "no" }, { ok, why })
        end
        local done = false
        lanes.take("broken", "r", function() done = true end)
        assert.is_true(done)
    end)

    it("wait a thousand at most: the rest is taken up by its watch", function()
        local open, begun = false, 0
        local function slow()
            begun = begun + 1
            while not open do sched.sleep(1) end
        end
        for n = 1, 6 do sched.spawn(lanes.take, "full", "r" .. n, slow) end
        eventually(function() return begun == 6 end)
        for n = 7, 1100 do lanes.take("full", "r" .. n, slow) end
        open = true
        eventually(function() return begun == 1006 and lanes.count() == 0 end)
    end)
end)
