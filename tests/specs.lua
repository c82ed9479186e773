-- Runs busted inside `kasma lua`, so that specs use core.* as modules do: kasma lua tests/specs.lua FILE_OR_FOLDER...
-- Prints what failed, as it fails, and ends with one line `N passed, N failed`. VERBOSE=1 names each test, TRACE=1 says `began NAME` of
-- each (the last line then names the one that hangs), FILTER=text picks by name.
--
-- busted's own runner reads the command line and ends the process; this is the part of it that loads and runs files.
package.path = "./tests/?.lua;" .. package.path

local busted = require("busted.core")()
require("busted")(busted)
require("busted.luajit")()

local passed, failed = 0, 0
local verbose, trace, filter = os.getenv("VERBOSE"), os.getenv("TRACE"), os.getenv("FILTER")

local function say(...)
    io.stdout:write(...)
    io.stdout:write("\n")
    io.stdout:flush()
end

local function name_of(element)
    local names = {}
    while element and element.descriptor ~= "suite" do
        if element.name and element.descriptor ~= "file" then table.insert(names, 1, element.name) end
        element = busted.context.parent(element)
    end
    return table.concat(names, " ")
end

local function note(element, _, message, at)
    local place = at and at.short_src and ("%s:%s: "):format(at.short_src, tostring(at.currentline)) or ""
    local text = type(message) == "string" and message or require("pl.pretty").write(message)
    failed = failed + 1
    say("FAILED ", place, name_of(element), "\n    ", (text:gsub("\n", "\n    ")))
    return nil, true
end

if filter then
    busted.subscribe({ "register", "it" }, function(name, _, _, _)
        return nil, name:find(filter, 1, true) ~= nil
    end, { priority = 1 })
end
busted.subscribe({ "test", "start" }, function(element)
    if trace then say("began ", name_of(element)) end
    return nil, true
end)
busted.subscribe({ "test", "end" }, function(element, _, status)
    if status == "success" then passed = passed + 1 end
    if verbose then say(status, "  ", name_of(element)) end
    return nil, true
end)
busted.subscribe({ "failure" }, note)
busted.subscribe({ "error" }, note)

require("busted.modules.test_file_loader")(busted, { "lua" })({ unpack(arg, 1) }, { "_spec" },
    { excludes = {}, recursive = true, verbose = false })
require("busted.execute")(busted)(1, { seed = tonumber(os.getenv("SEED")) or os.time(), shuffle = false, sort = true })

say(("%d passed, %d failed"):format(passed, failed))
return failed == 0 and 0 or 1
