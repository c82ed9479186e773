local order = { total = 500000, guest = false, user_id = "u1", number = "N-7", payment_status = "unpaid", payment_method = "STRIPE" }
local event = { name = "order.placed", id = "o1", data = {} }
local paid = { event = { name = "order.paid", id = "o1", data = {} } }
local function with(fields)
    local copy = {}
    for name, value in pairs(order) do copy[name] = value end
    for name, value in pairs(fields) do copy[name] = value end
    return copy
end
return {
    config = { from = 100000, note = "See you" },
    tests = {
        { name = "who paid is thanked",
            given = { event = event, waited = { paid = paid }, answers = { ["orders.get"] = order, ["mail.send"] = true } },
            expect = { ends = "done", log = "thanked", result = { wanted = true, user = "u1", number = "N-7", paid = true, thanked = true },
                calls = { { "orders.get", "o1" }, { "mail.send", "thank-you", "u1", { number = "N-7", note = "See you" } } } } },
        { name = "who did not pay is noted, and not thanked",
            given = { event = event, waited = { paid = { timed_out = true } }, answers = { ["orders.get"] = order,
                ["orders.note"] = true } },
            expect = { ends = "done", calls = { { "orders.get", "o1" }, { "orders.note", "o1", "Nobody paid within two days" } } } },
        { name = "cash on delivery counts as paid",
            given = { event = event, waited = { paid = { timed_out = true } }, answers = { ["orders.get"] = with{ payment_method = "COD" },
                ["mail.send"] = true } },
            expect = { ends = "done", log = "thanked" } },
        { name = "a small order is not thanked for",
            given = { event = event, waited = { paid = paid }, answers = { ["orders.get"] = with{ total = 1000 } } },
            expect = { ends = "done", calls = { { "orders.get", "o1" } } } },
        { name = "a guest has no account to write to",
            given = { event = event, waited = { paid = paid }, answers = { ["orders.get"] = with{ guest = true } } },
            expect = { calls = { { "orders.get", "o1" } } } },
        { name = "a mail that cannot be sent now is tried again",
            given = { step = "thank", event = event, state = { wanted = true, paid = true, user = "u1", number = "N-7" },
                waited = { timed_out = false } },
            expect = { result = { wanted = true, paid = true, user = "u1", number = "N-7", thanked = false }, log = "preview" } },
        { name = "an order that cannot be read is no success", given = { step = "look at the order", event = event },
            expect = { error = "runtime_error" } },
    },
}
