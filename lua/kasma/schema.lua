-- What a body, a query or a path may hold, said once: the validator, its messages and the JSON Schema of the document
-- all come from here.
--
--     local Line = schema.object{
--         productId = schema.uuid{ on_bad = 404, what = "Product" },
--         variantId = schema.uuid():optional(),
--         quantity  = schema.integer{ min = 1, max = 9999 }:describe("how many"),
--     }
--
-- A schema is compiled once, when it is first used, into closures: check(value, prefix, name, errs) -> clean value.
-- Rules that hold:
--   * What is not declared is an error, never dropped. The clean value holds declared members only, aliases resolved,
--     defaults filled in.
--   * Nothing is converted in a body. In a query and a path text becomes a number or a boolean where the schema says so.
--   * A member is required unless :optional() or :default(v). A null counts as absent where the member is optional, and
--     is kept (json.null) where it is :nullable().
--   * Messages come in the order of declaration. A table constructor keeps no order, but each schema carries a serial
--     number and a constructor runs left to right; a schema that is shared between members takes its place by :copy().
local json_null = require("kasma.null")

local M = {}

local floor, concat, sort, byte, find, sub, lower = math.floor, table.concat, table.sort, string.byte, string.find, string.sub, string.lower
local MAX_INTEGER = 9007199254740992

---@class kasma.Schema
---@field kind string
---@field serial integer
---@field opts table
local Node = {}
Node.__index = Node

local serial = 0

local function node(kind, opts)
    serial = serial + 1
    return setmetatable({ kind = kind, serial = serial, opts = opts or {} }, Node)
end

local function derive(self, field, value)
    local copy = node(self.kind, self.opts)
    for key, was in pairs(self) do
        if key ~= "serial" and key ~= "check_body" and key ~= "check_query" then copy[key] = was end
    end
    if field then copy[field] = value end
    return copy
end

--- May be absent; null counts as absent.
---@return kasma.Schema
function Node:optional() return derive(self, "is_optional", true) end

--- Null is allowed and kept as json.null.
---@return kasma.Schema
function Node:nullable() return derive(self, "is_nullable", true) end

--- Value when absent.
---@return kasma.Schema
function Node:default(value)
    local copy = derive(self, "default_value", value)
    copy.is_optional = true
    return copy
end

--- Other names under which the member is accepted; both present and different is an error.
---@param ... string
---@return kasma.Schema
function Node:alias(...) return derive(self, "aliases", { ... }) end

--- One sentence for the API document.
---@return kasma.Schema
function Node:describe(text) return derive(self, "description", text) end

--- Example for the API document.
---@return kasma.Schema
function Node:example(value) return derive(self, "example_value", value) end

--- The same schema with a place of its own in the order of messages.
---@return kasma.Schema
function Node:copy() return derive(self) end

-- Messages -----------------------------------------------------------------------------------------------------------

