-- Runs of workflow rules: a row for each event that started one, and a row for each attempt of a step. The state that a rule
-- keeps (`data`) is written in the transaction that ends the attempt, so a run goes on from where it stood.

create table workflow_runs (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  id uuid not null,
  rule_id uuid not null,
  version int not null,
  event text not null,
  event_id uuid not null,
  event_data jsonb not null default '{}' constraint workflow_runs_event_data check (jsonb_typeof(event_data) = 'object'),
  entity_type text not null,
  entity_id text not null,
  state text not null default 'running' constraint workflow_runs_state
    check (state in ('running', 'waiting', 'done', 'failed', 'undone', 'cancelled')),
  phase text not null default 'run' constraint workflow_runs_phase check (phase in ('run', 'undo')),
  -- What a run that is being undone ends as.
  ending text constraint workflow_runs_ending check (ending in ('undone', 'cancelled')),
  step int not null default 1 constraint workflow_runs_step check (step >= 0),
  -- The rule's own bound is 64 KiB of compact JSON; as jsonb prints it, it is longer.
  data jsonb not null default '{}' constraint workflow_runs_data check (octet_length(data::text) <= 262144),
  -- Failures of the step that is next, and attempts of any step so far.
  attempts int not null default 0,
  tries int not null default 0,
  -- Events that a step of the version waits for, those that came meanwhile, and what ended the wait of the step that is next.
  awaits text[] not null default '{}',
  heard jsonb not null default '{}',
  waited jsonb,
  wait_event text,
  wake_at timestamptz,
  -- Whose attempt is under way, and until when nobody else begins one.
  claim uuid,
  claimed_until timestamptz,
  hops int not null default 0 constraint workflow_runs_hops check (hops between 0 and 8),
  error jsonb,
  reason text,
  started_at timestamptz not null,
  finished_at timestamptz,
  updated_at timestamptz not null,
  constraint workflow_runs_pkey primary key (tenant_key, id),
  constraint workflow_runs_once unique (tenant_key, rule_id, event_id),
  constraint workflow_runs_version foreign key (tenant_key, rule_id, version) references rule_versions (tenant_key, rule_id, version),
  constraint workflow_runs_finished check ((state in ('running', 'waiting')) = (finished_at is null)));
create index workflow_runs_of_rule on workflow_runs (tenant_key, rule_id, id desc);
create index workflow_runs_by_state on workflow_runs (tenant_key, state, wake_at);
create index workflow_runs_of_entity on workflow_runs (tenant_key, entity_id, id desc);
select kasma_tenant_table('workflow_runs');

create table workflow_steps (
  tenant_key text not null default 'MASTER',
  app_key text not null default 'MASTER',
  run_id uuid not null,
  position int not null,
  attempt int not null,
  -- The how-manieth attempt of the run it was: they are told in this order.
  n int not null,
  name text not null,
  kind text not null constraint workflow_steps_kind check (kind in ('run', 'undo')),
  state text not null default 'running' constraint workflow_steps_state check (state in ('running', 'done', 'failed')),
  -- Idempotency key of what its capability calls write: the same for all attempts of a step.
  key text not null,
  instructions bigint not null default 0,
  micros bigint not null default 0,
  log text,
  error jsonb,
  started_at timestamptz not null,
  finished_at timestamptz,
  constraint workflow_steps_pkey primary key (tenant_key, run_id, position, attempt),
  constraint workflow_steps_run foreign key (tenant_key, run_id) references workflow_runs (tenant_key, id) on delete cascade);
select kasma_tenant_table('workflow_steps');
