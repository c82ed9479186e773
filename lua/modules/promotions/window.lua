-- When a promotion runs, and what is told of it. A quote looks at the window by itself; a row of due_work, written by whatever changes a
-- promotion, is there so that its beginning and its end are told when they come. `told_at` is up to when that was done: whoever has locked
-- the row tells first what came since, so that each is told once and in order, however late the sweeper is. A promotion that follows a
-- rule tells nothing: the rule does.
local time = require("core.time")
local due = require("kasma.due")
local null = require("kasma.null")
local outbox = require("kasma.outbox")

local M = {}

M.KIND = "marketing.promotion_window"

local function ms(date) return date and date ~= null and time.parse(date) or nil end

local function iso(date)
    local at = ms(date)
    return at and time.iso(at) or null
end

---@param row table promotion
---@param now_ms integer
---@return boolean
function M.is_running(row, now_ms)
    local starts, ends = ms(row.start_date), ms(row.end_date)
    return row.is_active and row.type ~= "script" and (not starts or starts <= now_ms) and (not ends or ends > now_ms)
end

local function event(row, name)
    return outbox.event({ tenant = row.tenant_key, app = row.app_key }, name, row.id, { type = row.type, startDate = iso(row.start_date),
        endDate = iso(row.end_date) })
end

--- Adds the beginnings and ends that came since they were last told.
---@param list table[] statements
---@param row table promotion with told_at
---@param now_ms integer
function M.append_passed(list, row, now_ms)
    local told = ms(row.told_at)
    if not told or not row.is_active or row.type == "script" then return end
    local function came(at) return at and at > told and at <= now_ms end
    if came(ms(row.start_date)) then list[#list + 1] = event(row, "promotion.started") end
    if came(ms(row.end_date)) then list[#list + 1] = event(row, "promotion.ended") end
end

--- Adds what an act made of it.
---@param list table[] statements
---@param was boolean whether it ran before the act
---@param row table promotion as it is after it
---@param now_ms integer
function M.append_act(list, was, row, now_ms)
    local is = M.is_running(row, now_ms)
    if is ~= was then list[#list + 1] = event(row, is and "promotion.started" or "promotion.ended") end
end

--- The row of what comes next.
---@param row table promotion
---@param now_ms integer
---@return table statement
function M.wait(row, now_ms)
    local at
    if row.is_active and row.type ~= "script" then
        local starts, ends = ms(row.start_date), ms(row.end_date)
        at = starts and starts > now_ms and starts or ends and ends > now_ms and ends
    end
    if not at then return due.drop(row.tenant_key, M.KIND, row.id) end
    return due.put({ tenant = row.tenant_key, app = row.app_key }, M.KIND, row.id, at)
end

return M
