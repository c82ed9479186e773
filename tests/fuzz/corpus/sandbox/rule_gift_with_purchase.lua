        local net = 0
        for _, line in ipairs(input.cart.lines) do
            if not line.is_gift then net = net + line.net end
        end
        if net < config.from then return nil, "below the sum" end
        return { operations = { { op = "gift_line", product_id = config.product, qty = 1, label = config.label } } }
