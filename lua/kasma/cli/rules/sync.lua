-- kasma rules pull, push --plan, push --apply: a tenant's rules as files of a folder, and back.
--
-- What a server answers is not to be trusted with this machine: only files of the four known forms are written, below the folder and
-- through no link, all of them or none; the editor's own settings, which could name programs to run, are never the server's. Nor is a
-- person's work lost: `.kasma/pulled.json` remembers what was written, and a file that is otherwise now is a conflict.
local crypto = require("core.crypto")
local json = require("core.json")
local files = require("kasma.cli.rules.files")
local report = require("kasma.cli.rules.report")
local target = require("kasma.cli.rules.target")

local M = {}

local commands = {}
M.commands = commands

local FILES_MAX, TEXT_MAX = 1000, 262144
local STUBS, MARKS, EDITOR = ".kasma/kasma.d.lua", ".kasma/pulled.json", ".luarc.json"

local function usage(message) error({ usage = message }, 0) end

-- Whether a server may have a file of this name written.
local function is_ours(path)
    if #path > 200 then return false end
    return path == STUBS or path:find("^rules/%l[%l_]*/[a-z0-9][a-z0-9_-]*%.lua$") ~= nil
        or path:find("^rules/active/[%w][%w_-]*%.lua$") ~= nil
end

---@param dir string
---@return table<string, boolean> links below the folders that are written to
local function links_of(dir)
    local found, links = assert(io.popen(("cd -- %s 2>/dev/null && find rules .kasma -type l 2>/dev/null"):format(files.quoted(dir)))), {}
    for path in found:lines() do links[path] = true end
    found:close()
    return links
end

local function through_link(links, path)
    local at = 1
    while true do
        local slash = path:find("/", at, true)
        if links[slash and path:sub(1, slash - 1) or path] then return true end
        if not slash then return false end
        at = slash + 1
    end
end

local function marks_of(dir)
    local value = json.decode(files.read(dir .. "/" .. MARKS) or "{}")
    local marks = {}
    for path, sha in pairs(type(value) == "table" and value or {}) do
        if type(path) == "string" and is_ours(path) and type(sha) == "string" then marks[path] = sha end
    end
    return marks
end

local function keep_marks(dir, marks)
    files.save(dir .. "/" .. MARKS, json.encode(next(marks) and marks or json.object({}, {})) .. "\n")
end

