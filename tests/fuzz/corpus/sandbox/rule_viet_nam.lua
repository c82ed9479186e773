        local subject = input.subject
        if subject.address.country ~= "VN" then return nil end
        local reduced = config.reduced_ppm and config.reduced_until
            and subject.date < dt.add_days(dt.parse(config.reduced_until, "Asia/Ho_Chi_Minh"), 1, "Asia/Ho_Chi_Minh").epoch
        local answers = {}
        for i, line in ipairs(subject.lines) do
            local rate = line.tax_class and config.class_ppm[line.tax_class]
            if not rate then
                rate = config.standard_ppm
                if reduced and not (line.tax_class and set.has(config.not_reduced, line.tax_class)) then rate = config.reduced_ppm end
            end
            answers[i] = { line = line.id, rate_ppm = rate, name = "VAT " .. tostring(rate / 10000) .. "%",
                jurisdiction = "VN", compound = false }
        end
        return answers
