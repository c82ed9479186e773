-- The catalogue's SQL and documents. Every statement names its tenant; what is searched goes through the functions of kasma_search.
-- Functions that begin with insert_, update_ and so on give a statement for the caller's pipeline; the others run.
local json = require("core.json")
local pg = require("core.pg")
local db = require("kasma.db")
local docs = require("kasma.docs")

local M = {}

local null = json.null

local PRODUCT = [[p.id, p.tenant_key, p.app_key, p.created_at, p.updated_at, p.name, p.vendor_id, p.category_id, p.code, p.slug,
  p.short_description, p.price_minor, p.sale_price_minor, p.currency, p.is_active, p.weight_grams, p.requires_shipping, p.tax_class,
  p.track_inventory, p.min_qty, p.max_qty, p.subscribable, p.publish_at, p.unpublish_at, p.deleted_at, p.effective_price_minor,
  p.detail_revision, p.version]]

local CATEGORY = [[c.id, c.tenant_key, c.app_key, c.created_at, c.updated_at, c.name, c.slug, c.description, c.parent_id, c.path,
  c.sort_order, c.is_active]]

local VARIANT = [[v.id, v.tenant_key, v.app_key, v.created_at, v.updated_at, v.product_id, v.sku, v.price_minor, v.sale_price_minor,
  v.stock, v.name, v.attributes, v.is_active, v.position, v.weight_grams, v.warehouse_id]]

-- Categories ------------------------------------------------------------------------------------------------------------------------

---@param tenant string
---@param ids string[]
---@return table[] categories in no order
function M.categories_by_id(tenant, ids)
    if #ids == 0 then return {} end
    return db.read(tenant, "select " .. CATEGORY .. " from product_categories c where c.tenant_key = $1 and c.id = any($2::uuid[])",
        tenant, pg.array(ids))
end

---@param tenant string
---@param id string
---@return table|nil category
function M.category(tenant, id)
    return M.categories_by_id(tenant, { id })[1]
end

---@param tenant string
---@param parent_id string|nil only the children of this one
---@param include_inactive boolean
---@return table[] categories, at most 2000, in sort order
function M.list_categories(tenant, parent_id, include_inactive)
    return db.read(tenant, "select " .. CATEGORY .. [[ from product_categories c
      where c.tenant_key = $1 and ($2::uuid is null or c.parent_id = $2::uuid) and (c.is_active or $3)
      order by c.sort_order, c.name, c.id limit 2000]], tenant, parent_id or null, include_inactive)
end

---@param c table id, tenant_key, app_key, name, slug, description, parent_id, path, sort_order, is_active, now (ISO)
function M.insert_category(c)
    return { "insert into product_categories as c (tenant_key, app_key, id, name, slug, description, parent_id, path, sort_order, "
        .. "is_active, created_at, updated_at) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $11) returning " .. CATEGORY,
        c.tenant_key, c.app_key, c.id, c.name, c.slug, c.description or null, c.parent_id or null, c.path, c.sort_order, c.is_active,
        c.now }
end

-- Tags ------------------------------------------------------------------------------------------------------------------------------

---@param tenant string
---@param ids string[]
---@return table[] tags by name
function M.tags_by_id(tenant, ids)
    if #ids == 0 then return {} end
    return db.read(tenant, [[select t.id, t.tenant_key, t.app_key, t.name, t.slug, t.created_at, t.updated_at from product_tags t
      where t.tenant_key = $1 and t.id = any($2::uuid[]) order by t.name, t.id]], tenant, pg.array(ids))
end

---@param tenant string
---@param product_id string
---@return table[] tags of the product by name
function M.tags_of(tenant, product_id)
    return db.read(tenant, [[select t.id, t.tenant_key, t.app_key, t.name, t.slug, t.created_at, t.updated_at
      from product_tags_mapping m join product_tags t on t.tenant_key = m.tenant_key and t.id = m.tag_id
      where m.tenant_key = $1 and m.product_id = $2 order by t.name, t.id limit 200]], tenant, product_id)
end

---@param tenant string
---@param product_ids string[]
---@return table[] product_id, tag_id
function M.tag_mappings(tenant, product_ids)
    if #product_ids == 0 then return {} end
    return db.read(tenant, [[select m.product_id, m.tag_id from product_tags_mapping m
      where m.tenant_key = $1 and m.product_id = any($2::uuid[]) order by m.product_id, m.tag_id]], tenant, pg.array(product_ids))
end

---@param t table id, tenant_key, app_key, name, slug, now
function M.insert_tag(t)
    return { [[insert into product_tags (tenant_key, app_key, id, name, slug, created_at, updated_at) values ($1, $2, $3, $4, $5, $6, $6)
      returning id, tenant_key, app_key, name, slug, created_at, updated_at]], t.tenant_key, t.app_key, t.id, t.name, t.slug, t.now }
