        local bps = input.customer.tier and config.tiers[input.customer.tier.name] or 0
        for _, group in ipairs(input.customer.groups) do bps = math.max(bps, config.groups[group] or 0) end
        if bps == 0 then return nil, "no member" end
        return { operations = { { op = "order_percent", bps = bps, label = config.label } } }
