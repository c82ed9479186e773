-- One-time codes in mails whose words are a tenant's own. An account is one for the whole platform, and a code for it can be asked for by
-- any tenant's door. Were a tenant's form or rule handed the code, a link or a picture that carries it away, or the rule's log, would open
-- the account everywhere. So they are handed a mark in its place, their HTML is made safe, and the code goes in only where each mark is a
-- word of its own in the text: not within a tag, and not part of what a reader of mails takes for an address.
local crypto = require("core.crypto")
local html = require("core.html")
local message = require("kasma.mail_message")
local templates = require("kasma.mail_templates")

local M = {}

M.PROBLEM = "the code must stand in the HTML, and in the text where there is one, as a word of its own: not within a tag, and not as part "
    .. "of an address"

--- Variables without the code.
---@param vars table
---@return table vars the same when they hold no code
---@return string|nil mark what stands for it
function M.hide(vars)
    if vars.code == nil then return vars, nil end
    local shown, mark = {}, "code" .. crypto.random_hex(8)
    for name, value in pairs(vars) do shown[name] = value end
    shown.code = mark
    return shown, mark
end

-- Whether every mark of a text is a word that no address can be made of: but for letters, and what stands around words, it is alone.
local function stands_alone(text, mark)
    for word in text:gmatch("%S+") do
        if word:find(mark, 1, true) then
            local before, after = word:match("^(.-)" .. mark .. "(.*)$")
            if not before:find("^[%a(%[*\"':]*$") or not after:find("^[)%]*\"',;:!]*%.?$") then return false end
        end
    end
    return true
end

local function in_tag(safe, mark)
    for tag in safe:gmatch("<[^>]*>") do
        if tag:find(mark, 1, true) then return true end
    end
    return false
end

--- A mail with the code in the place of its marks.
---@param made {subject: string, text: string, html: string}
---@param mark string
---@param code string
---@return table|nil mail its HTML made safe; nil: the code would not be where it belongs
function M.show(made, mark, code)
    local ok, safe = pcall(html.sanitize, made.html)
    if not ok or not safe or not safe:find(mark, 1, true) or in_tag(safe, mark) then return nil end
    if made.text ~= "" and not made.text:find(mark, 1, true) then return nil end
    for _, text in ipairs{ made.subject, made.text, message.text_of(safe) } do
        if not stands_alone(text, mark) then return nil end
    end
    local function put(text, value) return (text:gsub(mark, function() return value end)) end
    return { subject = put(made.subject, code), text = put(made.text, code), html = put(safe, templates.escape(code)) }
end

return M
