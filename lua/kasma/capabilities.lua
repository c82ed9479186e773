-- What rules that may wait can call: those of routes and of steps of workflows. A module declares its own when it is loaded:
--
--     capabilities.declare("kv.get", { needs = "kv", limit = 50, fn = function(ctx, key) return value end })
--
-- and rule code calls kv.get("seen"), which answers a plain value, or nil and a text. What the manifest's `needs` does not name is
-- refused as `capability_denied`, more calls than the limit as `capability_limit`: errors that the rule may catch, and that end
-- it when it does not. The limit is one for all functions of the same need.
--
-- A run has a sandbox of its own, so others go on while it waits. It has two seconds in all, waiting included: a function that
-- takes longer is cancelled with its run. A client that goes away cancels the run at the call that waits.
--
-- A function that writes says so, for a step of a workflow may be tried again. `writes = "keyed"`: what it writes is once-only by
-- M.call_key. `writes = "once"`: it writes in the transaction of M.once, with the note that it was done. Such calls of a step are counted,
-- and noted with a hash of their arguments: the same call is not made again, and another one in its place ends the step (`calls_differ`),
-- since nobody could say what was done of it.
--
-- In previews, tests, checks and draft sessions nothing is asked: every call answers what the test says it does, or nil, "preview". What a
-- run in earnest was answered is kept with it (64 KiB; `hides` keeps members out), so that a replay hears the same for the same call.
local crypto = require("core.crypto")
local json = require("core.json")
local rules = require("core.rules")
local sched = require("core.sched")
local time = require("core.time")
local uuid = require("core.uuid")
local audit = require("kasma.audit")
local db = require("kasma.db")
local errors = require("kasma.errors")
local hooks = require("kasma.hooks")
local catalogue = require("kasma.hooks_catalogue")
local log = require("kasma.log")

local M = {}

local MANIFESTS_MAX = 2000
local KEPT_CALLS, KEPT_BYTES = 100, 65536 -- of one run

---@class Capability
---@field fn fun(ctx: CapabilityContext, ...): any, string|nil plain value, or nil and why. May wait. Raises M.refuse for what
---the rule's author must mend
---@field needs string the word of the manifest's `needs`
---@field summary string what it does, for GET /rules/hooks
---@field signature string|nil of its arguments and answer, for editors
---@field limit integer calls in one run, all functions of this need together
---@field hides string[]|nil members of its answer that are not kept with the run
---@field writes "keyed"|"once"|nil how it keeps from writing twice in a step that is tried again
---@field takes_secrets boolean|nil a secret among the arguments comes as {["$secret"] = name}
---@field gives_secret boolean|nil its answer is the name of a secret; the rule gets a value without content

---@class CapabilityContext
---@field scope Scope
---@field tenant string
---@field rule {id: string, rule_id: string|nil, number: integer}
---@field needs table<string, any> words of the manifest; http and secrets are sets of names
---@field key string|nil idempotency key of the run or step: the same when it is tried again
---@field kind "route"|"workflow"
---@field calls table<string, integer> by need, this one included
---@field ledger CapabilityLedger|nil of a step: what it has written when it was tried before
---@field write {n: integer, name: string, args: string}|nil this call, of those that write: its place, and SHA-256 of its arguments
---@field heard {name: string, args: string, answer: string|nil}[] calls that were answered, the answer as JSON of a list
---@field heard_bytes integer
---@field deadline integer milliseconds of time.mono when the run ends

---@class CapabilityLedger
---@field begin fun(write: table): string|nil notes that the call is about to be made; nil, or the name of the other call that has its place
---@field forget fun(write: table) it came to nothing
---@field once fun(write: table, work: fun(tx: kasma.Tx): any, string|nil): any, string|nil runs the work and notes its answer in one
---transaction; an answer that was noted before is answered again. Raises M.differs

local declared = {}

---@param name string "kv.get", or one word
---@param o Capability
function M.declare(name, o)
    assert(type(o.fn) == "function" and type(o.needs) == "string" and type(o.limit) == "number", name .. ": fn, needs and limit")
    assert(o.writes == nil or o.writes == "keyed" or o.writes == "once", name .. ": writes")
    local ok, err = rules.capability(name, { takes_secrets = o.takes_secrets, gives_secret = o.gives_secret })
    if not ok then error(err.message, 2) end
    declared[name] = o
