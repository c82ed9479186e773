-- Raw sockets for API tests: a WebSocket client and an event-stream client. They never block the test's loop: what waits looks
-- again and lets other tasks run, until a limit.
local ffi = require("ffi")
local crypto = require("core.crypto")
local json = require("core.json")
local sched = require("core.sched")
local time = require("core.time")

ffi.cdef[[
struct kasma_test_sockaddr { uint16_t family; uint16_t port; uint32_t address; uint8_t zero[8]; };
int socket(int domain, int type, int protocol);
int connect(int fd, const struct kasma_test_sockaddr *at, uint32_t size);
ssize_t send(int fd, const void *data, size_t size, int flags);
ssize_t recv(int fd, void *data, size_t size, int flags);
int setsockopt(int fd, int level, int name, const void *value, uint32_t size);
int shutdown(int fd, int how);
int close(int fd);
int fcntl(int fd, int command, ...);
]]

local AF_INET, SOCK_STREAM, SOCK_CLOEXEC, F_SETFL, O_NONBLOCK, MSG_NOSIGNAL = 2, 1, 524288, 4, 2048, 16384
local SOL_SOCKET, SO_RCVBUF = 1, 8
local EAGAIN, EINTR = 11, 4
local SIZE = 65536
local buffer = ffi.new("char[?]", SIZE)

local M = {}

local function eventually(fn, limit_s, what)
    local deadline = time.mono() + math.max(limit_s or 0, 60) * 1e6
    while true do
        local value = fn()
        if value then return value end
        if time.mono() > deadline then error("waited in vain for " .. what, 3) end
        sched.sleep(2)
    end
end

---@class TestSocket
---@field fd integer
---@field input string what has come and was not taken
---@field eof boolean
local Socket = {}
Socket.__index = Socket

--- A connected socket. `receive_bytes`: a small receive buffer, for clients that will not read.
---@param url string http://127.0.0.1:port
---@param receive_bytes integer|nil
---@return TestSocket
function M.connect(url, receive_bytes)
    local a, b, c, d, port = url:match("^http://(%d+)%.(%d+)%.(%d+)%.(%d+):(%d+)")
    assert(a, "sockets.connect needs an address: " .. url)
    local fd = ffi.C.socket(AF_INET, SOCK_STREAM + SOCK_CLOEXEC, 0)
    assert(fd >= 0, "no socket")
    if receive_bytes then
        local value = ffi.new("int[1]", receive_bytes)
        assert(ffi.C.setsockopt(fd, SOL_SOCKET, SO_RCVBUF, value, 4) == 0)
    end
    port = tonumber(port)
    local at = ffi.new("struct kasma_test_sockaddr")
    at.family = AF_INET
    at.port = math.floor(port / 256) + port % 256 * 256
    at.address = a + b * 256 + c * 65536 + d * 16777216
    if ffi.C.connect(fd, at, 16) ~= 0 then
        ffi.C.close(fd)
        error("cannot connect to " .. url, 2)
    end
    assert(ffi.C.fcntl(fd, F_SETFL, ffi.cast("int", O_NONBLOCK)) == 0)
    return setmetatable({ fd = fd, input = "", eof = false, frames = {}, close_code = nil }, Socket)
end

function Socket:close()
    if self.fd then ffi.C.close(self.fd) end
    self.fd = nil
end

--- Closes the sending side only.
function Socket:shut() ffi.C.shutdown(self.fd, 1) end

