-- Stock. warehouse_inventory is the only truth; what is promised stands in stock_reservations, what moved in
-- stock_movements. reserved_quantity of a row is the sum of the open remainders of its reservations.

create table warehouses (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  name varchar(255) not null constraint warehouses_name check (btrim(name) <> ''),
  code varchar(50),
  address text,
  city varchar(120),
  region varchar(120),
  zip_code varchar(40),
  country text constraint warehouses_country check (country ~ '^[A-Z]{2}$'),
  capacity int constraint warehouses_capacity check (capacity >= 0),
  manager_name varchar(255),
  is_active boolean not null default true,
  priority int not null default 100,
  kind text not null default 'OWN' constraint warehouses_kind check (kind in ('OWN', 'VENDOR', 'DROPSHIP', 'QUARANTINE')),
  vendor_id uuid,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint warehouses_pkey primary key (tenant_key, id),
  constraint warehouses_vendor foreign key (tenant_key, vendor_id) references vendors (tenant_key, id));
create unique index warehouses_code on warehouses (tenant_key, code) where code is not null;
create index warehouses_active on warehouses (tenant_key, is_active, priority, id);
select kasma_tenant_table('warehouses');

create table warehouse_inventory (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  warehouse_id uuid not null,
  product_id uuid not null,
  variant_id uuid,
  quantity int not null default 0 constraint warehouse_inventory_quantity check (quantity >= 0),
  reserved_quantity int not null default 0,
  buffer_quantity int not null default 0 constraint warehouse_inventory_buffer check (buffer_quantity >= 0),
  buffer_pct int not null default 0 constraint warehouse_inventory_buffer_pct check (buffer_pct between 0 and 100),
  backorder_limit int not null default 0 constraint warehouse_inventory_backorder check (backorder_limit >= 0),
  available_quantity int not null generated always as
    (quantity + backorder_limit - reserved_quantity - buffer_quantity - (quantity * buffer_pct + 99) / 100) stored,
  location varchar(100),
  low_stock_at int,
  version bigint not null default 1,
  fence bigint not null default 0,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint warehouse_inventory_pkey primary key (tenant_key, id),
  constraint warehouse_inventory_place unique nulls not distinct (tenant_key, warehouse_id, product_id, variant_id),
  constraint warehouse_inventory_reserved check (reserved_quantity between 0 and quantity + backorder_limit),
  constraint warehouse_inventory_limit check (quantity <= 20000000 and backorder_limit <= 20000000),
  constraint warehouse_inventory_warehouse foreign key (tenant_key, warehouse_id) references warehouses (tenant_key, id),
  constraint warehouse_inventory_product foreign key (tenant_key, product_id) references products (tenant_key, id),
  constraint warehouse_inventory_variant foreign key (tenant_key, variant_id) references product_variants (tenant_key, id))
  with (fillfactor = 80);
create index warehouse_inventory_of_product on warehouse_inventory (tenant_key, product_id, variant_id);
create index warehouse_inventory_of_variant on warehouse_inventory (tenant_key, variant_id);
select kasma_tenant_table('warehouse_inventory');

create table stock_movements (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  inventory_id uuid not null,
  delta int not null,
  kind text not null constraint stock_movements_kind check (kind in
    ('ADJUST', 'RECEIVE', 'SHIP', 'RETURN', 'TRANSFER_OUT', 'TRANSFER_IN', 'COUNT', 'WRITE_OFF')),
  reason text,
  reference text,
  ref_type varchar(50) not null,
  ref_id uuid not null,
  actor_id uuid,
  quantity_after int not null,
  cost_minor bigint,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint stock_movements_pkey primary key (tenant_key, id),
  constraint stock_movements_once unique (tenant_key, ref_type, ref_id, inventory_id, kind),
  constraint stock_movements_inventory foreign key (tenant_key, inventory_id) references warehouse_inventory (tenant_key, id));
create index stock_movements_of_inventory on stock_movements (tenant_key, inventory_id, created_at desc, id desc);
create index stock_movements_newest on stock_movements (tenant_key, created_at desc, id desc);
select kasma_append_only('stock_movements');

create table stock_costs (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  product_id uuid not null,
  variant_id uuid,
  on_hand_qty int not null default 0 constraint stock_costs_qty check (on_hand_qty >= 0),
  total_cost_minor bigint not null default 0 constraint stock_costs_total check (total_cost_minor >= 0),
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint stock_costs_pkey primary key (tenant_key, id),
  constraint stock_costs_item unique nulls not distinct (tenant_key, product_id, variant_id),
  constraint stock_costs_product foreign key (tenant_key, product_id) references products (tenant_key, id),
  constraint stock_costs_variant foreign key (tenant_key, variant_id) references product_variants (tenant_key, id));
select kasma_tenant_table('stock_costs');

create table stock_reservations (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  group_key uuid not null,
  order_id uuid,
  inventory_id uuid not null,
  quantity int not null constraint stock_reservations_quantity check (quantity > 0),
  consumed_qty int not null default 0,
  released_qty int not null default 0,
  status text not null generated always as (case
    when quantity - consumed_qty - released_qty > 0 then case when expires_at is null then 'CONFIRMED' else 'HELD' end
    when consumed_qty > 0 then 'CONSUMED' when expired then 'EXPIRED' else 'RELEASED' end) stored,
  expires_at timestamptz,
  expired boolean not null default false,
  extended_count smallint not null default 0 constraint stock_reservations_extended check (extended_count between 0 and 2),
  closed_at timestamptz,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint stock_reservations_pkey primary key (tenant_key, id),
  constraint stock_reservations_group unique (tenant_key, group_key, inventory_id),
  constraint stock_reservations_open check (consumed_qty >= 0 and released_qty >= 0 and consumed_qty + released_qty <= quantity),
  constraint stock_reservations_inventory foreign key (tenant_key, inventory_id) references warehouse_inventory (tenant_key, id));
