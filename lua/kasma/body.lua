-- Bodies that are taken piece by piece: what `body = "stream"` of a route's declaration gives its handler. A piece is bounded, and so
-- is what waits in the core: an import of a gigabyte takes the memory of one piece.
local errors = require("kasma.errors")

local M = {}

local STATUS = { ["400"] = true, ["408"] = true, ["413"] = true, ["503"] = true }

--- The next piece of a request's body. Raises 400 (damaged), 408 (too slow), 413 (too large); when the client has gone, the
--- core's error, which ends the request.
---@param req table the core's request
---@param max integer|nil bytes at most
---@return string|nil piece nil: the body has ended, whole
function M.read(req, max)
    local piece, err = req:read(max)
    if not err then return piece end
    if STATUS[err.code] then errors.raise(tonumber(err.code), { message = err.message }) end
    error(err, 0)
end

--- Cuts what `read` gives into lines. LF or CRLF ends a line; the last one may lack it.
---@param read fun(): string|nil
---@param max integer|nil bytes of a line at most; default 65536; 413 when one is longer
---@return fun(): string|nil, integer|nil line without its end, its number
function M.lines(read, max)
    max = max or 65536
    local rest, from, number, ended = "", 1, 0, false
    local function line(text)
        number = number + 1
        if text:sub(-1) == "\r" then text = text:sub(1, -2) end
        if #text > max then errors.raise(413, { message = ("line %d is longer than %d bytes"):format(number, max) }) end
        return text, number
    end
    return function()
        while true do
            local at = rest:find("\n", from, true)
            if at then
                local text = rest:sub(from, at - 1)
                from = at + 1
                return line(text)
            end
            rest, from = rest:sub(from), 1
            if #rest > max + 1 then line(rest) end      -- raises: an endless line is not gathered
            local piece = not ended and read()
            if piece then
                rest = rest .. piece
            else
                ended = true
                if rest == "" then return nil end
                local text = rest
                rest = ""
                return line(text)
            end
        end
    end
end

return M
