-- kasma webhooks: endpoints of a tenant, what was sent to them, sending again.
local json = require("core.json")
local args_of = require("kasma.cli.args")
local given = require("kasma.cli.given")

local M = {}

M.usage = [[
kasma webhooks endpoints TENANT [--json]
kasma webhooks deliveries TENANT [--endpoint ID] [--event NAME] [--state STATE] [--limit N] [--json]
kasma webhooks show TENANT DELIVERY [--json]
kasma webhooks redeliver TENANT DELIVERY
kasma webhooks redeliver TENANT --endpoint ID [--event NAME]
kasma webhooks enable TENANT ENDPOINT
kasma webhooks disable TENANT ENDPOINT
kasma webhooks test TENANT ENDPOINT
kasma webhooks listen [TENANT] --to PORT [--path /PATH] [--event PATTERN] [--secret SECRET] [--profile NAME]

STATE is pending, sent, failed (another try follows) or dead. redeliver with an endpoint sends again what is dead there.
listen posts the tenant's events from now on to a port of this machine, signed, for as long as it runs: no endpoint, no log. It asks
a server (KASMA_URL and KASMA_KEY, or kasma login; the key needs webhooks.read), or the stores of this installation. The others need
the stores.

  KASMA_URL=https://shop.example.org KASMA_KEY=$(cat key) kasma webhooks listen --to 3000 --event 'order.*'
  kasma webhooks deliveries acme --state dead
  kasma webhooks redeliver acme --endpoint 018f6d2e-7a41-7c11-9d7b-0d1f2c3b4a59
]]

local commands = {}

local function service() return require("modules.webhooks.service") end
local function scope_of(args) return { tenant = args[1], app = "MASTER", actor_kind = "system" } end

local function id_of(text)
    if not text then error({ usage = "an ID is missing" }, 0) end
    if not require("kasma.schema").is_uuid(text) then error({ usage = text .. " is no ID" }, 0) end
    return text
end

local function lines(rows, as_json, format)
    if as_json then return given.print_rows(rows) end
    for _, row in ipairs(rows) do io.stdout:write(format(row), "\n") end
end

local function shown(endpoint)
    return { id = endpoint.id, name = endpoint.name, url = endpoint.url, events = endpoint.events, state = endpoint.state,
        disabled_reason = endpoint.disabled_reason, failing_since = endpoint.failing_since }
end

function commands.endpoints(args)
    local rows = {}
    for i, endpoint in ipairs(service().endpoints(args[1])) do rows[i] = shown(endpoint) end
    lines(rows, args.json, function(e)
        return ("%s  %-8s  %-20s %s  %s%s"):format(e.id, e.state, e.name, e.url, table.concat(e.events, " "),
            e.disabled_reason and ("  " .. e.disabled_reason) or e.failing_since and ("  failing since " .. e.failing_since) or "")
    end)
end

local function delivery_line(d)
    return ("%s  %-7s  %-24s round %d try %d  %s%s"):format(d.id, d.state, d.event, d.round, d.try, d.status_code or "-",
        d.error and ("  " .. d.error) or "")
end

function commands.deliveries(args)
    local filter = { endpoint_id = args.endpoint and id_of(args.endpoint), event = args.event,
        state = given.one_of(args.state, "state", { "pending", "sent", "failed", "dead" }) }
    lines(service().deliveries(args[1], filter, nil, given.number(args.limit, "limit", 50, 1, 1000)), args.json, delivery_line)
end

function commands.show(args)
    local d = service().delivery(args[1], id_of(args[2]))
    if args.json then return io.stdout:write(json.encode(d), "\n") end
    io.stdout:write(delivery_line(d), "\n", json.encode(d.request), "\n", d.answer or "", "\n")
end

function commands.redeliver(args)
    if args[2] then
        io.stdout:write(delivery_line(service().redeliver(scope_of(args), id_of(args[2]))), "\n")
        return
    end
    local total = 0
    repeat
        local count, more = service().redeliver_dead(scope_of(args), { endpoint_id = id_of(args.endpoint), event = args.event,
            limit = 200 })
        total = total + count
    until not more or count == 0
    io.stdout:write(total, " deliveries are sent again\n")
end

local function set_state(args, state)
    local endpoint = service().update(scope_of(args), id_of(args[2]), { state = state })
    io.stdout:write(endpoint.name, " is ", endpoint.state, "\n")
