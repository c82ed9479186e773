-- Old notices go at night; the mail that a notice becomes for those who wish it.
local templates = require("kasma.mail_templates")
local schedules = require("kasma.schedules")
local notices = require("modules.notices.service")

schedules.declare{ name = "notice-retention", queue = "social-queue", pattern = "30 3 * * *",
    run = function() return { removed = notices.prune() } end }

local HTML = '<!doctype html><html><body style="font-family:sans-serif;color:#222;max-width:36em;margin:2em auto">'
    .. "<p><b>{{title}}</b></p><p>{{body}}</p></body></html>"
for _, locale in ipairs{ "en", "vi" } do
    templates.add("notice", locale, { subject = "{{title}}", html = HTML, text = "{{title}}\n\n{{body}}\n" })
end
