-- A sale between two hours of the day, on some days, perhaps over midnight.
return {
    hook = "promotion",
    name = "Flash sale by hours",
    version = 1,
    priority = 80,
    config = schema.object{
        hours = schema.hours{ title = "Hours", default = { from = "20:00", to = "22:00" } },
        days = schema.weekdays{ title = "Days, 1 = Monday", default = { 1, 2, 3, 4, 5, 6, 7 } },
        bps = schema.bps{ title = "Basis points off", min = 1, default = 2000 },
        category = schema.optional(schema.category{ title = "Category", help = "Empty: all products." }),
        label = schema.string{ title = "What the shopper reads", max = 80, default = "Flash sale" },
    },
    run = function(input, config)
        if not set.has(config.days, input.now.wday) then return nil, "not today" end
        if not dt.between(input.now, config.hours.from, config.hours.to) then return nil, "not now" end
        local operations = {}
        for _, line in ipairs(input.cart.lines) do
            if (not config.category or set.has(line.category_ids, config.category)) and not line.is_gift then
                operations[#operations + 1] = { op = "line_percent", line_id = line.id, bps = config.bps, label = config.label }
            end
        end
        return { operations = operations }
    end,
}
