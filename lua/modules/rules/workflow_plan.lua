-- What the manifest of a workflow rule says: the events that start it and its steps, checked once and in one place, for the checker and
-- for the engine. `read` takes the manifest as the core describes it (functions are `true`).
--
--     on = { "order.placed" },
--     steps = {
--         { name = "reserve", run = function(input, config) return { ... } end, undo = function(input, config) end, retries = 3 },
--         { name = "remind", wait = "72h", run = function(input, config) end },
--         { name = "ship", wait = { event = "order.paid", timeout = "48h" }, run = function(input, config) end },
--     }
--
-- A wait stands before its step. The event that it is for is one of the same entity: of the same kind and id, or one whose data names
-- the entity (`orderId`, for a workflow about an order).
local events = require("kasma.events")

local M = {}

M.STEPS_MAX, M.EVENTS_MAX, M.RETRIES_MAX = 50, 20, 10
local UNITS = { s = 1000, m = 60000, h = 3600000, d = 86400000, w = 604800000 }
local WAIT_MAX = 366 * 86400000
local NAME_MAX = 80

---@class WorkflowStep
---@field name string
---@field run boolean a step may be a wait alone
---@field undo boolean
---@field retries integer
---@field wait {ms: integer|nil, event: string|nil, timeout_ms: integer|nil}|nil

---@class WorkflowPlan
---@field on string[] empty: only another rule starts it
---@field steps WorkflowStep[]
---@field awaits string[] events that a step waits for

---@class WorkflowProblem
---@field message string
---@field hint string|nil
---@field word string|nil what to look for in the source, to name the line

-- The catalogue is declared by the modules; the command line checks without having loaded them.
local function catalogue()
    if #events.names() == 0 then require("kasma.boot").load_for_rules() end
    return events
end

--- "24h", "90s", "3d" in milliseconds; nil when it is none, or longer than a year.
---@param text any
---@return integer|nil
function M.duration(text)
    if type(text) ~= "string" then return nil end
    local number, unit = text:match("^(%d%d?%d?%d?%d?%d?)([smhdw])$")
    local ms = number and tonumber(number) * UNITS[unit]
    return ms and ms > 0 and ms <= WAIT_MAX and ms or nil
end

--- The member of an event's data that names an entity: order -> orderId.
---@param of string
---@return string|nil
function M.id_member(of) return of:find("^%l+$") and of .. "Id" or nil end

local function event_problem(name, where, nearest)
    if type(name) ~= "string" then return { message = where .. " must be the name of an event" } end
    if catalogue().find(name) or events.is_custom(name) then return nil end
    local known = {}
    for _, other in ipairs(events.names()) do known[other] = true end
    local near = nearest(name, known)
    return { message = ("%s: '%s' is no event"):format(where, name), hint = near and ("did you mean '%s'?"):format(near)
        or "GET /webhooks/events lists them", word = name }
end

-- Whether an event of that name can ever be of the entity that the workflow is about.
local function can_be_of(name, starts)
    if events.is_custom(name) or #starts == 0 then return true end
    local event = events.find(name)
    for _, start in ipairs(starts) do
        local first = events.find(start)
        if not first or first.of == event.of then return true end
        local member = M.id_member(first.of)
        if member and event.schema.members[member] then return true end
    end
    return false
end

local STEP_FIELDS = { name = true, run = true, undo = true, retries = true, wait = true }
local WAIT_FIELDS = { event = true, timeout = true }

local function read_wait(wait, where, starts, nearest, out)
    if type(wait) == "string" then
        local ms = M.duration(wait)
        if ms then return { ms = ms } end
        if wait:find(".", 1, true) then
            out{ message = ("%s.wait: an event needs a timeout"):format(where), word = wait,
                hint = ("wait = { event = \"%s\", timeout = \"48h\" }"):format(wait) }
        else
            out{ message = ("%s.wait: '%s' is no time; a number and s, m, h, d or w, a year at most"):format(where, wait), word = wait }
        end
        return nil
    end
    if type(wait) ~= "table" then
        out{ message = where .. ".wait must be a time like \"24h\", or { event = .., timeout = .. }" }
        return nil
    end
    local fine = true
    local function wrong(problem)
        fine = false
        out(problem)
    end
    for field in pairs(wait) do
        if not WAIT_FIELDS[field] then
            local near = type(field) == "string" and nearest(field, WAIT_FIELDS)
            wrong{ message = ("%s.wait: '%s' is not known"):format(where, tostring(field)), word = tostring(field),
                hint = near and ("did you mean '%s'?"):format(near) or nil }
        end
    end
    local problem = event_problem(wait.event, where .. ".wait.event", nearest)
    if problem then
        wrong(problem)
    elseif not can_be_of(wait.event, starts) then
        wrong{ message = ("%s.wait.event: '%s' is about %s, which this workflow does not follow"):format(where, wait.event,
            events.find(wait.event).of), word = wait.event }
    end
    local timeout = M.duration(wait.timeout)
    if not timeout then
        wrong{ message = where .. ".wait.timeout must be a time like \"48h\", a year at most", word = type(wait.timeout) == "string"
            and wait.timeout or nil }
    end
    return fine and { event = wait.event, timeout_ms = timeout } or nil
