local order = { items = { { net = 200000, category_ids = { "tea" } }, { net = 50000, category_ids = {} } } }
return {
    config = { rates = { tea = 200 } },
    tests = {
        { name = "tea counts twice", given = { subject = { order = order, customer = { guest = false } } },
            expect = { result = { points = 45 } } },
        { name = "gold", given = { subject = { order = order, customer = { tier = { name = "Gold" } } } },
            expect = { result = { points = 54 } } },
    },
}
