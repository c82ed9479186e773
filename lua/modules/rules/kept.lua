-- What is kept of a run: its index row, its body, and what it was given. A run of a checkout has that in the order's snapshot.
local json = require("core.json")
local schema = require("kasma.schema")
local store = require("modules.rules.store")

local M = {}

local function present(v) if v == json.null then return nil end return v end

---@param tenant string
---@param run table row of rule_runs
---@return table body {input, output, log, reason, opsIn, stack, heard, entry}, any of them absent
function M.body(tenant, run)
    local doc = present(run.document) and store.body(tenant, run.document) or {}
    local kept = doc
    for _, one in ipairs(doc.runs or {}) do
        if one.id == run.id then kept = one end
    end
    local body = { input = present(kept.input), output = kept.output, log = kept.log, reason = kept.reason, opsIn = kept.opsIn,
        stack = present(kept.stack), heard = present(kept.heard), entry = present(kept.entry) }
    if not body.input and present(run.checkout_id) then
        local s = store.snapshot(tenant, run.checkout_id)
        if s then body.input = { quote = s.input, currency = s.currency } end
    end
    return body
end

--- What a test of a rule takes in place of `given`: of runs of that rule alone.
---@param tenant string
---@param rule_key string
---@return fun(id: string): table|nil {input, config}
function M.for_tests(tenant, rule_key)
    return function(id)
        local run = schema.is_uuid(id) and store.run(tenant, id)
        local rule = run and store.find(tenant, run.rule_id)
        if not rule or rule.key ~= rule_key then return nil end
        local input = M.body(tenant, run).input
        local version = input and store.version(tenant, rule.id, run.version)
        return input and { input = input, config = version and version.settings.config } or nil
    end
end

return M
