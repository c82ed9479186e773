-- Which sessions have ended, by the word of PostgreSQL. A sign-out drops its handles in Redis at once. But Redis may be away in that
-- moment, or die before it has written what it was told and come back with the handles of before. So each serving process reads once a
-- second which sessions were revoked and knows them until their tokens have run out: a session that ended opens nothing a second later,
-- whatever Redis remembers. A request pays one look into a table.
local sched = require("core.sched")
local time = require("core.time")
local db = require("kasma.db")
local log = require("kasma.log")

local M = {}

local EVERY_MS, FORGET_MS, PAGE, MAX = 1000, 60000, 5000, 200000
-- A transaction notes its time before it commits: what is newer than this is looked at again.
local OVERLAP_MS = 15000
-- The clock of tests is put back: what ended in a future that was taken back is not read again each second.
local AHEAD_MS = 60000

local READ = [[select id, revoked_at from auth_sessions where revoked_at > $1::timestamptz and revoked_at <= $2::timestamptz
  and (revoked_at, id) > ($3::timestamptz, $4::uuid) order by revoked_at, id limit $5]]
local FIRST_ID = "00000000-0000-0000-0000-000000000000"

local sessions, count = {}, 0 -- id -> business time at which it ended
local life_ms, read_until
local forgot_at, full = 0, false

--- Notes that a session has ended, in this process at once.
---@param id string
---@param at integer business time in ms
function M.add(id, at)
    if sessions[id] then return end
    if count >= MAX then
        if not full then log.warn("more sessions ended than are remembered", { remembered = MAX }) end
        full = true
        return
    end
    sessions[id], count = at, count + 1
end

---@param id string|nil
---@return boolean
function M.has(id) return sessions[id or ""] ~= nil end

-- Forgets those whose tokens have run out; a walk over all of them, so not each second.
local function forget(now)
    if math.abs(now - forgot_at) < FORGET_MS then return end
    forgot_at, full = now, false
    for id, at in pairs(sessions) do
        if at + life_ms < now then sessions[id], count = nil, count - 1 end
    end
end

--- Reads what has ended since the last time. Public for tests.
function M.read()
    local now = time.now()
    local since = math.min(read_until or now - life_ms, now) - OVERLAP_MS
    local after, id = time.iso(since), FIRST_ID
    repeat
        local rows = db.query(nil, READ, time.iso(since), time.iso(now + AHEAD_MS), after, id, PAGE)
        for _, row in ipairs(rows) do
            M.add(row.id, time.parse(row.revoked_at))
            after, id = row.revoked_at, row.id
        end
    until #rows < PAGE
    forget(now)
    read_until = now
end

--- Reads once a second until the process ends.
---@param token_life_ms integer how long a token can outlive its session
function M.start(token_life_ms)
    life_ms = token_life_ms
    local reading = false
    local function again()
        if reading then return end
        reading = true
        local ok, why = pcall(M.read)
        reading = false
        -- PostgreSQL away: what ended meanwhile is read when it is back, from where this one left off.
        if not ok then log.debug("ended sessions could not be read", { error = tostring(why) }) end
    end
    again()
    sched.every(EVERY_MS, again)
end

return M
