return {
    config = { countries = { "VN" } },
    prices = { oolong = 120000 },
    tests = {
        { name = "over the sum", given = { cart = { oolong = 5 }, shipping = 30000 }, expect = { shipping = 0, total = 600000 } },
        { name = "below it", given = { cart = { oolong = 1 }, shipping = 30000 }, expect = { shipping = 30000, total = 150000,
            reason = "below the sum" } },
        { name = "abroad", given = { cart = { oolong = 9 }, country = "TH" }, expect = { none = true, reason = "not to this country" } },
        { name = "never more than the cart", property = "random_carts", cases = 100, seed = 7 },
    },
}