function Socket:write(bytes)
    local at = 0
    eventually(function()
        local n = tonumber(ffi.C.send(self.fd, ffi.cast("const char *", bytes) + at, #bytes - at, MSG_NOSIGNAL))
        if n < 0 then
            if ffi.errno() == EAGAIN or ffi.errno() == EINTR then return false end
            return true -- closed by the server: the test looks at what it said
        end
        at = at + n
        return at == #bytes
    end, 10, "room to write")
end

--- Takes what has come.
function Socket:poll()
    local parts = {}
    while not self.eof and self.fd do
        local n = tonumber(ffi.C.recv(self.fd, buffer, SIZE, 0))
        if n > 0 then
            parts[#parts + 1] = ffi.string(buffer, n)
        elseif n == 0 or (ffi.errno() ~= EAGAIN and ffi.errno() ~= EINTR) then
            self.eof = true
        else
            break
        end
    end
    if #parts > 0 then self.input = self.input .. table.concat(parts) end
end

-- The head of an answer; what follows stays in input.
local function read_head(self)
    return eventually(function()
        self:poll()
        local head, rest = self.input:match("^(.-\r\n\r\n)(.*)$")
        if head then self.input = rest end
        return head or (self.eof and "closed")
    end, 20, "an answer")
end

local function headers_text(headers)
    local lines = {}
    for name, value in pairs(headers) do lines[#lines + 1] = name .. ": " .. value .. "\r\n" end
    return table.concat(lines)
end

-- WebSocket ------------------------------------------------------------------------------------------------------------------

local function masked(payload)
    local mask = { 0x11, 0x22, 0x33, 0x44 }
    local out = {}
    for i = 1, #payload do out[i] = string.char(bit.bxor(payload:byte(i), mask[(i - 1) % 4 + 1])) end
    return "\17\34\51\68" .. table.concat(out)
end

--- A client's frame. `first`: FIN and opcode.
---@param first integer
---@param payload string
---@return string
function M.frame(first, payload)
    local n = #payload
    local head = string.char(first)
    if n < 126 then
        head = head .. string.char(128 + n)
    else
        assert(n < 65536)
        head = head .. string.char(128 + 126, math.floor(n / 256), n % 256)
    end
    return head .. masked(payload)
end

--- Opens a WebSocket; answers the socket and the head of the answer. The socket is one only when the status is 101.
---@param url string
---@param path string
---@param headers table<string, string>|nil
---@param receive_bytes integer|nil
---@return TestSocket, string head, integer status
function M.websocket(url, path, headers, receive_bytes)
    local self = M.connect(url, receive_bytes)
    local sent = { Host = "127.0.0.1", Upgrade = "websocket", Connection = "Upgrade", ["Sec-WebSocket-Version"] = "13",
        ["Sec-WebSocket-Key"] = (crypto.base64(crypto.random(16))) }
    for name, value in pairs(headers or {}) do sent[name] = value end
    self:write("GET " .. path .. " HTTP/1.1\r\n" .. headers_text(sent) .. "\r\n")
    local head = read_head(self)
    return self, head, tonumber(head:match("^HTTP/1%.1 (%d+)") or 0)
end

-- Takes whole frames out of the input.
local function parse(self)
    while true do
        local first, second = self.input:byte(1, 2)
        if not second then return end
        local n, at = second, 3
        if second == 126 then
            if #self.input < 4 then return end
            n, at = self.input:byte(3) * 256 + self.input:byte(4), 5
        elseif second == 127 then
            if #self.input < 10 then return end
            n, at = 0, 11
            for i = 3, 10 do n = n * 256 + self.input:byte(i) end
        end
        if #self.input < at + n - 1 then return end
        local payload = self.input:sub(at, at + n - 1)
        self.input = self.input:sub(at + n)
        if first == 0x81 then
            self.frames[#self.frames + 1] = json.decode(payload)
        elseif first == 0x88 then
            self.close_code = n >= 2 and payload:byte(1) * 256 + payload:byte(2) or 1005
            self.close_reason = payload:sub(3)
        elseif first == 0x89 then
            self:write(M.frame(0x8A, payload))
        end
    end
end

---@param body table|string
function Socket:say(body) self:write(M.frame(0x81, type(body) == "table" and json.encode(body) or body)) end

--- The next frame that has come, or nil.
function Socket:next_frame()
    self:poll()
    parse(self)
    return table.remove(self.frames, 1)
end

--- Waits for the next frame; with members given, for the next one that has them (others are dropped).
---@param wanted table<string, any>|nil
---@return table frame
function Socket:hear(wanted)
    return eventually(function()
        while true do
            local frame = self:next_frame()
            if not frame then
                if self.eof or self.close_code then error("the socket was closed: " .. tostring(self.close_code), 0) end
                return nil
            end
            local fits = true
            for name, value in pairs(wanted or {}) do fits = fits and frame[name] == value end
            if fits then return frame end
        end
    end, 10, "a frame " .. (wanted and json.encode(wanted) or ""))
end

--- Waits until the server has closed; answers the code, 1006 without a close frame.
---@return integer code, string|nil reason
function Socket:closed()
    eventually(function()
        self:poll()
        parse(self)
        return self.close_code or self.eof
    end, 15, "the end")
    return self.close_code or 1006, self.close_reason
end

--- Subscribes and waits until that is confirmed; answers the position.
---@param channel string
---@param since string|nil
---@return string
function Socket:subscribe(channel, since)
    self:say{ type = "subscribe", channel = channel, since = since }
    return self:hear{ type = "subscribed", channel = channel }.position
end

-- Event streams ----------------------------------------------------------------------------------------------------------------

--- Opens an event stream; answers the socket, the head and the status.
---@param url string
---@param path string
---@param headers table<string, string>|nil
---@return TestSocket, string head, integer status
function M.events(url, path, headers)
    local self = M.connect(url)
    local sent = { Host = "127.0.0.1", Accept = "text/event-stream" }
    for name, value in pairs(headers or {}) do sent[name] = value end
    self:write("GET " .. path .. " HTTP/1.1\r\n" .. headers_text(sent) .. "\r\n")
    local head = read_head(self)
    return self, head, tonumber(head:match("^HTTP/1%.1 (%d+)") or 0)
end

--- Waits for the next event of that name; answers {id, event, data}.
---@param name string
---@return table
function Socket:event(name)
    return eventually(function()
        self:poll()
        while true do
            local block, rest = self.input:match("^(.-)\n\n(.*)$")
            if not block then return nil end
            self.input = rest
            local event = { event = block:match("event: ([^\n]*)"), id = block:match("id: ([^\n]*)") }
            local data = block:match("data: ([^\n]*)")
            event.data = data and json.decode(data)
            if event.event == name then return event end
        end
    end, 10, "an event " .. name)
end

M.eventually = eventually

return M
