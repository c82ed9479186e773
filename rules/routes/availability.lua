-- A route of the shop's own, GET /x/availability?sku=...: whether a product can be had, without telling how many there are.
return {
    hook = "route",
    name = "Availability",
    version = 1,
    path = "availability",
    method = "GET",
    access = "public",
    needs = { "stock" },
    query = schema.object{ sku = schema.string{ min = 1, max = 64 } },
    returns = schema.object{ sku = schema.string, state = schema.enum{ "in_stock", "few_left", "sold_out", "unknown" } },
    config = schema.object{ few = schema.integer{ title = "Few are left below", min = 1, max = 1000, default = 5 } },
    run = function(input, config)
        local sku = input.subject.query.sku
        local level, why = stock.get(sku)
        if not level then
            if why == "not_found" then return { status = 404, body = { sku = sku, state = "unknown" } } end
            return { status = 503, body = { sku = sku, state = "unknown" }, headers = { ["Retry-After"] = "5" } }
        end
        local state = level.available <= 0 and "sold_out" or level.available < config.few and "few_left" or "in_stock"
        return { status = 200, body = { sku = sku, state = state }, cache_s = 30 }
    end,
}
