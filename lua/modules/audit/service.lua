-- The proof of the audit trail, and its retention.
--
-- What the chain promises (kasma.audit writes it): the documents of a tenant stand at the places 1, 2, 3, .. of its chain; each
-- holds the hash of the one before, its own place and its text in its hash. PostgreSQL keeps the last hash (audit_heads) and one
-- index row an event. So whoever can write to MongoDB alone can neither cut, change, move nor add an event unseen, even when
-- every hash is made anew, because the last one would differ from the head.
--
-- The proof walks the places in steps, reads each document once and keeps nothing but what is wrong: its memory does not grow
-- with the trail. It may run beside a live system: what the relay has still to deliver is no finding.
local json = require("core.json")
local sched = require("core.sched")
local time = require("core.time")
local audit = require("kasma.audit")
local null = require("kasma.null")
local store = require("modules.audit.store")

local M = {}

local STEP = 200            -- documents a read
local NAMED_MAX = 1000      -- findings that are named; all are counted
local SEARCH = 1000         -- how far around its place a moved event is looked for
local BEFORE_FIRST = ("0"):rep(64)

---@class audit.Finding
---@field kind "missing"|"altered"|"reordered"|"extra"
---@field seq integer|nil place in the chain
---@field id string|nil event
---@field what string

---@class audit.Report
---@field tenant string
---@field events integer places of the chain that were looked at
---@field head integer
---@field trimmed integer events that retention has removed
---@field missing integer
---@field altered integer
---@field reordered integer
---@field extra integer
---@field findings audit.Finding[] the first thousand
---@field ok boolean

