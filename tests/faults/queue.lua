-- kasma lua tests/faults/queue.lua QUEUE NAME COUNT [BYTES]: commits so many jobs to the outbox of the tenant demo, with data of that size.
-- QUEUE_OPTS: options as JSON. `queue.lua show QUEUE`: its counts, one `state n` a line.
local json = require("core.json")
require("kasma.boot").load()
local db = require("kasma.db")
local outbox = require("kasma.outbox")

if arg[1] == "show" then
    for state, n in pairs(require("kasma.jobs_queue").counts(arg[2])) do io.stdout:write(state, " ", n, "\n") end
    return 0
end
local scope = { tenant = "demo", app = "MASTER" }
local queue, name, left, bytes = arg[1], arg[2], tonumber(arg[3]), tonumber(arg[4] or 0)
local opts = json.decode(os.getenv("QUEUE_OPTS") or "{}")
local n = 0
while left > 0 do
    local statements = {}
    for i = 1, math.min(left, 100) do
        n = n + 1
        statements[i] = outbox.job(scope, queue, name, { n = n, text = ("x"):rep(bytes) }, opts)
    end
    db.pipeline(scope.tenant, statements)
    left = left - #statements
end
io.stdout:write("committed\n")
return 0
