-- A tenant's rules as files: rules/<area>/<key>.lua, tests beside it, and rules/active/<tenant>.lua, which lists what is live with
-- config and priority. Export writes them; import makes the tenant what they say.
--
-- Import looks at everything first and changes nothing when one rule would be refused; then each rule is one transaction with the
-- checks of publishing, so that a crash leaves some rules done and the rest as they were, and a second import does the rest. What is
-- alike already is left alone. A draft that somebody works on in the console stays theirs: only one that is as it was published follows.
--
-- The active list is a merchant's code like a rule: it runs in the sandbox, and what comes out is plain data.
local json = require("core.json")
local rules_core = require("core.rules")
local sched = require("core.sched")
local time = require("core.time")
local errors = require("kasma.errors")
local catalogue = require("kasma.hooks_catalogue")
local lua_text = require("modules.rules.lua_text")
local check = require("modules.rules.check")
local rules = require("modules.rules.service")
local store = require("modules.rules.store")
local window = require("modules.rules.window")

local M = {}

local null = json.null
local function present(v) if v == null then return nil end return v end

M.files_invalid = errors.declare{ code = "files_invalid", status = 422, message = "The files cannot be taken",
    cause = "a file is malformed, or two are the same rule; see details.diagnostics", cure = "mend what it names" }

local FOLDERS = { promotion = "promotions", route = "routes", workflow = "workflows", library = "libraries" }

--- The folder that rules of a hook lie in.
---@param hook string
---@return string
function M.folder_of(hook) return FOLDERS[hook] or hook:match("^%l+") or "rules" end

-- Export -----------------------------------------------------------------------------------------------------------------------------