end

local function read_step(step, i, starts, seen, nearest, out)
    local where = ("steps[%d]"):format(i)
    if type(step) ~= "table" then return out{ message = where .. " must be a table" } end
    for field in pairs(step) do
        if not STEP_FIELDS[field] then
            local near = type(field) == "string" and nearest(field, STEP_FIELDS)
            out{ message = ("%s: '%s' is not a field of a step"):format(where, tostring(field)),
                hint = near and ("did you mean '%s'?"):format(near) or nil, word = tostring(field) }
        end
    end
    local name = step.name
    if type(name) ~= "string" or name:find("^%s*$") or #name > NAME_MAX then
        out{ message = ("%s.name must be a text of 1 to %d bytes"):format(where, NAME_MAX) }
        name = where
    elseif seen[name] then
        out{ message = ("%s.name: '%s' is the name of steps[%d] too"):format(where, name, seen[name]), word = name, last = true }
    else
        seen[name] = i
    end
    if step.run ~= nil and step.run ~= true then out{ message = where .. ".run must be a function" } end
    if step.undo ~= nil and step.undo ~= true then out{ message = where .. ".undo must be a function" } end
    if step.run == nil and step.wait == nil then out{ message = where .. " needs run, or wait, or both", word = name } end
    if step.run == nil and step.undo ~= nil then out{ message = where .. ".undo has nothing to undo: there is no run", word = name } end
    local retries = step.retries == nil and 0 or step.retries
    if type(retries) ~= "number" or retries ~= math.floor(retries) or retries < 0 or retries > M.RETRIES_MAX then
        out{ message = ("%s.retries must be a whole number from 0 to %d"):format(where, M.RETRIES_MAX), word = "retries" }
    end
    local wait
    if step.wait ~= nil then wait = read_wait(step.wait, where, starts, nearest, out) end
    return { name = name, run = step.run == true, undo = step.undo == true, retries = retries, wait = wait }
end

---@param manifest table as core.rules describes it
---@param nearest fun(name: string, names: table<string, any>): string|nil
---@return WorkflowPlan|nil plan, WorkflowProblem[] problems nil when there are some
function M.read(manifest, nearest)
    local problems = {}
    local function out(problem) problems[#problems + 1] = problem end
    local on, starts = manifest.on, {}
    if type(on) == "string" then on = { on } end
    if on ~= nil and type(on) ~= "table" then
        out{ message = "on must be a list of events" }
        on = nil
    end
    on = on or {}
    if #on > M.EVENTS_MAX then out{ message = ("on names more than %d events"):format(M.EVENTS_MAX) } end
    local once = {}
    for i = 1, math.min(#on, M.EVENTS_MAX) do
        local problem = event_problem(on[i], ("on[%d]"):format(i), nearest)
        if problem then
            out(problem)
        elseif not once[on[i]] then
            once[on[i]] = true
            starts[#starts + 1] = on[i]
        end
    end
    for key in pairs(on) do
        if type(key) ~= "number" or key < 1 or key > #on then out{ message = "on must be a list of events" } end
    end
    local steps, list = type(manifest.steps) == "table" and manifest.steps or {}, {}
    if #steps == 0 then out{ message = "steps must be a list of 1 to " .. M.STEPS_MAX .. " steps" } end
    if #steps > M.STEPS_MAX then out{ message = ("steps has more than %d steps"):format(M.STEPS_MAX) } end
    for key in pairs(steps) do
        if type(key) ~= "number" or key < 1 or key > #steps then
            out{ message = ("steps: '%s' is not the place of a step"):format(tostring(key)) }
        end
    end
    local seen, awaits, awaited = {}, {}, {}
    for i = 1, math.min(#steps, M.STEPS_MAX) do
        local step = read_step(steps[i], i, starts, seen, nearest, out)
        list[i] = step
        local event = step and step.wait and step.wait.event
        if event and not awaited[event] then
            awaited[event] = true
            awaits[#awaits + 1] = event
        end
    end
    if #problems > 0 then return nil, problems end
    return { on = starts, steps = list, awaits = awaits }, problems
end

return M
