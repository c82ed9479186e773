-- kasma lua tests/faults/redis.lua COMMAND...: asks Redis, prints an answer's parts one a line.
local redis = require("core.redis")

local answer = redis.call(unpack(arg))
if type(answer) ~= "table" then answer = { answer } end
for _, part in ipairs(answer) do io.stdout:write((tostring(part):gsub("\n", " ")), "\n") end
return 0