end

---@param tenant string
---@return table[] tags, at most 1000
function M.list_tags(tenant)
    return db.read(tenant, [[select t.id, t.tenant_key, t.app_key, t.name, t.slug, t.created_at, t.updated_at from product_tags t
      where t.tenant_key = $1 order by t.name, t.id limit 1000]], tenant)
end

-- Products --------------------------------------------------------------------------------------------------------------------------

---@param tenant string
---@param id string
---@return table|nil product also when inactive, not when deleted
function M.product(tenant, id)
    return db.read(tenant, "select " .. PRODUCT .. " from products p where p.tenant_key = $1 and p.id = $2 and p.deleted_at is null",
        tenant, id)[1]
end

---@param tenant string
---@param ids string[]
---@return table[] products in no order, without the deleted
function M.products_by_id(tenant, ids)
    if #ids == 0 then return {} end
    return db.read(tenant, "select " .. PRODUCT .. [[ from products p
      where p.tenant_key = $1 and p.id = any($2::uuid[]) and p.deleted_at is null]], tenant, pg.array(ids))
end

---@param tenant string
---@param product_ids string[]
---@return table[] variants by product and position
function M.variants_of(tenant, product_ids)
    if #product_ids == 0 then return {} end
    return db.read(tenant, "select " .. VARIANT .. [[ from product_variants v
      where v.tenant_key = $1 and v.product_id = any($2::uuid[]) and v.deleted_at is null order by v.product_id, v.position, v.id]],
        tenant, pg.array(product_ids))
end

---@param tenant string
---@param skus string[]
---@return table[] {id, product_id, sku}, without the deleted
function M.variants_by_sku(tenant, skus)
    if #skus == 0 then return {} end
    return db.read(tenant, [[select v.id, v.product_id, v.sku from product_variants v
      where v.tenant_key = $1 and v.sku = any($2::text[]) and v.deleted_at is null]], tenant, pg.array(skus))
end

---@param tenant string
---@param id string
---@return boolean
function M.variant_exists(tenant, id)
    return db.read(tenant, "select 1 as one from product_variants v where v.tenant_key = $1 and v.id = $2 and v.deleted_at is null",
        tenant, id)[1] ~= nil
end

local EXISTING = {
    product = "select id from products where tenant_key = $1 and id = any($2::uuid[]) and deleted_at is null",
    variant = "select id from product_variants where tenant_key = $1 and id = any($2::uuid[]) and deleted_at is null",
    category = "select id from product_categories where tenant_key = $1 and id = any($2::uuid[])",
    tag = "select id from product_tags where tenant_key = $1 and id = any($2::uuid[])",
    vendor = "select id from vendors where tenant_key = $1 and id = any($2::uuid[])",
}

---@param tenant string
---@param kind "product"|"variant"|"category"|"tag"|"vendor"
---@param ids string[]
---@return string[] those that the tenant has
function M.existing(tenant, kind, ids)
    local found = {}
    for i, row in ipairs(db.read(tenant, EXISTING[kind], tenant, pg.array(ids))) do found[i] = row.id end
    return found
end

---@class ProductFilter
---@field active boolean|nil nil = both
---@field ids string[]|nil only these (the answer of a search)
---@field category_ids string[]|nil
---@field min_minor integer|nil effective price
---@field max_minor integer|nil
---@field sort string newest, price_asc, price_desc, name, relevance
---@field limit integer
---@field offset integer

local ORDER = {
    newest = "p.created_at desc, p.id desc",
    price_asc = "p.effective_price_minor, p.id",
    price_desc = "p.effective_price_minor desc, p.id desc",
    name = "p.name, p.id",
    -- The ids come best first from the search; without a search this is newest.
    relevance = "array_position($3::uuid[], p.id), p.created_at desc, p.id desc",
}
-- The order is part of the text of a statement, so there is one prepared statement a sort, made here and nowhere else.
local LIST, COUNT = {}, [[select count(*) as n from products p where p.tenant_key = $1 and p.deleted_at is null
  and ($2::boolean is null or p.is_active = $2) and ($3::uuid[] is null or p.id = any($3::uuid[]))
  and ($4::bigint is null or p.effective_price_minor >= $4) and ($5::bigint is null or p.effective_price_minor <= $5)]]
for sort, order in pairs(ORDER) do
    LIST[sort] = "select " .. PRODUCT .. [[ from products p where p.tenant_key = $1 and p.deleted_at is null
      and ($2::boolean is null or p.is_active = $2) and ($3::uuid[] is null or p.id = any($3::uuid[]))
      and ($4::bigint is null or p.effective_price_minor >= $4) and ($5::bigint is null or p.effective_price_minor <= $5)
      order by ]] .. order .. " limit $6 offset $7"
