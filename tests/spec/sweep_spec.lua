-- What is done for every tenant each hour or night: one tenant's trouble is not another's.
local crypto = require("core.crypto")
local errors = require("kasma.errors")
local sweep = require("kasma.tenant").sweep
require("kasma.boot").load()
local tenants = require("modules.tenants.service")

describe("a sweep over all tenants", function()
    local mine, place, run = {}, {}, crypto.random_hex(4)
    for i = 1, 7 do
        local key = ("sweep%s%d"):format(run, i)
        mine[i], place[key] = key, i
        tenants.create({ tenant = "MASTER", app = "MASTER", actor_kind = "system" }, { tenant_key = key, name = key, app = {
            app_key = key .. "-app" } })
    end

    it("goes on past those whose turn fails, and fails with their names when all are done", function()
        local seen = {}
        local ok, why = pcall(sweep, "spec", function(key)
            if place[key] then seen[#seen + 1] = place[key] end
            if place[key] == 2 then error("out of order") end
            if place[key] == 5 then errors.bad_request("not this one") end
        end)
        assert.is_false(ok)
        assert.equal(7, #seen)
        assert.matches("spec failed for 2 tenant", why, 1, true)
        for _, i in ipairs{ 2, 5 } do assert.is_truthy(why:find(mine[i], 1, true), why) end
        assert.matches("out of order", why, 1, true)
        assert.is_nil(why:find(mine[1], 1, true))
    end)

    it("ends well where nothing fails, and stops where a store is away for all", function()
        local seen = 0
        sweep("spec", function(key) seen = seen + (place[key] and 1 or 0) end)
        assert.equal(7, seen)
        local tried = 0
        local ok, why = pcall(sweep, "spec", function()
            tried = tried + 1
            errors.unavailable{ message = "away" }
        end)
        assert.is_false(ok)
        assert.is_true(errors.is_unavailable(why))
        assert.equal(5, tried)
    end)

    it("is not stopped by a store that is away for a few", function()
        local seen = 0
        local ok, why = pcall(sweep, "spec", function(key)
            if place[key] then seen = seen + 1 end
            if place[key] == 3 then errors.unavailable{ message = "away" } end
        end)
        assert.same({ false, 7 }, { ok, seen })
        assert.matches("failed for 1 tenant", why, 1, true)
    end)
end)
