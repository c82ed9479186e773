-- The API page: Swagger UI (console/swagger-ui, vendored) on the document of one area at a time, without one outside asset. The
-- page allows scripts and styles from this server alone: nothing inline runs.
local config = require("core.config")

local M = {}

local ESCAPES = { ["&"] = "&amp;", ["<"] = "&lt;", [">"] = "&gt;", ['"'] = "&quot;" }
local function esc(text) return (tostring(text):gsub('[&<>"]', ESCAPES)) end

M.headers = { ["Content-Type"] = "text/html; charset=utf-8", ["Cache-Control"] = "no-cache",
    -- Swagger UI sets style attributes and draws its icons from data: URLs.
    ["Content-Security-Policy"] = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        .. "font-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'" }

local FOLDERS = { ["swagger-ui.css"] = "swagger-ui", ["swagger-ui-bundle.js"] = "swagger-ui", ["page.css"] = "docs", ["page.js"] = "docs" }

--- What the page loads; nothing else of the folders is given out.
M.files = { "swagger-ui.css", "swagger-ui-bundle.js", "page.css", "page.js" }

---@param name string one of M.files
---@return string
function M.path_of(name) return ("%s/%s/%s"):format(config.get("KASMA_CONSOLE_DIR"), FOLDERS[name], name) end

local function link(name) return ("/api/docs/assets/%s?v=%s"):format(name, esc(config.version)) end

---@param areas string[] sorted
---@return string html
function M.render(areas)
    local options = {}
    for i, area in ipairs(areas) do options[i] = ("<option>%s</option>"):format(esc(area)) end
    return table.concat{ '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Kasma API</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">',
        '<link rel="stylesheet" href="', link("swagger-ui.css"), '"><link rel="stylesheet" href="', link("page.css"), '"></head><body>',
        '<header><h1>Kasma API</h1><a href="/openapi.json">openapi.json</a><a href="/api/docs?errors">error codes</a>',
        '<label>Area<select id="area">', table.concat(options), "</select></label></header>",
        "<noscript><p>This page needs scripts. The whole description is <a href=\"/openapi.json\">openapi.json</a>.</p></noscript>",
        '<main id="ui"></main><script src="', link("swagger-ui-bundle.js"), '"></script><script src="', link("page.js"), '"></script>',
        "</body></html>" }
end

return M
