local function given(now, query) return { now = now, subject = { method = "GET", path = "tea-finder", query = query } } end
return {
    config = {},
    tests = {
        { name = "in the morning", given = given("2026-11-27T09:00", { taste = "strong" }),
            expect = { result = { status = 200, cache_s = 60, body = { evening = false, teas = { { sku = "OOLONG",
                name = "Oolong" } } } } } },
        { name = "nothing strong at night", given = given("2026-11-27T22:00", { taste = "strong" }),
            expect = { result = { status = 200, cache_s = 60, body = { evening = true, teas = {} } } } },
    },
}
