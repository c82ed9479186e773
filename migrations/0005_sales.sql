-- Customers, carts, checkouts and orders. A checkout is one act of buying; its orders (one a warehouse), tenders, usages
-- and points hang on it. Carts and wishlists are rows, shown under a minted 24-hex id (wire_id).

create table customers (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  user_id uuid,
  guest_hash text constraint customers_guest_form check (guest_hash ~ '^[0-9a-f]{64}$'),
  guest_key_version int,
  groups text[] not null default '{}' constraint customers_groups check (cardinality(groups) <= 50),
  tags text[] not null default '{}' constraint customers_tags check (cardinality(tags) <= 50),
  orders_count int not null default 0 constraint customers_orders check (orders_count >= 0),
  first_order_at timestamptz,
  lifetime_spent_minor bigint not null default 0,
  marketing_consent_at timestamptz,
  version bigint not null default 1,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint customers_pkey primary key (tenant_key, id),
  constraint customers_who check (user_id is not null or guest_hash is not null),
  constraint customers_guest_key check ((guest_hash is null) = (guest_key_version is null)),
  constraint customers_account foreign key (user_id) references users (id));
create unique index customers_user on customers (tenant_key, user_id) where user_id is not null;
create unique index customers_guest on customers (tenant_key, guest_hash) where guest_hash is not null;
create index customers_newest on customers (tenant_key, created_at desc, id desc);
select kasma_tenant_table('customers');

create table carts (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  wire_id text not null constraint carts_wire_form check (wire_id ~ '^[0-9a-f]{24}$'),
  user_id uuid,
  owner_key text not null constraint carts_owner_form check (owner_key ~ '^(u:[0-9a-f-]{36}|g:[0-9a-f]{64})$'),
  series int not null default 0,
  expires_at timestamptz,
  items jsonb not null default '[]'
    constraint carts_items check (jsonb_typeof(items) = 'array' and jsonb_array_length(items) <= 200),
  coupon_codes text[] not null default '{}',
  points_to_redeem bigint not null default 0 constraint carts_points check (points_to_redeem >= 0),
  affiliate_code varchar(32),
  currency text not null default 'VND' constraint carts_currency check (currency ~ '^[A-Z]{3}$'),
  shipping_method_id uuid,
  metadata jsonb,
  version bigint not null default 1,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint carts_pkey primary key (tenant_key, id),
  constraint carts_wire unique (tenant_key, wire_id),
  constraint carts_owner unique (tenant_key, owner_key),
  constraint carts_user foreign key (user_id) references users (id));
create index carts_of_user on carts (tenant_key, user_id);
create index carts_expiry on carts (tenant_key, expires_at) where expires_at is not null;
select kasma_tenant_table('carts');

create table wishlists (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  wire_id text not null constraint wishlists_wire_form check (wire_id ~ '^[0-9a-f]{24}$'),
  user_id uuid not null,
  products jsonb not null default '[]'
    constraint wishlists_products check (jsonb_typeof(products) = 'array' and jsonb_array_length(products) <= 500),
  share_token text,
  version bigint not null default 1,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint wishlists_pkey primary key (tenant_key, id),
  constraint wishlists_wire unique (tenant_key, wire_id),
  constraint wishlists_user unique (tenant_key, user_id),
  constraint wishlists_account foreign key (user_id) references users (id));
create unique index wishlists_share on wishlists (tenant_key, share_token) where share_token is not null;
select kasma_tenant_table('wishlists');

create table abandoned_carts (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  wire_id text not null constraint abandoned_carts_wire_form check (wire_id ~ '^[0-9a-f]{24}$'),
  user_id uuid,
  cart_id uuid not null,
  cart_series int not null,
  items jsonb not null default '[]',
  status text not null default 'pending' constraint abandoned_carts_status check (status in ('pending', 'recovered', 'expired')),
  last_activity timestamptz not null,
  email_sent_count int not null default 0,
  metadata jsonb,
  email_hash text,
  email_key_version int,
  token_hash text,
  next_step_at timestamptz,
  recovered_order_id uuid,
  coupon_code varchar(64),
  version bigint not null default 1,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint abandoned_carts_pkey primary key (tenant_key, id),
  constraint abandoned_carts_wire unique (tenant_key, wire_id),
  constraint abandoned_carts_cart unique (tenant_key, cart_id, cart_series));
