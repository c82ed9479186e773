-- SQL and documents of rules.
local json = require("core.json")
local mongo = require("core.mongo")
local pg = require("core.pg")
local time = require("core.time")
local db = require("kasma.db")
local errors = require("kasma.errors")
local null = require("kasma.null")

local M = {}

local RULE = [[r.id, r.tenant_key, r.app_key, r.key, r.hook, r.name, r.state, r.active_version, r.last_version, r.priority, r.origin,
  r.state_reason, r.breaker_until, r.opens_today, r.archived_at, r.created_by, r.created_at, r.updated_at]]
local VERSION = [[v.rule_id, v.version, v.source, v.settings, v.tests, v.libs, v.sha256, v.note, v.source_version, v.check_report,
  v.published_by, v.approved_by, v.published_at, v.preview]]

--- What a worker needs of a tenant: its epoch and what is active, in one transaction.
---@param tenant string
---@return table epoch row {epoch, paused, updated_at} or nil, table[] rules
function M.active(tenant)
    local results = db.pipeline(tenant, {
        { "select epoch, paused, updated_at from rule_epochs where tenant_key = $1", tenant },
        { [[select r.id, r.key, r.hook, r.name, r.breaker_until, v.version, v.source, v.settings, v.libs from rules r
          join rule_versions v on v.tenant_key = $1 and v.rule_id = r.id and v.version = r.active_version
          where r.tenant_key = $1 and r.state = 'active' order by r.key]], tenant },
    })
    return results[1][1], results[2]
end

--- What the doctor asks: the epoch, the rules that are live or were switched off (with the most that a kept run since then used), and the
--- libraries as they are now.
---@return table|nil epoch {epoch, paused, updated_at}, table[] rules, table[] libraries {key, sha256}
function M.overview(tenant, since)
    local results = db.pipeline(tenant, {
        { "select epoch, paused, updated_at from rule_epochs where tenant_key = $1", tenant },
        { [[select r.id, r.key, r.hook, r.state, r.breaker_until, v.source, v.libs, v.check_report, (select max(n.instructions)
            from rule_runs n where n.tenant_key = $1 and n.rule_id = r.id and n.at >= $2::timestamptz) as instructions
          from rules r join rule_versions v on v.tenant_key = $1 and v.rule_id = r.id and v.version = r.active_version
          where r.tenant_key = $1 and r.state in ('active', 'off') order by r.key limit 400]], tenant, since },
        { [[select r.key, v.sha256 from rules r
          join rule_versions v on v.tenant_key = $1 and v.rule_id = r.id and v.version = r.active_version
          where r.tenant_key = $1 and r.hook = 'library' and r.state = 'active' order by r.key limit 400]], tenant },
    })
    return results[1][1], results[2], results[3]
end

---@param tenant string
---@return integer epoch 0: never published
function M.epoch(tenant)
    local row = db.one(tenant, "select epoch from rule_epochs where tenant_key = $1", tenant)
    return row and row.epoch or 0
end

--- A statement that moves the epoch on and answers it.
function M.bump(scope, now)
    return { [[insert into rule_epochs as e (tenant_key, app_key, epoch, updated_at) values ($1, $2, 1, $3::timestamptz)
      on conflict (tenant_key) do update set epoch = e.epoch + 1, updated_at = excluded.updated_at returning epoch]],
        scope.tenant, scope.app, now }
end

--- Stops a hook ("*": all of them); one statement, so that two who stop different hooks at once stop both.
function M.pause(scope, name, now)
    return { [[insert into rule_epochs as e (tenant_key, app_key, epoch, paused, updated_at)
      values ($1, $2, 1, array[$3::text], $4::timestamptz)
      on conflict (tenant_key) do update set epoch = e.epoch + 1, updated_at = excluded.updated_at,
        paused = case when $3::text = any(e.paused) then e.paused else array_append(e.paused, $3::text) end
      returning paused]], scope.tenant, scope.app, name, now }
end

--- Lets a hook run again; nil: all that was stopped.
function M.resume(scope, name, now)
    return { [[insert into rule_epochs as e (tenant_key, app_key, epoch, updated_at) values ($1, $2, 1, $4::timestamptz)
      on conflict (tenant_key) do update set epoch = e.epoch + 1, updated_at = excluded.updated_at,
        paused = case when $3::text is null then '{}' else array_remove(e.paused, $3::text) end
      returning paused]], scope.tenant, scope.app, name or null, now }
