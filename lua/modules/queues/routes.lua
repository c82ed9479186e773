-- The job queues over HTTP, for platform staff alone.
local json = require("core.json")
local null = require("kasma.null")
local queues = require("kasma.jobs_queue")
local route = require("kasma.route")
local schema = require("kasma.schema")
local service = require("modules.queues.service")

local READ, WRITE = { platform = "queues.read" }, { platform = "queues.write" }

local Name = schema.string{ not_empty = true, max = 200 }:describe("Name of a queue, without a colon"):example("mail-queue")
local JobId = schema.string{ not_empty = true, max = 500 }:example("order-1042-confirmation")
local Job = schema.object({ id = schema.string(), name = schema.string(), state = schema.string(),
    timestamp = schema.integer():optional():describe("When it was made; another program's job may have none"),
    attemptsMade = schema.integer(), omitted = schema.map(schema.integer()):optional()
        :describe("JSON that is too long to be shown: field and its bytes") }, { name = "QueueJob", open = true })
local Counts = schema.object({ waiting = schema.integer(), active = schema.integer(), delayed = schema.integer(),
    prioritized = schema.integer(), completed = schema.integer(), failed = schema.integer(), paused = schema.integer(),
    ["waiting-children"] = schema.integer() }, { name = "QueueCounts" })
local Queue = schema.object({ name = schema.string(), counts = Counts, paused = schema.boolean(),
    oldestAge = schema.integer():nullable():describe("Milliseconds since the oldest waiting job was made"),
    broken = schema.string():optional():describe("Why no worker can serve the queue: another program wrote over one of its keys") },
    { name = "Queue", open = true })

local SHOWN = "What looks like a secret, one-time codes, the variables and the text of mails, keys and tokens are `***`, and a "
    .. "search does not find them. JSON that is longer than is shown is left out and named in `omitted`; a text is cut."

local function answer(members)
    members.success = schema.boolean()
    return schema.object(members, { open = true })
end

local function with_null(queue)
    queue.oldestAge = queue.oldestAge or null
    return queue
end

route.get("/admin/queues", {
    summary = "All job queues with their counts",
    access = READ, tag = "queues", no_store = true,
    returns = answer{ data = schema.array(Queue), whole = schema.boolean() },
    handler = function()
        local list, whole = service.list()
        for _, queue in ipairs(list) do with_null(queue) end
        return { success = true, data = list, whole = whole }
    end,
})

route.get("/admin/queues/:name", {
    summary = "One job queue: counts, workers, schedulers, jobs ended a minute",
    access = READ, tag = "queues", no_store = true, params = { name = Name },
    returns = { [200] = answer{ queue = Queue }, [404] = service.unknown_queue },
    handler = function(ctx) return { success = true, queue = with_null(service.show(ctx.params.name)) } end,
})

route.get("/admin/queues/:name/jobs", {
    summary = "Jobs of a queue in one state",
    description = SHOWN .. " Here a field shows up to 8 KiB.",
    access = READ, tag = "queues", no_store = true, params = { name = Name },
    query = schema.page{ state = schema.enum(queues.STATES):default("waiting"),
        q = schema.string{ not_empty = true, max = 200 }:optional()
            :describe("Part of id, name or data; looks through the first thousand jobs of the state") },
    returns = { [200] = answer{ data = schema.array(Job), total = schema.integer(), page = schema.integer(), limit = schema.integer() },
        [404] = service.unknown_queue },
    handler = function(ctx)
        local q = ctx.query
        local data, total, scanned = service.jobs(ctx.params.name, q)
        return { success = true, data = data, total = total, page = q.page, limit = q.limit, scanned = scanned }
    end,
})

route.get("/admin/queues/:name/jobs/:id", {
    summary = "A job as it is stored, with the last 200 rows of its log",
    description = SHOWN .. " Here a field shows up to 256 KiB, a row of the log 2 KiB, and of a parent a hundred children.",
    access = READ, tag = "queues", no_store = true, params = { name = Name, id = JobId },
    returns = { [200] = answer{ job = Job }, [404] = { service.unknown_queue, service.unknown_job } },
    handler = function(ctx) return { success = true, job = service.job(ctx.params.name, ctx.params.id) } end,
})