create index abandoned_carts_status_newest on abandoned_carts (tenant_key, status, updated_at desc);
create index abandoned_carts_newest on abandoned_carts (tenant_key, updated_at desc);
create index abandoned_carts_of_user on abandoned_carts (tenant_key, user_id, updated_at desc);
create unique index abandoned_carts_token on abandoned_carts (tenant_key, token_hash) where token_hash is not null;
select kasma_tenant_table('abandoned_carts');

create table checkouts (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  cart_id uuid,
  cart_series int,
  user_id uuid,
  guest_hash text,
  guest_key_version int,
  currency text not null default 'VND' constraint checkouts_currency check (currency ~ '^[A-Z]{3}$'),
  total_minor bigint not null constraint checkouts_total check (total_minor >= 0),
  amount_due_minor bigint not null constraint checkouts_due check (amount_due_minor >= 0),
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint checkouts_pkey primary key (tenant_key, id),
  constraint checkouts_user foreign key (user_id) references users (id));
create unique index checkouts_cart on checkouts (tenant_key, cart_id, cart_series) where cart_id is not null;
create index checkouts_of_user on checkouts (tenant_key, user_id, created_at desc);
select kasma_tenant_table('checkouts');

create table orders (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  user_id uuid,
  guest_email varchar(255),
  order_number varchar(40) not null,
  checkout_id uuid not null,
  split_index int not null default 0 constraint orders_split_index check (split_index >= 0),
  parent_order_id uuid,
  status text not null default 'pending'
    constraint orders_status check (status in ('pending', 'processing', 'shipped', 'delivered', 'cancelled', 'refunded')),
  payment_status text not null default 'unpaid' constraint orders_payment_status check (payment_status in
    ('unpaid', 'authorized', 'paid', 'failed', 'partially_refunded', 'refunded', 'voided', 'review')),
  payment_method varchar(50),
  currency text not null default 'VND' constraint orders_currency check (currency ~ '^[A-Z]{3}$'),
  fx_rate numeric(24, 12),
  fx_rate_id uuid,
  tax_inclusive boolean not null default false,
  subtotal_minor bigint not null constraint orders_subtotal check (subtotal_minor >= 0),
  discount_total_minor bigint not null default 0 constraint orders_discount check (discount_total_minor >= 0),
  shipping_total_minor bigint not null default 0 constraint orders_shipping check (shipping_total_minor >= 0),
  tax_total_minor bigint not null default 0 constraint orders_tax check (tax_total_minor >= 0),
  cash_rounding_minor bigint not null default 0,
  total_amount_minor bigint not null,
  gift_card_total_minor bigint not null default 0 constraint orders_gift_cards check (gift_card_total_minor >= 0),
  wallet_total_minor bigint not null default 0 constraint orders_wallet check (wallet_total_minor >= 0),
  amount_due_minor bigint not null,
  paid_total_minor bigint not null default 0 constraint orders_paid check (paid_total_minor >= 0),
  refunded_total_minor bigint not null default 0,
  shipping_address jsonb,
  billing_address jsonb,
  tracking_number text,
  notes varchar(2000),
  internal_notes text,
  coupon_codes text[] not null default '{}',
  affiliate_link_id uuid,
  workflow_state text,
  placed_at timestamptz not null,
  paid_at timestamptz,
  cancelled_at timestamptz,
  expires_at timestamptz,
  cancel_reason text,
  version bigint not null default 1,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint orders_pkey primary key (tenant_key, id),
  constraint orders_number unique (tenant_key, order_number),
  constraint orders_split unique (tenant_key, checkout_id, split_index),
  constraint orders_who check (user_id is not null or guest_email is not null),
  constraint orders_total check (total_amount_minor >= 0 and total_amount_minor = subtotal_minor - discount_total_minor
    + shipping_total_minor + case when tax_inclusive then 0 else tax_total_minor end - cash_rounding_minor),
  constraint orders_due check (amount_due_minor >= 0
    and amount_due_minor = total_amount_minor - gift_card_total_minor - wallet_total_minor),
  constraint orders_refunded check (refunded_total_minor between 0 and paid_total_minor + gift_card_total_minor + wallet_total_minor),
  constraint orders_user foreign key (user_id) references users (id),
  constraint orders_checkout foreign key (tenant_key, checkout_id) references checkouts (tenant_key, id),
  constraint orders_parent foreign key (tenant_key, parent_order_id) references orders (tenant_key, id));
create index orders_of_user on orders (tenant_key, user_id, created_at desc);
create index orders_by_status on orders (tenant_key, status, created_at desc);
create index orders_newest on orders (tenant_key, created_at desc, id desc);
create index orders_of_checkout on orders (tenant_key, checkout_id);
create index orders_of_parent on orders (tenant_key, parent_order_id);
select kasma_tenant_table('orders');

