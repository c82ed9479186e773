-- kasma migrate: brings the database to the form that this program needs.
local migrate = require("kasma.migrate")

local M = {}

M.usage = [[
kasma migrate [--plan | --check] [--to N] [--json]

Applies the migrations that are pending, each in its own transaction, and makes the document indexes. Roles and extensions
that are missing are made first; when the owner URL's role may not, the SQL for an administrator is printed and nothing is
done. Needs DATABASE_OWNER_URL, and DATABASE_URL and DATABASE_SYSTEM_URL for the roles.

  --plan     print what a run would do (steps, locks, rows) and change nothing
  --check    end with 1 when migrations are pending, 0 when none are
  --to N     stop after migration N

  kasma migrate --plan
  kasma migrate && kasma serve
]]

local function run(options)
    local json = options.json and require("core.json")
    if options.check then
        local pending = migrate.check()
        local names = {}
        for i, file in ipairs(pending) do names[i] = file.name end
        if json then
            io.stdout:write(json.encode({ pending = json.array(names) }), "\n")
        else
            for _, name in ipairs(names) do io.stdout:write("pending  ", name, "\n") end
            if #names == 0 then io.stdout:write("nothing is pending\n") end
        end
        return #names == 0 and 0 or 1
    end
    if options.plan then
        local steps = migrate.plan()
        if json then
            io.stdout:write(json.encode({ steps = json.array(steps) }), "\n")
        else
            for _, step in ipairs(steps) do io.stdout:write(("%-20s %s\n"):format(step.name, step.note)) end
            if #steps == 0 then io.stdout:write("nothing to do\n") end
        end
        return 0
    end
    local done = {}
    migrate.run(options.to, function(name)
        done[#done + 1] = name
        if not json then io.stdout:write("applied  ", name, "\n") end
    end)
    local indexes = migrate.documents()
    if json then
        io.stdout:write(json.encode({ applied = json.array(done), documentIndexes = indexes }), "\n")
    elseif #done == 0 then
        io.stdout:write("the database is up to date\n")
    end
    return 0
end

---@param args string[] what follows `kasma migrate`
---@return integer exit 0 done, 1 pending or failed, 2 wrong use
function M.run(args)
    local options, i = {}, 1
    while i <= #args do
        local word = args[i]
        if word == "--help" then
            io.stdout:write(M.usage)
            return 0
        elseif word == "--plan" or word == "--check" or word == "--json" then
            options[word:sub(3)] = true
        elseif word == "--to" and tonumber(args[i + 1]) then
            options.to = tonumber(args[i + 1])
            i = i + 1
        elseif word == "--to" then
            io.stderr:write("kasma migrate: --to needs the number of a migration", args[i + 1] and ", not " .. args[i + 1] or "", "\n")
            return 2
        else
            io.stderr:write("kasma migrate: ", word, " is not known here\n\n", M.usage)
            return 2
        end
        i = i + 1
    end
    local ok, result = pcall(run, options)
    if ok then return result end
    io.stderr:write("kasma migrate: ", tostring(result), "\n")
    if type(result) == "table" and result.sql then io.stderr:write("\n", result.sql) end
    return 1
end

return M
