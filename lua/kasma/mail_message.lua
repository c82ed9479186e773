-- A mail as it goes over the wire: RFC 5322 with a text and an HTML part, both base64, so that no line is too long and no byte
-- is at a server's mercy. A header is made here and nowhere else: text becomes encoded words (RFC 2047), line breaks in it become
-- blanks, an address is taken only when it cannot end its header or its place in the dialogue.
local crypto = require("core.crypto")
local smtp = require("core.smtp")
local time = require("core.time")

local M = {}

local WORD_BYTES = 45 -- of text in one encoded word: 60 of base64 and 12 around it, within the 75 that RFC 2047 allows
local SUBJECT_BYTES = 500

-- The first `most` bytes of UTF-8 text, or a few less: no character is cut in two.
local function head_of(text, most)
    if #text <= most then return text end
    local at = most
    while at > 0 and text:byte(at + 1) >= 128 and text:byte(at + 1) < 192 do at = at - 1 end
    return text:sub(1, at > 0 and at or most)
end

--- Unstructured header text: as it is when it is plain and short, else as encoded words, folded.
---@param text string
---@return string
function M.header_text(text)
    text = head_of((text:gsub("[%z\1-\31\127]+", " ")), SUBJECT_BYTES)
    -- What looks like an encoded word is encoded too: it would be read as one.
    if not text:find("[\128-\255]") and #text <= 60 and not text:find("=?", 1, true) then return text end
    local words = {}
    while #text > 0 do
        local part = head_of(text, WORD_BYTES)
        words[#words + 1] = "=?UTF-8?B?" .. crypto.base64(part) .. "?="
        text = text:sub(#part + 1)
    end
    return table.concat(words, "\r\n ")
end

local function mailbox(name, address)
    if not name or name == "" then return address end
    local text = M.header_text(name)
    if text == name then text = '"' .. name:gsub('["\\]', "") .. '"' end
    return text .. " <" .. address .. ">"
end

-- Base64 of text in its canonical form (line breaks are CRLF), 76 characters a line.
local function encoded(text)
    local all = crypto.base64((text:gsub("\r?\n", "\r\n")))
    local lines = {}
    for at = 1, #all, 76 do lines[#lines + 1] = all:sub(at, at + 75) end
    return table.concat(lines, "\r\n")
end

local DAYS = { "Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun" }
local MONTHS = { "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec" }

local function date(ms)
    local f = time.fields(ms, "UTC")
    return ("%s, %02d %s %d %02d:%02d:%02d +0000"):format(DAYS[f.wday], f.day, MONTHS[f.month], f.year, f.hour, f.min, f.sec)
end

local ENTITIES = { amp = "&", lt = "<", gt = ">", quot = '"', nbsp = " ", ["#39"] = "'" }

-- The HTML without what lies between two marks and the end of the second, as far as both are there; `low` is the HTML in small letters.
local function without(html, low, first, last)
    local parts, at = {}, 1
    while true do
        local from = low:find(first, at, true)
        local to = from and select(2, low:find(last, from + #first, true))
        if not to then break end
        parts[#parts + 1] = html:sub(at, from - 1)
        at = (low:find(">", to, true) or #html) + 1
    end
    parts[#parts + 1] = html:sub(at)
    return table.concat(parts)
end

local function breaks_line(tag)
    if #tag > 40 then return false end
    tag = tag:lower()
    return tag:find("^<br%s*/?>$") ~= nil or tag:find("^</[phtdl]%w*%s*>$") ~= nil
end

--- What an HTML form says without its tags, for those who read text and for filters that ask for a text part. Takes time in proportion
--- to the length, whatever somebody has written there.
---@param html string
---@return string
function M.text_of(html)
    html = without(html, html, "<!--", "-->")
    html = without(html, html:lower(), "<style", "</style")
    html = html:gsub("%s+", " ")
    local parts, at = {}, 1
    while true do
        local from = html:find("<", at, true)
        local to = from and html:find(">", from + 1, true)
        if not to then break end
        parts[#parts + 1] = html:sub(at, from - 1)
        if breaks_line(html:sub(from, to)) then parts[#parts + 1] = "\n" end
        at = to + 1
    end
    parts[#parts + 1] = html:sub(at)
    local text = table.concat(parts):gsub("&(#?%w+);", ENTITIES):gsub("[ \t]+", " "):gsub(" ?\n ?", "\n"):gsub("\n\n\n+", "\n\n")
    local first, last = text:find("[^ \n]") or #text + 1, #text
    while last >= first and text:find("^[ \n]", last) do last = last - 1 end
    return text:sub(first, last) .. "\n"
end

local function part(boundary, kind, text)
    return table.concat({ "--" .. boundary, "Content-Type: text/" .. kind .. "; charset=utf-8", "Content-Transfer-Encoding: base64", "",
        encoded(text) }, "\r\n")
end

---@class kasma.MailParts
---@field id string uuid: the Message-ID and the boundary are made from it, so that a repeat has the same
---@field from string
---@field from_name string|nil
---@field to string
---@field subject string
---@field text string empty: made from the HTML
---@field html string
---@field unsubscribe string|nil URL that takes the addressee off the list by one POST (RFC 8058)

--- The whole message, lines ended by CRLF. Raises text when an address cannot stand in a header.
---@param m kasma.MailParts
---@return string
function M.render(m)
    if not smtp.address_ok(m.to) then error("not a mail address: " .. M.header_text(m.to), 0) end
    if not smtp.address_ok(m.from) then error("MAIL_FROM_EMAIL is no mail address", 0) end
    local boundary = "kasma-" .. m.id
    local lines = {
        "From: " .. mailbox(m.from_name, m.from),
        "To: " .. m.to,
        "Subject: " .. M.header_text(m.subject),
        "Date: " .. date(time.now()),
        "Message-ID: <" .. m.id .. "@" .. m.from:match("@(.+)$") .. ">",
        "Auto-Submitted: auto-generated",
    }
    if m.unsubscribe then
        lines[#lines + 1] = "List-Unsubscribe: <" .. m.unsubscribe:gsub("[%s<>%c]", "") .. ">"
        lines[#lines + 1] = "List-Unsubscribe-Post: List-Unsubscribe=One-Click"
    end
    lines[#lines + 1] = "MIME-Version: 1.0"
    lines[#lines + 1] = 'Content-Type: multipart/alternative;\r\n boundary="' .. boundary .. '"'
    lines[#lines + 1] = ""
    lines[#lines + 1] = part(boundary, "plain", m.text ~= "" and m.text or M.text_of(m.html))
    lines[#lines + 1] = part(boundary, "html", m.html)
    lines[#lines + 1] = "--" .. boundary .. "--"
    lines[#lines + 1] = ""
    return table.concat(lines, "\r\n")
end

return M