-- What the server answered, by path. Raises for anything that is not such an answer; nothing was written then.
local function checked(answer)
    local list = type(answer) == "table" and answer.files
    if type(list) ~= "table" or #list > FILES_MAX then error({ message = "the server's answer is no list of files" }, 0) end
    local texts, names = {}, {}
    for i, file in ipairs(list) do
        local path, text = type(file) == "table" and file.path, type(file) == "table" and file.text
        if type(path) ~= "string" or type(text) ~= "string" or #text > TEXT_MAX then
            error({ message = ("file %d of the server's answer is none"):format(i) }, 0)
        end
        if path ~= EDITOR then
            if not is_ours(path) then error({ message = ("the server names a file that is not written: %s"):format(path) }, 0) end
            if texts[path] then error({ message = ("the server names a file twice: %s"):format(path) }, 0) end
            texts[path], names[#names + 1] = text, path
        end
    end
    table.sort(names)
    return texts, names
end

local function editor_text()
    for _, file in ipairs(require("modules.rules.stubs").files()) do
        if file.path == EDITOR then return file.text end
    end
end

-- What to write and to remove, and what somebody has changed here meanwhile.
local function compare(dir, texts, names, marks)
    local write, remove, conflicts = json.array{}, json.array{}, json.array{}
    for _, path in ipairs(names) do
        local here = files.read(dir .. "/" .. path)
        if here ~= texts[path] then
            local known = path == STUBS or not here or marks[path] == crypto.sha256(here)
            table.insert(known and write or conflicts, path)
        end
    end
    for path, sha in pairs(marks) do
        local here = not texts[path] and files.read(dir .. "/" .. path)
        if here then table.insert(crypto.sha256(here) == sha and remove or conflicts, path) end
    end
    table.sort(remove)
    table.sort(conflicts)
    return write, remove, conflicts
end

function commands.pull(args)
    local dir = args.dir or args[2] or "."
    local texts, names = checked(target.of(args):get("/rules/export"))
    local links = links_of(dir)
    for _, path in ipairs(names) do
        if through_link(links, path) then usage(dir .. "/" .. path .. " leads elsewhere by a link, and is not written") end
    end
    local marks = marks_of(dir)
    local write, remove, conflicts = compare(dir, texts, names, marks)
    if #conflicts > 0 and not args.force then
        error({ status = 409, code = "changed_here", message = "changed here since the last pull, and otherwise there: "
            .. table.concat(conflicts, ", ") .. "; --force takes the server's" }, 0)
    end
    for _, path in ipairs(conflicts) do table.insert(texts[path] and write or remove, path) end
    for _, path in ipairs(write) do files.save(dir .. "/" .. path, texts[path]) end
    for _, path in ipairs(remove) do os.remove(dir .. "/" .. path) end
    if not files.exists(dir .. "/" .. EDITOR) then files.save(dir .. "/" .. EDITOR, editor_text()) end
    local fresh = {}
    for _, path in ipairs(names) do fresh[path] = crypto.sha256(texts[path]) end
    keep_marks(dir, fresh)
    files.save_configs(dir)
    local lines = {}
    for _, path in ipairs(write) do lines[#lines + 1] = "wrote    " .. path end
    for _, path in ipairs(remove) do lines[#lines + 1] = "removed  " .. path end
    lines[#lines + 1] = ("%d files, %d written, %d removed"):format(#names, #write, #remove)
    return report.answer(args, { wrote = write, removed = remove, files = #names }, table.concat(lines, "\n"))
end

-- The files of the folder, as they are sent.
local function gather(dir)
    local found, list = assert(io.popen(("cd -- %s 2>/dev/null && find rules -name '*.lua' -type f 2>/dev/null | sort"):format(
        files.quoted(dir)))), json.array{}
    for path in found:lines() do
        local text = files.read(dir .. "/" .. path) or usage(path .. " cannot be read")
        if #text > TEXT_MAX then usage(path .. " is longer than 256 KiB") end
        list[#list + 1] = { path = path, text = text }
    end
    found:close()
    if #list == 0 then usage(dir .. "/rules: no rule there") end
    if #list > FILES_MAX then usage(("%d files are more than %d"):format(#list, FILES_MAX)) end
    return list
end

local function plan_lines(done, applied)
    local lines = {}
    for _, what in ipairs{ "create", "update", "disable" } do
        for _, key in ipairs(done[what]) do
            local version = type(done.versions) == "table" and done.versions[key]
            lines[#lines + 1] = ("%-8s %s%s"):format(what, key, version and "  version " .. version or "")
        end
    end
    for _, p in ipairs(type(done.pending) == "table" and done.pending or {}) do
        lines[#lines + 1] = ("waits    %s for approval, request %s"):format(p.key, p.requestId)
    end
    local live = type(done.live) == "table" and ("  epoch %d  live on %d of %d workers"):format(done.epoch, done.live.loaded,
        done.live.workers) or ""
    lines[#lines + 1] = ("%d to create, %d to update, %d to disable, %d the same%s"):format(#done.create, #done.update, #done.disable,
        #done.same, live)
    if applied then lines[#lines] = lines[#lines]:gsub(" to create", " created"):gsub(" to update", " updated"):gsub(" to disable",
        " disabled") end
    return table.concat(lines, "\n")
end

--- Sends a folder: what it would change, or to change it.
---@param args table
---@return integer exit
function M.push(args)
    if args.plan and args.apply then usage("--plan or --apply, not both") end
    local dir = args.dir or args[2] or "."
    local list = gather(dir)
    local done = target.of(args):post("/rules/import", { files = list, mode = args.apply and "apply" or "plan", note = args.note,
        acceptWarnings = #args.accept > 0 and json.array(args.accept) or nil })
    if args.apply then
        local marks = marks_of(dir)
        for _, file in ipairs(list) do
            if is_ours(file.path) then marks[file.path] = crypto.sha256(file.text) end
        end
        keep_marks(dir, marks)
    end
    report.answer(args, done, plan_lines(done, args.apply), done.diagnostics)
    for _, d in ipairs(done.diagnostics) do
        if d.severity == "error" then return 1 end
    end
    return 0
end

return M