end

--- How many live rules stand still because they, or all, are paused.
function M.standing(tenant)
    return { [[select count(*)::int as n from rules r join rule_epochs e on e.tenant_key = $1
      where r.tenant_key = $1 and r.state = 'active' and r.hook <> 'library' and e.paused && array['*', r.hook] ]], tenant }
end

--- How many live workers there are that serve, and how many of them have loaded the epoch or hold none of the tenant's rules.
function M.live(tenant, epoch)
    return db.one(nil, [[select count(*)::int as workers, count(*) filter (where not jsonb_exists(epochs, $2)
        or (epochs ->> $2)::bigint >= $3::bigint)::int as loaded
      from worker_heartbeats where seen_at > $1::timestamptz and state = 'ready' and role in ('serve', 'all')]],
        time.iso(time.real() - 6000), tenant, epoch)
end

-- Rules and drafts -------------------------------------------------------------------------------------------------------------

local IS_ID = "^%x%x%x%x%x%x%x%x%-%x%x%x%x%-%x%x%x%x%-%x%x%x%x%-%x%x%x%x%x%x%x%x%x%x%x%x$"

--- By id or key.
function M.find(tenant, ref)
    if ref:find(IS_ID) then
        return db.one(tenant, "select " .. RULE .. " from rules r where r.tenant_key = $1 and r.id = $2", tenant, ref)
    end
    return db.one(tenant, "select " .. RULE .. " from rules r where r.tenant_key = $1 and r.key = $2", tenant, ref)
end

function M.list(tenant, hook, state)
    return db.read(tenant, "select " .. RULE .. [[, d.revision, (v.sha256 is null or d.source <> v.source or d.settings <> v.settings
        or d.tests <> v.tests) as dirty, v.check_report, f.line as error_line, f.message as error_message, f.last_at as error_at
      from rules r left join rule_drafts d on d.tenant_key = $1 and d.rule_id = r.id
      left join rule_versions v on v.tenant_key = $1 and v.rule_id = r.id and v.version = r.active_version
      left join lateral (select line, message, last_at from rule_failures f where f.tenant_key = $1 and f.rule_id = r.id
        order by f.last_at desc limit 1) f on true
      where r.tenant_key = $1 and ($2::text is null or r.hook = $2) and ($3::text is null and r.state <> 'archived' or r.state = $3)
      order by r.hook, r.priority desc, r.key limit 400]], tenant, hook or null, state or null)
end

--- All that the tenant's rules are, but removed ones: with their draft, and their active version where they have one.
---@param tenant string
---@return table[] rows of rules with draft_source, draft_settings, draft_tests, revision, source, settings, tests (of the version)
function M.whole(tenant)
    return db.query(tenant, "select " .. RULE .. [[, d.source as draft_source, d.settings as draft_settings, d.tests as draft_tests,
        d.revision, v.source, v.settings, v.tests
      from rules r join rule_drafts d on d.tenant_key = $1 and d.rule_id = r.id
      left join rule_versions v on v.tenant_key = $1 and v.rule_id = r.id and v.version = r.active_version
      where r.tenant_key = $1 and r.state <> 'archived' order by r.key limit 400]], tenant)
end

function M.count(tenant)
    return db.one(tenant, "select count(*)::int as n from rules where tenant_key = $1 and state <> 'archived'", tenant).n
end

function M.draft(tenant, rule_id)
    return db.one(tenant, [[select d.rule_id, d.source, d.settings, d.tests, d.revision, d.authors, d.updated_by, d.updated_at
      from rule_drafts d
      where d.tenant_key = $1 and d.rule_id = $2]], tenant, rule_id)
end

function M.insert_rule(row)
    return { [[insert into rules (tenant_key, app_key, id, key, hook, name, priority, origin, created_by, created_at, updated_at)
      values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10::timestamptz, $10::timestamptz)]], row.tenant_key, row.app_key, row.id, row.key,
        row.hook, row.name, row.priority, row.origin, row.created_by or null, row.now }
end

