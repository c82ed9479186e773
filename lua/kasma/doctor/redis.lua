-- Redis: a version with what we use, nothing thrown away unasked, what it holds written down, lock servers that are several.
local config = require("core.config")
local redis = require("core.redis")
local time = require("core.time")
local report = require("kasma.doctor.report")

local M = {}

local MAX_SKEW_MS = 1000

local function fields(text)
    local found = {}
    for name, value in tostring(text):gmatch("([%w_]+):([^\r\n]*)") do found[name] = value end
    return found
end

local function at_least(version, major, minor)
    local a, b = tostring(version):match("^(%d+)%.(%d+)")
    a, b = tonumber(a) or 0, tonumber(b) or 0
    return a > major or (a == major and b >= minor)
end

local function bytes(n) return n >= 2 ^ 30 and ("%.1f GiB"):format(n / 2 ^ 30) or ("%.1f MiB"):format(n / 2 ^ 20) end

local function memory(d, info)
    local used, max = tonumber(info.used_memory) or 0, tonumber(info.maxmemory) or 0
    local limit = max > 0 and max or tonumber(info.total_system_memory) or 0
    local text = ("%s used of %s%s"):format(bytes(used), bytes(limit), max > 0 and "" or " of the machine, no maxmemory")
    local part = limit > 0 and used / limit or 0
    local more = { effect = "when it is full, writes are refused: no sign-in, jobs wait in the outbox",
        hint = "raise maxmemory, or look for what grew: redis-cli --bigkeys" }
    if part > 0.95 then d:fail("memory", text, more) elseif part > 0.8 then d:warn("memory", text, more) else d:ok("memory", text) end
end

local function persistence(d, info)
    local aof, rdb = info.aof_enabled == "1", info.rdb_last_bgsave_status
    if aof and info.aof_last_write_status ~= "ok" then
        return d:fail("persistence", "the append-only file cannot be written", { effect = "a restart loses sessions and queued jobs",
            hint = "look at the disk of the Redis server" })
    end
    if aof then return d:ok("persistence", "append-only file, last write ok") end
    if rdb ~= "ok" then
        return d:fail("persistence", "the last snapshot failed and there is no append-only file",
            { effect = "a restart loses sessions and queued jobs", hint = "redis-cli CONFIG SET appendonly yes" })
    end
    d:warn("persistence", "snapshots only", { effect = "a crash loses sessions and jobs since the last one (what follows an order comes "
        .. "again from the outbox)", hint = "redis-cli CONFIG SET appendonly yes" })
end

local function skew(call)
    local before = time.real()
    local answer = call("TIME")
    if type(answer) ~= "table" then return nil end
    local here = (before + time.real()) / 2
    return tonumber(answer[1]) * 1000 + tonumber(answer[2]) / 1000 - here
end

local function lock_nodes(d)
    local urls = {}
    for url in tostring(config.get("REDLOCK_NODES") or ""):gmatch("[^,%s]+") do urls[#urls + 1] = url end
    if #urls == 0 then return d:ok("locks", "locks are held on the one Redis") end
    local seen, down, same, replicas, askew = {}, {}, {}, {}, {}
    for _, url in ipairs(urls) do
        local place = report.place(url)
        local conn, err = redis.dedicated("kasma-doctor", { timeout_ms = 3000, url = url })
        local text
        if conn then text, err = conn:call("INFO") end
        if not text then
            down[#down + 1] = place .. " (" .. report.why(err) .. ")"
        else
            local info = fields(text)
            if seen[info.run_id] then same[#same + 1] = place .. " = " .. seen[info.run_id] end
            seen[info.run_id] = place
            if info.role ~= "master" then replicas[#replicas + 1] = place end
            local away = skew(function(...) return conn:call(...) end)
            if away and math.abs(away) > MAX_SKEW_MS then askew[#askew + 1] = ("%s by %.1f s"):format(place, away / 1000) end
        end
        if conn then conn:close() end
    end
    d:none("locks.reached", down, ("%d lock servers answer"):format(#urls), "lock servers that do not answer",
        { effect = ("a lock needs %d of %d; without them stock and checkout go on, long work answers 409"):format(
            math.floor(#urls / 2) + 1, #urls), hint = "kasma config print REDLOCK_NODES" })
    d:none("locks.independent", same, "no two lock servers are the same process", "one server named twice",
        { effect = "one failure takes several votes", hint = "name independent servers in REDLOCK_NODES" })
    d:none("locks.masters", replicas, "no lock server is a replica", "lock servers that are replicas",
        { effect = "locks can be lost at a failover", hint = "name independent masters in REDLOCK_NODES" })
    if #askew > 0 then d:warn("locks.clock", "clocks differ: " .. table.concat(askew, ", "), { hint = "timedatectl set-ntp true" }) end
    if #urls % 2 == 0 then
        d:warn("locks.number", ("%d lock servers: an even number bears no more failures than one less"):format(#urls))
    end
end

-- The layout that each queue was made with. Bounded: a few thousand keys are looked at, not a database of millions.
local function queues(d)
    local prefix = (config.get("QUEUE_PREFIX") or "bull")
    local cursor, names, other, steps = "0", 0, {}, 0
    repeat
        local answer = redis.call("SCAN", cursor, "MATCH", prefix .. ":*:meta", "COUNT", "1000")
        if type(answer) ~= "table" then break end
        cursor, steps = answer[1], steps + 1
        for _, key in ipairs(answer[2]) do
            names = names + 1
            local version = redis.call("HGET", key, "version")
            if type(version) == "string" and not version:find("^bullmq:[56]%.") then
                other[#other + 1] = key:sub(#prefix + 2, -6) .. " (" .. version .. ")"
            end
        end
    until cursor == "0" or steps >= 20
    d:none("queues", other, ("%d queues in the layout of BullMQ 5 and 6"):format(names), "queues of another layout",
        { effect = "jobs may be read wrong", hint = "bring the other programs to BullMQ 5" })
end

---@param d doctor.Report
function M.run(d)
    local text, err = redis.call("INFO")
    if type(text) ~= "string" then
        return d:fail("reached", ("cannot connect to REDIS_URL (%s): %s"):format(report.place(config.get("REDIS_URL")), report.why(err)),
            { effect = "sign-in and cookie sessions answer 503, jobs wait in the outbox, carts and checkout go on without locks",
                hint = "systemctl status redis-server; kasma config print REDIS_URL" })
    end
    local info = fields(text)
    local version = info.redis_version
    if at_least(version, 6, 2) then
        d:ok("version", ("%s, %s clients"):format(version, info.connected_clients or "?"))
    else
        d:fail("version", "version " .. tostring(version) .. ", needs 6.2", { effect = "queue scripts fail", hint = "upgrade Redis" })
    end
    local policy = info.maxmemory_policy
    if policy == "noeviction" then
        d:ok("eviction", "maxmemory-policy noeviction")
    else
        d:fail("eviction", "maxmemory-policy is " .. tostring(policy), { effect = "queues may lose jobs, sessions may vanish",
            hint = "redis-cli CONFIG SET maxmemory-policy noeviction" })
    end
    persistence(d, info)
    memory(d, info)
    local away = skew(redis.call)
    if away and math.abs(away) > MAX_SKEW_MS then
        d:warn("clock", ("its clock differs by %.1f s"):format(away / 1000), { hint = "timedatectl set-ntp true   # on both machines" })
    elseif away then
        d:ok("clock", ("its clock differs by %d ms"):format(math.abs(away)))
    end
    lock_nodes(d)
    queues(d)
end

return M
