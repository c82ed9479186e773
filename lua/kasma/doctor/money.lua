-- The books: what is counted beside the facts equals the facts. Stock rows against movements and reservations, promotions against their
-- uses. A sample of each tenant's newest rows; with --full all of them. Each look is one statement, which sees one moment.
local pg = require("core.pg")
local tenants = require("kasma.tenant")

local M = {}

local SAMPLE_TENANTS, SAMPLE_ROWS, ALL = 50, 200, 2147483647

-- Each selects what must not be, of the newest $2 rows of a tenant.
local BOOKS = {
    { id = "stock", good = "units on hand are the sum of their movements", bad = "units on hand are not the sum of movements",
        sql = [[select i.id from (select id, quantity from warehouse_inventory where tenant_key = $1 order by id desc limit $2) i
          where i.quantity <> (select coalesce(sum(m.delta), 0) from stock_movements m where m.tenant_key = $1 and m.inventory_id = i.id)
          limit 6]] },
    { id = "reservations", good = "reserved units are those of open reservations",
        bad = "reserved units are not those of open reservations",
        sql = [[select i.id from (select id, reserved_quantity from warehouse_inventory where tenant_key = $1
            order by id desc limit $2) i
          where i.reserved_quantity <> (select coalesce(sum(r.quantity - r.consumed_qty - r.released_qty), 0) from stock_reservations r
            where r.tenant_key = $1 and r.inventory_id = i.id) limit 6]] },
    { id = "promotions", good = "counts and budgets of promotions are those of their uses",
        bad = "counts or budgets of promotions are not those of their uses",
        sql = [[select p.id from (select id, used_count, budget_used_minor from promotions where tenant_key = $1
            order by id desc limit $2) p
          cross join lateral (select count(*) as uses, coalesce(sum(u.amount_minor), 0) as paid from promotion_usages u
            where u.tenant_key = $1 and u.promotion_id = p.id and u.state <> 'released') f
          where p.used_count <> f.uses or p.budget_used_minor <> f.paid limit 6]] },
}

---@param d doctor.Report
---@param opts {full: boolean|nil, tenant: string|nil}|nil tenant: the books of this one alone
function M.run(d, opts)
    local full = opts and opts.full
    local rows = full and ALL or SAMPLE_ROWS
    local seen, wrong = 0, {}
    for i in ipairs(BOOKS) do wrong[i] = {} end
    local function look(tenant)
        seen = seen + 1
        for i, book in ipairs(BOOKS) do
            local found, err = pg.pool("app"):read(tenant, book.sql, tenant, rows)
            if not found then error(err, 0) end
            for _, row in ipairs(found) do wrong[i][#wrong[i] + 1] = tenant .. " " .. row.id end
        end
        return full or seen < SAMPLE_TENANTS
    end
    if opts and opts.tenant then look(opts.tenant) else tenants.each(look) end
    local extent = full and ("all rows of %d tenants"):format(seen) or ("the newest %d rows of %d tenants"):format(SAMPLE_ROWS, seen)
    for i, book in ipairs(BOOKS) do
        d:none(book.id, wrong[i], ("%s (%s)"):format(book.good, extent), book.bad, {
            effect = book.id == "promotions" and "limits let too many or too few in" or "too much is sold, or too little",
            hint = "kasma doctor --group money --full --json; keep the database as it is and ask for help" })
    end
end

return M
