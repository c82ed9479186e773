-- MongoDB for the modules. Every call names its scope and the helper adds tenant_key (and app_key on writes), so that no
-- query can leave its tenant. What is asked of documents is by _id or by equality on an index (the server of `make up` is
-- slow at anything else); an empty filter is refused, because that is what a forgotten nil looks like.
--
-- M.platform holds the same calls for the few platform documents (user profiles), which have no tenant.
local mongo = require("core.mongo")
local errors = require("kasma.errors")

local M = {}

local function checked(filter)
    if type(filter) ~= "table" or next(filter) == nil then
        error("a document query without a condition: was a value nil?", 3)
    end
    return filter
end

local function scoped(scope, filter)
    checked(filter)
    assert(scope and scope.tenant, "a document query without a tenant")
    local copy = { tenant_key = scope.tenant }
    for key, value in pairs(filter) do copy[key] = value end
    copy.tenant_key = scope.tenant
    return copy
end

local function stamped(scope, doc)
    assert(scope and scope.tenant and scope.app, "a document without tenant and app")
    doc.tenant_key, doc.app_key = scope.tenant, scope.app
    return doc
end

local function null_to_nil(value)
    if type(value) == "table" then return value end
    return nil
end

---@param scope Scope
---@param collection string
---@param doc table changed: gets tenant_key and app_key
---@return integer
function M.insert(scope, collection, doc) return errors.check(mongo.insert(collection, stamped(scope, doc))) end

---@param scope Scope
---@param collection string
---@param filter table
---@param opts table|nil {projection=, sort=}
---@return table|nil
function M.find_one(scope, collection, filter, opts)
    return null_to_nil(errors.check(mongo.find_one(collection, scoped(scope, filter), opts or {})))
end

---@param scope Scope
---@param collection string
---@param filter table
---@param opts table {limit = n, ...}: a list says its limit
---@return table[]
function M.find(scope, collection, filter, opts)
    assert(opts and opts.limit, "a document list without a limit")
    return errors.check(mongo.find(collection, scoped(scope, filter), opts))
end

---@param scope Scope
---@param collection string
---@param filter table
---@param update table {["$set"] = ...}
---@param opts table|nil {upsert=, multi=}
---@return table {matched=, modified=, upserted=}
function M.update(scope, collection, filter, update, opts)
    if opts and opts.upsert then
        local insert = update["$setOnInsert"] or {}
        insert.app_key = insert.app_key or scope.app
        update["$setOnInsert"] = insert
    end
    return errors.check(mongo.update(collection, scoped(scope, filter), update, opts or {}))
end

---@param scope Scope
---@param collection string
---@param filter table
---@param doc table
---@param opts table|nil {upsert=}
---@return table
function M.replace(scope, collection, filter, doc, opts)
    return errors.check(mongo.replace(collection, scoped(scope, filter), stamped(scope, doc), opts or {}))
end

---@param scope Scope
---@param collection string
---@param filter table
---@param opts table|nil {multi=}
---@return integer
function M.delete(scope, collection, filter, opts) return errors.check(mongo.delete(collection, scoped(scope, filter), opts or {})) end

M.platform = {}

---@param collection string
---@param filter table
---@param opts table|nil
---@return table|nil
function M.platform.find_one(collection, filter, opts)
    return null_to_nil(errors.check(mongo.find_one(collection, checked(filter), opts or {})))
end

---@param collection string
---@param filter table
---@param opts table {limit=}
---@return table[]
function M.platform.find(collection, filter, opts)
    assert(opts and opts.limit, "a document list without a limit")
    return errors.check(mongo.find(collection, checked(filter), opts))
end

---@param collection string
---@param filter table
---@param update table
---@param opts table|nil
---@return table
function M.platform.update(collection, filter, update, opts)
    return errors.check(mongo.update(collection, checked(filter), update, opts or {}))
end

---@param collection string
---@param filter table
---@return integer
function M.platform.delete(collection, filter) return errors.check(mongo.delete(collection, checked(filter), {})) end

return M
