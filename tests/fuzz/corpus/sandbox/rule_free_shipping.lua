        if #config.countries > 0 and not set.has(config.countries, input.shipping.address.country) then return nil,
            "not to this country" end
        if input.cart.net < config.from then return nil, "below the sum" end
        return { operations = { { op = "shipping_percent", bps = config.bps, label = config.label } } }
