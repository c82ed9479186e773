-- A large order is marked for review, staff is told, and the mark goes when it is paid; when the review runs out of time all is undone.
return {
    hook = "workflow",
    name = "Review of large orders",
    version = 1,
    on = { "order.placed" },
    needs = { "orders", "notify", "events" },
    config = schema.object{
        from = schema.money{ title = "Orders from, in minor units", default = 20000000 },
        staff = schema.list(schema.uuid, { title = "Who is told", min = 1, max = 5 }),
    },
    steps = {
        {
            name = "mark", retries = 3,
            run = function(input, config)
                if input.subject.event.data.totalMinor < config.from then return { large = false } end
                assert(orders.set_workflow_state(input.subject.event.id, "in review"))
                return { large = true }
            end,
            undo = function(input)
                if input.subject.state.large then assert(orders.set_workflow_state(input.subject.event.id, "review given up")) end
            end,
        },
        {
            name = "tell", retries = 3,
            run = function(input, config)
                if not input.subject.state.large then return nil, "not a large order" end
                local number = input.subject.event.data.orderNumber
                for _, id in ipairs(config.staff) do
                    local told, why = notify.user(id, "A large order waits", "Order " .. number .. " waits for a look.")
                    if not told and why ~= "not_wanted" then log(id, why) end
                end
            end,
        },
        {
            name = "decided", wait = { event = "order.status_changed", timeout = "3d" },
            run = function(input)
                if not input.subject.state.large then return nil, "not a large order" end
                if input.subject.waited.timed_out then error("nobody looked at it within three days") end
                assert(orders.set_workflow_state(input.subject.event.id, "reviewed"))
                assert(events.emit("large_order_reviewed", { status = input.subject.waited.event.data.to }))
            end,
        },
    },
}
