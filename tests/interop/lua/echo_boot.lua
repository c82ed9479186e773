-- What tests/interop/autobahn talks to: a server that does nothing but send back what it hears.
local server = require("core.server")

local function answer(state, text) state.socket:send(text) end

local M = {}

function M.start()
    server.route("GET", "/healthz", function(req) req:respond(200, nil, "OK") end)
    server.route("GET", "/ws", function(req)
        local state = {}
        local socket, err = req:websocket{ state = state, message = answer, message_bytes = 64 * 1048576, queue_bytes = 128 * 1048576 }
        if not socket then return req:respond(tonumber(err.code), nil, err.message) end
        state.socket = socket
    end)
end

return M
