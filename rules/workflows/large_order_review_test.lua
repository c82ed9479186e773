local function placed(total) return { name = "order.placed", id = "o1", data = { totalMinor = total, orderNumber = "N-1" } } end
local moved = { event = { name = "order.status_changed", id = "o1", data = { from = "pending", to = "processing" } } }
local yes = { ["orders.set_workflow_state"] = true, ["notify.user"] = true, ["events.emit"] = true }
return {
    config = { from = 1000000, staff = { "01890000-0000-7000-8000-000000000001" } },
    tests = {
        { name = "a small order goes its way", given = { event = placed(1000), waited = { decided = moved } },
            expect = { ends = "done", calls = {}, result = { large = false } } },
        { name = "a large one is marked, told of, and released when it moves on",
            given = { event = placed(5000000), waited = { decided = moved }, answers = yes },
            expect = { ends = "done", calls = {
                { "orders.set_workflow_state", "o1", "in review" },
                { "notify.user", "01890000-0000-7000-8000-000000000001", "A large order waits", "Order N-1 waits for a look." },
                { "orders.set_workflow_state", "o1", "reviewed" },
                { "events.emit", "large_order_reviewed", { status = "processing" } } } } },
        { name = "one that nobody looks at loses its mark",
            given = { event = placed(5000000), waited = { decided = { timed_out = true } }, answers = yes },
            expect = { ends = "undone", calls = {
                { "orders.set_workflow_state", "o1", "in review" },
                { "notify.user", "01890000-0000-7000-8000-000000000001", "A large order waits", "Order N-1 waits for a look." },
                { "orders.set_workflow_state", "o1", "review given up" } } } },
    },
}
