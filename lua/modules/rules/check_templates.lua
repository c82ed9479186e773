-- Names of mail templates that stand in a rule as they are: what the shop has no mail for is found before any run comes by. A name that is
-- put together is judged when it is used (catalogue and capability say the same then).
local templates = require("kasma.mail_templates")

local M = {}

-- Where a name is given, by hook: in a call, or as a member of an answer.
local PLACES = {
    ["workflow.order"] = { "%f[%w_]notify%s*=%s*{%s*template%s*=%s*([\"'])([^\"'\n]*)%1%s*[,})]" },
    workflow = { "%f[%w_]mail%.send%s*%(%s*([\"'])([^\"'\n]*)%1%s*[,})]" },
    route = { "%f[%w_]mail%.send%s*%(%s*([\"'])([^\"'\n]*)%1%s*[,})]" },
}

---@param hook string
---@param lines string[]
---@param out fun(code: string, message: string, place: table|nil, hint: string|nil)
---@param nearest fun(name: string, names: table): string|nil
function M.findings(hook, lines, out, nearest)
    for _, pattern in ipairs(PLACES[hook] or {}) do
        for i, text in ipairs(lines) do
            local code = text:gsub("^%s*%-%-.*$", "")
            for _, name in code:gmatch(pattern) do
                if not templates.for_rules(name) then
                    local names = {}
                    for _, known in ipairs(templates.names_for_rules()) do names[known] = true end
                    local near = nearest(name, names)
                    out("invalid_result", ("there is no mail template '%s' for rules; there are %s"):format(name:sub(1, 80),
                        table.concat(templates.names_for_rules(), ", ")), { line = i, column = (text:find(name, 1, true)) },
                        near and ("did you mean '%s'?"):format(near) or nil)
                end
            end
        end
    end
end

return M
