-- A name with which an account may sign in beside its address: lower case, never with an @, so that it is no address.

alter table users add column username varchar(64);
alter table users add constraint users_username_form check (username ~ '^[a-z0-9][a-z0-9._-]{2,63}$');
create unique index users_username on users (username) where deleted_at is null and username is not null;
