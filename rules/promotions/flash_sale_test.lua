return {
    config = {},
    prices = { oolong = 100000 },
    tests = {
        { name = "by the hour", each = { { "19:59", 0 }, { "20:00", 20000 }, { "21:59", 20000 }, { "22:00", 0 } },
            given = function(r) return { now = "2026-11-27T" .. r[1], cart = { oolong = 1 } } end,
            expect = function(r) return { discount = r[2] } end },
        { name = "never more than the cart", property = "random_carts", cases = 100, seed = 6 },
    },
}
