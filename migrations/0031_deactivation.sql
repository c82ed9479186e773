-- Who made an account inactive. Whoever did it to themselves comes back with their password and a code; of an account that staff made
-- inactive, or restored, staff alone does. Accounts that were inactive before this was kept count as staff's.

alter table users add column deactivated_by text;
update users set deactivated_by = 'staff' where status = 'inactive';
alter table users add constraint users_deactivated_by check (deactivated_by is null or (deactivated_by in ('self', 'staff')
  and status = 'inactive'));
