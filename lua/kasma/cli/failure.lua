-- What a command says when it could not do what was asked: the text of the error without its status, and an exit of its own for
-- what scripts tell apart.
local errors = require("kasma.errors")

-- Undefined table, function and column.
local ABSENT = { ["42P01"] = true, ["42883"] = true, ["42703"] = true }

local EXITS = { [401] = 3, [403] = 3, [409] = 4 }

---@param command string `tenant`
---@param err any what was raised
---@return integer exit 1 failed, 3 refused, 4 conflict, 5 a store cannot be reached
return function(command, err)
    local text = tostring(err)
    if errors.is(err) then
        text = text:gsub("^%d%d%d ", "")
        -- A client of the API only hears that something failed; who stands at the terminal is told what.
        local cause = err.status >= 500 and type(err.cause) == "table" and err.cause
        if cause and cause.message then text = tostring(cause.message) end
        if cause and ABSENT[tostring(cause.code)] then
            text = ("the database is not migrated to this program's schema (%s): run kasma migrate"):format(text)
        end
    end
    io.stderr:write("kasma ", command, ": ", text, "\n")
    if errors.is_unavailable(err) then return 5 end
    return errors.is(err) and EXITS[err.status] or 1
end
