        local parts, sets = {}, math.huge
        local taken = {}
        for i, category in ipairs(config.categories) do
            parts[i] = {}
            local units = 0
            for _, line in ipairs(input.cart.lines) do
                -- A line counts for the first of its categories only.
                if not taken[line.id] and set.has(line.category_ids, category) and not line.bundle_id and not line.is_gift then
                    taken[line.id] = true
                    units = units + line.qty
                    parts[i][#parts[i] + 1] = { id = line.id, unit = line.unit, qty = line.qty }
                end
            end
            sets = math.min(sets, units)
        end
        if sets == 0 or sets == math.huge then return nil, "a part is missing" end
        local operations = {}
        for _, lines in ipairs(parts) do
            table.sort(lines, function(a, b)
                if a.unit ~= b.unit then return a.unit < b.unit end
                return a.id < b.id
            end)
            local left = sets
            for _, line in ipairs(lines) do
                local units = math.min(left, line.qty)
                if units > 0 then
                    operations[#operations + 1] = { op = "line_percent", line_id = line.id, bps = config.bps, units = units,
                        label = config.label }
                end
                left = left - units
            end
        end
        return { operations = operations }
