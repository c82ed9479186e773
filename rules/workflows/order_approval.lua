-- Large orders wait: they do not go into processing before somebody of the group of approvers moves them.
return {
    hook = "workflow.order",
    name = "Approval of large orders",
    version = 1,
    on_error = "block",
    config = schema.object{
        from = schema.money{ title = "Orders from, in minor units", default = 20000000 },
        approvers = schema.list(schema.string{ max = 64 }, { title = "Ids of approvers", max = 50, default = {} }),
        template = schema.optional(schema.string{ title = "Mail to send when it waits", max = 64 }),
    },
    run = function(input, config)
        local subject = input.subject
        if subject.to ~= "processing" or subject.order.total < config.from then return { allow = true } end
        if set.has(config.approvers, subject.actor.id) then return { allow = true, workflow_state = "approved" } end
        return { allow = false, reason = "a large order needs approval", workflow_state = "waiting for approval",
            notify = config.template and { template = config.template } or nil }
    end,
}
