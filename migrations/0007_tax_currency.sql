-- Tax and currency.

create table tax_rules (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  name varchar(120) not null constraint tax_rules_name check (btrim(name) <> ''),
  country text constraint tax_rules_country check (country ~ '^[A-Z]{2}$'),
  region varchar(120),
  zip_code varchar(40),
  rate_ppm int not null constraint tax_rules_rate check (rate_ppm between 0 and 1000000),
  is_active boolean not null default true,
  tax_class varchar(50),
  stack_group varchar(50) not null default 'default',
  calc_order int not null default 0,
  is_compound boolean not null default false,
  priority int not null default 0,
  valid_from timestamptz,
  valid_to timestamptz,
  jurisdiction varchar(120),
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint tax_rules_pkey primary key (tenant_key, id),
  constraint tax_rules_place check (country is not null or (region is null and zip_code is null)),
  constraint tax_rules_window check (valid_to > valid_from),
  constraint tax_rules_once unique nulls not distinct (tenant_key, country, region, zip_code, tax_class, stack_group, valid_from));
create index tax_rules_active on tax_rules (tenant_key, is_active, country);
select kasma_tenant_table('tax_rules');

create table tax_exemptions (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  customer_id uuid,
  vendor_id uuid,
  country text constraint tax_exemptions_country check (country ~ '^[A-Z]{2}$'),
  certificate_no varchar(100),
  valid_to timestamptz,
  kind text not null constraint tax_exemptions_kind check (kind in ('EXEMPT', 'REVERSE_CHARGE')),
  tax_id_number varchar(40),
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint tax_exemptions_pkey primary key (tenant_key, id),
  constraint tax_exemptions_who check (num_nonnulls(customer_id, vendor_id) = 1),
  constraint tax_exemptions_customer foreign key (tenant_key, customer_id) references customers (tenant_key, id),
  constraint tax_exemptions_vendor foreign key (tenant_key, vendor_id) references vendors (tenant_key, id));
create index tax_exemptions_of_customer on tax_exemptions (tenant_key, customer_id);
create index tax_exemptions_of_vendor on tax_exemptions (tenant_key, vendor_id);
select kasma_tenant_table('tax_exemptions');

create table tax_configs (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  wire_id text not null constraint tax_configs_wire_form check (wire_id ~ '^[0-9a-f]{24}$'),
  calculation_type text not null default 'exclusive'
    constraint tax_configs_calculation check (calculation_type in ('exclusive', 'inclusive')),
  rounding_mode text not null default 'half_up'
    constraint tax_configs_mode check (rounding_mode in ('half_up', 'half_down', 'floor', 'ceil', 'half_even')),
  rounding_level text not null default 'line' constraint tax_configs_level check (rounding_level in ('line', 'unit', 'order')),
  regional_overrides jsonb not null default '{}',
  tax_shipping text not null default 'by_class' constraint tax_configs_shipping check (tax_shipping in ('by_class', 'weighted', 'none')),
  destination_basis text not null default 'shipping'
    constraint tax_configs_basis check (destination_basis in ('shipping', 'billing', 'origin')),
  cross_border text not null default 'keep_gross' constraint tax_configs_cross check (cross_border in ('keep_gross', 'keep_net')),
  version bigint not null default 1,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint tax_configs_pkey primary key (tenant_key, id),
  constraint tax_configs_one unique (tenant_key));
select kasma_tenant_table('tax_configs');

create table currencies (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  code text not null constraint currencies_code_form check (code ~ '^[A-Z]{3}$'),
  symbol varchar(16) not null,
  decimal_places smallint not null default 0 constraint currencies_decimals check (decimal_places between 0 and 4),
  exchange_rate_to_base numeric(24, 12) not null default 1 constraint currencies_rate check (exchange_rate_to_base > 0),
  is_base boolean not null default false,
  is_active boolean not null default true,
  rounding_step_minor bigint constraint currencies_step check (rounding_step_minor > 0),
  version bigint not null default 1,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint currencies_pkey primary key (tenant_key, id),
  constraint currencies_code unique (tenant_key, code),
  constraint currencies_base_rate check (not is_base or exchange_rate_to_base = 1));
create unique index currencies_one_base on currencies (tenant_key) where is_base;
select kasma_tenant_table('currencies');

-- A rate is never edited: a wrong one is superseded by a later one.
create table exchange_rates (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  wire_id text not null constraint exchange_rates_wire_form check (wire_id ~ '^[0-9a-f]{24}$'),
  from_currency text not null constraint exchange_rates_from check (from_currency ~ '^[A-Z]{3}$'),
  to_currency text not null constraint exchange_rates_to check (to_currency ~ '^[A-Z]{3}$'),
  rate numeric(24, 12) not null constraint exchange_rates_rate check (rate > 0),
  provider varchar(100) not null default 'Manual',
  effective_at timestamptz not null,
  valid_until timestamptz,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint exchange_rates_pkey primary key (tenant_key, id),
  constraint exchange_rates_wire unique (tenant_key, wire_id),
  constraint exchange_rates_pair check (from_currency <> to_currency));
create index exchange_rates_newest on exchange_rates (tenant_key, from_currency, to_currency, effective_at desc);
select kasma_append_only('exchange_rates');