for _, what in ipairs{ "pause", "resume" } do
    route.post("/admin/queues/:name/" .. what, {
        summary = what == "pause" and "Let workers take nothing more from a queue" or "Let workers go on with a queue",
        access = WRITE, tag = "queues", status = 200, params = { name = Name },
        returns = { [200] = answer{ changed = schema.boolean() }, [404] = service.unknown_queue },
        handler = function(ctx) return { success = true, changed = service[what](ctx.scope, ctx.params.name) } end,
    })
end

route.post("/admin/queues/:name/drain", {
    summary = "Remove the jobs that wait in a queue; schedulers' next runs stay",
    access = WRITE, tag = "queues", status = 200, params = { name = Name },
    body = schema.object{ delayed = schema.boolean():optional():describe("Delayed jobs too") },
    returns = { [200] = answer{ removed = schema.integer() }, [404] = service.unknown_queue },
    handler = function(ctx) return { success = true, removed = service.drain(ctx.scope, ctx.params.name, ctx.body.delayed) } end,
})

route.post("/admin/queues/:name/clean", {
    summary = "Remove jobs of a state that are older than a time",
    access = WRITE, tag = "queues", status = 200, params = { name = Name },
    body = schema.object{ state = schema.enum{ "completed", "failed", "waiting", "paused", "delayed", "prioritized" },
        grace = schema.integer{ min = 0, max = 31622400000 }:default(0):describe("Age in milliseconds"),
        limit = schema.integer{ min = 1, max = 100000 }:default(1000) },
    returns = { [200] = answer{ removed = schema.integer() }, [404] = service.unknown_queue },
    handler = function(ctx) return { success = true, removed = service.clean(ctx.scope, ctx.params.name, ctx.body) } end,
})

route.post("/admin/queues/:name/retry-failed", {
    summary = "Let the failed jobs of a queue wait again",
    access = WRITE, tag = "queues", status = 200, params = { name = Name },
    body = schema.object{ limit = schema.integer{ min = 1, max = 1000 }:default(100) },
    returns = { [200] = answer{ retried = schema.integer() }, [404] = service.unknown_queue },
    handler = function(ctx) return { success = true, retried = service.retry_failed(ctx.scope, ctx.params.name, ctx.body.limit) } end,
})

route.post("/admin/queues/:name/schedulers/remove", {
    summary = "End a job scheduler",
    access = WRITE, tag = "queues", status = 200, params = { name = Name },
    body = schema.object{ id = schema.string{ not_empty = true, max = 200 } },
    returns = { [200] = answer{}, [404] = service.unknown_queue },
    handler = function(ctx)
        service.remove_scheduler(ctx.scope, ctx.params.name, ctx.body.id)
        return { success = true }
    end,
})

route.post("/admin/queues/:name/jobs/add", {
    summary = "Add a job, many, a flow, or set a scheduler",
    access = WRITE, tag = "queues", params = { name = Name },
    body = schema.object{
        name = schema.string{ not_empty = true, max = 1000 }:optional():example("send-mail"),
        data = schema.any():optional(),
        opts = schema.map(nil, { max = 40 }):optional():describe("As BullMQ's job options"),
        bulk = schema.array(schema.any(), { min = 1, max = 1000 }):optional():describe("Jobs of {name, data, opts}"),
        flow = schema.any():optional():describe("{name, queueName, data, opts, children}"),
        scheduler = schema.any():optional():describe("{id, every | pattern, tz, template {name, data, opts}}"),
    },
    returns = { [201] = answer{ ids = schema.array(schema.string()) }, [404] = service.unknown_queue },
    handler = function(ctx)
        return { success = true, ids = json.array(service.add(ctx.scope, ctx.params.name, ctx.body)) }
    end,
})

local ACTS = { retry = "Let a completed or failed job wait again", promote = "Run a delayed job now",
    remove = "Remove a job and its children" }
for what, text in pairs(ACTS) do
    route.post("/admin/queues/:name/jobs/:id/" .. what, {
        summary = text,
        access = WRITE, tag = "queues", status = 200, params = { name = Name, id = JobId },
        body = what == "retry" and schema.object{ reset = schema.boolean():optional():describe("Attempts begin anew") } or nil,
        returns = { [200] = answer{}, [404] = { service.unknown_queue, service.unknown_job },
            [409] = { service.wrong_state, service.job_locked, service.scheduled_job } },
        handler = function(ctx)
            service[what](ctx.scope, ctx.params.name, ctx.params.id, what == "retry" and ctx.body.reset or nil)
            return { success = true }
        end,
    })
end
