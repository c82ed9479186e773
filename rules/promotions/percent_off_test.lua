return {
    config = { bps = 1000, category = "tea" },
    category = { tea = { "oolong" } },
    prices = { oolong = 120000, mug = 50000 },
    tests = {
        { name = "only tea is cheaper", given = { cart = { oolong = 2, mug = 1 } }, expect = { discount = 24000,
            lines = { mug = 50000 } } },
        { name = "nothing to do", given = { cart = { mug = 1 } }, expect = { none = true, reason = "nothing in the cart takes part" } },
        { name = "never more than the cart", property = "random_carts", cases = 100, seed = 1 },
        { name = "the order of lines is no matter", property = "line_order", cases = 50, seed = 2 },
    },
}
