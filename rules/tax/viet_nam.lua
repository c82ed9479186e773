-- Value added tax of Viet Nam by tax class, with a temporary reduction that ends by itself on a given day. Addresses in
-- other countries are left to the tax rules of the tenant.
return {
    hook = "tax.resolve",
    name = "Viet Nam VAT",
    version = 1,
    priority = 0,
    on_error = "skip",
    config = schema.object{
        standard_ppm = schema.ppm{ title = "Standard rate", default = 100000 },
        class_ppm = schema.map(schema.ppm, { title = "Rates of tax classes", default = {} }),
        reduced_ppm = schema.optional(schema.ppm{ title = "Reduced standard rate" }),
        reduced_until = schema.optional(schema.date{ title = "Last day of the reduction" }),
        not_reduced = schema.list(schema.string, { title = "Tax classes without the reduction", max = 50, default = {} }),
    },
    run = function(input, config)
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
    end,
}
