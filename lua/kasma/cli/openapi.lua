-- kasma openapi: the API document on standard output.
local args_of = require("kasma.cli.args")

local M = {}

M.usage = [[
kasma openapi [--area TAG]

Prints the OpenAPI 3.1 document that the server answers at /openapi.json. Needs no store.

  kasma openapi > openapi.json
]]

---@param words string[] what follows `kasma openapi`
---@return integer exit
function M.run(words)
    local args, bad = args_of(words, { area = true, help = false })
    if not args or args[1] then
        io.stderr:write("kasma openapi: ", bad or (args[1] .. " is not known here"), "\n\n", M.usage)
        return 2
    end
    if args.help then
        io.stdout:write(M.usage)
        return 0
    end
    require("kasma.boot").load()
    local areas, known = {}, {}
    for _, decl in ipairs(require("kasma.route").all()) do
        if not decl.hidden and not known[decl.tag] then
            known[decl.tag] = true
            areas[#areas + 1] = decl.tag
        end
    end
    if args.area and not known[args.area] then
        table.sort(areas)
        io.stderr:write(("kasma openapi: there is no area %s; there are %s\n"):format(args.area, table.concat(areas, ", ")))
        return 2
    end
    local document = require("kasma.openapi").document(require("kasma.route").all(), { version = require("core.config").version,
        tag = args.area })
    io.stdout:write(require("core.json").encode(document), "\n")
    return 0
end

return M
