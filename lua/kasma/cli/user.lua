-- kasma user create-admin: a platform owner; kasma user create: a user of a tenant; kasma user import: users of another system.
local args_of = require("kasma.cli.args")

local M = {}

M.usage = [[
kasma user create-admin EMAIL [--name NAME] [--password-stdin] [--json]
kasma user create EMAIL --tenant KEY --role ROLE_KEY [--name NAME] [--password-stdin] [--json]
kasma user import FILE --tenant KEY [--dry-run] [--json]

create-admin makes a platform owner, or makes an existing user one, and prints a one-time code with which they sign in and choose
a password. create makes an active user with a role of a tenant, with a random password that is printed once; an account that is there
already gets the role, and keeps its password. With --password-stdin the password is read from standard input; it is never taken from
the command line.

Ends with 0 when it was done, 1 when not, 2 on wrong use, 5 when a store cannot be reached.

import takes users with the password hashes that another system kept, one JSON object a line (- = standard input):
{"email", "display_name"?, "password_hash"? (bcrypt or argon2id), "email_verified"?, "user_type"?, "role_keys"?}. Without
email_verified a user proves the address at the first sign-in. Known addresses are left as they are; lines that cannot be taken
are printed with their number and end it with 1.

  kasma user create-admin ann@acme.example
  kasma user import users.ndjson --tenant acme --dry-run
  printf '%s' "$SECRET" | kasma user create bob@acme.example --tenant acme --role catalog_manager --password-stdin
]]

-- A password and whether it was made here; nil for an admin, who chooses one by a code.
local function password_of(args, admin)
    if not args["password-stdin"] then
        if admin then return nil, false end
        return require("core.crypto").base64url(require("core.crypto").random(15)), true
    end
    local text = (io.stdin:read("*a") or ""):gsub("[\r\n]+$", "")
    if #text < 6 or #text > 1024 then error("a password has 6 to 1024 characters", 0) end
    return text, false
end

local function print_user(report, admin)
    io.stdout:write(("%s  %s  %s%s\n"):format(report.id, report.email, report.userType, admin and ", platform owner" or ""))
    if report.known then io.stdout:write("there was an account; it has the role, and signs in as before\n") end
    if report.password then io.stdout:write("password  ", report.password, "\n") end
    if report.code then require("kasma.cli.code")(report.email, report.code, report.codeSeconds) end
end

local function make(words)
    local command = words[1]
    local args, bad = args_of({ unpack(words, 2) }, { name = true, tenant = true, role = "list", ["password-stdin"] = false, json = false })
    local admin = command == "create-admin"
    if not args or not args[1] or args[2] or (not admin and (not args.tenant or #args.role == 0)) then
        io.stderr:write(bad and ("kasma user: " .. bad .. "\n\n") or "", M.usage)
        return 2
    end
    local email = args[1]:lower()
    if not require("kasma.schema").is_email(email) then error(email .. " is no e-mail address", 0) end
    local tenant = args.tenant or "MASTER"
    if not require("kasma.tenant").by_key(tenant) then error("there is no tenant " .. tenant, 0) end
    if not admin and args["password-stdin"] and require("modules.iam.store").user_by_email(email) then
        error(email .. " has an account already, whose password stays: leave --password-stdin out", 0)
    end
    local password, random = password_of(args, admin)
    local users, roles = require("modules.iam.users"), require("modules.iam.store_roles")
    local scope = { tenant = tenant, app = "MASTER", actor_kind = "system" }
    local keys = {}
    for _, key in ipairs(args.role) do
        if not roles.role_by_key(tenant, key) then error(("tenant %s has no role %s"):format(tenant, key), 0) end
        keys[#keys + 1] = key
    end
    local user_type = admin and "KASMA_0" or (#keys == 1 and keys[1] == "customer" and "GENERAL_0" or "TENANT_0")
    if admin then require("modules.iam.roles").ensure_platform() end
    local user, fresh = users.provision(scope, { email = email, password = password, display_name = args.name, user_type = user_type,
        role_keys = keys,
        platform_role = admin and "platform_owner" or nil })
    local report = { id = user.id, email = user.email, userType = user.user_type, password = random and fresh and password or nil,
        known = not fresh and not admin or nil }
    if admin and not password then
        report.code, report.codeSeconds = require("modules.iam.otp").hand_over{ identifier = user.email, type = "FORGOT_PASSWORD",
            user_id = user.id }
    end
    if args.json then
        io.stdout:write(require("core.json").encode(report), "\n")
    else
        print_user(report, admin)
    end
    return 0
end

local function import(words)
    local args, bad = args_of({ unpack(words, 2) }, { tenant = true, ["dry-run"] = false, json = false })
    if not args or not args[1] or args[2] or not args.tenant then
        io.stderr:write(bad and ("kasma user: " .. bad .. "\n\n") or "", M.usage)
        return 2
    end
    if not require("kasma.tenant").by_key(args.tenant) then error("there is no tenant " .. args.tenant, 0) end
    local file = io.stdin
    if args[1] ~= "-" then file = io.open(args[1], "r") or error("cannot read " .. args[1], 0) end
    local report = require("modules.iam.import").run({ tenant = args.tenant, app = "MASTER", actor_kind = "system" }, file:lines(),
        { dry_run = args["dry-run"], told = function(number, reason) io.stderr:write(("line %d: %s\n"):format(number, reason)) end })
    if file ~= io.stdin then file:close() end
    if args.json then
        io.stdout:write(require("core.json").encode(report), "\n")
    else
        io.stdout:write(("%d lines: %d %s, %d known already, %d refused\n"):format(report.lines, report.made,
            args["dry-run"] and "would be made" or "made", report.known, report.refused))
    end
    return report.refused == 0 and 0 or 1
end

---@param words string[] what follows `kasma user`
---@return integer exit 0 done, 1 failed, 2 wrong use
function M.run(words)
    local command = words[1]
    if command == nil or command == "--help" or words[2] == "--help" then
        io.stdout:write(M.usage)
        return command and 0 or 2
    end
    if command ~= "create-admin" and command ~= "create" and command ~= "import" then
        io.stderr:write("kasma user: ", command, " is not known here\n\n", M.usage)
        return 2
    end
    local ok, result = pcall(command == "import" and import or make, words)
    if ok then return result end
    return require("kasma.cli.failure")("user", result)
end

return M
