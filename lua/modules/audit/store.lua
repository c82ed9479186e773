-- SQL and document queries of the audit lists, the proof of the chain and retention.
-- The proof must see what the lists do not (documents under another tenant's name, two at one place), so it asks core.mongo
-- itself; everything it asks is by _id or by equality on the index (tenant_key, seq).
local json = require("core.json")
local mongo = require("core.mongo")
local pg = require("core.pg")
local time = require("core.time")
local db = require("kasma.db")
local errors = require("kasma.errors")
local null = require("kasma.null")
local schema = require("kasma.schema")

local M = {}

local COLLECTION = "audit_log"

-- The sign-in log ------------------------------------------------------------------------------------------------------------

local function where_sign_in(tenant, user_id, action)
    local sql, params = "tenant_key = $1", { tenant }
    if user_id then
        params[#params + 1] = user_id
        sql = sql .. " and user_id = $" .. #params
    end
    if action then
        params[#params + 1] = action
        sql = sql .. " and action = $" .. #params
    end
    return sql, params
end

---@param tenant string
---@param user_id string|nil
---@param action string|nil
---@param limit integer
---@param offset integer
---@return table[] rows the newest first, integer total
function M.sign_ins(tenant, user_id, action, limit, offset)
    local where, params = where_sign_in(tenant, user_id, action)
    local n = #params
    local total = db.one(tenant, "select count(*)::int as n from audit_auth_log where " .. where, unpack(params, 1, n)).n
    if offset >= total then return {}, total end
    params[n + 1], params[n + 2] = limit, offset
    return db.read(tenant, "select id, user_id, action, target, metadata, created_at from audit_auth_log where " .. where
        .. (" order by created_at desc, id desc limit $%d offset $%d"):format(n + 1, n + 2), unpack(params, 1, n + 2)), total
end

-- Events ---------------------------------------------------------------------------------------------------------------------

local EVENT = "id, created_at, actor_id, action, entity_type, entity_id, outcome"

-- What a list filters by, in the order of its parameters. Each set of filters is a statement of its own, so that the planner
-- sees which index serves it.
local FILTERS = {
    { "actor_id", "actor_id = $%d::uuid" }, { "action", "action = $%d" }, { "entity_type", "entity_type = $%d" },
    { "entity_id", "entity_id = $%d" }, { "from", "created_at >= $%d::timestamptz" }, { "to", "created_at < $%d::timestamptz" },
}

local function where_event(tenant, filters)
    local sql, params = "tenant_key = $1", { tenant }
    for _, filter in ipairs(FILTERS) do
        local value = filters[filter[1]]
        if value ~= nil then
            params[#params + 1] = value
            sql = sql .. " and " .. filter[2]:format(#params)
        end
    end
    return sql, params
end

---@param tenant string
---@param filters table actor_id, action, entity_type, entity_id, from, to
---@param place {at: string, id: string}|nil after this one
---@param limit integer
---@return table[] the newest first
function M.events(tenant, filters, place, limit)
    local where, params = where_event(tenant, filters)
    if place then
        params[#params + 1], params[#params + 2] = place.at, place.id
        where = where .. (" and (created_at, id) < ($%d::timestamptz, $%d::uuid)"):format(#params - 1, #params)
    end
    params[#params + 1] = limit
    return db.read(tenant, ("select %s from audit_index where %s order by created_at desc, id desc limit $%d")
        :format(EVENT, where, #params), unpack(params))
end

-- An id begins with the 48 bits of its time, taken from the same clock as created_at: the partitions of other months are not
-- looked at. A second of slack covers the moment between the two.
local function id_of(iso, slack_ms)
    local hex = ("%012x"):format(math.max(0, time.parse(iso) + slack_ms))
    return hex:sub(1, 8) .. "-" .. hex:sub(9, 12) .. "-0000-0000-000000000000"
end

--- A page of events by id, newest first: what an export of any length walks along.
---@param tenant string
---@param filters table as for events
---@param after string|nil id; events before it
---@param limit integer
---@return table[]
function M.events_by_id(tenant, filters, after, limit)
    local where, params = where_event(tenant, filters)
    params[#params + 1] = filters.from and id_of(filters.from, -1000) or "00000000-0000-0000-0000-000000000000"
    params[#params + 1] = after or (filters.to and id_of(filters.to, 1000)) or "ffffffff-ffff-ffff-ffff-ffffffffffff"
    params[#params + 1] = limit
    local n = #params
    return db.read(tenant, ("select %s from audit_index where %s and id >= $%d::uuid and id < $%d::uuid order by id desc limit $%d")
        :format(EVENT, where, n - 2, n - 1, n), unpack(params))
end

---@param tenant string
---@param id string
---@return table|nil
function M.event(tenant, id)
    return db.one(tenant, "select " .. EVENT .. " from audit_index where tenant_key = $1 and id = $2", tenant, id)
end

-- The chain ------------------------------------------------------------------------------------------------------------------

--- Tenants after a key, in order, platform-wide.
---@param after string
---@param limit integer
---@return string[]
function M.tenants(after, limit)
    local keys = {}
    for i, row in ipairs(db.read(nil, "select tenant_key from tenants where tenant_key > $1 order by tenant_key limit $2", after, limit)) do
        keys[i] = row.tenant_key
    end
    return keys
end

--- Both ends of a tenant's chain; nil when nothing was ever audited.
---@param tenant string
---@return {seq: integer, hash: string, trimmed_seq: integer, trimmed_hash: string}|nil
function M.head(tenant)
    return db.one(tenant, "select seq, hash, trimmed_seq, trimmed_hash from audit_heads where tenant_key = $1", tenant)
end

--- The documents at the places first..last of the chain, in no order; two at one place are both there.
---@param tenant string
---@param first integer
---@param last integer
---@return table[]
function M.at_places(tenant, first, last)
    local places = {}
    for seq = first, last do places[#places + 1] = seq end
    return errors.check(mongo.find(COLLECTION, { tenant_key = tenant, seq = { ["$in"] = json.array(places) } },
        { limit = 4 * #places }))
end

--- Documents by id, whosever they are.
---@param ids string[]
---@return table<string, table> _id, tenant_key, seq
function M.places_of(ids)
    local found = {}
    if #ids == 0 then return found end
    for _, doc in ipairs(errors.check(mongo.find(COLLECTION, { _id = { ["$in"] = json.array(ids) } },
        { limit = #ids, projection = { tenant_key = 1, seq = 1 } }))) do
        found[tostring(doc._id)] = doc
    end
    return found
end

-- An id of ours is text. A comparison finds values of its own kind alone, so what has another kind of id is asked for by that.
local STRANGE = { ["$not"] = { ["$type"] = "string" } }

---@param tenant string
---@param strange boolean|nil only those whose id is no text
---@return integer
function M.count_documents(tenant, strange)
    local rows = errors.check(mongo.aggregate(COLLECTION, { { ["$match"] = { tenant_key = tenant, _id = strange and STRANGE or nil } },
        { ["$group"] = { _id = null, n = { ["$sum"] = 1 } } } }))
    return rows[1] and tonumber(rows[1].n) or 0
end

--- A page of a tenant's documents by id, of those whose id is text. Only asked when their number shows that there are more than the
--- chain has.
---@param tenant string
---@param after string|nil id
---@param limit integer
---@return table[] _id, seq
function M.documents_after(tenant, after, limit)
    local filter = { tenant_key = tenant, _id = after and { ["$gt"] = after } or { ["$gte"] = "" } }
    return errors.check(mongo.find(COLLECTION, filter, { limit = limit, sort = { { "_id", 1 } }, projection = { seq = 1 } }))
end

--- Documents of a tenant whose id is no text.
---@param tenant string
---@param limit integer
---@return table[] _id, seq
function M.strange_documents(tenant, limit)
    return errors.check(mongo.find(COLLECTION, { tenant_key = tenant, _id = STRANGE }, { limit = limit, projection = { seq = 1 } }))
end

--- Index rows by id.
---@param tenant string
---@param ids string[]
---@return table<string, table>
function M.index_of(tenant, ids)
    local found, own = {}, {}
    for _, id in ipairs(ids) do
        if schema.is_uuid(id) then own[#own + 1] = id end -- what stands in a document store is anybody's word
    end
    if #own == 0 then return found end
    for _, row in ipairs(db.read(tenant, "select " .. EVENT .. " from audit_index where tenant_key = $1 and id = any($2::uuid[])", tenant,
        pg.array(own))) do
        found[row.id] = row
    end
    return found
end

---@param tenant string
---@return integer
function M.count_index(tenant)
    return db.one(tenant, "select count(*)::int as n from audit_index where tenant_key = $1", tenant).n
end

--- Which of these events the relay has still to deliver.
---@param tenant string
---@param ids string[]
---@return table<string, boolean>
function M.undelivered(tenant, ids)
    local found = {}
    if #ids == 0 then return found end
    for _, row in ipairs(db.read(tenant, [[select payload->>'id' as id from outbox where tenant_key = $1 and sent_at is null
      and topic = 'audit' and payload->>'id' = any($2::text[])]], tenant, pg.array(ids))) do
        found[row.id] = true
    end
    return found
end

-- Retention ------------------------------------------------------------------------------------------------------------------

--- Moves the beginning of the chain; false when somebody else moved it.
---@param tenant string
---@param from integer where it began
---@param seq integer the last one removed
---@param hash string
---@return boolean
function M.trim(tenant, from, seq, hash)
    return db.query(tenant, [[update audit_heads set trimmed_seq = $3, trimmed_hash = $4 where tenant_key = $1 and trimmed_seq = $2]],
        tenant, from, seq, hash).affected == 1
end

---@param tenant string
---@param first integer
---@param last integer
---@return integer removed
function M.remove_documents(tenant, first, last)
    local places = {}
    for seq = first, last do places[#places + 1] = seq end
    if #places == 0 then return 0 end
    return errors.check(mongo.delete(COLLECTION, { tenant_key = tenant, seq = { ["$in"] = json.array(places) } }, { multi = true }))
end

local OLD_ROWS = {
    [[delete from audit_index where tenant_key = $1 and id in (select id from audit_index
      where tenant_key = $1 and created_at < $2::timestamptz order by created_at limit $3)]],
    [[delete from audit_auth_log where tenant_key = $1 and id in (select id from audit_auth_log
      where tenant_key = $1 and created_at < $2::timestamptz order by created_at limit $3)]],
}

--- Removes a batch of index and sign-in rows older than a moment.
---@param tenant string
---@param before string ISO time
---@param limit integer
---@return integer removed
function M.remove_rows(tenant, before, limit)
    local removed = 0
    for _, sql in ipairs(OLD_ROWS) do removed = removed + db.query(tenant, sql, tenant, before, limit).affected end
    return removed
end

return M