create index stock_reservations_of_order on stock_reservations (tenant_key, order_id);
create index stock_reservations_held on stock_reservations (tenant_key, inventory_id) where status = 'HELD';
create index stock_reservations_of_inventory on stock_reservations (tenant_key, inventory_id);
select kasma_tenant_table('stock_reservations');

create table inventory_buffers (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  wire_id text not null constraint inventory_buffers_wire_form check (wire_id ~ '^[0-9a-f]{24}$'),
  product_id uuid not null,
  variant_id uuid,
  warehouse_id uuid,
  buffer_quantity int not null default 0 constraint inventory_buffers_quantity check (buffer_quantity >= 0),
  buffer_percent int not null default 0 constraint inventory_buffers_percent check (buffer_percent between 0 and 100),
  virtual_extra int not null default 0 constraint inventory_buffers_extra check (virtual_extra >= 0),
  channel varchar(50),
  active_from timestamptz,
  active_to timestamptz,
  is_active boolean not null default true,
  metadata jsonb,
  version bigint not null default 1,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint inventory_buffers_pkey primary key (tenant_key, id),
  constraint inventory_buffers_wire unique (tenant_key, wire_id),
  constraint inventory_buffers_rule unique nulls not distinct (tenant_key, product_id, variant_id, warehouse_id, channel),
  constraint inventory_buffers_window check (active_to > active_from),
  constraint inventory_buffers_product foreign key (tenant_key, product_id) references products (tenant_key, id),
  constraint inventory_buffers_variant foreign key (tenant_key, variant_id) references product_variants (tenant_key, id),
  constraint inventory_buffers_warehouse foreign key (tenant_key, warehouse_id) references warehouses (tenant_key, id));
select kasma_tenant_table('inventory_buffers');

-- Takes HELD reservations for many groups at once and answers the numbers of those that were granted. p_ids are the stock
-- rows, once each; the arrays p_grp, p_slot, p_qty, p_rid, p_key have one element per (group, stock row), group by group,
-- numbered 1..p_groups in order of arrival; two lines of a group on one row are summed before. All or nothing per group.
-- Rows are locked in the order of their ids before anything is read, so a row that waited is read in its newest version:
-- check and write are one act. A batch that refuses everybody writes nothing. The inserts join the locked rows, so that
-- each statement is of one tenant.
create function stock_reserve(p_tenant text, p_ids uuid[], p_grp int[], p_slot int[], p_qty int[], p_rid uuid[], p_key uuid[],
  p_groups int, p_now timestamptz, p_until timestamptz) returns int[] language plpgsql as $$
declare
  rest int[];
  fits bool[] := array_fill(true, array[p_groups]);
  granted int[] := '{}';
  n int := cardinality(p_grp);
  a int := 1;
  b int;
begin
  select array_agg(coalesce(l.avail, 0) order by w.slot) into rest from unnest(p_ids) with ordinality as w (id, slot)
    left join (select i.id, i.available_quantity as avail from warehouse_inventory i
      where i.tenant_key = p_tenant and i.id = any(p_ids) order by i.id for update) l on l.id = w.id;
  while a <= n loop
    b := a;
    while b <= n and p_grp[b] = p_grp[a] loop
      if rest[p_slot[b]] < p_qty[b] then
        fits[p_grp[a]] := false;
      end if;
      b := b + 1;
    end loop;
    if fits[p_grp[a]] then
      granted := granted || p_grp[a];
      for k in a..b - 1 loop
        rest[p_slot[k]] := rest[p_slot[k]] - p_qty[k];
      end loop;
    end if;
    a := b;
  end loop;
  if granted = '{}' then
    return granted;
  end if;
  update warehouse_inventory i set reserved_quantity = i.reserved_quantity + s.qty, version = i.version + 1, updated_at = p_now
    from (select p_ids[l.slot] as id, sum(l.qty)::int as qty from unnest(p_grp, p_slot, p_qty) as l (grp, slot, qty)
      where fits[l.grp] group by 1) s
    where i.tenant_key = p_tenant and i.id = s.id;
  insert into stock_reservations (tenant_key, app_key, id, group_key, inventory_id, quantity, expires_at, created_at, updated_at)
    select i.tenant_key, i.app_key, l.rid, l.key, i.id, l.qty, p_until, p_now, p_now
    from unnest(p_grp, p_slot, p_qty, p_rid, p_key) as l (grp, slot, qty, rid, key)
    join warehouse_inventory i on i.tenant_key = p_tenant and i.id = p_ids[l.slot] where fits[l.grp];
  insert into due_work (tenant_key, app_key, kind, id, due_at)
    select i.tenant_key, i.app_key, 'stock.reservation', l.key, p_until
    from unnest(p_grp, p_slot, p_key) with ordinality as l (grp, slot, key, n)
    join warehouse_inventory i on i.tenant_key = p_tenant and i.id = p_ids[l.slot]
    where fits[l.grp] and p_grp[l.n - 1] is distinct from l.grp;
  return granted;
end $$;
revoke execute on function stock_reserve(text, uuid[], int[], int[], int[], uuid[], uuid[], int, timestamptz, timestamptz) from public;
grant execute on function stock_reserve(text, uuid[], int[], int[], int[], uuid[], uuid[], int, timestamptz, timestamptz) to kasma_app;
