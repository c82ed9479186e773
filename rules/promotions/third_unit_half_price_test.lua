return {
    config = { skus = { "oolong" } },
    prices = { oolong = 120000, mug = 50000 },
    tests = {
        { name = "by threes", each = { { 2, 0 }, { 3, 60000 }, { 5, 60000 }, { 6, 120000 } },
            given = function(r) return { cart = { oolong = r[1], mug = 3 } } end, expect = function(r) return { discount = r[2] } end },
        { name = "never more than the cart", property = "random_carts", cases = 100, seed = 12 },
        { name = "the order of lines is no matter", property = "line_order", cases = 50, seed = 13 },
    },
}
