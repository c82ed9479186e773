        local operations = {}
        for _, line in ipairs(input.cart.lines) do
            local wanted = set.has(config.skus, line.sku) or (config.category and set.has(line.category_ids, config.category))
            if wanted and not line.is_gift and line.qty >= 3 then
                operations[#operations + 1] = { op = "line_percent", line_id = line.id, bps = 5000, units = math.floor(line.qty / 3),
                    label = config.label }
            end
        end
        return { operations = operations }
