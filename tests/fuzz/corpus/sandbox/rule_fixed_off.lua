        if input.currency.code ~= config.currency then return nil, "another currency" end
        if input.cart.net < config.from then
            return nil, text.template("{n} to go", { n = money.format(config.from - input.cart.net, config.currency) })
        end
        return { operations = { { op = "order_amount", amount = config.amount, label = config.label } } }
