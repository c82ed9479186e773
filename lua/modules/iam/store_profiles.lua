-- What users say of themselves: documents of the platform in MongoDB.
local json = require("core.json")
local time = require("core.time")
local docs = require("kasma.docs")

local M = {}

local PROFILES = "user_profile"

---@param user_id string
---@return table|nil
function M.of(user_id) return docs.platform.find_one(PROFILES, { user_id = user_id }) end

---@param ids string[]
---@return table<string, table> by user id
function M.of_all(ids)
    local found = {}
    if #ids == 0 then return found end
    for _, doc in ipairs(docs.platform.find(PROFILES, { user_id = { ["$in"] = json.array(ids) } },
        { limit = #ids })) do found[doc.user_id] = doc end
    return found
end

---@param user_id string
---@param fields table
---@param now string
function M.put(user_id, fields, now)
    local set = { updated_at = now }
    -- When each member was written is kept beside it: a change that comes late by the outbox must not undo a later one.
    for key, value in pairs(fields) do set[key], set["written." .. key] = value, now end
    docs.platform.update(PROFILES, { user_id = user_id }, { ["$set"] = set, ["$setOnInsert"] = { created_at = now } }, { upsert = true })
end

--- The same for a change that may come late or twice: a member that was written at `now` or later stays.
---@param user_id string
---@param fields table
---@param now string
function M.put_once(user_id, fields, now)
    local there = M.of(user_id)
    if not there then return M.put(user_id, fields, now) end
    local fresh, written = {}, there.written or {}
    for key, value in pairs(fields) do
        if not written[key] or time.parse(written[key]) < time.parse(now) then fresh[key] = value end
    end
    if next(fresh) then M.put(user_id, fresh, now) end
end

---@param user_id string
function M.delete(user_id) docs.platform.delete(PROFILES, { user_id = user_id }) end

return M
