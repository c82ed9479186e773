-- Hands a message over: to the SMTP server of MAIL_HOST, or, outside production and without one, to a file in MAIL_DIR.
--
-- What a server answers means one of three things. Taken over: the mail is sent. Refused for good (5xx to the sender, the
-- addressee or the message): trying again is of no use, and when it says that the address does not exist it is a bounce. All
-- else (4xx, a server that is away, a password that it does not take) passes or is mended by somebody: try again.
local config = require("core.config")
local smtp = require("core.smtp")
local time = require("core.time")
local log = require("kasma.log")
local message = require("kasma.mail_message")

local M = {}

---@class kasma.MailRefused what deliver raises
---@field message string
---@field final boolean trying again is of no use
---@field bounce boolean the address does not exist
local Refused = { __tostring = function(self) return self.message end }
Refused.__index = Refused

---@param value any a caught error
---@return boolean
function M.is_refusal(value) return getmetatable(value) == Refused end

local function refuse(text, final, bounce)
    error(setmetatable({ message = text, final = final or false, bounce = bounce or false }, Refused), 0)
end

--- Where messages lie while no SMTP server is configured.
---@return string
function M.folder() return config.get("MAIL_DIR") or "var/mail" end

---@return string|nil
function M.host()
    local host = config.get("MAIL_HOST")
    return host ~= "" and host or nil
end

--- True when mails can go out: always outside production, in production with MAIL_HOST only.
---@return boolean
function M.is_configured() return M.host() ~= nil or config.env() ~= "production" end

-- The file is written whole under another name first: whoever watches the folder never reads half a message.
local function write_file(id, text)
    local path = ("%s/%s-%s.eml"):format(M.folder(), time.iso(time.real()):gsub("[:.]", ""), id)
    local file, why = io.open(path .. ".part", "w")
    if not file then error("mail folder: " .. tostring(why), 0) end
    local written, reason = file:write(text)
    local closed = file:close()
    if not written or not closed then
        os.remove(path .. ".part")
        error("mail folder: " .. tostring(reason or "the file could not be written"), 0)
    end
    local moved, failed = os.rename(path .. ".part", path)
    if not moved then error("mail folder: " .. tostring(failed), 0) end
    log.info("mail written", { file = path })
    return "file"
end

-- 5.1.x and 5.2.1 say that there is no such mailbox; a bare 550, 551 or 553 is meant so too. A refusal by policy (5.7.x) or a
-- full mailbox says nothing about the address.
local UNKNOWN = { ["5.1.0"] = true, ["5.1.1"] = true, ["5.1.2"] = true, ["5.1.3"] = true, ["5.1.6"] = true, ["5.1.10"] = true,
    ["5.2.1"] = true, ["5.4.4"] = true }
local BARE = { [550] = true, [551] = true, [553] = true }

---@param answer {code: integer, command: string, reply: string}
---@return boolean
function M.is_bounce(answer)
    if answer.command ~= "RCPT" or answer.code < 500 then return false end
    local status = answer.reply:match("^%d+[ -](%d%.%d+%.%d+)")
    if status then return UNKNOWN[status] == true end
    return BARE[answer.code] == true
end

local ABOUT_THIS_MAIL = { MAIL = true, RCPT = true, DATA = true, ["."] = true }

local function tls_of()
    if config.get("MAIL_SECURE") then return "implicit" end
    local way = config.get("MAIL_STARTTLS") or "auto"
    if way ~= "auto" then return way end
    return (config.get("MAIL_USER") or "") ~= "" and "required" or "try"
end

local function send(from, to, text)
    local public = config.get("PUBLIC_URL")
    local answer, err = smtp.send{ host = M.host(), port = tonumber(config.get("MAIL_PORT")) or 587, tls = tls_of(),
        ca_file = config.get("MAIL_CA_FILE") or nil, helo = public and public:match("^%w+://([%w.-]+)") or nil,
        user = config.get("MAIL_USER") or nil, pass = config.get("MAIL_PASS") or nil,
        timeout_ms = tonumber(config.get("MAIL_TIMEOUT_MS")) or nil, from = from, to = to, message = text }
    if not answer then refuse(err.message, err.kind == "invalid" or err.kind == "limit") end
    if answer.accepted then return answer.reply end
    local what = answer.command == "." and "the message" or answer.command == "" and "the connection" or answer.command
    local final = answer.code >= 500 and answer.code <= 599 and ABOUT_THIS_MAIL[answer.command] == true
    refuse(("the mail server refused %s: %s"):format(what, answer.reply), final,
        M.is_bounce(answer))
end

--- Hands a message over.
---@param m {id: string, to: string, subject: string, text: string, html: string, unsubscribe: string|nil}
---@return string what took it: the server's last reply, or "file". Raises a kasma.MailRefused, or text when the folder fails
function M.deliver(m)
    local from = config.get("MAIL_FROM_EMAIL") or "no-reply@kasma.invalid"
    local ok, text = pcall(message.render, { id = m.id, from = from, from_name = config.get("MAIL_FROM_NAME") or "Kasma", to = m.to,
        subject = m.subject, text = m.text, html = m.html, unsubscribe = m.unsubscribe })
    if not ok then refuse(tostring(text), true) end
    if M.host() then return send(from, m.to, text) end
    if not M.is_configured() then refuse("MAIL_HOST is not set") end
    return write_file(m.id, text)
end

return M
