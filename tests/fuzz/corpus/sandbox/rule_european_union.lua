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
