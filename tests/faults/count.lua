-- kasma lua tests/faults/count.lua COLLECTION TENANT FIELD VALUE: how many documents of a tenant have a value.
local mongo = require("core.mongo")

local collection, tenant, field, value = arg[1], arg[2], arg[3], arg[4]
local docs = assert(mongo.find(collection, { tenant_key = tenant, [field] = value }, { limit = 100, projection = { _id = 1 } }))
io.stdout:write(#docs, "\n")
return 0
