-- kasma lua tests/faults/crash.lua TENANT: what consumers of the outbox hold of a tenant, as one line of JSON:
-- jobs {"<name> <order id>": how many}, carts whose document is not the row's newest state.
local json = require("core.json")
local mongo = require("core.mongo")
local redis = require("core.redis")
require("kasma.boot").load()
local db = require("kasma.db")

local tenant = arg[1]
local told = { jobs = {}, carts_behind = 0, carts = 0 }

local cursor = "0"
repeat
    local answer = assert(redis.call("SCAN", cursor, "MATCH", "bull:sales-queue:*", "COUNT", "1000"))
    cursor = answer[1]
    for _, key in ipairs(answer[2]) do
        if key:find("^bull:sales%-queue:%d+$") or key:find("^bull:sales%-queue:oc%-") then
            local fields = assert(redis.call("HMGET", key, "name", "data"))
            local data = json.decode(fields[2] or "{}")
            if data.tenant_key == tenant and data.orderId then
                local name = tostring(fields[1]) .. " " .. data.orderId
                told.jobs[name] = (told.jobs[name] or 0) + 1
            end
        end
    end
until cursor == "0"

for _, row in ipairs(db.read(tenant, "select wire_id, version from carts where tenant_key = $1 order by id limit 1000", tenant)) do
    told.carts = told.carts + 1
    local doc = mongo.find_one("carts", { _id = tenant .. ":" .. row.wire_id, tenant_key = tenant })
    if type(doc) ~= "table" or tonumber(doc.version) ~= tonumber(row.version) then told.carts_behind = told.carts_behind + 1 end
end

io.stdout:write(json.encode(told), "\n")
return 0
