-- Sales tax of the United States by state and, where it is known, by the first digits of the ZIP code, only where the shop has nexus.
return {
    hook = "tax.resolve",
    name = "US sales tax",
    version = 1,
    config = schema.object{
        states_ppm = schema.map(schema.ppm, { title = "Rates by state with nexus", default = { CA = 72500, NY = 40000, TX = 62500,
            WA = 65000 } }),
        zips_ppm = schema.map(schema.ppm, { title = "Local rates by beginning of the ZIP", default = { ["100"] = 48750,
            ["900"] = 22500 } }),
        exempt_classes = schema.list(schema.string, { title = "Tax classes without tax", max = 50, default = { "grocery" } }),
    },
    run = function(input, config)
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
    end,
}
