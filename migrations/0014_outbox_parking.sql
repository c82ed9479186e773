-- A row of the outbox that nobody can deliver is parked after its tries: it waits for an operator, out of the relay's way, with the
-- reason beside it. The index of what is unsent leaves it out, so that parked rows cost the relay nothing.
alter table outbox add column attempts int not null default 0;
alter table outbox add column error text;
alter table outbox add column parked_at timestamptz;

drop index outbox_unsent;
create index outbox_unsent on outbox (seq) where sent_at is null and parked_at is null;
create index outbox_parked on outbox (tenant_key, parked_at) where parked_at is not null;
