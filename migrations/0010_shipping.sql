-- Shipping: where to (zones, matched in memory), how (methods and weight bands) and by whom (carriers).

create table carriers (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  name varchar(255) not null,
  code varchar(50) not null constraint carriers_code_form check (code ~ '^[a-z0-9_-]+$'),
  is_active boolean not null default true,
  description text,
  adapter varchar(50) not null default 'sim',
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint carriers_pkey primary key (tenant_key, id),
  constraint carriers_code unique (tenant_key, code));
select kasma_tenant_table('carriers');

create table carrier_configs (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  wire_id text not null constraint carrier_configs_wire_form check (wire_id ~ '^[0-9a-f]{24}$'),
  carrier_code varchar(50) not null,
  api_credentials jsonb not null default '{}',
  settings jsonb not null default '{}',
  is_active boolean not null default true,
  webhook_token text constraint carrier_configs_token check (webhook_token ~ '^[0-9a-f]{64}$'),
  key_version int not null default 1,
  version bigint not null default 1,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint carrier_configs_pkey primary key (tenant_key, id),
  constraint carrier_configs_wire unique (tenant_key, wire_id),
  constraint carrier_configs_carrier unique (tenant_key, carrier_code));
select kasma_tenant_table('carrier_configs');

create table shipping_zones (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  name varchar(255) not null,
  is_active boolean not null default true,
  priority int not null default 0,
  regions text[] not null default '{}',
  countries text[] not null default '{}',
  provinces text[] not null default '{}',
  zip_codes text[] not null default '{}',
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint shipping_zones_pkey primary key (tenant_key, id));
create index shipping_zones_active on shipping_zones (tenant_key, is_active, priority desc, id);
select kasma_tenant_table('shipping_zones');

create table shipping_methods (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  name varchar(255) not null,
  zone_id uuid not null,
  carrier_id uuid,
  service_type varchar(50),
  base_price_minor bigint not null default 0 constraint shipping_methods_base check (base_price_minor >= 0),
  price_per_kg_minor bigint not null default 0 constraint shipping_methods_per_kg check (price_per_kg_minor >= 0),
  estimated_days varchar(50),
  currency_code text not null default 'VND' constraint shipping_methods_currency check (currency_code ~ '^[A-Z]{3}$'),
  is_active boolean not null default true,
  min_weight_g int constraint shipping_methods_min_weight check (min_weight_g >= 0),
  max_weight_g int constraint shipping_methods_max_weight check (max_weight_g >= 0),
  step_grams int constraint shipping_methods_step check (step_grams > 0),
  volumetric_divisor int not null default 5000 constraint shipping_methods_divisor check (volumetric_divisor > 0),
  free_over_minor bigint constraint shipping_methods_free_over check (free_over_minor >= 0),
  cod_allowed boolean not null default true,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint shipping_methods_pkey primary key (tenant_key, id),
  constraint shipping_methods_zone foreign key (tenant_key, zone_id) references shipping_zones (tenant_key, id),
  constraint shipping_methods_carrier foreign key (tenant_key, carrier_id) references carriers (tenant_key, id));
create index shipping_methods_of_zone on shipping_methods (tenant_key, zone_id, is_active);
create index shipping_methods_of_carrier on shipping_methods (tenant_key, carrier_id);
select kasma_tenant_table('shipping_methods');

create table shipping_rates (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  method_id uuid not null,
  from_g int not null constraint shipping_rates_from check (from_g >= 0),
  to_g int,
  price_minor bigint not null constraint shipping_rates_price check (price_minor >= 0),
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint shipping_rates_pkey primary key (tenant_key, id),
  constraint shipping_rates_band unique (tenant_key, method_id, from_g),
  constraint shipping_rates_bounds check (to_g > from_g),
  constraint shipping_rates_method foreign key (tenant_key, method_id) references shipping_methods (tenant_key, id) on delete cascade);
select kasma_tenant_table('shipping_rates');
