-- The shipped mails, in English and Vietnamese. A module adds its own with add(). `{{name}}` stands for a variable, escaped in
-- HTML; one that is missing is empty. `{{#lines}} ... {{/lines}}` repeats what stands inside for each member of a list, or shows
-- it once when the variable holds something; `{{^lines}} ... {{/lines}}` shows it when there is none.
local M = {}

local forms = {}

---@param template string
---@param locale string
---@param form {subject: string, html: string, text: string, rules: boolean|nil, code: boolean|nil} rules: a rule of the shop may send it;
---code: it holds a one-time code of an account (mail_code.lua)
function M.add(template, locale, form) forms[template .. "|" .. locale] = form end

--- Names of the shipped templates, sorted, and the locales of each.
---@return {template: string, locales: string[]}[]
function M.list()
    local by_name, names = {}, {}
    for key in pairs(forms) do
        local name, locale = key:match("^(.*)|(.*)$")
        if not by_name[name] then
            by_name[name] = { template = name, locales = {} }
            names[#names + 1] = by_name[name]
        end
        table.insert(by_name[name].locales, locale)
    end
    for _, entry in ipairs(names) do table.sort(entry.locales) end
    table.sort(names, function(a, b) return a.template < b.template end)
    return names
end

---@param template string
---@param locale string
---@return {subject: string, html: string, text: string}|nil
function M.find(template, locale) return forms[template .. "|" .. locale] or forms[template .. "|" .. locale:match("^%a+")] end

local ESCAPES = { ["&"] = "&amp;", ["<"] = "&lt;", [">"] = "&gt;", ['"'] = "&quot;", ["'"] = "&#39;" }

--- Text as it stands in HTML.
---@param text string
---@return string
function M.escape(text) return (text:gsub("[&<>\"']", ESCAPES)) end

--- Whether the mail holds a one-time code of an account.
---@param template string
---@return boolean
function M.has_code(template) return forms[template .. "|en"] ~= nil and forms[template .. "|en"].code == true end

local function shown(value, escape)
    if value == nil or type(value) == "table" or type(value) == "userdata" then return "" end
    local text = tostring(value)
    return escape and M.escape(text) or text
end

local function look_up(vars, path)
    local value = vars
    for part in path:gmatch("[^.]+") do value = type(value) == "table" and value[part] or nil end
    return value
end

-- A form is up to 256 KiB of somebody's own writing: what reads it takes time in proportion to its length, whatever stands in it.
local NAME_MAX, DEPTH_MAX = 200, 10
local PARTS_MAX, BYTES_MAX = 200000, 8 * 1048576 -- of one mail that is filled in: long lists in long forms

-- The next `{{name}}`, `{{#name}}` or `{{^name}}` from `at` to `last`: where it begins and ends, its mark, its name.
local function next_mark(text, at, last)
    while true do
        local from = text:find("{{", at, true)
        if not from or from >= last then return nil end
        local inside = text:sub(from + 2, math.min(last, from + NAME_MAX))
        local ends = inside:find("}}", 1, true)
        local mark, name = (ends and inside:sub(1, ends - 1) or ""):match("^%s*([#^]?)%s*([%w_.]+)%s*$")
        if name then return from, from + ends + 2, mark, name end
        at = from + 1
    end
end

-- Parts of the form from `at` to `last`, in order: texts, {name =} and {name =, mark =, parts =}.
local function parse(text, at, last, depth)
    if depth > DEPTH_MAX then error("the sections of a mail's form lie in one another, more than ten deep", 0) end
    local parts = {}
    while true do
        local from, to, mark, name = next_mark(text, at, last)
        if not from then break end
        parts[#parts + 1] = text:sub(at, from - 1)
        at = to + 1
        if mark == "" then
            parts[#parts + 1] = { name = name }
        else
            local close = "{{/" .. name .. "}}"
            local ends = text:find(close, at, true)
            if ends and ends + #close - 1 > last then ends = nil end
            parts[#parts + 1] = { name = name, mark = mark, parts = parse(text, at, (ends or last + 1) - 1, depth + 1) }
            at = ends and ends + #close or last + 1
        end
    end
    parts[#parts + 1] = text:sub(at, last)
    return parts
end

local function add(out, text)
    out.n, out.bytes = out.n + 1, out.bytes + #text
    if out.n > PARTS_MAX or out.bytes > BYTES_MAX then error("the mail is larger than its form may make it", 0) end
    out[out.n] = text
end

local function fill(out, parts, vars, escape)
    for _, part in ipairs(parts) do
        local value = type(part) == "table" and look_up(vars, part.name)
        if type(part) == "string" then
            add(out, part)
        elseif not part.mark then
            add(out, shown(value, escape))
        else
            local list = type(value) == "table"
            local there = list and next(value) ~= nil or not list and value ~= nil and value ~= false and value ~= ""
                and type(value) ~= "userdata"
            if part.mark == "^" then
                if not there then fill(out, part.parts, vars, escape) end
            elseif list then
                for _, item in ipairs(value) do fill(out, part.parts, type(item) == "table" and item or {}, escape) end
            elseif there then
                fill(out, part.parts, vars, escape)
            end
        end
    end
end

--- Fills a form in. It is read once from left to right: what a variable holds is never read as a form itself. Raises text when its
--- sections lie too deep in one another, or what comes of it is larger than 8 MiB.
---@param text string
---@param vars table
---@param escape boolean true: the form is HTML
---@return string
function M.fill(text, vars, escape)
    local out = { n = 0, bytes = 0 }
    fill(out, parse(text, 1, #text, 1), vars, escape)
    return table.concat(out)
end

--- What is wrong with a form; nil: nothing.
---@param text string
---@return string|nil
function M.problem(text)
    local ok, why = pcall(parse, text, 1, #text, 1)
    return not ok and why or nil
end

local function page(body)
    return '<!doctype html><html><body style="font-family:sans-serif;color:#222;max-width:36em;margin:2em auto">' .. body
        .. "</body></html>"
end

M.add("otp", "en", {
    code = true,
    subject = "[Kasma] Your verification code for {{type}}",
    html = page("<p>Your verification code for <b>{{type}}</b>:</p><p style=\"font-size:2em;letter-spacing:.2em\"><b>{{code}}</b></p>"
        .. "<p>It holds for five minutes. If you did not ask for it, do nothing.</p>"),
    text = "Your verification code for {{type}}: {{code}}\n\nIt holds for five minutes. If you did not ask for it, do nothing.\n",
})
M.add("otp", "vi", {
    code = true,
    subject = "[Kasma] Mã xác minh của bạn cho {{type}}",
    html = page("<p>Mã xác minh của bạn cho <b>{{type}}</b>:</p><p style=\"font-size:2em;letter-spacing:.2em\"><b>{{code}}</b></p>"
        .. "<p>Mã có hiệu lực trong năm phút. Nếu bạn không yêu cầu mã này, hãy bỏ qua thư.</p>"),
    text = "Mã xác minh của bạn cho {{type}}: {{code}}\n\nMã có hiệu lực trong năm phút. Nếu bạn không yêu cầu mã này, hãy bỏ qua thư.\n",
})
M.add("account-exists", "en", {
    subject = "[Kasma] You already have an account",
    html = page("<p>Somebody asked for an account with your address. You have one already: sign in, or ask for a new password.</p>"),
    text = "Somebody asked for an account with your address. You have one already: sign in, or ask for a new password.\n",
})
M.add("account-exists", "vi", {
    subject = "[Kasma] Bạn đã có tài khoản",
    html = page("<p>Có người vừa yêu cầu tạo tài khoản bằng địa chỉ của bạn. "
        .. "Bạn đã có tài khoản: hãy đăng nhập hoặc đặt lại mật khẩu.</p>"),
    text = "Có người vừa yêu cầu tạo tài khoản bằng địa chỉ của bạn. Bạn đã có tài khoản: hãy đăng nhập hoặc đặt lại mật khẩu.\n",
})
M.add("account-suspended", "en", {
    subject = "[Kasma] Your account is suspended for a day",
    html = page("<p>There were many failed attempts to sign in to your account. It is suspended for 24 hours.</p>"),
    text = "There were many failed attempts to sign in to your account. It is suspended for 24 hours.\n",
})
M.add("account-suspended", "vi", {
    subject = "[Kasma] Tài khoản của bạn bị tạm khóa một ngày",
    html = page("<p>Có nhiều lần đăng nhập thất bại vào tài khoản của bạn. Tài khoản bị tạm khóa 24 giờ.</p>"),
    text = "Có nhiều lần đăng nhập thất bại vào tài khoản của bạn. Tài khoản bị tạm khóa 24 giờ.\n",
})
M.add("invitation", "en", {
    subject = "[Kasma] You are invited to {{tenant}}",
    html = page("<p>You are invited to <b>{{tenant}}</b>. Sign up or sign in with this address to accept.</p>"),
    text = "You are invited to {{tenant}}. Sign up or sign in with this address to accept.\n",
})
M.add("invitation", "vi", {
    subject = "[Kasma] Bạn được mời vào {{tenant}}",
    html = page("<p>Bạn được mời vào <b>{{tenant}}</b>. Hãy đăng ký hoặc đăng nhập bằng địa chỉ này để chấp nhận.</p>"),
    text = "Bạn được mời vào {{tenant}}. Hãy đăng ký hoặc đăng nhập bằng địa chỉ này để chấp nhận.\n",
})

M.add("key-expiry", "en", {
    subject = "[Kasma] The access key {{name}} is about to end",
    html = page("<p>The access key <b>{{name}}</b> ({{key}}) of {{tenant}} ends at {{ends}}. Rotate it before then.</p>"),
    text = "The access key {{name}} ({{key}}) of {{tenant}} ends at {{ends}}. Rotate it before then.\n",
})
M.add("key-expiry", "vi", {
    subject = "[Kasma] Khóa truy cập {{name}} sắp hết hạn",
    html = page("<p>Khóa truy cập <b>{{name}}</b> ({{key}}) của {{tenant}} hết hạn lúc {{ends}}. Hãy thay khóa trước đó.</p>"),
    text = "Khóa truy cập {{name}} ({{key}}) của {{tenant}} hết hạn lúc {{ends}}. Hãy thay khóa trước đó.\n",
})

M.add("webhook-disabled", "en", {
    subject = "[Kasma] The webhook {{name}} is switched off",
    html = page("<p>The webhook <b>{{name}}</b> to {{url}} is switched off: {{reason}}.</p><p>No events are sent there until you "
        .. "switch it on again. What it missed can be sent once more from the list of deliveries.</p>"),
    text = "The webhook {{name}} to {{url}} is switched off: {{reason}}.\n\nNo events are sent there until you switch it on again. "
        .. "What it missed can be sent once more from the list of deliveries.\n",
})
M.add("webhook-disabled", "vi", {
    subject = "[Kasma] Webhook {{name}} đã bị tắt",
    html = page("<p>Webhook <b>{{name}}</b> đến {{url}} đã bị tắt: {{reason}}.</p><p>Không có sự kiện nào được gửi đến đó cho đến khi bạn "
        .. "bật lại. Có thể gửi lại những gì đã lỡ từ danh sách lượt gửi.</p>"),
    text = "Webhook {{name}} đến {{url}} đã bị tắt: {{reason}}.\n\nKhông có sự kiện nào được gửi đến đó cho đến khi bạn bật lại. "
        .. "Có thể gửi lại những gì đã lỡ từ danh sách lượt gửi.\n",
})
M.add("order-confirmation", "en", {
    subject = "[Kasma] Your order {{number}}",
    html = page("<p>Thank you. Your order <b>{{number}}</b> has arrived.</p><table>{{#lines}}<tr><td>{{quantity}} x {{name}}</td>"
        .. "<td style=\"text-align:right\">{{total}}</td></tr>{{/lines}}</table><p>Total: <b>{{total}} {{currency}}</b></p>"),
    text = "Thank you. Your order {{number}} has arrived.\n\n{{#lines}}{{quantity}} x {{name}}: {{total}}\n{{/lines}}\n"
        .. "Total: {{total}} {{currency}}\n",
})
M.add("order-confirmation", "vi", {
    subject = "[Kasma] Đơn hàng {{number}} của bạn",
    html = page("<p>Cảm ơn bạn. Chúng tôi đã nhận đơn hàng <b>{{number}}</b>.</p><table>{{#lines}}<tr><td>{{quantity}} x {{name}}</td>"
        .. "<td style=\"text-align:right\">{{total}}</td></tr>{{/lines}}</table><p>Tổng cộng: <b>{{total}} {{currency}}</b></p>"),
    text = "Cảm ơn bạn. Chúng tôi đã nhận đơn hàng {{number}}.\n\n{{#lines}}{{quantity}} x {{name}}: {{total}}\n{{/lines}}\n"
        .. "Tổng cộng: {{total}} {{currency}}\n",
})

-- What a shop's own rules may send.
M.add("thank-you", "en", {
    rules = true,
    subject = "Thank you for your order {{number}}",
    html = page("<p>Thank you for your order <b>{{number}}</b> at {{shop}}.</p>{{#note}}<p>{{note}}</p>{{/note}}"),
    text = "Thank you for your order {{number}} at {{shop}}.\n{{#note}}\n{{note}}\n{{/note}}",
})
M.add("thank-you", "vi", {
    rules = true,
    subject = "Cảm ơn bạn đã đặt hàng {{number}}",
    html = page("<p>Cảm ơn bạn đã đặt hàng <b>{{number}}</b> tại {{shop}}.</p>{{#note}}<p>{{note}}</p>{{/note}}"),
    text = "Cảm ơn bạn đã đặt hàng {{number}} tại {{shop}}.\n{{#note}}\n{{note}}\n{{/note}}",
})
M.add("shop-message", "en", {
    rules = true, subject = "{{title}}", html = page("<p>{{body}}</p><p>{{shop}}</p>"), text = "{{body}}\n\n{{shop}}\n",
})
M.add("shop-message", "vi", {
    rules = true, subject = "{{title}}", html = page("<p>{{body}}</p><p>{{shop}}</p>"), text = "{{body}}\n\n{{shop}}\n",
})

--- Whether a rule of a shop may send it.
---@param template string
---@return boolean
function M.for_rules(template) return forms[template .. "|en"] ~= nil and forms[template .. "|en"].rules == true end

--- The names of those, sorted.
---@return string[]
function M.names_for_rules()
    local names = {}
    for _, entry in ipairs(M.list()) do
        if M.for_rules(entry.template) then names[#names + 1] = entry.template end
    end
    return names
end

return M
