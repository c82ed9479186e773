-- kasma rules: checks, tests, previews and publishes rules.
--
-- What works on files alone is in rules/offline.lua and rules/watch.lua, what asks a server in rules/online.lua; rules/target.lua says
-- which server. This file reads the words and says how it ended.
local args_of = require("kasma.cli.args")
local report = require("kasma.cli.rules.report")

local M = {}

M.usage = [[
kasma rules COMMAND [...] [--json] [--format text|json|junit|sarif]

Without a server, on files:
  new KEY --hook H [--template T] [--dir D]    writes D/KEY.lua, D/KEY_test.lua and the files for editors
  check [PATH..]                      syntax, names, manifest, config, runs on samples; findings with file, line, column and hint
  test [PATH..] [--only NAME] [--watch]    runs PATH's tests (NAME_test.lua beside NAME.lua), and again when something is saved
  watch [DIR]                         checks and tests whatever is saved, until interrupted; with a server that has the files
                                      (make up) says when it is live, with --session it goes into a draft session of a shared one
  stubs [--dir D]                     writes .kasma/kasma.d.lua, .kasma/config.d.lua and .luarc.json for editors
  hooks, templates                    what may be written, and what comes with the product

On a server (kasma login, or KASMA_URL and KASMA_KEY), or on the stores of this installation (DATABASE_URL and so on):
  list [--hook H] [--state S]         rules with their state
  show KEY                            a rule with its draft
  push FILE [--key K] [--config JSON] creates the rule, or saves its draft, from a file and the tests beside it
  pull [DIR] [--force]                writes the rules as files: rules/<area>/<key>.lua, tests, rules/active/<tenant>.lua, stubs
  push --plan [DIR], push --apply [DIR] [-m NOTE] [--accept CODE]...
                                      what the files would create, update and disable; does it, or nothing when one is refused
  preview KEY (--order N | --orders N | --cart FILE) [--vs active|none|N] [--version N|draft] [--at TIME]
              [--fail-if-delta-below PERCENT]
  publish KEY -m NOTE [--at TIME] [--until TIME] [--accept CODE]...
  rollback KEY VERSION -m NOTE
  disable, enable, remove, restore KEY -m NOTE
  pause -m NOTE [--hook H], resume -m NOTE [--hook H]
  approve, reject, cancel REQUEST -m NOTE    of a publication that waits
  log KEY, diff KEY A B               versions; what differs (B may be draft)
  runs KEY [--failed], replay RUN [--version N]
  capture RUN [--dir D]               what a run was given becomes a test beside its rule
  workflows KEY [--state S], workflows KEY retry|cancel ID -m NOTE
  secrets list, secrets set NAME, secrets remove NAME    the value is read from standard input
  tail [KEY] [--failed] [--count N]   runs with the budget that they used, as they happen

  --tenant T      which tenant; KASMA_TENANT, else that of the key
  --profile NAME  a server of kasma login; without it KASMA_URL, else the stores' settings, else the last login
  --insecure      allows http to other machines

Ends with 0, 1 when there are findings, 2 on wrong use, 3 when it is refused, 4 on a conflict, 5 when a server or store cannot be
reached. The key is never an argument: others on the machine would see it.

  kasma rules check rules/
  kasma rules publish b2g1_weekend -m "weekend tea"
]]

local KNOWN = { tenant = true, profile = true, insecure = false, json = false, format = true, hook = true, template = true, dir = true,
    only = true, key = true, config = true, state = true, cart = true, order = true, orders = true, vs = true, at = true,
    ["until"] = true, accept = "list", note = true, failed = false, version = true, ["fail-if-delta-below"] = true, once = false,
    plan = false, apply = false, force = false, session = false,
    count = true, watch = false }

local FILES = { "offline", "watch", "online", "sync", "live", "keep" }

local function command_of(name)
    for _, file in ipairs(FILES) do
        local found = require("kasma.cli.rules." .. file).commands[name]
        if found then return found end
    end
    return nil
end

local CODES = { [400] = 2, [401] = 3, [403] = 3, [409] = 4, [503] = 5 }

-- What a server, or this process in its place, has answered.
local function refused(why, args)
    local message = type(why.message) == "table" and table.concat(why.message, "; ") or tostring(why.message or why.kind)
    -- Of a store of this installation that is away; a server tells no more than its text.
    if require("kasma.errors").is_unavailable(why) then message = require("kasma.cli.given").why(why) end
    local code = why.code and why.code ~= "" and tostring(why.code) or nil
    io.stderr:write("kasma rules: ", report.plain(message), code and " (" .. report.plain(code) .. ")" or "", "\n")
    local diagnostics = type(why.details) == "table" and type(why.details.diagnostics) == "table" and why.details.diagnostics or {}
    if report.form(args) == "text" then
        for _, d in ipairs(diagnostics) do report.finding(d) end
    else
        if #diagnostics == 0 then diagnostics = { { severity = "error", code = code or "refused", message = message } } end
        report.answer(args, { error = { status = why.status, code = code, message = message, diagnostics = diagnostics } }, "", diagnostics)
    end
    if why.unreachable or require("kasma.errors").is_unavailable(why) then return 5 end
    return CODES[why.status] or 1
end

---@param words string[]
---@return integer exit status
function M.run(words)
    local cleaned = {}
    for i, word in ipairs(words) do cleaned[i] = word == "-m" and "--note" or word end
    local args, bad = args_of(cleaned, KNOWN)
    if words[1] == "--help" or words[1] == nil then
        io.stdout:write(M.usage)
        return words[1] and 0 or 2
    end
    local command = args and args[1] and command_of(args[1])
    if not command then
        io.stderr:write("kasma rules: ", bad or tostring(words[1]) .. " is not known here", "\n\n", M.usage)
        return 2
    end
    if not report.FORMATS[report.form(args)] then
        io.stderr:write("kasma rules: --format is text, json, junit or sarif\n")
        return 2
    end
    local ok, result = pcall(command, args)
    if ok then return result end
    if type(result) == "table" and result.usage then
        io.stderr:write("kasma rules: ", report.plain(result.usage), "\n")
        return 2
    end
    if type(result) == "table" then return refused(result, args) end
    io.stderr:write("kasma rules: ", tostring(result), "\n")
    return 1
end

return M
