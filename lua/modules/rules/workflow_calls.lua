-- What a step of a workflow has written by its calls, so that it writes nothing twice however often it is tried. A call's place is the
-- how-manieth of the step that writes it is. Two who run the same step at once (one whose lease was over goes on for a moment) meet at
-- the row: the second waits for the first one's transaction, and finds what it did.
local time = require("core.time")
local capabilities = require("kasma.capabilities")
local db = require("kasma.db")
local store = require("modules.rules.workflow_store")

local M = {}

---@param scope Scope
---@param act WorkflowAct
---@return CapabilityLedger
function M.of(scope, act)
    local place = { tenant = scope.tenant, app = scope.app, run_id = act.run_id, position = act.step, kind = act.kind }

    local function same(write, row) return row.name == write.name and row.args_sha256 == write.args end

    return {
        begin = function(write)
            local row = db.pipeline(place.tenant, { store.note_call(place, write, time.iso(time.now())), store.call(place, write.n) })[2][1]
            -- None: the run has been removed meanwhile, or another attempt has just found that the call came to nothing.
            if row and not same(write, row) then return row.name end
        end,
        forget = function(write) db.pipeline(place.tenant, { store.forget_call(place, write.n) }) end,
        once = function(write, work)
            local result = db.transaction(place.tenant, function(tx)
                if #tx:pipeline{ store.note_call(place, write, time.iso(time.now())) }[1] == 0 then
                    local row = tx:pipeline{ store.call(place, write.n) }[1][1]
                    return same(write, row) and { row.answer.value } or { before = row.name }
                end
                local answer, why = work(tx)
                tx:at_commit{ answer == nil and store.forget_call(place, write.n) or store.answer_call(place, write.n, { value = answer }) }
                return { answer, why }
            end)
            if result.before then capabilities.differs(write, result.before) end
            return result[1], result[2]
        end,
    }
end

return M
