-- The more of a product, the cheaper each: steps by quantity.
return {
    hook = "promotion",
    name = "Cheaper by quantity",
    version = 1,
    priority = 60,
    config = schema.object{
        steps = schema.list(schema.object{ from = schema.integer{ min = 1 }, bps = schema.bps{ min = 1 } }, { title = "Steps", min = 1,
            max = 10,
            default = { { from = 5, bps = 500 }, { from = 10, bps = 1000 }, { from = 20, bps = 1500 } } }),
        category = schema.optional(schema.category{ title = "Category", help = "Empty: all products." }),
        label = schema.string{ title = "What the shopper reads", max = 80, default = "{percent} % off from {from}" },
    },
    run = function(input, config)
        local operations = {}
        for _, line in ipairs(input.cart.lines) do
            local best
            for _, step in ipairs(config.steps) do
                if line.qty >= step.from and (not best or step.from > best.from) then best = step end
            end
            local wanted = not config.category or set.has(line.category_ids, config.category)
            if best and wanted and not line.is_gift and not line.bundle_id then
                operations[#operations + 1] = { op = "line_percent", line_id = line.id, bps = best.bps,
                    label = text.template(config.label, { percent = best.bps / 100, from = best.from }) }
            end
        end
        if #operations == 0 then return nil, "too few of each" end
        return { operations = operations }
    end,
}
