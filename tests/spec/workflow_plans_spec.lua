-- The plans of what workflows ask, at a few thousand runs in several tenants: each is answered from an index, whatever is asked for.
local pg = require("core.pg")
local store = require("modules.rules.workflow_store")
local cleaner = require("spec.owner")

local app = pg.pool("app")
local TENANTS = { "flow_plan_a", "flow_plan_b", "flow_plan_c" }
local RULE, NOW = "0190f000-0000-7000-8000-000000000001", "2026-01-01T00:00:00Z"
local FIRST, LAST = "00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"

local function run(tenant, sql, ...)
    local answer, err = app:query(tenant, sql, ...)
    assert(answer, err and err.message)
    return answer
end

local MADE = {
    { [[insert into rules (tenant_key, id, key, hook, name, created_at, updated_at)
      values ($1, $2, 'flow', 'workflow', 'Flow', $3::timestamptz, $3::timestamptz)]], true },
    { [[insert into rule_versions (tenant_key, rule_id, version, source, sha256, note, published_at)
      values ($1, $2, 1, 'x', repeat('0', 64), 'x', $3::timestamptz)]], true },
    { [[insert into workflow_runs (tenant_key, id, rule_id, version, event, event_id, entity_type, entity_id, state, awaits, started_at,
        finished_at, updated_at, listens)
      select v.tenant_key, ('0190d000-0000-7000-8000-' || lpad(n::text, 12, '0'))::uuid, v.rule_id, 1, 'order.placed',
        ('0190e000-0000-7000-8000-' || lpad(n::text, 12, '0'))::uuid, 'order', 'o' || n,
        case when n % 1000 = 0 then 'failed' when n % 100 = 0 then 'waiting' else 'done' end,
        case when n % 100 = 0 then array['order.paid'] else '{}' end, $3::timestamptz,
        case when n % 100 <> 0 or n % 1000 = 0 then $3::timestamptz end, $3::timestamptz, n % 100 = 0
      from rule_versions v, generate_series(1, 4000) n where v.tenant_key = $1 and v.rule_id = $2]], true },
}

local function clear()
    local session = pg.pool("owner"):session()
    assert(session:query("alter table rule_versions disable trigger rule_versions_append_only"))
    session:close()
    for _, tenant in ipairs(TENANTS) do cleaner.clear(tenant, { "workflow_runs", "rule_versions", "rules" }) end
    session = pg.pool("owner"):session()
    assert(session:query("alter table rule_versions enable trigger rule_versions_append_only"))
    session:close()
end

local function walk(node, seen)
    seen(node)
    for _, child in ipairs(node.Plans or {}) do walk(child, seen) end
end

-- The indexes that answer a query; fails when rows are read to throw them away.
local function indexes_of(sql, ...)
    local used = {}
    local answer = run(TENANTS[1], "explain (analyze, timing off, format json) " .. sql, ...)
    walk(answer[1]["QUERY PLAN"][1].Plan, function(node)
        assert.are_not.equal("Seq Scan", node["Node Type"], (node["Relation Name"] or "") .. " is scanned")
        if node["Index Name"] then used[node["Index Name"]] = true end
        local dropped = (node["Rows Removed by Filter"] or 0) * (node["Actual Loops"] or 1)
        assert.is_true(dropped < 500, ("%d rows of %s were read for nothing"):format(dropped, tostring(node["Relation Name"])))
    end)
    return used
end

describe("runs of workflows at a few thousand", function()
    setup(function()
        clear()
        for _, tenant in ipairs(TENANTS) do
            for _, made in ipairs(MADE) do run(tenant, made[1], tenant, RULE, NOW) end
        end
        local owner = pg.pool("owner"):session()
        for _, name in ipairs{ "workflow_runs", "rules", "rule_versions" } do assert(owner:query("vacuum analyze " .. name)) end
        owner:close()
    end)

    teardown(clear)

    it("are listed newest first from an index", function()
        local used = indexes_of(store.LISTS.all, TENANTS[1], RULE, FIRST, LAST, 20)
        -- Where a tenant has one workflow rule, its key serves as well.
        assert.is_true(used.workflow_runs_of_rule or used.workflow_runs_pkey)
    end)

    it("are listed by state without reading the others", function()
        assert.is_true(indexes_of(store.LISTS.state, TENANTS[1], RULE, FIRST, LAST, 20, "failed").workflow_runs_of_rule_state)
    end)

    it("are found by what they are about", function()
        assert.is_true(indexes_of(store.LISTS.entity, TENANTS[1], RULE, FIRST, LAST, 20, "o2500").workflow_runs_of_entity)
        assert.is_true(indexes_of(store.LISTS.both, TENANTS[1], RULE, FIRST, LAST, 20, "o2500", "done").workflow_runs_of_entity)
    end)

    it("are found for the event that they wait for", function()
        local used = indexes_of(store.OPEN, TENANTS[1], pg.array{ "o100", "o200", "o2500", "nothing" })
        assert.is_true(used.workflow_runs_listening)
    end)
end)