end

---@param name string
---@return Capability|nil
function M.get(name) return declared[name] end

---@return string[] sorted
function M.names()
    local names = {}
    for name in pairs(declared) do names[#names + 1] = name end
    table.sort(names)
    return names
end

--- The words that a manifest may need, beside those of what is declared: addresses go with customers.
---@return table<string, boolean>
function M.needs()
    local needs = { ["customers.address"] = true }
    for _, o in pairs(declared) do needs[o.needs] = true end
    return needs
end

local refusal = {}

--- Ends the call with an error in the rule; for a function of a capability.
---@param message string "capability_denied: http.fetch: ..."
function M.refuse(message) error(setmetatable({ refused = message }, refusal), 0) end

local stopped = {}

--- Ends the run: the step has called something else in this call's place when it was tried before.
---@param write table
---@param before string what has its place
function M.differs(write, before)
    local what = before == write.name and "with other arguments" or "that was " .. before
    error(setmetatable({ stopped = ("calls_differ: %s: call %d that writes was made %s when this step was tried before; what may turn out "
        .. "otherwise the next time belongs into a step of its own"):format(write.name, write.n, what) }, stopped), 0)
end

--- What names this call of the run, for what is written once however often the run or the step is tried again: only calls that write
--- count, so what is read between them may differ. Nil: the run has no key.
---@param ctx CapabilityContext
---@return string|nil
function M.call_key(ctx) return ctx.key and ("%s:w%d"):format(ctx.key, ctx.write.n) end

--- Does the work of a call that `writes = "once"`.
---@param ctx CapabilityContext
---@param work fun(tx: kasma.Tx): any, string|nil no effect but through tx; nil and why: nothing was written
---@return any answer, string|nil why
function M.once(ctx, work)
    if ctx.ledger then return ctx.ledger.once(ctx.write, work) end
    local result = db.transaction(ctx.tenant, function(tx) return { work(tx) } end)
    return result[1], result[2]
end

--- An id that always comes out of the same key; a fresh one without a key. It lies above all ids that are made of the time, so that
--- whoever reads rows from an id of now on finds it.
---@param key string|nil
---@return string uuid
function M.once_id(key)
    if not key then return uuid.v7() end
    local hex = crypto.sha256(key)
    return ("f%s-%s-8%s-a%s-%s"):format(hex:sub(2, 8), hex:sub(9, 12), hex:sub(14, 16), hex:sub(18, 20), hex:sub(21, 32))
end

-- Manifests ------------------------------------------------------------------------------------------------------------------

local manifests, kept = {}, 0

--- The manifest of a rule as plain data. Kept by version.
---@param set userdata
---@param rule table of set:list
---@return table|nil manifest, table|nil failure
function M.manifest(set, rule)
    local key = rule.id .. "|" .. rule.version
    local manifest = manifests[key]
    if manifest then return manifest end
    local failure
    manifest, failure = set:describe(rule.index)
    if not manifest then return nil, failure end
    if kept >= MANIFESTS_MAX then manifests, kept = {}, 0 end
    manifests[key], kept = manifest, kept + 1
    return manifest
end

local function set_of(list)
    local set = {}
    for _, name in ipairs(type(list) == "table" and list or {}) do set[name] = true end
    return set
end

--- What a manifest needs: {"kv", http = {"example.test"}, secrets = {"token"}} as sets.
---@param manifest table
---@return table<string, any>
function M.needs_of(manifest)
    local needs = {}
    for key, value in pairs(type(manifest.needs) == "table" and manifest.needs or {}) do
        if type(key) == "number" then
            if type(value) == "string" then needs[value] = needs[value] or true end
        else
            needs[key] = set_of(value)
        end
    end
    return needs
end

-- A run ----------------------------------------------------------------------------------------------------------------------

local function pack(...) return { n = select("#", ...), ... } end

local function text_of(why)
    if type(why) ~= "table" then return tostring(why) end
    return tostring(why.code or why.message or why.error or "failed")
end

-- The arguments of a call, in a form that is the same for the same ones. What JSON cannot say is refused by the call itself.
local function digest(call)
    local parts = {}
    for i = 3, call.n do
        local ok, text = pcall(audit.canonical, call[i])
        parts[#parts + 1] = call[i] == nil and "nil" or ok and text or "?"
    end
    return crypto.sha256(table.concat(parts, ","))
end

local function call_of(ctx, c, call)
    local ledger = c.writes == "keyed" and ctx.ledger
    if not ledger then return pack(c.fn(ctx, unpack(call, 3, call.n))) end
    local before = ledger.begin(ctx.write)
    if before then M.differs(ctx.write, before) end
    local ok, result = pcall(function() return pack(c.fn(ctx, unpack(call, 3, call.n))) end)
    if not ok and getmetatable(result) ~= refusal then error(result, 0) end -- it may have been written
    if not ok or result[1] == nil then ledger.forget(ctx.write) end
    if not ok then error(result, 0) end
    return result
end

local function without(value, hidden)
    if not hidden or type(value) ~= "table" then return value end
    local copy = {}
    for name, member in pairs(value) do copy[name] = member end
    for _, name in ipairs(hidden) do copy[name] = nil end
    return copy
end

-- Keeps what a call was answered. What JSON cannot say, or is too much, is kept as a call alone.
local function keep(ctx, c, name, args, values)
    if #ctx.heard >= KEPT_CALLS then return end
    local list = json.array{}
    for i = 1, values.n do
        local value = without(values[i], c.hides)
        list[i] = value == nil and json.null or value
    end
    local ok, text = pcall(json.encode, list)
    if not ok or ctx.heard_bytes + #text > KEPT_BYTES then text = nil end
    ctx.heard_bytes = ctx.heard_bytes + (text and #text or 0)
    ctx.heard[#ctx.heard + 1] = { name = name, args = args, answer = text }
end

-- What the same call was answered in a kept run: of calls that are alike the first one that was not taken yet. Nil: there is none.
local function heard_before(list, name, args)
    for _, call in ipairs(list) do
        if not call.taken and call.name == name and call.args == args and type(call.answer) == "string" then
            call.taken = true
            local answers = json.decode(call.answer)
            local values = { n = #answers }
            for i = 1, #answers do
                if answers[i] ~= json.null then values[i] = answers[i] end
            end
            return values
        end
    end
    return nil
end

-- Calls the capability in a task of its own that ends with the run. Answers what run:answer, run:refuse or run:stop answer.
local function ask(ctx, run, c, name, args, call)
    local left = ctx.deadline - time.mono() / 1000
    if left < 1 then return run:stop("stopped: it took too long, waiting included") end
    local ok, result = pcall(sched.parallel, { function()
        sched.deadline(math.ceil(left))
        return call_of(ctx, c, call)
    end })
    if ok then
        keep(ctx, c, name, args, result[1])
        return run:answer(unpack(result[1], 1, result[1].n))
    end
    if getmetatable(result) == refusal then return run:refuse(result.refused) end
    if getmetatable(result) == stopped then return run:stop(result.stopped, true) end
    local cause = type(result) == "table" and (result.cause or result) or {}
    if cause.kind == "deadline" or cause.kind == "cancelled" then
        if time.mono() / 1000 >= ctx.deadline - 1 then
            return run:stop(("stopped: %s took too long, waiting included"):format(name))
        end
        error(result, 0) -- the client went away, or its own time is over
    end
    if errors.is(result) and result.status < 500 then
        keep(ctx, c, name, args, { n = 2, nil, text_of(result) })
        return run:answer(nil, text_of(result))
    end
    log.warn("a capability of a rule failed", { tenant = ctx.tenant, rule = ctx.rule.id, capability = name,
        error = type(result) == "table" and tostring(result.message) or tostring(result) })
    keep(ctx, c, name, args, { n = 2, nil, "unavailable" })
    return run:answer(nil, "unavailable")
end

local function serve(ctx, run, call, preview)
    local name = call[2]
    local c = declared[name]
    if not c then return run:refuse(("capability_denied: there is no %s here"):format(name)) end
    if not ctx.needs[c.needs] then
        return run:refuse(("capability_denied: %s: '%s' is not in needs"):format(name, c.needs))
    end
    local n = (ctx.calls[c.needs] or 0) + 1
    ctx.calls[c.needs] = n
    if n > c.limit then
        return run:refuse(("capability_limit: %s: more than %d calls that need '%s' in one run"):format(name, c.limit, c.needs))
    end
    if preview then
        local test = type(preview) == "table" and preview or {}
        if test.calls then test.calls[#test.calls + 1] = { unpack(call, 2, call.n) } end
        local answer = test.answers and test.answers[name]
        local before = test.heard and heard_before(test.heard, name, digest(call))
        if before then return run:answer(unpack(before, 1, before.n)) end
        if answer == nil then return run:answer(nil, "preview") end
        return run:answer(answer)
    end
    local args = digest(call)
    if c.writes then
        ctx.writes = ctx.writes + 1
        ctx.write = { n = ctx.writes, name = name, args = args }
    end
    return ask(ctx, run, c, name, args, call)
end

local function drive(ctx, run, input, form, entry, limits, preview)
    local state = pack(run:start(input, form, entry and entry.step, entry and entry.kind == "undo", limits))
    while state[1] == "call" do state = pack(serve(ctx, run, state, preview)) end
    return state[2], state[3]
end

---@class CapabilityRunOptions
---@field key string|nil idempotency key of this run or step
---@field ledger CapabilityLedger|nil of a step
---@field kind "route"|"workflow"|nil default "route"
---@field preview boolean|{answers: table<string, any>|nil, calls: table[]|nil, heard: table[]|nil}|nil nothing is asked, and nothing
---recorded; answers of a test by name, and where its calls are written; what a kept run was answered
---@field limits table|nil {instructions, wall_us}
---@field settled (fun(told: RuleRun))|nil is told what became of the run before it is recorded, and keeps a breaker in place of the rule's
---@field judge (fun(answer: any): boolean, string|nil)|nil what an answer must be beside the hook's form, and why it is not

--- Runs one rule of a set. Its run is recorded as that of any hook; an answer of a route is judged by the hook's form.
---@param scope Scope|nil nil: only in a preview
---@param set userdata
---@param rule table of set:list
---@param entry {step: integer, kind: "run"|"undo"}|nil a function of a workflow's step; nil: the manifest's `run`
---@param input table see hooks.input
---@param opts CapabilityRunOptions|nil
---@return any answer, RuleRun
function M.run(scope, set, rule, entry, input, opts)
    opts = opts or {}
    -- A draft (a row's rule without a number) has been approved by nobody: it may show its answer, and do and learn nothing by calls.
    local preview = opts.preview or not scope or (rule.rule_id ~= nil and rule.number == 0)
    local manifest, failure = M.manifest(set, rule)
    local run
    if manifest then run, failure = set:open(rule.index, opts.settled ~= nil) end
    local answer, report = nil, failure
    local heard = {}
    if run then
        local limits = opts.limits or rules.limits(rule.hook)
        local ctx = { scope = scope, tenant = scope and scope.tenant, key = opts.key, kind = opts.kind or "route", calls = {},
            writes = 0, ledger = opts.ledger, heard = heard, heard_bytes = 0,
            rule = { id = rule.id, rule_id = rule.rule_id, number = rule.number }, needs = M.needs_of(manifest),
            deadline = time.mono() / 1000 + (limits.wall_us or 2000000) / 1000 }
        local hook = catalogue.get(rule.hook)
        local ok
        ok, answer, report = pcall(drive, ctx, run, input, hook and hook.form, entry, opts.limits, preview)
        run:close()
        if not ok then error(answer, 0) end
    end
    local told
    answer, told = hooks.told(rule, answer, report, not entry)
    told.heard, told.entry = heard[1] and heard or nil, entry
    if opts.judge and told.outcome == "ok" and answer ~= nil then
        local ok, why = opts.judge(answer)
        if not ok then
            told.outcome, told.message, answer = "invalid_result", why, nil
            hooks.plain_words{ told }
        end
    end
    if opts.settled then opts.settled(told) end
    if not preview then hooks.record(scope, told, input, answer) end
    return answer, told
end

return M