end

function commands.enable(args) set_state(args, "active") end
function commands.disable(args) set_state(args, "disabled") end

function commands.test(args) io.stdout:write(delivery_line(service().test(scope_of(args), id_of(args[2]))), "\n") end

-- Where events come from: a server, or the stores here.
local function feed_of(target, tenant)
    if target.remote then
        return function(from)
            local answer = target:get("/webhooks/events/feed", { from = from })
            return answer.events, answer.from
        end
    end
    return function(from)
        local rows, place = service().follow(tenant, from)
        local list = {}
        for i, row in ipairs(rows) do list[i] = service().fed(row) end
        return list, place
    end
end

local function is_known(target, pattern)
    local events = require("kasma.events")
    if not target.remote then return events.is_pattern(pattern) end
    for _, entry in ipairs(target:get("/webhooks/events")) do
        if events.matches(pattern, entry.event) then return true end
    end
    return false
end

-- Not among the others: it needs no store where a server is named.
local function listen(args)
    local port, path = tonumber(args.to or ""), args.path or "/"
    if not port or port < 1 or port > 65535 or port % 1 ~= 0 then error({ usage = "--to needs a port" }, 0) end
    if path:sub(1, 1) ~= "/" or path:find("[%s%c]") then error({ usage = "--path must begin with /" }, 0) end
    local secret = args.secret or require("modules.webhooks.sign").new_secret()
    if not secret:find("^whsec_[%w+/]+=*$") then error("a secret begins with whsec_ and is base64 behind it", 0) end
    local target = require("kasma.cli.rules.target").of{ tenant = args[1], profile = args.profile, insecure = args.insecure }
    local pattern = args.event or "*"
    if not is_known(target, pattern) then error(pattern .. " is no event of the catalogue", 0) end
    local url = ("http://127.0.0.1:%d%s"):format(port, path)
    local feed = feed_of(target, target.tenant)
    local _, place = feed(nil) -- a server that refuses says so before anything is promised
    local function say(line)
        io.stdout:write(line, "\n")
        io.stdout:flush()
    end
    say("secret " .. secret)
    say(("events of %s go to %s"):format(target.tenant or "the key's tenant", url))
    local away = false
    require("modules.webhooks.listen").run{ url = url, secret = secret, events = { pattern },
        poll_ms = target.remote and 1000 or 250, told = say,
        feed = function(from)
            local list, next_place = feed(from or place)
            away = false
            return list, next_place
        end,
        lost = function(why)
            local passes = type(why) == "table" and (why.unreachable or why.status == 503 or require("kasma.errors").is_unavailable(why))
            if not passes then error(why, 0) end
            if not away then say("waiting: " .. tostring(why.message)) end
            away = true
            return true
        end }
end

local NEEDS = { endpoints = 1, deliveries = 1, show = 2, enable = 2, disable = 2, test = 2 }

---@param words string[] what follows `kasma webhooks`
---@return integer exit 0 done, 1 failed, 2 wrong use
function M.run(words)
    local command = words[1] or ""
    if command == "--help" then
        io.stdout:write(M.usage)
        return 0
    end
    local args, bad = args_of({ unpack(words, 2) }, { endpoint = true, event = true, state = true, limit = true, json = false,
        to = true, path = true, secret = true, profile = true, insecure = false })
    local enough = args and (command == "redeliver" and #args == (args.endpoint and 1 or 2) or command == "listen" and #args <= 1
        or #args == NEEDS[command])
    if command ~= "" and command ~= "listen" and not commands[command] then bad = command .. " is not known here" end
    if not enough or not (commands[command] or command == "listen") then
        io.stderr:write(bad and ("kasma webhooks: " .. bad .. "\n\n") or "", M.usage)
        return 2
    end
    local ok, why = pcall(function()
        if command == "listen" then return listen(args) end
        require("kasma.boot").load()
        if not require("kasma.tenant").by_key(args[1]) then error("there is no tenant " .. args[1], 0) end
        commands[command](args)
    end)
    if ok then return 0 end
    if type(why) == "table" and why.usage then
        io.stderr:write("kasma webhooks: ", why.usage, "\n")
        return 2
    end
    return require("kasma.cli.failure")("webhooks", why)
end

return M
