        -- A guest is nobody in particular: a first order needs somebody whose orders are known.
        if input.customer.guest then return nil, "not signed in" end
        if not input.customer.first_order then return nil, "not the first order" end
        return { operations = { { op = "order_percent", bps = config.bps, max = config.max, label = config.label } } }
