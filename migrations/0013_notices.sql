-- Notices: what a person is told, their wishes about it, and the devices that may be pushed to. Tenant and app are both the scope.

create table social_notices (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  recipient_id uuid not null,
  actor_id uuid,
  notice_type text not null constraint social_notices_type check (notice_type in ('LIKE', 'COMMENT', 'TAG', 'GROUP_JOIN_REQUEST',
    'GROUP_POST_PENDING', 'GROUP_POST_APPROVED', 'GROUP_POST_REJECTED', 'GROUP_INVITE', 'SYSTEM', 'FOLLOW', 'FRIEND_REQUEST',
    'FRIEND_ACCEPTED', 'SHARE')),
  title varchar(255) not null,
  body text not null constraint social_notices_body check (length(body) <= 10000),
  reference_type text constraint social_notices_reference check (reference_type in ('POST', 'COMMENT', 'GROUP', 'USER')),
  reference_id uuid,
  is_read boolean not null default false,
  read_at timestamptz,
  metadata jsonb constraint social_notices_metadata check (jsonb_typeof(metadata) = 'object'),
  group_key varchar(120),
  actor_count int not null default 1 constraint social_notices_actors check (actor_count >= 0),
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint social_notices_pkey primary key (tenant_key, id),
  constraint social_notices_read check (is_read = (read_at is not null)),
  constraint social_notices_recipient foreign key (recipient_id) references users (id) on delete cascade);
create index social_notices_newest on social_notices (tenant_key, app_key, recipient_id, created_at desc, id desc);
create index social_notices_unread on social_notices (tenant_key, app_key, recipient_id) where not is_read;
create unique index social_notices_group on social_notices (tenant_key, app_key, recipient_id, group_key)
  where not is_read and group_key is not null;
create index social_notices_age on social_notices (tenant_key, created_at);
select kasma_tenant_table('social_notices');

create table social_notice_preferences (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  user_id uuid not null,
  notice_type text not null constraint social_notice_preferences_type check (notice_type in ('LIKE', 'COMMENT', 'TAG',
    'GROUP_JOIN_REQUEST', 'GROUP_POST_PENDING', 'GROUP_POST_APPROVED', 'GROUP_POST_REJECTED', 'GROUP_INVITE', 'SYSTEM', 'FOLLOW',
    'FRIEND_REQUEST', 'FRIEND_ACCEPTED', 'SHARE')),
  in_app boolean not null default true,
  push boolean not null default true,
  email boolean not null default false,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint social_notice_preferences_pkey primary key (tenant_key, id),
  constraint social_notice_preferences_row unique (tenant_key, app_key, user_id, notice_type),
  constraint social_notice_preferences_user foreign key (user_id) references users (id) on delete cascade);
select kasma_tenant_table('social_notice_preferences');

-- A device belongs to whoever signed in on it last.
create table social_push_devices (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  user_id uuid not null,
  platform text not null constraint social_push_devices_platform check (platform in ('ios', 'android', 'web')),
  token text not null constraint social_push_devices_token check (length(token) between 1 and 1024),
  last_seen_at timestamptz not null,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint social_push_devices_pkey primary key (tenant_key, id),
  constraint social_push_devices_device unique (tenant_key, app_key, token),
  constraint social_push_devices_user foreign key (user_id) references users (id) on delete cascade);
create index social_push_devices_of_user on social_push_devices (tenant_key, app_key, user_id);
select kasma_tenant_table('social_push_devices');
