local function given(available)
    return { subject = { method = "GET", path = "availability", query = { sku = "OOLONG" } },
        answers = available and { ["stock.get"] = { sku = "OOLONG", available = available } } or nil }
end
local function answer(state) return { status = 200, cache_s = 30, body = { sku = "OOLONG", state = state } } end
return {
    config = { few = 3 },
    tests = {
        { name = "plenty", given = given(10), expect = { result = answer("in_stock"), calls = { { "stock.get", "OOLONG" } } } },
        { name = "a few", given = given(2), expect = { result = answer("few_left") } },
        { name = "none", given = given(0), expect = { result = answer("sold_out") } },
        { name = "more reserved than there is", given = given(-1), expect = { result = answer("sold_out") } },
        { name = "the stock does not answer", given = given(nil), expect = { result = { status = 503, body = { sku = "OOLONG",
            state = "unknown" }, headers = { ["Retry-After"] = "5" } } } },
    },
}