local function note(report, kind, seq, id, what)
    report[kind] = report[kind] + 1
    if #report.findings < NAMED_MAX then
        report.findings[#report.findings + 1] = { kind = kind, seq = seq, id = id and tostring(id) or nil, what = what }
    end
end

-- A document store gives back numbers and empty lists its own way; what is compared is what they mean. Null is no member.
local function same(a, b)
    if a == null then a = nil end
    if b == null then b = nil end
    if type(a) ~= "table" or type(b) ~= "table" then
        return a == b or (a ~= nil and b ~= nil and type(a) ~= "table" and type(b) ~= "table" and tonumber(a) ~= nil
            and tonumber(a) == tonumber(b))
    end
    for key, value in pairs(a) do
        if not same(value, b[key]) then return false end
    end
    for key, value in pairs(b) do
        if a[key] == nil and value ~= null then return false end
    end
    return true
end

local MEMBERS = { "_id", "tenant_key", "app_key", "actor", "action", "entity", "request", "outcome", "created_at", "before", "after" }

-- The first member that does not say what the hashed text says; nil when all do.
local function differing(doc)
    local ok, text = pcall(json.decode, doc.body)
    if not ok or type(text) ~= "table" then return "body" end
    for _, name in ipairs(MEMBERS) do
        if not same(doc[name], text[name]) then return name end
    end
    return nil
end

local function is_text(value) return type(value) == "string" end

local function holds(doc, seq)
    return is_text(doc.prev_hash) and is_text(doc.body) and is_text(doc.hash)
        and audit.chain_hash{ prev_hash = doc.prev_hash, seq = seq, body = doc.body } == doc.hash
end

-- Where a document that does not hold at its place was written; nil when nowhere near.
local function written_at(doc, seq)
    if not (is_text(doc.prev_hash) and is_text(doc.body) and is_text(doc.hash)) then return nil end
    for away = 1, SEARCH do
        if seq > away and holds(doc, seq - away) then return seq - away end
        if holds(doc, seq + away) then return seq + away end
    end
    return nil
end

-- Of several at one place, the one that was written there.
local function choose(docs, seq, expected)
    local best, most = 1, -1
    for i, doc in ipairs(docs) do
        local score = (holds(doc, seq) and 4 or 0) + (doc.prev_hash == expected and 2 or 0) + (differing(doc) == nil and 1 or 0)
        if score > most then best, most = i, score end
    end
    return best
end

-- What the index row and the document say of the same event.
local function disagrees(doc, row)
    local actor = type(doc.actor) == "table" and doc.actor or {}
    local entity = type(doc.entity) == "table" and doc.entity or {}
    if not same(doc.action, row.action) then return "action" end
    if not same(doc.outcome, row.outcome) then return "outcome" end
    if not same(actor.id, row.actor_id) then return "actor" end
    if not same(entity.type, row.entity_type) or not same(entity.id, row.entity_id) then return "entity" end
    if not is_text(doc.created_at) or time.parse(doc.created_at) ~= time.parse(row.created_at) then return "created_at" end
    return nil
end

-- One place of the chain; answers the hash that the next one must name, nil when that cannot be known.
local function check_place(report, state, doc, seq)
    local good = holds(doc, seq)
    if not good then
        local home = written_at(doc, seq)
        if home then
            note(report, "reordered", seq, doc._id, ("stands at place %d and was written at %d"):format(seq, home))
            return nil
        end
        note(report, "altered", seq, doc._id, "its text or its hash is not what was written")
        return is_text(doc.hash) and doc.hash or nil
    end
    local expected = state.expected
    if expected and doc.prev_hash ~= expected then
        -- The text before holds with a hash of its own making, or this one was written anew: the earlier one is the suspect
        -- unless it was named already.
        if state.suspect ~= seq - 1 then
            note(report, "altered", seq - 1, state.previous, ("the event at place %d follows another one than this"):format(seq))
        end
    end
    local member = differing(doc)
    if member then note(report, "altered", seq, doc._id, ("%s is not what the hashed text says"):format(member)) end
    return doc.hash
end

local function walk_places(report, head, cutoff)
    local state = { expected = head.trimmed_hash, suspect = nil, previous = nil }
    local seen, matched = 0, 0
    for first = head.trimmed_seq + 1, head.seq, STEP do
        local last = math.min(first + STEP - 1, head.seq)
        local at = {}
        for _, doc in ipairs(store.at_places(report.tenant, first, last)) do
            local seq = tonumber(doc.seq)
            at[seq] = at[seq] or {}
            table.insert(at[seq], doc)
            seen = seen + 1
        end
        local chained = {}
        for seq = first, last do
            local docs = at[seq]
            report.events = report.events + 1
            if not docs then
                note(report, "missing", seq, nil, "no document stands here")
                state.expected, state.suspect, state.previous = nil, seq, nil
            else
                local chosen = choose(docs, seq, state.expected)
                for i, doc in ipairs(docs) do
                    if i ~= chosen then note(report, "extra", seq, doc._id, "a second document at this place") end
                end
                local doc = docs[chosen]
                local before = report.altered + report.reordered
                state.expected = check_place(report, state, doc, seq)
                state.suspect = report.altered + report.reordered > before and seq or nil
                state.previous = doc._id
                if is_text(doc._id) then chained[#chained + 1] = doc end
            end
        end
        local ids = {}
        for i, doc in ipairs(chained) do ids[i] = doc._id end
        local rows = store.index_of(report.tenant, ids)
        for _, doc in ipairs(chained) do
            local row = rows[doc._id]
            local old = is_text(doc.created_at) and doc.created_at < cutoff
            if row then
                matched = matched + 1
                local member = disagrees(doc, row)
                if member then note(report, "altered", tonumber(doc.seq), doc._id, ("%s is not what audit_index says"):format(member)) end
            elseif not old then
                note(report, "extra", tonumber(doc.seq), doc._id, "audit_index has no row of it")
            end
        end
        if sched.stopping() then break end
    end
    if state.expected and state.expected ~= head.hash then
        note(report, "altered", head.seq, state.previous, "the chain ends in another hash than audit_heads keeps")
    end
    return seen, matched
end

-- Index rows whose document is not there. The number alone tells whether there are any, so the walk is rare.
local function find_missing(report)
    local after
    repeat
        local rows = store.events_by_id(report.tenant, {}, after, STEP)
        local ids, absent = {}, {}
        for i, row in ipairs(rows) do ids[i] = row.id end
        local docs = store.places_of(ids)
        for _, row in ipairs(rows) do
            local doc = docs[row.id]
            if not doc then
                absent[#absent + 1] = row.id
            elseif doc.tenant_key ~= report.tenant then
                note(report, "altered", tonumber(doc.seq), row.id, "its document says that it is another tenant's")
            end
        end
        local waiting = store.undelivered(report.tenant, absent)
        -- Asked again: what was delivered between the two questions is there now.
        local again = store.places_of(absent)
        for _, row in ipairs(rows) do
            if not docs[row.id] and not waiting[row.id] and not again[row.id] then
                note(report, "missing", nil, row.id, ("%s of %s has no document"):format(row.action, row.created_at))
            end
        end
        after = rows[#rows] and rows[#rows].id
    until #rows < STEP or sched.stopping()
end

local function is_chained(doc, head)
    local seq = tonumber(doc.seq)
    return seq ~= nil and seq > head.trimmed_seq and seq <= head.seq and seq % 1 == 0
end

-- Those whose id is no text, which none of ours has: what stands at a place was named there. All are counted, the first ones named.
local function find_strange(report, head)
    local docs = store.strange_documents(report.tenant, NAMED_MAX)
    for _, doc in ipairs(docs) do
        if not is_chained(doc, head) then
            note(report, "extra", nil, is_text(doc._id) and doc._id or json.encode(doc._id), "stands at no place of the chain")
        end
    end
    if #docs == NAMED_MAX then report.extra = report.extra + store.count_documents(report.tenant, true) - #docs end
end

-- Documents of the tenant that stand at no place of the chain.
local function find_extra(report, head)
    find_strange(report, head)
    local after
    repeat
        local docs = store.documents_after(report.tenant, after, STEP)
        local ids = {}
        for _, doc in ipairs(docs) do
            local seq = tonumber(doc.seq)
            -- Retention removes the documents after it has moved the beginning: the last step may still lie there.
            local left = seq and seq <= head.trimmed_seq and seq > head.trimmed_seq - STEP
            if not is_chained(doc, head) and not left then ids[#ids + 1] = doc._id end
            after = doc._id
        end
        local rows = store.index_of(report.tenant, ids)
        for _, id in ipairs(ids) do
            if not rows[id] then note(report, "extra", nil, id, "stands at no place of the chain") end
        end
    until #docs < STEP or sched.stopping()
end

--- Recomputes the chain of a tenant from MongoDB and holds it against audit_heads and audit_index.
---@param tenant string
---@param keep_days integer|nil how long events are kept: rows of older ones may be gone already
---@return audit.Report
function M.verify(tenant, keep_days)
    local head = store.head(tenant) or { seq = 0, hash = BEFORE_FIRST, trimmed_seq = 0, trimmed_hash = BEFORE_FIRST }
    local report = { tenant = tenant, events = 0, head = head.seq, trimmed = head.trimmed_seq, missing = 0, altered = 0, reordered = 0,
        extra = 0, findings = json.array({}) }
    local cutoff = time.iso(time.now() - (keep_days or 400) * 86400000)
    local seen, matched = walk_places(report, head, cutoff)
    if store.count_index(tenant) > matched then find_missing(report) end
    if store.count_documents(tenant) > seen then find_extra(report, head) end
    report.ok = report.missing + report.altered + report.reordered + report.extra == 0
    return report
end

--- Every tenant in order of its key, a bounded number at a time.
---@param fn fun(tenant: string)
function M.each_tenant(fn)
    local last = ""
    repeat
        local keys = store.tenants(last, 500)
        for _, key in ipairs(keys) do
            if sched.stopping() then return end
            fn(key)
            last = key
        end
    until #keys < 500
end

---@param tenant string
---@return boolean
function M.is_tenant(tenant) return require("kasma.tenant").by_key(tenant) ~= nil end

-- The last of some places at the beginning of the chain whose event is older than its time. That a document says so is not enough:
-- whoever can write to MongoDB would have the trail removed by ageing it. It must hold at its place, say what its text says, and be
-- as old by PostgreSQL's index row; without a row (its partition is gone) it must hang on the trimmed end by an unbroken chain. The
-- first event that is young ends the search; what is missing or damaged is passed over, and is old when a later one is.
local function old_end(tenant, head, first, last, before)
    local at, ids = {}, {}
    for _, doc in ipairs(store.at_places(tenant, first, last)) do
        local seq = tonumber(doc.seq)
        at[seq] = at[seq] or {}
        table.insert(at[seq], doc)
        if is_text(doc._id) then ids[#ids + 1] = doc._id end
    end
    local rows, found, expected = store.index_of(tenant, ids), nil, head.trimmed_hash
    for seq = first, last do
        local docs = at[seq]
        local doc = docs and docs[choose(docs, seq, expected)]
        local row = doc and rows[doc._id]
        local sound = doc and holds(doc, seq) and differing(doc) == nil
        local linked = sound and doc.prev_hash == expected
        expected = linked and doc.hash or nil
        if row and time.parse(row.created_at) >= time.parse(before) or linked and doc.created_at >= before then break end
        if sound and doc.created_at < before and (row or linked) then found = doc end
    end
    return found
end

--- Removes what is older than its time: documents with their index rows from the beginning of the chain, rows that no document
--- belongs to, and sign-ins. The beginning is moved first, so that a crash leaves documents too many, never too few; those are
--- removed by the next run.
---@param tenant string
---@param keep_days integer at least 30
---@return integer documents, integer rows
function M.trim(tenant, keep_days)
    -- The database lets nothing go that is younger than thirty days by its own clock, whatever ours is shifted to.
    local before = time.iso(math.min(time.now() - keep_days * 86400000, time.real() - 30 * 86400000))
    local documents, rows = 0, 0
    local head = store.head(tenant)
    while head and head.trimmed_seq < head.seq and not sched.stopping() do
        local first = head.trimmed_seq + 1
        local last = old_end(tenant, head, first, math.min(first + STEP - 1, head.seq), before)
        if not last or not store.trim(tenant, head.trimmed_seq, tonumber(last.seq), last.hash) then break end
        head.trimmed_seq, head.trimmed_hash = tonumber(last.seq), last.hash
        documents = documents + store.remove_documents(tenant, first, head.trimmed_seq)
    end
    if head and head.trimmed_seq > 0 then
        documents = documents + store.remove_documents(tenant, math.max(1, head.trimmed_seq - STEP + 1), head.trimmed_seq)
    end
    local removed
    repeat
        removed = store.remove_rows(tenant, before, 1000)
        rows = rows + removed
    until removed == 0 or sched.stopping()
    return documents, rows
end

--- A page of the trail, newest first.
M.events = store.events

return M
