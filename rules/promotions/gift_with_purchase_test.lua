return {
    config = { product = "mug" },
    prices = { oolong = 120000, mug = 50000 },
    tests = {
        { name = "below the sum", given = { cart = { oolong = 4 } }, expect = { none = true, reason = "below the sum" } },
        { name = "from the sum on the goods cost the same", given = { cart = { oolong = 5 } }, expect = { net = 600000 } },
        { name = "never more than the cart", property = "random_carts", cases = 50, seed = 10 },
    },
}
