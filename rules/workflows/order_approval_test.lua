local function given(total, to, actor)
    return { subject = { order = { total = total }, from = "pending", to = to, actor = { id = actor, kind = "user" } } }
end
return {
    config = { approvers = { "ann" } },
    tests = {
        { name = "a small order", given = given(1000, "processing", "bob"), expect = { result = { allow = true } } },
        { name = "a large one waits", given = given(30000000, "processing", "bob"), expect = { result = { allow = false,
            reason = "a large order needs approval", workflow_state = "waiting for approval" } } },
        { name = "an approver moves it", given = given(30000000, "processing", "ann"), expect = { result = { allow = true,
            workflow_state = "approved" } } },
        { name = "it may always be cancelled", given = given(30000000, "cancelled", "bob"), expect = { result = { allow = true } } },
    },
}
