-- Runs under way that wait for an event, now or later: all that an event has to look through, and none where nobody waits.
alter table workflow_runs add column listens boolean not null default false;
update workflow_runs set listens = true where cardinality(awaits) > 0;
create index workflow_runs_listening on workflow_runs (tenant_key, entity_id) where listens and finished_at is null;
