        local address = input.subject.address
        if address.country ~= "US" then return nil, "outside of the US" end
        local state = config.states_ppm[address.region or ""]
        local zip, best = address.zip or "", ""
        for prefix in pairs(config.zips_ppm) do
            if text.starts(zip, prefix) and #prefix > #best then best = prefix end
        end
        local answers = {}
        for _, line in ipairs(input.subject.lines) do
            local exempt = not state or (line.tax_class and set.has(config.exempt_classes, line.tax_class))
            answers[#answers + 1] = { line = line.id, rate_ppm = exempt and 0 or state, name = "Sales tax",
                jurisdiction = "US-" .. (address.region
                or "?") }
            if not exempt and best ~= "" then
                answers[#answers + 1] = { line = line.id, rate_ppm = config.zips_ppm[best], name = "Local tax", jurisdiction = best }
            end
        end
        return answers
