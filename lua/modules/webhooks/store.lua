-- SQL of webhook endpoints and deliveries.
local pg = require("core.pg")
local db = require("kasma.db")
local null = require("kasma.null")

local M = {}

local ENDPOINT = [[e.id, e.tenant_key, e.app_key, e.name, e.url, e.events, e.secret_enc, e.old_secret_enc, e.old_secret_until, e.headers,
  e.state, e.disabled_reason, e.failing_since, e.created_by, e.version, e.created_at, e.updated_at]]
local SHORT = [[d.id, d.endpoint_id, d.event_id, d.event, d.entity_key, d.sequence, d.round, d.try, d.state, d.due_at, d.status_code,
  d.micros, d.error, d.created_at, d.sent_at]]
local WHOLE = SHORT .. ", d.app_key, d.request, d.answer"

-- Endpoints ------------------------------------------------------------------------------------------------------------------

---@param tenant string
---@return table[] all, at most 50
function M.endpoints(tenant)
    return db.read(tenant, "select " .. ENDPOINT .. " from webhook_endpoints e where e.tenant_key = $1 order by e.id limit 50", tenant)
end

---@param tenant string
---@param id string
---@return table|nil
function M.endpoint(tenant, id) return db.one(tenant, unpack(M.read_endpoint(tenant, id))) end

---@param tenant string
---@param id string
---@return table statement answers the row
function M.read_endpoint(tenant, id)
    return { "select " .. ENDPOINT .. " from webhook_endpoints e where e.tenant_key = $1 and e.id = $2", tenant, id }
end

--- How many secrets of the tenant's endpoints each version of SERVER_KEY sealed.
---@param tenant string
---@return table[] {version, n}
function M.sealed_by(tenant)
    return db.query(tenant, [[select get_byte(s.sealed, 0) as version, count(*)::int as n from webhook_endpoints e
      cross join lateral (values (e.secret_enc), (e.old_secret_enc)) s (sealed)
      where e.tenant_key = $1 and s.sealed is not null group by 1]], tenant)
end

--- Puts sealed secrets in the place of the ones that were read.
---@param tenant string
---@param e table endpoint as it was read
---@param secret string
---@param old string|nil
---@param now string
---@return integer changed 0 when it was rotated meanwhile
function M.reseal(tenant, e, secret, old, now)
    return db.query(tenant, [[update webhook_endpoints set secret_enc = $4, old_secret_enc = $5, updated_at = $6::timestamptz
      where tenant_key = $1 and id = $2 and secret_enc = $3]], tenant, e.id, pg.bytea(e.secret_enc), pg.bytea(secret),
        old and pg.bytea(old) or null, now).affected
end

--- How many endpoints there are, told to one asker at a time until the end of the transaction.
---@param tenant string
---@return table[] statements
function M.count_endpoints(tenant)
    return { { "select pg_advisory_xact_lock(hashtextextended('webhooks|' || $1::text, 0))", tenant },
        { "select count(*)::int as n from webhook_endpoints where tenant_key = $1", tenant } }
end

---@param e table
---@return table statement
function M.insert_endpoint(e)
    return { "insert into webhook_endpoints as e (tenant_key, app_key, id, name, url, events, secret_enc, headers, created_by, created_at, "
        .. "updated_at) values ($1, $2, $3, $4, $5, $6::text[], $7, $8::jsonb, $9, $10::timestamptz, $10::timestamptz) returning "
        .. ENDPOINT,
        e.tenant_key, e.app_key, e.id, e.name, e.url, pg.array(e.events), pg.bytea(e.secret_enc), pg.json(e.headers),
        e.created_by or null, e.now }
end

--- What is nil stays. A state of active begins anew: nothing is known to fail.
---@param tenant string
---@param id string
---@param c table name, url, events, headers, state, reason, now
---@return table statement
function M.update_endpoint(tenant, id, c)
    return { [[update webhook_endpoints as e set name = coalesce($3, name), url = coalesce($4, url),
      events = coalesce($5::text[], events), headers = coalesce($6::jsonb, headers), state = coalesce($7, state),
      disabled_reason = case when $7 = 'disabled' then $8 when $7 = 'active' then null else disabled_reason end,
      failing_since = case when $7 = 'active' then null else failing_since end, version = version + 1, updated_at = $9::timestamptz
      where tenant_key = $1 and id = $2 returning ]] .. ENDPOINT, tenant, id, c.name or null, c.url or null,
        c.events and pg.array(c.events) or null, c.headers and pg.json(c.headers) or null, c.state or null, c.reason or null, c.now }
end

