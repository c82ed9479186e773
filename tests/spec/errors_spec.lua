-- What a store's answer means to a client, and how errors are raised and told.
local errors = require("kasma.errors")

local function raised(fn, ...)
    local ok, err = pcall(fn, ...)
    assert.is_false(ok)
    assert.is_true(errors.is(err))
    return err
end

describe("errors", function()
    it("carry status, message, code and details", function()
        local err = raised(errors.conflict, { message = "Only 2 left", code = "out_of_stock", details = { { sku = "A" } } })
        assert.same({ 409, "Only 2 left", "out_of_stock" }, { err.status, err.message, err.code })
        assert.equal("Not Found", raised(errors.not_found).message)
        assert.equal("409 Only 2 left", tostring(err))
    end)

    it("are declared once and raised by a call", function()
        local declared = errors.declare{ code = "spec_only", status = 422, message = "No", cause = "a spec", cure = "none" }
        assert.equal(declared, errors.declare{ code = "spec_only", status = 422, message = "No" })
        local err = raised(declared, { details = { 1 } })
        assert.same({ 422, "No", "spec_only" }, { err.status, err.message, err.code })
        assert.equal("Other", raised(declared, "Other").message)
    end)

    it("map a database's answer by SQLSTATE, then by the constraint's name", function()
        local function of(code, more)
            local err = { kind = "query", code = code, message = "m" }
            for key, value in pairs(more or {}) do err[key] = value end
            return errors.from_store(err)
        end
        assert.equal(409, of("23505").status)
        assert.equal(409, of("23503").status)
        assert.equal(400, of("23514").status)
        assert.equal(400, of("23502").status)
        assert.equal(400, of("22P02").status)
        assert.equal(409, of("40P01").status)
        assert.equal(503, of("57P01").status)
        assert.equal(500, of("42601").status)
        errors.constraint("spec_things_key", 409, { message = "Thing exists", code = "thing_exists" })
        assert.equal("thing_exists", of("23505", { constraint = "spec_things_key" }).code)
        assert.equal("thing_exists", of("23505", { constraint = "spec_things_key_102008" }).code)
        assert.equal("thing_exists", of("23505", { message = 'duplicate key value violates unique constraint "spec_things_key_7"' }).code)
    end)

    it("tell a store that is away by 503 with Retry-After", function()
        for _, kind in ipairs{ "unavailable", "busy", "timeout", "deadline", "cancelled" } do
            local err = errors.from_store{ kind = kind, message = "m" }
            assert.equal(503, err.status)
            assert.equal("1", err.headers["Retry-After"])
        end
        assert.is_true(errors.is_unavailable{ kind = "unavailable" })
        assert.is_true(errors.is_unavailable(errors.new(503)))
        assert.is_false(errors.is_unavailable{ kind = "query", code = "23505" })
        assert.is_false(errors.is_unavailable("text"))
    end)

    it("turn a unique violation into the code given for its constraint", function()
        local function broken(constraint) error(errors.from_store{ kind = "query", code = "23505", constraint = constraint }, 0) end
        assert.equal("slug_taken", raised(errors.unique, { products_slug = "slug_taken" }, broken, "products_slug").code)
        assert.equal("Slug taken", raised(errors.unique, { products_slug = "slug_taken" }, broken, "products_slug_3").message)
        assert.equal("duplicate", raised(errors.unique, { other = "x" }, broken, "products_slug").code)
        assert.equal(7, errors.unique({}, function(a, b) return a + b end, 3, 4))
    end)

    it("turn a state that a statement raised into the error given for it", function()
        local function raise() error(errors.from_store{ kind = "query", code = "KS004" }, 0) end
        local err = raised(errors.state, { KS004 = { status = 409, code = "below", message = "Below" } }, raise)
        assert.same({ 409, "below", "Below" }, { err.status, err.code, err.message })
    end)
end)
