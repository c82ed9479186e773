-- The rule commands about what a server keeps: a run that becomes a test, workflows, secrets.
local json = require("core.json")
local lua_text = require("modules.rules.lua_text")
local files = require("kasma.cli.rules.files")
local online = require("kasma.cli.rules.online")
local report = require("kasma.cli.rules.report")
local target = require("kasma.cli.rules.target")
local tests = require("modules.rules.tests")

local M = {}

local commands = {}
M.commands = commands

local need, escaped = online.need, target.escaped
local function usage(message) error({ usage = message }, 0) end
local function present(v) if v == json.null then return nil end return v end

-- A run as a test ---------------------------------------------------------------------------------------------------------------------

local function case_text(run, rule, config)
    local what = present(run.message) and run.message ~= "" and run.message or run.outcome
    local expect = "{}"
    if run.outcome == "ok" and present(run.output) ~= nil then expect = lua_text.of({ result = run.output }, 12) end
    local head = ("        -- Run %s of version %d, %s: %s%s"):format(run.id, run.version, run.at, run.outcome,
        present(run.line) and " at line " .. run.line or "")
    local members = { ("name = %s, from_run = %s"):format(lua_text.of(("%s: %s"):format(rule.key, what):sub(1, 100)), lua_text.of(run.id)),
        "given = " .. lua_text.of(tests.given_of(run.input), 12), "config = " .. lua_text.of(config or {}, 12), "expect = " .. expect }
    return head .. "\n        { " .. table.concat(members, ",\n            ") .. " },"
end

-- The tests with one more at their head, when that can be told for sure; else nil.
local function with_case(source, text, path, id)
    if not source then return "return {\n    tests = {\n" .. text .. "\n    },\n}\n" end
    for _, _, to in source:gmatch("()%f[%w_](tests%s*=%s*{)()") do
        local fresh = source:sub(1, to - 1) .. "\n" .. text .. source:sub(to)
        local before, after = tests.read(source, path), tests.read(fresh, path)
        if before and after and #after.tests == #before.tests + 1 then
            for _, t in ipairs(after.tests) do
                if t.from_run == id then return fresh end
            end
        end
    end
    return nil
end

-- Where a rule lies below the folder; its own place in a pulled one, where it is not there yet.
local function place_of(dir, key, hook)
    local at = files.below(dir)
    for _, file in ipairs(at) do
        if file:match("([^/]+)%.lua$") == key then return file end
    end
    return ("%s/rules/%s/%s.lua"):format(dir, require("modules.rules.files").folder_of(hook), key)
end

--- kasma rules capture RUN: what a run was given becomes a test beside its rule.
function commands.capture(args)
    local server = target.of(args)
    local run = server:get("/rules/runs/" .. escaped(need(args, 2, "a run")))
    if type(present(run.input)) ~= "table" then error({ status = 410, message = "what the run was given is no longer kept" }, 0) end
    local rule = server:get("/rules/" .. escaped(run.ruleId))
    -- The key becomes a file's name: a server must not lead it elsewhere.
    if type(rule.key) ~= "string" or not rule.key:find("^[a-z0-9][a-z0-9_-]*$") then
        error({ message = "the server answers with a rule that has no key" }, 0)
    end
    local version = server:get("/rules/" .. escaped(run.ruleId) .. "/versions/" .. escaped(run.version))
    local path = files.test_file(place_of(args.dir or ".", rule.key, tostring(rule.hook)))
    local source, text = files.read(path), case_text(run, rule, present(version.settings.config))
    if source and source:find(run.id, 1, true) then usage(path .. " holds a test of this run already") end
    local fresh = with_case(source, text, path, run.id)
    if not fresh then
        io.stdout:write(text, "\n")
        usage(path .. ": there is no place for it to be seen: put the case above into its tests by hand")
    end
    files.save(path, fresh)
    return report.answer(args, { file = path, run = run.id, rule = rule.key }, ("wrote a test of run %s into %s"):format(run.id, path))
end

-- Workflows ---------------------------------------------------------------------------------------------------------------------------

local function workflow_lines(run, lines)
    local err = present(run.error)
    lines[#lines + 1] = ("%s  v%d  %-9s %-20s %s %s  %s%s"):format(run.id, run.version, run.state, run.event, run.entity.type,
        run.entity.id, run.startedAt, present(run.waitEvent) and "  waits for " .. run.waitEvent or present(run.wakeAt)
            and "  until " .. run.wakeAt or "")
    for _, step in ipairs(run.steps) do
        lines[#lines + 1] = ("    %-24s %-4s %-8s try %d  %7.1f ms"):format(step.name, step.kind, step.state, step.attempt,
            step.micros / 1000)
    end
    if err then
        lines[#lines + 1] = ("    %s%s"):format(present(err.line) and "line " .. tostring(err.line) .. ": " or "", tostring(err.message))
    end
end

--- kasma rules workflows KEY [--state S], workflows KEY retry|cancel ID -m NOTE
function commands.workflows(args)
    local server, key, verb = target.of(args), need(args, 2, "a key"), args[3]
    if verb and verb ~= "retry" and verb ~= "cancel" then usage("retry or cancel, not " .. verb) end
    local list
    if verb then
        list = json.array{ (server:post("/rules/workflows/" .. escaped(need(args, 4, "a workflow's id")) .. "/" .. verb,
            { reason = online.note(args) })) }
    else
        list = server:get("/rules/" .. escaped(key) .. "/workflows", { state = args.state })
    end
    local lines = {}
    for _, run in ipairs(list) do workflow_lines(run, lines) end
    return report.answer(args, verb and list[1] or list, #lines > 0 and table.concat(lines, "\n") or "no workflows")
end

-- Secrets -----------------------------------------------------------------------------------------------------------------------------

local VALUE_MAX = 4096

-- Standard input, whole, less the line end that an editor or echo leaves.
local function read_value()
    local value = (io.stdin:read(VALUE_MAX + 3) or ""):gsub("\r?\n$", "")
    if value == "" then usage("the value is read from standard input, and there is none") end
    if #value > VALUE_MAX then usage("a secret is 4 KiB at most") end
    return value
end

local secrets = {}

function secrets.list(args, server)
    local list, lines = server:get("/rules/secrets"), {}
    for i, s in ipairs(list) do
        lines[i] = ("%-32s %s%s"):format(s.name, s.updatedAt, #s.usedBy > 0 and "  used by " .. table.concat(s.usedBy, ", ") or "")
    end
    return report.answer(args, list, #lines > 0 and table.concat(lines, "\n") or "no secrets")
end

function secrets.set(args, server)
    local name = need(args, 3, "a name")
    if args[4] then usage("the value is read from standard input: others on this machine see the words of a command") end
    local done = server:post("/rules/secrets/set", { name = name, value = read_value() })
    return report.answer(args, done, done.name .. "  set " .. done.updatedAt)
end

function secrets.remove(args, server)
    local done = server:post("/rules/secrets/remove", { name = need(args, 3, "a name") })
    return report.answer(args, done, done.name .. "  removed")
end

--- kasma rules secrets list, set NAME (value on standard input), remove NAME
function commands.secrets(args)
    local command = secrets[args[2] or "list"]
    if not command then usage("list, set or remove, not " .. args[2]) end
    return command(args, target.of(args))
end

return M
