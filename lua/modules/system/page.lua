-- The API page: every operation by area, from the declarations, without one outside asset. A form tries an operation with the
-- session of the browser.
local errors = require("kasma.errors")
local schema = require("kasma.schema")

local M = {}

local ESCAPES = { ["&"] = "&amp;", ["<"] = "&lt;", [">"] = "&gt;", ['"'] = "&quot;" }
local function esc(text) return (tostring(text):gsub('[&<>"]', ESCAPES)) end

local STYLE = [[body{font:15px/1.5 system-ui,sans-serif;margin:0 auto;max-width:72em;padding:1em 2em;color:#1c2330}
h2{margin-top:2em;border-bottom:1px solid #ddd}details{border:1px solid #e3e6ea;border-radius:6px;margin:.4em 0;padding:.3em .8em}
summary{cursor:pointer}code{font:13px ui-monospace,monospace}.m{display:inline-block;width:4.5em;font-weight:600}
.GET{color:#0b6}.POST{color:#06c}.PUT,.PATCH{color:#b60}.DELETE{color:#c22}.who{color:#777;float:right;font-size:13px}
table{border-collapse:collapse;margin:.4em 0}td,th{border:1px solid #e3e6ea;padding:.2em .6em;text-align:left;font-size:13px}
input{font:inherit;width:100%;padding:.4em;box-sizing:border-box}@media(prefers-color-scheme:dark){body{background:#14171c;color:#dde}
details,td,th{border-color:#333}h2{border-color:#333}}]]

local SCRIPT = [[const q=document.getElementById('q');q.addEventListener('input',()=>{const w=q.value.toLowerCase();
document.querySelectorAll('details').forEach(d=>{d.hidden=!d.dataset.t.includes(w)})});]]

local OPERATION = '<details data-t="%s"><summary><span class="m %s">%s</span> <code>%s</code> %s'
    .. '<span class="who">%s</span></summary>'

local function who_of(decl)
    if decl.permission then return decl.permission .. (decl.platform_only and " (platform)" or "") end
    if decl.secret then return "service secret" end
    return decl.public and "public" or "signed in"
end

local function kind_of(s)
    local kind = s.kind
    if kind == "enum" then return table.concat(s.values, " | ") end
    if kind == "array" then return "array of " .. kind_of(s.item) end
    return kind
end

local function table_of(title, object)
    if not schema.is_schema(object) or not object.members then return "" end
    local rows = { "<p><b>", title, "</b></p><table><tr><th>name</th><th>what</th><th></th><th></th></tr>" }
    for _, entry in ipairs(schema.members(object)) do
        rows[#rows + 1] = ("<tr><td><code>%s</code></td><td>%s</td><td>%s</td><td>%s</td></tr>"):format(esc(entry.name),
            esc(kind_of(entry.schema)),
            entry.schema.is_optional and "" or "required", esc(entry.schema.description or ""))
    end
    rows[#rows + 1] = "</table>"
    return table.concat(rows)
end

local function refusals(returns)
    if type(returns) ~= "table" or schema.is_schema(returns) then return "" end
    local rows = {}
    local function one(declared)
        if not errors.is_declared(declared) then return end
        rows[#rows + 1] = ("<tr><td>%d</td><td><code>%s</code></td><td>%s</td></tr>"):format(declared.status, esc(declared.code),
            esc(declared.message))
    end
    for _, what in pairs(returns) do
        one(what)
        if type(what) == "table" and not schema.is_schema(what) and not errors.is_declared(what) then
            for _, declared in ipairs(what) do one(declared) end
        end
    end
    table.sort(rows)
    return #rows > 0 and ("<p><b>Refusals</b></p><table>" .. table.concat(rows) .. "</table>") or ""
end

---@param routes kasma.Route[]
---@return string html
function M.render(routes)
    local by_tag, tags = {}, {}
    for _, decl in ipairs(routes) do
        if not decl.hidden then
            if not by_tag[decl.tag] then
                by_tag[decl.tag] = {}
                tags[#tags + 1] = decl.tag
            end
            table.insert(by_tag[decl.tag], decl)
        end
    end
    table.sort(tags)
    local out = { "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>Kasma API</title><meta name=\"viewport\" ",
        "content=\"width=device-width\"><style>", STYLE, "</style></head><body><h1>Kasma API</h1>",
        "<p><a href=\"/openapi.json\">openapi.json</a> ",
        "<a href=\"/api/docs/errors\">error codes</a></p><input id=\"q\" placeholder=\"Find an operation\" autofocus>" }
    for _, tag in ipairs(tags) do
        out[#out + 1] = "<h2>" .. esc(tag) .. "</h2>"
        for _, decl in ipairs(by_tag[tag]) do
            local words = (decl.method .. " " .. decl.path .. " " .. (decl.summary or "")):lower()
            out[#out + 1] = OPERATION:format(esc(words), decl.method, decl.method, esc(decl.path), esc(decl.summary or ""),
                esc(who_of(decl)))
            out[#out + 1] = table_of("Query", decl.query) .. table_of("Body", decl.body) .. refusals(decl.returns) .. "</details>"
        end
    end
    out[#out + 1] = "<script>" .. SCRIPT .. "</script></body></html>"
    return table.concat(out)
end

return M
