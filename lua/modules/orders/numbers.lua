-- Order numbers: `ORD-<yyyymmdd>-<number>`. Numbers come in blocks of 100 a tenant and worker, in a commit of its own, so that no row is
-- touched by every order: unique, gaps allowed, not in time order over workers. The date is only the day.
local time = require("core.time")
local store = require("modules.orders.store")

local M = {}

local BLOCK = 100
local blocks = {} -- tenant -> { next, last }; the worker's own, lost with it

---@param scope Scope
---@return string number
function M.next(scope)
    local block = blocks[scope.tenant]
    while not block or block.next > block.last do
        local first = store.take_numbers(scope.tenant, scope.app, BLOCK)
        -- Another coroutine may have fetched one meanwhile; this block is then used after that one is.
        block = blocks[scope.tenant]
        if not block or block.next > block.last then
            block = { next = first, last = first + BLOCK - 1 }
            blocks[scope.tenant] = block
        end
    end
    local number = block.next
    block.next = number + 1
    return ("ORD-%s-%d"):format(time.iso(time.now()):sub(1, 10):gsub("-", ""), number)
end

return M