create table order_items (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  order_id uuid not null,
  product_id uuid not null,
  variant_id uuid,
  quantity int not null constraint order_items_quantity check (quantity > 0),
  unit_price_minor bigint not null constraint order_items_unit check (unit_price_minor >= 0),
  sub_total_minor bigint not null,
  discount_total_minor bigint not null default 0 constraint order_items_discount check (discount_total_minor >= 0),
  net_total_minor bigint not null,
  tax_rate_ppm int not null default 0 constraint order_items_tax_rate check (tax_rate_ppm >= 0),
  tax_total_minor bigint not null default 0 constraint order_items_tax check (tax_total_minor >= 0),
  line_total_minor bigint not null,
  warehouse_id uuid,
  name_snapshot varchar(255) not null,
  sku_snapshot varchar(64),
  attributes_snapshot jsonb not null default '{}',
  properties jsonb,
  purchase_type text not null default 'one_time'
    constraint order_items_purchase check (purchase_type in ('one_time', 'subscription', 'preorder')),
  bundle_id uuid,
  is_gift boolean not null default false,
  shipped_qty int not null default 0,
  refunded_qty int not null default 0,
  position int not null default 0,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint order_items_pkey primary key (tenant_key, id),
  constraint order_items_sub_total check (sub_total_minor = quantity * unit_price_minor),
  constraint order_items_net check (net_total_minor >= 0 and net_total_minor = sub_total_minor - discount_total_minor),
  constraint order_items_line check (line_total_minor in (net_total_minor, net_total_minor + tax_total_minor)),
  constraint order_items_shipped check (shipped_qty between 0 and quantity),
  constraint order_items_refunded check (refunded_qty between 0 and quantity),
  constraint order_items_order foreign key (tenant_key, order_id) references orders (tenant_key, id) on delete cascade,
  constraint order_items_product foreign key (tenant_key, product_id) references products (tenant_key, id),
  constraint order_items_variant foreign key (tenant_key, variant_id) references product_variants (tenant_key, id));
create index order_items_of_order on order_items (tenant_key, order_id, position, id);
create index order_items_of_product on order_items (tenant_key, product_id, created_at desc);
create index order_items_of_variant on order_items (tenant_key, variant_id);
select kasma_tenant_table('order_items');

create table order_adjustments (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  order_id uuid not null,
  order_item_id uuid,
  kind text not null constraint order_adjustments_kind check (kind in
    ('bundle', 'promotion', 'coupon', 'loyalty', 'script', 'manual', 'cash_rounding')),
  source_id text,
  code text,
  label text not null default '',
  level text not null constraint order_adjustments_level check (level in ('line', 'order', 'shipping')),
  amount_minor bigint not null,
  position int not null default 0,
  rule_version int,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint order_adjustments_pkey primary key (tenant_key, id),
  constraint order_adjustments_amount check (amount_minor > 0 or kind = 'cash_rounding'),
  constraint order_adjustments_order foreign key (tenant_key, order_id) references orders (tenant_key, id) on delete cascade,
  constraint order_adjustments_item foreign key (tenant_key, order_item_id) references order_items (tenant_key, id) on delete cascade);
create index order_adjustments_of_order on order_adjustments (tenant_key, order_id, position);
create index order_adjustments_of_item on order_adjustments (tenant_key, order_item_id);
select kasma_append_only('order_adjustments');

create table order_events (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  order_id uuid not null,
  type varchar(50) not null,
  from_status text,
  to_status text,
  actor_id uuid,
  actor_kind text not null constraint order_events_actor check (actor_kind in ('user', 'staff', 'system', 'script')),
  reason text,
  data jsonb not null default '{}',
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint order_events_pkey primary key (tenant_key, id),
  constraint order_events_order foreign key (tenant_key, order_id) references orders (tenant_key, id) on delete cascade);
create index order_events_of_order on order_events (tenant_key, order_id, created_at, id);
select kasma_append_only('order_events');

