-- kasma tenant create: a tenant with its first app, roles, warehouse and currency.
local args_of = require("kasma.cli.args")

local M = {}

M.usage = [[
kasma tenant create KEY [--name NAME] [--country CC] [--currency CUR] [--locale L] [--timezone TZ] [--hostname NAME]...
                        [--app APP_KEY] [--test] [--owner EMAIL] [--json]

Makes a tenant with its first app, the seeded roles, a default warehouse and its base currency. KEY is 1 to 63 letters,
digits, _ or -, and never changes. Without the others: VN, VND, vi, Asia/Ho_Chi_Minh. --owner makes its owner in the same
transaction: who has no account yet gets one, and the one-time code with which they sign in and choose a password is printed.

Ends with 0 when it was made, 1 when not, 2 on wrong use, 4 when the key or a host name is taken, 5 when a store is away.

  kasma tenant create acme --name "Acme" --hostname shop.acme.example --owner ann@acme.example
]]

local function create(words)
    local args, bad = args_of(words, { name = true, country = true, currency = true, locale = true, timezone = true, app = true,
        owner = true,
        hostname = "list", test = false, json = false })
    if not args or not args[1] or args[2] then
        io.stderr:write(bad and ("kasma tenant: " .. bad .. "\n\n") or "", M.usage)
        return 2
    end
    local country, currency = (args.country or "VN"):upper(), (args.currency or "VND"):upper()
    if not country:find("^%u%u$") then error(args.country .. " is no country: two letters (ISO 3166), such as VN", 0) end
    if not require("core.money").exponent(currency) then error("there is no currency " .. currency .. " (ISO 4217), such as VND", 0) end
    if args.timezone and not require("core.time").zone_exists(args.timezone) then
        error("there is no time zone " .. args.timezone .. ", such as Asia/Ho_Chi_Minh", 0)
    end
    local tenants = require("modules.tenants.service")
    local scope = { tenant = "MASTER", app = "MASTER", actor_kind = "system" }
    local owner, owner_id, fresh = args.owner and args.owner:lower(), nil, false
    if owner and not require("kasma.schema").is_email(owner) then error(owner .. " is no e-mail address", 0) end
    local made = tenants.create(scope, { tenant_key = args[1], name = args.name or args[1], country = country,
        default_currency = currency,
        default_locale = args.locale, timezone = args.timezone, is_test = args.test,
        app = { app_key = args.app, hostnames = args.hostname } }, owner and function(statements, place, tenant)
            owner_id, fresh = require("modules.iam.members").append_owner(statements, place, tenant, owner, true)
        end)
    local code, seconds
    if owner_id then
        require("kasma.access").changed_user(owner_id)
        if fresh then
            code, seconds = require("modules.iam.otp").hand_over{ identifier = owner, type = "FORGOT_PASSWORD", user_id = owner_id }
        end
    end
    if args.json then
        io.stdout:write(require("core.json").encode({ tenant = tenants.view(made.tenant), app = made.app, warehouseId = made.warehouse_id,
            owner = owner and { id = owner_id, email = owner, code = code, codeSeconds = seconds } or nil }), "\n")
    else
        io.stdout:write(("tenant %s with app %s, %d roles, a warehouse and %s as currency\n"):format(made.tenant.tenant_key,
            made.app.app_key,
            #require("kasma.roles").templates, made.tenant.default_currency))
        if owner then
            io.stdout:write(owner, fresh and " is its owner\n" or " is its owner, and signs in as before\n")
            if code then require("kasma.cli.code")(owner, code, seconds) end
        end
    end
    return 0
end

---@param words string[] what follows `kasma tenant`
---@return integer exit 0 done, 1 failed, 2 wrong use
function M.run(words)
    if words[1] == "--help" or words[1] == nil or words[2] == "--help" then
        io.stdout:write(M.usage)
        return words[1] and 0 or 2
    end
    if words[1] ~= "create" then
        io.stderr:write("kasma tenant: ", words[1], " is not known here\n\n", M.usage)
        return 2
    end
    local ok, result = pcall(create, { unpack(words, 2) })
    if ok then return result end
    return require("kasma.cli.failure")("tenant", result)
end

return M
