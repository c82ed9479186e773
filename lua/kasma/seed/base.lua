-- What every installation has, production too: the platform's owner role, the modules, and the roles, base currency and
-- default warehouse of the tenant MASTER, whose own row comes with the first migration.
local config = require("core.config")
local time = require("core.time")
local uuid = require("core.uuid")
local db = require("kasma.db")
local roles = require("kasma.roles")
local store = require("kasma.seed.store")

local M = {}

local MASTER = "MASTER"

-- { key, name, needs }
M.modules = {
    { "catalog", "Catalogue", {} },
    { "sales", "Sales", { "catalog" } },
    { "marketing", "Marketing", { "sales" } },
    { "logistics", "Logistics", { "catalog" } },
    { "finance", "Finance", {} },
    { "marketplace", "Marketplace", { "sales", "finance" } },
    { "operations", "Operations", { "sales" } },
    { "blog", "Blog", {} },
    { "media", "Media", {} },
    { "learning", "Learning", {} },
    { "social", "Social", {} },
}

---@return string now ISO
function M.now() return time.iso(time.now()) end

local function platform(now)
    local statements = store.platform_owner_role({ uuid.v7(), uuid.v7() }, now)
    for _, module in ipairs(M.modules) do
        statements[#statements + 1] = store.module(uuid.v7(), module[1], module[2], module[3], now)
    end
    return statements
end

local function master(now)
    local statements = {}
    for _, role in ipairs(roles.templates) do
        statements[#statements + 1] = store.role({ tenant = MASTER, app = MASTER, id = uuid.v7(), key = role.role_key, code = role.code,
            name = role.display_name }, now)
        for _, permission in ipairs(role.grants) do
            statements[#statements + 1] = store.grant({ tenant = MASTER, app = MASTER, id = uuid.v7(), role = role.role_key,
                permission = permission }, now)
        end
    end
    statements[#statements + 1] = store.currency({ tenant = MASTER, app = MASTER, id = uuid.v7(), code = "VND", symbol = "₫", digits = 0,
        rate = "1", base = true }, now)
    statements[#statements + 1] = store.first_warehouse({ tenant = MASTER, app = MASTER, id = uuid.v7(), name = "Kho mặc định",
        code = "MAIN" }, now)
    return statements
end

--- Makes what is missing; what is there is left alone.
function M.run()
    local now = M.now()
    db.pipeline(nil, platform(now))
    db.pipeline(MASTER, master(now))
end

---@return boolean
function M.is_production() return config.env() == "production" end

return M
