-- SQL of what rules remember. What has expired is as good as absent, and goes when its tenant next writes.
local db = require("kasma.db")
local null = require("kasma.null")

local M = {}

---@class KvPlace
---@field tenant string
---@field app string
---@field rule string key of the rule whose keys these are
---@field now string

---@param at KvPlace
---@param key string
---@return table|nil {v, version}
function M.get(at, key)
    return db.one(at.tenant, [[select v, version from rule_kv where tenant_key = $1 and rule_key = $2 and k = $3
      and (expires_at is null or expires_at > $4::timestamptz)]], at.tenant, at.rule, key, at.now)
end

--- What the tenant holds beside this key, after what has expired was deleted. Until the transaction ends nobody else looks.
---@param tx kasma.Tx
---@param at KvPlace
---@param key string
---@return {keys: integer, bytes: integer}
function M.room(tx, at, key)
    return tx:pipeline({
        { "select pg_advisory_xact_lock(hashtextextended('rule_kv|' || $1::text, 0))", at.tenant },
        { "delete from rule_kv where tenant_key = $1 and expires_at <= $2::timestamptz", at.tenant, at.now },
        { [[select count(*)::int as keys, coalesce(sum(bytes), 0)::bigint as bytes from rule_kv
          where tenant_key = $1 and not (rule_key = $2 and k = $3)]], at.tenant, at.rule, key },
    })[3][1]
end

--- Puts a value that takes no more room in the place of one that is there. No row: there is none, or it is smaller, or of another version.
---@param tx kasma.Tx
---@param at KvPlace
---@param key string
---@param value userdata pg.json
---@param bytes integer
---@param expires string|nil
---@param expected integer|nil
---@return table|nil {version}
function M.replace(tx, at, key, value, bytes, expires, expected)
    return tx:query([[update rule_kv set v = $4::jsonb, bytes = $5::int, expires_at = $6::timestamptz, version = version + 1,
        updated_at = $7::timestamptz where tenant_key = $1 and rule_key = $2 and k = $3 and bytes >= $5::int
        and ($8::bigint is null or version = $8) and (expires_at is null or expires_at > $7::timestamptz) returning version]],
        at.tenant, at.rule, key, value, bytes, expires or null, at.now, expected or null)[1]
end

--- No row: the version is not the expected one (0: the key is not there).
---@param tx kasma.Tx
---@param at KvPlace
---@param key string
---@param value userdata pg.json
---@param bytes integer
---@param expires string|nil
---@param expected integer|nil
---@return table|nil {version}
function M.set(tx, at, key, value, bytes, expires, expected)
    if expected and expected > 0 then
        return tx:query([[update rule_kv set v = $4::jsonb, bytes = $5, expires_at = $6::timestamptz, version = version + 1,
            updated_at = $7::timestamptz where tenant_key = $1 and rule_key = $2 and k = $3 and version = $8
            and (expires_at is null or expires_at > $7::timestamptz) returning version]],
            at.tenant, at.rule, key, value, bytes, expires or null, at.now, expected)[1]
    end
    -- What has expired and was not deleted yet counts as absent.
    return tx:query([[insert into rule_kv as r (tenant_key, app_key, rule_key, k, v, bytes, expires_at, updated_at)
      values ($1, $2, $3, $4, $5::jsonb, $6, $7::timestamptz, $8::timestamptz)
      on conflict (tenant_key, rule_key, k) do update set v = excluded.v, bytes = excluded.bytes, expires_at = excluded.expires_at,
        version = r.version + 1, updated_at = excluded.updated_at
        where $9::bigint is null or r.expires_at <= $8::timestamptz returning version]],
        at.tenant, at.app, at.rule, key, value, bytes, expires or null, at.now, expected or null)[1]
end

--- Adds to a number that is there, which takes no room. No row: it is not there, has expired, is none, or would be too large.
---@param tx kasma.Tx
---@param at KvPlace
---@param key string
---@param by integer
---@return table|nil {v}
function M.add(tx, at, key, by)
    return tx:query([[update rule_kv set version = version + 1, updated_at = $5::timestamptz, bytes = 17,
        v = to_jsonb((v #>> '{}')::numeric + $4::bigint)
      where tenant_key = $1 and rule_key = $2 and k = $3 and (expires_at is null or expires_at > $5::timestamptz)
        and case when jsonb_typeof(v) = 'number' then abs((v #>> '{}')::numeric + $4::bigint) <= 9007199254740992 else false end
      returning (v #>> '{}')::float8 as v]], at.tenant, at.rule, key, by, at.now)[1]
end

--- No row: what is there is no number, or would not be a whole one any more.
---@param tx kasma.Tx
---@param at KvPlace
---@param key string
---@param by integer
---@return table|nil {v}
function M.incr(tx, at, key, by)
    return tx:query([[insert into rule_kv as r (tenant_key, app_key, rule_key, k, v, bytes, updated_at)
      values ($1, $2, $3, $4, to_jsonb($5::bigint), 17, $6::timestamptz)
      on conflict (tenant_key, rule_key, k) do update set version = r.version + 1, updated_at = excluded.updated_at, bytes = 17,
        v = case when r.expires_at <= $6::timestamptz then excluded.v else to_jsonb((r.v #>> '{}')::numeric + $5::bigint) end,
        expires_at = case when r.expires_at <= $6::timestamptz then null else r.expires_at end
        where r.expires_at <= $6::timestamptz or case when jsonb_typeof(r.v) = 'number'
          then abs((r.v #>> '{}')::numeric + $5::bigint) <= 9007199254740992 else false end
      returning (v #>> '{}')::float8 as v]], at.tenant, at.app, at.rule, key, by, at.now)[1]
end

---@param at KvPlace
---@param key string
---@return boolean whether it was there
function M.delete(tx, at, key)
    local row = tx:query([[delete from rule_kv where tenant_key = $1 and rule_key = $2 and k = $3
      returning expires_at is null or expires_at > $4::timestamptz as live]], at.tenant, at.rule, key, at.now)[1]
    return row ~= nil and row.live
end

---@param at KvPlace
---@param prefix string
---@param limit integer
---@return table[] {k, v, version} by key
function M.list(at, prefix, limit)
    return db.read(at.tenant, [[select k, v, version from rule_kv where tenant_key = $1 and rule_key = $2 and starts_with(k, $3)
      and (expires_at is null or expires_at > $4::timestamptz) order by k collate "C" limit $5]],
        at.tenant, at.rule, prefix, at.now, limit)
end

return M
