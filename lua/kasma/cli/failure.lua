-- What a command says when it could not do what was asked: the text of the error without its status, and an exit of its own for
-- what scripts tell apart.
local errors = require("kasma.errors")
local given = require("kasma.cli.given")

local EXITS = { [401] = 3, [403] = 3, [409] = 4 }

---@param command string `tenant`
---@param err any what was raised
---@return integer exit 1 failed, 3 refused, 4 conflict, 5 a store cannot be reached
return function(command, err)
    io.stderr:write("kasma ", command, ": ", given.why(err), "\n")
    if errors.is_unavailable(err) then return 5 end
    return errors.is(err) and EXITS[err.status] or 1
end
