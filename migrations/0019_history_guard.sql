-- What the server's role may not take back: the history of money, and the young part of the audit.

-- Orders, their lines, tenders and payments, what was redeemed, and the blocks that numbers come from are only ever added to and
-- changed. A stolen password of the server's role removes none of them.
revoke delete on orders, order_items, order_payments, checkouts, payments, payment_events, coupon_redemptions, promotion_usages,
  number_blocks, audit_heads from kasma_app;
-- Accounts, tenants, apps and keys are closed, never removed: their rows are what history points at.
revoke delete on users, tenants, apps, access_keys from kasma_app;

-- Retention removes what is old. A moment that a caller names is no proof of age (outside production clocks are shifted), so the
-- server's own clock has the last word on thirty days.
create function kasma_refuse_young() returns trigger language plpgsql as $$
begin
  if old.created_at > clock_timestamp() - interval '30 days' then
    raise exception 'rows of % are kept for 30 days', tg_table_name using errcode = 'KS005';
  end if;
  return old;
end $$;
create trigger audit_index_young before delete on audit_index for each row execute function kasma_refuse_young();
create trigger audit_auth_log_young before delete on audit_auth_log for each row execute function kasma_refuse_young();

-- As before, and: no partition is dropped whose time ended within the last thirty days of the server's own clock, whatever moment
-- is named. With a clock that is shifted ahead partitions are made for it, and dropped when their time is over in earnest.
create or replace function history_partitions(p_now timestamptz, p_keep interval) returns int
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
    oldest := least(p_now - case when t.step = 'week' then interval '30 days' else greatest(p_keep, interval '30 days') end,
      clock_timestamp() - interval '30 days');
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
