-- The shipped mails, in English and Vietnamese. A module adds its own with add(). `{{name}}` stands for a variable, escaped in
-- HTML; one that is missing is empty. `{{#lines}} ... {{/lines}}` repeats what stands inside for each member of a list.
local M = {}

local forms = {}

---@param template string
---@param locale string
---@param form {subject: string, html: string, text: string}
function M.add(template, locale, form) forms[template .. "|" .. locale] = form end

---@param template string
---@param locale string
---@return {subject: string, html: string, text: string}|nil
function M.find(template, locale) return forms[template .. "|" .. locale] or forms[template .. "|" .. locale:match("^%a+")] end

local ESCAPES = { ["&"] = "&amp;", ["<"] = "&lt;", [">"] = "&gt;", ['"'] = "&quot;", ["'"] = "&#39;" }

---@param text string
---@param vars table
---@param escape boolean
---@return string
function M.fill(text, vars, escape)
    text = text:gsub("{{#([%w_]+)}}(.-){{/%1}}", function(name, inner)
        local parts = {}
        for i, item in ipairs(type(vars[name]) == "table" and vars[name] or {}) do parts[i] = M.fill(inner, item, escape) end
        return table.concat(parts)
    end)
    return (text:gsub("{{%s*([%w_.]+)%s*}}", function(name)
        local value = vars
        for part in name:gmatch("[^.]+") do value = type(value) == "table" and value[part] or nil end
        if value == nil or type(value) == "table" or type(value) == "userdata" then return "" end
        local shown = tostring(value)
        return escape and (shown:gsub("[&<>\"']", ESCAPES)) or shown
    end))
end

local function page(body)
    return '<!doctype html><html><body style="font-family:sans-serif;color:#222;max-width:36em;margin:2em auto">' .. body
        .. "</body></html>"
end

M.add("otp", "en", {
    subject = "[Kasma] Your verification code for {{type}}",
    html = page("<p>Your verification code for <b>{{type}}</b>:</p><p style=\"font-size:2em;letter-spacing:.2em\"><b>{{code}}</b></p>"
        .. "<p>It holds for five minutes. If you did not ask for it, do nothing.</p>"),
    text = "Your verification code for {{type}}: {{code}}\n\nIt holds for five minutes. If you did not ask for it, do nothing.\n",
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

return M
