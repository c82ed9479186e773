-- Rules as files: what a tenant's rules are as a folder, what a folder would change, and that it does it whole or not at all.
local json = require("core.json")
local db = require("kasma.db")
local support = require("api.support")
local shop_of = require("api.shop")
local command = require("api.rules_command")

local must = shop_of.must
local URL = os.getenv("TEST_URL")

local function rule(bps, more)
    return ("return { hook = \"promotion\", name = \"Off\", config = schema.object{ days = schema.weekdays{default={1,2,3,4,5,6,7}} },%s\n"
        .. "  run = function(input)\n    return { operations = { { op = \"line_percent\", line_id = input.cart.lines[1].id, bps = %d,"
        .. " label = \"Off\" } } }\n  end }\n"):format(more or "", bps)
end

local TESTS = "return { config = {}, prices = { tea = 1000 }, tests = { { name = \"half\", given = { cart = { tea = 1 } }, "
    .. "expect = { discount = %d } } } }\n"

local function file(path, text) return { path = path, text = text } end

local function active(shop, ...)
    return file("rules/active/" .. shop.key .. ".lua", "return {\n" .. table.concat({ ... }, ",\n") .. "\n}\n")
end

local function import(shop, mode, files, more)
    local body = { files = json.array(files), mode = mode }
    for name, value in pairs(more or {}) do body[name] = value end
    return shop.owner:post("/rules/import", body)
end

local function states(shop)
    local out = {}
    for _, r in ipairs(must(shop.owner:get("/rules"), 200)) do
        out[r.key] = r.state .. (r.activeVersion ~= json.null and " " .. r.activeVersion or "")
    end
    return out
end

local function lists(body) return { body.create, body.update, body.disable, body.same } end

