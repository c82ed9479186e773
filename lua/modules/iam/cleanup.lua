-- What runs out in accounts: codes, sessions, access keys, and deleted accounts, which are erased after thirty days. Jobs of system-queue;
-- each may run twice, or on two machines at once, without harm.
local sched = require("core.sched")
local time = require("core.time")
local log = require("kasma.log")
local personal = require("kasma.personal")
local db = require("kasma.db")
local keys = require("modules.iam.keys")
local store = require("modules.iam.store")

local M = {}

local DAY_MS, BATCH = 86400000, 1000

-- What is older than `age_ms`, in batches, so that no lock is held long.
local function all(remove, age_ms)
    local total = 0
    repeat
        local gone = remove(time.iso(time.now() - age_ms), BATCH)
        total = total + gone
    until gone < BATCH or sched.stopping()
    return { removed = total }
end

--- Codes: what could still be read of them at their end, the rows a day later.
function M.otp_cleanup()
    store.forget_expired_otps(time.iso(time.now()))
    return all(store.prune_otps, DAY_MS)
end

--- Sessions, a month after their end: until then the reuse of a refresh token is told from an unknown one.
function M.session_cleanup() return all(store.prune_sessions, 30 * DAY_MS) end

--- Erases accounts that were deleted thirty days ago: first what the modules hold, then what is the account's own, and last the mark that
--- it is done, so that a crash between only repeats.
function M.user_purge()
    local now = time.iso(time.now())
    local erased, failed, waiting = 0, 0, 0
    local after
    repeat
        local users = store.users_to_purge(time.iso(time.now() - 30 * DAY_MS), 100, after)
        for _, user in ipairs(users) do
            after = user
            local ok, why = pcall(function()
                if not personal.erase(user, store.tenants_ever(user.id), now) then
                    waiting = waiting + 1
                    return
                end
                erased = erased + 1
                local statements = store.purge_traces(user.id, user.email)
                statements[#statements + 1] = store.purge_user(user.id, now)
                db.pipeline(nil, statements)
            end)
            if not ok then
                failed = failed + 1
                log.warn("an account could not be erased yet", { user = user.id, error = tostring(why) })
            end
        end
    until #users < 100 or sched.stopping()
    return { erased = erased, failed = failed, waiting = waiting }
end

--- Mails before access keys end.
function M.key_expiry_notice() return { keys = keys.expiry_notices(time.now()) } end

return M