function M.insert_draft(row)
    return { [[insert into rule_drafts (tenant_key, app_key, rule_id, source, settings, tests, updated_by, updated_at, authors)
      values ($1, $2, $3, $4, $5::jsonb, $6, $7, $8::timestamptz, case when $7::uuid is null then '{}' else
        jsonb_build_object($7::uuid::text, 1) end)]], row.tenant_key, row.app_key, row.id, row.source,
        pg.json(row.settings), row.tests, row.created_by or null, row.now }
end

--- Saves over the revision it was made from; no row: somebody else was faster.
function M.save_draft(row)
    return { [[update rule_drafts set source = $4, settings = $5::jsonb, tests = $6, revision = revision + 1, updated_by = $7,
        updated_at = $8::timestamptz,
        authors = case when $7::uuid is null then authors else authors || jsonb_build_object($7::uuid::text, revision + 1) end
      where tenant_key = $1 and rule_id = $2 and revision = $3 returning revision]], row.tenant_key, row.rule_id, row.revision, row.source,
        pg.json(row.settings), row.tests, row.updated_by or null, row.now }
end

--- What was saved up to a revision is published: those who saved later are the authors of what is not.
function M.forget_authors(tenant, rule_id, revision)
    return { [[update rule_drafts d set authors = coalesce((select jsonb_object_agg(a.key, a.value) from jsonb_each(d.authors) a
        where a.value::text::int > $3), '{}') where d.tenant_key = $1 and d.rule_id = $2]], tenant, rule_id, revision }
end

function M.rename(tenant, rule_id, name, now)
    return { "update rules set name = $3, updated_at = $4::timestamptz where tenant_key = $1 and id = $2", tenant, rule_id, name, now }
end

-- Versions ---------------------------------------------------------------------------------------------------------------------

function M.lock(tx, tenant, rule_id)
    return tx:one("select " .. RULE .. " from rules r where r.tenant_key = $1 and r.id = $2 for update", tenant, rule_id)
end

function M.lock_draft(tx, tenant, rule_id)
    return tx:one("select source, settings, tests, revision from rule_drafts where tenant_key = $1 and rule_id = $2 for update", tenant,
        rule_id)
end

--- Active rules of a hook beside one. The epoch's row is locked first, so that two publications count each other.
function M.count_active(tx, tenant, hook, but)
    tx:query("select epoch from rule_epochs where tenant_key = $1 for update", tenant)
    return tx:one([[select count(*)::int as n from rules where tenant_key = $1 and hook = $2 and state = 'active' and id <> $3]], tenant,
        hook, but).n
end

function M.insert_version(row)
    return { [[insert into rule_versions (tenant_key, app_key, rule_id, version, source, settings, tests, libs, sha256, note,
        source_version, check_report, published_by, approved_by, published_at, preview)
      values ($1, $2, $3, $4, $5, $6::jsonb, $7, $8::jsonb, $9, $10, $11, $12::jsonb, $13, $14, $15::timestamptz, $16::jsonb)]],
        row.tenant_key, row.app_key, row.rule_id, row.version, row.source, pg.json(row.settings), row.tests, pg.json(row.libs), row.sha256,
        row.note, row.source_version or null, pg.json(row.check_report), row.published_by or null, row.approved_by or null, row.now,
        row.preview and pg.json(row.preview) or null }
end

function M.activate(tenant, rule_id, version, priority, name, now)
    return { [[update rules set state = 'active', active_version = $3, last_version = greatest(last_version, $3::int), priority = $4,
        name = $5, state_reason = null, breaker_until = null, opens_today = 0, opens_day = null, updated_at = $6::timestamptz
      where tenant_key = $1 and id = $2]], tenant, rule_id, version, priority, name, now }
end

--- Only from `from`, and with `version` active where one is given; no row: it was changed meanwhile.
function M.set_state(tenant, rule_id, from, state, reason, now, version)
    return { [[update rules set state = $3, state_reason = $4, breaker_until = null, opens_today = case when $3 = 'active' then 0
          else opens_today end, archived_at = case when $3 = 'archived' then $5::timestamptz end, updated_at = $5::timestamptz
      where tenant_key = $1 and id = $2 and state = $6 and ($7::int is null or active_version = $7) returning id]], tenant, rule_id,
        state, reason or null, now, from, version or null }
end

function M.versions(tenant, rule_id)
    return db.read(tenant,
        "select " .. VERSION .. " from rule_versions v where v.tenant_key = $1 and v.rule_id = $2 order by v.version desc "
        .. "limit 500", tenant, rule_id)
