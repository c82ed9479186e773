-- SQL of workflow runs. What decides reads the run's row under a lock first: one who hears an event, one who ends an attempt and one who
-- cancels come after each other.
local pg = require("core.pg")
local time = require("core.time")
local db = require("kasma.db")
local null = require("kasma.null")

local M = {}

local RUN = [[w.id, w.app_key, w.rule_id, w.version, w.event, w.event_id, w.event_data, w.entity_type, w.entity_id, w.state, w.phase,
  w.ending, w.step, w.data, w.attempts, w.tries, w.awaits, w.heard, w.waited, w.wait_event, w.wake_at, w.claim, w.claimed_until, w.hops,
  w.user_id, w.error, w.reason, w.started_at, w.finished_at, w.updated_at]]

local function value(v) return v == nil and null or v end
local function document(v) return v == nil and null or pg.json(v) end

M.OPEN = [[select w.id, w.event_id, w.entity_type, w.entity_id, w.awaits from workflow_runs w
  where w.tenant_key = $1 and w.entity_id = any($2::text[]) and w.listens and w.finished_at is null order by w.id limit 1000]]

--- What events may concern: the tenant's paused hooks, its live workflow rules, and whether any run under way waits for an event.
---@param tenant string
---@param now string
---@return string[] paused, table[] rules {id, key, version}, boolean listens
function M.look(tenant, now)
    local row = db.one(tenant, [[select
        (select e.paused from rule_epochs e where e.tenant_key = $1) as paused,
        (select jsonb_agg(jsonb_build_object('id', r.id, 'key', r.key, 'version', r.active_version) order by r.key) from rules r
          join rule_versions v on v.tenant_key = $1 and v.rule_id = r.id and v.version = r.active_version
          where r.tenant_key = $1 and r.hook = 'workflow' and r.state = 'active'
            and coalesce((v.settings ->> 'startsAt')::timestamptz <= $2::timestamptz, true)
            and coalesce((v.settings ->> 'endsAt')::timestamptz > $2::timestamptz, true)) as rules,
        exists (select 1 from workflow_runs w where w.tenant_key = $1 and w.listens and w.finished_at is null) as listens]], tenant, now)
    local function list(of) return type(of) == "table" and of or {} end
    return list(row.paused), list(row.rules), row.listens
end

--- Runs under way about these entities that wait for some event.
---@param tenant string
---@param entities string[]
---@return table[]
function M.listening(tenant, entities) return db.query(tenant, M.OPEN, tenant, pg.array(entities)) end

--- A live workflow rule by its key; none when it is paused, or its window is not open.
---@return table|nil {id, key, version}
function M.live_rule(tenant, key, now)
    return db.one(tenant, [[select r.id, r.key, r.active_version as version from rules r
      join rule_versions v on v.tenant_key = $1 and v.rule_id = r.id and v.version = r.active_version
      left join rule_epochs e on e.tenant_key = $1
      where r.tenant_key = $1 and r.key = $2 and r.hook = 'workflow' and r.state = 'active'
        and not coalesce(e.paused && array['*', 'workflow'], false)
        and coalesce((v.settings ->> 'startsAt')::timestamptz <= $3::timestamptz, true)
        and coalesce((v.settings ->> 'endsAt')::timestamptz > $3::timestamptz, true)]], tenant, key, now)
end

--- A version with its rule, as live.spec takes it; the newest active one when no number is given.
---@param tenant string
---@param rule_id string
---@param number integer
---@return table|nil
function M.version(tenant, rule_id, number)
    return db.one(tenant, [[select r.id, r.key, r.hook, r.name, r.state, v.version, v.source, v.settings, v.libs from rules r
      join rule_versions v on v.tenant_key = $1 and v.rule_id = r.id and v.version = $3
      where r.tenant_key = $1 and r.id = $2]], tenant, rule_id, number)
end

