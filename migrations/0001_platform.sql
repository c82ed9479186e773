-- Platform tables: what exists once for all tenants, and the helpers that every later migration uses.
--
-- This is the whole list of tables without row security (operations included); every other table belongs to a tenant.
-- Where one of these names a tenant, that is a value and no wall. None has a foreign key to a tenant table, and none has
-- a column that changes with every request or every order. Times are parameters from the clock, so no column has now().

-- Raises the given SQLSTATE unless ok. A statement of a pipeline that must hit its rows ends in it, so that the whole
-- transaction fails by itself when a condition does not hold.
create function kasma_must(ok boolean, state text) returns boolean language plpgsql immutable as $$
begin
  if ok is not true then
    raise exception 'condition % does not hold', state using errcode = state;
  end if;
  return true;
end $$;

-- Text as it is searched: without accents, the Vietnamese d with stroke as d.
create function f_unaccent(t text) returns text language sql immutable strict parallel safe
  return public.unaccent('public.unaccent'::regdictionary, translate(t, 'đĐ', 'dD'));

-- The folded form of names and attributes in search tables.
create function kasma_fold(t text) returns text language sql immutable strict parallel safe
  return lower(public.f_unaccent(t));

-- Search terms of three weights; null parts count as empty.
create function kasma_terms(a text, b text, c text) returns tsvector language sql immutable parallel safe
  return setweight(to_tsvector('simple'::regconfig, public.kasma_fold(coalesce(a, ''))), 'A')
    || setweight(to_tsvector('simple'::regconfig, public.kasma_fold(coalesce(b, ''))), 'B')
    || setweight(to_tsvector('simple'::regconfig, public.kasma_fold(coalesce(c, ''))), 'C');

