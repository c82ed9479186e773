-- Of the products of a category (or of the whole cart) every so many units the cheapest are free, on some days of the week.
return {
    hook = "promotion",
    name = "Buy some, get some free",
    description = "Buy 2, third free: of every three units the cheapest is free.",
    version = 1,
    priority = 100,
    config = schema.object{
        category = schema.optional(schema.category{ title = "Category", help = "Empty: all products." }),
        buy = schema.integer{ title = "Units to buy", min = 1, max = 20, default = 2 },
        free = schema.integer{ title = "Units that are free", min = 1, max = 20, default = 1 },
        days = schema.weekdays{ title = "Days, 1 = Monday", default = { 1, 2, 3, 4, 5, 6, 7 } },
        label = schema.string{ title = "What the shopper reads", max = 80, default = "Buy 2, third free" },
    },
    run = function(input, config)
        if not set.has(config.days, input.now.wday) then return nil, "not today" end
        local units = {}
        for _, line in ipairs(input.cart.lines) do
            local wanted = not config.category or set.has(line.category_ids, config.category)
            if wanted and not line.bundle_id and not line.is_gift then
                for _ = 1, line.qty do units[#units + 1] = { id = line.id, price = line.unit } end
            end
        end
        local free = math.floor(#units / (config.buy + config.free)) * config.free
        if free == 0 then return nil, "too few items" end
        -- Equally cheap units are taken by line id, so that the order of lines makes no difference.
        table.sort(units, function(a, b)
            if a.price ~= b.price then return a.price < b.price end
            return a.id < b.id
        end)
        local count, operations = {}, {}
        for i = 1, free do count[units[i].id] = (count[units[i].id] or 0) + 1 end
        for id, n in pairs(count) do
            operations[#operations + 1] = { op = "line_percent", line_id = id, bps = 10000, units = n, label = config.label }
        end
        return { operations = operations }
    end,
}
