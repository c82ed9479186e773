-- An amount off the order once it reaches a sum.
return {
    hook = "promotion",
    name = "Amount off an order",
    version = 1,
    priority = 40,
    config = schema.object{
        amount = schema.money{ title = "Amount off, in minor units", min = 1, default = 50000 },
        from = schema.money{ title = "Order from, in minor units", default = 500000 },
        currency = schema.string{ title = "Currency", pattern = "^%u%u%u$", default = "VND" },
        label = schema.string{ title = "What the shopper reads", max = 80, default = "50,000 off" },
    },
    run = function(input, config)
        if input.currency.code ~= config.currency then return nil, "another currency" end
        if input.cart.net < config.from then
            return nil, text.template("{n} to go", { n = money.format(config.from - input.cart.net, config.currency) })
        end
        return { operations = { { op = "order_amount", amount = config.amount, label = config.label } } }
    end,
}
