-- Promotions, coupons and bundles. Counters are moved by conditional updates; the CHECKs are the last wall.

create table promotions (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  name varchar(255) not null,
  description text,
  slug varchar(255),
  type text not null default 'discount'
    constraint promotions_type check (type in ('discount', 'b1g1', 'flash_sale', 'free_shipping', 'script')),
  value bigint not null default 0 constraint promotions_value check (value >= 0),
  value_type text not null default 'percent' constraint promotions_value_type check (value_type in ('percent', 'fixed', 'price')),
  currency text not null default 'VND' constraint promotions_currency check (currency ~ '^[A-Z]{3}$'),
  applicable_to text not null default 'all'
    constraint promotions_target check (applicable_to in ('all', 'category', 'product', 'variant', 'tag', 'vendor', 'bundle')),
  target_ids uuid[] not null default '{}',
  level text not null default 'order' constraint promotions_level check (level in ('line', 'order', 'shipping')),
  min_order_value_minor bigint not null default 0 constraint promotions_min_order check (min_order_value_minor >= 0),
  min_quantity int not null default 0 constraint promotions_min_quantity check (min_quantity >= 0),
  max_discount_minor bigint not null default 0 constraint promotions_max_discount check (max_discount_minor >= 0),
  buy_qty int not null default 1 constraint promotions_buy check (buy_qty >= 1),
  get_qty int not null default 1 constraint promotions_get check (get_qty >= 1),
  get_discount_bps int not null default 10000 constraint promotions_get_discount check (get_discount_bps between 0 and 10000),
  scope text not null default 'same_product' constraint promotions_scope check (scope in ('same_product', 'pool')),
  priority int not null default 0,
  stackable boolean not null default false,
  exclusive boolean not null default false,
  stop_after boolean not null default false,
  include_bundled boolean not null default false,
  exclusion_group varchar(50),
  customer_groups text[] not null default '{}',
  tier_ids uuid[] not null default '{}',
  first_order_only boolean not null default false,
  weekdays int[] not null default '{}',
  hours_from int constraint promotions_hours_from check (hours_from between 0 and 24),
  hours_to int constraint promotions_hours_to check (hours_to between 0 and 24),
  usage_limit int not null default 0 constraint promotions_usage_limit check (usage_limit >= 0),
  per_customer_limit int not null default 0 constraint promotions_per_customer check (per_customer_limit >= 0),
  used_count int not null default 0,
  budget_minor bigint not null default 0,
  budget_used_minor bigint not null default 0,
  max_units int not null default 0,
  units_used int not null default 0,
  max_units_per_customer int not null default 0 constraint promotions_units_per_customer check (max_units_per_customer >= 0),
  start_date timestamptz,
  end_date timestamptz,
  is_active boolean not null default true,
  is_public boolean not null default true,
  script_id uuid,
  config jsonb,
  version bigint not null default 1,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint promotions_pkey primary key (tenant_key, id),
  constraint promotions_percent check (value_type <> 'percent' or value <= 10000),
  constraint promotions_window check (end_date > start_date),
  constraint promotions_used check (used_count >= 0 and (usage_limit = 0 or used_count <= usage_limit)),
  constraint promotions_budget check (budget_used_minor >= 0 and (budget_minor = 0 or budget_used_minor <= budget_minor)),
  constraint promotions_units check (units_used >= 0 and (max_units = 0 or units_used <= max_units)));
create unique index promotions_slug on promotions (tenant_key, slug) where slug is not null;
create index promotions_active on promotions (tenant_key, is_active, priority desc, id);
create index promotions_newest on promotions (tenant_key, created_at desc, id desc);
select kasma_tenant_table('promotions');

create table promotion_usages (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  promotion_id uuid not null,
  checkout_id uuid not null,
  user_id uuid,
  customer_key text,
  amount_minor bigint not null default 0,
  units int not null default 0,
  state text not null default 'reserved' constraint promotion_usages_state check (state in ('reserved', 'used', 'released')),
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint promotion_usages_pkey primary key (tenant_key, id),
  constraint promotion_usages_once unique (tenant_key, promotion_id, checkout_id),
  constraint promotion_usages_promotion foreign key (tenant_key, promotion_id) references promotions (tenant_key, id),
  constraint promotion_usages_checkout foreign key (tenant_key, checkout_id) references checkouts (tenant_key, id));
create index promotion_usages_of_checkout on promotion_usages (tenant_key, checkout_id);
create index promotion_usages_of_customer on promotion_usages (tenant_key, promotion_id, customer_key);
select kasma_tenant_table('promotion_usages');

create table coupon_batches (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  template jsonb not null,
  prefix varchar(40) not null default '',
  length int not null default 10 constraint coupon_batches_length check (length between 8 and 16),
  count int not null constraint coupon_batches_count check (count between 1 and 100000),
  made int not null default 0,
  state text not null default 'queued' constraint coupon_batches_state check (state in ('queued', 'running', 'done', 'failed')),
  created_by uuid,
  error text,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint coupon_batches_pkey primary key (tenant_key, id),
  constraint coupon_batches_made check (made between 0 and count));
create index coupon_batches_newest on coupon_batches (tenant_key, created_at desc);
select kasma_tenant_table('coupon_batches');

