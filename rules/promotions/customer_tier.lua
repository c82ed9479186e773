-- A share off by the customer's tier or group.
return {
    hook = "promotion",
    name = "Prices of members",
    version = 1,
    priority = 20,
    config = schema.object{
        tiers = schema.map(schema.bps, { title = "Basis points off by tier", default = { Gold = 500, Platinum = 1000 } }),
        groups = schema.map(schema.bps, { title = "Basis points off by customer group", default = { vip = 700 } }),
        label = schema.string{ title = "What the shopper reads", max = 80, default = "Members' price" },
    },
    run = function(input, config)
        local bps = input.customer.tier and config.tiers[input.customer.tier.name] or 0
        for _, group in ipairs(input.customer.groups) do bps = math.max(bps, config.groups[group] or 0) end
        if bps == 0 then return nil, "no member" end
        return { operations = { { op = "order_percent", bps = bps, label = config.label } } }
    end,
}
