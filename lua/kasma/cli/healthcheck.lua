-- kasma healthcheck: asks the server on HOST and PORT whether it is ready; for containers and service managers.
local M = {}

M.usage = [[
kasma healthcheck [--live]

Exits 0 when http://HOST:PORT/readyz answers 200 (with --live: /health), else 1.
]]

---@param words string[] what follows `kasma healthcheck`
---@return integer exit
function M.run(words)
    if words[1] == "--help" then
        io.stdout:write(M.usage)
        return 0
    end
    local config = require("core.config")
    local host = config.get("HOST")
    if host == "0.0.0.0" or host == "::" then host = "127.0.0.1" end
    local url = ("http://%s:%d%s"):format(host, config.get("PORT"), words[1] == "--live" and "/health" or "/readyz")
    local answer, err = require("core.http_client").request{ method = "GET", url = url, timeout_ms = 5000 }
    if answer and answer.status == 200 then return 0 end
    io.stderr:write("kasma healthcheck: ", answer and (answer.status .. " " .. tostring(answer.body)) or tostring(err and err.message),
        "\n")
    return 1
end

return M