create table coupons (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  code varchar(64) not null constraint coupons_code_form check (code ~ '^[A-Z0-9_-]{3,64}$'),
  discount_type text not null default 'fixed'
    constraint coupons_type check (discount_type in ('percentage', 'fixed', 'free_shipping')),
  description text,
  discount_value bigint not null default 0,
  currency text not null default 'VND' constraint coupons_currency check (currency ~ '^[A-Z]{3}$'),
  min_order_value_minor bigint not null default 0 constraint coupons_min_order check (min_order_value_minor >= 0),
  max_discount_minor bigint not null default 0 constraint coupons_max_discount check (max_discount_minor >= 0),
  usage_limit int not null default 0 constraint coupons_usage_limit check (usage_limit >= 0),
  used_count int not null default 0,
  per_customer_limit int not null default 0 constraint coupons_per_customer check (per_customer_limit >= 0),
  is_stackable boolean not null default false,
  exclude_discounted boolean not null default false,
  applicable_to text not null default 'all'
    constraint coupons_target check (applicable_to in ('all', 'category', 'product', 'variant', 'tag', 'vendor', 'bundle')),
  target_ids uuid[] not null default '{}',
  customer_ids uuid[] not null default '{}',
  customer_groups text[] not null default '{}',
  first_order_only boolean not null default false,
  start_date timestamptz,
  end_date timestamptz,
  is_active boolean not null default true,
  batch_id uuid,
  source_kind text not null default 'manual'
    constraint coupons_source check (source_kind in ('manual', 'abandoned_cart', 'referral', 'refund')),
  script_id uuid,
  version bigint not null default 1,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint coupons_pkey primary key (tenant_key, id),
  constraint coupons_code unique (tenant_key, code),
  constraint coupons_value check (case discount_type when 'free_shipping' then discount_value >= 0
    when 'percentage' then discount_value between 1 and 10000 else discount_value > 0 end),
  constraint coupons_window check (end_date > start_date),
  constraint coupons_used check (used_count >= 0 and (usage_limit = 0 or used_count <= usage_limit)),
  constraint coupons_batch foreign key (tenant_key, batch_id) references coupon_batches (tenant_key, id));
create index coupons_newest on coupons (tenant_key, created_at desc, id desc);
create index coupons_of_batch on coupons (tenant_key, batch_id);
select kasma_tenant_table('coupons');

create table coupon_redemptions (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  coupon_id uuid not null,
  checkout_id uuid not null,
  user_id uuid,
  customer_key text not null,
  amount_minor bigint not null default 0,
  state text not null default 'reserved' constraint coupon_redemptions_state check (state in ('reserved', 'used', 'released')),
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint coupon_redemptions_pkey primary key (tenant_key, id),
  constraint coupon_redemptions_once unique (tenant_key, coupon_id, checkout_id),
  constraint coupon_redemptions_coupon foreign key (tenant_key, coupon_id) references coupons (tenant_key, id),
  constraint coupon_redemptions_checkout foreign key (tenant_key, checkout_id) references checkouts (tenant_key, id));
create index coupon_redemptions_of_checkout on coupon_redemptions (tenant_key, checkout_id);
create index coupon_redemptions_of_customer on coupon_redemptions (tenant_key, coupon_id, customer_key);
select kasma_tenant_table('coupon_redemptions');

create table product_bundles (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  name varchar(255) not null,
  description text,
  slug varchar(255),
  price_minor bigint not null default 0 constraint product_bundles_price check (price_minor >= 0),
  currency text not null default 'VND' constraint product_bundles_currency check (currency ~ '^[A-Z]{3}$'),
  is_active boolean not null default true,
  start_date timestamptz,
  end_date timestamptz,
  auto_apply boolean not null default false,
  max_per_order int not null default 0 constraint product_bundles_max check (max_per_order >= 0),
  pricing text not null default 'fixed' constraint product_bundles_pricing check (pricing in ('fixed', 'percent_off', 'script')),
  percent_off_bps int not null default 0 constraint product_bundles_percent check (percent_off_bps between 0 and 10000),
  script_id uuid,
  version bigint not null default 1,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint product_bundles_pkey primary key (tenant_key, id),
  constraint product_bundles_window check (end_date > start_date));
create unique index product_bundles_slug on product_bundles (tenant_key, slug) where slug is not null;
create index product_bundles_active on product_bundles (tenant_key, is_active, id);
select kasma_tenant_table('product_bundles');

create table product_bundle_items (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  bundle_id uuid not null,
  product_id uuid not null,
  variant_id uuid,
  quantity int not null default 1 constraint product_bundle_items_quantity check (quantity >= 1),
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint product_bundle_items_pkey primary key (tenant_key, id),
  constraint product_bundle_items_once unique nulls not distinct (tenant_key, bundle_id, product_id, variant_id),
  constraint product_bundle_items_bundle foreign key (tenant_key, bundle_id) references product_bundles (tenant_key, id) on delete cascade,
  constraint product_bundle_items_product foreign key (tenant_key, product_id) references products (tenant_key, id),
  constraint product_bundle_items_variant foreign key (tenant_key, variant_id) references product_variants (tenant_key, id));
create index product_bundle_items_of_product on product_bundle_items (tenant_key, product_id);
create index product_bundle_items_of_variant on product_bundle_items (tenant_key, variant_id);
select kasma_tenant_table('product_bundle_items');
