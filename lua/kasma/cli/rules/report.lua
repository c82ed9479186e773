-- What the rule commands print: text for people, JSON, JUnit for test reports, SARIF for code scanning. Much of it was written by
-- others (a server's answer, a rule's log), so what would steer a terminal is taken out of text.
local json = require("core.json")

local M = {}

M.FORMATS = { text = true, json = true, junit = true, sarif = true }

---@param text any
---@return string
function M.plain(text) return (tostring(text):gsub("[%z\1-\8\11-\31\127]", "?"):gsub("\194[\128-\159]", "?")) end

---@param ... any
function M.write(...)
    for i = 1, select("#", ...) do io.stdout:write(M.plain((select(i, ...)))) end
end
local write = M.write

---@param args table
---@return "text"|"json"|"junit"|"sarif"
function M.form(args) return args.json and "json" or args.format or "text" end

---@param n number
---@return string 1,234,567
function M.commas(n)
    local sign, digits = ("%d"):format(n):match("^(-?)(%d+)$")
    return sign .. digits:reverse():gsub("(%d%d%d)", "%1,"):reverse():gsub("^,", "")
end

local function line_of(source, n)
    local i = 0
    for text in (source .. "\n"):gmatch("(.-)\n") do
        i = i + 1
        if i == n then return text end
    end
end

local function present(v) if v == json.null then return nil end return v end

--- A finding, with the lines of the source where that is known.
---@param d table
---@param source string|nil
function M.finding(d, source)
    local line, column, hint, budget = present(d.line), present(d.column), present(d.hint), present(d.budget)
    write(("%s%s%s: %s: %s\n"):format(d.file or "", line and ":" .. line or "", column and ":" .. column or "", d.code, d.message))
    if line and source and d.file and not d.file:find("_test%.lua$") then
        for n = line - 1, line do
            local text = n > 0 and line_of(source, n)
            if text then write(("  %s%4d | %s\n"):format(n == line and ">" or " ", n, text)) end
        end
    end
    local stack = present(d.stack)
    for i = 2, #(stack or {}) do -- the first is the line itself
        local inner = present(stack[i - 1].name)
        write(("  from line %d%s\n"):format(stack[i].line, inner and ", which called " .. inner or ""))
    end
    if hint then write("  hint: ", hint, "\n") end
    if budget and d.severity ~= "info" and budget.instructions.used > 0 then
        write(("  used %s of %s instructions, %.1f of %d MiB, %.1f of %d ms%s\n"):format(M.commas(budget.instructions.used),
            M.commas(budget.instructions.limit), budget.heap.used / 1048576, budget.heap.limit / 1048576,
            budget.wallMicros.used / 1000, budget.wallMicros.limit / 1000, present(d.sample) and " on the sample '" .. d.sample .. "'"
                or ""))
    end
end

--- SARIF 2.1.0 of files and their findings.
---@param results table[] {file, diagnostics}
---@return string
function M.sarif(results)
    local list, rules, seen = json.array{}, json.array{}, {}
    for _, r in ipairs(results) do
        for _, d in ipairs(r.diagnostics) do
            if not seen[d.code] then
                seen[d.code] = true
                rules[#rules + 1] = { id = d.code }
            end
            list[#list + 1] = { ruleId = d.code, level = d.severity == "info" and "note" or d.severity,
                message = { text = d.message .. (present(d.hint) and " (" .. d.hint .. ")" or "") },
                locations = json.array{ { physicalLocation = { artifactLocation = { uri = d.file or r.file },
                    region = { startLine = present(d.line) or 1, startColumn = present(d.column) or 1 } } } } }
        end
    end
    return json.encode{ version = "2.1.0", ["$schema"] = "https://json.schemastore.org/sarif-2.1.0.json", runs = json.array{ {
        tool = { driver = { name = "kasma rules", rules = rules } }, results = list } } }
end

local function escape(text)
    return (M.plain(text):gsub("[&<>\"]", { ["&"] = "&amp;", ["<"] = "&lt;", [">"] = "&gt;", ["\""] = "&quot;" }))
end

--- A JUnit report of files, their tests and errors.
---@param results table[] {file, tests, diagnostics, errors}
---@return string
function M.junit(results)
    local out = { "<?xml version=\"1.0\" encoding=\"UTF-8\"?>", "<testsuites>" }
    for _, r in ipairs(results) do
        local t = r.tests or { passed = 0, failed = 0, skipped = 0, cases = {} }
        out[#out + 1] = ("  <testsuite name=\"%s\" tests=\"%d\" failures=\"%d\" errors=\"%d\">"):format(escape(r.file), #t.cases, t.failed,
            r.errors)
        for _, c in ipairs(t.cases) do
            out[#out + 1] = ("    <testcase name=\"%s\">%s</testcase>"):format(escape(c.name), c.ok and "" or "<failure>"
                .. escape(table.concat(c.diff, "\n")) .. "</failure>")
        end
        for _, d in ipairs(r.diagnostics) do
            if d.severity == "error" then
                out[#out + 1] = ("    <testcase name=\"check\"><error>%s</error></testcase>"):format(escape(d.code .. ": " .. d.message))
            end
        end
        out[#out + 1] = "  </testsuite>"
    end
    out[#out + 1] = "</testsuites>"
    return table.concat(out, "\n")
end

-- Findings of a command as one suite: a case that passed, or one error each.
local function suite(args, diagnostics)
    local errors_ = 0
    for _, d in ipairs(diagnostics) do
        if d.severity == "error" then errors_ = errors_ + 1 end
    end
    return { file = "kasma rules " .. table.concat({ args[1], args[2] }, " "), diagnostics = diagnostics, errors = errors_,
        tests = errors_ == 0 and { passed = 1, failed = 0, skipped = 0, cases = { { name = args[1], ok = true, diff = {} } } } or nil }
end

--- Prints what a command has to say in the form that was asked for.
---@param args table
---@param value any for JSON
---@param text string for people
---@param diagnostics table[]|nil findings, for the two report forms and before the text
---@param source string|nil of the findings
---@return integer exit 0
function M.answer(args, value, text, diagnostics, source)
    local form = M.form(args)
    if form == "json" then
        io.stdout:write(json.encode(value), "\n")
    elseif form == "junit" then
        io.stdout:write(M.junit{ suite(args, diagnostics or {}) }, "\n")
    elseif form == "sarif" then
        io.stdout:write(M.sarif{ suite(args, diagnostics or {}) }, "\n")
    else
        for _, d in ipairs(diagnostics or {}) do M.finding(d, source) end
        write(text, "\n")
    end
    return 0
end

return M
