-- Standard Webhooks: `webhook-signature` holds `v1,` and the base64 of HMAC-SHA256 over "<id>.<timestamp>.<body>" for each secret
-- that holds at the moment. A secret is `whsec_` and the base64 of its bytes.
local crypto = require("core.crypto")

local M = {}

---@return string secret whsec_...
function M.new_secret() return "whsec_" .. crypto.base64(crypto.random(32)) end

---@param secret string whsec_...
---@param id string webhook-id
---@param timestamp integer seconds
---@param body string
---@return string v1,...
function M.signature(secret, id, timestamp, body)
    local key = crypto.unbase64((secret:gsub("^whsec_", "")))
    return "v1," .. crypto.base64(crypto.hmac_sha256_raw(key, ("%s.%d.%s"):format(id, timestamp, body)))
end

--- The three headers of a delivery.
---@param secrets string[] the newest first
---@param id string
---@param timestamp integer seconds
---@param body string
---@return table<string, string>
function M.headers(secrets, id, timestamp, body)
    local signatures = {}
    for i, secret in ipairs(secrets) do signatures[i] = M.signature(secret, id, timestamp, body) end
    return { ["webhook-id"] = id, ["webhook-timestamp"] = ("%d"):format(timestamp), ["webhook-signature"] = table.concat(signatures, " ") }
end

return M
