return {
    config = {},
    prices = { oolong = 100000, mug = 50000 },
    tests = {
        { name = "steps", each = { { 4, 0 }, { 5, 25000 }, { 10, 100000 }, { 20, 300000 } },
            given = function(r) return { cart = { oolong = r[1] } } end, expect = function(r) return { discount = r[2] } end },
        { name = "each product by itself", given = { cart = { oolong = 4, mug = 4 } }, expect = { none = true } },
        { name = "never more than the cart", property = "random_carts", cases = 100, seed = 4 },
        { name = "the order of lines is no matter", property = "line_order", cases = 50, seed = 5 },
    },
}
