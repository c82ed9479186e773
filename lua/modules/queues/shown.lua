-- A job as it is shown to people: what its handler needs to know in secret is masked, and no field is longer than a look needs. Names
-- that look like secrets (kasma.audit) and one-time codes become "***", of a mail's variables only the names stay, and its text is
-- left out; keys and tokens are masked wherever they stand. What Redis holds is as it was.
local json = require("core.json")
local audit = require("kasma.audit")

local M = {}

M.LIST_BYTES, M.JOB_BYTES = 8192, 262144 -- of a field, in a list and of one job
M.ROW_BYTES = 2048 -- of a row of the log
local DEPTH_MAX = 16
local MASK = "***"

-- A bare `code` is a one-time code here: no job of the house names a coupon so.
local NAMES = { code = true, html = true }
-- All that these hold was made to be read by one person.
local WITHIN = { vars = true, variables = true }

local TOKENS = { "ksk_%a+_%w+_%w+", "whsec_[%w+/=]+", "eyJ[%w_-]+%.[%w_-]+%.[%w_-]+" }

---@param text string
---@return string
function M.text(text)
    for _, pattern in ipairs(TOKENS) do text = text:gsub(pattern, MASK) end
    return text
end

local function masked(value, within, depth)
    if type(value) ~= "table" then
        if within then return value == json.null and value or MASK end
        return type(value) == "string" and M.text(value) or value
    end
    if depth > DEPTH_MAX then return "..." end
    local copy = {}
    for name, member in pairs(value) do
        local low = type(name) == "string" and name:lower() or ""
        if not within and type(name) == "string" and (NAMES[low] or audit.is_secret(name)) then
            copy[name] = MASK
        else
            copy[name] = masked(member, within or WITHIN[low], depth + 1)
        end
    end
    return setmetatable(copy, getmetatable(value))
end

--- A copy without secrets.
---@param value any of JSON
---@return any
function M.value(value) return masked(value, false, 0) end

-- Redis cuts between bytes: a letter that lost its end is no letter.
local function whole_letters(text, most)
    return #text == most and text:gsub("[\192-\255][\128-\191]*$", "") or text
end

local function list_of_text(list, most)
    for i, line in ipairs(list) do list[i] = type(line) == "string" and M.text(whole_letters(line, most)) or line end
    return json.array(list)
end

--- A job of kasma.jobs_queue, changed in place.
---@param job table
---@param most integer bytes at which its texts were cut
---@return table the same
function M.job(job, most)
    job.data, job.returnvalue, job.progress = M.value(job.data), M.value(job.returnvalue), M.value(job.progress)
    for _, name in ipairs{ "failedReason", "deferredFailure" } do
        if type(job[name]) == "string" then job[name] = M.text(whole_letters(job[name], most)) end
    end
    if type(job.stacktrace) == "table" then job.stacktrace = list_of_text(job.stacktrace, most) end
    return job
end

--- Rows of a job's log.
---@param rows string[]
---@return string[]
function M.rows(rows) return list_of_text(rows, M.ROW_BYTES) end

--- What children answered, by their keys.
---@param values table<string, any>
---@return table<string, any>
function M.by_key(values)
    local shown = {}
    for key, value in pairs(values) do shown[key] = M.value(value) end
    return shown
end

--- A scheduler: the data that its runs get is JSON as Redis holds it.
---@param one table of jobs_schedule.list
---@return table the same
function M.scheduler(one)
    if type(one.data) ~= "string" then return one end
    local ok, data = pcall(json.decode, one.data)
    if #one.data > M.LIST_BYTES then
        one.omitted, one.data = { data = #one.data }, nil
    else
        one.data = ok and data ~= nil and json.encode(M.value(data)) or M.text(one.data)
    end
    return one
end

return M