end

function M.version(tenant, rule_id, number)
    return db.one(tenant, "select " .. VERSION .. " from rule_versions v where v.tenant_key = $1 and v.rule_id = $2 and v.version = $3",
        tenant, rule_id, number)
end

--- The active version of a library.
function M.library(tenant, key)
    return db.one(tenant, [[select r.key, v.version, v.source, v.sha256, v.libs from rules r
      join rule_versions v on v.tenant_key = $1 and v.rule_id = r.id and v.version = r.active_version
      where r.tenant_key = $1 and r.key = $2 and r.hook = 'library' and r.state = 'active']], tenant, key)
end

--- The third opening of the breaker in a day switches the rule off, unless `stays_on`. Answers the row as it is then.
---@param stays_on boolean|nil
function M.open_breaker(tenant, rule_id, version, until_iso, day, now, stays_on)
    return { [[update rules set breaker_until = $4::timestamptz,
        opens_today = case when opens_day = $5::date then opens_today + 1 else 1 end, opens_day = $5::date,
        state = case when not $7::bool and opens_day = $5::date and opens_today >= 2 then 'off' else state end,
        state_reason = case when not $7::bool and opens_day = $5::date and opens_today >= 2 then 'failed too often' else state_reason end,
        updated_at = $6::timestamptz
      where tenant_key = $1 and id = $2 and active_version = $3 and state = 'active'
        and (breaker_until is null or breaker_until < $6::timestamptz)
      returning key, state, opens_today]], tenant, rule_id, version, until_iso, day, now, stays_on == true }
end

-- Requests ---------------------------------------------------------------------------------------------------------------------

local REQUEST = [[q.id, q.rule_id, q.source, q.settings, q.tests, q.note, q.publish_at, q.until_at, q.accepted, q.state, q.version, q.why,
  q.requested_by, q.decided_by, q.authors, q.revision, q.preview, q.created_at]]

function M.insert_request(row)
    return { [[insert into rule_publish_requests (tenant_key, app_key, id, rule_id, source, settings, tests, note, publish_at, until_at,
        accepted, state, version, requested_by, created_at, updated_at, authors, revision, preview)
      values ($1, $2, $3, $4, $5, $6::jsonb, $7, $8, $9::timestamptz, $10::timestamptz, $11::text[], $12, $13, $14, $15::timestamptz,
        $15::timestamptz, $16::jsonb, $17, $18::jsonb)]],
        row.tenant_key, row.app_key, row.id, row.rule_id, row.source, pg.json(row.settings), row.tests, row.note,
        row.publish_at or null, row.until_at or null, pg.array(row.accepted or {}), row.state, row.version or null,
        row.requested_by or null, row.now, pg.json(row.authors or {}), row.revision or null,
        row.preview and pg.json(row.preview) or null }
end

function M.request(tenant, id)
    return db.one(tenant, "select " .. REQUEST .. " from rule_publish_requests q where q.tenant_key = $1 and q.id = $2", tenant, id)
end

--- From one of some states into another; no row: it was in none of them.
function M.decide(tenant, id, from, state, decided_by, version, why, now)
    return { [[update rule_publish_requests set state = $4, decided_by = coalesce($5, decided_by), version = coalesce($6, version),
        why = $7,
        updated_at = $8::timestamptz where tenant_key = $1 and id = $2 and state = any($3::text[]) returning id]], tenant, id,
        pg.array(from), state, decided_by or null, version or null, why or null, now }
end

-- Runs ---------------------------------------------------------------------------------------------------------------------------

function M.insert_run(row)
    return { [[insert into rule_runs (tenant_key, app_key, id, at, rule_id, version, hook, outcome, fingerprint, line, message,
        instructions, micros, heap, checkout_id, document)
      values ($1, $2, $3, $4::timestamptz, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)]], row.tenant_key, row.app_key, row.id,
        row.at, row.rule_id, row.version, row.hook, row.outcome, row.fingerprint or null, row.line or null, row.message or null,
        row.instructions, row.micros, row.heap, row.checkout_id or null, row.document or null }
end

