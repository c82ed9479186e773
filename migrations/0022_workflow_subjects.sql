-- Whom a run of a workflow is about, so that it is handed out and erased with their account.
alter table workflow_runs add column user_id uuid;
create index workflow_runs_of_user on workflow_runs (tenant_key, user_id) where user_id is not null;
