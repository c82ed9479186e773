-- What the bench serves beside the product: the product's own boot, and three routes that do a peer's work and nothing more.
local boot = require("kasma.boot")
local json = require("core.json")
local pg = require("core.pg")
local redis = require("core.redis")
local server = require("core.server")

local headers = { ["Content-Type"] = "application/json; charset=utf-8" }

local function echo(req)
    req:respond_json(200, headers, assert(req:json()))
end

local function get_redis(req)
    local value, err = redis.call("GET", "bench:key")
    if not value then return req:respond(503, headers, json.encode(err)) end
    req:respond(200, headers, json.encode({ value = value }))
end

local app

local function get_postgres(req)
    app = app or pg.pool("app")
    local rows, err = app:read("MASTER", "select v from bench_kv where tenant_key = $1 and k = $2", "MASTER", math.random(1, 1000))
    if not rows then return req:respond(503, headers, json.encode(err)) end
    req:respond(200, headers, json.encode({ value = rows[1].v }))
end

local M = {}

---@param role string
function M.start(role)
    boot.start(role)
    server.route("POST", "/bench/echo", echo)
    server.route("GET", "/bench/redis", get_redis)
    server.route("GET", "/bench/postgres", get_postgres)
end

return M
