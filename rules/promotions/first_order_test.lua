return {
    config = { max = 30000 },
    prices = { oolong = 100000 },
    tests = {
        { name = "the first", given = { cart = { oolong = 2 }, customer = { id = "u", first_order = true } },
            expect = { discount = 20000 } },
        { name = "at most", given = { cart = { oolong = 5 }, customer = { id = "u", first_order = true } }, expect = { discount = 30000 } },
        { name = "the second", given = { cart = { oolong = 2 }, customer = { id = "u" } }, expect = { none = true,
            reason = "not the first order" } },
        { name = "a guest", given = { cart = { oolong = 2 } }, expect = { none = true, reason = "not signed in" } },
    },
}
