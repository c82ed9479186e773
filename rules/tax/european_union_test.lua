return {
    config = {},
    currency = "EUR",
    prices = { tea = 10000, book = 2000 },
    products = { book = { tax_class = "books" } },
    tests = {
        { name = "the buyer's country", each = { { "DE", 1900 }, { "FR", 2000 }, { "SE", 2500 } },
            given = function(r) return { cart = { tea = 1 }, country = r[1] } end, expect = function(r) return { tax = r[2] } end },
        { name = "reduced", given = { cart = { book = 1 }, country = "DE" }, expect = { tax = 140 } },
        { name = "reverse charge abroad", given = { cart = { tea = 1 }, country = "FR", customer = { id = "b",
            groups = { "eu-business" } } },
            expect = { tax = 0 } },
        { name = "none at home", given = { cart = { tea = 1 }, country = "DE", customer = { id = "b", groups = { "eu-business" } } },
            expect = { tax = 1900 } },
        { name = "elsewhere", given = { cart = { tea = 1 }, country = "US" }, expect = { reason = "outside of the EU" } },
    },
}
