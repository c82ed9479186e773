-- Reprices shipping methods by zone and weight, and hides what does not go there.
return {
    hook = "shipping.rates",
    name = "Shipping by zone and weight",
    version = 1,
    config = schema.object{
        zones = schema.list(schema.object{
            name = schema.string{ max = 60 }, countries = schema.list(schema.string{ pattern = "^%u%u$" }, { max = 60 }),
            base = schema.money, per_kg = schema.money, free_from = schema.optional(schema.money),
        }, { title = "Zones", min = 1, max = 20, default = {
            { name = "Home", countries = { "VN" }, base = 20000, per_kg = 5000, free_from = 1000000 },
            { name = "Neighbours", countries = { "TH", "LA", "KH" }, base = 150000, per_kg = 60000 },
        } }),
        max_weight_g = schema.integer{ title = "Heaviest parcel, in grams", min = 1, default = 30000 },
    },
    run = function(input, config)
        local subject = input.subject
        if subject.parcel.weight_g > config.max_weight_g then return {}, "too heavy" end
        local zone
        for _, z in ipairs(config.zones) do
            if set.has(z.countries, subject.address.country) then
                zone = z
                break
            end
        end
        if not zone then return nil, "no zone of ours" end
        local kilos = math.ceil(subject.parcel.weight_g / 1000)
        local price = zone.base + zone.per_kg * kilos
        if zone.free_from and subject.subtotal >= zone.free_from then price = 0 end
        local rates = {}
        for i, method in ipairs(subject.methods) do rates[i] = { id = method.id, name = method.name, price = price } end
        return rates
    end,
}