describe("a folder of rules", function()
    it("is planned and applied: create, update, disable, same", function()
        local shop = support.tenant{}
        must(shop.owner:post("/rules/create", { key = "old", hook = "promotion", name = "Old", source = rule(1000) }))
        must(shop.owner:post("/rules/old/publish", { revision = 1, note = "go" }))
        local files = { file("rules/promotions/one.lua", rule(5000)), file("rules/promotions/one_test.lua", TESTS:format(500)),
            file("rules/promotions/two.lua", rule(1000)), file("rules/promotions/idle.lua", rule(100)), file("README.md", "x"),
            active(shop, "{ file = \"promotions/one.lua\", priority = 7, config = { days = { 6, 7, 1, 2, 3, 4, 5 } } }",
                "{ file = \"promotions/two.lua\" }") }
        local plan = must(import(shop, "plan", files))
        assert.same({ { "idle", "one", "two" }, {}, { "old" }, {} }, lists(plan))
        assert.same({ old = "active 1" }, states(shop))
        local done = must(import(shop, "apply", files, { note = "from files" }))
        assert.same(lists(plan), lists(done))
        assert.same({ one = 1, two = 1 }, done.versions)
        assert.equal(done.live.workers, done.live.loaded)
        assert.same({ old = "disabled 1", one = "active 1", two = "active 1", idle = "draft" }, states(shop))
        local version = must(shop.owner:get("/rules/one/versions/1"), 200)
        assert.same({ 7, "from files", 6 }, { version.settings.priority, version.note, version.settings.config.days[1] })
        -- Nothing to do a second time; then one changes, and one is not listed any more.
        assert.same({ {}, {}, {}, { "idle", "one", "two" } }, lists(must(import(shop, "apply", files))))
        files[1], files[2] = file("rules/promotions/one.lua", rule(2500)), file("rules/promotions/one_test.lua", TESTS:format(250))
        files[6] = active(shop, "{ file = \"promotions/one.lua\", priority = 7, config = { days = { 6, 7, 1, 2, 3, 4, 5 } } }")
        assert.same({ {}, { "one" }, { "two" }, { "idle" } }, lists(must(import(shop, "apply", files))))
        assert.same({ old = "disabled 1", one = "active 2", two = "disabled 1", idle = "draft" }, states(shop))
        local draft = must(shop.owner:get("/rules/one/draft"), 200).draft
        assert.equal(rule(2500), draft.source)
    end)

    it("comes back as it was: export, import, nothing to do", function()
        local shop = support.tenant{}
        must(shop.owner:post("/rules/create", { key = "whole", hook = "promotion", name = "Off",
            source = rule(5000, " on_error = \"block\","), tests = TESTS:format(500),
            settings = { config = { days = { 7 } }, priority = -3, on_error = "skip" } }))
        local published = shop.owner:post("/rules/whole/publish", { revision = 1, note = "go" })
        assert.equal(201, published.status, published.body)
        must(shop.owner:post("/rules/create", { key = "idle", hook = "loyalty.earn", name = "Idle", source = "return nonsense" }))
        local files = must(shop.owner:get("/rules/export"), 200).files
        local paths = {}
        for _, f in ipairs(files) do paths[f.path] = f.text end
        assert.equal(rule(5000, " on_error = \"block\","), paths["rules/promotions/whole.lua"])
        assert.equal(TESTS:format(500), paths["rules/promotions/whole_test.lua"])
        assert.truthy(paths["rules/loyalty/idle.lua"] and paths[".kasma/kasma.d.lua"] and paths[".luarc.json"])
        assert.truthy(paths["rules/active/" .. shop.key .. ".lua"]:find(
            "{ file = \"promotions/whole.lua\", priority = -3, on_error = \"skip\",\n        config = { days = { 7 } } },", 1, true))
        local same = must(import(shop, "apply", files))
        assert.same({ {}, {}, {}, { "idle", "whole" } }, lists(same))
    end)

    it("holds rules whose keys end like files of tests", function()
        local shop = support.tenant{}
        for _, key in ipairs{ "split", "split_test", "alone_test" } do
            must(shop.owner:post("/rules/create", { key = key, hook = "promotion", name = "Off", source = rule(100),
                tests = TESTS:format(10) }))
            must(shop.owner:post("/rules/" .. key .. "/publish", { revision = 1, note = "go", acceptWarnings = { "stacks_with" } }))
        end
        local files = must(shop.owner:get("/rules/export"), 200).files
        assert.same({ {}, {}, {}, { "alone_test", "split", "split_test" } }, lists(must(import(shop, "apply", files))))
    end)

    it("is refused whole when one rule does not pass, and says which line", function()
        local shop = support.tenant{}
        local files = { file("rules/promotions/good.lua", rule(5000)), file("rules/promotions/bad.lua", (rule(5000):gsub("lines", "lnes"))),
            active(shop, "{ file = \"promotions/good.lua\" }", "{ file = \"promotions/bad.lua\" }") }
        local plan = must(import(shop, "plan", files))
        assert.same({ "unknown_field", "rules/promotions/bad.lua", 3 }, { plan.diagnostics[1].code, plan.diagnostics[1].file,
            plan.diagnostics[1].line })
        local refused = import(shop, "apply", files)
        assert.same({ 422, "rule_check_failed" }, { refused.status, refused.json.code })
        assert.same({}, states(shop))
        files[2] = file("rules/promotions/bad.lua", rule(5000))
        files[4] = file("rules/promotions/bad_test.lua", TESTS:format(499))
        refused = import(shop, "apply", files)
        assert.same({ 422, "rules/promotions/bad_test.lua" }, { refused.status, refused.json.details.diagnostics[1].file })
        assert.same({}, states(shop))
    end)

    it("is refused when its list is missing, broken, bytecode or endless", function()
        local shop = support.tenant{}
        local one = file("rules/promotions/one.lua", rule(5000))
        local name = "rules/active/" .. shop.key .. ".lua"
        for text, code in pairs{ ["return {"] = "syntax", ["return 7"] = "manifest_field", ["while true do end"] = "limit_instructions",
            ["return { { file = \"../../etc/passwd.lua\" } }"] = "manifest_field", ["\27LJ\2\8"] = "syntax",
            ["return { x = { file = \"promotions/one.lua\" } }"] = "manifest_field",
            ["return { { file = \"promotions/two.lua\" } }"] = "manifest_field" } do
            local answer = import(shop, "apply", { one, file(name, text) })
            assert.same({ 422, "files_invalid", code }, { answer.status, answer.json.code, (answer.json.details or {}).diagnostics
                and answer.json.details.diagnostics[1].code })
        end
        assert.equal(422, import(shop, "apply", { one }).status)
        assert.equal(422, import(shop, "plan", { one, file("rules/tax/one.lua", rule(1)), active(shop) }).status)
        assert.equal(422, import(shop, "plan", { file("rules/promotions/hooks.lua", rule(1)), active(shop) }).status)
        assert.equal(400, import(shop, "maybe", { one, active(shop) }).status)
        assert.same({}, states(shop))
    end)

    it("leaves the rules of the server's own files alone, and those of other tenants", function()
        local shop, other = support.tenant{}, support.tenant{}
        must(shop.owner:post("/rules/create", { key = "one", hook = "promotion", name = "One", source = rule(1) }))
        db.query(shop.key, "update rules set origin = 'file' where tenant_key = $1", shop.key)
        local files = { file("rules/promotions/one.lua", rule(2)), file("rules/promotions/two.lua", rule(2)), active(shop,
            "{ file = \"promotions/two.lua\" }") }
        local refused = import(shop, "apply", files)
        assert.same({ 409, "rule_locked", { "one" } }, { refused.status, refused.json.code, refused.json.details.keys })
        files[1] = file("rules/promotions/one.lua", rule(1))
        assert.same({ { "two" }, {}, {}, { "one" } }, lists(must(import(shop, "apply", files))))
        assert.same({}, states(other))
        assert.equal(403, support.shopper(shop):get("/rules/export").status)
        assert.equal(403, support.shopper(shop):post("/rules/import", { files = json.array(files), mode = "plan" }).status)
    end)

    it("is one of those that are pushed at once; the others are told", function()
        local shop = support.tenant{}
        local function push(bps)
            return function()
                return import(shop, "apply", { file("rules/promotions/one.lua", rule(bps)), file("rules/promotions/two.lua", rule(bps)),
                    active(shop, "{ file = \"promotions/one.lua\" }", "{ file = \"promotions/two.lua\" }") },
                    { acceptWarnings = { "stacks_with" } })
            end
        end
        for round = 1, 2 do
            local counts = shop_of.statuses(support.parallel{ push(round * 100), push(round * 100), push(round * 100 + 1) })
            assert.truthy((counts[201] or 0) >= 1 and (counts[201] or 0) + (counts[409] or 0) == 3, tostring(counts[201]) .. " of 3")
        end
        for _, key in ipairs{ "one", "two" } do
            local versions = must(shop.owner:get("/rules/" .. key .. "/versions"), 200)
            assert.equal(#versions, versions[1].version) -- no gap
            assert.is_true(versions[1].active)
        end
    end)

    it("brings libraries before those that take from them", function()
        local shop = support.tenant{}
        local taker = "local l = lib(\"shares\")\nreturn { hook = \"promotion\", name = \"Taker\", run = function(input)\n"
            .. "  return { operations = { { op = \"line_percent\", line_id = input.cart.lines[1].id, bps = l.half() } } }\nend }\n"
        local library = "return { hook = \"library\", name = \"Shares\", exports = { half = function() return 5000 end } }\n"
        local files = { file("rules/promotions/a_taker.lua", taker), file("rules/libraries/shares.lua", library),
            active(shop, "{ file = \"promotions/a_taker.lua\" }", "{ file = \"libraries/shares.lua\" }") }
        local done = must(import(shop, "apply", files))
        assert.same({ a_taker = 1, shares = 1 }, done.versions)
    end)

    it("waits where somebody must agree", function()
        local shop = support.tenant{ settings = { ["rules.approval"] = "all" } }
        local done = must(import(shop, "apply", { file("rules/promotions/one.lua", rule(5000)), active(shop,
            "{ file = \"promotions/one.lua\" }") }))
        assert.same({ "one", 1 }, { done.pending[1].key, #done.pending })
        assert.same({ one = "draft" }, states(shop))
        local colleague = support.user(shop, "tenant_owner")
        assert.equal(1, must(colleague:post("/rules/requests/" .. done.pending[1].requestId .. "/approve", { note = "fine" })).version)
    end)
end)

describe("kasma rules pull and push", function()
    local shop, dir, key

    local function rules(...) return command.run({ dir = dir, env = { KASMA_URL = URL, KASMA_KEY = key } }, { "rules", ... }) end

    setup(function()
        shop = support.tenant{}
        key = command.key(shop)
        dir = command.folder()
        must(shop.owner:post("/rules/create", { key = "half", hook = "promotion", name = "Off", source = rule(5000),
            tests = TESTS:format(500), settings = { config = { days = { 1, 2, 3, 4, 5, 6, 7 } }, priority = 5 } }))
        must(shop.owner:post("/rules/half/publish", { revision = 1, note = "go" }))
    end)
    teardown(function() os.execute("rm -rf " .. command.quoted(dir)) end)

    it("writes a folder that checks and tests, and takes it back changed", function()
        local status, out, said = rules("pull")
        assert.equal(0, status, said)
        assert.truthy(out:find("wrote    rules/promotions/half.lua", 1, true), out)
        assert.equal(rule(5000), command.read(dir .. "/rules/promotions/half.lua"))
        assert.truthy(command.read(dir .. "/rules/active/" .. shop.key .. ".lua"):find("priority = 5", 1, true))
        assert.truthy(command.read(dir .. "/.luarc.json") and command.read(dir .. "/.kasma/kasma.d.lua"))
        assert.equal(0, (rules("check", "rules")))
        assert.equal(0, (rules("test", "rules")))
        assert.truthy(select(2, rules("push", "--plan")):find("0 to create, 0 to update, 0 to disable, 1 the same", 1, true))
        command.save(dir .. "/rules/promotions/half.lua", rule(2500))
        status, out = rules("push", "--plan")
        assert.equal(1, status)
        assert.truthy(out:find("test_failed", 1, true) and out:find("update   half", 1, true), out)
        assert.equal(1, (rules("push", "--apply")))
        command.save(dir .. "/rules/promotions/half_test.lua", TESTS:format(250))
        status, out = rules("push", "--apply", "-m", "a quarter")
        assert.equal(0, status, out)
        assert.truthy(out:find("update   half  version 2\n0 created, 1 updated, 0 disabled, 0 the same  epoch %d+  live on (%d+) of %1 "),
            out)
    end)

    it("does not write over what was changed here, unless told to", function()
        rules("pull")
        local draft = must(shop.owner:get("/rules/half/draft"), 200).draft
        must(shop.owner:post("/rules/half/draft", { revision = draft.revision, source = rule(1000), tests = "" }))
        must(shop.owner:post("/rules/half/publish", { revision = draft.revision + 1, note = "in the console" }))
        command.save(dir .. "/rules/promotions/half.lua", rule(3333))
        local status, _, said = rules("pull")
        assert.equal(4, status)
        assert.truthy(said:find("rules/promotions/half.lua", 1, true), said)
        assert.equal(rule(3333), command.read(dir .. "/rules/promotions/half.lua"))
        assert.equal(0, (rules("pull", "--force")))
        assert.equal(rule(1000), command.read(dir .. "/rules/promotions/half.lua"))
        assert.is_nil(command.read(dir .. "/rules/promotions/half_test.lua"))
    end)
end)

-- A server that answers what it is told to.
local FAKE = [[
import http.server, sys
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = open(sys.argv[1], "rb").read()
        self.send_response(200); self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body))); self.end_headers(); self.wfile.write(body)
    def log_message(self, *a): pass
s = http.server.HTTPServer(("127.0.0.1", 0), H)
open(sys.argv[2], "w").write(str(s.server_port) + "\n")
s.serve_forever()
]]

