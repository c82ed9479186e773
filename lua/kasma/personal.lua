-- What is held about a person, area by area, for the account's own export and for its erasure thirty days after deletion. A module
-- that keeps personal data declares how both are done:
--
--     personal.declare("orders", {
--         export = function(tenant, user, emit) for ... do emit("postgresql", "order", row) end end,
--         erase = function(tenant, user, now) return { statement, ... } end,        -- run in one transaction of the tenant
--     })
--
-- What must still wait (an order that is to be sent) answers `nil, true`: the account is asked for again the next night.
--
-- A declaration with `account = true` is asked once, with the tenant nil, for what belongs to the account over all tenants.
local db = require("kasma.db")

local M = {}

---@class kasma.Personal
---@field account boolean|nil
---@field export fun(tenant: string|nil, user: table, emit: fun(store: string, kind: string, data: table))|nil
---@field erase (fun(tenant: string|nil, user: table, now: string): table[]|nil, boolean|nil)|nil statements, and true to wait; documents
---  are erased by the function itself

local areas = {}

---@param area string
---@param how kasma.Personal
function M.declare(area, how)
    how.area = area
    areas[#areas + 1] = how
end

local function for_each(user_tenants, fn)
    for _, how in ipairs(areas) do
        if how.account then
            fn(how, nil)
        else
            for _, tenant in ipairs(user_tenants) do fn(how, tenant) end
        end
    end
end

--- Hands over everything, one thing at a time.
---@param user {id: string, email: string}
---@param tenants string[] tenants that the user ever belonged to or signed in on
---@param write fun(line: {area: string, tenant_key: string|nil, store: string, kind: string, data: table})
function M.export(user, tenants, write)
    for_each(tenants, function(how, tenant)
        if not how.export then return end
        how.export(tenant, user, function(store, kind, data)
            write{ area = how.area, tenant_key = tenant, store = store, kind = kind, data = data }
        end)
    end)
end

--- Erases everything but what the law and the books keep (orders, payments, journal), which name the account by its id alone. Running it
--- again does no harm.
---@param user {id: string, email: string}
---@param tenants string[]
---@param now string
---@return boolean whole false: something has to wait, so that the account itself stays as it is
function M.erase(user, tenants, now)
    local whole = true
    for_each(tenants, function(how, tenant)
        if not how.erase then return end
        local statements, later = how.erase(tenant, user, now)
        if later then whole = false end
        if statements and #statements > 0 then db.pipeline(tenant, statements) end
    end)
    return whole
end

return M
