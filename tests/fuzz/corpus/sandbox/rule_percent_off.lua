        local operations = {}
        local all = not config.category and #config.skus == 0
        local skus = set.of(config.skus)
        for _, line in ipairs(input.cart.lines) do
            local wanted = all or set.has(skus, line.sku) or (config.category and set.has(line.category_ids, config.category))
            if wanted and not line.is_gift and not line.bundle_id then
                operations[#operations + 1] = { op = "line_percent", line_id = line.id, bps = config.bps, label = config.label }
            end
        end
        if #operations == 0 then return nil, "nothing in the cart takes part" end
        return { operations = operations }