local function entry_text(file, settings, source)
    local lines = { ("    { file = %s, priority = %d"):format(lua_text.of(file), settings.priority or 0) }
    if present(settings.on_error) and (settings.on_error ~= "skip" or source:find("on_error", 1, true)) then
        lines[1] = lines[1] .. ", on_error = " .. lua_text.of(settings.on_error)
    end
    for _, name in ipairs{ "startsAt", "endsAt" } do
        local at = present(settings[name])
        if at then lines[1] = lines[1] .. (", %s = %s"):format(name, lua_text.of(at)) end
    end
    for _, name in ipairs{ "config", "fallback" } do
        local value = present(settings[name])
        if type(value) == "table" and next(value) ~= nil then
            lines[#lines] = lines[#lines] .. ","
            lines[#lines + 1] = ("        %s = %s"):format(name, lua_text.of(value, 8))
        end
    end
    return table.concat(lines, "\n") .. " },"
end

-- The path of a rule without ".lua". One whose key ends like the name of a file of tests lies where no rule is that these could be of.
local function place_of(rule)
    return M.folder_of(rule.hook) .. (rule.key:find("_test$") and "_more/" or "/") .. rule.key
end

--- The tenant's rules as files: of a live one the version that is live, of the others the draft.
---@param tenant string
---@return table[] {path, text}
function M.export(tenant)
    local files, active = json.array{}, {}
    for _, rule in ipairs(store.whole(tenant)) do
        local live = rule.state == "active" and present(rule.source) ~= nil
        local name = place_of(rule)
        files[#files + 1] = { path = "rules/" .. name .. ".lua", text = live and rule.source or rule.draft_source }
        local tests = live and rule.tests or rule.draft_tests
        if tests ~= "" then files[#files + 1] = { path = "rules/" .. name .. "_test.lua", text = tests } end
        if live then active[#active + 1] = entry_text(name .. ".lua", rule.settings, rule.source) end
    end
    files[#files + 1] = { path = "rules/active/" .. tenant .. ".lua", text = ("-- The rules that are live for the tenant `%s`, with config "
        .. "and priority.\nreturn {\n%s%s}\n"):format(tenant, table.concat(active, "\n"), #active > 0 and "\n" or "") }
    for _, file in ipairs(require("modules.rules.stubs").files()) do files[#files + 1] = file end
    return files
end

-- What the files say -----------------------------------------------------------------------------------------------------------------

local function finding(file, code, message, line)
    return { severity = "error", code = code, file = file, line = line, message = message }
end

-- The list in an active file, as plain data. Nil and a finding when there is none.
local function read_active(path, source)
    local fair, unfair, at = rules_core.fair(source)
    if not fair then return nil, finding(path, "syntax", unfair, at) end
    local _, why = loadstring(source, "=" .. path, "t")
    if why then
        local line, message = tostring(why):match(":(%d+): (.*)$")
        return nil, finding(path, "syntax", message or why, tonumber(line))
    end
    local set = assert(rules_core.pin("rules-check")):with{ id = path, hook = "route", name = "active",
        source = "local T = (function() " .. source
            .. "\nend)() return { hook = \"route\", name = \"active\", run = function() return T end }" }
    local index
    for _, rule in ipairs(set and set:list("route") or {}) do
        if rule.id == path then index = rule.index end
    end
    if not index then return nil, finding(path, "syntax", "the list cannot be read") end
    local list, report = set:run(index, {})
    if report.outcome ~= "ok" then
        local code, message = check.told(report)
        return nil, finding(path, code, message, report.line)
    end
    if type(list) ~= "table" then return nil, finding(path, "manifest_field", "the file must return a list") end
    local by_file, members = {}, 0
    for _ in pairs(list) do members = members + 1 end
    -- What is not seen as a member of the list would be switched off.
    if members ~= #list then return nil, finding(path, "manifest_field", "the file must return a list, without holes and names") end
    for i, entry in ipairs(list) do
        local file = type(entry) == "table" and entry.file
        local priority = type(entry) == "table" and entry.priority or 0
        local place = ("entry %d"):format(i)
        if type(file) ~= "string" or not file:find("^[%w_/-]+%.lua$") then
            return nil, finding(path, "manifest_field", place .. " has no file of the form folder/name.lua")
        elseif by_file[file] then
            return nil, finding(path, "manifest_field", place .. ": " .. file .. " is listed twice")
        elseif type(priority) ~= "number" or priority % 1 ~= 0 or priority < -1000 or priority > 1000 then
            return nil, finding(path, "manifest_field", place .. ": priority must be a whole number from -1000 to 1000")
        elseif entry.config ~= nil and type(entry.config) ~= "table" or entry.fallback ~= nil and type(entry.fallback) ~= "table" then
            return nil, finding(path, "manifest_field", place .. ": config and fallback are tables")
        elseif entry.on_error ~= nil and not ({ skip = true, fallback = true, block = true })[entry.on_error] then
            return nil, finding(path, "manifest_field", place .. ": on_error is skip, fallback or block")
        elseif window.wrong(entry) then
            return nil, finding(path, "manifest_field", place .. ": " .. window.wrong(entry))
        end
        by_file[file] = { config = entry.config, priority = entry.priority, on_error = entry.on_error, fallback = entry.fallback,
            startsAt = window.text(entry.startsAt), endsAt = window.text(entry.endsAt) }
    end
    return by_file
end

-- Sorts the files: rules by key, each with its tests and, when it is to be live, its settings. Raises files_invalid.
local function read(tenant, list)
    local sources, tests, active, wrong = {}, {}, nil, json.array{}
    local paths = {}
    for _, file in ipairs(list) do paths[file.path:gsub("^%./", "")] = true end
    for _, file in ipairs(list) do
        local path = file.path:gsub("^%./", "")
        local name = path:match("^rules/(.+%.lua)$")
        local listed = name and name:match("^active/([^/]+)%.lua$")
        if listed == tenant then
            local found, why = read_active(path, file.text)
            active = found or active
            if why then wrong[#wrong + 1] = why end
        elseif name and not listed then
            local stem = name:match("^([%w_/-]+)%.lua$")
            local key = stem and stem:match("[^/]+$")
            if not key or not key:find("^[a-z0-9][a-z0-9_-]+$") or #key < 3 or #key > 64 or rules.RESERVED[key] then
                wrong[#wrong + 1] = finding(path, "manifest_field", "the name of a rule's file is its key: small letters, digits, _ and -")
            elseif key:find("_test$") and paths[path:gsub("_test%.lua$", ".lua")] then
                tests[stem] = file.text
            elseif sources[key] then
                wrong[#wrong + 1] = finding(path, "manifest_field", sources[key].path .. " is the same rule")
            elseif #file.text > 65536 then
                wrong[#wrong + 1] = finding(path, "syntax", "the file is longer than 64 KiB")
            else
                sources[key] = { key = key, path = path, name = name, stem = stem, source = file.text }
            end
        end
    end
    if not active and #wrong == 0 then
        wrong[1] = finding("rules/active/" .. tenant .. ".lua", "manifest_field", "the list of what is live is missing")
    end
    local left = {}
    for name, entry in pairs(active or {}) do left[name] = entry end
    local keys = {}
    for key, rule in pairs(sources) do
        keys[#keys + 1] = key
        rule.tests = tests[rule.stem .. "_test"] or ""
        rule.entry = left[rule.name]
        left[rule.name] = nil
    end
    for name in pairs(left) do
        wrong[#wrong + 1] = finding("rules/active/" .. tenant .. ".lua", "manifest_field", name .. " is listed and not there")
    end
    if #wrong > 0 then M.files_invalid{ details = { diagnostics = wrong } } end
    table.sort(keys)
    return sources, keys
end

-- What would change --------------------------------------------------------------------------------------------------------------------

-- Alike as JSON: an absent table, an empty one and null are the same.
local function alike(a, b)
    if a == null or (type(a) == "table" and next(a) == nil) then a = nil end
    if b == null or (type(b) == "table" and next(b) == nil) then b = nil end
    if type(a) ~= "table" or type(b) ~= "table" then return a == b end
    for k, v in pairs(a) do
        if not alike(v, b[k]) then return false end
    end
    for k, v in pairs(b) do
        if a[k] == nil and not alike(nil, v) then return false end
    end
    return true
end

-- Settings as a version keeps them: what the list leaves open the manifest says.
local function settled(entry, manifest)
    manifest = manifest or {}
    return { config = entry.config or json.object({}, {}), priority = entry.priority or tonumber(manifest.priority) or 0,
        on_error = entry.on_error or manifest.on_error or "skip", fallback = entry.fallback,
        startsAt = entry.startsAt, endsAt = entry.endsAt }
end

local function same_settings(version, wanted)
    return alike(version.config, wanted.config) and (version.priority or 0) == wanted.priority
        and (present(version.on_error) or "skip") == wanted.on_error and alike(version.fallback, wanted.fallback)
        and present(version.startsAt) == wanted.startsAt and present(version.endsAt) == wanted.endsAt
end

-- What is to be done with one rule: create, update, enable (its version is right already), disable, or same.
local function step_of(tenant, file, row, given)
    if not file then return row.state == "active" and "disable" or "same" end
    if file.entry then
        local report = rules.check(tenant, { source = file.source, hook = row and row.hook or nil, settings = file.entry, key = file.key,
            file = file.path, given = given })
        file.hook = row and row.hook or report.manifest and report.manifest.hook
            or file.source:match("hook%s*=%s*[\"']([%w_.]+)[\"']") or "promotion"
        file.name_text = report.manifest and report.manifest.name
        file.settings = settled(file.entry, report.manifest)
        if not row then return "create" end
        local alive = present(row.source) ~= nil and row.source == file.source and row.tests == file.tests
            and same_settings(row.settings, file.settings)
        if not alive then return "update" end
        return row.state == "active" and "same" or "enable"
    end
    file.hook = row and row.hook or file.source:match("hook%s*=%s*[\"']([%w_.]+)[\"']") or "promotion"
    if not row then return "create" end
    if row.state == "active" then return "disable" end
    return row.draft_source == file.source and row.draft_tests == file.tests and "same" or "update"
end

-- Keys of the files, libraries before those that take from them.
local function in_order(sources)
    local keys, order, seen = {}, {}, {}
    for key in pairs(sources) do keys[#keys + 1] = key end
    table.sort(keys)
    local function add(key)
        if seen[key] then return end
        seen[key] = true
        for name in sources[key].source:gmatch("%f[%w_]lib%s*%(?%s*[\"']([%w_-]+)[\"']") do
            if sources[name] then add(name) end
        end
        order[#order + 1] = key
    end
    for _, key in ipairs(keys) do add(key) end
    return order
end

local function plan_of(tenant, list)
    local sources, keys = read(tenant, list)
    local rows, given = {}, {}
    for _, row in ipairs(store.whole(tenant)) do
        rows[row.key] = row
        if not sources[row.key] and row.state == "active" then keys[#keys + 1] = row.key end
    end
    for key, file in pairs(sources) do
        if file.entry then given[key] = file.source end
    end
    local steps, locked = {}, {}
    for _, key in ipairs(keys) do
        if not rows[key] then
            local removed = store.find(tenant, key)
            if removed then
                rows[key] = removed
                local draft = store.draft(tenant, removed.id)
                removed.draft_source, removed.draft_tests, removed.revision = draft.source, draft.tests, draft.revision
            end
        end
        local what = step_of(tenant, sources[key], rows[key], given)
        steps[key] = what
        if what ~= "same" and rows[key] and rows[key].origin == "file" then locked[#locked + 1] = key end
        sched.sleep(1) -- a check takes milliseconds, and others wait
    end
    if #locked > 0 then
        rules.rule_locked{ message = "Rules of files of the server are not changed from here: " .. table.concat(locked, ", "),
            details = { keys = json.array(locked) } }
    end
    return { sources = sources, keys = keys, rows = rows, steps = steps, given = given }
end

local LISTS = { create = "create", update = "update", enable = "update", disable = "disable", same = "same" }

local function answer_of(plan)
    local body = { create = json.array{}, update = json.array{}, disable = json.array{}, same = json.array{} }
    table.sort(plan.keys)
    for _, key in ipairs(plan.keys) do
        local list = body[LISTS[plan.steps[key]]]
        list[#list + 1] = key
    end
    return body
end

-- Every publication that is to come, examined before the first is made. Findings of all of them at once.
local function examine(tenant, plan, accepted)
    local findings, failed, warned = json.array{}, false, false
    for _, key in ipairs(in_order(plan.sources)) do
        local file, what = plan.sources[key], plan.steps[key]
        if file.entry and (what == "create" or what == "update") then
            if not catalogue.get(file.hook) then
                failed = true
                findings[#findings + 1] = finding(file.path, "manifest_field", ("'%s' is no hook"):format(file.hook))
            else
                local ok, result = pcall(rules.examine, tenant, { hook = file.hook, key = key }, { source = file.source,
                    settings = file.settings, tests = file.tests }, accepted, { file = file.path, given = plan.given })
                if ok then
                    file.report = result
                elseif errors.is(result) and result.details and result.details.diagnostics then
                    failed = failed or result.status == 422
                    warned = warned or result.status == 409
                    for _, d in ipairs(result.details.diagnostics) do findings[#findings + 1] = d end
                else
                    error(result, 0)
                end
                sched.sleep(1)
            end
        end
    end
    return findings, failed, warned
end

-- Applying -----------------------------------------------------------------------------------------------------------------------------

-- Whether the draft is what is published, or nothing was published yet: then it follows the files.
local function clean(row)
    if present(row.source) == nil then return true end
    local d, v = row.draft_settings, row.settings
    return row.draft_source == row.source and row.draft_tests == row.tests and alike(d.config, v.config) and alike(d.fallback, v.fallback)
        and (present(d.priority) == nil or d.priority == v.priority) and (present(d.on_error) == nil or d.on_error == v.on_error)
        and present(d.startsAt) == present(v.startsAt) and present(d.endsAt) == present(v.endsAt)
end

local function save(scope, row, file, settings)
    return store.save_draft{ tenant_key = scope.tenant, rule_id = row.id, revision = row.revision, source = file.source,
        settings = settings, tests = file.tests, updated_by = scope.actor_id, now = time.iso(time.now()) }
end

-- A rule that is to be live, where nobody else has to agree.
local function make_live(scope, file, row, note)
    local statements
    if not row then row, statements = rules.new_rule(scope, { key = file.key, hook = file.hook, name = file.name_text or file.key,
        source = file.source, settings = file.settings, tests = file.tests }) end
    local function before(tx)
        if statements then
            errors.unique({ rules_key_once = rules.key_taken.code }, tx.pipeline, tx, statements)
            return
        end
        local list = {}
        if row.state == "archived" then
            list[1] = store.set_state(scope.tenant, row.id, "archived", "disabled", note, time.iso(time.now()))
        end
        if clean(row) then list[#list + 1] = save(scope, row, file, file.settings) end
        for _, statement in ipairs(list) do
            if not tx:pipeline{ statement }[1][1] then rules.draft_conflict{ details = { key = file.key, yours = row.revision } } end
        end
    end
    return rules.make_live(scope, row, { source = file.source, settings = file.settings, tests = file.tests, note = note,
        before = before }, file.report)
end

-- As a draft alone, or as one that waits for somebody's approval.
local function keep_draft(scope, file, row)
    if not row then
        local name = file.name_text or file.source:match("name%s*=%s*\"([^\"]+)\"") or file.key
        return (rules.create(scope, { key = file.key, hook = file.hook, name = name, source = file.source, settings = file.settings,
            tests = file.tests }))
    end
    if row.state == "archived" then row = rules.restore(scope, row.id, "it is among the files") end
    return (rules.save(scope, row.id, { revision = store.draft(scope.tenant, row.id).revision, source = file.source, tests = file.tests,
        settings = file.settings }))
end

local function apply_one(scope, plan, key, o, done)
    local file, row, what = plan.sources[key], plan.rows[key], plan.steps[key]
    if what == "disable" then
        local rule = rules.find(scope.tenant, key)
        if rule.state == "active" then rules.disable(scope, key, o.note) end
        if file and (row.draft_source ~= file.source or row.draft_tests ~= file.tests) and clean(row) then keep_draft(scope, file, row) end
    elseif what == "enable" then
        rules.enable(scope, key, o.note)
    elseif not file.entry then
        keep_draft(scope, file, row)
    elseif rules.needs_approval(scope.tenant, file.hook) then
        keep_draft(scope, file, row)
        local _, body = rules.publish(scope, key, { revision = store.draft(scope.tenant, rules.find(scope.tenant, key).id).revision,
            note = o.note, acceptWarnings = o.accepted })
        done.pending[#done.pending + 1] = { key = key, requestId = body.requestId }
    else
        local live = make_live(scope, file, row, o.note)
        done.versions[key], done.epoch, done.live = live.version, live.epoch, live.live
    end
end

--- Says what would change, or changes it. Raises files_invalid, rule_locked, what publishing raises.
---@param scope Scope
---@param list table[] {path, text}
---@param o {mode: "plan"|"apply", note: string, accepted: string[]|nil}
---@return table
function M.import(scope, list, o)
    local plan = plan_of(scope.tenant, list)
    local findings, failed, warned = examine(scope.tenant, plan, o.accepted)
    local body = answer_of(plan)
    body.diagnostics = findings
    if o.mode == "plan" then return body end
    if failed then rules.check_failed{ message = "Nothing was changed: a rule does not pass", details = { diagnostics = findings } } end
    if warned then rules.warning_not_accepted{ details = { diagnostics = findings } } end
    local done = { versions = {}, pending = json.array{}, epoch = nil, live = nil }
    local changed = {}
    for _, key in ipairs(plan.keys) do
        local what = plan.steps[key]
        if what == "disable" then
            apply_one(scope, plan, key, o, done) -- first: a hook has room for 25
        elseif what ~= "same" then
            changed[key] = true
        end
    end
    for _, key in ipairs(in_order(plan.sources)) do
        if changed[key] then apply_one(scope, plan, key, o, done) end
    end
    body.versions, body.pending = next(done.versions) and done.versions or json.object({}, {}), done.pending
    body.epoch, body.live = store.epoch(scope.tenant), done.live or null
    return body
end

return M
