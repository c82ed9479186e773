-- Up to when the beginnings and ends of a promotion were told. Those to come have a row of due_work; of promotions that stand already, too.
-- The owner of the tables sees no row of a tenant as long as row security is forced on it.
alter table promotions add column told_at timestamptz;
alter table promotions no force row level security;
alter table due_work no force row level security;
update promotions set told_at = now() where type <> 'script';
insert into due_work (tenant_key, app_key, kind, id, due_at)
  select p.tenant_key, p.app_key, 'marketing.promotion_window', p.id,
    case when p.start_date > p.told_at then p.start_date else p.end_date end
  from promotions p where p.is_active and p.type <> 'script' and (p.start_date > p.told_at or p.end_date > p.told_at);
alter table promotions force row level security;
alter table due_work force row level security;
