-- Thanks a buyer some days after a paid order, and asks a member of staff to look at one that nobody paid.
return {
    hook = "workflow",
    name = "Thank you after an order",
    version = 1,
    on = { "order.placed" },
    needs = { "orders", "mail", "notify" },
    config = schema.object{
        from = schema.money{ title = "Orders from, in minor units", default = 0 },
        note = schema.string{ title = "A line of your own in the mail", max = 500, default = "" },
        staff = schema.optional(schema.uuid{ title = "Who hears of orders that nobody pays" }),
    },
    steps = {
        {
            name = "look at the order", retries = 3,
            run = function(input, config)
                local order, why = orders.get(input.subject.event.id)
                if not order then error("the order cannot be read: " .. why) end
                return { wanted = order.total >= config.from and not order.guest, user = order.user_id, number = order.number,
                    paid = order.payment_status == "paid" or order.payment_method == "COD" }
            end,
        },
        {
            name = "paid", wait = { event = "order.paid", timeout = "2d" },
            run = function(input)
                local state = input.subject.state
                state.paid = state.paid or not input.subject.waited.timed_out
                return state
            end,
        },
        {
            name = "unpaid", retries = 3,
            run = function(input, config)
                local state = input.subject.state
                if state.paid then return nil, "it is paid" end
                orders.note(input.subject.event.id, "Nobody paid within two days")
                if config.staff then notify.user(config.staff, "Order " .. state.number .. " is not paid", "Two days have passed.") end
            end,
        },
        {
            name = "thank", wait = "3d", retries = 5,
            run = function(input, config)
                local state = input.subject.state
                if not state.wanted or not state.paid then return nil, "nobody to thank" end
                local sent, why = mail.send("thank-you", state.user, { number = state.number, note = config.note ~= "" and config.note
                    or nil })
                if not sent and why == "unavailable" then error("the mail waits") end
                state.thanked = sent == true
                log(sent and "thanked" or why)
                return state
            end,
        },
    },
}
