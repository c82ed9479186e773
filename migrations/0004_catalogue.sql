-- The catalogue: what is sold. Searches go through product_search and the functions at the end.

create table vendors (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  name varchar(255) not null,
  slug varchar(255) not null,
  email varchar(255),
  status text not null default 'ACTIVE' constraint vendors_status check (status in ('ACTIVE', 'SUSPENDED', 'PENDING')),
  default_commission_rate_ppm int not null default 0
    constraint vendors_commission check (default_commission_rate_ppm between 0 and 1000000),
  payout_currency text not null default 'VND' constraint vendors_currency check (payout_currency ~ '^[A-Z]{3}$'),
  hold_days int not null default 7 constraint vendors_hold_days check (hold_days >= 0),
  tax_id text,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint vendors_pkey primary key (tenant_key, id),
  constraint vendors_slug unique (tenant_key, slug));
create index vendors_newest on vendors (tenant_key, created_at desc, id desc);
select kasma_tenant_table('vendors');

create table product_categories (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  name varchar(255) not null constraint product_categories_name check (btrim(name) <> ''),
  slug varchar(255) not null constraint product_categories_slug_form check (slug ~ '^[a-z0-9]+(-[a-z0-9]+)*$'),
  description text,
  parent_id uuid,
  path text not null,
  sort_order int not null default 0,
  is_active boolean not null default true,
  version bigint not null default 1,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint product_categories_pkey primary key (tenant_key, id),
  constraint product_categories_slug unique (tenant_key, slug),
  constraint product_categories_parent foreign key (tenant_key, parent_id) references product_categories (tenant_key, id));
create index product_categories_children on product_categories (tenant_key, parent_id, sort_order);
select kasma_tenant_table('product_categories');

create table product_tags (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  name varchar(100) not null,
  slug varchar(255) not null,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint product_tags_pkey primary key (tenant_key, id),
  constraint product_tags_slug unique (tenant_key, slug));
select kasma_tenant_table('product_tags');

create table products (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  name varchar(255) not null,
  vendor_id uuid,
  category_id uuid,
  code varchar(64),
  slug varchar(255) not null,
  short_description text,
  price_minor bigint not null default 0 constraint products_price check (price_minor between 0 and 9000000000000000),
  sale_price_minor bigint not null default 0,
  currency text not null default 'VND' constraint products_currency check (currency ~ '^[A-Z]{3}$'),
  is_active boolean not null default true,
  weight_grams int not null default 0 constraint products_weight check (weight_grams >= 0),
  requires_shipping boolean not null default true,
  tax_class text,
  track_inventory boolean not null default true,
  min_qty int not null default 1,
  max_qty int not null default 9999,
  subscribable boolean not null default true,
  preorder_campaign_id uuid,
  publish_at timestamptz,
  unpublish_at timestamptz,
  deleted_at timestamptz,
  effective_price_minor bigint not null default 0 constraint products_effective_price check (effective_price_minor >= 0),
  effective_promotion_id uuid,
  detail_revision int,
  version bigint not null default 1,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint products_pkey primary key (tenant_key, id),
  constraint products_sale_price check (sale_price_minor >= 0 and (sale_price_minor = 0 or sale_price_minor < price_minor)),
  constraint products_qty check (min_qty >= 1 and max_qty >= min_qty),
  constraint products_vendor foreign key (tenant_key, vendor_id) references vendors (tenant_key, id),
  constraint products_category foreign key (tenant_key, category_id) references product_categories (tenant_key, id));
create unique index products_code on products (tenant_key, code) where code is not null;
create unique index products_slug on products (tenant_key, slug) where deleted_at is null;
create index products_newest on products (tenant_key, created_at desc, id desc) where deleted_at is null;
create index products_by_price on products (tenant_key, effective_price_minor, id) where deleted_at is null;
create index products_by_name on products (tenant_key, name, id) where deleted_at is null;
create index products_of_category on products (tenant_key, category_id, created_at desc) where deleted_at is null;
create index products_of_vendor on products (tenant_key, vendor_id, created_at desc) where deleted_at is null;
select kasma_tenant_table('products');

create table product_redirects (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  slug varchar(255) not null,
  product_id uuid not null,
  created_at timestamptz not null,
  constraint product_redirects_pkey primary key (tenant_key, slug),
  constraint product_redirects_product foreign key (tenant_key, product_id) references products (tenant_key, id) on delete cascade);
create index product_redirects_of_product on product_redirects (tenant_key, product_id);
select kasma_tenant_table('product_redirects');

