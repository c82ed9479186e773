-- kasma lua tests/faults/mail.lua send JSON: mail.send in the tenant demo; deliver JSON: hands one mail to the transport now and
-- prints what came of it.
local json = require("core.json")
local sched = require("core.sched")
local uuid = require("core.uuid")
require("kasma.boot").load()
local mail = require("kasma.mail")
local transport = require("kasma.mail_transport")

local what, given = arg[1], json.decode(arg[2])
if what == "send" then
    mail.send({ tenant = "demo", app = "MASTER" }, given)
    io.stdout:write("queued\n")
    return 0
end
for _ = 1, given.times or 1 do
    local ok, answer = pcall(transport.deliver, { id = uuid.v7(), to = given.to, subject = given.subject or "Hello",
        text = given.text or "a\n", html = given.html or "<p>a</p>" })
    local told = ok and { by = answer } or { message = tostring(answer), final = answer.final, bounce = answer.bounce }
    io.stdout:write(json.encode(told), "\n")
    if given.pause_ms then sched.sleep(given.pause_ms) end
end
return 0
