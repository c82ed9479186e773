-- How a one-time sign-in code is told at a terminal: the code, how long it lives, and what to do with it.

---@param email string
---@param code string
---@param seconds integer
return function(email, code, seconds)
    local config = require("core.config")
    local url = config.get("PUBLIC_URL") or ("http://%s:%d"):format(config.get("HOST"), config.get("PORT"))
    io.stdout:write(("one-time code  %s  (good for %d minutes)\n\n"):format(code, seconds / 60))
    io.stdout:write(([[
Sign in with it and choose a password:
  curl -s -H 'Content-Type: application/json' %s/auth/verify-otp \
    -d '{"identifier":"%s","code":"%s","type":"FORGOT_PASSWORD"}'          # answers a reset_token
  curl -s -H 'Content-Type: application/json' %s/auth/reset-password \
    -d '{"reset_token":"..","new_password":".."}'
]]):format(url, email, code, url))
end