create table product_tags_mapping (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  product_id uuid not null,
  tag_id uuid not null,
  constraint product_tags_mapping_pkey primary key (tenant_key, product_id, tag_id),
  constraint product_tags_mapping_product foreign key (tenant_key, product_id) references products (tenant_key, id) on delete cascade,
  constraint product_tags_mapping_tag foreign key (tenant_key, tag_id) references product_tags (tenant_key, id) on delete cascade);
create index product_tags_mapping_of_tag on product_tags_mapping (tenant_key, tag_id, product_id);
select kasma_tenant_table('product_tags_mapping');

create table product_variants (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  product_id uuid not null,
  sku varchar(64) not null,
  price_minor bigint not null default 0 constraint product_variants_price check (price_minor between 0 and 9000000000000000),
  sale_price_minor bigint not null default 0,
  stock int,
  name varchar(255),
  attributes jsonb not null default '{}' constraint product_variants_attributes check (jsonb_typeof(attributes) = 'object'),
  attributes_hash text not null constraint product_variants_hash_form check (attributes_hash ~ '^[0-9a-f]{64}$'),
  is_active boolean not null default true,
  position int not null default 0,
  weight_grams int constraint product_variants_weight check (weight_grams >= 0),
  warehouse_id uuid,
  deleted_at timestamptz,
  version bigint not null default 1,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint product_variants_pkey primary key (tenant_key, id),
  constraint product_variants_sku unique (tenant_key, sku),
  constraint product_variants_attributes_once unique (tenant_key, product_id, attributes_hash),
  constraint product_variants_sale_price check (sale_price_minor >= 0 and (sale_price_minor = 0 or sale_price_minor < price_minor)),
  constraint product_variants_product foreign key (tenant_key, product_id) references products (tenant_key, id) on delete cascade);
create index product_variants_of_product on product_variants (tenant_key, product_id, position, id);
select kasma_tenant_table('product_variants');

create table product_prices (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  product_id uuid not null,
  variant_id uuid,
  currency text not null constraint product_prices_currency check (currency ~ '^[A-Z]{3}$'),
  min_qty int not null default 1 constraint product_prices_min_qty check (min_qty >= 1),
  customer_group varchar(50),
  price_minor bigint not null constraint product_prices_price check (price_minor between 0 and 9000000000000000),
  sale_price_minor bigint not null default 0,
  starts_at timestamptz,
  ends_at timestamptz,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint product_prices_pkey primary key (tenant_key, id),
  constraint product_prices_once unique nulls not distinct
    (tenant_key, product_id, variant_id, currency, min_qty, customer_group, starts_at, ends_at),
  constraint product_prices_sale_price check (sale_price_minor >= 0 and (sale_price_minor = 0 or sale_price_minor < price_minor)),
  constraint product_prices_window check (ends_at > starts_at),
  constraint product_prices_product foreign key (tenant_key, product_id) references products (tenant_key, id) on delete cascade,
  constraint product_prices_variant foreign key (tenant_key, variant_id) references product_variants (tenant_key, id) on delete cascade);
select kasma_tenant_table('product_prices');

-- What is searched: ids and terms, nothing that needs a right to be seen. Every GIN index is led by tenant_key (btree_gin),
-- so that a search reads its own tenant's entries and no others.
create table product_search (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  product_id uuid not null,
  name text not null,
  path text not null default '',
  tags uuid[] not null default '{}',
  attributes text[] not null default '{}',
  terms tsvector not null,
  constraint product_search_pkey primary key (tenant_key, product_id),
  constraint product_search_product foreign key (tenant_key, product_id) references products (tenant_key, id) on delete cascade);
create index product_search_terms on product_search using gin (tenant_key, terms);
create index product_search_name on product_search using gin (tenant_key, name gin_trgm_ops);
create index product_search_tags on product_search using gin (tenant_key, tags);
create index product_search_attributes on product_search using gin (tenant_key, attributes);
create index product_search_path on product_search (tenant_key, path text_pattern_ops);
select kasma_tenant_table('product_search');
create policy search on product_search for select to kasma_search using (true);
grant select on product_search to kasma_search;

-- Brings the search rows of some products up to date, in the transaction that changed what they show. Runs as the caller,
-- under the tenant's policy. A deleted product has no row.
create function product_search_refresh(p_tenant text, p_products uuid[]) returns void language plpgsql
  set search_path = pg_catalog, public, pg_temp as $$
