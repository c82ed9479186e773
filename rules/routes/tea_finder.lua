-- A route of the shop's own, GET /x/tea-finder: which tea suits the hour and the taste.
return {
    hook = "route",
    name = "Tea finder",
    version = 1,
    path = "tea-finder",
    method = "GET",
    access = "public",
    query = schema.object{ taste = schema.optional(schema.enum{ "light", "strong" }), limit = schema.integer{ min = 1, max = 5,
        default = 3 } },
    returns = schema.object{ evening = schema.boolean, teas = schema.list(schema.object{ sku = schema.string, name = schema.string }) },
    config = schema.object{
        teas = schema.list(schema.object{ sku = schema.string{ max = 64 }, name = schema.string{ max = 80 }, strong = schema.boolean },
            { title = "Teas", max = 50, default = {
                { sku = "OOLONG", name = "Oolong", strong = true }, { sku = "JASMINE", name = "Jasmine", strong = false },
                { sku = "LOTUS", name = "Lotus", strong = false } } }),
    },
    run = function(input, config)
        local query = input.subject.query
        local evening = dt.between(input.now, "18:00", "05:00")
        local found = {}
        for _, tea in ipairs(config.teas) do
            local fits = not query.taste or tea.strong == (query.taste == "strong")
            if fits and not (evening and tea.strong) and #found < (query.limit or 3) then
                found[#found + 1] = { sku = tea.sku, name = tea.name }
            end
        end
        return { status = 200, body = { evening = evening, teas = found }, cache_s = 60 }
    end,
}
