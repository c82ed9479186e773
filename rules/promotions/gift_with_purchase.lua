-- A gift once the goods reach a sum.
return {
    hook = "promotion",
    name = "Gift with purchase",
    version = 1,
    priority = 5,
    config = schema.object{
        product = schema.product{ title = "The gift" },
        from = schema.money{ title = "Goods from, in minor units", default = 500000 },
        label = schema.string{ title = "What the shopper reads", max = 80, default = "A gift for you" },
    },
    run = function(input, config)
        local net = 0
        for _, line in ipairs(input.cart.lines) do
            if not line.is_gift then net = net + line.net end
        end
        if net < config.from then return nil, "below the sum" end
        return { operations = { { op = "gift_line", product_id = config.product, qty = 1, label = config.label } } }
    end,
}
