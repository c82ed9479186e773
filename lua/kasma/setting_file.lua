-- A file that a setting names, read whole.
local M = {}

local MAX = 65536 -- bytes

---@param path string
---@return string|nil text nil: it cannot be read, or is larger than 64 KiB
---@return string|nil why with its path
function M.read(path)
    local file, why = io.open(path, "r")
    if not file then return nil, tostring(why) end
    local text, failed = file:read(MAX + 1)
    file:close()
    if failed then return nil, ("%s: %s"):format(path, failed) end
    text = text or "" -- at the end of an empty file
    if #text > MAX then return nil, ("%s is larger than %d bytes"):format(path, MAX) end
    return text
end

return M
