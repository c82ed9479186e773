-- Words of a command line: `--name value`, `--flag`, and what stands alone.

---@param words string[]
---@param known table<string, boolean|string> true: takes a value; false: a flag; "list": may come more than once
---@return table|nil args by name, words that stand alone by number; nil, message when one is not known
return function(words, known)
    local args, i = {}, 1
    for name, kind in pairs(known) do
        if kind == "list" then args[name] = {} end
    end
    while i <= #words do
        local word = words[i]
        local name, value = word:match("^%-%-([%w-]+)=(.*)$")
        name = name or word:match("^%-%-([%w-]+)$")
        if not name then
            args[#args + 1] = word
        elseif known[name] == nil then
            return nil, word .. " is not known here"
        elseif known[name] == false then
            args[name] = true
        else
            if not value then
                i = i + 1
                value = words[i]
            end
            if not value then return nil, word .. " needs a value" end
            if known[name] == "list" then table.insert(args[name], value) else args[name] = value end
        end
        i = i + 1
    end
    return args
end
