return {
    config = { categories = { "tea", "ware" } },
    category = { tea = { "oolong", "lotus" }, ware = { "mug" } },
    prices = { oolong = 120000, lotus = 150000, mug = 50000 },
    tests = {
        { name = "one set: the cheaper tea", given = { cart = { oolong = 1, lotus = 1, mug = 1 } },
            expect = { discount = 25500, lines = { oolong = 102000, lotus = 150000, mug = 42500 } } },
        { name = "two sets", given = { cart = { oolong = 2, mug = 3 } }, expect = { discount = 51000 } },
        { name = "a part is missing", given = { cart = { oolong = 2 } }, expect = { none = true, reason = "a part is missing" } },
        { name = "never more than the cart", property = "random_carts", cases = 100, seed = 8 },
        { name = "the order of lines is no matter", property = "line_order", cases = 50, seed = 9 },
    },
}
