-- Rules of tenants: every worker holds what is live, none is switched off by its failures or near its budget unseen, what their
-- configs point at is there, and the libraries they take from are kept with them.
local time = require("core.time")
local db = require("kasma.db")
local report = require("kasma.doctor.report")

local M = {}

local LIVE_MS, TENANTS_MAX, NEAR, SETTLE_MS = 6000, 5000, 0.8, 3000

-- What workers say they hold, by tenant: how many hold it, and the oldest epoch among them.
local function held_by_workers()
    local workers, held = 0, {}
    for _, row in ipairs(db.read(nil, [[select epochs from worker_heartbeats where seen_at > $1::timestamptz and state = 'ready'
        and role in ('serve', 'all')]], time.iso(time.real() - LIVE_MS))) do
        workers = workers + 1
        for tenant, epoch in pairs(type(row.epochs) == "table" and row.epochs or {}) do
            local h = held[tenant] or { n = 0, oldest = math.huge }
            h.n, h.oldest = h.n + 1, math.min(h.oldest, epoch)
            held[tenant] = h
        end
    end
    return workers, held
end

local function tenants()
    local list, last = {}, ""
    repeat
        local rows = db.read(nil, [[select tenant_key from tenants where status <> 'closed' and tenant_key > $1
          order by tenant_key limit 500]], last)
        for _, row in ipairs(rows) do
            last = row.tenant_key
            list[#list + 1] = last
        end
    until #rows < 500 or #list >= TENANTS_MAX
    return list
end

-- One look at everything, tenant by tenant: row security lets nobody see all at once.
local function gather()
    local doctor = require("modules.rules.service").doctor
    local seen = { active = 0, tenants = 0, epochs = {}, off = {}, open = {}, paused = {}, near = {}, lost = {}, unpinned = {},
        older = {} }
    for _, tenant in ipairs(tenants()) do
        local facts = doctor(tenant)
        if facts.epoch then
            seen.epochs[tenant] = facts
            for _, name in ipairs(facts.paused) do
                seen.paused[#seen.paused + 1] = tenant .. (name == "*" and " (all)" or " (" .. name .. ")")
            end
        end
        if #facts.rules > 0 then seen.tenants = seen.tenants + 1 end
        for _, r in ipairs(facts.rules) do
            local name = tenant .. "/" .. r.key
            if r.state == "off" then seen.off[#seen.off + 1] = name end
            if r.state == "active" then
                seen.active = seen.active + 1
                if r.open then seen.open[#seen.open + 1] = name end
                if r.share >= NEAR then seen.near[#seen.near + 1] = ("%s (%d%%)"):format(name, math.floor(r.share * 100)) end
                for _, what in ipairs(r.lost) do seen.lost[#seen.lost + 1] = name .. " " .. what end
                for _, key in ipairs(r.unpinned) do seen.unpinned[#seen.unpinned + 1] = name .. " (" .. key .. ")" end
                for _, key in ipairs(r.older) do seen.older[#seen.older + 1] = name .. " (" .. key .. ")" end
            end
        end
    end
    return seen
end

local function warn(d, id, list, good, bad, more)
    if #list == 0 then return d:ok(id, good) end
    d:warn(id, ("%s: %s%s"):format(bad, table.concat(list, ", ", 1, math.min(5, #list)), #list > 5 and (" and %d more"):format(#list - 5)
        or ""), more)
end

local function epochs(d, seen)
    local workers, held = held_by_workers()
    local behind, newest, count = {}, nil, 0
    for tenant, facts in pairs(seen.epochs) do
        count = count + 1
        newest = newest and math.max(newest, facts.epoch) or facts.epoch
        -- What was published a moment ago may still be on its way.
        if held[tenant] and held[tenant].oldest < facts.epoch and time.now() - facts.changed_ms > SETTLE_MS then
            behind[#behind + 1] = ("%s (%d, published %d)"):format(tenant, held[tenant].oldest, facts.epoch)
        end
    end
    table.sort(behind)
    local text = count == 1 and ("%d of %d workers on epoch %d (read from postgres)"):format(workers, workers, newest)
        or ("%d workers hold the published epochs of %d tenants (read from postgres)"):format(workers, count)
    d:none("epochs", behind, text, "workers that hold older rules", { effect = "some requests are priced by what was live before",
        hint = "GET /readyz of the workers; their log says why the rules were not loaded" })
end

---@param d doctor.Report
function M.run(d)
    local ok, seen = pcall(gather)
    if not ok then return d:warn("unknown", "could not be looked at: " .. report.why(seen)) end
    epochs(d, seen)
    warn(d, "off", seen.off, ("%d active rules of %d tenants, none switched off"):format(seen.active, seen.tenants),
        "switched off after failing too often", { effect = "the shop's built-in answer holds in their place",
            hint = "kasma rules runs KEY --failed --tenant T; mend and publish, or enable" })
    warn(d, "breaker", seen.open, "no breaker is open", "resting after five failures in a minute",
        { effect = "tried again within five minutes; the third time in a day switches the rule off",
            hint = "kasma rules runs KEY --failed --tenant T" })
    warn(d, "paused", seen.paused, "no shop has paused its rules", "paused by a person", { hint = "kasma rules resume -m WHY --tenant T" })
    warn(d, "budget", seen.near, ("no rule came within %d%% of its budget in 24 hours"):format(NEAR * 100),
        "near their budget in the last 24 hours", { effect = "a larger cart stops them, and their on_error holds",
            hint = "kasma rules runs KEY --tenant T" })
    warn(d, "config", seen.lost, "what the configs point at is there", "config_invalid",
        { effect = "these rules find nothing to act on; their next publication is refused", hint = "choose another in the rule's form" })
    d:none("libraries", seen.unpinned, #seen.older == 0 and "libraries are pinned by sha256, all to the newest version"
        or "libraries are pinned by sha256; pinned to an older version: " .. table.concat(seen.older, ", ", 1, math.min(5, #seen.older)),
        "rules that take from a library which is not kept with them", { effect = "they fail when they are loaded",
            hint = "publish the rule again" })
end

return M
