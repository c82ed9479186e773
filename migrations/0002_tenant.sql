-- What every tenant has whatever it sells: its people's roles, modules, records of requests, outbox, work that falls due,
-- numbers, mail and secrets.

create table user_apps (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  user_id uuid not null,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint user_apps_pkey primary key (tenant_key, id),
  constraint user_apps_member unique (tenant_key, user_id, app_key),
  constraint user_apps_user foreign key (user_id) references users (id) on delete cascade);
select kasma_tenant_table('user_apps');

create table user_access_keys (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  user_id uuid not null,
  owned_key varchar(64) not null,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint user_access_keys_pkey primary key (tenant_key, id),
  constraint user_access_keys_holder unique (tenant_key, user_id, owned_key),
  constraint user_access_keys_user foreign key (user_id) references users (id) on delete cascade,
  constraint user_access_keys_access foreign key (owned_key) references access_keys (owned_key) on delete cascade);
select kasma_tenant_table('user_access_keys');

create table roles (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  code varchar(100) not null,
  role_key varchar(100) not null,
  display_name varchar(255) not null,
  is_system boolean not null default false,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint roles_pkey primary key (tenant_key, id),
  constraint roles_role unique (tenant_key, role_key));
select kasma_tenant_table('roles');

create table custom_permissions (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  permission_key varchar(150) not null
    constraint custom_permissions_form check (permission_key ~ '^custom(\.[a-z0-9_]+)+$'),
  description varchar(255) not null default '',
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint custom_permissions_pkey primary key (tenant_key, id),
  constraint custom_permissions_permission unique (tenant_key, permission_key));
select kasma_tenant_table('custom_permissions');

create table role_permissions (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  role_id uuid not null,
  permission_id uuid,
  permission_key varchar(150) not null,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint role_permissions_pkey primary key (tenant_key, id),
  constraint role_permissions_grant unique (tenant_key, role_id, permission_key),
  constraint role_permissions_role foreign key (tenant_key, role_id) references roles (tenant_key, id) on delete cascade);
select kasma_tenant_table('role_permissions');

create table user_roles (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  user_id uuid not null,
  role_id uuid not null,
  granted_by uuid,
  expires_at timestamptz,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint user_roles_pkey primary key (tenant_key, id),
  constraint user_roles_holder unique (tenant_key, user_id, role_id),
  constraint user_roles_role foreign key (tenant_key, role_id) references roles (tenant_key, id) on delete cascade,
  constraint user_roles_user foreign key (user_id) references users (id) on delete cascade);
create index user_roles_of_role on user_roles (tenant_key, role_id);
select kasma_tenant_table('user_roles');

create table registries (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  app_family_key text not null,
  module_key varchar(100) not null,
  version text not null default '1.0.0',
  is_active boolean not null default true,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint registries_pkey primary key (tenant_key, id),
  constraint registries_module unique (tenant_key, app_family_key, module_key),
  constraint registries_known foreign key (module_key) references modules (key));
select kasma_tenant_table('registries');

create table idempotency_records (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  scope_hash text not null constraint idempotency_records_scope check (scope_hash ~ '^[0-9a-f]{64}$'),
  fingerprint text not null constraint idempotency_records_print check (fingerprint ~ '^[0-9a-f]{64}$'),
  claim uuid not null,
  lease_until timestamptz not null,
  status_code int constraint idempotency_records_status check (status_code between 200 and 599),
  headers jsonb,
  body bytea,
  created_at timestamptz not null,
  expires_at timestamptz not null,
  constraint idempotency_records_pkey primary key (tenant_key, scope_hash));
create index idempotency_records_expiry on idempotency_records (tenant_key, expires_at);
select kasma_tenant_table('idempotency_records');

-- seq is taken by the INSERT, which stands after the statement that it reports: rows of one entity are in the order of
-- its commits, because the reported statement holds the entity's row lock.
create sequence outbox_seq as bigint;
create table outbox (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  seq bigint not null default nextval('outbox_seq'),
  topic text not null,
  key text not null,
  payload jsonb not null,
  created_at timestamptz not null,
  sent_at timestamptz,
  constraint outbox_pkey primary key (tenant_key, id));
create index outbox_unsent on outbox (seq) where sent_at is null;
create index outbox_sent on outbox (tenant_key, sent_at) where sent_at is not null;
select kasma_tenant_table('outbox');
create policy system on outbox to kasma_system using (true) with check (true);
grant select, update, delete on outbox to kasma_system;
grant usage on sequence outbox_seq to kasma_app;

create table due_work (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  kind text not null constraint due_work_kind check (kind ~ '^[a-z][a-z0-9_]*(\.[a-z0-9_]+)+$'),
  id uuid not null,
  due_at timestamptz not null,
  constraint due_work_pkey primary key (tenant_key, kind, id));
create index due_work_due on due_work (due_at);
select kasma_tenant_table('due_work');
create policy system on due_work to kasma_system using (true) with check (true);
grant select, update, delete on due_work to kasma_system;

create table number_blocks (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  kind text not null,
  period text not null default '',
  next bigint not null,
  constraint number_blocks_pkey primary key (tenant_key, kind, period));
select kasma_tenant_table('number_blocks');

create table mail_messages (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  key varchar(200) not null,
  template text not null,
  locale text not null,
  recipient text not null,
  user_id uuid,
  state text not null default 'queued'
    constraint mail_messages_state check (state in ('queued', 'sending', 'sent', 'failed', 'suppressed')),
  attempts int not null default 0,
  provider_id text,
  error text,
  created_at timestamptz not null,
  sent_at timestamptz,
  constraint mail_messages_pkey primary key (tenant_key, id),
  constraint mail_messages_once unique (tenant_key, key));
create index mail_messages_of_user on mail_messages (tenant_key, user_id, created_at desc);
create index mail_messages_newest on mail_messages (tenant_key, created_at desc, id);
select kasma_tenant_table('mail_messages');

create table mail_templates (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  template text not null,
  locale text not null,
  subject text not null,
  html text not null,
  text text not null default '',
  is_active boolean not null default true,
  updated_by uuid,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint mail_templates_pkey primary key (tenant_key, id),
  constraint mail_templates_form unique (tenant_key, template, locale));
select kasma_tenant_table('mail_templates');

create table mail_suppressions (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  email_hash text not null constraint mail_suppressions_hash check (email_hash ~ '^[0-9a-f]{64}$'),
  key_version int not null,
  reason text not null constraint mail_suppressions_reason check (reason in ('bounce', 'complaint', 'unsubscribe', 'manual')),
  source text,
  created_at timestamptz not null,
  constraint mail_suppressions_pkey primary key (tenant_key, id),
  constraint mail_suppressions_once unique (tenant_key, email_hash, reason));
select kasma_tenant_table('mail_suppressions');

create table tenant_secrets (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  name text not null constraint tenant_secrets_form check (name ~ '^[a-z][a-z0-9_]{0,62}$'),
  value_enc bytea not null,
  key_version int not null,
  updated_by uuid,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint tenant_secrets_pkey primary key (tenant_key, id),
  constraint tenant_secrets_name unique (tenant_key, name));
select kasma_tenant_table('tenant_secrets');

-- A fence is taken after the lock of long work: whoever was overtaken writes nothing.
create sequence lock_fences as bigint;
grant usage on sequence lock_fences to kasma_app;
