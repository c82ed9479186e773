-- The list of a tenant's users under a filter: by status, type, role, text, in the order of addresses. What it filters by lies beside the
-- membership, so that each filter is an index that the tenant leads, and not a walk over all customers. Kept by triggers: a user is changed
-- in many places, and no list may show what was.

alter table user_tenants add column email text not null default '';
alter table user_tenants add column user_status text not null default 'pending';
alter table user_tenants add column user_type text not null default 'GENERAL_0';
-- Address and name, folded; a space stands before each word, so that the beginnings of words are found by an index too.
alter table user_tenants add column search text not null default '';

update user_tenants m set email = u.email, user_status = u.status, user_type = u.user_type,
  search = ' ' || kasma_fold(u.email || ' ' || coalesce(u.display_name, ''))
  from users u where u.id = m.user_id;

-- Whom the staff of a tenant sees: members, and who was invited and has no account of their own yet.
alter table user_tenants add column listed boolean not null generated always as
  ((status = 'active' or (status = 'invited' and user_status = 'pending')) and user_status <> 'deleted') stored;

create index user_tenants_by_status on user_tenants (tenant_key, user_status, user_id desc) where listed;
create index user_tenants_by_type on user_tenants (tenant_key, user_type, user_id desc) where listed;
create index user_tenants_by_email on user_tenants (tenant_key, email, user_id) where listed;
create index user_tenants_search on user_tenants using gin (tenant_key, search gin_trgm_ops) where listed;
create index user_tenants_listed on user_tenants (tenant_key, user_id desc) where listed;
create index user_tenants_present on user_tenants (tenant_key, created_at desc, user_id) where status <> 'removed' and user_status <> 'deleted';
drop index user_tenants_newest;
drop index user_tenants_of_tenant;

create index user_roles_holders on user_roles (tenant_key, role_id, user_id desc);
drop index user_roles_of_role;

-- FOR SHARE: a membership that is made while its user is changed waits for that change, and the change for it.
create function user_tenants_of_user() returns trigger language plpgsql set search_path = pg_catalog, public, pg_temp as $$
begin
  select u.email, u.status, u.user_type, ' ' || kasma_fold(u.email || ' ' || coalesce(u.display_name, ''))
    into new.email, new.user_status, new.user_type, new.search from users u where u.id = new.user_id for share;
  if not found then
    raise exception 'a membership of nobody violates foreign key constraint "user_tenants_user"'
      using errcode = '23503', constraint = 'user_tenants_user';
  end if;
  return new;
end $$;
create trigger user_tenants_of_user before insert on user_tenants for each row execute function user_tenants_of_user();

create function users_in_tenants() returns trigger language plpgsql set search_path = pg_catalog, public, pg_temp as $$
begin
  update user_tenants set email = new.email, user_status = new.status, user_type = new.user_type,
    search = ' ' || kasma_fold(new.email || ' ' || coalesce(new.display_name, '')) where user_id = new.id;
  return null;
end $$;
create trigger users_in_tenants after update of email, status, user_type, display_name on users for each row
  when ((old.email, old.status, old.user_type, old.display_name) is distinct from (new.email, new.status, new.user_type, new.display_name))
  execute function users_in_tenants();
