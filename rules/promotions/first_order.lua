-- A share off somebody's first order.
return {
    hook = "promotion",
    name = "First order",
    version = 1,
    priority = 30,
    config = schema.object{
        bps = schema.bps{ title = "Basis points off", min = 1, default = 1000 },
        max = schema.optional(schema.money{ title = "At most, in minor units", min = 1 }),
        label = schema.string{ title = "What the shopper reads", max = 80, default = "Welcome" },
    },
    run = function(input, config)
        -- A guest is nobody in particular: a first order needs somebody whose orders are known.
        if input.customer.guest then return nil, "not signed in" end
        if not input.customer.first_order then return nil, "not the first order" end
        return { operations = { { op = "order_percent", bps = config.bps, max = config.max, label = config.label } } }
    end,
}