-- opts.messages[rule] replaces the text of a rule, whole.
local function complain(errs, opts, rule, prefix, name, text)
    local own = opts.messages and opts.messages[rule]
    errs[#errs + 1] = own and (prefix .. own) or (prefix .. name .. text)
end

local function text_of(number)
    if number == floor(number) and number < 1e15 and number > -1e15 then return string.format("%d", number) end
    return tostring(number)
end

local function characters(text)
    local count = 0
    for i = 1, #text do
        local b = byte(text, i)
        if b < 0x80 or b >= 0xC0 then count = count + 1 end
    end
    return count
end

-- Formats ------------------------------------------------------------------------------------------------------------

local HEX = "%x%x%x%x"
local UUID = "^" .. HEX .. HEX .. "%-" .. HEX .. "%-" .. HEX .. "%-" .. HEX .. "%-" .. HEX .. HEX .. HEX .. "$"

---@param text any
---@return boolean
function M.is_uuid(text) return type(text) == "string" and #text == 36 and find(text, UUID) ~= nil end

---@param text any
---@return boolean
function M.is_email(text)
    if type(text) ~= "string" or #text > 254 then return false end
    local at = find(text, "@", 1, true)
    if not at or at == 1 or at > 65 or find(text, "@", at + 1, true) then return false end
    local name, host = sub(text, 1, at - 1), sub(text, at + 1)
    if find(name, "^[%w!#$%%&'*+/=?^_`{|}~.-]+$") == nil or find(name, "^%.") or find(name, "%.$") or find(name, "..", 1, true) then
        return false
    end
    if not find(host, "^[%w.-]+$") or not find(host, "%.%a[%w-]*%w$") then return false end
    for label in (host .. "."):gmatch("([^.]*)%.") do
        if label == "" or #label > 63 or find(label, "^%-") or find(label, "%-$") then return false end
    end
    return true
end

local DAYS = { 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31 }

---@param text any
---@return boolean true for an ISO 8601 date or date-time
function M.is_date(text)
    if type(text) ~= "string" or #text > 40 then return false end
    local y, m, d, rest = text:match("^(%d%d%d%d)%-(%d%d)%-(%d%d)(.*)$")
    if not y then return false end
    y, m, d = tonumber(y), tonumber(m), tonumber(d)
    if m < 1 or m > 12 then return false end
    local days = DAYS[m]
    if m == 2 and (y % 4 == 0 and (y % 100 ~= 0 or y % 400 == 0)) then days = 29 end
    if d < 1 or d > days then return false end
    if rest == "" then return true end
    local hh, mm, tail = rest:match("^[T ](%d%d):(%d%d)(.*)$")
    if not hh or tonumber(hh) > 23 or tonumber(mm) > 59 then return false end
    local ss, after = tail:match("^:(%d%d)(.*)$")
    if ss then
        if tonumber(ss) > 59 then return false end
        tail = after:gsub("^[.,]%d%d?%d?%d?%d?%d?%d?%d?%d?", "", 1)
    end
    if tail == "" or tail == "Z" then return true end
    local oh, om = tail:match("^[+-](%d%d):?(%d%d)$")
    return oh ~= nil and tonumber(oh) <= 14 and tonumber(om) <= 59
end

---@param text any
---@param opts table|nil {https_only=, local_ok=}
---@return boolean
function M.is_url(text, opts)
    if type(text) ~= "string" or #text > 2048 or find(text, "[%s%c<>\"]") then return false end
    local scheme, rest = text:match("^(%a[%w+.-]*)://(.+)$")
    if not scheme then
        if opts and opts.https_only then return false end
        rest = text
    else
        scheme = lower(scheme)
        if scheme ~= "https" and (scheme ~= "http" or (opts and opts.https_only)) then return false end
    end
    local authority = rest:match("^[^/?#]+")
    if not authority then return false end
    local host, port = authority:match("^([%w.-]+):?(%d*)$")
    if not host or (port ~= "" and (tonumber(port) < 1 or tonumber(port) > 65535)) then return false end
    if opts and opts.local_ok and (host == "localhost" or find(host, "^[%d.]+$")) then return true end
    if find(host, "^%d+%.%d+%.%d+%.%d+$") then return true end
    return find(host, "^%w[%w.-]*%.%a%a[%w-]*$") ~= nil and not find(host, "..", 1, true)
end

-- Compilers: kind -> function(self, query) -> check --------------------------------------------------------------------

local compile
local compilers = {}

local function string_rules(self, is_format, format_rule, format_text)
    local opts = self.opts
    local min, max, pattern = opts.min, opts.max, opts.pattern
    local not_empty, trim, fold = opts.not_empty, opts.trim, opts.fold
    return function(value, prefix, name, errs)
        if type(value) ~= "string" then
            if not_empty and value == nil then complain(errs, opts, "not_empty", prefix, name, " should not be empty") end
            complain(errs, opts, format_rule or "string", prefix, name, format_text or " must be a string")
            if min then complain(errs, opts, "min", prefix, name, " must be longer than or equal to " .. min .. " characters") end
            if max and value ~= nil then
                complain(errs, opts, "max", prefix, name, " must be shorter than or equal to " .. max .. " characters")
            end
            return nil
        end
        if trim then value = value:match("^%s*(.-)%s*$") end
        if fold then value = lower(value) end
        if not_empty and value == "" then complain(errs, opts, "not_empty", prefix, name, " should not be empty") end
        if is_format and not is_format(value, opts) then complain(errs, opts, format_rule, prefix, name, format_text) end
        if min and #value < min * 4 and characters(value) < min then
            complain(errs, opts, "min", prefix, name, " must be longer than or equal to " .. min .. " characters")
        end
        local long = max and #value > max and characters(value) > max
        if long then complain(errs, opts, "max", prefix, name, " must be shorter than or equal to " .. max .. " characters") end
        if pattern and not (long and opts.bounded) and not find(value, pattern) then
            complain(errs, opts, "pattern", prefix, name, " must match the required form")
        end
        if find(value, "%z") then complain(errs, opts, "string", prefix, name, " must be a string") end
        return value
    end
end

function compilers.string(self) return string_rules(self) end
function compilers.email(self) return string_rules(self, M.is_email, "email", " must be an email") end
function compilers.date(self) return string_rules(self, M.is_date, "date", " must be a valid ISO 8601 date string") end
function compilers.url(self) return string_rules(self, M.is_url, "url", " must be a URL address") end

function compilers.uuid(self)
    local opts = self.opts
    local on_bad = opts.on_bad == 404
    return function(value, prefix, name, errs)
        if M.is_uuid(value) then return lower(value) end
        if on_bad and value ~= nil then
            errs.not_found = errs.not_found or (opts.what and (opts.what .. " not found")) or "Not Found"
            return nil
        end
        if opts.not_empty and (value == nil or value == "") then
            complain(errs, opts, "not_empty", prefix, name, " should not be empty")
        end
        complain(errs, opts, "uuid", prefix, name, " must be a UUID")
        return nil
    end
end

-- More decimals than allowed, with room for what a double cannot say exactly.
local function too_fine(value, decimals)
    local scaled = value * 10 ^ decimals
    return math.abs(scaled - floor(scaled + 0.5)) > 1e-6 * math.max(1, math.abs(value))
end

local NUMBER = "^%s*[+-]?%d+%.?%d*[eE]?[+-]?%d*%s*$"

local function number_rules(self, query, integer)
    local opts = self.opts
    local min, max, positive, cap = opts.min, opts.max, opts.positive, opts.cap
    return function(value, prefix, name, errs)
        if query and type(value) == "string" and find(value, NUMBER) then value = tonumber(value) or value end
        local is_number = type(value) == "number" and value == value and value ~= math.huge and value ~= -math.huge
        if not is_number then
            if opts.not_empty and value == nil then complain(errs, opts, "not_empty", prefix, name, " should not be empty") end
            if integer then
                complain(errs, opts, "integer", prefix, name, " must be an integer number")
            else
                complain(errs, opts, "number", prefix, name, " must be a number conforming to the specified constraints")
            end
        elseif integer and (value ~= floor(value) or value > MAX_INTEGER or value < -MAX_INTEGER) then
            complain(errs, opts, "integer", prefix, name, " must be an integer number")
        elseif opts.decimals and too_fine(value, opts.decimals) then
            complain(errs, opts, "number", prefix, name, " must be a number conforming to the specified constraints")
        end
        if positive and (not is_number or value <= 0) then complain(errs, opts, "positive", prefix, name, " must be a positive number") end
        if min and (not is_number or value < min) then
            complain(errs, opts, "min", prefix, name, " must not be less than " .. text_of(min))
        end
        if max and (not is_number or value > max) then
            complain(errs, opts, "max", prefix, name, " must not be greater than " .. text_of(max))
        end
        if not is_number then return nil end
        if cap and value > cap then value = cap end
        return value
    end
end

function compilers.integer(self, query) return number_rules(self, query, true) end
function compilers.number(self, query) return number_rules(self, query, false) end

-- A price as a client may write it: a number or a decimal text. It stays as it came (the currency's digits are checked
-- by core.money.parse where the currency is known), so nothing is rounded on the way.
function compilers.money(self)
    local opts = self.opts
    local min = opts.min or 0
    return function(value, prefix, name, errs)
        local amount = value
        if type(value) == "string" then
            amount = find(value, "^%-?%d+%.?%d*$") and #value <= 24 and tonumber(value) or nil
        elseif type(value) ~= "number" or value ~= value or value == math.huge or value == -math.huge then
            amount = nil
        end
        if not amount then
            if opts.not_empty and value == nil then complain(errs, opts, "not_empty", prefix, name, " should not be empty") end
            complain(errs, opts, "number", prefix, name, " must be a number conforming to the specified constraints")
        end
        if opts.positive then
            if not amount or amount <= 0 then complain(errs, opts, "positive", prefix, name, " must be a positive number") end
        elseif not amount or amount < min then
            complain(errs, opts, "min", prefix, name, " must not be less than " .. text_of(min))
        end
        return amount and value
    end
end

function compilers.boolean(self, query)
    local opts = self.opts
    return function(value, prefix, name, errs)
        if value == true or value == false then return value end
        if query then
            if value == "true" or value == "1" then return true end
            if value == "false" or value == "0" then return false end
        end
        complain(errs, opts, "boolean", prefix, name, " must be a boolean value")
        return nil
    end
end

function compilers.enum(self)
    local opts, values, known = self.opts, self.values, {}
    local fold = opts.fold
    for _, value in ipairs(values) do known[fold and lower(value) or value] = value end
    local text = " must be one of the following values: " .. concat(values, ", ")
    return function(value, prefix, name, errs)
        local found = known[type(value) == "string" and fold and lower(value) or value]
        if found == nil or value == nil then
            if opts.not_empty and (value == nil or value == "") then
                complain(errs, opts, "not_empty", prefix, name, " should not be empty")
            end
            if type(value) ~= "string" and opts.is_string then complain(errs, opts, "string", prefix, name, " must be a string") end
            complain(errs, opts, "enum", prefix, name, text)
            return nil
        end
        return found
    end
end

-- A NUL is in no text that PostgreSQL keeps, not even within a document.
local function has_nul(value)
    if type(value) == "string" then return find(value, "%z") ~= nil end
    if type(value) ~= "table" then return false end
    for key, member in pairs(value) do
        if has_nul(key) or has_nul(member) then return true end
    end
    return false
end

function compilers.any(self)
    local opts = self.opts or {}
    return function(value, prefix, name, errs)
        if has_nul(value) then complain(errs, opts, "string", prefix, name, " must not hold NUL characters") end
        return value
    end
end

-- An array's scalar items share one message, `each value in tags must be a string`; those of objects name their index.
function compilers.array(self, query)
    local opts, item = self.opts, self.item
    local check = compile(item, query)
    local nested = item.kind == "object" or item.kind == "array" or item.kind == "map"
    return function(value, prefix, name, errs)
        if query and type(value) == "string" then
            local parts = {}
            for part in (value .. ","):gmatch("([^,]*),") do parts[#parts + 1] = part end
            value = parts
        end
        if type(value) ~= "table" or (next(value) ~= nil and value[1] == nil) then
            complain(errs, opts, "array", prefix, name, " must be an array")
            if not nested and value ~= nil then check({}, prefix, "each value in " .. name, errs) end
            return nil
        end
        local count = #value
        local clean = M.array_mark({})
        if nested then
            for i = 1, count do clean[i] = check(value[i], prefix .. name .. ".", tostring(i - 1), errs) end
        else
            local before = #errs
            local label = "each value in " .. name
            for i = 1, count do
                local was = #errs
                clean[i] = check(value[i], prefix, label, errs)
                if #errs > was and was > before then
                    for extra = #errs, was + 1, -1 do
                        for seen = before + 1, was do
                            if errs[seen] == errs[extra] then table.remove(errs, extra) break end
                        end
                    end
                end
            end
        end
        if opts.min and count < opts.min then
            complain(errs, opts, "min", prefix, name,
                opts.min == 1 and " should not be empty" or (" must contain at least " .. opts.min .. " elements"))
        end
        if opts.max and count > opts.max then
            complain(errs, opts, "max", prefix, name, " must contain no more than " .. opts.max .. " elements")
        end
        if opts.unique and count > 1 and not nested then
            local seen = {}
            for i = 1, #clean do
                if clean[i] ~= nil and seen[clean[i]] then
                    complain(errs, opts, "unique", prefix, name, " must contain unique elements")
                    break
                end
                if clean[i] ~= nil then seen[clean[i]] = true end
            end
        end
        return clean
    end
end

local function is_object(value) return type(value) == "table" and value[1] == nil and not M.is_array(value) end

-- An object whose member names are free.
function compilers.map(self, query)
    local opts = self.opts
    local check = compile(self.item, query)
    local max = opts.max or 200
    return function(value, prefix, name, errs)
        if not is_object(value) then
            complain(errs, opts, "object", prefix, name, " must be an object")
            return nil
        end
        local clean, count = {}, 0
        for key, member in pairs(value) do
            count = count + 1
            if count > max then
                complain(errs, opts, "max", prefix, name, " must contain no more than " .. max .. " members")
                break
            end
            clean[key] = check(member, prefix .. name .. ".", tostring(key), errs)
        end
        return clean
    end
end

-- The first alternative without a message wins; else the messages of the last.
function compilers.one_of(self, query)
    local checks = {}
    for i, alternative in ipairs(self.alternatives) do checks[i] = compile(alternative, query) end
    return function(value, prefix, name, errs)
        local last
        for i = 1, #checks do
            last = {}
            local clean = checks[i](value, prefix, name, last)
            if #last == 0 and not last.not_found then return clean end
        end
        for i = 1, #last do errs[#errs + 1] = last[i] end
        errs.not_found = errs.not_found or last.not_found
        return nil
    end
end

local function members_in_order(members)
    local list = {}
    for name, member in pairs(members) do
        assert(getmetatable(member) == Node, "schema.object: member " .. tostring(name) .. " is no schema")
        list[#list + 1] = { name = name, schema = member }
    end
    sort(list, function(a, b)
        if a.schema.serial ~= b.schema.serial then return a.schema.serial < b.schema.serial end
        return a.name < b.name
    end)
    return list
end

local function same(a, b)
    if type(a) ~= "table" or type(b) ~= "table" then return a == b end
    for key, value in pairs(a) do if not same(value, b[key]) then return false end end
    for key in pairs(b) do if a[key] == nil then return false end end
    return true
end

function compilers.object(self, query)
    local opts = self.opts
    local order = members_in_order(self.members)
    local count = #order
    local names, checks, optional, nullable, defaults, aliases, known = {}, {}, {}, {}, {}, {}, {}
    for i, entry in ipairs(order) do
        local member = entry.schema
        names[i], checks[i] = entry.name, compile(member, query)
        optional[i], nullable[i] = member.is_optional or false, member.is_nullable or false
        defaults[i], aliases[i] = member.default_value, member.aliases or false
        known[entry.name] = true
        if query and member.kind == "array" then known[entry.name .. "[]"] = true end
        for _, alias in ipairs(member.aliases or {}) do known[alias] = true end
    end
    local open = opts.open
    return function(value, prefix, name, errs)
        if value == nil and name == "" then value = {} end
        if not is_object(value) then
            complain(errs, opts, "object", prefix, name == "" and "body" or name, " must be an object")
            return nil
        end
        if name ~= "" then prefix = prefix .. name .. "." end
        local clean = {}
        local strangers
        for key, member in next, value do
            if not known[key] then
                if open then
                    clean[key] = member
                else
                    strangers = strangers or {}
                    strangers[#strangers + 1] = tostring(key)
                end
            end
        end
        if strangers then
            sort(strangers)
            for i = 1, #strangers do errs[#errs + 1] = prefix .. "property " .. strangers[i] .. " should not exist" end
        end
        for i = 1, count do
            local key = names[i]
            local given = value[key]
            if query and given == nil and self.members[key].kind == "array" then given = value[key .. "[]"] end
            local others = aliases[i]
            if others then
                for a = 1, #others do
                    local other = value[others[a]]
                    if other ~= nil then
                        if given == nil or given == json_null then
                            given = other
                        elseif not same(given, other) then
                            errs[#errs + 1] = prefix .. key .. " and " .. others[a] .. " must not differ"
                        end
                    end
                end
            end
            if given == json_null then
                if nullable[i] then
                    clean[key] = json_null
                    goto continue
                end
                given = nil
            end
            if given == nil and optional[i] then
                clean[key] = defaults[i]
            else
                clean[key] = checks[i](given, prefix, key, errs)
            end
            ::continue::
        end
        return clean
    end
end

compile = function(self, query)
    local slot = query and "check_query" or "check_body"
    local check = rawget(self, slot)
    if not check then
        check = compilers[self.kind](self, query)
        self[slot] = check
    end
    return check
end

-- Constructors -------------------------------------------------------------------------------------------------------

--- opts of the texts: min, max (characters), pattern (Lua), not_empty, trim, fold (lower case), messages {rule = text},
--- bounded (the pattern is not looked at in a text that is too long).
---@param opts table|nil
---@return kasma.Schema
function M.string(opts) return node("string", opts) end
function M.email(opts) return node("email", opts) end
function M.date(opts) return node("date", opts) end
function M.url(opts) return node("url", opts) end

--- `on_bad = 404` answers 404 (`what` .. " not found") instead of a message.
---@param opts table|nil {on_bad = 404, what = "Product", not_empty = true}
---@return kasma.Schema
function M.uuid(opts) return node("uuid", opts) end

--- opts of the numbers: min, max, positive, cap (larger values become it), decimals (at most so many, number only).
---@param opts table|nil
---@return kasma.Schema
function M.integer(opts) return node("integer", opts) end
function M.number(opts) return node("number", opts) end

--- Number or decimal text, kept as it came. opts: min (0), positive.
---@param opts table|nil
---@return kasma.Schema
function M.money(opts) return node("money", opts) end
function M.boolean(opts) return node("boolean", opts) end

---@param values string[]
---@param opts table|nil {fold = true: any case}
---@return kasma.Schema
function M.enum(values, opts)
    local self = node("enum", opts)
    self.values = values
    return self
end

--- Anything JSON can hold.
---@return kasma.Schema
function M.any() return node("any") end

---@param item kasma.Schema
---@param opts table|nil {min=, max=, unique=}
---@return kasma.Schema
function M.array(item, opts)
    local self = node("array", opts)
    self.item = assert(item, "schema.array: what does it hold?")
    return self
end

--- Object with free member names (at most opts.max, 200).
---@param item kasma.Schema|nil what each member is; default anything
---@param opts table|nil
---@return kasma.Schema
function M.map(item, opts)
    local self = node("map", opts)
    self.item = item or M.any()
    return self
end

---@param ... kasma.Schema
---@return kasma.Schema
function M.one_of(...)
    local self = node("one_of")
    self.alternatives = { ... }
    return self
end

--- opts.open keeps undeclared members; opts.name makes it a named component of the API document.
---@param members table<string, kasma.Schema>
---@param opts table|nil {name = "Product", open = true}
---@return kasma.Schema
function M.object(members, opts)
    local self = node("object", opts)
    self.members = members
    return self
end

--- The object with members added or replaced (nil-safe: false removes one).
---@param base kasma.Schema
---@param members table<string, kasma.Schema|false>
---@param opts table|nil
---@return kasma.Schema
function M.extend(base, members, opts)
    local all = {}
    for name, member in pairs(base.members) do all[name] = member end
    for name, member in pairs(members) do all[name] = member or nil end
    return M.object(all, opts or { open = base.opts.open })
end

--- The object with every member optional (partial updates).
---@param base kasma.Schema
---@param opts table|nil
---@return kasma.Schema
function M.partial(base, opts)
    local all = {}
    for _, entry in ipairs(members_in_order(base.members)) do
        local member = entry.schema:optional()
        member.default_value = nil
        all[entry.name] = member
    end
    return M.object(all, opts)
end

--- page and limit of the lists. `cap`: what a larger limit becomes.
---@param members table<string, kasma.Schema>|nil filters of the list
---@param opts table|nil {limit = 20, cap = 100}
---@return kasma.Schema
function M.page(members, opts)
    opts = opts or {}
    local all = {
        page = M.integer{ min = 1 }:default(1):describe("page, from 1"),
        limit = M.integer{ min = 1, cap = opts.cap or 100 }:default(opts.limit or 20):describe("rows a page"),
    }
    for name, member in pairs(members or {}) do all[name] = member end
    return M.object(all)
end

-- Use ----------------------------------------------------------------------------------------------------------------

---@param self kasma.Schema
---@param value any decoded body, or table of texts when `query`
---@param query boolean|nil convert texts as a query or a path does
---@return any clean, table|nil errs messages; errs.not_found is the text of a 404
function M.check(self, value, query)
    local errs = {}
    local clean = compile(self, query or false)(value, "", "", errs)
    if errs[1] or errs.not_found then return nil, errs end
    return clean, nil
end

--- Array-ness of decoded JSON lies in core.json's metatable; without the core (plain LuaJIT) a metatable of our own will do.
local has_json, json = pcall(require, "core.json")
local array_meta = { __name = "array" }
M.array_mark = has_json and json.array or function(list) return setmetatable(list, array_meta) end
M.is_array = has_json and json.is_array or function(value) return getmetatable(value) == array_meta end
local in_order = has_json and json.object or function(_, object) return object end

-- JSON Schema (2020-12, as OpenAPI 3.1 takes it) -----------------------------------------------------------------------

local emit

local emitters = {
    string = function(self)
        return { type = "string", minLength = self.opts.min or (self.opts.not_empty and 1 or nil), maxLength = self.opts.max }
    end,
    email = function() return { type = "string", format = "email", maxLength = 254 } end,
    date = function() return { type = "string", description = "ISO 8601 date or date-time" } end,
    url = function() return { type = "string", format = "uri-reference", maxLength = 2048 } end,
    uuid = function() return { type = "string", format = "uuid" } end,
    integer = function(self) return { type = "integer", minimum = self.opts.min, maximum = self.opts.max } end,
    number = function(self)
        return { type = "number", minimum = self.opts.min, maximum = self.opts.max, exclusiveMinimum = self.opts.positive and 0 or nil }
    end,
    money = function() return { type = { "number", "string" }, description = "exact to the currency's digits" } end,
    boolean = function() return { type = "boolean" } end,
    enum = function(self) return { type = "string", enum = self.values } end,
    any = function() return {} end,
    array = function(self, named)
        return { type = "array", items = emit(self.item, named), minItems = self.opts.min, maxItems = self.opts.max,
            uniqueItems = self.opts.unique }
    end,
    map = function(self, named) return { type = "object", additionalProperties = emit(self.item, named) } end,
    one_of = function(self, named)
        local list = {}
        for i, alternative in ipairs(self.alternatives) do list[i] = emit(alternative, named) end
        return { anyOf = list }
    end,
    object = function(self, named)
        local properties, required, names = {}, {}, {}
        for _, entry in ipairs(members_in_order(self.members)) do
            properties[entry.name] = emit(entry.schema, named)
            names[#names + 1] = entry.name
            if not entry.schema.is_optional then required[#required + 1] = entry.name end
            for _, alias in ipairs(entry.schema.aliases or {}) do
                local other = emit(entry.schema, named)
                if other["$ref"] then other = { allOf = { other } } end
                other.deprecated = true
                other.description = "alias of " .. entry.name
                properties[alias] = other
                names[#names + 1] = alias
            end
        end
        local out = { type = "object", properties = in_order(names, properties), additionalProperties = self.opts.open and true or false }
        -- A member that has an alias may be absent under its own name.
        local strict = {}
        for _, name in ipairs(required) do
            if not self.members[name].aliases then strict[#strict + 1] = name end
        end
        if strict[1] then out.required = strict end
        return out
    end,
}

--- JSON Schema of a schema. Objects that have a name go into `named` once and are referred to.
---@param self kasma.Schema
---@param named table<string, table> components, filled in
---@return table
emit = function(self, named)
    local name = self.opts.name
    if name and named then
        if not named[name] then
            named[name] = {}
            local body = emitters[self.kind](self, named)
            for key, value in pairs(body) do named[name][key] = value end
        end
        if not self.description and not self.is_nullable then return { ["$ref"] = "#/components/schemas/" .. name } end
    end
    local out = name and named and { allOf = { { ["$ref"] = "#/components/schemas/" .. name } } } or emitters[self.kind](self, named)
    if self.is_nullable then
        if type(out.type) == "string" then
            out.type = { out.type, "null" }
        elseif not out.type then
            out = { anyOf = { out, { type = "null" } } }
        end
        if out.enum then
            local values = {}
            for i, value in ipairs(out.enum) do values[i] = value end
            values[#values + 1] = json_null
            out.enum = values
        end
    end
    if self.description then out.description = self.description end
    if self.default_value ~= nil then out.default = self.default_value end
    if self.example_value ~= nil then out.examples = { self.example_value } end
    return out
end

M.json_schema = emit

---@param value any
---@return boolean
function M.is_schema(value) return getmetatable(value) == Node end

--- Members of an object in the order of their declaration.
---@param self kasma.Schema
---@return {name: string, schema: kasma.Schema}[]
function M.members(self) return members_in_order(self.members) end

return M
