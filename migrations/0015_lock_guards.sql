-- The newest fencing number that wrote under each name of long work. A holder that slept past its lock comes back with an older
-- number and is refused here, in the transaction of its own write, whatever Redis believes.
create table lock_guards (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  resource text not null constraint lock_guards_resource check (length(resource) between 1 and 512),
  fence bigint not null,
  updated_at timestamptz not null,
  constraint lock_guards_pkey primary key (tenant_key, resource));
select kasma_tenant_table('lock_guards');
