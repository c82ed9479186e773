-- Named steps at which a test ends the process as a power cut would: KASMA_CRASH_AT=relay.delivered kills it with SIGKILL when it
-- comes to that step. So that a test can go through every step in turn and look whether anything was lost or done twice.
-- Production does not know the setting.
local config = require("core.config")

local M = {}

--- Every step, in the order in which a row meets them.
M.STEPS = {
    "relay.read",       -- rows of the outbox were read, nothing was delivered
    "relay.delivered",  -- one topic's rows were delivered, none is marked
    "relay.marked",     -- they are marked as sent
    "sweeper.read",     -- rows that fell due were read
    "sweeper.handled",  -- a handler has committed
    "mail.claimed",     -- the mail's row says sending, the dialogue has not begun
    "mail.accepted",    -- the server has taken the mail over, the row does not say so
    "webhook.claimed",  -- the delivery's lease is taken, nothing was sent
    "webhook.answered", -- the receiver has answered, the delivery does not say so
    "workflow.claimed", -- the attempt of a step has its row, the step has not run
    "workflow.ran",     -- the step has run, nothing says so
}

local wanted = config.get("KASMA_CRASH_AT")
if wanted == "" or config.env() == "production" then wanted = nil end

local function die()
    local ffi = require("ffi")
    ffi.cdef("int kill(int pid, int sig); int getpid(void);")
    ffi.C.kill(ffi.C.getpid(), 9)
end

--- Ends the process when a test wants it to end here.
---@param step string one of STEPS
function M.at(step)
    if wanted == step then die() end
end

return M