--- No row: the event has started the rule before.
---@param row table
---@return table statement
function M.insert(row)
    return { [[insert into workflow_runs (tenant_key, app_key, id, rule_id, version, event, event_id, event_data, entity_type, entity_id,
        state, awaits, hops, wake_at, started_at, updated_at, user_id, listens)
      values ($1, $2, $3, $4, $5, $6, $7, $8::jsonb, $9, $10, 'running', $11::text[], $12, $13::timestamptz, $14::timestamptz,
        $14::timestamptz, $15, $16)
      on conflict (tenant_key, rule_id, event_id) do nothing returning id]], row.tenant_key, row.app_key, row.id, row.rule_id, row.version,
        row.event, row.event_id, pg.json(row.event_data), row.entity_type, row.entity_id, pg.array(row.awaits), row.hops,
        value(row.wake_at), row.now, value(row.user_id), #row.awaits > 0 }
end

---@param tx kasma.Tx
---@param tenant string
---@param id string
---@return table|nil run
function M.lock(tx, tenant, id)
    return tx:one("select " .. RUN .. " from workflow_runs w where w.tenant_key = $1 and w.id = $2 for update", tenant, id)
end

---@param tenant string
---@param id string
---@return table|nil run
function M.find(tenant, id)
    return db.one(tenant, "select " .. RUN .. " from workflow_runs w where w.tenant_key = $1 and w.id = $2", tenant, id)
end

--- Writes back a run that was read under a lock: what an engine changes of it.
---@param tenant string
---@param run table
---@param now string
---@return table statement
function M.update(tenant, run, now)
    return { [[update workflow_runs set state = $3, phase = $4, ending = $5, step = $6, data = $7::jsonb, attempts = $8, tries = $9,
        heard = $10::jsonb, waited = $11::jsonb, wait_event = $12, wake_at = $13::timestamptz, claim = $14,
        claimed_until = $15::timestamptz, error = $16::jsonb, reason = $17, finished_at = $18::timestamptz, updated_at = $19::timestamptz
      where tenant_key = $1 and id = $2]], tenant, run.id, run.state, run.phase, value(run.ending), run.step, document(run.data),
        run.attempts, run.tries, document(run.heard), document(run.waited), value(run.wait_event), value(run.wake_at), value(run.claim),
        value(run.claimed_until), document(run.error), value(run.reason), value(run.finished_at), now }
end

-- Steps ------------------------------------------------------------------------------------------------------------------------

local STEP = [[s.run_id, s.position, s.attempt, s.n, s.name, s.kind, s.state, s.key, s.instructions, s.micros, s.log, s.error,
  s.started_at, s.finished_at]]

--- The newest attempts of a step, newest first.
---@param tx kasma.Tx
---@param limit integer
---@return table[]
function M.attempts(tx, tenant, run_id, position, limit)
    return tx:query([[select s.attempt, s.kind, s.state, s.error from workflow_steps s
      where s.tenant_key = $1 and s.run_id = $2 and s.position = $3 order by s.attempt desc limit $4::int]], tenant, run_id, position,
        limit)
end

function M.insert_step(row)
    return { [[insert into workflow_steps (tenant_key, app_key, run_id, position, attempt, n, name, kind, key, started_at)
      values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10::timestamptz)]], row.tenant_key, row.app_key, row.run_id, row.position, row.attempt,
        row.n, row.name, row.kind, row.key, row.now }
end

function M.end_step(tenant, run_id, position, attempt, row, now)
    return { [[update workflow_steps set state = $5, instructions = $6, micros = $7, log = $8, error = $9::jsonb,
        finished_at = $10::timestamptz
      where tenant_key = $1 and run_id = $2 and position = $3 and attempt = $4]], tenant, run_id, position, attempt, row.state,
        row.instructions or 0, row.micros or 0, value(row.log), document(row.error), now }
end

--- Attempts that a dead process left behind end here.
function M.interrupt(tenant, run_id, now)
    return { [[update workflow_steps set state = 'failed', error = '{"code": "interrupted", "message": "the process ended"}',
        finished_at = $3::timestamptz where tenant_key = $1 and run_id = $2 and state = 'running']], tenant, run_id, now }
end

function M.drop_step(tenant, run_id, position, attempt)
    return { "delete from workflow_steps where tenant_key = $1 and run_id = $2 and position = $3 and attempt = $4", tenant, run_id,
        position, attempt }
end

-- Calls ------------------------------------------------------------------------------------------------------------------------

---@class WorkflowPlace
---@field tenant string
---@field app string
---@field run_id string
---@field position integer
---@field kind "run"|"undo"

--- A row: the place was free.
---@param at WorkflowPlace
---@param write {n: integer, name: string, args: string}
---@param now string
---@return table statement
function M.note_call(at, write, now)
    return { [[insert into workflow_calls (tenant_key, app_key, run_id, position, kind, n, name, args_sha256, at)
      values ($1, $2, $3, $4, $5, $6, $7, $8, $9::timestamptz)
      on conflict (tenant_key, run_id, position, kind, n) do nothing returning n]], at.tenant, at.app, at.run_id, at.position, at.kind,
        write.n, write.name, write.args, now }
end

local CALL = " where tenant_key = $1 and run_id = $2 and position = $3 and kind = $4 and n = $5"

---@return table statement {name, args_sha256, answer}
function M.call(at, n)
    return { "select name, args_sha256, answer from workflow_calls" .. CALL, at.tenant, at.run_id, at.position, at.kind, n }
end

