-- What rules that may wait remember: values under keys, each rule its own. A value is any plain value up to 64 KiB, may expire, and has
-- a version that a writer can insist on. A tenant has 10,000 keys and 16 MiB: writes that take more room than their key had come one
-- after the other, so that no two of them fill the same last place; the others wait for nobody.
--
-- Each write is one transaction, that of its note where a step of a workflow makes it.
local json = require("core.json")
local pg = require("core.pg")
local time = require("core.time")
local capabilities = require("kasma.capabilities")
local store = require("modules.rules.kv_store")

local M = {}

local KEYS_MAX, BYTES_MAX, VALUE_MAX, KEY_MAX, TTL_MAX = 10000, 16 * 1024 * 1024, 65536, 200, 366 * 86400
local WHOLE_MAX = 9007199254740992

local function wrong(name, why) capabilities.refuse(("%s: %s"):format(name, why)) end

local function check_key(name, key)
    if type(key) ~= "string" or #key < 1 or #key > KEY_MAX or key:find("%z") then
        wrong(name, "the key must be a text of 1 to 200 bytes")
    end
    return key
end

local function check_whole(name, what, value, least, most)
    if type(value) ~= "number" or value ~= math.floor(value) or value < least or value > most then
        wrong(name, ("%s must be a whole number from %d to %.0f"):format(what, least, most))
    end
    return value
end

local function place(ctx) return { tenant = ctx.tenant, app = ctx.scope.app, rule = ctx.rule.id, now = time.iso(time.now()) } end

function M.get(ctx, key)
    local row = store.get(place(ctx), check_key("kv.get", key))
    if not row then return nil, "not_found" end
    return row.v, row.version
end

local function fits(tx, at, key, bytes)
    local room = store.room(tx, at, key)
    return room.keys < KEYS_MAX and room.bytes + bytes <= BYTES_MAX
end

function M.set(ctx, key, value, options)
    check_key("kv.set", key)
    if value == nil then wrong("kv.set", "there is no value; kv.delete takes a key away") end
    if options ~= nil and type(options) ~= "table" then wrong("kv.set", "options are a table: { ttl_s = 60, if_version = 1 }") end
    local ttl, expected
    for name, option in pairs(options or {}) do
        if name == "ttl_s" then
            ttl = check_whole("kv.set", "ttl_s", option, 1, TTL_MAX)
        elseif name == "if_version" then
            expected = check_whole("kv.set", "if_version", option, 0, WHOLE_MAX)
        else
            wrong("kv.set", ("there is no option '%s'"):format(tostring(name)))
        end
    end
    local bytes = #json.encode(value)
    if bytes > VALUE_MAX then return nil, "too_large" end
    local at, new = place(ctx), pg.json(value)
    local expires = ttl and time.iso(time.now() + ttl * 1000)
    return capabilities.once(ctx, function(tx)
        local row = store.replace(tx, at, key, new, bytes, expires, expected)
        if row then return row.version end
        if not fits(tx, at, key, bytes) then return nil, "quota" end
        row = store.set(tx, at, key, new, bytes, expires, expected)
        if not row then return nil, "version_conflict" end
        return row.version
    end)
end

function M.incr(ctx, key, by)
    check_key("kv.incr", key)
    by = check_whole("kv.incr", "n", by == nil and 1 or by, -WHOLE_MAX, WHOLE_MAX)
    local at = place(ctx)
    return capabilities.once(ctx, function(tx)
        local row = store.add(tx, at, key, by)
        if row then return row.v end
        if not fits(tx, at, key, 17) then return nil, "quota" end
        row = store.incr(tx, at, key, by)
        if not row then return nil, "not_a_number" end
        return row.v
    end)
end

function M.delete(ctx, key)
    local at = place(ctx)
    check_key("kv.delete", key)
    return capabilities.once(ctx, function(tx) return store.delete(tx, at, key) end)
end

function M.list(ctx, prefix, limit)
    if prefix ~= nil and (type(prefix) ~= "string" or #prefix > KEY_MAX or prefix:find("%z")) then
        wrong("kv.list", "the prefix must be a text of at most 200 bytes")
    end
    limit = check_whole("kv.list", "limit", limit == nil and 100 or limit, 1, 100)
    local list = {}
    for i, row in ipairs(store.list(place(ctx), prefix or "", limit)) do
        list[i] = { key = row.k, value = row.v, version = row.version }
    end
    return list
end

return M
