-- Files of rules on the developer's machine: reading, writing, and what the check and the tests say of one.
local check = require("modules.rules.check")
local tests = require("modules.rules.tests")

local M = {}

--- A word of the shell that says just this text.
---@param text string
---@return string
function M.quoted(text) return "'" .. text:gsub("'", "'\\''") .. "'" end

---@param path string
---@return string|nil text
function M.read(path)
    local file = io.open(path, "r")
    if not file then return nil end
    local text = file:read("*a")
    file:close()
    return text
end

---@param path string
---@return boolean
function M.exists(path)
    local file = io.open(path, "r")
    if file then file:close() end
    return file ~= nil
end

--- Writes a file whole or not at all, with the folders above it. Raises {usage=}.
---@param path string
---@param text string
function M.save(path, text)
    local folder = path:match("^(.*)/[^/]+$")
    if folder and folder ~= "" then os.execute("mkdir -p -- " .. M.quoted(folder)) end
    local part = path .. ".part"
    local file, why = io.open(part, "w")
    if not file then error({ usage = why }, 0) end
    local ok, failed = file:write(text)
    local closed, at_end = file:close()
    if not ok or not closed then
        os.remove(part)
        error({ usage = ("%s: %s"):format(path, tostring(failed or at_end)) }, 0)
    end
    local renamed, reason = os.rename(part, path)
    if not renamed then error({ usage = reason }, 0) end
end

--- Files of rules below a path; tests, active lists and stubs are none.
---@param path string a folder, or a file
---@return string[] sorted
function M.below(path)
    local found, list = assert(io.popen("find " .. M.quoted(path) .. " -name '*.lua' -type f 2>/dev/null | sort")), {}
    for file in found:lines() do
        if not file:find("_test%.lua$") and not file:find("/active/", 1, true) and not file:find("/.kasma/", 1, true) then
            list[#list + 1] = file
        end
    end
    found:close()
    return list
end

--- Writes .kasma/config.d.lua: what each rule below a folder takes as its config, for editors.
---@param dir string
---@return string path
function M.save_configs(dir)
    local list = {}
    for _, file in ipairs(M.below(dir)) do
        local key = file:match("([^/]+)%.lua$")
        local report = check.run{ source = M.read(file) or "", file = file, id = key }
        if report.manifest then list[#list + 1] = { key = key, config = report.manifest.config } end
    end
    local path = dir .. "/.kasma/config.d.lua"
    M.save(path, require("modules.rules.stubs_config").text(list))
    return path
end

--- The files that the words after the command name. Raises {usage=} where there is none.
---@param args table
---@return string[]
function M.named(args)
    local paths, list = {}, {}
    for i = 2, #args do paths[#paths + 1] = args[i] end
    if #paths == 0 then paths = { M.exists("rules/active/demo.lua") and "rules" or "." } end
    for _, path in ipairs(paths) do
        local found = M.below(path)
        if #found == 0 then error({ usage = path .. ": no rule there" }, 0) end
        for _, file in ipairs(found) do list[#list + 1] = file end
    end
    return list
end

--- Where the tests of a rule lie.
---@param file string
---@return string
function M.test_file(file) return (file:gsub("%.lua$", "_test.lua")) end

--- What a file's check and tests say. A config comes from the tests beside it.
---@param file string
---@param only string|false|nil false: no tests
---@return table {file, source, diagnostics, errors, manifest, sampleRuns, tests}
function M.look(file, only)
    local source = M.read(file)
    if not source then error({ usage = file .. " cannot be read" }, 0) end
    local key = file:match("([^/]+)%.lua$")
    local test_file = M.test_file(file)
    local test_source = M.read(test_file)
    local out = { file = file, diagnostics = {}, source = source }
    local plan, finding
    if test_source then
        plan, finding = tests.read(test_source, test_file)
        if finding then out.diagnostics[1] = finding end
    end
    local libs = {}
    for name in source:gmatch("%f[%w_]lib%s*%(?%s*[\"']([%w_-]+)[\"']") do
        local text = M.read(file:gsub("[^/]+$", name .. ".lua"))
        if text then libs[#libs + 1] = { key = name, source = text } end
    end
    local report = check.run{ source = source, file = file, id = key, settings = { config = plan and plan.config }, libs = libs }
    for _, d in ipairs(report.diagnostics) do
        -- A merchant's choice that nobody has made yet is no fault of the rule.
        if d.code == "config_invalid" and not (plan and plan.config) and d.message:find("is required", 1, true) then
            d.severity = "info"
            d.hint = "a config in the tests beside the file lets it be tried"
        end
        out.diagnostics[#out.diagnostics + 1] = d
    end
    out.manifest, out.sampleRuns = report.manifest, report.sampleRuns
    if plan and report.spec and only ~= false then
        out.tests, finding = tests.run{ spec = report.spec, hook = report.spec.hook, tests = test_source, file = test_file, only = only }
        if finding then out.diagnostics[#out.diagnostics + 1] = finding end
    end
    out.errors = 0
    for _, d in ipairs(out.diagnostics) do
        if d.severity == "error" then out.errors = out.errors + 1 end
    end
    return out
end

return M
