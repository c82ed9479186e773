-- A session that may only set a password stays one through every rotation. A deleted account is kept for thirty days, so that it can be
-- restored, and is then erased once.
alter table auth_sessions add column restricted boolean not null default false;
alter table users add column purged_at timestamptz;
create index users_to_purge on users (deleted_at) where deleted_at is not null and purged_at is null;
create index auth_sessions_device on auth_sessions (user_id, tenant_key);
