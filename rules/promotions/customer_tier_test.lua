return {
    config = {},
    prices = { oolong = 100000 },
    tests = {
        { name = "gold", given = { cart = { oolong = 1 }, customer = { id = "u", tier = { id = "g", name = "Gold" } } },
            expect = { discount = 5000 } },
        { name = "the better of two", given = { cart = { oolong = 1 }, customer = { id = "u", groups = { "vip" }, tier = { id = "g",
            name = "Gold" } } },
            expect = { discount = 7000 } },
        { name = "a guest", given = { cart = { oolong = 1 } }, expect = { none = true, reason = "no member" } },
    },
}
