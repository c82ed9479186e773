-- MongoDB, or a server that speaks its protocol: reached, what it lacks, its indexes, documents that nothing points at.
local config = require("core.config")
local mongo = require("core.mongo")
local db = require("kasma.db")
local pg = require("core.pg")
local migrate = require("kasma.migrate")
local report = require("kasma.doctor.report")

local M = {}

local function indexes(d)
    local missing, n = {}, 0
    local there = {}
    for _, entry in ipairs(migrate.document_indexes()) do
        local collection, keys, options = entry[1], entry[2], entry[3] or {}
        if not there[collection] then
            there[collection] = {}
            local answer = mongo.command{ { "listIndexes", collection } }
            local batch = type(answer) == "table" and answer.cursor and answer.cursor.firstBatch or {}
            for _, index in ipairs(batch) do there[collection][index.name] = index end
        end
        n = n + 1
        local name = options.name
        if not name then
            local parts = {}
            for i, key in ipairs(keys) do parts[i] = key[1] .. "_" .. tostring(key[2]) end
            name = table.concat(parts, "_")
        end
        if not there[collection][name] then missing[#missing + 1] = collection .. "." .. name end
    end
    d:none("indexes", missing, ("%d of %d indexes"):format(n, n), "indexes that are missing",
        { effect = "reads look at every document", hint = "kasma migrate" })
end

-- What a server of the protocol may lack. Nothing of it is needed; an operator wants to know.
local function features(d, hello)
    local missing = {}
    if not hello.setName and hello.msg ~= "isdbgrid" then missing[#missing + 1] = "replica set (transactions, change streams)" end
    local counted = mongo.aggregate("user_profile", { { ["$limit"] = 1 }, { ["$facet"] = { a = { { ["$count"] = "n" } } } } })
    if not counted then missing[#missing + 1] = "$facet" end
    local joined = mongo.aggregate("user_profile", { { ["$limit"] = 1 },
        { ["$lookup"] = { from = "user_profile", localField = "_id", foreignField = "_id", as = "x" } } })
    if not joined then missing[#missing + 1] = "$lookup" end
    if #missing == 0 then return d:ok("features", "has all that we know how to use") end
    d:ok("features", "lacks " .. table.concat(missing, ", ") .. "; nothing here needs it")
end

-- Revisions of product details newer than the one that the product names: left by a crash between the two stores. A sample.
local function orphans(d)
    local looked, orphaned = 0, 0
    for _, row in ipairs(db.read(nil, "select tenant_key from tenants order by tenant_key limit 50")) do
        local docs = mongo.find("product_details", { tenant_key = row.tenant_key },
            { limit = 100, projection = { product_id = 1, revision = 1 } })
        local ids = {}
        for i, doc in ipairs(docs or {}) do ids[i] = doc.product_id end
        local live = {}
        if #ids > 0 then
            for _, product in ipairs(db.read(row.tenant_key, [[select id, detail_revision from products
              where tenant_key = $1 and id = any($2::uuid[])]], row.tenant_key, pg.array(ids))) do
                live[product.id] = product.detail_revision
            end
        end
        for _, doc in ipairs(docs or {}) do
            looked = looked + 1
            if not live[doc.product_id] or tonumber(doc.revision) > live[doc.product_id] then orphaned = orphaned + 1 end
        end
        if looked >= 1000 then break end
    end
    if orphaned == 0 then return d:ok("orphans", ("none among %d revisions looked at"):format(looked)) end
    d:warn("orphans", ("%d of %d revisions looked at belong to no product"):format(orphaned, looked),
        { effect = "none but the room they take: left by a write that did not reach PostgreSQL" })
end

---@param d doctor.Report
function M.run(d)
    local hello, err = mongo.command{ { "hello", 1 } }
    if type(hello) ~= "table" then
        return d:fail("reached", ("cannot connect to MONGODB_URL (%s): %s"):format(report.place(config.get("MONGODB_URL")),
            report.why(err)), { effect = "the shop sells on; rich product texts are stale, new products are refused, audit bodies wait",
                hint = "kasma config print MONGODB_URL" })
    end
    local build = mongo.command{ { "buildInfo", 1 } }
    d:ok("reached", ("answers as version %s, wire protocol %s"):format(tostring(type(build) == "table" and build.version or "?"),
        tostring(hello.maxWireVersion)))
    features(d, hello)
    indexes(d)
    local ok, why = pcall(orphans, d)
    if not ok then d:warn("orphans", "could not be looked for: " .. report.why(why)) end
end

return M
