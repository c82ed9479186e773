-- Validation: the messages that clients show, and what becomes of a value on its way in.
local schema = require("kasma.schema")
local null = require("kasma.null")

local function messages(s, value, query)
    local clean, errs = schema.check(s, value, query)
    return errs and { unpack(errs) } or clean, errs
end

local Login = schema.object{
    identifier = schema.string{ not_empty = true, messages = { not_empty = "Email or username is required" } },
    password = schema.string{ not_empty = true, min = 6,
        messages = { not_empty = "Password is required", min = "Password must be at least 6 characters" } },
}

describe("validation", function()
    it("says the messages of the sign-in example, unknown members first", function()
        assert.same({ "property x should not exist", "Email or username is required", "Password must be at least 6 characters" },
            messages(Login, { identifier = "", password = "1", x = 1 }))
    end)

    it("says five messages for an empty sign-in", function()
        assert.same({ "Email or username is required", "identifier must be a string", "Password is required", "password must be a string",
            "Password must be at least 6 characters" }, messages(Login, {}))
        assert.equal(5, #messages(Login, nil))
    end)

    it("names nested members with dots and indexes", function()
        local s = schema.object{ media = schema.array(schema.object{ mediaUrl = schema.string(), isMain = schema.boolean():optional() }) }
        assert.same({ "media.0.mediaUrl must be a string", "media.1.property y should not exist",
            "media.1.isMain must be a boolean value" },
            messages(s, { media = { { mediaUrl = 1 }, { mediaUrl = "a", isMain = "yes", y = 1 } } }))
    end)

    it("says one message for all bad scalars of an array", function()
        local s = schema.object{ tags = schema.array(schema.string()) }
        assert.same({ "each value in tags must be a string" }, messages(s, { tags = { 1, 2, "a" } }))
        assert.same({ "tags must be an array", "each value in tags must be a string" }, messages(s, { tags = "a" }))
    end)

    it("never converts in a body", function()
        local s = schema.object{ n = schema.integer(), b = schema.boolean() }
        assert.same({ "n must be an integer number", "b must be a boolean value" }, messages(s, { n = "5", b = "true" }))
    end)

    it("converts numbers, booleans and lists of a query", function()
        local s = schema.page({ active = schema.boolean():optional(), ids = schema.array(schema.string()):optional() })
        local clean = schema.check(s, { page = "2", limit = "1000", active = "true", ids = "a,b" }, true)
        assert.equal(2, clean.page)
        assert.equal(100, clean.limit)
        assert.is_true(clean.active)
        assert.same({ "a", "b" }, { unpack(clean.ids) })
        assert.same({ page = 1, limit = 20 }, schema.check(s, {}, true))
        assert.same({ "page must be an integer number" }, messages(s, { page = "1.5" }, true))
        assert.same({ "page must be an integer number", "page must not be less than 1" }, messages(s, { page = { "1", "2" } }, true))
        assert.same({ "page must not be less than 1" }, messages(s, { page = "0" }, true))
        assert.same({ "page must be an integer number", "page must not be less than 1" }, messages(s, { page = "abc" }, true))
    end)

    it("takes null as absent where optional and keeps it where nullable", function()
        local s = schema.object{ a = schema.string():optional(), b = schema.string():nullable(), c = schema.string():optional():nullable() }
        local clean = schema.check(s, { a = null, b = null })
        assert.is_nil(clean.a)
        assert.equal(null, clean.b)
        assert.is_nil(clean.c)
        assert.same({ "b must be a string" }, messages(s, {}))
    end)

    it("resolves aliases and refuses two that differ", function()
        local s = schema.object{ id = schema.uuid():alias("orderId") }
        local id = "018f0000-0000-7000-8000-000000000001"
        assert.same({ id = id }, schema.check(s, { orderId = id }))
        assert.same({ id = id }, schema.check(s, { orderId = id, id = id }))
        assert.same({ "id and orderId must not differ" }, messages(s, { id = id, orderId = "018f0000-0000-7000-8000-000000000002" }))
    end)

    it("turns a malformed id into 404 where the area says so", function()
        local s = schema.object{ id = schema.uuid{ on_bad = 404, what = "Order" } }
        local _, errs = schema.check(s, { id = "x" })
        assert.equal("Order not found", errs.not_found)
        assert.equal(0, #errs)
        assert.same({ "id must be a UUID" }, messages(s, {}))
        assert.same({ "id must be a UUID" }, messages(schema.object{ id = schema.uuid() }, { id = "x" }))
    end)

    it("lists the values of an enumeration, in any case where asked", function()
        local s = schema.object{ status = schema.enum({ "active", "locked" }, { fold = true }) }
        assert.same({ status = "active" }, schema.check(s, { status = "ACTIVE" }))
        assert.same({ "status must be one of the following values: active, locked" }, messages(s, { status = "ACTIV" }))
    end)

    it("bounds numbers and texts, counting characters and not bytes", function()
        local s = schema.object{ q = schema.integer{ min = 1, max = 9 }, p = schema.number{ positive = true },
            t = schema.string{ max = 3 } }
        assert.same({ "q must not be less than 1", "p must be a positive number", "t must be shorter than or equal to 3 characters" },
            messages(s, { q = 0, p = 0, t = "abcd" }))
        assert.same({ "q must not be greater than 9" }, messages(s, { q = 10, p = 1, t = "ảảả" }))
        assert.same({ "q must be an integer number" }, messages(s, { q = 1.5, p = 1, t = "" }))
    end)

    it("takes any value but one that holds a NUL, however deep", function()
        local free = schema.object{ meta = schema.any():optional() }
        for _, value in ipairs{ 1, true, "text", { 1, "two" }, { a = { b = "c" } } } do
            local clean, errs = schema.check(free, { meta = value })
            assert.is_nil(errs)
            assert.same(value, clean.meta)
        end
        for _, value in ipairs{ "a\0", { "x", { y = "\0" } }, { ["k\0"] = 1 } } do
            local _, errs = schema.check(free, { meta = value })
            assert.same({ "meta must not hold NUL characters" }, errs)
        end
    end)

    it("takes money as number or decimal text, unchanged", function()
        local s = schema.object{ price = schema.money() }
        assert.same({ price = "10.50" }, schema.check(s, { price = "10.50" }))
        assert.same({ price = 10.5 }, schema.check(s, { price = 10.5 }))
        assert.same({ "price must not be less than 0" }, messages(s, { price = -1 }))
        assert.same({ "price must be a number conforming to the specified constraints", "price must not be less than 0" },
            messages(s, { price = "1,5" }))
    end)

    it("knows e-mails, dates, urls", function()
        assert.is_true(schema.is_email("a.b+c@example.test"))
        for _, bad in ipairs{ "a", "a@b", "@b.co", "a@b..co", "a@-b.co", "a b@c.de",
            "a..b@c.de" } do assert.is_false(schema.is_email(bad), bad) end
        for _, good in ipairs{ "2026-02-28", "2024-02-29", "2026-11-29T03:00:01.204Z", "2026-11-29T03:00+07:00" } do
            assert.is_true(schema.is_date(good), good)
        end
        for _, bad in ipairs{ "2026-02-29", "2026-13-01", "x", "2026-11-29T25:00Z", "2026-1-1" } do assert.is_false(schema.is_date(bad),
            bad) end
        assert.is_true(schema.is_url("https://example.test/a?b=c"))
        assert.is_false(schema.is_url("javascript:alert(1)"))
        assert.is_false(schema.is_url("https://exa mple.test"))
    end)

    it("emits JSON Schema with named objects once", function()
        local Item = schema.object({ id = schema.uuid(), note = schema.string():nullable() }, { name = "Item" })
        local named = {}
        assert.same({ type = "array", items = { ["$ref"] = "#/components/schemas/Item" } }, schema.json_schema(schema.array(Item), named))
        assert.same({ "string", "null" }, named.Item.properties.note.type)
        assert.same({ "id", "note" }, named.Item.required)
        assert.is_false(named.Item.additionalProperties)
    end)
end)
