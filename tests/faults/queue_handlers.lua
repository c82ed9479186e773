-- Handlers of tests/faults/test_queues: each run leaves a line `name n bytes` in the file NOTE_FILE.
local sched = require("core.sched")

local function note(job)
    local file = assert(io.open(os.getenv("NOTE_FILE"), "a"))
    file:write(("%s %d %d\n"):format(job.name, job.data.n, #job.data.text))
    file:close()
end

local M = {}

function M.quick(job)
    sched.sleep(2)
    note(job)
    return #job.data.text
end

-- Turns for ever without letting anybody else run.
function M.spin(job)
    note(job)
    while true do end
end

-- Asks for more memory than there is to have.
function M.greedy(job)
    note(job)
    local parts = {}
    for i = 1, 1e9 do parts[i] = ("x"):rep(1048576) .. i end
    return #parts
end

function M.wrong(job)
    note(job)
    return job.nothing.at.all
end

return M
