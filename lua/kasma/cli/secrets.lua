-- kasma secrets: what was made with which version of SERVER_KEY, and sealing it anew.
local args_of = require("kasma.cli.args")

local M = {}

M.usage = [[
kasma secrets [--json]
kasma secrets rotate [--json]

SERVER_KEY may hold several versions, the newest first: `2:<base64>,1:<base64>`. The first makes, all open. Without a word it tells
what each version still holds; rotate seals anew under the first what the others sealed, while the servers run. Hashes of addresses
cannot be made anew, because nobody keeps the addresses: what is lost when their version goes is printed beside them.

Ends with 0, with 1 when something is sealed by a version that is not in the list, 2 on wrong use, 5 when a store is away.

  kasma secrets rotate && kasma secrets
]]

local function status(report)
    local secrets = require("kasma.secrets")
    local versions = secrets.versions()
    local listed = {}
    for _, version in ipairs(versions) do listed[version] = true end
    report.versions, report.kept, report.unknown = versions, {}, 0
    local needed = {}
    for i, how in ipairs(secrets.all_kept()) do
        local counts, of = how.count(versions[1]), {}
        for version, n in pairs(counts) do
            of[#of + 1] = { version = version, rows = n }
            if not listed[version] then report.unknown = report.unknown + n end
            if version ~= versions[1] then needed[version] = true end
        end
        table.sort(of, function(a, b) return a.version > b.version end)
        report.kept[i] = { name = how.name, versions = of, rotates = how.rotate ~= nil, lost = how.lost }
    end
    report.removable = {}
    for i = 2, #versions do
        if not needed[versions[i]] then report.removable[#report.removable + 1] = versions[i] end
    end
    return report
end

local function rotate(report)
    local secrets = require("kasma.secrets")
    local newest = secrets.versions()[1]
    report.rotated, report.lost = {}, 0
    for _, how in ipairs(secrets.all_kept()) do
        if how.rotate then
            local done, lost = how.rotate(newest)
            report.rotated[#report.rotated + 1] = { name = how.name, rows = done, lost = lost }
            report.lost = report.lost + lost
        end
    end
    require("kasma.audit").write({ tenant = "MASTER", app = "MASTER", actor_kind = "system" },
        { action = "secrets.rotate", entity_type = "server_key", entity_id = tostring(newest) })
end

local function told(report)
    for _, entry in ipairs(report.rotated or {}) do
        io.stdout:write(("%-28s %d sealed anew under version %d%s\n"):format(entry.name, entry.rows, report.versions[1],
            entry.lost > 0 and (", %d that no version in the list opens"):format(entry.lost) or ""))
    end
    local words = {}
    for i, version in ipairs(report.versions) do words[i] = tostring(version) end
    io.stdout:write("versions in SERVER_KEY: ", table.concat(words, ", "), "; the first makes\n")
    for _, entry in ipairs(report.kept) do
        local parts = {}
        for i, of in ipairs(entry.versions) do parts[i] = ("%d of version %d"):format(of.rows, of.version) end
        io.stdout:write(("%-28s %s\n"):format(entry.name, #parts > 0 and table.concat(parts, ", ") or "none"))
        local older = #entry.versions > 0 and entry.versions[#entry.versions].version ~= report.versions[1]
        if older then io.stdout:write((" "):rep(29), "with an older version gone: ", entry.lost, "\n") end
    end
    for _, version in ipairs(report.removable) do
        io.stdout:write("version ", version, " is needed by nothing: it may be taken out once codes that are out have ended (5 minutes)\n")
    end
end

---@param words string[] what follows `kasma secrets`
---@return integer exit
function M.run(words)
    if words[1] == "--help" or words[2] == "--help" then
        io.stdout:write(M.usage)
        return 0
    end
    local args, bad = args_of(words, { json = false })
    if not args or args[2] or (args[1] and args[1] ~= "rotate" and args[1] ~= "status") then
        io.stderr:write("kasma secrets: ", bad or (tostring(args[2] or args[1]) .. " is not known here"), "\n\n", M.usage)
        return 2
    end
    require("kasma.boot").load()
    local report = {}
    local ok, why = pcall(function()
        if args[1] == "rotate" then rotate(report) end
        status(report)
    end)
    if not ok then return require("kasma.cli.failure")("secrets", why) end
    if args.json then
        local json = require("core.json")
        for _, name in ipairs{ "kept", "rotated", "removable", "versions" } do
            if report[name] then json.array(report[name]) end
        end
        for _, entry in ipairs(report.kept) do json.array(entry.versions) end
        io.stdout:write(json.encode(report), "\n")
    else
        told(report)
    end
    return (report.unknown > 0 or (report.lost or 0) > 0) and 1 or 0
end

return M