---@param tenant string
---@param id string
---@param secret_enc string the new one
---@param old_until string ISO: until then the secret that held so far is signed with too
---@param now string
---@return table statement
function M.rotate(tenant, id, secret_enc, old_until, now)
    return { [[update webhook_endpoints as e set old_secret_enc = secret_enc, old_secret_until = $4::timestamptz, secret_enc = $3,
      version = version + 1, updated_at = $5::timestamptz where tenant_key = $1 and id = $2 returning ]] .. ENDPOINT, tenant, id,
        pg.bytea(secret_enc), old_until, now }
end

---@param tenant string
---@param id string
---@return table statement
function M.delete_endpoint(tenant, id)
    return { "delete from webhook_endpoints where tenant_key = $1 and id = $2 returning id, name, url", tenant, id }
end

---@param tenant string
---@param id string
---@param now string
---@return table statement
function M.failing(tenant, id, now)
    return { [[update webhook_endpoints set failing_since = $3::timestamptz where tenant_key = $1 and id = $2 and failing_since is null
      and state = 'active']], tenant, id, now }
end

---@param tenant string
---@param id string
---@return table statement
function M.healthy(tenant, id)
    return { "update webhook_endpoints set failing_since = null where tenant_key = $1 and id = $2 and failing_since is not null", tenant,
        id }
end

---@param tenant string
---@param id string
---@param reason string
---@param now string
---@param failing_before string|nil ISO: only when it has been failing since then or longer
---@return table statement answers the row when it was active
function M.disable(tenant, id, reason, now, failing_before)
    return { [[update webhook_endpoints as e set state = 'disabled', disabled_reason = $3, version = version + 1,
      updated_at = $4::timestamptz where tenant_key = $1 and id = $2 and state = 'active'
      and ($5::timestamptz is null or failing_since <= $5::timestamptz) returning ]] .. ENDPOINT, tenant, id, reason, now,
        failing_before or null }
end

-- Deliveries -----------------------------------------------------------------------------------------------------------------

--- Which of these events have a first delivery already.
---@param tenant string
---@param events string[] ids
---@return table statement rows of endpoint_id, event_id
function M.known(tenant, events)
    return { [[select endpoint_id, event_id from webhook_deliveries where tenant_key = $1 and event_id = any($2::uuid[]) and round = 0
      and try = 1 and endpoint_id in (select id from webhook_endpoints where tenant_key = $1)]], tenant, pg.array(events) }
end

---@param tenant string
---@param app string
---@param endpoint_id string
---@param entity_key string
---@param now string
---@return table statement answers {last}
function M.next_sequence(tenant, app, endpoint_id, entity_key, now)
    return { [[insert into webhook_sequences (tenant_key, app_key, endpoint_id, entity_key, last, updated_at)
      values ($1, $2, $3, $4, 1, $5::timestamptz) on conflict (tenant_key, endpoint_id, entity_key)
      do update set last = webhook_sequences.last + 1, updated_at = excluded.updated_at returning last]], tenant, app, endpoint_id,
        entity_key, now }
end

---@param d table
---@return table statement
function M.insert_delivery(d)
    return { "insert into webhook_deliveries as d (tenant_key, app_key, id, endpoint_id, event_id, event, entity_key, sequence, round, "
        .. [[try, due_at, request, created_at)
      values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11::timestamptz, $12::jsonb, $13::timestamptz)
      on conflict (tenant_key, endpoint_id, event_id, round, try) do nothing returning ]] .. WHOLE, d.tenant_key, d.app_key, d.id,
        d.endpoint_id, d.event_id, d.event, d.entity_key, d.sequence, d.round, d.try, d.due_at, pg.json(d.request), d.now }
end

---@param tenant string
---@param id string
---@return table|nil
function M.delivery(tenant, id)
    return db.one(tenant, "select " .. WHOLE .. " from webhook_deliveries d where d.tenant_key = $1 and d.id = $2", tenant, id)
end

local FILTER = [[ from webhook_deliveries d where d.tenant_key = $1
  and ($2::uuid is null or d.endpoint_id = $2::uuid) and ($3::text is null or d.event = $3) and ($4::text is null or d.state = $4)
  and ($5::uuid is null or d.event_id = $5::uuid) and ($6::timestamptz is null or d.created_at >= $6::timestamptz)
  and ($7::timestamptz is null or d.created_at <= $7::timestamptz)]]

local function filter(tenant, f)
    return tenant, f.endpoint_id or null, f.event or null, f.state or null, f.event_id or null, f.from or null, f.to or null
end

local function page_sql(compare, order)
    return "select " .. SHORT .. FILTER .. " and ($8::uuid is null or d.id " .. compare .. " $8::uuid) order by d.id " .. order
        .. " limit $9"
