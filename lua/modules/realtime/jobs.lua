-- What a process that serves does for its open connections.
local start = require("kasma.start")
local realtime = require("modules.realtime.service")

start.add("realtime", function(role)
    if role ~= "work" then realtime.start() end
end)
