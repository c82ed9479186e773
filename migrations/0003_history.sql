-- History: tables partitioned by range of their uuid v7 id, so that (tenant_key, id) stays the key and old time is dropped
-- as a whole. DEFAULT is the net for ids whose partition nobody made. A v7 id begins with 48 bits of epoch milliseconds.

create table audit_auth_log (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  user_id uuid,
  action varchar(100) not null,
  target text,
  metadata jsonb not null default '{}',
  ip inet,
  user_agent varchar(512),
  session_id uuid,
  request_id text,
  created_at timestamptz not null,
  constraint audit_auth_log_pkey primary key (tenant_key, id)) partition by range (id);
create index audit_auth_log_newest on audit_auth_log (tenant_key, created_at desc);
create index audit_auth_log_user on audit_auth_log (tenant_key, user_id, created_at desc);
create index audit_auth_log_action on audit_auth_log (tenant_key, action, created_at desc);
select kasma_tenant_table('audit_auth_log', 'select, insert, delete');

create table audit_index (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  actor_id uuid,
  action varchar(150) not null,
  entity_type text,
  entity_id text,
  outcome text not null default 'ok' constraint audit_index_outcome check (outcome in ('ok', 'denied', 'error')),
  created_at timestamptz not null,
  constraint audit_index_pkey primary key (tenant_key, id)) partition by range (id);
create index audit_index_newest on audit_index (tenant_key, created_at desc);
create index audit_index_entity on audit_index (tenant_key, entity_type, entity_id, created_at desc);
create index audit_index_actor on audit_index (tenant_key, actor_id, created_at desc);
create index audit_index_action on audit_index (tenant_key, action, created_at desc);
select kasma_tenant_table('audit_index', 'select, insert, delete');

create table audit_heads (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  seq bigint not null,
  hash text not null constraint audit_heads_hash check (hash ~ '^[0-9a-f]{64}$'),
  constraint audit_heads_pkey primary key (tenant_key));
select kasma_tenant_table('audit_heads');

-- The smallest uuid v7 of a moment.
create function history_id(at timestamptz) returns uuid language sql immutable strict parallel safe
  return (lpad(to_hex((extract(epoch from at) * 1000)::bigint), 12, '0') || '00000000000000000000')::uuid;

-- Which tables are history, and how wide a partition is: a month, or a week where rows are kept 30 days. The function
-- below touches these and no others; a migration that adds a table replaces this list.
create function history_tables() returns table (name text, step text, rights text) language sql immutable as $$
  values ('audit_auth_log', 'month', 'select, insert, delete'), ('audit_index', 'month', 'select, insert, delete') $$;

-- A partition with the policy and the grants of its parent. The name tells its first day.
create function history_partition(parent text, suffix text, bounds text, rights text) returns void language plpgsql as $$
begin
  execute format('create table public.%I partition of public.%I %s', parent || '_' || suffix, parent, bounds);
  perform kasma_tenant_table(parent || '_' || suffix, rights);
end $$;

-- Makes the partition of now and three ahead, and drops those whose whole time lies further back than p_keep (weekly
-- tables: 30 days; never less than 30 days). A range of which DEFAULT already holds rows is left to DEFAULT: the attempt
-- fails on it. Called daily and at start; runs as the owner, because the server role owns nothing. Returns what it changed.
create function history_partitions(p_now timestamptz, p_keep interval) returns int
  language plpgsql security definer set search_path = pg_catalog, public, pg_temp set timezone = 'UTC' as $$
declare
  t record;
  first timestamptz;
  span interval;
  oldest timestamptz;
  part record;
  changed int := 0;
begin
  perform pg_advisory_xact_lock(hashtext('kasma.history_partitions'));
  for t in select * from history_tables() order by name loop
    span := ('1 ' || t.step)::interval;
    oldest := p_now - case when t.step = 'week' then interval '30 days' else greatest(p_keep, interval '30 days') end;
    for ahead in 0..3 loop
      first := date_trunc(t.step, p_now) + span * ahead;
      continue when to_regclass(format('public.%I', t.name || to_char(first, '_YYYYMMDD'))) is not null;
      begin
        perform history_partition(t.name, to_char(first, 'YYYYMMDD'),
          format('for values from (%L) to (%L)', history_id(first), history_id(first + span)), t.rights);
        changed := changed + 1;
      exception when check_violation then
        null;
      end;
    end loop;
    for part in
      select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid
      where i.inhparent = format('public.%I', t.name)::regclass and c.relname ~ (t.name || '_[0-9]{8}$')
    loop
      continue when to_date(right(part.relname, 8), 'YYYYMMDD') + span > oldest;
      execute format('drop table public.%I', part.relname);
      changed := changed + 1;
    end loop;
  end loop;
  return changed;
end $$;
revoke execute on function history_partition(text, text, text, text), history_partitions(timestamptz, interval) from public;
grant execute on function history_partitions(timestamptz, interval) to kasma_app;

select history_partition(name, 'default', 'default', rights) from history_tables();
