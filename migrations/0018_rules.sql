-- Rules of tenants: drafts that change, versions that never do, the epoch by which workers see that something changed, what became of
-- runs, and what checkouts were priced from.

create table rules (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  key text not null constraint rules_key_form check (key ~ '^[a-z0-9][a-z0-9_-]{2,63}$'),
  hook text not null constraint rules_hook check (hook ~ '^[a-z][a-z0-9_.]{1,62}$'),
  name varchar(120) not null constraint rules_name check (btrim(name) <> ''),
  state text not null default 'draft' constraint rules_state check (state in ('draft', 'active', 'disabled', 'off', 'archived')),
  active_version int,
  last_version int not null default 0 constraint rules_last_version check (last_version >= 0),
  priority int not null default 0 constraint rules_priority check (priority between -1000 and 1000),
  origin text not null default 'console' constraint rules_origin check (origin in ('console', 'file', 'shipped')),
  state_reason text,
  breaker_until timestamptz,
  opens_today int not null default 0,
  opens_day date,
  archived_at timestamptz,
  created_by uuid,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint rules_pkey primary key (tenant_key, id),
  constraint rules_key_once unique (tenant_key, key),
  constraint rules_active check (state <> 'active' or active_version is not null));
create index rules_of_hook on rules (tenant_key, hook, state);
select kasma_tenant_table('rules');

create table rule_drafts (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  rule_id uuid not null,
  source text not null constraint rule_drafts_source check (octet_length(source) <= 65536),
  settings jsonb not null default '{}',
  tests text not null default '' constraint rule_drafts_tests check (octet_length(tests) <= 262144),
  revision int not null default 1,
  updated_by uuid,
  updated_at timestamptz not null,
  constraint rule_drafts_pkey primary key (tenant_key, rule_id),
  constraint rule_drafts_rule foreign key (tenant_key, rule_id) references rules (tenant_key, id) on delete cascade);
select kasma_tenant_table('rule_drafts');

create table rule_versions (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  rule_id uuid not null,
  version int not null constraint rule_versions_number check (version >= 1),
  source text not null constraint rule_versions_source check (octet_length(source) <= 65536),
  settings jsonb not null default '{}',
  tests text not null default '',
  libs jsonb not null default '[]',
  sha256 text not null constraint rule_versions_sha check (sha256 ~ '^[0-9a-f]{64}$'),
  note varchar(500) not null constraint rule_versions_note check (btrim(note) <> ''),
  source_version int,
  check_report jsonb not null default '{}',
  published_by uuid,
  approved_by uuid,
  published_at timestamptz not null,
  constraint rule_versions_pkey primary key (tenant_key, rule_id, version),
  constraint rule_versions_rule foreign key (tenant_key, rule_id) references rules (tenant_key, id));
select kasma_append_only('rule_versions');

create table rule_epochs (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  epoch bigint not null default 0,
  paused text[] not null default '{}',
  updated_at timestamptz not null,
  constraint rule_epochs_pkey primary key (tenant_key));
select kasma_tenant_table('rule_epochs', 'select, insert, update');

create table rule_publish_requests (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  rule_id uuid not null,
  source text not null,
  settings jsonb not null default '{}',
  tests text not null default '',
  note varchar(500) not null,
  publish_at timestamptz,
  until_at timestamptz,
  accepted text[] not null default '{}',
  state text not null constraint rule_publish_requests_state
    check (state in ('scheduled', 'pending_approval', 'done', 'rejected', 'cancelled', 'failed')),
  version int,
  why text,
  requested_by uuid,
  decided_by uuid,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint rule_publish_requests_pkey primary key (tenant_key, id),
  constraint rule_publish_requests_rule foreign key (tenant_key, rule_id) references rules (tenant_key, id));
create index rule_publish_requests_of_rule on rule_publish_requests (tenant_key, rule_id, id desc);
select kasma_tenant_table('rule_publish_requests', 'select, insert, update');