---@return table statement
function M.answer_call(at, n, answer)
    return { "update workflow_calls set answer = $6::jsonb" .. CALL, at.tenant, at.run_id, at.position, at.kind, n, pg.json(answer) }
end

---@return table statement
function M.forget_call(at, n)
    return { "delete from workflow_calls" .. CALL, at.tenant, at.run_id, at.position, at.kind, n }
end

-- People -----------------------------------------------------------------------------------------------------------------------

---@param tenant string
---@param user_id string
---@param after string|nil id of the last row
---@param limit integer
---@return table[]
function M.of_user(tenant, user_id, after, limit)
    return db.read(tenant, [[select id, event, entity_type, entity_id, event_data, data, state, started_at, finished_at from workflow_runs
      where tenant_key = $1 and user_id = $2 and id > $3 order by id limit $4::int]], tenant, user_id,
        after or "00000000-0000-0000-0000-000000000000", limit)
end

--- What runs about a person hold of them; runs under way end.
---@param tenant string
---@param user_id string
---@param kind string of due_work
---@param now string
---@return table[] statements
function M.erase(tenant, user_id, kind, now)
    return {
        { [[delete from due_work where tenant_key = $1 and kind = $2 and id in (select id from workflow_runs
          where tenant_key = $1 and user_id = $3)]], tenant, kind, user_id },
        { [[update workflow_steps set log = null, error = null where tenant_key = $1 and run_id in (select id from workflow_runs
          where tenant_key = $1 and user_id = $2)]], tenant, user_id },
        { [[update workflow_runs set data = '{}', event_data = '{}', heard = '{}', waited = null, error = null, reason = null,
            wait_event = null, wake_at = null, claim = null, claimed_until = null, updated_at = $3::timestamptz, user_id = null,
            entity_id = case when entity_type = 'user' then 'erased' else entity_id end,
            finished_at = coalesce(finished_at, $3::timestamptz),
            state = case when state in ('running', 'waiting') then 'cancelled' else state end
          where tenant_key = $1 and user_id = $2]], tenant, user_id, now },
    }
end

-- Lists ------------------------------------------------------------------------------------------------------------------------

-- One text for each way of asking, so that each has an index of its own; ids carry the time at which a run began.
local PAGE = "select " .. RUN .. " from workflow_runs w where w.tenant_key = $1 and w.rule_id = $2 and w.id >= $3 and w.id < $4"
local ORDER = " order by w.id desc limit $5::int"
M.LISTS = { all = PAGE .. ORDER, state = PAGE .. " and w.state = $6" .. ORDER, entity = PAGE .. " and w.entity_id = $6" .. ORDER,
    both = PAGE .. " and w.entity_id = $6 and w.state = $7" .. ORDER }

local FIRST, LAST = "00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"

-- The lowest id of a moment.
local function id_at(iso)
    local hex = ("%012x"):format(math.max(0, time.parse(iso)))
    return ("%s-%s-7000-8000-000000000000"):format(hex:sub(1, 8), hex:sub(9, 12))
end

---@param f {state: string|nil, entity_id: string|nil, from: string|nil, to: string|nil, before: string|nil, limit: integer}
---@return table[] runs, newest first
function M.list(tenant, rule_id, f)
    local to = f.to and id_at(f.to) or LAST
    local before = f.before and f.before < to and f.before or to
    local from = f.from and id_at(f.from) or FIRST
    if f.entity_id and f.state then
        return db.read(tenant, M.LISTS.both, tenant, rule_id, from, before, f.limit, f.entity_id, f.state)
    elseif f.entity_id then
        return db.read(tenant, M.LISTS.entity, tenant, rule_id, from, before, f.limit, f.entity_id)
    elseif f.state then
        return db.read(tenant, M.LISTS.state, tenant, rule_id, from, before, f.limit, f.state)
    end
    return db.read(tenant, M.LISTS.all, tenant, rule_id, from, before, f.limit)
end

--- Attempts of some runs, in the order in which they were made.
---@return table[]
function M.steps(tenant, run_ids)
    return db.read(tenant, "select " .. STEP .. [[ from workflow_steps s where s.tenant_key = $1 and s.run_id = any($2::uuid[])
      order by s.run_id, s.n limit 10000]], tenant, pg.array(run_ids))
end

--- Removes runs that ended before a moment; their steps go with them.
---@return integer
function M.prune(tenant, before, limit)
    return db.query(tenant, [[delete from workflow_runs where tenant_key = $1 and id in (select w.id from workflow_runs w
      where w.tenant_key = $1 and w.state in ('done', 'failed', 'undone', 'cancelled') and w.finished_at < $2::timestamptz
      order by w.id limit $3::int)]], tenant, before, limit).affected
end

return M
