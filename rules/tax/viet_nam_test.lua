return {
    config = { class_ppm = { books = 50000 } },
    prices = { tea = 100000, book = 80000 },
    products = { book = { tax_class = "books" } },
    tests = {
        { name = "by class", given = { cart = { tea = 1, book = 1 } }, expect = { tax = 14000, total = 194000 } },
        { name = "abroad the tenant's own rules stand", given = { cart = { tea = 1 }, country = "TH" }, expect = { tax = 0 } },
        { name = "never more than the cart", property = "random_carts", cases = 50, seed = 11 },
    },
}
