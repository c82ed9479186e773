-- kasma mail: what became of mails, who is not written to, a test mail.
local json = require("core.json")
local uuid = require("core.uuid")
local args_of = require("kasma.cli.args")
local given = require("kasma.cli.given")

local M = {}

M.usage = [[
kasma mail list TENANT [--state STATE] [--template NAME] [--to ADDRESS] [--limit N] [--json]
kasma mail show TENANT ID [--json]
kasma mail suppressed TENANT ADDRESS [--json]
kasma mail allow TENANT ADDRESS
kasma mail test ADDRESS

list shows the newest mails first (STATE: queued, sending, sent, failed, suppressed); a mail that says sending for long was
cut off between the mail server and its row. suppressed tells why nothing goes to an address, allow takes it off the list.
test hands one mail to the mail server now and prints what it said.

  kasma mail list acme --state failed
  kasma mail test ops@acme.example
]]

local function print_rows(rows, as_json)
    if as_json then
        given.print_rows(rows)
        return
    end
    for _, row in ipairs(rows) do
        io.stdout:write(("%s  %-10s %-20s x%d  %s  %s%s\n"):format(row.id, row.state, row.template, row.attempts, row.created_at:sub(1, 19),
            row.recipient, row.error and ("  " .. row.error) or ""))
    end
end

local commands = {}

function commands.list(args)
    local store = require("modules.mail.store")
    local state = given.one_of(args.state, "state", { "queued", "sending", "sent", "failed", "suppressed" })
    print_rows(store.messages(args[1], { state = state, template = args.template, recipient = args.to }, nil,
        given.number(args.limit, "limit", 50, 1, 1000)), args.json)
end

function commands.show(args)
    local row = require("kasma.schema").is_uuid(args[2]) and require("modules.mail.store").message(args[1], args[2])
    if not row then error("there is no such mail", 0) end
    if args.json then return io.stdout:write(json.encode(row), "\n") end
    for _, name in ipairs{ "id", "key", "template", "locale", "recipient", "state", "attempts", "provider_id", "error", "created_at",
        "sent_at" } do
        io.stdout:write(("%-12s %s\n"):format(name, tostring(row[name] or "-")))
    end
end

function commands.suppressed(args)
    local rows = require("modules.mail.service").suppressions_of(args[1], args[2])
    if args.json then return given.print_rows(rows) end
    for _, row in ipairs(rows) do io.stdout:write(("%-12s %s  %s\n"):format(row.reason, row.created_at:sub(1, 19), row.source or "")) end
    if #rows == 0 then io.stdout:write("mails go to this address\n") end
end

function commands.allow(args)
    local count = require("modules.mail.service").unsuppress({ tenant = args[1], app = "MASTER", actor_kind = "system" }, args[2])
    io.stdout:write(count > 0 and "mails go to this address again\n" or "this address was not on the list\n")
end

function commands.test(args)
    local answer = require("kasma.mail_transport").deliver{ id = uuid.v7(), to = args[1], subject = "[Kasma] Test mail",
        text = "This mail server takes mails of Kasma.\n", html = "<p>This mail server takes mails of Kasma.</p>" }
    io.stdout:write(answer == "file" and ("written to " .. require("kasma.mail_transport").folder()) or answer, "\n")
end

local NEEDS = { list = 1, show = 2, suppressed = 2, allow = 2, test = 1 }

---@param words string[] what follows `kasma mail`
---@return integer exit 0 done, 1 failed, 2 wrong use
function M.run(words)
    local command = words[1]
    local args, bad = args_of({ unpack(words, 2) }, { state = true, template = true, to = true, limit = true, json = false })
    if command == "--help" then
        io.stdout:write(M.usage)
        return 0
    end
    if command and not commands[command] then bad = command .. " is not known here" end
    if not commands[command or ""] or not args or #args ~= NEEDS[command] then
        io.stderr:write(bad and ("kasma mail: " .. bad .. "\n\n") or "", M.usage)
        return 2
    end
    local ok, why = pcall(function()
        if command ~= "test" and not require("kasma.tenant").by_key(args[1]) then error("there is no tenant " .. args[1], 0) end
        commands[command](args)
    end)
    if ok then return 0 end
    if type(why) == "table" and why.usage then
        io.stderr:write("kasma mail: ", why.usage, "\n")
        return 2
    end
    return require("kasma.cli.failure")("mail", why)
end

return M
