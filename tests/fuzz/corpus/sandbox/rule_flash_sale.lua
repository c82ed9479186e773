        if not set.has(config.days, input.now.wday) then return nil, "not today" end
        if not dt.between(input.now, config.hours.from, config.hours.to) then return nil, "not now" end
        local operations = {}
        for _, line in ipairs(input.cart.lines) do
            if (not config.category or set.has(line.category_ids, config.category)) and not line.is_gift then
                operations[#operations + 1] = { op = "line_percent", line_id = line.id, bps = config.bps, label = config.label }
            end
        end
        return { operations = operations }