create table rule_previews (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  rule_id uuid not null,
  spec jsonb not null,
  state text not null default 'queued' constraint rule_previews_state check (state in ('queued', 'running', 'done', 'failed', 'cancelled')),
  done int not null default 0,
  total int not null default 0,
  result jsonb,
  created_by uuid,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint rule_previews_pkey primary key (tenant_key, id),
  constraint rule_previews_rule foreign key (tenant_key, rule_id) references rules (tenant_key, id));
create index rule_previews_newest on rule_previews (tenant_key, created_at);
select kasma_tenant_table('rule_previews');

create table rule_failures (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  rule_id uuid not null,
  fingerprint text not null,
  version int not null,
  outcome text not null,
  line int,
  message varchar(500) not null default '',
  n bigint not null default 1,
  first_at timestamptz not null,
  last_at timestamptz not null,
  last_run_id uuid not null,
  constraint rule_failures_pkey primary key (tenant_key, rule_id, fingerprint));
select kasma_tenant_table('rule_failures');

create table rule_run_hours (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  rule_id uuid not null,
  version int not null,
  hour timestamptz not null,
  outcome text not null,
  n bigint not null default 0,
  discount_minor bigint not null default 0,
  instructions bigint[] not null default '{}',
  micros bigint[] not null default '{}',
  constraint rule_run_hours_pkey primary key (tenant_key, rule_id, hour, version, outcome));
select kasma_tenant_table('rule_run_hours');

create table rule_kv (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  rule_key text not null,
  k text not null constraint rule_kv_k check (octet_length(k) between 1 and 200),
  v jsonb not null,
  version bigint not null default 1,
  bytes int not null constraint rule_kv_bytes check (bytes <= 65536),
  expires_at timestamptz,
  updated_at timestamptz not null,
  constraint rule_kv_pkey primary key (tenant_key, rule_key, k));
select kasma_tenant_table('rule_kv');

create table rule_runs (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  at timestamptz not null,
  rule_id uuid not null,
  version int not null,
  hook text not null,
  outcome text not null,
  fingerprint text,
  line int,
  message varchar(500),
  instructions bigint not null default 0,
  micros bigint not null default 0,
  heap bigint not null default 0,
  checkout_id uuid,
  document text,
  constraint rule_runs_pkey primary key (tenant_key, id)) partition by range (id);
create index rule_runs_of_rule on rule_runs (tenant_key, rule_id, id desc);
create index rule_runs_outcome on rule_runs (tenant_key, rule_id, outcome, id desc);
create index rule_runs_hook on rule_runs (tenant_key, hook, id desc);
create index rule_runs_checkout on rule_runs (tenant_key, checkout_id) where checkout_id is not null;
select kasma_tenant_table('rule_runs', 'select, insert, delete');

create table pricing_snapshots (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  order_id uuid not null,
  order_number text not null,
  currency text not null,
  total_minor bigint not null,
  input jsonb not null,
  result jsonb not null,
  rules jsonb not null default '[]',
  created_at timestamptz not null,
  constraint pricing_snapshots_pkey primary key (tenant_key, id)) partition by range (id);
create index pricing_snapshots_order on pricing_snapshots (tenant_key, order_id);
create index pricing_snapshots_number on pricing_snapshots (tenant_key, order_number);
select kasma_tenant_table('pricing_snapshots', 'select, insert, delete');

create or replace function history_tables() returns table (name text, step text, rights text) language sql immutable as $$
  values ('audit_auth_log', 'month', 'select, insert, delete'), ('audit_index', 'month', 'select, insert, delete'),
    ('rule_runs', 'week', 'select, insert, delete'), ('pricing_snapshots', 'month', 'select, insert, delete') $$;
select history_partition('rule_runs', 'default', 'default', 'select, insert, delete');
select history_partition('pricing_snapshots', 'default', 'default', 'select, insert, delete');
