        local operations = {}
        for _, line in ipairs(input.cart.lines) do
            local best
            for _, step in ipairs(config.steps) do
                if line.qty >= step.from and (not best or step.from > best.from) then best = step end
            end
            local wanted = not config.category or set.has(line.category_ids, config.category)
            if best and wanted and not line.is_gift and not line.bundle_id then
                operations[#operations + 1] = { op = "line_percent", line_id = line.id, bps = best.bps,
                    label = text.template(config.label, { percent = best.bps / 100, from = best.from }) }
            end
        end
        if #operations == 0 then return nil, "too few of each" end
        return { operations = operations }
