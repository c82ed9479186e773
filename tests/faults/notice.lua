-- kasma lua tests/faults/notice.lua TENANT TITLE...: writes notices of the kind FOLLOW for the users in turn, or all for the first
-- when NOTICE_ONE is set. Prints the recipients.
local uuid = require("core.uuid")
require("kasma.boot").load()
local db = require("kasma.db")
local notices = require("modules.notices.service")

local users = db.read(nil, "select id from users order by id limit 100")
local scope = { tenant = arg[1], app = "MASTER" }
for i = 2, #arg do
    local user, statements = users[os.getenv("NOTICE_ONE") and 1 or (i - 2) % #users + 1].id, {}
    notices.append(statements, scope, { recipient_id = user, notice_type = "FOLLOW", title = arg[i], body = "Body of " .. arg[i],
        reference_type = "USER", reference_id = uuid.v7(), metadata = { n = i - 1 } })
    db.pipeline(scope.tenant, statements)
    io.stdout:write(user, "\n")
end
return 0
