-- Payments. A payment is one attempt with a provider for a checkout, a wallet reload or a deposit; credentials are sealed.

create table payments (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  checkout_id uuid,
  purpose text not null default 'ORDER' constraint payments_purpose check (purpose in ('ORDER', 'WALLET_RELOAD', 'DEPOSIT')),
  provider text not null constraint payments_provider check (provider in ('STRIPE', 'PAYPAL', 'COD', 'MANUAL', 'SIM')),
  transaction_id varchar(255),
  user_id uuid,
  amount_minor bigint not null constraint payments_amount check (amount_minor >= 0),
  authorized_minor bigint not null default 0,
  captured_minor bigint not null default 0,
  refunded_minor bigint not null default 0,
  currency_code text not null default 'VND' constraint payments_currency check (currency_code ~ '^[A-Z]{3}$'),
  fx_rate_id uuid,
  status text not null default 'CREATED' constraint payments_status check (status in ('CREATED', 'PENDING', 'AUTHORIZED', 'COLLECTED',
    'CAPTURED', 'PARTIALLY_REFUNDED', 'REFUNDED', 'FAILED', 'CANCELLED', 'EXPIRED', 'DISPUTED', 'CHARGED_BACK')),
  return_url text,
  session_url text,
  client_secret text,
  expires_at timestamptz,
  idem_key text,
  version bigint not null default 1,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint payments_pkey primary key (tenant_key, id),
  constraint payments_transaction unique (tenant_key, provider, transaction_id),
  constraint payments_idem unique (tenant_key, idem_key),
  constraint payments_order check (purpose <> 'ORDER' or checkout_id is not null),
  constraint payments_sums check (0 <= refunded_minor and refunded_minor <= captured_minor and captured_minor <= amount_minor
    and authorized_minor between 0 and amount_minor),
  constraint payments_checkout foreign key (tenant_key, checkout_id) references checkouts (tenant_key, id),
  constraint payments_user foreign key (user_id) references users (id));
create unique index payments_one_live on payments (tenant_key, checkout_id) where status in ('CREATED', 'PENDING', 'AUTHORIZED');
create index payments_of_checkout on payments (tenant_key, checkout_id);
create index payments_of_user on payments (tenant_key, user_id, created_at desc);
create index payments_newest on payments (tenant_key, created_at desc, id desc);
create index payments_by_status on payments (tenant_key, status, created_at desc);
select kasma_tenant_table('payments');

-- Each notice of a provider once; its id is the group key of a late payment's reservation.
create table payment_events (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  provider text not null,
  event_id varchar(255) not null,
  payment_id uuid,
  type varchar(100) not null,
  raw_sha256 text not null constraint payment_events_sum check (raw_sha256 ~ '^[0-9a-f]{64}$'),
  payload jsonb not null,
  received_at timestamptz not null,
  applied_at timestamptz,
  result jsonb,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint payment_events_pkey primary key (tenant_key, id),
  constraint payment_events_once unique (tenant_key, provider, event_id),
  constraint payment_events_payment foreign key (tenant_key, payment_id) references payments (tenant_key, id));
create index payment_events_of_payment on payment_events (tenant_key, payment_id, received_at);
create index payment_events_newest on payment_events (tenant_key, received_at desc);
select kasma_tenant_table('payment_events');

create table payment_providers (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  provider text not null constraint payment_providers_known check (provider in ('STRIPE', 'PAYPAL', 'SIM')),
  mode text not null default 'test' constraint payment_providers_mode check (mode in ('test', 'live')),
  credentials bytea not null,
  webhook_secret bytea,
  key_version int not null,
  webhook_token text constraint payment_providers_token check (webhook_token ~ '^[0-9a-f]{64}$'),
  is_active boolean not null default true,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint payment_providers_pkey primary key (tenant_key, id),
  constraint payment_providers_one unique (tenant_key, provider));
select kasma_tenant_table('payment_providers');

create table payment_methods (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  user_id uuid not null,
  provider text not null,
  token bytea not null,
  key_version int not null,
  brand varchar(50),
  last4 text constraint payment_methods_last4 check (last4 ~ '^[0-9A-Za-z]{4}$'),
  expires_at timestamptz,
  is_default boolean not null default false,
  status text not null default 'ACTIVE' constraint payment_methods_status check (status in ('ACTIVE', 'REMOVED')),
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint payment_methods_pkey primary key (tenant_key, id),
  constraint payment_methods_user foreign key (user_id) references users (id));
create unique index payment_methods_one_default on payment_methods (tenant_key, user_id) where is_default and status = 'ACTIVE';
create index payment_methods_of_user on payment_methods (tenant_key, user_id, created_at desc);
select kasma_tenant_table('payment_methods');
