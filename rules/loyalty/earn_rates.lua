-- Points by category: each item earns at the rate of its category, the rest at the plain rate.
return {
    hook = "loyalty.earn",
    name = "Points by category",
    version = 1,
    config = schema.object{
        per = schema.money{ title = "One point for so many minor units", min = 1, default = 10000 },
        rates = schema.map(schema.integer{ min = 0, max = 1000 }, { title = "Percent of the plain rate by category", default = {} }),
        tiers = schema.map(schema.integer{ min = 0, max = 1000 }, { title = "Percent by tier", default = { Gold = 120, Platinum = 150 } }),
    },
    run = function(input, config)
        local points = 0
        for _, item in ipairs(input.subject.order.items) do
            local percent = 100
            for _, category in ipairs(item.category_ids or {}) do percent = math.max(percent, config.rates[category] or 0) end
            points = points + item.net * percent / 100 / config.per
        end
        local customer = input.subject.customer
        local tier = customer and customer.tier and config.tiers[customer.tier.name] or 100
        return { points = math.floor(points * tier / 100) }
    end,
}
