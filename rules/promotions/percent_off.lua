-- A share off some products, or off all: the plainest of promotions.
return {
    hook = "promotion",
    name = "Percent off",
    version = 1,
    priority = 50,
    config = schema.object{
        bps = schema.bps{ title = "Basis points off", help = "1000 = 10 %", min = 1, default = 1000 },
        category = schema.optional(schema.category{ title = "Category", help = "Empty: all products." }),
        skus = schema.list(schema.string{ min = 1, max = 64 }, { title = "SKUs", max = 200, default = {} }),
        label = schema.string{ title = "What the shopper reads", max = 80, default = "10 % off" },
    },
    run = function(input, config)
        local operations = {}
        local all = not config.category and #config.skus == 0
        local skus = set.of(config.skus)
        for _, line in ipairs(input.cart.lines) do
            local wanted = all or set.has(skus, line.sku) or (config.category and set.has(line.category_ids, config.category))
            if wanted and not line.is_gift and not line.bundle_id then
                operations[#operations + 1] = { op = "line_percent", line_id = line.id, bps = config.bps, label = config.label }
            end
        end
        if #operations == 0 then return nil, "nothing in the cart takes part" end
        return { operations = operations }
    end,
}
