-- Are the stores there? Each is asked side by side, with a limit, so that a store that hangs is told and does not hang the answer.
local mongo = require("core.mongo")
local redis = require("core.redis")
local sched = require("core.sched")
local db = require("kasma.db")
local migrations = require("modules.system.migrations")
local outbox = require("kasma.outbox")
local rules = require("modules.rules.live")

local M = {}

local function word(fn)
    return function()
        local ok, value, err = pcall(fn)
        if not ok then
            local why = value
            return "down: " .. (type(why) == "table" and tostring((why.cause and why.cause.message) or why.message or why.kind)
                or tostring(why))
        end
        if value == nil then return "down: " .. tostring(err and (err.message or err.kind)) end
        return value == true and "ok" or tostring(value)
    end
end

---@return {status: string, checks: table<string, string>}, boolean ok
function M.check()
    local answers = sched.parallel{
        word(function()
            db.read(nil, "select 1 as one")
            return true
        end),
        word(function()
            local answer, err = mongo.ping()
            if not answer then return nil, err end
            return true
        end),
        word(function()
            local answer, err = redis.call("PING")
            if not answer then return nil, err end
            return true
        end),
        word(function()
            local pending = migrations.pending()
            return pending == 0 or (pending .. " pending")
        end),
    }
    local checks = { postgres = answers[1], mongo = answers[2], redis = answers[3], migrations = answers[4] }
    if checks.postgres == "ok" then
        local read, waiting = pcall(outbox.waiting)
        if read and waiting.n > 10000 then checks.outbox = "more than 10000 rows wait" end
    end
    -- Such a worker sells on by the rules it had before: it is told, and is no reason to take it out.
    local stale = {}
    for tenant in pairs(rules.stale()) do stale[#stale + 1] = tenant end
    if #stale > 0 then
        table.sort(stale)
        checks.rules = ("stale: %d tenants keep older rules, first %s"):format(#stale, stale[1])
    end
    local ok = not sched.stopping()
    for _, name in ipairs{ "postgres", "mongo", "redis", "migrations" } do ok = ok and checks[name] == "ok" end
    if sched.stopping() then checks.process = "draining" end
    return { status = ok and "ok" or "degraded", checks = checks }, ok
end

return M
