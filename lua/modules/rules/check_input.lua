-- Where a rule overwrites what it was given. At run time that is harmless and seen by nobody else, so nothing stops it; but whoever wrote
-- `line.unit = 0` meant to change a price, and an answer does that. Told from the source: names that stand for the input or a part of
-- it are followed through assignments, loops and calls of the file's own functions, by the form of the hook's input.
local M = {}

local BLOCKED = { ["("] = true, [":"] = true, ["{"] = true, [".."] = true, ["+"] = true, ["-"] = true, ["*"] = true, ["/"] = true,
    ["%"] = true, ["^"] = true, ["=="] = true, ["~="] = true, ["<"] = true, [">"] = true, ["<="] = true, [">="] = true, ["and"] = true }

--- The words and signs of a source: {text, kind, line, column}; kind: name, text, number, sign.
---@param source string one that parses
---@return table[]
function M.tokens(source)
    local list, at, line, start = {}, 1, 1, 1
    local function add(text, kind, from) list[#list + 1] = { text = text, kind = kind, line = line, column = from - start + 1 } end
    local function pass(to) -- over text that may hold line ends
        for place in source:sub(at, to):gmatch("()\n") do line, start = line + 1, at + place end
        at = to + 1
    end
    while at <= #source do
        local _, white = source:find("^%s+", at)
        local _, note = source:find("^%-%-", at)
        local _, _, level = source:find(note and "^%-%-%[(=*)%[" or "^%[(=*)%[", at)
        if white then
            pass(white)
        elseif level then
            local _, over = source:find("]" .. level .. "]", at, true)
            if not note then add("", "text", at) end
            pass(over or #source)
        elseif note then
            pass((source:find("\n", at, true) or #source + 1) - 1)
        else
            local _, word = source:find("^[%a_][%w_]*", at)
            local _, digits = source:find("^%.?%d[%w_.]*", at)
            local quote = source:match("^[\"']", at)
            local from = at
            if word then
                add(source:sub(at, word), "name", from)
                at = word + 1
            elseif digits then
                add(source:sub(at, digits), "number", from)
                at = digits + 1
            elseif quote then
                local to = at + 1
                while to <= #source and source:sub(to, to) ~= quote do to = to + (source:sub(to, to) == "\\" and 2 or 1) end
                add(source:sub(at + 1, to - 1), "text", from)
                pass(to)
            else
                local sign = source:match("^%.%.%.", at) or source:match("^[=~<>]=", at) or source:match("^%.%.", at) or source:sub(at, at)
                add(sign, "sign", from)
                at = at + #sign
            end
        end
    end
    return list
end

local function member(form, name)
    if not form or name == nil then return nil end
    if form.t == "record" then return form.fields[name] end
    if form.t == "map" then return form.of end
    return nil
end

-- The place of the token behind the bracket that stands at i.
local function behind(tokens, i)
    local depth = 0
    while tokens[i] do
        local text = tokens[i].kind == "sign" and tokens[i].text
        if text == "[" or text == "(" or text == "{" then depth = depth + 1 end
        if text == "]" or text == ")" or text == "}" then depth = depth - 1 end
        i = i + 1
        if depth == 0 then return i end
    end
    return i
end

-- Follows `.name` and `[...]` from the name at i, which has this form: where it ends, the form there, the last token, and the form that
-- holds it. Form nil: it left what is known.
local function follow(tokens, i, form)
    local holder, last = nil, tokens[i]
    i = i + 1
    while tokens[i] and tokens[i].kind == "sign" and (tokens[i].text == "." or tokens[i].text == "[") do
        holder = form
        if tokens[i].text == "." then
            last = tokens[i + 1]
            form = member(form, last and last.text)
            i = i + 2
        else
            last = tokens[i + 1]
            local key = last and last.kind == "text" and last.text
            form = form and (form.t == "list" and form.item or member(form, key or nil))
            i = behind(tokens, i)
        end
    end
    return i, form, last, holder
end

local OPENS = { ["function"] = true, ["if"] = true, ["do"] = true, ["repeat"] = true }

-- The place behind the block that the word at i opens.
local function behind_block(tokens, i)
    local depth = 0
    while tokens[i] do
        local word = tokens[i].kind == "name" and tokens[i].text
        if OPENS[word] then depth = depth + 1 end
        if word == "end" or word == "until" then depth = depth - 1 end
        i = i + 1
        if depth == 0 then return i end
    end
    return i
end

-- The file's own functions by name: where the words of each stand, and its parameters. Of two of one name none: which one is meant is not
-- told from the words.
local function functions(tokens)
    local list = {}
    for i, t in ipairs(tokens) do
        local before, name = tokens[i - 1], nil
        if t.kind == "name" and t.text == "function" and before then
            local next_ = tokens[i + 1]
            if before.text == "local" and next_ and next_.kind == "name" then name = next_.text end
            local held, word = tokens[i - 2], tokens[i - 3]
            if before.text == "=" and held and held.kind == "name" and word and word.text == "local" then name = held.text end
        end
        local open = name and (before.text == "=" and i + 1 or i + 2)
        if open and tokens[open] and tokens[open].text == "(" then
            local params, k = {}, open + 1
            while tokens[k] and tokens[k].text ~= ")" do
                if tokens[k].kind == "name" then params[#params + 1] = tokens[k].text end
                k = k + 1
            end
            list[name] = list[name] == nil and { name = name, from = k + 1, to = behind_block(tokens, i) - 2, params = params, forms = {} }
                or false
        end
    end
    return list
end

-- What a call hands to a function of the file: the argument that is a part of the input gives its parameter that form. True: it was not
-- known before.
local function hand_over(tokens, open, fn, known)
    local place, i, news = 1, open + 1, false
    local over = behind(tokens, open) - 1
    while i < over do
        local value, to = tokens[i], i + 1
        if value.kind == "name" and known[value.text] then
            local form
            to, form = follow(tokens, i, known[value.text])
            local whole = tokens[to] and (tokens[to].text == "," or to == over)
            if whole and form and fn.params[place] and not fn.forms[fn.params[place]] then
                fn.forms[fn.params[place]], news = form, true
            end
        end
        i = to
        while i < over and tokens[i].text ~= "," do
            local sign = tokens[i].kind == "sign" and tokens[i].text
            i = (sign == "(" or sign == "{" or sign == "[") and behind(tokens, i) or i + 1
        end
        place, i = place + 1, i + 1
    end
    return news
end

-- Goes over the words from one place to another; `known`: name -> form of what it stands for.
local function scan(tokens, from, to_, known, s)
    local i = from
    while tokens[i] and i <= to_ do
        local t = tokens[i]
        local before = tokens[i - 1]
        local is_root = t.kind == "name" and not (before and before.kind == "sign" and (before.text == "." or before.text == ":"))
        if is_root and t.text == "function" and before and before.text == "=" and tokens[i - 2] and tokens[i - 2].text == "run"
            and tokens[i + 1] and tokens[i + 1].text == "(" and tokens[i + 2] and tokens[i + 2].kind == "name" then
            known[tokens[i + 2].text] = s.form
            i = i + 2
        elseif is_root and t.text == "for" then
            local names, k = {}, i + 1
            while tokens[k] and tokens[k].text ~= "in" and tokens[k].text ~= "=" and k < i + 12 do
                if tokens[k].kind == "name" then names[#names + 1] = tokens[k].text end
                k = k + 1
            end
            for _, name in ipairs(names) do known[name] = nil end
            local walks = tokens[k] and tokens[k].text == "in" and tokens[k + 1] and (tokens[k + 1].text == "ipairs"
                or tokens[k + 1].text == "pairs") and tokens[k + 3]
            if walks and names[2] and known[walks.text] then
                local _, of = follow(tokens, k + 3, known[walks.text])
                if of and of.t == "list" then known[names[2]] = of.item end
            end
            i = k
        elseif is_root and t.text == "local" and tokens[i + 1] and tokens[i + 1].kind == "name" and tokens[i + 1].text ~= "function" then
            local name, value = tokens[i + 1].text, tokens[i + 3]
            known[name] = nil
            if tokens[i + 2] and tokens[i + 2].text == "=" and value and value.kind == "name" and known[value.text] then
                local to, of = follow(tokens, i + 3, known[value.text])
                if not (tokens[to] and BLOCKED[tokens[to].text]) then known[name] = of end
            end
            i = i + 1
        elseif is_root and known[t.text] then
            local to, of, last, holder = follow(tokens, i, known[t.text])
            local place = last and last.line .. ":" .. last.column
            if of and holder and last.kind ~= "sign" and tokens[to] and tokens[to].kind == "sign" and tokens[to].text == "="
                and not s.seen[place] then
                s.seen[place] = true
                s.found[#s.found + 1] = { line = last.line, column = last.column, field = last.text }
            end
        elseif is_root and s.functions[t.text] and tokens[i + 1] and tokens[i + 1].kind == "sign" and tokens[i + 1].text == "("
            and not (before and before.text == "function") then
            local fn = s.functions[t.text]
            if hand_over(tokens, i + 1, fn, known) then s.wanted[#s.wanted + 1] = fn end
        end
        i = i + 1
    end
end

--- Places where a rule overwrites a field of its input that there is.
---@param source string one that parses
---@param form table type of the hook's input, see kasma.hooks_catalogue
---@return {line: integer, column: integer, field: string}[]
function M.overwritten(source, form)
    local tokens = M.tokens(source)
    local s = { form = form, functions = functions(tokens), found = {}, seen = {}, wanted = {} }
    scan(tokens, 1, #tokens, {}, s)
    -- What a function is handed may be handed on; each parameter is learnt once, so this ends.
    local at = 1
    while s.wanted[at] do
        local fn, known = s.wanted[at], {}
        for name, of in pairs(fn.forms) do known[name] = of end
        scan(tokens, fn.from, fn.to, known, s)
        at = at + 1
    end
    table.sort(s.found, function(a, b) return a.line < b.line or a.line == b.line and a.column < b.column end)
    return s.found
end

return M
