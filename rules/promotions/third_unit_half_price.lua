-- Every third unit of a line at half price, for the products of a category or for single SKUs.
return {
    hook = "promotion",
    name = "Third unit half price",
    version = 1,
    priority = 100,
    on_error = "skip",
    config = schema.object{
        category = schema.optional(schema.category{ title = "Category", help = "Its products and those of the categories below it." }),
        skus = schema.list(schema.string{ min = 1, max = 64 }, { title = "SKUs", max = 100, default = {} }),
        label = schema.string{ title = "What the shopper reads", max = 80, default = "Third unit half price" },
    },
    run = function(input, config)
        local operations = {}
        for _, line in ipairs(input.cart.lines) do
            local wanted = set.has(config.skus, line.sku) or (config.category and set.has(line.category_ids, config.category))
            if wanted and not line.is_gift and line.qty >= 3 then
                operations[#operations + 1] = { op = "line_percent", line_id = line.id, bps = 5000, units = math.floor(line.qty / 3),
                    label = config.label }
            end
        end
        return { operations = operations }
    end,
}
