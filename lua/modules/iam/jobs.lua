-- What IAM does beside requests: mails of codes, profiles that could not be written at once; and its settings.
local config = require("core.config")
local sched = require("core.sched")
local time = require("core.time")
local uuid = require("core.uuid")
local ended = require("kasma.ended")
local invalidate = require("kasma.invalidate")
local jobs = require("kasma.jobs")
local log = require("kasma.log")
local mail = require("kasma.mail")
local outbox = require("kasma.outbox")
local roles = require("kasma.roles")
local route = require("kasma.route")
local schedules = require("kasma.schedules")
local settings = require("kasma.settings")
local start = require("kasma.start")
local bootstrap = require("modules.iam.bootstrap")
local cleanup = require("modules.iam.cleanup")
local otp = require("modules.iam.otp")
local sessions = require("modules.iam.sessions")
local profiles = require("modules.iam.store_profiles")
local role_store = require("modules.iam.store_roles")
require("modules.iam.personal")

local HOUR_MS = 3600000

settings.declare("iam", {
    { key = "auth.login_otp", type = "enum", values = { "always", "new_device", "never" }, default = "always",
        help = "code step after the password; of all tenants that a user belongs to the strictest holds" },
    { key = "auth.open_signup", type = "bool", default = true, help = "a finished code step makes the user a member" },
    { key = "auth.jwt_stateless", type = "bool", default = false, help = "bearer JWTs hold while Redis is away" },
    { key = "auth.hide_existence", type = "bool", default = false, help = "register of a known e-mail answers as for a new one" },
    { key = "auth.password_min_length", type = "int", min = 6, max = 128, default = 6, help = "shortest password" },
    { key = "auth.password_classes", type = "int", min = 0, max = 4, default = 0, help = "kinds of characters demanded" },
    { key = "auth.password_breached_check", type = "bool", default = false, help = "refuse passwords of the breached list" },
    { key = "idempotency.required", type = "list", item = "text", default = {}, allows = route.takes_key,
        help = "routes (`METHOD path`) where the key is mandatory" },
})

jobs.handler("mail-queue", "send-otp", otp.send)
jobs.handler("mail-queue", "send-mail", mail.run)

schedules.declare{ name = "otp-cleanup", every = HOUR_MS, run = function() return cleanup.otp_cleanup() end }
schedules.declare{ name = "session-cleanup", every = HOUR_MS, run = function() return cleanup.session_cleanup() end }
schedules.declare{ name = "user-purge", pattern = "0 3 * * *", run = function() return cleanup.user_purge() end }
schedules.declare{ name = "key-expiry-notice", pattern = "0 8 * * *", run = function() return cleanup.key_expiry_notice() end }

outbox.consumer("profile", function(rows)
    for _, row in ipairs(rows) do
        local change = row.payload
        profiles.put_once(change.user_id, type(change.fields) == "table" and change.fields or {}, change.at or time.iso(time.now()))
    end
end)

-- A topic of its own: while Redis is away it waits, and nothing else waits for it.
outbox.consumer("sessions", function(rows)
    for _, row in ipairs(rows) do sessions.drop_ended(row.payload.user_id) end
end)

-- The catalogue of permissions is what the declarations name: those that are new to the database are added.
start.add("permissions", function()
    local rows, known = {}, route.permissions()
    -- What the seeded roles grant may be granted by a tenant's own roles too, before a route asks for it.
    for _, role in ipairs(roles.templates) do
        for _, key in ipairs(role.grants) do
            if not known[key] and not key:find("*", 1, true) then route.permission(key, "Granted by " .. role.display_name) end
        end
    end
    for key, description in pairs(known) do
        rows[#rows + 1] = { id = uuid.v7(), permission_key = key, description = description:sub(1, 255) }
    end
    table.sort(rows, function(a, b) return a.permission_key < b.permission_key end)
    role_store.put_permissions(rows, time.iso(time.now()))
end)

start.add("ended sessions", function(role)
    if role ~= "work" then ended.start(sessions.token_life_ms()) end
end)

start.add("exchanged sessions", function(role)
    if role == "serve" then return end
    -- Beside what else is done about a gap: this may take a while. The connection that tells of the gap may be back before those that
    -- are asked then, so it is tried until it is done.
    local looking, once_more = false, false
    local function look()
        once_more = true
        if looking then return end
        looking = true
        while once_more do
            once_more = false
            local ok, why = pcall(sessions.drop_exchanged)
            if not ok then
                log.warn("handles of exchanged sessions are looked at again in a second", { error = tostring(why) })
                once_more = sched.sleep(1000)
            end
        end
        looking = false
    end
    invalidate.on_gap(function() sched.spawn(look) end)
    sessions.drop_exchanged()
end)

start.add("first owner", function(role)
    local email = config.get("BOOTSTRAP_ADMIN_EMAIL")
    if role ~= "work" and email and email ~= "" then bootstrap.run(email) end
end)