-- What a person typed, as a query in which every word is a prefix and all must be found. Null when nothing is left of it.
-- Operators in the text have no meaning: the words are taken by the parser that also made the terms.
create function kasma_query(t text) returns tsquery language sql immutable strict parallel safe
  return (select string_agg('''' || replace(replace(lexeme, '\', '\\'), '''', '''''') || ''':*', ' & ')::tsquery
          from unnest(to_tsvector('simple'::regconfig, left(public.kasma_fold(t), 500))));

-- Makes a table a tenant table: forced row security, the tenant's policy, the grants of the server role. Every migration
-- calls it for every table that it makes; the catalogue test refuses a table that was forgotten.
create function kasma_tenant_table(target text, rights text default 'select, insert, update, delete') returns void
  language plpgsql as $$
begin
  execute format('alter table %I enable row level security', target);
  execute format('alter table %I force row level security', target);
  execute format('create policy tenant on %I to kasma_app using (tenant_key = current_setting(''kasma.tenant_key'', true)) '
    'with check (tenant_key = current_setting(''kasma.tenant_key'', true))', target);
  execute format('grant %s on %I to kasma_app', rights, target);
end $$;

create function kasma_refuse_change() returns trigger language plpgsql as $$
begin
  raise exception 'rows of % are never changed', tg_table_name using errcode = 'KS005';
end $$;

-- An append-only tenant table: the grant is the first wall, the trigger the second.
create function kasma_append_only(target text) returns void language plpgsql as $$
begin
  perform kasma_tenant_table(target, 'select, insert');
  execute format('create trigger %I before update or delete on %I for each row execute function kasma_refuse_change()',
    target || '_append_only', target);
end $$;

revoke execute on function kasma_tenant_table(text, text), kasma_append_only(text) from public;

create table schema_migrations (
  version int not null constraint schema_migrations_pkey primary key,
  name text not null,
  sha256 text not null constraint schema_migrations_sha256 check (sha256 ~ '^[0-9a-f]{64}$'),
  "binary" text not null,
  applied_at timestamptz not null,
  micros bigint not null);

create table users (
  id uuid not null constraint users_pkey primary key,
  email varchar(255) not null constraint users_email_form check (email = lower(btrim(email)) and email <> ''),
  display_name varchar(255),
  user_type text not null default 'GENERAL_0' constraint users_user_type check (user_type ~ '^(KASMA|TENANT|GENERAL)_[0-5]$'),
  status text not null default 'pending'
    constraint users_status check (status in ('active', 'inactive', 'pending', 'suspended', 'locked', 'deleted')),
  is_locked boolean not null default false,
  email_verified_at timestamptz,
  last_login_at timestamptz,
  suspended_until timestamptz,
  deleted_at timestamptz,
  token_version int not null default 0,
  must_change_password boolean not null default false,
  created_at timestamptz not null,
  updated_at timestamptz not null);
create unique index users_email on users (lower(email)) where deleted_at is null;
create index users_deleted on users (deleted_at) where deleted_at is not null;
create index users_newest on users (created_at desc, id desc);

create table user_credentials (
  id uuid not null constraint user_credentials_pkey primary key,
  user_id uuid not null,
  password text,
  password_salt varchar(255),
  provider text not null default 'local'
    constraint user_credentials_kind check (provider in ('local', 'google', 'github', 'totp')),
  provider_id varchar(255),
  is_active boolean not null default true,
  password_changed_at timestamptz,
  previous_hashes jsonb not null default '[]',
  secret_enc bytea,
  confirmed_at timestamptz,
  recovery_hashes text[] not null default '{}',
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint user_credentials_user_provider unique (user_id, provider),
  constraint user_credentials_provider_id unique (provider, provider_id),
  constraint user_credentials_user foreign key (user_id) references users (id) on delete cascade);

create table auth_sessions (
  id uuid not null constraint auth_sessions_pkey primary key,
  user_id uuid not null,
  access_token text not null constraint auth_sessions_access unique
    constraint auth_sessions_access_form check (access_token ~ '^[0-9a-f]{64}$'),
  refresh_token text not null constraint auth_sessions_refresh unique
    constraint auth_sessions_refresh_form check (refresh_token ~ '^[0-9a-f]{64}$'),
  ip_address inet,
  family_id uuid not null,
  parent_id uuid,
  rotated_at timestamptz,
  revoked_at timestamptz,
  revoke_reason text,
  user_agent varchar(512),
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  amr text[] not null default '{}',
  last_seen_at timestamptz,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  expires_at timestamptz not null,
  constraint auth_sessions_user foreign key (user_id) references users (id) on delete cascade);
create index auth_sessions_of_user on auth_sessions (user_id, revoked_at);
create index auth_sessions_family on auth_sessions (family_id);
create index auth_sessions_expiry on auth_sessions (expires_at);

create table otps (
  id uuid not null constraint otps_pkey primary key,
  user_id uuid,
  code_hmac text not null constraint otps_hmac_form check (code_hmac ~ '^[0-9a-f]{64}$'),
  code_enc bytea,
  type text not null constraint otps_type check (type in ('REGISTER', 'LOGIN', 'FORGOT_PASSWORD', 'TWO_FA')),
  channel text not null default 'EMAIL' constraint otps_channel check (channel in ('EMAIL', 'SMS')),
  identifier varchar(255) not null,
  expires_at timestamptz not null,
  is_verified boolean not null default false,
  is_active boolean not null default true,
  attempts int not null default 0,
  max_attempts int not null default 5,
  sent_count int not null default 0,
  created_at timestamptz not null,
  updated_at timestamptz not null);
create unique index otps_one_active on otps (identifier, type) where is_active;
create index otps_lookup on otps (identifier, type, is_active);
create index otps_of_user on otps (user_id);
create index otps_expiry on otps (expires_at);

create table tenants (
  id uuid not null constraint tenants_pkey primary key,
  tenant_key text not null constraint tenants_tenant unique
    constraint tenants_key_form check (tenant_key ~ '^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$'),
  name varchar(255) not null,
  is_active boolean not null default true,
  status text not null default 'active' constraint tenants_status check (status in ('active', 'suspended', 'closed')),
  country text not null default 'VN' constraint tenants_country check (country ~ '^[A-Z]{2}$'),
  default_currency text not null default 'VND' constraint tenants_currency check (default_currency ~ '^[A-Z]{3}$'),
  default_locale text not null default 'vi',
  timezone text not null default 'Asia/Ho_Chi_Minh',
  settings jsonb not null default '{}',
  settings_epoch bigint not null default 0,
  plan text,
  is_test boolean not null default false,
  created_at timestamptz not null,
  updated_at timestamptz not null);

-- The key of a tenant stands in every row that it owns.
create function tenants_key_is_fixed() returns trigger language plpgsql as $$
begin
  if new.tenant_key <> old.tenant_key then
    raise exception 'the key of a tenant never changes' using errcode = 'KS005';
  end if;
  return new;
end $$;
create trigger tenants_key_is_fixed before update of tenant_key on tenants for each row execute function tenants_key_is_fixed();

create table apps (
  id uuid not null constraint apps_pkey primary key,
  app_key text not null constraint apps_app unique
    constraint apps_key_form check (app_key ~ '^[A-Za-z0-9][A-Za-z0-9_:-]{0,62}$'),
  tenant_key text not null,
  name varchar(255) not null,
  is_active boolean not null default true,
  kind text not null default 'storefront' constraint apps_kind check (kind in ('storefront', 'backoffice', 'mobile', 'service')),
  allowed_origins text[] not null default '{}',
  hostnames text[] not null default '{}',
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint apps_tenant foreign key (tenant_key) references tenants (tenant_key));
create index apps_of_tenant on apps (tenant_key);
create index apps_hostnames on apps using gin (hostnames);

-- A host name belongs to one app. Apps are few and seldom written: the trigger takes a lock of its own, so that two
-- writers of one name cannot pass each other.
create function apps_hostnames_unique() returns trigger language plpgsql as $$
begin
  perform pg_advisory_xact_lock(hashtext('kasma.apps.hostnames'));
  if exists (select from apps a where a.app_key <> new.app_key and a.hostnames && new.hostnames) then
    raise exception 'host name of another app violates unique constraint "apps_hostname"' using errcode = '23505', constraint = 'apps_hostname';
  end if;
  return new;
end $$;
create trigger apps_hostnames_unique before insert or update of hostnames on apps
  for each row when (new.hostnames <> '{}') execute function apps_hostnames_unique();

create table user_tenants (
  id uuid not null constraint user_tenants_pkey primary key,
  user_id uuid not null,
  tenant_key text not null,
  status text not null default 'active' constraint user_tenants_status check (status in ('invited', 'active', 'removed')),
  joined_at timestamptz,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint user_tenants_member unique (user_id, tenant_key),
  constraint user_tenants_user foreign key (user_id) references users (id) on delete cascade);
create index user_tenants_of_tenant on user_tenants (tenant_key, created_at desc, user_id);

create table access_keys (
  id uuid not null constraint access_keys_pkey primary key,
  owned_key varchar(64) not null constraint access_keys_owned unique,
  is_active boolean not null default true,
  tenant_key text not null,
  app_key text not null default 'MASTER',
  key_type text not null constraint access_keys_type check (key_type in ('publishable', 'secret')),
  name varchar(255) not null,
  secret_hash text constraint access_keys_hash_form check (secret_hash ~ '^[0-9a-f]{64}$'),
  last4 text,
  scopes text[] not null default '{}',
  allowed_ips cidr[] not null default '{}',
  expires_at timestamptz,
  last_used_at timestamptz,
  revoked_at timestamptz,
  created_by uuid,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint access_keys_secret check ((key_type = 'secret') = (secret_hash is not null)));
create index access_keys_of_tenant on access_keys (tenant_key, created_at desc);
create index access_keys_expiry on access_keys (expires_at) where expires_at is not null and revoked_at is null;

create table user_contexts (
  id uuid not null constraint user_contexts_pkey primary key,
  user_id uuid not null constraint user_contexts_one unique,
  tenant_key text not null,
  app_key text not null,
  owned_key varchar(64),
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint user_contexts_user foreign key (user_id) references users (id) on delete cascade);

create table modules (
  id uuid not null constraint modules_pkey primary key,
  key varchar(100) not null constraint modules_name unique constraint modules_key_form check (key = lower(key) and key <> ''),
  name varchar(255) not null,
  description text,
  dependencies text[] not null default '{}',
  created_at timestamptz not null,
  updated_at timestamptz not null);

create table permissions (
  id uuid not null constraint permissions_pkey primary key,
  permission_key varchar(150) not null constraint permissions_permission unique,
  description varchar(255) not null default '',
  created_at timestamptz not null,
  updated_at timestamptz not null);

create table platform_roles (
  id uuid not null constraint platform_roles_pkey primary key,
  code varchar(100) not null,
  role_key varchar(100) not null constraint platform_roles_role unique,
  display_name varchar(255) not null,
  is_system boolean not null default false,
  created_at timestamptz not null,
  updated_at timestamptz not null);

create table platform_role_permissions (
  id uuid not null constraint platform_role_permissions_pkey primary key,
  role_id uuid not null,
  permission_key varchar(150) not null,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint platform_role_permissions_grant unique (role_id, permission_key),
  constraint platform_role_permissions_role foreign key (role_id) references platform_roles (id) on delete cascade);

create table platform_role_holders (
  id uuid not null constraint platform_role_holders_pkey primary key,
  user_id uuid not null,
  role_id uuid not null,
  granted_by uuid,
  expires_at timestamptz,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint platform_role_holders_holder unique (user_id, role_id),
  constraint platform_role_holders_user foreign key (user_id) references users (id) on delete cascade,
  constraint platform_role_holders_role foreign key (role_id) references platform_roles (id) on delete cascade);

-- What must be found before a tenant is known. Secret tokens stand here as their SHA-256.
create table public_refs (
  kind text not null constraint public_refs_kind check (kind ~ '^[a-z][a-z0-9_]*$'),
  ref text not null,
  tenant_key text not null,
  id uuid not null,
  created_at timestamptz,
  updated_at timestamptz,
  constraint public_refs_pkey primary key (kind, ref));
create index public_refs_of_tenant on public_refs (tenant_key, kind, id);

create table clock_shifts (
  id int not null default 1 constraint clock_shifts_pkey primary key constraint clock_shifts_one_row check (id = 1),
  version bigint not null default 0,
  shift_ms bigint not null default 0,
  set_by uuid,
  set_at timestamptz);

create table worker_heartbeats (
  worker_id uuid not null constraint worker_heartbeats_pkey primary key,
  host text not null,
  pid int not null,
  role text not null constraint worker_heartbeats_role check (role in ('serve', 'work', 'all')),
  "binary" text not null,
  started_at timestamptz not null,
  seen_at timestamptz not null,
  state text not null constraint worker_heartbeats_state check (state in ('starting', 'ready', 'draining')),
  queues text[] not null default '{}',
  clock_version bigint not null default 0,
  epochs jsonb not null default '{}');
create index worker_heartbeats_seen on worker_heartbeats (seen_at);

-- Long work of the command line, so that any machine can go on with it.
create table operations (
  id uuid not null constraint operations_pkey primary key,
  tenant_key text,
  kind text not null,
  state text not null default 'running' constraint operations_state check (state in ('running', 'paused', 'done', 'failed', 'cancelled')),
  params jsonb not null default '{}',
  cursor text,
  done bigint not null default 0,
  total bigint,
  errors bigint not null default 0,
  error text,
  created_by uuid,
  created_at timestamptz not null,
  updated_at timestamptz not null);
create index operations_newest on operations (created_at desc, id);

grant select, insert, update, delete on users, user_credentials, auth_sessions, otps, tenants, apps, user_tenants, access_keys,
  user_contexts, modules, permissions, platform_roles, platform_role_permissions, platform_role_holders, public_refs,
  clock_shifts, worker_heartbeats, operations to kasma_app;
grant select on schema_migrations to kasma_app, kasma_system;
grant select on tenants to kasma_system;

insert into clock_shifts (id) values (1);
insert into tenants (id, tenant_key, name, created_at, updated_at)
  values ('00000000-0000-7000-8000-000000000001', 'MASTER', 'Master', '2000-01-01', '2000-01-01');
insert into apps (id, app_key, tenant_key, name, kind, created_at, updated_at)
  values ('00000000-0000-7000-8000-000000000002', 'MASTER', 'MASTER', 'Master', 'backoffice', '2000-01-01', '2000-01-01');
