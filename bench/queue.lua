-- Queue speed, our side: kasma lua bench/queue.lua add|bulk|work QUEUE COUNT CONCURRENCY. Prints jobs a second.
local sched = require("core.sched")
local time = require("core.time")
local jobs = require("kasma.jobs")

local mode, queue, count, concurrency = arg[1], arg[2], tonumber(arg[3]), tonumber(arg[4])
local DATA = { to = "somebody@example.test", template = "order-confirmation", vars = { number = "1042", total = "19.90" } }
local OPTS = { attempts = 3, backoff = { type = "exponential", delay = 3000 }, removeOnComplete = { count = 1000 } }

local began
if mode == "add" then
    local next_one, tasks = 0, {}
    for i = 1, concurrency do
        tasks[i] = function()
            while next_one < count do
                next_one = next_one + 1
                jobs.add(queue, "send-mail", DATA, OPTS)
            end
        end
    end
    began = time.mono()
    sched.parallel(tasks)
elseif mode == "bulk" then
    local list = {}
    for i = 1, 100 do list[i] = { name = "send-mail", data = DATA, opts = OPTS } end
    began = time.mono()
    for _ = 1, count / 100 do jobs.add_bulk(queue, list) end
else
    local done, finished = 0, sched.semaphore(1)
    finished:acquire()
    jobs.handler(queue, "send-mail", function(job)
        done = done + 1
        if done == count then finished:release() end
        return job.data.to
    end)
    began = time.mono()
    local worker = jobs.work(queue, { concurrency = concurrency })
    finished:acquire()
    while worker.count > 0 do sched.sleep(1) end
end
io.stdout:write(("%.0f\n"):format(count / ((time.mono() - began) / 1e6)))
return 0
