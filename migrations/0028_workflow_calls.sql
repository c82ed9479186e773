-- What the steps of a workflow have written, call by call: a step that is tried again writes nothing twice, and one that would call
-- something else in a call's place is stopped. Of the arguments there is a hash alone. Rows go with their run.
create table workflow_calls (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  run_id uuid not null,
  position int not null,
  kind text not null constraint workflow_calls_kind check (kind in ('run', 'undo')),
  -- The how-manieth call of the step that writes.
  n int not null constraint workflow_calls_n check (n > 0),
  name text not null,
  args_sha256 text not null constraint workflow_calls_args check (args_sha256 ~ '^[0-9a-f]{64}$'),
  -- Set in the transaction that wrote; null where what is written is once-only by its own key.
  answer jsonb,
  at timestamptz not null,
  constraint workflow_calls_pkey primary key (tenant_key, run_id, position, kind, n),
  constraint workflow_calls_run foreign key (tenant_key, run_id) references workflow_runs (tenant_key, id) on delete cascade);
select kasma_tenant_table('workflow_calls');