describe("a server that means harm", function()
    local dir, port, pid

    setup(function()
        dir = command.folder()
        os.execute("mkdir " .. dir .. "/mine")
        command.save(dir .. "/fake.py", FAKE)
        command.save(dir .. "/answer", "{}")
        local pipe = assert(io.popen(("timeout 600 python3 %s/fake.py %s/answer %s/port >/dev/null 2>&1 & echo $!"):format(dir, dir, dir)))
        pid = pipe:read("*l")
        pipe:close()
        port = support.eventually(function() return (command.read(dir .. "/port") or ""):match("^(%d+)\n") end)
    end)
    teardown(function()
        os.execute("kill " .. pid)
        os.execute("rm -rf " .. command.quoted(dir))
    end)

    local function pull(files)
        command.save(dir .. "/answer", type(files) == "string" and files or json.encode{ files = json.array(files) })
        return command.run({ dir = dir .. "/mine", env = { KASMA_URL = "http://127.0.0.1:" .. port,
            KASMA_KEY = "ksk_test_00000000_" .. ("0"):rep(32) } }, { "rules", "pull" })
    end

    local function written()
        local pipe = assert(io.popen("cd " .. dir .. " && find . -type f | sort"))
        local text = pipe:read("*a")
        pipe:close()
        return text
    end

    it("writes nothing outside of the folder, nor anything but rules into it", function()
        local before = written()
        local good = file("rules/promotions/fine.lua", "return {}")
        for _, path in ipairs{ "../evil.lua", "rules/../../evil.lua", "/tmp/evil.lua", "rules/promotions/../../../evil.lua", ".bashrc",
            "rules/promotions/evil.sh", "rules//evil.lua", ".git/hooks/pre-commit", "rules/promotions/e\nvil.lua", ".kasma/pulled.json",
            "rules/Promotions/..lua", ".vscode/settings.json" } do
            local status, _, said = pull{ good, file(path, "x") }
            assert.equal(1, status, path)
            assert.truthy(said:find("not written", 1, true), said)
        end
        for _, text in ipairs{ "[]", "{\"files\":7}", "{\"files\":[7]}", "{\"files\":[{\"path\":\"rules/a/b.lua\"}]}", "nonsense" } do
            assert.equal(1, (pull(text)), text)
        end
        assert.equal(1, (pull{ good, good }))
        assert.equal(before, written())
    end)

    it("writes through no link, and never the editor's settings", function()
        os.execute(("mkdir -p %s/mine/rules %s/elsewhere && ln -s ../../elsewhere %s/mine/rules/promotions"):format(dir, dir, dir))
        local status, _, said = pull{ file("rules/promotions/fine.lua", "return {}") }
        assert.same({ 2, true }, { status, said:find("by a link", 1, true) ~= nil })
        os.execute(("rm %s/mine/rules/promotions"):format(dir))
        status = pull{ file("rules/promotions/fine.lua", "return {}"), file(".luarc.json", "{\"runtime.plugin\":\"evil.lua\"}") }
        assert.equal(0, status)
        assert.is_nil(command.read(dir .. "/mine/.luarc.json"):find("evil", 1, true))
        assert.equal("return {}", command.read(dir .. "/mine/rules/promotions/fine.lua"))
        assert.is_nil(command.read(dir .. "/elsewhere/fine.lua"))
    end)
end)