function M.count_failure(row)
    return { [[insert into rule_failures as f (tenant_key, app_key, rule_id, fingerprint, version, outcome, line, message, n, first_at,
        last_at,
        last_run_id)
      values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10::timestamptz, $10::timestamptz, $11)
      on conflict (tenant_key, rule_id, fingerprint) do update set n = f.n + excluded.n, last_at = greatest(f.last_at, excluded.last_at),
        last_run_id = excluded.last_run_id, version = excluded.version]], row.tenant_key, row.app_key, row.rule_id, row.fingerprint,
        row.version, row.outcome, row.line or null, row.message or "", row.n, row.at, row.id }
end

--- Adds to an hour's counts; the two lists have 16 members.
function M.add_hour(row)
    return { [[insert into rule_run_hours as h (tenant_key, app_key, rule_id, version, hour, outcome, n, instructions, micros,
        discount_minor)
      values ($1, $2, $3, $4, $5::timestamptz, $6, $7, $8::bigint[], $9::bigint[], $10)
      on conflict (tenant_key, rule_id, hour, version, outcome) do update set n = h.n + excluded.n,
        discount_minor = h.discount_minor + excluded.discount_minor,
        instructions = (select array_agg(coalesce(a, 0) + coalesce(b, 0) order by i) from unnest(h.instructions, excluded.instructions)
          with ordinality as t(a, b, i)),
        micros = (select array_agg(coalesce(a, 0) + coalesce(b, 0) order by i) from unnest(h.micros, excluded.micros)
          with ordinality as t(a, b, i))]], row.tenant_key, row.app_key, row.rule_id, row.version, row.hour, row.outcome, row.n,
        pg.array(row.instructions), pg.array(row.micros), row.discount_minor }
end

local RUN = [[n.id, n.at, n.rule_id, n.version, n.hook, n.outcome, n.fingerprint, n.line, n.message, n.instructions, n.micros, n.heap,
  n.checkout_id, n.document]]

---@param filter {outcome: string|nil, version: integer|nil, before: string|nil}
function M.runs(tenant, rule_id, filter)
    return db.read(tenant, "select " .. RUN .. [[ from rule_runs n where n.tenant_key = $1 and n.rule_id = $2
        and ($3::text is null or n.outcome = $3 or ($3 = 'failed' and n.outcome <> 'ok')) and ($4::int is null or n.version = $4)
        and ($5::uuid is null or n.id < $5::uuid) order by n.id desc limit 20]], tenant, rule_id, filter.outcome or null,
        filter.version or null, filter.before or null)
end

function M.run(tenant, id)
    return db.one(tenant, "select " .. RUN .. " from rule_runs n where n.tenant_key = $1 and n.id = $2", tenant, id)
end

