-- Value added tax of the European Union: the rate of the buyer's country, with reverse charge for businesses of other member states.
-- A business is told by its customer group, into which staff put it after they have seen its number.
return {
    hook = "tax.resolve",
    name = "EU VAT",
    version = 1,
    config = schema.object{
        home = schema.string{ title = "Country of the shop", pattern = "^%u%u$", default = "DE" },
        rates_ppm = schema.map(schema.ppm, { title = "Standard rates by country", default = { AT = 200000, BE = 210000, DE = 190000,
            ES = 210000,
            FI = 255000, FR = 200000, IE = 230000, IT = 220000, NL = 210000, PL = 230000, PT = 230000, SE = 250000 } }),
        reduced_ppm = schema.map(schema.ppm, { title = "Reduced rates by country", default = { AT = 100000, DE = 70000, ES = 100000,
            FR = 55000,
            IT = 100000, NL = 90000 } }),
        reduced_classes = schema.list(schema.string, { title = "Tax classes with the reduced rate", max = 50, default = { "books",
            "food" } }),
        business_group = schema.string{ title = "Customer group of businesses with a checked number", max = 50, default = "eu-business" },
    },
    run = function(input, config)
        local subject = input.subject
        local country = subject.address.country
        local rate = config.rates_ppm[country]
        if not rate then return nil, "outside of the EU" end
        local reverse = country ~= config.home and set.has(input.customer.groups, config.business_group)
        local answers = {}
        for i, line in ipairs(subject.lines) do
            local ppm = rate
            if line.tax_class and set.has(config.reduced_classes, line.tax_class) then ppm = config.reduced_ppm[country] or rate end
            answers[i] = { line = line.id, rate_ppm = reverse and 0 or ppm, name = reverse and "Reverse charge"
                or "VAT " .. tostring(ppm / 10000)
                .. "%", jurisdiction = country }
        end
        return answers
    end,
}
