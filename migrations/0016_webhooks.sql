-- Webhooks: where a tenant wants to hear of events, and every try to tell it. A delivery is kept whole (what was sent, what was
-- answered) for thirty days, successes too. Deliveries are found by their id, which carries the time.

create table webhook_endpoints (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  name varchar(100) not null,
  url text not null constraint webhook_endpoints_url check (url ~ '^https?://' and length(url) <= 2048),
  events text[] not null constraint webhook_endpoints_events check (cardinality(events) between 1 and 100),
  secret_enc bytea not null,
  old_secret_enc bytea,
  old_secret_until timestamptz,
  headers jsonb not null default '{}' constraint webhook_endpoints_headers check (jsonb_typeof(headers) = 'object'),
  state text not null default 'active' constraint webhook_endpoints_state check (state in ('active', 'disabled')),
  disabled_reason text,
  failing_since timestamptz,
  created_by uuid,
  version int not null default 1,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint webhook_endpoints_pkey primary key (tenant_key, id),
  constraint webhook_endpoints_old_secret check ((old_secret_enc is null) = (old_secret_until is null)),
  constraint webhook_endpoints_reason check ((state = 'disabled') = (disabled_reason is not null)));
select kasma_tenant_table('webhook_endpoints');

-- The last number given to an event of one entity at one endpoint: receivers see by it what is newer.
create table webhook_sequences (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  endpoint_id uuid not null,
  entity_key text not null,
  last bigint not null,
  updated_at timestamptz not null,
  constraint webhook_sequences_pkey primary key (tenant_key, endpoint_id, entity_key),
  constraint webhook_sequences_endpoint foreign key (tenant_key, endpoint_id) references webhook_endpoints (tenant_key, id)
    on delete cascade);
select kasma_tenant_table('webhook_sequences');

create table webhook_deliveries (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  endpoint_id uuid not null,
  event_id uuid not null,
  event text not null,
  entity_key text not null,
  sequence bigint not null,
  round int not null default 0,
  try int not null default 1 constraint webhook_deliveries_tries check (try between 1 and 8),
  state text not null default 'pending' constraint webhook_deliveries_state check (state in ('pending', 'sent', 'failed', 'dead')),
  due_at timestamptz not null,
  request jsonb not null constraint webhook_deliveries_request check (jsonb_typeof(request) = 'object'),
  status_code int,
  answer text,
  micros bigint,
  error text,
  created_at timestamptz not null,
  sent_at timestamptz,
  constraint webhook_deliveries_pkey primary key (tenant_key, id),
  constraint webhook_deliveries_once unique (tenant_key, endpoint_id, event_id, round, try),
  constraint webhook_deliveries_endpoint foreign key (tenant_key, endpoint_id) references webhook_endpoints (tenant_key, id)
    on delete cascade);
create index webhook_deliveries_of_endpoint on webhook_deliveries (tenant_key, endpoint_id, id desc);
create index webhook_deliveries_of_event on webhook_deliveries (tenant_key, event, id desc);
create index webhook_deliveries_by_state on webhook_deliveries (tenant_key, state, id desc);
select kasma_tenant_table('webhook_deliveries');
