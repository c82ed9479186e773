-- What the specs of workflow rules share: events of a shop, and the runs that they start.
local json = require("core.json")
local db = require("kasma.db")
local outbox = require("kasma.outbox")
local shop_of = require("api.shop")
local support = require("api.support")

local M = {}

---@param who table client
---@param path string below /rules/
---@param body table|nil
function M.post(who, path, body) return who:post("/rules/" .. path, body or {}) end

--- An event of the shop, as a transaction of its own would write it. Answers the id of its row.
---@param shop table
---@param name string
---@param id string the entity's
---@param data table|nil
---@param hops integer|nil
---@return string
function M.emit(shop, name, id, data, hops)
    local statement = outbox.event({ tenant = shop.key, app = shop.app, hops = hops }, name, id, data or {})
    db.pipeline(shop.key, { statement })
    return statement[4]
end

---@param shop table
---@param key string of the rule
---@param query string|nil
---@return table[] the newest first
function M.runs(shop, key, query) return shop_of.must(shop.owner:get("/rules/" .. key .. "/workflows" .. (query or "")), 200) end

--- The run about an entity, once it is in a state.
---@return table
function M.run_in(shop, key, id, state)
    local seen
    local ok, run = pcall(support.eventually, function()
        seen = M.runs(shop, key, "?entityId=" .. id)[1]
        return seen and seen.state == state and seen
    end, 30)
    if not ok then error(("no run that is %s: %s"):format(state, seen and json.encode(seen) or "none"), 2) end
    return run
end

return M
