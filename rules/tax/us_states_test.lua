return {
    config = {},
    currency = "USD",
    prices = { tea = 10000, bread = 500 },
    products = { bread = { tax_class = "grocery" } },
    tests = {
        { name = "by state and ZIP", each = { { "CA", "95014", 725 }, { "CA", "90001", 950 }, { "TX", "73301", 625 }, { "OR", "97201",
            0 } },
            given = function(r) return { cart = { tea = 1 }, country = "US", region = r[1], zip = r[2] } end,
            expect = function(r) return { tax = r[3] } end },
        { name = "groceries", given = { cart = { bread = 2 }, country = "US", region = "CA", zip = "95014" }, expect = { tax = 0 } },
        { name = "abroad", given = { cart = { tea = 1 }, country = "CA" }, expect = { reason = "outside of the US" } },
    },
}