--- The last kept inputs of a hook, from the bodies of its runs. None with MongoDB away.
---@return table[] bodies {_id, input}
function M.inputs(tenant, hook, limit)
    local list = {}
    for _, row in ipairs(db.read(tenant, [[select document from rule_runs where tenant_key = $1 and hook = $2 and document is not null
        order by id desc limit $3::int]], tenant, hook, limit)) do
        local body = M.body(tenant, row.document)
        if body and type(body.input) == "table" then list[#list + 1] = body end
    end
    return list
end

function M.failures(tenant, rule_id)
    return db.read(tenant, [[select fingerprint, version, outcome, line, message, greatest(n, 1) as n, first_at, last_at,
        last_run_id from rule_failures
      where tenant_key = $1 and rule_id = $2 order by last_at desc limit 200]], tenant, rule_id)
end

function M.hours(tenant, rule_id, since)
    return db.read(tenant, [[select hour, version, outcome, n, discount_minor, instructions, micros from rule_run_hours
      where tenant_key = $1 and rule_id = $2 and hour >= $3::timestamptz order by hour limit 20000]], tenant, rule_id, since)
end

--- The same of all rules of the tenant, an hour's outcomes apart.
function M.hours_of_all(tenant, since)
    return db.read(tenant, [[select rule_id, outcome, n, micros from rule_run_hours
      where tenant_key = $1 and hour >= $2::timestamptz limit 100000]], tenant, since)
end

local BODIES = "rule_runs"

--- Bodies of runs: documents {_id, tenant_key, runs or one run's input, output, log}.
function M.write_bodies(docs)
    local operations = {}
    for i, doc in ipairs(docs) do
        operations[i] = { op = "update", filter = { _id = doc._id }, update = { ["$set"] = doc }, upsert = true }
    end
    errors.check(mongo.bulk(BODIES, operations))
end

function M.body(tenant, id)
    local docs = mongo.find(BODIES, { _id = id, tenant_key = tenant }, { limit = 1 })
    return docs and docs[1]
end

-- Snapshots and previews ---------------------------------------------------------------------------------------------------------

function M.insert_snapshot(row)
    return { [[insert into pricing_snapshots (tenant_key, app_key, id, order_id, order_number, currency, total_minor, input, result, rules,
        created_at)
      values ($1, $2, $3, $4, $5, $6, $7, $8::jsonb, $9::jsonb, $10::jsonb, $11::timestamptz)]], row.tenant_key, row.app_key, row.id,
        row.order_id, row.order_number, row.currency, row.total_minor, pg.json(row.input), pg.json(row.result), pg.json(row.rules),
            row.now }
end

local SNAPSHOT = "s.id, s.order_id, s.order_number, s.currency, s.total_minor, s.input, s.result, s.rules, s.created_at"

--- By the id of an order or of its checkout, or the order's number.
function M.snapshot(tenant, ref)
    if ref:find(IS_ID) then
        return db.one(tenant,
            "select " .. SNAPSHOT .. " from pricing_snapshots s where s.tenant_key = $1 and (s.order_id = $2 or s.id = $2) "
            .. "limit 1", tenant, ref)
    end
    return db.one(tenant, "select " .. SNAPSHOT .. " from pricing_snapshots s where s.tenant_key = $1 and s.order_number = $2 limit 1",
        tenant,
        ref)
end

--- A page of snapshots, the newest first.
function M.snapshots(tenant, from, to, before, limit)
    return db.read(tenant, "select " .. SNAPSHOT .. [[ from pricing_snapshots s where s.tenant_key = $1
        and ($2::timestamptz is null or s.created_at >= $2::timestamptz) and ($3::timestamptz is null or s.created_at < $3::timestamptz)
        and ($4::uuid is null or s.id < $4::uuid) order by s.id desc limit $5::int]], tenant, from or null, to or null, before or null,
            limit)
end

function M.insert_preview(row)
    return { [[insert into rule_previews (tenant_key, app_key, id, rule_id, spec, total, created_by, created_at, updated_at, state, done,
        result, revision)
      values ($1, $2, $3, $4, $5::jsonb, $6, $7, $8::timestamptz, $8::timestamptz, $9, $10, $11::jsonb, $12)]], row.tenant_key,
        row.app_key, row.id, row.rule_id, pg.json(row.spec), row.total, row.created_by or null, row.now, row.state or "queued",
        row.done or 0, row.result and pg.json(row.result) or null, row.revision or null }
end

--- A preview with the first 500 of the orders that it changes; preview_orders has them all.
function M.preview(tenant, id)
    return db.one(tenant, [[select id, rule_id, spec, state, done, total, case when jsonb_typeof(result -> 'orders') = 'array'
          then jsonb_set(result, '{orders}', jsonb_path_query_array(result, '$.orders[0 to 499]')) else result end as result,
        revision, created_by, created_at from rule_previews where tenant_key = $1 and id = $2]], tenant, id)
end

--- A page of the orders that a preview changes, in the order of its result. A result is written once, so a place in it is a cursor.
---@param tenant string
---@param id string
---@param skip integer how many come before the page
---@param limit integer
---@return table[] {body: table}
function M.preview_orders(tenant, id, skip, limit)
    return db.read(tenant, [[select o.body from rule_previews p, jsonb_array_elements(case when jsonb_typeof(p.result -> 'orders') = 'array'
        then p.result -> 'orders' else '[]' end) with ordinality as o(body, n)
      where p.tenant_key = $1 and p.id = $2 order by o.n offset $3::int limit $4::int]], tenant, id, skip, limit)
end

--- Moves a preview on; no row: it was cancelled.
function M.move_preview(tenant, id, state, done, result, now, revision)
    return db.query(tenant, [[update rule_previews set state = $3, done = $4, result = coalesce($5::jsonb, result),
        updated_at = $6::timestamptz, revision = $7 where tenant_key = $1 and id = $2 and state in ('queued', 'running') returning id]],
        tenant, id, state, done, result and pg.json(result) or null, now, revision or null)[1]
end

-- A batch of what is older, removed; how many.
local function prune(tenant, table_name, key, column, before, limit)
    return db.query(tenant, ("delete from %s where tenant_key = $1 and (%s) in (select %s from %s where tenant_key = $1 and %s < "
        .. "$2::timestamptz limit $3::int)"):format(table_name, key, key, table_name, column), tenant, before, limit).affected
end

function M.prune_previews(tenant, before, limit) return prune(tenant, "rule_previews", "id", "created_at", before, limit) end
function M.prune_failures(tenant, before, limit)
    return prune(tenant, "rule_failures", "rule_id, fingerprint", "last_at", before, limit)
end
function M.prune_hours(tenant, before, limit)
    return prune(tenant, "rule_run_hours", "rule_id, hour, version, outcome", "hour", before, limit)
end

--- The documents go first: without its row nobody would find one again.
function M.prune_runs(tenant, before, limit)
    local rows = db.query(tenant, [[select id, document from rule_runs where tenant_key = $1 and id < history_id($2::timestamptz)
      order by id limit $3::int]], tenant, before, limit)
    local operations, ids, seen = {}, {}, {}
    for i, row in ipairs(rows) do
        ids[i] = row.id
        if row.document and row.document ~= null and not seen[row.document] then
            seen[row.document] = true
            operations[#operations + 1] = { op = "delete", filter = { _id = row.document, tenant_key = tenant } }
        end
    end
    if #ids == 0 then return 0 end
    if #operations > 0 then errors.check(mongo.bulk(BODIES, operations)) end
    return db.query(tenant, "delete from rule_runs where tenant_key = $1 and id = any($2::uuid[])", tenant, pg.array(ids)).affected
end

function M.cancel_preview(tenant, id, now)
    return db.query(tenant, [[update rule_previews set state = 'cancelled', updated_at = $3::timestamptz where tenant_key = $1 and id = $2
      and state in ('queued', 'running') returning id]], tenant, id, now)[1]
end

-- Secrets --------------------------------------------------------------------------------------------------------------------------

function M.secrets(tenant)
    return db.read(tenant, "select name, updated_at, updated_by from tenant_secrets where tenant_key = $1 order by name limit 500", tenant)
end

--- How many there are beside this one.
function M.count_secrets(tenant, name)
    return db.one(tenant, "select count(*)::int as n from tenant_secrets where tenant_key = $1 and name <> $2", tenant, name).n
end

function M.secret(tenant, name)
    return db.one(tenant, "select value_enc, key_version from tenant_secrets where tenant_key = $1 and name = $2", tenant, name)
end

--- How many of the tenant's secrets each version of SERVER_KEY sealed.
function M.secrets_by_version(tenant)
    return db.query(tenant, [[select key_version as version, count(*)::int as n from tenant_secrets where tenant_key = $1
      group by key_version]], tenant)
end

--- Those that another version sealed.
function M.secrets_sealed_before(tenant, version)
    return db.query(tenant, [[select name, value_enc from tenant_secrets where tenant_key = $1 and key_version <> $2
      order by name limit 500]], tenant, version)
end

--- The same value under another version; nothing when it was set anew meanwhile.
function M.reseal_secret(tenant, name, old, sealed, version)
    return db.query(tenant, [[update tenant_secrets set value_enc = $4::bytea, key_version = $5 where tenant_key = $1 and name = $2
      and value_enc = $3::bytea]], tenant, name, pg.bytea(old), pg.bytea(sealed), version).affected
end

function M.put_secret(row)
    return { [[insert into tenant_secrets (tenant_key, app_key, id, name, value_enc, key_version, updated_by, created_at, updated_at)
      values ($1, $2, $3, $4, $5::bytea, $6, $7, $8::timestamptz, $8::timestamptz)
      on conflict (tenant_key, name) do update set value_enc = excluded.value_enc, key_version = excluded.key_version,
        updated_by = excluded.updated_by, updated_at = excluded.updated_at]], row.tenant_key, row.app_key, row.id, row.name, row.value_enc,
        row.key_version, row.updated_by or null, row.now }
end

function M.drop_secret(tenant, name)
    return { "delete from tenant_secrets where tenant_key = $1 and name = $2 returning name", tenant, name }
end

M.empty = json.array

return M
