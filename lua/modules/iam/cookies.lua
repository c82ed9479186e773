-- The two cookies that carry a browser's session.
local sessions = require("modules.iam.sessions")

local M = {}

---@param ctx kasma.Context
---@param tokens kasma.Tokens
function M.set(ctx, tokens)
    ctx.set_cookie("access_token", tokens.access_token, sessions.ACCESS_COOKIE_S)
    ctx.set_cookie("refresh_token", tokens.refresh_token, sessions.refresh_cookie_s())
end

---@param ctx kasma.Context
function M.clear(ctx)
    ctx.set_cookie("access_token", "", 0)
    ctx.set_cookie("refresh_token", "", 0)
end

return M
