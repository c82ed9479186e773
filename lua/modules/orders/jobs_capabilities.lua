-- What rules that may wait can do with orders.
local uuid = require("core.uuid")
local capabilities = require("kasma.capabilities")
local notes = require("modules.orders.notes")

local LIMIT = 20

local function check_id(name, id)
    if type(id) ~= "string" then capabilities.refuse(name .. ": the id of an order is expected") end
    return uuid.valid(id)
end

local function check_text(name, text, most)
    if type(text) ~= "string" or text:find("^%s*$") or #text > most then
        capabilities.refuse(("%s: a text of 1 to %d bytes is expected"):format(name, most))
    end
end

capabilities.declare("orders.get", { needs = "orders", limit = LIMIT, summary = "An order, without names and addresses",
    signature = "(id: string): table|nil, string|nil", fn = function(ctx, id)
    if not check_id("orders.get", id) then return nil, "not_found" end
    local order = notes.view(ctx.tenant, id)
    if not order then return nil, "not_found" end
    return order
end })

capabilities.declare("orders.note", { needs = "orders", limit = LIMIT, writes = "keyed", summary = "A note for staff, written once a step",
    signature = "(id: string, text: string): boolean|nil, string|nil", fn = function(ctx, id, text)
    check_text("orders.note", text, 2000)
    if not check_id("orders.note", id) then return nil, "not_found" end
    return notes.add(ctx.scope, id, capabilities.once_id(capabilities.call_key(ctx)), text, ctx.rule.id)
end })

capabilities.declare("orders.set_workflow_state", { needs = "orders", limit = LIMIT, writes = "keyed",
    summary = "The state that the workflow gives",
    signature = "(id: string, state: string): boolean|nil, string|nil", fn = function(ctx, id, state)
    check_text("orders.set_workflow_state", state, 64)
    if not check_id("orders.set_workflow_state", id) then return nil, "not_found" end
    return notes.set_workflow_state(ctx.scope, id, capabilities.once_id(capabilities.call_key(ctx)), state, ctx.rule.id)
end })
