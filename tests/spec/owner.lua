-- Clears away what a spec has made, as the administrator of the test's database: the server's role may not remove the history of
-- money, and no test should be a reason that it may.
local pg = require("core.pg")

local M = {}

--- Removes a tenant's rows.
---@param tenant string
---@param tables string[] children before parents
function M.clear(tenant, tables)
    assert(tenant:find("^[%w_-]+$"))
    local session = assert(pg.pool("owner"):session())
    for _, name in ipairs(tables) do
        local rows, err = session:query("delete from " .. name .. " where tenant_key = $1", tenant)
        assert(rows, err and err.message)
    end
    session:close()
end

--- Removes accounts by a range of ids.
---@param from string
---@param to string
function M.clear_users(from, to)
    local session = assert(pg.pool("owner"):session())
    local rows, err = session:query("delete from users where id between $1::uuid and $2::uuid", from, to)
    session:close()
    assert(rows, err and err.message)
end

return M