-- The share of each tender in each order of a checkout, and the only link between the two.
create table order_payments (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  checkout_id uuid not null,
  order_id uuid not null,
  kind text not null constraint order_payments_kind check (kind in ('external', 'gift_card', 'wallet')),
  ref_id uuid not null,
  amount_minor bigint not null constraint order_payments_amount check (amount_minor >= 0),
  refunded_minor bigint not null default 0,
  currency text not null default 'VND' constraint order_payments_currency check (currency ~ '^[A-Z]{3}$'),
  state text not null default 'held' constraint order_payments_state check (state in ('held', 'captured', 'released', 'failed')),
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint order_payments_pkey primary key (tenant_key, id),
  constraint order_payments_share unique (tenant_key, order_id, kind, ref_id),
  constraint order_payments_refunded check (refunded_minor between 0 and amount_minor),
  constraint order_payments_checkout foreign key (tenant_key, checkout_id) references checkouts (tenant_key, id),
  constraint order_payments_order foreign key (tenant_key, order_id) references orders (tenant_key, id) on delete cascade);
create index order_payments_of_checkout on order_payments (tenant_key, checkout_id);
create index order_payments_of_tender on order_payments (tenant_key, ref_id);
select kasma_tenant_table('order_payments');

-- The lists of staff are searched in tables of their own, as the catalogue is.
create table order_search (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  order_id uuid not null,
  terms tsvector not null,
  constraint order_search_pkey primary key (tenant_key, order_id),
  constraint order_search_order foreign key (tenant_key, order_id) references orders (tenant_key, id) on delete cascade);
create index order_search_terms on order_search using gin (tenant_key, terms);
select kasma_tenant_table('order_search');

create table customer_search (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  customer_id uuid not null,
  name text not null,
  groups text[] not null default '{}',
  tags text[] not null default '{}',
  terms tsvector not null,
  constraint customer_search_pkey primary key (tenant_key, customer_id),
  constraint customer_search_customer foreign key (tenant_key, customer_id) references customers (tenant_key, id) on delete cascade);
create index customer_search_terms on customer_search using gin (tenant_key, terms);
create index customer_search_name on customer_search using gin (tenant_key, name gin_trgm_ops);
create index customer_search_groups on customer_search using gin (tenant_key, groups);
create index customer_search_tags on customer_search using gin (tenant_key, tags);
select kasma_tenant_table('customer_search');

create policy search on order_search for select to kasma_search using (true);
create policy search on customer_search for select to kasma_search using (true);
grant select on order_search, customer_search to kasma_search;

-- Order ids whose number, e-mail, names or SKUs have all words of p_query as prefixes; the newest first (ids are in the
-- order of time).
create function search_orders(p_tenant text, p_query text, p_limit int) returns setof uuid language plpgsql stable security definer
  set search_path = pg_catalog, public, pg_temp set plan_cache_mode = force_custom_plan as $$
declare
  words tsquery := kasma_query(p_query);
begin
  if words is null or p_tenant is distinct from current_setting('kasma.tenant_key', true) then
    return;
  end if;
  return query select s.order_id from order_search s
    where s.tenant_key = p_tenant and s.terms @@ words order by s.order_id desc limit p_limit;
end $$;

-- Customer ids by e-mail and name as typed (look-alikes of the name when no word fits), by any of the groups, any of the
-- tags; every filter may be null.
create function search_customers(p_tenant text, p_query text, p_groups text[], p_tags text[], p_limit int) returns setof uuid
  language plpgsql stable security definer
  set search_path = pg_catalog, public, pg_temp set plan_cache_mode = force_custom_plan set pg_trgm.word_similarity_threshold = 0.4 as $$
declare
  words tsquery := kasma_query(p_query);
  folded text := kasma_fold(left(p_query, 200));
begin
  if p_tenant is distinct from current_setting('kasma.tenant_key', true) or (p_query is not null and words is null) then
    return;
  end if;
  return query select s.customer_id from customer_search s
    where s.tenant_key = p_tenant and (words is null or s.terms @@ words) and (p_groups is null or s.groups && p_groups)
      and (p_tags is null or s.tags && p_tags)
    order by s.customer_id desc limit p_limit;
  if found or words is null then
    return;
  end if;
  return query select s.customer_id from customer_search s
    where s.tenant_key = p_tenant and folded <% s.name and (p_groups is null or s.groups && p_groups)
      and (p_tags is null or s.tags && p_tags)
    order by word_similarity(folded, s.name) desc, s.customer_id desc limit p_limit;
end $$;

grant create on schema public to kasma_search;
alter function search_orders(text, text, int) owner to kasma_search;
alter function search_customers(text, text, text[], text[], int) owner to kasma_search;
revoke create on schema public from kasma_search;
set local role kasma_search;
revoke execute on function search_orders(text, text, int), search_customers(text, text, text[], text[], int) from public;
grant execute on function search_orders(text, text, int), search_customers(text, text, text[], text[], int) to kasma_app;
set local role kasma_owner;
