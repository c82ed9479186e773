return {
    config = {},
    prices = { oolong = 120000, mug = 50000 },
    tests = {
        { name = "from the sum on", given = { cart = { oolong = 5 } }, expect = { discount = 50000, net = 550000 } },
        { name = "below it", given = { cart = { oolong = 1 } }, expect = { none = true, reason = "380000.00 to go" } },
        { name = "in another currency", given = { cart = { oolong = 9 }, currency = "USD" }, expect = { none = true,
            reason = "another currency" } },
        { name = "never more than the cart", property = "random_carts", cases = 100, seed = 3 },
    },
}
