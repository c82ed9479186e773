-- What goes wrong, as values that are raised. An error carries a status, a message and a stable code; the route pipeline
-- writes it in the one envelope {"message", "error", "statusCode", "code", "details", "requestId"}. Whatever else escapes a
-- handler is a bug: 500 with an id, its traceback in the log and nothing of it on the wire.
--
--     errors.not_found{ message = "Product not found" }
--     errors.conflict{ message = "Only 2 left", code = "out_of_stock", details = { ... } }
--
-- Answers of a store come in as {kind=, code=, constraint=, ...} and are mapped by SQLSTATE, then by the constraint's name.
local M = {}

---@class kasma.Error
---@field status integer
---@field message string|string[]
---@field code string|nil lower_snake word
---@field details any|nil
---@field headers table<string, string>|nil
---@field object table|nil answered as it is instead of the envelope
---@field cause table|nil the store's own error, for the log
local Error = {}
Error.__index = Error
Error.__tostring = function(self)
    local message = self.message
    if type(message) == "table" then message = table.concat(message, "; ") end
    return ("%d %s"):format(self.status, tostring(message or "error object"))
end

local REASONS = {
    [400] = "Bad Request", [401] = "Unauthorized", [402] = "Payment Required", [403] = "Forbidden", [404] = "Not Found",
    [405] = "Method Not Allowed", [408] = "Request Timeout", [409] = "Conflict", [410] = "Gone", [412] = "Precondition Failed",
    [413] = "Payload Too Large", [415] = "Unsupported Media Type", [416] = "Range Not Satisfiable", [422] = "Unprocessable Entity",
    [423] = "Locked", [426] = "Upgrade Required",
    [428] = "Precondition Required", [429] = "Too Many Requests", [500] = "Internal Server Error",
    [501] = "Not Implemented", [502] = "Bad Gateway", [503] = "Service Unavailable", [504] = "Gateway Timeout",
}

---@param status integer
---@return string
function M.reason(status) return REASONS[status] or "Error" end

---@param value any
---@return boolean
function M.is(value) return getmetatable(value) == Error end

---@param status integer
---@param fields string|table|nil message, or {message=, code=, details=, headers=, object=, cause=}
---@return kasma.Error not raised
function M.new(status, fields)
    local self = { status = status }
    if type(fields) == "string" then
        self.message = fields
    elseif fields then
        for key, value in pairs(fields) do self[key] = value end
    end
    if self.message == nil and not self.object then self.message = REASONS[status] or "Error" end
    return setmetatable(self, Error)
end

---@param status integer
---@param fields string|table|nil
function M.raise(status, fields) error(M.new(status, fields), 0) end

local function raiser(status)
    return function(fields) error(M.new(status, fields), 0) end
end

M.bad_request = raiser(400)
M.unauthorized = raiser(401)
M.forbidden = raiser(403)
M.not_found = raiser(404)
M.conflict = raiser(409)
M.gone = raiser(410)
M.precondition_failed = raiser(412)
M.unsupported = raiser(415)
M.unprocessable = raiser(422)

--- 400 with the list of messages of a schema.
---@param messages string[]
function M.validation(messages)
    local list = {}
    for i = 1, #messages do list[i] = messages[i] end
    error(M.new(400, { message = list, code = "validation" }), 0)
end

---@param seconds integer
---@param fields string|table|nil
function M.too_many(seconds, fields)
    local err = M.new(429, fields or "Too many requests")
    err.headers = err.headers or {}
    err.headers["Retry-After"] = tostring(math.max(1, math.ceil(seconds)))
    error(err, 0)
end

---@param fields string|table|nil
---@param seconds integer|nil for Retry-After, default 1
function M.unavailable(fields, seconds)
    local err = M.new(503, fields)
    err.headers = err.headers or {}
    err.headers["Retry-After"] = tostring(seconds or 1)
    error(err, 0)
end

--- Answers `object` with `status`, without the envelope.
---@param status integer
---@param object table
---@param headers table<string, string>|nil
function M.object(status, object, headers) error(M.new(status, { object = object, headers = headers }), 0) end

-- Declared errors: what a route may answer, for the API document and /api/docs/errors -----------------------------------

local declared, by_code = {}, {}

---@class kasma.DeclaredError
---@field status integer
---@field code string
---@field message string
---@field cause string|nil why it happens
---@field cure string|nil what the client can do

local Declared = {}
Declared.__index = Declared
Declared.__call = function(self, fields)
    fields = type(fields) == "string" and { message = fields } or fields or {}
    error(M.new(self.status, { message = fields.message or self.message, code = self.code, details = fields.details,
        headers = fields.headers }), 0)
end