begin
  delete from product_search s using products p
    where s.tenant_key = p_tenant and s.product_id = any(p_products)
      and p.tenant_key = p_tenant and p.id = s.product_id and p.deleted_at is not null;
  insert into product_search (tenant_key, app_key, product_id, name, path, tags, attributes, terms)
    select p.tenant_key, p.app_key, p.id, kasma_fold(p.name), coalesce(c.path, ''), coalesce(t.ids, '{}'), coalesce(v.attributes, '{}'),
      kasma_terms(concat_ws(' ', p.name, p.code, v.skus), t.names, p.short_description)
    from products p
    left join product_categories c on c.tenant_key = p.tenant_key and c.id = p.category_id
    left join lateral (select array_agg(g.id order by g.id) as ids, string_agg(g.name, ' ' order by g.id) as names
      from product_tags_mapping m join product_tags g on g.tenant_key = m.tenant_key and g.id = m.tag_id
      where m.tenant_key = p.tenant_key and m.product_id = p.id) t on true
    left join lateral (select
        (select string_agg(x.sku, ' ' order by x.position, x.id) from product_variants x
          where x.tenant_key = p.tenant_key and x.product_id = p.id and x.deleted_at is null) as skus,
        (select array_agg(distinct kasma_fold(a.key || '=' || a.value)) from product_variants x, jsonb_each_text(x.attributes) a
          where x.tenant_key = p.tenant_key and x.product_id = p.id and x.deleted_at is null and x.is_active) as attributes) v on true
    where p.tenant_key = p_tenant and p.id = any(p_products) and p.deleted_at is null
    order by p.id
  on conflict (tenant_key, product_id) do update set app_key = excluded.app_key, name = excluded.name, path = excluded.path,
    tags = excluded.tags, attributes = excluded.attributes, terms = excluded.terms;
end $$;

-- Product ids that fit, the best first. Every filter may be null: p_query is text as typed (all its words as prefixes, or,
-- when that finds nothing, names that look alike), p_path the path of a category (what lies below is found too), p_tags
-- any of them, p_attributes `name=value` folded: values of one name are alternatives, different names must all fit.
-- Runs as kasma_search, whose policy is open, because an operator that is not leakproof would not use its index under the
-- tenant's policy; therefore it filters by itself, and only for the tenant of the transaction. A plan is made for the
-- filters that are there, never one for all.
create function search_products(p_tenant text, p_query text, p_path text, p_tags uuid[], p_attributes text[], p_limit int)
  returns setof uuid language plpgsql stable security definer
  set search_path = pg_catalog, public, pg_temp set plan_cache_mode = force_custom_plan set pg_trgm.word_similarity_threshold = 0.4 as $$
declare
  words tsquery := kasma_query(p_query);
  folded text := kasma_fold(left(p_query, 200));
  names int := (select count(distinct split_part(a, '=', 1)) from unnest(p_attributes) a);
begin
  if p_tenant is distinct from current_setting('kasma.tenant_key', true) or (p_query is not null and words is null) then
    return;
  end if;
  return query
    select s.product_id from product_search s
    where s.tenant_key = p_tenant and (words is null or s.terms @@ words) and (p_path is null or s.path like p_path || '%')
      and (p_tags is null or s.tags && p_tags) and (p_attributes is null or s.attributes && p_attributes)
      and (names <= 1 or names = (select count(distinct split_part(a, '=', 1)) from unnest(s.attributes) a where a = any(p_attributes)))
    order by case when words is null then 0 else ts_rank(s.terms, words) end desc, s.product_id desc limit p_limit;
  if found or words is null then
    return;
  end if;
  return query
    select s.product_id from product_search s
    where s.tenant_key = p_tenant and folded <% s.name and (p_path is null or s.path like p_path || '%')
      and (p_tags is null or s.tags && p_tags) and (p_attributes is null or s.attributes && p_attributes)
      and (names <= 1 or names = (select count(distinct split_part(a, '=', 1)) from unnest(s.attributes) a where a = any(p_attributes)))
    order by word_similarity(folded, s.name) desc, s.product_id desc limit p_limit;
end $$;
grant create on schema public to kasma_search;
alter function search_products(text, text, text, uuid[], text[], int) owner to kasma_search;
revoke create on schema public from kasma_search;
set local role kasma_search;
revoke execute on function search_products(text, text, text, uuid[], text[], int) from public;
grant execute on function search_products(text, text, text, uuid[], text[], int) to kasma_app;
set local role kasma_owner;