end

---@param tenant string
---@param filter ProductFilter
---@return table[] products, integer total
function M.list_products(tenant, filter)
    local active = filter.active
    if active == nil then active = null end
    local ids = filter.ids and pg.array(filter.ids) or null
    local min, max = filter.min_minor or null, filter.max_minor or null
    local answers = db.pipeline(tenant, {
        { LIST[filter.sort], tenant, active, ids, min, max, filter.limit, filter.offset },
        { COUNT, tenant, active, ids, min, max },
    })
    return answers[1], answers[2][1].n
end

--- Ids of the products that match a text, a category with all below it, any of the tags. Answered from the search table's indexes.
---@param tenant string
---@param q { text: string|nil, path: string|nil, tags: string[]|nil, limit: integer }
---@return string[] product ids, best first
function M.search(tenant, q)
    local rows = db.read(tenant, "select product_id from search_products($1, $2, $3, $4, $5, $6) as product_id",
        tenant, q.text or null, q.path or null, q.tags and pg.array(q.tags) or null, null, q.limit)
    local ids = {}
    for i, row in ipairs(rows) do ids[i] = row.product_id end
    return ids
end

---@param p table the columns of products with tenant_key, app_key, id, now (ISO)
function M.insert_product(p)
    return { [[insert into products (tenant_key, app_key, id, name, vendor_id, category_id, code, slug, short_description, price_minor,
      sale_price_minor, currency, is_active, weight_grams, requires_shipping, tax_class, track_inventory, min_qty, max_qty, subscribable,
      publish_at, unpublish_at, effective_price_minor, detail_revision, created_at, updated_at)
      values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25, $25)]],
        p.tenant_key, p.app_key, p.id, p.name, p.vendor_id or null, p.category_id or null, p.code or null, p.slug,
        p.short_description or null, p.price_minor, p.sale_price_minor, p.currency, p.is_active, p.weight_grams, p.requires_shipping,
        p.tax_class or null, p.track_inventory, p.min_qty, p.max_qty, p.subscribable, p.publish_at or null, p.unpublish_at or null,
        p.effective_price_minor, p.detail_revision, p.now }
end

--- A product that takes a slug ends the redirect that stood under it.
function M.drop_redirect(tenant, slug)
    return { "delete from product_redirects where tenant_key = $1 and slug = $2", tenant, slug }
end

---@param v table the columns of product_variants with tenant_key, app_key, id, now (ISO); attributes is a table
function M.insert_variant(v)
    return { [[insert into product_variants (tenant_key, app_key, id, product_id, sku, price_minor, sale_price_minor, stock, name,
      attributes, attributes_hash, is_active, position, weight_grams, warehouse_id, created_at, updated_at)
      values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $16)]],
        v.tenant_key, v.app_key, v.id, v.product_id, v.sku, v.price_minor, v.sale_price_minor, v.stock or null, v.name or null,
        pg.json(v.attributes), v.attributes_hash, v.is_active, v.position, v.weight_grams or null, v.warehouse_id or null, v.now }
end

function M.map_tag(tenant, app, product_id, tag_id)
    return { "insert into product_tags_mapping (tenant_key, app_key, product_id, tag_id) values ($1, $2, $3, $4)",
        tenant, app, product_id, tag_id }
end

--- Brings the product's search row up to date; stands after what it shows.
function M.refresh_search(tenant, product_id)
    return { "select product_search_refresh($1, $2::uuid[])", tenant, pg.array{ product_id } }
end

--- Answers the ids of its variants; no row when the product is not there or is deleted already.
function M.delete_product(tenant, id, now)
    return { [[update products p set deleted_at = $3, is_active = false, version = version + 1, updated_at = $3
      where p.tenant_key = $1 and p.id = $2 and p.deleted_at is null returning coalesce((select json_agg(v.id order by v.position, v.id)
        from product_variants v where v.tenant_key = $1 and v.product_id = $2 and v.deleted_at is null), '[]'::json) as variant_ids]],
        tenant, id, now }
end

-- Rich content: immutable revisions in MongoDB, of which the product's row names the live one -----------------------------------------

---@param scope { tenant: string, app: string }
---@param detail table product_id, revision, description, specifications, attributes, media, metadata
function M.insert_detail(scope, detail)
    docs.insert(scope, "product_details", detail)
end

---@param scope { tenant: string, app: string }
---@param product_id string
---@param revision integer
---@return table|nil detail
function M.detail(scope, product_id, revision)
    return docs.find_one(scope, "product_details", { product_id = product_id, revision = revision })
end

return M
