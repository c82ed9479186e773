local function given(country, grams, subtotal)
    return { subject = { methods = { { id = "m", name = "Post", price = 1 } }, parcel = { weight_g = grams },
        address = { country = country },
        subtotal = subtotal or 100000 } }
end
return {
    config = {},
    tests = {
        { name = "at home by kilos begun", given = given("VN", 1200), expect = { result = { { id = "m", name = "Post",
            price = 30000 } } } },
        { name = "free from a sum", given = given("VN", 1200, 1000000), expect = { result = { { id = "m", name = "Post", price = 0 } } } },
        { name = "a neighbour", given = given("TH", 500), expect = { result = { { id = "m", name = "Post", price = 210000 } } } },
        { name = "elsewhere the stored prices stand", given = given("FR", 500), expect = { reason = "no zone of ours" } },
        { name = "too heavy", given = given("VN", 40000), expect = { result = {} } },
    },
}
