        if not set.has(config.days, input.now.wday) then return nil, "not today" end
        local units = {}
        for _, line in ipairs(input.cart.lines) do
            local wanted = not config.category or set.has(line.category_ids, config.category)
            if wanted and not line.bundle_id and not line.is_gift then
                for _ = 1, line.qty do units[#units + 1] = { id = line.id, price = line.unit } end
            end
        end
        local free = math.floor(#units / (config.buy + config.free)) * config.free
        if free == 0 then return nil, "too few items" end
        -- Equally cheap units are taken by line id, so that the order of lines makes no difference.
        table.sort(units, function(a, b)
            if a.price ~= b.price then return a.price < b.price end
            return a.id < b.id
        end)
        local count, operations = {}, {}
        for i = 1, free do count[units[i].id] = (count[units[i].id] or 0) + 1 end
        for id, n in pairs(count) do
            operations[#operations + 1] = { op = "line_percent", line_id = id, bps = 10000, units = n, label = config.label }
        end
        return { operations = operations }