--- Declares an error once; calling what comes back raises it. Names it in `returns` of a route.
---@param fields kasma.DeclaredError
---@return kasma.DeclaredError
function M.declare(fields)
    assert(fields.code and fields.status, "errors.declare needs code and status")
    local known = by_code[fields.code]
    if known then return known end
    local self = setmetatable(fields, Declared)
    by_code[fields.code] = self
    declared[#declared + 1] = self
    return self
end

---@param value any
---@return boolean
function M.is_declared(value) return getmetatable(value) == Declared end

---@return kasma.DeclaredError[] in the order of declaration
function M.catalogue() return declared end

-- Store errors ---------------------------------------------------------------------------------------------------------

local constraints = {}

--- What a broken constraint means, for all who do not catch it themselves.
---@param name string constraint name
---@param status integer
---@param fields string|table
function M.constraint(name, status, fields) constraints[name] = { status = status, fields = fields } end

-- `memory`: there was none for the answer; the store has done its part.
local UNAVAILABLE = { unavailable = true, busy = true, timeout = true, memory = true }

---@param err any
---@return boolean true for an error of a store, as the core answers them
function M.is_store(err) return type(err) == "table" and getmetatable(err) ~= Error and type(err.kind) == "string" end

-- The constraint as the migration named it: on a partition or a shard it carries a number at its end.
local function constraint_of(err)
    local name = err.constraint
    if (not name or name == "") and err.message then name = err.message:match('constraint "([^"]+)"') end
    if not name or name == "" then return nil end
    return name, (name:gsub("_%d+$", ""))
end
M.constraint_of = constraint_of

local function copy_of(fields, cause)
    local copy = {}
    if type(fields) == "string" then copy.message = fields else for key, value in pairs(fields) do copy[key] = value end end
    copy.cause = cause
    return copy
end

--- The error that a store's answer means to a client.
---@param err table {kind=, code=, message=, constraint=}
---@return kasma.Error not raised
function M.from_store(err)
    local kind = err.kind
    if UNAVAILABLE[kind] then
        return M.new(503, { message = "Service temporarily unavailable", code = kind == "busy" and "busy" or "store_unavailable",
            headers = { ["Retry-After"] = "1" }, cause = err })
    end
    if kind == "deadline" or kind == "cancelled" then
        return M.new(503, { message = "The request took too long", code = "deadline", headers = { ["Retry-After"] = "1" }, cause = err })
    end
    if kind == "query" then
        local state = tostring(err.code or "")
        local name, base = constraint_of(err)
        local known = name and (constraints[name] or constraints[base])
        if known then return M.new(known.status, copy_of(known.fields, err)) end
        local class = state:sub(1, 2)
        if state == "23505" then return M.new(409, { message = "Already exists", code = "duplicate", cause = err }) end
        if state == "23503" then return M.new(409, { message = "Still referred to, or refers to nothing", code = "reference",
            cause = err }) end
        if state == "23514" or state == "23502" then
            return M.new(400, { message = "A value is missing or not allowed", code = "constraint", cause = err })
        end
        if state == "KS409" then
            return M.new(409, { message = "Request is being processed. Please retry.", code = "in_progress",
                headers = { ["Retry-After"] = "1" }, cause = err })
        end
        if class == "22" then return M.new(400, { message = "A value is out of range or malformed", code = "bad_value", cause = err }) end
        if state == "40001" or state == "40P01" or state == "55P03" then
            return M.new(409, { message = "Resource is busy. Please retry.", code = "busy", headers = { ["Retry-After"] = "1" },
                cause = err })
        end
        if class == "08" or class == "53" or class == "57" then
            return M.new(503, { message = "Service temporarily unavailable", code = "store_unavailable",
                headers = { ["Retry-After"] = "1" }, cause = err })
        end
    end
    if kind == "invalid" and tostring(err.message):find("invalid document", 1, true) then
        return M.new(400, { message = "A name or value cannot be stored", code = "bad_value", cause = err })
    end
    return M.new(500, { message = "Internal server error", cause = err })
end

--- Returns what a store answered, or raises what its error means. For calls of the core that answer nil, err.
---@param value any
---@param err table|nil
---@return any
function M.check(value, err)
    if value == nil and err ~= nil then
        if M.is_store(err) then error(M.from_store(err), 0) end
        error(err, 0)
    end
    return value
end

---@param err any a caught error
---@return boolean true when a store was away or too busy
function M.is_unavailable(err)
    if M.is(err) then return err.status == 503 end
    return M.is_store(err) and UNAVAILABLE[err.kind] == true
end

---@param err any a caught error
---@return string|nil SQLSTATE, string|nil constraint name
function M.sqlstate(err)
    local cause = M.is(err) and err.cause or err
    if type(cause) ~= "table" or cause.kind ~= "query" then return nil end
    return cause.code, (constraint_of(cause))
end

--- Calls fn(...); a unique violation of a named constraint becomes 409 with the code given for it.
---@param codes table<string, string|table> constraint -> code, or {code=, message=, status=}
---@param fn function
---@param ... any its arguments
---@return any what fn answers
function M.unique(codes, fn, ...)
    local ok, result = pcall(fn, ...)
    if ok then return result end
    local state, name = M.sqlstate(result)
    local base = name and name:gsub("_%d+$", "")
    local found = state == "23505" and name and (codes[name] or codes[base])
    if not found then error(result, 0) end
    if type(found) == "string" then
        found = { code = found, message = found:gsub("_", " "):gsub("^%l", string.upper) }
    end
    error(M.new(found.status or 409, { message = found.message, code = found.code, details = found.details, cause = result.cause }), 0)
end

--- Calls fn(...); an SQLSTATE that a statement raised by itself becomes the error given for it.
---@param states table<string, {status: integer, code: string, message: string}|fun(cause: table)> SQLSTATE -> error
---@param fn function
---@param ... any its arguments
---@return any what fn answers
function M.state(states, fn, ...)
    local ok, result = pcall(fn, ...)
    if ok then return result end
    local state = M.sqlstate(result)
    local found = state and states[state]
    if not found then error(result, 0) end
    if type(found) == "function" then return found(result.cause) end
    error(M.new(found.status, { message = found.message, code = found.code, details = found.details, cause = result.cause }), 0)
end

return M
