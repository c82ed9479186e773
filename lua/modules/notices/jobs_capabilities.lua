-- What rules that may wait can tell people in the app.
local uuid = require("core.uuid")
local capabilities = require("kasma.capabilities")
local notices = require("modules.notices.service")

capabilities.declare("notify.user", { needs = "notify", limit = 5, writes = "keyed", summary = "Tells a member of the shop in the app",
    signature = "(user_id: string, title: string, body: string): boolean|nil, string|nil", fn = function(ctx, user_id, title, body)
    if type(title) ~= "string" or title:find("^%s*$") or #title > 255 then
        capabilities.refuse("notify.user: the title is a text of 1 to 255 bytes")
    end
    if type(body) ~= "string" or #body > 10000 then capabilities.refuse("notify.user: the body is a text of 10,000 bytes at most") end
    if type(user_id) ~= "string" or not uuid.valid(user_id) then return nil, "not_found" end
    return notices.tell(ctx.scope, capabilities.once_id(capabilities.call_key(ctx)), { user_id = user_id, title = title,
        body = body, metadata = { rule = ctx.rule.id } })
end })