end
local NEWEST_FIRST, OLDEST_FIRST = page_sql("<", "desc"), page_sql(">", "asc")

---@class webhooks.Filter
---@field endpoint_id string|nil
---@field event string|nil
---@field state string|nil
---@field event_id string|nil
---@field from string|nil ISO: created then or later
---@field to string|nil ISO: created then or earlier

---@param tenant string
---@param f webhooks.Filter
---@param after string|nil id of the last one of the page before
---@param limit integer
---@param oldest_first boolean|nil
---@return table[] in the order in which they were made, the newest first unless asked otherwise
function M.deliveries(tenant, f, after, limit, oldest_first)
    local words = { filter(tenant, f) }
    words[8], words[9] = after or null, limit
    return db.read(tenant, oldest_first and OLDEST_FIRST or NEWEST_FIRST, unpack(words, 1, 9))
end

--- How many fit a filter.
---@param tenant string
---@param f webhooks.Filter
---@param most integer no more are counted
---@return integer
function M.count_deliveries(tenant, f, most)
    local words = { filter(tenant, f) }
    words[8] = most
    return db.read(tenant, "select count(*)::int as n from (select 1" .. FILTER .. " limit $8) found", unpack(words, 1, 8))[1].n
end

--- Deliveries of an endpoint that ended without success and were not sent since, one for each event.
---@param tenant string
---@param f {endpoint_id: string, event: string|nil, from: string|nil, to: string|nil}
---@param limit integer
---@return table[] oldest first
function M.dead(tenant, f, limit)
    return db.read(tenant, "select " .. WHOLE .. [[ from webhook_deliveries d where d.tenant_key = $1 and d.endpoint_id = $2
      and d.state = 'dead' and ($3::text is null or d.event = $3) and ($4::timestamptz is null or d.created_at >= $4::timestamptz)
      and ($5::timestamptz is null or d.created_at < $5::timestamptz)
      and not exists (select 1 from webhook_deliveries o where o.tenant_key = d.tenant_key and o.endpoint_id = d.endpoint_id
        and o.event_id = d.event_id and (o.round, o.try) > (d.round, d.try))
      order by d.id limit $6]], tenant, f.endpoint_id, f.event or null, f.from or null, f.to or null, limit)
end

---@param tenant string
---@param endpoint_id string
---@param event_id string
---@return table statement answers {round}
function M.last_round(tenant, endpoint_id, event_id)
    return { "select max(round)::int as round from webhook_deliveries where tenant_key = $1 and endpoint_id = $2 and event_id = $3", tenant,
        endpoint_id, event_id }
end

--- Ends a try; nothing is changed when it has ended already.
---@param tenant string
---@param id string
---@param r table state, request, status_code, answer, micros, error, now
---@return table statement
function M.end_try(tenant, id, r)
    return { [[update webhook_deliveries set state = $3, request = request || $4::jsonb, status_code = $5, answer = $6, micros = $7,
      error = $8, sent_at = $9::timestamptz where tenant_key = $1 and id = $2 and state = 'pending' returning id]], tenant, id, r.state,
        pg.json(r.request or {}), r.status_code or null, r.answer or null, r.micros or null, r.error or null, r.now }
end

--- Event rows of the outbox from an id on, in the order in which they were written. What a rule emits has an id that is made of its key,
--- above all that are made of the time (capabilities.once_id), so the time says what is new.
---@param tenant string
---@param from string uuid
---@param since string ISO, the time of `from`
---@param limit integer
---@return table[]
function M.events_after(tenant, from, since, limit)
    return db.read(tenant, [[select id, tenant_key, app_key, key, payload, created_at from outbox where tenant_key = $1 and id >= $2
      and topic = 'event' and created_at >= $3::timestamptz order by created_at, id limit $4::int]],
        tenant, from, since, limit)
end

--- Removes deliveries older than an id, a batch.
---@param tenant string
---@param before string uuid
---@param limit integer
---@return integer
function M.prune(tenant, before, limit)
    return db.query(tenant, [[delete from webhook_deliveries where tenant_key = $1 and id in (select id from webhook_deliveries
      where tenant_key = $1 and id < $2::uuid and state <> 'pending' order by id limit $3)]], tenant, before, limit).affected
end

---@param tenant string
---@param before string ISO
---@param limit integer
---@return integer
function M.prune_sequences(tenant, before, limit)
    return db.query(tenant, [[delete from webhook_sequences where tenant_key = $1 and (endpoint_id, entity_key) in (select endpoint_id,
      entity_key from webhook_sequences where tenant_key = $1 and updated_at < $2::timestamptz limit $3)]], tenant, before, limit).affected
end

return M
