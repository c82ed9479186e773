-- How many migrations this program has and the database lacks, by number alone: what `kasma migrate` checks in depth is not
-- asked at every probe. The files of a running program do not change, so they are counted once.
local db = require("kasma.db")

local M = {}

local newest

local function newest_file()
    if newest then return newest end
    newest = 0
    local ok, migrate = pcall(require, "kasma.migrate")
    if ok and migrate.files then
        for _, file in ipairs(migrate.files()) do newest = math.max(newest, tonumber(file.version) or 0) end
    end
    return newest
end

---@return integer
function M.pending()
    local applied = db.one(nil, "select coalesce(max(version), 0)::int as version from schema_migrations").version
    return math.max(0, newest_file() - applied)
end

return M
