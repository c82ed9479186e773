-- Free shipping, or a cheaper one, once the goods reach a sum.
return {
    hook = "promotion",
    name = "Free shipping over a sum",
    version = 1,
    priority = 10,
    config = schema.object{
        from = schema.money{ title = "Goods from, in minor units", default = 500000 },
        bps = schema.bps{ title = "Basis points off shipping", min = 1, default = 10000 },
        countries = schema.list(schema.string{ pattern = "^%u%u$" }, { title = "Countries", max = 50, default = {}, help = "Empty: all." }),
        label = schema.string{ title = "What the shopper reads", max = 80, default = "Free shipping" },
    },
    run = function(input, config)
        if #config.countries > 0 and not set.has(config.countries, input.shipping.address.country) then return nil,
            "not to this country" end
        if input.cart.net < config.from then return nil, "below the sum" end
        return { operations = { { op = "shipping_percent", bps = config.bps, label = config.label } } }
    end,
}
